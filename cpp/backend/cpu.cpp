// SPDX-License-Identifier: Apache-2.0
// The verbs over the kernel table and the thread pool. Each output element is computed whole by one
// thread, so results do not depend on the number of threads.
#include <algorithm>
#include <cstring>
#include <deque>
#include <vector>

#include "backend/ops.h"
#include "base/aligned.h"
#include "kernels/dispatch.h"

namespace rwkv_edge {

namespace {

// Below this many elements a parallel region costs more than it saves.
constexpr int64_t kSerialElements = 16384;
constexpr int64_t kExpWork = 32;  // what a channel of wkv4 costs, with its four exponentials
constexpr int64_t kRowGrain = 8;  // kernels work on eight rows at a time

// Activations rounded to 8 bits, shared by all products of a group that read the same x.
struct Rounded {
    const float* x = nullptr;
    int64_t stride = 0;  // bytes from one token to the next
    AlignedVector<std::byte> rows;
};

bool wants_rounded(const Kernels& kernels, Type type) {
    return type_info(type).block_len > 1 && kernels.matmul[static_cast<int>(type)] != nullptr;
}

class CpuOps final : public Ops {
public:
    explicit CpuOps(std::shared_ptr<ThreadPool> pool)
        : pool_(std::move(pool)),
          kernels_(kernels()),
          scratch_(static_cast<std::size_t>(pool_->size())) {}

    void embed(const Tensor& table, const int32_t* ids, int64_t tokens, float* y) override {
        const auto* rows = static_cast<const std::byte*>(table.data);
        each_token(tokens, table.cols, [&](int64_t t) {
            type_info(table.type)
                .dequantize(rows + ids[t] * table.row_bytes(), y + t * table.cols, table.cols);
        });
    }

    void matmul(std::span<const MatmulJob> jobs, int64_t tokens) override {
        round_inputs(jobs, tokens);
        int64_t total = 0, widest = 0;
        for (const MatmulJob& job : jobs) {
            total += job.w.bytes();
            widest = std::max(widest, job.w.cols);
        }
        // twice: a dequantised group of rows, and what the kernel itself asks for
        for (auto& scratch : scratch_)
            if (static_cast<int64_t>(scratch.size()) < 2 * matmul_scratch_bytes(widest))
                scratch.resize(static_cast<std::size_t>(2 * matmul_scratch_bytes(widest)));
        pool_->run([&](int worker) {
            const int64_t begin = total * worker / pool_->size(),
                          end = total * (worker + 1) / pool_->size();
            int64_t before = 0;
            for (const MatmulJob& job : jobs) {
                const int64_t first = row_at(job.w, begin - before),
                              last = row_at(job.w, end - before);
                if (first < last)
                    rows(job, tokens, first, last,
                         scratch_[static_cast<std::size_t>(worker)].data());
                before += job.w.bytes();
            }
        });
    }

    void norm(const float* x, const Norm& norm, int64_t groups, float eps, int64_t tokens,
              int64_t n, float* y) override {
        const int64_t size = n / groups;
        each_token(tokens, n, [&](int64_t t) {
            for (int64_t at = 0; at < n; at += size)
                kernels_.layer_norm(x + t * n + at, norm.weight + at, norm.bias + at, size, eps,
                                    y + t * n + at);
        });
    }

    void token_shift(const float* x, float* last, int64_t tokens, int64_t n,
                     float* previous) override {
        const auto bytes = static_cast<std::size_t>(n) * sizeof(float);
        std::memcpy(previous, last, bytes);
        std::memcpy(previous + n, x, bytes * static_cast<std::size_t>(tokens - 1));
        std::memcpy(last, x + (tokens - 1) * n, bytes);
    }

    void lerp(const float* x, const float* to, const float* mix, bool per_token, int64_t tokens,
              int64_t n, float* y) override {
        each_token(tokens, n, [&](int64_t t) {
            kernels_.lerp(x + t * n, to + t * n, per_token ? mix + t * n : mix, n, y + t * n);
        });
    }

    void mul(const float* x, const float* z, int64_t tokens, int64_t n, float* y) override {
        each_token(tokens, n, [&](int64_t t) { kernels_.mul(x + t * n, z + t * n, n, y + t * n); });
    }

