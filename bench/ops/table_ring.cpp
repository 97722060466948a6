// Engram's memory on a disk: decoding with four dense blocks, whose second one adds the memory, and a table
// of which no row was read lately. overhead: over the same step with the table in memory; vs_without: the
// step without the module, its products included; vs_on_demand: with rows read where they are wanted, instead
// of asked for one block ahead. reads_1 and reads_32: rows of the file a second, one after another and 32 of
// them asked for ahead; a step wants 128. With --full once more with a file larger than the memory, or the
// largest that the disk has room for: the table in memory is then a smaller one.
#include "support/contest.hpp"

#include <sluice/io/row_file.hpp>
#include <sluice/io/safetensors_writer.hpp>
#include <sluice/layers/engram.hpp>
#include <sluice/layers/transformer_block.hpp>
#include <sluice/ops/table_ring.hpp>

#include <filesystem>

#if defined(POSIX_FADV_DONTNEED)

#    include <unistd.h>

namespace {

using namespace sluice;
using namespace sluice::bench;

using file_table = table_ring<io::row_file, bf16>;
using block_type = transformer_block<float, bf16>;
constexpr idx d_model = 2048, d_row = 80, n_sequences = 8, n_blocks = 4, context = 64;

bf16 element(idx row, idx col) { return to_bf16(static_cast<float>((row * 7 + col * 3) % 255 - 127) / 4096); }

constexpr idx rows_in_memory = 209'700; // of a head

// Rows of a head in a file a fifth larger than the memory, if the disk has room for that and half as much
// again.
idx rows_beyond_memory() {
    const double memory =
        static_cast<double>(::sysconf(_SC_PHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGESIZE));
    std::error_code none;
    const auto room =
        static_cast<double>(std::filesystem::space(std::filesystem::current_path(), none).available);
    return static_cast<idx>(std::min(1.2 * memory, room / 1.5) / (16 * 2 * d_row));
}

// Beside the program, as folders for temporary files may lie in memory. Removed at the end.
class table_on_disk {
public:
    table_on_disk(idx rows) : path_(std::filesystem::current_path() / "engram_table.safetensors") {
        io::safetensors_writer out;
        out.add_rows<bf16>("table", rows, d_row, [](idx first, tensor_view<bf16> part) {
            for (idx i = 0; i < part.rows(); ++i)
                for (idx j = 0; j < d_row; ++j) part(i, j) = element(first + i, j);
        });
        out.save(path_.string());
        forget();
    }
    table_on_disk(const table_on_disk&) = delete;
    ~table_on_disk() {
        std::error_code ignored;
        std::filesystem::remove(path_, ignored);
    }
    io::row_file open() const { return io::row_file::open<bf16>(path_.string(), "table"); }
    void forget() const {
        const int file = ::open(path_.c_str(), O_RDONLY);
        (void)::posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
        ::close(file);
    }

private:
    std::filesystem::path path_;
};

// Rows a second, `ahead` of them asked for before they are read.
double reads_per_second(const io::row_file& file, idx ahead, std::uint64_t key) {
    constexpr idx n = 2000;
    std::vector<idx> rows;
    for (idx i = 0; i < n; ++i)
        rows.push_back(
            static_cast<idx>(random_source(key).bits(i) % static_cast<std::uint64_t>(file.rows())));
    bf16 row[d_row];
    const double start = now();
    for (idx i = 0; i < n; ++i) {
        for (idx j = i == 0 ? 0 : i + ahead - 1; ahead > 1 && j < std::min(i + ahead, n); ++j)
            file.advise(rows[static_cast<std::size_t>(j)]);
        if (!file.read(rows[static_cast<std::size_t>(i)], row, nullptr)) std::abort();
    }
    return n / (now() - start);
}

engram_config memory_config(idx least_rows) {
    engram_config c{.d_model = d_model, .d_memory = 16 * d_row, .hash = {}, .token_map = {}};
    const idx layer = 1;
    make_ngram_hashes({.vocabulary = 98627, .least_rows = {least_rows}, .pad = 2}, {&layer, 1}, {&c.hash, 1});
    return c;
}

template <class P>
void fill_weights(const P& weights) {
    std::uint32_t seed = 1;
    each_param(
        [&](const param_name&, role, auto& t) {
            using W = typename std::remove_cvref_t<decltype(t)>::value_type;
            for (idx i = 0; i < t.size(); ++i) {
                seed = seed * 1664525U + 1013904223U;
                const float x = static_cast<float>(static_cast<std::int32_t>(seed)) * 0x1p-31F;
                if constexpr (std::is_same_v<W, bf16>)
                    t.data()[i] = to_bf16(x / 32);
                else
                    t.data()[i] = 1 + x / 4;
            }
        },
        weights);
}

// The step's state: every call appends a token to each sequence and takes it back.
template <class Table>
struct decoder {
    decoder(const engram_config& c, const transformer_block_config& blocks,
            const block_type::params_type& weights, const engram_params<bf16, Table>& memory, idx workers)
        : block(blocks, weights), layer(c, memory) {
        const limits most{.max_tokens = context + 1,
                          .max_rows = n_sequences,
                          .n_sequences = n_sequences,
                          .max_rollback = 1,
                          .workers = workers};
        const auto a = block.bytes(most), b = layer.bytes(most);
        workspace = arena(std::max(a.workspace, b.workspace));
        state_memory = arena(n_blocks * (a.state + 64) + b.state + 64);
        for (auto& s : states) s = block.bind_state(state_memory, most);
        memory_state = layer.bind_state(state_memory, most);
        for (idx i = 0; i <= n_sequences; ++i) offsets.push_back(i);
        for (idx i = 0; i < context; ++i) step(false, true, {});
    }
    void step(bool ahead, bool with_memory, executor_ref ex) {
        const std::vector<token_id> ids = next_ids();
        const batch b{.n_tokens = n_sequences, .offsets = offsets, .ids = ids};
        fill(x.view(), 0.25F);
        if (with_memory) layer.hash(b, &memory_state, plan, workspace, ex);
        if (with_memory && ahead) layer.prefetch(plan.view(), ex);
        for (std::size_t i = 0; i < n_blocks; ++i) {
            if (i == 1 && with_memory) {
                layer.extend_planned(b, plan.view(), x, y.view(), memory_state, workspace, ex);
                add<simd::native>(in<float>(x), in<float>(y), x.view(), ex);
            }
            block.extend(b, x, y.view(), states[i], workspace, ex);
            std::swap(x, y);
        }
        for (idx s = 0; s < n_sequences && memory_state.length(0, s) > context; ++s)
            memory_state.truncate(s, context);
        for (auto& state : states)
            for (idx s = 0; s < n_sequences && state.tokens(s) > context; ++s) state.truncate(s, context);
    }
    std::vector<token_id> next_ids() {
        std::vector<token_id> ids;
        for (idx i = 0; i < n_sequences; ++i)
            ids.push_back(static_cast<token_id>(random_source(5).bits(number++) % 98627));
        return ids;
    }

