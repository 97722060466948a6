// Any bytes as a safetensors file: tensors inside it, or input_error.
#include "target.hpp"

#include <sluice/core/tensor.hpp>
#include <sluice/io/safetensors.hpp>

namespace io = sluice::io;

namespace {

// Views, copies and reads a tensor as what it says it is.
template <class T>
void use(const io::safetensors& file, const std::string& name) {
    const io::tensor_info& t = file.info(name);
    const auto view = file.view<T>(name);
    SLUICE_FUZZ_CHECK(view.rows() == t.rows() && view.cols() == t.cols());
    SLUICE_FUZZ_CHECK(static_cast<std::size_t>(view.size()) * sizeof(T) == t.bytes.size());
    if (t.bytes.empty()) return; // may have a dimension that no copy could have
    sluice::tensor<T> copy(t.rows(), t.cols());
    file.copy_to(name, copy.view());
    SLUICE_FUZZ_CHECK(std::memcmp(copy.data(), t.bytes.data(), t.bytes.size()) == 0);
}

void use_all(const io::safetensors& file) {
    for (const auto& [name, t] : file.tensors()) {
        sluice::test::read_bytes(t.bytes);
        SLUICE_FUZZ_CHECK(t.text().size() < 512);
        if (t.type == io::dtype::f64) use<double>(file, name);
        if (t.type == io::dtype::f32) use<float>(file, name);
        if (t.type == io::dtype::f16) use<sluice::half>(file, name);
        if (t.type == io::dtype::bf16) use<sluice::bf16>(file, name);
        if (t.type == io::dtype::f8_e4m3) use<sluice::f8_e4m3>(file, name);
        if (t.type == io::dtype::i64) use<std::int64_t>(file, name);
        if (t.type == io::dtype::i32) use<std::int32_t>(file, name);
        if (t.type == io::dtype::i8) use<std::int8_t>(file, name);
        if (t.type == io::dtype::u8) use<std::uint8_t>(file, name);
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    sluice::test::attempt([&] {
        const std::span<const std::byte> bytes = std::as_bytes(std::span(data, size));
        io::safetensors file = io::from_memory(bytes, "f");
        std::size_t total = 0;
        for (const auto& [name, t] : file.tensors()) {
            const auto all = file.info(name).bytes;
            total += all.size();
        }
        SLUICE_FUZZ_CHECK(total < size);
        file.copy_misaligned();
        use_all(file);
        file.require_finite();
    });
    return 0;
}
