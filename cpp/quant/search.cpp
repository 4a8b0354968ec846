// SPDX-License-Identifier: Apache-2.0
#include "quant/search.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "quant/codecs.h"
#include "quant/lanes.h"
#include "quant/types.h"

namespace rwkv_edge {

float to_half_value(float x) {
    constexpr float kHalfMax = 65504.0f;
    return half_to_float(float_to_half(std::clamp(x, -kHalfMax, kHalfMax)));
}

float inverse_scale(float scale) {
    return std::fabs(scale) >= std::numeric_limits<float>::min() ? 1.0f / scale : 0.0f;
}

namespace {

constexpr float kLeastWeight = 1e-3f;  // of the mean of a block

// Sums over a sub-block of values x, weights w, codes c counted from the zero, and what is left,
// r = x - (s c + o).
struct Sums {
    float rr, rc, cc;  // of w r r, w r c, w c c
    float r, c, w;     // of w r, w c, w; only with an offset
};

// Codes are rounded for scale s and offset o.
template <int kSub, bool kOffset>
Sums sums_at(const BlockForm& form, const float* x, const float* w, float s, float o) {
    const Lanes id = all_lanes(inverse_scale(s)), scale = all_lanes(s), offset = all_lanes(o);
    const Lanes low = all_lanes(static_cast<float>(-form.zero)),
                high = all_lanes(static_cast<float>(form.top - form.zero));
    Lanes rr{}, rc{}, cc{}, r1{}, c1{}, w1{};
    for (int i = 0; i < kSub; i += kLanes) {
        const Lanes value = load_lanes(x + i), weight = load_lanes(w + i);
        const Lanes from_offset = kOffset ? value - offset : value;
        const Lanes c = nearest(clip(from_offset * id, low, high));
        const Lanes r = from_offset - scale * c;
        const Lanes wr = weight * r, wc = weight * c;
        rr += wr * r;
        rc += wr * c;
        cc += wc * c;
        if (kOffset) {
            r1 += wr;
            c1 += wc;
            w1 += weight;
        }
    }
    if (!kOffset) return {total(rr), total(rc), total(cc), 0, 0, 0};
    return {total(rr), total(rc), total(cc), total(r1), total(c1), total(w1)};
}

// A scale and an offset with their error by least squares.
struct Fit {
    float error, scale, offset;
    float curvature;         // d^2 error / d scale^2 / 2
    float offset_curvature;  // the same for the offset
};

// The best scale for the codes of `sums`, which were taken at s.
Fit best_scale(const Sums& sums, float s) {
    if (sums.cc <= 0) return {sums.rr, s, 0, sums.cc, 0};
    const float change = sums.rc / sums.cc;
    return {sums.rr - change * sums.rc, s + change, 0, sums.cc, 0};
}

// The best scale and offset; the offset not above `most`.
Fit best_scale_and_offset(const Sums& sums, float s, float o, float most) {
    Fit fit{sums.rr, s, o, sums.cc, sums.w};
    const float det = sums.cc * sums.w - sums.c * sums.c;
    float ds = 0, offset_change = 0;
    if (det > 1e-6f * sums.cc * sums.w) {
        ds = (sums.w * sums.rc - sums.c * sums.r) / det;
        offset_change = (sums.cc * sums.r - sums.c * sums.rc) / det;
    } else if (sums.w > 0) {
        offset_change = sums.r / sums.w;
    }
    if (o + offset_change > most) {
        offset_change = most - o;
        ds = sums.cc > 0 ? (sums.rc - offset_change * sums.c) / sums.cc : 0;
    }
    if (!(s + ds > 0)) return fit;
    fit.scale = s + ds;
    fit.offset = o + offset_change;
    fit.error = sums.rr - 2 * (ds * sums.rc + offset_change * sums.r) + ds * ds * sums.cc +
                2 * ds * offset_change * sums.c + offset_change * offset_change * sums.w;
    return fit;
}

// How far the value of largest magnitude may lie from the last code, in codes: where scales are
// tried. Smaller scales cut off values that matter little.
constexpr float kSteps[] = {-1.5f, -1.25f, -1.0f, -0.85f, -0.7f, -0.55f, -0.4f, -0.3f, -0.2f,
                            -0.1f, 0.0f,   0.1f,  0.2f,   0.3f,  0.4f,   0.5f,  0.65f, 0.8f,
                            1.0f,  1.25f,  1.5f,  2.0f,   3.0f,  5.0f,   8.0f};
constexpr int kRounds = 4;  // of codes and scales in turn

template <int kSub>
Fit search_scale(const BlockForm& form, const float* x, const float* w) {
    float peak = 0;
    for (int i = 0; i < kSub; ++i)
        if (std::fabs(x[i]) > std::fabs(peak)) peak = x[i];
    Fit best{std::numeric_limits<float>::infinity(), 0, 0, 0, 0};
    if (inverse_scale(peak / static_cast<float>(form.top)) == 0)
        return best_scale(sums_at<kSub, false>(form, x, w, 0, 0), 0);
    const auto consider = [&](float s) {
        const Fit fit = best_scale(sums_at<kSub, false>(form, x, w, s, 0), s);
        const bool better = fit.error < best.error;
        if (better) best = fit;
        return better;
    };
    for (const float step : kSteps) {
        consider(-peak / (static_cast<float>(form.zero) + step));
        consider(peak / (static_cast<float>(form.top - form.zero) + step));
    }
    for (int i = 0; i < kRounds; ++i)
        if (!consider(best.scale)) break;
    return best;
}

template <int kSub>
Fit search_scale_and_offset(const BlockForm& form, const float* x, const float* w) {
    // Integer mins are not negative, so that offsets are not positive.
    const float most = form.min_high > 1 ? 0.0f : std::numeric_limits<float>::infinity();
    float low = x[0], high = x[0];
    for (int i = 1; i < kSub; ++i) {
        low = std::min(low, x[i]);
        high = std::max(high, x[i]);
    }
    low = std::min(low, most);
    Fit best{std::numeric_limits<float>::infinity(), 0, 0, 0, 0};
    const auto consider = [&](float s, float o) {
        const Fit fit = best_scale_and_offset(sums_at<kSub, true>(form, x, w, s, o), s, o, most);
        const bool better = fit.error < best.error;
        if (better) best = fit;
        return better;
    };
    const float range = high - low;
    if (inverse_scale(range / static_cast<float>(form.top)) == 0) {
        best = {0, 0, low, 0, 0};
        for (int i = 0; i < kSub; ++i) best.offset_curvature += w[i];
        return best;
    }
    for (const float step : kSteps) {
        const float t = static_cast<float>(form.top) + step;
        consider(range / t, low);
    }
    for (int i = 0; i < kRounds; ++i)
        if (!consider(best.scale, best.offset)) break;
    return best;
}

// One scale for integers: finds d and integers i of [low, high] such that the sum of
// curvature (d i - value)^2 is small.
void search_super(const float* values, const float* curvatures, int n, int low, int high, float& d,
                  int* integers) {
    float peak = 0;
    for (int i = 0; i < n; ++i)
        if (std::fabs(values[i]) > std::fabs(peak)) peak = values[i];
    float best = std::numeric_limits<float>::infinity();
    d = 0;
    std::fill(integers, integers + n, 0);
    const auto consider = [&](float scale) {
        const float id = inverse_scale(scale);
        if (id == 0) return;
        float rr = 0, ri = 0, ii = 0;
        int found[kSuperBlock / 16];
        for (int k = 0; k < n; ++k) {
            const float c = std::clamp(std::nearbyint(values[k] * id), static_cast<float>(low),
                                       static_cast<float>(high));
            const float r = values[k] - scale * c;
            rr += curvatures[k] * r * r;
            ri += curvatures[k] * r * c;
            ii += curvatures[k] * c * c;
            found[k] = static_cast<int>(c);
        }
        const float error = ii > 0 ? rr - ri * ri / ii : rr;
        if (!(error < best)) return;
        best = error;
        d = ii > 0 ? scale + ri / ii : scale;
        std::copy(found, found + n, integers);
    };
    for (int step = -8; step <= 8; ++step) {
        const float more = 0.125f * static_cast<float>(step);
        consider(peak / (static_cast<float>(high) + more));
        if (low < 0) consider(peak / (static_cast<float>(low) - more));
    }
}

// Sums::rr alone.
template <int kSub>
float error_at(const BlockForm& form, const float* x, const float* w, float s, float o) {
    const Lanes id = all_lanes(inverse_scale(s)), scale = all_lanes(s), offset = all_lanes(o);
    const Lanes low = all_lanes(static_cast<float>(-form.zero)),
                high = all_lanes(static_cast<float>(form.top - form.zero));
    Lanes rr{};
    for (int i = 0; i < kSub; i += kLanes) {
        const Lanes value = load_lanes(x + i) - offset;
        const Lanes r = value - scale * nearest(clip(value * id, low, high));
        rr += load_lanes(w + i) * r * r;
    }
    return total(rr);
}

// The integer scale and min of a sub-block and their neighbours: keeps those of the least error,
// which is returned.
template <int kSub>
float refine_sub(const BlockForm& form, const float* x, const float* w, float d, float dmin,
                 int& scale, int& min) {
    float best = std::numeric_limits<float>::infinity();
    const int at_scale = scale, at_min = min, min_reach = form.min_high > 1 ? 1 : 0;
    const int scale_reach = form.scale_high > form.scale_low ? 1 : 0;
    for (int i = at_scale - scale_reach; i <= at_scale + scale_reach; ++i) {
        if (i < form.scale_low || i > form.scale_high) continue;
        for (int m = at_min - min_reach; m <= at_min + min_reach; ++m) {
            if (m < 0 || m > form.min_high) continue;
            const float error = error_at<kSub>(form, x, w, d * static_cast<float>(i),
                                               -dmin * static_cast<float>(m));
            if (error < best) {
                best = error;
                scale = i;
                min = m;
            }
        }
    }
    return best;
}

// d and dmin by least squares over all sub-blocks, for the codes that they give now.
template <int kSub>
void refit_super(const BlockForm& form, const float* x, const float* w, OpenBlock& b) {
    double gg = 0, gm = 0, mm = 0, rg = 0, rm = 0;
    for (int j = 0; j < form.subs(); ++j) {
        const float* xs = x + j * kSub;
        const float* ws = w + j * kSub;
        const float s = b.d * static_cast<float>(b.scale[j]);
        const float o = -b.dmin * static_cast<float>(b.min[j]);
        const Sums sums = form.has_min ? sums_at<kSub, true>(form, xs, ws, s, o)
                                       : sums_at<kSub, false>(form, xs, ws, s, 0);
        const double i = b.scale[j], m = -b.min[j];
        gg += i * i * sums.cc;
        gm += i * m * sums.c;
        mm += m * m * sums.w;
        rg += i * sums.rc;
        rm += m * sums.r;
    }
    const double det = gg * mm - gm * gm;
    double d_change = 0, dmin_change = 0;
    if (form.has_min && det > 1e-9 * gg * mm) {
        d_change = (mm * rg - gm * rm) / det;
        dmin_change = (gg * rm - gm * rg) / det;
    } else if (gg > 0) {
        d_change = rg / gg;
    }
    b.d = to_half_value(b.d + static_cast<float>(d_change));
    b.dmin = to_half_value(b.dmin + static_cast<float>(dmin_change));
}

template <int kSub>
void put_codes(const BlockForm& form, const float* x, OpenBlock& b) {
    for (int j = 0; j < form.subs(); ++j) {
        const float s = b.d * static_cast<float>(b.scale[j]);
        const float o = -b.dmin * static_cast<float>(b.min[j]);
        const float id = inverse_scale(s);
        for (int i = j * kSub; i < (j + 1) * kSub; ++i) {
            const float c = std::clamp((x[i] - o) * id, static_cast<float>(-form.zero),
                                       static_cast<float>(form.top - form.zero));
            b.codes[i] = static_cast<uint8_t>(static_cast<int>(std::nearbyint(c)) + form.zero);
        }
    }
}

template <int kSub>
void search(const BlockForm& form, const float* x, const float* w, OpenBlock& b) {
    const int subs = form.subs();
    float scales[kSuperBlock / 16], mins[kSuperBlock / 16];
    float curvatures[kSuperBlock / 16], min_curvatures[kSuperBlock / 16];
    for (int j = 0; j < subs; ++j) {
        const float* xs = x + j * kSub;
        const float* ws = w + j * kSub;
        const Fit fit = form.has_min ? search_scale_and_offset<kSub>(form, xs, ws)
                                     : search_scale<kSub>(form, xs, ws);
        scales[j] = fit.scale;
        mins[j] = -fit.offset;
        curvatures[j] = fit.curvature;
        min_curvatures[j] = fit.offset_curvature;
    }
    b.dmin = 0;
    std::fill(b.min, b.min + subs, 0);
    if (form.scale_high > form.scale_low) {
        search_super(scales, curvatures, subs, form.scale_low, form.scale_high, b.d, b.scale);
    } else {
        b.d = scales[0];
        b.scale[0] = 1;
    }
    if (form.min_high > 1) {
        search_super(mins, min_curvatures, subs, 0, form.min_high, b.dmin, b.min);
    } else if (form.has_min) {
        b.dmin = mins[0];
        b.min[0] = 1;
    }
    b.d = to_half_value(b.d);
    b.dmin = to_half_value(b.dmin);
    OpenBlock best = b;
    float least = std::numeric_limits<float>::infinity();
    for (int round = 0; round < kRounds; ++round) {
        float error = 0;
        for (int j = 0; j < subs; ++j)
            error += refine_sub<kSub>(form, x + j * kSub, w + j * kSub, b.d, b.dmin, b.scale[j],
                                      b.min[j]);
        if (!(error < least)) break;
        least = error;
        best = b;
        refit_super<kSub>(form, x, w, b);
    }
    b = best;
    put_codes<kSub>(form, x, b);
}

void put_nibbles(const uint8_t* codes, uint8_t* q) {
    for (int i = 0; i < 16; ++i)
        q[i] = static_cast<uint8_t>((codes[i] & 15) | (codes[i + 16] & 15) << 4);
}

void put_fifth_bits(const uint8_t* codes, uint8_t* qh) {
    std::memset(qh, 0, 4);
    for (int i = 0; i < kBlock; ++i)
        qh[i / 8] = static_cast<uint8_t>(qh[i / 8] | (codes[i] >> 4) << i % 8);
}

void put_scales_and_mins(const OpenBlock& b, uint8_t* s) {
    std::memset(s, 0, 12);
    for (int j = 0; j < 8; ++j) {
        const int scale = b.scale[j], min = b.min[j];
        const auto add = [&](int at, int bits) { s[at] = static_cast<uint8_t>(s[at] | bits); };
        if (j < 4) {
            add(j, scale);
            add(j + 4, min);
        } else {
            add(j + 4, (scale & 15) | (min & 15) << 4);
            add(j - 4, scale >> 4 << 6);
            add(j, min >> 4 << 6);
        }
    }
}

// Four bits of eight sub-blocks of 32; pairs share 32 bytes.
void put_pairs(const uint8_t* codes, uint8_t* q) {
    for (int i = 0; i < kSuperBlock / 2; ++i) {
        const uint8_t* pair = codes + i / 32 * 64 + i % 32;
        q[i] = static_cast<uint8_t>((pair[0] & 15) | (pair[32] & 15) << 4);
    }
}

}  // namespace

const BlockForm* block_form(Type type) {
    static constexpr BlockForm q4_0{32, 32, 15, 8, 1, 1, false, 0},
        q5_0{32, 32, 31, 16, 1, 1, false, 0};
    static constexpr BlockForm q4_1{32, 32, 15, 0, 1, 1, true, 1},
        q5_1{32, 32, 31, 0, 1, 1, true, 1};
    static constexpr BlockForm q3_k{256, 16, 7, 4, -32, 31, false, 0},
        q6_k{256, 16, 63, 32, -128, 127, false, 0};
    static constexpr BlockForm q4_k{256, 32, 15, 0, 0, 63, true, 63},
        q5_k{256, 32, 31, 0, 0, 63, true, 63};
    switch (type) {
        case Type::Q4_0: return &q4_0;
        case Type::Q4_1: return &q4_1;
        case Type::Q5_0: return &q5_0;
        case Type::Q5_1: return &q5_1;
        case Type::Q3_K: return &q3_k;
        case Type::Q4_K: return &q4_k;
        case Type::Q5_K: return &q5_k;
        case Type::Q6_K: return &q6_k;
        default: return nullptr;
    }
}

void error_weights(Type type, const float* x, const float* importance, int64_t cols,
                   float* weights) {
    const int block = block_form(type)->block;
    for (int64_t b = 0; b < cols; b += block) {
        float* w = weights + b;
        float square = 0;
        for (int i = 0; i < block; ++i) {
            square += x[b + i] * x[b + i];
            w[i] = 1;
        }
        if (type == Type::Q3_K || type == Type::Q6_K)
            for (int i = 0; i < block; ++i)
                w[i] = x[b + i] * x[b + i] + square / static_cast<float>(block);
        if (type == Type::Q4_K || type == Type::Q5_K)
            for (int j = 0; j < block; j += 32) {
                float part = 0;
                for (int i = j; i < j + 32; ++i) part += x[b + i] * x[b + i];
                const float rms = std::sqrt(part / 32);
                for (int i = j; i < j + 32; ++i) w[i] = rms + std::fabs(x[b + i]);
            }
        if (importance != nullptr) std::copy(importance + b, importance + b + block, w);
        // Of magnitude 1, so that no sum is lost to overflow or underflow.
        double sum = 0;
        for (int i = 0; i < block; ++i) sum += w[i];
        const double mean = sum / block;
        const float unit = mean > 0 ? static_cast<float>(1 / mean) : 0;
        if (!(unit > 0) || !std::isfinite(unit)) {
            std::fill(w, w + block, 1.0f);
            continue;
        }
        for (int i = 0; i < block; ++i) w[i] = std::max(w[i] * unit, kLeastWeight);
    }
}

void search_block(const BlockForm& form, const float* x, const float* weights, OpenBlock& block) {
    form.sub == 16 ? search<16>(form, x, weights, block) : search<32>(form, x, weights, block);
}

void pack_block(Type type, const OpenBlock& b, void* to) {
    const auto half = [](float x) { return float_to_half(x); };
    switch (type) {
        case Type::Q4_0: {
            BlockQ4_0& out = *static_cast<BlockQ4_0*>(to);
            out.d = half(b.d);
            return put_nibbles(b.codes, out.q);
        }
        case Type::Q4_1: {
            BlockQ4_1& out = *static_cast<BlockQ4_1*>(to);
            out.d = half(b.d);
            out.m = half(-b.dmin);
            return put_nibbles(b.codes, out.q);
        }
        case Type::Q5_0: {
            BlockQ5_0& out = *static_cast<BlockQ5_0*>(to);
            out.d = half(b.d);
            put_fifth_bits(b.codes, out.qh);
            return put_nibbles(b.codes, out.q);
        }
        case Type::Q5_1: {
            BlockQ5_1& out = *static_cast<BlockQ5_1*>(to);
            out.d = half(b.d);
            out.m = half(-b.dmin);
            put_fifth_bits(b.codes, out.qh);
            return put_nibbles(b.codes, out.q);
        }
        case Type::Q3_K: {
            BlockQ3_K& out = *static_cast<BlockQ3_K*>(to);
            std::memset(&out, 0, sizeof out);
            out.d = half(b.d);
            for (int i = 0; i < kSuperBlock; ++i) {
                uint8_t& low = out.q[i / 128 * 32 + i % 32];
                low = static_cast<uint8_t>(low | (b.codes[i] & 3) << i % 128 / 32 * 2);
                uint8_t& high = out.qh[i % 32];
                high = static_cast<uint8_t>(high | (b.codes[i] >> 2) << i / 32);
            }
            for (int j = 0; j < 16; ++j) {
                const int scale = b.scale[j] + 32;
                uint8_t& low = out.scales[j % 8];
                low = static_cast<uint8_t>(low | (scale & 15) << j / 8 * 4);
                uint8_t& high = out.scales[8 + j % 4];
                high = static_cast<uint8_t>(high | (scale >> 4) << j / 4 * 2);
            }
            return;
        }
        case Type::Q4_K: {
            BlockQ4_K& out = *static_cast<BlockQ4_K*>(to);
            out.d = half(b.d);
            out.dmin = half(b.dmin);
            put_scales_and_mins(b, out.scales);
            return put_pairs(b.codes, out.q);
        }
        case Type::Q5_K: {
            BlockQ5_K& out = *static_cast<BlockQ5_K*>(to);
            out.d = half(b.d);
            out.dmin = half(b.dmin);
            put_scales_and_mins(b, out.scales);
            std::memset(out.qh, 0, sizeof out.qh);
            for (int i = 0; i < kSuperBlock; ++i)
                out.qh[i % 32] = static_cast<uint8_t>(out.qh[i % 32] | (b.codes[i] >> 4) << i / 32);
            return put_pairs(b.codes, out.q);
        }
        case Type::Q6_K: {
            BlockQ6_K& out = *static_cast<BlockQ6_K*>(to);
            std::memset(&out, 0, sizeof out);
            out.d = half(b.d);
            for (int j = 0; j < 16; ++j) out.scales[j] = static_cast<int8_t>(b.scale[j]);
            for (int i = 0; i < kSuperBlock; ++i) {
                const int part = i / 128, run = i % 128 / 32, at = i % 32;
                uint8_t& low = out.ql[part * 64 + run % 2 * 32 + at];
                low = static_cast<uint8_t>(low | (b.codes[i] & 15) << run / 2 * 4);
                uint8_t& high = out.qh[part * 32 + at];
                high = static_cast<uint8_t>(high | (b.codes[i] >> 4) << run * 2);
            }
            return;
        }
        default: return;
    }
}

namespace {

void search_row(Type type, const float* x, const float* importance, int64_t cols, void* to) {
    const BlockForm& form = *block_form(type);
    const int64_t bytes = type_bytes(type, form.block);
    float weights[kSuperBlock];
    OpenBlock block;
    for (int64_t c = 0; c < cols; c += form.block) {
        error_weights(type, x + c, importance == nullptr ? nullptr : importance + c, form.block,
                      weights);
        search_block(form, x + c, weights, block);
        pack_block(type, block, static_cast<uint8_t*>(to) + c / form.block * bytes);
    }
}

}  // namespace

void search_rows(Type type, const float* x, const float* importance, int64_t rows, int64_t cols,
                 uint8_t* to, ThreadPool& pool) {
    const int64_t bytes = type_bytes(type, cols);
    const int64_t units = std::min(rows, pool.most_units());
    pool.run(units, [&](int64_t begin, int64_t end, int) {
        for (int64_t r = rows * begin / units; r < rows * end / units; ++r)
            search_row(type, x + r * cols, importance, cols, to + r * bytes);
    });
}

}  // namespace rwkv_edge
