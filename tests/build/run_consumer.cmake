# Builds and runs a small program that uses the library in one of four ways:
#   installed   find_package after an install into an empty directory
#   pkg_config  the same install tree, through pkg-config
#   subproject  add_subdirectory
#   fetch       add_subdirectory with SLUICE_FETCH and local directories in place of the downloads
file(REMOVE_RECURSE "${WORK}")
file(MAKE_DIRECTORY "${WORK}")
if(NOT CONFIG)
    set(CONFIG Release)
endif()

function(run)
    execute_process(COMMAND ${ARGV} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

function(build_and_run source)
    run("${CMAKE_COMMAND}" -S "${SOURCES}/${source}" -B "${WORK}/build" -G "${GENERATOR}"
        "-DCMAKE_CXX_COMPILER=${COMPILER}" "-DCMAKE_BUILD_TYPE=Debug" ${ARGN})
    run("${CMAKE_COMMAND}" --build "${WORK}/build" --config Debug)
    find_program(consumer consumer PATHS "${WORK}/build" "${WORK}/build/Debug" NO_DEFAULT_PATH REQUIRED)
    run("${consumer}")
endfunction()

function(install_into prefix)
    # An install into another root would not be where the consumer looks.
    unset(ENV{DESTDIR})
    run("${CMAKE_COMMAND}" --install "${BUILD}" --config ${CONFIG} --prefix "${prefix}")
endfunction()

set(hints "-DSLUICE_EIGEN_INCLUDE_DIR=${EIGEN_DIR}" "-DSLUICE_XSIMD_INCLUDE_DIR=${XSIMD_DIR}")

if(MODE STREQUAL "installed")
    install_into("${WORK}/prefix")
    # Moved, because a package has to work wherever it is unpacked.
    file(RENAME "${WORK}/prefix" "${WORK}/moved")
    build_and_run(consumer "-DCMAKE_PREFIX_PATH=${WORK}/moved" ${hints})

elseif(MODE STREQUAL "pkg_config")
    install_into("${WORK}/prefix")
    file(RENAME "${WORK}/prefix" "${WORK}/moved")
    file(GLOB_RECURSE pc "${WORK}/moved/*/sluice.pc")
    cmake_path(GET pc PARENT_PATH pc_dir)
    set(ENV{PKG_CONFIG_PATH} "${pc_dir}:$ENV{PKG_CONFIG_PATH}")
    execute_process(COMMAND "${PKG_CONFIG}" --exists eigen3 xsimd RESULT_VARIABLE absent)
    if(absent)
        message(STATUS "Eigen or xsimd has no pkg-config file here; nothing to test.")
        return()
    endif()
    execute_process(COMMAND "${PKG_CONFIG}" --cflags --libs sluice OUTPUT_VARIABLE flags
        OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
    if(NOT flags MATCHES "moved")
        message(FATAL_ERROR "sluice.pc does not follow its directory: ${flags}")
    endif()
    separate_arguments(flags UNIX_COMMAND "${flags}")
    run("${COMPILER}" -std=c++20 "${SOURCES}/consumer/main.cpp" ${flags} -o "${WORK}/consumer")
    run("${WORK}/consumer")

elseif(MODE STREQUAL "subproject")
    build_and_run(subproject "-DSLUICE_SOURCE=${ROOT}" ${hints})

elseif(MODE STREQUAL "fetch")
    # A source tree of xsimd keeps its headers in include/. A link, not a copy of the directory around it: that may
    # hold the whole system's headers.
    file(MAKE_DIRECTORY "${WORK}/xsimd/include")
    file(CREATE_LINK "${XSIMD_DIR}/xsimd" "${WORK}/xsimd/include/xsimd" SYMBOLIC)
    build_and_run(subproject "-DSLUICE_SOURCE=${ROOT}" -DSLUICE_FETCH=ON
        "-DFETCHCONTENT_SOURCE_DIR_EIGEN3=${EIGEN_DIR}" "-DFETCHCONTENT_SOURCE_DIR_XSIMD=${WORK}/xsimd")

else()
    message(FATAL_ERROR "unknown MODE '${MODE}'")
endif()
