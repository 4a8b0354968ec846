// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "base/system.h"
#include "check.h"

using namespace rwkv_edge;

namespace {

// A folder with files as Linux shows them below /, removed at the end.
class Root {
public:
    Root() : path_(std::filesystem::temp_directory_path() / cat("rwkv-edge-root-", process_id())) {
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

}  // namespace

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
