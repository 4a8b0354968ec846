// SPDX-License-Identifier: Apache-2.0
// How the block types lie in memory, for avx512_blocks.inl: what a step of 128 columns of eight
// rows is made of.

// A table of indices for one permutation: element i is of(i).
template <class T>
struct alignas(64) Table {
    T at[64 / sizeof(T)];
};
template <class T, class Of>
constexpr Table<T> table(Of of) {
    Table<T> made = {};
    for (int i = 0; i < (int)(64 / sizeof(T)); ++i) made.at[i] = (T)of(i);
    return made;
}
template <class T>
ALWAYS_INLINE Ints indices(const Table<T>& t) {
    return _mm512_load_si512(&t);
}

ALWAYS_INLINE Ints load512(const void* p) { return _mm512_loadu_si512(p); }
ALWAYS_INLINE Ints bytes(char v) { return _mm512_set1_epi8(v); }
ALWAYS_INLINE Ints low_nibbles(Ints v) { return _mm512_and_si512(v, bytes(15)); }
ALWAYS_INLINE Ints high_nibbles(Ints v) { return low_nibbles(_mm512_srli_epi16(v, 4)); }

// `codes` with the bits of `mask` from `upper`.
ALWAYS_INLINE Ints with_bits(Ints codes, Ints upper, char mask) {
    return _mm512_ternarylogic_epi32(codes, upper, bytes(mask), 0xf8);  // codes | (upper & mask)
}

// Byte i of every eight becomes the eight bits of its qword from bit `index` on, which wraps.
ALWAYS_INLINE Ints shift_bytes(Ints v, const Table<uint8_t>& index) {
    return _mm512_multishift_epi64_epi8(indices(index), v);
}

// 128 columns of eight rows. In which order the codes lie, the type's kOrder says.
struct Step {
    Ints codes[2][8];   // [half][row] 64 codes
    Eight d[4], m[4];   // of every 32 columns: a value is d * (code - zero) + m
    Ints factors[4];    // of every 16 columns, a pair a vector: an i32 per row
};

// In both halves of a step, 128-bit lane i holds 16 codes of:
enum Order {
    kHalves,    // block i: its first 16 columns, and its last 16
    kInOrder,   // columns 16i .. 16i+15 of the step, and so on
    kPairs,     // of every 64 columns the first 32, and the last 32
};

// What each row has is put side by side: element 8i + r is element i of row r.
struct Columns {
    Ints all;

    // Row r has them at `index` in `from`.
    ALWAYS_INLINE void put(int r, Ints from, Ints index) {
        all = _mm512_mask_permutexvar_epi16(all, 0x01010101u << r, index, from);
    }
    ALWAYS_INLINE void to_floats(Eight out[4]) const {
        const Floats first = _mm512_cvtph_ps(_mm512_castsi512_si256(all));
        const Floats second = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(all, 1));
        out[0] = _mm512_castps512_ps256(first);
        out[1] = _mm512_extractf32x8_ps(first, 1);
        out[2] = _mm512_castps512_ps256(second);
        out[3] = _mm512_extractf32x8_ps(second, 1);
    }
};

// A Layout says:
//   kBlocks   how many times 32 columns a block has
//   kOrder    see above
//   kZero     the code that means zero, or 0
//   kOffset   whether m is added to every value
//   kFactors  whether each 16 columns have a factor of their own
//   kAhead    how many bytes ahead a decode step asks for memory
//   header    what is read once per block of 256 columns
//   unpack    makes a Step, the `half` of a block of 256 columns

struct NoHeader {};

template <class Block>
struct Layout;

// Four blocks of 32 columns whose codes are nibbles and perhaps a fifth bit; d comes first, and
// perhaps m.
template <class Block, bool kFifth, int kZeroCode>
struct NibbleLayout {
    static constexpr Order kOrder = kHalves;
    enum { kBlocks = 1, kZero = kZeroCode, kOffset = kZero == 0, kFactors = 0, kAhead = 1024 };
    enum { kStepBytes = 4 * sizeof(Block), kSecond = kStepBytes - 64 };

