// SPDX-License-Identifier: Apache-2.0
// The verbs on a GPU, or on its emulation, against double precision; and what the emulator finds.
// Models on it are in the tests of models (RWKV_EDGE_DEVICE=cuda). Without CUDA there is one test.
#include <algorithm>
#include <cmath>
#include <functional>
#include <random>

#include "backend/backend.h"
#include "base/error.h"
#include "check.h"
#include "sampler.h"
#ifdef RWKV_EDGE_EMULATE
#include "backend/cuda/launch.h"
#include "backend/cuda/sums.h"
#endif

using namespace rwkv_edge;

namespace {

std::mt19937 rng(7);

std::vector<float> normal(int64_t n, float spread = 1.0f) {
    std::normal_distribution<float> distribution(0.0f, spread);
    std::vector<float> x(static_cast<std::size_t>(n));
    for (float& v : x) v = distribution(rng);
    return x;
}

// Blocks of any codes, their scales and minima such as a file has them.
std::vector<std::byte> random_matrix(const TypeInfo& type, int64_t rows, int64_t cols) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(type_bytes(type.type, rows * cols)));
    if (type.quantize != nullptr) {
        type.quantize(normal(rows * cols, 0.1f).data(), bytes.data(), rows * cols);
        return bytes;
    }
    for (std::byte& b : bytes) b = static_cast<std::byte>(rng());
    const auto set = [](uint16_t& half) { half = static_cast<uint16_t>(0x1000 + rng() % 0x800); };
    for (std::size_t at = 0; at < bytes.size(); at += static_cast<std::size_t>(type.block_bytes)) {
        void* block = &bytes[at];
        if (type.type == Type::Q2_K) set(static_cast<BlockQ2_K*>(block)->d);
        if (type.type == Type::Q2_K) set(static_cast<BlockQ2_K*>(block)->dmin);
        if (type.type == Type::Q3_K) set(static_cast<BlockQ3_K*>(block)->d);
        if (type.type == Type::Q4_K) set(static_cast<BlockQ4_K*>(block)->d);
        if (type.type == Type::Q4_K) set(static_cast<BlockQ4_K*>(block)->dmin);
        if (type.type == Type::Q5_K) set(static_cast<BlockQ5_K*>(block)->d);
        if (type.type == Type::Q5_K) set(static_cast<BlockQ5_K*>(block)->dmin);
        if (type.type == Type::Q6_K) set(static_cast<BlockQ6_K*>(block)->d);
    }
    return bytes;
}

// A backend, and its memory filled.
struct OnDevice {
    std::shared_ptr<Backend> backend = make_cuda_backend(0);
    std::unique_ptr<Ops> ops = backend->make_ops();
    std::vector<Memory> held;

    float* floats(const std::vector<float>& x) {
        held.push_back(backend->allocate(std::ssize(x)));
        backend->write(held.back().get(), x);
        return held.back().get();
    }
    std::vector<float> read(const float* from, int64_t n) {
        std::vector<float> x(static_cast<std::size_t>(n));
        backend->read(x, from);
        return x;
    }
};

}  // namespace

TEST(a_device_that_is_not_there_is_named) {
    CHECK_THROWS(std::invalid_argument, "device 'gpu', expected 'cpu', 'cuda'",
                 make_backend("gpu", 1));
    CHECK_THROWS(std::invalid_argument, "device 'cuda:-1'", make_backend("cuda:-1", 1));
    CHECK_THROWS(std::invalid_argument, "device 'cuda:1x'", make_backend("cuda:1x", 1));
    CHECK_THROWS(std::invalid_argument, "device 'cuda:'", make_backend("cuda:", 1));
    if (why_no_cuda().empty()) {
        const auto count = std::to_string(cuda_devices().size());
        CHECK_THROWS(std::invalid_argument, "device 'cuda:" + count + "', expected 'cuda:0'",
                     make_backend("cuda:" + count, 1));
    } else {
        CHECK_THROWS(UnsupportedError, why_no_cuda(), make_backend("cuda", 1));
        CHECK_THROWS(UnsupportedError, "device 'cuda:3': ", make_backend("cuda:3", 1));
        CHECK_THROWS(UnsupportedError, why_no_cuda(), gpu_limits("cuda"));
        CHECK(cuda_devices().empty());
    }
    CHECK_THROWS(std::invalid_argument, "device 'cpu', expected 'cuda' or 'cuda:1'",
                 gpu_limits("cpu"));
    CHECK(make_backend("cpu", 1)->name().starts_with("cpu "));
}

