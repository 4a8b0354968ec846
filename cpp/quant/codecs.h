// SPDX-License-Identifier: Apache-2.0
// Reference codecs: plain loops whose bytes equal ggml's round-to-nearest (quantize_row_*_ref in
// ggml-quants.c). Compiled without FMA contraction, so that every compiler writes the same bytes.
#pragma once

#include <cstdint>

namespace rwkv_edge {

uint16_t float_to_half(float value);  // IEEE round to nearest even; beyond 65520 becomes infinity
uint16_t float_to_bfloat16(float value);  // round to nearest even; NaN stays NaN

void quantize_f32(const float* x, void* out, int64_t n);
void quantize_f16(const float* x, void* out, int64_t n);
void quantize_bf16(const float* x, void* out, int64_t n);
void quantize_q8_0(const float* x, void* out, int64_t n);
void quantize_q4_0(const float* x, void* out, int64_t n);
void quantize_q4_1(const float* x, void* out, int64_t n);
void quantize_q5_0(const float* x, void* out, int64_t n);
void quantize_q5_1(const float* x, void* out, int64_t n);

void dequantize_f32(const void* in, float* y, int64_t n);
void dequantize_f16(const void* in, float* y, int64_t n);
void dequantize_bf16(const void* in, float* y, int64_t n);
void dequantize_q8_0(const void* in, float* y, int64_t n);
void dequantize_q4_0(const void* in, float* y, int64_t n);
void dequantize_q4_1(const void* in, float* y, int64_t n);
void dequantize_q5_0(const void* in, float* y, int64_t n);
void dequantize_q5_1(const void* in, float* y, int64_t n);
void dequantize_q2_k(const void* in, float* y, int64_t n);
void dequantize_q3_k(const void* in, float* y, int64_t n);
void dequantize_q4_k(const void* in, float* y, int64_t n);
void dequantize_q5_k(const void* in, float* y, int64_t n);
void dequantize_q6_k(const void* in, float* y, int64_t n);

}  // namespace rwkv_edge
