// SPDX-License-Identifier: Apache-2.0
// A model on one GPU: its weights, states and scratch memory there, and the verbs as launches.
#include <algorithm>
#include <cstring>
#include <deque>
#include <limits>
#include <map>
#include <mutex>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/kernels.h"
#include "base/aligned.h"
#include "base/error.h"
#include "io/model_file.h"

namespace rwkv_edge {

namespace {

using namespace cuda;

constexpr int64_t kAlignment = 256, kFloat = sizeof(float);
// The file comes through two such buffers of the host and two of the device.
constexpr int64_t kUploadBytes = 16 << 20;
constexpr int64_t kMostUnits = 1 << 15;   // of them at a time, if they are rows of tiles: a grid's
constexpr std::size_t kBounce = 1 << 18;  // floats at a time between device and host
constexpr int64_t kLeastArena = 1 << 20;  // for weights that nobody announced
// Of steps that are short, and were seen before, a recording is kept; of so many shapes.
constexpr int64_t kRecordedTokens = 16;
constexpr std::size_t kMostRecordings = 16;
constexpr int kPlans = 4;  // of steps that may be on their way together

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }
int64_t tiles_of(int64_t cols) { return (cols + kTileCols - 1) / kTileCols; }
int64_t row_tiles_of(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }

std::string mebibytes(int64_t bytes) { return cat((bytes + (1 << 20) - 1) >> 20, " MiB"); }

// --- what a model takes ---

int64_t matrix_bytes(const Tensor& w) {
    if (w.by_input) return aligned(w.bytes());
    const LayoutBytes parts = bytes_of(layout_of(w.type), tiles_of(w.cols) * row_tiles_of(w.rows));
    return aligned(parts.codes) + aligned(parts.high) + aligned(parts.scales) +
           aligned(parts.minima);
}

// The distinct inputs of a group of up to kMostProducts products, in order, but for those by input.
struct Inputs {
    Input inputs[kMostProducts];
    int64_t cols[kMostProducts];
    int of_job[kMostProducts];  // which one, of each job
    int count = 0;

    explicit Inputs(std::span<const MatmulJob> jobs) {
        for (std::size_t j = 0; j < jobs.size(); ++j) {
            const MatmulJob& job = jobs[j];
            int& i = of_job[j] = 0;
            while (i < count && inputs[i] != job.x) ++i;
            if (i < count || job.w.by_input) continue;
            inputs[count] = job.x;
            cols[count++] = job.w.cols;
        }
    }
};

// What a shortlist takes on the device: the logits after their changes, what was found of them,
// their candidates, and what the host says of each row. In units of 4 bytes.
struct ShortlistSizes {
    int64_t values, survey, gather, changes, allowed;

    explicit ShortlistSizes(int64_t n)
        : values(blocks_of_logits(n) * kLogitBlock),
          survey(2 * blocks_of_logits(n) + 2 * groups_of_logits(n)),
          gather(blocks_of_logits(n) + 2 * kMostFound),
          changes(2 * kMostChanges),
          allowed((n + 31) / 32) {}
    int64_t told() const { return kMostRows * (changes + allowed); }
    int64_t found() const { return kMostRows * std::max(survey, gather); }
    int64_t all() const { return kMostRows * (values + survey + gather) + told(); }
};

// Follows a model through its binding and a step, and does nothing but count.
class Rehearsal final : public Backend {
public:
    explicit Rehearsal(int64_t chunk) : chunk_(chunk) {}
    int64_t weights = 0, scratch = 0;  // bytes

    std::string name() const override { return "rehearsal"; }
    int threads() const override { return 1; }
    Tensor matrix(const Tensor& in_file) override {
        weights += matrix_bytes(in_file);
        return in_file;
    }
    Tensor table(const Tensor& in_file) override {
        weights += aligned(in_file.bytes());
        return in_file;
    }
    const float* vector(const Tensor& in_file) override {
        weights += aligned(in_file.cols * kFloat);
        return &nothing_;
    }
    Memory allocate(int64_t floats) override {
        scratch += aligned(floats * kFloat);
        return Memory(nullptr, GiveBack{this});
    }
    void write(float*, std::span<const float>) override {}
    void read(std::span<float>, const float*) override {}
    void copy(float*, const float*, int64_t) override {}
    float* direct(float*) override { return nullptr; }
    int64_t chunk() const override { return chunk_; }
    std::unique_ptr<Ops> make_ops() override;
    std::unique_ptr<Shortlist> make_shortlist(int64_t n_vocab) override {
        scratch += aligned(ShortlistSizes(n_vocab).all() * kFloat);
        return nullptr;
    }

private:
    void give_back(float*) noexcept override {}
    int64_t chunk_;
    float nothing_ = 0.0f;  // what nobody reads, but that is there
};

class RehearsalOps final : public Ops {
public:
    explicit RehearsalOps(Rehearsal& backend) : backend_(backend) {}

