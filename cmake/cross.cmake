# Toolchain for other processors, with programs run by emulation:
#   cmake -B build/neon64 -DCMAKE_TOOLCHAIN_FILE=cmake/cross.cmake
#   cmake -B build/sve -DCMAKE_TOOLCHAIN_FILE=cmake/cross.cmake -DSLUICE_SVE_BITS=256 -DSLUICE_XSIMD_INCLUDE_DIR=...
# SVE takes xsimd 9 or newer. Debian and Ubuntu: g++-aarch64-linux-gnu and qemu-user.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES SLUICE_SVE_BITS)

set(cross_root "/usr/aarch64-linux-gnu")
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
find_program(cross_emulator NAMES qemu-aarch64 qemu-aarch64-static)
if(cross_emulator)
    set(CMAKE_CROSSCOMPILING_EMULATOR "${cross_emulator}" -L "${cross_root}")
endif()
# Without g++'s notes on how releases before its tenth passed arguments.
set(CMAKE_CXX_FLAGS_INIT "-Wno-psabi")
# The processors that this stands for differ too much for -march=native of the machine that compiles.
set(SLUICE_ARCH "armv8-a" CACHE STRING "")
if(SLUICE_SVE_BITS)
    math(EXPR cross_bytes "${SLUICE_SVE_BITS} / 8")
    list(APPEND CMAKE_CROSSCOMPILING_EMULATOR -cpu "max,sve${SLUICE_SVE_BITS}=on,sve-default-vector-length=${cross_bytes}")
    set(SLUICE_ARCH "armv8.2-a+sve" CACHE STRING "" FORCE)
    string(APPEND CMAKE_CXX_FLAGS_INIT " -msve-vector-bits=${SLUICE_SVE_BITS}")
endif()

# What the machine that compiles has in /usr/include is for its own processor; headers that are for any are linked
# from a directory of their own.
set(cross_prefix "${CMAKE_BINARY_DIR}/any_processor")
if(NOT EXISTS "${cross_prefix}" AND NOT CMAKE_BINARY_DIR MATCHES "CMakeTmp")
    file(MAKE_DIRECTORY "${cross_prefix}/include" "${cross_prefix}/lib/cmake")
    foreach(name xsimd catch2 nlohmann)
        if(EXISTS "/usr/include/${name}")
            file(CREATE_LINK "/usr/include/${name}" "${cross_prefix}/include/${name}" SYMBOLIC)
        endif()
    endforeach()
    # Copies, because these files take the prefix from where they lie; without the libraries they name.
    file(GLOB cross_packages /usr/lib/cmake/Catch2 /usr/share/cmake/nlohmann_json)
    file(COPY ${cross_packages} DESTINATION "${cross_prefix}/lib/cmake" PATTERN "*Targets-*" EXCLUDE)
endif()
list(PREPEND CMAKE_PREFIX_PATH "${cross_prefix}")
set(SLUICE_EIGEN_INCLUDE_DIR "/usr/include/eigen3" CACHE PATH "")
set(SLUICE_XSIMD_INCLUDE_DIR "${cross_prefix}/include" CACHE PATH "")
set(CMAKE_FIND_ROOT_PATH "${cross_root}" "${cross_prefix}")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
