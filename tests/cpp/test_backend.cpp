// SPDX-License-Identifier: Apache-2.0
// A backend is one class and its verbs, and nothing else. Here is one whose pointers point nowhere:
// to every address that it gives out a constant is added, which only its own functions take off
// again before the CPU's do the work. Code of the model that followed such a pointer would crash,
// and code that mixed up two kinds of memory would find wrong values.
#include <cmath>
#include <cstdint>
#include <deque>
#include <map>
#include <random>
#include <vector>

#include "base/error.h"
#include "check.h"
#include "host_shortlist.h"
#include "tiny_model.h"

using namespace rwkv_edge;

namespace {

// No address of a program has the second highest bit set and the highest not.
constexpr std::uintptr_t kFar = std::uintptr_t{1} << (8 * sizeof(std::uintptr_t) - 2);

template <class T>
T* far_from(T* near) {
    return near == nullptr ? nullptr
                           : reinterpret_cast<T*>(reinterpret_cast<std::uintptr_t>(near) + kFar);
}
template <class T>
T* near_from(T* far) {
    return far == nullptr ? nullptr
                          : reinterpret_cast<T*>(reinterpret_cast<std::uintptr_t>(far) - kFar);
}
Tensor near_from(Tensor far) {
    far.data = near_from(far.data);
    return far;
}
Norm near_from(const Norm& far) { return {near_from(far.weight), near_from(far.bias)}; }
Input near_from(Input far) {
    return {near_from(far.x), near_from(far.to), near_from(far.mix), far.mix_per_token};
}

class FarOps final : public Ops {
public:
    explicit FarOps(std::unique_ptr<Ops> cpu) : cpu_(std::move(cpu)) {}

    void embed(const Tensor& table, const int32_t* ids, int64_t tokens, float* y) override {
        cpu_->embed(near_from(table), ids, tokens, near_from(y));
    }
    void matmul(std::span<const MatmulJob> jobs, int64_t tokens) override {
        std::vector<MatmulJob> near(jobs.begin(), jobs.end());
        for (MatmulJob& job : near) {
            job.w = near_from(job.w);
            job.x = near_from(job.x);
            job.y = near_from(job.y);
            job.bias = near_from(job.bias);
            job.gate = near_from(job.gate);
            job.residual = near_from(job.residual);
        }
        cpu_->matmul(near, tokens);
    }
    void norm(const float* x, const Norm& norm, float eps, int64_t tokens, int64_t n,
              float* y) override {
        cpu_->norm(near_from(x), near_from(norm), eps, tokens, n, near_from(y));
    }
    void shift(const Shift& far, int64_t tokens) override {
        cpu_->shift({near_from(far.x), near_from(far.norm), far.eps, near_from(far.last),
                     near_from(far.y), near_from(far.previous), far.n},
                    tokens);
    }
    void matmul_per_token(const float* x, const float* m, int64_t rows, int64_t cols,
                          int64_t tokens, float* y) override {
        cpu_->matmul_per_token(near_from(x), near_from(m), rows, cols, tokens, near_from(y));
    }
    void wkv4(const Wkv4& far) override {
        Wkv4 p = far;
        near(p.w, p.u, p.r, p.k, p.v, p.y);
        p.state = near_from(far.state);
        cpu_->wkv4(p);
    }
    void wkv6(const Wkv6& far) override {
        Wkv6 p = far;
        near(p.r, p.w, p.k, p.v, p.u, p.g, p.y);
        p.norm = near_from(far.norm);
        p.state = near_from(far.state);
        cpu_->wkv6(p);
    }
    void wkv7(const Wkv7& far) override {
        Wkv7 p = far;
        near(p.r, p.w, p.a, p.g, p.k, p.v, p.first_v, p.v_mix, p.k_k, p.k_a, p.r_k, p.y);
        p.norm = near_from(far.norm);
        p.state = near_from(far.state);
        cpu_->wkv7(p);
    }
    void copy(const float* x, int64_t n, float* y) override {
        cpu_->copy(near_from(x), n, near_from(y));
    }
    void keep(const float* x, const int32_t* rows, int64_t n, const States& to) override {
        cpu_->keep(near_from(x), rows, n, near_from(to));
    }

private:
    template <class... Pointers>
    static void near(Pointers&... pointers) {
        ((pointers = near_from(pointers)), ...);
    }
    States near_from(const States& far) {
        runs_.assign(far.runs.begin(), far.runs.end());
        for (Run& run : runs_) run.state = ::near_from(run.state);
        return {runs_, far.offset};
    }
    template <class T>
    static T near_from(T far) {
        return ::near_from(far);
    }

