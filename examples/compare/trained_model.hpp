// A candidate from a recipe: the type of a body and its config for training and for evaluation. Weights,
// gradient and moments, and the memory that a step takes, are made once. It runs in the calling thread.
#pragma once

#include "blocks.hpp"

#include <sluice/io/params.hpp>
#include <sluice/layers/language_model.hpp>
#include <sluice/train/adamw.hpp>
#include <sluice/train/balance.hpp>
#include <sluice/train/counts.hpp>
#include <sluice/train/row_adam.hpp>

#include <algorithm>
#include <deque>

namespace sluice::examples {

// Tokens that layers did work for, of all that came by: routed ones of Mixture-of-Depths, concepts of DLCM.
struct work_count {
    double done = 0, seen = 0;
};

template <class S>
void count_work(const S& state, idx slot, work_count& n) {
    if constexpr (requires { state.routed(slot); }) {
        n.done += static_cast<double>(state.routed(slot)), n.seen += static_cast<double>(state.tokens(slot));
    } else if constexpr (requires { state.concepts(slot); }) {
        n.done += static_cast<double>(state.concepts(slot));
        n.seen += static_cast<double>(state.tokens(slot));
    } else if constexpr (requires { state.layers.size(); }) {
        for (const auto& s : state.layers) count_work(s, slot, n);
    } else if constexpr (requires { get<0>(state.layers); }) {
        [&]<class... P>(const parts<P...>& all) {
            [&]<std::size_t... I>(std::index_sequence<I...>) { (count_work(get<I>(all), slot, n), ...); }
            (std::index_sequence_for<P...>{});
        }(state.layers);
    }
}

// Recipe: `body`, a layer, and static config(size, purpose), its config.
template <class Recipe>
class trained_model final : public candidate {
    using model = language_model<typename Recipe::body>;
    using weights_type = owned_params<typename model::params_type>;
    using gradient_type = owned_params<typename model::grad_type>;
    static constexpr idx judged_windows = 8; // at a time
    static constexpr double table_rate = 5, balance_rate = 0.01;

public:
    trained_model(const model_size& size, std::uint64_t seed)
        : size_(size),
          config_(config_for({.training = &report_})),
          weights_(config_),
          gradient_(config_),
          means_(config_),
          squares_(config_),
          training_(config_, weights_.view),
          judged_(config_for({}), weights_.view) {
        const sizes need =
            training_.bytes({.max_rows = size.sequences * size.context, .n_sequences = size.sequences});
        const sizes judging =
            judged_.bytes({.max_rows = judged_windows * size.context, .n_sequences = judged_windows});
        workspace_ = arena(std::max(need.workspace, judging.workspace));
        tape_ = arena(need.tape);
        initialise(weights_.view, config_, random_source(seed));
        each_param(
            [&](const param_name&, role, const auto& w, const auto& g) {
                if constexpr (requires { g.touched(); }) {
                    arena dry;
                    (void)row_adam_state<float>::bind(dry, w.rows(), w.cols());
                    table_memory_.emplace_back(dry.bytes());
                    tables_.push_back(row_adam_state<float>::bind(table_memory_.back(), w.rows(), w.cols()));
                }
            },
            weights_.view, gradient_.view);
    }

    double step(const windows& text, std::uint64_t seed, idx number, double rate) override {
        report_ = {};
        zero(gradient_.view);
        batch b = text.rows();
        b.random_key = random_source(seed).split(static_cast<std::uint64_t>(number)).key();
        const double loss = training_.loss_and_gradient(b, text.targets(), gradient_.view, tape_, workspace_);
        adamw_config c{.rate = rate, .clip = 1};
        const double norm =
            adamw(weights_.view, gradient_.view, means_.view, squares_.view, c, number, workspace_);
        c.rate *= table_rate;
        std::size_t table = 0;
        each_param(
            [&](const param_name&, role, const auto& w, const auto& g) {
                if constexpr (requires { g.touched(); })
                    row_adam(w, g, tables_[table++], c, static_cast<float>(std::min(1.0, c.clip / norm)));
            },
            weights_.view, gradient_.view);
        update_selection_biases(gradient_.view, balance_rate, weights_.view);
        return loss;
    }

