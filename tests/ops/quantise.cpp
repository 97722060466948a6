// Into the storage types and back: error bounds, blocks of files bit for bit, bad weights.
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/packed_copy.hpp"

#include <sluice/core/tensor.hpp>
#include <sluice/ops/quantise.hpp>

#include <cmath>

using namespace sluice;
using namespace sluice::test;

namespace {

// Half a step of the scale of w(r, k), and what rounding adds.
template <class S, class W>
double allowed_error(const W& w, idx r, idx k) {
    using format = panel_format<S>;
    const idx span = format::half_scales ? 32 : w.cols();
    float least = 0, most = 0;
    for (idx i = k / span * span; i < std::min(w.cols(), (k / span + 1) * span); ++i) {
        least = i % span == 0 ? w(r, i) : std::min(least, w(r, i));
        most = i % span == 0 ? w(r, i) : std::max(most, w(r, i));
    }
    const double extreme = static_cast<double>(std::max(-least, most));
    const double step = format::has_min     ? static_cast<double>(most - least) / 15
                        : format::bits == 8 ? extreme / 127
                                            : extreme / 8;
    // the extreme's opposite is one step beyond the last code of 4 bits
    const double half_step = format::bits == 4 && !format::has_min ? step : step / 2;
    return half_step + extreme * (format::half_scales ? 0x1p-10 : 0x1p-20) + 1e-30;
}

} // namespace

TEMPLATE_TEST_CASE("quantise: weights differ by half a step at most", "", int8_row, int8_block, int4_block,
                   int4_block_min) {
    for (const auto& [rows, cols] : {std::pair<idx, idx>{1, 1}, {3, 31}, {32, 32}, {33, 100}, {70, 257}}) {
        const padded<float> w = uniform_matrix<float>(rows, cols, 5, -3, 2);
        const padded<float> back = unpacked(packed_copy<TestType>(w.view()).view);
        for (idx r = 0; r < rows; ++r)
            for (idx k = 0; k < cols; ++k) {
                const double error =
                    std::abs(static_cast<double>(w.view()(r, k)) - static_cast<double>(back.view()(r, k)));
                CAPTURE(r, k, w.view()(r, k), back.view()(r, k));
                REQUIRE(error <= allowed_error<TestType>(w.view(), r, k));
            }
    }
}

TEMPLATE_TEST_CASE("quantise: what can be represented comes back", "", int8_row, int8_block, int4_block,
                   int4_block_min) {
    using format = panel_format<TestType>;
    padded<float> w(5, 64);
    for (idx r = 0; r < 5; ++r)
        for (idx k = 0; k < 64; ++k) {
            const int low = format::bits == 8 ? -127 : format::has_min ? 0 : -8;
            const int code =
                k % 32 == 0 ? low : low + static_cast<int>((r * 64 + k) % (format::bits == 8 ? 255 : 16));
            const int last = format::has_min && k % 32 == 1 ? 15 : code;
            w(r, k) = 0.25F * static_cast<float>(last) + (format::has_min ? -1.5F : 0);
        }
    const padded<float> back = unpacked(packed_copy<TestType>(w.view()).view);
    CHECK(different_bits(w.view(), back.view()) == "");
    // and what came back is packed as it was
    const packed_copy<TestType> first(w.view()), second(back.view());
    CHECK(std::memcmp(first.view.data(), second.view.data(),
                      static_cast<std::size_t>(tensor_view<packed<TestType>>::elements(5, 64))) == 0);
}

TEST_CASE("quantise: rows of zeros") {
    padded<float> w(2, 40);
    w(1, 39) = 2.0F;
    const auto zero = [](const padded<float>& back) {
        for (idx k = 0; k < 39; ++k)
            if (back.view()(0, k) != 0 || back.view()(1, k) != 0) return false;
        return back.view()(0, 39) == 0 && std::abs(back.view()(1, 39) - 2.0F) < 1e-2F;
    };
    CHECK(zero(unpacked(packed_copy<int8_row>(w.view()).view)));
    CHECK(zero(unpacked(packed_copy<int8_block>(w.view()).view)));
    CHECK(zero(unpacked(packed_copy<int4_block>(w.view()).view)));
    CHECK(zero(unpacked(packed_copy<int4_block_min>(w.view()).view)));
}

TEST_CASE("quantise: plain storage comes back as it was narrowed") {
    const padded<float> w = uniform_matrix<float>(35, 20, 6);
    CHECK(different_bits(unpacked(packed_copy<float>(w.view()).view).view(), w.view()) == "");
    const padded<float> narrow = unpacked(packed_copy<bf16>(w.view()).view),
                        halves = unpacked(packed_copy<half>(w.view()).view);
    for (idx r = 0; r < 35; ++r)
        for (idx k = 0; k < 20; ++k) {
            REQUIRE(narrow.view()(r, k) == to_float(to_bf16(w.view()(r, k))));
            REQUIRE(halves.view()(r, k) == to_float(to_half(w.view()(r, k))));
        }
}

