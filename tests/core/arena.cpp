#include "support/catch.hpp"

#include <sluice/core/arena.hpp>
#include <sluice/core/packed.hpp>

#include <array>
#include <limits>
#include <vector>

using sluice::arena;
using sluice::idx;
using sluice::tensor_view;

static_assert(!std::is_copy_constructible_v<arena> && std::is_nothrow_move_constructible_v<arena>);
static_assert(arena::alignment == 64);

namespace {

constexpr idx most = std::numeric_limits<idx>::max();

bool aligned(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % arena::alignment == 0; }

// What a function does with workspace: nested scopes, several types, empty takes.
void work(arena& a, bool keep) {
    const arena::scope outer(a);
    a.take<float>(10);
    {
        const arena::scope inner(a);
        a.take<double>(100);
        a.take<char>(1);
    }
    a.take<float>(3, 7);
    a.take<std::int64_t>(0);
    if (keep) a.take<char>(65);
}

} // namespace

TEST_CASE("a dry arena hands out null and counts") {
    arena a;
    CHECK(a.dry());
    CHECK(a.capacity() == std::numeric_limits<std::size_t>::max());
    CHECK(a.take<float>(1) == nullptr);
    CHECK(a.used() == 64);
    const auto v = a.take<float>(3, 16);
    CHECK((v.data() == nullptr && v.rows() == 3 && v.cols() == 16));
    CHECK(a.used() == 256);
    CHECK(a.bytes() == 256);
}

TEST_CASE("an owning arena is zeroed and aligned") {
    arena a(std::size_t{1000});
    CHECK_FALSE(a.dry());
    CHECK(a.capacity() == 1000);
    auto* p = a.take<unsigned char>(900);
    CHECK(aligned(p));
    for (int i = 0; i < 900; ++i) REQUIRE(p[i] == 0);
}

TEST_CASE("everything taken is aligned apart and inside") {
    arena a(std::size_t{4096});
    auto* x = a.take<char>(1);
    auto* y = a.take<double>(9);
    auto z = a.take<float>(2, 3);
    CHECK((aligned(x) && aligned(y) && aligned(z.data())));
    CHECK(reinterpret_cast<char*>(y) - x == 64);
    CHECK(reinterpret_cast<char*>(z.data()) - x == 64 + 128);
    CHECK(z.row_stride() == 3);
    CHECK(a.used() == 256);
}

TEST_CASE("nothing costs nothing") {
    arena a(std::size_t{0});
    CHECK(a.capacity() == 0);
    CHECK_NOTHROW(a.take<double>(0));
    CHECK(a.take<float>(0, 7).empty());
    CHECK(a.take<float>(7, 0).rows() == 7);
    CHECK(a.used() == 0);
}

TEST_CASE("dry and real runs of the same code agree") {
    for (bool keep : {false, true}) {
        arena dry;
        work(dry, keep);
        CHECK(dry.used() == 0);
        CHECK(dry.bytes() == 64 + std::max<std::size_t>(832 + 64, 128 + (keep ? 128 : 0)));
        arena exact(dry.bytes());
        CHECK_NOTHROW(work(exact, keep));
        CHECK(exact.bytes() == dry.bytes());
        arena small(dry.bytes() - 1);
        CHECK_THROWS_AS(work(small, keep), sluice::capacity_error);
        CHECK(small.used() == 0); // scopes release on the way out
    }
}

TEST_CASE("memory of the caller may be misaligned by anything") {
    arena dry;
    work(dry, true);
    alignas(64) std::array<std::byte, 2048> memory{};
    for (std::size_t offset = 0; offset < 64; ++offset) {
        const std::size_t size = dry.bytes() + arena::alignment - 1;
        arena a(std::span<std::byte>(memory).subspan(offset, size));
        CHECK(a.capacity() == size - (64 - offset) % 64);
        CHECK_NOTHROW(work(a, true));
        auto* p = reinterpret_cast<std::byte*>(a.take<float>(1));
        CHECK(aligned(p));
        CHECK(p >= memory.data() + offset);
    }
}

TEST_CASE("spans shorter than the alignment leave no room and no harm") {
    alignas(64) std::array<std::byte, 128> memory{};
    arena a(std::span<std::byte>(memory).subspan(1, 10));
    CHECK(a.capacity() == 0);
    CHECK_THROWS_WITH(a.take<char>(1), "arena: needs 64 bytes, has 0");
    arena none{std::span<std::byte>()};
    CHECK_FALSE(none.dry());
    CHECK(none.capacity() == 0);
    CHECK_NOTHROW(none.take<char>(0));
}

