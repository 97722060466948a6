// Any bytes as tokenizer.json, or as config.json of a model: a tokenizer that gives back the text, or errors.
#include "target.hpp"

#include <sluice/io/llama.hpp>
#include <sluice/io/tokenizer_json.hpp>

namespace io = sluice::io;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const io::file file = io::from_memory(std::as_bytes(std::span(data, size)), "f");
    sluice::test::attempt([&] {
        const io::tokenizer words = io::json_tokenizer(file);
        const std::string text(reinterpret_cast<const char*>(data), std::min<std::size_t>(size, 512));
        const auto ids = words.encode(text, {io::control_tokens::found, io::unknown_bytes::skipped});
        for (const auto id : ids) SLUICE_FUZZ_CHECK(id >= 0 && id < words.size());
        sluice::test::attempt([&] { SLUICE_FUZZ_CHECK(words.decode(words.encode(text)) == text); });
    });
    sluice::test::attempt([&] { (void)io::llama_config_of(io::json_values(file)); });
    return 0;
}