    double bits(const judged_text& text, idx most) override {
        if (size_.random_routing) return streamed_bits(text, most);
        return bits_of(judged_, judged_windows, text, most);
    }
    double bits_looking_ahead(const judged_text& text, idx most) override {
        if constexpr (requires { Recipe::looks_ahead; })
            if (!size_.random_routing) return bits_of(training_, size_.sequences, text, most);
        return std::nan("");
    }

    std::vector<double> log_likelihoods(std::span<const token_id> ids, idx piece) override {
        const idx n = static_cast<idx>(ids.size());
        tensor<float> logits(n, judged_.vocabulary());
        if (piece == 0 && size_.random_routing) piece = n;
        if (piece == 0) {
            arena workspace(judged_.bytes({.max_rows = n}).workspace);
            judged_.forward(batch::one(ids), logits, workspace);
        } else {
            const sizes need = judged_.bytes({.max_tokens = n, .max_rows = piece});
            arena workspace(need.workspace), memory(need.state);
            auto state = judged_.bind_state(memory, {.max_tokens = n, .max_rows = piece});
            for (idx at = 0; at < n; at += piece) {
                const idx m = std::min(piece, n - at);
                const auto some = ids.subspan(static_cast<std::size_t>(at), static_cast<std::size_t>(m));
                judged_.extend(batch::one(some, at), logits.view().row_block(at, m), state, workspace);
            }
            count_work(state, 0, work_);
        }
        std::vector<double> result;
        for (idx i = 0; i + 1 < n; ++i) {
            const float* const row = logits.view().row(i);
            const double top = *std::max_element(row, row + logits.view().cols());
            double sum = 0;
            for (idx j = 0; j < logits.view().cols(); ++j) sum += std::exp(static_cast<double>(row[j]) - top);
            result.push_back(static_cast<double>(row[ids[static_cast<std::size_t>(i + 1)]]) - top -
                             std::log(sum));
        }
        return result;
    }

    model_costs costs() override {
        const double share = work_.seen > 0 ? work_.done / work_.seen : 1;
        const model real(config_for({.share = work_.seen > 0 ? std::max(share, 1e-3) : 0}), weights_.view);
        model_costs c{.step_flops = training_flops(training_, size_.sequences, size_.context),
                      .token_flops = real.flops(size_.context) / static_cast<double>(size_.context),
                      .share = share};
        each_param(
            [&](const param_name& name, role r, const auto& t) {
                if (r == role::buffer) return;
                const auto n = static_cast<double>(t.size());
                c.parameters += n;
                const bool part = name.within("block") || name.within("backbone") || name.within("concepts");
                c.active += r == role::table         ? static_cast<double>(size_.d_model)
                            : r == role::embedding   ? static_cast<double>(t.cols())
                            : name.within("experts") ? n * static_cast<double>(size_.experts_of_token) /
                                                           static_cast<double>(size_.experts)
                            : part ? n * share
                                   : n;
            },
            weights_.view);
        constexpr idx long_text = 4096;
        auto state = [&](idx tokens) {
            const auto worked = // 0 would stand for all
                std::max(static_cast<idx>(std::ceil(share * static_cast<double>(tokens))), idx{1});
            return static_cast<double>(judged_
                                           .bytes({.max_tokens = tokens,
                                                   .wanted = outputs::last,
                                                   .max_routed = worked,
                                                   .max_concepts = worked})
                                           .state);
        };
        c.state_bytes = (state(2 * long_text) - state(long_text)) / static_cast<double>(long_text);
        return c;
    }