    void l2_normalize(const float* x, const float* weight, int64_t heads, int64_t tokens, int64_t n,
                      float* y) override {
        const int64_t size = n / heads;
        each_token(tokens, n, [&](int64_t t) {
            for (int64_t at = 0; at < n; at += size)
                kernels_.l2_normalize(x + t * n + at, weight + at, size, y + t * n + at);
        });
    }

    void bonus(const float* r, const float* k, const float* u, const float* v, int64_t heads,
               int64_t tokens, int64_t n, float* y) override {
        const int64_t size = n / heads;
        each_token(tokens, n, [&](int64_t t) {
            for (int64_t h = 0; h < n; h += size) {
                const int64_t at = t * n + h;
                kernels_.bonus(r + at, k + at, u + h, v + at, size, y + at);
            }
        });
    }

    void matmul_per_token(const float* x, const float* m, int64_t rows, int64_t cols,
                          int64_t tokens, float* y) override {
        each_token(tokens, rows * cols, [&](int64_t t) {
            float* out = y + t * cols;
            std::fill_n(out, cols, 0.0f);
            for (int64_t i = 0; i < rows; ++i) {
                const float xi = x[t * rows + i];
                const float* row = m + (t * rows + i) * cols;
                for (int64_t j = 0; j < cols; ++j) out[j] += xi * row[j];
            }
        });
    }

    void wkv4(const Wkv4& p, int64_t tokens) override {
        constexpr int64_t kChannels = 32;  // a thread's share is a multiple of these
        split(p.n / kChannels, tokens * p.n * kExpWork, [&](int64_t part) {
            const int64_t at = part * kChannels;
            kernels_.wkv4({p.a + at, p.b + at, p.p + at, p.w + at, p.u + at, p.k + at, p.v + at,
                           p.y + at, kChannels, p.n, tokens});
        });
    }

    void wkv6(const Wkv6& p, int64_t tokens) override {
        const int64_t n = p.heads * p.size;
        split(p.heads, tokens * n * p.size, [&](int64_t h) {
            const int64_t at = h * p.size;
            kernels_.wkv6({p.state + at * p.size, p.r + at, p.w + at, p.k + at, p.v + at, p.y + at,
                           p.size, n, p.w_per_token ? n : 0, tokens});
        });
    }

    void wkv7(const Wkv7& p, int64_t tokens) override {
        const auto head = [&](int64_t h) {
            const int64_t at = h * p.size;
            kernels_.wkv7({p.state + at * p.size, p.r + at, p.w + at, p.k + at, p.v + at, p.kk + at,
                           p.a + at, p.y + at, p.size, p.heads * p.size, tokens});
        };
        split(p.heads, tokens * p.heads * p.size * p.size, head);
    }

private:
    // body(i) for i in [0, n), in parallel if `elements` of work are worth it.
    template <class Body>
    void split(int64_t n, int64_t elements, const Body& body) {
        if (elements < kSerialElements || n == 1) {
            for (int64_t i = 0; i < n; ++i) body(i);
            return;
        }
        pool_->run([&](int worker) {
            const Range range = part(n, 1, worker, pool_->size());
            for (int64_t i = range.begin; i < range.end; ++i) body(i);
        });
    }

    template <class Body>
    void each_token(int64_t tokens, int64_t n, const Body& body) {
        split(tokens, tokens * n, body);
    }

    // The row, a multiple of the grain, in which byte `offset` of a matrix lies.
    static int64_t row_at(const Tensor& w, int64_t offset) {
        if (offset <= 0) return 0;
        if (offset >= w.bytes()) return w.rows;
        return offset / w.row_bytes() / kRowGrain * kRowGrain;
    }

    // Rounds every distinct input of the block-typed products, once.
    void round_inputs(std::span<const MatmulJob> jobs, int64_t tokens) {
        rounded_used_ = 0;
        for (const MatmulJob& job : jobs) {
            if (!wants_rounded(kernels_, job.w.type) || find_rounded(job.x) != nullptr) continue;
            if (rounded_used_ == rounded_.size()) rounded_.emplace_back();
            Rounded& r = rounded_[rounded_used_++];
            r.x = job.x;
            r.stride = kernels_.rounded_bytes(job.w.cols);
            const auto bytes = static_cast<std::size_t>(tokens * r.stride);
            if (r.rows.size() < bytes) r.rows.resize(bytes);
            each_token(tokens, job.w.cols, [&](int64_t t) {
                kernels_.round_activations(job.x + t * job.w.cols, job.w.cols,
                                           r.rows.data() + t * r.stride);
            });
        }
    }

