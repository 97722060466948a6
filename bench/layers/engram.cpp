// Engram: hashing, looking up rows of tables that do and do not fit the caches, and what both add to the time
// of a module. Rows are those of random ids, so that nearly every one is a miss where the table is large.
#include "support/contest.hpp"
#include "support/peers.hpp"

#include <sluice/layers/engram.hpp>
#include <sluice/simd/convert.hpp>

#include <string>

#if defined(__linux__)
#    include <sys/mman.h>
#endif

namespace {

using namespace sluice::bench;
using namespace sluice;

// Memory in huge pages where the system gives them: a table's rows lie anywhere, and small pages cost a walk
// for each.
class pages {
public:
    explicit pages(std::size_t bytes) : bytes_(bytes) {
#if defined(__linux__)
        at_ = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at_ == MAP_FAILED) std::abort();
        ::madvise(at_, bytes, MADV_HUGEPAGE);
#else
        at_ = ::operator new(bytes);
#endif
    }
    pages(const pages&) = delete;
    ~pages() {
#if defined(__linux__)
        ::munmap(at_, bytes_);
#else
        ::operator delete(at_);
#endif
    }
    template <class W>
    tensor_view<W> view(idx rows, idx cols) const {
        return {static_cast<W*>(at_), rows, cols};
    }

private:
    std::size_t bytes_;
    void* at_ = nullptr;
};

ngram_hash hash_of(idx least_rows) {
    ngram_hash h;
    const idx layer = 1;
    make_ngram_hashes({.vocabulary = 98627, .least_rows = {least_rows}, .pad = 2}, {&layer, 1}, {&h, 1});
    return h;
}

std::vector<token_id> random_ids(idx n, std::uint64_t key) {
    std::vector<token_id> ids;
    const random_source numbers(key);
    for (idx i = 0; i < n; ++i) ids.push_back(static_cast<token_id>(numbers.bits(i) % 98627));
    return ids;
}

constexpr idx n_lookup = 64; // tokens of a call: what is looked up (330 KB) stays in the second cache

// Sixteen heads as in Engram-27B.
void hash_row() {
    row("engram/hash/16heads", [](contest& c) {
        struct data {
            ngram_hash hash = hash_of(2262400);
            std::vector<token_id> ids = random_ids(n_lookup, 1);
            tensor<std::int32_t> rows{n_lookup, 16}, plain{n_lookup, 16};
        };
        auto& d = c.hold<data>();
        c.tokens(n_lookup);
        auto before = [](idx, idx) { return -1; };
        c.ours([&d, before, ex = c.executor()] {
            ngram_rows(d.hash, batch::one(n_lookup), d.ids.data(), before, d.rows.view(), ex);
        });
        auto loop = [&d] {
            for (idx t = 0; t < n_lookup; ++t) {
                std::uint64_t mix = 0;
                for (idx k = 0; k < 3; ++k) {
                    mix ^= static_cast<std::uint64_t>(t >= k ? d.ids[static_cast<std::size_t>(t - k)] : 2) *
                           d.hash.multipliers[static_cast<std::size_t>(k)];
                    for (idx j = 8 * (k - 1); j < 8 * k && k > 0; ++j) {
                        const auto at = static_cast<std::size_t>(j);
                        d.plain(t, j) = static_cast<std::int32_t>(
                            static_cast<idx>(mix % static_cast<std::uint64_t>(d.hash.moduli[at])) +
                            d.hash.first[at]);
                    }
                }
            }
        };
        c.against("division", loop);
        c.check(
            "division",
            [&d, loop] {
                loop();
                double wrong = 0;
                for (idx i = 0; i < d.rows.size(); ++i) wrong += d.rows.data()[i] != d.plain.data()[i];
                return wrong;
            },
            0);
    });
}

constexpr idx lookup_width = 80; // as in Engram-27B

