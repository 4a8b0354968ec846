// SPDX-License-Identifier: Apache-2.0
#include "backend/limits.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <stdexcept>

#include "base/error.h"
#include "base/system.h"
#include "base/thread_pool.h"

namespace rwkv_edge {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kLeastBytes = std::size_t{8} << 20, kMostBytes = std::size_t{256} << 20;
constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr int kReadPasses = 8;
// Shorter than what a busy machine gives to others at a time, and many.
constexpr std::chrono::milliseconds kArithmeticPass{2};
constexpr int kArithmeticPasses = 32;
constexpr int64_t kRounds = 8192;  // between two looks at the clock: about 20 us with AVX2

int checked(int threads) {
    if (threads < 1 || threads > 1024)
        throw std::invalid_argument(cat("threads is ", threads, ", expected 1 to 1024"));
    return threads;
}

// The best of some passes, in 1e9 a second; each returns how much it did.
template <class Pass>
double best_rate(int passes, Pass&& pass) {
    double best = 0.0;
    for (int i = 0; i < passes; ++i) {
        const auto start = Clock::now();
        const auto done = static_cast<double>(pass(start));
        const std::chrono::duration<double> seconds = Clock::now() - start;
        best = std::max(best, done / seconds.count() / 1e9);
    }
    return best;
}

// Reads `words` words, many and a multiple of 4096, but for a few at their end, as kStreams streams
// side by side. The streams begin at different places in a page, so that they do not share a set of
// the first cache. Independent sums keep the loads, not the additions, the limit.
template <int kStreams, int kLinesAhead>
uint64_t sum(const uint64_t* p, int64_t words) {
    constexpr int64_t kLine = 8;
    const int64_t run = words / kStreams - 9 * kLine;
    uint64_t sums[8] = {};
    for (int64_t i = 0; i < run; i += kLine)
        for (int stream = 0; stream < kStreams; ++stream) {
            const uint64_t* line = p + stream * run + i;
            if (kLinesAhead > 0) __builtin_prefetch(line + kLinesAhead * kLine);
            for (int j = 0; j < kLine; ++j) sums[j] += line[j];
        }
    return sums[0] + sums[1] + sums[2] + sums[3] + sums[4] + sums[5] + sums[6] + sums[7];
}

double read_rate(ThreadPool& pool, const uint64_t* words, int64_t count) {
    std::atomic<uint64_t> kept{0};  // so that no sum can be left out
    const int64_t part = count / pool.size() / 4096 * 4096;
    const auto rate = [&](uint64_t (*read)(const uint64_t*, int64_t)) {
        return best_rate(kReadPasses, [&](Clock::time_point) {
            pool.run(pool.size(), [&](int64_t begin, int64_t end, int) {
                for (int64_t i = begin; i < end; ++i) kept += read(words + i * part, part);
            });
            return part * pool.size() * static_cast<int64_t>(sizeof(uint64_t));
        });
    };
    // A Zen 3 reads several streams faster than one, a Zen 5 the other way round.
    return std::max(rate(sum<8, 16>), rate(sum<1, 0>));
}

double arithmetic_rate(int64_t (*operations)(int64_t rounds), int threads) {
    ThreadPool pool(checked(threads));
    return best_rate(kArithmeticPasses, [&](Clock::time_point start) {
        std::atomic<int64_t> done{0};
        pool.run(pool.size(), [&](int64_t, int64_t, int) {
            int64_t own = 0;
            while (Clock::now() - start < kArithmeticPass) own += operations(kRounds);
            done += own;
        });
        return done.load();
    });
}

}  // namespace

double read_bandwidth(int threads) {
    ThreadPool pool(checked(threads));
    // A small board has small caches, and no room for more beside a model.
    const uint64_t room = std::clamp<uint64_t>(available_memory() / 4, kLeastBytes, kMostBytes);
    const std::size_t bytes = static_cast<std::size_t>(room) / kHugePage * kHugePage;
    constexpr std::align_val_t kAlignment{kHugePage};
    double best = 0.0;
    // Small and huge pages differ by up to a quarter, in either direction; the wall is the better
    // one.
    for (const bool huge : {false, true}) {
        const std::unique_ptr<void, void (*)(void*)> memory(
            ::operator new(bytes, kAlignment, std::nothrow),
            [](void* p) { ::operator delete(p, kAlignment); });
        if (memory == nullptr)
            throw NoMemory(
                cat("no memory left for the ", bytes >> 20, " MiB that measuring its speed takes"));
        use_huge_pages(memory.get(), bytes, huge);
        auto* words = static_cast<uint64_t*>(memory.get());
        const std::size_t count = bytes / sizeof(uint64_t);
        std::fill_n(words, count, uint64_t{1});
        best = std::max(best, read_rate(pool, words, static_cast<int64_t>(count)));
    }
    return best;
}

double float_peak(const Kernels& kernels, int threads) {
    return arithmetic_rate(kernels.float_peak, threads);
}

double int8_peak(const Kernels& kernels, int threads) {
    return arithmetic_rate(kernels.int8_peak, threads);
}

}  // namespace rwkv_edge
