// SPDX-License-Identifier: Apache-2.0
// The verbs in which a model speaks to the hardware. A step takes tokens >= 1, of one sequence or
// of many: decoding is one token, reading a prompt is many, and there is no second path. Matrices
// are row-major; [tokens, n] means that token t begins at t * n. Only the verbs that remember
// (shift, keep, wkv4, wkv6, wkv7) know that tokens belong to sequences.
//
// An Ops is not thread-safe. It takes the memory for Backend::chunk() tokens when a verb first
// needs it; once a step of a model has succeeded, no later step of up to that many tokens can fail.
#pragma once

#include <cstdint>
#include <span>

#include "quant/types.h"

namespace rwkv_edge {

// A weight matrix where it lies. Never owns.
struct Tensor {
    const void* data = nullptr;
    Type type = Type::F32;
    int64_t rows = 0, cols = 0;  // [out, in]
    // It lies transposed, [in, out]: a product then reads only the rows whose inputs are not zero.
    bool by_input = false;

    int64_t inputs() const { return by_input ? rows : cols; }
    int64_t outputs() const { return by_input ? cols : rows; }

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

// The tokens [begin, begin + tokens) of a step are those of one sequence, in order.
struct Run {
    int64_t begin, tokens;
    float* state;  // what the sequence remembers, updated in place
};

// One array in the state of every sequence of a step: it begins `offset` floats into each.
struct States {
    std::span<const Run> runs;
    int64_t offset = 0;

    float* of(const Run& run) const { return run.state + offset; }
    States operator+(int64_t floats) const { return {runs, offset + floats}; }
};

// What a product multiplies: x, or, with `to`, the mix x + (to - x) o mix. A mix need not be
// stored.
struct Input {
    const float* x;             // [tokens, cols]
    const float* to = nullptr;  // [tokens, cols]
    const float* mix = nullptr;
    bool mix_per_token = false;  // mix is [tokens, cols], else [cols]

    bool operator==(const Input&) const = default;
};

enum class Activate { None, Tanh, Sigmoid, Silu, Relu2, Decay6, Decay7 };

// y = activate(scale * x w^T + bias) * gate, and then, if given, residual += y.
struct MatmulJob {
    Tensor w;
    Input x;
    float* y;  // [tokens, w.outputs()], as all below
    Activate activate = Activate::None;
    const float* bias = nullptr;  // [w.outputs()]
    const float* gate = nullptr;
    float* residual = nullptr;
    float scale = 1.0f;
};

// Token shift. y = norm(x); previous[t] = y[t - 1] of the same sequence. Before its first token
// stands what `last` remembers, which becomes the y of its last token.
struct Shift {
    const float* x;  // [tokens, n]
    Norm norm;
    float eps;
    States last;          // [n]
    float *y, *previous;  // [tokens, n]
    int64_t n;
};

// RWKV-4's recurrence, y = r o wkv. The state is [3, n]: a, b, p.
struct Wkv4 {
    States state;
    const float *w, *u;      // [n]
    const float *r, *k, *v;  // [tokens, n]
    float* y;                // [tokens, n]
    int64_t n;
};

// The recurrence of RWKV-5 and 6 and what follows it: y = norm(wkv + bonus of u) o g. Each head is
// normalised by itself. The state is [heads, size, size].
struct Wkv6 {
    States state;
    const float *r, *w, *k, *v;  // [tokens, heads * size]; w may be [heads * size]
    const float* u;              // [heads * size]
    const float* g;              // [tokens, heads * size], or null for none
    Norm norm;
    float eps;
    float* y;  // [tokens, heads * size]
    int64_t heads, size;
    bool w_per_token;
};

// The recurrence of RWKV-7 with what stands around it:
//   kk = k o k_k, of length 1 in each head;  k <- k o (1 + (a - 1) o k_a)
//   v <- v + (first_v - v) o v_mix, where given
//   y = (norm(wkv) + bonus of r_k) o g
// k and v may be overwritten. The state is [heads, size, size].
struct Wkv7 {
    States state;
    const float *r, *w, *a, *g;    // [tokens, heads * size]
    float *k, *v;                  // [tokens, heads * size]
    const float *first_v, *v_mix;  // [tokens, heads * size], or both null
    const float *k_k, *k_a, *r_k;  // [heads * size]
    Norm norm;
    float eps;
    float* y;  // [tokens, heads * size]
    int64_t heads, size;
};

// What a step is about. Its verbs name these ids, outputs and runs by where they lie.
struct Plan {
    std::span<const int32_t> ids;      // [tokens]
    std::span<const int32_t> outputs;  // tokens whose outputs are wanted
    std::span<const int32_t> last;     // [runs] where in `outputs` a run's last token is
    std::span<const Run> runs;
    int64_t n_logits;
    int64_t memory;  // changes when an address of the step's memory does
    bool whole;      // nothing interrupts the step
};

class Ops {
public:
    virtual ~Ops() = default;

    // Before the verbs of a step. False: a step like it was recorded and has run now, with this
    // plan; no verb is to follow. `end` comes after the last verb, or `abandon` where one threw.
    virtual bool begin(const Plan&) { return true; }
    virtual void end() {}
    virtual void abandon() noexcept {}

    // y[t] = row ids[t] of the table, as floats: [tokens, table.cols]. ids are the host's.
    virtual void embed(const Tensor& table, const int32_t* ids, int64_t tokens, float* y) = 0;
    // Independent products, as one parallel region.
    virtual void matmul(std::span<const MatmulJob> jobs, int64_t tokens) = 0;
    virtual void norm(const float* x, const Norm& norm, float eps, int64_t tokens, int64_t n,
                      float* y) = 0;
    virtual void shift(const Shift& args, int64_t tokens) = 0;
    // y = x m with a matrix for each token: x is [tokens, rows], m [tokens, rows, cols], y [tokens,
    // cols].
    virtual void matmul_per_token(const float* x, const float* m, int64_t rows, int64_t cols,
                                  int64_t tokens, float* y) = 0;
    virtual void wkv4(const Wkv4& args) = 0;
    virtual void wkv6(const Wkv6& args) = 0;
    virtual void wkv7(const Wkv7& args) = 0;
    // y = x, both [n]
    virtual void copy(const float* x, int64_t n, float* y) = 0;
    // What run i remembers at `to`, [n], becomes row rows[i] of x, [.., n]. rows are the host's.
    virtual void keep(const float* x, const int32_t* rows, int64_t n, const States& to) = 0;
};

}  // namespace rwkv_edge
