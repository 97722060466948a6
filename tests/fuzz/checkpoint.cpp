// Any bytes as a checkpoint of a model: its sizes are read from the metadata, and its weights bound. Then as
// one of a stack of layers whose config is the last bytes of the input, and as a model of the shape of LLaMA
// in one file.
#include "support/toy_params.hpp"
#include "target.hpp"

#include "../../examples/support/byte_model.hpp"

#include <sluice/io/llama_file.hpp>
#include <sluice/io/params.hpp>

namespace io = sluice::io;
using sluice::idx;

namespace {

template <class P>
void read_all(const P& params) {
    sluice::each_param(
        [](const sluice::param_name&, sluice::role, const auto& t) {
            SLUICE_FUZZ_CHECK(t.contiguous());
            sluice::test::read_bytes(std::as_bytes(std::span(t.data(), static_cast<std::size_t>(t.size()))));
        },
        params);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using model = sluice::examples::byte_model<const float>;
    sluice::test::attempt([&] {
        io::safetensors file = io::from_memory(std::as_bytes(std::span(data, size)), "f");
        file.copy_misaligned();
        const auto config = sluice::examples::config_of(file);
        const io::bound_params<model::params_type> weights(file, "", config);
        read_all(weights.view);
        const model net(config, weights.view);
        SLUICE_FUZZ_CHECK(net.vocabulary() == 256);
    });
    sluice::test::attempt([&] {
        const io::safetensors file = io::from_memory(std::as_bytes(std::span(data, size)), "f");
        sluice::test::attempt([&] {
            const io::tokenizer words = io::load_tokenizer(file);
            for (const auto& [left, right] : words.merges())
                SLUICE_FUZZ_CHECK(left >= 0 && left < words.size() && right >= 0 && right < words.size());
        });
        using params = io::llama_params<sluice::packed<sluice::int4_block>>;
        sluice::arena counted;
        (void)io::load_saved_llama<params>(file, io::llama_config_of(file), counted);
        sluice::arena memory(counted.bytes());
        (void)io::load_saved_llama<params>(file, io::llama_config_of(file), memory);
    });
    sluice::test::attempt([&] {
        using params = sluice::stack_params<sluice::test::toy_params<const float>>;
        sluice::stack_config<sluice::test::toy_config> config;
        idx* numbers[] = {&config.n_layers, &config.layer.rows, &config.layer.cols};
        for (idx* number : numbers) {
            if (size < sizeof(idx)) return;
            size -= sizeof(idx);
            std::memcpy(number, data + size, sizeof(idx));
        }
        const io::safetensors file = io::from_memory(std::as_bytes(std::span(data, size)), "f");
        const io::bound_params<params> bound(file, "", config);
        SLUICE_FUZZ_CHECK(static_cast<idx>(bound.view.layers.size()) == config.n_layers);
        read_all(bound.view);
    });
    return 0;
}
