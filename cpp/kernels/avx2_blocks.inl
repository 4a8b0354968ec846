// SPDX-License-Identifier: Apache-2.0
// Products with block types, for avx2.cpp.
//
// Lanes are rows. The codes of 32 columns of eight rows are eight vectors, vector j holding in lane
// r the codes 4j .. 4j+3 of row r; multiplied with the broadcast activations 4j .. 4j+3 they give
// the integer dots of eight rows at once. A decode step uses the vectors as they come; with more
// tokens they go into a tile that all tokens share. Both add the same terms in the same order.

// Eight rows, `stride` bytes apart.
struct Rows {
    const char* first;
    int64_t stride;

    const char* operator()(int lane) const { return first + lane * stride; }
    Rows operator+(int64_t bytes) const { return {first + bytes, stride}; }
};

// 16 bytes at `at` of every row -> out[j], lane r = dword j of row r.
ALWAYS_INLINE void dwords(Rows rows, size_t at, __m256i out[4]) {
    __m256i in[4];
    for (int r = 0; r < 4; ++r) {  // rows r and r + 4 in the halves of in[r]
        const __m128i low = _mm_loadu_si128((const __m128i*)(rows(r) + at));
        const __m128i high = _mm_loadu_si128((const __m128i*)(rows(r + 4) + at));
        in[r] = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
    }
    const __m256i a = _mm256_unpacklo_epi32(in[0], in[1]), b = _mm256_unpackhi_epi32(in[0], in[1]);
    const __m256i c = _mm256_unpacklo_epi32(in[2], in[3]), d = _mm256_unpackhi_epi32(in[2], in[3]);
    out[0] = _mm256_unpacklo_epi64(a, c);
    out[1] = _mm256_unpackhi_epi64(a, c);
    out[2] = _mm256_unpacklo_epi64(b, d);
    out[3] = _mm256_unpackhi_epi64(b, d);
}

// The half at byte `at` of every row.
ALWAYS_INLINE F32 halves(Rows rows, size_t at) {
    const auto half = [&](int r) {
        uint16_t bits;
        memcpy(&bits, rows(r) + at, sizeof bits);
        return (int)bits;
    };
    __m128i low = _mm_cvtsi32_si128(half(0)), high = _mm_cvtsi32_si128(half(4));
    low = _mm_insert_epi16(low, half(1), 1);
    high = _mm_insert_epi16(high, half(5), 1);
    low = _mm_insert_epi16(low, half(2), 2);
    high = _mm_insert_epi16(high, half(6), 2);
    low = _mm_insert_epi16(low, half(3), 3);
    high = _mm_insert_epi16(high, half(7), 3);
    return _mm256_cvtph_ps(_mm_unpacklo_epi64(low, high));
}

// The halves in the low 16 bits of eight dwords.
ALWAYS_INLINE F32 low_halves(__m256i v) {
    const __m256i packed =
        _mm256_packus_epi32(_mm256_and_si256(v, _mm256_set1_epi32(0xffff)), _mm256_setzero_si256());
    return _mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}

