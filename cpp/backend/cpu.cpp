// SPDX-License-Identifier: Apache-2.0
// The verbs over the kernel table and the thread pool. Each output element is computed whole by one
// thread, so results do not depend on the number of threads.
#include <algorithm>
#include <cstring>
#include <deque>
#include <vector>

#include "backend/backend.h"
#include "base/aligned.h"
#include "base/error.h"
#include "base/system.h"
#include "base/thread_pool.h"
#include "kernels/dispatch.h"

namespace rwkv_edge {

namespace {

// Below this many elements a parallel region costs more than it saves.
constexpr int64_t kSerialElements = 16384;
constexpr int64_t kExpWork = 32;  // what a channel of wkv4 costs, with its four exponentials
// What a thread takes of the weights at a time, at least: enough to walk through memory in runs. A
// kernel works on up to 32 rows at a time.
constexpr int64_t kUnitBytes = 65536, kRowGrain = 32;
// Of a matrix by input a thread takes columns: so many that a row's piece is some cache lines.
constexpr int64_t kColumnGrain = 128;
constexpr int64_t kWideRows = 8;  // of a type without a kernel, dequantised together
constexpr int64_t kChunk = 64;    // see Backend::chunk

// Memory that only grows.
template <class T>
void reserve(AlignedVector<T>& memory, int64_t n) {
    if (std::ssize(memory) < n) memory.resize(static_cast<std::size_t>(n));
}

// An input as the kernels of its products read it. Kept between calls for its memory.
struct Prepared {
    Input input{};
    int64_t cols = 0;
    AlignedVector<float> mixed;  // [tokens, cols], of an input that is a mix
    bool wants_rounded = false;
    int64_t rounded_bytes = 0;          // of a token
    AlignedVector<std::byte> rounded;   // as this level has it
    bool wants_active = false;          // for a matrix by input
    AlignedVector<ActiveInput> active;  // [tokens, cols], those of each token from its begin on
    AlignedVector<int64_t> counts;      // [tokens] of them

    const float* floats() const { return input.to == nullptr ? input.x : mixed.data(); }
};

bool wants_rounded(const Kernels& kernels, const Tensor& w) {
    return !w.by_input && type_info(w.type).block_len > 1 &&
           kernels.matmul[static_cast<int>(w.type)] != nullptr;
}

// How many outputs belong together when a product is cut.
int64_t grain(const Tensor& w) {
    return w.by_input ? std::max<int64_t>(kColumnGrain, type_info(w.type).block_len) : kRowGrain;
}

class CpuOps final : public Ops {
public:
    explicit CpuOps(ThreadPool& pool)
        : pool_(pool),
          kernels_(kernels()),
          few_tokens_(few_tokens_kernels()),
          scratch_(static_cast<std::size_t>(pool.size())) {}

    void embed(const Tensor& table, const int32_t* ids, int64_t tokens, float* y) override {
        const auto* rows = static_cast<const std::byte*>(table.data);
        each_token(tokens, table.cols, [&](int64_t t) {
            type_info(table.type)
                .dequantize(rows + ids[t] * table.row_bytes(), y + t * table.cols, table.cols);
        });
    }

    void matmul(std::span<const MatmulJob> jobs, int64_t tokens) override {
        int64_t total = 0, widest = 0, unit = kUnitBytes;
        for (const MatmulJob& job : jobs) {
            total += job.w.bytes();
            widest = std::max(widest, job.w.cols);
            unit = std::max(unit, job.w.bytes() / job.w.outputs() * grain(job.w));
        }
        // twice: a dequantised group of rows, and what the kernel itself asks for
        for (auto& scratch : scratch_)
            if (static_cast<int64_t>(scratch.size()) < 2 * matmul_scratch_bytes(widest))
                scratch.resize(static_cast<std::size_t>(2 * matmul_scratch_bytes(widest)));
        prepare_inputs(jobs, tokens);
        const int64_t units = std::clamp(total / unit, int64_t{1}, pool_.most_units());
        pool_.run(units, [&](int64_t begin, int64_t end, int worker) {
            int64_t before = 0;
            for (const MatmulJob& job : jobs) {
                const int64_t first = output_at(job.w, total * begin / units - before),
                              last = output_at(job.w, total * end / units - before);
                if (first < last)
                    outputs(job, tokens, first, last,
                            scratch_[static_cast<std::size_t>(worker)].data());
                before += job.w.bytes();
            }
        });
    }

