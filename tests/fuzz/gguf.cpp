// Any bytes as a GGUF file: values and tensors inside it, maybe a tokenizer and a model of the shape of
// LLaMA; or errors that say what is wrong.
#include "support/gguf_file.hpp"
#include "target.hpp"

#include <sluice/io/llama.hpp>
#include <sluice/io/tokenizer.hpp>

namespace io = sluice::io;
using sluice::idx;

namespace {

void use_tensors(const io::gguf& file) {
    std::size_t total = 0;
    for (const auto& entry : file.tensors()) { // no binding: clang 14 does not capture them
        const auto& name = entry.first;
        const auto& t = entry.second;
        total += t.bytes.size();
        if (t.bytes.empty()) continue; // may have a dimension that no copy could have
        SLUICE_FUZZ_CHECK(t.row_bytes() * static_cast<std::size_t>(t.rows()) == t.bytes.size());
        std::vector<float> row(static_cast<std::size_t>(t.cols()));
        sluice::test::attempt([&] { file.copy_rows(name, t.rows() - 1, {row.data(), 1, t.cols()}); });
        sluice::test::attempt([&] {
            const auto view = file.view<io::q4_1>(name);
            SLUICE_FUZZ_CHECK(static_cast<std::size_t>(view.size()) * sizeof(io::q4_1) == t.bytes.size());
        });
    }
    SLUICE_FUZZ_CHECK(total < file.source().bytes().size());
}

void use_tokenizer(const io::gguf& file) {
    const io::tokenizer words = io::gguf_tokenizer(file);
    const auto ids =
        words.encode("aab <|end|>\n\xC3\xA9 12", {io::control_tokens::found, io::unknown_bytes::skipped});
    for (const auto id : ids) SLUICE_FUZZ_CHECK(id >= 0 && id < words.size());
    (void)words.decode(ids);
}

void use_model(const io::gguf& file) {
    const io::llama_config config = io::llama_config_of(file);
    using params = io::llama_params<sluice::packed<sluice::bf16>>;
    sluice::arena dry;
    (void)io::load_llama<params>(file, config, dry);
    sluice::arena memory(dry.bytes());
    (void)io::load_llama<params>(file, config, memory);
    SLUICE_FUZZ_CHECK(memory.used() == dry.bytes());
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    sluice::test::attempt([&] {
        const io::gguf file(io::from_memory(std::as_bytes(std::span(data, size)), "f"));
        (void)sluice::test::touch(file);
        use_tensors(file);
        sluice::test::attempt([&] { use_tokenizer(file); });
        sluice::test::attempt([&] { use_model(file); });
    });
    return 0;
}
