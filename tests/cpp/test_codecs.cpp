// SPDX-License-Identifier: Apache-2.0
// The codecs of the weight types. Bytes are compared with an independent implementation in
// tests/python/test_types.py; here are the edges and the properties that kernels rely on.
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "check.h"
#include "quant/codecs.h"
#include "quant/types.h"

using namespace rwkv_edge;

namespace {

using Floats = std::vector<float>;

Floats normals(unsigned seed, size_t n) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    Floats out(n);
    for (float& v : out) v = normal(rng);
    return out;
}

Floats there_and_back(const TypeInfo& info, const Floats& x) {
    const auto n = static_cast<int64_t>(x.size());
    std::vector<uint8_t> bytes(static_cast<size_t>(type_bytes(info.type, n)));
    info.quantize(x.data(), bytes.data(), n);
    Floats y(x.size());
    info.dequantize(bytes.data(), y.data(), n);
    return y;
}

}  // namespace

TEST(every_half_comes_back_as_itself) {
    for (uint32_t h = 0; h < 0x10000; ++h) {
        const float value = half_to_float(static_cast<uint16_t>(h));
        if (std::isnan(value))
            CHECK(std::isnan(half_to_float(float_to_half(value))));
        else
            CHECK(float_to_half(value) == h);
    }
}

TEST(halves_round_to_the_nearest_even) {
    for (uint32_t h = 0; h < 0x7bff; ++h) {
        const float low = half_to_float(static_cast<uint16_t>(h));
        const float high = half_to_float(static_cast<uint16_t>(h + 1));
        const float middle = (low + high) / 2;  // exact: a half has 11 bits
        CHECK(float_to_half(middle) == h + (h & 1));
        CHECK(float_to_half(std::nextafter(middle, 0.0f)) == h);
        CHECK(float_to_half(std::nextafter(middle, high)) == h + 1);
        CHECK(float_to_half(-middle) == (0x8000 | (h + (h & 1))));
    }
    CHECK(float_to_half(65519.996f) == 0x7bff);
    CHECK(float_to_half(65520.0f) == 0x7c00);
    CHECK(float_to_half(INFINITY) == 0x7c00 && float_to_half(-INFINITY) == 0xfc00);
    CHECK(float_to_half(0x1p-26f) == 0);
    CHECK(float_to_half(-0.0f) == 0x8000);
    CHECK(std::isnan(half_to_float(float_to_half(NAN))));
}

TEST(bfloat16_rounds_to_the_nearest_even) {
    for (uint32_t h = 0; h < 0x7f7f; ++h) {
        const float low = bfloat16_to_float(static_cast<uint16_t>(h));
        CHECK(float_to_bfloat16(low) == h);
        const float middle = bits_to_float(h << 16 | 0x8000);
        CHECK(float_to_bfloat16(middle) == h + (h & 1));
        CHECK(float_to_bfloat16(bits_to_float(h << 16 | 0x7fff)) == h);
        CHECK(float_to_bfloat16(bits_to_float(h << 16 | 0x8001)) == h + 1);
    }
    CHECK(bfloat16_to_float(float_to_bfloat16(-INFINITY)) == -INFINITY);
    CHECK(std::isnan(bfloat16_to_float(float_to_bfloat16(bits_to_float(0x7f800001)))));
}

TEST(types_are_found_by_id_and_by_name) {
    CHECK(all_types().size() == 13);
    for (const TypeInfo& info : all_types()) {
        CHECK(find_type(static_cast<uint32_t>(info.type)) == &info);
        CHECK(find_type(info.name) == &info);
        CHECK(&type_info(info.type) == &info);
        CHECK(type_bytes(info.type, 3 * info.block_len) == 3 * info.block_bytes);
    }
    CHECK(find_type(4u) == nullptr && find_type(9999u) == nullptr);
    CHECK(find_type("Q4_9") == nullptr && find_type("") == nullptr);
}