    void embed(const Tensor&, const int32_t*, int64_t, float*) override {}
    void matmul(std::span<const MatmulJob> jobs, int64_t) override {
        const Inputs inputs(jobs.first(std::min<std::size_t>(jobs.size(), kMostProducts)));
        for (int i = 0; i < inputs.count; ++i) {
            const int64_t bytes = prepared_bytes(inputs.cols[i], backend_.chunk());
            backend_.scratch += std::max<int64_t>(bytes - sizes_[i], 0);
            sizes_[i] = std::max(sizes_[i], bytes);
        }
    }
    void norm(const float*, const Norm&, float, int64_t, int64_t, float*) override {}
    void shift(const Shift&, int64_t) override {}
    void matmul_per_token(const float*, const float*, int64_t, int64_t, int64_t, float*) override {}
    void wkv4(const Wkv4&) override {}
    void wkv6(const Wkv6&) override {}
    void wkv7(const Wkv7&) override {}
    void copy(const float*, int64_t, float*) override {}
    void keep(const float*, const int32_t*, int64_t, const States&) override {}

private:
    Rehearsal& backend_;
    int64_t sizes_[kMostProducts] = {};
};

std::unique_ptr<Ops> Rehearsal::make_ops() { return std::make_unique<RehearsalOps>(*this); }

// --- the backend ---

struct DeviceFree {
    Gpu* gpu = nullptr;
    void operator()(void* memory) const { gpu->give_back(memory); }
};
using DeviceMemory = std::unique_ptr<void, DeviceFree>;
struct PinnedFree {
    Gpu* gpu = nullptr;
    void operator()(void* memory) const { gpu->give_back_pinned(memory); }
};
using PinnedMemory = std::unique_ptr<void, PinnedFree>;

class CudaBackend final : public Backend {
public:
    explicit CudaBackend(int index)
        : gpu_(index), bounce_(gpu_.allocate_pinned(kBounce * kFloat), PinnedFree{&gpu_}) {}

    ~CudaBackend() override {
        for (const auto* blocks : {&used_, &spare_})
            for (const auto& block : *blocks) gpu_.give_back(block.first);
    }

    std::string name() const override { return cat("cuda:", gpu_.index(), " ", gpu_.name()); }
    int threads() const override { return 1; }

    std::shared_ptr<Backend> rehearsal() override { return std::make_shared<Rehearsal>(chunk()); }
    void prepare(const ModelFile& file, const Backend& rehearsal, int64_t state) override {
        const auto& counted = dynamic_cast<const Rehearsal&>(rehearsal);
        upload_bytes_ = std::clamp(counted.weights, kLeastArena, kUploadBytes);
        const int64_t free = gpu_.free_bytes(), upload = 2 * upload_bytes_;
        // one state for a session, and one to go back to
        const int64_t later = counted.scratch + 2 * aligned(state);
        if (counted.weights + std::max(later, upload) > free)
            throw NoMemory(cat(file.path(), ": the model takes ", mebibytes(counted.weights),
                               ", the state of a session ", mebibytes(state), ", scratch memory ",
                               mebibytes(counted.scratch), " and, before that, its upload ",
                               mebibytes(upload), "; ", name(), " has ", mebibytes(free),
                               " free of ", mebibytes(gpu_.total_bytes())));
        file_ = &file;
        new_arena(counted.weights);
    }
    void settle() override {
        gpu_.wait();
        file_ = nullptr;
        staging_.reset();
    }