// Every type, rows and columns that fill no tile, groups of jobs of different widths; whatever the
// number of tokens, the same bits. Sums of n terms are wrong by n 2^-24 of the sum of their sizes
// at most: 32 in a block, then the blocks, the parts, and a few for inputs of 22 bits. Scales and
// minima of a block apart are no larger than five times its largest weight.
TEST(products_of_every_type) {
    if (!why_no_cuda().empty()) return;
    for (const TypeInfo& type : all_types()) {
        OnDevice on;
        const int64_t cols = type.block_len > 32 ? 512 : 96, rows = 40, tokens = 37;
        const auto bytes = random_matrix(type, rows, cols);
        std::vector<float> w(static_cast<std::size_t>(rows * cols));
        type.dequantize(bytes.data(), w.data(), rows * cols);
        const auto x = normal(tokens * cols), to = normal(tokens * cols), mix = normal(cols);
        const Tensor matrix = on.backend->matrix({bytes.data(), type.type, rows, cols});
        const Input input{on.floats(x), on.floats(to), on.floats(mix)};
        float* y = on.floats(normal(tokens * rows));
        const MatmulJob job{.w = matrix, .x = input, .y = y};
        on.ops->matmul({&job, 1}, tokens);
        const auto found = on.read(y, tokens * rows);
        for (int64_t t = 0; t < tokens; ++t)
            for (int64_t r = 0; r < rows; ++r) {
                double sum = 0, size = 0;
                for (int64_t b = 0; b < cols; b += kBlock) {
                    double peak = 0, total = 0;
                    for (int64_t k = b; k < b + kBlock; ++k) {
                        const auto at = static_cast<std::size_t>(t * cols + k);
                        const double in =
                            x[at] + (double{to[at]} - x[at]) * mix[static_cast<std::size_t>(k)];
                        const double weight = w[static_cast<std::size_t>(r * cols + k)];
                        sum += weight * in;
                        peak = std::max(peak, std::fabs(weight));
                        total += std::fabs(in) + std::fabs(x[at]) + std::fabs(to[at]);
                    }
                    size += 5 * peak * total;
                }
                const double error = std::fabs(found[static_cast<std::size_t>(t * rows + r)] - sum);
                const double terms = 32.0 + static_cast<double>(cols) / 32 + 8 + 8;
                CHECK_CASE(error <= std::ldexp(terms * size, -24) && size > 0, type.name);
            }
        // One token, tiles of two sizes, more than one block of tokens; and in company.
        const auto narrow = normal(16 * 40);
        const Tensor other = on.backend->matrix({narrow.data(), Type::F32, 16, 40});
        for (const int64_t n : {1, 3, 5, 8, 11, 16, 17, 33}) {
            float* z = on.floats(normal(tokens * rows));
            const MatmulJob jobs[] = {{.w = other, .x = {input.x}, .y = on.floats(normal(n * 16))},
                                      {.w = matrix, .x = input, .y = z}};
            on.ops->matmul(jobs, n);
            const auto part = on.read(z, n * rows);
            CHECK_CASE(std::equal(part.begin(), part.end(), found.begin()), type.name);
        }
    }
}

