// Whole files: read into memory (the default), or mapped on request. Only regular files are opened; a FIFO
// does not hang.
//
// A file that somebody cuts short while it is mapped ends the program with SIGBUS at the next access beyond
// its end, whatever the library does: map only what nobody else writes. read() reports it as an error.
#pragma once

#include "../core/error.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <span>
#include <system_error>
#include <utility>

#if !defined(SLUICE_HAS_MMAP)
#    if defined(__unix__) || defined(__APPLE__)
#        define SLUICE_HAS_MMAP 1
#    else
#        define SLUICE_HAS_MMAP 0
#    endif
#endif

#if SLUICE_HAS_MMAP
#    include <cerrno>
#    include <cstdio>
#    include <fcntl.h>
#    include <sys/mman.h>
#    include <sys/stat.h>
#    include <unistd.h>
#else
#    include <filesystem>
#    include <fstream>
#endif

namespace sluice::io {

// The bytes of a file and the name to report it by, owned or mapped. Copies share the bytes and keep them
// alive; views into them do not.
class file {
public:
    file() = default;
    file(std::shared_ptr<const std::byte> memory, std::size_t size, std::string path, int descriptor = -1)
        : memory_(std::move(memory)), size_(size), path_(std::move(path)), descriptor_(descriptor) {}

    std::span<const std::byte> bytes() const { return {memory_.get(), size_}; }
    const std::string& path() const { return path_; }
    // Of the open file behind a mapping; -1 where the bytes are owned.
    int descriptor() const { return descriptor_; }

private:
    std::shared_ptr<const std::byte> memory_;
    std::size_t size_ = 0;
    std::string path_;
    int descriptor_ = -1;
};

// A size computed from a file's numbers: a sum or product beyond the largest idx stays invalid, never wraps.
// An invalid size compares unequal to everything. value() is for valid sizes.
class checked_size {
public:
    constexpr checked_size(std::uint64_t value) : value_(value), valid_(value <= most) {}

    constexpr bool valid() const { return valid_; }
    constexpr std::size_t value() const { return static_cast<std::size_t>(value_); }

    friend constexpr checked_size operator+(checked_size a, checked_size b) {
        return a.valid_ && b.valid_ && a.value_ <= most - b.value_ ? checked_size(a.value_ + b.value_)
                                                                   : invalid();
    }
    friend constexpr checked_size operator*(checked_size a, checked_size b) {
        const bool fits = a.valid_ && b.valid_ && (b.value_ == 0 || a.value_ <= most / b.value_);
        return fits ? checked_size(a.value_ * b.value_) : invalid();
    }
    friend constexpr bool operator==(checked_size a, checked_size b) {
        return a.valid_ && b.valid_ && a.value_ == b.value_;
    }

private:
    static constexpr std::uint64_t most = static_cast<std::uint64_t>(std::numeric_limits<idx>::max());
    static constexpr checked_size invalid() { return checked_size(most + 1); }

