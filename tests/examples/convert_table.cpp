// Runs the program that makes Engram's tables smaller or cuts them. Built where it is.
#include "support/catch.hpp"

#if defined(SLUICE_CONVERT_TABLE) && !defined(_WIN32)

#    include "support/check.hpp"
#    include "support/process.hpp"
#    include "support/random_data.hpp"

#    include <sluice/core/tensor.hpp>
#    include <sluice/io/safetensors_writer.hpp>
#    include <sluice/ops/table.hpp>

using namespace sluice::test;
using sluice::idx;
using sluice::tensor;
using sluice::tensor_view;
namespace io = sluice::io;

namespace {

constexpr idx rows = 70, cols = 40, parts = 2; // of fp8, each with a scale

outcome run(const scratch_folder& folder, const arguments& args) {
    return process(SLUICE_CONVERT_TABLE, folder / "", args).wait();
}
template <class T>
idx different(const tensor<T>& want, idx first, const tensor_view<const T>& got) {
    idx wrong = 0;
    for (idx i = 0; i < got.rows(); ++i)
        for (idx j = 0; j < got.cols(); ++j)
            wrong += std::memcmp(&want(first + i, j), &got(i, j), sizeof(T)) != 0;
    return wrong;
}

// The table "t" of the files that a run leaves, against the same table made at once in memory.
struct stored {
    tensor<sluice::bf16> narrow{rows, cols};
    tensor<std::int8_t> bytes{rows, cols};
    tensor<float> byte_scales{rows, 1};
    tensor<sluice::f8_e4m3> small{rows, cols};
    tensor<sluice::f8_e8m0> small_scales{rows, parts};

    explicit stored(sluice::in<float> x) {
        store_rows(x, narrow.view(), 0);
        store_rows(x, sluice::scaled_table<std::int8_t, float>{bytes.view(), byte_scales.view()}, 0);
        store_rows(
            x, sluice::scaled_table<sluice::f8_e4m3, sluice::f8_e8m0>{small.view(), small_scales.view()}, 0);
    }
    idx wrong(const tensor<float>& x, const io::safetensors& file, const std::string& type, idx first) const {
        if (type == "f32") return different(x, first, file.view<float>("t"));
        if (type == "bf16") return different(narrow, first, file.view<sluice::bf16>("t"));
        if (type == "int8")
            return different(bytes, first, file.view<std::int8_t>("t")) +
                   different(byte_scales, first, file.view<float>("t_scale"));
        return different(small, first, file.view<sluice::f8_e4m3>("t")) +
               different(small_scales, first, file.view<sluice::f8_e8m0>("t_scale"));
    }
};

} // namespace

TEST_CASE("a table in every type, whole and in shards, is what store_rows makes of it",
          "[examples][convert_table]") {
    const scratch_folder folder("convert_table");
    tensor<float> x(rows, cols);
    fill_uniform(x.view(), 1);
    const stored want(x);
    io::safetensors_writer out;
    out.add("t", tensor_view<const float>(x.view()));
    out.save(folder / "in.safetensors");
    for (const std::string type : {"f32", "bf16", "int8", "fp8"})
        for (const idx shards : {1, 3, 100}) {
            CAPTURE(type, shards);
            const outcome o = run(folder, {folder / "in.safetensors", "t", folder / "out.safetensors", type,
                                           std::to_string(shards)});
            INFO(o.err);
            REQUIRE(o.status == 0);
            idx found = 0;
            for (idx shard = 0; shard < shards; ++shard) {
                const io::safetensors file(
                    io::read(folder / (shards == 1 ? "out.safetensors"
                                                   : "out." + std::to_string(shard) + ".safetensors")));
                CHECK(file.metadata().at("first_row") == std::to_string(found));
                CHECK(want.wrong(x, file, type, found) == 0);
                found += file.info("t").rows();
            }
            CHECK(found == rows);
        }
    // from bf16, which is exact in f32
    const arguments again{folder / "out.safetensors", "t", folder / "wide.safetensors", "f32"};
    REQUIRE(run(folder, {folder / "in.safetensors", "t", folder / "out.safetensors", "bf16"}).status == 0);
    REQUIRE(run(folder, again).status == 0);
    const io::safetensors wide(io::read(folder / "wide.safetensors"));
    idx wrong = 0;
    for (idx i = 0; i < rows; ++i)
        for (idx j = 0; j < cols; ++j)
            wrong += wide.view<float>("t")(i, j) != sluice::to_float(want.narrow(i, j));
    CHECK(wrong == 0);
}

TEST_CASE("tables that cannot be converted are refused in one line", "[examples][convert_table]") {
    const scratch_folder folder("convert_table");
    const std::string in = folder / "in.safetensors", to = folder / "out.safetensors";
    tensor<float> x(3, 4);
    fill_uniform(x.view(), 1);
    tensor<std::int8_t> bytes(3, 4);
    io::safetensors_writer out;
    out.add("t", tensor_view<const float>(x.view()));
    out.add("bytes", tensor_view<const std::int8_t>(bytes.view()));
    x(1, 2) = std::numeric_limits<float>::quiet_NaN();
    out.save(in); // which reads x now
    const auto said = [&](const arguments& args) {
        const outcome o = run(folder, args);
        CHECK(o.status == 2);
        CHECK(o.err.find('\n') == o.err.size() - 1);
        return o.err;
    };
    CHECK_THAT(said({in, "t", to}), contains_text("type is required"));
    CHECK_THAT(said({in, "t", to, "int3"}), contains_text("int3"));
    CHECK_THAT(said({in, "t", to, "bf16", "0"}), contains_text("shards"));
    CHECK_THAT(said({in, "t", to, "bf16", "2x"}), contains_text("shards"));
    CHECK_THAT(said({in, "none", to, "bf16"}), contains_text("none"));
    CHECK_THAT(said({in, "bytes", to, "bf16"}), contains_text("bytes"));
    CHECK_THAT(said({folder / "no.safetensors", "t", to, "bf16"}),
               contains_text("no.safetensors: cannot be opened"));
    CHECK_THAT(said({in, "t", to, "int8"}), contains_text("row 1 holds a number that is not finite"));
    CHECK(!std::filesystem::exists(to)); // nothing is left half written
}
#endif
