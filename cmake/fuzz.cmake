# Gives the readers of files whatever a fuzzer can think of, under sanitizers, for a minute in all:
#   cmake -P cmake/fuzz.cmake
#   cmake -P cmake/fuzz.cmake -- safetensors_reader     (one of the targets in tests/fuzz)
#   cmake -DSECONDS=3600 -P cmake/fuzz.cmake            (longer, shared out among the targets)
# Needs clang++ with libFuzzer. What is found is left in build/fuzz and ends the run; fix it and add the file to
# tests/fuzz/corpus, which the tests replay with any compiler.
cmake_minimum_required(VERSION 3.22)
include("${CMAKE_CURRENT_LIST_DIR}/setup.cmake")

if(NOT SECONDS)
    set(SECONDS 60)
endif()
setup_arguments(targets)
setup_needs(eigen xsimd json)
find_program(clang NAMES $ENV{CXX} clang++ clang++-19 clang++-18 clang++-17 clang++-16 clang++-15 clang++-14 NO_CACHE)
if(NOT clang MATCHES "clang")
    message(FATAL_ERROR "Fuzzing needs clang++, which was not found.")
endif()

set(sources "${SLUICE_ROOT}/tests/fuzz")
if(NOT targets)
    file(GLOB files RELATIVE "${sources}" "${sources}/*.cpp")
    foreach(file IN LISTS files)
        if(NOT file STREQUAL "replay.cpp")
            cmake_path(GET file STEM name)
            list(APPEND targets ${name})
        endif()
    endforeach()
endif()
list(LENGTH targets n_targets)
math(EXPR seconds "(${SECONDS} + ${n_targets} - 1) / ${n_targets}")

set(includes "-I${SLUICE_ROOT}/include" "-I${SLUICE_ROOT}/tests")
foreach(header Eigen/Core xsimd/xsimd.hpp nlohmann/json.hpp)
    find_header(${header} directory)
    # clang loses the C headers where /usr/include is given again
    if(directory AND NOT directory MATCHES "^/usr/include/?$")
        list(APPEND includes -isystem "${directory}")
    endif()
endforeach()

set(work "${BUILD_DIR}/fuzz")
foreach(target IN LISTS targets)
    if(NOT EXISTS "${sources}/${target}.cpp" OR target STREQUAL "replay")
        message(FATAL_ERROR "There is no target ${target} in tests/fuzz.")
    endif()
    message("${target}: ${seconds} s")
    file(MAKE_DIRECTORY "${work}/${target}/corpus")
    # For io/vocabulary; without it the target does nothing.
    set(libraries "")
    execute_process(COMMAND "${clang}" ${includes} -E -x c++ -include unicode/unorm2.h /dev/null
        RESULT_VARIABLE absent OUTPUT_QUIET ERROR_QUIET)
    if(absent EQUAL 0 AND target STREQUAL "vocabulary")
        set(libraries -licuuc)
    endif()
    # Assertions are off: hostile bytes must be safe without them.
    execute_process(COMMAND "${clang}" -std=c++20 -O1 -g -DNDEBUG ${includes}
        -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all
        "${sources}/${target}.cpp" ${libraries} -o "${work}/${target}/run" RESULT_VARIABLE status)
    if(NOT status EQUAL 0)
        message(FATAL_ERROR "${target} does not compile; the reason is above.")
    endif()
    execute_process(COMMAND "${work}/${target}/run" "${work}/${target}/corpus" "${sources}/corpus/${target}"
        "-dict=${sources}/corpus/words.txt" "-artifact_prefix=${work}/${target}/" -max_total_time=${seconds}
        -max_len=16384 -timeout=10 -rss_limit_mb=1024 -malloc_limit_mb=256 -print_final_stats=1
        RESULT_VARIABLE status ERROR_VARIABLE log)
    if(NOT status EQUAL 0)
        message("${log}")
        message(FATAL_ERROR "${target} found something; the input is in ${work}/${target}.")
    endif()
    string(REGEX MATCH "number_of_executed_units: *([0-9]+)" line "${log}")
    message("    ${CMAKE_MATCH_1} inputs, nothing found")
endforeach()
