// SPDX-License-Identifier: Apache-2.0
// Writer of a GGUF header: keys, and names and places of tensors whose bytes lie elsewhere.
#pragma once

#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/model_file.h"

namespace rwkv_edge {

class GgufHeader {
public:
    static constexpr std::size_t kAlignment = 32;

    void text(std::string_view name, std::string_view value) {
        key(name, ValueType::String);
        string(keys_, value);
    }
    void number(std::string_view name, int64_t value) {
        key(name, ValueType::U32);
        put(keys_, static_cast<uint32_t>(value));
    }
    void long_number(std::string_view name, uint64_t value) {
        key(name, ValueType::U64);
        put(keys_, value);
    }
    void real(std::string_view name, float value) {
        key(name, ValueType::F32);
        put(keys_, value);
    }
    // The shape is slowest first.
    void tensor(std::string_view name, Type type, const std::vector<int64_t>& shape,
                std::span<const std::byte> data) {
        string(headers_, name);
        put(headers_, static_cast<uint32_t>(shape.size()));
        for (auto size = shape.rbegin(); size != shape.rend(); ++size) put(headers_, *size);
        put(headers_, static_cast<uint32_t>(type));
        put(headers_, offset_);
        offset_ += data.size() + padding(data.size());
        tensors_.push_back(data);
    }

    // Up to the last tensor's name and place; the tensors begin behind some padding.
    std::vector<std::byte> bytes() const {
        std::vector<std::byte> out;
        put(out, uint32_t{0x46554747});  // "GGUF"
        put(out, uint32_t{3});
        put(out, static_cast<uint64_t>(tensors_.size()));
        put(out, n_keys_);
        out.insert(out.end(), keys_.begin(), keys_.end());
        out.insert(out.end(), headers_.begin(), headers_.end());
        return out;
    }
    // In the order of the header.
    const std::vector<std::span<const std::byte>>& tensors() const { return tensors_; }
    // Zeros behind so many bytes.
    static std::size_t padding(std::size_t size) {
        return (kAlignment - size % kAlignment) % kAlignment;
    }

private:
    template <class T>
    static void put(std::vector<std::byte>& out, T value) {
        const std::size_t at = out.size();
        out.resize(at + sizeof value);
        std::memcpy(out.data() + at, &value, sizeof value);
    }
    static void string(std::vector<std::byte>& out, std::string_view value) {
        put(out, static_cast<uint64_t>(value.size()));
        const auto bytes = std::as_bytes(std::span(value));
        out.insert(out.end(), bytes.begin(), bytes.end());
    }
    void key(std::string_view name, ValueType type) {
        ++n_keys_;
        string(keys_, name);
        put(keys_, static_cast<uint32_t>(type));
    }

    std::vector<std::byte> keys_, headers_;
    uint64_t n_keys_ = 0, offset_ = 0;
    std::vector<std::span<const std::byte>> tensors_;
};

}  // namespace rwkv_edge
