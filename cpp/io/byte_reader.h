// SPDX-License-Identifier: Apache-2.0
// A bounded little-endian cursor. All bytes of a file that are not tensor data are read through it,
// so no length from a file is believed before it has been compared with what remains.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"

namespace rwkv_edge {

static_assert(std::endian::native == std::endian::little,
              "files are little-endian, and read in place");

class ByteReader {
public:
    ByteReader(std::span<const std::byte> bytes, std::string path)
        : bytes_(bytes), path_(std::move(path)) {}

    std::size_t position() const { return position_; }
    std::size_t remaining() const { return bytes_.size() - position_; }

    // `what` names the thing being read, for the message.
    template <class T>
    T read(std::string_view what) {
        T value;
        std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
        return value;
    }

    std::span<const std::byte> take(uint64_t n, std::string_view what) {
        if (n > remaining())
            fail(cat("the file ends inside ", what, ": ", n, " bytes needed at offset ", position_,
                     ", ", remaining(), " left"));
        const auto part = bytes_.subspan(position_, static_cast<std::size_t>(n));
        position_ += static_cast<std::size_t>(n);
        return part;
    }

    // A count of bytes (64 bits), then that many bytes.
    std::string_view string(std::string_view what) {
        const auto part = take(read<uint64_t>(what), what);
        return {reinterpret_cast<const char*>(part.data()), part.size()};
    }

    [[noreturn]] void fail(const std::string& what) const {
        throw FormatError(cat(path_, ": ", what));
    }

private:
    std::span<const std::byte> bytes_;
    std::string path_;
    std::size_t position_ = 0;
};

}  // namespace rwkv_edge
