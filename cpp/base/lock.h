// SPDX-License-Identifier: Apache-2.0
// A mutex that knows whose it is. A fork copies a mutex as it stands. If another thread held it, no
// thread of the child will ever give it back, and a std::mutex would wait for ever.
#pragma once

#include <atomic>
#include <cstdint>
#include <stdexcept>

#include "base/system.h"

namespace rwkv_edge {

class Lock {
public:
    // Throws std::runtime_error where a thread of the parent process held it when this one was
    // forked.
    void lock() {
        for (uint32_t holder = 0; !take(holder); holder = 0) {
            if (holder != this_process())
                throw std::runtime_error(
                    "this session, or another one of its model, was busy in another thread when "
                    "this process was forked: open the model again in the new process");
            holder_.wait(holder);
        }
    }
    bool try_lock() {
        uint32_t holder = 0;
        return take(holder);
    }
    void unlock() {
        holder_.store(0, std::memory_order_release);
        holder_.notify_one();
    }

private:
    static uint32_t this_process() { return static_cast<uint32_t>(process_id()); }
    bool take(uint32_t& holder) {
        return holder_.compare_exchange_strong(holder, this_process(), std::memory_order_acquire,
                                               std::memory_order_relaxed);
    }

    Waitable holder_{0};  // the process of the thread that holds it
};

}  // namespace rwkv_edge
