// Files replaced as a whole: written beside the old one, synchronised, then renamed over it.
#pragma once

#include "file.hpp"

#include <vector>

namespace sluice::io {
inline namespace SLUICE_ISA {

#if SLUICE_HAS_MMAP

namespace detail {

// A new file beside `path`, removed again unless it is published.
class temporary {
public:
    explicit temporary(const std::string& path) : path_(path) {
        struct stat old {};
        const bool exists = ::stat(path.c_str(), &old) == 0;
        if (exists && !S_ISREG(old.st_mode)) fail(path, "is not a regular file");
        for (int i = 0; fd_ < 0; ++i) {
            name_ = path + ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(i);
            constexpr int flags = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC;
            fd_ = uninterrupted([&] { return ::open(name_.c_str(), flags, 0666); });
            if (fd_ < 0 && errno != EEXIST) fail_errno(path, "cannot be written beside");
        }
        // Best effort: the new file is as readable as the old one was.
        if (exists) (void)!::fchmod(fd_, old.st_mode & 0777);
    }
    temporary(const temporary&) = delete;
    temporary& operator=(const temporary&) = delete;
    ~temporary() { discard(); }

    void write(std::span<const std::byte> bytes) {
        while (!bytes.empty()) {
            const std::size_t part = std::min(bytes.size(), std::size_t{1} << 30);
            const auto n = uninterrupted([&] { return ::write(fd_, bytes.data(), part); });
            if (n < 0) give_up("cannot be written");
            bytes = bytes.subspan(static_cast<std::size_t>(n));
        }
    }
    void publish() {
        if (uninterrupted([&] { return ::fsync(fd_); }) != 0) give_up("cannot be synchronised");
        if (::close(std::exchange(fd_, -1)) != 0) give_up("cannot be closed");
        if (::rename(name_.c_str(), path_.c_str()) != 0) give_up("cannot be replaced");
        name_.clear();
        const std::size_t slash = path_.rfind('/');
        const std::string folder = slash == std::string::npos ? "." : path_.substr(0, slash + 1);
        // Best effort: some file systems cannot synchronise a folder.
        const int fd = uninterrupted([&] { return ::open(folder.c_str(), O_RDONLY | O_CLOEXEC); });
        if (fd >= 0) {
            (void)::fsync(fd);
            ::close(fd);
        }
    }

private:
    void discard() {
        if (fd_ >= 0) ::close(std::exchange(fd_, -1));
        if (!name_.empty()) ::unlink(name_.c_str());
        name_.clear();
    }
    [[noreturn]] void give_up(const std::string& what) {
        const std::string message = what + ": " + std::generic_category().message(errno);
        discard();
        fail(path_, message);
    }

    std::string path_, name_;
    int fd_ = -1;
};

} // namespace detail

#else

namespace detail {

class temporary {
public:
    explicit temporary(const std::string& path) : path_(path) {
        std::error_code code;
        if (std::filesystem::exists(path, code) && !std::filesystem::is_regular_file(path, code))
            fail(path, "is not a regular file");
        for (int i = 0; name_.empty() || std::filesystem::exists(name_, code); ++i)
            name_ = path + ".tmp-" + std::to_string(i);
        out_.open(name_, std::ios::binary);
        if (!out_) fail(path, "cannot be written beside");
    }
    ~temporary() { discard(); }

    void write(std::span<const std::byte> bytes) {
        out_.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
        if (!out_) give_up("cannot be written");
    }
    void publish() {
        out_.close();
        if (!out_) give_up("cannot be written");
        std::error_code code;
        std::filesystem::rename(name_, path_, code);
        if (code) give_up("cannot be replaced: " + code.message());
        name_.clear();
    }

private:
    void discard() {
        out_.close();
        std::error_code code;
        if (!name_.empty()) std::filesystem::remove(name_, code);
        name_.clear();
    }
    [[noreturn]] void give_up(const std::string& what) {
        discard();
        fail(path_, what);
    }

    std::string path_, name_;
    std::ofstream out_;
};

} // namespace detail

#endif

// Where a writer of write_beside_and_rename puts its bytes, in order.
class output {
public:
    explicit output(const std::string& path) : file_(path) { buffer_.reserve(capacity); }

    void write(std::span<const std::byte> bytes) {
        if (bytes.size() > capacity - buffer_.size()) flush();
        if (bytes.size() > capacity)
            file_.write(bytes);
        else
            buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
    }
    void publish() {
        flush();
        file_.publish();
    }

private:
    static constexpr std::size_t capacity = std::size_t{1} << 16; // rows of a strided view may be short
    void flush() {
        file_.write(buffer_);
        buffer_.clear();
    }

    detail::temporary file_;
    std::vector<std::byte> buffer_;
};

// Calls write(output&) on a new file in the same folder, synchronises it, and renames it to `path`: whoever
// opens `path` sees all of the old file or all of the new one. On an error, or an exception of `write`, the
// new file is removed and the old one is as it was. A symbolic link is replaced, not followed.
template <class F>
void write_beside_and_rename(const std::string& path, F&& write) {
    output out(path);
    write(out);
    out.publish();
}

} // namespace SLUICE_ISA
} // namespace sluice::io