// As the codec gives the weights; rows of inputs that are zero are not read, for there is NaN.
TEST(products_by_input_of_every_type) {
    if (!why_no_cuda().empty()) return;
    for (const TypeInfo& type : all_types()) {
        OnDevice on;
        const int64_t outputs = type.block_len > 32 ? 256 : 96, inputs = 70, tokens = 6;
        auto bytes = random_matrix(type, inputs, outputs);
        std::vector<float> w(static_cast<std::size_t>(inputs * outputs));
        type.dequantize(bytes.data(), w.data(), inputs * outputs);
        auto x = normal(tokens * inputs);
        for (int64_t i = 0; i < inputs; ++i)  // half of them are zero for all, others for some
            for (int64_t t = 0; t < tokens; ++t)
                if (i % 2 == 0 || (i + t) % 3 == 0) x[static_cast<std::size_t>(t * inputs + i)] = 0;
        const auto row = static_cast<std::size_t>(type_bytes(type.type, outputs));
        for (std::size_t i = 0; i < inputs; i += 2)
            std::fill_n(bytes.begin() + static_cast<std::ptrdiff_t>(i * row), row, std::byte{0xff});
        const Tensor matrix = on.backend->matrix({bytes.data(), type.type, inputs, outputs, true});
        const float* input = on.floats(x);
        float* y = on.floats(normal(tokens * outputs));
        const MatmulJob job{.w = matrix, .x = {input}, .y = y};
        on.ops->matmul({&job, 1}, tokens);
        const auto found = on.read(y, tokens * outputs);
        for (int64_t t = 0; t < tokens; ++t) {
            for (int64_t c = 0; c < outputs; ++c) {
                double sum = 0, size = 0;
                for (int64_t i = 1; i < inputs; i += 2) {
                    const double term = double{x[static_cast<std::size_t>(t * inputs + i)]} *
                                        w[static_cast<std::size_t>(i * outputs + c)];
                    sum += term;
                    size += std::fabs(term);
                }
                const float value = found[static_cast<std::size_t>(t * outputs + c)];
                CHECK_CASE(std::fabs(value - sum) <= std::ldexp(80 * size, -24), type.name);
            }
            float* alone = on.floats(normal(outputs));
            const MatmulJob one{.w = matrix, .x = {input + t * inputs}, .y = alone};
            on.ops->matmul({&one, 1}, 1);
            const auto same = on.read(alone, outputs);
            CHECK_CASE(std::equal(same.begin(), same.end(), found.begin() + t * outputs),
                       type.name);
        }
    }
}

// scale, bias, activation, gate, residual, in that order; functions to 6 units in the last place.
TEST(what_follows_a_product) {
    if (!why_no_cuda().empty()) return;
    const int64_t n = 64, tokens = 5;
    std::vector<float> identity(n * n);
    for (int64_t i = 0; i < n; ++i) identity[static_cast<std::size_t>(i * n + i)] = 1;
    const auto sigmoid = [](double v) { return 1 / (1 + std::exp(-v)); };
    const std::pair<Activate, std::function<double(double)>> functions[] = {
        {Activate::None, [](double v) { return v; }},
        {Activate::Tanh, [](double v) { return std::tanh(v); }},
        {Activate::Sigmoid, sigmoid},
        {Activate::Silu, [&](double v) { return v * sigmoid(v); }},
        {Activate::Relu2, [](double v) { return v > 0 ? v * v : 0; }},
        {Activate::Decay6, [](double v) { return std::exp(-std::exp(v)); }},
        {Activate::Decay7, [&](double v) { return std::exp(-std::exp(-0.5) * sigmoid(v)); }},
    };
    for (const auto& [activate, function] : functions)
        for (const bool by_input : {false, true}) {
            OnDevice on;
            const auto x = normal(tokens * n, 2.0f), bias = normal(n), gate = normal(tokens * n),
                       before = normal(tokens * n);
            float *y = on.floats(before), *residual = on.floats(before);
            const MatmulJob job{
                .w = on.backend->matrix({identity.data(), Type::F32, n, n, by_input}),
                .x = {on.floats(x)},
                .y = y,
                .activate = activate,
                .bias = on.floats(bias),
                .gate = on.floats(gate),
                .residual = residual,
                .scale = 0.5f};
            on.ops->matmul({&job, 1}, tokens);
            const auto found = on.read(y, tokens * n), sum = on.read(residual, tokens * n);
            for (std::size_t i = 0; i < x.size(); ++i) {
                const double in = 0.5 * x[i] + bias[i % 64], slope = 1 + std::fabs(in);
                const double right = function(in) * gate[i];
                // what the argument's own rounding makes of it, and the function's
                const double near = (std::fabs(function(in + std::ldexp(slope, -21)) -
                                               function(in - std::ldexp(slope, -21))) +
                                     std::ldexp(6 * std::fabs(function(in)), -24)) *
                                    std::fabs(gate[i]);
                CHECK_CASE(std::fabs(found[i] - right) <= near + 1e-30,
                           std::to_string(static_cast<int>(activate)));
                CHECK(sum[i] == before[i] + found[i]);
            }
        }
}