ALWAYS_INLINE __m256i low_nibbles(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
ALWAYS_INLINE __m256i high_nibbles(__m256i v) { return low_nibbles(_mm256_srli_epi16(v, 4)); }

// Bits `from` and up of every byte to bit 4 and up, under a mask.
ALWAYS_INLINE __m256i to_bit4(__m256i v, int from, char mask) {
    v = from <= 4 ? _mm256_slli_epi16(v, 4 - from) : _mm256_srli_epi16(v, from - 4);
    return _mm256_and_si256(v, _mm256_set1_epi8(mask));
}

ALWAYS_INLINE F32 byte_as_float(__m256i v, int byte) {
    return _mm256_cvtepi32_ps(
        _mm256_and_si256(_mm256_srli_epi32(v, 8 * byte), _mm256_set1_epi32(255)));
}

// --- the types ---
//
// A Layout says how a block of a type makes the codes of kBlocks times 32 columns:
//   kGroup    how many of them come out of the same bytes
//   kAdds     how many products of a vector an i16 can add up before it could overflow (codes of 15
//             times 127, two per i16: 3810 x 8 < 2^15; 31: 7874 x 4; 63: 16002 x 2)
//   kZero     the code that means zero, or 0
//   kOffset   whether m is added to every value
//   Header    what is read once per block
//   codes     calls use(i, j, codes) for each vector j of each 32 columns i of a group
//   scale, offset   d and m of 32 columns

struct NoHeader {};

// Types of one block of 32 whose codes are nibbles, and perhaps a fifth bit.
template <class Block>
struct NibbleLayout {
    enum { kBlocks = 1, kGroup = 1 };
    using Header = NoHeader;
    static Header header(Rows) { return {}; }
    template <class Use>
    ALWAYS_INLINE static void codes(Rows at, const Header&, int, Use use) {
        __m256i bytes[4];
        dwords(at, offsetof(Block, q), bytes);
        for (int j = 0; j < 4; ++j) {
            use(0, j, low_nibbles(bytes[j]));
            use(0, j + 4, high_nibbles(bytes[j]));
        }
    }
    ALWAYS_INLINE static F32 scale(Rows at, const Header&, int) { return halves(at, 0); }
    ALWAYS_INLINE static F32 offset(Rows at, const Header&, int) { return halves(at, 2); }
};

// The fifth bit of value 4j + i, bit 4j + i of a row's qh, goes to bit 4 of byte i of vector j.
template <class Block>
struct FifthBitLayout : NibbleLayout<Block> {
    using Header = NoHeader;
    template <class Use>
    ALWAYS_INLINE static void codes(Rows at, const Header& header, int, Use use) {
        int32_t words[8];
        for (int r = 0; r < 8; ++r) memcpy(&words[r], at(r) + offsetof(Block, qh), 4);
        const __m256i qh = _mm256_setr_epi32(words[0], words[1], words[2], words[3], words[4],
                                             words[5], words[6], words[7]);
        const __m256i up =
            _mm256_slli_epi32(qh, 4);  // now each nibble of qh is one on top of a byte
        const __m256i byte0 = _mm256_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12,
                                               0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
        const __m256i own_bit = _mm256_set1_epi32((int32_t)0x80402010u);
        NibbleLayout<Block>::codes(at, header, 0, [&](int, int j, __m256i codes) INLINE_LAMBDA {
            const __m256i byte = _mm256_shuffle_epi8(
                j % 2 == 0 ? up : qh, _mm256_add_epi8(byte0, _mm256_set1_epi8((char)(j / 2))));
            const __m256i bit = _mm256_and_si256(byte, own_bit);
            use(0, j, _mm256_or_si256(codes, _mm256_min_epu8(bit, _mm256_set1_epi8(16))));
        });
    }
};

template <class Block>
struct Layout;
template <>
struct Layout<BlockQ4_0> : NibbleLayout<BlockQ4_0> {
    enum { kAdds = 8, kZero = 8, kOffset = 0 };
};
template <>
struct Layout<BlockQ4_1> : NibbleLayout<BlockQ4_1> {
    enum { kAdds = 8, kZero = 0, kOffset = 1 };
};
template <>
struct Layout<BlockQ5_0> : FifthBitLayout<BlockQ5_0> {
    enum { kAdds = 4, kZero = 16, kOffset = 0 };
};
template <>
struct Layout<BlockQ5_1> : FifthBitLayout<BlockQ5_1> {
    enum { kAdds = 4, kZero = 0, kOffset = 1 };
};

// d, dmin and the six-bit scales and minima of Q4_K and Q5_K: the first 16 bytes.
struct ScalesK {
    F32 d, dmin;
    __m256i scales[2], mins[2];  // four bytes each per row
};

ALWAYS_INLINE ScalesK scales_k(Rows at) {
    __m256i w[4];
    dwords(at, 0, w);
    const __m256i six = _mm256_set1_epi8(63), four = _mm256_set1_epi8(15),
                  top = _mm256_set1_epi8(0x30);
    return {low_halves(w[0]),
            low_halves(_mm256_srli_epi32(w[0], 16)),
            {_mm256_and_si256(w[1], six),
             _mm256_or_si256(_mm256_and_si256(w[3], four),
                             _mm256_and_si256(_mm256_srli_epi16(w[1], 2), top))},
            {_mm256_and_si256(w[2], six),
             _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(w[3], 4), four),
                             _mm256_and_si256(_mm256_srli_epi16(w[2], 2), top))}};
}

ALWAYS_INLINE F32 scale_k(const ScalesK& h, int i) {
    return mul(h.d, byte_as_float(h.scales[i / 4], i % 4));
}
ALWAYS_INLINE F32 offset_k(const ScalesK& h, int i) {
    return sub(set(0.0f), mul(h.dmin, byte_as_float(h.mins[i / 4], i % 4)));
}

