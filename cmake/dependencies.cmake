# Finds Eigen, xsimd and threads. Used by the build and, unchanged, by the installed package.
# Both libraries are header-only, so all we take is one include directory each; the version is read from
# the headers, because the packages disagree on how a version may be asked for:
#  - Eigen 3.4.0 refuses version ranges, and Eigen 5 does not satisfy a request for 3.4;
#  - the xsimd package of some distributions demands or links a library (xtl) that it does not bring.
# sluice_find_dependencies(<problem>) makes sluice::eigen, sluice::xsimd and Threads::Threads, or sets <problem>
# to a sentence.

set(SLUICE_EIGEN_OLDEST 3.4)
set(SLUICE_EIGEN_TOO_NEW 6)
set(SLUICE_XSIMD_OLDEST 8.1)
set(SLUICE_XSIMD_TOO_NEW 15)

# The one directory of an existing target that holds `header`. Build-tree targets wrap theirs in BUILD_INTERFACE.
function(sluice_include_dir_of target header result)
    set(${result} "" PARENT_SCOPE)
    if(NOT TARGET ${target})
        return()
    endif()
    get_target_property(directories ${target} INTERFACE_INCLUDE_DIRECTORIES)
    foreach(directory IN LISTS directories)
        string(REGEX REPLACE "^\\$<BUILD_INTERFACE:(.*)>$" "\\1" directory "${directory}")
        if(EXISTS "${directory}/${header}")
            set(${result} "${directory}" PARENT_SCOPE)
            return()
        endif()
    endforeach()
endfunction()

# The numbers that the macros `ARGN` of a header hold, joined by dots; empty where one is missing.
function(sluice_version_in header result)
    set(numbers "")
    if(EXISTS "${header}")
        foreach(macro IN LISTS ARGN)
            file(STRINGS "${header}" line REGEX "^#define ${macro} +[0-9]+")
            string(REGEX MATCH "[0-9]+$" number "${line}")
            list(APPEND numbers "${number}")
        endforeach()
    endif()
    list(JOIN numbers "." version)
    set(${result} "${version}" PARENT_SCOPE)
endfunction()

# Eigen counts 3.4.0 as world 3, major 4, minor 0, but 5.0.1 as world 3, major 5, minor 0, patch 1.
function(sluice_eigen_version directory result)
    set(header "${directory}/Eigen/Version")
    if(NOT EXISTS "${header}")
        set(header "${directory}/Eigen/src/Core/util/Macros.h")
    endif()
    sluice_version_in("${header}" version EIGEN_MAJOR_VERSION EIGEN_MINOR_VERSION EIGEN_PATCH_VERSION)
    if(NOT version VERSION_GREATER_EQUAL 5)
        sluice_version_in("${header}" version EIGEN_WORLD_VERSION EIGEN_MAJOR_VERSION EIGEN_MINOR_VERSION)
    endif()
    set(${result} "${version}" PARENT_SCOPE)
endfunction()

function(sluice_xsimd_version directory result)
    sluice_version_in("${directory}/xsimd/config/xsimd_config.hpp" version
        XSIMD_VERSION_MAJOR XSIMD_VERSION_MINOR XSIMD_VERSION_PATCH)
    set(${result} "${version}" PARENT_SCOPE)
endfunction()

# Downloads only the sources: a SOURCE_SUBDIR that does not exist keeps their build files from running.
function(sluice_fetch name repository commit result)
    include(FetchContent)
    FetchContent_Declare(${name} GIT_REPOSITORY ${repository} GIT_TAG ${commit} SOURCE_SUBDIR no_build_files)
    FetchContent_MakeAvailable(${name})
    FetchContent_GetProperties(${name} SOURCE_DIR directory)
    set(${result} "${directory}" PARENT_SCOPE)
endfunction()

function(sluice_find_eigen result)
    if(SLUICE_EIGEN_INCLUDE_DIR)
        set(directory "${SLUICE_EIGEN_INCLUDE_DIR}")
    elseif(SLUICE_FETCH AND FETCHCONTENT_SOURCE_DIR_EIGEN3)
        set(directory "${FETCHCONTENT_SOURCE_DIR_EIGEN3}")
    else()
        if(NOT TARGET Eigen3::Eigen)
            find_package(Eigen3 CONFIG QUIET)
        endif()
        sluice_include_dir_of(Eigen3::Eigen Eigen/Core directory)
        if(NOT directory)
            find_path(SLUICE_EIGEN_INCLUDE_DIR Eigen/Core PATH_SUFFIXES eigen3 DOC "Directory that holds Eigen/Core")
            set(directory "${SLUICE_EIGEN_INCLUDE_DIR}")
        endif()
        if(NOT directory AND SLUICE_FETCH)
            sluice_fetch(eigen3 https://gitlab.com/libeigen/eigen.git
                3147391d946bb4b6c68edd901f2add6ac1f31f8c directory) # 3.4.0
        endif()
    endif()
    set(${result} "${directory}" PARENT_SCOPE)