    void norm(const float* x, const Norm& norm, float eps, int64_t tokens, int64_t n,
              float* y) override {
        each_token(tokens, n, [&](int64_t t) {
            kernels_.layer_norm(x + t * n, norm.weight, norm.bias, n, eps, y + t * n);
        });
    }

    void shift(const Shift& p, int64_t tokens) override {
        const auto copy_row = [&](const float* from, float* to) {
            std::memcpy(to, from, static_cast<std::size_t>(p.n) * sizeof(float));
        };
        for (const Run& run : p.last.runs) copy_row(p.last.of(run), p.previous + run.begin * p.n);
        each_token(tokens, p.n, [&](int64_t t) {
            float* y = p.y + t * p.n;
            kernels_.layer_norm(p.x + t * p.n, p.norm.weight, p.norm.bias, p.n, p.eps, y);
            const Run& run = *std::ranges::find_if(
                p.last.runs, [&](const Run& r) { return t < r.begin + r.tokens; });
            const bool last = t == run.begin + run.tokens - 1;
            copy_row(y, last ? p.last.of(run) : p.previous + (t + 1) * p.n);
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

    void wkv4(const Wkv4& p) override {
        constexpr int64_t kChannels = 32;  // a thread's share is a multiple of these
        each_part(p.state, p.n / kChannels, kChannels * kExpWork, [&](const Run& run, int64_t i) {
            const int64_t channel = i * kChannels, at = run.begin * p.n + channel;
            float* a = p.state.of(run) + channel;
            kernels_.wkv4({a, a + p.n, a + 2 * p.n, p.w + channel, p.u + channel, p.k + at,
                           p.v + at, p.y + at, kChannels, p.n, run.tokens});
            for (int64_t t = 0; t < run.tokens; ++t)
                kernels_.mul(p.y + at + t * p.n, p.r + at + t * p.n, kChannels, p.y + at + t * p.n);
        });
    }

    void wkv6(const Wkv6& p) override {
        const int64_t n = p.heads * p.size;
        each_part(p.state, p.heads, p.size * p.size, [&](const Run& run, int64_t head) {
            const int64_t h = head * p.size, begin = run.begin * n + h;
            kernels_.wkv6({p.state.of(run) + h * p.size, p.r + begin,
                           p.w + (p.w_per_token ? begin : h), p.k + begin, p.v + begin, p.y + begin,
                           p.size, n, p.w_per_token ? n : 0, run.tokens});
            for (int64_t at = begin; at < begin + run.tokens * n; at += n) {
                float* y = p.y + at;
                kernels_.bonus(p.r + at, p.k + at, p.u + h, p.v + at, p.size, y);
                kernels_.layer_norm(y, p.norm.weight + h, p.norm.bias + h, p.size, p.eps, y);
                if (p.g != nullptr) kernels_.mul(y, p.g + at, p.size, y);
            }
        });
    }

    void wkv7(const Wkv7& p) override {
        const int64_t n = p.heads * p.size;
        reserve(keys_, kChunk * n);
        each_part(p.state, p.heads, p.size * p.size, [&](const Run& run, int64_t head) {
            const int64_t h = head * p.size, begin = run.begin * n + h, size = p.size;
            float* kk = keys_.data();
            for (int64_t at = begin; at < begin + run.tokens * n; at += n) {
                float* scaled = p.y + at;  // free until the recurrence writes it
                kernels_.l2_normalize(p.k + at, p.k_k + h, size, kk + at);
                kernels_.mul(p.k + at, p.a + at, size, scaled);
                kernels_.lerp(p.k + at, scaled, p.k_a + h, size, p.k + at);
                if (p.first_v != nullptr)
                    kernels_.lerp(p.v + at, p.first_v + at, p.v_mix + at, size, p.v + at);
            }
            kernels_.wkv7({p.state.of(run) + h * size, p.r + begin, p.w + begin, p.k + begin,
                           p.v + begin, kk + begin, p.a + begin, p.y + begin, size, n, run.tokens});
            for (int64_t at = begin; at < begin + run.tokens * n; at += n) {
                float* y = p.y + at;
                kernels_.layer_norm(y, p.norm.weight + h, p.norm.bias + h, size, p.eps, y);
                kernels_.bonus(p.r + at, p.k + at, p.r_k + h, p.v + at, size, y);
                kernels_.mul(y, p.g + at, size, y);
            }
        });
    }

    void copy(const float* x, int64_t n, float* y) override { std::copy_n(x, n, y); }

    void keep(const float* x, const int32_t* rows, int64_t n, const States& to) override {
        for (const Run& run : to.runs) std::copy_n(x + *rows++ * n, n, to.of(run));
    }

private:
    // body(i) for i in [0, n), in parallel if `elements` of work are worth it.
    template <class Body>
    void split(int64_t n, int64_t elements, const Body& body) {
        const auto some = [&](int64_t begin, int64_t end, int) {
            for (int64_t i = begin; i < end; ++i) body(i);
        };
        if (elements < kSerialElements)
            some(0, n, 0);
        else
            pool_.run(n, some);
    }

    template <class Body>
    void each_token(int64_t tokens, int64_t n, const Body& body) {
        split(tokens, tokens * n, body);
    }

    // body(run, i) for i in [0, parts) of every sequence; a token of a part costs `elements`.
    template <class Body>
    void each_part(const States& state, int64_t parts, int64_t elements, const Body& body) {
        int64_t tokens = 0;
        for (const Run& run : state.runs) tokens += run.tokens;
        split(std::ssize(state.runs) * parts, tokens * parts * elements,
              [&](int64_t i) { body(state.runs[static_cast<std::size_t>(i / parts)], i % parts); });
    }

    // The output, a multiple of the grain, to which byte `offset` of a matrix belongs, were they
    // one after another.
    static int64_t output_at(const Tensor& w, int64_t offset) {
        if (offset <= 0) return 0;
        if (offset >= w.bytes()) return w.outputs();
        return offset / (w.bytes() / w.outputs()) / grain(w) * grain(w);
    }

    const Kernels& kernels_for(int64_t tokens) const {
        return tokens <= kFewestTokens ? few_tokens_ : kernels_;
    }

    // Every distinct input as the kernels of its products want it: mixed, and rounded or not.
    void prepare_inputs(std::span<const MatmulJob> jobs, int64_t tokens) {
        const Kernels& products = kernels_for(tokens);
        prepared_used_ = 0;
        int64_t elements = 0;
        for (const MatmulJob& job : jobs) {
            Prepared* p = find_prepared(job.x);
            if (p == nullptr) {
                if (prepared_used_ == prepared_.size()) prepared_.emplace_back();
                p = &prepared_[prepared_used_++];
                p->input = job.x;
                p->cols = job.w.inputs();
                p->wants_rounded = p->wants_active = false;
            }
            p->wants_rounded |= wants_rounded(products, job.w);
            p->wants_active |= job.w.by_input;
        }
        for (std::size_t i = 0; i < prepared_used_; ++i) {
            Prepared& p = prepared_[i];
            p.rounded_bytes = p.wants_rounded ? products.rounded_bytes(p.cols) : 0;
            reserve(p.rounded, kChunk * p.rounded_bytes);
            if (p.input.to != nullptr) reserve(p.mixed, kChunk * p.cols);
            if (p.wants_active) {
                reserve(p.active, kChunk * p.cols);
                reserve(p.counts, kChunk);
            }
            if (p.wants_rounded || p.wants_active || p.input.to != nullptr)
                elements += tokens * p.cols;
        }
        if (elements == 0) return;
        const auto inputs = static_cast<int64_t>(prepared_used_);
        split(inputs * tokens, elements, [&](int64_t i) {
            prepare(prepared_[static_cast<std::size_t>(i % inputs)], i / inputs, products);
        });
    }

    void prepare(Prepared& p, int64_t t, const Kernels& products) {
        const int64_t at = t * p.cols;
        const Input& in = p.input;
        if (in.to != nullptr)
            kernels_.lerp(in.x + at, in.to + at, in.mix + (in.mix_per_token ? at : 0), p.cols,
                          p.mixed.data() + at);
        if (p.wants_rounded)
            products.round_activations(p.floats() + at, p.cols,
                                       p.rounded.data() + t * p.rounded_bytes);
        if (p.wants_active) {
            const float* x = p.floats() + at;
            ActiveInput* active = p.active.data() + at;
            int64_t n = 0;
            for (int64_t i = 0; i < p.cols; ++i) {  // without branches, which nobody could foresee
                active[n] = {static_cast<int32_t>(i), x[i]};
                n += x[i] != 0.0f;
            }
            p.counts[static_cast<std::size_t>(t)] = n;
        }
    }

    Prepared* find_prepared(const Input& input) {
        for (std::size_t i = 0; i < prepared_used_; ++i)
            if (prepared_[i].input == input) return &prepared_[i];
        return nullptr;
    }

    // One thread's share of a product: [first, last) for all tokens, with the epilogue.
    void outputs(const MatmulJob& job, int64_t tokens, int64_t first, int64_t last,
                 std::byte* scratch) {
        if (job.w.by_input)
            columns(job, tokens, first, last, scratch);
        else
            rows(job, tokens, first, last, scratch);
        for (int64_t t = 0; t < tokens; ++t) {
            const int64_t at = t * job.w.outputs() + first;
            finish(job, job.y + at, at, first, last - first);
        }
    }

    void columns(const MatmulJob& job, int64_t tokens, int64_t first, int64_t last,
                 std::byte* scratch) {
        const Prepared& x = *find_prepared(job.x);
        const InputMatmulArgs args{.w = job.w.data,
                                   .row_bytes = job.w.row_bytes(),
                                   .col_begin = first,
                                   .col_end = last,
                                   .inputs = x.active.data(),
                                   .inputs_stride = x.cols,
                                   .counts = x.counts.data(),
                                   .tokens = tokens,
                                   .y = job.y,
                                   .y_stride = job.w.cols,
                                   .scratch = scratch};
        for (int64_t t = 0; t < tokens; ++t)
            std::fill(args.y + t * args.y_stride + first, args.y + t * args.y_stride + last, 0.0f);
        const InputMatmul kernel = kernels_.input_matmul[static_cast<int>(job.w.type)];
        if (kernel != nullptr)
            kernel(args);
        else
            dequantised_inputs(job.w, args, scratch + matmul_scratch_bytes(job.w.cols));
    }

    void rows(const MatmulJob& job, int64_t tokens, int64_t first, int64_t last,
              std::byte* scratch) {
        const Prepared& x = *find_prepared(job.x);
        const Kernels& products = kernels_for(tokens);
        const bool rounded = wants_rounded(products, job.w);
        MatmulArgs args{.w = job.w.data,
                        .row_bytes = job.w.row_bytes(),
                        .cols = job.w.cols,
                        .row_begin = first,
                        .row_end = last,
                        .x = rounded ? static_cast<const void*>(x.rounded.data()) : x.floats(),
                        .x_stride = rounded ? x.rounded_bytes
                                            : job.w.cols * static_cast<int64_t>(sizeof(float)),
                        .tokens = tokens,
                        .y = job.y,
                        .y_stride = job.w.rows,
                        .scratch = scratch,
                        .ahead = products.ahead};
        const Matmul kernel = products.matmul[static_cast<int>(job.w.type)];
        if (kernel != nullptr) {
            kernel(args);
        } else {
            dequantised_rows(job, args, scratch + matmul_scratch_bytes(job.w.cols));
        }
    }

    // What follows the product: n values of y, which begin at `at` of all, `first` of the token.
    void finish(const MatmulJob& job, float* y, int64_t at, int64_t first, int64_t n) const {
        if (job.scale != 1.0f)
            for (int64_t i = 0; i < n; ++i) y[i] *= job.scale;
        if (job.bias != nullptr) kernels_.add(job.bias + first, n, y);
        activate(job.activate, y, n);
        if (job.gate != nullptr) kernels_.mul(y, job.gate + at, n, y);
        if (job.residual != nullptr) kernels_.add(y, n, job.residual + at);
    }

    // For types without a kernel: eight rows become floats, then the F32 kernel runs.
    void dequantised_rows(const MatmulJob& job, MatmulArgs args, std::byte* scratch) const {
        float* wide = reinterpret_cast<float*>(scratch);
        const int64_t first = args.row_begin, last = args.row_end;
        for (int64_t r = first; r < last; r += kWideRows) {
            const int64_t count = std::min(kWideRows, last - r);
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

    // The same by input: each active row becomes floats once for all tokens.
    void dequantised_inputs(const Tensor& w, InputMatmulArgs args, std::byte* scratch) const {
        const TypeInfo& type = type_info(w.type);
        float* wide = reinterpret_cast<float*>(scratch);
        const int64_t first = args.col_begin, n = args.col_end - first, one = 1;
        int64_t next[kChunk] = {};  // of each token's active inputs
        ActiveInput input{.row = 0, .x = 0.0f};
        InputMatmulArgs row = args;
        row.w = wide;
        row.col_begin = 0;
        row.col_end = n;
        row.inputs = &input;
        row.counts = &one;
        row.tokens = 1;
        for (int32_t r = 0; r < w.rows; ++r) {
            bool is_wide = false;
            for (int64_t t = 0; t < args.tokens; ++t) {
                if (next[t] == args.counts[t]) continue;
                const ActiveInput& active = args.inputs[t * args.inputs_stride + next[t]];
                if (active.row != r) continue;
                if (!is_wide)
                    type.dequantize(static_cast<const std::byte*>(args.w) + r * args.row_bytes +
                                        type_bytes(w.type, first),
                                    wide, n);
                is_wide = true;
                ++next[t];
                input.x = active.x;
                row.y = args.y + t * args.y_stride + first;
                kernels_.input_matmul[static_cast<int>(Type::F32)](row);
            }
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

    ThreadPool& pool_;
    const Kernels &kernels_, &few_tokens_;
    std::vector<AlignedVector<std::byte>> scratch_;  // one per worker
    std::deque<Prepared> prepared_;
    std::size_t prepared_used_ = 0;
    AlignedVector<float> keys_;  // [tokens, n] kk of wkv7
};

int count_threads(int wanted) {
    if (wanted < 0 || wanted > 1024)
        throw std::invalid_argument(cat("threads is ", wanted, ", expected 0 (automatic) to 1024"));
    if (wanted > 0) return wanted;
    return std::clamp(usable_cpus(), 1, 8);
}

class CpuBackend final : public Backend {
public:
    explicit CpuBackend(int threads) : pool_(count_threads(threads)) {}

    std::string name() const override { return cat("cpu ", kernels().isa); }
    int threads() const override { return pool_.size(); }

    Tensor matrix(const Tensor& in_file) override { return in_file; }
    Tensor table(const Tensor& in_file) override { return in_file; }
    const float* vector(const Tensor& in_file) override {
        if (in_file.type == Type::F32) return static_cast<const float*>(in_file.data);
        const int64_t n = in_file.rows * in_file.cols;
        AlignedVector<float>& wide = widened_.emplace_back(static_cast<std::size_t>(n));
        type_info(in_file.type).dequantize(in_file.data, wide.data(), n);
        return wide.data();
    }

    Memory allocate(int64_t floats) override {
        return Memory(AlignedAllocator<float>().allocate(static_cast<std::size_t>(floats)),
                      GiveBack{this});
    }
    void write(float* to, std::span<const float> from) override { std::ranges::copy(from, to); }
    void read(std::span<float> to, const float* from) override {
        std::copy_n(from, to.size(), to.data());
    }
    void copy(float* to, const float* from, int64_t floats) override {
        std::copy_n(from, floats, to);
    }
    float* direct(float* host) override { return host; }

    int64_t chunk() const override { return kChunk; }
    std::unique_ptr<Ops> make_ops() override { return std::make_unique<CpuOps>(pool_); }

private:
    void give_back(float* memory) noexcept override {
        AlignedAllocator<float>().deallocate(memory, 0);
    }

    ThreadPool pool_;
    std::deque<AlignedVector<float>> widened_;  // vectors that are not F32 in the file
};

}  // namespace

std::shared_ptr<Backend> make_cpu_backend(int threads) {
    return std::make_shared<CpuBackend>(threads);
}

}  // namespace rwkv_edge
