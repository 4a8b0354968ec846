// SPDX-License-Identifier: Apache-2.0
#include "base/thread_pool.h"

#include <new>
#include <system_error>

#include "base/error.h"
#include "base/system.h"

namespace rwkv_edge {

namespace {

// Spins are counted, not timed: about 20 microseconds on the machines of today.
constexpr int kSpins = 4000;

// Returns once `value` is no longer `old`.
template <class T>
void wait_change(const std::atomic<T>& value, T old) {
    for (int i = 0; i < kSpins; ++i) {
        if (value.load(std::memory_order_acquire) != old) return;
        pause();
    }
    value.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int threads) : process_(process_id()) {
    workers_.reserve(static_cast<std::size_t>(threads) - 1);
    try {
        for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
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

void ThreadPool::start(Task task, void* context) {
    if (workers_.empty()) return task(context, 0);
    if (in_forked_child()) {
        for (int worker = 0; worker < size(); ++worker) task(context, worker);
        return;
    }
    const std::lock_guard lock(region_);
    task_ = task;
    context_ = context;
    running_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    task(context, 0);
    for (int left = running_.load(std::memory_order_acquire); left != 0;
         left = running_.load(std::memory_order_acquire)) {
        wait_change(running_, left);
    }
}

void ThreadPool::work(int worker) {
    // A pool starts at generation 0, and no region can end before this worker has seen it.
    for (uint32_t seen = 0;;) {
        wait_change(generation_, seen);
        seen = generation_.load(std::memory_order_acquire);
        if (stop_.load(std::memory_order_relaxed)) return;
        task_(context_, worker);
        if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_one();
    }
}

}  // namespace rwkv_edge