// What is too large for the inputs of a product shows, instead of being cut.
TEST(inputs_beyond_their_range_show) {
    if (!why_no_cuda().empty()) return;
    OnDevice on;
    const std::vector<float> one(64, 1.0f);
    const Tensor matrix = on.backend->matrix({one.data(), Type::F32, 1, 64});
    for (const float size : {1e6f, 1e7f, INFINITY, NAN}) {
        std::vector<float> x(64, 0.0f);
        x[5] = size;
        float* y = on.floats(one);
        const MatmulJob job{.w = matrix, .x = {on.floats(x)}, .y = y};
        on.ops->matmul({&job, 1}, 1);
        const float found = on.read(y, 1)[0];
        CHECK(size == 1e6f ? found == size : !std::isfinite(found));
    }
}

// --- choosing ---

namespace {

const std::vector<SamplerOptions> kSettings = {
    {.temperature = 0.0},
    {.top_k = 1},
    {.top_p = 0.0},
    {.top_p = 0.3},
    {.temperature = 1.5, .top_p = 0.9, .presence_penalty = 0.4, .frequency_penalty = 0.4},
    {.temperature = 0.7, .top_k = 40, .top_p = 1.0},
    {.top_k = 7, .top_p = 0.99, .min_p = 0.01},
    {.top_p = 1.0, .min_p = 0.1},
    {.top_p = 1.0, .typical_p = 0.8},
    {.top_p = 0.9, .typical_p = 0.6, .logit_bias = {{3, 2.0}, {1, -9.0}, {3, -0.1}}},
    {.top_p = 1.0},  // nothing is cut
    {.top_p = 0.6, .presence_penalty = 1.0, .penalty_window = 3, .banned = {0, 5, 1 << 30}},
    {.top_p = 0.5, .forced = {2, 0}},
};

// Logits as a device has them, and the rows as the host has them.
struct Rows {
    std::vector<std::vector<float>> host;
    std::vector<const float*> device;

    void add(OnDevice& on, std::vector<float> row) {
        device.push_back(on.floats(row));
        host.push_back(std::move(row));
    }
};

}  // namespace

// Both choose the same tokens from the same logits, one by one and many together.
TEST(choices_are_those_of_the_host) {
    if (!why_no_cuda().empty()) return;
    for (const int64_t n : {4, 63, 64, 65, 1024, 1100, 9000}) {
        OnDevice on;
        const auto shortlist = on.backend->make_shortlist(n);
        Rows rows;
        for (const float spread : {0.01f, 1.0f, 4.0f}) rows.add(on, normal(n, spread));
        std::vector<float> steps = normal(n);  // many are equal
        for (float& v : steps) v = std::round(2.0f * v);
        rows.add(on, steps);
        std::vector<float> holes = normal(n);
        for (std::size_t i = 0; i + 4 < holes.size(); ++i)
            if (i % 3 != 2) holes[i] = -INFINITY;
        rows.add(on, holes);
        std::vector<uint8_t> allowed(static_cast<std::size_t>((n + 7) / 8));
        for (uint8_t& bits : allowed) bits = static_cast<uint8_t>(rng() | 5);

        std::vector<Sampler> here, there;
        for (SamplerOptions options : kSettings) {
            options.seed = rng();
            here.emplace_back(options);
            there.emplace_back(options);
        }
        for (std::size_t step = 0; step < 3 * rows.host.size(); ++step) {
            std::vector<Choice> choices;
            for (std::size_t i = 0; i < there.size(); ++i) {
                const std::size_t row = (step + i) % rows.host.size();
                choices.push_back({&there[i], rows.device[row]});
                if (step % 3 == 1) choices.back().allowed = allowed;
                if (step % 3 == 2) choices.back().allowed = std::span(allowed).first(1);
            }
            std::vector<int32_t> tokens(choices.size());
            if (step % 2 == 0)
                sample(*shortlist, choices, tokens);
            else
                for (std::size_t i = 0; i < choices.size(); ++i)
                    sample(*shortlist, {&choices[i], 1}, {&tokens[i], 1});
            for (std::size_t i = 0; i < choices.size(); ++i) {
                const std::size_t row = (step + i) % rows.host.size();
                const int32_t right = here[i].sample(rows.host[row], choices[i].allowed);
                CHECK_CASE(tokens[i] == right, std::to_string(n) + ", setting " +
                                                   std::to_string(i) + ", step " +
                                                   std::to_string(step));
                CHECK(here[i].seed() == there[i].seed());
                here[i].accept(right);
                there[i].accept(right);
            }
        }
    }
}

