// Rows of a table that is stored smaller than it is computed with: decoded, scaled and laid side by side,
// asking for rows ahead of time.
#pragma once

#include "gather.hpp"

namespace sluice::kernels {

// y(i) = x(rows[i]) for n rows of `width` elements; where there are scales, each row has `blocks` of them,
// for as many equal parts of it (the last may be shorter).
template <class S, class Scale>
struct decode_rows_args {
    const S* x;
    idx x_row;
    const Scale* scale; // null: none
    idx scale_row, blocks;
    const std::int32_t* rows;
    idx n, width;
};

struct decode_rows {
    template <class Arch, class S, class Scale, class T>
    void operator()(Arch, const decode_rows_args<S, Scale>& a, T* y, idx y_row) const;
};

template <class T>
using table_calls = simd::calls<simd::call<decode_rows, const decode_rows_args<bf16, float>&, T*, idx>,
                                simd::call<decode_rows, const decode_rows_args<half, float>&, T*, idx>,
                                simd::call<decode_rows, const decode_rows_args<std::int8_t, float>&, T*, idx>,
                                simd::call<decode_rows, const decode_rows_args<f8_e4m3, f8_e8m0>&, T*, idx>>;

// Branch-free, so that compilers make registers of a loop over them.
SLUICE_INLINE float decoded(float x) { return x; }
SLUICE_INLINE float decoded(std::int8_t x) { return static_cast<float>(x); }
SLUICE_INLINE float decoded(bf16 x) { return std::bit_cast<float>(std::uint32_t{x.bits} << 16); }
SLUICE_INLINE float decoded(f8_e8m0 x) { return to_float(x); }
SLUICE_INLINE float decoded(half x) {
    const std::uint32_t sign = std::uint32_t{x.bits & 0x8000U} << 16, magnitude = x.bits & 0x7FFFU;
    const auto small =
        std::bit_cast<std::uint32_t>(static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-24F);
    const std::uint32_t normal = (magnitude << 13) + (112U << 23),
                        infinite = 0x7F800000U | (magnitude & 0x3FFU) << 13;
    return std::bit_cast<float>(sign | (magnitude >= 0x7C00U  ? infinite
                                        : magnitude >= 0x400U ? normal
                                                              : small));
}
SLUICE_INLINE float decoded(f8_e4m3 x) {
    const std::uint32_t sign = std::uint32_t{x.bits & 0x80U} << 24, magnitude = x.bits & 0x7FU;
    const auto small =
        std::bit_cast<std::uint32_t>(static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-9F);
    const std::uint32_t normal = (magnitude << 20) + (120U << 23);
    return std::bit_cast<float>(sign | (magnitude == 0x7FU ? 0x7FC00000U : magnitude >= 8 ? normal : small));
}

// Sixteen at once, in the compiler's own vectors: of loops over bytes g++ 12 makes ten times as many
// instructions.
template <class S, class T>
SLUICE_INLINE void decode16(const S* from, float scale, T* to) {
    using bytes = std::int8_t __attribute__((vector_size(16)));
    using unsigned_bytes = std::uint8_t __attribute__((vector_size(16)));
    using shorts = std::int16_t __attribute__((vector_size(32)));
    using halves = std::uint16_t __attribute__((vector_size(32)));
    using words = std::uint32_t __attribute__((vector_size(64)));
    using integers = std::int32_t __attribute__((vector_size(64)));
    using floats = float __attribute__((vector_size(64)));
    using doubles = double __attribute__((vector_size(128)));
    floats x;
    if constexpr (std::is_same_v<S, std::int8_t>) {
        bytes in;
        std::memcpy(&in, from, sizeof(in));
        const shorts wider =
            __builtin_convertvector(in, shorts); // twice as wide each time, or g++ 12 goes byte by byte
        x = __builtin_convertvector(__builtin_convertvector(wider, integers), floats);
    } else if constexpr (std::is_same_v<S, bf16>) {
        halves in;
        std::memcpy(&in, from, sizeof(in));
        const words bits = __builtin_convertvector(in, words) << 16;
        std::memcpy(&x, &bits, sizeof(x));
    } else if constexpr (std::is_same_v<S, f8_e4m3>) {
        unsigned_bytes in;
        std::memcpy(&in, from, sizeof(in));
        const halves wider = __builtin_convertvector(in, halves);
        const words all = __builtin_convertvector(wider, words), magnitude = all & 0x7FU;
        const floats subnormal =
            __builtin_convertvector(reinterpret_cast<integers>(magnitude), floats) * 0x1p-9F;
        words small;
        std::memcpy(&small, &subnormal, sizeof(small));
        const words is_normal = reinterpret_cast<words>(magnitude >= 8),
                    is_nan = reinterpret_cast<words>(magnitude == 0x7FU);
        const words normal = ((magnitude << 20) + (120U << 23)) | (is_nan & 0x7FC00000U);
        const words bits = (all & 0x80U) << 24 | (normal & is_normal) | (small & ~is_normal);
        std::memcpy(&x, &bits, sizeof(x));
    } else {
        for (int k = 0; k < 16; ++k) x[k] = decoded(from[k]);
    }
    x = x * scale;
    if constexpr (std::is_same_v<T, float>) {
        std::memcpy(to, &x, sizeof(x));
    } else {
        const doubles wide = __builtin_convertvector(x, doubles);
        std::memcpy(to, &wide, sizeof(wide));
    }
}

template <class Arch, class S, class Scale, class T>
void decode_rows::operator()(Arch, const decode_rows_args<S, Scale>& a, T* y, idx y_row) const {
    constexpr idx step = 16, line = 64;
    const idx row_bytes = a.width * static_cast<idx>(sizeof(S)), ahead = gather_ahead(row_bytes);
    const idx part = a.scale == nullptr ? a.width : (a.width + a.blocks - 1) / a.blocks;
    for (idx i = 0; i < a.n; ++i) {
        const idx later = a.rows[std::min(i + ahead, a.n - 1)];
        const auto* next = reinterpret_cast<const char*>(a.x + later * a.x_row);
        for (idx b = 0; b < row_bytes; b += line) __builtin_prefetch(next + b);
        if (a.scale != nullptr) __builtin_prefetch(a.scale + later * a.scale_row);
        const S* const from = a.x + a.rows[i] * a.x_row;
        T* const to = y + i * y_row;
        for (idx block = 0, begin = 0; begin < a.width; ++block, begin += part) {
            const idx end = std::min(begin + part, a.width);
            const float s = a.scale == nullptr ? 1.0F : decoded(a.scale[a.rows[i] * a.scale_row + block]);
            idx j = begin;
            for (; j + step <= end; j += step) decode16(from + j, s, to + j);
            for (; j < end; ++j) to[j] = static_cast<T>(decoded(from[j]) * s);
        }
    }
}

} // namespace sluice::kernels
