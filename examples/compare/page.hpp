// The results as one page of HTML that needs nothing else: charts are SVG inside it.
#pragma once

#include "table.hpp"

#include <fstream>
#include <functional>

namespace sluice::examples {

namespace detail {

inline std::string escaped(const std::string& text) {
    std::string out;
    for (const char c : text) {
        const auto byte = static_cast<unsigned char>(c);
        if (c == '<')
            out += "&lt;";
        else if (c == '>')
            out += "&gt;";
        else if (c == '&')
            out += "&amp;";
        else if (c == '"')
            out += "&quot;";
        else if (byte >= 127 || (byte < 32 && c != '\n' && c != '\t'))
            out += "&#xFFFD;"; // of a model of bytes, which may break characters
        else
            out += c;
    }
    return out;
}

inline std::string fixed(double x, int digits) {
    char text[64];
    std::snprintf(text, sizeof text, "%.*f", digits, x);
    return text;
}

// Colours that stay apart for most eyes; controls are dashed.
inline const char* colour(std::size_t i) {
    static const char* const all[] = {"#222222", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00",
                                      "#56b4e9", "#8c564b", "#7f7f7f", "#9467bd", "#bcbd22", "#17becf"};
    return all[i % std::size(all)];
}

struct series {
    std::string name;
    bool dashed = false;
    std::vector<std::pair<double, double>> points;
};

// A number of 1, 2 or 5 times a power of ten, so that about `n` of them fill the span.
inline double round_step(double span, double n) {
    const double raw = span / n, power = std::pow(10, std::floor(std::log10(raw)));
    for (const double f : {1.0, 2.0, 5.0})
        if (raw <= f * power) return f * power;
    return 10 * power;
}

class chart {
public:
    chart(std::string title, std::string x, std::string y, bool lines)
        : title_(std::move(title)), x_(std::move(x)), y_(std::move(y)), lines_(lines) {}

    std::string svg(const std::vector<series>& all) {
        bounds(all);
        std::string s = "<svg viewBox=\"0 0 640 400\" role=\"img\"><title>" + escaped(title_) + "</title>";
        axes(s);
        double label = top + 12;
        const double apart = std::min(18.0, (bottom + 40 - label) / static_cast<double>(all.size()));
        for (std::size_t i = 0; i < all.size(); ++i) {
            if (all[i].points.empty()) continue;
            draw(s, all[i], colour(i));
            s += "<text x=\"" + fixed(right + 26, 0) + "\" y=\"" + fixed(label, 0) + "\">" +
                 escaped(all[i].name) + "</text><line x1=\"" + fixed(right + 6, 0) + "\" x2=\"" +
                 fixed(right + 22, 0) + "\" y1=\"" + fixed(label - 4, 0) + "\" y2=\"" + fixed(label - 4, 0) +
                 "\" stroke=\"" + colour(i) + "\" stroke-width=\"3\"" +
                 (all[i].dashed ? " stroke-dasharray=\"4 3\"" : "") + "/>";
            label += apart;
        }
        if (!lines_) names(s, all);
        return s + "</svg>";
    }

private:
    static constexpr double left = 58, right = 510, top = 34, bottom = 350;

    void bounds(const std::vector<series>& all) {
        double most_x = 0, least_y = 1e300, most_y = -1e300;
        for (const auto& s : all)
            for (const auto& [x, y] : s.points) {
                most_x = std::max(most_x, x);
                least_y = std::min(least_y, y), most_y = std::max(most_y, y);
            }
        if (least_y > most_y) least_y = 0, most_y = 1;
        if (!(most_x > 0)) most_x = 1;
        step_x_ = round_step(most_x, 6);
        last_x_ = most_x * 1.03;
        step_y_ = round_step(std::max(most_y - least_y, 0.01), 6);
        first_y_ = std::floor((least_y - 0.02) / step_y_) * step_y_;
        last_y_ = std::ceil((most_y + 0.02) / step_y_) * step_y_;
    }
    double px(double x) const { return left + (right - left) * x / last_x_; }
    double py(double y) const { return bottom - (bottom - top) * (y - first_y_) / (last_y_ - first_y_); }

