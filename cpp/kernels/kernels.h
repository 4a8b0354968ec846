// SPDX-License-Identifier: Apache-2.0
// The kernel table. scalar.cpp fills every entry and is the specification; each higher ISA level
// overwrites the entries it is better at (dispatch.cpp). Kernels check nothing and never fail:
// shapes and types were checked when the model was bound.
//
// Results must not depend on how work is cut into tokens, rows and threads. So the order of the
// sums is part of each entry's specification, per level:
//   f32, f16, bf16   eight partial sums, element k goes to sum k % 8, in order of k; then pairs:
//                    ((0+4)+(2+6)) + ((1+5)+(3+7))
//   block types      the integer dot of a block is exact; the block terms are added in order of k
// The scalar level contracts no a * b + c; all others contract the same ones.
#pragma once

#include <stdint.h>

#include "quant/blocks.h"

namespace rwkv_edge {

// y[t * y_stride + r] = sum over k of w[r, k] * x[t, k], for r in [row_begin, row_end), t in [0,
// tokens)
struct MatmulArgs {
    const void* w;  // [rows, cols] blocks, row_bytes apart; any alignment
    int64_t row_bytes;
    int64_t cols;
    int64_t row_begin, row_end;
    // For float types rows of floats, any alignment; for block types rows made by round_activations
    // of the same level.
    const void* x;
    int64_t x_stride;  // bytes from one token to the next
    int64_t tokens;
    float* y;
    int64_t y_stride;
    void* scratch;  // matmul_scratch_bytes(cols), 64-byte aligned, for the length of the call
    int64_t ahead;  // Kernels::ahead; changes no result
};
enum : int { kMatmulScratch = 40, kPanelScratch = 65536 };  // bytes per column, and besides
static inline int64_t matmul_scratch_bytes(int64_t cols) {
    return kMatmulScratch * cols + kPanelScratch;
}
typedef void (*Matmul)(const MatmulArgs& args);

// An input that is not zero, and the row of the matrix that it stands for.
struct ActiveInput {
    int32_t row;
    float x;
};

// y[t * y_stride + c] += sum of x * w[row, c] over the active inputs of token t, for c in
// [col_begin, col_end). The matrix lies by input, so that the rows of all others are never read.
// Each sum is one chain: it begins with what y holds and takes the inputs in their order. The
// weights are as the codec of their type gives them.
struct InputMatmulArgs {
    const void* w;  // [inputs, outputs] blocks, row_bytes apart; any alignment
    int64_t row_bytes;
    int64_t col_begin, col_end;  // multiples of 32 and of the type's block
    const ActiveInput* inputs;   // those of token t begin at t * inputs_stride; rows rise
    int64_t inputs_stride;
    const int64_t* counts;  // [tokens] how many they are
    int64_t tokens;
    float* y;
    int64_t y_stride;
    void* scratch;  // kInputScratch bytes, 64-byte aligned, for the length of the call
};
enum : int { kInputScratch = 20480 };
typedef void (*InputMatmul)(const InputMatmulArgs& args);

// y[i * y_stride + l] += sum over k of a[k * a_stride + i] * b[k * b_stride + l], for i in [0,
// rows), l in [0, kOuterLanes): what quantization with a Hessian is made of. Each sum is one chain:
// it begins with what y holds and takes k in order. No two of y, a and b overlap.
struct OuterArgs {
    const float* a;
    int64_t a_stride;
    const float* b;
    int64_t b_stride;
    float* y;
    int64_t y_stride;
    int64_t rows;   // a multiple of 8
    int64_t depth;  // of k
};
enum : int { kOuterLanes = 64 };

// Some channels of RWKV-4 (paper arXiv:2305.13048, appendix D). Sums of exponentials are kept as
// numerators a and denominators b, both divided by e^p with p the largest exponent so far, so that
// nothing overflows. Per channel:
//   q = max(p, u + k);  y = (e^(p-q) a + e^(u+k-q) v) / (e^(p-q) b + e^(u+k-q))
//   q = max(p + w, k);  a <- e^(p-q+w) a + e^(k-q) v;  b <- e^(p-q+w) b + e^(k-q);  p <- q
// with p - q taken first: it is exact where they are near, so that what rounding takes from q stays
// in a and b instead of adding up over the tokens. k, v, y advance by `stride` floats a token; n is
// a multiple of 8.
struct Wkv4Args {
    float *a, *b, *p;    // [n], updated in place
    const float *w, *u;  // [n]; w < 0
    const float *k, *v;
    float* y;
    int64_t n, stride, tokens;
};

// One head of RWKV-6 (paper arXiv:2404.05892, section 4), and of RWKV-5, whose w does not change. S
// is [size, size], row = key, column = value:
//   y = S^T r;  S <- diag(w) S + k v^T
// r, k, v, y advance by `stride` floats a token, w by `w_stride`. What the paper's u adds to y is
// `bonus`. Each sum runs over the keys in order.
struct Wkv6Args {
    float* state;  // updated in place
    const float *r, *w, *k, *v;
    float* y;
    int64_t size, stride, w_stride, tokens;
};

// One head of RWKV-7 (paper arXiv:2503.14456, section 4), S is [size, size], row = value, column =
// key:
//   S <- S diag(w) + (S (-kk)) (kk * a)^T + v k^T;  y = S r
// r, w, k, v, kk, a, y advance by `stride` floats a token.
struct Wkv7Args {
    float* state;  // updated in place
    const float *r, *w, *k, *v, *kk, *a;
    float* y;
    int64_t size, stride, tokens;
};

struct Kernels {
    const char* isa;  // the level
    // Tests have passed on such a CPU or its emulation; else the level must be asked for.
    bool proven;
    // How many bytes of a matrix should be on their way to the first cache. Only avx512 looks at
    // it, since its CPUs differ.
    int64_t ahead;

