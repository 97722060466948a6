// Any bytes as an index and the files beside it: each part of the input begins with its length in two bytes;
// the first is the index, the others are the files in the order in which they are opened.
#include "target.hpp"

#include <sluice/io/safetensors_index.hpp>

namespace io = sluice::io;

namespace {

std::span<const std::uint8_t> next_part(std::span<const std::uint8_t>& rest) {
    if (rest.size() < 2) return rest = {};
    const std::size_t size = std::min<std::size_t>(rest[0] + 256U * rest[1], rest.size() - 2);
    const auto part = rest.subspan(2, size);
    rest = rest.subspan(2 + size);
    return part;
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    std::span<const std::uint8_t> rest(data, size);
    const auto index = next_part(rest);
    sluice::test::attempt([&] {
        const io::weight_map map =
            io::read_index({reinterpret_cast<const char*>(index.data()), index.size()}, "index");
        for (const auto& [tensor, name] : map) {
            SLUICE_FUZZ_CHECK(!name.empty() &&
                              name.find_first_of(std::string_view("/\\:\0", 4)) == name.npos);
            SLUICE_FUZZ_CHECK(name != "." && name != "..");
        }
        const auto open = [&](const std::string& name) {
            return io::from_memory(std::as_bytes(next_part(rest)), name);
        };
        const io::safetensors all = io::open_index(map, "index", open);
        SLUICE_FUZZ_CHECK(all.tensors().size() == map.size());
        for (const auto& [tensor, t] : all.tensors()) sluice::test::read_bytes(t.bytes);
    });
    return 0;
}
