// Built with NDEBUG and without the library's assertions: values from outside are checked all the same.
#include <sluice/sluice.hpp>

#include <array>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#if !defined(NDEBUG) || defined(SLUICE_ENABLE_ASSERTS)
#    error "this program is about builds without assertions"
#endif

namespace {

using namespace sluice;

int n_checked = 0, n_accepted = 0;

template <class Error, class F>
void refused(const char* what, F&& f) {
    ++n_checked;
    try {
        f();
    } catch (const Error&) {
        return;
    } catch (const std::exception& e) {
        std::printf("%s: another error: %s\n", what, e.what());
        ++n_accepted;
        return;
    }
    std::printf("%s: accepted\n", what);
    ++n_accepted;
}

constexpr idx huge = idx{1} << 62;
using model = language_model<stack<transformer_block<float>>>;

model::config_type small_model() {
    return {.embedding = {.vocabulary = 11, .d_model = 8},
            .body = {.n_layers = 2,
                     .layer = {.attention = {.d_model = 8, .n_heads = 2, .n_kv_heads = 1, .head_dim = 4},
                               .feed_forward = {.d_model = 8, .d_ff = 12},
                               .norm = {.d_model = 8}}},
            .norm = {.d_model = 8}};
}

void tokens_batches_and_states() {
    const auto config = small_model();
    owned_params<model::params_type> weights(config);
    owned_params<model::grad_type> gradient(config);
    initialise(weights.view, config, random_source(1));
    const model net(config, weights.view);
    const limits most{.max_tokens = 4, .max_rows = 4, .n_sequences = 2, .max_rollback = 1};
    const sizes need = net.bytes(most);
    arena workspace(need.workspace), tape(need.tape), memory(need.state);
    auto state = net.bind_state(memory, most);
    tensor<float> logits(4, 11);
    const std::vector<token_id> good{1, 2, 3, 4};
    auto extend = [&](const batch& b) { net.extend(b, logits, state, workspace); };
    for (const token_id bad :
         {-1, 11, std::numeric_limits<token_id>::min(), std::numeric_limits<token_id>::max()}) {
        const std::vector<token_id> ids{1, bad, 3, 4};
        refused<input_error>("forward with a bad id",
                             [&] { net.forward(batch::one(ids), logits, workspace); });
        refused<input_error>("extend with a bad id", [&] { extend(batch::one(ids)); });
        if (bad == ignored_target) continue;
        refused<input_error>("a bad target", [&] {
            net.loss_and_gradient(batch::one(good), ids, gradient.view, tape, workspace);
        });
    }
    refused<input_error>("too few targets", [&] {
        net.loss_and_gradient(batch::one(good), std::span(good).first(3), gradient.view, tape, workspace);
    });
    const std::vector<idx> two_each{0, 2, 4};
    for (const auto& offsets : {std::vector<idx>{0, 3}, {0, 3, 2, 4}, {0, 9, 4}, {1, 4}, {0, huge, 4}})
        refused<error>("bad offsets", [&] { extend({.n_tokens = 4, .offsets = offsets, .ids = good}); });
    for (const auto& slots : {std::vector<idx>{0}, {0, -1}, {1, 1}, {0, 2}, {huge, 0}, {-huge, 0}})
        refused<error>("bad slots",
                       [&] { extend({.n_tokens = 4, .offsets = two_each, .ids = good, .slots = slots}); });
    const std::vector<idx> negative{0, 1, -1, 3}, short_positions{0, 1};
    refused<input_error>("a negative position",
                         [&] { extend({.n_tokens = 4, .positions = negative, .ids = good}); });
    refused<input_error>("too few positions",
                         [&] { extend({.n_tokens = 4, .positions = short_positions, .ids = good}); });
    refused<input_error>("too few ids", [&] { extend({.n_tokens = 4, .ids = std::span(good).first(2)}); });
    extend(batch::one(good));
    refused<capacity_error>("a full state", [&] {
        net.extend(batch::one(std::span(good).first(1), 4), logits.view().row_block(0, 1), state, workspace);
    });
    for (const auto& [slot, length] :
         {std::pair<idx, idx>{-1, 0}, {2, 0}, {huge, 0}, {0, -1}, {0, 5}, {0, huge}, {0, 1}})
        refused<input_error>("a bad truncation", [&] { state.truncate(slot, length); });
    refused<config_error>("absurd limits", [&] { net.bytes({.max_rows = huge}); });
    arena little(64);
    refused<capacity_error>("a small workspace", [&] { net.forward(batch::one(good), logits, little); });
    refused<capacity_error>("a small tape", [&] {
        net.loss_and_gradient(batch::one(good), good, gradient.view, little, workspace);
    });
}

void rows_routes_and_draws() {
    tensor<float> table(5, 3), y(2, 3);
    arena workspace(4096);
    for (const std::int32_t bad : {-1, 5, std::numeric_limits<std::int32_t>::min()}) {
        const std::array<std::int32_t, 2> rows{0, bad};
        refused<input_error>("gather", [&] { gather<simd::native, float>(table, rows, y, {}); });
        refused<input_error>("gather_sum", [&] {
            gather_sum<simd::native, float>(table, rows, y.view().row_block(0, 1), {});
        });
        refused<input_error>("embed", [&] { embed<simd::native, float>(rows, table, y, {}); });
        refused<input_error>("embed_backward",
                             [&] { embed_backward<simd::native, float>(rows, y, table, {}); });
    }
    tensor<std::int32_t> six(5, 6);
    refused<config_error>("top_k of more than there are", [&] {
        tensor<float> x(5, 5);
        top_k(x.view(), top_k_order::by_value, six, {});
    });
    const double draw = 1;
    token_id id = 0;
    refused<input_error>("a draw of 1", [&] {
        sample_tokens(table.view().row_block(0, 1), {}, std::span(&draw, 1), std::span(&id, 1), workspace);
    });
    refused<config_error>("rotate without pairs", [&] {
        rotate(y.view(), rotary_table<float>{y.view(), y.view()}, rotary_pairs::none, false, {});
    });
}

void experts() {
    arena workspace(1 << 16);
    tensor<float> logits(2, 4), weights(2, 2);
    tensor<std::int32_t> indices(2, 2), table(3, 2);
    const std::array<std::int32_t, 6> entries{0, 1, 2, 3, 1, 1};
    std::copy(entries.begin(), entries.end(), table.data());
    router_config c{.n_experts = 4, .top_k = 2};
    std::vector<token_id> ids{0, 1};
    auto run = [&] {
        route<simd::native, float>(c, logits.view(), {.ids = ids, .hash_table = table.view()}, indices.view(),
                                   weights.view(), workspace, {});
    };
    fill(logits.view().row_block(1, 1), -std::numeric_limits<float>::infinity());
    refused<input_error>("logits of -inf", run);
    fill(logits.view(), 0.0F);
    c.choice = router_choice::hash_table;
    run();
    for (token_id bad : {-1, 3, 2}) { // the last has one expert twice
        ids[1] = bad;
        refused<input_error>("an id of a table of experts", run);
    }
    ids[1] = 1;
    table(1, 0) = 4;
    refused<input_error>("an expert of a table", run);
    c.top_k = 5;
    refused<config_error>("top_k above n_experts", run);
    indices(1, 1) = 4;
    refused<input_error>("a plan of experts that are not there",
                         [&] { plan_slots(indices.view(), {.n_experts = 4}, workspace, {}); });
}

void shapes_and_memory() {
    float x = 0;
    refused<config_error>("a negative shape", [&] { tensor_view<float>(&x, -1, 1); });
    refused<config_error>("a stride below the width", [&] { tensor_view<float>(&x, 2, 3, 2); });
    arena memory(1024);
    refused<config_error>("a negative take", [&] { memory.take<float>(-1); });
    refused<config_error>("a huge take", [&] { memory.take<float>(huge, 4); });
    refused<error>("a pop of nothing", [&] { memory.pop<float>(1); });
}

#if __has_include(<nlohmann/json.hpp>)
void files() {
    const std::string bytes = std::string("\x3b\0\0\0\0\0\0\0", 8) +
                              R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,9999999]}})";
    refused<input_error>("a tensor beyond its file", [&] {
        const io::safetensors file = io::from_memory(std::as_bytes(std::span(bytes)), "made up");
    });
    refused<input_error>("a missing file", [] { io::read("/no/such/file"); });
}
#else
void files() {}
#endif

} // namespace

int main() {
    tokens_batches_and_states();
    rows_routes_and_draws();
    experts();
    shapes_and_memory();
    files();
    std::printf("%d of %d refused\n", n_checked - n_accepted, n_checked);
    return n_accepted == 0 && n_checked > 40 ? 0 : 1;
}
