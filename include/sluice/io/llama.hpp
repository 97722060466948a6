// Models of the shape of LLaMA (Touvron et al., "LLaMA", 2023; SmolLM, Mistral and others): config and
// weights of a language_model of transformer_blocks, from GGUF or from safetensors and config.json. Matrices
// are converted, or taken over bit for bit where blocks are those of the storage: Q8_0 for
// packed<int8_block>, Q4_0 for int4_block, Q4_1 for int4_block_min. GGUF files have rows of queries and keys
// in the order of interleaved rotary pairs, as their config says. Not read: scaled rotary positions, biases,
// experts.
#pragma once

#include "../layers/language_model.hpp"
#include "../layers/transformer_block.hpp"
#include "checkpoints.hpp"
#include "gguf.hpp"
#include "json_values.hpp"

namespace sluice::io {

using llama_config = language_model_config<stack_config<transformer_block_config>>;
// W is the storage of the blocks' matrices, V that of the embedding.
template <class W, class V = float>
using llama_params =
    language_model_params<embedding_params<V>, stack_params<transformer_block_params<W>>, norm_params<V>>;

inline namespace SLUICE_ISA {

namespace detail {

struct llama_names {
    std::string_view ours, gguf, published;
};
// Of tensors without a layer, then of those of a layer, behind layer_name.
inline constexpr std::array<llama_names, 3> llama_outer{{
    {"embedding.table", "token_embd.weight", "model.embed_tokens.weight"},
    {"embedding.head", "output.weight", "lm_head.weight"},
    {"norm.scale", "output_norm.weight", "model.norm.weight"},
}};
inline constexpr std::array<llama_names, 9> llama_inner{{
    {"attention_norm.scale", "attn_norm.weight", "input_layernorm.weight"},
    {"attention.w_q", "attn_q.weight", "self_attn.q_proj.weight"},
    {"attention.w_k", "attn_k.weight", "self_attn.k_proj.weight"},
    {"attention.w_v", "attn_v.weight", "self_attn.v_proj.weight"},
    {"attention.w_o", "attn_output.weight", "self_attn.o_proj.weight"},
    {"feed_forward_norm.scale", "ffn_norm.weight", "post_attention_layernorm.weight"},
    {"feed_forward.w_gate", "ffn_gate.weight", "mlp.gate_proj.weight"},
    {"feed_forward.w_up", "ffn_up.weight", "mlp.up_proj.weight"},
    {"feed_forward.w_down", "ffn_down.weight", "mlp.down_proj.weight"},
}};

// The file's name for a tensor of the model: "layers.3.attention.w_q" is "blk.3.attn_q.weight".
inline std::string llama_name(const std::string& ours, bool in_gguf) {
    const auto of = [&](const auto& names, std::string_view name) {
        for (const llama_names& n : names)
            if (n.ours == name) return std::string(in_gguf ? n.gguf : n.published);
        SLUICE_THROW(config_error("io::load_llama: no such file has a tensor for " + ours));
    };
    constexpr std::string_view layers = "layers.";
    if (!std::string_view(ours).starts_with(layers)) return of(llama_outer, ours);
    const std::size_t dot = ours.find('.', layers.size());
    const std::string number = ours.substr(layers.size(), dot - layers.size());
    return (in_gguf ? "blk." : "model.layers.") + number + "." +
           of(llama_inner, std::string_view(ours).substr(dot + 1));
}

// Sizes as files give them; what makes no model is refused here, everything else by the layers.
struct llama_sizes {
    std::int64_t vocabulary, d_model, n_layers, n_heads, n_kv_heads, head_dim, d_ff;
};
inline llama_config llama_config_from(const std::string& path, const llama_sizes& s, double eps) {
    constexpr std::int64_t most = std::int64_t{1} << 31;
    for (const std::int64_t n :
         {s.vocabulary, s.d_model, s.n_layers, s.n_heads, s.n_kv_heads, s.head_dim, s.d_ff})
        if (n < 1 || n > most) fail(path, "has a size of " + std::to_string(n) + ", must be 1 to 2^31");
    if (!(eps >= 0 && eps < 1)) fail(path, "has the epsilon " + std::to_string(eps));
    return {.embedding = {.vocabulary = s.vocabulary, .d_model = s.d_model},
            .body = {.n_layers = s.n_layers,
                     .layer = {.attention = {.d_model = s.d_model,
                                             .n_heads = s.n_heads,
                                             .n_kv_heads = s.n_kv_heads,
                                             .head_dim = s.head_dim},
                               .feed_forward = {.d_model = s.d_model, .d_ff = s.d_ff},
                               .norm = {.d_model = s.d_model, .eps = eps}}},
            .norm = {.d_model = s.d_model, .eps = eps}};
}
inline std::int64_t head_dim_of(const std::string& path, std::int64_t d_model, std::int64_t n_heads) {
    if (n_heads < 1 || d_model % n_heads != 0)
        fail(path, "has " + std::to_string(n_heads) + " heads, which do not divide its width of " +
                       std::to_string(d_model));
    return d_model / n_heads;
}

// Rows of a tensor as floats.
inline void llama_rows(const gguf& file, const std::string& name, idx first, const tensor_view<float>& out) {
    file.copy_rows(name, first, out);
}
inline void llama_rows(const safetensors& file, const std::string& name, idx first,
                       const tensor_view<float>& out) {
    const tensor_info& t = file.info(name);
    with_element<double, float, half, bf16>(t.type, [&]<class S>(const S*) {
        for (idx i = 0; i < out.rows(); ++i)
            for (idx j = 0; j < out.cols(); ++j)
                out(i, j) = convert_element<float>(element_of<S>(t, (first + i) * t.cols() + j));
    });
}

inline std::string llama_problem(const gguf& file, const std::string& name, idx rows, idx cols) {
    if (!file.contains(name)) return "is missing";
    const gguf_tensor& t = file.info(name);
    if (t.rows() == rows && t.cols() == cols) return "";
    return "must be " + shape_text(rows, cols) + ", is " + t.text();
}
inline std::string llama_problem(const safetensors& file, const std::string& name, idx rows, idx cols) {
    if (!file.contains(name)) return "is missing";
    const tensor_info& t = file.info(name);
    if (t.rows() != rows || t.cols() != cols) return "must be " + shape_text(rows, cols) + ", is " + t.text();
    const bool known = with_element<double, float, half, bf16>(t.type, [](const auto*) {});
    return known ? "" : "must be of a floating-point type, is " + t.text();
}

// Calls f with parameters that have shapes and no memory. Throws for a config that asks for more layers than
// the file can hold.
template <class P, class Source, class F>
void with_llama_shapes(const Source& file, const llama_config& config, F&& f) {
    if (config.body.n_layers > static_cast<idx>(file.tensors().size()))
        fail(file.path(), "holds " + std::to_string(file.tensors().size()) + " tensors, too few for " +
                              std::to_string(config.body.n_layers) + " layers");
    arena counted;
    arena dry = arena::shapes(counted);
    (void)P::bind(dry, config);
    arena views(counted.bytes());
    arena shapes = arena::shapes(views);
    f(P::bind(shapes, config));
}

// Throws unless the file has the tensors of P and no others: one left out would be wrong results, not an
// error.
template <class P, class Source>
void check_llama(const Source& file, const llama_config& config) {
    constexpr bool in_gguf = std::is_same_v<Source, gguf>;
    misfits found;
    std::map<std::string, bool, std::less<>> used;
    with_llama_shapes<P>(file, config, [&](const P& params) {
        each_param(
            [&](const param_name& ours, role, const auto& t) {
                const std::string name = llama_name(ours.str(), in_gguf);
                found.report(name, llama_problem(file, name, t.rows(), t.cols()));
                used[name] = true;
            },
            params);
    });
    for (const auto& [name, t] : file.tensors())
        if (used.count(name) == 0 && !name.ends_with(".rotary_emb.inv_freq")) // what follows from the config
            found.report(name, "is " + t.text() + " and no part of such a model");
    found.require_none(file.path());
}

// Blocks of files in the form that panels are made of.
inline quantised_block panel_block(const q8_0& from) {
    quantised_block q{.scale = from.d};
    for (std::size_t i = 0; i < 32; ++i) q.codes[i] = static_cast<std::uint8_t>(from.qs[i] + 128);
    return q;
}
template <class B>
quantised_block panel_block(const B& from) {
    quantised_block q{.scale = from.d};
    if constexpr (std::is_same_v<B, q4_1>) q.min = from.m;
    for (std::size_t i = 0; i < 16; ++i) {
        q.codes[i] = static_cast<std::uint8_t>(from.qs[i] & 15);
        q.codes[i + 16] = static_cast<std::uint8_t>(from.qs[i] >> 4);
    }
    return q;
}

// Whether the file's blocks are those of the storage; then they are taken over, every bit.
template <class B, class Source, class S>
bool import_blocks(const Source& file, const std::string& name, const tensor_view<packed<S>>& to) {
    if constexpr (std::is_same_v<Source, gguf>) {
        if (file.info(name).type->name != gguf_name<B>()) return false;
        const auto blocks = file.template view<B>(name);
        pack_blocks<S>([&](idx row, idx b) { return panel_block(blocks(row, b)); }, to);
        return true;
    }
    return false;
}
template <class Source, class S>
bool import_matrix(const Source& file, const std::string& name, const tensor_view<packed<S>>& to) {
    if constexpr (std::is_same_v<S, int8_block>) return import_blocks<q8_0>(file, name, to);
    if constexpr (std::is_same_v<S, int4_block>) return import_blocks<q4_0>(file, name, to);
    if constexpr (std::is_same_v<S, int4_block_min>) return import_blocks<q4_1>(file, name, to);
    return false;
}

template <class Source, class To>
void load_llama_tensor(const Source& file, const std::string& name, const tensor_view<To>& to) {
    constexpr idx panel = panel_cols<float>;
    if constexpr (is_packed<To>)
        if (import_matrix(file, name, to)) return;
    if constexpr (std::is_same_v<To, float>) {
        llama_rows(file, name, 0, to);
    } else {
        std::vector<float> rows(static_cast<std::size_t>(panel * to.cols()));
        for (idx i = 0; i < to.rows(); i += panel) {
            const tensor_view<float> part(rows.data(), std::min(panel, to.rows() - i), to.cols());
            llama_rows(file, name, i, part);
            if constexpr (is_packed<To>) {
                pack_matrix(
                    part, tensor_view<To>(to.data() + i / panel * to.panel_stride(), part.rows(), to.cols()));
            } else {
                static_assert(std::is_same_v<To, bf16>,
                              "sluice: weights are loaded as float, bf16 or packed");
                for (idx j = 0; j < part.rows(); ++j)
                    std::transform(part.row(j), part.row(j) + to.cols(), to.row(i + j),
                                   [](float x) { return to_bf16(x); });
            }
        }
    }
}

} // namespace detail

// The config of a GGUF file. Throws input_error where it is of another architecture, or asks for what is not
// read.
inline llama_config llama_config_of(const gguf& file) {
    if (file.text("general.architecture") != "llama")
        detail::fail(file.path(), "is of the architecture \"" +
                                      std::string(file.text("general.architecture")) +
                                      "\"; \"llama\" is read");
    if (file.integer("split.count", 1) > 1)
        detail::fail(file.path(), "is one of several files of a model; merge them first");
    const auto at = [](const char* key) { return std::string("llama.") + key; };
    const auto refuse = [&](bool asked, const std::string& key) {
        if (asked) detail::fail(file.path(), "asks for \"" + key + "\", which is not read");
    };
    refuse(file.text(at("rope.scaling.type"), "none") != "none", at("rope.scaling.type"));
    refuse(file.has_value(at("rope.scale_linear")), at("rope.scale_linear"));
    refuse(file.integer(at("expert_count"), 0) > 0, at("expert_count"));
    refuse(file.integer(at("attention.sliding_window"), 0) > 0, at("attention.sliding_window"));
    const std::int64_t width = file.integer(at("embedding_length")),
                       heads = file.integer(at("attention.head_count"));
    const std::int64_t head_dim = file.has_value(at("attention.key_length"))
                                      ? file.integer(at("attention.key_length"))
                                      : detail::head_dim_of(file.path(), width, heads);
    refuse(file.integer(at("attention.value_length"), head_dim) != head_dim, at("attention.value_length"));
    refuse(file.integer(at("rope.dimension_count"), head_dim) != head_dim, at("rope.dimension_count"));
    llama_config c =
        detail::llama_config_from(file.path(),
                                  {.vocabulary = file.info("token_embd.weight").rows(),
                                   .d_model = width,
                                   .n_layers = file.integer(at("block_count")),
                                   .n_heads = heads,
                                   .n_kv_heads = file.integer(at("attention.head_count_kv"), heads),
                                   .head_dim = head_dim,
                                   .d_ff = file.integer(at("feed_forward_length"))},
                                  file.real(at("attention.layer_norm_rms_epsilon")));
    c.embedding.head = file.contains("output.weight") ? head_kind::untied : head_kind::tied;
    c.body.layer.attention.rotary = {rotary_pairs::interleaved, file.real(at("rope.freq_base"), 10000)};
    return c;
}

// The same of config.json beside safetensors: model_type llama or mistral.
inline llama_config llama_config_of(const json_values& file) {
    const std::string type = file.text("model_type");
    if (type != "llama" && type != "mistral")
        detail::fail(file.path(),
                     "is of the model_type \"" + type + "\"; \"llama\" and \"mistral\" are read");
    const auto refuse = [&](bool asked, const char* key) {
        if (asked) detail::fail(file.path(), std::string("asks for \"") + key + "\", which is not read");
    };
    refuse(file.text("hidden_act", "silu") != "silu", "hidden_act");
    refuse(file.boolean("attention_bias", false), "attention_bias");
    refuse(file.boolean("mlp_bias", false), "mlp_bias");
    for (const char* key : {"rope_scaling.rope_type", "rope_scaling.type", "rope_parameters.rope_type"})
        refuse(file.text(key, "default") != "default", key);
    const std::int64_t width = file.integer("hidden_size"), heads = file.integer("num_attention_heads");
    const std::int64_t head_dim = file.has_value("head_dim") ? file.integer("head_dim")
                                                             : detail::head_dim_of(file.path(), width, heads);
    llama_config c = detail::llama_config_from(file.path(),
                                               {.vocabulary = file.integer("vocab_size"),
                                                .d_model = width,
                                                .n_layers = file.integer("num_hidden_layers"),
                                                .n_heads = heads,
                                                .n_kv_heads = file.integer("num_key_value_heads", heads),
                                                .head_dim = head_dim,
                                                .d_ff = file.integer("intermediate_size")},
                                               file.real("rms_norm_eps", 1e-6));
    c.embedding.head = file.boolean("tie_word_embeddings", false) ? head_kind::tied : head_kind::untied;
    c.body.layer.attention.rotary.base =
        file.real("rope_parameters.rope_theta", file.real("rope_theta", 10000));
    if (type == "mistral") c.body.layer.attention.window = file.integer("sliding_window", 0);
    return c;
}

// Rows [first, first + out.rows()) of the file's tensor for a parameter of the model, such as
// "layers.3.attention.w_q", as floats. Throws input_error where there is no such tensor.
template <class Source>
void read_llama_rows(const Source& file, const std::string& ours, idx first, const tensor_view<float>& out) {
    detail::llama_rows(file, detail::llama_name(ours, std::is_same_v<Source, gguf>), first, out);
}

// The weights, in memory of the caller; P is llama_params<W, V>, each float, bf16 or packed. Source is gguf
// or safetensors. A dry arena is only counted:
//
//   arena dry;
//   (void)load_llama<P>(file, config, dry);
//   arena memory(dry.bytes());
//   const P weights = load_llama<P>(file, config, memory);
//
// Throws input_error that lists every tensor that is missing, has another shape or type, or is no part of the
// model, and capacity_error where memory is short.
template <class P, class Source>
P load_llama(const Source& file, const llama_config& config, arena& memory) {
    detail::check_llama<P>(file, config);
    const P params = P::bind(memory, config);
    if (memory.dry()) return params;
    each_param(
        [&](const param_name& ours, role, const auto& t) {
            detail::load_llama_tensor(file, detail::llama_name(ours.str(), std::is_same_v<Source, gguf>), t);
        },
        params);
    return params;
}

} // namespace SLUICE_ISA
} // namespace sluice::io
