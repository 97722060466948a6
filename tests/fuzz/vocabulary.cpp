// Any bytes as a tokenizer.json: a vocabulary and its compressed ids, or input_error; and as a text, whose
// key is valid UTF-8 and its own key.
#include "target.hpp"

#if __has_include(<unicode/unorm2.h>)
#    include <sluice/io/vocabulary.hpp>

namespace io = sluice::io;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    sluice::test::attempt([&] {
        const auto file = io::from_memory(std::as_bytes(std::span(data, size)), "f");
        const io::vocabulary v = io::read_tokenizer(file);
        const io::token_map map = io::compress(v);
        SLUICE_FUZZ_CHECK(map.ids.size() == v.tokens.size());
        std::int32_t next = 0; // ids come in order
        for (const std::int32_t id : map.ids) {
            SLUICE_FUZZ_CHECK(id >= 0 && id <= next);
            next += id == next ? 1 : 0;
        }
        SLUICE_FUZZ_CHECK(map.size == next);
    });
    sluice::test::attempt([&] {
        const std::string key = io::compression_key({reinterpret_cast<const char*>(data), size});
        SLUICE_FUZZ_CHECK(size == 0 || !key.empty());
        SLUICE_FUZZ_CHECK(io::compression_key(key) == key);
    });
    return 0;
}
#else
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t*, std::size_t) { return 0; }
#endif