template <>
struct Layout<BlockQ4_K> {
    enum { kBlocks = 8, kGroup = 2, kAdds = 8, kZero = 0, kOffset = 1 };
    using Header = ScalesK;
    ALWAYS_INLINE static Header header(Rows at) { return scales_k(at); }
    template <class Use>
    ALWAYS_INLINE static void codes(Rows at, const Header&, int group, Use use) {
        for (int half = 0; half < 2; ++half) {
            __m256i bytes[4];
            dwords(at, offsetof(BlockQ4_K, q) + (size_t)(32 * group + 16 * half), bytes);
            for (int j = 0; j < 4; ++j) {
                use(0, 4 * half + j, low_nibbles(bytes[j]));
                use(1, 4 * half + j, high_nibbles(bytes[j]));
            }
        }
    }
    ALWAYS_INLINE static F32 scale(Rows, const Header& h, int i) { return scale_k(h, i); }
    ALWAYS_INLINE static F32 offset(Rows, const Header& h, int i) { return offset_k(h, i); }
};

template <>
struct Layout<BlockQ5_K> {
    enum { kBlocks = 8, kGroup = 2, kAdds = 4, kZero = 0, kOffset = 1 };
    struct Header {
        ScalesK k;
        __m256i qh[8];
    };
    ALWAYS_INLINE static Header header(Rows at) {
        Header h;
        h.k = scales_k(at);
        dwords(at, offsetof(BlockQ5_K, qh), h.qh);
        dwords(at, offsetof(BlockQ5_K, qh) + 16, h.qh + 4);
        return h;
    }
    template <class Use>
    ALWAYS_INLINE static void codes(Rows at, const Header& h, int group, Use use) {
        for (int half = 0; half < 2; ++half) {
            __m256i bytes[4];
            dwords(at, offsetof(BlockQ5_K, q) + (size_t)(32 * group + 16 * half), bytes);
            for (int j = 0; j < 4; ++j) {
                const __m256i qh = h.qh[4 * half + j];
                use(0, 4 * half + j,
                    _mm256_or_si256(low_nibbles(bytes[j]), to_bit4(qh, 2 * group, 0x10)));
                use(1, 4 * half + j,
                    _mm256_or_si256(high_nibbles(bytes[j]), to_bit4(qh, 2 * group + 1, 0x10)));
            }
        }
    }
    ALWAYS_INLINE static F32 scale(Rows, const Header& h, int i) { return scale_k(h.k, i); }
    ALWAYS_INLINE static F32 offset(Rows, const Header& h, int i) { return offset_k(h.k, i); }
};

template <>
struct Layout<BlockQ6_K> {
    enum { kBlocks = 8, kGroup = 4, kAdds = 2, kZero = 32, kOffset = 0 };
    struct Header {
        F32 d;
        __m256i scales[4];  // four bytes each per row, two per 32 columns
    };
    ALWAYS_INLINE static Header header(Rows at) {
        Header h;
        h.d = halves(at, offsetof(BlockQ6_K, d));
        dwords(at, offsetof(BlockQ6_K, scales), h.scales);
        return h;
    }
    template <class Use>
    ALWAYS_INLINE static void codes(Rows at, const Header&, int group, Use use) {
        __m256i qh[8];
        dwords(at, offsetof(BlockQ6_K, qh) + (size_t)(32 * group), qh);
        dwords(at, offsetof(BlockQ6_K, qh) + (size_t)(32 * group + 16), qh + 4);
        for (int run = 0; run < 2; ++run) {
            for (int half = 0; half < 2; ++half) {
                __m256i bytes[4];
                dwords(at, (size_t)(64 * group + 32 * run + 16 * half), bytes);
                for (int i = 0; i < 4; ++i) {
                    const int j = 4 * half + i;
                    use(run, j,
                        _mm256_or_si256(low_nibbles(bytes[i]), to_bit4(qh[j], 2 * run, 0x30)));
                    use(run + 2, j,
                        _mm256_or_si256(high_nibbles(bytes[i]), to_bit4(qh[j], 2 * run + 4, 0x30)));
                }
            }
        }
    }
    ALWAYS_INLINE static F32 scale(Rows, const Header& h, int) { return h.d; }
    ALWAYS_INLINE static F32 offset(Rows, const Header&, int) { return set(0.0f); }
    // Bytes `a` and `b` of every dword, as a pair of i16.
    ALWAYS_INLINE static __m256i pair(__m256i v, int a, int b) {
        const auto at = [&](int lane) {
            return _mm_set1_epi32((4 * lane + b) << 24 | (4 * lane + a) << 8 | 0x00800080);
        };
        const __m128i low =
            _mm_unpacklo_epi64(_mm_unpacklo_epi32(at(0), at(1)), _mm_unpacklo_epi32(at(2), at(3)));
        return _mm256_srai_epi16(_mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(low)), 8);
    }
};

