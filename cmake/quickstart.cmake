# From a fresh checkout to a trained model with one command:
#   cmake -P cmake/quickstart.cmake
#   cmake -P cmake/quickstart.cmake -- --steps 100      (arguments for train_lm)
# Installs what is missing (Debian and Ubuntu; elsewhere it says what to install), builds train_lm and generate, which
# writes text with what train_lm leaves, and runs train_lm.
cmake_minimum_required(VERSION 3.22)
include("${CMAKE_CURRENT_LIST_DIR}/setup.cmake")

setup_arguments(arguments)
setup_needs(compiler make eigen xsimd cli11 json)
setup_configure()
setup_build(train_lm generate)

find_program(program train_lm PATHS "${BUILD_DIR}/examples" "${BUILD_DIR}/examples/Release" NO_DEFAULT_PATH NO_CACHE)
if(NOT program)
    message(FATAL_ERROR "train_lm was not found in ${BUILD_DIR}/examples.")
endif()
# The program inherits the terminal, so its progress is visible and it can be interrupted.
# Its checkpoint stays out of the source tree unless an argument says where it goes.
execute_process(COMMAND "${program}" --checkpoint "${BUILD_DIR}/train_lm.safetensors" ${arguments} RESULT_VARIABLE status)
if(NOT status EQUAL 0)
    message(FATAL_ERROR "train_lm ended with ${status}.")
endif()
