// From a tokenizer to the map of ids that Engram hashes: compress_vocabulary tokenizer.json map.safetensors
// Tokens of the same text but for case, accents, width and white space become one. Written as the I32 tensor
// "token_map" of one row.
#include "support/program.hpp"

#include <sluice/io/safetensors_writer.hpp>
#include <sluice/io/vocabulary.hpp>

namespace {

namespace io = sluice::io;

struct options {
    std::string tokenizer, map;
};

void run(const options& o) {
    const auto map = io::compress(io::read_tokenizer(io::read(o.tokenizer)));
    const auto n = static_cast<sluice::idx>(map.ids.size());
    io::safetensors_writer out;
    out.add("token_map", sluice::tensor_view<const std::int32_t>(map.ids.data(), 1, n));
    out.metadata("compressed_ids", std::to_string(map.size));
    out.save(o.map);
    std::printf("%d of %td ids are left (%.2f%% fewer)\n", map.size, n,
                100 - 100.0 * map.size / static_cast<double>(n));
}

void add_options(CLI::App& app, options& o) {
    app.add_option("tokenizer", o.tokenizer, "a tokenizer.json")->required();
    app.add_option("map", o.map, "what is written (safetensors)")->required();
}

} // namespace

int main(int argc, char** argv) {
    return sluice::examples::run_program<options>("compress_vocabulary",
                                                  "Makes tokens of the same text one, for Engram's memory.",
                                                  argc, argv, add_options, run);
}
