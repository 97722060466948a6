#include "support/catch.hpp"
#include "support/scratch_path.hpp"

#include <sluice/io/file.hpp>

#include <array>
#include <filesystem>
#include <fstream>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#if SLUICE_HAS_MMAP
#    include <csignal>
#    include <sys/resource.h>
#    include <sys/stat.h>
#    include <unistd.h>
#endif

namespace io = sluice::io;
namespace fs = std::filesystem;
using io::checked_size;
using sluice::test::contains_text;

namespace {

// A folder of this test's own, removed with all it holds.
class folder {
public:
    explicit folder(const std::string& name) : path_(sluice::test::scratch_path("file_" + name)) {
        fs::remove_all(path_);
        fs::create_directories(path_);
    }
    folder(const folder&) = delete;
    ~folder() {
        std::error_code ignored;
        fs::remove_all(path_, ignored);
    }
    std::string operator/(const std::string& name) const { return (path_ / name).string(); }
    std::size_t entries() const {
        return static_cast<std::size_t>(
            std::distance(fs::directory_iterator(path_), fs::directory_iterator()));
    }

private:
    fs::path path_;
};

void put(const std::string& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }
std::string get(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}
std::string text_of(const io::file& f) {
    return {reinterpret_cast<const char*>(f.bytes().data()), f.bytes().size()};
}
std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

// The message of the input_error that `call` throws.
template <class F>
std::string complaint(F&& call) {
    try {
        call();
    } catch (const sluice::input_error& e) {
        return e.what();
    }
    return "";
}

constexpr std::uint64_t most = static_cast<std::uint64_t>(std::numeric_limits<sluice::idx>::max());

} // namespace

static_assert(checked_size(most).valid() && !checked_size(most + 1).valid());
static_assert((checked_size(most - 3) + 3).value() == most && !(checked_size(most - 3) + 4).valid());
static_assert((checked_size(0) * most).value() == 0 && (checked_size(most) * 0).value() == 0);
static_assert((checked_size(most) * 1).valid() && !(checked_size(most) * 2).valid());
static_assert(!(checked_size(std::uint64_t{1} << 32) * (std::uint64_t{1} << 32)).valid());
static_assert((checked_size(std::uint64_t{1} << 31) * (std::uint64_t{1} << 31)).valid());
static_assert(!(checked_size(~std::uint64_t{0}) * 0).valid() &&
              !(checked_size(~std::uint64_t{0}) + 1).valid());
static_assert(checked_size(5) == 5 && !(checked_size(5) == 6));
static_assert(!(checked_size(most + 1) == checked_size(most + 1)));

TEST_CASE("read returns the content aligned and named") {
    const folder here("read");
    std::string text(100'000, 'x');
    for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 7);
    put(here / "a", text);
    const io::file f = io::read(here / "a");
    CHECK(f.path() == here / "a");
    CHECK(text_of(f) == text);
    CHECK(reinterpret_cast<std::uintptr_t>(f.bytes().data()) % 64 == 0);
}

TEST_CASE("empty files are read") {
    const folder here("empty");
    put(here / "a", "");
    CHECK(io::read(here / "a").bytes().empty());
    CHECK(io::file().bytes().empty());
    CHECK(io::file().path().empty());
}

TEST_CASE("copies share the bytes and outlive the original") {
    const folder here("share");
    put(here / "a", "hello");
    io::file copy;
    {
        const io::file f = io::read(here / "a");
        copy = f;
        CHECK(copy.bytes().data() == f.bytes().data());
    }
    CHECK(text_of(copy) == "hello");
}

TEST_CASE("from_memory copies and names") {
    std::string text = "abc";
    const io::file f = io::from_memory(bytes_of(text), "made up");
    text[0] = 'z';
    CHECK(text_of(f) == "abc");
    CHECK(f.path() == "made up");
    CHECK(reinterpret_cast<std::uintptr_t>(f.bytes().data()) % 64 == 0);
    CHECK(io::from_memory({}, "nothing").bytes().empty());
}