    block_type block;
    engram<float, bf16, Table> layer;
    arena workspace, state_memory;
    block_type::state_type states[n_blocks];
    engram_state<float> memory_state;
    std::vector<idx> offsets;
    tensor<float> x{n_sequences, d_model}, y{n_sequences, d_model};
    tensor<std::int32_t> plan{n_sequences, 16};
    idx number = 0;
};

struct data {
    data(idx least_rows, idx workers)
        : config(memory_config(least_rows)),
          config_in_memory(memory_config(std::min(least_rows, rows_in_memory))),
          blocks{.attention = {.d_model = d_model, .n_heads = 32, .n_kv_heads = 8, .head_dim = 64},
                 .feed_forward = {.d_model = d_model, .d_ff = 5440},
                 .norm = {.d_model = d_model}},
          disk(config.hash.rows()),
          file(disk.open()),
          ring_memory(16 << 20),
          ring(file_table::bind(ring_memory, file, 8192)),
          copy(config_in_memory.hash.rows(), d_row),
          weights(blocks),
          others(engram_config_without_table()) {
        fill_weights(weights.view);
        fill_weights(others.view);
        for (idx i = 0; i < copy.rows(); ++i)
            for (idx j = 0; j < d_row; ++j) copy(i, j) = element(i, j);
        reads_1 = reads_per_second(file, 1, 1);
        reads_32 = reads_per_second(file, 32, 2);
        engram_params<bf16, file_table> p{ring,
                                          others.view.w_kv,
                                          {},
                                          others.view.key_scale,
                                          others.view.query_scale,
                                          others.view.value_scale,
                                          others.view.taps};
        on_disk = std::make_unique<decoder<file_table>>(config, blocks, weights.view, p, workers);
        auto q = others.view;
        q.table = copy.view();
        in_memory =
            std::make_unique<decoder<tensor_view<bf16>>>(config_in_memory, blocks, weights.view, q, workers);
    }
    engram_config engram_config_without_table() const {
        engram_config c = config;
        c.hash = memory_config(2).hash;
        return c;
    }

    engram_config config, config_in_memory;
    transformer_block_config blocks;
    table_on_disk disk;
    io::row_file file;
    arena ring_memory;
    file_table ring;
    tensor<bf16> copy;
    owned_params<block_type::params_type> weights; // the same for all blocks but in other caches
    owned_params<engram_params<bf16>> others;
    double reads_1 = 0, reads_32 = 0;
    std::unique_ptr<decoder<file_table>> on_disk;
    std::unique_ptr<decoder<tensor_view<bf16>>> in_memory;
};

void file_row(const std::string& size, bool beyond_memory, when w = when::always) {
    row(
        "engram/file/bf16/d:2048,B:8" + size,
        [beyond_memory](contest& c) {
            auto& d = c.hold<data>(beyond_memory ? rows_beyond_memory() : rows_in_memory, c.threads());
            c.tokens(n_sequences);
            c.ours([&d, ex = c.executor()] { d.on_disk->step(true, true, ex); });
            c.overhead_over([&d, ex = c.executor()] { d.in_memory->step(false, true, ex); });
            c.against("without", [&d, ex = c.executor()] { d.in_memory->step(false, false, ex); });
            c.against("on_demand", [&d, ex = c.executor()] { d.on_disk->step(false, true, ex); });
            c.note("reads_1", d.reads_1);
            c.note("reads_32", d.reads_32);
            c.note("GB", 1e-9 * static_cast<double>(2 * d_row * d.config.hash.rows()));
            c.check(
                beyond_memory ? "rows read on demand" : "the table in memory",
                [&d, beyond_memory, ex = c.executor()] {
                    d.on_disk->number = d.in_memory->number = 0;
                    d.on_disk->step(true, true, ex);
                    const std::vector<float> ahead(d.on_disk->x.data(),
                                                   d.on_disk->x.data() + d.on_disk->x.size());
                    d.on_disk->number = 0;
                    if (beyond_memory)
                        d.on_disk->step(false, true, ex);
                    else
                        d.in_memory->step(false, true, ex);
                    const auto& other = beyond_memory ? d.on_disk->x : d.in_memory->x;
                    double wrong = 0;
                    for (std::size_t i = 0; i < ahead.size(); ++i) wrong += ahead[i] != other.data()[i];
                    return wrong;
                },
                0);
        },
        w);
}

const declare rows([] {
    file_row("", false);
    file_row(",beyond_memory", true, when::full);
});

} // namespace

#endif
