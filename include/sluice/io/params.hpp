// Parameter sets in safetensors files (one, or several with an index): saved, read into memory, or bound to
// the file in place.
//
// A tensor's name is `prefix` followed by its name in the set ("layers.0." and "w_up"). Its type and shape
// must be the set's; every tensor is checked before anything is written or bound. Packed matrices are saved
// panel by panel as they lie in memory, under their name and storage ("layers.0.w_up.int4_block"), with the
// matrix's shape in the metadata.
#pragma once

#include "../core/params.hpp"
#include "../core/quantised.hpp"
#include "safetensors_writer.hpp"

namespace sluice::io {
inline namespace SLUICE_ISA {

namespace detail {

// What a packed matrix is saved as; the values as floats lie in the same memory.
template <class S>
constexpr std::string_view storage_name() {
    if constexpr (std::is_same_v<S, float>)
        return "packed_f32";
    else if constexpr (std::is_same_v<S, double>)
        return "packed_f64";
    else if constexpr (std::is_same_v<S, bf16>)
        return "packed_bf16";
    else if constexpr (std::is_same_v<S, half>)
        return "packed_f16";
    else if constexpr (is_f8<S>)
        return "f8_block";
    else if constexpr (std::is_base_of_v<panel_format<int8_row>, panel_format<S>>)
        return "int8_row";
    else if constexpr (std::is_base_of_v<panel_format<int8_block>, panel_format<S>>)
        return "int8_block";
    else if constexpr (std::is_base_of_v<panel_format<int4_block>, panel_format<S>>)
        return "int4_block";
    else {
        static_assert(std::is_base_of_v<panel_format<int4_block_min>, panel_format<S>>);
        return "int4_block_min";
    }
}
template <class W>
std::string stored_name(const std::string& name) {
    if constexpr (is_packed<W>)
        return name + "." + std::string(storage_name<typename tensor_view<W>::storage>());
    else
        return name;
}
// As it lies in memory.
template <class W>
auto stored_view(const tensor_view<W>& t) {
    if constexpr (is_packed<W>)
        return tensor_view<typename tensor_view<W>::element>(t.data(), ceil_div(t.rows(), t.panel),
                                                             t.panel_stride());
    else
        return t;
}

// Collects what does not fit, to be reported at once.
class misfits {
public:
    template <class T>
    void check(const safetensors& file, const std::string& name, const tensor_view<T>& wanted,
               bool in_place) {
        if constexpr (is_packed<T>) {
            const std::string at = stored_name<T>(name), shape = shape_text(wanted.rows(), wanted.cols());
            const auto found = file.metadata().find(at);
            if (file.contains(at) && (found == file.metadata().end() || found->second != shape)) {
                ++checked_;
                return add(at + " must be of a matrix of " + shape + ", is of one of " +
                           (found == file.metadata().end() ? "no shape" : found->second));
            }
            return check(file, at, stored_view(wanted), in_place);
        } else {
            check_plain(file, name, wanted, in_place);
        }
    }
    template <class T>
    void check_plain(const safetensors& file, const std::string& name, const tensor_view<T>& wanted,
                     bool in_place) {
        ++checked_;
        if (!file.contains(name)) return add(name + " is missing");
        const tensor_info& t = file.info(name);
        if (t.type != dtype_of<T> || t.rows() != wanted.rows() || t.cols() != wanted.cols())
            return add(name + " must be " + std::string(facts(dtype_of<T>).name) + " " +
                       shape_text(wanted.rows(), wanted.cols()) + ", is " + t.text());
        const std::string problem = in_place ? safetensors::view_problem(t, alignof(T)) : std::string();
        if (!problem.empty()) add(name + " " + problem);
    }
    // What somebody else found out about a tensor; "" where it fits.
    void report(const std::string& name, const std::string& problem) {
        ++checked_;
        if (!problem.empty()) add(name + " " + problem);
    }
    void require_none(const safetensors& file) const { require_none(file.path()); }
    void require_none(const std::string& path) const {
        if (count_ == 0) return;
        const std::string rest = count_ > listed ? "; and " + std::to_string(count_ - listed) + " more" : "";
        fail(path, std::to_string(count_) + " of " + std::to_string(checked_) +
                       " parameters do not fit: " + text_ + rest);
    }

private:
    static constexpr idx listed = 8;
    void add(const std::string& what) {
        if (count_ < listed) text_ += (count_ > 0 ? "; " : "") + what;
        ++count_;
    }
    idx checked_ = 0;
    idx count_ = 0;
    std::string text_;
};

inline std::string full_name(std::string_view prefix, const param_name& name) {
    return std::string(prefix) + name.str();
}

template <class P>
void check_params(const safetensors& file, std::string_view prefix, const P& params, bool in_place) {
    misfits found;
    each_param(
        [&]<class T>(const param_name& name, role, const tensor_view<T>& t) {
            found.check(file, full_name(prefix, name), t, in_place);
        },
        params);
    found.require_none(file);
}

} // namespace detail

// Adds every tensor of the set to the writer, buffers included; vectors of one row get one dimension. The
// tensors are read by writer.save. Throws as writer.add does.
template <class P>
void save_params(safetensors_writer& writer, std::string_view prefix, const P& params) {
    each_param(
        [&]<class T>(const param_name& name, role r, const tensor_view<T>& t) {
            const std::string at = detail::full_name(prefix, name);
            if constexpr (is_packed<T>) {
                writer.add(detail::stored_name<T>(at), detail::stored_view(t));
                writer.metadata(detail::stored_name<T>(at), shape_text(t.rows(), t.cols()));
            } else if (r == role::vector && t.rows() == 1)
                writer.add(at, t, {t.cols()});
            else
                writer.add(at, t);
        },
        params);
}

// Copies the file's tensors into the set's. Tensors of the file that the set does not name are ignored.
// Throws input_error that lists every tensor that is missing or has another type or shape; nothing is
// written then.
template <class P>
void load_params(const safetensors& file, std::string_view prefix, const P& params) {
    detail::check_params(file, prefix, params, false);
    each_param(
        [&]<class T>(const param_name& name, role, const tensor_view<T>& t) {
            static_assert(!std::is_const_v<T>,
                          "sluice: load_params writes; use bind_params for const parameters");
            file.copy_to(detail::stored_name<T>(detail::full_name(prefix, name)), detail::stored_view(t));
        },
        params);
}

// Replaces the views of a set shaped before (by P::bind on a dry arena, for example) by views of the file,
// which has to outlive them. Throws as load_params does, also for tensors not aligned for their type; the
// set is unchanged then.
template <class P>
void bind_params(const safetensors& file, std::string_view prefix, P& params) {
    detail::check_params(file, prefix, params, true);
    each_param(
        [&]<class T>(const param_name& name, role, tensor_view<T>& t) {
            static_assert(std::is_const_v<T>, "sluice: a file's tensors are const; use params<const W>");
            const std::string at = detail::stored_name<T>(detail::full_name(prefix, name));
            if constexpr (is_packed<T>)
                t = {file.view<typename tensor_view<T>::element>(at).data(), t.rows(), t.cols()};
            else
                t = file.view<T>(at);
        },
        params);
}

namespace detail {

// Bytes of the views that the set keeps of its parts (arena::take_views), beside its own.
template <class P, class Config>
std::size_t views_bytes(const Config& config) {
    arena views;
    arena shapes = arena::shapes(views);
    (void)P::bind(shapes, config);
    return views.used();
}

} // namespace detail

// The set that a config asks for, bound to the file. For sets whose number of parts is known at compile time;
// others (stack) throw config_error and need bound_params.
template <class P, class Config>
P bind(const safetensors& file, std::string_view prefix, const Config& config) {
    require(detail::views_bytes<P>(config) == 0, "io::bind",
            "the number of layers is known at run time only; use io::bound_params");
    arena dry;
    P params = P::bind(dry, config);
    bind_params(file, prefix, params);
    return params;
}

// The same for every set, together with the file and the memory that the set keeps views of its layers in.
// Throws as bind_params does, and input_error for a config that asks for more layers than the file can hold.
template <class P>
struct bound_params {
    template <class Config>
    bound_params(safetensors file, std::string_view prefix, const Config& config)
        : source(std::move(file)), memory(views_bytes(source, config)) {
        arena shapes = arena::shapes(memory);
        view = P::bind(shapes, config);
        bind_params(source, prefix, view);
    }

    safetensors source;
    arena memory;
    P view;

private:
    // A config may come from a file as well: what it makes us take is held against what the file shows.
    template <class Config>
    static std::size_t views_bytes(const safetensors& file, const Config& config) {
        constexpr std::size_t most = 4096; // of a layer, which has at least one tensor
        const std::size_t bytes = detail::views_bytes<P>(config);
        if (bytes > most * (file.tensors().size() + 1))
            detail::fail(file.path(), "holds " + std::to_string(file.tensors().size()) +
                                          " tensors, too few for the layers that the config asks for");
        return bytes;
    }
};

} // namespace SLUICE_ISA
} // namespace sluice::io