    std::unique_ptr<Ops> cpu_;
    std::vector<Run> runs_;
};

class FarBackend : public Backend {
public:
    std::string name() const override { return "far"; }
    int threads() const override { return 1; }
    // A copy, so that the pointer into the file is of no use to anybody.
    Tensor matrix(const Tensor& in_file) override { return far_copy(in_file); }
    Tensor table(const Tensor& in_file) override { return far_copy(in_file); }
    const float* vector(const Tensor& in_file) override {
        return far_from(cpu_->vector(::near_from(far_copy(in_file))));
    }
    Memory allocate(int64_t floats) override {
        Memory near = cpu_->allocate(floats);
        float* far = far_from(near.get());
        memory_[far] = std::move(near);
        return Memory(far, GiveBack{this});
    }
    void write(float* to, std::span<const float> from) override {
        cpu_->write(::near_from(to), from);
    }
    void read(std::span<float> to, const float* from) override {
        cpu_->read(to, ::near_from(from));
    }
    void copy(float* to, const float* from, int64_t floats) override {
        cpu_->copy(::near_from(to), ::near_from(from), floats);
    }
    float* direct(float*) override { return nullptr; }
    int64_t chunk() const override { return 48; }
    std::unique_ptr<Ops> make_ops() override { return std::make_unique<FarOps>(cpu_->make_ops()); }
    std::unique_ptr<Shortlist> make_shortlist(int64_t n_vocab) override {
        return std::make_unique<HostShortlist>(n_vocab,
                                               [](const float* far) { return ::near_from(far); });
    }

private:
    void give_back(float* far) noexcept override { memory_.erase(far); }
    Tensor far_copy(Tensor in_file) {
        const auto* bytes = static_cast<const std::byte*>(in_file.data);
        weights_.emplace_back(bytes, bytes + in_file.bytes());
        in_file.data = far_from(weights_.back().data());
        return in_file;
    }

    std::shared_ptr<Backend> cpu_ = make_cpu_backend(1);
    std::deque<std::vector<std::byte>> weights_;
    std::map<float*, Memory> memory_;
};

}  // namespace

TEST(a_backend_of_another_address_space_gives_the_same_bits) {
    for (const std::string& version : kTinyVersions) {
        GgufBytes file = tiny_model(version, 1, {.state = version != "4"});
        file.at("blk.0.time_mix_key.weight").type = Type::Q4_0;
        file.at("blk.0.time_mix_lerp_fused.weight").type = Type::F16;
        const std::vector<std::byte> bytes = file.bytes();
        const auto on_cpu = open_model(bytes, 1);
        const auto far = std::make_shared<Runner>(std::make_shared<Model>(
            ModelFile::parse(bytes, "tiny.gguf"), std::make_shared<FarBackend>()));
        std::vector<float> logits[2], states[2];
        for (const auto& runner : {on_cpu, far}) {
            const std::size_t i = runner == far;
            Session a(runner), b(runner);
            std::vector<int32_t> ids(100, 7), one{3};
            logits[i].resize(101 * 40 + 40);
            const Session::Part parts[] = {{&a, ids, Session::Logits::All},
                                           {&b, one, Session::Logits::Last}};
            Session::feed_together(parts, logits[i].data());
            const auto fork = b.fork();
            b.feed(one, Session::Logits::None, nullptr);
            b.logits(logits[i].data() + 101 * 40);
            b.rewind(*fork);
            for (const Session* session : {&a, &b}) {
                const std::vector<float> state = state_of(*session);
                states[i].insert(states[i].end(), state.begin(), state.end());
            }
        }
        CHECK_CASE(logits[0] == logits[1] && states[0] == states[1], version);
    }
}