    // Null: the engine dequantises rows and multiplies as F32.
    Matmul matmul[kTypeSlots];
    // For the same types.
    InputMatmul input_matmul[kTypeSlots];
    // Block types take activations rounded to 8 bits in blocks of 32: x[k] ~ scale[k / 32] * q[k],
    // scale = max|x| / 127; q = x * (127 / max|x|), nearest, halves to even. How a row of them lies
    // in memory is the level's own business, so
    // a level that overwrites these two overwrites the products of all block types.
    int64_t (*rounded_bytes)(int64_t cols);  // of one row; a multiple of 64. cols: one of 32
    void (*round_activations)(const float* x, int64_t cols, void* to);  // one row; 64-byte aligned

    // Vectors below have a multiple of 8 elements, except those of the four functions in place.
    // y = (x - mean) / sqrt(var + eps) * weight + bias; y may be x
    void (*layer_norm)(const float* x, const float* weight, const float* bias, int64_t n, float eps,
                       float* y);
    // y = x + (to - x) * mix; y may be x
    void (*lerp)(const float* x, const float* to, const float* mix, int64_t n, float* y);
    void (*add)(const float* x, int64_t n, float* y);                  // y += x
    void (*mul)(const float* x, const float* z, int64_t n, float* y);  // y = x * z; y may be x
    // In place, each element on its own; relative error below 4 * 2^-24 for sigmoid, tanh and
    // decay7, 5 * 2^-24 for silu, (4 + 4 exp(x)) * 2^-24 for decay6. Exponentials may
    // stop at e^-87.
    void (*sigmoid)(float* x, int64_t n);
    void (*silu)(float* x, int64_t n);  // x * sigmoid(x)
    void (*tanh)(float* x, int64_t n);
    void (*relu2)(float* x, int64_t n);   // max(x, 0)^2; of NaN, 0 or NaN
    void (*decay6)(float* x, int64_t n);  // exp(-exp(x)): RWKV-6's decay
    void (*decay7)(float* x, int64_t n);  // exp(-exp(-1/2) * sigmoid(x)): RWKV-7's decay
    // What each logit weighs (logit_weight.h): powers are exponent_of, weights are logit_weight of
    // them. The logits hold no NaN.
    void (*weigh_logits)(const float* logits, int64_t n, float top, float factor, float* powers,
                         float* weights);
    // y = x * weight / max(|x * weight|, 1e-12)
    void (*l2_normalize)(const float* x, const float* weight, int64_t n, float* y);
    // y += (sum of r * k * u) * v: what the current token adds by itself
    void (*bonus)(const float* r, const float* k, const float* u, const float* v, int64_t n,
                  float* y);
    void (*wkv4)(const Wkv4Args& args);
    void (*wkv6)(const Wkv6Args& args);
    void (*wkv7)(const Wkv7Args& args);

    void (*outer_products)(const OuterArgs& args);

    // The arithmetic that products are made of, on data at hand: returns the operations done, a
    // product and a sum each being one.
    int64_t (*float_peak)(int64_t rounds);  // of floats
    int64_t (*int8_peak)(int64_t rounds);   // of codes with activations, to 32-bit sums
};

}  // namespace rwkv_edge
