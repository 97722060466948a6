#include "oracles/moe_block.hpp"
#include "support/catch.hpp"
#include "support/scratch_folder.hpp"

#include <cmath>

namespace io = sluice::io;
namespace presets = sluice::moe_presets;
using io::moe_naming;
using sluice::arena;
using sluice::bf16;
using sluice::f8_e4m3;
using sluice::half;
using sluice::idx;
using sluice::moe_config;
using sluice::moe_params;
using sluice::moe_sizes;
using sluice::tensor_view;
using sluice::test::complaint;
using sluice::test::loaded_moe;
using sluice::test::moe_block;
using sluice::test::published_moes;

namespace {

// Collects tensors whose elements count up, of any type, and makes a file of them.
class made_file {
public:
    template <class T = float>
    made_file& add(const std::string& name, std::vector<idx> shape) {
        std::vector<std::byte> bytes;
        const io::tensor_info info{dtype_for<T>(), shape, {}};
        for (idx i = 0; i < info.rows() * info.cols(); ++i) append(bytes, number<T>(i));
        return add(name, dtype_for<T>(), std::move(shape), std::move(bytes));
    }
    made_file& add(const std::string& name, io::dtype type, std::vector<idx> shape,
                   std::vector<std::byte> bytes) {
        tensors_[name] = {type, std::move(shape), std::move(bytes)};
        return *this;
    }
    made_file& drop(const std::string& name) {
        tensors_.erase(name);
        return *this;
    }
    // With a header that makes all tensors lie `off` bytes behind a multiple of 64.
    io::safetensors make(std::size_t off = 0) const {
        const sluice::test::scratch_folder folder("checkpoints");
        io::safetensors_writer writer;
        for (const auto& [name, t] : tensors_) writer.add_bytes(name, t.type, t.shape, t.bytes);
        const std::string path = folder / "f";
        writer.save(path);
        std::string text = sluice::test::get(path);
        if (off > 0) { // blanks behind the header's JSON
            std::uint64_t n = 0;
            std::memcpy(&n, text.data(), 8);
            text.insert(8 + n, off, ' ');
            n += off;
            std::memcpy(text.data(), &n, 8);
        }
        return io::from_memory(sluice::test::bytes_of(text), "f");
    }

private:
    struct entry {
        io::dtype type;
        std::vector<idx> shape;
        std::vector<std::byte> bytes;
    };
    template <class T>
    static io::dtype dtype_for() {
        return io::dtype_of<T>;
    }
    template <class T>
    static T number(idx i) {
        const auto x = static_cast<float>(i) / 4;
        if constexpr (std::is_same_v<T, bf16>)
            return sluice::to_bf16(x);
        else if constexpr (std::is_same_v<T, half>)
            return sluice::to_half(x);
        else if constexpr (std::is_same_v<T, f8_e4m3>)
            return {static_cast<std::uint8_t>(i * 37 % 126)};
        else
            return static_cast<T>(x);
    }
    template <class T>
    static void append(std::vector<std::byte>& bytes, T value) {
        const auto* at = reinterpret_cast<const std::byte*>(&value);
        bytes.insert(bytes.end(), at, at + sizeof(T));
    }
    std::map<std::string, entry> tensors_;
};

// Element n of a tensor of made_file.
double counted(idx n) { return static_cast<double>(n) / 4; }

constexpr idx d = 5, f = 3, experts = 2;
const moe_sizes sizes{.d_model = d, .d_ff = f, .n_experts = experts, .top_k = 1};

template <class T = float>
made_file mixtral_file() {
    made_file file;
    const std::string at = "model.layers.0.block_sparse_moe.";
    file.add<T>(at + "gate.weight", {experts, d});
    for (const std::string e : {"0", "1"}) {
        file.add<T>(at + "experts." + e + ".w1.weight", {f, d});
        file.add<T>(at + "experts." + e + ".w2.weight", {d, f});
        file.add<T>(at + "experts." + e + ".w3.weight", {f, d});
    }
    return file;
}
constexpr std::string_view layer = "model.layers.0.";
const std::string below = "model.layers.0.block_sparse_moe.";

template <class P>
loaded_moe<P> load(const io::safetensors& file, moe_naming naming, const moe_config& config,
                   std::string_view prefix = layer) {
    return {file, naming, prefix, config};
}
std::string problem(const made_file& file, moe_naming naming, const moe_config& config) {
    return complaint([&] { load<moe_params<const float>>(file.make(), naming, config); });
}

// Calls check(i, j, value) for the elements of a matrix.
template <class T, class F>
void each_element(const tensor_view<T>& t, F&& check) {
    for (idx i = 0; i < t.rows(); ++i)
        for (idx j = 0; j < t.cols(); ++j) {
            if constexpr (sluice::real<std::remove_const_t<T>>)
                check(i, j, static_cast<double>(t(i, j)));
            else
                check(i, j, static_cast<double>(sluice::to_float(t(i, j))));
        }
}

} // namespace