// The limits of random rows of a table: all bytes of each read and added up as they are, and the scale where
// there is one, so many rows ahead as suits the machine best; with `Stores`, a row of floats is written for
// each as well, which looking up cannot do without.
template <class W, bool Stores>
float read_rows(const W* table, const float* scale, float* y, idx ahead, std::span<const std::int32_t> rows) {
    using P = simd::pack<float, simd::native>;
    constexpr idx row_bytes = lookup_width * static_cast<idx>(sizeof(W));
    constexpr idx step = P::size * static_cast<idx>(sizeof(float));
    const auto n = static_cast<idx>(rows.size());
    P sums[4] = {};
    float scales = 0;
    for (idx i = 0; i < n; ++i) {
        const idx later = rows[static_cast<std::size_t>(std::min(i + ahead, n - 1))];
        kernels::prefetch_row(table + later * lookup_width, row_bytes);
        if (scale != nullptr) __builtin_prefetch(scale + later);
        const idx now = rows[static_cast<std::size_t>(i)];
        const auto* const row = reinterpret_cast<const char*>(table + now * lookup_width);
        simd::unrolled<static_cast<int>(ceil_div(row_bytes, step))>([&](auto k) {
            sums[k % 4] = sums[k % 4] + P::load_bytes(row + std::min<idx>(k * step, row_bytes - step));
        });
        if (scale != nullptr) scales += scale[now];
        if constexpr (Stores)
            simd::unrolled<static_cast<int>(lookup_width / P::size)>(
                [&](auto k) { sums[k % 4].store(y + i * lookup_width + k * P::size); });
    }
    return scales + (sums[0] + sums[1] + sums[2] + sums[3]).sum();
}

template <class W>
struct lookup_data {
    static constexpr idx width = lookup_width, calls = 512;

    explicit lookup_data(idx n)
        : memory(static_cast<std::size_t>(n * width) * sizeof(W)),
          scales(static_cast<std::size_t>(n) * sizeof(float)),
          table(memory.view<W>(n, width)),
          scale(scales.view<float>(n, 1)),
          y(n_lookup * 16, width) {
        for (idx i = 0; i < n; ++i) {
            for (idx j = 0; j < width; ++j) {
                if constexpr (std::is_same_v<W, bf16>)
                    table(i, j) = to_bf16(value(i, j));
                else
                    table(i, j) = static_cast<W>(value(i, j));
            }
            scale(i, 0) = 1;
        }
        const random_source numbers(3);
        for (idx i = 0; i < calls * n_lookup * 16; ++i)
            rows.push_back(static_cast<std::int32_t>(numbers.bits(i) % static_cast<std::uint32_t>(n)));
    }
    static float value(idx i, idx j) { return static_cast<float>((i * 7 + j * 3) % 255 - 127); }
    std::span<const std::int32_t> part(idx& turn) const {
        return std::span(rows).subspan(static_cast<std::size_t>(turn++ % calls * n_lookup * 16),
                                       n_lookup * 16);
    }
    template <bool Stores>
    void read(idx& turn, idx ahead, executor_ref ex) {
        const auto all = part(turn);
        const float* const one = std::is_same_v<W, std::int8_t> ? scale.data() : nullptr;
        ex(static_cast<idx>(all.size()), [&](idx begin, idx end, idx) {
            const auto mine =
                all.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
            float some = read_rows<W, Stores>(table.data(), one, y.row(begin), ahead, mine);
            benchmark::DoNotOptimize(some);
        });
    }
    template <bool Stores>
    idx best_distance(executor_ref ex) {
        idx best = 0, turn = 0;
        double least = 1e9;
        for (const idx ahead : {8, 16, 32, 64}) {
            const double took = seconds_of([&] { read<Stores>(turn, ahead, ex); }, 64);
            if (took < least) best = ahead;
            least = std::min(least, took);
        }
        return best;
    }

    pages memory, scales;
    tensor_view<W> table;
    tensor_view<float> scale;
    tensor<float> y;
    std::vector<std::int32_t> rows;
    idx call = 0, peer_call = calls / 4, read_call = calls / 2, store_call = 3 * calls / 4;
};

