// SPDX-License-Identifier: Apache-2.0
// One row per weight type: its name, its block, its reference codec.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "quant/blocks.h"

namespace rwkv_edge {

struct TypeInfo {
    Type type;
    const char* name;  // lower case, as the command line takes it
    int block_len;     // values per block
    int block_bytes;
    // n is a multiple of block_len. quantize is null for the types we only read.
    void (*quantize)(const float* x, void* blocks, int64_t n);
    void (*dequantize)(const void* blocks, float* y, int64_t n);
};

std::span<const TypeInfo> all_types();

// Null for an id or a name that we do not know.
const TypeInfo* find_type(uint32_t id);
const TypeInfo* find_type(std::string_view name);

// The type must be one of the enum's.
const TypeInfo& type_info(Type type);

// Bytes of `n` values, n a multiple of the block length.
inline int64_t type_bytes(Type type, int64_t n) {
    const TypeInfo& info = type_info(type);
    return n / info.block_len * info.block_bytes;
}

}  // namespace rwkv_edge