// Codes of -128 to 127: a product of two signed bytes takes the sign to the other side.
struct SignedCodes {
    __m256i magnitude, sign;  // sign: -1 in every negative byte
};

template <>
struct Layout<BlockQ8_0> {
    enum { kBlocks = 1, kGroup = 1, kAdds = 1, kZero = 0, kOffset = 0 };
    using Header = NoHeader;
    static Header header(Rows) { return {}; }
    template <class Use>
    ALWAYS_INLINE static void codes(Rows at, const Header&, int, Use use) {
        for (int half = 0; half < 2; ++half) {
            __m256i bytes[4];
            dwords(at, offsetof(BlockQ8_0, q) + (size_t)(16 * half), bytes);
            for (int j = 0; j < 4; ++j)
                use(0, 4 * half + j,
                    SignedCodes{_mm256_abs_epi8(bytes[j]),
                                _mm256_cmpgt_epi8(_mm256_setzero_si256(), bytes[j])});
        }
    }
    ALWAYS_INLINE static F32 scale(Rows at, const Header&, int) { return halves(at, 0); }
    ALWAYS_INLINE static F32 offset(Rows, const Header&, int) { return set(0.0f); }
};

// --- dots ---

// Pairs of products added.
ALWAYS_INLINE __m256i products(__m256i codes, __m256i x) { return _mm256_maddubs_epi16(codes, x); }
// Where the code is negative, ~x stands for -x: short by one magnitude, see Extra.
ALWAYS_INLINE __m256i products(SignedCodes codes, __m256i x) {
    return _mm256_maddubs_epi16(codes.magnitude, _mm256_xor_si256(x, codes.sign));
}

// What 32 columns need besides their codes: what the dots of each 16 are multiplied with, and what
// is taken from the total.
template <class Block>
struct Extra {
    ALWAYS_INLINE static Extra of(const typename Layout<Block>::Header&, int) { return {}; }
    ALWAYS_INLINE __m256i half(int) const { return _mm256_set1_epi16(1); }
    // The total less zero * (sum of x), whose halves are i16.
    ALWAYS_INLINE __m256i correct(__m256i total, __m256i x_halves) const {
        if (Layout<Block>::kZero == 0) return total;
        const __m256i zero = _mm256_set1_epi16(Layout<Block>::kZero);
        return _mm256_sub_epi32(total, _mm256_madd_epi16(x_halves, zero));
    }
};

// The integer scales of each 16 columns, and 32 times both as a pair.
template <>
struct Extra<BlockQ6_K> {
    __m256i scales[2], zeros;

    ALWAYS_INLINE static Extra of(const Layout<BlockQ6_K>::Header& h, int i) {
        const __m256i v = h.scales[i / 2];
        const int at = i % 2 * 2;
        using L = Layout<BlockQ6_K>;
        return {{L::pair(v, at, at), L::pair(v, at + 1, at + 1)},
                _mm256_slli_epi16(L::pair(v, at, at + 1), 5)};
    }
    ALWAYS_INLINE __m256i half(int i) const { return scales[i]; }
    ALWAYS_INLINE __m256i correct(__m256i total, __m256i x_halves) const {
        return _mm256_sub_epi32(total, _mm256_madd_epi16(x_halves, zeros));
    }
};

// The magnitudes of the negative codes, added.
template <>
struct Extra<BlockQ8_0> {
    __m256i negatives;

    ALWAYS_INLINE static Extra of(const SignedCodes* codes) {
        const __m256i ones = _mm256_set1_epi16(1), bytes = _mm256_set1_epi8(1);
        __m256i total = _mm256_setzero_si256();
        for (int j = 0; j < 8; ++j) {
            const __m256i negative = _mm256_and_si256(codes[j].magnitude, codes[j].sign);
            total = _mm256_add_epi32(
                total, _mm256_madd_epi16(_mm256_maddubs_epi16(negative, bytes), ones));
        }
        return {total};
    }
    ALWAYS_INLINE __m256i half(int) const { return _mm256_set1_epi16(1); }
    ALWAYS_INLINE __m256i correct(__m256i total, __m256i) const {
        return _mm256_add_epi32(total, negatives);
    }
};

