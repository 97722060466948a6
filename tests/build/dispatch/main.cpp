// A small model, trained for two steps and then asked for words, with every other operation beside it. Writes
// all numbers as they are, so that two programs can be compared bit for bit:
//   dispatch <architecture> <file>     dynamic, made to be that architecture
//   dispatch best                      says which one is picked
// Compiled with FIXED_ARCH defined, it is that architecture and no other.
#include "own_kernel.hpp"

#include <sluice/sluice.hpp>

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

using namespace sluice;

#if defined(FIXED_ARCH)
using arch = simd::FIXED_ARCH;
#else
using arch = simd::portable;
#endif

namespace {

std::vector<float> numbers;

void keep(in<float> x) {
    for (idx i = 0; i < x.rows(); ++i) numbers.insert(numbers.end(), x.row(i), x.row(i) + x.cols());
}

tensor<float> random(idx rows, idx cols, std::uint64_t key) {
    tensor<float> x(rows, cols);
    fill_normal(x.view(), 1, random_source(key));
    return x;
}

template <class W>
using model = language_model<stack<transformer_block<float, W, arch>>, float>;

void run_model() {
    const idx d = 40;
    const transformer_block_config block{
        .attention = {.d_model = d, .n_heads = 4, .n_kv_heads = 2, .head_dim = 10, .norm = qk_norm::per_head},
        .feed_forward = {.d_model = d, .d_ff = 72},
        .norm = {.d_model = d}};
    const model<float>::config_type config{.embedding = {.vocabulary = 83, .d_model = d},
                                           .body = {.n_layers = 2, .layer = block},
                                           .norm = {.d_model = d}};
    owned_params<model<float>::params_type> weights(config), grad(config), mean(config), square(config);
    initialise(weights.view, config, random_source(1));
    const model<float> trained(config, weights.view);

    std::vector<token_id> ids, targets;
    for (idx i = 0; i < 90; ++i) {
        ids.push_back(static_cast<token_id>(i * i % 83));
        targets.push_back(static_cast<token_id>((i + 1) * (i + 1) % 83));
    }
    const limits most{.max_tokens = 96, .max_rows = 90};
    const sizes bytes = trained.bytes(most);
    arena workspace(bytes.workspace + 65536), tape(bytes.tape), state_memory(bytes.state);
    for (idx step = 1; step <= 2; ++step) {
        zero(grad.view);
        numbers.push_back(static_cast<float>(
            trained.loss_and_gradient(batch::one(ids), targets, grad.view, tape, workspace)));
        each_param([](const param_name&, role, const auto& g) { keep(g); }, grad.view);
        numbers.push_back(static_cast<float>(adamw<arch>(weights.view, grad.view, mean.view, square.view,
                                                         {.rate = 0.01, .decay = 0.1}, step, workspace)));
        each_param([](const param_name&, role, const auto& w) { keep(w); }, weights.view);
    }

    arena dry;
    pack_params<model<packed<bf16>>::params_type>(weights.view, config, dry);
    arena packed_memory(dry.used());
    const model<packed<bf16>> lm(
        config, pack_params<model<packed<bf16>>::params_type>(weights.view, config, packed_memory));
    auto state = lm.bind_state(state_memory, most);
    tensor<float> logits(1, 83);
    lm.prefill(batch::one(std::span(ids).first(70)), logits.view(), state, workspace);
    keep(logits.view());
    for (idx i = 70; i < 90; ++i) {
        lm.decode(batch::one(std::span(ids).subspan(static_cast<std::size_t>(i), 1), i), logits.view(), state,
                  workspace);
        keep(logits.view());
    }
}

void run_operations() {
    const tensor<float> x = random(37, 203, 2), dy = random(37, 203, 3), w = random(95, 203, 4);
    tensor<float> y(37, 203), dx(37, 203), sums(1, 203), product(37, 95);
    arena workspace(1 << 22);
    softmax<arch, float>(x.view(), y.view(), {});
    keep(y.view());
    softmax_backward<arch, float>(y.view(), dy.view(), dx.view(), {});
    keep(dx.view());
    for (activation kind : {activation::silu, activation::gelu, activation::relu}) {
        activate<arch, float>(kind, x.view(), dy.view(), y.view(), {});
        keep(y.view());
        activate_backward<arch, float>(kind, x.view(), {}, dy.view(), y.view(), {}, {});
        keep(y.view());
    }
    matmul<arch, float>(x.view(), w.view(), product.view(), {}, workspace, {});
    keep(product.view());
    matmul<arch, float>(x.view().row_block(0, 3), w.view(), product.view().row_block(0, 3), {}, workspace,
                        {});
    keep(product.view());

    tensor<std::byte> memory(1, tensor_view<packed<int4_block>>::elements(w.rows(), w.cols()));
    const tensor_view<packed<int4_block>> small(memory.data(), w.rows(), w.cols());
    pack_matrix(w.view(), small);
    matmul<arch, float>(x.view(), small, product.view(), {}, workspace, {});
    keep(product.view());

    tensor<std::int32_t> chosen(37, 9);
    top_k<arch, const float>(x.view(), top_k_order::by_value, chosen.view(), {});
    std::vector<std::int32_t> rows;
    for (idx i = 0; i < 37; ++i)
        for (idx j = 0; j < 9; ++j) {
            numbers.push_back(static_cast<float>(chosen.view()(i, j)));
            rows.push_back(chosen.view()(i, j) % 37);
        }
    gather<arch, float>(x.view(), std::span(rows).first(37), y.view(), {});
    keep(y.view());
    gather_sum<arch, float>(x.view(), rows, y.view(), {});
    keep(y.view());

    for (idx i = 0; i < 37; ++i)
        simd::invoke(arch{}, add_scaled{}, 0.3F, std::as_const(x).view().row(i), sums.view().row(0),
                     idx{203});
    keep(sums.view());
    const tensor<float> q = random(30, 48, 5), k = random(30, 24, 6), v = random(30, 24, 7);
    tensor<float> heads(30, 48);
    const batch b = batch::one(30);
    attend<arch, float>(b, {.n_heads = 4, .n_kv_heads = 2, .head_dim = 12}, q.view(),
                        packed_keys<float>{&b, k.view(), v.view()}, chunked_attention{7}, heads.view(), {},
                        workspace, {});
    keep(heads.view());
}

} // namespace

int main(int argc, char** argv) {
    const std::string wanted = argc > 1 ? argv[1] : "";
#if !defined(FIXED_ARCH)
    if (wanted == "best") {
        std::puts(simd::available<simd::avx512_vnni>() ? "avx512_vnni"
                  : simd::lanes<float>(arch{}) == 16   ? "avx512"
                  : simd::lanes<float>(arch{}) == 8    ? "avx2"
                                                       : "sse2");
    } else if (!(wanted == "avx512_vnni" ? simd::force<simd::avx512_vnni>(arch{})
                 : wanted == "avx512"    ? simd::force<simd::avx512>(arch{})
                 : wanted == "avx2"      ? simd::force<simd::avx2>(arch{})
                                         : simd::force<simd::sse2>(arch{}))) {
        std::printf("this machine has no %s\n", wanted.c_str());
        return 77;
    }
#endif
    run_model();
    run_operations();
    if (argc < 3) return 0;
    std::FILE* file = std::fopen(argv[2], "wb");
    if (file == nullptr || std::fwrite(numbers.data(), sizeof(float), numbers.size(), file) != numbers.size())
        return 1;
    std::printf("%zu numbers\n", numbers.size());
    return std::fclose(file);
}
