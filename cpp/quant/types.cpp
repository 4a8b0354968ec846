// SPDX-License-Identifier: Apache-2.0
#include "quant/types.h"

#include "quant/codecs.h"

namespace rwkv_edge {

namespace {

constexpr TypeInfo kTypes[] = {
    {Type::F32, "f32", 1, 4, quantize_f32, dequantize_f32},
    {Type::F16, "f16", 1, 2, quantize_f16, dequantize_f16},
    {Type::BF16, "bf16", 1, 2, quantize_bf16, dequantize_bf16},
    {Type::Q8_0, "q8_0", kBlock, sizeof(BlockQ8_0), quantize_q8_0, dequantize_q8_0},
    {Type::Q4_0, "q4_0", kBlock, sizeof(BlockQ4_0), quantize_q4_0, dequantize_q4_0},
    {Type::Q4_1, "q4_1", kBlock, sizeof(BlockQ4_1), quantize_q4_1, dequantize_q4_1},
    {Type::Q5_0, "q5_0", kBlock, sizeof(BlockQ5_0), quantize_q5_0, dequantize_q5_0},
    {Type::Q5_1, "q5_1", kBlock, sizeof(BlockQ5_1), quantize_q5_1, dequantize_q5_1},
    {Type::Q2_K, "q2_k", kSuperBlock, sizeof(BlockQ2_K), nullptr, dequantize_q2_k},
    {Type::Q3_K, "q3_k", kSuperBlock, sizeof(BlockQ3_K), nullptr, dequantize_q3_k},
    {Type::Q4_K, "q4_k", kSuperBlock, sizeof(BlockQ4_K), nullptr, dequantize_q4_k},
    {Type::Q5_K, "q5_k", kSuperBlock, sizeof(BlockQ5_K), nullptr, dequantize_q5_k},
    {Type::Q6_K, "q6_k", kSuperBlock, sizeof(BlockQ6_K), nullptr, dequantize_q6_k},
};

}  // namespace

std::span<const TypeInfo> all_types() { return kTypes; }

const TypeInfo* find_type(uint32_t id) {
    for (const TypeInfo& info : kTypes)
        if (static_cast<uint32_t>(info.type) == id) return &info;
    return nullptr;
}

const TypeInfo* find_type(std::string_view name) {
    for (const TypeInfo& info : kTypes)
        if (info.name == name) return &info;
    return nullptr;
}

const TypeInfo& type_info(Type type) { return *find_type(static_cast<uint32_t>(type)); }

}  // namespace rwkv_edge
