# Install rules: headers, licence, a CMake package and a pkg-config file. Nothing depends on the processor.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(sluice_package_dir "${CMAKE_INSTALL_DATAROOTDIR}/cmake/sluice")

target_include_directories(sluice INTERFACE "$<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>")
install(DIRECTORY include/sluice DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" FILES_MATCHING PATTERN "*.hpp")
install(FILES LICENSE DESTINATION "${CMAKE_INSTALL_DATAROOTDIR}/licenses/sluice")

install(TARGETS sluice EXPORT sluice-targets)
install(EXPORT sluice-targets NAMESPACE sluice:: DESTINATION "${sluice_package_dir}")
configure_package_config_file(cmake/sluice-config.cmake.in "${PROJECT_BINARY_DIR}/sluice-config.cmake"
    INSTALL_DESTINATION "${sluice_package_dir}" NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file("${PROJECT_BINARY_DIR}/sluice-config-version.cmake"
    COMPATIBILITY SameMajorVersion ARCH_INDEPENDENT)
install(FILES
    "${PROJECT_BINARY_DIR}/sluice-config.cmake"
    "${PROJECT_BINARY_DIR}/sluice-config-version.cmake"
    cmake/compiled_kernels.cpp
    cmake/compiled_kernels.hpp
    cmake/dependencies.cmake
    cmake/dispatch.cmake
    cmake/dispatch.cpp
    cmake/dispatch_check.cmake
    cmake/kernels.hpp
    DESTINATION "${sluice_package_dir}")

# The pkg-config file finds its prefix from where it lies, so an install tree can be moved.
cmake_path(SET sluice_pc_include NORMALIZE "${CMAKE_INSTALL_INCLUDEDIR}")
if(NOT IS_ABSOLUTE "${sluice_pc_include}")
    set(sluice_pc_include "\${prefix}/${sluice_pc_include}")
endif()
set(sluice_pc_dir "${CMAKE_INSTALL_DATAROOTDIR}/pkgconfig")
cmake_path(RELATIVE_PATH CMAKE_INSTALL_PREFIX BASE_DIRECTORY "${CMAKE_INSTALL_FULL_DATAROOTDIR}/pkgconfig"
    OUTPUT_VARIABLE sluice_pc_up)
configure_file(cmake/sluice.pc.in "${PROJECT_BINARY_DIR}/sluice.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/sluice.pc" DESTINATION "${sluice_pc_dir}")
