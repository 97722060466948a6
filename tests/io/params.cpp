#include "support/catch.hpp"
#include "support/scratch_path.hpp"
#include "support/toy_params.hpp"

#include <sluice/core/random.hpp>
#include <sluice/io/params.hpp>
#include <sluice/layers/compose.hpp>
#include <sluice/layers/linear.hpp>

#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

namespace io = sluice::io;
using sluice::arena;
using sluice::bf16;
using sluice::idx;
using sluice::param_name;
using sluice::role;
using sluice::tensor_view;
using sluice::test::toy_config;
using sluice::test::toy_params;

namespace {

template <class P>
void fill_all(P& p, float value) {
    sluice::each_param(
        [&]<class T>(const param_name&, role, const tensor_view<T>& t) {
            for (idx i = 0; i < t.rows(); ++i)
                for (idx j = 0; j < t.cols(); ++j) {
                    if constexpr (std::is_same_v<T, bf16>)
                        t(i, j) = bf16{static_cast<std::uint16_t>(value)};
                    else
                        t(i, j) = static_cast<T>(value);
                    ++value;
                }
        },
        p);
}

// A file, saved and read back.
class saved {
public:
    explicit saved(const io::safetensors_writer& writer)
        : path_(sluice::test::scratch_path("params").string()) {
        writer.save(path_);
        file_ = io::read(path_);
        std::filesystem::remove(path_);
    }
    const io::file& file() const { return file_; }
    const std::string& path() const { return path_; }

private:
    std::string path_;
    io::file file_;
};

template <class W>
void round_trip() {
    sluice::owned_params<toy_params<W>> p(toy_config{}), q(toy_config{});
    fill_all(p.view, 1);
    io::safetensors_writer writer;
    io::save_params(writer, "layers.0.", p.view);
    const saved s(writer);
    const io::safetensors file = s.file();
    CHECK(file.names() == std::vector<std::string>{"layers.0.bias", "layers.0.running", "layers.0.w_up"});
    CHECK(file.info("layers.0.bias").shape == std::vector<idx>{3});
    CHECK(file.info("layers.0.w_up").shape == std::vector<idx>{3, 5});
    CHECK(file.info("layers.0.running").shape == std::vector<idx>{1, 2});

    io::load_params(file, "layers.0.", q.view);
    CHECK(q.view.w_up(2, 4) == p.view.w_up(2, 4));
    CHECK(q.view.w_up(0, 1) == p.view.w_up(0, 1));
    CHECK(q.view.bias(0, 2) == p.view.bias(0, 2));
    CHECK(q.view.running(0, 1) == p.view.running(0, 1));

    arena dry;
    auto bound = toy_params<const W>::bind(dry, toy_config{});
    io::bind_params(file, "layers.0.", bound);
    CHECK(bound.w_up.data() == file.view<W>("layers.0.w_up").data());
    CHECK(bound.w_up(2, 4) == p.view.w_up(2, 4));
    CHECK(bound.running(0, 1) == p.view.running(0, 1));
}

io::safetensors_writer writer_of(const tensor_view<const float>& w_up, const tensor_view<const float>& bias) {
    io::safetensors_writer writer;
    writer.add("w_up", w_up);
    writer.add("bias", bias);
    return writer;
}

} // namespace

TEST_CASE("a set is saved loaded and bound") {
    round_trip<float>();
    round_trip<double>();
    round_trip<bf16>();
}

TEST_CASE("a file's tensors are bound from a config in one call") {
    sluice::owned_params<toy_params<bf16>> p(toy_config{});
    fill_all(p.view, 5);
    io::safetensors_writer writer;
    io::save_params(writer, "a.", p.view);
    const saved s(writer);
    const auto bound = io::bind<toy_params<const bf16>>(s.file(), "a.", toy_config{});
    CHECK(bound.w_up(1, 1) == p.view.w_up(1, 1));
    CHECK(bound.bias(0, 0) == p.view.bias(0, 0));
    CHECK_THROWS_AS((io::bind<toy_params<const bf16>>(s.file(), "b.", toy_config{})), sluice::input_error);
}