// The integer dots of eight rows over 32 columns, vector after vector; those that are added up in
// i16 may come mixed with others, but each kAdds in order.
template <class Block>
struct Dot {
    enum { kAdds = Layout<Block>::kAdds };
    __m256i sums[8 / kAdds], total;

    template <class Codes>
    ALWAYS_INLINE void add(int j, Codes codes, __m256i x, const Extra<Block>& extra) {
        __m256i& sum = sums[j / kAdds];
        const __m256i product = products(codes, x);
        sum = j % kAdds == 0 ? product : _mm256_add_epi16(sum, product);
        KEEP(sum);
        if (j % kAdds != kAdds - 1) return;
        const __m256i wide = _mm256_madd_epi16(sum, extra.half(j / 4));
        total = j < kAdds ? wide : _mm256_add_epi32(total, wide);
    }
};

// What a block of 32 activations is to the sums: its scale, the sums of its halves, scale * sum.
struct BlockOfX {
    F32 scale;
    __m256i halves;
    F32 scaled_sum;

    ALWAYS_INLINE static BlockOfX of(const Activation& x, int64_t i) {
        int32_t halves;
        memcpy(&halves, x.sum + 2 * i, sizeof halves);
        return {set(x.scale[i]), _mm256_set1_epi32(halves), set(x.scaled_sum[i])};
    }
};

// acc + d * scale * (dot - zero * sum) [+ m * scale * sum]
template <class Block>
ALWAYS_INLINE F32 add_block(F32 acc, __m256i dot, const Extra<Block>& extra, F32 d, F32 m,
                            const BlockOfX& x) {
    acc = fma(_mm256_cvtepi32_ps(extra.correct(dot, x.halves)), mul(d, x.scale), acc);
    if (Layout<Block>::kOffset) acc = fma(m, x.scaled_sum, acc);
    return acc;
}

// --- one token ---

// Sums over eight rows of whole blocks; x holds the activations broadcast, four to a vector.
template <class Block>
ALWAYS_INLINE F32 one_token(Rows rows, const __m256i* x, const MatmulArgs& a) {
    using L = Layout<Block>;
    F32 acc = set(0.0f);
    for (int64_t i = 0; i < a.cols / kBlock; i += L::kBlocks) {
        const typename L::Header header = L::header(rows);
        UNROLL
        for (int group = 0; group < L::kBlocks / L::kGroup; ++group) {
            Dot<Block> dots[L::kGroup];
            Extra<Block> extra[L::kGroup];
            for (int b = 0; b < L::kGroup; ++b)
                extra[b] = Extra<Block>::of(header, group * L::kGroup + b);
            const int64_t first = i + group * L::kGroup;
            L::codes(rows, header, group, [&](int b, int j, __m256i codes) INLINE_LAMBDA {
                dots[b].add(j, codes, x[(first + b) * 8 + j], extra[b]);
            });
            for (int b = 0; b < L::kGroup; ++b) {
                const int at = group * L::kGroup + b;
                const F32 m = L::kOffset ? L::offset(rows, header, at) : set(0.0f);
                acc = add_block<Block>(acc, dots[b].total, extra[b], L::scale(rows, header, at), m,
                                       BlockOfX::of(a.x, first + b));
            }
        }
        rows.first += sizeof(Block);
    }
    return acc;
}

// Eight vectors whose lanes are to be added -> lane r = the sum of v[r].
ALWAYS_INLINE __m256i add_lanes(const __m256i v[8]) {
    __m256i fours[2];
    for (int i = 0; i < 2; ++i) {
        const __m256i* w = v + 4 * i;
        const __m256i a =
            _mm256_add_epi32(_mm256_unpacklo_epi32(w[0], w[1]), _mm256_unpackhi_epi32(w[0], w[1]));
        const __m256i b =
            _mm256_add_epi32(_mm256_unpacklo_epi32(w[2], w[3]), _mm256_unpackhi_epi32(w[2], w[3]));
        fours[i] = _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    }
    return _mm256_add_epi32(_mm256_permute2x128_si256(fours[0], fours[1], 0x20),
                            _mm256_permute2x128_si256(fours[0], fours[1], 0x31));
}

