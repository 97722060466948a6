// A model that compare trains: what the program asks of it, whatever it is made of. The models themselves are
// instantiated in source files of their own, a few in each, so that they compile side by side.
#pragma once

#include "support/bytes.hpp"

#include <sluice/io/safetensors.hpp>
#include <sluice/io/safetensors_writer.hpp>

#include <memory>
#include <string>
#include <vector>

namespace sluice::examples {

// What all models of a comparison have in common, and how large the parts are that only some have.
struct model_size {
    idx d_model = 64, layers = 4, head_dim = 32, d_ff = 160;
    idx vocabulary = 256;                       // of units, see units.hpp
    std::span<const std::int32_t> compressed{}; // Engram's ids of units; empty: their own
    idx compressed_size = 256;
    idx sequences = 2, context = 256; // of a training step

    idx copies = 2, copy_window = 16, copy_chunk = 32;
    idx experts = 8, experts_of_token = 2, expert_d_ff = 80;
    double capacity = 0.125;
    bool random_routing = false;
    idx n_gram = 5, hashes = 2, table_rows = 16384; // rows of a head
    idx d_concept = 96, ratio = 4;
    bool fixed_segments = false;
};

// What a model is; FLOPs count a multiplication and an addition as two.
struct model_costs {
    double parameters = 0, active = 0; // active: those that a token needs, on average
    double step_flops = 0;             // of one training step
    double token_flops = 0;            // of one token in a text of `context` tokens
    double state_bytes = 0;            // that a token adds to the state
    double share = 1;                  // of tokens routed, or of concepts to tokens, as the held-out text had
};

struct model_speeds { // tokens in a second
    double prefill = 0, decode = 0;
};

// Held-out text, and how many bytes each of its units stands for.
struct judged_text {
    std::span<const token_id> units;
    std::span<const std::uint16_t> bytes; // of every unit in the vocabulary

    double bytes_of(std::size_t i) const { return bytes[static_cast<std::size_t>(units[i])]; }
};

class candidate {
public:
    candidate() = default;
    candidate(const candidate&) = delete;
    candidate& operator=(const candidate&) = delete;
    virtual ~candidate() = default;

    // One training step, counted from 1; returns the loss in nats.
    virtual double step(const windows& text, std::uint64_t seed, idx number, double rate) = 0;
    // Bits per byte by rules that see no later unit; `most` as in held_out_bits.
    virtual double bits(const judged_text& text, idx most) = 0;
    // The same by the rule of training, where that chooses by later units as well; NaN for all others.
    virtual double bits_looking_ahead(const judged_text& text, idx most) = 0;
    // ln p of every id but the first. piece 0: all at once; else through the state, so many ids a call.
    virtual std::vector<double> log_likelihoods(std::span<const token_id> ids, idx piece) = 0;
    virtual model_costs costs() = 0;
    virtual model_speeds speeds(std::span<const token_id> prompt, idx n_tokens) = 0;
    // What follows the prompt, from the streaming state.
    virtual std::vector<token_id> text(std::span<const token_id> prompt, idx n_tokens,
                                       std::uint64_t seed) = 0;

    virtual void save(io::safetensors_writer& out, const std::string& prefix) = 0;
    virtual void load(const io::safetensors& in, const std::string& prefix) = 0;
};

using maker = std::unique_ptr<candidate> (*)(const model_size&, std::uint64_t seed);

// One for every body and what it may be combined with.
std::unique_ptr<candidate> make_dense(const model_size&, std::uint64_t seed);
std::unique_ptr<candidate> make_dense_engram(const model_size&, std::uint64_t seed);
std::unique_ptr<candidate> make_moe(const model_size&, std::uint64_t seed);
std::unique_ptr<candidate> make_moe_engram(const model_size&, std::uint64_t seed);
std::unique_ptr<candidate> make_phd(const model_size&, std::uint64_t seed);
std::unique_ptr<candidate> make_phd_engram(const model_size&, std::uint64_t seed);
std::unique_ptr<candidate> make_phd_moe(const model_size&, std::uint64_t seed);
std::unique_ptr<candidate> make_mod(const model_size&, std::uint64_t seed);
std::unique_ptr<candidate> make_mod_engram(const model_size&, std::uint64_t seed);
std::unique_ptr<candidate> make_mod_moe(const model_size&, std::uint64_t seed);
std::unique_ptr<candidate> make_dlcm(const model_size&, std::uint64_t seed);
std::unique_ptr<candidate> make_dlcm_engram(const model_size&, std::uint64_t seed);
std::unique_ptr<candidate> make_dlcm_moe(const model_size&, std::uint64_t seed);

} // namespace sluice::examples