endfunction()

function(sluice_find_xsimd result)
    if(SLUICE_XSIMD_INCLUDE_DIR)
        set(directory "${SLUICE_XSIMD_INCLUDE_DIR}")
    elseif(SLUICE_FETCH AND FETCHCONTENT_SOURCE_DIR_XSIMD)
        set(directory "${FETCHCONTENT_SOURCE_DIR_XSIMD}/include")
    else()
        sluice_include_dir_of(xsimd xsimd/xsimd.hpp directory)
        if(NOT directory)
            # Its package is not loaded, since it fails where xtl is absent; it only tells where to look.
            find_path(SLUICE_XSIMD_INCLUDE_DIR xsimd/xsimd.hpp
                HINTS "${xsimd_DIR}/../../.." "${xsimd_DIR}/../../../.." "${xsimd_ROOT}" "$ENV{xsimd_ROOT}"
                PATH_SUFFIXES include DOC "Directory that holds xsimd/xsimd.hpp")
            set(directory "${SLUICE_XSIMD_INCLUDE_DIR}")
        endif()
        if(NOT directory AND SLUICE_FETCH)
            sluice_fetch(xsimd https://github.com/xtensor-stack/xsimd.git
                1f8dd9c8e162968d9b4ff0251c56d431b8777f36 directory) # 13.2.0
            string(APPEND directory "/include")
        endif()
    endif()
    set(${result} "${directory}" PARENT_SCOPE)
endfunction()

# Global, since imported targets are else visible in one directory only and would be lost for a parent project.
# Headers of imported targets count as system headers, so their warnings stay out of our users' builds.
function(sluice_import name directory)
    if(NOT TARGET sluice::${name})
        add_library(sluice::${name} INTERFACE IMPORTED GLOBAL)
        set_target_properties(sluice::${name} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${directory}")
    endif()
endfunction()

function(sluice_find_dependencies problem)
    set(${problem} "" PARENT_SCOPE)

    sluice_find_eigen(eigen)
    if(NOT eigen)
        set(${problem} "Eigen was not found. Install it (libeigen3-dev, eigen3-devel, eigen), set \
SLUICE_EIGEN_INCLUDE_DIR, or set SLUICE_FETCH=ON to download it." PARENT_SCOPE)
        return()
    endif()
    sluice_eigen_version("${eigen}" version)
    if(version VERSION_LESS SLUICE_EIGEN_OLDEST OR version VERSION_GREATER_EQUAL SLUICE_EIGEN_TOO_NEW)
        set(${problem} "Eigen ${version} in ${eigen} is outside the supported range: \
${SLUICE_EIGEN_OLDEST} and newer, older than ${SLUICE_EIGEN_TOO_NEW}." PARENT_SCOPE)
        return()
    endif()

    sluice_find_xsimd(xsimd)
    if(NOT xsimd)
        set(${problem} "xsimd was not found. Install it (libxsimd-dev, xsimd-devel, xsimd), set \
SLUICE_XSIMD_INCLUDE_DIR, or set SLUICE_FETCH=ON to download it." PARENT_SCOPE)
        return()
    endif()
    sluice_xsimd_version("${xsimd}" version)
    if(version VERSION_LESS SLUICE_XSIMD_OLDEST OR version VERSION_GREATER_EQUAL SLUICE_XSIMD_TOO_NEW)
        set(${problem} "xsimd ${version} in ${xsimd} is outside the supported range: \
${SLUICE_XSIMD_OLDEST} and newer, older than ${SLUICE_XSIMD_TOO_NEW}." PARENT_SCOPE)
        return()
    endif()

    # The bundled thread pool needs it. Promoted for the same reason as above, but only where we made it.
    if(NOT TARGET Threads::Threads)
        find_package(Threads QUIET)
        if(NOT TARGET Threads::Threads)
            set(${problem} "No thread library was found." PARENT_SCOPE)
            return()
        endif()
        set_target_properties(Threads::Threads PROPERTIES IMPORTED_GLOBAL TRUE)
    endif()

    sluice_import(eigen "${eigen}")
    sluice_import(xsimd "${xsimd}")
endfunction()
