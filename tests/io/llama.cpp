#include "support/catch.hpp"
#include "support/gguf_file.hpp"
#include "support/golden.hpp"
#include "support/scratch_folder.hpp"

#if SLUICE_TEST_HAS_JSON
#    include <sluice/core/tensor.hpp>
#    include <sluice/io/llama.hpp>

#    include <cmath>

namespace io = sluice::io;
using namespace sluice::test;
using sluice::arena;
using sluice::bf16;
using sluice::idx;
using sluice::packed;
using sluice::tensor;

namespace {

const std::string path = SLUICE_TEST_DIR "/data/llama.gguf";

template <class P, class Source>
struct loaded {
    explicit loaded(const Source& file, const io::llama_config& config) : memory(bytes(file, config)) {
        view = io::load_llama<P>(file, config, memory);
        CHECK(memory.used() == memory.capacity());
    }
    static std::size_t bytes(const Source& file, const io::llama_config& config) {
        arena dry;
        (void)io::load_llama<P>(file, config, dry);
        return dry.bytes();
    }
    arena memory;
    P view;
};

// Logits of the golden ids, and how far they are from the golden ones at most.
template <class W, class Source>
tensor<float> logits_of(const Source& file, const io::llama_config& config) {
    const loaded<io::llama_params<W>, Source> weights(file, config);
    const sluice::language_model<sluice::stack<sluice::transformer_block<float, W>>> net(config,
                                                                                         weights.view);
    const auto ids = golden("llama.json")["ids"].get<std::vector<sluice::token_id>>();
    arena workspace(net.bytes({.max_rows = static_cast<idx>(ids.size())}).workspace);
    tensor<float> logits(static_cast<idx>(ids.size()), net.vocabulary());
    net.forward(sluice::batch::one(ids), logits, workspace);
    return logits;
}
double distance(const tensor<float>& logits) {
    const json want = golden("llama.json");
    double worst = 0;
    for (std::size_t i = 0; i < want["ids"].size(); ++i)
        for (std::size_t j = 0; j < want["columns"].size(); ++j)
            worst = std::max(worst, std::abs(static_cast<double>(
                                                 logits(static_cast<idx>(i), want["columns"][j].get<idx>())) -
                                             want["logits"][i][j].get<double>()));
    return worst;
}

// A description of a model without tensors.
gguf_file described() {
    gguf_file f;
    f.set("general.architecture", value_of("llama"));
    for (const auto& [key, n] : {std::pair{"embedding_length", 8U},
                                 {"block_count", 1U},
                                 {"attention.head_count", 2U},
                                 {"attention.head_count_kv", 1U},
                                 {"feed_forward_length", 3U}})
        f.set("llama." + std::string(key), value_of(n));
    f.set("llama.attention.layer_norm_rms_epsilon", value_of(0.125F));
    f.add("token_embd.weight", 5, 8, 0, std::string(5 * 8 * 4, '\0'));
    return f;
}
std::string config_said(const gguf_file& f) {
    return complaint([&] { (void)io::llama_config_of(parse(f.str())); });
}
io::json_values values(const json& file) {
    return io::json_values(io::from_memory(bytes_of(file.dump()), "f"));
}
json published() {
    return {{"model_type", "llama"},    {"hidden_size", 8},         {"num_hidden_layers", 2},
            {"num_attention_heads", 4}, {"num_key_value_heads", 2}, {"intermediate_size", 3},
            {"vocab_size", 5},          {"rms_norm_eps", 1e-5},     {"rope_theta", 5e5},
            {"rope_scaling", nullptr},  {"hidden_act", "silu"},     {"eos_token_id", {1, 2}}};
}

} // namespace