TEST_CASE("memory of the caller is not touched by taking") {
    alignas(64) std::array<std::byte, 256> memory;
    memory.fill(std::byte{0xAB});
    arena a{std::span(memory)};
    CHECK(reinterpret_cast<std::byte*>(a.take<float>(4)) == memory.data());
    for (auto b : memory) REQUIRE(b == std::byte{0xAB});
}

TEST_CASE("too little memory is told in bytes and changes nothing") {
    arena a(std::size_t{128});
    a.take<float>(1);
    CHECK_THROWS_WITH(a.take<float>(17), "arena: needs 192 bytes, has 128");
    try {
        a.take<double>(100);
    } catch (const sluice::capacity_error& e) {
        CHECK(e.needed == 64 + 832);
        CHECK(e.have == 128);
    }
    CHECK(a.used() == 64);
    CHECK(a.bytes() == 64);
    CHECK_NOTHROW(a.take<float>(16));
}

TEST_CASE("sizes that overflow are refused before anything is computed with them") {
    for (bool dry : {true, false}) {
        arena a = dry ? arena() : arena(std::size_t{64});
        CHECK_THROWS_AS(a.take<double>(most), sluice::config_error);
        CHECK_THROWS_WITH(a.take<float>(most), "arena: cannot hold " + std::to_string(most) + " elements");
        CHECK_THROWS_WITH(a.take<float>(-1), "arena: cannot hold -1 elements");
        CHECK_THROWS_WITH(a.take<float>(-1, 2), "arena: -1 x 2 is no shape");
        CHECK_THROWS_WITH(a.take<float>(2, -1), "arena: 2 x -1 is no shape");
        CHECK_THROWS_WITH(a.take<float>(most, 2), "arena: " + std::to_string(most) + " x 2 is no shape");
        CHECK_THROWS_WITH(a.take<float>(idx{1} << 32, idx{1} << 32),
                          "arena: 4294967296 x 4294967296 is no shape");
        CHECK_THROWS_AS(a.take<char>(most, 1), sluice::config_error);
        CHECK_NOTHROW(a.take<float>(arena::most_elements, 0));
        CHECK_NOTHROW(a.take<float>(0, arena::most_elements));
        CHECK(a.used() == 0);
    }
}

TEST_CASE("a dry arena counts large sizes exactly") {
    arena a;
    a.take<char>(idx{1} << 40);
    a.take<float>(idx{1} << 20, idx{1} << 20);
    CHECK(a.bytes() == (std::size_t{1} << 40) * 5);
}

TEST_CASE("a matrix larger than any memory is refused, also by a dry arena") {
    constexpr idx largest = arena::most_elements;
    arena a;
    CHECK(a.take<float>(largest, 1).rows() == largest);
    CHECK(a.take<float>(1, largest).cols() == largest);
    for (const auto& [rows, cols] : {std::pair<idx, idx>{largest + 1, 1},
                                     {1, largest + 1},
                                     {largest + 1, 0},
                                     {0, largest + 1},
                                     {largest / 2 + 1, 2},
                                     {most, most}}) {
        CHECK_THROWS_AS(a.take<float>(rows, cols), sluice::config_error);
        CHECK_THROWS_AS(a.take<sluice::packed<sluice::bf16>>(rows, cols), sluice::config_error);
    }
    CHECK(a.take<sluice::packed<sluice::bf16>>(1, largest).cols() == largest); // padded to a panel
}

TEST_CASE("a dry arena runs out only at the largest size") {
    arena a;
    const idx quarter = idx{1} << 61;
    for (int i = 0; i < 7; ++i) a.take<char>(quarter);
    CHECK(a.bytes() == 7 * (std::size_t{1} << 61));
    CHECK_THROWS_AS(a.take<char>(quarter), sluice::capacity_error);
}

