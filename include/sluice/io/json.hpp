// The one door to nlohmann-json: one strict pass over a text, without a tree, and quoting of strings.
//
// Accepts objects, arrays, strings and unsigned integers written as such; refuses everything else unless the
// handler takes it, and duplicate keys at every level. Memory is proportional to the text; nesting is
// limited.
#pragma once

#include "file.hpp"

#include <nlohmann/json.hpp>

#include <set>
#include <vector>

namespace sluice::io {

struct json_limits {
    idx depth = 4;                // open containers
    std::size_t keys = 1'000'000; // of one object
};

// Where in a text something stands: the keys from the outermost object inwards, and the number of open
// containers around it.
struct json_place {
    std::span<const std::string> keys;
    idx depth;
};

// What reads a text: told of every container and value, in order. open is told before its container counts
// for the depth, close after. A handler with boolean(place, value) or real(place, value), for negative and
// fractional numbers, is told of these, one with other(place) of null and the rest; without, they are
// refused.
template <class H>
concept json_handler = requires(H& h, const json_place& at, std::string& text, std::uint64_t number,
                                bool array) {
    h.open(at, array);
    h.close(at);
    h.text(at, text);
    h.number(at, number);
};

inline namespace SLUICE_ISA {

namespace detail {

template <json_handler Handler>
class json_pass {
public:
    json_pass(const std::string& where, Handler& handler, const json_limits& limits)
        : where_(where), handler_(handler), limits_(limits) {}

    bool null() { return refuse("null"); }
    bool boolean(bool value) {
        if constexpr (requires { handler_.boolean(place(), value); })
            return handler_.boolean(place(), value), true;
        return refuse("a boolean");
    }
    bool number_integer(std::int64_t n) {
        if constexpr (requires { handler_.real(place(), 0.0); })
            return handler_.real(place(), static_cast<double>(n)), true;
        return refuse("the negative number " + std::to_string(n));
    }
    bool number_float(double value, const std::string& digits) {
        if constexpr (requires { handler_.real(place(), value); }) return handler_.real(place(), value), true;
        return refuse("the number " + digits.substr(0, 40));
    }
    bool binary(nlohmann::json::binary_t&) { return refuse("binary data"); }
    bool number_unsigned(std::uint64_t n) { return handler_.number(place(), n), true; }
    bool string(std::string& text) { return handler_.text(place(), text), true; }

    bool start_object(std::size_t) {
        enter(false);
        seen_.emplace_back();
        keys_.emplace_back();
        return true;
    }
    bool end_object() {
        keys_.pop_back();
        seen_.pop_back();
        return leave();
    }
    bool start_array(std::size_t) {
        enter(true);
        return true;
    }
    bool end_array() { return leave(); }

    bool key(std::string& name) {
        if (seen_.back().size() >= limits_.keys)
            fail(where_, "more than " + std::to_string(limits_.keys) + " keys in one object");
        if (!seen_.back().insert(name).second) fail(where_, "duplicate key \"" + name.substr(0, 512) + "\"");
        keys_.back() = std::move(name);
        return true;
    }
    bool parse_error(std::size_t at, const std::string&, const nlohmann::json::exception&) {
        fail(where_, "no valid JSON at byte " + std::to_string(at));
    }

private:
    json_place place() const { return {keys_, depth_}; }
    void enter(bool array) {
        if (depth_ >= limits_.depth) fail(where_, "nested deeper than " + std::to_string(limits_.depth));
        handler_.open(place(), array);
        ++depth_;
    }
    bool leave() {
        --depth_;
        handler_.close(place());
        return true;
    }
    bool refuse(const std::string& what) const {
        if constexpr (requires { handler_.other(place()); }) return handler_.other(place()), true;
        std::string path;
        for (const auto& k : keys_) path += (path.empty() ? "\"" : ".\"") + k.substr(0, 512) + "\"";
        fail(where_, (path.empty() ? "text" : path) + " holds " + what +
                         "; strings, unsigned integers, arrays and objects are allowed");
    }

    const std::string& where_;
    Handler& handler_;
    json_limits limits_;
    std::vector<std::string> keys_;
    std::vector<std::set<std::string>> seen_;
    idx depth_ = 0;
};

} // namespace detail

// Tells `handler` what the text holds. Throws input_error, its message beginning with `where`, where the text
// is not valid JSON in UTF-8, holds a value of a type not allowed or a key twice, or exceeds a limit. The
// handler may throw.
template <json_handler Handler>
void read_json(std::string_view text, const std::string& where, Handler& handler,
               const json_limits& limits = {}) {
    // The parser takes a zero byte for the end of the text.
    const std::size_t zero = text.find('\0');
    if (zero != std::string_view::npos)
        detail::fail(where, "no valid JSON at byte " + std::to_string(zero + 1));
    detail::json_pass<Handler> pass(where, handler, limits);
    (void)nlohmann::json::sax_parse(text.begin(), text.end(), &pass);
}

// The text as a JSON string. Throws input_error where it is not UTF-8.
inline std::string json_quote(std::string_view text, const std::string& where) {
    constexpr std::string_view digits = "0123456789abcdef";
    std::string quoted = "\"";
    for (const char c : text) {
        const auto code = static_cast<unsigned char>(c);
        if (c == '"' || c == '\\')
            (quoted += '\\') += c;
        else if (code < 0x20)
            ((quoted += "\\u00") += digits[code >> 4U]) += digits[code & 15U];
        else
            quoted += c;
    }
    quoted += '"';
    if (!nlohmann::json::accept(quoted))
        detail::fail(where, "\"" + std::string(text.substr(0, 512)) + "\" is not UTF-8");
    return quoted;
}

} // namespace SLUICE_ISA
} // namespace sluice::io
