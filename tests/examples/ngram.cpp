// Checks the byte count model against probabilities worked out by hand and against what any model must obey.
#include "../../examples/support/ngram.hpp"

#include "support/catch.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

using sluice::examples::ngram_model;

namespace {

std::vector<std::uint8_t> bytes(std::string_view text) { return {text.begin(), text.end()}; }

bool is_near(double value, double expected) {
    return std::fabs(value - expected) <= 1e-12 * std::fabs(expected);
}

double sum_over_bytes(const ngram_model& model, const std::vector<std::uint8_t>& context) {
    double sum = 0.0;
    for (int next = 0; next < 256; ++next) {
        sum += model.probability(context, static_cast<std::uint8_t>(next));
    }
    return sum;
}

// Text with some structure and no end of repetition, the same on every machine.
std::vector<std::uint8_t> repetitive(std::size_t n) {
    const std::string_view phrase = "template <typename Scalar> struct traits { enum { Flags = 0 }; };\n";
    std::vector<std::uint8_t> text;
    std::uint32_t state = 1;
    while (text.size() < n) {
        state = state * 1664525U + 1013904223U;
        const std::size_t from = (state >> 24U) % 8;
        text.insert(text.end(), phrase.begin() + static_cast<std::ptrdiff_t>(from), phrase.end());
    }
    text.resize(n);
    return text;
}

} // namespace

TEST_CASE("the estimates on a tiny text are those worked out by hand", "[examples][ngram]") {
    // abac: four bytes, three distinct; after 'a' come b and c; after "ba" comes c.
    const ngram_model model(bytes("abac"), 2);
    const double base = 1.0 / 256.0;
    const double a = (2 + 3 * base) / 7;
    const double b = (1 + 3 * base) / 7;
    const double c = (1 + 3 * base) / 7;
    const double unseen = 3 * base / 7;
    CHECK(is_near(model.probability({}, 'a'), a));
    CHECK(is_near(model.probability({}, 'b'), b));
    CHECK(is_near(model.probability({}, 'z'), unseen));
    const double b_after_a = (1 + 2 * b) / 4;
    const double c_after_a = (1 + 2 * c) / 4;
    CHECK(is_near(model.probability(bytes("a"), 'b'), b_after_a));
    CHECK(is_near(model.probability(bytes("a"), 'a'), 2 * a / 4));
    CHECK(is_near(model.probability(bytes("ba"), 'c'), (1 + c_after_a) / 2));
    CHECK(is_near(model.probability(bytes("ba"), 'b'), b_after_a / 2));
}

TEST_CASE("an unseen context falls back on the next shorter one", "[examples][ngram]") {
    const ngram_model model(bytes("abac"), 2);
    for (const char next : {'a', 'b', 'c', 'z'}) {
        const auto byte = static_cast<std::uint8_t>(next);
        CHECK(model.probability(bytes("z"), byte) == model.probability({}, byte));
        CHECK(model.probability(bytes("za"), byte) == model.probability(bytes("a"), byte));
        CHECK(model.probability(bytes("ac"), byte) == model.probability({}, byte));
        CHECK(model.probability(bytes("bbbba"), byte) == model.probability(bytes("ba"), byte));
    }
}

TEST_CASE("bits per byte add up the estimates from an empty context on", "[examples][ngram]") {
    const ngram_model model(bytes("abac"), 2);
    const double product = model.probability({}, 'b') * model.probability(bytes("b"), 'a') *
                           model.probability(bytes("ba"), 'c') * model.probability(bytes("ac"), 'x');
    CHECK(is_near(model.bits_per_byte(bytes("bacx")), -std::log2(product) / 4));
}

TEST_CASE("zero bytes count like any other", "[examples][ngram]") {
    const std::vector<std::uint8_t> zeros(10, 0);
    const ngram_model model(zeros, 4);
    const double base = 1.0 / 256.0;
    const double order_0 = (10 + base) / 11;
    const double order_1 = (9 + order_0) / 10;
    CHECK(is_near(model.probability({}, 0), order_0));
    CHECK(is_near(model.probability(std::vector<std::uint8_t>{0}, 0), order_1));
    CHECK(is_near(model.probability(std::vector<std::uint8_t>{0, 0}, 0), (8 + order_1) / 9));
}

TEST_CASE("probabilities over all bytes sum to one and none is zero", "[examples][ngram]") {
    const auto text = repetitive(5000);
    for (std::size_t context_bytes = 0; context_bytes <= ngram_model::max_context_bytes; ++context_bytes) {
        const ngram_model model(text, context_bytes);
        for (const char* context : {"", "t", "te", "temp", "xyz", "x t", "typename", "\xff\xff", "};"}) {
            CHECK(is_near(sum_over_bytes(model, bytes(context)), 1.0));
            CHECK(model.probability(bytes(context), 0xff) > 0.0);
        }
    }
}

TEST_CASE("longer contexts help on repetitive text", "[examples][ngram]") {
    const auto text = repetitive(40000);
    const auto training = std::span(text).first(36000);
    const auto held_out = std::span(text).last(4000);
    const double order_0 = ngram_model(training, 0).bits_per_byte(held_out);
    const double order_1 = ngram_model(training, 1).bits_per_byte(held_out);
    const double order_4 = ngram_model(training).bits_per_byte(held_out);
    CHECK(order_0 < 8.0);
    CHECK(order_1 < order_0);
    CHECK(order_4 < order_1);
    CHECK(order_4 < 0.3 * order_0);
    CHECK(ngram_model(training).bits_per_byte(held_out) == order_4);
}

TEST_CASE("the default looks at four bytes of context", "[examples][ngram]") {
    const ngram_model model(bytes("0abcdX1abcdY"));
    CHECK(model.context_bytes() == 4);
    CHECK(model.probability(bytes("0abcd"), 'X') == model.probability(bytes("1abcd"), 'X'));
    CHECK(model.probability(bytes("abcd"), 'X') > model.probability(bytes("bcd"), 'X'));
}

TEST_CASE("nothing to learn from means eight bits, nothing to measure is refused", "[examples][ngram]") {
    const ngram_model untrained(std::span<const std::uint8_t>{});
    CHECK(untrained.probability({}, 7) == 1.0 / 256.0);
    CHECK(untrained.probability(bytes("abc"), 7) == 1.0 / 256.0);
    CHECK(is_near(untrained.bits_per_byte(bytes("any text")), 8.0));
    CHECK_THROWS_AS(untrained.bits_per_byte({}), std::invalid_argument);
    CHECK_THROWS_AS(ngram_model(bytes("abc"), 7), std::invalid_argument);
}
