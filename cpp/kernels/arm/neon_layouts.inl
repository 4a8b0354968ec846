// SPDX-License-Identifier: Apache-2.0
// How the block types lie in memory: their codes as vectors of 16 columns of one row, four rows at
// a time, and their scales as vectors whose lanes are these rows.
#pragma once

#include <arm_neon.h>
#include <stddef.h>

#include "kernels/generic/block_matmul.inl"
#include "kernels/generic/inlining.inl"
#include "kernels/generic/rows.inl"
#include "quant/blocks.h"

namespace rwkv_edge {

namespace {

// Lane r: dword j of in[r] -> out[j].
ALWAYS_INLINE void transpose(const uint8x16_t in[4], uint8x16_t out[4]) {
    const auto words = [](uint8x16_t v) { return vreinterpretq_u32_u8(v); };
    const auto pairs = [](uint32x4_t v) { return vreinterpretq_u64_u32(v); };
    const auto bytes = [](uint64x2_t v) { return vreinterpretq_u8_u64(v); };
    const uint64x2_t a = pairs(vtrn1q_u32(words(in[0]), words(in[1])));
    const uint64x2_t b = pairs(vtrn2q_u32(words(in[0]), words(in[1])));
    const uint64x2_t c = pairs(vtrn1q_u32(words(in[2]), words(in[3])));
    const uint64x2_t d = pairs(vtrn2q_u32(words(in[2]), words(in[3])));
    out[0] = bytes(vtrn1q_u64(a, c));
    out[1] = bytes(vtrn1q_u64(b, d));
    out[2] = bytes(vtrn2q_u64(a, c));
    out[3] = bytes(vtrn2q_u64(b, d));
}

ALWAYS_INLINE uint8x16_t load_bytes(const char* p) { return vld1q_u8((const uint8_t*)p); }

// The dwords of 16 bytes at `at` of every row.
ALWAYS_INLINE void dwords(Rows rows, size_t at, uint8x16_t out[4]) {
    uint8x16_t in[4];
    UNROLL
    for (int r = 0; r < 4; ++r) in[r] = load_bytes(rows(r) + at);
    transpose(in, out);
}

ALWAYS_INLINE float32x4_t halves_to_floats(uint16x4_t v) {
    return vcvt_f32_f16(vreinterpret_f16_u16(v));
}

// The half at byte `at` of every row. Loads of a lane, like all loads here, need no alignment.
ALWAYS_INLINE float32x4_t halves(Rows rows, size_t at) {
    const auto half = [&](int r) { return (const uint16_t*)(rows(r) + at); };
    uint16x4_t v = vld1_dup_u16(half(0));
    v = vld1_lane_u16(half(1), v, 1);
    v = vld1_lane_u16(half(2), v, 2);
    v = vld1_lane_u16(half(3), v, 3);
    return halves_to_floats(v);
}

// The dword at byte `at` of every row.
ALWAYS_INLINE uint32x4_t dword(Rows rows, size_t at) {
    const auto word = [&](int r) { return (const uint32_t*)(rows(r) + at); };
    uint32x4_t v = vld1q_dup_u32(word(0));
    v = vld1q_lane_u32(word(1), v, 1);
    v = vld1q_lane_u32(word(2), v, 2);
    return vld1q_lane_u32(word(3), v, 3);
}

// What the values of 32 columns are: d * code + m.
struct ScaleOffset {
    float32x4_t d, m;
};

// From two halves in every lane.
ALWAYS_INLINE ScaleOffset two_halves(uint32x4_t v) {
    return {halves_to_floats(vmovn_u32(v)), halves_to_floats(vshrn_n_u32(v, 16))};
}

ALWAYS_INLINE uint8x16_t low_nibbles(uint8x16_t v) { return vandq_u8(v, vdupq_n_u8(15)); }
ALWAYS_INLINE uint8x16_t high_nibbles(uint8x16_t v) { return vshrq_n_u8(v, 4); }

// Low bits, and from `high` those that the mask names.
ALWAYS_INLINE uint8x16_t with_bits(uint8x16_t low, uint8x16_t high, uint8_t mask) {
    return vbslq_u8(vdupq_n_u8(mask), high, low);
}

// Left, or right where n is negative; n is known when this is compiled.
ALWAYS_INLINE uint8x16_t shift(uint8x16_t v, int n) { return vshlq_u8(v, vdupq_n_s8((int8_t)n)); }

ALWAYS_INLINE float32x4_t byte_as_float(uint8x16_t v, int byte) {
    const uint32x4_t down = vshlq_u32(vreinterpretq_u32_u8(v), vdupq_n_s32(-8 * byte));
    return vcvtq_f32_u32(vandq_u32(down, vdupq_n_u32(255)));
}

// Signed byte `byte` of every dword.
ALWAYS_INLINE int32x4_t signed_byte(uint8x16_t v, int byte) {
    const int32x4_t up = vshlq_s32(vreinterpretq_s32_u8(v), vdupq_n_s32(24 - 8 * byte));
    return vshrq_n_s32(up, 24);
}

// --- the types ---
//
// A Layout says how a block of a type makes its codes: BlockLayout (block_matmul.inl) and, with
// NEON,
//   kLargest  the largest code, or its magnitude
//   codes     calls use(i, half, codes) for the halves of each 32 columns i of a group; codes[r]
//   are
//             those of row r

struct Neon {
    using Lanes = float32x4_t;
    enum { kLanes = 4 };
    struct UseCodes {
        void operator()(int i, int half, const int8x16_t (&codes)[4]) const;
    };
    ALWAYS_INLINE static void store(float* p, Lanes v) { vst1q_f32(p, v); }
};
template <class L>
concept NeonLayout =
    BlockLayout<L, Neon> && requires { requires L::kLargest > 0 && L::kLargest <= 128; };

// What a type has unless it says otherwise.
struct UsualLayout {
    enum { kHalfScales = 0 };
};

// codes(r, bytes) for four rows.
template <class Use, class Codes>
ALWAYS_INLINE void use_rows(Use use, int i, int half, Codes codes) {
    int8x16_t four[4];
    UNROLL
    for (int r = 0; r < 4; ++r) four[r] = vreinterpretq_s8_u8(codes(r));
    use(i, half, four);
}

// Types of one block of 32 whose codes are nibbles, and perhaps a fifth bit.
template <class Block>
struct Layout;

template <class Block>
struct NibbleLayout : UsualLayout {
    enum { kBlocks = 1, kGroup = 1, kLargest = 15 };
    template <class Header, class Use>
    ALWAYS_INLINE static void codes(Rows at, const Header&, int, Use use) {
        uint8x16_t bytes[4];
        UNROLL
        for (int r = 0; r < 4; ++r) bytes[r] = load_bytes(at(r) + offsetof(Block, q));
        use_rows(use, 0, 0, [&](int r) INLINE_LAMBDA { return low_nibbles(bytes[r]); });
        use_rows(use, 0, 1, [&](int r) INLINE_LAMBDA { return high_nibbles(bytes[r]); });
    }
};

// d alone, or d and m, before everything else in the block.
struct ScaleOnly {
    using Header = ScaleOffset;
    ALWAYS_INLINE static Header header(Rows at) { return {halves(at, 0), vdupq_n_f32(0.0f)}; }
    ALWAYS_INLINE static float32x4_t scale(const Header& h, int) { return h.d; }
    ALWAYS_INLINE static float32x4_t offset(const Header& h, int) { return h.m; }
};
struct ScaleAndOffset : ScaleOnly {
    ALWAYS_INLINE static Header header(Rows at) { return two_halves(dword(at, 0)); }
};

// The first eight bytes of every row.
struct FirstBytes {
    uint8x16_t row[4];

