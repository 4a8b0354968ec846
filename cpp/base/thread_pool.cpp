// SPDX-License-Identifier: Apache-2.0
#include "base/thread_pool.h"

#include <algorithm>
#include <new>
#include <system_error>

#include "base/error.h"
#include "base/system.h"

namespace rwkv_edge {

namespace {

// Spins are counted, not timed: about 20 microseconds on the machines of today. Now and then a
// spinning thread lets another one run: better here than in the middle of a unit.
constexpr int kSpins = 4000, kSpinsToYield = 20;

// Returns once `value` is no longer `old`.
void wait_change(Waitable& value, uint32_t old) {
    for (int i = 1; i <= kSpins; ++i) {
        if (value.load(std::memory_order_acquire) != old) return;
        if (i % kSpinsToYield == 0)
            std::this_thread::yield();
        else
            pause();
    }
    value.wait(old);
}

// Of Share::left: 32 bits of the region's number, 16 of the next unit, 16 of the last one's end.
constexpr uint64_t pack(uint32_t region, uint64_t next, uint64_t end) {
    return uint64_t{region} << 32 | next << 16 | end;
}

}  // namespace

ThreadPool::ThreadPool(int threads)
    : process_(process_id()),
      shares_(std::make_unique<Share[]>(static_cast<std::size_t>(threads))) {
    workers_.reserve(static_cast<std::size_t>(threads) - 1);
    try {
        for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { worker_loop(i); });
    } catch (const std::system_error& error) {  // no destructor runs for half a pool
        stop();
        throw std::system_error(error.code(), cat("thread ", workers_.size() + 2, " of ", threads,
                                                  " does not start, so ask for fewer"));
    } catch (const std::bad_alloc&) {  // of a thread's beginning
        stop();
        throw;
    }
}

bool ThreadPool::in_forked_child() const { return process_id() != process_; }

ThreadPool::~ThreadPool() {
    if (in_forked_child()) {
        for (std::thread& worker : workers_) worker.detach();
        return;
    }
    stop();
}

void ThreadPool::stop() {
    stop_.store(true, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::start(int64_t units, Task task, void* context) {
    if (units == 0) return;
    if (workers_.empty() || units == 1 || in_forked_child()) return task(context, 0, units, 0);
    const std::lock_guard lock(region_);
    task_ = task;
    context_ = context;
    unfinished_.store(static_cast<uint32_t>(units), std::memory_order_relaxed);
    const uint32_t region = generation_.load(std::memory_order_relaxed) + 1;
    for (int64_t i = 0; i < size(); ++i) {
        Share& share = shares_[static_cast<std::size_t>(i)];
        share.first = units * i / size();
        const int64_t n = units * (i + 1) / size() - share.first;
        share.left.store(pack(region, 0, static_cast<uint64_t>(n)), std::memory_order_release);
    }
    generation_.store(region, std::memory_order_release);
    generation_.notify_all();
    work_on_all(0);
    for (uint32_t left = unfinished_.load(std::memory_order_acquire); left != 0;
         left = unfinished_.load(std::memory_order_acquire)) {
        wait_change(unfinished_, left);
    }
}

void ThreadPool::work_on_all(int worker) {
    uint32_t done = 0;
    for (int i = 0; i < size(); ++i)
        done += work_on(shares_[static_cast<std::size_t>((worker + i) % size())], worker, i == 0);
    if (done > 0 && unfinished_.fetch_sub(done, std::memory_order_acq_rel) == done)
        unfinished_.notify_one();
}

// Takes units of a share until there is none; returns how many. Its owner takes most of what is
// left at a time, for long runs through memory; others take one.
uint32_t ThreadPool::work_on(Share& share, int worker, bool own) {
    uint32_t done = 0;
    uint64_t left = share.left.load(std::memory_order_acquire);
    for (;;) {
        const uint64_t next = left >> 16 & 0xffff, end = left & 0xffff;
        if (next == end) return done;
        const uint64_t units = end - next;
        const uint64_t n = own && units > 1 ? units - std::max(units / 4, uint64_t{1}) : 1;
        if (!share.left.compare_exchange_weak(left, left + (n << 16), std::memory_order_acquire))
            continue;
        const int64_t begin = share.first + static_cast<int64_t>(next);
        task_(context_, begin, begin + static_cast<int64_t>(n), worker);
        done += static_cast<uint32_t>(n);
        left = share.left.load(std::memory_order_acquire);
    }
}

void ThreadPool::worker_loop(int worker) {
    // A pool starts at generation 0.
    for (uint32_t seen = 0;;) {
        wait_change(generation_, seen);
        seen = generation_.load(std::memory_order_acquire);
        if (stop_.load(std::memory_order_relaxed)) return;
        work_on_all(worker);
    }
}

}  // namespace rwkv_edge
