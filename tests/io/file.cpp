#include "support/catch.hpp"
#include "support/scratch_folder.hpp"

#include <sluice/io/file.hpp>

#include <limits>

#if SLUICE_HAS_MMAP
#    include <csignal>
#    include <functional>
#    include <sys/resource.h>
#    include <sys/stat.h>
#    include <sys/wait.h>
#    include <unistd.h>
#endif
#if defined(__linux__)
#    include <sys/syscall.h>
#endif

namespace io = sluice::io;
namespace fs = std::filesystem;
using folder = sluice::test::scratch_folder;
using io::checked_size;
using sluice::test::bytes_of;
using sluice::test::complaint;
using sluice::test::contains_text;
using sluice::test::get;
using sluice::test::put;
using sluice::test::text_of;

namespace {

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

TEST_CASE("messages hold no control characters of a file") {
    const std::string said =
        complaint([] { io::detail::fail("f", std::string("holds \"a\0b\x1B[2J\n\x7F\xC3\xA9\"", 19)); });
    CHECK(said == "f: holds \"a?b?[2J??\xC3\xA9\"");
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

TEST_CASE("prefetching a mapped file changes nothing but where its pages are") {
    const folder here("prefetch");
    put(here / "a", std::string(100'000, 'x'));
    const io::file f = io::map(here / "a");
    CHECK(f.descriptor() >= 0);
    CHECK_NOTHROW(io::prefetch(f));
    CHECK(text_of(f) == std::string(100'000, 'x'));
    fs::remove(here / "a");
    CHECK_NOTHROW(io::prefetch(f));
    put(here / "empty", "");
    CHECK_NOTHROW(io::prefetch(io::map(here / "empty")));
    CHECK_NOTHROW(io::prefetch(io::file()));
    CHECK_NOTHROW(io::prefetch(io::from_memory(bytes_of("abc"), "abc")));
}

TEST_CASE("a mapped file of another size is told when it is prefetched") {
    const folder here("resized");
    put(here / "a", std::string(10'000, 'x'));
    const io::file f = io::map(here / "a");
    for (const std::uintmax_t now : {std::uintmax_t{9'999}, std::uintmax_t{0}, std::uintmax_t{10'001}}) {
        fs::resize_file(here / "a", now);
        CHECK(complaint([&] { io::prefetch(f); }) ==
              here / "a" + ": changed from 10000 to " + std::to_string(now) + " bytes since it was mapped");
    }
    fs::resize_file(here / "a", 10'000);
    CHECK_NOTHROW(io::prefetch(f));
}

TEST_CASE("a file that is read is not kept open") {
    const folder here("closed");
    put(here / "a", "hello");
    CHECK(io::read(here / "a").descriptor() == -1);
    const int before = ::dup(0);
    ::close(before);
    const io::file read = io::read(here / "a");
    {
        const io::file mapped = io::map(here / "a");
        const int above = ::dup(0);
        ::close(above);
        CHECK(above == before + 1);
    }
    const int after = ::dup(0);
    ::close(after);
    CHECK(after == before);
}

// As the comment in the header says; nothing a library can do about it.
TEST_CASE("reading beyond the end of a mapped file that was cut ends the program") {
    const folder here("cut");
    put(here / "a", std::string(100'000, 'x'));
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        const rlimit no_core{0, 0};
        ::setrlimit(RLIMIT_CORE, &no_core);
        std::signal(SIGBUS, SIG_DFL);
        const io::file f = io::map(here / "a");
        fs::resize_file(here / "a", 0);
        const volatile std::byte* last = &f.bytes().back();
        ::_exit(static_cast<int>(*last) == 'x' ? 1 : 2);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status));
    CHECK(WTERMSIG(status) == SIGBUS);
}

#    if defined(__linux__)

// The program's own pread is what the library calls.
namespace {
std::function<std::size_t(std::size_t)> interfere; // bytes to ask for instead; 0: interrupt
} // namespace
extern "C" ssize_t pread(int fd, void* to, std::size_t n, off_t at) {
    if (interfere) n = interfere(n);
    if (n == 0) {
        errno = EINTR;
        return -1;
    }
    return ::syscall(SYS_pread64, fd, to, n, at);
}

TEST_CASE("short reads and interrupted reads are gone on with") {
    const folder here("short");
    std::string text;
    for (int i = 0; i < 3000; ++i) text += std::to_string(i);
    put(here / "a", text);
    int calls = 0;
    interfere = [&](std::size_t n) { return ++calls % 3 == 0 ? 0 : std::min<std::size_t>(n, 777); };
    const io::file f = io::read(here / "a");
    interfere = {};
    CHECK(calls > 15);
    CHECK(text_of(f) == text);
}

TEST_CASE("a file that is cut or grows while it is read is an error") {
    const folder here("changing");
    auto complaint_of = [&](std::uintmax_t size) {
        put(here / "a", std::string(3000, 'x'));
        int calls = 0;
        interfere = [&](std::size_t n) {
            if (++calls == 2) fs::resize_file(here / "a", size);
            return std::min<std::size_t>(n, 1000);
        };
        std::string said = complaint([&] { io::read(here / "a"); });
        interfere = {};
        return said;
    };
    CHECK(complaint_of(1000) == here / "a" + ": ends after 1000 of 3000 bytes");
    CHECK(complaint_of(2500) == here / "a" + ": ends after 2500 of 3000 bytes");
    CHECK(complaint_of(4000) == here / "a" + ": changed from 3000 to 4000 bytes while it was read");
}

#    endif

#endif