    ALWAYS_INLINE static FirstBytes of(Rows at) {
        FirstBytes v;
        UNROLL
        for (int r = 0; r < 4; ++r)
            v.row[r] = vcombine_u8(vld1_u8((const uint8_t*)at(r)), vdup_n_u8(0));
        return v;
    }
    // Their first dwords.
    ALWAYS_INLINE uint32x4_t dwords() const {
        const auto pair = [&](int r) {
            return vreinterpretq_u64_u32(
                vzip1q_u32(vreinterpretq_u32_u8(row[r]), vreinterpretq_u32_u8(row[r + 1])));
        };
        return vreinterpretq_u32_u64(vzip1q_u64(pair(0), pair(2)));
    }
};

// Before the nibbles, d or d and m, and then the fifth bits: bit i of a row's qh is that of value
// i. Each byte of qh is repeated eight times, and each of these looks at its own bit.
template <class Block>
struct FifthBitLayout : NibbleLayout<Block> {
    enum { kLargest = 31 };
    struct Header {
        ScaleOffset scale;
        FirstBytes first;
    };
    template <class Use>
    ALWAYS_INLINE static void codes(Rows at, const Header& h, int group, Use use) {
        const uint8x16_t two_bytes = vcombine_u8(vdup_n_u8(0), vdup_n_u8(1));
        const uint8x16_t own_bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201u));
        NibbleLayout<Block>::codes(
            at, h, group, [&](int i, int half, const int8x16_t(&nibbles)[4]) INLINE_LAMBDA {
                const auto from = (uint8_t)(offsetof(Block, qh) + 2 * (size_t)half);
                const uint8x16_t byte = vaddq_u8(two_bytes, vdupq_n_u8(from));
                use_rows(use, i, half, [&](int r) INLINE_LAMBDA {
                    const uint8x16_t set = vtstq_u8(vqtbl1q_u8(h.first.row[r], byte), own_bit);
                    return with_bits(vreinterpretq_u8_s8(nibbles[r]), set, 0x10);
                });
            });
    }
    ALWAYS_INLINE static Header header(Rows at) {
        const FirstBytes first = FirstBytes::of(at);
        return {two_halves(first.dwords()), first};
    }
    ALWAYS_INLINE static float32x4_t scale(const Header& h, int) { return h.scale.d; }
    ALWAYS_INLINE static float32x4_t offset(const Header& h, int) { return h.scale.m; }
};