TEST_CASE("blocks that transformers computed") {
    for (const auto& m : published_moes) {
        INFO(m.name);
        const std::string path = SLUICE_TEST_DIR "/data/moe_" + std::string(m.name) + ".safetensors";
        const moe_block block(io::read(path));
        const auto errors = sluice::test::errors_of(block);
        CHECK(errors.size() > 10);
        for (const auto& [name, error] : errors) {
            INFO(name);
            CHECK(error <= 2e-6);
        }
        // The same with weights a thousandth larger is told apart.
        moe_block wrong(io::read(path));
        wrong.config.router.weights.scale *= 1.001;
        CHECK(sluice::test::errors_of(wrong).at("y") > 1e-4);
    }
}

TEST_CASE("matrices of single experts are views of the file") {
    const auto config = presets::mixtral(sizes);
    const auto file = mixtral_file().make();
    const auto w = load<moe_params<const float>>(file, moe_naming::mixtral, config);
    CHECK(w.view.router.data() == file.view<float>(below + "gate.weight").data());
    REQUIRE(w.view.experts.size() == experts);
    CHECK(w.view.experts[1].w_gate.data() == file.view<float>(below + "experts.1.w1.weight").data());
    CHECK(w.view.experts[1].w_up.data() == file.view<float>(below + "experts.1.w3.weight").data());
    CHECK(w.view.experts[0].w_down.data() == file.view<float>(below + "experts.0.w2.weight").data());
    arena views;
    (void)views.take<sluice::feed_forward_params<const float>>(experts);
    CHECK(w.memory.capacity() == views.bytes()); // nothing else is taken
    // parameters that will be written are copies
    const auto own = load<moe_params<float>>(file, moe_naming::mixtral, config);
    CHECK(own.view.experts[1].w_up.data() != file.view<float>(below + "experts.1.w3.weight").data());
    each_element(own.view.experts[1].w_up, [](idx i, idx j, double x) { CHECK(x == counted(i * d + j)); });
}

