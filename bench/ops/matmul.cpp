// Products with a weight matrix, forward and backward. Shapes are rows x in x out.
#include <sluice/ops/matmul.hpp>

#include "../support/contest.hpp"
#include "../support/peers.hpp"

namespace {

using namespace sluice;
using namespace sluice::bench;

struct shape {
    idx rows, in, out;
    double flops() const { return 2.0 * static_cast<double>(rows * in * out); }
    std::string text() const {
        return std::to_string(rows) + "x" + std::to_string(in) + "x" + std::to_string(out);
    }
};

// How the weights of y = x W^T are stored. To add a storage: a struct like this one, and a line at the end.
struct unpacked_f32 {
    static constexpr const char* name = "unpacked/f32";
    static constexpr const char *openblas_name = "openblas", *eigen_name = "eigen";
    static constexpr double bytes_of_weight = 4;
    static constexpr double tolerance = 1e-4; // against products in f32
    static constexpr onednn_form peer_form = onednn_form::plain;
    static constexpr unit peak = unit::f32_fma;
    explicit unpacked_f32(tensor_view<const float> w) : view(w) {}
    tensor_view<const float> view; // what matmul takes
};

// Packed before the clock starts, as weights are.
template <class S>
struct packed_storage {
    static constexpr unit peak = multiplies_bytes<S> ? unit::int8_dot : unit::f32_fma;
    explicit packed_storage(tensor_view<const float> w)
        : memory(1, tensor_view<packed<S>>::elements(w.rows(), w.cols())),
          view(memory.data(), w.rows(), w.cols()) {
        pack_matrix(w, view);
    }
    tensor<typename tensor_view<packed<S>>::element> memory;
    tensor_view<packed<S>> view;
};
struct packed_f32 : packed_storage<float> {
    using packed_storage::packed_storage;
    static constexpr const char* name = "packed/f32";
    static constexpr const char *openblas_name = "openblas", *eigen_name = "eigen";
    static constexpr double bytes_of_weight = 4;
    static constexpr double tolerance = 1e-4;
    static constexpr onednn_form peer_form = onednn_form::packed;
};
struct packed_bf16 : packed_storage<bf16> {
    using packed_storage::packed_storage;
    static constexpr const char* name = "packed/bf16";
    static constexpr const char *openblas_name = "openblas_f32", *eigen_name = "eigen_f32"; // they store f32
    static constexpr double bytes_of_weight = 2;
    static constexpr double tolerance = 1e-2; // against products of the weights before they were narrowed
    static constexpr onednn_form peer_form = onednn_form::packed_bf16;
};

// Codes and scales; x becomes bytes within the time. Peers multiply the weights as they were, in f32.
template <class S>
struct packed_bytes : packed_storage<S> {
    using packed_storage<S>::packed_storage;
    static constexpr bool is_row = std::is_same_v<S, int8_row>;
    static constexpr const char* name = is_row                          ? "packed/int8row"
                                        : std::is_same_v<S, int8_block> ? "packed/int8block"
                                                                        : "packed/int4block";
    static constexpr const char *openblas_name = "openblas_f32", *eigen_name = "eigen_f32";
    static constexpr double bytes_of_weight =
        (is_row ? 0.0 : 1.0 / 16) + static_cast<double>(panel_format<S>::bits) / 8;
    static constexpr double tolerance = panel_format<S>::bits == 8 ? 0.1 : 0.6;
    static constexpr onednn_form peer_form = onednn_form::packed;
};

struct forward_data {
    explicit forward_data(const shape& s)
        : x(uniform(s.rows, s.in, 1, 1)),
          w(uniform(s.out, s.in, 1, 2)),
          y(s.rows, s.out),
          y_peer(s.rows, s.out) {}
    tensor<float> x, w, y, y_peer;
};

template <class Storage>
void forward(const shape& s, when w = when::always) {
    row(
        std::string("matmul/") + Storage::name + "/" + s.text(),
        [s](contest& c) {
            auto& d = c.hold<forward_data>(s);
            auto& storage = c.hold<Storage>(d.w.view());
            auto multiply = [&d, &storage](arena& workspace, executor_ref ex) {
                matmul(d.x, storage.view, d.y.view(), {}, workspace, ex);
            };
            auto& workspace = c.hold<arena>(workspace_for(c.threads(), multiply));
            c.flops(s.flops(), Storage::peak);
            // Few rows are bound by reading the weights.
            if (s.rows <= 16)
                c.bytes(Storage::bytes_of_weight * static_cast<double>(d.w.size()), traffic::read);
            c.ours([&workspace, multiply, ex = c.executor()] { multiply(workspace, ex); }, d.y);
            const product p{.a = d.x, .b = d.w, .b_transposed = true, .c = d.y_peer};
            c.against(Storage::openblas_name, openblas(p, c.threads()), d.y_peer, Storage::tolerance);
            c.against(Storage::eigen_name, eigen(p, c.executor()), d.y_peer, Storage::tolerance);
            // in f32 beside whole numbers
            c.against(Storage::peak == unit::int8_dot ? "onednn_f32" : "onednn",
                      onednn(p, c.threads(), Storage::peer_form), d.y_peer,
                      std::max(1e-2, Storage::tolerance));
            if (Storage::peer_form == onednn_form::plain)
                c.against("onednn_packed", onednn(p, c.threads(), onednn_form::packed), d.y_peer,
                          Storage::tolerance);
            if (Storage::bytes_of_weight == 4) // as torch.nn.Linear multiplies
                c.against("libtorch", libtorch(p, c.threads()), d.y_peer);
        },
        w);
}

// Both products of the backward pass, from dy (rows, out): dx = dy W, and dW += dy^T x.
struct backward_data {
    explicit backward_data(const shape& s)
        : x(uniform(s.rows, s.in, 1, 1)),
          dy(uniform(s.rows, s.out, 1, 3)),
          w(uniform(s.out, s.in, 1, 2)),
          dx(s.rows, s.in),
          dx_peer(s.rows, s.in),
          dw(s.out, s.in),
          dw_peer(s.out, s.in) {}
    tensor<float> x, dy, w, dx, dx_peer, dw, dw_peer;
};

void backward(contest& c, const shape& s, const product& p, tensor_view<float> result,
              std::function<void(arena&, executor_ref)> multiply) {
    auto& workspace = c.hold<arena>(workspace_for(c.threads(), multiply));
    c.flops(s.flops());
    c.ours([&workspace, multiply, ex = c.executor()] { multiply(workspace, ex); }, result);
    c.against("openblas", openblas(p, c.threads()), p.c);
    c.against("eigen", eigen(p, c.executor()), p.c);
    c.against("onednn", onednn(p, c.threads(), onednn_form::plain), p.c);
    c.against("libtorch", libtorch(p, c.threads()), p.c);
}

void dx(const shape& s) {
    row("matmul/dx/f32/" + s.text(), [s](contest& c) {
        auto& d = c.hold<backward_data>(s);
        backward(c, s, {.a = d.dy, .b = d.w, .c = d.dx_peer}, d.dx, [&d](arena& workspace, executor_ref ex) {
            matmul_dx(d.dy, d.w, d.dx.view(), false, workspace, ex);
        });
    });
}

void dw(const shape& s) {
    row("matmul/dw/f32/" + s.text(), [s](contest& c) {
        auto& d = c.hold<backward_data>(s);
        const product p{.a = d.dy, .a_transposed = true, .b = d.x, .c = d.dw_peer, .accumulate = true};
        backward(c, s, p, d.dw, [&d](arena& workspace, executor_ref ex) {
            matmul_dw(d.dy, d.x, d.dw.view(), workspace, ex);
        });
    });
}

const declare rows([] {
    constexpr shape shapes[] = {{512, 2048, 2048}, {2048, 2048, 2048}, {8, 4096, 4096}, {1, 4096, 4096}};
    for (const shape& s : shapes) {
        forward<unpacked_f32>(s);
        forward<packed_f32>(s);
        forward<packed_bf16>(s);
    }
    for (const shape& s : {shapes[0], shapes[2], shapes[3]}) {
        forward<packed_bytes<int8_row>>(s);
        forward<packed_bytes<int8_block>>(s);
        forward<packed_bytes<int4_block>>(s);
    }
    for (const shape& s : {shape{128, 4096, 1024}, shape{16, 4096, 4096}, shape{4096, 4096, 4096}})
        forward<unpacked_f32>(s, when::full);
    dx({512, 2048, 2048});
    dw({512, 2048, 2048});
});

} // namespace
