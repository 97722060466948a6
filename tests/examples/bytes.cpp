// Checks windows, the measure on held-out text and the writing of text against models that can be worked out
// by hand.
#include "../../examples/support/bytes.hpp"

#include "support/catch.hpp"
#include "support/check.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

using namespace sluice::examples;
using sluice::arena;
using sluice::batch;
using sluice::executor_ref;
using sluice::idx;
using sluice::token_id;
using sluice::test::compare_number;

namespace {

std::vector<std::uint8_t> bytes(std::string_view text) { return {text.begin(), text.end()}; }

// Text of n bytes in which every window is different.
std::vector<std::uint8_t> numbered(std::size_t n) {
    std::vector<std::uint8_t> text;
    const sluice::random_source numbers(n);
    for (std::size_t i = 0; i < n; ++i)
        text.push_back(static_cast<std::uint8_t>(numbers.bits(static_cast<idx>(i)) % 251));
    return text;
}

std::vector<token_id> ids_of(const windows& w) { return {w.rows().ids.begin(), w.rows().ids.end()}; }
std::vector<token_id> targets_of(const windows& w) { return {w.targets().begin(), w.targets().end()}; }

// Where in the text window s begins; -1 where it is no part of it.
std::ptrdiff_t place_of(const windows& w, idx s, const std::vector<std::uint8_t>& text) {
    const auto ids = ids_of(w);
    const auto first = ids.begin() + s * w.length(), last = first + w.length();
    const auto at = std::search(text.begin(), text.end(), first, last);
    return at == text.end() ? -1 : at - text.begin();
}

// A model that costs a given number of nats for a byte and the one after it.
double cost(token_id id, token_id next) { return 0.01 * id + 0.02 * next + 0.1 * ((id + next) % 3); }

struct priced_model {
    double loss(const batch& b, std::span<const token_id> targets, arena& workspace, executor_ref ex) const {
        seen_workspace = &workspace;
        largest_call = std::max(largest_call, b.n_tokens);
        double total = 0, n = 0;
        for (std::size_t i = 0; i < targets.size(); ++i)
            if (targets[i] >= 0) {
                total += cost(b.ids[i], targets[i]);
                n += 1;
                predicted.push_back(targets[i]);
            }
        workers = ex.concurrency();
        return total / n;
    }
    mutable const arena* seen_workspace = nullptr;
    mutable idx largest_call = 0, workers = 0;
    mutable std::vector<token_id> predicted;
};

double bits_by_hand(const std::vector<std::uint8_t>& text) {
    double total = 0;
    for (std::size_t i = 1; i < text.size(); ++i) total += cost(text[i - 1], text[i]);
    return total / static_cast<double>(text.size() - 1) / std::numbers::ln2;
}

} // namespace

TEST_CASE("a window holds bytes and the byte after each", "[examples][bytes]") {
    windows w(2, 3);
    const auto text = bytes("abcdefg");
    w.set(0, text, 1);
    w.set(1, text, 0);
    CHECK((w.n_sequences() == 2 && w.length() == 3));
    CHECK(ids_of(w) == std::vector<token_id>{'b', 'c', 'd', 'a', 'b', 'c'});
    CHECK(targets_of(w) == std::vector<token_id>{'c', 'd', 'e', 'b', 'c', 'd'});
    const batch all = w.rows(), one = w.rows(1);
    CHECK((all.n_tokens == 6 && all.n_sequences() == 2 && all.begin(1) == 3 && all.end(1) == 6));
    CHECK((one.n_tokens == 3 && one.n_sequences() == 1 && one.ids.size() == 3 && w.targets(1).size() == 3));
    CHECK_NOTHROW(check_batch(all, "test"));
    CHECK_NOTHROW(check_batch(one, "test"));
}

TEST_CASE("bytes of any value are tokens from 0 to 255", "[examples][bytes]") {
    windows w(1, 2);
    const std::vector<std::uint8_t> text{255, 0, 128};
    w.set(0, text, 0);
    CHECK(ids_of(w) == std::vector<token_id>{255, 0});
    CHECK(targets_of(w) == std::vector<token_id>{0, 128});
}

TEST_CASE("a window beyond the end has targets to ignore", "[examples][bytes]") {
    windows w(1, 4);
    const auto text = bytes("abcdef");
    w.set(0, text, 4);
    CHECK(ids_of(w) == std::vector<token_id>{'e', 'f', 0, 0});
    CHECK(targets_of(w) == std::vector<token_id>{'f', -1, -1, -1});
    w.set(0, text, 6);
    CHECK(targets_of(w) == std::vector<token_id>(4, -1));
    w.set(0, text, 1); // nothing of it stays
    CHECK(targets_of(w) == std::vector<token_id>{'c', 'd', 'e', 'f'});
}