TEST_CASE("several sets share a file under their prefixes") {
    sluice::owned_params<toy_params<float>> p(toy_config{}), q(toy_config{});
    fill_all(p.view, 100);
    fill_all(q.view, 200);
    io::safetensors_writer writer;
    io::save_params(writer, "p.", p.view);
    io::save_params(writer, "q.", q.view);
    CHECK_THROWS_WITH(io::save_params(writer, "q.", q.view),
                      "safetensors_writer: the name \"q.w_up\" was added already");
    const saved s(writer);
    sluice::owned_params<toy_params<float>> r(toy_config{});
    io::load_params(s.file(), "q.", r.view);
    CHECK(r.view.w_up(0, 0) == 200);
    io::load_params(s.file(), "p.", r.view);
    CHECK(r.view.w_up(0, 0) == 100);
}

TEST_CASE("everything that does not fit is told and nothing is written") {
    const float memory[16] = {};
    const saved s(writer_of({memory, 3, 5}, {memory, 1, 4}));
    sluice::owned_params<toy_params<float>> p(toy_config{});
    fill_all(p.view, 1);
    const std::string message = s.path() +
                                ": 2 of 3 parameters do not fit: bias must be F32 1 x 3, is F32 [1, 4]; " +
                                "running is missing";
    CHECK_THROWS_AS(io::load_params(s.file(), "", p.view), sluice::input_error);
    CHECK_THROWS_WITH(io::load_params(s.file(), "", p.view), message);
    CHECK((p.view.w_up(0, 0) == 1 && p.view.bias(0, 0) == 16 && p.view.running(0, 0) == 19));

    arena dry;
    auto bound = toy_params<const float>::bind(dry, toy_config{});
    CHECK_THROWS_WITH(io::bind_params(s.file(), "", bound), message);
    CHECK((bound.w_up.data() == nullptr && bound.w_up.rows() == 3));
    CHECK_THROWS_WITH(
        io::load_params(s.file(), "x.", p.view),
        s.path() +
            ": 3 of 3 parameters do not fit: x.w_up is missing; x.bias is missing; x.running is missing");
}

TEST_CASE("types must be those of the set") {
    const float memory[16] = {};
    io::safetensors_writer writer = writer_of({memory, 3, 5}, {memory, 1, 3});
    writer.add("running", tensor_view<const float>(memory, 1, 2));
    const saved s(writer);
    sluice::owned_params<toy_params<double>> p(toy_config{});
    CHECK_THROWS_WITH(
        io::load_params(s.file(), "", p.view),
        s.path() + ": 3 of 3 parameters do not fit: w_up must be F64 3 x 5, is F32 [3, 5]; bias must be " +
            "F64 1 x 3, is F32 [1, 3]; running must be F64 1 x 2, is F32 [1, 2]");
    sluice::owned_params<toy_params<float>> q(toy_config{});
    CHECK_NOTHROW(io::load_params(s.file(), "", q.view));
    sluice::owned_params<toy_params<bf16>> r(toy_config{});
    CHECK_THROWS_WITH(io::load_params(s.file(), "", r.view),
                      s.path() + ": 1 of 3 parameters do not fit: w_up must be BF16 3 x 5, is F32 [3, 5]");
}

namespace {

struct many_params {
    std::vector<tensor_view<float>> tensors = std::vector<tensor_view<float>>(20);
    template <class F, class First>
    static void each(F& f, const param_name& at, First& first) {
        for (std::size_t i = 0; i < first.tensors.size(); ++i)
            f(param_name(at, static_cast<idx>(i)), role::matrix, first.tensors[i]);
    }
};

} // namespace

TEST_CASE("long lists are cut") {
    const saved s{io::safetensors_writer()};
    const many_params p;
    CHECK_THROWS_WITH(
        io::load_params(s.file(), "", p),
        s.path() + ": 20 of 20 parameters do not fit: 0 is missing; 1 is missing; 2 is missing; " +
            "3 is missing; 4 is missing; 5 is missing; 6 is missing; 7 is missing; and 12 more");
}