    std::uint64_t value_;
    bool valid_;
};

inline namespace SLUICE_ISA {

namespace detail {

// `what` may quote a hostile file: control characters, which a terminal would obey, become question marks.
[[noreturn]] inline void fail(const std::string& path, std::string what) {
    for (char& c : what)
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = '?';
    SLUICE_THROW(input_error(path + ": " + what));
}

inline std::shared_ptr<std::byte> allocate(std::size_t bytes) {
    constexpr std::align_val_t line{64};
    return {static_cast<std::byte*>(::operator new[](std::max<std::size_t>(bytes, 1), line)),
            [](std::byte* p) { ::operator delete[](p, line); }};
}

// Files are little-endian.
template <class U>
U from_little(const std::byte* at) {
    U value = 0;
    for (std::size_t i = 0; i < sizeof(U); ++i) value |= static_cast<U>(static_cast<U>(at[i]) << (8 * i));
    return value;
}

// Copies elements between the machine's and the file's byte order.
inline void copy_elements(std::byte* to, const std::byte* from, std::size_t bytes, std::size_t element) {
    if (bytes == 0) return;
    std::memcpy(to, from, bytes);
    if constexpr (std::endian::native == std::endian::big)
        for (std::byte* e = to; e != to + bytes; e += element) std::reverse(e, e + element);
}

} // namespace detail

// A copy of bytes that came another way. `name` stands for the path in messages.
inline file from_memory(std::span<const std::byte> bytes, std::string name) {
    auto memory = detail::allocate(bytes.size());
    std::copy(bytes.begin(), bytes.end(), memory.get());
    return {std::move(memory), bytes.size(), std::move(name)};
}

#if SLUICE_HAS_MMAP

namespace detail {

[[noreturn]] inline void fail_errno(const std::string& path, const std::string& what) {
    fail(path, what + ": " + std::generic_category().message(errno));
}

// Repeats a system call that a signal interrupted.
template <class F>
auto uninterrupted(F&& call) {
    auto result = call();
    while (result < 0 && errno == EINTR) result = call();
    return result;
}

// A regular file opened for reading.
class descriptor {
public:
    explicit descriptor(const std::string& path) : path_(path) {
        // O_NONBLOCK: opening a FIFO returns at once, to be refused below. It does not matter to a file.
        constexpr int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
        fd_ = uninterrupted([&] { return ::open(path.c_str(), flags); });
        if (fd_ < 0) fail_errno(path, "cannot be opened");
        size_ = size_now();
    }
    descriptor(const descriptor&) = delete;
    descriptor& operator=(const descriptor&) = delete;
    ~descriptor() { close(); }

    int number() const { return fd_; }
    std::size_t size() const { return size_; }

    // Throws where the file's size has changed since it was opened.
    void require_unchanged() {
        const std::size_t now = size_now();
        if (now != size_)
            give_up("changed from " + std::to_string(size_) + " to " + std::to_string(now) +
                    " bytes while it was read");
    }
    [[noreturn]] void give_up(const std::string& what) {
        close();
        fail(path_, what);
    }

private:
    std::size_t size_now() {
        struct stat status {};
        if (::fstat(fd_, &status) != 0) give_up("has no status");
        if (!S_ISREG(status.st_mode)) give_up("is not a regular file");
        return static_cast<std::size_t>(status.st_size);
    }
    void close() {
        if (fd_ >= 0) ::close(fd_);
        fd_ = -1;
    }

    std::string path_;
    int fd_ = -1;
    std::size_t size_ = 0;
};

} // namespace detail

// The file's content in memory aligned to 64 bytes. Throws input_error where it cannot be opened, is not a
// regular file, is longer than `max_bytes`, or ends before its size says.
inline file read(const std::string& path, std::size_t max_bytes = std::size_t{1} << 40) {
    detail::descriptor source(path);
    const std::size_t size = source.size();
    if (size > max_bytes)
        source.give_up("has " + std::to_string(size) + " bytes, at most " + std::to_string(max_bytes) +
                       " are read");
    auto memory = detail::allocate(size);
    for (std::size_t done = 0; done < size;) {
        const std::size_t part = std::min(size - done, std::size_t{1} << 30);
        const auto n = detail::uninterrupted(
            [&] { return ::pread(source.number(), memory.get() + done, part, static_cast<off_t>(done)); });
        if (n < 0) detail::fail_errno(path, "cannot be read");
        if (n == 0)
            source.give_up("ends after " + std::to_string(done) + " of " + std::to_string(size) + " bytes");
        done += static_cast<std::size_t>(n);
    }
    source.require_unchanged();
    return {std::move(memory), size, path};
}

// The same without reading it: pages come from the file when they are touched, or by prefetch. Only for files
// nobody shortens meanwhile (see above). Throws as read does.
inline file map(const std::string& path) {
    const auto source = std::make_shared<detail::descriptor>(path); // stays open, for prefetch
    const std::size_t size = source->size();
    if (size == 0) return {nullptr, 0, path};
    void* at = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, source->number(), 0);
    if (at == MAP_FAILED) detail::fail_errno(path, "cannot be mapped");
    std::shared_ptr<const std::byte> memory(
        static_cast<const std::byte*>(at),
        [size, source](const std::byte* p) { ::munmap(const_cast<std::byte*>(p), size); });
    source->require_unchanged();
    return {std::move(memory), size, path, source->number()};
}

// Brings a mapped file's pages into memory, or starts to where the system cannot wait for it; nothing for
// owned bytes. Throws input_error where the file's size is no longer what it was when it was mapped.
inline void prefetch(const file& f) {
    if (f.descriptor() < 0) return;
    auto require_size = [&] {
        struct stat status {};
        if (::fstat(f.descriptor(), &status) != 0) detail::fail_errno(f.path(), "has no status");
        const auto now = static_cast<std::size_t>(status.st_size);
        if (now != f.bytes().size())
            detail::fail(f.path(), "changed from " + std::to_string(f.bytes().size()) + " to " +
                                       std::to_string(now) + " bytes since it was mapped");
    };
    require_size();
    auto advise = [&](int advice) {
        return ::madvise(const_cast<std::byte*>(f.bytes().data()), f.bytes().size(), advice) == 0;
    };
#    if defined(MADV_POPULATE_READ)
    if (!advise(
            MADV_POPULATE_READ)) // older kernels lack it; beyond the file's end it fails, without a signal
#    endif
        advise(MADV_WILLNEED);
    require_size();
}

#else

inline file read(const std::string& path, std::size_t max_bytes = std::size_t{1} << 40) {
    std::error_code code;
    if (!std::filesystem::is_regular_file(path, code)) detail::fail(path, "is not a regular file");
    const auto size = static_cast<std::size_t>(std::filesystem::file_size(path, code));
    if (code) detail::fail(path, "has no size: " + code.message());
    if (size > max_bytes)
        detail::fail(path, "has " + std::to_string(size) + " bytes, at most " + std::to_string(max_bytes) +
                               " are read");
    std::ifstream source(path, std::ios::binary);
    if (!source) detail::fail(path, "cannot be opened");
    auto memory = detail::allocate(size);
    source.read(reinterpret_cast<char*>(memory.get()), static_cast<std::streamsize>(size));
    const auto done = static_cast<std::size_t>(source.gcount());
    if (done != size)
        detail::fail(path, "ends after " + std::to_string(done) + " of " + std::to_string(size) + " bytes");
    return {std::move(memory), size, path};
}
inline file map(const std::string& path) { return read(path); }
inline void prefetch(const file&) {}

#endif

} // namespace SLUICE_ISA
} // namespace sluice::io