    void axes(std::string& s) const {
        s +=
            "<text x=\"" + fixed(left, 0) + "\" y=\"18\" font-weight=\"bold\">" + escaped(title_) + "</text>";
        for (double y = first_y_; y <= last_y_ + step_y_ / 2; y += step_y_)
            s += "<line class=\"grid\" x1=\"" + fixed(left, 0) + "\" x2=\"" + fixed(right, 0) + "\" y1=\"" +
                 fixed(py(y), 1) + "\" y2=\"" + fixed(py(y), 1) + "\"/><text text-anchor=\"end\" x=\"" +
                 fixed(left - 6, 0) + "\" y=\"" + fixed(py(y) + 4, 1) + "\">" +
                 fixed(y, step_y_ < 0.1 ? 2 : 1) + "</text>";
        for (double x = 0; x <= last_x_; x += step_x_)
            s += "<text text-anchor=\"middle\" x=\"" + fixed(px(x), 1) + "\" y=\"" + fixed(bottom + 18, 0) +
                 "\">" + short_number(x) + "</text>";
        s += "<text text-anchor=\"middle\" x=\"" + fixed((left + right) / 2, 0) + "\" y=\"" +
             fixed(bottom + 38, 0) + "\">" + escaped(x_) +
             "</text><text text-anchor=\"middle\" transform=\"" + "translate(14 " +
             fixed((top + bottom) / 2, 0) + ") rotate(-90)\">" + escaped(y_) + "</text>";
    }
    void draw(std::string& s, const series& one, const std::string& ink) const {
        if (lines_) {
            s += "<polyline fill=\"none\" stroke=\"" + ink + "\" stroke-width=\"2\"" +
                 (one.dashed ? " stroke-dasharray=\"5 4\"" : "") + " points=\"";
            for (const auto& [x, y] : one.points) s += fixed(px(x), 1) + "," + fixed(py(y), 1) + " ";
            s += "\"/>";
        }
        const auto& [x, y] = one.points.back();
        s += "<circle r=\"4\" fill=\"" + ink + "\" cx=\"" + fixed(px(x), 1) + "\" cy=\"" + fixed(py(y), 1) +
             "\"/>";
    }

    struct box {
        double left, top, right, bottom;
        bool meets(const box& other) const {
            return left < other.right && other.left < right && top < other.bottom && other.top < bottom;
        }
    };
    // Of a name in a font of 10, rather too wide than too narrow: fonts differ.
    static double width_of(std::string_view name) {
        double wide = 0;
        for (const char c : name) wide += c == 'm' || c == 'w' || c == '+' ? 8.5 : 5.9;
        return wide;
    }
    // Names beside single points, whose colours are hard to tell, where they cover neither a point nor
    // another name; a line leads to those that had to go farther.
    void names(std::string& s, const std::vector<series>& all) const {
        std::vector<box> taken;
        for (const auto& one : all) {
            const double x = px(one.points.back().first), y = py(one.points.back().second);
            taken.push_back({x - 5, y - 5, x + 5, y + 5});
        }
        for (const auto& one : all) {
            const double x = px(one.points.back().first), y = py(one.points.back().second),
                         wide = width_of(one.name);
            const auto free = [&](const box& b) {
                return b.left >= left && b.right <= right + 5 && b.top >= top && b.bottom <= bottom &&
                       std::none_of(taken.begin(), taken.end(), [&](const box& o) { return b.meets(o); });
            };
            box at{x + 7, y - 5, x + 7 + wide, y + 6};
            for (int far = 0; far < 20 && !free(at); ++far)
                for (const double side : {x + 7, x - 7 - wide, x - wide / 2})
                    for (const double up : {-6.0 * far, 6.0 * far})
                        if (const box b{side, y - 5 + up, side + wide, y + 6 + up}; !free(at) && free(b))
                            at = b;
            taken.push_back(at);
            const double middle = (at.top + at.bottom) / 2, end = at.left > x ? at.left : at.right;
            if (std::abs(middle - y) > 12)
                s += "<line class=\"grid\" x1=\"" + fixed(x, 1) + "\" y1=\"" + fixed(y, 1) + "\" x2=\"" +
                     fixed(end, 1) + "\" y2=\"" + fixed(middle, 1) + "\"/>";
            const bool before = at.right < x;
            s += std::string("<text font-size=\"10\" text-anchor=\"") + (before ? "end" : "start") +
                 "\" x=\"" + fixed(before ? at.right : at.left, 1) + "\" y=\"" + fixed(at.bottom - 2, 1) +
                 "\">" + escaped(one.name) + "</text>";
        }
    }

