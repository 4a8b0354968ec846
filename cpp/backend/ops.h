// SPDX-License-Identifier: Apache-2.0
// The verbs in which a model speaks to the hardware. Every verb takes tokens >= 1: decoding is one
// token, reading a prompt is many, and there is no second path. Matrices are row-major; [tokens, n]
// means that token t begins at t * n. An Ops belongs to one session and is not thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "base/thread_pool.h"
#include "quant/types.h"

namespace rwkv_edge {

// A weight matrix where it lies in the file. Never owns.
struct Tensor {
    const void* data = nullptr;
    Type type = Type::F32;
    int64_t rows = 0, cols = 0;  // [out, in]

    // Part `i` of `count` equal groups of rows.
    Tensor part(int64_t i, int64_t count) const {
        const int64_t n = rows / count;
        return {static_cast<const std::byte*>(data) + i * n * row_bytes(), type, n, cols};
    }

    int64_t row_bytes() const { return type_bytes(type, cols); }
    int64_t bytes() const { return rows * row_bytes(); }
};

struct Norm {
    const float* weight;  // [n]
    const float* bias;    // [n]
};

enum class Activate { None, Tanh, Sigmoid, Silu, Relu2, Decay6, Decay7 };

// y = activate(scale * x w^T + bias) * gate, and then, if given, residual += y.
struct MatmulJob {
    Tensor w;
    const float* x;  // [tokens, w.cols]
    float* y;        // [tokens, w.rows]
    Activate activate = Activate::None;
    const float* bias = nullptr;  // [w.rows]
    const float* gate = nullptr;  // [tokens, w.rows]
    float* residual = nullptr;    // [tokens, w.rows]
    float scale = 1.0f;
};

// k, v, y are [tokens, n]; w, u are [n]; a, b, p are [n] each, updated in place.
struct Wkv4 {
    float *a, *b, *p;
    const float *w, *u, *k, *v;
    float* y;
    int64_t n;
};

// r, k, v, y are [tokens, heads * size], and so is w if per token, else [heads * size]; state is
// [heads, size, size], updated in place.
struct Wkv6 {
    float* state;
    const float *r, *w, *k, *v;
    float* y;
    int64_t heads, size;
    bool w_per_token;
};

// r, w, k, v, kk, a, y are [tokens, heads * size]; state is [heads, size, size], updated in place.
struct Wkv7 {
    float* state;
    const float *r, *w, *k, *v, *kk, *a;
    float* y;
    int64_t heads, size;
};

class Ops {
public:
    virtual ~Ops() = default;

    // y[t] = row ids[t] of the table, as floats: [tokens, table.cols]
    virtual void embed(const Tensor& table, const int32_t* ids, int64_t tokens, float* y) = 0;
    // Independent products, as one parallel region.
    virtual void matmul(std::span<const MatmulJob> jobs, int64_t tokens) = 0;
    // Normalises each of the `groups` equal parts of a token's n values.
    virtual void norm(const float* x, const Norm& norm, int64_t groups, float eps, int64_t tokens,
                      int64_t n, float* y) = 0;
    // previous[t] = x[t - 1], with `last` before the first token; then last = x[tokens - 1].
    virtual void token_shift(const float* x, float* last, int64_t tokens, int64_t n,
                             float* previous) = 0;
    // y = x + (to - x) * mix; mix is [n] or, if per_token, [tokens, n]. y may be x.
    virtual void lerp(const float* x, const float* to, const float* mix, bool per_token,
                      int64_t tokens, int64_t n, float* y) = 0;
    // y = x * z, all [tokens, n]. y may be x.
    virtual void mul(const float* x, const float* z, int64_t tokens, int64_t n, float* y) = 0;
    // y = x * weight, each of `heads` parts scaled to length 1. weight is [n].
    virtual void l2_normalize(const float* x, const float* weight, int64_t heads, int64_t tokens,
                              int64_t n, float* y) = 0;
    // y += (sum over a head of r * k * u) * v. u is [n], the others [tokens, n].
    virtual void bonus(const float* r, const float* k, const float* u, const float* v,
                       int64_t heads, int64_t tokens, int64_t n, float* y) = 0;
    // y = x m with a matrix for each token: x is [tokens, rows], m [tokens, rows, cols], y [tokens,
    // cols].
    virtual void matmul_per_token(const float* x, const float* m, int64_t rows, int64_t cols,
                                  int64_t tokens, float* y) = 0;
    virtual void wkv4(const Wkv4& args, int64_t tokens) = 0;
    virtual void wkv6(const Wkv6& args, int64_t tokens) = 0;
    virtual void wkv7(const Wkv7& args, int64_t tokens) = 0;
};

std::unique_ptr<Ops> make_cpu_ops(std::shared_ptr<ThreadPool> pool);

}  // namespace rwkv_edge
