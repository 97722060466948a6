// Makes a published model of the shape of LLaMA smaller: reads a GGUF file, or a folder of config.json,
// tokenizer.json and safetensors, keeps the blocks' matrices in the storage asked for, and writes one file
// that the program llama runs. Tells the size before and after, and for each kind of matrix the error: the
// largest in parts of the kind's largest weight, the mean in parts of the mean weight.
#include "support/llama_model.hpp"
#include "support/program.hpp"

#include <cmath>
#include <cstdio>

namespace {

using namespace sluice::examples;
using sluice::arena;
using sluice::idx;
using sluice::tensor_view;
namespace io = sluice::io;

struct options {
    std::string model, out, weights = "int8";
};

struct error {
    double largest = 0, sum = 0, largest_weight = 0, sum_of_weights = 0;
    idx weights = 0;
    std::size_t bytes = 0;

    void add(float was, float is) {
        const double apart = std::abs(static_cast<double>(is) - static_cast<double>(was)),
                     size = std::abs(static_cast<double>(was));
        largest = std::max(largest, apart);
        largest_weight = std::max(largest_weight, size);
        sum += apart;
        sum_of_weights += size;
        ++weights;
    }
};
double share(double part, double whole) { return whole > 0 ? part / whole : 0; }

// "layers.3.attention.w_q" is of the kind "attention.w_q".
std::string kind_of(const std::string& name) {
    return name.starts_with("layers.") ? name.substr(name.find('.', 7) + 1) : name;
}

// Row by row, so that the whole is in memory once.
template <class Source, class P>
std::map<std::string, error> compare(const Source& file, const P& params) {
    std::map<std::string, error> kinds;
    each_param(
        [&]<class W>(const sluice::param_name& name, sluice::role, const tensor_view<W>& t) {
            error& e = kinds[kind_of(name.str())];
            std::vector<float> was(static_cast<std::size_t>(t.cols())), is(was.size());
            for (idx i = 0; i < t.rows(); ++i) {
                io::read_llama_rows(file, name.str(), i, tensor_view<float>(was.data(), 1, t.cols()));
                if constexpr (sluice::is_packed<W>)
                    unpack_row(t, i, is.data());
                else
                    std::copy_n(t.row(i), t.cols(), is.data());
                for (std::size_t j = 0; j < is.size(); ++j) e.add(was[j], is[j]);
            }
            const auto lies = io::detail::stored_view(t);
            e.bytes += static_cast<std::size_t>(lies.size()) * sizeof(*lies.data());
        },
        params);
    return kinds;
}

template <class S>
void convert(const options& o) {
    open_llama(o.model, [&](const auto& file, const io::llama_config& config, const io::tokenizer& words) {
        using params = typename llama_model<S>::params_type;
        arena counted;
        (void)io::load_llama<params>(file, config, counted);
        arena memory(counted.bytes());
        const params weights = io::load_llama<params>(file, config, memory);
        std::printf("%-22s %12s %12s %14s %12s\n", "", "weights", "bytes", "largest error", "mean error");
        std::size_t before = 0, after = 0;
        for (const auto& [kind, e] : compare(file, weights)) {
            std::printf("%-22s %12td %12zu %14.2e %12.2e\n", kind.c_str(), e.weights, e.bytes,
                        share(e.largest, e.largest_weight), share(e.sum, e.sum_of_weights));
            after += e.bytes;
        }
        for (const auto& [name, t] : file.tensors()) before += t.bytes.size();
        io::safetensors_writer writer;
        save_llama(writer, config, weights, words, o.weights);
        writer.save(o.out);
        std::printf("%s: %.1f MB of weights where %.1f MB were\n", o.out.c_str(),
                    static_cast<double>(after) / 1e6, static_cast<double>(before) / 1e6);
    });
}

void add_options(CLI::App& app, options& o) {
    app.add_option("model", o.model,
                   "a GGUF file, or a folder of config.json, tokenizer.json and safetensors")
        ->required();
    app.add_option("out", o.out, "what is written; ends in .safetensors")->required();
    app.add_option("--weights", o.weights, "what the blocks' matrices are kept in")
        ->check(CLI::IsMember(llama_storages))
        ->capture_default_str();
}

void run(const options& o) {
    if (!is_saved_llama(o.out)) throw sluice::input_error(o.out + ": must end in .safetensors");
    if (is_saved_llama(o.model)) throw sluice::input_error(o.model + ": was rounded once already");
    with_storage(o.weights, [&]<class S>(S) { convert<S>(o); });
}

} // namespace

int main(int argc, char** argv) {
    return run_program<options>(
        "quantise", "Keeps a published model in fewer bits, in a file that the program llama runs.", argc,
        argv, add_options, run);
}