TEST_CASE("files longer than the limit are refused before memory is taken") {
    const folder here("limit");
    put(here / "a", "0123456789");
    CHECK(io::read(here / "a", 10).bytes().size() == 10);
    CHECK(complaint([&] { io::read(here / "a", 9); }) == here / "a" + ": has 10 bytes, at most 9 are read");
    std::error_code code;
    fs::resize_file(here / "a", std::uintmax_t{1} << 41, code); // sparse
    if (!code)
        CHECK(complaint([&] { io::read(here / "a"); }) ==
              here / "a" + ": has 2199023255552 bytes, at most 1099511627776 are read");
}

TEST_CASE("missing files and folders are told by name") {
    const folder here("missing");
    CHECK_THAT(complaint([&] { io::read(here / "none"); }), contains_text(here / "none" + ": "));
    CHECK(complaint([&] { io::read(here / "."); }) == here / "." + ": is not a regular file");
    CHECK_THROWS_AS(io::read(""), sluice::input_error);
}

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

TEST_CASE("devices and FIFOs are refused at once") {
    const folder here("fifo");
    REQUIRE(::mkfifo((here / "fifo").c_str(), 0600) == 0);
    CHECK(complaint([&] { io::read(here / "fifo"); }) == here / "fifo" + ": is not a regular file");
    CHECK(complaint([&] { io::map(here / "fifo"); }) == here / "fifo" + ": is not a regular file");
    CHECK(complaint([] { io::read("/dev/zero"); }) == "/dev/zero: is not a regular file");
    CHECK(complaint([] { io::map("/dev/zero"); }) == "/dev/zero: is not a regular file");
    CHECK(complaint([&] { io::map(here / "."); }) == here / "." + ": is not a regular file");
    CHECK(complaint([&] { io::map(here / "no"); }) ==
          here / "no" + ": cannot be opened: No such file or directory");
    CHECK(complaint([&] {
              io::write_beside_and_rename(here / "fifo", [](io::output&) { FAIL("was called"); });
          }) == here / "fifo" + ": is not a regular file");
    CHECK(here.entries() == 1);
}

TEST_CASE("a file shorter than it says is an error") {
    const std::string path = "/sys/kernel/mm/transparent_hugepage/enabled"; // says 4096, holds a line
    std::error_code code;
    if (fs::is_regular_file(path, code) && fs::file_size(path, code) > get(path).size())
        CHECK_THAT(complaint([&] { io::read(path); }),
                   contains_text(path + ": ends after " + std::to_string(get(path).size()) + " of "));
}

TEST_CASE("map shows the content and outlives the file's name") {
    const folder here("map");
    put(here / "a", "hello");
    io::file copy;
    {
        const io::file f = io::map(here / "a");
        CHECK(f.path() == here / "a");
        copy = f;
    }
    fs::remove(here / "a");
    CHECK(text_of(copy) == "hello");
    put(here / "empty", "");
    CHECK(io::map(here / "empty").bytes().empty());
}

TEST_CASE("a mapped file replaced by a save keeps its old content") {
    const folder here("map_replace");
    put(here / "a", "old");
    const io::file f = io::map(here / "a");
    io::write_beside_and_rename(here / "a", [](io::output& out) { out.write(bytes_of("new")); });
    CHECK(text_of(f) == "old");
    CHECK(get(here / "a") == "new");
}

TEST_CASE("a mapped file may be larger than memory") {
    const folder here("sparse");
    put(here / "a", "");
    std::error_code code;
    fs::resize_file(here / "a", std::uintmax_t{1} << 33, code);
    if (code) return;
    const io::file f = io::map(here / "a");
    CHECK(f.bytes().size() == std::size_t{1} << 33);
    CHECK(f.bytes().back() == std::byte{0});
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
