#include "support/archs.hpp"
#include "support/catch.hpp"
#include "support/check.hpp"
#include "support/random_data.hpp"

#include <sluice/simd/pack.hpp>

#include <array>
#include <cmath>
#include <limits>
#include <vector>

using namespace sluice::test;
using sluice::idx;
using sluice::tensor_view;
using sluice::simd::pack;

namespace {

// Whether the compiler may use an instruction that rounds a * b + c once.
#if defined(__FMA__) || defined(__AVX512F__) || defined(__ARM_FEATURE_FMA)
constexpr bool has_fma = true;
#else
constexpr bool has_fma = false;
#endif

template <class P>
using lanes_of = std::array<typename P::value_type, static_cast<std::size_t>(P::size)>;

template <class P>
lanes_of<P> lanes(P p) {
    lanes_of<P> out;
    p.store(out.data());
    return out;
}
// One and zero for true and false.
template <class P>
lanes_of<P> lanes_of_mask(typename P::mask m) {
    using T = typename P::value_type;
    return lanes(select(m, P(T(1)), P(T(0))));
}
template <class P>
P some_pack(std::uint64_t key, double low = -2, double high = 2) {
    lanes_of<P> out;
    fill_uniform(tensor_view(out.data(), 1, P::size), key, low, high);
    return P::load(out.data());
}
template <class T>
bool same_bits(T a, T b) {
    return std::memcmp(&a, &b, sizeof(T)) == 0;
}

} // namespace

TEMPLATE_TEST_CASE("pack: loads and stores at any alignment", "", float_native, float_scalar, double_native,
                   double_scalar) {
    using T = typename TestType::scalar;
    using P = pack<T, typename TestType::arch>;
    for (idx offset = 0; offset <= P::size; ++offset) {
        std::vector<T> from(static_cast<std::size_t>(3 * P::size)), to(from.size(), T(-1));
        fill_uniform(tensor_view(from.data(), 1, 3 * P::size), 1);
        P::load(from.data() + offset).store(to.data() + offset);
        for (idx i = 0; i < 3 * P::size; ++i) {
            const bool inside = i >= offset && i < offset + P::size;
            const auto at = static_cast<std::size_t>(i);
            if (!same_bits(to[at], inside ? from[at] : T(-1))) FAIL("offset " << offset << ", element " << i);
        }
    }
    CHECK(lanes(P()) == lanes_of<P>{});
    for (T lane : lanes(P(T(3)))) CHECK(lane == 3);
}

TEMPLATE_TEST_CASE("pack: load_partial reads n elements and fills with zeros", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using P = pack<T, typename TestType::arch>;
    for (idx n = 0; n <= P::size; ++n) {
        page_end<T> memory(n); // the element behind cannot be read
        for (idx i = 0; i < n; ++i) memory[i] = static_cast<T>(i + 1);
        const auto got = lanes(P::load_partial(memory.data(), n));
        for (idx i = 0; i < P::size; ++i)
            CHECK(same_bits(got[static_cast<std::size_t>(i)], i < n ? static_cast<T>(i + 1) : T(0)));
    }
    page_end<T> more(P::size + 3);
    fill_uniform(more.row(), 2, 1, 2);
    CHECK(lanes(P::load_partial(more.data(), P::size + 3)) == lanes(P::load(more.data())));
}

TEMPLATE_TEST_CASE("pack: store_partial writes n elements and no more", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using P = pack<T, typename TestType::arch>;
    const P value = some_pack<P>(3);
    for (idx n = 0; n <= P::size; ++n) {
        padded<T> to(1, n);
        value.store_partial(to.data(), n);
        CHECK(to.touched() == "");
        for (idx i = 0; i < n; ++i) CHECK(same_bits(to(0, i), lanes(value)[static_cast<std::size_t>(i)]));
        page_end<T> last(n);
        value.store_partial(last.data(), n);
    }
    padded<T> full(1, P::size);
    value.store_partial(full.data(), P::size + 5);
    CHECK(full.touched() == "");
}