TEST_CASE("fused files are views, transposed ones copies") {
    const std::string names[]{"mlp.gate.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"};
    auto at = [](const std::string& name) { return std::string(layer) + name; };
    const auto fused = made_file()
                           .add(at(names[0]), {experts, d})
                           .add(at(names[1]), {experts, 2 * f, d})
                           .add(at(names[2]), {experts, d, f})
                           .make();
    for (const auto naming : {moe_naming::mixtral, moe_naming::olmoe}) {
        const auto w = load<moe_params<const float>>(fused, naming, presets::mixtral(sizes));
        for (idx e = 0; e < experts; ++e) {
            const auto& x = w.view.experts[static_cast<std::size_t>(e)];
            const float* const first = fused.view<float>(at(names[1])).data() + e * 2 * f * d;
            CHECK(x.w_gate.data() == first);
            CHECK(x.w_up.data() == first + f * d);
            CHECK(x.w_down.data() == fused.view<float>(at(names[2])).data() + e * d * f);
            CHECK(x.w_down.contiguous());
        }
    }
    // gpt-oss: element (i, j) of the gate is (e, j, 2 i), of up (e, j, 2 i + 1), of down (e, j, i)
    const auto oss = made_file()
                         .add(at("mlp.router.weight"), {experts, d})
                         .add(at("mlp.router.bias"), {experts})
                         .add(at("mlp.experts.gate_up_proj"), {experts, d, 2 * f})
                         .add(at("mlp.experts.gate_up_proj_bias"), {experts, 2 * f})
                         .add(at("mlp.experts.down_proj"), {experts, f, d})
                         .add(at("mlp.experts.down_proj_bias"), {experts, d})
                         .make();
    moe_sizes clamped = sizes;
    clamped.clamp = 7;
    const auto w = load<moe_params<const float>>(oss, moe_naming::gpt_oss, presets::gpt_oss(clamped));
    for (idx e = 0; e < experts; ++e) {
        const auto& x = w.view.experts[static_cast<std::size_t>(e)];
        auto inner = [&](idx second) {
            return
                [=](idx i, idx j, double v) { CHECK(v == counted(((e * d) + j) * 2 * f + 2 * i + second)); };
        };
        each_element(x.w_gate, inner(0));
        each_element(x.w_up, inner(1));
        each_element(x.w_down, [&](idx i, idx j, double v) { CHECK(v == counted((e * f + j) * d + i)); });
        each_element(x.b_gate, [&](idx, idx j, double v) { CHECK(v == counted(e * 2 * f + 2 * j)); });
        each_element(x.b_up, [&](idx, idx j, double v) { CHECK(v == counted(e * 2 * f + 2 * j + 1)); });
        each_element(x.b_down, [&](idx, idx j, double v) { CHECK(v == counted(e * d + j)); });
        CHECK(x.b_down.data() == oss.view<float>(at("mlp.experts.down_proj_bias")).data() + e * d);
    }
    CHECK(w.view.router_bias.data() == oss.view<float>(at("mlp.router.bias")).data());
}

TEST_CASE("types are converted where they differ") {
    const auto config = presets::mixtral(sizes);
    auto check = [&]<class S, class W>(S*, W*) {
        const auto file = mixtral_file<S>().make();
        const auto w = load<moe_params<W>>(file, moe_naming::mixtral, config);
        const auto same = [](idx i, idx j, double x) { CHECK(x == counted(i * d + j)); }; // all are exact
        each_element(w.view.router, same);
        each_element(w.view.experts[1].w_up, same);
        each_element(w.view.experts[0].w_down,
                     [](idx i, idx j, double x) { CHECK(x == counted(i * f + j)); });
        if constexpr (std::is_same_v<const S, W>)
            CHECK(w.view.experts[1].w_up.data() ==
                  file.template view<S>(below + "experts.1.w3.weight").data());
    };
    auto from = [&]<class S>(S* s) {
        check(s, static_cast<float*>(nullptr));
        check(s, static_cast<const float*>(nullptr));
        check(s, static_cast<const double*>(nullptr));
        check(s, static_cast<const bf16*>(nullptr));
        check(s, static_cast<const half*>(nullptr));
    };
    from(static_cast<float*>(nullptr));
    from(static_cast<double*>(nullptr));
    from(static_cast<bf16*>(nullptr));
    from(static_cast<half*>(nullptr));
}

TEST_CASE("tensors that are not aligned are copied") {
    for (const std::size_t off : {1U, 2U, 4U}) {
        const auto file = mixtral_file().make(off);
        const auto w = load<moe_params<const float>>(file, moe_naming::mixtral, presets::mixtral(sizes));
        const auto& t = w.view.experts[1].w_up;
        each_element(t, [](idx i, idx j, double x) { CHECK(x == counted(i * d + j)); });
        const auto* const place = file.info(below + "experts.1.w3.weight").bytes.data();
        CHECK((reinterpret_cast<const std::byte*>(t.data()) == place) == (off == 4));
    }
}

