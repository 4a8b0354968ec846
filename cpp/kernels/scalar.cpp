// SPDX-License-Identifier: Apache-2.0
// The specification: every kernel as plain loops. Compiled without contraction, so that the results
// are the same on every machine with the same libm.
#include <float.h>
#include <math.h>

#include "kernels/levels.h"
#include "kernels/logit_weight.h"

namespace rwkv_edge {

namespace {

float sum8(const float* s) {
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

// --- matmul: float types ---

float element(const float* row, int64_t k) { return row[k]; }
float element(const Half* row, int64_t k) { return half_to_float(row[k].bits); }
float element(const Bfloat16* row, int64_t k) { return bfloat16_to_float(row[k].bits); }

template <class Weight>
void matmul_float(const MatmulArgs& a) {
    for (int64_t r = a.row_begin; r < a.row_end; ++r) {
        const Weight* row = (const Weight*)((const char*)a.w + r * a.row_bytes);
        for (int64_t t = 0; t < a.tokens; ++t) {
            const float* x = (const float*)((const char*)a.x + t * a.x_stride);
            float sums[8] = {};
            for (int64_t k = 0; k < a.cols; ++k) sums[k % 8] += element(row, k) * x[k];
            a.y[t * a.y_stride + r] = sum8(sums);
        }
    }
}

// --- matmul: block types ---
//
// 32 columns of a row add scale_x * d * dot + m * (scale_x * sum_x), where w = d * (factor * code)
// + m, dot is that of factor * code and the rounded x, and factor is 1 or an integer of each 16
// columns.

struct RoundedBlock {
    int8_t q[kBlock];
    float scale, scaled_sum;  // the latter is scale times the sum of q
};

int nibble(const uint8_t* q, int i) { return i < 16 ? q[i] & 15 : q[i - 16] >> 4; }
int fifth_bit(const uint8_t* qh, int i) { return (qh[i / 8] >> i % 8 & 1) << 4; }

// The code of column i of a block, less the code that means zero.
int code(const BlockQ8_0& b, int i) { return b.q[i]; }
int code(const BlockQ4_0& b, int i) { return nibble(b.q, i) - 8; }
int code(const BlockQ4_1& b, int i) { return nibble(b.q, i); }
int code(const BlockQ5_0& b, int i) { return (nibble(b.q, i) | fifth_bit(b.qh, i)) - 16; }
int code(const BlockQ5_1& b, int i) { return nibble(b.q, i) | fifth_bit(b.qh, i); }
int code(const BlockQ4_K& b, int i) { return b.q[i / 64 * 32 + i % 32] >> i / 32 % 2 * 4 & 15; }
int code(const BlockQ5_K& b, int i) {
    return (b.q[i / 64 * 32 + i % 32] >> i / 32 % 2 * 4 & 15) | (b.qh[i % 32] >> i / 32 & 1) << 4;
}
int code(const BlockQ6_K& b, int i) {
    const int half = i / 128, run = i % 128 / 32, at = i % 32;
    const int low = b.ql[half * 64 + run % 2 * 32 + at] >> run / 2 * 4 & 15;
    return (low | (b.qh[half * 32 + at] >> run * 2 & 3) << 4) - 32;
}

template <class Block>
int factor(const Block&, int) {
    return 1;
}
int factor(const BlockQ6_K& b, int i) { return b.scales[i / 16]; }

// d and m of the 32 columns that begin at column i of a block.
struct ScaleOffset {
    float d, m;
};
template <class Block>
ScaleOffset scale_offset(const Block& b, int) {
    return {half_to_float(b.d), 0.0f};
}
ScaleOffset scale_offset(const BlockQ4_1& b, int) {
    return {half_to_float(b.d), half_to_float(b.m)};
}
ScaleOffset scale_offset(const BlockQ5_1& b, int) {
    return {half_to_float(b.d), half_to_float(b.m)};
}
template <class Block>
ScaleOffset scale_min(const Block& b, int j) {
    const uint8_t* s = b.scales;
    const int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
    const int min = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4;
    return {half_to_float(b.d) * (float)scale, -(half_to_float(b.dmin) * (float)min)};
}
ScaleOffset scale_offset(const BlockQ4_K& b, int i) { return scale_min(b, i / 32); }
ScaleOffset scale_offset(const BlockQ5_K& b, int i) { return scale_min(b, i / 32); }

template <class Block, int kColumns>
void matmul_blocks(const MatmulArgs& a) {
    for (int64_t r = a.row_begin; r < a.row_end; ++r) {
        const Block* row = (const Block*)((const char*)a.w + r * a.row_bytes);
        for (int64_t t = 0; t < a.tokens; ++t) {
            const auto* x = (const RoundedBlock*)((const char*)a.x + t * a.x_stride);
            float y = 0.0f;
            for (int64_t k = 0; k < a.cols; k += kBlock, ++x) {
                const Block& block = row[k / kColumns];
                const int first = (int)(k % kColumns);
                int dot = 0;
                for (int i = 0; i < kBlock; ++i)
                    dot += factor(block, first + i) * code(block, first + i) * x->q[i];
                const ScaleOffset w = scale_offset(block, first);
                y += w.d * x->scale * (float)dot;
                if (w.m != 0.0f) y += w.m * x->scaled_sum;
            }
            a.y[t * a.y_stride + r] = y;
        }
    }
}

// --- matmul by input ---

template <class Weight, int kColumns>
float weight_at(const void* row, int64_t c) {
    if constexpr (kColumns == 1) {
        return element((const Weight*)row, c);
    } else {
        const Weight& block = ((const Weight*)row)[c / kColumns];
        const int i = (int)(c % kColumns);
        const ScaleOffset w = scale_offset(block, i / kBlock * kBlock);
        return w.d * (float)(factor(block, i) * code(block, i)) + w.m;
    }
}

template <class Weight, int kColumns = 1>
void matmul_by_input(const InputMatmulArgs& a) {
    for (int64_t t = 0; t < a.tokens; ++t) {
        const ActiveInput* input = a.inputs + t * a.inputs_stride;
        float* y = a.y + t * a.y_stride;
        for (int64_t i = 0; i < a.counts[t]; ++i, ++input) {
            const char* row = (const char*)a.w + input->row * a.row_bytes;
            for (int64_t c = a.col_begin; c < a.col_end; ++c)
                y[c] += input->x * weight_at<Weight, kColumns>(row, c);
        }
    }
}

// --- activations ---

int64_t rounded_bytes(int64_t cols) {
    return (cols / kBlock * (int64_t)sizeof(RoundedBlock) + 63) / 64 * 64;
}

void round_activations(const float* x, int64_t cols, void* to) {
    auto* block = (RoundedBlock*)to;
    for (int64_t b = 0; b < cols / kBlock; ++b, x += kBlock, ++block) {
        // As integers the bits of magnitudes compare like the numbers, with NaN above all: a block
        // that holds one gets a NaN for its scale, and the result shows it.
        uint32_t peak_bits = 0;
        for (int i = 0; i < kBlock; ++i) {
            const uint32_t magnitude = float_to_bits(x[i]) & 0x7fffffff;
            peak_bits = magnitude > peak_bits ? magnitude : peak_bits;
        }
        const float peak = bits_to_float(peak_bits);
        // A peak so small that its inverse overflows is as good as zero.
        const bool usable = peak > 1e-30f && peak <= FLT_MAX;
        const float inverse = usable ? 127.0f / peak : 0.0f;
        int total = 0;
        for (int i = 0; i < kBlock; ++i) {
            block->q[i] = usable ? (int8_t)nearbyintf(x[i] * inverse) : 0;
            total += block->q[i];
        }
        block->scale = peak / 127.0f;
        block->scaled_sum = block->scale * (float)total;
    }
}

// --- vectors ---

void layer_norm(const float* x, const float* weight, const float* bias, int64_t n, float eps,
                float* y) {
    float sums[8] = {}, squares[8] = {};
    for (int64_t i = 0; i < n; ++i) sums[i % 8] += x[i];
    const float mean = sum8(sums) / (float)n;
    for (int64_t i = 0; i < n; ++i) squares[i % 8] += (x[i] - mean) * (x[i] - mean);
    const float scale = 1.0f / sqrtf(sum8(squares) / (float)n + eps);
    for (int64_t i = 0; i < n; ++i) y[i] = (x[i] - mean) * scale * weight[i] + bias[i];
}

void lerp(const float* x, const float* to, const float* mix, int64_t n, float* y) {
    for (int64_t i = 0; i < n; ++i) y[i] = x[i] + (to[i] - x[i]) * mix[i];
}

void add(const float* x, int64_t n, float* y) {
    for (int64_t i = 0; i < n; ++i) y[i] += x[i];
}

void mul(const float* x, const float* z, int64_t n, float* y) {
    for (int64_t i = 0; i < n; ++i) y[i] = x[i] * z[i];
}

float sigmoid_of(float x) { return 1.0f / (1.0f + expf(-x)); }

void sigmoid(float* x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) x[i] = sigmoid_of(x[i]);
}

void silu(float* x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) x[i] *= sigmoid_of(x[i]);
}

void tanh_(float* x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) x[i] = tanhf(x[i]);
}

