// Storage types of packed matrices in fewer bits: linear_params<packed<int4_block>> is a params set like any
// other. The weights of a row share a scale, or each 32 of them do; products with them are done in integers,
// for which rows of x become bytes as well. packed<in_float<S>> has the same memory and float products.
//
// A panel holds 32 rows of W: first scales of whole rows, then, for each 32 columns of W, scales (and minima)
// and codes. Codes of four columns lie side by side, for all rows in turn. Columns beyond the last have any
// codes: x is zero there.
#pragma once

#include "packed.hpp"

namespace sluice {

struct int8_row {};       // w = scale q with one float scale for a row of W, q in -127 ... 127
struct int8_block {};     // w = scale q, a half scale for 32 columns of a row (GGUF's Q8_0)
struct int4_block {};     // w = scale (q - 8), q in 0 ... 15 (GGUF's Q4_0)
struct int4_block_min {}; // w = scale q + min, both half (GGUF's Q4_1)
struct f8_block {}; // w = scale e4m3, a float scale for 128 x 128 of W (DeepSeek-AI, "DeepSeek-V3", 2024)

// The values of S, each widened to float before it is multiplied.
template <class S>
struct in_float {};

// Where a panel of S has what, in bytes. Codes are unsigned: q + zero.
template <class S>
struct panel_format;
struct panel_of_bytes {
    static constexpr idx rows = panel_cols<float>; // of W
    static constexpr idx block = 32;               // columns of W that codes and scales are kept for together
    static constexpr idx head = 0;                 // before the first block
    static constexpr idx group = block;            // elements of x that share a scale
    static constexpr bool half_scales = true, has_min = false;
};
template <>
struct panel_format<int8_row> : panel_of_bytes {
    static constexpr idx head = 128, block_head = 0, codes = 1024, group = 256;
    static constexpr int bits = 8, zero = 128;
    static constexpr bool half_scales = false;
};
template <>
struct panel_format<int8_block> : panel_of_bytes {
    static constexpr idx block_head = 64, codes = 1024;
    static constexpr int bits = 8, zero = 128;
};
template <>
struct panel_format<int4_block> : panel_of_bytes {
    static constexpr idx block_head = 64, codes = 512;
    static constexpr int bits = 4, zero = 8;
};
template <>
struct panel_format<int4_block_min> : panel_of_bytes {
    static constexpr idx block_head = 128, codes = 512;
    static constexpr int bits = 4, zero = 0;
    static constexpr bool has_min = true;
};
template <> // in the order of k, a scale before each 128
struct panel_format<f8_block> : panel_of_bytes {
    static constexpr idx block = 128, group = block, block_head = 64, codes = 4096;
    static constexpr int bits = 8, zero = 0;
    static constexpr bool half_scales = false;
};
template <class S>
struct panel_format<in_float<S>> : panel_format<S> {};

template <class S>
constexpr bool is_f8 = false;
template <>
inline constexpr bool is_f8<f8_block> = true;
template <>
inline constexpr bool is_f8<in_float<f8_block>> = true;

// Kept as codes and scales.
template <class S>
concept quantised = requires {
    panel_format<std::remove_const_t<S>>::codes;
};
// And multiplied as such; f8_block is as in_float<f8_block>.
template <class S>
constexpr bool multiplies_bytes = false;
template <quantised S>
inline constexpr bool multiplies_bytes<S> = true;
template <class S>
inline constexpr bool multiplies_bytes<in_float<S>> = false;
template <>
inline constexpr bool multiplies_bytes<f8_block> = false;
template <class S>
inline constexpr bool multiplies_bytes<packed<S>> = multiplies_bytes<S>;
template <class S>
inline constexpr bool multiplies_bytes<const packed<S>> = multiplies_bytes<S>;

template <quantised S>
struct compute<S> {
    using type = float;
};
template <quantised S>
struct element_of<packed<S>> {
    using type = std::byte;
};
template <quantised S>
struct element_of<const packed<S>> {
    using type = const std::byte;
};
template <quantised S>
struct panel_size<S> {
    static constexpr idx of(idx cols) {
        using format = panel_format<S>;
        return format::head + ceil_div(cols, format::block) * (format::block_head + format::codes);
    }
};

// 32 weights of a row as a file may have them, codes as in a panel.
struct quantised_block {
    half scale{}, min{};
    std::uint8_t codes[32] = {};
};

} // namespace sluice
