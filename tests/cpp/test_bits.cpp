// SPDX-License-Identifier: Apache-2.0
// Levels with vectors give the same bits, on x86 and on Arm: kernels.h fixes the order of sums, and
// all of them fuse multiply-add alike. The inputs are made of integers, so that every machine has
// them; what a level gives is summed up in one number per kernel, which must be the one of AVX2.
// After a change of a kernel's specification the numbers here change with it.
#include <map>

#include "check.h"
#include "kernels/dispatch.h"
#include "matmul_case.h"

using namespace rwkv_edge;

namespace {

// The scalar level neither fuses nor has our exponential.
bool has_vectors() { return kernels().isa != std::string("scalar"); }

// FNV-1a of the bits.
uint64_t sum_up(const std::vector<float>& values, uint64_t hash = 0xcbf29ce484222325u) {
    for (float v : values) hash = (hash ^ float_to_bits(v)) * 0x100000001b3u;
    return hash;
}

std::vector<float> numbers(Random& rng, std::size_t n, float low, float high) {
    std::vector<float> x(n);
    for (float& v : x) v = low + (high - low) * 0x1p-16f * static_cast<float>(rng() & 0xffff);
    return x;
}

void fill(MatmulCase& c, Random& rng) {
    for (uint8_t& byte : c.weights) byte = static_cast<uint8_t>(rng());
    for (int64_t r = 0; r < c.rows; ++r) {
        if (is_plain(c.type))
            type_info(c.type).quantize(numbers(rng, static_cast<std::size_t>(c.cols), -1, 1).data(),
                                       c.row(r), c.cols);
        else
            for (int64_t b = 0; b < c.blocks(); ++b)
                for (int64_t at : {c.scale_at(), c.minimum_at()})
                    c.set_half(r, b, at, numbers(rng, 1, -1, 1)[0]);
    }
    c.x = numbers(rng, c.x.size(), -3, 3);
    c.round();
}

uint64_t product(Type type) {
    uint64_t hash = 0;
    for (int64_t tokens : {1, 7}) {
        Random rng(static_cast<unsigned>(tokens));
        MatmulCase c(type, 45, 1024, tokens);
        fill(c, rng);
        std::vector<float> y(static_cast<std::size_t>(c.rows * tokens));
        kernels().matmul[static_cast<int>(type)](c.args(y.data(), c.rows));
        hash = sum_up(y, hash);
    }
    return hash;
}

// Of every type, with a third of the inputs zero.
uint64_t products_by_input() {
    uint64_t hash = 0;
    for (const TypeInfo& info : all_types()) {
        const InputMatmul kernel = kernels().input_matmul[static_cast<int>(info.type)];
        if (kernel == nullptr) continue;
        Random rng(7);
        MatmulCase c(info.type, 45, 768, 1);
        fill(c, rng);
        std::vector<ActiveInput> inputs;
        for (int32_t i = 0; i < c.rows; ++i)
            if (i % 3 != 1) inputs.push_back({i, numbers(rng, 1, -3, 3)[0]});
        const auto n = static_cast<int64_t>(inputs.size());
        std::vector<float> y(static_cast<std::size_t>(c.cols));
        alignas(64) std::byte scratch[kInputScratch];
        kernel({c.row(0), c.row_bytes(), 0, c.cols, inputs.data(), n, &n, 1, y.data(), c.cols,
                scratch});
        hash = sum_up(y, hash);
    }
    return hash;
}

// Two tokens of a head of 64, in place in `in`: r w k v kk a, then y.
struct Head {
    static constexpr int64_t kSize = 64, kTokens = 2, kAll = kSize * kTokens;
    std::vector<float> state, in;

    Head() {
        Random rng(5);
        state = numbers(rng, kSize * kSize, -1, 1);
        in = numbers(rng, 7 * kAll, 0.25f, 1);
    }
    float* part(int i) { return in.data() + i * kAll; }
    uint64_t hash() const { return sum_up(in, sum_up(state)); }
};

uint64_t wkv4() {
    Head h;
    for (int64_t i = 0; i < Head::kSize; ++i) h.part(1)[i] *= -1;  // the decay
    float* s = h.state.data();
    kernels().wkv4({s, s + 64, s + 128, h.part(1), h.part(0), h.part(2), h.part(3), h.part(6),
                    Head::kSize, Head::kSize, Head::kTokens});
    return h.hash();
}
uint64_t wkv6() {
    Head h;
    kernels().wkv6({h.state.data(), h.part(0), h.part(1), h.part(2), h.part(3), h.part(6),
                    Head::kSize, Head::kSize, Head::kSize, Head::kTokens});
    return h.hash();
}
uint64_t wkv7() {
    Head h;
    kernels().wkv7({h.state.data(), h.part(0), h.part(1), h.part(2), h.part(3), h.part(4),
                    h.part(5), h.part(6), Head::kSize, Head::kSize, Head::kTokens});
    return h.hash();
}

// What is done to vectors, one after the other; sums and products alone round once everywhere.
uint64_t vectors() {
    constexpr int64_t n = 128;
    const Kernels& k = kernels();
    Random rng(6);
    uint64_t hash = 0;
    for (auto* function : {k.sigmoid, k.silu, k.tanh, k.relu2, k.decay6, k.decay7}) {
        std::vector<float> x = numbers(rng, n + 5, -9, 9);
        function(x.data(), n + 5);
        hash = sum_up(x, hash);
    }
    const std::vector<float> x = numbers(rng, n, -2, 2), z = numbers(rng, n, -1, 1);
    std::vector<float> y(n);
    k.layer_norm(x.data(), z.data(), z.data(), n, 1e-5f, y.data());
    k.bonus(x.data(), z.data(), x.data(), z.data(), n, y.data());
    hash = sum_up(y, hash);
    k.l2_normalize(x.data(), z.data(), n, y.data());
    k.lerp(y.data(), x.data(), z.data(), n, y.data());
    return sum_up(y, hash);
}

}  // namespace

TEST(products_have_the_same_bits_on_every_level) {
    const std::map<Type, uint64_t> right = {
        {Type::F32, 0x6b401fa020f6157c},  {Type::F16, 0x1ab65090fa297ffb},
        {Type::BF16, 0x8c875bad8d3a4842}, {Type::Q8_0, 0x57ff8510327b97a6},
        {Type::Q4_0, 0xf4857e1581b2d179}, {Type::Q4_1, 0xf7d2c8c792ca1e7b},
        {Type::Q5_0, 0xc670dbcf3093d3b1}, {Type::Q5_1, 0xb6ae3e2f522f2432},
        {Type::Q4_K, 0x6d111cfc267e5f15}, {Type::Q5_K, 0x71d1754327de7f0c},
        {Type::Q6_K, 0x2fe9474955b29335},
    };
    if (!has_vectors()) return;
    for (const TypeInfo& info : all_types()) {
        if (kernels().matmul[static_cast<int>(info.type)] == nullptr) continue;
        CHECK_CASE(product(info.type) == right.at(info.type), info.name);
    }
}

TEST(products_by_input_have_the_same_bits_on_every_level) {
    if (has_vectors()) CHECK(products_by_input() == 0x04bff1510b47f8ce);
}

TEST(recurrences_and_vectors_have_the_same_bits_on_every_level) {
    if (!has_vectors()) return;
    CHECK(wkv4() == 0x8b2775be18a3aaa3);
    CHECK(wkv6() == 0x2c926ac50400e580);
    CHECK(wkv7() == 0x1fe3446f8cb5802b);
    CHECK(vectors() == 0x7f43e83122b44eaa);
}