    // Where byte `at` of block b is among the words of two loads, from 0 and from kSecond on.
    static constexpr int word(int b, int at) {
        const int byte = b * (int)sizeof(Block) + at;
        return byte < 64 ? byte / 2 : 32 + (byte - kSecond) / 2;
    }
    static constexpr Table<uint16_t> kBytes = table<uint16_t>(
        [](int i) { return word(i / 8, (int)offsetof(Block, q) + i % 8 * 2); });
    // In both qwords of a block: two words of fifth bits, d, m.
    static constexpr int extra_at(int i) {
        const int m = kOffset ? 2 : 0, qh = kFifth ? (int)offsetof(Block, q) - 4 : 0;
        const int at[4] = {qh, qh + 2, 0, m};
        return at[i];
    }
    static constexpr Table<uint16_t> kExtra =
        table<uint16_t>([](int i) { return word(i / 8, extra_at(i % 4)); });
    // Column 8j + i of a block has its fifth bit there; it goes to bit 4 of byte i.
    static constexpr Table<uint8_t> kLowBits =
        table<uint8_t>([](int i) { return (i % 16 - 4) & 63; });
    static constexpr Table<uint8_t> kHighBits =
        table<uint8_t>([](int i) { return i % 16 + 16 - 4; });
    static constexpr Table<uint16_t> kScales =
        table<uint16_t>([](int i) { return kFifth ? i / 8 * 8 + 2 : word(i / 8, 0); });
    static constexpr Table<uint16_t> kOffsets =
        table<uint16_t>([](int i) { return kFifth ? i / 8 * 8 + 3 : word(i / 8, 2); });

    using Header = NoHeader;
    ALWAYS_INLINE static Header header(const EightRows&) { return {}; }