// Half a step of the block, plus what storing the step as a half costs over the whole range.
TEST(rounding_stays_within_half_a_step) {
    struct Steps {
        const char* name;
        int range;  // codes from the smallest to the largest value
        int reach;  // largest code times step, where the half's rounding shows most
        bool symmetric;
    };
    for (const Steps& s :
         {Steps{"q8_0", 254, 127, true}, Steps{"q4_0", 16, 8, true}, Steps{"q5_0", 32, 16, true},
          Steps{"q4_1", 15, 15, false}, Steps{"q5_1", 31, 31, false}}) {
        const Floats x = normals(1, 32 * 500);
        const Floats y = there_and_back(*find_type(s.name), x);
        for (size_t b = 0; b < x.size(); b += 32) {
            float low = x[b], high = x[b];
            for (size_t i = b; i < b + 32; ++i) {
                low = std::min(low, x[i]);
                high = std::max(high, x[i]);
            }
            const float peak = std::max(high, -low);
            const float step = (s.symmetric ? 2 * peak : high - low) / static_cast<float>(s.range);
            // The value opposite the peak may fall off the end of a symmetric type by one code.
            const float worst = s.symmetric && s.range < 254 ? step : step / 2;
            const float stored = (static_cast<float>(s.reach) * step + peak) * 0x1p-11f;
            for (size_t i = b; i < b + 32; ++i)
                CHECK_CASE(std::fabs(x[i] - y[i]) <= worst * 1.0001f + stored, s.name);
        }
    }
}

TEST(q8_0_never_writes_minus_128) {
    Floats x = normals(2, 32 * 200);
    for (size_t i = 0; i < x.size(); i += 32) x[i] = i % 64 == 0 ? -7.0f : 7.0f;
    std::vector<uint8_t> bytes(x.size() / 32 * 34);
    quantize_q8_0(x.data(), bytes.data(), static_cast<int64_t>(x.size()));
    for (size_t i = 0; i < bytes.size(); ++i) CHECK(i % 34 < 2 || bytes[i] != 0x80);
}

TEST(zeros_and_constants_survive) {
    for (const TypeInfo& info : all_types()) {
        if (info.quantize == nullptr) continue;
        for (float constant : {0.0f, 1.0f, -0.5f}) {
            const Floats x(64, constant);
            for (float v : there_and_back(info, x))
                CHECK_CASE(std::fabs(v - constant) <= 0x1p-9f * std::fabs(constant), info.name);
        }
    }
}

// One value of each super-block carries everything: its code, its scale, its minimum.
TEST(two_and_three_bit_blocks_worked_out_by_hand) {
    Floats y(256);
    for (int i : {0, 17, 40, 127, 128, 200, 255}) {
        const auto at = static_cast<size_t>(i);
        BlockQ2_K two{};
        two.d = float_to_half(0.5f);
        two.dmin = float_to_half(2.0f);
        two.q[i / 128 * 32 + i % 32] = static_cast<uint8_t>(3 << i % 128 / 32 * 2);
        two.scales[i / 16] = 0x5e;  // minimum 5, scale 14
        dequantize_q2_k(&two, y.data(), 256);
        for (int j = 0; j < 256; ++j) {
            const float minimum = j / 16 == i / 16 ? 10.0f : 0.0f;
            CHECK(y[static_cast<size_t>(j)] == (j == i ? 0.5f * 14 * 3 : 0.0f) - minimum);
        }
        BlockQ3_K three{};  // scales of zero bits are -32, codes of zero bits are -4
        three.d = float_to_half(-1.0f);
        const int j = i / 16;  // 0x2b = 43: 11 in the first eight bytes, 2 in the last four
        three.scales[j % 8] = static_cast<uint8_t>(j < 8 ? 0x0b : 0xb0);
        three.scales[8 + j % 4] = static_cast<uint8_t>(2 << j / 4 * 2);
        three.qh[i % 32] = static_cast<uint8_t>(1 << i / 32);
        dequantize_q3_k(&three, y.data(), 256);
        CHECK(y[at] == 0.0f);
        CHECK(y[at ^ 1] == -1.0f * (43 - 32) * -4);
        CHECK(y[at ^ 16] == -1.0f * (0 - 32) * -4);
    }
}

// 0 .. 31 in q4_0: the peak 31 becomes code 0, d = -31 / 8.
TEST(a_block_worked_out_by_hand) {
    Floats x(32);
    for (size_t i = 0; i < 32; ++i) x[i] = static_cast<float>(i);
    uint8_t block[18];
    quantize_q4_0(x.data(), block, 32);
    uint16_t d;
    std::memcpy(&d, block, 2);
    CHECK(half_to_float(d) == -31.0f / 8);
    for (size_t i = 0; i < 16; ++i) {
        const auto code = [](size_t value) {
            return static_cast<int>(-static_cast<double>(value) * 8 / 31 + 8.5);
        };
        CHECK((block[2 + i] & 15) == std::min(code(i), 15));
        CHECK((block[2 + i] >> 4) == std::min(code(i + 16), 15));
    }
}
