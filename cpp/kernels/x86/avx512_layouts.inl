// SPDX-License-Identifier: Apache-2.0
// How the block types lie in memory, for avx512_blocks.inl: a Step of 128 columns of eight rows.
#pragma once

#include <immintrin.h>
#include <stddef.h>

#include "kernels/x86/avx512_rows.inl"

namespace rwkv_edge {

namespace {

// Indices of a permutation, as a vector in memory.
template <class T>
struct alignas(64) Table {
    T at[64 / sizeof(T)];

    ALWAYS_INLINE operator Ints() const { return _mm512_load_si512(at); }
};
template <class T, class Of>
constexpr Table<T> table(Of of) {
    Table<T> made = {};
    for (int i = 0; i < (int)(64 / sizeof(T)); ++i) made.at[i] = (T)of(i);
    return made;
}

ALWAYS_INLINE Ints load(const void* p) { return _mm512_loadu_si512(p); }
ALWAYS_INLINE __m128i load_16(const char* p) { return _mm_loadu_si128((const __m128i*)p); }
ALWAYS_INLINE __m256i load_32(const char* p) { return _mm256_loadu_si256((const __m256i*)p); }
// A read past the end of a cache line costs two, and compilers repeat one where it saves a
// register.
ALWAYS_INLINE Ints load_once(const char* p) {
    Ints v = load(p);
    asm("" : "+v"(v));
    return v;
}
ALWAYS_INLINE Ints bytes(int v) { return _mm512_set1_epi8((char)v); }
ALWAYS_INLINE Ints low_nibbles(Ints v) { return _mm512_and_si512(v, bytes(15)); }
ALWAYS_INLINE Ints high_nibbles(Ints v) { return low_nibbles(_mm512_srli_epi16(v, 4)); }

// codes | (upper & mask)
ALWAYS_INLINE Ints with_bits(Ints codes, Ints upper, int mask) {
    return _mm512_ternarylogic_epi32(codes, upper, bytes(mask), 0xf8);
}

// 128 columns of eight rows.
struct Step {
    Ints codes[2][8];  // [half][row], where they lie is the type's kOrder
    Eight d[4], m[4];  // of every 32 columns: a value is d * (code - zero) + m
    // Of every 16 columns an i32 per row: [i][half] of blocks 2i and 2i + 1.
    Ints factors[2][2];
};

// Which codes 128-bit lane i of half h of a step holds.
enum Order {
    kHalves,   // of block i (32 columns) the first 16, h = 0, or the others
    kInOrder,  // columns 64h + 16i ...
    kPairs,    // as kInOrder, with blocks 1 and 2 exchanged
};

// What eight rows have, side by side: element 8i + r is element i of row r.
struct Columns {
    Ints all = _mm512_setzero_si512();

    // Of row r they are the elements 8i + r of `from`, or what `index` brings there.
    ALWAYS_INLINE void put(int r, Ints from) {
        all = _mm512_mask_mov_epi16(all, 0x01010101u << r, from);
    }
    ALWAYS_INLINE void put(int r, Ints from, Ints index) {
        all = _mm512_mask_permutexvar_epi16(all, 0x01010101u << r, index, from);
    }
    // From halves.
    ALWAYS_INLINE void to_floats(Eight to[4]) const {
        split(_mm512_cvtph_ps(_mm512_castsi512_si256(all)), to);
        split(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(all, 1)), to + 2);
    }
};

// A Layout says:
//   kSteps     how many steps share a header: a block of 256 columns is two, else a step is four
//              blocks
//   kBytes     how many bytes of a row these are
//   kOrder     see above
//   kNibbles   unpack leaves both halves of the codes in the first, as nibbles
//   kZero      the code that means zero, or 0
//   kOffset    whether m is added to every value
//   kFactors   whether the dots of each 16 columns are multiplied with a factor of their own
//   header     what is read once
//   unpack     makes step `step` of kSteps

struct NoHeader {};

template <class Block>
struct Layout;

// Blocks of 32 columns whose codes are nibbles and perhaps a fifth bit; d is first, or d and m.
template <class Block, bool kFifth, int kZeroCode>
struct NibbleLayout {
    static constexpr Order kOrder = kHalves;
    enum { kSteps = 1, kBytes = 4 * sizeof(Block), kNibbles = !kFifth, kFactors = 0 };
    enum { kZero = kZeroCode, kOffset = kZero == 0 };

