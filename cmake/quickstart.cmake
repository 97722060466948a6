# From a fresh checkout to an answer with one command: which of the library's techniques pays off on a text?
#   cmake -P cmake/quickstart.cmake
#   cmake -P cmake/quickstart.cmake -- --text my.txt --steps 1000     (arguments for compare)
# Installs what is missing (Debian and Ubuntu; elsewhere it says what to install), builds compare, train_lm and generate,
# and runs compare.
cmake_minimum_required(VERSION 3.22)
include("${CMAKE_CURRENT_LIST_DIR}/setup.cmake")

setup_arguments(arguments)
setup_needs(compiler make eigen xsimd cli11 json)
setup_configure()
setup_build(compare train_lm generate)

find_program(program compare PATHS "${BUILD_DIR}/examples" "${BUILD_DIR}/examples/Release" NO_DEFAULT_PATH NO_CACHE)
if(NOT program)
    message(FATAL_ERROR "compare was not found in ${BUILD_DIR}/examples.")
endif()
# The program inherits the terminal, so its progress is visible and it can be interrupted.
# What it writes stays out of the source tree unless an argument says where it goes.
execute_process(COMMAND "${program}" --report "${BUILD_DIR}/compare.html" --folder "${BUILD_DIR}/compare" ${arguments}
    RESULT_VARIABLE status)
if(NOT status EQUAL 0)
    message(FATAL_ERROR "compare ended with ${status}.")
endif()