TEST_CASE("leading dimensions of a file's tensor are folded") {
    std::vector<float> memory(30);
    for (std::size_t i = 0; i < 30; ++i) memory[i] = static_cast<float>(i);
    io::safetensors_writer writer;
    writer.add("w_up", tensor_view<float>(memory.data(), 6, 5), {2, 3, 5});
    writer.add("bias", tensor_view<float>(memory.data(), 1, 6), {6});
    writer.add("running", tensor_view<float>(memory.data(), 1, 2), {1, 1, 2});
    const saved s(writer);
    const auto p = io::bind<toy_params<const float>>(s.file(), "", toy_config{.rows = 6});
    CHECK(p.w_up(5, 4) == 29);
}

TEST_CASE("tensors out of alignment can be loaded and not bound") {
    // One byte of header more than the writer would choose moves the data to an odd address.
    const std::string header =
        R"({"w_up":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},"bias":{"dtype":"F32","shape":[1],)"
        R"("data_offsets":[4,8]},"running":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})";
    std::string bytes(8, '\0');
    const std::size_t size = (header.size() + 63) / 64 * 64 + 57;
    bytes[0] = static_cast<char>(static_cast<unsigned char>(size));
    bytes[1] = static_cast<char>(static_cast<unsigned char>(size >> 8));
    bytes += header + std::string(size - header.size(), ' ') + std::string(16, '\0');
    const io::safetensors file = io::from_memory(std::as_bytes(std::span(bytes)), "odd");
    const toy_config config{.rows = 1, .cols = 1};
    sluice::owned_params<toy_params<float>> p(config);
    fill_all(p.view, 1);
    io::load_params(file, "", p.view);
    CHECK((p.view.w_up(0, 0) == 0 && p.view.running(0, 1) == 0));
    arena dry;
    auto bound = toy_params<const float>::bind(dry, config);
    const std::string odd = " is not aligned to 4 bytes in the file; use copy_to or copy_misaligned";
    CHECK_THROWS_WITH(io::bind_params(file, "", bound),
                      "odd: 3 of 3 parameters do not fit: w_up" + odd + "; bias" + odd + "; running" + odd);
    CHECK(bound.w_up.data() == nullptr);
}

namespace {

template <class W>
using toy_stack = sluice::stack_params<toy_params<W>>;
using toy_stack_config = sluice::stack_config<toy_config>;

} // namespace

TEST_CASE("stacks of layers are bound with memory for their views") {
    const toy_stack_config config{.n_layers = 3, .layer = {}};
    sluice::owned_params<toy_stack<float>> p(config);
    fill_all(p.view, 1);
    io::safetensors_writer writer;
    io::save_params(writer, "m.", p.view);
    const saved s(writer);
    io::bound_params<toy_stack<const float>> first(s.file(), "m.", config);
    const io::bound_params<toy_stack<const float>> bound(std::move(first));
    REQUIRE(bound.view.layers.size() == 3);
    for (std::size_t i = 0; i < 3; ++i) {
        CHECK(bound.view.layers[i].w_up(2, 4) == p.view.layers[i].w_up(2, 4));
        CHECK(bound.view.layers[i].w_up.data() ==
              bound.source.view<float>("m." + std::to_string(i) + ".w_up").data());
    }
    CHECK_THROWS_WITH((io::bind<toy_stack<const float>>(s.file(), "m.", config)),
                      "io::bind: the number of layers is known at run time only; use io::bound_params");
    CHECK_THROWS_WITH(
        (io::bound_params<toy_stack<const float>>(s.file(), "m.",
                                                  toy_stack_config{.n_layers = 4, .layer = {}})),
        s.path() +
            ": 3 of 12 parameters do not fit: m.3.w_up is missing; m.3.bias is missing; m.3.running is "
            "missing");
    CHECK(io::bound_params<toy_stack<const float>>(s.file(), "x.", toy_stack_config{}).view.layers.empty());
}