    // A step is in two vectors, its first 64 bytes and its last: byte `at` of block b as a word of
    // theirs.
    enum { kLast = kBytes <= 64 + 16 ? 16 : 32 };
    static constexpr int word(int b, int at) {
        const int byte = b * (int)sizeof(Block) + at;
        return byte < 64 ? byte / 2 : 32 + (byte - kBytes + kLast) / 2;
    }
    ALWAYS_INLINE static Ints last_bytes(const char* step) {
        const char* p = step + kBytes - kLast;
        return kLast == 16 ? _mm512_castsi128_si512(load_16(p))
                           : _mm512_castsi256_si512(load_32(p));
    }
    static constexpr auto kCodes =
        table<uint16_t>([](int i) { return word(i / 8, (int)offsetof(Block, q) + i % 8 * 2); });
    static constexpr auto kScales = table<uint16_t>([](int i) { return word(i / 8, 0); });
    static constexpr auto kOffsets = table<uint16_t>([](int i) { return word(i / 8, 2); });

    // With a fifth bit, another vector holds in both qwords of a block four words: the first and
    // the last 16 fifth bits, d, and m.
    static constexpr auto kExtra = table<uint16_t>([](int i) {
        const int bits = (int)offsetof(Block, q) - 4, at[4] = {bits, bits + 2, 0, 2};
        return word(i / 8, at[i % 4]);
    });
    static constexpr auto kExtraScales = table<uint16_t>([](int i) { return i / 8 * 8 + 2; });
    static constexpr auto kExtraOffsets = table<uint16_t>([](int i) { return i / 8 * 8 + 3; });
    static constexpr auto kFirstBits = table<uint8_t>([](int i) { return i % 16 / 8; });
    static constexpr auto kLastBits = table<uint8_t>([](int i) { return 2 + i % 16 / 8; });

    using Header = NoHeader;
    ALWAYS_INLINE static Header header(const EightRows&) { return {}; }

    ALWAYS_INLINE static void unpack(const Header&, const EightRows& rows, int, Step& to) {
        Columns d, m;
        UNROLL
        for (int r = 0; r < 8; ++r) {
            const Ints first = load_once(rows[r]), last = last_bytes(rows[r]);
            const Ints q = _mm512_permutex2var_epi16(first, kCodes, last);
            if (kFifth) {
                const Ints extra = _mm512_permutex2var_epi16(first, kExtra, last);
                to.codes[0][r] = with_fifth(low_nibbles(q), extra, kFirstBits);
                to.codes[1][r] = with_fifth(high_nibbles(q), extra, kLastBits);
                d.put(r, extra, kExtraScales);
                if (kOffset) m.put(r, extra, kExtraOffsets);
            } else {
                to.codes[0][r] = q;
                d.put(r, first, kScales);
                if (kOffset) m.put(r, first, kOffsets);
            }
        }
        d.to_floats(to.d);
        if (kOffset) m.to_floats(to.m);
    }

    // Adds 16 where code i of eight has bit i of the byte that `index` brings to it.
    ALWAYS_INLINE static Ints with_fifth(Ints codes, Ints extra, Ints index) {
        const Ints own_bit = _mm512_set1_epi64((int64_t)0x8040201008040201u);
        const __mmask64 has = _mm512_test_epi8_mask(_mm512_shuffle_epi8(extra, index), own_bit);
        return _mm512_mask_add_epi8(codes, has, codes, bytes(16));
    }
};

template <>
struct Layout<BlockQ4_0> : NibbleLayout<BlockQ4_0, false, 8> {};
template <>
struct Layout<BlockQ4_1> : NibbleLayout<BlockQ4_1, false, 0> {};
template <>
struct Layout<BlockQ5_0> : NibbleLayout<BlockQ5_0, true, 16> {};
template <>
struct Layout<BlockQ5_1> : NibbleLayout<BlockQ5_1, true, 0> {};

// Byte `at` of the b-th of four blocks as a word of the first 128 bytes; those of the last 8 are
// any.
constexpr int q8_0_word(int b, int at) { return (b * (int)sizeof(BlockQ8_0) + at) / 2 % 64; }

// Signed bytes become unsigned: 128 more.
template <>
struct Layout<BlockQ8_0> {
    static constexpr Order kOrder = kHalves;
    enum { kSteps = 1, kBytes = 4 * sizeof(BlockQ8_0), kNibbles = 0, kFactors = 0 };
    enum { kZero = 128, kOffset = 0 };