TEST_CASE("a model of a GGUF file: the logits of transformers, in every storage") {
    const io::gguf file(io::read(path));
    const io::llama_config config = io::llama_config_of(file);
    CHECK(config.body.n_layers == 2);
    CHECK(config.body.layer.attention.rotary.pairs == sluice::rotary_pairs::interleaved);
    CHECK(config.body.layer.attention.rotary.base == 5000);
    CHECK(config.embedding.head == sluice::head_kind::untied);
    CHECK(config.norm.eps == static_cast<double>(1e-3F));
    CHECK(distance(logits_of<float>(file, config)) < 2e-5);
    CHECK(distance(logits_of<packed<float>>(file, config)) < 2e-5);
    const double rounded = distance(logits_of<packed<bf16>>(file, config));
    CHECK((rounded > 1e-4 && rounded < 0.2));

    io::llama_config wrong = config; // the golden values tell the order of the rows apart
    wrong.body.layer.attention.rotary.pairs = sluice::rotary_pairs::half_split;
    CHECK(distance(logits_of<float>(file, wrong)) > 0.05);
}

TEST_CASE("the same model in safetensors, rows in the order of other files") {
    const io::gguf file(io::read(path));
    io::llama_config config = io::llama_config_of(file);
    std::vector<tensor<float>> kept;
    io::safetensors_writer writer;
    const auto& a = config.body.layer.attention;
    for (const auto& [name, t] : file.tensors()) {
        tensor<float>& all = kept.emplace_back(t.rows(), t.cols());
        file.copy_to(name, all.view());
        const bool turned = name.find("attn_q") != name.npos || name.find("attn_k") != name.npos;
        if (turned) { // pair i is rows 2 i and 2 i + 1 of a head there, i and i + head_dim / 2 here
            tensor<float> moved(t.rows(), t.cols());
            for (idx r = 0; r < t.rows(); ++r) {
                const idx head = r / a.head_dim, row = r % a.head_dim;
                const idx to = head * a.head_dim + row / 2 + row % 2 * (a.head_dim / 2);
                std::copy_n(all.row(r), t.cols(), moved.row(to));
            }
            all = std::move(moved);
        }
    }
    const scratch_folder folder("llama");
    std::size_t i = 0;
    for (const auto& [name, t] : file.tensors()) {
        std::string published;
        for (const auto& n : io::detail::llama_outer)
            if (n.gguf == name) published = n.published;
        for (const auto& n : io::detail::llama_inner)
            if (name.ends_with("." + std::string(n.gguf)))
                published = "model.layers." + name.substr(4, 1) + "." + std::string(n.published);
        REQUIRE_FALSE(published.empty());
        const tensor<float>& all = kept[i++];
        if (t.shape.size() == 1)
            writer.add(published, all.view(), {t.cols()});
        else
            writer.add(published, all.view());
    }
    writer.save(folder / "model.safetensors");
    const io::safetensors same = io::read(folder / "model.safetensors");
    config.body.layer.attention.rotary.pairs = sluice::rotary_pairs::half_split;
    CHECK(distance(logits_of<float>(same, config)) < 2e-5);
    config.embedding.head = sluice::head_kind::tied;
    CHECK_THAT(complaint([&] { logits_of<float>(same, config); }),
               contains_text("lm_head.weight is F32 [") && contains_text("no part of such a model"));
}

TEST_CASE("a workspace of bytes() is enough for the loss of weights that are not trained") {
    const io::gguf file(io::read(path));
    const io::llama_config config = io::llama_config_of(file);
    const loaded<io::llama_params<packed<float>>, io::gguf> weights(file, config);
    const sluice::language_model<sluice::stack<sluice::transformer_block<float, packed<float>>>> net(
        config, weights.view);
    const auto ids = golden("llama.json")["ids"].get<std::vector<sluice::token_id>>();
    std::vector<sluice::token_id> targets(ids.begin() + 1, ids.end());
    targets.push_back(sluice::ignored_target);
    arena workspace(net.bytes({.max_rows = static_cast<idx>(ids.size())}).workspace);
    const double loss = net.loss(sluice::batch::one(ids), targets, workspace);
    const tensor<float> logits = logits_of<packed<float>>(file, config);
    double want = 0;
    for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
        double sum = 0;
        for (idx j = 0; j < logits.cols(); ++j)
            sum += std::exp(static_cast<double>(logits(static_cast<idx>(i), j)));
        want += std::log(sum) - static_cast<double>(logits(static_cast<idx>(i), targets[i]));
    }
    CHECK(std::abs(loss - want / static_cast<double>(ids.size() - 1)) < 1e-5);
}

