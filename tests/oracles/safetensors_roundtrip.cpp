// The C++ side of safetensors_roundtrip.py:
//   write <file>        tensors of every type and several shapes, with the bytes that expected() names
//   check <file>        the same of whatever tensors a file has, through every way to read them
//   copy <from> <to>    all tensors and metadata of a file
#include <sluice/core/tensor.hpp>
#include <sluice/io/safetensors_writer.hpp>

#include <cstdio>
#include <list>

namespace {

namespace io = sluice::io;
using sluice::idx;

// Every bit pattern is as likely as any other, so NaNs, infinities and subnormals are among the values.
std::vector<std::byte> expected(const std::string& name, std::size_t n) {
    std::uint64_t state = 0xCBF29CE484222325U; // FNV-1a of the name
    for (const char c : name) state = (state ^ static_cast<unsigned char>(c)) * 0x100000001B3U;
    std::vector<std::byte> bytes(n);
    for (std::byte& b : bytes) {
        state = state * 6364136223846793005U + 1442695040888963407U;
        b = static_cast<std::byte>(state >> 56);
    }
    return bytes;
}

// Calls f with a null pointer to the C++ type of an element; false where there is none.
template <class F>
bool with_type(io::dtype type, F&& f) {
    auto one = [&]<class T>(T*) {
        if (io::dtype_of<T> == type) f(static_cast<T*>(nullptr));
        return io::dtype_of<T> == type;
    };
    auto any = [&]<class... T>(T*... types) { return (one(types) || ...); };
    return any(static_cast<double*>(nullptr), static_cast<float*>(nullptr),
               static_cast<sluice::bf16*>(nullptr), static_cast<std::int64_t*>(nullptr),
               static_cast<std::int32_t*>(nullptr), static_cast<std::int8_t*>(nullptr),
               static_cast<std::uint8_t*>(nullptr));
}

// A matrix with a gap behind every row, which the file must not have.
template <class T>
struct gapped {
    explicit gapped(const io::tensor_info& t)
        : memory(static_cast<std::size_t>(t.rows() * (t.cols() + 3))),
          view(memory.data(), t.rows(), t.cols(), t.cols() + 3) {}
    std::vector<T> memory;
    sluice::tensor_view<T> view;
};

template <class T>
bool equal(const sluice::tensor_view<T>& t, const std::vector<std::byte>& bytes) {
    const std::size_t row = static_cast<std::size_t>(t.cols()) * sizeof(T);
    for (idx i = 0; i < t.rows(); ++i)
        if (row > 0 && std::memcmp(t.row(i), bytes.data() + static_cast<std::size_t>(i) * row, row) != 0)
            return false;
    return true;
}

void write(const std::string& path) {
    const std::vector<std::vector<idx>> shapes{{}, {1}, {7}, {3, 5}, {2, 3, 4}, {0}, {0, 4}, {4, 0}};
    io::safetensors_writer out;
    std::list<std::vector<std::byte>> bytes; // save reads what was added
    std::list<std::shared_ptr<void>> views;
    for (const io::dtype_facts& facts : io::dtype_table)
        for (const auto& shape : shapes) {
            const auto type = static_cast<io::dtype>(&facts - io::dtype_table.data());
            const io::tensor_info t{type, shape, {}};
            std::string name(facts.name);
            for (const idx n : shape) (name += '.') += std::to_string(n);
            const auto n = static_cast<std::size_t>(t.rows() * t.cols());
            const auto& data = bytes.emplace_back(expected(name, n * facts.bytes));
            const bool typed = with_type(type, [&]<class T>(T*) {
                const auto made = std::make_shared<gapped<T>>(t);
                const std::size_t row = static_cast<std::size_t>(t.cols()) * sizeof(T);
                for (idx i = 0; i < t.rows() && row > 0; ++i)
                    std::memcpy(made->view.row(i), data.data() + static_cast<std::size_t>(i) * row, row);
                views.push_back(made);
                out.add(name, made->view, shape);
            });
            if (!typed) out.add_bytes(name, type, shape, data);
        }
    out.metadata("format", "sluice");
    out.save(path);
}

bool check(const std::string& path) {
    bool good = true;
    for (const io::file& source : {io::read(path), io::map(path)}) {
        const io::safetensors in(source);
        for (const auto& entry : in.tensors()) {
            const auto& name = entry.first; // clang 14 captures no structured bindings
            const auto& t = entry.second;
            const auto bytes = expected(name, t.bytes.size());
            bool same = std::equal(bytes.begin(), bytes.end(), t.bytes.begin(), t.bytes.end());
            with_type(t.type, [&]<class T>(T*) {
                const gapped<T> copy(t);
                in.copy_to(name, copy.view);
                same = same && equal(copy.view, bytes) && equal(in.view<T>(name), bytes);
            });
            if (!same) std::fprintf(stderr, "%s: %s has other bytes\n", name.c_str(), t.text().c_str());
            good = good && same;
        }
    }
    return good;
}

void copy(const std::string& from, const std::string& to) {
    const io::safetensors in = io::read(from);
    io::safetensors_writer out;
    for (const auto& [name, t] : in.tensors()) out.add_bytes(name, t.type, t.shape, t.bytes);
    for (const auto& [key, value] : in.metadata()) out.metadata(key, value);
    out.save(to);
}

} // namespace

int main(int count, char** arguments) {
    const std::vector<std::string> given(arguments + 1, arguments + count);
    if (given.size() == 2 && given[0] == "write") return write(given[1]), EXIT_SUCCESS;
    if (given.size() == 2 && given[0] == "check") return check(given[1]) ? EXIT_SUCCESS : EXIT_FAILURE;
    if (given.size() == 3 && given[0] == "copy") return copy(given[1], given[2]), EXIT_SUCCESS;
    std::fprintf(stderr, "safetensors_roundtrip: see the first lines of its source\n");
    return EXIT_FAILURE;
}
