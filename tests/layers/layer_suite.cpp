// The suite that every layer goes through, tested: a layer that makes one mistake at a time, and the check
// that has to fail for it. A check that cannot fail would be worth nothing to the layers that pass it.
#include "support/layer_suite.hpp"
#include "support/reference_of.hpp"

#if defined(__unix__) || defined(__APPLE__)
#    include <csignal>
#    include <sys/resource.h>
#    include <sys/wait.h>
#endif

using namespace sluice::test;
using sluice::arena;
using sluice::attention_config;
using sluice::batch;
using sluice::executor_ref;
using sluice::idx;
using sluice::in;
using sluice::limits;
using sluice::tensor_view;

namespace {

enum class mistake {
    none,
    wrong_number,
    writes_beside,
    reads_old_workspace,
    ignores_strides,
    mixes_sequences,
    refuses_nothing_to_do,
    sees_the_future,
    decodes_otherwise,
    ignores_slots,
    never_truncates,
    wrong_dx,
    wrong_dw,
    overwrites_gradients,
    depends_on_workers,
    allocates,
    asks_for_more_workspace,
    asks_for_more_tape,
    writes_before_it_takes,
    finds_a_small_tape_late,
    adds_before_it_takes,
    accepts_any_weights,
    accepts_any_arguments,
    accepts_any_gradients,
    writes_before_it_reads,
    accepts_any_limits,
    accepts_any_batch,
    forgets_when_full,
    spreads_nan,
    reads_beyond,
    shares_memory_of_calls,
    depends_on_rounding,
    counts_in_32_bits
};
mistake made = mistake::none;

struct with_mistake {
    explicit with_mistake(mistake m) { made = m; }
    with_mistake(const with_mistake&) = delete;
    ~with_mistake() { made = mistake::none; }
};

const std::thread::id main_thread = std::this_thread::get_id();

// Whether another thread is in here at the same time; waits for it a while.
bool meets_another_thread() {
    static std::atomic<int> inside{0}, met{0};
    if (std::this_thread::get_id() == main_thread) return false;
    ++inside;
    for (int i = 0; i < 2000 && inside < 2 && met == 0; ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    if (inside > 1) met = 1;
    --inside;
    return met > 0;
}

template <class State>
struct flawed_state {
    State inner;
    void truncate(idx slot, idx tokens) {
        if (made != mistake::never_truncates) inner.truncate(slot, tokens);
    }
};

template <class Inner>
class flawed {
public:
    using scalar = typename Inner::scalar;
    using arch = typename Inner::arch;
    static constexpr bool trainable = true;
    using T = scalar;
    using config_type = typename Inner::config_type;
    using params_type = typename Inner::params_type;
    using grad_type = typename Inner::grad_type;
    using state_type = flawed_state<typename Inner::state_type>;

    flawed(const config_type& c, const params_type& p) : inner_(c, repaired(c, p)) {}
    const config_type& config() const { return inner_.config(); }
    idx d_in() const { return inner_.d_in(); }
    idx d_out() const { return inner_.d_out(); }

    void forward(const batch& rows, in<T> x, tensor_view<T> y, arena* tape, arena& workspace,
                 executor_ref ex = {}) const {
        const arena::scope scope(workspace);
        const batch b = repaired(rows, x);
        const bool real = !ex.dry() && b.n_tokens > 0;
        if (made == mistake::refuses_nothing_to_do && b.n_tokens == 0) throw sluice::error("nothing to do");
        if (made == mistake::writes_before_it_takes && real) y(0, 0) = 1;
        if (made == mistake::writes_before_it_reads && real) fill(y, T(0));
        if (made == mistake::allocates)
            sink = std::vector<T>(static_cast<std::size_t>(b.n_tokens) + 1).size();
        const T* old = workspace.take<T>(1);
        if (made == mistake::accepts_any_arguments)
            x = x.row_block(0, b.n_tokens).col_block(0, d_in()),
            y = y.row_block(0, b.n_tokens).col_block(0, d_out());
        if (made == mistake::counts_in_32_bits &&
            x.rows() * x.row_stride() > std::numeric_limits<std::int32_t>::max())
            x = {x.data(), x.rows(), x.cols()};
        if (made == mistake::ignores_strides) x = {x.data(), x.rows(), x.cols()};
        inner_.forward(b, x, y, tape, workspace, ex);
        if (tape != nullptr && made == mistake::finds_a_small_tape_late) tape->take<T>(1);
        if (!real) return;
        const idx last = b.n_tokens - 1;
        if (made == mistake::wrong_number) y(last, 0) *= T(1) + T(1e-9);
        if (made == mistake::writes_beside) y.row(last)[d_out()] = 7;
        if (made == mistake::reads_old_workspace) y(0, 0) += *old;
        for (idx i = 0; made == mistake::sees_the_future && i < last; ++i) y(i, 0) += T(1e-6) * x(i + 1, 0);
        if (made == mistake::depends_on_workers && ex.concurrency() == 3)
            y(0, 0) = std::nextafter(y(0, 0), T(9));
        if (made == mistake::depends_on_rounding && std::fegetround() != FE_TONEAREST) y(0, 0) += T(1e-9);
        if (made == mistake::spreads_nan) y(0, 0) += 0 * x(last / 2, 0);
        if (made == mistake::reads_beyond) sink = static_cast<const volatile T*>(x.row(last))[d_in()] > 0;
        if (made == mistake::shares_memory_of_calls && meets_another_thread()) y(0, 0) += 1;
    }
    void backward(const batch& b, in<T> x, in<T> dy, tensor_view<T> dx, arena& tape, const grad_type& grad,
                  arena& workspace, executor_ref ex = {}) const {
        const idx n = b.n_tokens;
        if (made == mistake::finds_a_small_tape_late) tape.pop<T>(1);
        if (made == mistake::accepts_any_gradients)
            dy = dy.row_block(0, n).col_block(0, d_out()), dx = dx.row_block(0, n).col_block(0, d_in());
        grad_type mine = grad;
        if (made == mistake::overwrites_gradients && !ex.dry()) sluice::zero(mine);
        if (made == mistake::adds_before_it_takes && !ex.dry()) grad.w_k(0, 0) += T(1);
        inner_.backward(b, x, dy, dx, tape, grad, workspace, ex);
        if (ex.dry() || n == 0) return;
        if (made == mistake::wrong_dx) dx(n - 1, 0) += T(1e-4);
        if (made == mistake::wrong_dw) grad.w_k(0, 0) += T(1e-4);
    }

    state_type bind_state(arena& memory, const limits& most) const {
        return {inner_.bind_state(memory, most)};
    }
    void extend(const batch& rows, in<T> x, tensor_view<T> y, state_type& state, arena& workspace,
                executor_ref ex = {}) const {
        batch b = repaired(rows, x);
        if (made == mistake::ignores_slots) b.slots = {};
        if (made == mistake::accepts_any_arguments)
            x = x.row_block(0, b.n_tokens).col_block(0, d_in()),
            y = y.row_block(0, b.n_tokens).col_block(0, d_out());
        try {
            inner_.extend(b, x, y, state.inner, workspace, ex);
        } catch (const sluice::capacity_error&) {
            if (made != mistake::forgets_when_full) throw;
        }
        if (ex.dry() || b.n_tokens == 0) return;
        if (made == mistake::decodes_otherwise) y(0, 0) = std::nextafter(y(0, 0), T(9));
    }
    sluice::sizes bytes(limits most) const {
        if (made == mistake::accepts_any_limits) most = {.max_tokens = 4, .max_rows = 4};
        sluice::sizes need = sluice::layer_bytes(*this, most);
        if (made == mistake::asks_for_more_workspace) need.workspace += 64;
        if (made == mistake::asks_for_more_tape) need.tape += 64;
        return need;
    }

private:
    static params_type repaired(const config_type& c, params_type p) {
        if (made != mistake::accepts_any_weights) return p;
        arena dry;
        const params_type right = params_type::bind(dry, c);
        sluice::each_param(
            [](const sluice::param_name&, sluice::role, auto& t, const auto& wanted) {
                t = {t.data(), wanted.rows(), wanted.cols(), std::max(t.row_stride(), wanted.cols())};
            },
            p, right);
        return p;
    }
    static batch repaired(const batch& b, in<T> x) {
        batch fixed = b;
        if (made == mistake::accepts_any_batch) fixed = batch::one(x.rows());
        if (made == mistake::mixes_sequences) fixed.offsets = {};
        return fixed;
    }
    static inline volatile std::size_t sink = 0;

    Inner inner_;
};

struct flawed_traits {
    template <class W>
    using params = sluice::attention_params<W>;
    template <class T, class W, class Arch>
    using layer = flawed<sluice::attention<T, W, Arch>>;

    static std::vector<variant<attention_config>> variants() {
        return {{"norm",
                 {.d_model = 5,
                  .n_heads = 2,
                  .n_kv_heads = 1,
                  .head_dim = 4,
                  .norm = sluice::qk_norm::per_head}}};
    }
    static void reference(const attention_config& c, const params<double>& p, const batch& b, in<double> x,
                          tensor_view<double> y) {
        sluice::reference::attention<double>(b, reference_of(c), reference_of(p), x, y);
    }
    static void wrong_reference(attention_config c, const params<double>& p, const batch& b, in<double> x,
                                tensor_view<double> y) {
        c.window = 8;
        reference(c, p, b, x, y);
    }
};
struct right_wrong_reference : flawed_traits {
    static void wrong_reference(const attention_config& c, const params<double>& p, const batch& b,
                                in<double> x, tensor_view<double> y) {
        reference(c, p, b, x, y);
    }
};
using suite = layer_suite<flawed_traits, double_native>;

} // namespace

SLUICE_TEST_LAYER("without a mistake: ", flawed_traits, double_native)

// A test that passes where its checks fail.
#define SLUICE_NOTICES(mistake_made, property)                                                               \
    TEST_CASE("notices " #mistake_made ": " #property, "[!shouldfail]") {                                    \
        const with_mistake now(mistake::mistake_made);                                                       \
        suite::property();                                                                                   \
    }

SLUICE_NOTICES(wrong_number, agrees_with_its_reference)
SLUICE_NOTICES(writes_beside, agrees_with_its_reference)
SLUICE_NOTICES(reads_old_workspace, agrees_with_its_reference)
SLUICE_NOTICES(ignores_strides, takes_any_view)
SLUICE_NOTICES(mixes_sequences, sequences_do_not_meet)
SLUICE_NOTICES(refuses_nothing_to_do, no_tokens_are_legal)
SLUICE_NOTICES(sees_the_future, is_causal)
SLUICE_NOTICES(decodes_otherwise, streams_to_the_same_bits_at_every_split)
SLUICE_NOTICES(ignores_slots, streams_several_sequences_unevenly)
SLUICE_NOTICES(never_truncates, takes_tokens_back)
SLUICE_NOTICES(wrong_dx, gradients_are_slopes)
SLUICE_NOTICES(wrong_dw, gradients_are_slopes)
SLUICE_NOTICES(overwrites_gradients, gradients_accumulate)
SLUICE_NOTICES(depends_on_workers, any_executor_gives_the_same_bits)
SLUICE_NOTICES(allocates, allocates_nothing)
SLUICE_NOTICES(asks_for_more_workspace, takes_the_memory_it_says)
SLUICE_NOTICES(asks_for_more_tape, takes_the_memory_it_says)
SLUICE_NOTICES(writes_before_it_takes, too_little_memory_is_refused_before_output)
SLUICE_NOTICES(finds_a_small_tape_late, too_little_memory_is_refused_before_output)
SLUICE_NOTICES(adds_before_it_takes, too_little_memory_is_refused_before_output)
SLUICE_NOTICES(accepts_any_weights, wrong_shapes_are_named)
SLUICE_NOTICES(accepts_any_arguments, wrong_arguments_are_named)
SLUICE_NOTICES(accepts_any_gradients, wrong_gradient_arguments_are_named)
SLUICE_NOTICES(writes_before_it_reads, overlapping_outputs_are_noticed_or_harmless)
SLUICE_NOTICES(accepts_any_limits, absurd_limits_are_refused)
SLUICE_NOTICES(accepts_any_batch, bad_batches_are_refused)
SLUICE_NOTICES(forgets_when_full, states_refuse_what_they_cannot_hold)
SLUICE_NOTICES(never_truncates, states_refuse_what_they_cannot_hold)
SLUICE_NOTICES(spreads_nan, no_value_leaves_its_sequence)
SLUICE_NOTICES(shares_memory_of_calls, two_threads_may_call_one_layer)
SLUICE_NOTICES(counts_in_32_bits, rows_may_be_gigabytes_apart)
SLUICE_NOTICES(depends_on_rounding, other_float_modes_change_little)

TEST_CASE("notices a wrong reference that is right: a_wrong_reference_is_noticed", "[!shouldfail]") {
    layer_suite<right_wrong_reference, double_native>::a_wrong_reference_is_noticed();
}

#if defined(__unix__) || defined(__APPLE__)
TEST_CASE("notices reads_beyond: touches_nothing_beyond_its_memory") {
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        const rlimit no_core{0, 0};
        ::setrlimit(RLIMIT_CORE, &no_core);
        std::signal(SIGSEGV, SIG_DFL);
        std::signal(SIGBUS, SIG_DFL);
        const with_mistake now(mistake::reads_beyond);
        suite::touches_nothing_beyond_its_memory();
        ::_exit(0);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CHECK((WIFSIGNALED(status) || WEXITSTATUS(status) != 0)); // a sanitizer exits instead
}
#endif