TEST_CASE("configs with absurd sizes are refused without memory or delay") {
    const saved s{io::safetensors_writer()};
    auto said = [&](idx n_layers, const toy_config& layer) {
        try {
            (void)io::bound_params<toy_stack<const float>>(
                s.file(), "", toy_stack_config{.n_layers = n_layers, .layer = layer});
        } catch (const sluice::error& e) {
            return std::string(e.what());
        }
        return std::string();
    };
    const std::string few = s.path() + ": holds 0 tensors, too few for the layers that the config asks for";
    CHECK(said(1000, {}) == few);
    CHECK(said(idx{1} << 40, {}) == few);
    CHECK(said(idx{1} << 55, {}) != "");
    CHECK(said(std::numeric_limits<idx>::max(), {}) != "");
    CHECK(said(-1, {}) == "stack: n_layers must not be negative");
    CHECK(said(1, {.rows = idx{1} << 62, .cols = 4}) == "arena: 4611686018427387904 x 4 is no shape");
    CHECK(said(1, {.rows = -1, .cols = 4}) == "arena: -1 x 4 is no shape");
    CHECK(said(1, {.rows = std::numeric_limits<idx>::max(), .cols = 1}) != "");
    using sluice::params_bytes;
    const std::size_t one = params_bytes<toy_params<float>>(toy_config{});
    CHECK(params_bytes<toy_stack<float>>(toy_stack_config{.n_layers = idx{1} << 40, .layer = {}}) >=
          (std::size_t{1} << 40) * one);
}

TEST_CASE("packed matrices are saved as they lie in memory, and bound in place") {
    using sluice::in_float;
    using sluice::packed;
    auto check = [](auto tag, const std::string& storage) {
        using S = decltype(tag);
        const sluice::linear_config config{.d_in = 40, .d_out = 33, .bias = true};
        sluice::owned_params<sluice::linear_params<float>> weights(config);
        initialise(weights.view, config, sluice::random_source(3));
        fill(weights.view.bias, 0.5F);
        arena memory(sluice::params_bytes<sluice::linear_params<packed<S>>>(config));
        const auto p = sluice::pack_params<sluice::linear_params<packed<S>>>(weights.view, config, memory);
        io::safetensors_writer writer;
        io::save_params(writer, "head.", p);
        const saved s(writer);
        const io::safetensors file = s.file();
        const std::string name = "head.w." + storage;
        REQUIRE(file.contains(name));
        CHECK(file.metadata().at(name) == "33 x 40");
        using bound_type = sluice::linear_params<const packed<S>>;
        const auto bound = io::bind<bound_type>(file, "head.", config);
        const auto bytes = static_cast<std::size_t>(tensor_view<packed<S>>::elements(33, 40)) *
                           sizeof(typename tensor_view<packed<S>>::element);
        CHECK(std::memcmp(bound.w.data(), p.w.data(), bytes) == 0);
        CHECK(bound.w.rows() == 33);
        CHECK(bound.bias(0, 32) == 0.5F);
        arena copied_memory(sluice::params_bytes<sluice::linear_params<packed<S>>>(config));
        const auto copied = sluice::linear_params<packed<S>>::bind(copied_memory, config);
        io::load_params(file, "head.", copied);
        CHECK(std::memcmp(copied.w.data(), p.w.data(), bytes) == 0);
        const auto said = [&](const sluice::linear_config& other) {
            try {
                (void)io::bind<bound_type>(file, "head.", other);
            } catch (const sluice::error& e) {
                return std::string(e.what());
            }
            return std::string();
        };
        // the same panels, but another matrix
        CHECK(said({.d_in = 40, .d_out = 34, .bias = false}) ==
              s.path() + ": 1 of 1 parameters do not fit: " + name +
                  " must be of a matrix of 34 x 40, is of one of 33 x 40");
        CHECK_THROWS_WITH((io::bind<sluice::linear_params<const float>>(file, "head.", config)),
                          s.path() + ": 1 of 2 parameters do not fit: head.w is missing");
    };
    check(float{}, "packed_f32");
    check(bf16{}, "packed_bf16");
    check(sluice::half{}, "packed_f16");
    check(sluice::int8_row{}, "int8_row");
    check(sluice::int8_block{}, "int8_block");
    check(sluice::int4_block{}, "int4_block");
    check(sluice::int4_block_min{}, "int4_block_min");
    check(sluice::f8_block{}, "f8_block");
    check(in_float<sluice::int4_block_min>{}, "int4_block_min");
}
