// From a tokenizer to the map of ids that Engram hashes: compress_vocabulary tokenizer.json map.safetensors
// Tokens of the same text but for case, accents, width and white space become one. Written as the I32 tensor
// "token_map" of one row.
#include <sluice/io/safetensors_writer.hpp>
#include <sluice/io/vocabulary.hpp>

#include <cstdio>

int main(int argc, char** argv) {
    if (argc != 3) {
        std::fprintf(stderr, "usage: compress_vocabulary tokenizer.json map.safetensors\n");
        return 2;
    }
    try {
        const auto map = sluice::io::compress(sluice::io::read_tokenizer(sluice::io::read(argv[1])));
        sluice::io::safetensors_writer out;
        out.add("token_map", sluice::tensor_view<const std::int32_t>(
                                 map.ids.data(), 1, static_cast<sluice::idx>(map.ids.size())));
        out.metadata("compressed_ids", std::to_string(map.size));
        out.save(argv[2]);
        std::printf("%d of %zu ids are left (%.2f%% fewer)\n", map.size, map.ids.size(),
                    100 - 100.0 * map.size / static_cast<double>(map.ids.size()));
    } catch (const sluice::error& e) {
        std::fprintf(stderr, "%s\n", e.what());
        return 1;
    }
}
