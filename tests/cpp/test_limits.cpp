// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <stdexcept>

#include "backend/limits.h"
#include "base/error.h"
#include "check.h"

using namespace rwkv_edge;

namespace {

// What no core of today reaches, two units of 512 bits at 8 GHz: more means that work was left out.
constexpr double kFloatAtMost = 8.0 * 2 * 16 * 2, kInt8AtMost = 8.0 * 2 * 64 * 2;
constexpr double kReadAtMost = 2000.0;  // nor any memory

// A folder with files as Linux shows them below /, removed at the end.
class Root {
public:
    Root() : path_(std::filesystem::temp_directory_path() / cat("rwkv-edge-root-", getpid())) {
        put("/proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    1000 kB\nBuffers: 1 kB\n");
    }
    ~Root() { std::filesystem::remove_all(path_); }
    void put(const std::string& name, const std::string& text) {
        const std::filesystem::path file = path_ + name;
        std::filesystem::create_directories(file.parent_path());
        std::ofstream(file) << text;
    }
    uint64_t memory() const { return available_memory(path_); }

private:
    std::string path_;
};

bool plausible(double rate, double at_most) { return rate > 0.0 && rate <= at_most; }

}  // namespace

TEST(peaks_of_every_level_are_plausible) {
    for (const Kernels& level : available_kernels())
        for (int threads : {1, 3}) {
            CHECK_CASE(plausible(float_peak(level, threads), threads * kFloatAtMost), level.isa);
            CHECK_CASE(plausible(int8_peak(level, threads), threads * kInt8AtMost), level.isa);
        }
}

TEST(operations_are_those_of_the_rounds) {
    for (const Kernels& level : available_kernels())
        for (auto* operations : {level.float_peak, level.int8_peak}) {
            const int64_t one = operations(1);
            CHECK_CASE(one > 0 && operations(0) == 0 && operations(7) == 7 * one, level.isa);
        }
}

TEST(memory_is_read_by_any_number_of_threads) {
    for (int threads : {1, 3}) CHECK(plausible(read_bandwidth(threads), kReadAtMost));
}

TEST(a_wrong_number_of_threads_fails) {
    for (int threads : {-1, 0, 1025}) {
        const std::string found = "threads is " + std::to_string(threads);
        CHECK_THROWS(std::invalid_argument, found, read_bandwidth(threads));
        CHECK_THROWS(std::invalid_argument, found, float_peak(kernels(), threads));
        CHECK_THROWS(std::invalid_argument, found, int8_peak(kernels(), threads));
    }
}

TEST(available_memory_is_the_least_that_anything_grants) {
    CHECK(available_memory("/nowhere") == available_memory("/nowhere/else"));  // all there is
    Root root;
    CHECK(root.memory() == 1000 << 10);
    root.put("/proc/self/cgroup", "0::/a/b\n");
    CHECK(root.memory() == 1000 << 10);
    root.put("/sys/fs/cgroup/a/b/memory.max", "max\n");
    CHECK(root.memory() == 1000 << 10);
    root.put("/sys/fs/cgroup/a/memory.max", "500000\n");
    CHECK(root.memory() == 500000);
    root.put("/sys/fs/cgroup/a/b/memory.high", "400000\n");
    CHECK(root.memory() == 400000);
    root.put("/proc/self/cgroup", "7:cpuset:/\n3:cpu,memory:/docker/1\n1:name=systemd:/\n");
    CHECK(root.memory() == 1000 << 10);
    root.put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "300000\n");  // seen from inside
    CHECK(root.memory() == 300000);
}