    model_speeds speeds(std::span<const token_id> prompt, idx n_tokens) override {
        model_speeds best;
        for (int i = 0; i < 3; ++i) {
            const writing w = write_tokens(judged_, prompt, n_tokens + 1, {.temperature = 1}, 1, {},
                                           [](token_id, const auto&) { return true; });
            best.prefill = std::max(best.prefill, static_cast<double>(w.read) / w.read_seconds);
            best.decode = std::max(best.decode, static_cast<double>(w.decoded) / w.decode_seconds);
        }
        return best;
    }

    std::vector<token_id> text(std::span<const token_id> prompt, idx n_tokens, std::uint64_t seed) override {
        std::vector<token_id> all;
        write_tokens(judged_, prompt, n_tokens, {.temperature = 0.7}, seed, {},
                     [&](token_id next, const auto&) {
                         all.push_back(next);
                         return true;
                     });
        return all;
    }

    void save(io::safetensors_writer& out, const std::string& prefix) override {
        io::save_params(out, prefix, weights_.view);
        visit_moments([&](const std::string& name, const auto& t) { out.add(prefix + name, t); });
    }
    void load(const io::safetensors& in, const std::string& prefix) override {
        io::load_params(in, prefix, weights_.view);
        visit_moments([&](const std::string& name, const auto& t) { in.copy_to(prefix + name, t); });
    }

private:
    double bits_of(const model& net, idx n_windows, const judged_text& text, idx most) {
        windows w(n_windows, size_.context);
        return held_out_bits(net, text.units, w, most, workspace_, {},
                             [&](std::size_t i) { return text.bytes_of(i); });
    }
    // The same windows through the state: drawn at once, as many tokens are routed as of a whole sequence,
    // which is not the rule that text is generated by.
    double streamed_bits(const judged_text& text, idx most) {
        const auto length = static_cast<std::size_t>(size_.context),
                   all = (text.units.size() - 2) / length + 1;
        const auto n = most > 0 ? std::min(all, static_cast<std::size_t>(most)) : all;
        double nats = 0, bytes = 0;
        for (std::size_t i = 0; i < n; ++i) {
            const std::size_t at = i * all / n * length;
            const auto window = text.units.subspan(at, std::min(text.units.size() - at, length + 1));
            for (const double l : log_likelihoods(window, 0)) nats -= l;
            for (std::size_t j = 1; j < window.size(); ++j)
                bytes += static_cast<double>(text.bytes_of(at + j));
        }
        return nats / bytes / std::numbers::ln2;
    }

    // f(name, tensor) of all that the optimiser keeps. Of tables the row gradients' shapes are skipped.
    template <class F>
    void visit_moments(F&& f) {
        auto visit = [&](const std::string& set, const auto& params) {
            each_param(
                [&](const param_name& name, role, const auto& t) {
                    if constexpr (!requires { t.touched(); }) f(set + name.str(), t);
                },
                params);
        };
        visit("adamw.mean.", means_.view);
        visit("adamw.square.", squares_.view);
        for (std::size_t i = 0; i < tables_.size(); ++i) {
            const std::string name = "table." + std::to_string(i) + ".";
            f(name + "mean", tables_[i].mean);
            f(name + "square", tables_[i].square);
            f(name + "steps", tables_[i].steps);
        }
    }
    typename model::config_type config_for(const purpose& why) const {
        return {.embedding = {.vocabulary = size_.vocabulary,
                              .d_model = size_.d_model,
                              .head = head_kind::untied},
                .body = Recipe::config(size_, why),
                .norm = {.d_model = size_.d_model}};
    }

    model_size size_;
    step_report report_;
    typename model::config_type config_;
    weights_type weights_;
    gradient_type gradient_, means_, squares_;
    std::deque<arena> table_memory_;
    std::vector<row_adam_state<float>> tables_;
    model training_, judged_;
    arena workspace_, tape_;
    work_count work_;
};

template <class Recipe>
std::unique_ptr<candidate> make_trained(const model_size& size, std::uint64_t seed) {
    return std::make_unique<trained_model<Recipe>>(size, seed);
}

} // namespace sluice::examples
