# Sets include_flags to what a compiler called by hand needs: INCLUDE is the library's directory, SYSTEM those of Eigen
# and xsimd, separated by bars.
set(include_flags "-I${INCLUDE}")
string(REPLACE "|" ";" system_directories "${SYSTEM}")
foreach(directory IN LISTS system_directories)
    # Naming a compiler's own directory would change the order in which it looks for its headers.
    if(NOT directory STREQUAL "/usr/include")
        list(APPEND include_flags -isystem "${directory}")
    endif()
endforeach()
