// SPDX-License-Identifier: Apache-2.0
// Fixed workers for short parallel regions: a decode step opens some six of them per layer, so a
// region must cost about a microsecond. Workers spin for a moment after each region, then park.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

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

    // Calls body(worker) once for every worker in [0, size()) and returns when all are done. body
    // must not throw. Regions of several callers run one after the other.
    template <class Body>
    void run(Body&& body) {
        using Plain = std::remove_reference_t<Body>;
        start([](void* context, int worker) { (*static_cast<Plain*>(context))(worker); },
              const_cast<void*>(static_cast<const void*>(&body)));
    }

private:
    using Task = void (*)(void* context, int worker);
    void start(Task task, void* context);
    void work(int worker);
    void stop();

    bool in_forked_child() const;

    const int process_;  // that owns the workers: a forked child has the pool, but not its threads
    std::mutex region_;  // one region at a time
    Task task_ = nullptr;
    void* context_ = nullptr;
    std::atomic<uint32_t> generation_{0};  // a new value starts a region
    std::atomic<int> running_{0};
    std::atomic<bool> stop_{false};
    std::vector<std::thread> workers_;
};

// The part of [0, n) that belongs to `worker` of `workers`, cut at multiples of `grain`.
struct Range {
    int64_t begin, end;
};
inline Range part(int64_t n, int64_t grain, int worker, int workers) {
    const int64_t pieces = (n + grain - 1) / grain;
    const int64_t begin = pieces * worker / workers * grain;
    const int64_t end = pieces * (worker + 1) / workers * grain;
    return {begin, end < n ? end : n};
}

}  // namespace rwkv_edge