// Sums of the sixteen rows of a token: what libtorch calls an embedding bag.
void bag_row(idx n_rows, const std::string& size) {
    row("engram/bag/f32/rows:" + size, [n_rows](contest& c) {
        struct data : lookup_data<float> {
            using lookup_data<float>::lookup_data;
            tensor<float> sums{n_lookup, width}, peer_sums{n_lookup, width};
        };
        auto& d = c.hold<data>(n_rows);
        c.tokens(n_lookup);
        c.rows(n_lookup * 16);
        c.ours(
            [&d, ex = c.executor()] { gather_sum<simd::native, float>(d.table, d.part(d.call), d.sums, ex); },
            d.sums);
        c.against("random_rows", [&d, ex = c.executor(), ahead = d.best_distance<false>(c.executor())] {
            d.read<false>(d.read_call, ahead, ex);
        });
        if (const bag_call f = libtorch_bags(d.table, c.threads()))
            c.against(
                "libtorch", [&d, f] { f(d.part(d.peer_call), d.peer_sums.view()); }, d.peer_sums, 1e-6);
        c.check(
            "its formula",
            [&d] {
                d.call = d.peer_call = 0;
                gather_sum<simd::native, float>(d.table, d.part(d.call), d.sums, {});
                double wrong = 0;
                for (idx i = 0; i < n_lookup; ++i)
                    for (idx j = 0; j < d.width; ++j) {
                        float sum = 0;
                        for (idx k = 0; k < 16; ++k)
                            sum += d.value(d.rows[static_cast<std::size_t>(16 * i + k)], j);
                        wrong += sum != d.sums(i, j);
                    }
                d.call = 0;
                return wrong;
            },
            0);
    });
}

// vs_random_rows: the share of what only reading such rows reaches; vs_rows_and_stores: of reading them and
// storing as many numbers.
template <class W>
void lookup_row(const std::string& storage, idx n_rows, when w = when::always) {
    const std::string size = "1e" + std::to_string(std::to_string(n_rows).size() - 1);
    auto prepare = [n_rows](contest& c) {
        auto& d = c.hold<lookup_data<W>>(n_rows);
        c.tokens(n_lookup);
        c.rows(n_lookup * 16);
        auto run = [&d, ex = c.executor()] {
            if constexpr (std::is_same_v<W, std::int8_t>)
                look_up<simd::native, float>(scaled_table<const std::int8_t>{d.table, d.scale},
                                             d.part(d.call), d.y.view(), ex);
            else
                look_up<simd::native, float>(d.table, d.part(d.call), d.y.view(), ex);
        };
        c.ours(run);
        c.against("random_rows",
                  [&d, ex = c.executor(), ahead = d.template best_distance<false>(c.executor())] {
                      d.template read<false>(d.read_call, ahead, ex);
                  });
        c.against("rows_and_stores",
                  [&d, ex = c.executor(), ahead = d.template best_distance<true>(c.executor())] {
                      d.template read<true>(d.store_call, ahead, ex);
                  });
        if constexpr (std::is_same_v<W, float>)
            if (const bag_call f = libtorch_bags(d.table, c.threads()))
                c.against("libtorch", [&d, f] { f(d.part(d.peer_call), d.y.view()); });
        c.check(
            "the formula",
            [&d, run] {
                d.call = 0;
                run();
                double wrong = 0;
                for (idx i = 0; i < d.y.rows(); ++i)
                    for (idx j = 0; j < d.width; ++j)
                        wrong += d.y(i, j) != d.value(d.rows[static_cast<std::size_t>(i)], j);
                return wrong;
            },
            0);
    };
    row("engram/lookup/" + storage + "/rows:" + size, prepare, w);
}

constexpr idx module_tokens = 512, module_calls = 16;

