#include "peers.hpp"

#include <sluice/core/eigen.hpp>

#include <cstdlib>
#include <memory>

#if defined(SLUICE_BENCH_OPENBLAS)
#    include <cblas.h>
#endif
#if defined(SLUICE_BENCH_ONEDNN) || defined(SLUICE_BENCH_TORCH)
#    include <dlfcn.h>
#endif
#if defined(SLUICE_BENCH_ONEDNN)
#    include <oneapi/dnnl/dnnl.hpp>
#endif
#if defined(__unix__) || defined(__APPLE__)
#    include <unistd.h>
#endif

namespace sluice::bench {
namespace {

#if defined(__x86_64__)
bool cpu_has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
bool cpu_has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#else
bool cpu_has_avx512() { return false; }
bool cpu_has_avx2() { return false; }
#endif

// The kernels OpenBLAS should have chosen, or nothing where its own choice is good. Releases older than the
// processor fall back to SSE3 kernels, a fifth of the speed, and settings made for other programs may ask for
// AVX2 kernels, half of it.
std::string better_openblas_core([[maybe_unused]] const std::string& chosen) {
    auto one_of = [&](std::initializer_list<const char*> names) {
        return std::any_of(names.begin(), names.end(), [&](const char* name) { return chosen == name; });
    };
    if (cpu_has_avx512()) return one_of({"SkylakeX", "Cooperlake", "SapphireRapids"}) ? "" : "SkylakeX";
    if (cpu_has_avx2()) return one_of({"Haswell", "Zen", "Excavator"}) ? "" : "Haswell";
    return "";
}

} // namespace

#if defined(SLUICE_BENCH_OPENBLAS)

bool has_openblas() { return true; }
void openblas_one_thread() { openblas_set_num_threads(1); }

void openblas_gemm(bool a_transposed, bool b_transposed, idx m, idx n, idx k, float alpha, const float* a,
                   idx a_row, const float* b, idx b_row, float beta, float* c, idx c_row) {
    auto number = [](idx i) { return static_cast<blasint>(i); };
    auto order = [](bool transposed) { return transposed ? CblasTrans : CblasNoTrans; };
    // One row goes to sgemv, as its users know: sgemm takes three times as long for it.
    if (m == 1 && !a_transposed)
        return cblas_sgemv(CblasRowMajor, b_transposed ? CblasNoTrans : CblasTrans,
                           number(b_transposed ? n : k), number(b_transposed ? k : n), alpha, b,
                           number(b_row), a, 1, beta, c, 1);
    cblas_sgemm(CblasRowMajor, order(a_transposed), order(b_transposed), number(m), number(n), number(k),
                alpha, a, number(a_row), b, number(b_row), beta, c, number(c_row));
}

call openblas(const product& p, idx threads) {
    return [p, threads] {
        openblas_set_num_threads(static_cast<int>(threads));
        openblas_gemm(p.a_transposed, p.b_transposed, p.c.rows(), p.c.cols(),
                      p.a_transposed ? p.a.rows() : p.a.cols(), 1, p.a.data(), p.a.row_stride(), p.b.data(),
                      p.b.row_stride(), p.accumulate ? 1 : 0, p.c.data(), p.c.row_stride());
    };
}

static std::string openblas_core() { return openblas_get_corename(); }
static peer openblas_peer() {
    // "OpenBLAS 0.3.21 NO_LAPACKE DYNAMIC_ARCH ...": the number is enough.
    std::string text = openblas_get_config();
    text.erase(0, text.find(' ') + 1);
    return {"OpenBLAS", text.substr(0, text.find(' ')) + ", " + openblas_core() + " kernels"};
}

#else

bool has_openblas() { return false; }
void openblas_one_thread() {}
void openblas_gemm(bool, bool, idx, idx, idx, float, const float*, idx, const float*, idx, float, float*,
                   idx) {}
call openblas(const product&, idx) { return {}; }
static std::string openblas_core() { return {}; }
static peer openblas_peer() { return {"OpenBLAS", "absent"}; }

#endif

#if defined(SLUICE_BENCH_ONEDNN)

namespace {

// The library's OpenMP runtime is there if and only if oneDNN brought it.
bool set_openmp_threads(idx threads) {
    using function = void (*)(int);
    static const auto set = reinterpret_cast<function>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
    if (set != nullptr) set(static_cast<int>(threads));
    return set != nullptr;
}

class onednn_product {
public:
    onednn_product(const product& p, idx threads, onednn_form form)
        : engine_(dnnl::engine::kind::cpu, 0), stream_(engine_), threads_(threads) {
        using dnnl::memory;
        using type = memory::data_type;
        set_openmp_threads(threads);
        const idx k = p.a_transposed ? p.a.rows() : p.a.cols();
        const memory::desc a = described(p.c.rows(), k, p.a.row_stride(), p.a_transposed);
        const memory::desc b = described(k, p.c.cols(), p.b.row_stride(), p.b_transposed);
        const memory::desc c = described(p.c.rows(), p.c.cols(), p.c.row_stride(), false);
        const bool bf16 = form == onednn_form::packed_bf16;
        const memory::desc a_wanted =
            bf16 ? memory::desc({p.c.rows(), k}, type::bf16, memory::format_tag::ab) : a;
        const memory::desc b_wanted =
            form == onednn_form::plain
                ? b
                : memory::desc({k, p.c.cols()}, bf16 ? type::bf16 : type::f32, memory::format_tag::any);
        dnnl::primitive_attr attributes;
        if (p.accumulate) {
            dnnl::post_ops sum;
            sum.append_sum(1);
            attributes.set_post_ops(sum);
        }
#    if DNNL_VERSION_MAJOR >= 3
        const dnnl::matmul::primitive_desc planned(engine_, a_wanted, b_wanted, c, attributes);
#    else
        const dnnl::matmul::primitive_desc planned({a_wanted, b_wanted, c}, attributes, engine_);
#    endif
        given_ = memory(a, engine_, const_cast<float*>(p.a.data()));
        a_ = given_;
        if (bf16) {
            a_ = memory(a_wanted, engine_);
            convert_ = dnnl::reorder(given_, a_);
        }
        b_ = memory(b, engine_, const_cast<float*>(p.b.data()));
        if (form != onednn_form::plain) {
            const memory packed(planned.weights_desc(), engine_);
            dnnl::reorder(b_, packed).execute(stream_, b_, const_cast<memory&>(packed));
            stream_.wait();
            b_ = packed;
        }
        c_ = memory(c, engine_, p.c.data());
        multiply_ = dnnl::matmul(planned);
    }
    void run() {
        set_openmp_threads(threads_);
        if (convert_) convert_.execute(stream_, given_, a_);
        multiply_.execute(stream_, {{DNNL_ARG_SRC, a_}, {DNNL_ARG_WEIGHTS, b_}, {DNNL_ARG_DST, c_}});
        stream_.wait();
    }

private:
    static dnnl::memory::desc described(idx rows, idx cols, idx row_stride, bool transposed) {
        const dnnl::memory::dims strides =
            transposed ? dnnl::memory::dims{1, row_stride} : dnnl::memory::dims{row_stride, 1};
        return {{rows, cols}, dnnl::memory::data_type::f32, strides};
    }