TEST_CASE("blocks of eight bits are multiplied by their factors") {
    constexpr idx width = 140, inner = 130;
    moe_sizes large{.d_model = width,
                    .d_ff = inner,
                    .n_experts = 1,
                    .top_k = 1,
                    .shared_d_ff = inner,
                    .groups = {1, 1},
                    .scale = 2.5};
    made_file made;
    const std::string mlp = std::string(layer) + "mlp.";
    made.add<bf16>(mlp + "gate.weight", {1, width}).add(mlp + "gate.e_score_correction_bias", {1});
    for (const std::string at : {"experts.0.", "shared_experts."})
        for (const std::string part : {"gate_proj", "up_proj", "down_proj"}) {
            const bool down = part == "down_proj";
            const std::string name = mlp + at + part + ".weight";
            made.add<f8_e4m3>(name, {down ? width : inner, down ? inner : width});
            made.add(name + "_scale_inv", {2, 2});
        }
    const auto config = presets::deepseek_v3(large);
    const auto file = made.make();
    const auto w = load<moe_params<const float>>(file, moe_naming::deepseek_v3, config);
    auto check = [&](const auto& t) {
        const idx cols = t.cols();
        idx wrong = 0;
        each_element(t, [&](idx i, idx j, double x) {
            const f8_e4m3 stored{static_cast<std::uint8_t>((i * cols + j) * 37 % 126)};
            const double factor = counted(i / 128 * 2 + j / 128);
            wrong += x != static_cast<double>(sluice::to_float(stored)) * factor;
        });
        CHECK(wrong == 0);
    };
    check(w.view.experts[0].w_gate);
    check(w.view.experts[0].w_down);
    check(w.view.shared.w_up);
    check(w.view.shared.w_down);
    each_element(load<moe_params<const bf16>>(file, moe_naming::deepseek_v3, config).view.shared.w_up,
                 [&](idx i, idx j, double x) {
                     if (i % 16 != 0) return;
                     const auto exact = static_cast<double>(w.view.shared.w_up(i, j));
                     CHECK(std::abs(x - exact) <= std::abs(exact) / 256);
                 });

    auto broken = [&](auto change) {
        made_file copy = made;
        change(copy);
        return problem(copy, moe_naming::deepseek_v3, config);
    };
    const std::string name = mlp + "experts.0.up_proj.weight";
    CHECK(broken([&](made_file& m) { m.drop(name + "_scale_inv"); }) ==
          "f: 1 of 14 parameters do not fit: " + name + "_scale_inv is missing");
    CHECK(broken([&](made_file& m) {
              m.add(name + "_scale_inv", {1, 2});
          }) == "f: 1 of 14 parameters do not fit: " + name + "_scale_inv must be F32 [2, 2], is F32 [1, 2]");
    CHECK(broken([&](made_file& m) {
              m.add<double>(name + "_scale_inv", {2, 2});
          }) == "f: 1 of 14 parameters do not fit: " + name + "_scale_inv must be F32 [2, 2], is F64 [2, 2]");
    CHECK(broken([&](made_file& m) {
              m.add<f8_e4m3>(mlp + "gate.weight", {1, width});
          }) == "f: 1 of 14 parameters do not fit: " + mlp +
                    "gate.weight must be of a floating-point type, is F8_E4M3 [1, 140]");
    // the scale of a matrix that is none of eight bits
    CHECK(broken([&](made_file& m) {
              m.add(name, {inner, width});
          }) == "f: 1 of 14 parameters do not fit: " + name + "_scale_inv is F32 [2, 2] and not asked for");
}

