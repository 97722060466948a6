// expect: sluice: a file's tensors are const; use params<const W>
#include <sluice/io/params.hpp>

template <class W>
struct params {
    sluice::tensor_view<W> w;
    template <class F, class First, class... Sets>
    static void each(F& f, const sluice::param_name& at, First& first, Sets&... sets) {
        f(sluice::param_name(at, "w"), sluice::role::matrix, first.w, sets.w...);
    }
};

#ifdef CONTROL
void call(const sluice::io::safetensors& file, params<const float>& p) {
    sluice::io::bind_params(file, "", p);
}
#else
void call(const sluice::io::safetensors& file, params<float>& p) { sluice::io::bind_params(file, "", p); }
#endif