    static constexpr auto kFirstCodes =
        table<uint16_t>([](int i) { return q8_0_word(i / 8, 2 + i % 8 * 2); });
    static constexpr auto kLastCodes =
        table<uint16_t>([](int i) { return q8_0_word(i / 8, 18 + i % 8 * 2); });
    static constexpr auto kScales = table<uint16_t>([](int i) { return q8_0_word(i / 8, 0); });

    using Header = NoHeader;
    ALWAYS_INLINE static Header header(const EightRows&) { return {}; }

    ALWAYS_INLINE static void unpack(const Header&, const EightRows& rows, int, Step& to) {
        Columns d;
        UNROLL
        for (int r = 0; r < 8; ++r) {
            const Ints first = load_once(rows[r]), second = load_once(rows[r] + 64);
            const auto words = [&](Ints index) INLINE_LAMBDA {
                return _mm512_permutex2var_epi16(first, index, second);
            };
            int64_t last_8;
            memcpy(&last_8, rows[r] + 128, sizeof last_8);
            const Ints last = _mm512_mask_set1_epi64(words(kLastCodes), 0x80, last_8);
            to.codes[0][r] = _mm512_xor_si512(words(kFirstCodes), bytes(0x80));
            to.codes[1][r] = _mm512_xor_si512(last, bytes(0x80));
            d.put(r, words(kScales));
        }
        d.to_floats(to.d);
    }
};

// 16 bytes of eight rows: of four in every vector.
struct SixteenBytes {
    Ints rows[2];

    ALWAYS_INLINE SixteenBytes(const EightRows& from, size_t at) {
        UNROLL
        for (int i = 0; i < 2; ++i) {
            const auto lane = [&](int r) INLINE_LAMBDA { return load_16(from[4 * i + r] + at); };
            Ints v = _mm512_castsi128_si512(lane(0));
            v = _mm512_inserti32x4(v, lane(1), 1);
            v = _mm512_inserti32x4(v, lane(2), 2);
            rows[i] = _mm512_inserti32x4(v, lane(3), 3);
        }
    }

    // Dword kDword of every row, twice.
    template <int kDword>
    static constexpr Table<uint32_t> kDwords =
        table<uint32_t>([](int i) { return i % 8 * 4 + kDword; });
    template <int kDword>
    ALWAYS_INLINE Ints dwords() const {
        return _mm512_permutex2var_epi32(rows[0], kDwords<kDword>, rows[1]);
    }
};

// Two numbers, each in half of a vector, as i32 and as i16.
ALWAYS_INLINE Ints halves_i32(int first, int last) {
    return _mm512_inserti64x4(_mm512_set1_epi32(first), _mm256_set1_epi32(last), 1);
}
ALWAYS_INLINE Ints halves_i16(int first, int last) {
    return halves_i32(first * 0x10001, last * 0x10001);
}
// The low half of every dword.
ALWAYS_INLINE Floats low_halves(Ints v) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)); }
// 32 bytes, twice.
ALWAYS_INLINE Ints load_twice(const char* p) { return _mm512_broadcast_i64x4(load_32(p)); }

// Q4_K and Q5_K: d and dmin, and in 12 bytes scales and minima of six bits, see blocks.h.
template <class Block, bool kFifth>
struct ScalesLayout {
    static constexpr Order kOrder = kPairs;
    enum { kSteps = 2, kBytes = sizeof(Block), kNibbles = !kFifth, kFactors = 0 };
    enum { kZero = 0, kOffset = 1 };

    struct Header {
        Floats d, dmin;   // of eight rows, twice
        Ints w1, w2, w3;  // the 12 bytes, likewise
    };
    ALWAYS_INLINE static Header header(const EightRows& rows) {
        const SixteenBytes v(rows, 0);
        const Ints w0 = v.dwords<0>();
        return {low_halves(w0), low_halves(_mm512_srli_epi32(w0, 16)), v.dwords<1>(), v.dwords<2>(),
                v.dwords<3>()};
    }