    const Rounded* find_rounded(const float* x) const {
        for (std::size_t i = 0; i < rounded_used_; ++i)
            if (rounded_[i].x == x) return &rounded_[i];
        return nullptr;
    }

    // One thread's share of a product: rows [first, last) for all tokens, with the epilogue.
    void rows(const MatmulJob& job, int64_t tokens, int64_t first, int64_t last,
              std::byte* scratch) const {
        const auto x_stride = job.w.cols * static_cast<int64_t>(sizeof(float));
        MatmulArgs args{job.w.data, job.w.row_bytes(), job.w.cols, first, last,
                        job.x,      x_stride,          tokens,     job.y, job.w.rows,
                        scratch};
        const Matmul kernel = kernels_.matmul[static_cast<int>(job.w.type)];
        if (wants_rounded(kernels_, job.w.type)) {
            const Rounded& rounded = *find_rounded(job.x);
            args.x = rounded.rows.data();
            args.x_stride = rounded.stride;
        }
        if (kernel != nullptr) {
            kernel(args);
        } else {
            dequantised_rows(job, args, scratch + matmul_scratch_bytes(job.w.cols));
        }
        for (int64_t t = 0; t < tokens; ++t) {
            const int64_t at = t * job.w.rows + first;
            finish(job, job.y + at, at, first, last - first);
        }
    }

    // What follows the product: n values of y, which begin at `at` of all, `row` of the token.
    void finish(const MatmulJob& job, float* y, int64_t at, int64_t row, int64_t n) const {
        if (job.scale != 1.0f)
            for (int64_t i = 0; i < n; ++i) y[i] *= job.scale;
        if (job.bias != nullptr) kernels_.add(job.bias + row, n, y);
        activate(job.activate, y, n);
        if (job.gate != nullptr) kernels_.mul(y, job.gate + at, n, y);
        if (job.residual != nullptr) kernels_.add(y, n, job.residual + at);
    }

    // For types without a kernel: eight rows become floats, then the F32 kernel runs.
    void dequantised_rows(const MatmulJob& job, MatmulArgs args, std::byte* scratch) const {
        float* wide = reinterpret_cast<float*>(scratch);
        const int64_t first = args.row_begin, last = args.row_end;
        for (int64_t r = first; r < last; r += kRowGrain) {
            const int64_t count = std::min(kRowGrain, last - r);
            type_info(job.w.type)
                .dequantize(static_cast<const std::byte*>(job.w.data) + r * args.row_bytes, wide,
                            count * args.cols);
            MatmulArgs group = args;
            group.w = wide;
            group.row_bytes = args.cols * static_cast<int64_t>(sizeof(float));
            group.row_begin = 0;
            group.row_end = count;
            group.y = args.y + r;
            kernels_.matmul[static_cast<int>(Type::F32)](group);
        }
    }

    void activate(Activate function, float* y, int64_t n) const {
        switch (function) {
            case Activate::None: break;
            case Activate::Tanh: kernels_.tanh(y, n); break;
            case Activate::Sigmoid: kernels_.sigmoid(y, n); break;
            case Activate::Silu: kernels_.silu(y, n); break;
            case Activate::Relu2: kernels_.relu2(y, n); break;
            case Activate::Decay6: kernels_.decay6(y, n); break;
            case Activate::Decay7: kernels_.decay7(y, n); break;
        }
    }

    std::shared_ptr<ThreadPool> pool_;
    const Kernels& kernels_;
    std::vector<AlignedVector<std::byte>> scratch_;  // one per worker
    std::deque<Rounded> rounded_;                    // kept between calls for their memory
    std::size_t rounded_used_ = 0;
};

}  // namespace

std::unique_ptr<Ops> make_cpu_ops(std::shared_ptr<ThreadPool> pool) {
    return std::make_unique<CpuOps>(std::move(pool));
}

}  // namespace rwkv_edge
