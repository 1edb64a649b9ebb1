# cmake --install: the program, the library, its headers, and the package that find_package(lineal) reads.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(package ${CMAKE_INSTALL_LIBDIR}/cmake/lineal)

install(TARGETS lineal_program)
install(TARGETS lineal EXPORT lineal)
install(TARGETS lineal_pieces DESTINATION lib)
install(DIRECTORY src/ DESTINATION include/lineal FILES_MATCHING PATTERN "*.h" PATTERN "precompiled.h" EXCLUDE
        PATTERN "commands" EXCLUDE PATTERN "testing" EXCLUDE PATTERN "torch_library.h" EXCLUDE)
install(EXPORT lineal NAMESPACE lineal:: FILE lineal-targets.cmake DESTINATION ${package})
configure_package_config_file(cmake/lineal-config.cmake.in ${PROJECT_BINARY_DIR}/lineal-config.cmake
                              INSTALL_DESTINATION ${package})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/lineal-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/lineal-config.cmake ${PROJECT_BINARY_DIR}/lineal-config-version.cmake
              cmake/LibTorch.cmake DESTINATION ${package})
install(PROGRAMS cmake/find_torch.sh DESTINATION ${package})