TEST_CASE("bf16 weights are the floats rounded, packed ones are those packed") {
    const io::gguf file(io::read(path));
    const io::llama_config config = io::llama_config_of(file);
    using narrow = io::llama_params<bf16>;
    const loaded<io::llama_params<float>, io::gguf> plain(file, config);
    const loaded<narrow, io::gguf> rounded(file, config);
    const loaded<io::llama_params<packed<float>>, io::gguf> panels(file, config);
    const auto& w = plain.view.body.layers[1].feed_forward.w_down;
    const auto& r = rounded.view.body.layers[1].feed_forward.w_down;
    const auto& p = panels.view.body.layers[1].feed_forward.w_down;
    bool same = true;
    for (idx i = 0; i < w.rows(); ++i)
        for (idx j = 0; j < w.cols(); ++j) same = same && r(i, j) == sluice::to_bf16(w(i, j));
    CHECK(same);
    arena memory(static_cast<std::size_t>(p.elements(p.rows(), p.cols())) * sizeof(float));
    const auto want = memory.take<packed<float>>(w.rows(), w.cols());
    sluice::pack_matrix(w, want);
    CHECK(std::memcmp(want.data(), p.data(),
                      static_cast<std::size_t>(p.elements(p.rows(), p.cols())) * sizeof(float)) == 0);
}

TEST_CASE("configs of GGUF files: defaults, and what is not read") {
    const io::llama_config c = io::llama_config_of(parse(described().str()));
    const auto& a = c.body.layer.attention;
    CHECK((a.d_model == 8 && a.n_heads == 2 && a.n_kv_heads == 1 && a.head_dim == 4 && a.window == 0));
    CHECK((a.rotary.base == 10000 && c.body.layer.norm.eps == 0.125 && c.embedding.vocabulary == 5));
    CHECK(c.embedding.head == sluice::head_kind::tied);

    const auto with = [](const std::string& key, const gguf_bytes& value) {
        gguf_file f = described();
        f.set(key, value);
        return config_said(f);
    };
    CHECK(with("general.architecture", value_of("qwen2")) ==
          "f: is of the architecture \"qwen2\"; \"llama\" is read");
    CHECK_THAT(with("split.count", {io::gguf_kind::u16, little(std::uint16_t{2})}),
               contains_text("one of several files"));
    for (const auto& [key, value] :
         {std::pair<std::string, gguf_bytes>{"rope.scaling.type", value_of("yarn")},
          {"rope.scale_linear", value_of(2.0F)},
          {"expert_count", value_of(8U)},
          {"attention.sliding_window", value_of(4U)},
          {"attention.value_length", value_of(5U)},
          {"rope.dimension_count", value_of(2U)}})
        CHECK(with("llama." + key, value) == "f: asks for \"llama." + key + "\", which is not read");
    CHECK(with("llama.attention.head_count", value_of(3U)) ==
          "f: has 3 heads, which do not divide its width of 8");
    CHECK_THAT(with("llama.attention.head_count", value_of(0U)), contains_text("has 0 heads"));
    CHECK(with("llama.block_count", value_of(0U)) == "f: has a size of 0, must be 1 to 2^31");
    CHECK_THAT(with("llama.feed_forward_length", {io::gguf_kind::i64, little(~std::uint64_t{0})}),
               contains_text("a size of -1"));
    CHECK_THAT(with("llama.feed_forward_length", array_of({value_of(3U)})),
               contains_text("must be an integer, is ARRAY of 1 UINT32"));
    CHECK_THAT(with("llama.attention.layer_norm_rms_epsilon", value_of(std::nanf(""))),
               contains_text("has the epsilon"));
    CHECK(config_said(gguf_file{}) == "f: has no \"general.architecture\" in its metadata");
}