template <>
struct Layout<BlockQ4_0> : NibbleLayout<BlockQ4_0>, ScaleOnly {
    enum { kZero = 8, kOffset = 0 };
};
template <>
struct Layout<BlockQ4_1> : NibbleLayout<BlockQ4_1>, ScaleAndOffset {
    enum { kZero = 0, kOffset = 1 };
};
template <>
struct Layout<BlockQ5_0> : FifthBitLayout<BlockQ5_0> {
    enum { kZero = 16, kOffset = 0 };
};
template <>
struct Layout<BlockQ5_1> : FifthBitLayout<BlockQ5_1> {
    enum { kZero = 0, kOffset = 1 };
};

// d, dmin and the six-bit scales and minima of Q4_K and Q5_K: the first 16 bytes.
struct ScalesK {
    ScaleOffset d;
    uint8x16_t scales[2], mins[2];  // four bytes each per row

    ALWAYS_INLINE static ScalesK of(Rows at) {
        uint8x16_t w[4];
        dwords(at, 0, w);
        const uint8x16_t six = vdupq_n_u8(63);
        return {two_halves(vreinterpretq_u32_u8(w[0])),
                {vandq_u8(w[1], six), with_bits(low_nibbles(w[3]), shift(w[1], -2), 0x30)},
                {vandq_u8(w[2], six), with_bits(high_nibbles(w[3]), shift(w[2], -2), 0x30)}};
    }
};

struct LayoutK : UsualLayout {
    enum { kBlocks = 8, kGroup = 2, kZero = 0, kOffset = 1 };
    using Header = ScalesK;
    ALWAYS_INLINE static Header header(Rows at) { return ScalesK::of(at); }
    ALWAYS_INLINE static float32x4_t scale(const Header& h, int i) {
        return vmulq_f32(h.d.d, byte_as_float(h.scales[i / 4], i % 4));
    }
    ALWAYS_INLINE static float32x4_t offset(const Header& h, int i) {
        return vnegq_f32(vmulq_f32(h.d.m, byte_as_float(h.mins[i / 4], i % 4)));
    }
};

template <>
struct Layout<BlockQ4_K> : LayoutK {
    enum { kLargest = 15 };
    template <class Use>
    ALWAYS_INLINE static void codes(Rows at, const Header&, int group, Use use) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
            const size_t first = offsetof(BlockQ4_K, q) + (size_t)(32 * group + 16 * half);
            uint8x16_t bytes[4];
            UNROLL
            for (int r = 0; r < 4; ++r) bytes[r] = load_bytes(at(r) + first);
            use_rows(use, 0, half, [&](int r) INLINE_LAMBDA { return low_nibbles(bytes[r]); });
            use_rows(use, 1, half, [&](int r) INLINE_LAMBDA { return high_nibbles(bytes[r]); });
        }
    }
};

