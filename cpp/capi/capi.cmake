# SPDX-License-Identifier: Apache-2.0
# The C library: shared and static, its package for CMake and pkg-config, its tests.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
file(STRINGS cpp/capi/rwkv_edge.h number REGEX "define RWKV_EDGE_VERSION_NUMBER ")
string(REGEX MATCH "[0-9]+$" number "${number}")
math(EXPR major "${number} / 1000000")
math(EXPR minor "${number} / 1000 % 1000")
math(EXPR patch "${number} % 1000")
set(version ${major}.${minor}.${patch})

# Exports the names that its list has (tests/capi/check_exports.py), and nothing of std.
function(rwkv_c_library target list)
    set_target_properties(${target} PROPERTIES VERSION ${version} SOVERSION ${major}
        LINK_DEPENDS ${CMAKE_SOURCE_DIR}/${list})
    if(WIN32)
        set_target_properties(${target} PROPERTIES PREFIX "")
        target_link_options(${target} PRIVATE -static)  # or it looks for libstdc++-6.dll
    elseif(NOT APPLE)
        target_link_options(${target} PRIVATE -Wl,--version-script=${CMAKE_SOURCE_DIR}/${list})
    endif()
endfunction()

add_library(rwkv_edge SHARED cpp/capi/rwkv_edge.cpp)
target_compile_definitions(rwkv_edge PUBLIC RWKV_EDGE_SHARED)
target_link_libraries(rwkv_edge PRIVATE rwkv_engine)
rwkv_c_library(rwkv_edge cpp/capi/rwkv_edge.map)

add_library(rwkv_edge_static STATIC cpp/capi/rwkv_edge.cpp $<TARGET_OBJECTS:rwkv_engine>)
target_include_directories(rwkv_edge_static PRIVATE cpp)
target_link_libraries(rwkv_edge_static PUBLIC Threads::Threads)
if(WIN32)
    target_link_libraries(rwkv_edge_static PUBLIC synchronization)
endif()
if(NOT MSVC)  # where the library that belongs to a DLL has this name
    set_target_properties(rwkv_edge_static PROPERTIES OUTPUT_NAME rwkv_edge)
endif()
set_target_properties(rwkv_edge_static PROPERTIES EXPORT_NAME static)

# rwkv.cpp's library, for programs that were written for it.
add_library(rwkv_cpp_compat SHARED cpp/capi/rwkv_cpp.cpp)
target_include_directories(rwkv_cpp_compat PRIVATE cpp)
target_link_libraries(rwkv_cpp_compat PRIVATE rwkv_edge_static)
rwkv_c_library(rwkv_cpp_compat cpp/capi/rwkv.map)
set_target_properties(rwkv_cpp_compat PROPERTIES OUTPUT_NAME rwkv)

foreach(target rwkv_edge rwkv_edge_static)
    target_include_directories(${target} PUBLIC
        $<BUILD_INTERFACE:${CMAKE_SOURCE_DIR}/cpp/capi> $<INSTALL_INTERFACE:include>)
endforeach()

# --- installing ---

install(TARGETS rwkv_edge rwkv_edge_static EXPORT rwkv_edge COMPONENT capi)
install(TARGETS rwkv_cpp_compat COMPONENT capi)
install(FILES cpp/capi/rwkv_edge.h cpp/capi/rwkv.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT capi)
set(package ${CMAKE_INSTALL_LIBDIR}/cmake/rwkv_edge)
install(EXPORT rwkv_edge NAMESPACE rwkv_edge:: FILE rwkv_edge-targets.cmake DESTINATION ${package}
    COMPONENT capi)
file(WRITE ${CMAKE_BINARY_DIR}/rwkv_edge-config.cmake
    "include(CMakeFindDependencyMacro)\nfind_dependency(Threads)\n"
    "include(\${CMAKE_CURRENT_LIST_DIR}/rwkv_edge-targets.cmake)\n")
