// Makes a table of an Engram smaller, or cuts it: convert_table in.safetensors name out.safetensors type
// [shards] where type is f32, bf16, int8 (a scale for each row) or fp8 (a power of two for each 32 numbers).
// Written as <name> and, with scales, <name>_scale; several shards to out.0.safetensors and so on, each of as
// many rows but for the last. Rows are read one by one and never all in memory, whatever the size of the
// table.
#include <sluice/core/tensor.hpp>
#include <sluice/io/row_file.hpp>
#include <sluice/io/safetensors_writer.hpp>
#include <sluice/ops/table.hpp>

#include <cstdio>
#include <cstdlib>
#include <string>

namespace io = sluice::io;
using sluice::idx;
using sluice::tensor_view;

namespace {

// Rows of a table in whatever type it is stored, as floats.
template <class S>
struct source {
    io::row_file file;

    void read(idx first, tensor_view<float> to) const {
        sluice::tensor<S> row(1, file.cols());
        for (idx i = 0; i < to.rows(); ++i) {
            if (!file.read(first + i, row.data(), nullptr)) file.fail(first + i);
            for (idx j = 0; j < to.cols(); ++j) to(i, j) = sluice::to_float(row(0, j));
        }
    }
};

// Both parts of a scaled table are made from the same rows, one after the other.
template <class S, class Scale, class Source>
void add_scaled(io::safetensors_writer& out, const std::string& name, const Source& from, idx first, idx rows,
                idx parts) {
    const idx cols = from.file.cols();
    auto store = [&from, first, cols, parts](idx at, idx n, tensor_view<S>* elements,
                                             tensor_view<Scale>* scale) {
        sluice::tensor<float> x(n, cols);
        sluice::tensor<S> other(elements != nullptr ? 0 : n, cols);
        sluice::tensor<Scale> other_scale(scale != nullptr ? 0 : n, parts);
        from.read(first + at, x.view());
        sluice::store_rows(x.view(),
                           sluice::scaled_table<S, Scale>{elements != nullptr ? *elements : other.view(),
                                                          scale != nullptr ? *scale : other_scale.view()},
                           0);
    };
    out.add_rows<S>(name, rows, cols,
                    [store](idx at, tensor_view<S> part) { store(at, part.rows(), &part, nullptr); });
    out.add_rows<Scale>(name + "_scale", rows, parts,
                        [store](idx at, tensor_view<Scale> part) { store(at, part.rows(), nullptr, &part); });
}

template <class Source>
void convert(const Source& from, const std::string& name, const std::string& path, const std::string& type,
             idx shards) {
    const idx all = from.file.rows(), cols = from.file.cols(), each = sluice::ceil_div(all, shards);
    for (idx shard = 0; shard < shards; ++shard) {
        const idx first = std::min(all, shard * each), rows = std::min(each, all - first);
        io::safetensors_writer out;
        auto plain = [&]<class S>(S) {
            out.add_rows<S>(name, rows, cols, [&from, first, cols](idx at, tensor_view<S> part) {
                sluice::tensor<float> x(part.rows(), cols);
                from.read(first + at, x.view());
                sluice::store_rows(x.view(), part, 0);
            });
        };
        if (type == "f32")
            plain(float{});
        else if (type == "bf16")
            plain(sluice::bf16{});
        else if (type == "int8")
            add_scaled<std::int8_t, float>(out, name, from, first, rows, 1);
        else if (type == "fp8")
            add_scaled<sluice::f8_e4m3, sluice::f8_e8m0>(out, name, from, first, rows,
                                                         sluice::ceil_div(cols, 32));
        else
            throw sluice::config_error("no such type: " + type);
        out.metadata("first_row", std::to_string(first));
        const std::string suffix = ".safetensors";
        const std::string stem = path.ends_with(suffix) ? path.substr(0, path.size() - suffix.size()) : path;
        out.save(shards == 1 ? path : stem + "." + std::to_string(shard) + suffix);
    }
    std::printf("%td rows of %td as %s in %td %s\n", all, cols, type.c_str(), shards,
                shards == 1 ? "file" : "files");
}

} // namespace

int main(int argc, char** argv) {
    const idx shards = argc == 6 ? std::atol(argv[5]) : 1;
    if (argc < 5 || argc > 6 || shards < 1) {
        std::fprintf(stderr,
                     "usage: convert_table in.safetensors name out.safetensors f32|bf16|int8|fp8 [shards]\n");
        return 2;
    }
    try {
        const std::string path = argv[1], name = argv[2];
        const auto type = io::safetensors(io::map(path)).info(name).type;
        if (type == io::dtype::bf16)
            convert(source<sluice::bf16>{io::row_file::open<sluice::bf16>(path, name)}, name, argv[3],
                    argv[4], shards);
        else
            convert(source<float>{io::row_file::open<float>(path, name)}, name, argv[3], argv[4], shards);
    } catch (const sluice::error& e) {
        std::fprintf(stderr, "%s\n", e.what());
        return 1;
    }
}