    std::string title_, x_, y_;
    bool lines_;
    double step_x_ = 1, last_x_ = 1, first_y_ = 0, last_y_ = 1, step_y_ = 1;
};

// What a picture shows: all models, or no variants of one, whose names have a colon.
enum class shown { all, main };

inline std::vector<seed_summary> shown_of(const std::vector<outcome_of_run>& runs, shown which) {
    auto all = by_model(runs);
    std::erase_if(all, [&](const seed_summary& s) {
        return which == shown::main && s.first->who.name.find(':') != std::string::npos;
    });
    return all;
}

// Curves of the first seed of each model; the first tenth, where all fall from 8 bits, would flatten the
// rest.
inline std::vector<series> curves(const std::vector<outcome_of_run>& runs,
                                  const std::function<double(const outcome_of_run&, const curve_point&)>& x,
                                  shown which = shown::all) {
    std::vector<series> all;
    for (const auto& s : shown_of(runs, which)) {
        series one{s.first->who.name, !s.first->who.control_of.empty(), {}};
        for (const auto& p : s.first->curve)
            if (10 * p.step >= s.first->who.steps) one.points.push_back({x(*s.first, p), p.bits});
        all.push_back(std::move(one));
    }
    return all;
}

inline void write_file(const std::string& option, const std::string& path, const std::string& text) {
    std::ofstream out(path, std::ios::binary);
    out << text;
    out.close();
    if (!out) throw std::runtime_error(option + ": " + path + " cannot be written");
}

inline std::string loss_against_computation(const std::vector<outcome_of_run>& runs, shown which) {
    auto flops = [](const outcome_of_run& r, const curve_point& p) {
        return r.costs.step_flops * static_cast<double>(p.step);
    };
    return chart("Loss against computation", "training FLOPs", "held-out bits per byte", true)
        .svg(curves(runs, flops, which));
}
inline std::string quality_against_decoding(const std::vector<outcome_of_run>& runs, shown which) {
    std::vector<series> speeds;
    for (const auto& s : shown_of(runs, which))
        speeds.push_back(
            {s.first->who.name, !s.first->who.control_of.empty(), {{s.first->speeds.decode, s.mean}}});
    return chart("Quality against decoding", "tokens decoded in a second", "held-out bits per byte", false)
        .svg(speeds);
}

} // namespace detail

// The two charts that say most, side by side in one SVG file. Throws runtime_error where it cannot be
// written.
inline void write_picture(const std::string& path, const std::vector<outcome_of_run>& runs) {
    std::string all =
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 1300 400\"><style>svg{font:12px "
        "system-ui,sans-serif}.grid{stroke:#ddd}</style><rect width=\"1300\" height=\"400\" "
        "fill=\"#fff\"/>";
    double x = 0;
    for (const auto& svg : {detail::loss_against_computation(runs, detail::shown::main),
                            detail::quality_against_decoding(runs, detail::shown::main)}) {
        all += "<svg x=\"" + detail::fixed(x, 0) + "\" width=\"640\" height=\"400\"" + svg.substr(4);
        x += 650;
    }
    detail::write_file("--picture", path, all + "</svg>\n");
}

// Throws runtime_error where the file cannot be written.
inline void write_page(const std::string& path, const std::vector<outcome_of_run>& runs,
                       const std::string& settings) {
    using detail::escaped;
    std::string page =
        R"(<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>compare</title><style>
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:1100px;padding:0 1em;color:#222}
table{border-collapse:collapse;font-size:13px;display:block;overflow-x:auto}td,th{padding:.25em .6em;text-align:right;
border-bottom:1px solid #ddd;white-space:nowrap}td:first-child,th:first-child{text-align:left}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(480px,1fr));gap:1em}svg{width:100%;height:auto;
font:12px system-ui,sans-serif}.grid{stroke:#ddd}pre{white-space:pre-wrap;background:#f6f6f6;padding:.7em}
.note{color:#555}</style></head><body><h1>What each technique did</h1><p class="note">)";
    const auto all = by_model(runs);
    const idx seeds = all.empty() ? 1 : all.front().seeds;
    page += escaped(settings) + "</p><p>Lower bits per byte are better. Differences of " +
            detail::fixed(noise_of(runs).least_difference(seeds, seeds), 3) +
            " bits per byte or less say nothing: seeds alone may make them. Dashed: controls. Points on the "
            "way of a curve are not results, as the learning rate is still high there, and all of it is of "
            "fewer held-out windows than the figures.</p><div class=\"charts\">";
    page += detail::loss_against_computation(runs, detail::shown::all);
    page +=
        detail::chart("Loss against time", "seconds of training, one thread", "held-out bits per byte", true)
            .svg(detail::curves(runs, [](const auto&, const auto& p) { return p.seconds; }));
    page += detail::chart("Loss against text", "tokens read", "held-out bits per byte", true)
                .svg(detail::curves(runs, [](const auto& r, const auto& p) {
                    return static_cast<double>(p.step * r.who.size.sequences * r.who.size.context);
                }));
    page += detail::quality_against_decoding(runs, detail::shown::all);
    page += "</div><h2>Figures</h2><table><tr>";
    for (const auto& name : column_names()) page += "<th>" + escaped(name) + "</th>";
    page += "</tr>";
    for (const auto& row : cells(runs)) {
        page += "<tr>";
        for (const auto& cell : row) page += "<td>" + escaped(cell) + "</td>";
        page += "</tr>";
    }
    page += "</table><h2>What can be said</h2><ul>";
    for (const auto& line : findings(runs)) page += "<li>" + escaped(line) + "</li>";
    page += "</ul><h2>Text</h2>";
    for (const auto& s : all)
        page += "<h3>" + escaped(s.first->who.name) + "</h3><pre>" + escaped(s.first->sample) + "</pre>";
    page += "</body></html>\n";
    detail::write_file("--report", path, page);
}

} // namespace sluice::examples