    Tensor matrix(const Tensor& in_file) override {
        Tensor placed = in_file;
        if (in_file.by_input) {
            placed.data = upload(in_file);
            return placed;
        }
        const int64_t row_tiles = row_tiles_of(in_file.rows), tiles = tiles_of(in_file.cols);
        const Layout layout = layout_of(in_file.type);
        const LayoutBytes parts = bytes_of(layout, row_tiles * tiles);
        Weights& w = weights_.emplace_back();
        w = {place(parts.codes),
             parts.high == 0 ? nullptr : place(parts.high),
             place(parts.scales),
             parts.minima == 0 ? nullptr : place(parts.minima),
             layout,
             static_cast<int32_t>(tiles),
             static_cast<int32_t>(std::min<int64_t>(tiles, kMostSplits))};
        const int64_t row = in_file.row_bytes();
        stream(in_file, kTileRows * row, [&](const void* staged, int64_t done, int64_t bytes) {
            cuda::repack(gpu_, {.rows = staged,
                                .row_bytes = row,
                                .type = in_file.type,
                                .count = static_cast<int32_t>(bytes / row),
                                .cols = static_cast<int32_t>(in_file.cols),
                                .first = done / row / kTileRows,
                                .to = w});
        });
        placed.data = &w;
        return placed;
    }
    Tensor table(const Tensor& in_file) override {
        Tensor placed = in_file;
        placed.data = upload(in_file);
        return placed;
    }
    const float* vector(const Tensor& in_file) override {
        const auto n = static_cast<std::size_t>(in_file.cols);
        AlignedVector<std::byte> raw(static_cast<std::size_t>(in_file.bytes()));
        read_file(in_file, 0, raw);
        std::vector<float> values(n);
        type_info(in_file.type).dequantize(raw.data(), values.data(), in_file.cols);
        auto* to = static_cast<float*>(place(in_file.cols * kFloat));
        write(to, values);
        return to;
    }

    Memory allocate(int64_t floats) override {
        const auto lock = locked();
        return Memory(static_cast<float*>(take(floats * kFloat)), GiveBack{this});
    }
    void write(float* to, std::span<const float> from) override {
        const auto lock = locked();
        for (std::size_t at = 0; at < from.size();) {
            const std::size_t n = std::min(from.size() - at, kBounce);
            std::copy_n(from.data() + at, n, static_cast<float*>(bounce_.get()));
            gpu_.write(to + at, bounce_.get(), static_cast<int64_t>(n) * kFloat);
            gpu_.wait();
            at += n;
        }
    }
    void read(std::span<float> to, const float* from) override {
        const auto lock = locked();
        for (std::size_t at = 0; at < to.size();) {
            const std::size_t n = std::min(to.size() - at, kBounce);
            gpu_.read(bounce_.get(), from + at, static_cast<int64_t>(n) * kFloat);
            gpu_.wait();
            std::copy_n(static_cast<const float*>(bounce_.get()), n, to.data() + at);
            at += n;
        }
    }
    void copy(float* to, const float* from, int64_t floats) override {
        const auto lock = locked();
        gpu_.copy(to, from, floats * kFloat);
    }
    float* direct(float*) override { return nullptr; }

    int64_t chunk() const override { return gpu_.step_tokens(); }
    std::unique_ptr<Ops> make_ops() override;
    std::unique_ptr<Shortlist> make_shortlist(int64_t n_vocab) override;

    Gpu& gpu() { return gpu_; }
    // Held through a step: what is asked for meanwhile would become part of a recording.
    std::unique_lock<std::recursive_mutex> locked() {
        gpu_.check_process();  // a fork may have copied it as another thread held it
        return std::unique_lock(mutex_);
    }

private:
    struct Staging {
        PinnedMemory pinned[2];
        DeviceMemory device[2];
        int64_t bytes, marks[2] = {0, 0};
    };
    struct Arena {
        DeviceMemory memory;
        int64_t used, bytes;
    };