    ALWAYS_INLINE static void unpack(const Header&, const EightRows& rows, int, Step& to) {
        Columns d = {_mm512_setzero_si512()}, m = d;
        UNROLL
        for (int r = 0; r < 8; ++r) {
            const Ints first = load512(rows[r]), second = load512(rows[r] + kSecond);
            const Ints q = _mm512_permutex2var_epi16(first, indices(kBytes), second);
            Ints low = low_nibbles(q), high = high_nibbles(q), extra = first;
            if (kFifth) {
                extra = _mm512_permutex2var_epi16(first, indices(kExtra), second);
                low = with_bits(low, shift_bytes(extra, kLowBits), 16);
                high = with_bits(high, shift_bytes(extra, kHighBits), 16);
            }
            to.codes[0][r] = low;
            to.codes[1][r] = high;
            d.put(r, extra, indices(kScales));
            if (kOffset) m.put(r, extra, indices(kOffsets));
        }
        d.to_floats(to.d);
        if (kOffset) m.to_floats(to.m);
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

// Signed bytes become unsigned: 128 more.
template <>
struct Layout<BlockQ8_0> {
    static constexpr Order kOrder = kInOrder;
    enum { kBlocks = 1, kZero = 128, kOffset = 0, kFactors = 0, kAhead = 1024 };
    // The d of four blocks are within two loads.
    enum { kSecond = 48 };
    static constexpr Table<uint16_t> kScales = table<uint16_t>([](int i) {
        const int byte = i / 8 * (int)sizeof(BlockQ8_0);
        return byte < 64 ? byte / 2 : 32 + (byte - kSecond) / 2;
    });

    using Header = NoHeader;
    ALWAYS_INLINE static Header header(const EightRows&) { return {}; }

    ALWAYS_INLINE static void unpack(const Header&, const EightRows& rows, int, Step& to) {
        constexpr int kSize = sizeof(BlockQ8_0), kCodes = offsetof(BlockQ8_0, q);
        Ints d = _mm512_setzero_si512();
        UNROLL
        for (int r = 0; r < 8; ++r) {
            UNROLL
            for (int half = 0; half < 2; ++half) {
                const char* p = rows[r] + half * 2 * kSize;
                const Ints first = _mm512_castsi256_si512(
                    _mm256_loadu_si256((const __m256i*)(p + kCodes)));
                const __m256i second = _mm256_loadu_si256((const __m256i*)(p + kSize + kCodes));
                to.codes[half][r] =
                    _mm512_xor_si512(_mm512_inserti64x4(first, second, 1), bytes((char)0x80));
            }
            const Ints four = _mm512_permutex2var_epi16(load512(rows[r]), indices(kScales),
                                                        load512(rows[r] + kSecond));
            d = _mm512_mask_mov_epi16(d, 0x01010101u << r, four);
        }
        Columns{d}.to_floats(to.d);
    }
};

// 16 bytes at `at` of four rows.
ALWAYS_INLINE Ints four_rows(const EightRows& rows, int first, int64_t at) {
    const auto bytes16 = [&](int r) {
        return _mm_loadu_si128((const __m128i*)(rows[first + r] + at));
    };
    Ints v = _mm512_castsi128_si512(bytes16(0));
    v = _mm512_inserti32x4(v, bytes16(1), 1);
    v = _mm512_inserti32x4(v, bytes16(2), 2);
    return _mm512_inserti32x4(v, bytes16(3), 3);
}

ALWAYS_INLINE void split(Floats v, Eight* first, Eight* second) {
    *first = _mm512_castps512_ps256(v);
    *second = _mm512_extractf32x8_ps(v, 1);
}

// Q4_K and Q5_K: d, dmin, and six-bit scales and minima in 12 bytes; see blocks.h.
template <class Block, bool kFifth>
struct ScalesLayout {
    static constexpr Order kOrder = kPairs;
    enum { kBlocks = 8, kZero = 0, kOffset = 1, kFactors = 0, kAhead = 1024 };

    struct Header {
        Floats d, dmin;   // of eight rows, twice
        Ints first, last; // the first 16 bytes of four rows
    };
    static constexpr Table<uint16_t> kScales = table<uint16_t>(
        [](int i) { return i % 8 / 4 * 32 + i % 4 * 8 + i / 8 % 2; });
    // Of each row the dwords 1 and 2.
    static constexpr Table<uint32_t> kSix =
        table<uint32_t>([](int i) { return i % 8 / 4 * 16 + i % 4 * 4 + 1 + i / 8; });
    // Byte i of the dwords of eight rows: of two blocks of 32 columns; [block][row].
    template <int kByte>
    static constexpr Table<uint8_t> kByteOf =
        table<uint8_t>([](int i) { return kByte + i / 32 + i / 4 % 8 * 4; });

    ALWAYS_INLINE static Header header(const EightRows& rows) {
        Header h;
        h.first = four_rows(rows, 0, 0);
        h.last = four_rows(rows, 4, 0);
        const Ints d = _mm512_permutex2var_epi16(h.first, indices(kScales), h.last);
        const Floats both = _mm512_cvtph_ps(_mm512_castsi512_si256(d));
        h.d = _mm512_shuffle_f32x4(both, both, 0x44);
        h.dmin = _mm512_shuffle_f32x4(both, both, 0xee);
        return h;
    }

    // In dwords 1 and 2 of every row: the scales and the minima of a step.
    ALWAYS_INLINE static Ints six_bits(Ints v, int half) {
        if (half == 0) return _mm512_and_si512(v, bytes(63));
        const Ints shift = _mm512_set_epi32(0, 4, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0);
        const Ints low = low_nibbles(_mm512_srlv_epi32(_mm512_shuffle_epi32(v, _MM_PERM_DDDD), shift));
        return with_bits(low, _mm512_srli_epi16(v, 2), 0x30);
    }

    // Two blocks of 32 columns.
    template <int kByte>
    ALWAYS_INLINE static Floats pair(Ints six) {
        return _mm512_cvtepi32_ps(_mm512_maskz_permutexvar_epi8(0x1111111111111111u,
                                                                indices(kByteOf<kByte>), six));
    }

    ALWAYS_INLINE static void unpack(const Header& h, const EightRows& rows, int half, Step& to) {
        const Ints six = _mm512_permutex2var_epi32(six_bits(h.first, half), indices(kSix),
                                                   six_bits(h.last, half));
        split(_mm512_mul_ps(h.d, pair<0>(six)), &to.d[0], &to.d[1]);
        split(_mm512_mul_ps(h.d, pair<2>(six)), &to.d[2], &to.d[3]);
        const Floats zero = _mm512_setzero_ps();
        split(_mm512_sub_ps(zero, _mm512_mul_ps(h.dmin, pair<32>(six))), &to.m[0], &to.m[1]);
        split(_mm512_sub_ps(zero, _mm512_mul_ps(h.dmin, pair<34>(six))), &to.m[2], &to.m[3]);
        UNROLL
        for (int r = 0; r < 8; ++r) {
            const Ints q = load512(rows[r] + offsetof(Block, q) + 64 * half);
            to.codes[0][r] = low_nibbles(q);
            to.codes[1][r] = high_nibbles(q);
            if (kFifth) fifth_bits(rows[r], half, to.codes[0][r], to.codes[1][r]);
        }
    }

    // Bit i of byte j is the fifth of column j of block i; it goes to bit 4.
    template <int kBit>
    static constexpr Table<uint8_t> kBits =
        table<uint8_t>([](int i) { return (i % 8 * 8 + kBit + i / 32 * 2 - 4) & 63; });
    ALWAYS_INLINE static void fifth_bits(const char* block, int half, Ints& low, Ints& high) {
        const Ints qh = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)(block + 16)));
        low = with_bits(low, shift_bytes(qh, half == 0 ? kBits<0> : kBits<4>), 16);
        high = with_bits(high, shift_bytes(qh, half == 0 ? kBits<1> : kBits<5>), 16);
    }
};