TEMPLATE_TEST_CASE("quantise: blocks of a file keep every bit", "", int8_block, int4_block, int4_block_min) {
    using format = panel_format<TestType>;
    const random_source numbers(9);
    auto block = [&](idx row, idx b) {
        quantised_block q;
        const idx at = 100 * (row * 3 + b);
        q.scale = {static_cast<std::uint16_t>(numbers.bits(at) % 0x7C00U | (row % 2 == 0 ? 0x8000U : 0))};
        if (format::has_min) q.min = {static_cast<std::uint16_t>(numbers.bits(at + 1) % 0x7C00U)};
        for (idx k = 0; k < 32; ++k)
            q.codes[k] = static_cast<std::uint8_t>(numbers.bits(at + 2 + k) % (1U << format::bits));
        return q;
    };
    using view = tensor_view<packed<TestType>>;
    page_end<std::byte> memory(view::elements(37, 96));
    const view w(memory.data(), 37, 96);
    pack_blocks<TestType>(block, w);
    for (idx r = 0; r < 37; ++r) {
        float row[96];
        unpack_row(w, r, row);
        for (idx b = 0; b < 3; ++b) {
            const quantised_block want = block(r, b);
            const auto got = detail::block_place<TestType>(w.data(), w.panel_stride(), r, b).get();
            REQUIRE(got.scale == want.scale);
            REQUIRE(got.min == want.min);
            for (idx k = 0; k < 32; ++k) {
                REQUIRE(got.codes[k] == want.codes[k]);
                const float value = to_float(want.scale) * static_cast<float>(want.codes[k] - format::zero);
                REQUIRE(row[b * 32 + k] == value + (format::has_min ? to_float(want.min) : 0));
            }
        }
    }
}

TEST_CASE("quantise: fp8 with a scale for 128 x 128") {
    const padded<float> w = uniform_matrix<float>(200, 300, 5, -3, 2);
    const packed_copy<f8_block> p(w.view());
    const padded<float> back = unpacked(p.view);
    for (idx r = 0; r < 200; ++r)
        for (idx k = 0; k < 300; ++k)
            REQUIRE(std::abs(w.view()(r, k) - back.view()(r, k)) <=
                    std::max(0x1p-4F * std::abs(w.view()(r, k)), 3 * 0x1p-18F) * 1.001F);
    // of a file, every bit
    const random_source numbers(4);
    tensor<f8_e4m3> codes(200, 300);
    for (idx i = 0; i < 200; ++i)
        for (idx k = 0; k < 300; ++k)
            codes(i, k) = {static_cast<std::uint8_t>(numbers.bits(i * 300 + k) % 127U)};
    const padded<float> scales = uniform_matrix<float>(2, 3, 6, 0.5, 2);
    pack_f8(codes.view(), scales.view(), p.view);
    const padded<float> got = unpacked(p.view);
    for (idx r = 0; r < 200; ++r)
        for (idx k = 0; k < 300; ++k)
            REQUIRE(got.view()(r, k) == to_float(codes(r, k)) * scales.view()(r / 128, k / 128));
    CHECK_THROWS_AS(pack_f8(codes.view(), scales.view().row_block(0, 1), p.view), config_error);
}

TEST_CASE("quantise: bad input is named") {
    padded<float> w(3, 40), out(4, 40);
    auto message = [](auto&& f) {
        try {
            f();
        } catch (const error& e) {
            return std::string(e.what());
        }
        return std::string();
    };
    auto pack = [&](auto tag) { (void)packed_copy<decltype(tag)>(w.view()); };
    w(2, 33) = std::nanf("");
    for (const auto& text : {message([&] { pack(int8_row{}); }), message([&] { pack(int4_block_min{}); }),
                             message([&] { pack(half{}); })})
        CHECK(text.find("w at row 2, column 33 is not finite") != std::string::npos);
    w(2, 33) = 1e9F;
    CHECK(message([&] { pack(int8_row{}); }).empty());
    CHECK(message([&] { pack(int8_block{}); }).find("row 2") != std::string::npos);
    CHECK(message([&] { pack(half{}); }).find("row 2") != std::string::npos);
    std::vector<std::byte> memory(10000);
    CHECK_THROWS_AS(pack_matrix(w.view(), tensor_view<packed<int4_block>>(memory.data(), 3, 41)),
                    config_error);
    auto infinite = [](idx, idx) { return quantised_block{.scale = {0x7C00}}; };
    CHECK_THROWS_AS(pack_blocks<int8_block>(infinite, tensor_view<packed<int8_block>>(memory.data(), 3, 64)),
                    input_error);
    CHECK_THROWS_AS(pack_blocks<int8_block>(infinite, tensor_view<packed<int8_block>>(memory.data(), 3, 65)),
                    config_error);
}