TEST_CASE("everything that does not fit is listed") {
    const auto config = presets::mixtral(sizes);
    auto broken = [&](auto change) {
        made_file file = mixtral_file();
        change(file);
        return problem(file, moe_naming::mixtral, config);
    };
    CHECK(broken([](made_file&) {}).empty());
    CHECK(broken([](made_file& m) {
              m.drop(below + "experts.1.w3.weight").add(below + "experts.0.w2.weight", {f, d});
          }) == "f: 2 of 7 parameters do not fit: " + below +
                    "experts.0.w2.weight must be [5, 3], is F32 [3, 5]; " + below +
                    "experts.1.w3.weight is missing");
    CHECK(broken([](made_file& m) {
              m.add<std::int8_t>(below + "gate.weight", {experts, d});
          }) == "f: 1 of 7 parameters do not fit: " + below +
                    "gate.weight must be of a floating-point type, is I8 [2, 5]");
    CHECK(broken([](made_file& m) {
              m.add(below + "gate.weight", {d, experts});
          }) == "f: 1 of 7 parameters do not fit: " + below + "gate.weight must be [2, 5], is F32 [5, 2]");
    CHECK(broken([](made_file& m) {
              m.add(below + "gate.weight", {1, experts, d});
          }) == "f: 1 of 7 parameters do not fit: " + below + "gate.weight must be [2, 5], is F32 [1, 2, 5]");
    // what the config leaves out would be wrong results
    CHECK(broken([](made_file& m) { m.add(below + "gate.bias", {experts}); }) ==
          "f: 1 of 8 parameters do not fit: " + below + "gate.bias is F32 [2] and not asked for");
    CHECK(broken([](made_file& m) {
              m.add(below + "experts.2.w1.weight", {f, d});
          }) == "f: 1 of 8 parameters do not fit: " + below +
                    "experts.2.w1.weight is F32 [3, 5] and not asked for");
    CHECK(broken([](made_file& m) { m.add("model.layers.0.self_attn.q_proj.weight", {f, d}); }).empty());
    CHECK(broken([](made_file& m) { m.add("model.layers.00.block_sparse_moe.x", {f, d}); }).empty());
    // files of four bits have other names
    moe_sizes clamped = sizes;
    clamped.clamp = 7;
    const std::string mlp = std::string(layer) + "mlp.";
    CHECK(problem(made_file()
                      .add(mlp + "router.weight", {experts, d})
                      .add(mlp + "router.bias", {experts})
                      .add<std::uint8_t>(mlp + "experts.gate_up_proj_blocks", {experts, 2 * f, 1, 16})
                      .add(mlp + "experts.gate_up_proj_bias", {experts, 2 * f})
                      .add(mlp + "experts.down_proj", {experts, f, d})
                      .add(mlp + "experts.down_proj_bias", {experts, d}),
                  moe_naming::gpt_oss, presets::gpt_oss(clamped)) ==
          "f: 2 of 7 parameters do not fit: " + mlp + "experts.gate_up_proj is missing; " + mlp +
              "experts.gate_up_proj_blocks is U8 [2, 6, 1, 16] and not asked for");
}

TEST_CASE("a config of another model is refused") {
    const auto file = mixtral_file().make();
    auto refused = [&](moe_naming naming, auto change) {
        moe_config c = presets::mixtral(sizes);
        change(c);
        try {
            load<moe_params<const float>>(file, naming, c);
        } catch (const sluice::config_error& e) {
            return std::string(e.what());
        } catch (const sluice::input_error&) {
            return std::string("the file");
        }
        return std::string();
    };
    using enum moe_naming;
    const std::string no = "io::load_moe, mixtral: files of this model have no ";
    CHECK(refused(mixtral, [](moe_config&) {}).empty());
    CHECK(refused(mixtral, [](moe_config& c) { c.router_bias = true; }) == no + "router bias");
    CHECK(refused(mixtral, [](moe_config& c) { c.router.selection_bias = true; }) == no + "selection bias");
    CHECK(refused(mixtral, [](moe_config& c) { c.shared_d_ff = 2; }) == no + "shared expert");
    CHECK(refused(mixtral, [](moe_config& c) { c.gate = sluice::shared_gate::sigmoid; }) ==
          no + "gate of the shared expert");
    CHECK(refused(mixtral, [](moe_config& c) { c.expert.bias = true; }) == no + "biases of experts");
    CHECK(refused(mixtral, [](moe_config& c) { c.expert.kind = sluice::feed_forward_kind::relu; }) ==
          "io::load_moe, mixtral: the experts are gated");
    CHECK(refused(switch_transformer, [](moe_config&) {}) ==
          "io::load_moe, switch_transformer: the experts of this model are not gated");
    CHECK(refused(mixtral, [](moe_config& c) { c.d_model = 0; }) ==
          "io::load_moe, mixtral: d_model must be positive, is 0");
    CHECK(refused(mixtral, [](moe_config& c) { c.expert.d_ff = -1; }) ==
          "io::load_moe, mixtral: d_ff must be positive, is -1");
    CHECK(refused(mixtral, [](moe_config& c) { c.router.n_identity = 1; }) ==
          "io::load_moe, mixtral: n_experts must be 1 to 16777216, n_identity and n_null 0");
    for (const auto naming : {granite, dbrx, llama4, qwen3_moe})
        CHECK(refused(naming, [](moe_config&) {}) == "the file");
}