    // So many bytes of the device: a block that was given back where one has that size.
    void* take(int64_t bytes) {
        const int64_t size = aligned(std::max<int64_t>(bytes, 1));
        const auto spare =
            std::ranges::find_if(spare_, [&](const auto& block) { return block.second == size; });
        if (spare != spare_.end()) return used_.insert(spare_.extract(spare)).position->first;
        void* memory = gpu_.allocate(size);
        if (memory == nullptr && !spare_.empty()) {
            gpu_.wait();
            for (const auto& block : spare_) gpu_.give_back(block.first);
            spare_.clear();
            memory = gpu_.allocate(size);
        }
        if (memory == nullptr) throw no_memory(size);
        DeviceMemory owner(memory, DeviceFree{&gpu_});
        used_[memory] = size;
        return owner.release();
    }
    NoMemory no_memory(int64_t bytes) {
        return NoMemory(cat(name(), ": no memory left for ", mebibytes(bytes), ": ",
                            mebibytes(gpu_.free_bytes()), " of ", mebibytes(gpu_.total_bytes()),
                            " are free; fewer sessions, or a smaller model or type, take less"));
    }
    // It is kept for the next that asks. What still runs may use it, and ends before what comes.
    void give_back(float* memory) noexcept override {
        if (gpu_.forked()) return;
        const std::lock_guard lock(mutex_);
        if (const auto block = used_.find(memory); block != used_.end())
            spare_.insert(used_.extract(block));
    }

    void new_arena(int64_t bytes) {
        void* memory = gpu_.allocate(aligned(std::max<int64_t>(bytes, 1)));
        if (memory == nullptr) throw no_memory(bytes);
        arenas_.push_back({DeviceMemory(memory, DeviceFree{&gpu_}), 0, aligned(bytes)});
    }
    void* place(int64_t bytes) {
        const int64_t size = aligned(bytes);
        if (arenas_.empty() || arenas_.back().bytes - arenas_.back().used < size)
            new_arena(std::max(size, kLeastArena));
        Arena& arena = arenas_.back();
        void* memory = static_cast<std::byte*>(arena.memory.get()) + arena.used;
        arena.used += size;
        return memory;
    }

    void read_file(const Tensor& tensor, int64_t at, std::span<std::byte> to) const {
        const std::span part(static_cast<const std::byte*>(tensor.data) + at, to.size());
        if (file_ != nullptr)
            file_->read(part, to.data());
        else
            std::ranges::copy(part, to.data());
    }

    // The bytes of a tensor through the buffers, in pieces of a multiple of `unit`: use(where a
    // piece lies on the device, how many bytes came before, its bytes).
    template <class Use>
    void stream(const Tensor& tensor, int64_t unit, const Use& use) {
        const auto lock = locked();
        const int64_t total = tensor.bytes();
        reserve_staging(std::min(unit, total));
        const int64_t piece = std::min(staging_->bytes / unit, kMostUnits) * unit;
        const int64_t most = piece > 0 ? piece : staging_->bytes;  // a single, short unit
        for (int64_t done = 0, i = 0; done < total; i = 1 - i) {
            const int64_t n = std::min(most, total - done);
            gpu_.wait_for(staging_->marks[i]);
            auto* pinned = static_cast<std::byte*>(staging_->pinned[i].get());
            read_file(tensor, done, {pinned, static_cast<std::size_t>(n)});
            gpu_.write(staging_->device[i].get(), pinned, n);
            use(staging_->device[i].get(), done, n);
            staging_->marks[i] = gpu_.mark();
            done += n;
        }
    }
    void reserve_staging(int64_t least) {
        const int64_t bytes = std::max(least, upload_bytes_);
        if (staging_ && staging_->bytes >= bytes) return;
        if (staging_) gpu_.wait();
        staging_.reset();
        Staging staging{};
        staging.bytes = bytes;
        for (int i = 0; i < 2; ++i) {
            staging.pinned[i] = PinnedMemory(gpu_.allocate_pinned(bytes), PinnedFree{&gpu_});
            staging.device[i] = DeviceMemory(gpu_.allocate(bytes), DeviceFree{&gpu_});
            if (staging.device[i] == nullptr) throw no_memory(bytes);
            staging.marks[i] = gpu_.mark();
        }
        staging_ = std::move(staging);
    }
    // As the file has it.
    const void* upload(const Tensor& in_file) {
        auto* to = static_cast<std::byte*>(place(in_file.bytes()));
        stream(in_file, kAlignment, [&](const void* staged, int64_t done, int64_t bytes) {
            gpu_.copy(to + done, staged, bytes);
        });
        return to;
    }

