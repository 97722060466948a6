# Every layer's header alone has to go through the compiler in 2.5 seconds of its own time, which other programs on the
# machine hardly change.
set(limit 2500)
file(GLOB headers RELATIVE "${INCLUDE}" "${INCLUDE}/sluice/layers/*.hpp")
include("${CMAKE_CURRENT_LIST_DIR}/include_flags.cmake")
list(JOIN include_flags "' '" include_flags)
set(slow "")
foreach(header IN LISTS headers)
    file(WRITE "${WORK}/alone.cpp" "#include <${header}>\n")
    execute_process(COMMAND sh -c "'${COMPILER}' -std=c++20 ${FLAGS} '${include_flags}' -fsyntax-only alone.cpp && times"
        WORKING_DIRECTORY "${WORK}" OUTPUT_VARIABLE times COMMAND_ERROR_IS_FATAL ANY)
    # The shell's own times, then those of its children: user, system.
    if(NOT times MATCHES "\n([0-9]+)m([0-9]+)[.,]([0-9][0-9])[0-9]*s")
        message(FATAL_ERROR "The shell's times are not understood: ${times}")
    endif()
    math(EXPR milliseconds "(${CMAKE_MATCH_1} * 60 + ${CMAKE_MATCH_2}) * 1000 + 1${CMAKE_MATCH_3} * 10 - 1000")
    message("${header}: ${milliseconds} ms")
    if(milliseconds GREATER limit)
        list(APPEND slow ${header})
    endif()
endforeach()
if(slow)
    message(FATAL_ERROR "More than ${limit} ms: ${slow}")
endif()
