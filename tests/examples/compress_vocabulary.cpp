// Runs the program that makes Engram's map of token ids. Built where it is.
#include "support/catch.hpp"

#if defined(SLUICE_COMPRESS_VOCABULARY) && !defined(_WIN32)

#    include "support/golden.hpp"
#    include "support/process.hpp"

#    include <sluice/io/safetensors.hpp>

using namespace sluice::test;
namespace io = sluice::io;

TEST_CASE("the map of a part of a published vocabulary", "[examples][compress_vocabulary]") {
    const scratch_folder folder("compress_vocabulary");
    const std::string map = folder / "map.safetensors";
    const auto run = [&](const arguments& args) {
        return process(SLUICE_COMPRESS_VOCABULARY, folder / "", args).wait();
    };
    const outcome o = run({SLUICE_TEST_DIR "/data/vocabulary.json", map});
    INFO(o.err);
    REQUIRE(o.status == 0);
    const auto want = golden("vocabulary.json")["compressed"].get<std::vector<std::int32_t>>();
    const auto size = std::to_string(1 + *std::max_element(want.begin(), want.end()));
    const io::safetensors file(io::read(map));
    const auto ids = file.view<std::int32_t>("token_map");
    REQUIRE((ids.rows() == 1 && ids.cols() == static_cast<sluice::idx>(want.size())));
    CHECK(std::equal(want.begin(), want.end(), ids.data()));
    CHECK(file.metadata().at("compressed_ids") == size);
    CHECK(o.out.starts_with(size + " of " + std::to_string(want.size()) + " ids are left ("));

    for (const arguments& args :
         {arguments{map, map}, arguments{folder / "none.json", map}, arguments{map}}) {
        const outcome refused = run(args);
        CHECK(refused.status == 2);
        CHECK(refused.err.starts_with("compress_vocabulary: "));
        CHECK(refused.err.find('\n') == refused.err.size() - 1);
    }
}
#endif
