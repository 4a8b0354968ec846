// SPDX-License-Identifier: Apache-2.0
// Fixed workers for short parallel regions: a decode step opens some six of them per layer, so a
// region must cost about a microsecond. Workers spin for a moment after each region, then park.
//
// The work of a region is cut into units. Each worker begins with a share of its own, and when that
// is done takes units from the others. So a worker that the system has put aside is waited for only
// where it was in the middle of a unit, and slow cores do less than fast ones.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#include "base/system.h"

namespace rwkv_edge {

class ThreadPool {
public:
    // `threads` >= 1 counts the caller too, so 1 starts no thread at all. Throws std::system_error
    // where the system has no more threads to give.
    explicit ThreadPool(int threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int size() const { return static_cast<int>(workers_.size()) + 1; }
    int64_t most_units() const { return kShareUnits * size(); }  // of a region

    // Calls body(begin, end, worker) for ranges that cover the units [0, units) once, and returns
    // when all are done. In a region no two calls run at once with the same worker, in [0, size()).
    // body must not throw. Regions of several callers run one after the other.
    template <class Body>
    void run(int64_t units, Body&& body) {
        using Plain = std::remove_reference_t<Body>;
        start(
            units,
            [](void* context, int64_t begin, int64_t end, int worker) {
                (*static_cast<Plain*>(context))(begin, end, worker);
            },
            const_cast<void*>(static_cast<const void*>(&body)));
    }

private:
    using Task = void (*)(void* context, int64_t begin, int64_t end, int worker);
    static constexpr int64_t kShareUnits = 0xffff;

    // The units of a worker's share that nobody has taken, [next, end) from `first` on, and the
    // number of the region, in one word: who takes some with an old number, or an old end, fails.
    struct alignas(64) Share {
        std::atomic<uint64_t> left{0};
        int64_t first = 0;
    };

    void start(int64_t units, Task task, void* context);
    uint32_t work_on(Share& share, int worker, bool own);
    void work_on_all(int worker);
    void worker_loop(int worker);
    void stop();

    bool in_forked_child() const;

    const int process_;  // that owns the workers: a forked child has the pool, but not its threads
    std::mutex region_;  // one region at a time
    // Of the region; read only by who has taken a unit of it, which it outlives.
    Task task_ = nullptr;
    void* context_ = nullptr;
    std::unique_ptr<Share[]> shares_;  // one per worker
    Waitable unfinished_{0};           // units of the region
    Waitable generation_{0};           // a new value says that there is work
    std::atomic<bool> stop_{false};
    std::vector<std::thread> workers_;
};

}  // namespace rwkv_edge
