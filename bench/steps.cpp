// SPDX-License-Identifier: Apache-2.0
// Where the time of a step goes: milliseconds per verb of ops.h, and for products per type and
// shape the rate at which weights were read. Arguments: MODEL [threads] [tokens per step].
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
        int64_t bytes = 0;
        for (const MatmulJob& job : jobs) {
            name += " " + std::string(type_info(job.w.type).name) + ":" +
                    std::to_string(job.w.rows) + "x" + std::to_string(job.w.cols);
            bytes += job.w.bytes();
        }
        timed(name, [&] { ops_->matmul(jobs, tokens); }, bytes);
    }
    void norm(const float* x, const Norm& norm, int64_t groups, float eps, int64_t tokens,
              int64_t n, float* y) override {
        timed("norm", [&] { ops_->norm(x, norm, groups, eps, tokens, n, y); });
    }
    void token_shift(const float* x, float* last, int64_t tokens, int64_t n,
                     float* previous) override {
        timed("token_shift", [&] { ops_->token_shift(x, last, tokens, n, previous); });
    }
    void lerp(const float* x, const float* to, const float* mix, bool per_token, int64_t tokens,
              int64_t n, float* y) override {
        timed("lerp", [&] { ops_->lerp(x, to, mix, per_token, tokens, n, y); });
    }
    void mul(const float* x, const float* z, int64_t tokens, int64_t n, float* y) override {
        timed("mul", [&] { ops_->mul(x, z, tokens, n, y); });
    }
    void l2_normalize(const float* x, const float* weight, int64_t heads, int64_t tokens, int64_t n,
                      float* y) override {
        timed("l2_normalize", [&] { ops_->l2_normalize(x, weight, heads, tokens, n, y); });
    }
    void bonus(const float* r, const float* k, const float* u, const float* v, int64_t heads,
               int64_t tokens, int64_t n, float* y) override {
        timed("bonus", [&] { ops_->bonus(r, k, u, v, heads, tokens, n, y); });
    }
    void matmul_per_token(const float* x, const float* m, int64_t rows, int64_t cols,
                          int64_t tokens, float* y) override {
        timed("matmul_per_token", [&] { ops_->matmul_per_token(x, m, rows, cols, tokens, y); });
    }
    void wkv4(const Wkv4& args, int64_t tokens) override {
        timed("wkv4", [&] { ops_->wkv4(args, tokens); });
    }
    void wkv6(const Wkv6& args, int64_t tokens) override {
        timed("wkv6", [&] { ops_->wkv6(args, tokens); });
    }
    void wkv7(const Wkv7& args, int64_t tokens) override {
        timed("wkv7", [&] { ops_->wkv7(args, tokens); });
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

void measure(const std::string& path, int threads, int64_t tokens) {
    const Model model(ModelFile::open(path), threads);
    TimedOps ops(model.make_ops());
    Scratch scratch;
    std::vector<float> state(static_cast<std::size_t>(model.state_size()));
    std::vector<float> logits(static_cast<std::size_t>(model.config().n_vocab));
    std::vector<int32_t> ids(static_cast<std::size_t>(tokens));
    model.init_state(state.data());
    int32_t next = 0;
    const auto step = [&] {
        for (int32_t& id : ids) id = next++ % static_cast<int32_t>(model.config().n_vocab);
        model.forward(ops, scratch, ids, state.data(), logits.data(), 1);
    };
    for (int i = 0; i < 3; ++i) step();
    ops.entries.clear();
    double bandwidth = read_bandwidth(threads);
    const auto start = Clock::now();
    int steps = 0;
    for (; steps < 8 || since(start) < 4.0; ++steps) step();
    const double total = since(start);
    bandwidth = (bandwidth + read_bandwidth(threads)) / 2;

    std::printf("%s, %d threads, %lld tokens a step: %.3f ms, memory reads %.1f GB/s\n",
                path.c_str(), threads, static_cast<long long>(tokens), 1e3 * total / steps,
                bandwidth);
    double products = 0.0, named = 0.0;
    for (const auto& [name, entry] : ops.entries) {
        named += entry.seconds;
        if (entry.bytes > 0) products += entry.seconds;
        std::printf("%9.3f ms %5.1f %% %6lld calls", 1e3 * entry.seconds / steps,
                    100 * entry.seconds / total, static_cast<long long>(entry.calls / steps));
        if (entry.bytes > 0)
            std::printf(" %6.1f GB/s", static_cast<double>(entry.bytes) / entry.seconds / 1e9);
        std::printf("  %s\n", name.c_str());
    }
    std::printf("%9.3f ms %5.1f %%  between verbs\n", 1e3 * (total - named) / steps,
                100 * (total - named) / total);
    std::printf("outside products: %.1f %%\n", 100 * (total - products) / total);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2 || argc > 4) {
        std::fprintf(stderr, "usage: bench_steps MODEL [threads] [tokens per step]\n");
        return 2;
    }
    try {
        measure(argv[1], argc > 2 ? std::max(1, std::atoi(argv[2])) : 1,
                argc > 3 ? std::max(1, std::atoi(argv[3])) : 1);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    return 0;
}
