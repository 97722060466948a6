// Matrices into the storage types of packed ones, and back: pack_matrix, unpack_row.
//
// Quantised weights differ from what they were made of by at most half a step: of the largest in a row / 127
// (int8_row) or in 32 columns of a row / 127 (int8_block), / 8 (int4_block, a whole step for weights that are
// nearly as large with the other sign), or of the range / 15 (int4_block_min); where scales are halves, their
// rounding adds 2^-11 of the weight. f8_block: 2^-4 of the weight, or 2^-18 of the largest of 128 x 128.
#pragma once

#include "../core/params.hpp"
#include "../core/quantised.hpp"
#include "../simd/convert.hpp"

#include <cmath>
#include <vector>

namespace sluice {
inline namespace SLUICE_ISA {
namespace detail {

template <class W>
float weight_at(const tensor_view<W>& w, idx row, idx col) {
    float x;
    if constexpr (requires { to_float(w(row, col)); })
        x = to_float(w(row, col));
    else
        x = static_cast<float>(w(row, col));
    if (!std::isfinite(x))
        SLUICE_THROW(input_error("pack_matrix: w at row " + std::to_string(row) + ", column " +
                                 std::to_string(col) + " is not finite"));
    return x;
}

// Where a panel has the scale and the codes of a row's block.
template <class S>
struct block_place {
    using format = panel_format<S>;
    std::byte *head, *block;
    idx row; // in the panel

    template <class Data>
    block_place(Data* data, idx stride, idx r, idx b)
        : head(const_cast<std::byte*>(data) + r / format::rows * stride),
          block(head + format::head + b * (format::block_head + format::codes)),
          row(r % format::rows) {}

    std::byte* half_at(idx n) const { return block + 64 * n + 2 * row; }
    std::byte* scale_at() const { return head + 4 * row; } // of the whole row
    std::byte* code_at(idx k) const {
        const idx line = format::bits == 8 ? k / 4 : k / 8;
        return block + format::block_head + 128 * line + 4 * row + k % 4;
    }
    void put(const quantised_block& q) const {
        if constexpr (format::half_scales) std::memcpy(half_at(0), &q.scale, 2);
        if constexpr (format::has_min) std::memcpy(half_at(1), &q.min, 2);
        for (idx k = 0; k < format::block; ++k) {
            auto& to = *code_at(k);
            const auto code = static_cast<std::byte>(q.codes[k]);
            if constexpr (format::bits == 8)
                to = code;
            else
                to = k % 8 < 4 ? code : to | code << 4;
        }
    }
    quantised_block get() const {
        quantised_block q;
        if constexpr (format::half_scales) std::memcpy(&q.scale, half_at(0), 2);
        if constexpr (format::has_min) std::memcpy(&q.min, half_at(1), 2);
        for (idx k = 0; k < format::block; ++k) {
            const auto byte = std::to_integer<std::uint8_t>(*code_at(k));
            q.codes[k] =
                format::bits == 8 ? byte : static_cast<std::uint8_t>(k % 8 < 4 ? byte & 15 : byte >> 4);
        }
        return q;
    }
};

inline std::uint8_t code_of(float x, int zero, int least, int most) {
    const int q = static_cast<int>(std::nearbyint(std::clamp(x, -1e6F, 1e6F))) + zero;
    return static_cast<std::uint8_t>(std::clamp(q, least, most));
}
inline float inverse_of(float scale) { return scale == 0 ? 0 : 1 / scale; }

inline half scale_of(float x, idx row) {
    const half h = to_half(x);
    if (!std::isfinite(to_float(h)))
        SLUICE_THROW(input_error("pack_matrix: the weights of row " + std::to_string(row) +
                                 " are too large for scales of half precision"));
    return h;
}

// The block that stands for n of 32 weights.
template <class S>
quantised_block quantise_block(const float* x, idx n, float row_scale, idx row) {
    using format = panel_format<S>;
    float least = 0, most = 0;
    if (n > 0) least = *std::min_element(x, x + n), most = *std::max_element(x, x + n);
    const float extreme = -least > most ? least : most;
    quantised_block q;
    float scale = row_scale;
    if constexpr (format::has_min) {
        q.min = scale_of(least, row);
        q.scale = scale_of((most - to_float(q.min)) / 15, row);
    } else if constexpr (format::half_scales) {
        // -8 is a code and 8 is none: the extreme takes it
        q.scale = scale_of(format::bits == 4 ? extreme / -8 : std::abs(extreme) / 127, row);
    }
    if constexpr (format::half_scales) scale = to_float(q.scale);
    const float inverse = inverse_of(scale), from = to_float(q.min);
    for (idx k = 0; k < format::block; ++k)
        q.codes[k] = code_of(k < n ? (x[k] - from) * inverse : 0, format::zero, format::bits == 8,
                             (1 << format::bits) - 1);
    return q;
}

// What the codes of a block stand for: exactly what products multiply.
template <class S>
float weight_of(const quantised_block& q, idx k, float row_scale) {
    using format = panel_format<S>;
    const auto code = static_cast<float>(q.codes[k] - format::zero);
    if constexpr (format::has_min) return std::fma(code, to_float(q.scale), to_float(q.min));
    return code * (format::half_scales ? to_float(q.scale) : row_scale);
}

template <class S, class W>
void quantise_matrix(const tensor_view<W>& w, const tensor_view<packed<S>>& out) {
    using format = panel_format<S>;
    for (idx r = 0; r < round_up(w.rows(), format::rows); ++r) {
        const idx cols = r < w.rows() ? w.cols() : 0;
        float most = 0;
        for (idx k = 0; k < cols; ++k) most = std::max(most, std::abs(weight_at(w, r, k)));
        const float row_scale = most / 127;
        for (idx b = 0; b < ceil_div(w.cols(), format::block); ++b) {
            const idx first = b * format::block, n = std::clamp<idx>(cols - first, 0, format::block);
            float x[static_cast<std::size_t>(format::block)];
            for (idx k = 0; k < n; ++k) x[k] = weight_at(w, r, first + k);
            block_place<S>(out.data(), out.panel_stride(), r, b).put(quantise_block<S>(x, n, row_scale, r));
        }
        if constexpr (!format::half_scales)
            std::memcpy(block_place<S>(out.data(), out.panel_stride(), r, 0).scale_at(), &row_scale, 4);
    }
}

// Calls f(row, col, scale, code) for every place of a panel that W has, by reference.
template <class W, class F>
void for_each_f8(const tensor_view<W>& w, F&& f) {
    using format = panel_format<f8_block>;
    for (idx r = 0; r < w.rows(); ++r)
        for (idx k = 0; k < w.cols(); ++k) {
            auto* const block = w.data() + r / format::rows * w.panel_stride() +
                                k / format::block * (format::block_head + format::codes);
            f(r, k, block, block + format::block_head + k % format::block * format::rows + r % format::rows);
        }
}

// scale(row, col) of the 128 x 128 that these are in; code(row, col, scale).
template <class Scale, class Code>
void fill_f8(const tensor_view<packed<f8_block>>& out, const Scale& scale, const Code& code) {
    std::fill_n(out.data(), out.elements(out.rows(), out.cols()), std::byte{0});
    for_each_f8(out, [&](idx r, idx k, std::byte* scale_at, std::byte* code_at) {
        const float s = scale(r, k);
        std::memcpy(scale_at, &s, sizeof(s));
        *code_at = static_cast<std::byte>(code(r, k, s).bits);
    });
}
template <class W>
void quantise_f8(const tensor_view<W>& w, const tensor_view<packed<f8_block>>& out) {
    constexpr idx block = panel_format<f8_block>::block;
    std::vector<float> most(static_cast<std::size_t>(ceil_div(w.rows(), block) * ceil_div(w.cols(), block)));
    const auto of = [&](idx r, idx k) -> float& {
        return most[static_cast<std::size_t>(r / block * ceil_div(w.cols(), block) + k / block)];
    };
    for (idx r = 0; r < w.rows(); ++r)
        for (idx k = 0; k < w.cols(); ++k) of(r, k) = std::max(of(r, k), std::abs(weight_at(w, r, k)));
    fill_f8(
        out, [&](idx r, idx k) { return of(r, k) / 448; },
        [&](idx r, idx k, float s) { return to_f8_e4m3(s == 0 ? 0 : weight_at(w, r, k) / s); });
}

} // namespace detail

// Rewrites W (n_out, n_in) as panels, narrowed to what they hold. Throws input_error for weights that are not
// finite where S cannot hold such.
template <class S, class W>
void pack_matrix(const tensor_view<W>& w, const tensor_view<packed<S>>& out) {
    require_shape(out, w.rows(), w.cols(), "pack_matrix", "out");
    if constexpr (is_f8<S>) {
        detail::quantise_f8(w, tensor_view<packed<f8_block>>(out.data(), out.rows(), out.cols()));
    } else if constexpr (quantised<S>) {
        detail::quantise_matrix<S>(w, out);
    } else {
        using T = compute_type<S>;
        constexpr bool in_pairs = std::is_same_v<S, bf16>; // see core/packed.hpp
        constexpr idx cols = panel_cols<T>;
        for (idx j = 0; j < round_up(w.rows(), cols); ++j) {
            S* panel = out.data() + j / cols * out.panel_stride();
            const idx column = j % cols;
            const idx at = in_pairs ? column % (cols / 2) * 2 + column / (cols / 2) : column;
            for (idx k = 0; k < w.cols(); ++k) {
                S& to = panel[k * cols + at];
                if (j >= w.rows())
                    to = S{};
                else if constexpr (std::is_same_v<S, std::remove_const_t<W>>)
                    to = w(j, k);
                else if constexpr (std::is_same_v<S, bf16>)
                    to = to_bf16(w(j, k));
                else if constexpr (std::is_same_v<S, half>)
                    to = detail::scale_of(detail::weight_at(w, j, k), j);
                else
                    to = w(j, k);
            }
        }
    }
}

// A quantised matrix from blocks as files have them: block(row, b) is the b-th of 32 columns. Lossless.
template <class S, class F>
requires(quantised<S>&& panel_format<S>::half_scales) void pack_blocks(const F& block,
                                                                       const tensor_view<packed<S>>& out) {
    using format = panel_format<S>;
    if (out.cols() % format::block != 0)
        SLUICE_THROW(
            config_error("pack_blocks: columns must be a multiple of 32, are " + std::to_string(out.cols())));
    for (idx r = 0; r < round_up(out.rows(), format::rows); ++r)
        for (idx b = 0; b < out.cols() / format::block; ++b) {
            const quantised_block q = r < out.rows() ? block(r, b) : quantised_block{};
            if (!std::isfinite(to_float(q.scale)) || !std::isfinite(to_float(q.min)))
                SLUICE_THROW(input_error("pack_blocks: the scale of row " + std::to_string(r) + ", block " +
                                         std::to_string(b) + " is not finite"));
            detail::block_place<S>(out.data(), out.panel_stride(), r, b).put(q);
        }
}

// The same of fp8 numbers (n_out, n_in) with a scale for each 128 x 128 of them, as DeepSeek-V3 has them.
inline void pack_f8(const tensor_view<const f8_e4m3>& w, const tensor_view<const float>& scales,
                    const tensor_view<packed<f8_block>>& out) {
    constexpr idx block = panel_format<f8_block>::block;
    require_shape(out, w.rows(), w.cols(), "pack_f8", "out");
    require_shape(scales, ceil_div(w.rows(), block), ceil_div(w.cols(), block), "pack_f8", "scales");
    detail::fill_f8(
        out, [&](idx r, idx k) { return scales(r / block, k / block); },
        [&](idx r, idx k, float) { return w(r, k); });
}

// Row r of a packed matrix as floats (n_in), exactly as products multiply it.
template <class W>
requires is_packed<W>
void unpack_row(const tensor_view<W>& w, idx r, compute_type<std::remove_const_t<W>>* out) {
    using S = typename tensor_view<W>::storage;
    if constexpr (is_f8<S>) {
        using format = panel_format<S>;
        for (idx k = 0; k < w.cols(); ++k) {
            const auto* block = w.data() + r / format::rows * w.panel_stride() +
                                k / format::block * (format::block_head + format::codes);
            float scale;
            std::memcpy(&scale, block, sizeof(scale));
            const auto code = block[format::block_head + k % format::block * format::rows + r % format::rows];
            out[k] = to_float(f8_e4m3{std::to_integer<std::uint8_t>(code)}) * scale;
        }
    } else if constexpr (quantised<S>) {
        using format = panel_format<S>;
        for (idx k = 0; k < w.cols(); k += format::block) {
            const detail::block_place<S> at(w.data(), w.panel_stride(), r, k / format::block);
            const quantised_block q = at.get();
            float row_scale = 0;
            if constexpr (!format::half_scales) std::memcpy(&row_scale, at.scale_at(), 4);
            for (idx i = 0; i < std::min(format::block, w.cols() - k); ++i)
                out[k + i] = detail::weight_of<S>(q, i, row_scale);
        }
    } else {
        constexpr idx cols = panel_cols<compute_type<S>>;
        const idx column = r % cols;
        const idx at = std::is_same_v<S, bf16> ? column % (cols / 2) * 2 + column / (cols / 2) : column;
        const S* panel = w.data() + r / cols * w.panel_stride();
        for (idx k = 0; k < w.cols(); ++k) {
            if constexpr (requires(S s) { to_float(s); })
                out[k] = to_float(panel[k * cols + at]);
            else
                out[k] = panel[k * cols + at];
        }
    }
}

} // namespace SLUICE_ISA
} // namespace sluice