// Hash and lookup as a fraction of the module without them; tables of 36 million rows in the paper are 3.6
// here, which no cache holds either.
void module_row(idx d_model, idx branches, idx d_memory) {
    row("engram/module/f32/d:" + std::to_string(d_model) + ",M:" + std::to_string(branches), [=](contest& c) {
        struct data {
            data(idx d_model, idx branches, idx d_memory, idx workers)
                : config{.d_model = d_model,
                         .branches = branches,
                         .d_memory = d_memory,
                         .hash = hash_of(226240),
                         .token_map = {}},
                  table(static_cast<std::size_t>(config.hash.rows() * config.d_row()) * sizeof(float)),
                  weights([this] {
                      engram_config small = config;
                      small.hash = hash_of(2);
                      return small;
                  }()) {
                initialise(weights.view, config, random_source(1));
                weights.view.table = table.view<float>(config.hash.rows(), config.d_row());
                std::uint64_t seed = 1;
                fill_uniform(weights.view.table, 0.02F, seed);
                fill_uniform(weights.view.taps, 0.5F, ++seed);
                x = uniform(module_tokens, config.d_stream(), 1, 5);
                y = tensor<float>(module_tokens, config.d_stream());
                memory = uniform(module_tokens, d_memory, 0.02F, 6);
                const engram<float> layer(config, weights.view);
                workspace = arena(layer.bytes({.max_rows = module_tokens, .workers = workers}).workspace);
            }
            engram_config config;
            pages table;
            owned_params<engram_params<float>> weights;
            std::vector<token_id> ids = random_ids(module_tokens * module_calls, 9);
            tensor<float> x, y, memory;
            arena workspace;
            idx call = 0;
        };
        auto& d = c.hold<data>(d_model, branches, d_memory, c.threads());
        const engram<float> layer(d.config, d.weights.view);
        c.tokens(module_tokens);
        c.flops(layer.flops(module_tokens));
        auto run = [&d, layer, ex = c.executor()] {
            const auto ids = std::span(d.ids).subspan(
                static_cast<std::size_t>(d.call++ % module_calls * module_tokens), module_tokens);
            layer.forward(batch::one(ids), d.x, d.y.view(), nullptr, d.workspace, ex);
        };
        c.ours(run);
        c.overhead_over([&d, ex = c.executor()] {
            const arena::scope scope(d.workspace);
            const auto& p = d.weights.view;
            const auto w = memory_gate_weights<float>::make(
                d.workspace, {p.key_scale, p.query_scale, p.value_scale, p.taps}, d.config.gate, d.config.eps,
                d.config.convolution.eps, d.config.dilation(), ex);
            const auto g = gated_memory<float>::take(d.workspace, module_tokens, d.config.branches,
                                                     d.config.d_model, true);
            matmul(in<float>(d.memory), p.w_kv, g.kv, {}, d.workspace, ex);
            apply_memory_gate(
                batch::one(module_tokens), w, in<float>(d.x), g,
                [](idx, idx) -> const float* { return nullptr; }, d.y.view(), ex);
        });
        c.check(
            "finite numbers",
            [&d, run] {
                run();
                double wrong = 0;
                for (idx i = 0; i < d.y.size(); ++i) wrong += std::isfinite(d.y.data()[i]) ? 0 : 1;
                return wrong;
            },
            0);
    });
}

const declare rows([] {
    hash_row();
    for (const idx n : {10'000, 100'000, 1'000'000, 10'000'000}) lookup_row<float>("f32", n);
    for (const idx n : {10'000, 1'000'000, 10'000'000}) lookup_row<bf16>("bf16", n);
    for (const idx n : {10'000, 1'000'000, 10'000'000}) lookup_row<std::int8_t>("int8", n);
    lookup_row<bf16>("bf16", 100'000'000, when::full);
    lookup_row<std::int8_t>("int8", 100'000'000, when::full);
    bag_row(1'000'000, "1e6");
    bag_row(10'000'000, "1e7");
    module_row(1024, 4, 1024);
    module_row(1024, 1, 1024);
    module_row(2560, 4, 1280);
});

} // namespace
