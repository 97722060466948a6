// Other libraries that do the same work. Each is found when the build is configured; where it is absent its
// functions return an empty call, and rows leave it out.
#pragma once

#include "measure.hpp"

#include <sluice/core/executor.hpp>
#include <sluice/core/tensor_view.hpp>

#include <string>

namespace sluice::bench {

struct peer {
    std::string name;
    std::string version; // and what it found out about the processor; "absent" without the library
};
std::vector<peer> peers();

// Starts the program again where the peers need environment variables, which they read before main: kernels
// for this processor instead of a fallback for an unknown one, and threads that soon sleep.
void enter_peer_environment(char** argv);

// c (+)= A B, each factor as it lies in memory or transposed.
struct product {
    tensor_view<const float> a;
    bool a_transposed = false;
    tensor_view<const float> b;
    bool b_transposed = false;
    tensor_view<float> c;
    bool accumulate = false;
};

// What oneDNN may do to the second factor before the clock starts.
enum class onednn_form {
    plain,
    packed,      // in the layout it likes best
    packed_bf16, // the same in bf16; the first factor is converted in every call
};

// All views have to stay alive as long as the call.
call openblas(const product& p, idx threads);
call onednn(const product& p, idx threads, onednn_form form);
call eigen(const product& p, executor_ref ex);

// For work made of many small products; `openblas_gemm` is sgemm, row-major, in the calling thread.
bool has_openblas();
void openblas_one_thread();
void openblas_gemm(bool a_transposed, bool b_transposed, idx m, idx n, idx k, float alpha, const float* a,
                   idx a_row, const float* b, idx b_row, float beta, float* c, idx c_row);

} // namespace sluice::bench