    Gpu gpu_;
    std::recursive_mutex mutex_;
    PinnedMemory bounce_;
    const ModelFile* file_ = nullptr;  // while the model is placed
    int64_t upload_bytes_ = kUploadBytes;
    std::optional<Staging> staging_;
    std::vector<Arena> arenas_;
    std::deque<Weights> weights_;
    std::map<void*, int64_t> used_, spare_;  // blocks and their sizes
};

// --- the verbs ---

class CudaOps final : public Ops {
public:
    explicit CudaOps(CudaBackend& backend)
        : backend_(backend),
          gpu_(backend.gpu()),
          chunk_(static_cast<std::size_t>(backend.chunk())),
          plan_bytes_(static_cast<int64_t>(chunk_ * (sizeof(DeviceRun) + 4 * sizeof(int32_t)))),
          pinned_(gpu_.allocate_pinned(kPlans * plan_bytes_), PinnedFree{&gpu_}),
          device_(backend.allocate(plan_bytes_ / kFloat)) {
        for (int64_t& mark : marks_) mark = gpu_.mark();
        auto* at = reinterpret_cast<std::byte*>(device_.get());
        runs_ = reinterpret_cast<const DeviceRun*>(at);
        run_of_ = reinterpret_cast<const int32_t*>(at + chunk_ * sizeof(DeviceRun));
    }

    bool begin(const Plan& plan) override {
        std::unique_lock lock = backend_.locked();
        plan_ = plan;
        write_plan();
        if (plan.whole && std::ssize(plan.ids) <= kRecordedTokens) {
            const Shape shape{std::ssize(plan.ids), std::ssize(plan.runs), std::ssize(plan.outputs),
                              plan.n_logits, plan.memory};
            Known& known = known_[shape];
            known.used = ++steps_;
            if (known.recording) {
                gpu_.replay(*known.recording);
                return false;
            }
            // The first step of a shape takes all memory, which no recording may.
            if (known.seen) {
                gpu_.begin_recording();
                recorded_ = &known;
            }
            known.seen = true;
        }
        lock_ = std::move(lock);  // until the step has ended
        return true;
    }
    void end() override {
        if (recorded_ != nullptr) {
            Known* known = std::exchange(recorded_, nullptr);
            known->recording = gpu_.end_recording();
            gpu_.replay(*known->recording);
            forget_oldest();
        }
        lock_.unlock();
    }
    void abandon() noexcept override {
        if (recorded_ != nullptr) gpu_.drop_recording();
        recorded_ = nullptr;
        lock_.unlock();
    }

    void embed(const Tensor& table, const int32_t* ids, int64_t tokens, float* y) override {
        cuda::embed(gpu_, {.table = table.data,
                           .row_bytes = table.row_bytes(),
                           .type = table.type,
                           .ids = on_device(ids),
                           .y = y,
                           .tokens = static_cast<int32_t>(tokens),
                           .cols = static_cast<int32_t>(table.cols)});
    }

    void matmul(std::span<const MatmulJob> jobs, int64_t tokens) override {
        for (; jobs.size() > kMostProducts; jobs = jobs.subspan(kMostProducts))
            products(jobs.first(kMostProducts), tokens);
        products(jobs, tokens);
    }

    void norm(const float* x, const Norm& norm, float eps, int64_t tokens, int64_t n,
              float* y) override {
        cuda::norm(gpu_, {x, norm, eps, y, static_cast<int32_t>(tokens), static_cast<int32_t>(n)});
    }

    void shift(const Shift& p, int64_t tokens) override {
        cuda::shift(gpu_, {.x = p.x,
                           .norm = p.norm,
                           .eps = p.eps,
                           .runs = runs_,
                           .run_of = run_of_,
                           .offset = p.last.offset,
                           .y = p.y,
                           .previous = p.previous,
                           .tokens = static_cast<int32_t>(tokens),
                           .n = static_cast<int32_t>(p.n),
                           .run_count = run_count()});
    }

    void matmul_per_token(const float* x, const float* m, int64_t rows, int64_t cols,
                          int64_t tokens, float* y) override {
        cuda::matmul_per_token(gpu_, {x, m, y, static_cast<int32_t>(rows),
                                      static_cast<int32_t>(cols), static_cast<int32_t>(tokens)});
    }

