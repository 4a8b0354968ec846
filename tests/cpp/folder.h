// SPDX-License-Identifier: Apache-2.0
// A folder for the files of a test, removed at the end.
#pragma once

#include <filesystem>
#include <fstream>
#include <span>
#include <string>

#include "base/error.h"
#include "base/system.h"

namespace rwkv_edge {

class Folder {
public:
    Folder() { std::filesystem::create_directories(path_); }
    ~Folder() { std::filesystem::remove_all(path_); }
    // Of a file there that holds `text`; as the engine takes paths, in UTF-8.
    std::string put(const std::u8string& name, const std::string& text) const {
        std::ofstream(path_ / name, std::ios::binary) << text;
        return of(name);
    }
    std::string put(const std::u8string& name, std::span<const std::byte> bytes) const {
        return put(name, std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
    }
    std::string of(const std::u8string& name) const {
        const std::u8string text = (path_ / name).u8string();
        return {text.begin(), text.end()};
    }

private:
    static inline int made_ = 0;
    std::filesystem::path path_ = std::filesystem::temp_directory_path() /
                                  cat("rwkv-edge-files-", process_id(), "-", made_++);
};

}  // namespace rwkv_edge