void relu2(float* x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) x[i] = x[i] > 0.0f ? x[i] * x[i] : 0.0f;
}

void decay6(float* x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) x[i] = expf(-expf(x[i]));
}

void decay7(float* x, int64_t n) {
    const float rate = 0.60653065971263342f;  // exp(-1/2)
    for (int64_t i = 0; i < n; ++i) x[i] = expf(-rate * sigmoid_of(x[i]));
}

void weigh_logits(const float* logits, int64_t n, float top, float factor, float* powers,
                  float* weights) {
    for (int64_t i = 0; i < n; ++i) {
        powers[i] = exponent_of(logits[i], top, factor);
        weights[i] = logit_weight(powers[i]);
    }
}

void l2_normalize(const float* x, const float* weight, int64_t n, float* y) {
    float squares[8] = {};
    mul(x, weight, n, y);
    for (int64_t i = 0; i < n; ++i) squares[i % 8] += y[i] * y[i];
    const float norm = sqrtf(sum8(squares));
    const float scale = 1.0f / (norm > 1e-12f ? norm : 1e-12f);
    for (int64_t i = 0; i < n; ++i) y[i] *= scale;
}

void bonus(const float* r, const float* k, const float* u, const float* v, int64_t n, float* y) {
    float sums[8] = {};
    for (int64_t i = 0; i < n; ++i) sums[i % 8] += r[i] * k[i] * u[i];
    const float total = sum8(sums);
    for (int64_t i = 0; i < n; ++i) y[i] += total * v[i];
}

