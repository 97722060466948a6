# One program for several instruction sets:
#   sluice_dispatch(<target> [ARCHS <name>...] [SOURCES <file>...])
# compiles the library's kernels once for each of ARCHS, with its flags, and links them to a target whose code says
# sluice::simd::portable, or simd::dynamic<...> with these names, in place of the Arch of layers and functions. The
# target itself is compiled for the oldest processor that has to run it. SOURCES are compiled in the same way: files
# of kernels and policies of the user's own, see sluice/simd/instantiate.hpp. Names: sse2, sse4_2, avx, avx2 (with
# fma), avx512 (F, CD, BW, DQ, VL), avx512_vnni (and products of bytes). On processors other than x86-64 there is nothing to choose, and nothing is done.

# The flags of an architecture, and what the name of every symbol compiled for it contains.
function(sluice_dispatch_flags arch flags mangled)
    if(arch STREQUAL "sse2")
        set(these 4sse2E)
    elseif(arch STREQUAL "sse4_2")
        set(these 6sse4_2E -msse4.2)
    elseif(arch STREQUAL "avx")
        set(these 3avxE -mavx)
    elseif(arch STREQUAL "avx2")
        set(these 4fma3I -mavx2 -mfma)
    elseif(arch STREQUAL "avx512")
        set(these 8avx512bwE -mavx2 -mfma -mavx512f -mavx512cd -mavx512bw -mavx512dq -mavx512vl)
    elseif(arch STREQUAL "avx512_vnni")
        set(these 11avx512_vnniE -mavx2 -mfma -mavx512f -mavx512cd -mavx512bw -mavx512dq -mavx512vl -mavx512vnni)
    else()
        message(FATAL_ERROR "sluice_dispatch: ${arch} is none of sse2, sse4_2, avx, avx2, avx512, avx512_vnni.")
    endif()
    list(POP_FRONT these name)
    set(${mangled} ${name} PARENT_SCOPE)
    # -march takes back what flags from elsewhere allow.
    set(${flags} -march=x86-64 ${these} PARENT_SCOPE)
endfunction()

# A header that comes first in every file of a target, precompiled in `owner`.
function(sluice_comes_first target owner header)
    # g++ 12 ends with a segmentation fault where it reads what belongs to SVE from a precompiled header.
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
        target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:SHELL:-include \"${header}\">")
    else()
        target_precompile_headers(${target} REUSE_FROM ${owner})
    endif()
endfunction()

# The kernels of a program of several files, or of several programs with the same flags, compiled once:
#   sluice_compile_kernels(<target>...)
# compiles the library's kernels for float in a file of their own, with the flags of the first target, and the targets'
# files without them, each of which takes a half to a quarter of the time. Arch is native, as it is by default.
function(sluice_compile_kernels first)
    foreach(target IN ITEMS ${first} ${ARGN})
        if(NOT TARGET ${target})
            message(FATAL_ERROR "sluice_compile_kernels: there is no target ${target}.")
        endif()
    endforeach()
    # The second has the header alone, precompiled for all targets.
    set(here "${CMAKE_CURRENT_FUNCTION_LIST_DIR}")
    add_library(${first}_kernels OBJECT "${here}/dispatch.cpp")
    add_library(${first}_kernel_headers OBJECT "${here}/compiled_kernels.cpp")
    target_precompile_headers(${first}_kernel_headers PRIVATE "${here}/compiled_kernels.hpp")
    foreach(library IN ITEMS ${first}_kernels ${first}_kernel_headers)
        target_link_libraries(${library} PRIVATE sluice::sluice)
        target_compile_options(${library} PRIVATE $<TARGET_PROPERTY:${first},COMPILE_OPTIONS>)
        target_compile_definitions(${library} PRIVATE $<TARGET_PROPERTY:${first},COMPILE_DEFINITIONS>)
        foreach(property CXX_EXTENSIONS POSITION_INDEPENDENT_CODE)
            get_target_property(value ${first} ${property})
            if(NOT value MATCHES "NOTFOUND$")
                set_target_properties(${library} PROPERTIES ${property} ${value})
            endif()
        endforeach()
    endforeach()
    foreach(target IN ITEMS ${first} ${ARGN})
        sluice_comes_first(${target} ${first}_kernel_headers "${here}/compiled_kernels.hpp")
        target_sources(${target} PRIVATE $<TARGET_OBJECTS:${first}_kernels>)
    endforeach()
