// Element types of GGUF files (ggml's), and the blocks of the quantised ones as they lie in a file.
//
// Q8_0, Q4_0, Q4_1: 32 numbers share a scale d, and in Q4_1 a minimum m. In four bits, byte i holds number i
// in its lower half and number i + 16 in its upper. Other types are known by name and size only.
#pragma once

#include "../core/convert.hpp"
#include "file.hpp"

#include <array>
#include <bit>
#include <string_view>

namespace sluice::io {

inline constexpr idx gguf_block = 32; // numbers in a block of the types below

struct q8_0 { // number i is qs[i] d
    half d;
    std::int8_t qs[32];
};
struct q4_0 { // (q - 8) d
    half d;
    std::uint8_t qs[16];
};
struct q4_1 { // q d + m
    half d, m;
    std::uint8_t qs[16];
};
static_assert(sizeof(q8_0) == 34 && sizeof(q4_0) == 18 && sizeof(q4_1) == 20 && alignof(q4_1) == 2);

struct gguf_type_facts {
    std::uint32_t id; // in files
    std::string_view name;
    std::uint32_t block, bytes; // numbers in a block, and its bytes
};
// Every type that files hold, by id.
inline constexpr std::array<gguf_type_facts, 32> gguf_types{{
    {0, "F32", 1, 4},         {1, "F16", 1, 2},        {2, "Q4_0", 32, 18},      {3, "Q4_1", 32, 20},
    {6, "Q5_0", 32, 22},      {7, "Q5_1", 32, 24},     {8, "Q8_0", 32, 34},      {10, "Q2_K", 256, 84},
    {11, "Q3_K", 256, 110},   {12, "Q4_K", 256, 144},  {13, "Q5_K", 256, 176},   {14, "Q6_K", 256, 210},
    {16, "IQ2_XXS", 256, 66}, {17, "IQ2_XS", 256, 74}, {18, "IQ3_XXS", 256, 98}, {19, "IQ1_S", 256, 50},
    {20, "IQ4_NL", 32, 18},   {21, "IQ3_S", 256, 110}, {22, "IQ2_S", 256, 82},   {23, "IQ4_XS", 256, 136},
    {24, "I8", 1, 1},         {25, "I16", 1, 2},       {26, "I32", 1, 4},        {27, "I64", 1, 8},
    {28, "F64", 1, 8},        {29, "IQ1_M", 256, 56},  {30, "BF16", 1, 2},       {34, "TQ1_0", 256, 54},
    {35, "TQ2_0", 256, 66},   {39, "MXFP4", 32, 17},   {40, "NVFP4", 64, 36},    {41, "Q1_0", 128, 18},
}};
constexpr const gguf_type_facts* find_gguf_type(std::uint32_t id) {
    for (const auto& type : gguf_types)
        if (type.id == id) return &type;
    return nullptr;
}

// The type in files whose blocks are T.
template <class T>
constexpr std::string_view gguf_name() {
    using scalar = std::remove_const_t<T>;
    if constexpr (std::is_same_v<scalar, float>)
        return "F32";
    else if constexpr (std::is_same_v<scalar, double>)
        return "F64";
    else if constexpr (std::is_same_v<scalar, half>)
        return "F16";
    else if constexpr (std::is_same_v<scalar, bf16>)
        return "BF16";
    else if constexpr (std::is_same_v<scalar, q8_0>)
        return "Q8_0";
    else if constexpr (std::is_same_v<scalar, q4_0>)
        return "Q4_0";
    else {
        static_assert(
            std::is_same_v<scalar, q4_1>,
            "sluice: tensors of GGUF files are viewed as float, double, half, bf16, q8_0, q4_0 or q4_1");
        return "Q4_1";
    }
}

inline namespace SLUICE_ISA {

// The 32 numbers of a block, as ggml defines them. Q8_0 and Q4_0 are exact; Q4_1 rounds once, at the sum.
constexpr void dequantise(const q8_0& block, float* y) {
    const float d = to_float(block.d);
    for (std::size_t i = 0; i < 32; ++i) y[i] = static_cast<float>(block.qs[i]) * d;
}
constexpr void dequantise(const q4_0& block, float* y) {
    const float d = to_float(block.d);
    for (std::size_t i = 0; i < 16; ++i) {
        y[i] = static_cast<float>((block.qs[i] & 15) - 8) * d;
        y[i + 16] = static_cast<float>((block.qs[i] >> 4) - 8) * d;
    }
}
constexpr void dequantise(const q4_1& block, float* y) {
    const float d = to_float(block.d), m = to_float(block.m);
    for (std::size_t i = 0; i < 16; ++i) {
        y[i] = static_cast<float>(block.qs[i] & 15) * d + m;
        y[i + 16] = static_cast<float>(block.qs[i] >> 4) * d + m;
    }
}

namespace detail {

// The numbers of the block at `from`, which need not be aligned.
template <class B>
void read_block(const std::byte* from, float* y) {
    if constexpr (std::is_same_v<B, float>) {
        *y = std::bit_cast<float>(from_little<std::uint32_t>(from));
    } else if constexpr (std::is_same_v<B, bf16>) {
        *y = to_float(bf16{from_little<std::uint16_t>(from)});
    } else if constexpr (std::is_same_v<B, half>) {
        *y = to_float(half{from_little<std::uint16_t>(from)});
    } else {
        B block;
        block.d.bits = from_little<std::uint16_t>(from);
        std::size_t head = 2;
        if constexpr (std::is_same_v<B, q4_1>) {
            block.m.bits = from_little<std::uint16_t>(from + 2);
            head = 4;
        }
        std::memcpy(block.qs, from + head, sizeof(block.qs));
        dequantise(block, y);
    }
}

} // namespace detail

} // namespace SLUICE_ISA
} // namespace sluice::io