TEMPLATE_TEST_CASE("pack: arithmetic is that of each lane alone", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using P = pack<T, typename TestType::arch>;
    for (std::uint64_t key = 0; key < 50; ++key) {
        const P a = some_pack<P>(2 * key), b = some_pack<P>(2 * key + 1);
        const auto x = lanes(a), y = lanes(b);
        const auto sum = lanes(a + b), difference = lanes(a - b), product = lanes(a * b),
                   quotient = lanes(a / b);
        const auto negative = lanes(-a), root = lanes(sqrt(a * a)), larger = lanes(max(a, b)),
                   smallest = lanes(min(a, b));
        const auto smaller = lanes_of_mask<P>(a < b), equal = lanes_of_mask<P>(a == b),
                   self = lanes_of_mask<P>(a == a);
        bool good = true;
        for (std::size_t i = 0; i < x.size(); ++i) {
            const volatile T xx = x[i] * x[i]; // rounded, as the pack's product is
            good = good && sum[i] == x[i] + y[i] && difference[i] == x[i] - y[i] &&
                   product[i] == x[i] * y[i] && quotient[i] == x[i] / y[i] && negative[i] == -x[i] &&
                   root[i] == std::sqrt(T(xx)) && larger[i] == std::max(x[i], y[i]) &&
                   smallest[i] == std::min(x[i], y[i]) && smaller[i] == T(x[i] < y[i]) &&
                   equal[i] == T(x[i] == y[i]) && self[i] == 1;
        }
        if (!good) FAIL("key " << key);
    }
    CHECK(same_bits(lanes(-P(T(0)))[0], -T(0)));
}

TEMPLATE_TEST_CASE("pack: comparisons, select and max treat NaN as stated", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using P = pack<T, typename TestType::arch>;
    const T nan = std::numeric_limits<T>::quiet_NaN(), inf = std::numeric_limits<T>::infinity();
    CHECK(lanes_of_mask<P>(P(nan) == P(nan))[0] == 0);
    CHECK(lanes_of_mask<P>(P(nan) < P(T(1)))[0] == 0);
    CHECK(lanes_of_mask<P>(P(T(1)) < P(nan))[0] == 0);
    CHECK(lanes_of_mask<P>(P(-inf) < P(inf))[0] == 1);
    CHECK(lanes_of_mask<P>(P(T(-0.0)) == P(T(0)))[0] == 1);
    CHECK(lanes(max(P(nan), P(T(1))))[0] == 1);
    CHECK(std::isnan(lanes(max(P(T(1)), P(nan)))[0]));
    CHECK(lanes(max(P(-inf), P(T(1))))[0] == 1);
    const T either = lanes(min(P(nan), P(T(1))))[0];
    CHECK((std::isnan(either) || either == 1));
    // one lane apart from the others, at every place
    for (idx at = 0; at < P::size; ++at) {
        lanes_of<P> x{};
        x[static_cast<std::size_t>(at)] = T(1);
        const auto picked = lanes(select(P::load(x.data()) == P(T(1)), P(T(5)), P(T(7))));
        for (idx i = 0; i < P::size; ++i) CHECK(picked[static_cast<std::size_t>(i)] == (i == at ? 5 : 7));
    }
}

TEMPLATE_TEST_CASE("pack: fma rounds once where the hardware can, else twice", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using P = pack<T, typename TestType::arch>;
    // (1 + e)^2 = 1 + 2 e + e^2, whose last term a rounded product loses
    const T e = std::sqrt(std::numeric_limits<T>::epsilon() / 2) / (sizeof(T) == 4 ? T(1) : std::sqrt(T(2)));
    const T small = std::ldexp(T(1), std::ilogb(e));
    const volatile T one_and = 1 + small, rest = -(1 + 2 * small);
    const auto got = lanes(fma(P(T(one_and)), P(T(one_and)), P(T(rest))));
    for (T lane : got) CHECK(lane == (has_fma ? small * small : T(0)));
    // lane by lane, with other numbers in each
    for (std::uint64_t key = 0; key < 50; ++key) {
        const P a = some_pack<P>(3 * key), b = some_pack<P>(3 * key + 1), c = some_pack<P>(3 * key + 2);
        const auto x = lanes(a), y = lanes(b), z = lanes(c), r = lanes(fma(a, b, c));
        for (std::size_t i = 0; i < x.size(); ++i) {
            const volatile T product = x[i] * y[i];
            const T want = has_fma ? std::fma(x[i], y[i], z[i]) : product + z[i];
            if (!same_bits(r[i], want))
                FAIL("key " << key << ": " << bits_text(r[i]) << " is not " << bits_text(want));
        }
    }
}