TEST_CASE("drawn windows depend on seed and step alone", "[examples][bytes]") {
    const auto text = numbered(1000);
    windows w(3, 20), other(3, 20);
    w.draw(text, 5, 7);
    const auto ids = ids_of(w), targets = targets_of(w);
    w.draw(text, 5, 8);
    CHECK(ids_of(w) != ids);
    w.draw(text, 6, 7);
    CHECK(ids_of(w) != ids);
    other.draw(text, 1, 1);
    other.draw(text, 5, 7);
    CHECK((ids_of(other) == ids && targets_of(other) == targets));
}

TEST_CASE("drawn windows lie in the text and reach all of it", "[examples][bytes]") {
    for (std::size_t size : {9U, 10U, 12U, 40U}) {
        const auto text = numbered(size);
        windows w(4, 8);
        std::set<std::ptrdiff_t> places;
        for (idx step = 1; step <= 300; ++step) {
            w.draw(text, 3, step);
            for (idx s = 0; s < 4; ++s) {
                const auto at = place_of(w, s, text);
                REQUIRE(at >= 0);
                places.insert(at);
                for (idx i = 0; i < 8; ++i)
                    REQUIRE(w.targets()[static_cast<std::size_t>(s * 8 + i)] ==
                            text[static_cast<std::size_t>(at + i + 1)]);
            }
        }
        CAPTURE(size);
        CHECK(places.size() == size - 8); // every start that leaves a target for the last byte
    }
}

TEST_CASE("a text of one window has its last target ignored", "[examples][bytes]") {
    const auto text = numbered(8);
    windows w(1, 8);
    w.draw(text, 1, 1);
    CHECK(place_of(w, 0, text) == 0);
    CHECK(w.targets()[6] == text[7]);
    CHECK(w.targets()[7] == -1);
}

TEST_CASE("bits per byte count every byte but the first once", "[examples][bytes]") {
    arena workspace(64);
    for (std::size_t size : {2U, 3U, 8U, 9U, 10U, 17U, 25U, 100U, 1001U})
        for (idx n_sequences : {1, 3, 8}) {
            const auto text = numbered(size);
            windows w(n_sequences, 8);
            const priced_model model;
            const double bits = held_out_bits(model, text, w, 0, workspace, {});
            CAPTURE(size, n_sequences);
            CHECK(compare_number(bits, bits_by_hand(text), 1e-12 * bits) == "");
            auto predicted = model.predicted;
            std::vector<token_id> wanted(text.begin() + 1, text.end());
            CHECK(predicted == wanted);
            CHECK((model.seen_workspace == &workspace && model.largest_call <= n_sequences * 8));
        }
}

TEST_CASE("bits per byte of some windows spread over the text", "[examples][bytes]") {
    arena workspace(64);
    const auto text = numbered(801); // 100 windows of 8
    windows w(3, 8);
    const priced_model all, some;
    const double bits = held_out_bits(all, text, w, 1000, workspace, {});
    CHECK(compare_number(bits, bits_by_hand(text), 1e-12 * bits) == ""); // no more than there are
    const double ten = held_out_bits(some, text, w, 10, workspace, {});
    REQUIRE(some.predicted.size() == 80);
    double total = 0;
    for (std::size_t i = 0; i < 10; ++i) // windows 0, 10, 20, ...
        for (std::size_t j = 0; j < 8; ++j) {
            const std::size_t at = 80 * i + j;
            CHECK(some.predicted[8 * i + j] == text[at + 1]);
            total += cost(text[at], text[at + 1]);
        }
    CHECK(compare_number(ten, total / 80 / std::numbers::ln2, 1e-12 * ten) == "");
}

TEST_CASE("a coin that is fair costs one bit", "[examples][bytes]") {
    struct coin {
        static double loss(const batch&, std::span<const token_id>, arena&, executor_ref) {
            return std::numbers::ln2;
        }
    };
    arena workspace(64);
    windows w(2, 16);
    CHECK(compare_number(held_out_bits(coin{}, numbered(555), w, 0, workspace, {}), 1, 1e-14) == "");
}

