// SPDX-License-Identifier: Apache-2.0
// Four floats at once, as every processor has them: sums have one order on all.
#pragma once

#include <cstring>

namespace rwkv_edge {

using Lanes = float __attribute__((vector_size(16)));
constexpr int kLanes = 4;

inline Lanes load_lanes(const float* p) {
    Lanes v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store_lanes(float* p, Lanes v) { std::memcpy(p, &v, sizeof v); }
inline Lanes all_lanes(float x) { return Lanes{x, x, x, x}; }
inline Lanes clip(Lanes x, Lanes low, Lanes high) {
    x = x < low ? low : x;
    return x > high ? high : x;
}
// To the nearest integer, halves to even; |x| below 2^22.
inline Lanes nearest(Lanes x) {
    const Lanes shift = all_lanes(12582912.0f);
    return (x + shift) - shift;
}
inline float total(Lanes v) { return (v[0] + v[2]) + (v[1] + v[3]); }

}  // namespace rwkv_edge
