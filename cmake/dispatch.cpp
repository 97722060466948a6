// The kernels of the library for one architecture of a simd::dynamic; compiled once for each by
// sluice_dispatch.
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
#include <sluice/simd/instantiate.hpp>

using namespace sluice;
using namespace sluice::kernels;

template struct sluice::simd::compile<
    simd::native,
    activation_calls<float, activation::silu, activation::gelu, activation::relu, activation::quick_gelu>,
    adamw_calls<float>, elementwise_calls<float>, gather_calls<float>, gemm_calls<float>,
    gemm_calls<float, bf16>, widen_calls<bf16>, widen_calls<half>, widen_calls<f8_block>,
    widen_calls<in_float<int8_row>>, widen_calls<in_float<int8_block>>, widen_calls<in_float<int4_block>>,
    widen_calls<in_float<int4_block_min>>, quantise_calls, gemm_bytes_calls<int8_row>,
    gemm_bytes_calls<int8_block>, gemm_bytes_calls<int4_block>, gemm_bytes_calls<int4_block_min>,
    gemm_few_rows_calls<float>, gemm_few_rows_calls<float, bf16>, memory_gate_calls<float>,
    table_calls<float>, ngram_hash_calls, norm_calls<float>, rotary_calls<float>, routing_calls<float>,
    softmax_calls<float>, top_k_calls<float>,
    attention_calls<float, causal_attention, packed_keys<float>, cached_keys<float>>,
    attention_backward_calls<float, causal_attention>,
    attention_calls<float, copy_attention, copy_sources<float>>,
    attention_backward_calls<float, copy_attention>,
    attention_calls<float, ragged_prefix, concept_sources<float>>,
    attention_backward_calls<float, ragged_prefix>,
    attention_calls<float, weighted_prefix<float>, concept_sources<float>>,
    attention_backward_calls<float, weighted_prefix<float>>>;