// More of everything than a shortlist takes: the host's way, and the same tokens.
TEST(choices_that_a_shortlist_has_no_room_for) {
    if (!why_no_cuda().empty()) return;
    const int64_t n = 9000;
    OnDevice on;
    const auto shortlist = on.backend->make_shortlist(n);
    Rows rows;
    for (int i = 0; i < 40; ++i) rows.add(on, normal(n, 0.01f));
    SamplerOptions many{.top_p = 0.7};
    for (int64_t i = 0; i < shortlist->most_changes() + 1; ++i)
        many.logit_bias.emplace_back(static_cast<int32_t>(i), 1.0);
    for (const SamplerOptions& options : {SamplerOptions{.top_p = 0.95}, many}) {
        std::vector<Sampler> here(rows.host.size(), Sampler(options)), there = here;
        std::vector<Choice> choices;
        for (std::size_t i = 0; i < there.size(); ++i)
            choices.push_back({&there[i], rows.device[i]});
        CHECK(std::ssize(choices) > 2 * shortlist->most_rows());
        std::vector<int32_t> tokens(choices.size());
        sample(*shortlist, choices, tokens);
        for (std::size_t i = 0; i < here.size(); ++i)
            CHECK(tokens[i] == here[i].sample(rows.host[i]));
    }
}

TEST(choices_that_there_are_not) {
    if (!why_no_cuda().empty()) return;
    OnDevice on;
    const auto shortlist = on.backend->make_shortlist(100);
    const auto choose = [&](std::vector<float> row, const SamplerOptions& options = {},
                            std::optional<std::span<const uint8_t>> allowed = {}) {
        Sampler sampler(options);
        const Choice choice{&sampler, on.floats(row), allowed};
        int32_t token = -1;
        sample(*shortlist, {&choice, 1}, {&token, 1});
        return token;
    };
    for (const float wrong : {NAN, INFINITY})
        for (const std::size_t at : {0, 40, 99}) {
            std::vector<float> row = normal(100);
            row[at] = wrong;
            CHECK_THROWS(std::invalid_argument, "no finite maximum", choose(row));
            const auto token = static_cast<int32_t>(at);
            CHECK(choose(row, {.banned = {token}}) != token);
            CHECK(choose(row, {.logit_bias = {{token, 1.0}}, .banned = {token}}) != token);
        }
    const std::vector<float> none(100, -INFINITY);
    CHECK_THROWS(std::invalid_argument, "no token is left", choose(none));
    const std::vector<uint8_t> nothing(13);
    CHECK_THROWS(std::invalid_argument, "no token is left", choose(normal(100), {}, nothing));
    CHECK_THROWS(std::invalid_argument, "no token is left",
                 choose(normal(100), {}, std::span<const uint8_t>()));
    CHECK_THROWS(std::invalid_argument, "outside the vocabulary of 100",
                 choose(normal(100), {.forced = {100}}));
}

