// SPDX-License-Identifier: Apache-2.0
// The recurrence of RWKV-5 and RWKV-6 at the active kernel level: exact on small integers, within
// the roundings of its sums, the same bits however a prompt is cut, and without drift.
#include "check.h"
#include "kernels/dispatch.h"
#include "matmul_case.h"

using namespace rwkv_edge;

namespace {

constexpr double kRounding = 0x1p-24;

// Inputs of one head for some tokens. w_stride 0 is RWKV-5: the same decays for every token.
struct Head {
    int64_t size, stride, w_stride, tokens;
    std::vector<float> state, r, w, k, v;

    Head(int64_t head_size, int64_t step, int64_t w_step, int64_t n_tokens)
        : size(head_size), stride(step), w_stride(w_step), tokens(n_tokens) {
        state.assign(static_cast<size_t>(size * size), 0.0f);
        for (std::vector<float>* input : {&r, &w, &k, &v})
            input->assign(static_cast<size_t>(stride * tokens), 0.0f);
    }

    void run(float* s, float* y, int64_t from, int64_t to) const {
        const int64_t at = from * stride;
        kernels().wkv6({s, &r[0] + at, &w[0] + from * w_stride, &k[0] + at, &v[0] + at, y + at,
                        size, stride, w_stride, to - from});
    }
};

// The same recurrence in double, with a bound on what single precision may differ by:
//   y = S^T r;  S <- diag(w) S + k v^T
// A cell takes two roundings a step (of w S and of the sum; k v is rounded too) and its error
// decays with it; a sum over n keys takes n roundings.
struct Exact {
    std::vector<double> state, state_bound, y, y_bound;

    explicit Exact(const Head& h)
        : state(h.state.begin(), h.state.end()),
          state_bound(state.size(), 0.0),
          y(h.r.size(), 0.0),
          y_bound(h.r.size(), 0.0) {}

    void step(const Head& h, int64_t t) {
        const auto n = static_cast<size_t>(h.size), at = static_cast<size_t>(t * h.stride);
        const float* w = &h.w[static_cast<size_t>(t * h.w_stride)];
        for (size_t j = 0; j < n; ++j) y[at + j] = y_bound[at + j] = 0;
        for (size_t i = 0; i < n; ++i) {
            for (size_t j = 0; j < n; ++j) {
                double &s = state[i * n + j], &bound = state_bound[i * n + j];
                const double r = h.r[at + i], added = double{h.k[at + i]} * h.v[at + j];
                y[at + j] += r * s;
                y_bound[at + j] += std::fabs(r) * (bound + static_cast<double>(n) * kRounding *
                                                               (std::fabs(s) + bound));
                bound = w[i] * bound +
                        2 * kRounding * (w[i] * (std::fabs(s) + bound) + std::fabs(added));
                s = w[i] * s + added;
            }
        }
    }
};

void fill_exactly(Head& h, Random& rng) {
    for (std::vector<float>* input : {&h.state, &h.r, &h.k, &h.v})
        for (float& x : *input) x = static_cast<float>(random_int(rng, -2, 2));
    for (float& x : h.w) x = static_cast<float>(random_int(rng, 0, 1));
}

// Decays exp(-exp(x)) as models have them: from half a step to thousands of steps of memory.
void fill_as_a_model(Head& h, Random& rng) {
    std::normal_distribution<float> normal;
    for (std::vector<float>* input : {&h.r, &h.k, &h.v, &h.w})
        for (float& x : *input) x = normal(rng);
    for (float& x : h.w) x = std::exp(-std::exp(2.5f * x - 4));
}

// Heads of every size, with decays that change and decays that do not.
template <class Body>
void each_head(int64_t tokens, Body&& body) {
    for (int64_t size : {8, 16, 24, 32, 40, 64, 96, 128})
        for (int64_t changing : {0, 1}) {
            const int64_t stride = size + 24;
            body(Head(size, stride, changing * stride, tokens));
        }
}

}  // namespace

