// Dynamic concepts (Qu et al., "Dynamic large concept models", 2025, section 3), a sequence at a time:
//   H = E(x);  C = W_up mean of H over a segment;  Z = M(C);  Z~ = Z smoothed;  y = D(H + attention(H, Z~))
// (eqs. 1-4, 7, 11, 14). A token sees the segments that ended before it; or as eq. 14 has it that of its own
// mean, which looks at later tokens; or its own by its first token alone.
#pragma once

#include "../core/batch.hpp"
#include "boundary_detector.hpp"
#include "concept_cross_attention.hpp"

namespace sluice::reference {

enum class concept_kind { completed_mean, boundary_token, leaking_mean };

struct dlcm_shape {
    boundary_rules rules{};
    concept_attention_shape cross{};
    concept_kind kind = concept_kind::completed_mean;
    bool smoothed = true;
    double weight = 0;       // of z itself in the smoothing; 0: p where the segment starts (H-Net's average)
    bool replicated = false; // keys repeated for every token of their segment (eq. 17)
};

template <class T>
struct dlcm_weights {
    boundary_weights<T> boundary;
    tensor_view<const T> w_up; // d_concept x d_model
    concept_attention_weights<T> cross;
};

// The rows [begin[j], begin[j + 1]) of h each as their mean.
template <class T>
void segment_means(in<T> h, const std::vector<idx>& begin, bool first_alone, tensor_view<T> mean) {
    for (idx j = 0; j < mean.rows(); ++j) {
        const idx first = begin[static_cast<std::size_t>(j)];
        const idx last = first_alone ? first + 1 : begin[static_cast<std::size_t>(j + 1)];
        for (idx e = 0; e < h.cols(); ++e) {
            T sum = 0;
            for (idx t = first; t < last; ++t) sum += h(t, e);
            mean(j, e) = sum / static_cast<T>(last - first);
        }
    }
}

// y (n, d_model) from x (n, d_model); encoder, backbone and decoder are f(positions, in, out) over a
// sequence.
template <class T, class E, class M, class D>
void dlcm(const batch& b, const dlcm_shape& shape, const dlcm_weights<T>& p, in<T> x, tensor_view<T> y,
          E&& encoder, M&& backbone, D&& decoder) {
    for (idx s = 0; s < b.n_sequences(); ++s) {
        const idx n = b.tokens(s), first = b.begin(s);
        if (n == 0) continue;
        const bool completed = shape.kind == concept_kind::completed_mean;
        tensor<T> h(n, x.cols());
        std::vector<idx> at, index, of_token, seen;
        for (idx i = first; i < b.end(s); ++i) at.push_back(b.position(s, i));
        encoder(at, x.row_block(first, n), h.view());
        std::vector<T> prob;
        std::vector<idx> begin = boundaries<T>(shape.rules, p.boundary, h, prob);
        const idx made = static_cast<idx>(begin.size()) - (completed ? 1 : 0);
        for (idx t = 0, j = -1; t < n; ++t) {
            if (j + 1 < static_cast<idx>(begin.size()) && begin[static_cast<std::size_t>(j + 1)] == t) ++j;
            of_token.push_back(j);
            const idx start = begin[static_cast<std::size_t>(j)];
            seen.push_back(shape.replicated ? (completed ? start : t + 1) : j + (completed ? 0 : 1));
        }
        begin.push_back(n);
        tensor<T> mean(made, x.cols()), c(made, p.w_up.rows()), z(made, p.w_up.rows()), psi(n, x.cols());
        segment_means<T>(h, begin, shape.kind == concept_kind::boundary_token, mean);
        linear<T>({p.w_up, {}}, mean, c);
        for (idx j = 0; j < made; ++j) index.push_back(j);
        if (made > 0) backbone(index, in<T>(c.view()), z.view());
        for (idx j = 1; j < made && shape.smoothed; ++j) {
            const T start = prob[static_cast<std::size_t>(begin[static_cast<std::size_t>(j)])];
            const T a =
                shape.weight > 0 ? static_cast<T>(shape.weight) : std::clamp<T>(start, T(1e-4), T(1 - 1e-4));
            for (idx e = 0; e < z.cols(); ++e) z(j, e) = a * z(j, e) + (1 - a) * z(j - 1, e);
        }
        concept_cross_attention<T>(shape.cross, p.cross, h, z, shape.replicated ? of_token : index, seen,
                                   psi);
        for (idx t = 0; t < n; ++t)
            for (idx e = 0; e < x.cols(); ++e) psi(t, e) += h(t, e);
        decoder(at, in<T>(psi.view()), y.row_block(first, n));
    }
}

} // namespace sluice::reference
