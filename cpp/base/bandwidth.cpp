// SPDX-License-Identifier: Apache-2.0
#include "base/bandwidth.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "base/thread_pool.h"

namespace rwkv_edge {

namespace {

constexpr std::size_t kBytes = std::size_t{256} << 20;
constexpr int kPasses = 8;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

// Reads `words` words, a multiple of 64, as eight streams side by side: a single stream leaves part
// of the bandwidth unused. Independent sums keep the loads, not the additions, the limit.
uint64_t sum(const uint64_t* p, int64_t words) {
    const int64_t run = words / 8;
    uint64_t sums[8] = {};
    for (int64_t i = 0; i < run; i += 8)
        for (int stream = 0; stream < 8; ++stream)
            for (int j = 0; j < 8; ++j) sums[j] += p[stream * run + i + j];
    return sums[0] + sums[1] + sums[2] + sums[3] + sums[4] + sums[5] + sums[6] + sums[7];
}

double best_pass(ThreadPool& pool, const uint64_t* words) {
    constexpr auto kWords = static_cast<int64_t>(kBytes / sizeof(uint64_t));
    std::atomic<uint64_t> kept{0};  // so that no sum can be left out
    double best = 0.0;
    for (int pass = 0; pass < kPasses; ++pass) {
        const auto start = std::chrono::steady_clock::now();
        pool.run([&](int worker) {
            const Range r = part(kWords, 4096, worker, pool.size());
            kept += sum(words + r.begin, r.end - r.begin);
        });
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        best = std::max(best, static_cast<double>(kBytes) / seconds.count() / 1e9);
    }
    return best;
}

}  // namespace

double read_bandwidth(int threads) {
    ThreadPool pool(std::max(1, threads));
    double best = 0.0;
    // Small and huge pages differ by up to a quarter, in either direction; the wall is the better
    // one.
    for ([[maybe_unused]] const bool huge : {false, true}) {
        const std::unique_ptr<void, void (*)(void*)> memory(std::aligned_alloc(kHugePage, kBytes),
                                                            std::free);
        if (memory == nullptr) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
        madvise(memory.get(), kBytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#endif
        auto* words = static_cast<uint64_t*>(memory.get());
        std::fill_n(words, kBytes / sizeof(uint64_t), uint64_t{1});
        best = std::max(best, best_pass(pool, words));
    }
    return best;
}

}  // namespace rwkv_edge