TEST(small_integers_give_the_exact_answer) {
    Random rng(1);
    each_head(3, [&](Head h) {
        fill_exactly(h, rng);
        Exact right(h);
        for (int64_t t = 0; t < h.tokens; ++t) right.step(h, t);
        Guarded state(h.size * h.size), y(h.stride * h.tokens);
        std::copy(h.state.begin(), h.state.end(), state.data());
        h.run(state.data(), y.data(), 0, h.tokens);
        CHECK(state.intact() && y.intact());
        for (int64_t i = 0; i < h.size * h.size; ++i)
            CHECK(state[i] == static_cast<float>(right.state[static_cast<size_t>(i)]));
        for (int64_t i = 0; i < h.stride * h.tokens; ++i) {
            const bool ours = i % h.stride < h.size;  // the rest belongs to the other heads
            CHECK(ours ? y[i] == static_cast<float>(right.y[static_cast<size_t>(i)])
                       : same_bits(y[i], Guarded::kCanary));
        }
    });
}

TEST(each_step_is_within_its_roundings) {
    Random rng(2);
    each_head(40, [&](Head h) {
        fill_as_a_model(h, rng);
        Exact right(h);
        std::vector<float> y(h.r.size());
        h.run(h.state.data(), y.data(), 0, h.tokens);
        for (int64_t t = 0; t < h.tokens; ++t) right.step(h, t);
        for (size_t i = 0; i < right.state.size(); ++i)
            CHECK(std::fabs(h.state[i] - right.state[i]) <= right.state_bound[i]);
        for (size_t i = 0; i < y.size(); ++i)
            CHECK(std::fabs(y[i] - right.y[i]) <= right.y_bound[i]);
    });
}

TEST(cuts_in_time_change_no_bit) {
    Random rng(3);
    each_head(21, [&](Head h) {
        fill_as_a_model(h, rng);
        std::vector<float> whole = h.state, parts = h.state, y(h.r.size()), y_parts(h.r.size());
        h.run(whole.data(), y.data(), 0, 21);
        for (int64_t t = 0, step = 1; t < 21; t += step, step = step % 5 + 1)
            h.run(parts.data(), y_parts.data(), t, std::min<int64_t>(t + step, 21));
        for (size_t i = 0; i < whole.size(); ++i) CHECK(same_bits(whole[i], parts[i]));
        for (size_t i = 0; i < y.size(); ++i) CHECK(same_bits(y[i], y_parts[i]));
    });
}

// A decay that does not change is the same decay for every token.
TEST(constant_decays_are_repeated_decays) {
    Random rng(4);
    Head constant(64, 64, 0, 30);
    fill_as_a_model(constant, rng);
    Head repeated = constant;
    repeated.w_stride = 64;
    for (size_t i = 64; i < repeated.w.size(); ++i) repeated.w[i] = repeated.w[i - 64];
    std::vector<float> y(constant.r.size()), y_repeated(y.size());
    constant.run(constant.state.data(), y.data(), 0, 30);
    repeated.run(repeated.state.data(), y_repeated.data(), 0, 30);
    CHECK(y == y_repeated && constant.state == repeated.state);
}

TEST(no_drift_over_4096_steps) {
    Random rng(5);
    for (int64_t w_stride : {0, 64}) {
        const int64_t size = 64, steps = 4096;
        Head h(size, size, w_stride, steps);
        fill_as_a_model(h, rng);
        Exact right(h);
        std::vector<float> y(h.r.size());
        double worst = 0;
        for (int64_t t = 0; t < steps; t += 64) {
            h.run(h.state.data(), y.data(), t, t + 64);
            for (int64_t i = t; i < t + 64; ++i) right.step(h, i);
            double square = 0, error = 0;
            for (size_t i = 0; i < right.state.size(); ++i) {
                const double difference = std::fabs(h.state[i] - right.state[i]);
                CHECK(difference <= right.state_bound[i]);
                square += right.state[i] * right.state[i];
                error += difference * difference;
            }
            worst = std::max(worst, std::sqrt(error / square));
        }
        std::printf("     relative error of the state after up to %d steps: %.2g\n",
                    static_cast<int>(steps), worst);
        // A cell that remembers n steps has walked n roundings at random: 2^-24 * sqrt(n), and no
        // cell has seen more than 4096.
        CHECK(worst < kRounding * 64);
    }
}
