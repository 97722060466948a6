// Element types of safetensors files and the C++ types that stand for them.
#pragma once

#include "../core/types.hpp"

#include <array>
#include <bit>
#include <string_view>

namespace sluice::io {

// Element types of the format that fill whole bytes. Those without a C++ type are handed out as bytes.
enum class dtype : std::uint8_t {
    f64,
    f32,
    f16,
    bf16,
    f8_e4m3,
    f8_e5m2,
    f8_e8m0,
    i64,
    i32,
    i16,
    i8,
    u64,
    u32,
    u16,
    u8,
    boolean
};

struct dtype_facts {
    std::string_view name;
    std::size_t bytes;
};
inline constexpr std::array<dtype_facts, 16> dtype_table{{{"F64", 8},
                                                          {"F32", 4},
                                                          {"F16", 2},
                                                          {"BF16", 2},
                                                          {"F8_E4M3", 1},
                                                          {"F8_E5M2", 1},
                                                          {"F8_E8M0", 1},
                                                          {"I64", 8},
                                                          {"I32", 4},
                                                          {"I16", 2},
                                                          {"I8", 1},
                                                          {"U64", 8},
                                                          {"U32", 4},
                                                          {"U16", 2},
                                                          {"U8", 1},
                                                          {"BOOL", 1}}};
constexpr const dtype_facts& facts(dtype type) { return dtype_table[static_cast<std::size_t>(type)]; }

template <class T>
constexpr dtype find_dtype() {
    using scalar = std::remove_const_t<T>;
    if constexpr (std::is_same_v<scalar, double>)
        return dtype::f64;
    else if constexpr (std::is_same_v<scalar, float>)
        return dtype::f32;
    else if constexpr (std::is_same_v<scalar, bf16>)
        return dtype::bf16;
    else if constexpr (std::is_same_v<scalar, half>)
        return dtype::f16;
    else if constexpr (std::is_same_v<scalar, f8_e4m3>)
        return dtype::f8_e4m3;
    else if constexpr (std::is_same_v<scalar, f8_e8m0>)
        return dtype::f8_e8m0;
    else if constexpr (std::is_same_v<scalar, std::int64_t>)
        return dtype::i64;
    else if constexpr (std::is_same_v<scalar, std::int32_t>)
        return dtype::i32;
    else if constexpr (std::is_same_v<scalar, std::int8_t>)
        return dtype::i8;
    else {
        static_assert(std::is_same_v<scalar, std::uint8_t> || std::is_same_v<scalar, std::byte>,
                      "sluice: safetensors holds float, double, bf16, half, f8_e4m3, f8_e8m0, int8, int32, "
                      "int64 and uint8 tensors");
        return dtype::u8;
    }
}
template <class T>
inline constexpr dtype dtype_of = find_dtype<T>();

} // namespace sluice::io
