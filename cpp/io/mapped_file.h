// SPDX-License-Identifier: Apache-2.0
// A whole file, mapped read-only. The map is the only copy of the weights. A file that is cut short
// while it is mapped kills the process (SIGBUS), as with every program that maps files.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace rwkv_edge {

class MappedFile {
public:
    // Throws FileError when the file cannot be opened or mapped, FormatError when it is empty.
    explicit MappedFile(const std::string& path);
    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    std::span<const std::byte> bytes() const { return {data_, size_}; }

private:
    const std::byte* data_ = nullptr;
    std::size_t size_ = 0;
};

}  // namespace rwkv_edge
