// Weights of published models: moe_params from the tensors of a file, by the names of io/moe_names.hpp.
//
// A tensor is viewed in place where type, layout and alignment allow it, otherwise converted into memory of
// the caller. Everything is checked before anything is taken or written. Not read: MXFP4 and other 4 bit
// files.
#pragma once

#include "../layers/moe.hpp"
#include "moe_names.hpp"
#include "params.hpp"

#include <set>

namespace sluice::io {

inline namespace SLUICE_ISA {

namespace detail {

// Where in a file the matrix is whose element (i, j) is number first + i row_step + j col_step of a tensor.
struct moe_source {
    std::string name;
    std::vector<idx> shape; // of the tensor
    idx first = 0, row_step = 0, col_step = 1;
    bool quantised = false; // may be F8_E4M3 with a factor for each block
};

// Rows and columns that share a factor; weight_block_size in config.json.
inline constexpr idx scale_block = 128;
inline std::string scale_name(const moe_source& s) { return s.name + "_scale_inv"; }

// Calls f with a null pointer to the type of an element; false where it is not one of S.
template <class... S, class F>
bool with_element(dtype type, F&& f) {
    return ((dtype_of<S> == type && (f(static_cast<const S*>(nullptr)), true)) || ...);
}

template <class T, class S>
T convert_element(S value) {
    if constexpr (std::is_same_v<T, S>) {
        return value;
    } else if constexpr (real<T> && real<S>) {
        return static_cast<T>(value);
    } else {
        float x;
        if constexpr (real<S>)
            x = static_cast<float>(value);
        else
            x = to_float(value);
        if constexpr (std::is_same_v<T, bf16>)
            return to_bf16(x);
        else if constexpr (std::is_same_v<T, half>)
            return to_half(x);
        else
            return static_cast<T>(x);
    }
}

template <class S>
S element_of(const tensor_info& t, idx i) {
    S value;
    const std::byte* const from = t.bytes.data() + static_cast<std::size_t>(i) * sizeof(S);
    copy_elements(reinterpret_cast<std::byte*>(&value), from, sizeof(S), sizeof(S));
    return value;
}

// Calls f(i, j) for all of a matrix, in tiles: the file may be read along columns.
template <class F>
void for_each_in_tiles(idx rows, idx cols, F&& f) {
    constexpr idx tile = 32;
    for (idx i0 = 0; i0 < rows; i0 += tile)
        for (idx j0 = 0; j0 < cols; j0 += tile)
            for (idx i = i0; i < std::min(rows, i0 + tile); ++i)
                for (idx j = j0; j < std::min(cols, j0 + tile); ++j) f(i, j);
}

template <class T>
void copy_source(const safetensors& file, const moe_source& s, const tensor_view<T>& to) {
    const tensor_info& t = file.info(s.name);
    if (t.type == dtype::f8_e4m3) {
        const tensor_info& factors = file.info(scale_name(s));
        for_each_in_tiles(to.rows(), to.cols(), [&](idx i, idx j) {
            const idx block = i / scale_block * factors.cols() + j / scale_block;
            const float value = to_float(element_of<f8_e4m3>(t, i * s.row_step + j));
            to(i, j) = convert_element<T>(value * element_of<float>(factors, block));
        });
        return;
    }
    with_element<double, float, half, bf16>(t.type, [&]<class S>(const S*) {
        if constexpr (std::is_same_v<S, T>)
            if (s.col_step == 1) { // 0.1 ns an element, 1.9 one by one
                for (idx i = 0; i < to.rows(); ++i)
                    copy_elements(reinterpret_cast<std::byte*>(to.row(i)),
                                  t.bytes.data() +
                                      static_cast<std::size_t>(s.first + i * s.row_step) * sizeof(S),
                                  static_cast<std::size_t>(to.cols()) * sizeof(S), sizeof(S));
                return;
            }
        for_each_in_tiles(to.rows(), to.cols(), [&](idx i, idx j) {
            to(i, j) = convert_element<T>(element_of<S>(t, s.first + i * s.row_step + j * s.col_step));
        });
    });
}

// Of one layer in a file.
template <class W>
class moe_reader {
public:
    moe_reader(const safetensors& file, moe_naming naming, std::string_view prefix, const moe_config& c)
        : file_(file), names_(names_in(file, naming, prefix)), at_(prefix), config_(c) {
        at_ += names_.block;
        check_config();
        check_file();
    }
    // Copies unless memory is dry.
    moe_params<W> load(arena& memory) const {
        return walk(
            memory, config_.n_experts(),
            [&]<class T>(T*, const moe_source& s, idx rows, idx cols) -> tensor_view<T> {
                const tensor_info& t = file_.info(s.name);
                if constexpr (std::is_const_v<T>)
                    if (t.type == dtype_of<T> && s.col_step == 1 &&
                        safetensors::view_problem(t, alignof(T)).empty())
                        return {reinterpret_cast<T*>(t.bytes.data()) + s.first, rows, cols, s.row_step};
                const auto copy = memory.take<std::remove_const_t<T>>(rows, cols);
                if (!memory.dry()) copy_source(file_, s, copy);
                return copy;
            });
    }

private:
    using V = vector_type<W>;
    using layout = expert_layout;
    enum part { gate, up, down };

    void check_config() const {
        const moe_config& c = config_;
        const std::string layer = "io::load_moe, " + std::string(names_.model);
        require_positive(c.d_model, layer, "d_model");
        require_positive(c.expert.d_ff, layer, "d_ff");
        require(c.router.n_experts >= 1 && c.router.n_experts <= idx{1} << 24 && c.router.n_identity == 0 &&
                    c.router.n_null == 0,
                layer, "n_experts must be 1 to 16777216, n_identity and n_null 0");
        require(c.shared_d_ff >= 0, layer, "shared_d_ff must not be negative");
        const idx stacked = size_product(size_product(2, c.n_experts()), c.expert.d_ff);
        (void)size_product(stacked, c.d_model), (void)size_product(c.shared_d_ff, c.d_model);
        auto has = [&](bool asked, bool known, const char* what) {
            require(!asked || known, layer, std::string("files of this model have no ") + what);
        };
        has(c.router_bias, !names_.router_bias.empty(), "router bias");
        has(c.router.selection_bias, !names_.selection_bias.empty(), "selection bias");
        has(c.shared_d_ff > 0, !names_.shared.empty(), "shared expert");
        has(c.gate != shared_gate::none, !names_.shared_gate.empty(), "gate of the shared expert");
        has(c.expert.bias, names_.layout == layout::interleaved, "biases of experts");
        require(c.expert.gated() != names_.parts[gate].empty(), layer,
                c.expert.gated() ? "the experts of this model are not gated" : "the experts are gated");
    }

    void check_file() const {
        if (names_.layout == layout::single && config_.n_experts() > static_cast<idx>(file_.tensors().size()))
            fail(file_.path(), "holds " + std::to_string(file_.tensors().size()) +
                                   " tensors, too few for the experts that the config asks for");
        misfits found;
        std::set<std::string, std::less<>> used;
        if (config_.router.choice == router_choice::hash_table) used.insert(full(names_.hash_table));
        auto look = [&](const moe_source& s) {
            if (!used.insert(s.name).second) return; // another part of the same tensor
            found.report(s.name, problem_of(s));
            if (!s.quantised || !file_.contains(s.name) || file_.info(s.name).type != dtype::f8_e4m3) return;
            used.insert(scale_name(s));
            found.report(scale_name(s), scale_problem(s));
        };
        arena none;
        const idx n = names_.layout == layout::single ? config_.n_experts() : 1; // of one tensor for all
        (void)walk(none, n, [&]<class T>(T*, const moe_source& s, idx, idx) -> tensor_view<T> {
            look(s);
            return {};
        });
        // A bias or a shared expert that the config leaves out would be wrong results, not an error.
        const auto& all = file_.tensors();
        for (auto t = all.lower_bound(at_); t != all.end() && t->first.compare(0, at_.size(), at_) == 0; ++t)
            if (used.count(t->first) == 0)
                found.report(t->first, "is " + t->second.text() + " and not asked for");
        found.require_none(file_);
    }

    static std::string shape_of(const std::vector<idx>& shape) { // F32 [1, 2] without its type
        const std::string text = tensor_info{dtype::f32, shape, {}}.text();
        return text.substr(text.find('['));
    }
    std::string problem_of(const moe_source& s) const {
        if (!file_.contains(s.name)) return "is missing";
        const tensor_info& t = file_.info(s.name);
        if (t.shape != s.shape) return "must be " + shape_of(s.shape) + ", is " + t.text();
        if (with_element<double, float, half, bf16>(t.type, [](const auto*) {})) return "";
        if (t.type == dtype::f8_e4m3 && s.quantised) return "";
        return "must be of a floating-point type, is " + t.text();
    }
    std::string scale_problem(const moe_source& s) const {
        const std::string name = scale_name(s);
        if (!file_.contains(name)) return "is missing";
        const tensor_info& t = file_.info(name);
        const std::vector<idx> shape{ceil_div(s.shape[0], scale_block), ceil_div(s.shape[1], scale_block)};
        if (t.type == dtype::f32 && t.shape == shape) return "";
        return "must be F32 " + shape_of(shape) + ", is " + t.text();
    }

    std::string full(std::string_view name) const { return at_ + std::string(name); }
    moe_source vector(std::string_view name, idx n) const { return {full(name), {n}, 0, n}; }
    moe_source matrix(std::string_view name, idx rows, idx cols, bool quantised = false) const {
        return {full(name), {rows, cols}, 0, cols, 1, quantised};
    }
    // A part of a feed-forward that is stored for itself, below `at`.
    moe_source single(const std::string& at, part p, idx d_ff) const {
        const bool out = p == down;
        return matrix(at + std::string(names_.parts[p]) + ".weight", out ? config_.d_model : d_ff,
                      out ? d_ff : config_.d_model, true);
    }
    moe_source stacked(idx e, part p) const {
        const idx n = config_.n_experts(), i = config_.expert.d_ff, h = config_.d_model;
        const idx second = p == up;
        moe_source s{full(names_.stacked[p]), {}, e * i * h};
        if (p != down) s.first *= names_.layout == layout::inner_rows ? 1 : 2;
        switch (names_.layout) {
        case layout::single:
            break;
        case layout::fused:
            s.shape = p == down ? std::vector<idx>{n, h, i} : std::vector<idx>{n, 2 * i, h};
            s.first += second * i * h;
            s.row_step = p == down ? i : h;
            break;
        case layout::halves:
        case layout::interleaved:
            s.shape = p == down ? std::vector<idx>{n, i, h} : std::vector<idx>{n, h, 2 * i};
            s.row_step = p == down || names_.layout == layout::halves ? 1 : 2;
            s.col_step = p == down ? h : 2 * i;
            s.first += second * (names_.layout == layout::halves ? i : 1);
            break;
        case layout::inner_rows:
            s.shape = {n * i, h};
            s.row_step = p == down ? 1 : h;
            s.col_step = p == down ? h : 1;
            break;
        }
        return s;
    }
    moe_source stacked_bias(idx e, part p) const { // of interleaved experts
        const idx n = config_.n_experts(), i = config_.expert.d_ff, h = config_.d_model;
        const std::string name = full(names_.stacked[p]) + "_bias";
        if (p == down) return {name, {n, h}, e * h, h};
        return {name, {n, 2 * i}, e * 2 * i + (p == up), 2 * i, 2};
    }

    // Calls take(T*, source, rows, cols) for the tensors of the layer, of its first n_experts experts only,
    // and puts together what it returns.
    template <class F>
    moe_params<W> walk(arena& memory, idx n_experts, F&& take) const {
        const moe_config& c = config_;
        const idx n = c.router.n_experts, h = c.d_model, i = c.expert.d_ff;
        W* const w = nullptr;
        V* const v = nullptr;
        moe_params<W> p;
        p.router = take(v, matrix(names_.router, n, h), n, h);
        if (c.router_bias) p.router_bias = take(v, vector(names_.router_bias, n), 1, n);
        if (c.router.selection_bias) p.selection_bias = take(v, vector(names_.selection_bias, n), 1, n);
        auto* const at = memory.take_views<feed_forward_params<W>>(n_experts);
        for (idx e = 0; e < n_experts; ++e) {
            feed_forward_params<W> f;
            const std::string below = std::string(names_.experts) + std::to_string(e) + ".";
            auto source = [&](part q) {
                return names_.layout == layout::single ? single(below, q, i) : stacked(e, q);
            };
            if (c.expert.gated()) f.w_gate = take(w, source(gate), i, h);
            f.w_up = take(w, source(up), i, h);
            f.w_down = take(w, source(down), h, i);
            if (c.expert.bias && c.expert.gated()) f.b_gate = take(v, stacked_bias(e, gate), 1, i);
            if (c.expert.bias) f.b_up = take(v, stacked_bias(e, up), 1, i);
            if (c.expert.bias) f.b_down = take(v, stacked_bias(e, down), 1, h);
            if (at != nullptr) at[e] = f;
        }
        p.experts = {at, at == nullptr ? 0 : static_cast<std::size_t>(n_experts)};
        if (c.shared_d_ff > 0) {
            const std::string below(names_.shared);
            const idx s = c.shared_d_ff;
            if (c.expert.gated()) p.shared.w_gate = take(w, single(below, gate, s), s, h);
            p.shared.w_up = take(w, single(below, up, s), s, h);
            p.shared.w_down = take(w, single(below, down, s), h, s);
        }
        if (c.gate != shared_gate::none) p.shared_gate = take(v, matrix(names_.shared_gate, 1, h), 1, h);
        return p;
    }

    const safetensors& file_;
    moe_names names_;
    std::string at_;
    const moe_config& config_;
};

template <class P>
struct weights_of_moe;
template <class W>
struct weights_of_moe<moe_params<W>> {
    using type = W;
};

} // namespace detail

// The weights of one layer; P is moe_params<W>, const W where tensors may be viewed in the file, which then
// has to outlive them. `prefix` is that of the layer, "model.layers.3." for most models.
//
//   arena dry;
//   (void)load_moe<P>(file, moe_naming::mixtral, "model.layers.0.", config, dry);
//   arena memory(dry.bytes());   // what is converted, and the list of experts
//   const P weights = load_moe<P>(file, moe_naming::mixtral, "model.layers.0.", config, memory);
//
// Matrices in F8_E4M3 (DeepSeek-V3) are multiplied by the weight_scale_inv of their 128 x 128 block. Throws
// config_error where the config is of another model, input_error that lists every tensor that is missing, has
// another type or shape, or is in the file but not in the config, and capacity_error where memory is short.
template <class P>
P load_moe(const safetensors& file, moe_naming naming, std::string_view prefix, const moe_config& config,
           arena& memory) {
    const detail::moe_reader<typename detail::weights_of_moe<P>::type> reader(file, naming, prefix, config);
    if (!memory.dry()) {
        arena dry;
        (void)reader.load(dry);
        if (dry.bytes() > memory.capacity() - memory.used())
            SLUICE_THROW(capacity_error("io::load_moe", static_cast<idx>(dry.bytes()),
                                        static_cast<idx>(memory.capacity() - memory.used()), "bytes"));
    }
    return reader.load(memory);
}

// The table of a layer that looks experts up by token id (DeepSeek-V4), for moe_config::hash_table:
// vocabulary x top_k, a view of the file or a copy in `memory`, sized as for load_moe. Throws config_error
// where files of the model have none, input_error where it is missing, no matrix of integers, or holds one
// beyond 32 bits; that entries are experts is checked when they are used.
inline tensor_view<const std::int32_t> load_hash_table(const safetensors& file, moe_naming naming,
                                                       std::string_view prefix, arena& memory) {
    const detail::moe_names names = detail::names_in(file, naming, prefix);
    require(!names.hash_table.empty(), "io::load_hash_table, " + std::string(names.model),
            "files of this model have no table");
    const std::string name = std::string(prefix) + std::string(names.block) + std::string(names.hash_table);
    const tensor_info& t = file.info(name);
    if (t.shape.size() != 2 || (t.type != dtype::i64 && t.type != dtype::i32))
        detail::fail(file.path(), name + " must be a matrix of I64 or I32, is " + t.text());
    if (t.type == dtype::i32 && safetensors::view_problem(t, alignof(std::int32_t)).empty())
        return file.view<std::int32_t>(name);
    const auto table = memory.take<std::int32_t>(t.rows(), t.cols());
    for (idx i = 0; i < t.rows() && !memory.dry(); ++i)
        for (idx j = 0; j < t.cols(); ++j) {
            const idx at = i * t.cols() + j;
            const std::int64_t entry = t.type == dtype::i64 ? detail::element_of<std::int64_t>(t, at)
                                                            : detail::element_of<std::int32_t>(t, at);
            if (entry != static_cast<std::int32_t>(entry))
                detail::fail(file.path(),
                             name + " holds " + std::to_string(entry) + " in row " + std::to_string(i));
            table(i, j) = static_cast<std::int32_t>(entry);
        }
    return table;
}

} // namespace SLUICE_ISA
} // namespace sluice::io
