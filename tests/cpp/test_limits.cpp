// SPDX-License-Identifier: Apache-2.0
#include <stdexcept>

#include "backend/limits.h"
#include "check.h"

using namespace rwkv_edge;

namespace {

// What no core of today reaches, two units of 512 bits at 8 GHz: more means that work was left out.
constexpr double kFloatAtMost = 8.0 * 2 * 16 * 2, kInt8AtMost = 8.0 * 2 * 64 * 2;
constexpr double kReadAtMost = 2000.0;  // nor any memory

bool plausible(double rate, double at_most) { return rate > 0.0 && rate <= at_most; }

}  // namespace

TEST(peaks_of_every_level_are_plausible) {
    for (const Kernels& level : available_kernels())
        for (int threads : {1, 3}) {
            CHECK_CASE(plausible(float_peak(level, threads), threads * kFloatAtMost), level.isa);
            CHECK_CASE(plausible(int8_peak(level, threads), threads * kInt8AtMost), level.isa);
        }
}

TEST(operations_are_those_of_the_rounds) {
    for (const Kernels& level : available_kernels())
        for (auto* operations : {level.float_peak, level.int8_peak}) {
            const int64_t one = operations(1);
            CHECK_CASE(one > 0 && operations(0) == 0 && operations(7) == 7 * one, level.isa);
        }
}

TEST(memory_is_read_by_any_number_of_threads) {
    for (int threads : {1, 3}) CHECK(plausible(read_bandwidth(threads), kReadAtMost));
}

TEST(a_wrong_number_of_threads_fails) {
    for (int threads : {-1, 0, 1025}) {
        const std::string found = "threads is " + std::to_string(threads);
        CHECK_THROWS(std::invalid_argument, found, read_bandwidth(threads));
        CHECK_THROWS(std::invalid_argument, found, float_peak(kernels(), threads));
        CHECK_THROWS(std::invalid_argument, found, int8_peak(kernels(), threads));
    }
}
