// SPDX-License-Identifier: Apache-2.0
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <memory>
#include <numeric>

#include "base/thread_pool.h"
#include "check.h"

using namespace rwkv_edge;

// multiprocessing forks by default on Linux: the child has the pool, but none of its threads.
TEST(a_forked_child_works_alone_and_ends) {
    auto pool = std::make_unique<ThreadPool>(3);
    pool->run([](int) {});
    const pid_t child = fork();
    if (child == 0) {
        alarm(20);  // a child that waits for a worker would wait for good
        int seen = 0;
        pool->run([&](int worker) { seen += 1 << worker; });
        pool.reset();
        _exit(seen == 7 ? 0 : 1);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

TEST(every_worker_is_called_once_a_region) {
    for (int threads = 1; threads <= 5; ++threads) {
        ThreadPool pool(threads);
        CHECK(pool.size() == threads);
        std::vector<int> calls(static_cast<size_t>(threads), 0);  // each worker its own element
        for (int region = 0; region < 2000; ++region)
            pool.run([&](int worker) { ++calls[static_cast<size_t>(worker)]; });
        for (int count : calls) CHECK(count == 2000);
    }
}

TEST(results_are_there_when_run_returns) {
    ThreadPool pool(3);
    std::vector<int64_t> data(1000);
    for (int64_t round = 0; round < 500; ++round) {
        pool.run([&](int worker) {
            const Range mine = part(1000, 8, worker, pool.size());
            for (int64_t i = mine.begin; i < mine.end; ++i)
                data[static_cast<size_t>(i)] = round + i;
        });
        const int64_t sum = std::accumulate(data.begin(), data.end(), int64_t{0});
        CHECK(sum == 1000 * round + 999 * 500);
    }
}

TEST(one_thread_works_in_the_caller) {
    ThreadPool pool(1);
    std::thread::id ran;
    pool.run([&](int) { ran = std::this_thread::get_id(); });
    CHECK(ran == std::this_thread::get_id());
}

TEST(parked_workers_wake) {
    ThreadPool pool(4);
    for (int round = 0; round < 5; ++round) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        std::atomic<int> calls{0};
        pool.run([&](int) { ++calls; });
        CHECK(calls == 4);
    }
}

TEST(regions_of_two_callers_do_not_mix) {
    ThreadPool pool(3);
    const auto call = [&pool](int* wrong) {
        for (int i = 0; i < 300; ++i) {
            std::vector<int> seen(3, 0);
            pool.run([&](int worker) { ++seen[static_cast<size_t>(worker)]; });
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
        used.run([&](int) { ++calls; });
        CHECK(calls == 2);
    }
}

TEST(parts_cover_everything_once_and_are_cut_at_the_grain) {
    for (int64_t n : {0, 1, 7, 8, 9, 64, 65, 1000})
        for (int64_t grain : {1, 4, 8, 32})
            for (int workers = 1; workers <= 9; ++workers) {
                int64_t next = 0;
                for (int w = 0; w < workers; ++w) {
                    const Range mine = part(n, grain, w, workers);
                    CHECK(mine.begin == next || mine.begin >= mine.end);
                    CHECK(mine.begin % grain == 0);
                    next = std::max(next, mine.end);
                }
                CHECK(next == n);
            }
}
