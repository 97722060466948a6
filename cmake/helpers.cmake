# What our own tests, benchmarks and examples are built with. Nothing of this reaches a user's target.
include(CheckCXXCompilerFlag)

function(sluice_warnings target)
    if(MSVC)
        target_compile_options(${target} PRIVATE /W4 /permissive- $<$<BOOL:${SLUICE_WERROR}>:/WX>)
        return()
    endif()
    target_compile_options(${target} PRIVATE
        -Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Wold-style-cast
        $<$<BOOL:${SLUICE_WERROR}>:-Werror>)
    # Of registers in its own header for AVX-512, which that leaves so on purpose.
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
        target_compile_options(${target} PRIVATE -Wno-maybe-uninitialized)
    endif()
endfunction()

# Some compilers know the host processor only by -mcpu.
function(sluice_arch_flag result)
    set(${result} "" PARENT_SCOPE)
    if(SLUICE_ARCH STREQUAL "" OR MSVC)
        return()
    endif()
    string(MAKE_C_IDENTIFIER "SLUICE_HAS_MARCH_${SLUICE_ARCH}" known)
    check_cxx_compiler_flag("-march=${SLUICE_ARCH}" ${known})
    if(${known})
        set(${result} "-march=${SLUICE_ARCH}" PARENT_SCOPE)
    elseif(SLUICE_ARCH STREQUAL "native")
        check_cxx_compiler_flag(-mcpu=native SLUICE_HAS_MCPU_native)
        if(SLUICE_HAS_MCPU_native)
            set(${result} -mcpu=native PARENT_SCOPE)
        endif()
    else()
        message(FATAL_ERROR "sluice: the compiler does not know -march=${SLUICE_ARCH} (SLUICE_ARCH).")
    endif()
endfunction()
sluice_arch_flag(SLUICE_ARCH_FLAG)

function(sluice_sanitize target)
    if(SLUICE_SANITIZE)
        target_compile_options(${target} PRIVATE
            -fsanitize=${SLUICE_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
        target_link_options(${target} PRIVATE -fsanitize=${SLUICE_SANITIZE})
    endif()
endfunction()

# A test, benchmark or example of ours.
function(sluice_own_target target)
    target_link_libraries(${target} PRIVATE sluice::sluice)
    set_target_properties(${target} PROPERTIES CXX_EXTENSIONS OFF)
    target_compile_options(${target} PRIVATE ${SLUICE_ARCH_FLAG})
    sluice_warnings(${target})
    sluice_sanitize(${target})
endfunction()
