// Attention with 32 query heads on 8 key heads of width 64. FLOPs count visible pairs only: 4 * head_dim for
// each pair and head forward, 8 backward (what backward computes again is not counted).
//
// The counterpart is what one writes with a BLAS: blocks of queries against the keys that some row of the
// block sees, scores in memory, products by OpenBLAS, the exponential by Eigen, heads shared out over the
// threads. And scaled_dot_product_attention of libtorch, on the same memory; it allocates its result.
#include <sluice/core/eigen.hpp>
#include <sluice/ops/attention.hpp>
#include <sluice/ops/attention_state.hpp>

#include "../support/contest.hpp"
#include "../support/peers.hpp"

#include <array>

namespace {

using namespace sluice;
using namespace sluice::bench;

constexpr attention_shape heads{.n_heads = 32, .n_kv_heads = 8, .head_dim = 64};
constexpr idx width = heads.n_heads * heads.head_dim, kv_width = heads.n_kv_heads * heads.head_dim;

double visible_pairs(const causal_attention& policy, idx n_tokens) {
    double pairs = 0;
    for (idx i = 0; i < n_tokens; ++i) {
        const key_range seen = policy.range(0, i, 0);
        pairs += static_cast<double>(seen.hi - seen.lo);
    }
    return pairs;
}

double flops_of(const causal_attention& policy, idx n_tokens) {
    return 4 * visible_pairs(policy, n_tokens) * static_cast<double>(width);
}

// Row i of head h by the formula, in double.
void add_plain_row(difference& apart, const causal_attention& policy, idx i, idx h,
                   tensor_view<const float> q, tensor_view<const float> k, tensor_view<const float> v,
                   tensor_view<const float> y) {
    const key_range seen = policy.range(0, i, 0);
    const idx d = heads.head_dim, kv = h / heads.group() * d;
    std::vector<double> sum(static_cast<std::size_t>(d), 0.0);
    double total = 0;
    for (idx j = seen.lo; j < seen.hi; ++j) {
        double score = 0;
        for (idx e = 0; e < d; ++e)
            score += static_cast<double>(q(i, h * d + e)) * static_cast<double>(k(j, kv + e));
        const double p = std::exp(score * heads.scale());
        total += p;
        for (idx e = 0; e < d; ++e) sum[static_cast<std::size_t>(e)] += p * static_cast<double>(v(j, kv + e));
    }
    for (idx e = 0; e < d; ++e)
        apart.add(static_cast<double>(y(i, h * d + e)), sum[static_cast<std::size_t>(e)] / total);
}

double plain_error(const causal_attention& policy, tensor_view<const float> q, tensor_view<const float> k,
                   tensor_view<const float> v, tensor_view<const float> y) {
    difference apart;
    for (const idx i : {idx{0}, q.rows() / 3, q.rows() - 1})
        for (const idx h : {idx{0}, idx{13}, heads.n_heads - 1})
            add_plain_row(apart, policy, i, h, q, k, v, y);
    return apart.relative();
}

// The counterpart. Queries of one key head lie side by side, so a row of the products is a token and a head.
struct blas_attention {
    const causal_attention& policy;
    tensor_view<const float> q, k, v;
    tensor_view<float> y;
    idx block; // query tokens

    idx keys_of_block() const {
        idx most = 0;
        for (idx i = 0; i < q.rows(); i += block) most = std::max(most, hull(i).hi - hull(i).lo);
        return most;
    }
    // One head of one block; `scores` holds block x keys_of_block().
    void operator()(idx first, idx h, float* scores) const {
        using row = Eigen::Map<Eigen::Array<float, 1, Eigen::Dynamic>>;
        const idx rows = std::min(block, q.rows() - first), d = heads.head_dim, kv = h / heads.group() * d;
        const key_range keys = hull(first);
        const idx n = keys.hi - keys.lo;
        openblas_gemm(false, true, rows, n, d, static_cast<float>(heads.scale()), q.row(first) + h * d,
                      q.row_stride(), k.row(keys.lo) + kv, k.row_stride(), 0, scores, n);
        for (idx i = 0; i < rows; ++i) {
            const key_range seen = policy.range(0, first + i, 0);
            row all(scores + i * n, n);
            row visible(scores + i * n + seen.lo - keys.lo, seen.hi - seen.lo);
            visible = (visible - visible.maxCoeff()).exp();
            visible *= 1 / visible.sum();
            all.head(seen.lo - keys.lo).setZero();
            all.tail(keys.hi - seen.hi).setZero();
        }
        openblas_gemm(false, false, rows, d, n, 1, scores, n, v.row(keys.lo) + kv, v.row_stride(), 0,
                      y.row(first) + h * d, y.row_stride());
    }

private:
    key_range hull(idx first) const {
        return {policy.range(0, first, 0).lo, policy.range(0, std::min(first + block, q.rows()) - 1, 0).hi};
    }
};

call by_openblas(contest& c, const blas_attention& work) {
    if (!has_openblas()) return {};
    auto& scores = c.hold<tensor<float>>(c.threads(), work.block * work.keys_of_block());
    return [work, &scores, ex = c.executor()] {
        openblas_one_thread();
        const idx blocks = ceil_div(work.q.rows(), work.block);
        ex(blocks * heads.n_heads, [&](idx begin, idx end, idx worker) {
            for (idx task = end; task-- > begin;)
                work(task / heads.n_heads * work.block, task % heads.n_heads, scores.row(worker));
        });
    };
}

// Keys and values get small scores, so that many keys count.
struct data {
    data(idx n_queries, idx n_keys, idx window, std::vector<idx> past_keys = {})
        : past(std::move(past_keys)),
          policy{window, past},
          rows(batch::one(n_queries)),
          q(uniform(n_queries, width, 1, 1)),
          k(uniform(n_keys, kv_width, 1, 2)),
          v(uniform(n_keys, kv_width, 1, 3)),
          y(n_queries, width),
          y_peer(n_queries, width),
          lse(n_queries, heads.n_heads) {}
    data(const data&) = delete;

