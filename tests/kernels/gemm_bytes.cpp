// Products of bytes against 64-bit integers and the same chain of roundings: to the bit, in every tile.
#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/packed_copy.hpp"

#include <sluice/kernels/gemm_bytes.hpp>

#include <vector>

using namespace sluice;
using namespace sluice::test;

namespace {

template <class S>
struct product_of_bytes {
    using format = panel_format<S>;

    product_of_bytes(idx rows, idx k, idx cols)
        : m(rows),
          n(cols),
          layout{k, format::group},
          stride(layout.bytes() + 3),
          x(uniform_matrix<float>(m, k, 1)),
          w(uniform_matrix<float>(n, k, 2)),
          packed(w.view()),
          codes(std::max<idx>(m * stride, 1)),
          c(m, n) {
        for (idx i = 0; i < m; ++i)
            simd::invoke(simd::scalar{}, kernels::quantise_row{}, static_cast<const float*>(x.row(i)), layout,
                         int{format::zero}, codes.data() + i * stride);
    }
    // From block `first`, `blocks` of them.
    template <class Arch>
    void run(Arch, const float* start, idx start_row, idx first, idx blocks) {
        const idx group = first * format::block / format::group;
        const kernels::gemm_bytes_args<S> g{.codes = codes.data() + first * format::block,
                                            .scales = codes.data() + layout.scales() + 4 * group,
                                            .starts = codes.data() + layout.starts() + 4 * group,
                                            .a_row = stride,
                                            .panels = packed.view.data() + format::head +
                                                      first * (format::block_head + format::codes),
                                            .heads = packed.view.data(),
                                            .panel_stride = packed.view.panel_stride(),
                                            .start = start,
                                            .start_row = start_row,
                                            .c = c.data(),
                                            .c_row = c.view().row_stride(),
                                            .m = m,
                                            .n = n,
                                            .n_blocks = blocks};
        simd::invoke(Arch{}, kernels::gemm_bytes{}, g);
    }
    idx n_blocks() const { return ceil_div(layout.cols, format::block); }

    float element(idx i, idx j, float start) {
        const std::byte* row = codes.data() + i * stride;
        auto read = [&](idx at) {
            float value;
            std::memcpy(&value, row + at, 4);
            return value;
        };
        float sum = start;
        for (idx g = 0; g < layout.groups(); ++g) {
            std::int64_t products = 0;
            float scale = 0, least = 0;
            for (idx k = g * format::group; k < std::min(layout.cols, (g + 1) * format::group); ++k) {
                const detail::block_place<S> at(packed.view.data(), packed.view.panel_stride(), j, k / 32);
                const quantised_block q = at.get();
                products += std::int64_t{static_cast<std::int8_t>(row[k])} * (q.codes[k % 32] - format::zero);
                scale = to_float(q.scale);
                least = to_float(q.min);
                if (!format::half_scales) std::memcpy(&scale, at.scale_at(), 4);
            }
            sum = chain_step(static_cast<float>(products), scale * read(layout.scales() + 4 * g), sum);
            if (format::has_min) sum = chain_step(least, read(layout.starts() + 4 * g), sum);
        }
        return sum;
    }

    idx m, n;
    kernels::byte_row_layout layout;
    idx stride;
    padded<float> x, w;
    packed_copy<S> packed;
    page_end<std::byte> codes;
    padded<float> c;
};

template <class S, class Arch>
void check_shapes() {
    for (const auto& [m, k, n] : {std::array<idx, 3>{1, 32, 1},
                                  {1, 600, 70},
                                  {2, 31, 33},
                                  {3, 256, 32},
                                  {5, 300, 40},
                                  {6, 65, 64},
                                  {7, 20, 31},
                                  {8, 513, 17},
                                  {13, 96, 50},
                                  {19, 40, 65}}) {
        product_of_bytes<S> p(m, k, n);
        CAPTURE(m, k, n);
        const auto bias = uniform_matrix<float>(1, n, 3);
        const auto starts = uniform_matrix<float>(m, n, 4);
        auto check = [&](const float* start, idx start_row) {
            for (idx i = 0; i < starts.view().rows(); ++i)
                for (idx j = 0; j < starts.view().cols(); ++j)
                    if (const float want = p.element(i, j, start == nullptr ? 0 : start[i * start_row + j]);
                        std::bit_cast<std::uint32_t>(p.c(i, j)) != std::bit_cast<std::uint32_t>(want))
                        FAIL(place_text(i, j) + bits_text(p.c(i, j)) + " is not " + bits_text(want));
            REQUIRE(p.c.touched() == "");
        };
        p.run(Arch{}, nullptr, 0, 0, p.n_blocks());
        check(nullptr, 0);
        p.run(Arch{}, bias.view().data(), 0, 0, p.n_blocks());
        check(bias.view().data(), 0);
        // in two parts, the sums of the first waiting in C
        const idx cut = std::min(p.n_blocks(), panel_format<S>::group / panel_format<S>::block);
        p.run(Arch{}, starts.view().data(), starts.view().row_stride(), 0, cut);
        p.run(Arch{}, p.c.data(), p.c.view().row_stride(), cut, p.n_blocks() - cut);
        check(starts.view().data(), starts.view().row_stride());
    }
}

} // namespace

TEMPLATE_TEST_CASE("gemm_bytes: the bits of integer sums and one chain", "", int8_row, int8_block, int4_block,
                   int4_block_min) {
    check_shapes<TestType, simd::native>();
    check_shapes<TestType, simd::scalar>();
}

TEST_CASE("gemm_bytes: sums at the end of their range") {
    // all codes 127 and -127: 256 of them give the largest sum that is converted
    padded<float> w(1, 256), x(1, 256), c(1, 1);
    fill(w.view(), 3.0F);
    for (const float sign : {1.0F, -1.0F}) {
        fill(x.view(), sign * 2.0F);
        const packed_copy<int8_row> p(w.view());
        const kernels::byte_row_layout layout{256, 256};
        page_end<std::byte> codes(layout.bytes());
        simd::invoke(simd::native{}, kernels::quantise_row{}, static_cast<const float*>(x.row(0)), layout,
                     128, codes.data());
        const kernels::gemm_bytes_args<int8_row> g{.codes = codes.data(),
                                                   .scales = codes.data() + layout.scales(),
                                                   .starts = codes.data() + layout.starts(),
                                                   .a_row = 0,
                                                   .panels = p.view.data() + 128,
                                                   .heads = p.view.data(),
                                                   .panel_stride = p.view.panel_stride(),
                                                   .start = nullptr,
                                                   .start_row = 0,
                                                   .c = c.data(),
                                                   .c_row = 1,
                                                   .m = 1,
                                                   .n = 1,
                                                   .n_blocks = 8};
        simd::invoke(simd::native{}, kernels::gemm_bytes{}, g);
        CHECK(c(0, 0) == approx(sign * 6 * 256));
    }
}
