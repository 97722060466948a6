#include "support/catch.hpp"
#include "support/golden.hpp"
#include "support/scratch_folder.hpp"

#if SLUICE_TEST_HAS_JSON
#    include <sluice/core/tensor.hpp>
#    include <sluice/io/llama_file.hpp>

namespace io = sluice::io;
using namespace sluice::test;
using sluice::arena;
using sluice::idx;
using sluice::packed;

namespace {

const io::gguf& model() {
    static const io::gguf file(io::read(SLUICE_TEST_DIR "/data/llama.gguf"));
    return file;
}
using params = io::llama_params<packed<sluice::int8_block>>;

// The model of the tests in a file of ours, `change` of its metadata.
template <class F>
io::safetensors saved(const io::llama_config& config, const F& change) {
    const scratch_folder folder("llama_file");
    arena dry;
    (void)io::load_llama<params>(model(), io::llama_config_of(model()), dry);
    arena memory(dry.bytes());
    const params p = io::load_llama<params>(model(), io::llama_config_of(model()), memory);
    io::safetensors_writer writer;
    io::save_llama(writer, config, p, io::gguf_tokenizer(model()), "int8");
    change(writer);
    writer.save(folder / "f");
    return io::from_memory(bytes_of(get(folder / "f")), "f");
}

} // namespace

TEST_CASE("a model in one file: its config, storage, weights and tokenizer come back") {
    const io::llama_config was = io::llama_config_of(model());
    for (const idx window : {0, 7})
        for (const auto pairs : {sluice::rotary_pairs::interleaved, sluice::rotary_pairs::half_split})
            for (const auto head : {sluice::head_kind::tied, sluice::head_kind::untied}) {
                io::llama_config c = was;
                c.body.layer.attention.window = window;
                c.body.layer.attention.rotary = {pairs, 12345.625};
                c.embedding.head = head;
                const io::llama_config is = io::llama_config_of(saved(c, [](auto&) {}));
                const auto &a = is.body.layer.attention, &b = c.body.layer.attention;
                CHECK((a.d_model == b.d_model && a.n_heads == b.n_heads && a.n_kv_heads == b.n_kv_heads));
                CHECK((a.head_dim == b.head_dim && a.window == window));
                CHECK((a.rotary.pairs == pairs && a.rotary.base == 12345.625));
                CHECK((is.embedding.head == head && is.embedding.vocabulary == c.embedding.vocabulary));
                CHECK((is.norm.eps == c.norm.eps && is.body.layer.norm.eps == c.body.layer.norm.eps));
                CHECK((is.body.n_layers == c.body.n_layers && is.norm.d_model == c.norm.d_model));
                CHECK(is.body.layer.feed_forward.d_ff == c.body.layer.feed_forward.d_ff);
            }
    const io::safetensors file = saved(was, [](auto&) {});
    CHECK(io::llama_storage_of(file) == "int8");
    CHECK(io::load_tokenizer(file).size() == io::gguf_tokenizer(model()).size());
    arena dry;
    (void)io::load_llama<params>(model(), was, dry);
    arena counted;
    (void)io::load_saved_llama<params>(file, was, counted);
    CHECK(counted.bytes() == dry.bytes());
    arena first(dry.bytes()), second(dry.bytes());
    const params p = io::load_llama<params>(model(), was, first),
                 q = io::load_saved_llama<params>(file, was, second);
    CHECK(std::memcmp(p.embedding.table.data(), q.embedding.table.data(),
                      static_cast<std::size_t>(p.embedding.table.size()) * sizeof(float)) == 0);
    const auto &w = p.body.layers[1].feed_forward.w_down, &r = q.body.layers[1].feed_forward.w_down;
    CHECK(std::memcmp(w.data(), r.data(), static_cast<std::size_t>(w.elements(w.rows(), w.cols()))) == 0);
}

TEST_CASE("files whose tensors are not those of their config") {
    const io::safetensors file = saved(io::llama_config_of(model()), [](auto&) {});
    const auto said = [&](const auto& change) {
        io::llama_config c = io::llama_config_of(file);
        change(c);
        arena dry;
        return complaint([&] { (void)io::load_saved_llama<params>(file, c, dry); });
    };
    CHECK(said([](auto&) {}) == "");
    CHECK_THAT(said([](auto& c) { c.body.n_layers = idx{1} << 31; }),
               contains_text("too few for 2147483648"));
    CHECK_THAT(said([](auto& c) { c.body.n_layers = 3; }),
               contains_text("layers.2.attention.w_q.int8_block is missing"));
    CHECK_THAT(said([](auto& c) { c.body.layer.feed_forward.d_ff = idx{1} << 31; }),
               contains_text("layers.0.feed_forward.w_up.int8_block must be of a matrix of 2147483648 x 32"));
}

TEST_CASE("files whose metadata is not that of a model") {
    const auto said = [](const char* key, const char* value) {
        return complaint([&] {
            (void)io::llama_config_of(
                saved(io::llama_config_of(model()), [&](auto& writer) { writer.metadata(key, value); }));
        });
    };
    CHECK_THAT(said("llama.pairs", "both"), contains_text("rotary pairs of the unknown order \"both\""));
    CHECK_THAT(said("llama.config", "{}"), contains_text("has no \"model_type\""));
    CHECK_THAT(said("llama.config", "x"), contains_text("f: "));
    const std::string none("\x02\0\0\0\0\0\0\0{}", 10);
    CHECK_THAT(
        complaint([&] { (void)io::llama_config_of(io::safetensors(io::from_memory(bytes_of(none), "f"))); }),
        contains_text("f: has no \"llama.config\" in its metadata"));
}
#endif