    void attend_with(const causal_attention& p, tensor_view<float> to, arena& workspace, executor_ref ex) {
        attend(rows, heads, q, packed_keys<float>{&rows, k, v}, p, to, {}, workspace, ex);
    }

    std::vector<idx> past;
    causal_attention policy;
    batch rows;
    tensor<float> q, k, v, y, y_peer, lse;
};

attended for_libtorch(data& d, bool causal) {
    return {d.q, d.k, d.v, d.y_peer, heads.n_heads, heads.n_kv_heads, causal};
}

call ours_with(contest& c, data& d, const causal_attention& policy, tensor_view<float> to) {
    auto f = [&d, policy, to](arena& workspace, executor_ref ex) {
        d.attend_with(policy, to, workspace, ex);
    };
    auto& workspace = c.hold<arena>(workspace_for(c.threads(), f));
    return [&workspace, f, ex = c.executor()] { f(workspace, ex); };
}

void prefill(const std::string& name, idx n_tokens, idx window, when w = when::always) {
    row(
        name,
        [n_tokens, window](contest& c) {
            auto& d = c.hold<data>(n_tokens, n_tokens, window);
            c.flops(flops_of(d.policy, n_tokens));
            c.ours(ours_with(c, d, d.policy, d.y), d.y);
            c.check(
                "the formula", [&d] { return plain_error(d.policy, d.q, d.k, d.v, d.y); }, 1e-5);
            const idx block = window == 0 ? 128 : std::clamp<idx>(window, 64, 128);
            c.against("openblas", by_openblas(c, {d.policy, d.q, d.k, d.v, d.y_peer, block}), d.y_peer);
            if (window == 0)
                c.against("libtorch",
                          libtorch_attention(for_libtorch(d, true), c.threads(), torch_gqa::option),
                          d.y_peer);
            if (window > 0) c.against("dense", ours_with(c, d, causal_attention{}, d.y_peer));
        },
        w);
}

// The cache that layers keep, filled with a prompt's keys and values.
struct filled_cache {
    filled_cache(const data& d, key_storage storage)
        : memory(bytes_of(d.k.rows(), storage)), state(bind(memory, d.k.rows(), storage)) {
        std::array<idx, 1> none{};
        state.append(batch::one(d.k.rows()), d.k, d.v, none);
    }
    static attention_state<float> bind(arena& a, idx n_keys, key_storage storage) {
        return attention_state<float>::bind(a, heads.n_kv_heads, heads.head_dim, 0, {.max_tokens = n_keys},
                                            storage);
    }
    static std::size_t bytes_of(idx n_keys, key_storage storage) {
        arena counting;
        (void)bind(counting, n_keys, storage);
        return counting.bytes();
    }
    arena memory;
    attention_state<float> state;
};

// How a cache keeps numbers, and how far from the formula its results may be.
struct cache_kind {
    const char* name;
    key_storage storage;
    double bytes, tolerance; // of a number, with its part of a scale
};
constexpr cache_kind plain_cache{"f32", key_storage::plain, 4, 1e-5};
constexpr cache_kind smaller_caches[] = {
    {"bf16", key_storage::bf16, 2, 1e-2},
    {"int8", key_storage::int8, 1 + 4.0 / static_cast<double>(heads.head_dim), 2e-2}};

// One token after S - 1 others: bound by reading keys and values once.
void decode(idx n_keys, const cache_kind& kind) {
    row("attention/decode/" + std::string(kind.name) + "/S:" + std::to_string(n_keys), [=](contest& c) {
        auto& d = c.hold<data>(1, n_keys, 0, std::vector<idx>{n_keys - 1});
        auto with = [&](key_storage storage, tensor_view<float> y) -> call {
            auto& cache = c.hold<filled_cache>(d, storage);
            auto f = [&d, &cache, y](arena& workspace, executor_ref ex) {
                attend(d.rows, heads, d.q, cached_keys<float>{&d.rows, &cache.state}, d.policy, y, {},
                       workspace, ex);
            };
            auto& workspace = c.hold<arena>(workspace_for(c.threads(), f));
            return [&workspace, f, ex = c.executor()] { f(workspace, ex); };
        };
        c.bytes(kind.bytes * static_cast<double>(d.k.size() + d.v.size()), traffic::read);
        c.flops(flops_of(d.policy, 1));
        c.ours(with(kind.storage, d.y), d.y);
        c.check(
            "the formula", [&d] { return plain_error(d.policy, d.q, d.k, d.v, d.y); }, kind.tolerance);
        if (kind.storage != key_storage::plain)
            return c.against("f32", with(key_storage::plain, d.y_peer), d.y_peer, kind.tolerance);
        c.against("openblas", by_openblas(c, {d.policy, d.q, d.k, d.v, d.y_peer, 1}), d.y_peer);
        const attended peer = for_libtorch(d, false);
        c.against("libtorch", libtorch_attention(peer, c.threads(), torch_gqa::option), d.y_peer);
        c.against("libtorch_folded", libtorch_attention(peer, c.threads(), torch_gqa::folded), d.y_peer);
    });
}

struct backward_data : data {
    explicit backward_data(idx n_tokens)
        : data(n_tokens, n_tokens, 0),
          dy(uniform(n_tokens, width, 1, 4)),
          dq(n_tokens, width),
          dk(n_tokens, kv_width),
          dv(n_tokens, kv_width) {}

