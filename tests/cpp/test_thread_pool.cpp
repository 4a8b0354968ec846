// SPDX-License-Identifier: Apache-2.0
#ifndef _WIN32
#include <sys/wait.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <vector>

#include "base/thread_pool.h"
#include "check.h"

using namespace rwkv_edge;

namespace {

// Calls body(unit, worker) for each unit of a region.
template <class Body>
void each_unit(ThreadPool& pool, int64_t units, Body&& body) {
    pool.run(units, [&](int64_t begin, int64_t end, int worker) {
        for (int64_t i = begin; i < end; ++i) body(static_cast<std::size_t>(i), worker);
    });
}

}  // namespace

#ifndef _WIN32  // which has no fork
// multiprocessing forks by default on Linux: the child has the pool, but none of its threads.
TEST(a_forked_child_works_alone_and_ends) {
    auto pool = std::make_unique<ThreadPool>(3);
    each_unit(*pool, 3, [](std::size_t, int) {});
    const pid_t child = fork();
    if (child == 0) {
        alarm(20);  // a child that waits for a worker would wait for good
        int seen = 0;
        each_unit(*pool, 3, [&](std::size_t i, int worker) { seen += (1 << i) + worker; });
        pool.reset();
        _exit(seen == 7 ? 0 : 1);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}
#endif

TEST(every_unit_is_done_once_and_there_when_run_returns) {
    for (int threads = 1; threads <= 5; ++threads) {
        ThreadPool pool(threads);
        CHECK(pool.size() == threads);
        std::vector<int64_t> done(400, 0);  // each unit its own element
        for (int64_t units : {0, 1, 2, 3, 7, 64, 399, 400})
            for (int region = 0; region < 300; ++region) {
                each_unit(pool, units, [&](std::size_t i, int worker) {
                    done[i] += worker >= 0 && worker < threads ? 1 : 1000;
                });
                for (std::size_t i = 0; i < done.size(); ++i)
                    CHECK(done[i] == (static_cast<int64_t>(i) < units));
                std::ranges::fill(done, 0);
            }
        const int64_t most = pool.most_units();
        std::atomic<int64_t> count{0};
        pool.run(most, [&](int64_t begin, int64_t end, int) { count += end - begin; });
        CHECK(count == most);
    }
}

// While a worker is in the middle of a unit, it is in no other one.
TEST(a_worker_does_one_thing_at_a_time) {
    ThreadPool pool(4);
    std::atomic<int> busy[4] = {};
    std::atomic<int> wrong{0};
    for (int region = 0; region < 300; ++region)
        each_unit(pool, 50, [&](std::size_t, int worker) {
            if (busy[worker].fetch_add(1) != 0) ++wrong;
            busy[worker].fetch_sub(1);
        });
    CHECK(wrong == 0);
}

// The first worker to begin holds its first unit until all others are done: somebody else has taken
// what was left of its share.
TEST(nobody_waits_for_units_that_another_can_do) {
    ThreadPool pool(2);
    constexpr int64_t kUnits = 1000;
    for (int region = 0; region < 20; ++region) {
        std::atomic<int64_t> done{0};
        std::atomic<bool> first{true};
        pool.run(kUnits, [&](int64_t begin, int64_t end, int) {
            const bool holds = first.exchange(false);
            while (holds && done.load() < kUnits - (end - begin)) std::this_thread::yield();
            done += end - begin;
        });
        CHECK(done == kUnits);
    }
}

TEST(one_thread_works_in_the_caller) {
    ThreadPool pool(1);
    std::thread::id ran;
    each_unit(pool, 1, [&](std::size_t, int) { ran = std::this_thread::get_id(); });
    CHECK(ran == std::this_thread::get_id());
}

TEST(parked_workers_wake) {
    ThreadPool pool(4);
    for (int round = 0; round < 5; ++round) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        // each unit waits for all others, so each needs a thread of its own
        std::atomic<int> calls{0};
        each_unit(pool, 4, [&](std::size_t, int) {
            ++calls;
            while (calls < 4) std::this_thread::yield();
        });
        CHECK(calls == 4);
    }
}

TEST(regions_of_two_callers_do_not_mix) {
    ThreadPool pool(3);
    const auto call = [&pool](int* wrong) {
        for (int i = 0; i < 300; ++i) {
            std::vector<int> seen(9, 0);
            each_unit(pool, 9, [&](std::size_t unit, int) { ++seen[unit]; });
            for (int count : seen) *wrong += count != 1;
        }
    };
    int wrong_here = 0, wrong_there = 0;
    std::thread other(call, &wrong_there);
    call(&wrong_here);
    other.join();
    CHECK(wrong_here == 0 && wrong_there == 0);
}

TEST(pools_come_and_go) {
    for (int i = 0; i < 100; ++i) {
        ThreadPool unused(3);
        ThreadPool used(2);
        std::atomic<int> calls{0};
        each_unit(used, 2, [&](std::size_t, int) { ++calls; });
        CHECK(calls == 2);
    }
}