float larger(float x, float y) { return x > y ? x : y; }

void wkv4(const Wkv4Args& s) {
    for (int64_t t = 0; t < s.tokens; ++t) {
        const float *ks = s.k + t * s.stride, *vs = s.v + t * s.stride;
        for (int64_t i = 0; i < s.n; ++i) {
            const float k = ks[i], v = vs[i];
            float q = larger(s.p[i], s.u[i] + k);
            float past = expf(s.p[i] - q), now = expf(s.u[i] + k - q);
            s.y[t * s.stride + i] = (past * s.a[i] + now * v) / (past * s.b[i] + now);
            q = larger(s.p[i] + s.w[i], k);
            past = expf(s.p[i] - q + s.w[i]);  // what rounding takes from q stays in a and b
            now = expf(k - q);
            s.a[i] = past * s.a[i] + now * v;
            s.b[i] = past * s.b[i] + now;
            s.p[i] = q;
        }
    }
}

void wkv6(const Wkv6Args& p) {
    for (int64_t t = 0; t < p.tokens; ++t) {
        const int64_t at = t * p.stride;
        const float *r = p.r + at, *w = p.w + t * p.w_stride, *k = p.k + at, *v = p.v + at;
        float* y = p.y + at;
        for (int64_t j = 0; j < p.size; ++j) y[j] = 0.0f;
        for (int64_t i = 0; i < p.size; ++i) {
            float* row = p.state + i * p.size;
            for (int64_t j = 0; j < p.size; ++j) {
                y[j] += r[i] * row[j];
                row[j] = w[i] * row[j] + k[i] * v[j];
            }
        }
    }
}

void wkv7(const Wkv7Args& p) {
    for (int64_t t = 0; t < p.tokens; ++t) {
        const int64_t at = t * p.stride;
        const float *r = p.r + at, *w = p.w + at, *k = p.k + at, *v = p.v + at;
        const float *kk = p.kk + at, *a = p.a + at;
        for (int64_t i = 0; i < p.size; ++i) {
            float* row = p.state + i * p.size;
            float removed[8] = {}, out[8] = {};
            for (int64_t j = 0; j < p.size; ++j) removed[j % 8] += row[j] * kk[j];
            const float remove = -sum8(removed);
            for (int64_t j = 0; j < p.size; ++j) {
                row[j] = row[j] * w[j] + remove * (kk[j] * a[j]) + v[i] * k[j];
                out[j % 8] += row[j] * r[j];
            }
            p.y[at + i] = sum8(out);
        }
    }
}

// --- peaks: what a compiler can make of plain loops, not what those above reach ---

// Products and sums apart, as this file is compiled, in the vectors of four that every CPU has.
void outer_products(const OuterArgs& a) {
    for (int64_t i = 0; i < a.rows; ++i)
        for (int64_t k = 0; k < a.depth; ++k)
            for (int64_t l = 0; l < kOuterLanes; ++l)
                a.y[i * a.y_stride + l] += a.a[k * a.a_stride + i] * a.b[k * a.b_stride + l];
}