    void forward(arena& workspace, executor_ref ex) {
        attend(rows, heads, q, packed_keys<float>{&rows, k, v}, policy, y.view(), lse.view(), workspace, ex);
    }
    void backward(arena& workspace, executor_ref ex) {
        attend_backward(rows, heads, q, k, v, y, lse, dy, policy, dq.view(), dk.view(), dv.view(), workspace,
                        ex);
    }
    tensor<float> dy, dq, dk, dv;
};

// All gradients of one key head by their formulas, in double.
double backward_error(const backward_data& t) {
    using matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    const idx d = heads.head_dim, kv = 1, n = t.rows.n_tokens;
    auto head = [&](const tensor<float>& x, idx h) -> matrix {
        return x.view().col_block(h * d, d).eigen().template cast<double>();
    };
    difference apart_q, apart_k, apart_v;
    auto compare = [&](difference& apart, const matrix& got, const matrix& expected) {
        for (idx i = 0; i < got.rows(); ++i)
            for (idx j = 0; j < got.cols(); ++j) apart.add(got(i, j), expected(i, j));
    };
    const matrix k = head(t.k, kv), v = head(t.v, kv);
    matrix dk = matrix::Zero(n, d), dv = matrix::Zero(n, d);
    for (idx h = kv * heads.group(); h < (kv + 1) * heads.group(); ++h) {
        const matrix q = head(t.q, h), dy = head(t.dy, h);
        matrix p = (heads.scale() * q * k.transpose()).array().exp();
        p = matrix(p.triangularView<Eigen::Lower>());
        p.array().colwise() /= p.array().rowwise().sum().eval();
        const matrix dp = dy * v.transpose();
        matrix ds = p.array() * (dp.array().colwise() - (p.array() * dp.array()).rowwise().sum().eval());
        ds *= heads.scale();
        compare(apart_q, head(t.dq, h), ds * k);
        dk += ds.transpose() * q;
        dv += p.transpose() * dy;
    }
    compare(apart_k, head(t.dk, kv), dk);
    compare(apart_v, head(t.dv, kv), dv);
    return std::max({apart_q.relative(), apart_k.relative(), apart_v.relative()});
}

void backward(idx n_tokens) {
    row("attention/backward/causal/f32/T:" + std::to_string(n_tokens), [n_tokens](contest& c) {
        auto& d = c.hold<backward_data>(n_tokens);
        auto both = [&d](arena& workspace, executor_ref ex) {
            d.forward(workspace, ex);
            d.backward(workspace, ex);
        };
        auto& workspace = c.hold<arena>(workspace_for(c.threads(), both));
        d.forward(workspace, c.executor());
        c.flops(2 * flops_of(d.policy, n_tokens));
        c.ours([&d, &workspace, ex = c.executor()] { d.backward(workspace, ex); }, d.dq);
        c.check(
            "the formula", [&d] { return backward_error(d); }, 1e-4);
    });
}

const declare rows([] {
    prefill("attention/causal/f32/T:512", 512, 0);
    prefill("attention/causal/f32/T:4096", 4096, 0);
    prefill("attention/causal/f32/T:2048", 2048, 0, when::full);
    prefill("attention/sliding/f32/T:4096,W:16", 4096, 16);
    prefill("attention/sliding/f32/T:4096,W:128", 4096, 128);
    prefill("attention/sliding/f32/T:4096,W:1024", 4096, 1024, when::full);
    decode(4096, plain_cache);
    decode(32768, plain_cache);
    for (const cache_kind& kind : smaller_caches) decode(32768, kind);
    backward(512);
});

} // namespace