TEST(logits_stay_where_the_model_lives_and_give_the_same_tokens) {
    const std::vector<std::byte> bytes = tiny_model("7", 1).bytes();
    CHECK(!open_model(bytes, 1, "cpu")->keeps_logits());
    const auto far = std::make_shared<Runner>(std::make_shared<Model>(
        ModelFile::parse(bytes, "tiny.gguf"), std::make_shared<FarBackend>()));
    CHECK(far->keeps_logits());
    const std::vector<int32_t> many(100, 7), one{3};
    std::vector<float> expected(101 * 40), row(40);
    {
        Session a(far), b(far);
        const Session::Part parts[] = {{&a, many, Session::Logits::All},
                                       {&b, one, Session::Logits::Last}};
        Session::feed_together(parts, expected.data());
    }
    Session a(far), b(far), c(far);
    KeptLogits kept(far, 101);
    const Session::Part parts[] = {{&a, many, Session::Logits::All},
                                   {&c, one, Session::Logits::None},
                                   {&b, one, Session::Logits::Last}};
    Session::feed_together(parts, kept);
    CHECK(kept.rows() == 101 && kept.n_vocab() == 40);
    const auto row_of = [&](int64_t i) { return std::span(expected).subspan(40 * i, 40); };
    for (int64_t i = 0; i < 101; ++i) {
        kept.copy(i, row);
        CHECK(std::ranges::equal(row, row_of(i)));
    }
    // A token for each: of rows that occur twice, too.
    const uint8_t allowed[] = {0, 0x3c, 0, 0, 0xff};
    std::vector<Sampler> here, there;
    for (uint64_t seed = 0; seed < 5; ++seed)
        here.emplace_back(SamplerOptions{.top_p = 0.9, .seed = seed});
    there = here;
    const std::vector<KeptLogits::Choice> choices = {{&there[0], 100},
                                                     {&there[1], 0},
                                                     {&there[2], 0},
                                                     {&there[3], 50, allowed},
                                                     {&there[4], 99}};
    for (int round = 0; round < 5; ++round) {
        const std::vector<int32_t> tokens = kept.sample(choices);
        CHECK(tokens.size() == choices.size());
        for (std::size_t i = 0; i < tokens.size(); ++i)
            CHECK(tokens[i] == here[i].sample(row_of(choices[i].row), choices[i].allowed));
    }

    CHECK_THROWS(std::invalid_argument, "row 101 of logits, found 101 rows", kept.copy(101, row));
    CHECK_THROWS(std::invalid_argument, "row -1 of logits", kept.copy(-1, row));
    const std::vector<KeptLogits::Choice> beyond = {{&there[0], 101}},
                                          twice = {{&there[0], 1}, {&there[0], 2}};
    CHECK_THROWS(std::invalid_argument, "row 101 of logits", kept.sample(beyond));
    CHECK_THROWS(std::invalid_argument, "a sampler occurs twice", kept.sample(twice));
    KeptLogits few(far, 7);
    CHECK_THROWS(std::invalid_argument, "room for 7 rows of logits, expected 101",
                 Session::feed_together(parts, few));
    CHECK(a.tokens() == 100 && b.tokens() == 1);
}

// What calibration wants to see are the matrices of the file, and this device has copies.
TEST(inputs_are_of_matrices_in_the_file) {
    const std::vector<std::byte> bytes = tiny_model("7", 1).bytes();
    Session session(std::make_shared<Runner>(std::make_shared<Model>(
        ModelFile::parse(bytes, "tiny.gguf"), std::make_shared<FarBackend>())));
    const std::vector<int32_t> ids(100, 7);
    const std::vector<std::string> names{"blk.0.time_mix_key.weight"};
    std::vector<float> to(static_cast<std::size_t>(session.input_floats(names, 100)));
    const std::vector<float> state = state_of(session);
    CHECK_THROWS(std::invalid_argument,
                 "no product on far reads the matrix 'blk.0.time_mix_key.weight'",
                 session.inputs(ids, names, to.data()));
    CHECK(state_of(session) == state && session.tokens() == 0);
    // A section that ends before the head gives no logits, wherever they would have gone.
    std::vector<float> between(ids.size() * 64), carry(between);
    const Section first{0, 1, between, carry};
    const std::vector<std::string> head{"output.weight"};
    CHECK_THROWS(std::invalid_argument, "no product on far reads the matrix 'output.weight'",
                 session.inputs(ids, head, to.data(), {}, &first));
    CHECK(state_of(session) == state && session.tokens() == 0);
}

