// The suite that every layer goes through: SLUICE_TEST_LAYER(prefix, traits, types...) makes its test cases,
// which are in tests/layer_suite. A traits struct says what the layer is called with and what its reference
// computes:
// - template <class W> using params
// - template <class T, class W, class Arch> using layer
// - static std::vector<variant<config>> variants(): configs; a `large` one takes part where that is cheap
// - static void reference(config, params<double>, batch, x, y)
// - static void wrong_reference(...): the same with a mistake
// SLUICE_TEST_LAYER_OF_WHOLES is for layers that do not stream, and whose traits say so.
#pragma once

#include "layer_suite/agreement.hpp"
#include "layer_suite/bad_input.hpp"
#include "layer_suite/gradients.hpp"
#include "layer_suite/memory.hpp"
#include "layer_suite/streaming.hpp"

#define SLUICE_TEST_PROPERTY(prefix, traits, text, property, ...)                                            \
    TEMPLATE_TEST_CASE(prefix text, "", __VA_ARGS__) {                                                       \
        sluice::test::layer_suite<traits, TestType>::property();                                             \
    }

#define SLUICE_TEST_LAYER_STREAMING(prefix, traits, ...)                                                     \
    SLUICE_TEST_PROPERTY(prefix, traits, "is causal", is_causal, __VA_ARGS__)                                \
    SLUICE_TEST_PROPERTY(prefix, traits, "streams to the same bits at every split",                          \
                         streams_to_the_same_bits_at_every_split, __VA_ARGS__)                               \
    SLUICE_TEST_PROPERTY(prefix, traits, "streams several sequences unevenly",                               \
                         streams_several_sequences_unevenly, __VA_ARGS__)                                    \
    SLUICE_TEST_PROPERTY(prefix, traits, "takes tokens back", takes_tokens_back, __VA_ARGS__)                \
    SLUICE_TEST_PROPERTY(prefix, traits, "states refuse what they cannot hold",                              \
                         states_refuse_what_they_cannot_hold, __VA_ARGS__)

#define SLUICE_TEST_LAYER_CALLS(prefix, traits, ...)                                                         \
    SLUICE_TEST_PROPERTY(prefix, traits, "agrees with its reference", agrees_with_its_reference,             \
                         __VA_ARGS__)                                                                        \
    SLUICE_TEST_PROPERTY(prefix, traits, "a wrong reference is noticed", a_wrong_reference_is_noticed,       \
                         __VA_ARGS__)                                                                        \
    SLUICE_TEST_PROPERTY(prefix, traits, "takes any view", takes_any_view, __VA_ARGS__)                      \
    SLUICE_TEST_PROPERTY(prefix, traits, "sequences of a batch do not meet", sequences_do_not_meet,          \
                         __VA_ARGS__)                                                                        \
    SLUICE_TEST_PROPERTY(prefix, traits, "no tokens are legal", no_tokens_are_legal, __VA_ARGS__)            \
    SLUICE_TEST_PROPERTY(prefix, traits, "any executor gives the same bits",                                 \
                         any_executor_gives_the_same_bits, __VA_ARGS__)                                      \
    SLUICE_TEST_PROPERTY(prefix, traits, "allocates nothing", allocates_nothing, __VA_ARGS__)                \
    SLUICE_TEST_PROPERTY(prefix, traits, "takes the memory it says", takes_the_memory_it_says, __VA_ARGS__)  \
    SLUICE_TEST_PROPERTY(prefix, traits, "too little memory is refused before output is written",            \
                         too_little_memory_is_refused_before_output, __VA_ARGS__)                            \
    SLUICE_TEST_PROPERTY(prefix, traits, "wrong shapes are named", wrong_shapes_are_named, __VA_ARGS__)      \
    SLUICE_TEST_PROPERTY(prefix, traits, "wrong arguments are named", wrong_arguments_are_named,             \
                         __VA_ARGS__)                                                                        \
    SLUICE_TEST_PROPERTY(prefix, traits, "overlapping outputs are noticed or harmless",                      \
                         overlapping_outputs_are_noticed_or_harmless, __VA_ARGS__)                           \
    SLUICE_TEST_PROPERTY(prefix, traits, "absurd limits are refused", absurd_limits_are_refused,             \
                         __VA_ARGS__)                                                                        \
    SLUICE_TEST_PROPERTY(prefix, traits, "bad batches are refused", bad_batches_are_refused, __VA_ARGS__)    \
    SLUICE_TEST_PROPERTY(prefix, traits, "no value leaves its sequence", no_value_leaves_its_sequence,       \
                         __VA_ARGS__)                                                                        \
    SLUICE_TEST_PROPERTY(prefix, traits, "rows may be gigabytes apart", rows_may_be_gigabytes_apart,         \
                         __VA_ARGS__)                                                                        \
    SLUICE_TEST_PROPERTY(prefix, traits, "other floating-point modes change little",                         \
                         other_float_modes_change_little, __VA_ARGS__)                                       \
    SLUICE_TEST_PROPERTY(prefix, traits, "touches nothing beyond its memory",                                \
                         touches_nothing_beyond_its_memory, __VA_ARGS__)                                     \
    SLUICE_TEST_PROPERTY(prefix, traits, "two threads may call one layer", two_threads_may_call_one_layer,   \
                         __VA_ARGS__)

#define SLUICE_TEST_LAYER_GRADIENTS(prefix, traits, ...)                                                     \
    SLUICE_TEST_PROPERTY(prefix, traits, "gradients are slopes", gradients_are_slopes, __VA_ARGS__)          \
    SLUICE_TEST_PROPERTY(prefix, traits, "gradients accumulate", gradients_accumulate, __VA_ARGS__)          \
    SLUICE_TEST_PROPERTY(prefix, traits, "wrong gradient arguments are named",                               \
                         wrong_gradient_arguments_are_named, __VA_ARGS__)

#define SLUICE_TEST_LAYER_FORWARD(prefix, traits, ...)                                                       \
    SLUICE_TEST_LAYER_CALLS(prefix, traits, __VA_ARGS__)                                                     \
    SLUICE_TEST_LAYER_STREAMING(prefix, traits, __VA_ARGS__)

#define SLUICE_TEST_LAYER(prefix, traits, ...)                                                               \
    SLUICE_TEST_LAYER_FORWARD(prefix, traits, __VA_ARGS__)                                                   \
    SLUICE_TEST_LAYER_GRADIENTS(prefix, traits, __VA_ARGS__)

#define SLUICE_TEST_LAYER_OF_WHOLES(prefix, traits, ...)                                                     \
    SLUICE_TEST_LAYER_CALLS(prefix, traits, __VA_ARGS__)                                                     \
    SLUICE_TEST_LAYER_GRADIENTS(prefix, traits, __VA_ARGS__)