template <>
struct Layout<BlockQ4_K> : ScalesLayout<BlockQ4_K, false> {};
template <>
struct Layout<BlockQ5_K> : ScalesLayout<BlockQ5_K, true> {};

template <>
struct Layout<BlockQ6_K> {
    static constexpr Order kOrder = kInOrder;
    enum { kBlocks = 8, kZero = 32, kOffset = 0, kFactors = 1, kAhead = 1024 };
    // d and the scales are in the last 64 bytes.
    enum { kLast = sizeof(BlockQ6_K) - 64, kScalesAt = offsetof(BlockQ6_K, scales) - kLast };

    struct Header {
        Eight d;
    };
    // Scales [column / 16][row], in pairs of 16 columns that the dots have side by side.
    template <int kHalf>
    static constexpr Table<uint8_t> kScales = table<uint8_t>([](int i) {
        const int pair = i / 16, second = i / 8 % 2;  // columns 16 times 0 2, 1 3, 4 6, 5 7
        return kScalesAt + 8 * kHalf + pair / 2 * 4 + pair % 2 + second * 2;
    });
    // Two upper bits of a code, to bits 4 and 5: of the first 64 columns of a step, and the last.
    static constexpr Table<uint8_t> kLowBits =
        table<uint8_t>([](int i) { return (i % 8 * 8 + i / 32 * 2 - 4) & 63; });
    static constexpr Table<uint8_t> kHighBits =
        table<uint8_t>([](int i) { return i % 8 * 8 + i / 32 * 2; });

    ALWAYS_INLINE static Header header(const EightRows& rows) {
        Columns d = {_mm512_setzero_si512()};
        UNROLL
        for (int r = 0; r < 8; ++r) d.put(r, load512(rows[r] + kLast), _mm512_set1_epi16(31));
        return {_mm512_castps512_ps256(_mm512_cvtph_ps(_mm512_castsi512_si256(d.all)))};
    }

    ALWAYS_INLINE static void unpack(const Header& h, const EightRows& rows, int half, Step& to) {
        Ints scales = _mm512_setzero_si512();
        UNROLL
        for (int r = 0; r < 8; ++r) {
            const char* block = rows[r];
            const Ints ql = load512(block + 64 * half);
            const Ints qh = _mm512_broadcast_i64x4(_mm256_loadu_si256(
                (const __m256i*)(block + offsetof(BlockQ6_K, qh) + 32 * half)));
            to.codes[0][r] = with_bits(low_nibbles(ql), shift_bytes(qh, kLowBits), 0x30);
            to.codes[1][r] = with_bits(high_nibbles(ql), shift_bytes(qh, kHighBits), 0x30);
            scales = _mm512_mask_permutexvar_epi8(scales, 0x0101010101010101u << r,
                                                  indices(half == 0 ? kScales<0> : kScales<1>),
                                                  load512(block + kLast));
        }
        to.factors[0] = _mm512_cvtepi8_epi32(_mm512_castsi512_si128(scales));
        to.factors[1] = _mm512_cvtepi8_epi32(_mm512_extracti32x4_epi32(scales, 1));
        to.factors[2] = _mm512_cvtepi8_epi32(_mm512_extracti32x4_epi32(scales, 2));
        to.factors[3] = _mm512_cvtepi8_epi32(_mm512_extracti32x4_epi32(scales, 3));
        UNROLL
        for (int b = 0; b < 4; ++b) to.d[b] = h.d;
    }
};