namespace {

// Writes the byte one above the one before it, and checks that it is called as a cache wants to be.
struct counting_model {
    struct state_type {
        idx held = 0;
    };
    static sluice::sizes bytes(const sluice::limits& most) {
        CHECK((most.max_tokens > 0 && most.max_rows > 0 && most.workers == 1));
        return {.state = 640, .workspace = 1280};
    }
    static state_type bind_state(arena& memory, const sluice::limits& most) {
        CHECK(memory.capacity() == 640);
        limit() = most.max_tokens;
        return {};
    }
    static idx vocabulary() { return 256; }
    static void prefill(const batch& b, sluice::tensor_view<float> logits, state_type& state,
                        arena& workspace, executor_ref) {
        CHECK(workspace.capacity() == 1280);
        CHECK((logits.rows() == 1 && logits.cols() == 256));
        CHECK(b.position(0, 0) == state.held);
        state.held += b.n_tokens;
        CHECK(state.held <= limit());
        fill(logits, 0.0F);
        logits(0, (b.ids.back() + 1) % 256) = 50;
        prompt() += b.n_tokens > 1 || state.held == 1 ? b.n_tokens : 0;
    }
    static void decode(const batch& b, sluice::tensor_view<float> logits, state_type& state, arena& workspace,
                       executor_ref ex) {
        CHECK(b.n_tokens == 1);
        prefill(b, logits, state, workspace, ex);
    }
    static idx& limit() {
        static idx n = 0;
        return n;
    }
    static idx& prompt() {
        static idx n = 0;
        return n;
    }
};

// Prefers nothing.
struct flat_model : counting_model {
    static void prefill(const batch&, sluice::tensor_view<float> logits, state_type&, arena&, executor_ref) {
        fill(logits, 0.0F);
    }
    static void decode(const batch& b, sluice::tensor_view<float> logits, state_type& s, arena& a,
                       executor_ref ex) {
        prefill(b, logits, s, a, ex);
    }
};

} // namespace

namespace {

template <class Model>
std::string text_of(const Model& model, const std::string& prompt, idx n_bytes, double temperature,
                    std::uint64_t seed) {
    std::string text = prompt;
    const auto put = [&](std::uint8_t byte) {
        text += static_cast<char>(byte);
        return true;
    };
    const writing done = write_text(model, prompt, n_bytes, {.temperature = temperature}, seed, {}, put);
    CHECK(done.read == static_cast<idx>(prompt.size()));
    CHECK(done.decoded == std::max<idx>(n_bytes - 1, 0)); // the first comes from the prompt
    CHECK((done.read_seconds >= 0 && done.decode_seconds >= 0));
    return text;
}

} // namespace

TEST_CASE("text goes on where the prompt ends", "[examples][bytes]") {
    counting_model::prompt() = 0;
    CHECK(text_of(counting_model{}, "xya", 5, 0, 1) == "xyabcdef");
    CHECK(counting_model::prompt() == 3);
    CHECK(text_of(counting_model{}, "a", 1, 0.5, 1) == "ab");
    const std::string wrapped = text_of(counting_model{}, "\xFE", 3, 0, 1);
    CHECK(wrapped == std::string("\xFE\xFF\x00\x01", 4));
    CHECK(text_of(counting_model{}, "a", 0, 0, 1) == "a");
}

TEST_CASE("text ends where its reader wants no more", "[examples][bytes]") {
    std::string text;
    const auto put = [&](std::uint8_t byte) {
        text += static_cast<char>(byte);
        return text.size() < 3;
    };
    const writing done = write_text(counting_model{}, "a", 100, {.temperature = 0}, 1, {}, put);
    CHECK(text == "bcd");
    CHECK(done.decoded == 2);
}

TEST_CASE("text needs a prompt and settings in range", "[examples][bytes]") {
    CHECK_THROWS_WITH(text_of(counting_model{}, "", 5, 0, 1), "--prompt: must not be empty");
    CHECK_THROWS_AS(text_of(counting_model{}, "", 5, 0, 1), std::runtime_error);
    CHECK_THROWS_AS(text_of(counting_model{}, "a", 5, -1, 1), sluice::config_error);
}

TEST_CASE("text depends on the seed alone", "[examples][bytes]") {
    const std::string text = text_of(flat_model{}, "a", 200, 1, 7);
    CHECK(text.size() == 201);
    CHECK(text_of(flat_model{}, "a", 200, 1, 7) == text);
    CHECK(text_of(flat_model{}, "a", 200, 1, 8) != text);
    CHECK(text_of(flat_model{}, "a", 100, 1, 7) == text.substr(0, 101)); // and not on how long it gets
    CHECK(std::set<char>(text.begin(), text.end()).size() > 100);
}