    dnnl::engine engine_;
    dnnl::stream stream_;
    idx threads_;
    dnnl::memory given_, a_, b_, c_;
    dnnl::reorder convert_;
    dnnl::matmul multiply_;
};

} // namespace

call onednn(const product& p, idx threads, onednn_form form) {
    if (threads > 1 && !set_openmp_threads(threads)) return {}; // another runtime, which we cannot limit
    try {
        const auto made = std::make_shared<onednn_product>(p, threads, form);
        return [made] { made->run(); };
    } catch (const dnnl::error&) {
        return {}; // no such product on this processor
    }
}

static peer onednn_peer() {
    const dnnl_version_t* v = dnnl_version();
    return {"oneDNN",
            std::to_string(v->major) + "." + std::to_string(v->minor) + "." + std::to_string(v->patch)};
}

#else

call onednn(const product&, idx, onednn_form) { return {}; }
static peer onednn_peer() { return {"oneDNN", "absent"}; }

#endif

#if defined(SLUICE_BENCH_TORCH)

// libtorch brings a BLAS and a oneDNN of its own and exports some of their names (sgemm_, for one).
// RTLD_LOCAL keeps them from the other peers, RTLD_DEEPBIND keeps the other peers' from libtorch. The OpenMP
// runtime is loaded once for all: its file name is the same. What libtorch needs may be missing where the
// program runs, which ends nothing.
static const torch_functions* torch(std::string* problem = nullptr) {
    static void* const module = dlopen(SLUICE_BENCH_TORCH, RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND);
    static const std::string error = module == nullptr ? dlerror() : "";
    if (problem != nullptr) *problem = error;
    if (module == nullptr) return nullptr;
    using function = const torch_functions* (*)();
    static const auto functions = reinterpret_cast<function>(dlsym(module, "sluice_bench_torch"));
    return functions();
}
static peer torch_peer() {
    std::string problem;
    const torch_functions* found = torch(&problem);
    return {"libtorch", found != nullptr ? found->version() : "absent: " + problem};
}

#else

static const torch_functions* torch() { return nullptr; }
static peer torch_peer() { return {"libtorch", "absent"}; }

#endif

call libtorch(const product& p, idx threads) { return torch() ? torch()->multiply(p, threads) : call(); }
call libtorch_attention(const attended& p, idx threads, torch_gqa form) {
    return torch() ? torch()->attend(p, threads, form) : call();
}
mixture_call libtorch_mixture(const experts_of_tokens& p, idx threads) {
    return torch() ? torch()->mix(p, threads) : mixture_call();
}
bag_call libtorch_bags(tensor_view<const float> table, idx threads) {
    return torch() ? torch()->sum_bags(table, threads) : bag_call();
}
std::shared_ptr<torch_training> libtorch_training(const dense_model& m, idx threads) {
    return torch() ? torch()->train(m, threads) : nullptr;
}

// Eigen's own threads need OpenMP, so each worker takes some of the columns.
call eigen(const product& p, executor_ref ex) {
    return [p, ex] {
        const idx n = p.c.cols(), parts = ex.concurrency();
        ex(parts, [&](idx begin, idx end, idx) {
            for (idx part = begin; part < end; ++part) {
                const idx first = n * part / parts, cols = n * (part + 1) / parts - first;
                auto c = p.c.col_block(first, cols).eigen();
                const auto a = p.a.eigen();
                const auto b =
                    p.b_transposed ? p.b.row_block(first, cols).eigen() : p.b.col_block(first, cols).eigen();
                if (!p.accumulate) c.setZero();
                if (p.a_transposed && p.b_transposed)
                    c.noalias() += a.transpose() * b.transpose();
                else if (p.a_transposed)
                    c.noalias() += a.transpose() * b;
                else if (p.b_transposed)
                    c.noalias() += a * b.transpose();
                else
                    c.noalias() += a * b;
            }
        });
    };
}

std::vector<peer> peers() {
    const std::string eigen_version =
#if defined(EIGEN_MAJOR_VERSION) && EIGEN_MAJOR_VERSION >= 5
        std::to_string(EIGEN_MAJOR_VERSION) + "." + std::to_string(EIGEN_MINOR_VERSION) + "." +
        std::to_string(EIGEN_PATCH_VERSION);
#else
        std::to_string(EIGEN_WORLD_VERSION) + "." + std::to_string(EIGEN_MAJOR_VERSION) + "." +
        std::to_string(EIGEN_MINOR_VERSION);
#endif
    return {{"Eigen", eigen_version}, openblas_peer(), onednn_peer(), torch_peer(), ggml_peer()};
}

void enter_peer_environment([[maybe_unused]] char** argv) {
#if defined(__linux__)
    constexpr const char* entered = "SLUICE_BENCH_ENVIRONMENT";
    if (std::getenv(entered) != nullptr) return;
    setenv(entered, "1", 1);
    // About 20 us of spinning, as our own pool does.
    setenv("GOMP_SPINCOUNT", "2000", 0);
    setenv("OPENBLAS_THREAD_TIMEOUT", "16", 0);
    const std::string core = has_openblas() ? better_openblas_core(openblas_core()) : "";
    if (!core.empty()) setenv("OPENBLAS_CORETYPE", core.c_str(), 1);
    execv("/proc/self/exe", argv); // where this fails we go on as we are
#endif
}

} // namespace sluice::bench
