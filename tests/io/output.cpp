#include "support/catch.hpp"
#include "support/scratch_folder.hpp"

#include <sluice/io/output.hpp>

#include <stdexcept>
#include <vector>

#if SLUICE_HAS_MMAP
#    include <csignal>
#    include <sys/resource.h>
#    include <sys/stat.h>
#    include <unistd.h>
#endif

namespace io = sluice::io;
namespace fs = std::filesystem;
using folder = sluice::test::scratch_folder;
using sluice::test::bytes_of;
using sluice::test::complaint;
using sluice::test::contains_text;
using sluice::test::get;
using sluice::test::put;
using sluice::test::text_of;

TEST_CASE("a new file appears with what was written") {
    const folder here("new");
    io::write_beside_and_rename(here / "a", [](io::output& out) {
        out.write(bytes_of("hello "));
        out.write({});
        out.write(bytes_of("world"));
    });
    CHECK(get(here / "a") == "hello world");
    CHECK(here.entries() == 1);
    io::write_beside_and_rename(here / "empty", [](io::output&) {});
    CHECK(get(here / "empty").empty());
    CHECK(here.entries() == 2);
}

TEST_CASE("pieces of all lengths arrive in order") {
    const folder here("pieces");
    std::string expected;
    io::write_beside_and_rename(here / "a", [&](io::output& out) {
        for (const std::size_t n :
             std::vector<std::size_t>{1, 70'000, 3, 65'535, 65'536, 65'537, 0, 200'000, 5}) {
            std::string piece(n, '?');
            for (std::size_t i = 0; i < n; ++i) piece[i] = static_cast<char>(expected.size() + i);
            out.write(bytes_of(piece));
            expected += piece;
        }
    });
    CHECK(get(here / "a") == expected);
}

TEST_CASE("an exception of the writer leaves the old file and no other") {
    const folder here("exception");
    put(here / "a", "old");
    for (const std::size_t n : std::vector<std::size_t>{3, 300'000}) {
        CHECK_THROWS_WITH(io::write_beside_and_rename(here / "a",
                                                      [&](io::output& out) {
                                                          out.write(bytes_of(std::string(n, 'x')));
                                                          throw std::runtime_error("no more");
                                                      }),
                          "no more");
        CHECK(get(here / "a") == "old");
        CHECK(here.entries() == 1);
    }
}

TEST_CASE("a file is replaced as a whole") {
    const folder here("replace");
    put(here / "a", "old and long");
    io::write_beside_and_rename(here / "a", [&](io::output& out) {
        out.write(bytes_of(std::string(100'000, 'n')));
        CHECK(get(here / "a") == "old and long");
    });
    CHECK(get(here / "a") == std::string(100'000, 'n'));
    CHECK(here.entries() == 1);
}

TEST_CASE("saving where nothing can be written is told by name") {
    const folder here("nowhere");
    auto save = [&](const std::string& path) {
        return complaint([&] { io::write_beside_and_rename(path, [](io::output&) { FAIL("was called"); }); });
    };
    CHECK_THAT(save(here / "none/a"), contains_text(here / "none/a" + ": cannot be written beside"));
    CHECK(save(here / ".") == here / "." + ": is not a regular file");
}

#if SLUICE_HAS_MMAP

TEST_CASE("a mapped file replaced by a save keeps its old content") {
    const folder here("map_replace");
    put(here / "a", "old");
    const io::file f = io::map(here / "a");
    io::write_beside_and_rename(here / "a", [](io::output& out) { out.write(bytes_of("new")); });
    CHECK(text_of(f) == "old");
    CHECK(get(here / "a") == "new");
}

TEST_CASE("a FIFO is not written to") {
    const folder here("fifo");
    REQUIRE(::mkfifo((here / "fifo").c_str(), 0600) == 0);
    CHECK(complaint([&] {
              io::write_beside_and_rename(here / "fifo", [](io::output&) { FAIL("was called"); });
          }) == here / "fifo" + ": is not a regular file");
    CHECK(here.entries() == 1);
}

TEST_CASE("a save that runs out of room leaves the old file and no other") {
    const folder here("full");
    put(here / "a", "old");
    rlimit old{};
    REQUIRE(::getrlimit(RLIMIT_FSIZE, &old) == 0);
    auto* handler = std::signal(SIGXFSZ, SIG_IGN);
    rlimit small = old;
    small.rlim_cur = 100'000;
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
    const std::string message = complaint([&] {
        io::write_beside_and_rename(here / "a", [](io::output& out) {
            for (int i = 0; i < 100; ++i) out.write(bytes_of(std::string(10'000, 'x')));
        });
    });
    ::setrlimit(RLIMIT_FSIZE, &old);
    std::signal(SIGXFSZ, handler);
    CHECK(message == here / "a" + ": cannot be written: File too large");
    CHECK(get(here / "a") == "old");
    CHECK(here.entries() == 1);
}

TEST_CASE("a replaced file keeps its permissions") {
    const folder here("mode");
    put(here / "a", "old");
    fs::permissions(here / "a", fs::perms::owner_read | fs::perms::owner_write);
    io::write_beside_and_rename(here / "a", [](io::output&) {});
    CHECK(fs::status(here / "a").permissions() == (fs::perms::owner_read | fs::perms::owner_write));
}

TEST_CASE("a symbolic link is replaced and its target is not") {
    const folder here("link");
    put(here / "target", "old");
    fs::create_symlink(here / "target", here / "link");
    io::write_beside_and_rename(here / "link", [](io::output& out) { out.write(bytes_of("new")); });
    CHECK_FALSE(fs::is_symlink(here / "link"));
    CHECK(get(here / "link") == "new");
    CHECK(get(here / "target") == "old");
}

TEST_CASE("a leftover temporary of the same name is neither used nor removed") {
    const folder here("leftover");
    const std::string leftover = here / ("a.tmp-" + std::to_string(::getpid()) + "-0");
    put(leftover, "of a crash");
    io::write_beside_and_rename(here / "a", [](io::output& out) { out.write(bytes_of("new")); });
    CHECK(get(here / "a") == "new");
    CHECK(get(leftover) == "of a crash");
}

TEST_CASE("a path without a folder means the current one") {
    const folder here("relative");
    const fs::path old = fs::current_path();
    fs::current_path(here / ".");
    io::write_beside_and_rename("plain", [](io::output& out) { out.write(bytes_of("x")); });
    const io::file f = io::read("plain");
    fs::current_path(old);
    CHECK(text_of(f) == "x");
    CHECK(get(here / "plain") == "x");
}

#endif