endfunction()

# An object library of kernels, and a file that exists once its symbols were checked.
function(sluice_kernels library arch)
    sluice_dispatch_flags(${arch} flags mangled)
    set(script "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/dispatch_check.cmake")
    add_library(${library} OBJECT EXCLUDE_FROM_ALL ${ARGN})
    target_link_libraries(${library} PRIVATE sluice::sluice)
    target_compile_definitions(${library} PRIVATE SLUICE_DISPATCH_ARCH=${arch})
    target_compile_options(${library} PRIVATE ${flags}
        # Unless it is optimised, functions of the standard library stay functions, and the linker takes any one's.
        $<$<OR:$<CONFIG:Debug>,$<CONFIG:>>:-O2>)
    set_target_properties(${library} PROPERTIES CXX_EXTENSIONS OFF CXX_VISIBILITY_PRESET hidden
        POSITION_INDEPENDENT_CODE ON INTERPROCEDURAL_OPTIMIZATION OFF UNITY_BUILD OFF)
    if(NOT CMAKE_NM)
        return()
    endif()
    set(checked "${CMAKE_CURRENT_BINARY_DIR}/${library}.checked")
    add_custom_command(OUTPUT "${checked}"
        COMMAND "${CMAKE_COMMAND}" "-DNM=${CMAKE_NM}" "-DARCH=${arch}" "-DMANGLED=${mangled}"
            "-DOBJECTS=$<JOIN:$<TARGET_OBJECTS:${library}>,|>" -P "${script}"
        COMMAND "${CMAKE_COMMAND}" -E touch "${checked}"
        DEPENDS $<TARGET_OBJECTS:${library}> "${script}"
        COMMENT "Checking that kernels for ${arch} share no symbol" VERBATIM)
    add_custom_target(${library}_checked DEPENDS "${checked}")
    add_dependencies(${library}_checked ${library})
endfunction()

function(sluice_dispatch target)
    cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "ARCHS;SOURCES")
    if(arg_UNPARSED_ARGUMENTS)
        message(FATAL_ERROR "sluice_dispatch: unknown arguments ${arg_UNPARSED_ARGUMENTS}.")
    endif()
    if(NOT TARGET ${target})
        message(FATAL_ERROR "sluice_dispatch: there is no target ${target}.")
    endif()
    if(MSVC OR NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
        return()
    endif()
    if(NOT arg_ARCHS)
        set(arg_ARCHS sse2 avx2 avx512 avx512_vnni)
    endif()
    foreach(arch IN LISTS arg_ARCHS)
        # Those of the library are the same for all targets.
        set(libraries sluice_kernels_${arch})
        if(NOT TARGET sluice_kernels_${arch})
            sluice_kernels(sluice_kernels_${arch} ${arch} "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/dispatch.cpp")
        endif()
        if(arg_SOURCES)
            list(APPEND libraries ${target}_kernels_${arch})
            sluice_kernels(${target}_kernels_${arch} ${arch} ${arg_SOURCES})
            target_include_directories(${target}_kernels_${arch} PRIVATE
                $<TARGET_PROPERTY:${target},INCLUDE_DIRECTORIES>)
            target_compile_definitions(${target}_kernels_${arch} PRIVATE
                $<TARGET_PROPERTY:${target},COMPILE_DEFINITIONS>)
        endif()
        foreach(library IN LISTS libraries)
            target_sources(${target} PRIVATE $<TARGET_OBJECTS:${library}>)
            if(TARGET ${library}_checked)
                add_dependencies(${target} ${library}_checked)
            endif()
        endforeach()
    endforeach()
endfunction()
