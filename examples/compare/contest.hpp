// Who takes part in a comparison, and for how many steps.
#pragma once

#include "candidate.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace sluice::examples {

struct contestant {
    std::string name;
    maker make = nullptr;
    model_size size{};
    std::string control_of;    // empty: a model on its own account
    bool equal_tokens = false; // as much text as the dense model, whatever the budget
    idx steps = 0;             // of training, once the budget is known
    std::uint64_t seed = 1;
};

// What is to be compared.
struct contest {
    model_size size{};
    std::vector<std::string> models{"dense", "phd", "moe", "mod", "engram", "dlcm"};
    std::vector<std::string> with; // parts that are put together in one more model
    bool controls = false, sweep = false;
    idx seeds = 1;
    std::uint64_t first_seed = 1;
};

inline contestant named(const std::string& name, model_size s) {
    if (const auto colon = name.find(":tokens"); colon != name.npos && colon + 7 == name.size()) {
        contestant c = named(name.substr(0, colon), s);
        c.name = name;
        c.equal_tokens = true;
        return c;
    }
    if (name == "dense") return {name, make_dense, s, {}};
    if (name == "phd" || name == "phd3") {
        s.copies = name == "phd" ? 2 : 3;
        return {name, make_phd, s, {}};
    }
    if (name == "moe") return {name, make_moe, s, {}};
    if (name == "mod") return {name, make_mod, s, {}};
    if (name == "engram") return {name, make_dense_engram, s, {}};
    if (name == "dlcm") return {name, make_dlcm, s, {}};
    if (name == "dense/2") { // as deep as what all tokens of mod go through
        s.layers = std::max<idx>(s.layers / 2, 1);
        return {name, make_dense, s, "mod"};
    }
    if (name == "mod:random") {
        s.random_routing = true;
        return {name, make_mod, s, "mod"};
    }
    if (name == "dlcm:fixed") {
        s.fixed_segments = true;
        return {name, make_dlcm, s, "dlcm"};
    }
    if (name == "engram:1row") { // its other weights without a memory
        s.table_rows = 1;
        return {name, make_dense_engram, s, "engram"};
    }
    if (name == "engram/2") { // a memory on less depth
        s.layers = std::max<idx>(s.layers / 2, 2);
        return {name, make_dense_engram, s, "engram"};
    }
    throw std::runtime_error(
        "--models: there is no model \"" + name +
        "\"; there are dense, phd, phd3, moe, mod, engram, dlcm, and the controls "
        "dense/2, mod:random, dlcm:fixed, engram:1row, engram/2; each with :tokens for as "
        "much text as the dense model");
}

// The parts of --with put together; parts that do not go together are refused.
inline contestant combined(std::vector<std::string> parts, const model_size& s) {
    std::sort(parts.begin(), parts.end());
    std::string name;
    for (const auto& p : parts) name += (name.empty() ? "" : "+") + p;
    if (name == "dlcm+phd")
        throw std::runtime_error(
            "--with: phd makes copies of tokens, of which dlcm would make concepts; they "
            "do not go together");
    struct known {
        const char* name;
        maker make;
    };
    for (const known& k : {known{"engram+moe", make_moe_engram},
                           {"engram+phd", make_phd_engram},
                           {"engram+mod", make_mod_engram},
                           {"dlcm+engram", make_dlcm_engram},
                           {"moe+phd", make_phd_moe},
                           {"mod+moe", make_mod_moe},
                           {"dlcm+moe", make_dlcm_moe}})
        if (name == k.name) return {name, k.make, s, {}};
    throw std::runtime_error("--with: \"" + name +
                             "\" is not built; there are engram with moe, and engram or moe with one of phd, "
                             "mod and dlcm");
}

// The same number of parameters that a token does not need, as experts or as rows of a table: from experts
// alone to nearly all of it table.
inline std::vector<contestant> allocation_sweep(const model_size& s) {
    std::vector<contestant> all;
    const double spare = static_cast<double>(14 * 3 * s.d_model * s.expert_d_ff * s.layers);
    for (const idx experts : {16, 12, 8, 4, 2}) {
        contestant c{"experts:" + std::to_string(experts), make_moe_engram, s, {}};
        const double in_table = static_cast<double>(16 - experts) / 14;
        c.size.experts = experts;
        c.size.table_rows = std::max<idx>(std::llround(in_table * spare / static_cast<double>(s.d_model)), 1);
        if (experts == 16) c.make = make_moe;
        all.push_back(c);
    }
    return all;
}

inline std::vector<contestant> contestants(const contest& c) {
    std::vector<contestant> all;
    for (const auto& name : c.models) all.push_back(named(name, c.size));
    if (!c.with.empty()) all.push_back(combined(c.with, c.size));
    if (c.controls)
        for (const char* name : {"phd", "mod", "dlcm"}) // the others' FLOPs are those of the dense one
            if (std::find(c.models.begin(), c.models.end(), name) != c.models.end())
                all.push_back(named(std::string(name) + ":tokens", c.size));
    auto has = [&](const std::string& name) {
        return std::any_of(all.begin(), all.end(), [&](const contestant& x) { return x.name == name; });
    };
    if (has("mod") && !has("dense/2")) all.push_back(named("dense/2", c.size));
    if (c.controls)
        for (const auto& [of, name] : {std::pair<const char*, const char*>{"mod", "mod:random"},
                                       {"dlcm", "dlcm:fixed"},
                                       {"engram", "engram:1row"},
                                       {"engram", "engram/2"}})
            if (has(of) && !has(name)) all.push_back(named(name, c.size));
    if (c.sweep)
        for (const auto& x : allocation_sweep(c.size)) all.push_back(x);
    std::vector<contestant> result;
    for (idx i = 0; i < c.seeds; ++i)
        for (contestant x : all) {
            x.seed = c.first_seed + static_cast<std::uint64_t>(i);
            result.push_back(x);
        }
    return result;
}

// Sizes from "64x4": width and layers. Inner widths follow from them.
inline model_size size_from(const std::string& text) {
    idx width = 0, layers = 0;
    char more = 0;
    long w = 0, l = 0;
    if (std::sscanf(text.c_str(), "%5ldx%3ld%c", &w, &l, &more) != 2 || w < 16 || w % 16 != 0 || w > 4096 ||
        l < 2 || l % 2 != 0)
        throw std::runtime_error(
            "--size: \"" + text +
            "\" is not WIDTHxLAYERS with a width that 16 divides, from 16 to 4096, and an "
            "even number of layers, such as 64x4");
    width = w, layers = l;
    model_size s;
    s.d_model = width;
    s.layers = layers;
    s.head_dim = width % 32 == 0 ? 32 : 16;
    s.d_ff = std::max<idx>(8 * width / 3 / 32 * 32, 32);
    s.expert_d_ff = s.d_ff / 2;
    s.d_concept = round_up(3 * width / 2, s.head_dim);
    return s;
}

} // namespace sluice::examples
