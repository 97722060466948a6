# newer_packages(<suite> <directory>): Eigen, xsimd and Catch2 as another Debian suite has them, unpacked or built in
# <directory> and found through it as a prefix. Nothing is installed: apt-get works on lists and a cache of its own,
# and takes the mirror from the system's configuration.
function(newer_packages suite directory)
    if(EXISTS "${directory}/complete")
        return()
    endif()
    find_program(apt apt-get NO_CACHE)
    find_program(dpkg_deb dpkg-deb NO_CACHE)
    if(NOT apt OR NOT dpkg_deb)
        message(FATAL_ERROR "The packages of ${suite} come through apt-get and dpkg-deb, and these are not here.")
    endif()
    execute_process(COMMAND "${apt}" indextargets --format "$(ORIGIN) $(COMPONENT) $(REPO_URI)" "Created-By: Packages"
        OUTPUT_VARIABLE targets COMMAND_ERROR_IS_FATAL ANY)
    if(NOT targets MATCHES "Debian main ([^\n]*/debian)/?\n")
        message(FATAL_ERROR "apt-get knows no mirror of Debian.")
    endif()
    set(mirror "${CMAKE_MATCH_1}")
    set(keys "/usr/share/keyrings/debian-archive-keyring.gpg")
    set(options "")
    if(EXISTS "${keys}")
        set(options "[signed-by=${keys}] ")
    endif()

    file(REMOVE_RECURSE "${directory}")
    file(MAKE_DIRECTORY "${directory}/apt/lists/partial" "${directory}/apt/cache/archives/partial")
    file(WRITE "${directory}/apt/sources.list"
        "deb ${options}${mirror} ${suite} main\ndeb-src ${options}${mirror} ${suite} main\n")
    set(apt_here "${apt}" -qq -o Dir::Etc::SourceList=${directory}/apt/sources.list -o Dir::Etc::SourceParts=/dev/null
        -o Dir::State::Lists=${directory}/apt/lists -o Dir::Cache=${directory}/apt/cache -o Acquire::Languages=none
        -o APT::Sandbox::User=root)
    function(run)
        execute_process(COMMAND ${ARGV} WORKING_DIRECTORY "${directory}/apt" COMMAND_ERROR_IS_FATAL ANY OUTPUT_QUIET)
    endfunction()
    run(${apt_here} update)
    run(${apt_here} download libeigen3-dev libxsimd-dev)
    run(${apt_here} source --download-only catch2)
    file(GLOB packages "${directory}/apt/*.deb")
    foreach(package IN LISTS packages)
        run("${dpkg_deb}" --extract "${package}" "${directory}")
    endforeach()
    # A library of another suite may need another C library, so this one is built here.
    file(GLOB source "${directory}/apt/catch2_*.orig.tar.*")
    file(ARCHIVE_EXTRACT INPUT "${source}" DESTINATION "${directory}/apt/source")
    file(GLOB source LIST_DIRECTORIES TRUE "${directory}/apt/source/*")
    run("${CMAKE_COMMAND}" -S "${source}" -B "${directory}/apt/build" -DCMAKE_BUILD_TYPE=Release
        -DCATCH_INSTALL_DOCS=OFF -DCATCH_DEVELOPMENT_BUILD=OFF)
    setup_jobs(jobs)
    run("${CMAKE_COMMAND}" --build "${directory}/apt/build" --parallel ${jobs})
    run("${CMAKE_COMMAND}" --install "${directory}/apt/build" --prefix "${directory}/usr")
    file(TOUCH "${directory}/complete")
endfunction()
