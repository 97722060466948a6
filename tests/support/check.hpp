// How tests compare numbers. Every function returns what is wrong as a sentence, and "" where nothing is, so
// that a test reads CHECK(compare(y, want, {.chain = k}) == "").
//
// A result is held against plain loops in double by two measures: the normalised mean square error, which
// sees small errors everywhere, and a bound for each element, (4 sqrt(K) + 8) u S + u |r|, which sees one
// wrong element: K is the length of the longest sum, u the unit roundoff, S the same computation with all
// terms made positive.
#pragma once

#include <sluice/core/tensor_view.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

namespace sluice::test {

// What the plain loops say of one number.
struct expected {
    double value = 0; // r
    double size = 0;  // S
};

class oracle {
public:
    oracle(idx rows, idx cols) : cols_(cols), values_(static_cast<std::size_t>(rows * cols)) {}
    expected& operator()(idx i, idx j) { return values_[static_cast<std::size_t>(i * cols_ + j)]; }
    const expected& operator()(idx i, idx j) const {
        return values_[static_cast<std::size_t>(i * cols_ + j)];
    }
    idx rows() const { return cols_ == 0 ? 0 : static_cast<idx>(values_.size()) / cols_; }
    idx cols() const { return cols_; }
    const std::vector<expected>& values() const { return values_; }

private:
    idx cols_;
    std::vector<expected> values_;
};

struct tolerance {
    idx chain = 1;            // K
    double nmse = 0;          // 0: 1e-11 for float, 1e-26 for double
    double tiny = 0;          // absolute error allowed besides, for results near the smallest number
    bool may_be_dull = false; // accept results that prove little, such as zeros
};

// One step of an element's chain, as the kernels' instruction rounds it.
template <class T>
T chain_step(T a, T b, T c) {
#if defined(__FMA__) || defined(__AVX512F__) || defined(__ARM_FEATURE_FMA)
    return std::fma(a, b, c);
#else
    return a * b + c;
#endif
}

template <class T>
constexpr double unit_roundoff = static_cast<double>(std::numeric_limits<T>::epsilon()) / 2;

// A comparison with an oracle that is nearly all zeros, nearly one value or nearly nothing would pass for
// code that does nothing.
inline std::string meaningless(const oracle& want) {
    const auto& all = want.values();
    if (all.empty()) return "meaningless: nothing is compared";
    double squares = 0;
    std::vector<double> sorted;
    for (const expected& e : all) {
        if (std::isnan(e.value)) continue;
        squares += e.value * e.value;
        sorted.push_back(e.value);
    }
    if (squares < 1e-12 * static_cast<double>(all.size())) return "meaningless: all near zero";
    std::sort(sorted.begin(), sorted.end());
    for (std::size_t first = 0, last = 0; first < sorted.size(); first = last) {
        while (last < sorted.size() && sorted[last] == sorted[first]) ++last;
        const double share = static_cast<double>(last - first) / static_cast<double>(all.size());
        if ((sorted[first] == 0 || all.size() > 3) && share > 0.7)
            return "meaningless: most results are " + std::to_string(sorted[first]);
    }
    return "";
}

template <class T>
std::string number_text(T value) {
    std::ostringstream out;
    out.precision(std::numeric_limits<T>::max_digits10);
    out << value;
    return out.str();
}
inline std::string place_text(idx i, idx j) {
    return "at (" + std::to_string(i) + ", " + std::to_string(j) + "): ";
}

// "" if y is r to within `allowed`. NaN and infinities must be where the oracle has them.
template <class T>
std::string compare_number(T y, double r, double allowed) {
    const auto got = static_cast<double>(y);
    bool good = false;
    if (std::isnan(got) || std::isnan(r))
        good = std::isnan(got) && std::isnan(r);
    else if (std::isinf(got) || std::isinf(r))
        good = got == r;
    else
        good = std::abs(got - r) <= allowed;
    if (good) return "";
    return "is " + number_text(y) + ", should be " + number_text(r) + " +- " + number_text(allowed);
}

template <class T>
std::string compare(const tensor_view<T>& y, const oracle& want, tolerance limit = {}) {
    using value_type = std::remove_const_t<T>;
    if (y.rows() * y.cols() != static_cast<idx>(want.values().size()) ||
        (y.cols() != want.cols() && !y.empty()))
        return "shapes differ";
    if (!limit.may_be_dull) {
        std::string dull = meaningless(want);
        if (!dull.empty()) return dull;
    }
    const double u = unit_roundoff<value_type>;
    const double chain = 4 * std::sqrt(static_cast<double>(limit.chain)) + 8;
    const double smallest = static_cast<double>(std::numeric_limits<value_type>::min());
    double error = 0, total = 0;
    for (idx i = 0; i < y.rows(); ++i)
        for (idx j = 0; j < y.cols(); ++j) {
            const auto [r, size] = want(i, j);
            const double allowed = chain * u * size + u * std::abs(r) + limit.tiny + smallest;
            std::string wrong = compare_number<value_type>(y(i, j), r, allowed);
            if (!wrong.empty()) return place_text(i, j) + wrong;
            if (!std::isfinite(r)) continue;
            const double d = static_cast<double>(y(i, j)) - r;
            error += d * d;
            total += r * r;
        }
    const double most = limit.nmse > 0 ? limit.nmse : sizeof(value_type) == 4 ? 1e-11 : 1e-26;
    if (total > 0 && error > most * total) return "nmse is " + number_text(error / total);
    return "";
}

template <class T>
std::string bits_text(T value) {
    using bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
    std::ostringstream out;
    out << std::hex << std::bit_cast<bits>(value);
    return number_text(value) + " (" + out.str() + ")";
}

// "" if both have the same bits, which tells NaN from NaN and zero from minus zero.
template <class A, class B>
std::string different_bits(const tensor_view<A>& a, const tensor_view<B>& b) {
    static_assert(std::is_same_v<std::remove_const_t<A>, std::remove_const_t<B>>);
    if (a.rows() != b.rows() || a.cols() != b.cols()) return "shapes differ";
    for (idx i = 0; i < a.rows(); ++i)
        for (idx j = 0; j < a.cols(); ++j)
            if (std::memcmp(&a(i, j), &b(i, j), sizeof(A)) != 0)
                return place_text(i, j) + bits_text(a(i, j)) + " is not " + bits_text(b(i, j));
    return "";
}

// "" if every element of row i is NaN.
template <class T>
std::string not_all_nan(const tensor_view<T>& y, idx i) {
    for (idx j = 0; j < y.cols(); ++j)
        if (!std::isnan(y(i, j))) return place_text(i, j) + number_text(y(i, j)) + " is not NaN";
    return "";
}

// d f / d x for a function f() of x, by a stencil of four points: its error is of the fourth order.
template <class F>
double slope(F&& f, double& x) {
    const double at = x, h = 1e-3 * std::max(1.0, std::abs(at));
    auto value = [&](double steps) {
        x = at + steps * h;
        return f();
    };
    const double near = value(1) - value(-1), far = value(2) - value(-2);
    x = at;
    return (8 * near - far) / (12 * h);
}

// "" if `gradient` holds the slopes of f() in every element of x.
template <class F>
std::string wrong_gradient(F&& f, const tensor_view<double>& x, const tensor_view<double>& gradient) {
    if (x.rows() != gradient.rows() || x.cols() != gradient.cols()) return "shapes differ";
    double most = 0;
    for (idx i = 0; i < x.rows(); ++i)
        for (idx j = 0; j < x.cols(); ++j) {
            const double s = slope(f, x(i, j));
            const std::string wrong = compare_number(gradient(i, j), s, 1e-7 * std::max(1.0, std::abs(s)));
            if (!wrong.empty()) return place_text(i, j) + wrong;
            most = std::max(most, std::abs(s));
        }
    return most > 1e-3 ? "" : "meaningless: all slopes are near zero";
}

// Whether f() ends in the assertion that an output is apart from its inputs.
template <class F>
bool overlap_is_noticed(F&& f) {
    try {
        f();
    } catch (const error& e) {
        return std::string_view(e.what()).find("apart") != std::string_view::npos;
    }
    return false;
}

// Memory of square views of n, and two that share all but a row of each.
template <class T>
struct shifted_views {
    explicit shifted_views(idx n) : memory(static_cast<std::size_t>(3 * n * n)), n_(n) {}
    tensor_view<T> first() { return {memory.data(), n_, n_}; }
    tensor_view<T> shifted() { return {memory.data() + n_, n_, n_}; }
    tensor_view<T> apart() { return {memory.data() + 2 * n_ * n_, n_, n_}; }

    std::vector<T> memory;

private:
    idx n_;
};

} // namespace sluice::test
