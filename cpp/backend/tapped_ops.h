// SPDX-License-Identifier: Apache-2.0
// The verbs of another Ops, and a look at every product before it is computed.
#pragma once

#include <functional>
#include <utility>

#include "backend/ops.h"

namespace rwkv_edge {

// Called with each product of a step. Its pointers are those of the backend. Returns whether the
// product is needed; of those that are computed together, whether one is.
using MatmulTap = std::function<bool(const MatmulJob& job, int64_t tokens)>;

class TappedOps final : public Ops {
public:
    TappedOps(Ops& ops, MatmulTap tap) : ops_(ops), tap_(std::move(tap)) {}

    bool begin(const Plan& plan) override { return ops_.begin(plan); }
    void end() override { ops_.end(); }
    void abandon() noexcept override { ops_.abandon(); }

    void matmul(std::span<const MatmulJob> jobs, int64_t tokens) override {
        bool needed = false;
        for (const MatmulJob& job : jobs) needed |= tap_(job, tokens);
        if (needed) ops_.matmul(jobs, tokens);
    }

    void embed(const Tensor& table, const int32_t* ids, int64_t tokens, float* y) override {
        ops_.embed(table, ids, tokens, y);
    }
    void norm(const float* x, const Norm& norm, float eps, int64_t tokens, int64_t n,
              float* y) override {
        ops_.norm(x, norm, eps, tokens, n, y);
    }
    void shift(const Shift& args, int64_t tokens) override { ops_.shift(args, tokens); }
    void matmul_per_token(const float* x, const float* m, int64_t rows, int64_t cols,
                          int64_t tokens, float* y) override {
        ops_.matmul_per_token(x, m, rows, cols, tokens, y);
    }
    void wkv4(const Wkv4& args) override { ops_.wkv4(args); }
    void wkv6(const Wkv6& args) override { ops_.wkv6(args); }
    void wkv7(const Wkv7& args) override { ops_.wkv7(args); }
    void copy(const float* x, int64_t n, float* y) override { ops_.copy(x, n, y); }
    void keep(const float* x, const int32_t* rows, int64_t n, const States& to) override {
        ops_.keep(x, rows, n, to);
    }

private:
    Ops& ops_;
    MatmulTap tap_;
};

}  // namespace rwkv_edge