TEST_CASE("tensors that do not fit are all named") {
    const io::gguf bare = parse(described().str());
    const io::llama_config c = io::llama_config_of(bare);
    arena dry;
    const auto load = [&](const io::gguf& file, const io::llama_config& config) {
        return complaint([&] { (void)io::load_llama<io::llama_params<float>>(file, config, dry); });
    };
    CHECK_THAT(load(bare, c),
               contains_text("10 of 11 parameters do not fit: blk.0.attn_norm.weight is missing; "));
    io::llama_config deep = c;
    deep.body.n_layers = 1 << 30;
    CHECK(load(bare, deep) == "f: holds 1 tensors, too few for 1073741824 layers");
    const io::gguf file(io::read(path));
    io::llama_config other = io::llama_config_of(file);
    other.body.layer.feed_forward.d_ff = 32;
    CHECK_THAT(load(file, other),
               contains_text("6 of 21 parameters do not fit: blk.0.ffn_gate.weight must be 32 x 32, is "));
    gguf_file more = described();
    more.add("rope_freqs.weight", 0, 2, 0, std::string(8, '\0'));
    CHECK_THAT(load(parse(more.str()), c), contains_text("11 of 12"));
    gguf_file k = described();
    k.tensors[0] = {"token_embd.weight", {256, 5}, 14, std::string(5 * 210, '\0')};
    CHECK(dry.used() == 0);
}

TEST_CASE("configs of config.json: defaults, and what is not read") {
    const io::llama_config c = io::llama_config_of(values(published()));
    const auto& a = c.body.layer.attention;
    CHECK((a.d_model == 8 && a.n_heads == 4 && a.n_kv_heads == 2 && a.head_dim == 2 && a.window == 0));
    CHECK((a.rotary.base == 5e5 && a.rotary.pairs == sluice::rotary_pairs::half_split && c.norm.eps == 1e-5));
    CHECK((c.embedding.head == sluice::head_kind::untied && c.embedding.vocabulary == 5 &&
           c.body.n_layers == 2));
    json file = published();
    file["model_type"] = "mistral";
    file["sliding_window"] = 6;
    file["tie_word_embeddings"] = true;
    file["head_dim"] = 12;
    file.erase("rope_theta");
    file["rope_parameters"] = {{"rope_theta", 7.5}, {"rope_type", "default"}};
    const io::llama_config m = io::llama_config_of(values(file));
    CHECK((m.body.layer.attention.window == 6 && m.embedding.head == sluice::head_kind::tied));
    CHECK((m.body.layer.attention.head_dim == 12 && m.body.layer.attention.rotary.base == 7.5));
    file["sliding_window"] = nullptr;
    CHECK(io::llama_config_of(values(file)).body.layer.attention.window == 0);

    const auto with = [](const char* pointer, const json& value) {
        json changed = published();
        changed[json::json_pointer(pointer)] = value;
        return complaint([&] { (void)io::llama_config_of(values(changed)); });
    };
    CHECK(with("/model_type", "gemma") ==
          "f: is of the model_type \"gemma\"; \"llama\" and \"mistral\" are read");
    CHECK(with("/hidden_act", "gelu") == "f: asks for \"hidden_act\", which is not read");
    CHECK(with("/attention_bias", true) == "f: asks for \"attention_bias\", which is not read");
    CHECK(with("/mlp_bias", true) == "f: asks for \"mlp_bias\", which is not read");
    CHECK(with("/rope_scaling", {{"rope_type", "llama3"}}) ==
          "f: asks for \"rope_scaling.rope_type\", which is not read");
    CHECK(with("/rope_scaling", {{"type", "linear"}}) ==
          "f: asks for \"rope_scaling.type\", which is not read");
    CHECK(with("/num_attention_heads", 3) == "f: has 3 heads, which do not divide its width of 8");
    CHECK_THAT(with("/hidden_size", std::uint64_t{1} << 62), contains_text("must be 1 to 2^31"));
}
#endif