// Bytes are read along the rows: that is cheaper than turning them.
template <>
ALWAYS_INLINE F32 one_token<BlockQ8_0>(Rows rows, const __m256i*, const MatmulArgs& a) {
    const __m256i ones = _mm256_set1_epi16(1);
    F32 acc = set(0.0f);
    for (int64_t i = 0; i < a.cols / kBlock; ++i) {
        const __m256i x = _mm256_loadu_si256((const __m256i*)(a.x.q + i * kBlock));
        __m256i dots[8];
        for (int r = 0; r < 8; ++r) {
            const __m256i w =
                _mm256_loadu_si256((const __m256i*)(rows(r) + offsetof(BlockQ8_0, q)));
            const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
            dots[r] = _mm256_madd_epi16(pairs, ones);
        }
        const F32 d = mul(halves(rows, 0), set(a.x.scale[i]));
        acc = fma(_mm256_cvtepi32_ps(add_lanes(dots)), d, acc);
        rows.first += sizeof(BlockQ8_0);
    }
    return acc;
}

// The activations of one token, four to a vector, broadcast: plain loads are the cheapest.
inline const __m256i* spread(const MatmulArgs& a) {
    __m256i* x = (__m256i*)a.scratch;
    for (int64_t i = 0; i < a.cols / 4; ++i) {
        int32_t four;
        memcpy(&four, a.x.q + 4 * i, 4);
        x[i] = _mm256_set1_epi32(four);
    }
    return x;
}

// --- many tokens ---

// 32 columns of eight rows, unpacked.
template <class Block>
struct TileBlock {
    __m256i codes[8];
    F32 d, m;
    Extra<Block> extra;
};
template <>
struct TileBlock<BlockQ8_0> {
    SignedCodes codes[8];
    F32 d, m;
    Extra<BlockQ8_0> extra;
};

template <class Block>
ALWAYS_INLINE Extra<Block> extra_of(const TileBlock<Block>&,
                                    const typename Layout<Block>::Header& header, int i) {
    return Extra<Block>::of(header, i);
}
ALWAYS_INLINE Extra<BlockQ8_0> extra_of(const TileBlock<BlockQ8_0>& block, NoHeader, int) {
    return Extra<BlockQ8_0>::of(block.codes);
}

template <class Block>
inline void fill_tile(Rows rows, int64_t blocks, TileBlock<Block>* tile) {
    using L = Layout<Block>;
    for (int64_t i = 0; i < blocks; i += L::kBlocks) {
        const typename L::Header header = L::header(rows);
        UNROLL
        for (int group = 0; group < L::kBlocks / L::kGroup; ++group) {
            TileBlock<Block>* to = tile + i + group * L::kGroup;
            L::codes(rows, header, group,
                     [&](int b, int j, auto codes) INLINE_LAMBDA { to[b].codes[j] = codes; });
            for (int b = 0; b < L::kGroup; ++b) {
                const int at = group * L::kGroup + b;
                to[b].d = L::scale(rows, header, at);
                if (L::kOffset) to[b].m = L::offset(rows, header, at);
                to[b].extra = extra_of(to[b], header, at);
            }
        }
        rows.first += sizeof(Block);
    }
}

// Rows r .. r + 8 kGroups - 1 and kTokens tokens: each broadcast of activations serves kGroups
// vectors of codes. `lanes` says where the sums go.
template <class Block, int kGroups, int kTokens, class Store>
inline void tile_tokens(const TileBlock<Block>* tile, const MatmulArgs& a, int64_t token,
                        Store store_sums) {
    const int64_t blocks = a.cols / kBlock;
    F32 sums[kGroups][kTokens];
    for (int g = 0; g < kGroups; ++g)
        for (int t = 0; t < kTokens; ++t) sums[g][t] = set(0.0f);
    for (int64_t i = 0; i < blocks; ++i) {
        const int8_t* q = a.x.q + token * a.cols + i * kBlock;
        Dot<Block> dots[kGroups][kTokens];
        UNROLL
        for (int j = 0; j < 8; ++j) {
            UNROLL
            for (int t = 0; t < kTokens; ++t) {
                int32_t four;
                memcpy(&four, q + t * a.cols + 4 * j, 4);
                const __m256i x = _mm256_set1_epi32(four);
                UNROLL
                for (int g = 0; g < kGroups; ++g) {
                    const TileBlock<Block>& b = tile[g * blocks + i];
                    dots[g][t].add(j, b.codes[j], x, b.extra);
                }
            }
        }
        UNROLL
        for (int t = 0; t < kTokens; ++t) {
            const BlockOfX x = BlockOfX::of(a.x, (token + t) * blocks + i);
            UNROLL
            for (int g = 0; g < kGroups; ++g) {
                const TileBlock<Block>& b = tile[g * blocks + i];
                sums[g][t] = add_block<Block>(sums[g][t], dots[g][t].total, b.extra, b.d, b.m, x);
            }
        }
    }
    for (int g = 0; g < kGroups; ++g)
        for (int t = 0; t < kTokens; ++t) store_sums(g, token + t, sums[g][t]);
}

