// SPDX-License-Identifier: Apache-2.0
// Random products on every kernel level that this machine has: levels with vectors must give the
// same bits, and all must be right. A failure is printed with the seed that repeats it.
//   fuzz_levels SECONDS [SEED]
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "kernels/dispatch.h"
#include "matmul_case.h"

using namespace rwkv_edge;

namespace {

// Activations of any kind: blocks of ordinary size, huge, tiny or zero, and here and there a number
// that is none.
void fill_inputs(Random& rng, std::vector<float>& x) {
    std::normal_distribution<float> normal;
    const bool all_finite = random_int(rng, 0, 3) != 0;
    float size = 1;
    for (size_t i = 0; i < x.size(); ++i) {
        if (i % kBlock == 0 && random_int(rng, 0, 7) == 0) {
            constexpr float kSizes[] = {1, 1, 0, 1e-3f, 1e3f, 1e-29f, 1e-31f, 1e-41f, 1e30f};
            size = kSizes[random_int(rng, 0, 8)];
        }
        x[i] = random_int(rng, 0, 63) == 0 ? 0.0f : size * normal(rng);
        if (!all_finite && random_int(rng, 0, 999) == 0)
            x[i] = random_int(rng, 0, 1) == 0 ? NAN : -INFINITY;
    }
}

// Any bytes; scales mostly of an ordinary size, else any half there is.
void fill_weights(Random& rng, MatmulCase& c) {
    for (int64_t i = 0; i < c.rows * c.row_bytes(); ++i) c.row(0)[i] = static_cast<uint8_t>(rng());
    const bool ordinary = random_int(rng, 0, 3) != 0;
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<size_t>(c.cols));
    for (int64_t r = 0; r < c.rows && ordinary; ++r) {
        for (float& v : values) v = normal(rng);
        if (is_plain(c.type)) type_info(c.type).quantize(values.data(), c.row(r), c.cols);
        for (int64_t b = 0; b < c.blocks() && !is_plain(c.type); ++b)
            for (int64_t at : {c.scale_at(), c.minimum_at()})
                c.set_half(r, b, at, 0.01f * normal(rng));
    }
}

std::vector<float> product(const Kernels& level, MatmulCase& c, int64_t begin, int64_t end) {
    std::vector<float> y(static_cast<size_t>(c.tokens * c.rows));
    MatmulArgs args = c.args(y.data(), c.rows);
    args.row_begin = begin;
    args.row_end = end;
    AlignedVector<uint8_t> rounded;
    if (!is_plain(c.type)) {
        args.x_stride = level.rounded_bytes(c.cols);
        rounded.resize(static_cast<size_t>(c.tokens * args.x_stride));
        for (int64_t t = 0; t < c.tokens; ++t)
            level.round_activations(&c.x[static_cast<size_t>(t * c.cols)], c.cols,
                                    rounded.data() + t * args.x_stride);
        args.x = rounded.data();
    }
    level.matmul[static_cast<int>(c.type)](args);
    return y;
}

// Within the bound of test_matmul.cpp, and what the smallest floats lose: a scale below 2^-126,
// which is rounded to a multiple of 2^-149, times a dot below 2^24. Where the answer or a sum on
// the way may be no number, anything is right.
bool is_right(MatmulCase& c, int64_t r, int64_t t, float y) {
    for (int64_t k = 0; k < c.cols; ++k)
        if (!std::isfinite(c.x[static_cast<size_t>(t * c.cols + k)])) return true;
    const MatmulCase::Answer right = c.answer(r, t);
    if (!(right.magnitude < 1e37)) return true;
    const double terms = is_plain(c.type) ? static_cast<double>(c.cols) / 8
                                          : static_cast<double>(2 * c.cols / kBlock);
    const double bound = (terms + 12) * (0x1p-24 * right.magnitude + 0x1p-125);
    return std::fabs(y - right.value) <= bound;
}

// What is wrong, or nothing. NaNs are alike.
std::string check(unsigned seed) {
    Random rng(seed);
    std::vector<Type> types;
    for (const TypeInfo& info : all_types())
        if (kernels().matmul[static_cast<int>(info.type)] != nullptr) types.push_back(info.type);
    const Type type = types[rng() % types.size()];
    const int64_t unit = is_plain(type) ? 1 : type_info(type).block_len;
    const int64_t cols =
        unit * random_int(rng, 1, random_int(rng, 0, 3) == 0 ? 2048 / static_cast<int>(unit) : 9);
    const int64_t rows = random_int(rng, 1, 80);
    const int64_t tokens = random_int(rng, 1, random_int(rng, 0, 1) == 0 ? 9 : 130);
    MatmulCase c(type, rows, cols, tokens);
    fill_weights(rng, c);
    fill_inputs(rng, c.x);
    const int64_t begin = rows / 8 * random_int(rng, 0, 1) / 2 * 8;
    const int64_t end = random_int(rng, static_cast<int>(begin) + 1, static_cast<int>(rows));
    const std::string name =
        c.name() + ", rows " + std::to_string(begin) + " to " + std::to_string(end);

    c.input.assign(c.x.begin(), c.x.end());
    if (!is_plain(type)) {
        const RoundedReference right(c.x);
        for (size_t i = 0; i < c.x.size(); ++i)
            c.input[i] = double{right.scale[i / kBlock]} * right.q[i];
    }
    std::vector<float> first;
    for (const Kernels& level : available_kernels()) {
        const std::vector<float> y = product(level, c, begin, end);
        for (int i = 0; i < 4; ++i) {
            const int64_t r = random_int(rng, static_cast<int>(begin), static_cast<int>(end) - 1);
            const int64_t t = random_int(rng, 0, static_cast<int>(tokens) - 1);
            if (!is_right(c, r, t, y[static_cast<size_t>(t * rows + r)]))
                return name + ": " + level.isa + " is wrong";
        }
        if (level.isa == std::string("scalar")) continue;
        if (first.empty()) first = y;
        for (size_t i = 0; i < y.size(); ++i)
            if (!same_bits(y[i], first[i]) && !(std::isnan(y[i]) && std::isnan(first[i])))
                return name + ": " + level.isa + " differs at " + std::to_string(i);
    }
    return "";
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2) {
        std::fprintf(stderr, "expected SECONDS [SEED]\n");
        return 2;
    }
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atoll(argv[1]));
    auto seed = argc > 2 ? static_cast<unsigned>(std::strtoul(argv[2], nullptr, 10))
                         : std::random_device{}();
    int64_t done = 0;
    do {
        const std::string wrong = check(seed);
        if (!wrong.empty()) {
            std::printf("seed %u: %s\n", seed, wrong.c_str());
            return 1;
        }
        ++seed;
        ++done;
    } while (std::chrono::steady_clock::now() < end);
    std::printf("%lld products, the last with seed %u\n", static_cast<long long>(done), seed - 1);
    return 0;
}
