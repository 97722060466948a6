# Proves that the compiler refuses FILE and says why.
#   // expect: text     at least one such line; the compiler's output must contain every text
#   #ifdef CONTROL      optional: with CONTROL defined the same file must compile, which proves that nothing else in
#                       it is wrong
# With SELF_TEST=ON it proves that this script itself notices a file that compiles, another message, no expectation
# and a broken control.

include("${CMAKE_CURRENT_LIST_DIR}/include_flags.cmake")

# Sets `result` to what is wrong with the file, or to nothing.
function(judge file result)
    set(compile "${COMPILER}" -std=c++20 -fsyntax-only ${FLAGS} ${include_flags})

    file(STRINGS "${file}" expectations REGEX "^// expect: ")
    if(NOT expectations)
        set(${result} "has no line '// expect: text'" PARENT_SCOPE)
        return()
    endif()
    # In the C locale compilers quote with plain characters.
    set(ENV{LC_ALL} C)
    execute_process(COMMAND ${compile} "${file}"
        RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
    if(status EQUAL 0)
        set(${result} "compiles" PARENT_SCOPE)
        return()
    endif()
    foreach(expectation IN LISTS expectations)
        string(REGEX REPLACE "^// expect: *" "" expectation "${expectation}")
        string(STRIP "${expectation}" expectation)
        string(FIND "${output}" "${expectation}" found)
        if(found EQUAL -1)
            set(${result} "is refused, but not with the text '${expectation}':\n${output}" PARENT_SCOPE)
            return()
        endif()
    endforeach()

    file(STRINGS "${file}" control REGEX "^#.*CONTROL")
    if(control)
        execute_process(COMMAND ${compile} -DCONTROL "${file}"
            RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
        if(NOT status EQUAL 0)
            set(${result} "is refused with CONTROL defined, too:\n${output}" PARENT_SCOPE)
            return()
        endif()
    endif()
    set(${result} "" PARENT_SCOPE)
endfunction()

function(expect_judgement name text verdict)
    file(WRITE "${WORK}/${name}.cpp" "${text}")
    judge("${WORK}/${name}.cpp" problem)
    if(NOT problem MATCHES "^${verdict}")
        message(SEND_ERROR "${name}: expected '${verdict}', got '${problem}'")
    endif()
endfunction()

if(SELF_TEST)
    set(refusal "static_assert(sizeof(int) == 1, \"an int is larger\");\n")
    expect_judgement(refused "// expect: an int is larger\n${refusal}" "$")
    expect_judgement(accepted "// expect: an int is larger\nint x;\n" "compiles")
    expect_judgement(other_text "// expect: an int is smaller\n${refusal}" "is refused, but not with")
    expect_judgement(no_text "${refusal}" "has no line")
    expect_judgement(control "// expect: an int\n#ifndef CONTROL\n${refusal}#endif\n" "$")
    expect_judgement(broken_control "// expect: an int\n#ifdef CONTROL\n#endif\n${refusal}" "is refused with CONTROL")
else()
    judge("${FILE}" problem)
    if(problem)
        message(FATAL_ERROR "${FILE} ${problem}")
    endif()
endif()
