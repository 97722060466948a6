// The signatures of the library's kernels, for files that compile them once for others.
#pragma once

#include <sluice/kernels/activation.hpp>
#include <sluice/kernels/adamw.hpp>
#include <sluice/kernels/elementwise.hpp>
#include <sluice/kernels/gather.hpp>
#include <sluice/kernels/gemm_bytes.hpp>
#include <sluice/kernels/gemm_few_rows.hpp>
#include <sluice/kernels/memory_gate.hpp>
#include <sluice/kernels/ngram_hash.hpp>
#include <sluice/kernels/norm.hpp>
#include <sluice/kernels/rotary.hpp>
#include <sluice/kernels/routing.hpp>
#include <sluice/kernels/softmax.hpp>
#include <sluice/kernels/table.hpp>
#include <sluice/kernels/top_k.hpp>
#include <sluice/ops/copy_attention.hpp>
#include <sluice/ops/segment.hpp>

namespace sluice::kernels {

template <class T>
using calls_of = simd::calls<
    activation_calls<T, activation::silu, activation::gelu, activation::relu, activation::quick_gelu>,
    adamw_calls<T>, elementwise_calls<T>, gather_calls<T>, gemm_calls<T>, gemm_few_rows_calls<T>,
    memory_gate_calls<T>, table_calls<T>, norm_calls<T>, rotary_calls<T>, routing_calls<T>, softmax_calls<T>,
    top_k_calls<T>, attention_calls<T, causal_attention, packed_keys<T>, cached_keys<T>>,
    attention_backward_calls<T, causal_attention>, attention_calls<T, copy_attention, copy_sources<T>>,
    attention_backward_calls<T, copy_attention>, attention_calls<T, ragged_prefix, concept_sources<T>>,
    attention_backward_calls<T, ragged_prefix>, attention_calls<T, weighted_prefix<T>, concept_sources<T>>,
    attention_backward_calls<T, weighted_prefix<T>>>;

// Weights in fewer bits are multiplied in float.
using narrow_calls =
    simd::calls<gemm_calls<float, bf16>, gemm_few_rows_calls<float, bf16>, widen_calls<bf16>,
                widen_calls<half>, widen_calls<f8_block>, widen_calls<in_float<int8_row>>,
                widen_calls<in_float<int8_block>>, widen_calls<in_float<int4_block>>,
                widen_calls<in_float<int4_block_min>>, quantise_calls, gemm_bytes_calls<int8_row>,
                gemm_bytes_calls<int8_block>, gemm_bytes_calls<int4_block>, gemm_bytes_calls<int4_block_min>>;

using all_calls = simd::calls<calls_of<float>, narrow_calls, ngram_hash_calls>;

} // namespace sluice::kernels

namespace sluice::simd {

// Whether a call is in a list, which may hold lists.
template <class Call>
struct entry {};
template <class List>
struct entries;
template <class Kernel, class... Args>
struct entries<call<Kernel, Args...>> : entry<call<Kernel, Args...>> {};
template <class... Calls>
struct entries<calls<Calls...>> : entries<Calls>... {};
template <class List, class Call>
inline constexpr bool is_listed = std::is_base_of_v<entry<Call>, entries<List>>;

} // namespace sluice::simd
