// SPDX-License-Identifier: Apache-2.0
// The kernels on float vectors, written once over F32 (see vectors.inl). Inputs whose length is no
// multiple of eight end in a padded copy, so every element takes the same path.
#pragma once

#include <math.h>
#include <string.h>

#include "kernels/generic/inlining.inl"
#include "kernels/generic/vectors.inl"
#include "kernels/kernels.h"
#include "kernels/logit_weight.h"

namespace rwkv_edge {

namespace {

// exp(x) - 1 = 2^n (e^r - 1) + (2^n - 1), |r| <= ln(2) / 2, e^r - 1 by its Taylor series to r^7
// (truncation 4e-9 relative). Splitting off the 1 keeps small results accurate.
struct ExpParts {
    F32 scale, excess;  // 2^n, e^r - 1
};
inline ExpParts exp_parts(F32 x) {
    x = max(set(-87.0f), min(set(88.0f), x));  // in this order a NaN stays
    const F32 n = round_(mul(x, set(1.44269504088896341f)));
    F32 r =
        negative_fma(n, set(0.693359375f), x);  // ln(2) in two parts; the first times n is exact
    r = negative_fma(n, set(-2.12194440e-4f), r);
    F32 p = set(1.0f / 5040);
    p = fma(p, r, set(1.0f / 720));
    p = fma(p, r, set(1.0f / 120));
    p = fma(p, r, set(1.0f / 24));
    p = fma(p, r, set(1.0f / 6));
    p = fma(p, r, set(0.5f));
    return {pow2(n), fma(mul(p, r), r, r)};
}

inline F32 exp_of(F32 x) {
    const ExpParts e = exp_parts(x);
    return fma(e.scale, e.excess, e.scale);
}

inline F32 sigmoid_of(F32 x) {
    const F32 one = set(1.0f);
    return div(one, add(one, exp_of(sub(set(0.0f), x))));
}

inline F32 silu_of(F32 x) { return mul(x, sigmoid_of(x)); }

// tanh(x) = (e^2x - 1) / (e^2x + 1)
inline F32 tanh_of(F32 x) {
    x = max(set(-10.0f), min(set(10.0f), x));
    const ExpParts e = exp_parts(add(x, x));
    const F32 minus_one = fma(e.scale, e.excess, sub(e.scale, set(1.0f)));
    return div(minus_one, add(minus_one, set(2.0f)));
}

inline F32 relu2_of(F32 x) {
    const F32 positive = max(x, set(0.0f));
    return mul(positive, positive);
}

inline F32 decay6_of(F32 x) { return exp_of(sub(set(0.0f), exp_of(x))); }
inline F32 decay7_of(F32 x) { return exp_of(mul(set(-0.60653065971263342f), sigmoid_of(x))); }

// The text of logit_weight.h, in vectors.
inline F32 logit_weight_of(F32 x) {
    const F32 n = sub(add(mul(x, set(kLog2e)), set(kRound)), set(kRound));
    const F32 r = sub(sub(x, mul(n, set(kLn2High))), mul(n, set(kLn2Low)));
    F32 p = add(mul(set(1.9875691500e-4f), r), set(1.3981999507e-3f));
    p = add(mul(p, r), set(8.3334519073e-3f));
    p = add(mul(p, r), set(4.1665795894e-2f));
    p = add(mul(p, r), set(1.6666665459e-1f));
    p = add(mul(p, r), set(5.0000001201e-1f));
    p = add(mul(p, r), set(1.0f));
    p = add(mul(p, r), set(1.0f));
    return mul(p, pow2(n));
}

void weigh_logits(const float* logits, int64_t n, float top, float factor, float* powers,
                  float* weights) {
    for (int64_t i = 0; i < n; i += 8) {
        const F32 x = mul(sub(load(logits + i), set(top)), set(factor));
        const F32 power = max(x, set(kLeastExponent));
        store(powers + i, power);
        store(weights + i, logit_weight_of(power));
    }
}

template <F32 (*Function)(F32)>
void map(float* x, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) store(x + i, Function(load(x + i)));
    if (i == n) return;
    float tail[8] = {};
    memcpy(tail, x + i, (size_t)(n - i) * sizeof(float));
    store(tail, Function(load(tail)));
    memcpy(x + i, tail, (size_t)(n - i) * sizeof(float));
}

void layer_norm(const float* x, const float* weight, const float* bias, int64_t n, float eps,
                float* y) {
    F32 sums = set(0.0f), squares = set(0.0f);
    for (int64_t i = 0; i < n; i += 8) sums = add(sums, load(x + i));
    const F32 mean = set(sum8(sums) / (float)n);
    for (int64_t i = 0; i < n; i += 8) {
        const F32 d = sub(load(x + i), mean);
        squares = fma(d, d, squares);
    }
    const F32 scale = set(1.0f / sqrtf(sum8(squares) / (float)n + eps));
    for (int64_t i = 0; i < n; i += 8) {
        const F32 normed = mul(sub(load(x + i), mean), scale);
        store(y + i, fma(normed, load(weight + i), load(bias + i)));
    }
}

void lerp(const float* x, const float* to, const float* mix, int64_t n, float* y) {
    for (int64_t i = 0; i < n; i += 8) {
        const F32 from = load(x + i);
        store(y + i, fma(sub(load(to + i), from), load(mix + i), from));
    }
}

void add_to(const float* x, int64_t n, float* y) {
    for (int64_t i = 0; i < n; i += 8) store(y + i, add(load(y + i), load(x + i)));
}

void mul_to(const float* x, const float* z, int64_t n, float* y) {
    for (int64_t i = 0; i < n; i += 8) store(y + i, mul(load(x + i), load(z + i)));
}

void l2_normalize(const float* x, const float* weight, int64_t n, float* y) {
    F32 squares = set(0.0f);
    for (int64_t i = 0; i < n; i += 8) {
        const F32 v = mul(load(x + i), load(weight + i));
        squares = fma(v, v, squares);
        store(y + i, v);
    }
    const float norm = sqrtf(sum8(squares));
    const F32 scale = set(1.0f / (norm > 1e-12f ? norm : 1e-12f));
    for (int64_t i = 0; i < n; i += 8) store(y + i, mul(load(y + i), scale));
}

void bonus(const float* r, const float* k, const float* u, const float* v, int64_t n, float* y) {
    F32 sums = set(0.0f);
    for (int64_t i = 0; i < n; i += 8) sums = fma(mul(load(r + i), load(k + i)), load(u + i), sums);
    const F32 total = set(sum8(sums));
    for (int64_t i = 0; i < n; i += 8) store(y + i, fma(total, load(v + i), load(y + i)));
}

// Two steps of the same kind, from the largest exponent: the output, then the new state.
inline void wkv4_step(const Wkv4Args& s, int64_t i, F32 k, F32 v, F32* y) {
    const F32 a = load(s.a + i), b = load(s.b + i), p = load(s.p + i);
    const F32 bonus_k = add(load(s.u + i), k);
    F32 q = max(p, bonus_k);
    F32 past = exp_of(sub(p, q)), now = exp_of(sub(bonus_k, q));
    *y = div(fma(past, a, mul(now, v)), fma(past, b, now));

    const F32 w = load(s.w + i);
    q = max(add(p, w), k);
    past = exp_of(add(sub(p, q), w));  // what rounding takes from q stays in a and b
    now = exp_of(sub(k, q));
    store(s.a + i, fma(past, a, mul(now, v)));
    store(s.b + i, fma(past, b, now));
    store(s.p + i, q);
}

void wkv4(const Wkv4Args& args) {
    const Wkv4Args s = args;  // what is stored cannot change it
    for (int64_t t = 0; t < s.tokens; ++t) {
        const int64_t at = t * s.stride;
        for (int64_t i = 0; i < s.n; i += 8) {
            F32 y;
            wkv4_step(s, i, load(s.k + at + i), load(s.v + at + i), &y);
            store(s.y + at + i, y);
        }
    }
}

// y = S^T r;  S <- diag(w) S + k v^T, for Vectors * 8 columns of S from column j on.
template <int Vectors>
void wkv6_columns(const Wkv6Args& p, int64_t t, int64_t j) {
    const int64_t at = t * p.stride;
    const float *r = p.r + at, *w = p.w + t * p.w_stride, *k = p.k + at;
    const int64_t size = p.size;
    float* row = p.state + j;
    F32 v[Vectors], y[Vectors];
    for (int c = 0; c < Vectors; ++c) {
        v[c] = load(p.v + at + j + 8 * c);
        y[c] = set(0.0f);
    }
    for (int64_t i = 0; i < size; ++i, row += size) {
        const F32 ri = set(r[i]), wi = set(w[i]), ki = set(k[i]);
        for (int c = 0; c < Vectors; ++c) {
            const F32 s = load(row + 8 * c);
            y[c] = fma(ri, s, y[c]);
            store(row + 8 * c, fma(wi, s, mul(ki, v[c])));
        }
    }
    for (int c = 0; c < Vectors; ++c) store(p.y + at + j + 8 * c, y[c]);
}

// Four vectors at a time hide the latency of the sums.
void wkv6(const Wkv6Args& p) {
    for (int64_t t = 0; t < p.tokens; ++t) {
        int64_t j = 0;
        for (; j + 32 <= p.size; j += 32) wkv6_columns<4>(p, t, j);
        for (; j < p.size; j += 8) wkv6_columns<1>(p, t, j);
    }
}

// S <- S diag(w) + (S (-kk)) (kk * a)^T + v k^T;  y = S r, for kRows rows of S from row i on: two
// passes over rows that stay in L1.
template <int kRows>
inline void wkv7_rows(const Wkv7Args& p, int64_t at, int64_t i) {
    const float *r = p.r + at, *w = p.w + at, *k = p.k + at, *kk = p.kk + at, *a = p.a + at;
    const int64_t size = p.size;
    float* rows = p.state + i * size;
    F32 removed[kRows], remove[kRows], value[kRows], out[kRows];
    UNROLL
    for (int c = 0; c < kRows; ++c) removed[c] = out[c] = set(0.0f);
    for (int64_t j = 0; j < size; j += 8) {
        const F32 key = load(kk + j);
        UNROLL
        for (int c = 0; c < kRows; ++c)
            removed[c] = fma(load(rows + c * size + j), key, removed[c]);
    }
    UNROLL
    for (int c = 0; c < kRows; ++c) {
        remove[c] = set(-sum8(removed[c]));
        value[c] = set(p.v[at + i + c]);
    }
    for (int64_t j = 0; j < size; j += 8) {
        const F32 replace = mul(load(kk + j), load(a + j));
        const F32 wj = load(w + j), kj = load(k + j), rj = load(r + j);
        UNROLL
        for (int c = 0; c < kRows; ++c) {
            float* row = rows + c * size + j;
            const F32 kept = fma(load(row), wj, mul(remove[c], replace));
            const F32 s = fma(value[c], kj, kept);
            store(row, s);
            out[c] = fma(s, rj, out[c]);
        }
    }
    UNROLL
    for (int c = 0; c < kRows; ++c) p.y[at + i + c] = sum8(out[c]);
}

// Four rows at a time hide the latency of the sums.
void wkv7(const Wkv7Args& p) {
    for (int64_t t = 0; t < p.tokens; ++t)
        for (int64_t i = 0; i < p.size; i += 4) wkv7_rows<4>(p, t * p.stride, i);
}

void float_kernels(Kernels& table) {
    table.layer_norm = layer_norm;
    table.lerp = lerp;
    table.add = add_to;
    table.mul = mul_to;
    table.sigmoid = map<sigmoid_of>;
    table.silu = map<silu_of>;
    table.tanh = map<tanh_of>;
    table.relu2 = map<relu2_of>;
    table.decay6 = map<decay6_of>;
    table.decay7 = map<decay7_of>;
    table.weigh_logits = weigh_logits;
    table.l2_normalize = l2_normalize;
    table.bonus = bonus;
    table.wkv4 = wkv4;
    table.wkv6 = wkv6;
    table.wkv7 = wkv7;
}

}  // namespace

}  // namespace rwkv_edge