// What a device finds of a row, to the bit, in plain loops.
TEST(surveys_and_candidates) {
    if (!why_no_cuda().empty()) return;
    for (const int64_t n : {1, 64, 1000, 3000}) {
        OnDevice on;
        const auto shortlist = on.backend->make_shortlist(n);
        const std::vector<float> row = normal(n, 3.0f);
        const LogitChange changes[] = {{0, 1.5f}, {0, -0.25f}, {static_cast<int32_t>(n - 1), 0.1f}};
        const Shortlist::Row asked{on.floats(row), std::span(changes).first(n > 1 ? 3 : 2), {}};
        shortlist->survey({&asked, 1});
        std::vector<float> right(static_cast<std::size_t>((n + 63) / 64 * 64), -INFINITY);
        std::ranges::copy(row, right.begin());
        right[0] = (right[0] + 1.5f) + -0.25f;
        if (n > 1) right[static_cast<std::size_t>(n - 1)] += 0.1f;
        CHECK(on.read(shortlist->changed(0), n) ==
              std::vector<float>(right.begin(), right.begin() + n));

        const Shortlist::Survey found = shortlist->surveyed(0);
        const float top = *std::ranges::max_element(right);
        CHECK(found.best.size() * 64 == right.size());
        for (std::size_t b = 0; b < found.best.size(); ++b) {
            const auto block = std::span(right).subspan(64 * b, 64);
            const auto best = std::ranges::max_element(block);
            CHECK(found.best[b] == *best);
            CHECK(found.first[b] == static_cast<int32_t>(64 * b) + (best - block.begin()));
        }
        CHECK(found.sums.size() == (found.best.size() + 15) / 16);
        for (std::size_t g = 0; g < found.sums.size(); ++g) {
            float sums[64] = {}, products[64] = {};
            for (std::size_t i = 1024 * g; i < std::min(right.size(), 1024 * (g + 1)); ++i) {
                const float power = exponent_of(right[i], top, 1.0f);
                const float weight = logit_weight(power), product = weight * power;
                sums[i % 64] += weight;
                products[i % 64] += product;
                CHECK(std::fabs(weight - std::exp(static_cast<double>(power))) <= 2e-7 * weight);
            }
            for (float* lanes : {sums, products}) {
                for (int j = 0; j < 16; ++j)
                    lanes[j] = (lanes[j] + lanes[j + 16]) + (lanes[j + 32] + lanes[j + 48]);
                for (const int half : {8, 4, 2, 1})
                    for (int j = 0; j < half; ++j) lanes[j] += lanes[j + half];
            }
            CHECK(found.sums[g] == sums[0]);
            CHECK(found.products[g] == products[0]);
        }

        for (const float least : {top, top - 3.0f, -INFINITY, INFINITY}) {
            shortlist->gather({&least, 1});
            const Shortlist::Candidates candidates = shortlist->gathered(0);
            std::vector<float> logits;
            std::vector<int32_t> tokens;
            for (std::size_t i = 0; i < right.size(); ++i)
                if (right[i] >= least && right[i] > -INFINITY) {
                    logits.push_back(right[i]);
                    tokens.push_back(static_cast<int32_t>(i));
                }
            CHECK(candidates.all);
            CHECK(std::ranges::equal(candidates.logits, logits));
            CHECK(std::ranges::equal(candidates.tokens, tokens));
        }
    }
}

#ifdef RWKV_EDGE_EMULATE

// --- the emulator sees what is wrong with a kernel ---

namespace {

struct Nothing {
    float* to;
};
using cuda::Gpu;

void racing(Nothing p) {
    SHARED(float, shared, 64);
    shared[threadIdx.x] = 1.0f;
    p.to[threadIdx.x] = shared[63 - threadIdx.x];  // without a barrier
}
void overwriting(Nothing p) {
    SHARED(float, shared, 64);
    shared[threadIdx.x] = 1.0f;
    __syncthreads();
    p.to[threadIdx.x] = shared[63 - threadIdx.x];
    shared[threadIdx.x] = 2.0f;  // another may still read it
}
void unwritten(Nothing p) {
    SHARED(float, shared, 64);
    if (threadIdx.x > 0) shared[threadIdx.x] = 1.0f;
    __syncthreads();
    p.to[threadIdx.x] = shared[0];
}
void missing_a_barrier(Nothing p) {
    if (threadIdx.x < 40) __syncthreads();
    p.to[threadIdx.x] = 0.0f;
}
void missing_an_exchange(Nothing p) {
    if (threadIdx.x != 7) p.to[threadIdx.x] = cuda::shuffle_xor(1.0f, 1);
}
void at_two_exchanges(Nothing p) {
    if (threadIdx.x % 2 == 0)
        p.to[threadIdx.x] = cuda::shuffle_xor(1.0f, 2);
    else
        p.to[threadIdx.x] = cuda::shuffle_xor(1.0f, 2);
}
void adding_up(Nothing p) {
    SHARED(float, partial, 2);
    p.to[threadIdx.x] = cuda::block_sum<2>(static_cast<float>(threadIdx.x), partial);
}

}  // namespace

