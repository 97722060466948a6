# Proves, from the instructions themselves, that simd::fma is one where the instruction set has it: a multiplication
# and an addition would take twice as long and round twice. With -ffp-contract=off nothing but an explicit request
# gives a fused instruction. SPLIT=ON compiles products and sums instead, which have to be noticed.
separate_arguments(flags UNIX_COMMAND "${FLAGS}")
include("${CMAKE_CURRENT_LIST_DIR}/include_flags.cmake")
if(SPLIT)
    list(APPEND flags -DSPLIT)
endif()

file(MAKE_DIRECTORY "${WORK}")
set(object "${WORK}/${NAME}.o")
execute_process(
    COMMAND "${COMPILER}" -std=c++20 -O2 -ffp-contract=off ${flags} ${include_flags} -c "${FILE}" -o "${object}"
    RESULT_VARIABLE status ERROR_VARIABLE output)
if(NOT status EQUAL 0)
    message(FATAL_ERROR "does not compile:\n${output}")
endif()
execute_process(COMMAND "${OBJDUMP}" -dr --no-show-raw-insn "${object}"
    RESULT_VARIABLE status OUTPUT_VARIABLE text ERROR_VARIABLE output)
if(NOT status EQUAL 0)
    message(FATAL_ERROR "cannot be disassembled:\n${output}")
endif()

string(REGEX MATCHALL "\tvfn?m(add|sub)[0-9]+[ps][sd] [^\n]*${REGISTER}" fused "${text}")
string(REGEX MATCHALL "\tv(mul|add|sub)[ps][sd] [^\n]*" apart "${text}")
string(REGEX MATCHALL "R_X86_64[A-Z0-9_]*[ \t]+fmaf?[^_a-z\n][^\n]*" calls "${text}")
list(APPEND apart ${calls})
list(LENGTH fused n_fused)
list(LENGTH apart n_apart)
set(found "${n_fused} fused instructions on ${REGISTER}, ${n_apart} products, sums and calls apart")
if(SPLIT)
    if(n_apart EQUAL 0)
        message(FATAL_ERROR "products and sums were not noticed: ${found}")
    endif()
elseif(n_apart GREATER 0 OR n_fused LESS 20)
    message(FATAL_ERROR "${found}: ${apart}")
endif()
message(STATUS "${found}")
