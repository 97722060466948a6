// expect: sluice: load_params writes; use bind_params for const parameters
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
void call(const sluice::io::safetensors& file, const params<float>& p) {
    sluice::io::load_params(file, "", p);
}
#else
void call(const sluice::io::safetensors& file, params<const float>& p) {
    sluice::io::load_params(file, "", p);
}
#endif