    void wkv4(const Wkv4& p) override {
        cuda::wkv4(gpu_, {runs_, p.state.offset, p.w, p.u, p.r, p.k, p.v, p.y,
                          static_cast<int32_t>(p.n), run_count()});
    }
    void wkv6(const Wkv6& p) override {
        cuda::wkv6(gpu_, {runs_, p.state.offset, p.r, p.w, p.k, p.v, p.u, p.g, p.norm, p.eps, p.y,
                          static_cast<int32_t>(p.heads), static_cast<int32_t>(p.size), run_count(),
                          p.w_per_token});
    }
    void wkv7(const Wkv7& p) override {
        cuda::wkv7(gpu_, {runs_, p.state.offset, p.r, p.w, p.a, p.g, p.k, p.v, p.first_v, p.v_mix,
                          p.k_k, p.k_a, p.r_k, p.norm, p.eps, p.y, static_cast<int32_t>(p.heads),
                          static_cast<int32_t>(p.size), run_count()});
    }

    void copy(const float* x, int64_t n, float* y) override { gpu_.copy(y, x, n * kFloat); }

    void keep(const float* x, const int32_t* rows, int64_t n, const States& to) override {
        cuda::keep(gpu_,
                   {x, on_device(rows), runs_, to.offset, static_cast<int32_t>(n), run_count()});
    }

private:
    // What a recording depends on, besides what the plan on the device says.
    struct Shape {
        int64_t tokens, runs, outputs, logits, memory;
        auto operator<=>(const Shape&) const = default;
    };
    struct Known {
        bool seen = false;
        uint64_t used = 0;
        std::optional<Recording> recording;
    };

    int32_t run_count() const { return static_cast<int32_t>(plan_.runs.size()); }

    // The plan has one place on the device, which recordings know: the runs, then for each token
    // its run, its id, and the two lists of outputs.
    void write_plan() {
        const std::size_t i = next_++ % kPlans;
        gpu_.wait_for(marks_[i]);
        auto* at =
            static_cast<std::byte*>(pinned_.get()) + i * static_cast<std::size_t>(plan_bytes_);
        auto* runs = reinterpret_cast<DeviceRun*>(at);
        auto* numbers = reinterpret_cast<int32_t*>(at + chunk_ * sizeof(DeviceRun));
        for (std::size_t r = 0; r < plan_.runs.size(); ++r) {
            const Run& run = plan_.runs[r];
            runs[r] = {static_cast<int32_t>(run.begin), static_cast<int32_t>(run.tokens),
                       run.state};
            std::fill_n(numbers + run.begin, run.tokens, static_cast<int32_t>(r));
        }
        std::ranges::copy(plan_.ids, numbers + chunk_);
        std::ranges::copy(plan_.outputs, numbers + 2 * chunk_);
        std::ranges::copy(plan_.last, numbers + 3 * chunk_);
        gpu_.write(device_.get(), at, plan_bytes_);
        marks_[i] = gpu_.mark();
    }
    // Where on the device a list of the plan lies.
    const int32_t* on_device(const int32_t* list) const {
        if (list == plan_.ids.data()) return run_of_ + chunk_;
        if (list == plan_.outputs.data()) return run_of_ + 2 * chunk_;
        if (list == plan_.last.data()) return run_of_ + 3 * chunk_;
        throw std::logic_error("a list that the plan of the step does not have");
    }

    void forget_oldest() {
        if (known_.size() <= kMostRecordings) return;
        known_.erase(std::ranges::min_element(known_, {},
                                              [](const auto& entry) { return entry.second.used; }));
    }