TEST(the_emulator_sees_mistakes) {
    Gpu gpu(0);
    std::vector<float> out(64);
    const auto run = [&](void (*kernel)(Nothing)) {
        cuda::launch(gpu, kernel, {2}, 64, Nothing{out.data()});
    };
    CHECK_THROWS(std::logic_error, "a race: ", run(racing));
    CHECK_THROWS(std::logic_error, "a race: ", run(overwriting));
    CHECK_THROWS(std::logic_error, "not all threads reach", run(missing_a_barrier));
    CHECK_THROWS(std::logic_error, "not all threads reach", run(missing_an_exchange));
    CHECK_THROWS(std::logic_error, "other lanes", run(at_two_exchanges));
    run(unwritten);
    CHECK(std::isnan(out[5]));
    run(adding_up);
    CHECK(out == std::vector<float>(64, 63 * 64 / 2));
    CHECK_THROWS(std::logic_error, "a launch of", cuda::launch(gpu, adding_up, {1}, 65, Nothing{}));
}

// Whatever the order of threads and blocks, also between kernels of a step.
TEST(the_order_of_threads_changes_no_bit) {
    std::vector<float> first;
    for (const auto order :
         {emulator::Order::Up, emulator::Order::Down, emulator::Order::Shuffled}) {
        emulator::set_order(order);
        rng.seed(3);
        OnDevice on;
        const int64_t heads = 2, size = 64, n = heads * size, tokens = 5;
        const auto vectors = [&](int64_t count) { return on.floats(normal(count * n, 0.5f)); };
        float* states[] = {on.floats(normal(n * size + n)), on.floats(normal(n * size + n))};
        const Run runs[] = {{0, 4, states[0]}, {4, 1, states[1]}};
        const int32_t ids[5] = {}, outputs[] = {3, 4}, last[] = {0, 1};
        on.ops->begin({.ids = ids,
                       .outputs = outputs,
                       .last = last,
                       .runs = runs,
                       .n_logits = 2,
                       .memory = 0,
                       .whole = false});
        float *x = vectors(tokens), *before = vectors(tokens), *y = vectors(tokens);
        const Norm norm{vectors(1), vectors(1)};
        on.ops->shift({vectors(tokens), norm, 1e-5f, {runs, n * size}, x, before, n}, tokens);
        on.ops->wkv7({.state = {runs, 0},
                      .r = x,
                      .w = before,
                      .a = vectors(tokens),
                      .g = vectors(tokens),
                      .k = vectors(tokens),
                      .v = vectors(tokens),
                      .first_v = vectors(tokens),
                      .v_mix = vectors(tokens),
                      .k_k = vectors(1),
                      .k_a = vectors(1),
                      .r_k = vectors(1),
                      .norm = norm,
                      .eps = 1e-5f,
                      .y = y,
                      .heads = heads,
                      .size = size});
        const auto w = normal(n * n);
        const MatmulJob job{.w = on.backend->matrix({w.data(), Type::F32, n, n}),
                            .x = {y},
                            .y = vectors(tokens),
                            .residual = x};
        on.ops->matmul({&job, 1}, tokens);
        on.ops->end();
        auto found = on.read(x, tokens * n);
        for (const float* state : states) {
            const auto values = on.read(state, n * size + n);
            found.insert(found.end(), values.begin(), values.end());
        }
        for (const float v : found) CHECK(std::isfinite(v));
        const auto shortlist = on.backend->make_shortlist(3000);
        const Shortlist::Row row{on.floats(normal(3000)), {}, {}};
        shortlist->survey({&row, 1});
        for (const auto part : {shortlist->surveyed(0).sums, shortlist->surveyed(0).products})
            found.insert(found.end(), part.begin(), part.end());
        const float least = 1.0f;
        shortlist->gather({&least, 1});
        for (const auto token : shortlist->gathered(0).tokens)
            found.push_back(static_cast<float>(token));
        if (first.empty()) first = found;
        CHECK(found == first);
    }
    emulator::set_order(emulator::Order::Up);
}

#endif