    // Four numbers of six bits, of which `low` has four bits and `high` two more, two bits up.
    ALWAYS_INLINE static Ints six_bits(Ints low, Ints high) {
        return with_bits(low_nibbles(low), _mm512_srli_epi16(high, 2), 0x30);
    }
    // The bytes of every dword as floats: those of two blocks a vector.
    ALWAYS_INLINE static Floats two_bytes(Ints v, int first) {
        const Ints shifted = _mm512_srlv_epi32(v, halves_i32(8 * first, 8 * first + 8));
        return _mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32(255)));
    }

    ALWAYS_INLINE static void unpack(const Header& h, const EightRows& rows, int step, Step& to) {
        const Ints scales = step == 0 ? _mm512_and_si512(h.w1, bytes(63)) : six_bits(h.w3, h.w1);
        const Ints mins = step == 0 ? _mm512_and_si512(h.w2, bytes(63))
                                    : six_bits(_mm512_srli_epi16(h.w3, 4), h.w2);
        UNROLL
        for (int b = 0; b < 4; b += 2) {
            split(_mm512_mul_ps(h.d, two_bytes(scales, b)), to.d + b);
            const Floats m = _mm512_mul_ps(h.dmin, two_bytes(mins, b));
            split(_mm512_sub_ps(_mm512_setzero_ps(), m), to.m + b);
        }
        UNROLL
        for (int r = 0; r < 8; ++r) {
            const Ints q = load(rows[r] + offsetof(Block, q) + 64 * step);
            to.codes[0][r] = q;
            if (!kFifth) continue;
            // bit i of a byte is that of block i: to bit 4 for the low nibbles, of every other
            // block, and to bit 5 for the high ones
            const Ints qh = load_twice(rows[r] + sizeof(Block) - 128 - 32);
            const Ints bits = step == 0 ? _mm512_sllv_epi16(qh, halves_i16(4, 2))
                                        : _mm512_srlv_epi16(qh, halves_i16(0, 2));
            to.codes[0][r] = with_bits(low_nibbles(q), bits, 16);
            to.codes[1][r] = with_bits(high_nibbles(q), _mm512_srli_epi16(bits, 1), 16);
        }
    }
};

template <>
struct Layout<BlockQ4_K> : ScalesLayout<BlockQ4_K, false> {};
template <>
struct Layout<BlockQ5_K> : ScalesLayout<BlockQ5_K, true> {};

template <>
struct Layout<BlockQ6_K> {
    static constexpr Order kOrder = kInOrder;
    enum { kSteps = 2, kBytes = sizeof(BlockQ6_K), kNibbles = 0, kFactors = 1 };
    enum { kZero = 32, kOffset = 0 };

    struct Header {
        Eight d;
        SixteenBytes scales;
    };
    ALWAYS_INLINE static Header header(const EightRows& rows) {
        const SixteenBytes last(rows, kBytes - 16);  // d is the last word
        return {_mm512_castps512_ps256(low_halves(_mm512_srli_epi32(last.dwords<3>(), 16))),
                SixteenBytes(rows, offsetof(BlockQ6_K, scales))};
    }

    ALWAYS_INLINE static void unpack(const Header& h, const EightRows& rows, int step, Step& to) {
        UNROLL
        for (int i = 0; i < 2; ++i) {
            const Ints four = i == 0 ? (step == 0 ? h.scales.dwords<0>() : h.scales.dwords<2>())
                                     : (step == 0 ? h.scales.dwords<1>() : h.scales.dwords<3>());
            to.factors[i][0] = signed_bytes(four, halves_i32(24, 8));
            to.factors[i][1] = signed_bytes(four, halves_i32(16, 0));
        }
        UNROLL
        for (int b = 0; b < 4; ++b) to.d[b] = h.d;
        UNROLL
        for (int r = 0; r < 8; ++r) {
            const Ints ql = load(rows[r] + 64 * step);
            const Ints qh = load_twice(rows[r] + offsetof(BlockQ6_K, qh) + 32 * step);
            // bits 2i and 2i + 1 of a byte are those of block i
            to.codes[0][r] =
                with_bits(low_nibbles(ql), _mm512_sllv_epi16(qh, halves_i16(4, 2)), 0x30);
            to.codes[1][r] =
                with_bits(high_nibbles(ql), _mm512_srlv_epi16(qh, halves_i16(0, 2)), 0x30);
        }
    }

    // The byte of every dword that `shift` moves to the top.
    ALWAYS_INLINE static Ints signed_bytes(Ints v, Ints shift) {
        return _mm512_srai_epi32(_mm512_sllv_epi32(v, shift), 24);
    }
};

}  // namespace

}  // namespace rwkv_edge
