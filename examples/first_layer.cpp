#include <sluice/sluice.hpp>

#include <iostream>

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

int main() {
    const sluice::attention_config config{.d_model = 64, .n_heads = 4, .n_kv_heads = 2, .head_dim = 16};
    sluice::owned_params<sluice::attention_params<float>> weights(
        config); // or views of a file, or your own memory
    sluice::initialise(weights.view, config, sluice::random_source(1));
    sluice::fill_normal(weights.view.w_o, 0.1, sluice::random_source(2));
    const sluice::attention<float> attention(config, weights.view);

    // The layer says what it takes; you own all of it.
    const sluice::limits most{.max_tokens = 128, .max_rows = 10};
    const sluice::sizes need = attention.bytes(most);
    sluice::arena state_memory(need.state), workspace(need.workspace);
    auto state = attention.bind_state(state_memory, most);

    const matrix x = matrix::Random(11, 64); // 11 tokens
    matrix all(11, 64), prompt(10, 64), next(1, 64);
    attention.forward(sluice::batch::one(11), x, all, nullptr, workspace);
    attention.prefill(sluice::batch::one(10), x.topRows(10), prompt, state, workspace);   // ten at once,
    attention.decode(sluice::batch::one(1, 10), x.bottomRows(1), next, state, workspace); // then one more

    std::cout << "decoded = computed at once, bit for bit: " << std::boolalpha << (next == all.bottomRows(1))
              << '\n';
}
