#include "support/catch.hpp"

#if __has_include(<nlohmann/json.hpp>)
#    include "support/check.hpp"
#    include "support/message_of.hpp"
#    include "support/random_data.hpp"
#    include "support/scratch_folder.hpp"

#    include <sluice/core/convert.hpp>
#    include <sluice/core/tensor.hpp>
#    include <sluice/io/row_file.hpp>
#    include <sluice/io/safetensors_writer.hpp>
#    include <sluice/layers/engram.hpp>
#    include <sluice/ops/table_ring.hpp>

#    include <vector>

using namespace sluice::test;
using sluice::idx;
using sluice::input_error;
namespace io = sluice::io;

TEST_CASE("row_file: rows and their scales, or what is wrong with the file") {
    const scratch_folder here("row_file");
    const std::string path = here / "table.safetensors";
    sluice::tensor<std::int8_t> bytes(9, 5);
    sluice::tensor<float> scale(9, 2);
    for (idx i = 0; i < 45; ++i) bytes.data()[i] = static_cast<std::int8_t>(i - 20);
    for (idx i = 0; i < 18; ++i) scale.data()[i] = static_cast<float>(i);
    io::safetensors_writer out;
    out.add("table", sluice::tensor_view<const std::int8_t>(bytes.view()));
    out.add("scale", sluice::tensor_view<const float>(scale.view()));
    out.add("short", sluice::tensor_view<const float>(scale.view().row_block(0, 8)));
    out.save(path);

    const auto file = io::row_file::open<std::int8_t, float>(path, "table", "scale");
    CHECK((file.rows() == 9 && file.cols() == 5 && file.scales() == 2));
    std::int8_t row[5];
    float scales[2];
    for (idx i = 0; i < 9; ++i) {
        file.advise(i);
        REQUIRE(file.read(i, row, scales));
        for (idx j = 0; j < 5; ++j) CHECK(row[j] == bytes(i, j));
        CHECK((scales[0] == scale(i, 0) && scales[1] == scale(i, 1)));
    }
    auto open = [&](const std::string& name, const std::string& s) {
        return message_of<input_error>([&] { (void)io::row_file::open<std::int8_t, float>(path, name, s); });
    };
    CHECK(open("other", "") == path + ": other is missing");
    CHECK(open("scale", "") == path + ": scale must be I8, is F32 [9, 2]");
    CHECK(open("table", "short") == path + ": table has 9 rows, short 8");
    CHECK(open("table", "table") == path + ": table must be F32, is I8 [9, 5]");
    CHECK(message_of<input_error>([&] {
              (void)io::row_file::open<float>(here / "none", "table");
          }).find("cannot be opened") != std::string::npos);
}

TEST_CASE("row_file: a layer on a file is the layer in memory, until the file is cut short") {
    const scratch_folder here("row_file_layer");
    const std::string path = here / "model.safetensors";
    sluice::engram_config c{.d_model = 6, .d_memory = 12, .hash = {}, .token_map = {}};
    const idx layer_id = 1;
    sluice::make_ngram_hashes({.vocabulary = 300, .n_hashes = 3, .least_rows = {400}}, {&layer_id, 1},
                              {&c.hash, 1});
    sluice::owned_params<sluice::engram_params<float>> p(c);
    std::uint64_t key = 0;
    each_param([&](const sluice::param_name&, sluice::role, auto& t) { fill_uniform(t, ++key); }, p.view);
    sluice::tensor<sluice::bf16> narrow(p.view.table.rows(), p.view.table.cols());
    for (idx i = 0; i < narrow.size(); ++i) narrow.data()[i] = sluice::to_bf16(p.view.table.data()[i]);
    io::safetensors_writer out;
    out.add("table", sluice::tensor_view<const sluice::bf16>(narrow.view()));
    out.save(path);

    auto with = [&](const auto& table) {
        sluice::engram_params<float, std::remove_cvref_t<decltype(table)>> q;
        q.table = table;
        q.w_kv = p.view.w_kv;
        q.key_scale = p.view.key_scale;
        q.query_scale = p.view.query_scale;
        q.value_scale = p.view.value_scale;
        q.taps = p.view.taps;
        return sluice::engram<float, float, std::remove_cvref_t<decltype(table)>>(c, q);
    };
    std::vector<sluice::token_id> ids;
    for (std::int32_t i = 0; i < 200; ++i) ids.push_back(i * i % 300);
    const auto x = uniform_matrix<float>(200, 6, 3);
    padded<float> want(200, 6), y(200, 6);
    const auto in_memory = with(sluice::tensor_view<const sluice::bf16>(narrow.view()));
    sluice::arena workspace(in_memory.bytes({.max_rows = 200}).workspace), memory(1 << 20);
    in_memory.forward(sluice::batch::one(ids), x.view(), want, nullptr, workspace);

    const auto file = io::row_file::open<sluice::bf16>(path, "table");
    using ring = sluice::table_ring<io::row_file, sluice::bf16>;
    const auto on_disk = with(ring::bind(memory, file, 100));
    std::vector<std::int32_t> rows(static_cast<std::size_t>(200 * c.hash.heads()));
    const sluice::tensor_view<std::int32_t> plan(rows.data(), 200, c.hash.heads());
    on_disk.hash(sluice::batch::one(ids), nullptr, plan, workspace);
    on_disk.prefetch(plan);
    on_disk.forward_planned(sluice::batch::one(ids), plan, x.view(), y, nullptr, workspace);
    CHECK(different_bits(y.view(), want.view()) == "");
    // and a mapping of it
    const io::safetensors mapped(io::map(path));
    with(mapped.view<const sluice::bf16>("table"))
        .forward(sluice::batch::one(ids), x.view(), y, nullptr, workspace);
    CHECK(different_bits(y.view(), want.view()) == "");

    const auto size = std::filesystem::file_size(path);
    std::filesystem::resize_file(path, size / 2);
    const std::string cut = message_of<input_error>(
        [&] { on_disk.forward(sluice::batch::one(ids), x.view(), y, nullptr, workspace); });
    CHECK(cut.starts_with(path + ": ends before row "));
    CHECK(workspace.used() == 0);
}
#endif
