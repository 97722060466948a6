# Builds everything and runs every test but those with the label "full", which full_check.cmake runs:
#   cmake -P cmake/check.cmake
#   cmake -P cmake/check.cmake -- -R layers             (arguments for ctest)
# Installs what is missing (Debian and Ubuntu; elsewhere it says what to install).
cmake_minimum_required(VERSION 3.22)
include("${CMAKE_CURRENT_LIST_DIR}/setup.cmake")

setup_arguments(arguments)
setup_needs(compiler make eigen xsimd cli11 json catch2 benchmark)
setup_configure()
setup_build()

cmake_path(GET CMAKE_COMMAND PARENT_PATH directory)
find_program(ctest ctest HINTS "${directory}" NO_CACHE REQUIRED)
setup_jobs(jobs)
execute_process(COMMAND "${ctest}" --test-dir "${BUILD_DIR}" -C Release --output-on-failure --no-tests=error
    --parallel ${jobs} -LE full ${arguments} RESULT_VARIABLE status)
if(NOT status EQUAL 0)
    message(FATAL_ERROR "Some tests failed; they are listed above.")
endif()
