// SPDX-License-Identifier: Apache-2.0
// Where the time of a step goes: milliseconds per verb of ops.h, and for products per type and
// shape the rate at which weights were read; by input, those of the rows that were needed.
// Arguments: MODEL [threads] [tokens of each session] [sessions].
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <string>
#include <vector>

#include "backend/limits.h"
#include "model/model.h"

using namespace rwkv_edge;

namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

struct Entry {
    double seconds = 0.0;
    int64_t calls = 0, bytes = 0;
    int64_t inputs = 0, zeros = 0;  // of products by input
};

// Passes every verb on and adds up what it took. Products that share a region are told apart by
// the names of all of them.
class TimedOps final : public Ops {
public:
    explicit TimedOps(std::unique_ptr<Ops> ops) : ops_(std::move(ops)) {}

    std::map<std::string, Entry> entries;

    void embed(const Tensor& table, const int32_t* ids, int64_t tokens, float* y) override {
        timed("embed", [&] { ops_->embed(table, ids, tokens, y); });
    }
    void matmul(std::span<const MatmulJob> jobs, int64_t tokens) override {
        std::string name = "matmul";
        int64_t bytes = 0, inputs = 0, zeros = 0;
        for (const MatmulJob& job : jobs) {
            name += " " + std::string(type_info(job.w.type).name) + ":" +
                    std::to_string(job.w.rows) + "x" + std::to_string(job.w.cols);
            if (!job.w.by_input) {
                bytes += job.w.bytes();
                continue;
            }
            name += " by input";
            for (int64_t i = 0; i < job.w.rows; ++i) {  // which the CPU's backend lets us look at
                int64_t active = 0;
                for (int64_t t = 0; t < tokens; ++t) active += job.x.x[t * job.w.rows + i] != 0.0f;
                inputs += tokens;
                zeros += tokens - active;
                if (active > 0) bytes += job.w.row_bytes();
            }
        }
        timed(name, [&] { ops_->matmul(jobs, tokens); }, bytes);
        entries[name].inputs += inputs;
        entries[name].zeros += zeros;
    }
    void norm(const float* x, const Norm& norm, float eps, int64_t tokens, int64_t n,
              float* y) override {
        timed("norm", [&] { ops_->norm(x, norm, eps, tokens, n, y); });
    }
    void shift(const Shift& args, int64_t tokens) override {
        timed("shift", [&] { ops_->shift(args, tokens); });
    }
    void matmul_per_token(const float* x, const float* m, int64_t rows, int64_t cols,
                          int64_t tokens, float* y) override {
        timed("matmul_per_token", [&] { ops_->matmul_per_token(x, m, rows, cols, tokens, y); });
    }
    void wkv4(const Wkv4& args) override {
        timed("wkv4", [&] { ops_->wkv4(args); });
    }
    void wkv6(const Wkv6& args) override {
        timed("wkv6", [&] { ops_->wkv6(args); });
    }
    void wkv7(const Wkv7& args) override {
        timed("wkv7", [&] { ops_->wkv7(args); });
    }
    void copy(const float* x, int64_t n, float* y) override {
        timed("copy", [&] { ops_->copy(x, n, y); });
    }
    void keep(const float* x, const int32_t* rows, int64_t n, const States& to) override {
        timed("keep", [&] { ops_->keep(x, rows, n, to); });
    }

private:
    template <class Body>
    void timed(const std::string& name, const Body& body, int64_t bytes = 0) {
        Entry& entry = entries[name];
        const auto start = Clock::now();
        body();
        entry.seconds += since(start);
        entry.calls += 1;
        entry.bytes += bytes;
    }

    std::unique_ptr<Ops> ops_;
};

void measure(const std::string& path, int threads, int64_t tokens, int64_t sessions) {
    const Model model(ModelFile::open(path), make_cpu_backend(threads));
    Backend& backend = model.backend();
    tokens = std::min(tokens, backend.chunk() / sessions);
    TimedOps ops(backend.make_ops());
    Scratch scratch(backend);
    std::vector<int32_t> ids(static_cast<std::size_t>(tokens));
    std::vector<Memory> memories;
    std::vector<Feed> feeds;
    for (int64_t i = 0; i < sessions; ++i) {
        memories.push_back(backend.allocate(model.memory_size()));
        backend.write(memories.back().get(), model.initial_state());
        feeds.push_back({ids, memories.back().get(), 1});
    }
    int32_t next = 0;
    const auto step = [&] {
        for (int32_t& id : ids) id = next++ % static_cast<int32_t>(model.config().n_vocab);
        model.forward(ops, scratch, feeds);
    };
    for (int i = 0; i < 3; ++i) step();
    ops.entries.clear();
    double bandwidth = read_bandwidth(threads);
    const auto start = Clock::now();
    int steps = 0;
    for (; steps < 8 || since(start) < 4.0; ++steps) step();
    const double total = since(start);
    bandwidth = (bandwidth + read_bandwidth(threads)) / 2;

    std::printf(
        "%s, %d threads, %lld sessions of %lld tokens a step: %.3f ms, memory reads %.1f GB/s\n",
        path.c_str(), threads, static_cast<long long>(sessions), static_cast<long long>(tokens),
        1e3 * total / steps, bandwidth);
    double products = 0.0, named = 0.0;
    for (const auto& [name, entry] : ops.entries) {
        named += entry.seconds;
        if (entry.bytes > 0) products += entry.seconds;
        std::printf("%9.3f ms %5.1f %% %6lld calls", 1e3 * entry.seconds / steps,
                    100 * entry.seconds / total, static_cast<long long>(entry.calls / steps));
        if (entry.bytes > 0)
            std::printf(" %6.1f GB/s", static_cast<double>(entry.bytes) / entry.seconds / 1e9);
        std::printf("  %s", name.c_str());
        if (entry.inputs > 0)
            std::printf(", %.1f %% zeros", 100.0 * static_cast<double>(entry.zeros) /
                                               static_cast<double>(entry.inputs));
        std::printf("\n");
    }
    std::printf("%9.3f ms %5.1f %%  between verbs\n", 1e3 * (total - named) / steps,
                100 * (total - named) / total);
    std::printf("outside products: %.1f %%\n", 100 * (total - products) / total);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2 || argc > 5) {
        std::fprintf(stderr, "usage: bench_steps MODEL [threads] [tokens] [sessions]\n");
        return 2;
    }
    try {
        const auto number = [&](int i) { return i < argc ? std::max(1, std::atoi(argv[i])) : 1; };
        measure(argv[1], number(2), number(3), std::min(number(4), 64));
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    return 0;
}