write_basic_package_version_file(${CMAKE_BINARY_DIR}/rwkv_edge-config-version.cmake
    VERSION ${version} COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/rwkv_edge-config.cmake
    ${CMAKE_BINARY_DIR}/rwkv_edge-config-version.cmake DESTINATION ${package} COMPONENT capi)
configure_file(cpp/capi/rwkv_edge.pc.in rwkv_edge.pc @ONLY)
install(FILES ${CMAKE_BINARY_DIR}/rwkv_edge.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig
    COMPONENT capi)

# --- tests and measuring ---

if(RWKV_EDGE_BENCH OR RWKV_EDGE_TESTS)
    enable_language(C)
endif()
if(RWKV_EDGE_BENCH)
    add_executable(bench_first_token bench/first_token.c)
    target_link_libraries(bench_first_token PRIVATE rwkv_edge_static)
endif()

if(RWKV_EDGE_TESTS)
    find_package(Python3 REQUIRED COMPONENTS Interpreter)
    set(demo ${CMAKE_SOURCE_DIR}/python/rwkv_edge/demo.gguf)
    set(kinds static)
    if(WIN32 OR NOT CMAKE_EXE_LINKER_FLAGS MATCHES "-static")
        list(APPEND kinds shared)
    endif()
    foreach(kind IN LISTS kinds)
        add_executable(test_capi_${kind} tests/capi/test_capi.c)
        target_compile_options(test_capi_${kind} PRIVATE
            -std=c99 -Wall -Wextra -pedantic -Werror)
        target_link_libraries(test_capi_${kind} PRIVATE
            rwkv_edge$<$<STREQUAL:${kind},static>:_static>)
        add_test(NAME test_capi_${kind} COMMAND test_capi_${kind} ${demo})
    endforeach()
    if(WIN32)  # which looks for the DLL beside the program
        set_target_properties(rwkv_edge PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
    endif()
    if(NOT APPLE)
        add_test(NAME exports COMMAND ${Python3_EXECUTABLE}
            ${CMAKE_SOURCE_DIR}/tests/capi/check_exports.py $<TARGET_FILE:rwkv_edge>
            ${CMAKE_SOURCE_DIR}/cpp/capi/rwkv_edge.map ${CMAKE_SOURCE_DIR}/cpp/capi/rwkv_edge.h)
        add_test(NAME exports_rwkv_cpp COMMAND ${Python3_EXECUTABLE}
            ${CMAKE_SOURCE_DIR}/tests/capi/check_exports.py $<TARGET_FILE:rwkv_cpp_compat>
            ${CMAKE_SOURCE_DIR}/cpp/capi/rwkv.map ${CMAKE_SOURCE_DIR}/cpp/capi/rwkv.h)
    endif()
    # Not with sanitizers, which the programs outside would need too.
    if(CMAKE_BUILD_TYPE STREQUAL Release AND NOT APPLE)
        set(options)
        if(CMAKE_TOOLCHAIN_FILE)
            list(APPEND options -DCMAKE_TOOLCHAIN_FILE=${CMAKE_TOOLCHAIN_FILE})
        endif()
        if(CMAKE_CROSSCOMPILING_EMULATOR)
            string(REPLACE ";" "," emulator "${CMAKE_CROSSCOMPILING_EMULATOR}")
            list(PREPEND options --run ${emulator})
        endif()
        string(REPLACE ";" "," kinds "${kinds}")
        add_test(NAME install COMMAND ${Python3_EXECUTABLE}
            ${CMAKE_SOURCE_DIR}/tests/capi/test_install.py ${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR}
            ${kinds} ${options})
        if(DEFINED ENV{RWKV_EDGE_TARGET})  # which cmake/zig.cmake reads
            set_tests_properties(install PROPERTIES
                ENVIRONMENT RWKV_EDGE_TARGET=$ENV{RWKV_EDGE_TARGET})
        endif()
    endif()
endif()