    void products(std::span<const MatmulJob> jobs, int64_t tokens) {
        const Inputs inputs(jobs);
        Prepare prepare{};
        prepare.tokens = static_cast<int32_t>(tokens);
        for (int i = 0; i < inputs.count; ++i) {
            const auto tiles = static_cast<int32_t>(tiles_of(inputs.cols[i]));
            prepare.inputs[i] = {inputs.inputs[i], prepared(i, inputs.cols[i]),
                                 static_cast<int32_t>(inputs.cols[i]), tiles};
            prepare.most_tiles = std::max(prepare.most_tiles, tiles);
            ++prepare.count;
        }
        if (prepare.count > 0) cuda::prepare(gpu_, prepare);
        Products products{};
        products.tokens = prepare.tokens;
        for (std::size_t i = 0; i < jobs.size(); ++i) {
            const MatmulJob& job = jobs[i];
            const Finish finish{.y = job.y,
                                .bias = job.bias,
                                .gate = job.gate,
                                .residual = job.residual,
                                .scale = job.scale,
                                .activate = job.activate};
            if (job.w.by_input)
                cuda::matmul_by_input(gpu_, {.w = job.w.data,
                                             .row_bytes = job.w.row_bytes(),
                                             .type = job.w.type,
                                             .x = job.x.x,
                                             .finish = finish,
                                             .inputs = static_cast<int32_t>(job.w.rows),
                                             .outputs = static_cast<int32_t>(job.w.cols),
                                             .tokens = prepare.tokens});
            else
                products.jobs[products.count++] = {.w = *static_cast<const Weights*>(job.w.data),
                                                   .x = prepare.inputs[inputs.of_job[i]].to,
                                                   .finish = finish,
                                                   .rows = static_cast<int32_t>(job.w.rows),
                                                   .end = 0};
        }
        if (products.count > 0) cuda::matmul(gpu_, products);
    }

    // Room for input `i` of a group, of chunk() tokens.
    void* prepared(int i, int64_t cols) {
        const int64_t bytes = prepared_bytes(cols, static_cast<int64_t>(chunk_));
        if (prepared_[i].bytes < bytes) {
            prepared_[i].memory = backend_.allocate(bytes / kFloat);
            prepared_[i].bytes = bytes;
            known_.clear();
        }
        return prepared_[i].memory.get();
    }

    struct Prepared {
        Memory memory;
        int64_t bytes = 0;
    };

    CudaBackend& backend_;
    Gpu& gpu_;
    std::size_t chunk_;
    int64_t plan_bytes_;
    PinnedMemory pinned_;
    Memory device_;
    int64_t marks_[kPlans];
    std::size_t next_ = 0;
    const DeviceRun* runs_;
    const int32_t* run_of_;
    Plan plan_{};
    std::unique_lock<std::recursive_mutex> lock_;
    Prepared prepared_[kMostProducts];
    std::map<Shape, Known> known_;
    uint64_t steps_ = 0;
    Known* recorded_ = nullptr;  // that is being recorded
};

std::unique_ptr<Ops> CudaBackend::make_ops() { return std::make_unique<CudaOps>(*this); }

// --- choosing ---

class CudaShortlist final : public Shortlist {
public:
    CudaShortlist(CudaBackend& backend, int64_t n_vocab)
        : backend_(backend),
          gpu_(backend.gpu()),
          n_(n_vocab),
          sizes_(n_vocab),
          told_(gpu_.allocate_pinned(sizes_.told() * kFloat), PinnedFree{&gpu_}),
          found_(gpu_.allocate_pinned(sizes_.found() * kFloat), PinnedFree{&gpu_}),
          device_(backend.allocate(sizes_.all())) {}

    int64_t n_vocab() const override { return n_; }
    int64_t most_rows() const override { return kMostRows; }
    int64_t most_changes() const override { return kMostChanges; }

    void survey(std::span<const Row> rows) override {
        const auto lock = backend_.locked();
        SurveyArgs args{};
        args.values = values();
        args.best = surveys();
        args.stride = sizes_.survey;
        args.n = static_cast<int32_t>(n_);
        float* to = gathers() + kMostRows * sizes_.gather;
        auto* told = static_cast<std::byte*>(told_.get());
        // one row after the other, and only what there is
        int64_t at = 0;
        const auto tell = [&](const void* from, std::size_t bytes, int64_t room) {
            std::memcpy(told + at * kFloat, from, bytes);
            std::memset(told + at * kFloat + bytes, 0,
                        static_cast<std::size_t>(room * kFloat) - bytes);
            return to + std::exchange(at, at + room);
        };
        for (const Row& row : rows) {
            SurveyRow& told_of = args.rows[args.row_count++];
            told_of.logits = row.logits;
            told_of.change_count = static_cast<int32_t>(row.changes.size());
            told_of.changes = reinterpret_cast<const LogitChange*>(
                tell(row.changes.data(), row.changes.size_bytes(), 2 * std::ssize(row.changes)));
            if (!row.allowed) continue;
            const auto bytes = static_cast<std::size_t>(sizes_.allowed * kFloat);
            told_of.allowed = reinterpret_cast<const uint8_t*>(
                tell(row.allowed->data(), std::min(row.allowed->size(), bytes), sizes_.allowed));
        }
        if (at > 0) gpu_.write(to, told, at * kFloat);
        cuda::survey(gpu_, args);
        read(args.best, args.row_count * sizes_.survey);
    }
    Survey surveyed(std::size_t row) const override {
        const auto blocks = static_cast<std::size_t>(blocks_of_logits(n_));
        const auto groups = static_cast<std::size_t>(groups_of_logits(n_));
        const float* best = found(row, sizes_.survey);
        const float* sums = best + 2 * blocks;
        return {{best, blocks},
                {reinterpret_cast<const int32_t*>(best + blocks), blocks},
                {sums, groups},
                {sums + groups, groups}};
    }

