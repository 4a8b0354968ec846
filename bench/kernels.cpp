// SPDX-License-Identifier: Apache-2.0
// Speed of each matmul kernel by level and type: GB/s of weights read for one token, from memory
// and from the L2 cache, and GOPS (two per weight and token) for 64 tokens, on one thread; shares
// are of the bandwidth and of the level's peak, f32 for float types and int8 for blocks.
// Arguments: [type] [level].
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "backend/limits.h"
#include "base/aligned.h"
#include "kernels/dispatch.h"
#include "quant/types.h"

using namespace rwkv_edge;

namespace {

constexpr int64_t kCols = 2048;
constexpr int64_t kTokens = 64;
constexpr int64_t kMemory = int64_t{256} << 20;  // as read_bandwidth: far beyond the caches

struct Case {
    const TypeInfo& type;
    int64_t rows, tokens;
    AlignedVector<std::byte> w, scratch, rounded;
    AlignedVector<float> x, y;

    Case(const TypeInfo& info, int64_t n_rows, int64_t n_tokens)
        : type(info),
          rows(n_rows),
          tokens(n_tokens),
          w(static_cast<size_t>(rows * type_bytes(info.type, kCols))),
          scratch(static_cast<size_t>(matmul_scratch_bytes(kCols))),
          x(static_cast<size_t>(tokens * kCols)),
          y(static_cast<size_t>(tokens * rows)) {
        std::mt19937 random(1);
        std::normal_distribution<float> normal;
        for (float& value : x) value = normal(random);
        // one row of random weights, repeated; of types without a quantizer, any bytes that make
        // small scales
        std::vector<float> row(kCols);
        for (float& value : row) value = normal(random) * 0.05f;
        const auto bytes = static_cast<size_t>(type_bytes(info.type, kCols));
        if (info.quantize != nullptr)
            info.quantize(row.data(), w.data(), kCols);
        else
            for (size_t i = 0; i < bytes; ++i) w[i] = static_cast<std::byte>(random() & 0x3b);
        for (size_t at = bytes; at < w.size(); at += bytes) std::memcpy(&w[at], w.data(), bytes);
    }

    MatmulArgs args(const Kernels& kernels) {
        const void* from = x.data();
        int64_t stride = kCols * static_cast<int64_t>(sizeof(float));
        if (type.block_len > 1) {
            stride = kernels.rounded_bytes(kCols);
            rounded.resize(static_cast<size_t>(tokens * stride));
            from = rounded.data();
            for (int64_t t = 0; t < tokens; ++t)
                kernels.round_activations(x.data() + t * kCols, kCols, rounded.data() + t * stride);
        }
        return {w.data(),      type_bytes(type.type, kCols),
                kCols,         0,
                rows,          from,
                stride,        tokens,
                y.data(),      rows,
                scratch.data()};
    }
};

// Seconds of the best of several runs, each at least 20 ms long.
template <class Body>
double best_seconds(Body&& body) {
    using Clock = std::chrono::steady_clock;
    double best = 1e9;
    for (int run = 0; run < 7; ++run) {
        int times = 0;
        const auto start = Clock::now();
        std::chrono::duration<double> spent{};
        do {
            body();
            ++times;
            spent = Clock::now() - start;
        } while (spent.count() < 0.02);
        best = std::min(best, spent.count() / times);
    }
    return best;
}

double run(const Kernels& kernels, Case& c) {
    const MatmulArgs args = c.args(kernels);
    return best_seconds([&] { kernels.matmul[static_cast<int>(c.type.type)](args); });
}

}  // namespace

int main(int argc, char** argv) {
    const std::string only_type = argc > 1 ? argv[1] : "", only_level = argc > 2 ? argv[2] : "";
    const double bandwidth = read_bandwidth(1);
    std::printf("memory read, one thread: %.1f GB/s\n", bandwidth);
    std::printf("%-8s %-6s %14s %9s %14s\n", "level", "type", "memory GB/s", "L2 GB/s",
                "64 tok. GOPS");
    for (const Kernels& kernels : available_kernels()) {
        if (!only_level.empty() && only_level != kernels.isa) continue;
        const double flops = float_peak(kernels, 1), dots = int8_peak(kernels, 1);
        std::printf("%-8s peak: f32 %.1f GFLOPS, int8 %.1f GOPS\n", kernels.isa, flops, dots);
        for (const TypeInfo& type : all_types()) {
            if (kernels.matmul[static_cast<int>(type.type)] == nullptr) continue;
            if (!only_type.empty() && only_type != type.name) continue;
            const int64_t row_bytes = type_bytes(type.type, kCols);
            Case memory(type, kMemory / row_bytes / 8 * 8, 1);
            Case cache(type, std::max<int64_t>(8, (int64_t{128} << 10) / row_bytes / 8 * 8), 1);
            Case many(type, 512, kTokens);
            const double from_memory =
                static_cast<double>(memory.w.size()) / run(kernels, memory) / 1e9;
            const double from_cache =
                static_cast<double>(cache.w.size()) / run(kernels, cache) / 1e9;
            const double gops = 2.0 * 512 * kCols * kTokens / run(kernels, many) / 1e9;
            std::printf("%-8s %-6s %8.1f (%2.0f%%) %9.1f %8.1f (%2.0f%%)\n", kernels.isa, type.name,
                        from_memory, 100 * from_memory / bandwidth, from_cache, gops,
                        100 * gops / (type.block_len > 1 ? dots : flops));
        }
    }
    return 0;
}
