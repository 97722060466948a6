// Makes a table of an Engram smaller, or cuts it: convert_table in.safetensors name out.safetensors type
// [shards] where type is f32, bf16, int8 (a scale for each row) or fp8 (a power of two for each 32 numbers).
// Written as <name> and, with scales, <name>_scale; several shards to out.0.safetensors and so on, each of as
// many rows but for the last. Rows are read one by one and never all in memory, whatever the size of the
// table.
#include "support/program.hpp"

#include <sluice/core/tensor.hpp>
#include <sluice/io/row_file.hpp>
#include <sluice/io/safetensors_writer.hpp>
#include <sluice/ops/table.hpp>

namespace io = sluice::io;
using sluice::idx;
using sluice::tensor_view;

namespace {

struct options {
    std::string in, name, out, type;
    idx shards = 1;
};

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
void convert(const Source& from, const options& o) {
    const idx all = from.file.rows(), cols = from.file.cols(), each = sluice::ceil_div(all, o.shards);
    for (idx shard = 0; shard < o.shards; ++shard) {
        const idx first = std::min(all, shard * each), rows = std::min(each, all - first);
        io::safetensors_writer out;
        auto plain = [&]<class S>(S) {
            out.add_rows<S>(o.name, rows, cols, [&from, first, cols](idx at, tensor_view<S> part) {
                sluice::tensor<float> x(part.rows(), cols);
                from.read(first + at, x.view());
                sluice::store_rows(x.view(), part, 0);
            });
        };
        if (o.type == "f32")
            plain(float{});
        else if (o.type == "bf16")
            plain(sluice::bf16{});
        else if (o.type == "int8")
            add_scaled<std::int8_t, float>(out, o.name, from, first, rows, 1);
        else
            add_scaled<sluice::f8_e4m3, sluice::f8_e8m0>(out, o.name, from, first, rows,
                                                         sluice::ceil_div(cols, 32));
        out.metadata("first_row", std::to_string(first));
        const std::string suffix = ".safetensors";
        const std::string stem =
            o.out.ends_with(suffix) ? o.out.substr(0, o.out.size() - suffix.size()) : o.out;
        out.save(o.shards == 1 ? o.out : stem + "." + std::to_string(shard) + suffix);
    }
    std::printf("%td rows of %td as %s in %td %s\n", all, cols, o.type.c_str(), o.shards,
                o.shards == 1 ? "file" : "files");
}

void run(const options& o) {
    if (io::safetensors(io::map(o.in)).info(o.name).type == io::dtype::bf16)
        convert(source<sluice::bf16>{io::row_file::open<sluice::bf16>(o.in, o.name)}, o);
    else
        convert(source<float>{io::row_file::open<float>(o.in, o.name)}, o);
}

void add_options(CLI::App& app, options& o) {
    app.add_option("in", o.in, "the table's file (safetensors)")->required();
    app.add_option("name", o.name, "the table, of float or bf16")->required();
    app.add_option("out", o.out, "what is written (safetensors)")->required();
    app.add_option("type", o.type, "what it is written as")
        ->required()
        ->check(CLI::IsMember({"f32", "bf16", "int8", "fp8"}));
    app.add_option("shards", o.shards, "files that share the rows")
        ->check(CLI::Range(1, 100'000))
        ->capture_default_str();
}

} // namespace

int main(int argc, char** argv) {
    return sluice::examples::run_program<options>(
        "convert_table", "Makes a table of an Engram smaller, or cuts it.", argc, argv, add_options, run);
}