    void gather(std::span<const float> least) override {
        const auto lock = backend_.locked();
        GatherArgs args{};
        for (std::size_t i = 0; i < least.size(); ++i)
            args.least[i] = std::max(least[i], std::numeric_limits<float>::lowest());
        args.values = values();
        args.counts = reinterpret_cast<int32_t*>(gathers());
        args.stride = sizes_.gather;
        args.row_count = static_cast<int32_t>(least.size());
        args.n = static_cast<int32_t>(n_);
        cuda::gather(gpu_, args);
        read(gathers(), args.row_count * sizes_.gather);
    }
    Candidates gathered(std::size_t row) const override {
        const auto blocks = static_cast<std::size_t>(blocks_of_logits(n_));
        const float* logits = found(row, sizes_.gather) + blocks;
        const std::span counts(reinterpret_cast<const int32_t*>(logits - blocks), blocks);
        const auto count = std::accumulate(counts.begin(), counts.end(), std::size_t{0});
        if (count > kMostFound) return {{}, {}, false};
        return {
            {logits, count}, {reinterpret_cast<const int32_t*>(logits + kMostFound), count}, true};
    }

    const float* changed(std::size_t row) const override {
        return values() + static_cast<int64_t>(row) * sizes_.values;
    }
    void copy(std::span<float> to, const float* from) override { backend_.read(to, from); }

private:
    float* values() const { return device_.get(); }
    float* surveys() const { return values() + kMostRows * sizes_.values; }
    float* gathers() const { return surveys() + kMostRows * sizes_.survey; }
    const float* found(std::size_t row, int64_t stride) const {
        return static_cast<const float*>(found_.get()) + static_cast<int64_t>(row) * stride;
    }
    void read(const float* from, int64_t floats) {
        gpu_.read(found_.get(), from, floats * kFloat);
        gpu_.wait();
    }

    CudaBackend& backend_;
    Gpu& gpu_;
    int64_t n_;
    ShortlistSizes sizes_;
    PinnedMemory told_, found_;
    Memory device_;
};

std::unique_ptr<Shortlist> CudaBackend::make_shortlist(int64_t n_vocab) {
    return std::make_unique<CudaShortlist>(*this, n_vocab);
}

}  // namespace

std::string why_no_cuda() { return why_no_gpu(); }

std::vector<std::string> cuda_devices() {
    std::vector<std::string> names;
    for (int i = 0; i < gpu_count(); ++i) names.push_back(gpu_name(i));
    return names;
}

static void check_index(int index) {
    if (const std::string why = why_no_gpu(); !why.empty())
        throw UnsupportedError(cat("device 'cuda:", index, "': ", why));
    const int count = gpu_count();
    if (index < 0 || index >= count)
        throw std::invalid_argument(
            cat("device 'cuda:", index, "', expected ",
                count == 1 ? "'cuda:0', the only GPU" : cat("'cuda:0' to 'cuda:", count - 1, "'")));
}

std::shared_ptr<Backend> make_cuda_backend(int index) {
    check_index(index);
    return std::make_shared<CudaBackend>(index);
}

DeviceLimits cuda_limits(int index) {
    check_index(index);
    Gpu gpu(index);
    return limits_of(gpu);
}

}  // namespace rwkv_edge