TEMPLATE_TEST_CASE("pack: scale_by_bits multiplies by a power of two", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using P = pack<T, typename TestType::arch>;
    const T magic = std::ldexp(T(1.5), std::numeric_limits<T>::digits - 1);
    const int most = std::numeric_limits<T>::max_exponent - 2;
    for (int n = -most + 2; n <= most; ++n) {
        const P a = some_pack<P>(static_cast<std::uint64_t>(n + 5000), 1, 1.99);
        const auto x = lanes(a), y = lanes(scale_by_bits(a, P(magic + static_cast<T>(n))));
        for (std::size_t i = 0; i < x.size(); ++i)
            if (!same_bits(y[i], std::ldexp(x[i], n))) FAIL("n " << n);
    }
    SUCCEED("none was wrong");
}

TEMPLATE_TEST_CASE("pack: sum adds halves until one lane is left", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using P = pack<T, typename TestType::arch>;
    bool order_matters = P::size <= 2;
    for (std::uint64_t key = 0; key < 50; ++key) {
        const P a = some_pack<P>(key) * some_pack<P>(key + 1000); // products, whose last bits are not zero
        auto x = lanes(a);
        T in_order = 0;
        for (T lane : x) in_order += lane;
        for (std::size_t half = x.size() / 2; half > 0; half /= 2)
            for (std::size_t i = 0; i < half; ++i) x[i] += x[i + half];
        if (!same_bits(a.sum(), x[0])) FAIL("key " << key);
        order_matters = order_matters || x[0] != in_order;
    }
    CHECK(order_matters);
}

TEMPLATE_TEST_CASE("pack: largest finds the largest lane wherever it is", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using P = pack<T, typename TestType::arch>;
    for (idx at = 0; at < P::size; ++at) {
        lanes_of<P> x;
        x.fill(T(-9));
        x[static_cast<std::size_t>(at)] = T(-3);
        CHECK(P::load(x.data()).largest() == -3);
    }
    CHECK(P(-std::numeric_limits<T>::infinity()).largest() == -std::numeric_limits<T>::infinity());
}

TEMPLATE_TEST_CASE("pack: zero_beyond keeps n lanes, and zero is no product", "", float_native, float_scalar,
                   double_native, double_scalar) {
    using T = typename TestType::scalar;
    using P = pack<T, typename TestType::arch>;
    const P nan(std::numeric_limits<T>::quiet_NaN());
    for (idx n = 0; n <= P::size; ++n) {
        const auto kept = lanes(zero_beyond(P(T(-4)), n)), of_nan = lanes(zero_beyond(nan, n));
        for (idx i = 0; i < P::size; ++i) {
            const auto at = static_cast<std::size_t>(i);
            CHECK(same_bits(kept[at], i < n ? T(-4) : T(0)));
            CHECK((i < n ? std::isnan(of_nan[at]) : same_bits(of_nan[at], T(0))));
        }
    }
}

TEMPLATE_TEST_CASE("pack: for_each_pack visits all elements in order, the tail once", "", float_native,
                   float_scalar, double_native, double_scalar) {
    using P = pack<typename TestType::scalar, typename TestType::arch>;
    for (idx n = 0; n <= 4 * P::size + 3; ++n) {
        idx next = 0;
        bool good = true;
        sluice::simd::for_each_pack<P>(n, [&](idx i, idx k) {
            good = good && i == next && k > 0 && k <= P::size && (k == P::size || i + k == n);
            next = i + k;
        });
        if (!good || next != n) FAIL("n " << n);
    }
    SUCCEED("none was wrong");
}
