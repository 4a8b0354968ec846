// SPDX-License-Identifier: Apache-2.0
// Speed of each matmul kernel by level and type, on one thread: GB/s of weights read for one token,
// from memory and from the L2 cache; what 2, 4 and 8 tokens cost in units of one; and GOPS (two per
// weight and token) for 64. Weights come from memory unless said. Shares are of the bandwidth and
// of the level's peak, f32 for float types and int8 for blocks. Arguments: [type] [level].
#include <time.h>

#include <algorithm>
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
// As read_bandwidth: far beyond the caches; of these kMany times 64 tokens, still beyond.
constexpr int64_t kMemory = int64_t{256} << 20, kMany = int64_t{96} << 20;

struct Case {
    const TypeInfo& type;
    int64_t rows;
    AlignedVector<std::byte> w, scratch, rounded;
    AlignedVector<float> x, y;

    Case(const TypeInfo& info, int64_t bytes_at_most)
        : type(info),
          rows(std::max<int64_t>(8, bytes_at_most / type_bytes(info.type, kCols) / 8 * 8)),
          w(static_cast<size_t>(rows * type_bytes(info.type, kCols))),
          scratch(static_cast<size_t>(matmul_scratch_bytes(kCols))),
          x(static_cast<size_t>(kTokens * kCols)),
          y(static_cast<size_t>(kTokens * rows)) {
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

    MatmulArgs args(const Kernels& kernels, int64_t tokens) {
        const void* from = x.data();
        int64_t stride = kCols * static_cast<int64_t>(sizeof(float));
        if (type.block_len > 1) {
            stride = kernels.rounded_bytes(kCols);
            rounded.resize(static_cast<size_t>(tokens * stride));
            from = rounded.data();
            for (int64_t t = 0; t < tokens; ++t)
                kernels.round_activations(x.data() + t * kCols, kCols, rounded.data() + t * stride);
        }
        return {w.data(),       type_bytes(type.type, kCols),
                kCols,          0,
                rows,           from,
                stride,         tokens,
                y.data(),       rows,
                scratch.data(), kernels.ahead};
    }
};

// CPU time of this thread, so that other programs matter less.
double now() {
    timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Seconds of the best of several runs, each at least 20 ms long.
template <class Body>
double best_seconds(Body&& body) {
    double best = 1e9;
    for (int run = 0; run < 7; ++run) {
        int times = 0;
        double spent = 0;
        for (const double start = now(); spent < 0.02; spent = now() - start, ++times) body();
        best = std::min(best, spent / times);
    }
    return best;
}

double run(const Kernels& kernels, Case& c, int64_t tokens, int64_t rows) {
    MatmulArgs args = c.args(kernels, tokens);
    args.row_end = rows;
    return best_seconds([&] { kernels.matmul[static_cast<int>(c.type.type)](args); });
}

}  // namespace

int main(int argc, char** argv) {
    const std::string only_type = argc > 1 ? argv[1] : "", only_level = argc > 2 ? argv[2] : "";
    const double bandwidth = read_bandwidth(1);
    std::printf("memory read, one thread: %.1f GB/s\n", bandwidth);
    std::printf("%-8s %-5s %13s %9s %20s %16s\n", "level", "type", "1 token, GB/s", "L2, GB/s",
                "2, 4, 8 tokens", "64 tokens, GOPS");
    for (const Kernels& kernels : available_kernels()) {
        if (!only_level.empty() && only_level != kernels.isa) continue;
        const double flops = float_peak(kernels, 1), dots = int8_peak(kernels, 1);
        std::printf("%-8s peak: f32 %.1f GFLOPS, int8 %.1f GOPS\n", kernels.isa, flops, dots);
        for (const TypeInfo& type : all_types()) {
            if (kernels.matmul[static_cast<int>(type.type)] == nullptr) continue;
            if (!only_type.empty() && only_type != type.name) continue;
            Case memory(type, kMemory), cache(type, int64_t{128} << 10);
            const double one = run(kernels, memory, 1, memory.rows);
            const double from_memory = static_cast<double>(memory.w.size()) / one / 1e9;
            const double from_cache =
                static_cast<double>(cache.w.size()) / run(kernels, cache, 1, cache.rows) / 1e9;
            std::printf("%-8s %-5s %7.1f (%2.0f%%) %9.1f  ", kernels.isa, type.name, from_memory,
                        100 * from_memory / bandwidth, from_cache);
            for (int64_t tokens : {2, 4, 8})
                std::printf(" %5.2f", run(kernels, memory, tokens, memory.rows) / one);
            const int64_t rows = memory.rows * kMany / kMemory / 8 * 8;
            const double operations = 2.0 * static_cast<double>(rows * kCols * kTokens);
            const double gops = operations / run(kernels, memory, kTokens, rows) / 1e9;
            std::printf(" %10.1f (%2.0f%%)\n", gops,
                        100 * gops / (type.block_len > 1 ? dots : flops));
        }
    }
    return 0;
}
