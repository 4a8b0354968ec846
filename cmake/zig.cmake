# SPDX-License-Identifier: Apache-2.0
# Cross build by zig's clang and libc++ (pip install '.[platforms]'), for the target that the preset
# names in the environment: x86_64-linux-musl, aarch64-linux-musl, aarch64-macos or x86_64-macos.
set(target $ENV{RWKV_EDGE_TARGET})
string(REGEX MATCH "^[^-]+" CMAKE_SYSTEM_PROCESSOR "${target}")
if(target MATCHES macos)
    set(CMAKE_SYSTEM_NAME Darwin)
    set(triple ${target}.11.0)
    set(CMAKE_INSTALL_NAME_TOOL /bin/false)  # CMake asks for it; only an installation would run it
else()
    set(CMAKE_SYSTEM_NAME Linux)
    set(triple ${target})
    set(CMAKE_EXE_LINKER_FLAGS_INIT -static)
    if(target MATCHES aarch64)
        set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64-static)
    endif()
endif()
set(CMAKE_CXX_COMPILER ${CMAKE_CURRENT_LIST_DIR}/zig.py c++ -target ${triple})
set(CMAKE_C_COMPILER ${CMAKE_CURRENT_LIST_DIR}/zig.py cc -target ${triple})
# GNU's ar writes no table of symbols for Mach-O.
set(CMAKE_CXX_ARCHIVE_CREATE "python3 -m ziglang ar qcs <TARGET> <OBJECTS>")
set(CMAKE_CXX_ARCHIVE_FINISH "")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
