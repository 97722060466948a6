// A training run of the byte model that can be kept in a file and taken up again, bit for bit as if never
// stopped.
#pragma once

#include "byte_model.hpp"
#include "bytes.hpp"
#include "corpus.hpp"

#include <sluice/core/params.hpp>
#include <sluice/io/params.hpp>
#include <sluice/io/safetensors_writer.hpp>
#include <sluice/parallel/thread_pool.hpp>
#include <sluice/train/adamw.hpp>
#include <sluice/train/counts.hpp>
#include <sluice/train/schedule.hpp>

#include <charconv>

namespace sluice::examples {

// What a run has to agree on with the checkpoint that it goes on from, beside its text.
struct byte_run {
    idx steps = 6000;
    idx sequences = 2, context = 256;
    idx d_model = 96, layers = 4, head_dim = 32;
    double rate = 4e-3; // the highest
    std::uint64_t seed = 1;
};

// Weights, gradient and both moments, and all memory that training takes, made once.
class byte_trainer {
    using model = byte_model<float>;
    using params = owned_params<model::params_type>;

public:
    // threads = 0: all processors.
    byte_trainer(const byte_run& run, idx threads)
        : run_(run),
          config_(checked_config(run)),
          weights_(config_),
          gradient_(config_),
          means_(config_),
          squares_(config_),
          net_(config_, weights_.view),
          pool_(threads > 0 ? threads : thread_pool::default_workers()),
          need_(net_.bytes(
              {.max_rows = std::max(run.sequences, idx{8}) * run.context, .workers = pool_.concurrency()})),
          workspace_(need_.workspace),
          tape_(need_.tape),
          train_(run.sequences, run.context),
          test_(8, run.context) {
        initialise(weights_.view, config_, random_source(run.seed));
    }

    // One step, counted from 1; returns the loss in nats.
    double step(text_bytes text, idx number, double rate) {
        train_.draw(text, run_.seed, number);
        zero(gradient_.view);
        const double loss =
            net_.loss_and_gradient(train_.rows(), train_.targets(), gradient_.view, tape_, workspace_, pool_);
        adamw(weights_.view, gradient_.view, means_.view, squares_.view, {.rate = rate, .clip = 1}, number,
              workspace_, pool_);
        return loss;
    }
    // Bits per byte, as held_out_bits.
    double bits(text_bytes held_out, idx most) {
        return held_out_bits(net_, held_out, test_, most, workspace_, pool_);
    }
    const model& net() const { return net_; }
    const auto& weights() const { return weights_.view; }
    executor_ref executor() { return pool_; }
    double step_flops() const { return training_flops(net_, run_.sequences, run_.context); }

    void save(const std::string& path, const corpus& text, idx done) const {
        io::safetensors_writer out;
        for (const auto& [key, value] : identity(text)) out.metadata(key, value);
        out.metadata("step", std::to_string(done));
        io::save_params(out, "", weights_.view);
        io::save_params(out, "adamw.mean.", means_.view);
        io::save_params(out, "adamw.square.", squares_.view);
        out.save(path);
    }
    // Reads everything back and returns the step that was done last. Throws runtime_error where the file is
    // of another run.
    idx load(const std::string& path, const corpus& text) {
        const io::safetensors in(io::read(path));
        auto value = [&](const std::string& key) {
            const auto found = in.metadata().find(key);
            if (found == in.metadata().end())
                throw std::runtime_error("--resume: " + path + " is no checkpoint of this program: no " +
                                         key);
            return found->second;
        };
        for (const auto& [key, wanted] : identity(text))
            if (value(key) != wanted)
                throw std::runtime_error("--resume: " + path + " is of another run: " + key + " is " +
                                         value(key) + " there and " + wanted + " here");
        const std::string number = value("step");
        idx done = -1;
        const auto read = std::from_chars(number.data(), number.data() + number.size(), done);
        if (read.ec != std::errc() || read.ptr != number.data() + number.size() || done < 0 ||
            done > run_.steps)
            throw std::runtime_error("--resume: " + path + ": \"" + number + "\" is no step of this run");
        io::load_params(in, "", weights_.view);
        io::load_params(in, "adamw.mean.", means_.view);
        io::load_params(in, "adamw.square.", squares_.view);
        return done;
    }

private:
    static model::config_type checked_config(const byte_run& run) {
        if (run.d_model % run.head_dim != 0)
            throw std::runtime_error("--head-dim: " + std::to_string(run.head_dim) +
                                     " does not divide --d-model " + std::to_string(run.d_model));
        return make_config(run.d_model, run.layers, run.head_dim);
    }
    std::vector<std::pair<std::string, std::string>> identity(const corpus& text) const {
        char text_of_rate[64]; // whatever the locale
        const auto end = std::to_chars(text_of_rate, std::end(text_of_rate), run_.rate).ptr;
        return {{"steps", std::to_string(run_.steps)},      {"sequences", std::to_string(run_.sequences)},
                {"context", std::to_string(run_.context)},  {"d_model", std::to_string(run_.d_model)},
                {"layers", std::to_string(run_.layers)},    {"head_dim", std::to_string(run_.head_dim)},
                {"rate", std::string(text_of_rate, end)},   {"seed", std::to_string(run_.seed)},
                {"text", std::to_string(fingerprint(text))}};
    }

    byte_run run_;
    model::config_type config_;
    params weights_, gradient_, means_, squares_;
    model net_;
    thread_pool pool_;
    sizes need_;
    arena workspace_, tape_;
    windows train_, test_;
};

} // namespace sluice::examples
