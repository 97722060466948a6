# What takes too long for every change: other compilers, instruction sets, versions of the libraries, sanitizers.
#   cmake -P cmake/full_check.cmake                     all stages, one after another
#   cmake -P cmake/full_check.cmake -- asan tsan        some of them
# Each stage has a build directory of its own in build/full/ and ends with a line that says how long it took. Debian
# and Ubuntu: clang++ and what a stage needs beyond check.cmake has to be there; a stage says what is missing.
cmake_minimum_required(VERSION 3.22)
include("${CMAKE_CURRENT_LIST_DIR}/setup.cmake")
include("${CMAKE_CURRENT_LIST_DIR}/newer_packages.cmake")

setup_arguments(wanted)
setup_needs(compiler make eigen xsimd cli11 json catch2 benchmark)
set(FULL_DIR "${BUILD_DIR}/full")
setup_jobs(JOBS)

function(need_program name)
    unset(found)
    find_program(found "${name}" NO_CACHE)
    if(NOT found)
        message(FATAL_ERROR "This stage needs ${name}, which was not found.")
    endif()
endfunction()

function(configure directory)
    execute_process(COMMAND "${CMAKE_COMMAND}" -S "${SLUICE_ROOT}" -B "${directory}" -DSLUICE_WERROR=ON
        -DSLUICE_BUILD_BENCH=OFF ${ARGN} COMMAND_ERROR_IS_FATAL ANY OUTPUT_QUIET)
endfunction()
function(build directory)
    set(targets "")
    if(ARGN)
        set(targets --target ${ARGN})
    endif()
    execute_process(COMMAND "${CMAKE_COMMAND}" --build "${directory}" --parallel ${JOBS} ${targets}
        COMMAND_ERROR_IS_FATAL ANY OUTPUT_QUIET)
endfunction()
# Tests of the package itself do not depend on how the tests are built.
set(NOT_RUN "^(build/|structure)")
function(test directory)
    execute_process(COMMAND ctest --test-dir "${directory}" --output-on-failure --no-tests=error --parallel ${JOBS}
        -LE full -E "${NOT_RUN}" ${ARGN} RESULT_VARIABLE status OUTPUT_VARIABLE log ECHO_ERROR_VARIABLE)
    if(NOT status EQUAL 0)
        file(READ "${directory}/Testing/Temporary/LastTestsFailed.log" failed)
        message(FATAL_ERROR "Failed; what they said is in ${directory}/Testing/Temporary/LastTest.log:\n${failed}")
    endif()
    string(REGEX MATCH "[0-9]+% tests passed[^\n]*" line "${log}")
    message("    ${line}")
endfunction()
function(build_and_test directory)
    configure("${directory}" ${ARGN})
    build("${directory}")
    test("${directory}")
endfunction()

# Of the folders whose code differs between instruction sets.
function(build_and_test_arithmetic directory)
    configure("${directory}" -DSLUICE_BUILD_EXAMPLES=OFF ${ARGN})
    build("${directory}" tests_of_simd tests_of_kernels tests_of_ops tests_of_layers)
    test("${directory}" -R "^(simd|kernels|ops|layers)/")
endfunction()

# Warnings are errors in every stage.
function(stage_clang directory)
    need_program(clang++)
    build_and_test("${directory}" -DCMAKE_CXX_COMPILER=clang++)
endfunction()
# What nobody initialised is not zero by luck here: registers and accumulators have no initial value of their own.
set(no_luck -DCMAKE_CXX_FLAGS=-ftrivial-auto-var-init=pattern)
function(stage_sse2 directory)
    build_and_test_arithmetic("${directory}" -DSLUICE_ARCH=x86-64 ${no_luck})
endfunction()
function(stage_avx2 directory)
    build_and_test_arithmetic("${directory}" -DSLUICE_ARCH=x86-64-v3 ${no_luck})
endfunction()
# The reports stop the program, so a finding is a failed test.
function(stage_asan directory)
    need_program(clang++)
    build_and_test("${directory}" -DCMAKE_CXX_COMPILER=clang++ -DSLUICE_SANITIZE=address,undefined
        -DSLUICE_BUILD_EXAMPLES=OFF)
endfunction()
function(stage_tsan directory)
    need_program(clang++)
    build_and_test("${directory}" -DCMAKE_CXX_COMPILER=clang++ -DSLUICE_SANITIZE=thread -DSLUICE_BUILD_EXAMPLES=OFF)
endfunction()
# The middle and the newest end of the range of versions; check.cmake runs the oldest where the system has it.
function(stage_trixie directory)
    newer_packages(trixie "${FULL_DIR}/packages/trixie")
    build_and_test("${directory}" -DSLUICE_BUILD_EXAMPLES=OFF "-DCMAKE_PREFIX_PATH=${FULL_DIR}/packages/trixie/usr")
endfunction()
function(stage_forky directory)
    newer_packages(forky "${FULL_DIR}/packages/forky")
    build_and_test("${directory}" "-DCMAKE_PREFIX_PATH=${FULL_DIR}/packages/forky/usr")
endfunction()
# Other processors, emulated. SVE takes a newer xsimd than the oldest that is supported.
function(cross_build_and_test directory)
    need_program(aarch64-linux-gnu-g++)
    need_program(qemu-aarch64)
    # The emulator takes 12 GB of memory for 600 GB of addresses in which nothing lies.
    string(APPEND NOT_RUN "|rows may be gigabytes apart")
    build_and_test_arithmetic("${directory}" "-DCMAKE_TOOLCHAIN_FILE=${SLUICE_ROOT}/cmake/cross.cmake" ${ARGN})