int64_t float_peak(int64_t rounds) {
    typedef float Four __attribute__((vector_size(16)));
    enum { kSums = 12 };  // in flight, so that none waits for itself
    const Four half = {0.5f, 0.5f, 0.5f, 0.5f};
    Four sums[kSums];
    for (int s = 0; s < kSums; ++s) sums[s] = half * (float)s;
    for (int64_t i = 0; i < rounds; ++i)
        for (Four& sum : sums) sum = sum * half + half;
    asm volatile("" : : "r"(sums) : "memory");  // something may read them
    return rounds * kSums * 4 * 2;
}

// Integer dots of codes that were widened to 16 bits, in the first cache.
int64_t int8_peak(int64_t rounds) {
    enum { kRows = 4, kCols = 64 };
    int16_t w[kRows][kCols] = {}, x[kCols] = {};
    int32_t sums[kRows] = {};
    for (int64_t i = 0; i < rounds; ++i) {
        asm volatile("" : : "r"(w), "r"(x) : "memory");  // something may have changed them
        int32_t dots[kRows] = {};
        for (int k = 0; k < kCols; ++k)
            for (int r = 0; r < kRows; ++r) dots[r] += w[r][k] * x[k];
        for (int r = 0; r < kRows; ++r) sums[r] += dots[r];
    }
    asm volatile("" : : "r"(sums) : "memory");
    return rounds * kRows * kCols * 2;
}

}  // namespace

void scalar_kernels(Kernels& table) {
    table.matmul[(int)Type::F32] = matmul_float<float>;
    table.matmul[(int)Type::F16] = matmul_float<Half>;
    table.matmul[(int)Type::BF16] = matmul_float<Bfloat16>;
    table.matmul[(int)Type::Q8_0] = matmul_blocks<BlockQ8_0, kBlock>;
    table.matmul[(int)Type::Q4_0] = matmul_blocks<BlockQ4_0, kBlock>;
    table.matmul[(int)Type::Q4_1] = matmul_blocks<BlockQ4_1, kBlock>;
    table.matmul[(int)Type::Q5_0] = matmul_blocks<BlockQ5_0, kBlock>;
    table.matmul[(int)Type::Q5_1] = matmul_blocks<BlockQ5_1, kBlock>;
    table.matmul[(int)Type::Q4_K] = matmul_blocks<BlockQ4_K, kSuperBlock>;
    table.matmul[(int)Type::Q5_K] = matmul_blocks<BlockQ5_K, kSuperBlock>;
    table.matmul[(int)Type::Q6_K] = matmul_blocks<BlockQ6_K, kSuperBlock>;
    table.input_matmul[(int)Type::F32] = matmul_by_input<float>;
    table.input_matmul[(int)Type::F16] = matmul_by_input<Half>;
    table.input_matmul[(int)Type::BF16] = matmul_by_input<Bfloat16>;
    table.input_matmul[(int)Type::Q8_0] = matmul_by_input<BlockQ8_0, kBlock>;
    table.input_matmul[(int)Type::Q4_0] = matmul_by_input<BlockQ4_0, kBlock>;
    table.input_matmul[(int)Type::Q4_1] = matmul_by_input<BlockQ4_1, kBlock>;
    table.input_matmul[(int)Type::Q5_0] = matmul_by_input<BlockQ5_0, kBlock>;
    table.input_matmul[(int)Type::Q5_1] = matmul_by_input<BlockQ5_1, kBlock>;
    table.input_matmul[(int)Type::Q4_K] = matmul_by_input<BlockQ4_K, kSuperBlock>;
    table.input_matmul[(int)Type::Q5_K] = matmul_by_input<BlockQ5_K, kSuperBlock>;
    table.input_matmul[(int)Type::Q6_K] = matmul_by_input<BlockQ6_K, kSuperBlock>;
    table.rounded_bytes = rounded_bytes;
    table.round_activations = round_activations;
    table.layer_norm = layer_norm;
    table.lerp = lerp;
    table.add = add;
    table.mul = mul;
    table.sigmoid = sigmoid;
    table.silu = silu;
    table.tanh = tanh_;
    table.relu2 = relu2;
    table.decay6 = decay6;
    table.decay7 = decay7;
    table.weigh_logits = weigh_logits;
    table.l2_normalize = l2_normalize;
    table.bonus = bonus;
    table.wkv4 = wkv4;
    table.wkv6 = wkv6;
    table.wkv7 = wkv7;
    table.outer_products = outer_products;
    table.float_peak = float_peak;
    table.int8_peak = int8_peak;
}

}  // namespace rwkv_edge