template <>
struct Layout<BlockQ5_K> : LayoutK {
    enum { kLargest = 31 };
    template <class Use>
    ALWAYS_INLINE static void codes(Rows at, const Header&, int group, Use use) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
            const size_t first = (size_t)(16 * half);
            uint8x16_t bytes[4], qh[4];
            UNROLL
            for (int r = 0; r < 4; ++r) {
                bytes[r] = load_bytes(at(r) + offsetof(BlockQ5_K, q) + 32 * (size_t)group + first);
                qh[r] = load_bytes(at(r) + offsetof(BlockQ5_K, qh) + first);
            }
            use_rows(use, 0, half, [&](int r) INLINE_LAMBDA {
                return with_bits(low_nibbles(bytes[r]), shift(qh[r], 4 - 2 * group), 0x10);
            });
            use_rows(use, 1, half, [&](int r) INLINE_LAMBDA {
                return with_bits(high_nibbles(bytes[r]), shift(qh[r], 3 - 2 * group), 0x10);
            });
        }
    }
};

template <>
struct Layout<BlockQ6_K> : UsualLayout {
    enum { kBlocks = 8, kGroup = 4, kLargest = 63, kZero = 32, kOffset = 0, kHalfScales = 1 };
    struct Header {
        float32x4_t d;
        uint8x16_t scales[4];  // four bytes each per row, two per 32 columns
    };
    ALWAYS_INLINE static Header header(Rows at) {
        Header h;
        h.d = halves(at, offsetof(BlockQ6_K, d));
        dwords(at, offsetof(BlockQ6_K, scales), h.scales);
        return h;
    }
    template <class Use>
    ALWAYS_INLINE static void codes(Rows at, const Header&, int group, Use use) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
            uint8x16_t qh[4];
            UNROLL
            for (int r = 0; r < 4; ++r)
                qh[r] =
                    load_bytes(at(r) + offsetof(BlockQ6_K, qh) + (size_t)(32 * group + 16 * half));
            UNROLL
            for (int run = 0; run < 2; ++run) {
                uint8x16_t bytes[4];
                UNROLL
                for (int r = 0; r < 4; ++r)
                    bytes[r] = load_bytes(at(r) + (size_t)(64 * group + 32 * run + 16 * half));
                use_rows(use, run, half, [&](int r) INLINE_LAMBDA {
                    return with_bits(low_nibbles(bytes[r]), shift(qh[r], 4 - 2 * run), 0x30);
                });
                use_rows(use, run + 2, half, [&](int r) INLINE_LAMBDA {
                    return with_bits(high_nibbles(bytes[r]), shift(qh[r], -2 * run), 0x30);
                });
            }
        }
    }
    ALWAYS_INLINE static float32x4_t scale(const Header& h, int) { return h.d; }
    ALWAYS_INLINE static float32x4_t offset(const Header&, int) { return vdupq_n_f32(0.0f); }
    // Of columns 16 i .. 16 i + 15.
    ALWAYS_INLINE static int32x4_t half_scale(const Header& h, int i) {
        return signed_byte(h.scales[i / 4], i % 4);
    }
};

template <>
struct Layout<BlockQ8_0> : UsualLayout, ScaleOnly {
    enum { kBlocks = 1, kGroup = 1, kLargest = 128, kZero = 0, kOffset = 0 };
    template <class Use>
    ALWAYS_INLINE static void codes(Rows at, const Header&, int, Use use) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
            const size_t first = offsetof(BlockQ8_0, q) + (size_t)(16 * half);
            use_rows(use, 0, half, [&](int r) INLINE_LAMBDA { return load_bytes(at(r) + first); });
        }
    }
};

static_assert(NeonLayout<Layout<BlockQ8_0>> && NeonLayout<Layout<BlockQ4_0>> &&
              NeonLayout<Layout<BlockQ4_1>> && NeonLayout<Layout<BlockQ5_0>> &&
              NeonLayout<Layout<BlockQ5_1>> && NeonLayout<Layout<BlockQ4_K>> &&
              NeonLayout<Layout<BlockQ5_K>> && NeonLayout<Layout<BlockQ6_K>>);

}  // namespace

}  // namespace rwkv_edge