TEST_CASE("a tape gives records back last in first out") {
    for (bool dry : {true, false}) {
        arena tape = dry ? arena() : arena(std::size_t{4096});
        auto* a = tape.take<float>(5);
        auto b = tape.take<double>(3, 4);
        auto* c = tape.take<std::int32_t>(17);
        const std::size_t full = tape.used();
        CHECK(tape.pop<std::int32_t>(17) == c);
        CHECK(tape.pop<double>(3, 4).data() == b.data());
        CHECK((tape.take<char>(20) != nullptr) == !dry);
        CHECK(tape.pop<char>(20) == reinterpret_cast<char*>(b.data()));
        CHECK(tape.pop<float>(5) == a);
        CHECK(tape.used() == 0);
        CHECK(tape.bytes() == full);
        CHECK_THROWS_WITH(tape.pop<float>(1), "arena: tape popped below its start");
        CHECK_NOTHROW(tape.pop<float>(0));
    }
}

TEST_CASE("what pop returns holds what was written") {
    arena tape(std::size_t{1024});
    auto v = tape.take<float>(2, 3);
    sluice::fill(v, 3.5F);
    tape.take<float>(9)[8] = 1;
    CHECK(tape.pop<float>(9)[8] == 1);
    const auto back = tape.pop<float>(2, 3);
    CHECK((back.rows() == 2 && back.cols() == 3 && back(1, 2) == 3.5F));
}

TEST_CASE("release returns to a mark and keeps the high-water mark") {
    arena a(std::size_t{1024});
    a.take<char>(10);
    const std::size_t mark = a.used();
    auto* first = a.take<char>(200);
    a.release(mark);
    CHECK(a.used() == mark);
    CHECK(a.bytes() == 64 + 256);
    CHECK(a.take<char>(1) == first);
#if !defined(NDEBUG) || defined(SLUICE_ENABLE_ASSERTS)
    CHECK_THROWS_AS(a.release(a.used() + 1), sluice::error);
#endif
}

TEST_CASE("a moved-from arena is dry and the memory stays where it was") {
    arena a(std::size_t{256});
    auto* p = a.take<float>(1);
    *p = 5;
    arena b(std::move(a));
    CHECK((a.dry() && a.used() == 0 && a.bytes() == 0));
    CHECK((!b.dry() && b.used() == 64 && b.capacity() == 256));
    CHECK(*p == 5);
    arena c(std::size_t{64});
    c = std::move(b);
    CHECK((b.dry() && c.used() == 64 && *p == 5));
    arena& self = c;
    c = std::move(self);
    CHECK((!c.dry() && c.used() == 64 && *p == 5));
}

TEST_CASE("an arena of shapes takes views and counts the rest") {
    arena views(1024);
    arena shapes = arena::shapes(views);
    CHECK(shapes.dry());
    CHECK(shapes.take<float>(3, 5).data() == nullptr);
    double* at = shapes.take_views<double>(10);
    REQUIRE(at != nullptr);
    at[9] = 1;
    CHECK(views.used() == 128);
    CHECK(shapes.used() == 64);
    arena moved(std::move(shapes));
    CHECK(moved.take_views<double>(1) != nullptr);
    CHECK(views.used() == 192);
    CHECK_THROWS_AS(moved.take_views<double>(1000), sluice::capacity_error);

    arena plain(256); // for all others views are like anything else
    CHECK(plain.take_views<double>(4) != nullptr);
    CHECK(plain.used() == 64);
}

TEST_CASE("repeated takes are counted without repeating them") {
    arena views, a = arena::shapes(views);
    a.take<float>(1);
    int calls = 0;
    auto part = [&] {
        ++calls;
        a.take<float>(20);
        a.take<float>(1);
        a.take_views<int>(3);
    };
    a.count(7, part);
    CHECK(calls == 1);
    CHECK(a.used() == 64 + 7 * 192);
    CHECK(a.bytes() == a.used());
    CHECK(views.used() == 7 * 64);
    a.count(0, part);
    CHECK(calls == 1);
    CHECK_THROWS_AS(a.count(std::numeric_limits<sluice::idx>::max(), part), sluice::config_error);
    arena alone;
    alone.count(3, [&] { alone.take<float>(1); });
    CHECK(alone.used() == 192);
}

TEST_CASE("a scope that is kept gives nothing back, and a record is given back by counting it") {
    arena a(1024);
    a.take<char>(1);
    auto record = [](arena& to, idx n) {
        to.take<float>(n);
        to.take<char>(1);
    };
    for (const bool kept : {false, true}) {
        arena::scope scope(a);
        record(a, 20);
        if (kept) scope.keep();
    }
    CHECK(a.used() == 64 + 192);
    a.give_back([&](arena& counting) { record(counting, 20); });
    CHECK(a.used() == 64);
}