template <class Block, int kGroups, class Store>
inline void all_tokens(const TileBlock<Block>* tile, const MatmulArgs& a, Store store_sums) {
    int64_t t = 0;
    for (; t + 4 <= a.tokens; t += 4) tile_tokens<Block, kGroups, 4>(tile, a, t, store_sums);
    for (; t < a.tokens; ++t) tile_tokens<Block, kGroups, 1>(tile, a, t, store_sums);
}

// --- rows ---

// The last rows of a matrix, fewer than eight: with those before them if there are enough, else
// one at a time. Calls use(rows, lane, r, n): lanes from `lane` on are the n rows from r on.
template <class Use>
inline void last_rows(const MatmulArgs& a, int64_t r, Use use) {
    if (r == a.row_end) return;
    const char* w = (const char*)a.w;
    if (a.row_end >= 8) {
        const int64_t first = a.row_end - 8;
        return use(Rows{w + first * a.row_bytes, a.row_bytes}, (int)(r - first), r, a.row_end - r);
    }
    for (; r < a.row_end; ++r) use(Rows{w + r * a.row_bytes, 0}, 0, r, 1);
}

inline void store_lanes(F32 v, int lane, int64_t n, float* y) {
    float lanes[8];
    store(lanes, v);
    memcpy(y, lanes + lane, (size_t)n * sizeof(float));
}

template <class Block>
inline void decode_blocks(const MatmulArgs& a) {
    const __m256i* x = spread(a);
    const Runs runs = eight_runs(a);
    for (int64_t i = 0; i < runs.length; ++i) {
        float y[8];
        store(y, one_token<Block>({(const char*)runs.row(0, i), runs.length * a.row_bytes}, x, a));
        for (int lane = 0; lane < 8; ++lane) a.y[a.row_begin + lane * runs.length + i] = y[lane];
    }
    last_rows(a, a.row_begin + 8 * runs.length, [&](Rows rows, int lane, int64_t r, int64_t n) {
        store_lanes(one_token<Block>(rows, x, a), lane, n, a.y + r);
    });
}

template <class Block>
void matmul_blocks(const MatmulArgs& a) {
    constexpr size_t kRoom = kMatmulScratch;
    static_assert(2 * sizeof(TileBlock<Block>) <= kRoom * kBlock, "two tiles fit the scratch");
    if (a.tokens == 1) return decode_blocks<Block>(a);
    const int64_t blocks = a.cols / kBlock;
    auto* tile = (TileBlock<Block>*)a.scratch;
    int64_t r = a.row_begin;
    const auto rows = [&](int64_t row) {
        return Rows{(const char*)a.w + row * a.row_bytes, a.row_bytes};
    };
    for (; r + 16 <= a.row_end; r += 16) {
        fill_tile(rows(r), blocks, tile);
        fill_tile(rows(r + 8), blocks, tile + blocks);
        all_tokens<Block, 2>(tile, a, [&](int g, int64_t t, F32 sums) {
            store(a.y + t * a.y_stride + r + 8 * g, sums);
        });
    }
    for (; r + 8 <= a.row_end; r += 8) {
        fill_tile(rows(r), blocks, tile);
        all_tokens<Block, 1>(
            tile, a, [&](int, int64_t t, F32 sums) { store(a.y + t * a.y_stride + r, sums); });
    }
    last_rows(a, r, [&](Rows last, int lane, int64_t row, int64_t n) {
        fill_tile(last, blocks, tile);
        all_tokens<Block, 1>(tile, a, [&](int, int64_t t, F32 sums) {
            store_lanes(sums, lane, n, a.y + t * a.y_stride + row);
        });
    });
}
