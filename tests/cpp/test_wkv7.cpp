// SPDX-License-Identifier: Apache-2.0
// The recurrence of RWKV-7 at the active kernel level: exact on small integers, the same bits
// however a prompt is cut, and without drift over thousands of steps.
#include "check.h"
#include "kernels/dispatch.h"
#include "matmul_case.h"

using namespace rwkv_edge;

namespace {

// Inputs of one head for some tokens, and the same step in double.
struct Head {
    int64_t size, stride, tokens;
    std::vector<float> state, r, w, k, v, kk, a;

    Head(int64_t head_size, int64_t step, int64_t n_tokens)
        : size(head_size), stride(step), tokens(n_tokens) {
        state.assign(static_cast<size_t>(size * size), 0.0f);
        for (std::vector<float>* input : {&r, &w, &k, &v, &kk, &a})
            input->assign(static_cast<size_t>(stride * tokens), 0.0f);
    }

    void run(float* s, float* y, int64_t from, int64_t to) const {
        const int64_t at = from * stride;
        kernels().wkv7({s, &r[0] + at, &w[0] + at, &k[0] + at, &v[0] + at, &kk[0] + at, &a[0] + at,
                        y + at, size, stride, to - from});
    }

    // S <- S diag(w) - (S kk)(kk a)^T + v k^T;  y = S r
    void step64(std::vector<double>& s, std::vector<double>& y, int64_t t) const {
        const auto n = static_cast<size_t>(size), at = static_cast<size_t>(t * stride);
        for (size_t i = 0; i < n; ++i) {
            double removed = 0;
            for (size_t j = 0; j < n; ++j) removed += s[i * n + j] * kk[at + j];
            y[at + i] = 0;
            for (size_t j = 0; j < n; ++j) {
                double& cell = s[i * n + j];
                cell = cell * w[at + j] - removed * kk[at + j] * a[at + j] +
                       double{v[at + i]} * k[at + j];
                y[at + i] += cell * r[at + j];
            }
        }
    }
};

void fill_exactly(Head& h, Random& rng) {
    for (std::vector<float>* input : {&h.state, &h.r, &h.k, &h.v, &h.kk, &h.a})
        for (float& x : *input) x = static_cast<float>(random_int(rng, -1, 1));
    for (float& x : h.w) x = static_cast<float>(random_int(rng, 0, 1));
}

// The ranges of a real model: decays in (0.545, 1), kk of length one, a in (0, 1).
void fill_as_a_model(Head& h, Random& rng) {
    std::normal_distribution<float> normal;
    const auto n = static_cast<size_t>(h.size);
    for (std::vector<float>* input : {&h.r, &h.k, &h.v, &h.kk, &h.a, &h.w})
        for (float& x : *input) x = normal(rng);
    for (float& x : h.w) x = std::exp(-0.6065f / (1 + std::exp(3 - x)));
    for (float& x : h.a) x = 1 / (1 + std::exp(-x));
    for (int64_t t = 0; t < h.tokens; ++t) {
        float* kk = &h.kk[static_cast<size_t>(t * h.stride)];
        float square = 0;
        for (size_t j = 0; j < n; ++j) square += kk[j] * kk[j];
        for (size_t j = 0; j < n; ++j) kk[j] /= std::sqrt(square);
    }
}

}  // namespace

TEST(small_integers_give_the_exact_answer) {
    Random rng(1);
    for (int64_t size : {8, 16, 32, 64, 128}) {
        Head h(size, size + 24, 2);
        fill_exactly(h, rng);
        std::vector<double> s(h.state.begin(), h.state.end()), right(h.r.size());
        for (int64_t t = 0; t < h.tokens; ++t) h.step64(s, right, t);
        Guarded state(size * size), y(h.stride * h.tokens);
        std::copy(h.state.begin(), h.state.end(), state.data());
        h.run(state.data(), y.data(), 0, h.tokens);
        CHECK(state.intact() && y.intact());
        for (int64_t i = 0; i < size * size; ++i)
            CHECK(state[i] == static_cast<float>(s[static_cast<size_t>(i)]));
        for (int64_t i = 0; i < h.stride * h.tokens; ++i) {
            const bool ours = i % h.stride < size;  // the rest belongs to the other heads
            CHECK(ours ? y[i] == static_cast<float>(right[static_cast<size_t>(i)])
                       : same_bits(y[i], Guarded::kCanary));
        }
    }
}

TEST(cuts_in_time_change_no_bit) {
    Random rng(2);
    Head h(64, 128, 21);
    fill_as_a_model(h, rng);
    std::vector<float> whole = h.state, parts = h.state, y(h.r.size()), y_parts(h.r.size());
    h.run(whole.data(), y.data(), 0, 21);
    for (int64_t t = 0, step = 1; t < 21; t += step, step = step % 5 + 1)
        h.run(parts.data(), y_parts.data(), t, std::min<int64_t>(t + step, 21));
    for (size_t i = 0; i < whole.size(); ++i) CHECK(same_bits(whole[i], parts[i]));
    for (size_t i = 0; i < y.size(); ++i) CHECK(same_bits(y[i], y_parts[i]));
}

TEST(no_drift_over_4096_steps) {
    Random rng(3);
    const int64_t size = 64, steps = 4096;
    Head h(size, size, steps);
    fill_as_a_model(h, rng);
    std::vector<double> s(h.state.size(), 0.0), right(h.r.size());
    std::vector<float> y(h.r.size());
    double worst = 0;
    for (int64_t t = 0; t < steps; t += 64) {
        h.run(h.state.data(), y.data(), t, t + 64);
        for (int64_t i = t; i < t + 64; ++i) h.step64(s, right, i);
        double square = 0, error = 0;
        for (size_t i = 0; i < s.size(); ++i) {
            square += s[i] * s[i];
            error += (h.state[i] - s[i]) * (h.state[i] - s[i]);
        }
        worst = std::max(worst, std::sqrt(error / square));
    }
    std::printf("     relative error of the state after up to %d steps: %.2g\n",
                static_cast<int>(steps), worst);
    // A step adds about a rounding (2^-24) per cell and the decays forget it within some 50 steps,
    // so the random walk settles near 2^-24 * sqrt(50) = 4e-7.
    CHECK(worst < 2e-6);
}
