#include "support/catch.hpp"

#include <sluice/kernels/read_ahead.hpp>

#include <set>

using sluice::idx;
using sluice::kernels::read_ahead;
using sluice::kernels::read_ahead_block;
using sluice::kernels::read_ahead_pages;

namespace {

// No memory is touched.
std::uintptr_t asked(std::uintptr_t at) {
    return reinterpret_cast<std::uintptr_t>(read_ahead(reinterpret_cast<const char*>(at)));
}
constexpr std::uintptr_t block = read_ahead_block, start = 5 * block;

} // namespace

TEST_CASE("read_ahead: asks once for every line of the block after the one that is read") {
    std::set<std::uintptr_t> lines;
    for (std::uintptr_t at = start; at < start + block; at += 64) {
        CHECK(asked(at) % 64 == 0);
        CHECK(asked(at + 63) == asked(at));
        lines.insert(asked(at));
    }
    CHECK(lines.size() == block / 64);
    CHECK(*lines.begin() == start + block);
    CHECK(*lines.rbegin() == start + 2 * block - 64);
}

TEST_CASE("read_ahead: takes lines of all pages in turn, each page from its begin to its end") {
    constexpr std::uintptr_t pages = read_ahead_pages, page = block / pages;
    for (std::uintptr_t i = 0; i < block / 64; ++i)
        CHECK(asked(start + 64 * i) == start + block + i % pages * page + i / pages * 64);
}
