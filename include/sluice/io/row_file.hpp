// Rows of a tensor of a safetensors file, read one by one when they are asked for: a table larger than
// memory. A file that is cut short meanwhile, or a disk that fails, is an error and no signal, as it is for a
// mapping.
#pragma once

#include "safetensors.hpp"

namespace sluice::io {
inline namespace SLUICE_ISA {

#if SLUICE_HAS_MMAP

// Copies share the open file. Every call may come from any thread.
class row_file {
public:
    row_file() = default;
    // The rows of the tensor `name`, whose elements are S, and of `scale_name`, whose elements are Scale,
    // unless that is empty. Throws input_error where the file has no such tensors, or not as many rows in
    // both.
    template <class S, class Scale = float>
    static row_file open(const std::string& path, const std::string& name,
                         const std::string& scale_name = "") {
        static_assert(std::endian::native == std::endian::little, "sluice: rows are handed out as they are");
        row_file f;
        f.path_ = path;
        const file whole = map(path); // only the header is looked at
        const safetensors tensors(whole);
        f.elements_ = part_of(whole, tensors, name, dtype_of<S>);
        if (!scale_name.empty()) {
            f.scales_ = part_of(whole, tensors, scale_name, dtype_of<Scale>);
            if (f.scales_.rows != f.elements_.rows)
                detail::fail(path, name + " has " + std::to_string(f.elements_.rows) + " rows, " +
                                       scale_name + " " + std::to_string(f.scales_.rows));
        }
        f.source_ = std::make_shared<detail::descriptor>(path);
        if (f.source_->size() != whole.bytes().size()) detail::fail(path, "changed while it was opened");
#    if defined(POSIX_FADV_RANDOM)
        (void)::posix_fadvise(f.source_->number(), 0, 0,
                              POSIX_FADV_RANDOM); // what follows a row is not wanted
#    endif
        return f;
    }

    idx rows() const { return elements_.rows; }
    idx cols() const { return elements_.cols; }
    idx scales() const { return scales_.cols; } // of a row

    // Whether the row, and its scales where there are any, could be read.
    bool read(idx row, void* elements, void* scales) const {
        return read(elements_, row, elements) && (scales_.cols == 0 || read(scales_, row, scales));
    }
    // Starts to bring the row into the system's cache, without waiting.
    void advise(idx row) const {
#    if defined(POSIX_FADV_WILLNEED)
        for (const part* p : {&elements_, &scales_})
            if (p->row_bytes > 0)
                (void)::posix_fadvise(source_->number(), static_cast<off_t>(p->at(row)),
                                      static_cast<off_t>(p->row_bytes), POSIX_FADV_WILLNEED);
#    else
        (void)row;
#    endif
    }
    // Says why the row could not be read.
    [[noreturn]] void fail(idx row) const {
        std::byte one{};
        const auto last = static_cast<off_t>(elements_.at(row) + elements_.row_bytes - 1);
        const auto n = detail::uninterrupted([&] { return ::pread(source_->number(), &one, 1, last); });
        if (n < 0) detail::fail_errno(path_, "row " + std::to_string(row) + " cannot be read");
        detail::fail(path_, n == 0 ? "ends before row " + std::to_string(row) + ", it was cut short"
                                   : "row " + std::to_string(row) + " could not be read");
    }

private:
    struct part {
        std::size_t offset = 0, row_bytes = 0;
        idx rows = 0, cols = 0;
        std::size_t at(idx row) const { return offset + static_cast<std::size_t>(row) * row_bytes; }
    };
    static part part_of(const file& whole, const safetensors& tensors, const std::string& name, dtype type) {
        if (!tensors.contains(name)) detail::fail(whole.path(), name + " is missing");
        const tensor_info& t = tensors.info(name);
        if (t.type != type)
            detail::fail(whole.path(),
                         name + " must be " + std::string(facts(type).name) + ", is " + t.text());
        return {static_cast<std::size_t>(t.bytes.data() - whole.bytes().data()),
                static_cast<std::size_t>(t.cols()) * facts(type).bytes, t.rows(), t.cols()};
    }
    bool read(const part& p, idx row, void* to) const {
        for (std::size_t done = 0; done < p.row_bytes;) {
            const auto n = detail::uninterrupted([&] {
                return ::pread(source_->number(), static_cast<std::byte*>(to) + done, p.row_bytes - done,
                               static_cast<off_t>(p.at(row) + done));
            });
            if (n <= 0) return false;
            done += static_cast<std::size_t>(n);
        }
        return true;
    }

    std::string path_;
    std::shared_ptr<detail::descriptor> source_;
    part elements_, scales_;
};

#endif

} // namespace SLUICE_ISA
} // namespace sluice::io