TEST_CASE("sizes that no file has are refused at once") {
    const auto file = mixtral_file().make();
    for (const auto naming : {moe_naming::mixtral, moe_naming::granite, moe_naming::dbrx}) {
        moe_config c = presets::mixtral(sizes);
        c.router.n_experts = idx{1} << 24;
        CHECK_THROWS_AS(load<moe_params<const float>>(file, naming, c), sluice::input_error);
        c.d_model = c.expert.d_ff = idx{1} << 40;
        CHECK_THROWS_AS(load<moe_params<const float>>(file, naming, c), sluice::config_error);
        c.router.n_experts = 1;
        c.d_model = c.expert.d_ff = idx{1} << 30; // 2^61 elements
        CHECK_THROWS_AS(load<moe_params<const float>>(file, naming, c), sluice::input_error);
    }
}

TEST_CASE("too little memory is told before any is taken") {
    const auto file = mixtral_file<bf16>().make();
    const auto config = presets::mixtral(sizes);
    arena dry;
    using params = moe_params<const float>;
    (void)io::load_moe<params>(file, moe_naming::mixtral, layer, config, dry);
    arena exact(dry.bytes()), small(dry.bytes() - 1);
    (void)io::load_moe<params>(file, moe_naming::mixtral, layer, config, exact);
    CHECK(exact.used() == dry.bytes());
    CHECK_THROWS_AS(io::load_moe<params>(file, moe_naming::mixtral, layer, config, small),
                    sluice::capacity_error);
    CHECK(small.used() == 0);
}

TEST_CASE("a table of experts by token is read") {
    const std::string name = "ffn.gate.tid2eid", at = std::string(layer) + name;
    auto table_of = [&](const io::safetensors& file, moe_naming naming = moe_naming::deepseek_v4) {
        arena dry;
        const auto shape = io::load_hash_table(file, naming, layer, dry);
        arena memory(dry.bytes());
        const auto table = io::load_hash_table(file, naming, layer, memory);
        CHECK((shape.rows() == table.rows() && shape.cols() == table.cols()));
        std::vector<int> values;
        for (idx i = 0; i < table.size(); ++i) values.push_back(table(i / table.cols(), i % table.cols()));
        return values;
    };
    auto integers = [](auto... value) {
        std::vector<std::byte> bytes;
        auto append = [&](auto v) {
            const auto* from = reinterpret_cast<const std::byte*>(&v);
            bytes.insert(bytes.end(), from, from + sizeof v);
        };
        (append(value), ...);
        return bytes;
    };
    const std::vector<int> want{3, 0, -1, 7, 2, 5};
    const auto wide = [&](std::int64_t last) {
        return integers(std::int64_t{3}, std::int64_t{0}, std::int64_t{-1}, std::int64_t{7}, std::int64_t{2},
                        last);
    };
    CHECK(table_of(made_file().add(at, io::dtype::i64, {3, 2}, wide(5)).make()) == want);
    made_file narrow;
    narrow.add(at, io::dtype::i32, {3, 2}, integers(3, 0, -1, 7, 2, 5));
    CHECK(table_of(narrow.make()) == want);
    CHECK(table_of(narrow.make(1)) == want);
    arena none;
    const auto file = narrow.make();
    CHECK(io::load_hash_table(file, moe_naming::deepseek_v4, layer, none).data() ==
          file.view<std::int32_t>(at).data());
    CHECK(complaint([&] {
              table_of(made_file().add(at, io::dtype::i64, {3, 2}, wide(std::int64_t{1} << 32)).make());
          }) == "f: " + at + " holds 4294967296 in row 2");
    CHECK(complaint([&] {
              table_of(made_file().add(at, {3, 2}).make());
          }) == "f: " + at + " must be a matrix of I64 or I32, is F32 [3, 2]");
    CHECK(complaint([&] { table_of(made_file().add(at, io::dtype::i64, {6}, wide(5)).make()); }) ==
          "f: " + at + " must be a matrix of I64 or I32, is I64 [6]");
    CHECK(complaint([&] { table_of(made_file().make()); }) == "f: no tensor \"" + at + "\"");
    CHECK_THROWS_AS(table_of(narrow.make(), moe_naming::deepseek_v3), sluice::config_error);
}