endfunction()
function(stage_neon64 directory)
    cross_build_and_test("${directory}")
endfunction()
function(stage_sve directory)
    newer_packages(forky "${FULL_DIR}/packages/forky")
    # Alone: beside it lies a Catch2 of another processor.
    file(COPY "${FULL_DIR}/packages/forky/usr/include/xsimd" DESTINATION "${directory}/include")
    cross_build_and_test("${directory}" -DSLUICE_SVE_BITS=256 "-DSLUICE_XSIMD_INCLUDE_DIR=${directory}/include")
endfunction()
# Run-time dispatch with the other compiler and the newest xsimd; the slow tests have it with what the system has.
function(stage_dispatch directory)
    need_program(clang++)
    need_program(nm)
    need_program(qemu-x86_64)
    newer_packages(forky "${FULL_DIR}/packages/forky")
    execute_process(COMMAND "${CMAKE_COMMAND}" "-DROOT=${SLUICE_ROOT}" "-DSOURCES=${SLUICE_ROOT}/tests/build"
        "-DWORK=${directory}" "-DGENERATOR=Unix Makefiles" -DCOMPILER=clang++ -DNM=nm
        "-DEIGEN_DIR=${FULL_DIR}/packages/forky/usr/include/eigen3"
        "-DXSIMD_DIR=${FULL_DIR}/packages/forky/usr/include" -P "${SLUICE_ROOT}/tests/build/dispatch.cmake"
        COMMAND_ERROR_IS_FATAL ANY OUTPUT_QUIET)
endfunction()
# Headers only: tests need exceptions.
function(stage_no_exceptions directory)
    foreach(compiler g++ clang++)
        need_program(${compiler})
        configure("${directory}/${compiler}" -DCMAKE_CXX_COMPILER=${compiler} -DSLUICE_BUILD_EXAMPLES=OFF
            "-DCMAKE_CXX_FLAGS=-fno-exceptions -fno-rtti")
        build("${directory}/${compiler}" headers_alone umbrella)
    endforeach()
endfunction()
function(stage_coverage directory)
    need_program(clang++)
    need_program(llvm-profdata)
    need_program(llvm-cov)
    # In place of Debug's own flags: debug information would take long and says nothing here.
    configure("${directory}" -DCMAKE_CXX_COMPILER=clang++ -DSLUICE_BUILD_EXAMPLES=OFF -DCMAKE_BUILD_TYPE=Debug
        "-DCMAKE_CXX_FLAGS_DEBUG=-O1 -fprofile-instr-generate -fcoverage-mapping")
    build("${directory}")
    file(REMOVE_RECURSE "${directory}/profiles")
    set(ENV{LLVM_PROFILE_FILE} "${directory}/profiles/%m.profraw")
    test("${directory}")
    execute_process(COMMAND sh -c "llvm-profdata merge -sparse profiles/*.profraw -o all.profdata && \
llvm-cov report -instr-profile=all.profdata $(find tests -maxdepth 1 -name 'test_*' -type f -executable | \
sort | sed '1!s/^/-object /') ${SLUICE_ROOT}/include"
        WORKING_DIRECTORY "${directory}" OUTPUT_VARIABLE report COMMAND_ERROR_IS_FATAL ANY)
    file(WRITE "${directory}/report.txt" "${report}")
    string(REGEX MATCH "TOTAL +[^\n]*" line "${report}")
    string(REGEX MATCHALL "[0-9.]+%" shares "${line}")
    list(GET shares 1 functions)
    list(GET shares 2 lines)
    message("    ${lines} of the lines and ${functions} of the functions are run; file by file: ${directory}/report.txt")
endfunction()

# A minute for each of the readers of files.
function(stage_fuzz directory)
    need_program(clang++)
    file(GLOB readers "${SLUICE_ROOT}/tests/fuzz/*.cpp")
    list(LENGTH readers count) # one of them replays inputs
    math(EXPR seconds "60 * (${count} - 1)")
    execute_process(COMMAND "${CMAKE_COMMAND}" -DSECONDS=${seconds} -P "${SLUICE_ROOT}/cmake/fuzz.cmake"
        COMMAND_ERROR_IS_FATAL ANY)
endfunction()

# The slow tests of an ordinary build.
function(stage_slow directory)
    configure("${directory}" -DSLUICE_BUILD_BENCH=ON)
    build("${directory}")
    execute_process(COMMAND ctest --test-dir "${directory}" --output-on-failure --no-tests=error -L full
        COMMAND_ERROR_IS_FATAL ANY)
endfunction()

set(stages slow no_exceptions clang sse2 avx2 asan tsan trixie forky dispatch neon64 sve coverage fuzz)
if(wanted)
    foreach(stage IN LISTS wanted)
        if(NOT stage IN_LIST stages)
            list(JOIN stages ", " text)
            message(FATAL_ERROR "There is no stage ${stage}; there are ${text}.")
        endif()
    endforeach()
    set(stages ${wanted})
endif()
foreach(stage IN LISTS stages)
    string(TIMESTAMP before "%s")
    message("${stage}")
    cmake_language(CALL stage_${stage} "${FULL_DIR}/${stage}")
    string(TIMESTAMP after "%s")
    math(EXPR seconds "${after} - ${before}")
    message("    passed in ${seconds} s")
endforeach()