namespace {

class NoOps final : public Ops {
public:
    void embed(const Tensor&, const int32_t*, int64_t, float*) override {}
    void matmul(std::span<const MatmulJob>, int64_t) override {}
    void norm(const float*, const Norm&, float, int64_t, int64_t, float*) override {}
    void shift(const Shift&, int64_t) override {}
    void matmul_per_token(const float*, const float*, int64_t, int64_t, int64_t, float*) override {}
    void wkv4(const Wkv4&) override {}
    void wkv6(const Wkv6&) override {}
    void wkv7(const Wkv7&) override {}
    void copy(const float*, int64_t, float*) override {}
    void keep(const float*, const int32_t*, int64_t, const States&) override {}
};

class Rehearsal final : public FarBackend {
public:
    std::unique_ptr<Ops> make_ops() override { return std::make_unique<NoOps>(); }
};

// Wants to know what a model takes before it places a weight, and writes down what happens.
class CarefulBackend final : public FarBackend {
public:
    std::vector<std::string> seen;
    bool has_room = true;

    std::shared_ptr<Backend> rehearsal() override {
        rehearsal_ = std::make_shared<Rehearsal>();
        return rehearsal_;
    }
    void prepare(const ModelFile& file, const Backend& rehearsal, int64_t state) override {
        seen.push_back(
            cat("prepare ", file.path(), &rehearsal == rehearsal_.get() ? " " : "?", state));
        if (!has_room) throw NoMemory("no room for this model");
    }
    void settle() override { seen.push_back("settle"); }
    Tensor matrix(const Tensor& in_file) override {
        if (seen.back() != "a matrix") seen.push_back("a matrix");
        return FarBackend::matrix(in_file);
    }

private:
    std::shared_ptr<Backend> rehearsal_;
};

}  // namespace

TEST(a_backend_may_refuse_before_a_weight_is_placed) {
    const std::vector<std::byte> bytes = tiny_model("7", 1).bytes();
    const auto file = ModelFile::parse(bytes, "tiny.gguf");
    const auto backend = std::make_shared<CarefulBackend>();
    const auto model = Model::open(file, backend);
    const std::string prepared = cat("prepare tiny.gguf ", 4 * model->memory_size());
    CHECK((backend->seen == std::vector<std::string>{prepared, "a matrix", "settle"}));
    std::vector<float> logits(40), expected(40);
    const int32_t id = 7;
    Session(std::make_shared<Runner>(model)).feed({&id, 1}, Session::Logits::Last, logits.data());
    Session(open_model(bytes, 1, "cpu")).feed({&id, 1}, Session::Logits::Last, expected.data());
    CHECK(logits == expected);
    const auto full = std::make_shared<CarefulBackend>();
    full->has_room = false;
    CHECK_THROWS(NoMemory, "no room for this model", Model::open(file, full));
    CHECK((full->seen == std::vector<std::string>{prepared}));
}

// They are read eight rows at a time, as floats.
TEST(types_without_a_kernel_give_the_products_of_their_floats) {
    std::mt19937 rng(9);
    const int64_t rows = 19, cols = 512, tokens = 3;
    std::vector<float> x(static_cast<std::size_t>(tokens * cols));
    for (float& v : x) v = static_cast<float>(rng() % 2001) / 1000.0f - 1.0f;
    for (const Type type : {Type::Q2_K, Type::Q3_K}) {
        const TypeInfo& info = type_info(type);
        const auto size = static_cast<std::size_t>(info.block_bytes);
        std::vector<std::byte> blocks(static_cast<std::size_t>(type_bytes(type, rows * cols)));
        std::vector<float> wide(static_cast<std::size_t>(rows * cols));
        const auto of_a_weight = [](float w) { return std::fabs(w) < 1000.0f; };  // no NaN
        for (std::size_t i = 0; i * size < blocks.size(); ++i) {
            const std::span block = std::span(blocks).subspan(i * size, size);
            const std::span values = std::span(wide).subspan(i * 256, 256);
            do {
                for (std::byte& byte : block) byte = static_cast<std::byte>(rng());
                info.dequantize(block.data(), values.data(), 256);
            } while (!std::ranges::all_of(values, of_a_weight));
        }
        for (const int threads : {1, 2}) {
            const auto backend = make_cpu_backend(threads);
            const auto ops = backend->make_ops();
            std::vector<float> found(static_cast<std::size_t>(tokens * rows)), expected(found);
            const MatmulJob jobs[] = {
                {.w = {blocks.data(), type, rows, cols}, .x = {x.data()}, .y = found.data()},
                {.w = {wide.data(), Type::F32, rows, cols}, .x = {x.data()}, .y = expected.data()}};
            ops->matmul(jobs, tokens);
            CHECK_CASE(found == expected, std::string(info.name));
            CHECK_CASE(std::ranges::count(found, 0.0f) < 5, std::string(info.name));
        }
    }
}
