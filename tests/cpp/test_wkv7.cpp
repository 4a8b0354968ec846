// SPDX-License-Identifier: Apache-2.0
// The recurrence of RWKV-7 at the active kernel level: exact on small integers, within the
// roundings of each step, the same bits however a prompt is cut, and without drift.
#include "check.h"
#include "kernels/dispatch.h"
#include "matmul_case.h"

using namespace rwkv_edge;

namespace {

constexpr double kRounding = 0x1.0001p-24;  // a little more, for products of roundings

// Inputs of one head for some tokens.
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
};

// One step in double from a state in single precision, with a bound on what single precision may
// differ by:
//   S <- S diag(w) - (S kk)(kk a)^T + v k^T;  y = S r
// A sum over n keys takes n / 8 roundings in a lane, one of a product and three of the lanes. In a
// cell S w is rounded with its product and two sums, the second term once more for kk a, v k with
// its product and a sum.
struct Step {
    std::vector<double> state, state_bound, y, y_bound;
    std::vector<double> removed_bound;  // of S kk, by row

    Step(const Head& h, const std::vector<float>& before, int64_t t)
        : state(before.size()),
          state_bound(before.size()),
          y(static_cast<size_t>(h.size)),
          y_bound(y.size()),
          removed_bound(y.size()) {
        const auto n = static_cast<size_t>(h.size), at = static_cast<size_t>(t * h.stride);
        const double sum = (static_cast<double>(n) / 8 + 4) * kRounding;
        for (size_t i = 0; i < n; ++i) {
            double removed = 0, magnitude = 0;
            for (size_t j = 0; j < n; ++j) {
                const double term = double{before[i * n + j]} * h.kk[at + j];
                removed += term;
                magnitude += std::fabs(term);
            }
            removed_bound[i] = sum * magnitude;
            for (size_t j = 0; j < n; ++j) {
                const double replaced = double{h.kk[at + j]} * h.a[at + j];
                const double kept = double{before[i * n + j]} * h.w[at + j];
                const double added = double{h.v[at + i]} * h.k[at + j], r = h.r[at + j];
                double &s = state[i * n + j], &bound = state_bound[i * n + j];
                s = kept - removed * replaced + added;
                bound =
                    removed_bound[i] * std::fabs(replaced) +
                    kRounding * (3 * std::fabs(kept) + 2 * std::fabs(added) +
                                 4 * (std::fabs(removed) + removed_bound[i]) * std::fabs(replaced));
                y[i] += s * r;
                y_bound[i] += (bound + sum * (std::fabs(s) + bound)) * std::fabs(r);
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

// Heads of every size.
template <class Body>
void each_head(int64_t tokens, Body&& body) {
    for (int64_t size : {8, 16, 24, 32, 40, 64, 96, 128}) body(Head(size, size + 24, tokens));
}

std::vector<float> to_floats(const std::vector<double>& values) {
    return {values.begin(), values.end()};
}

}  // namespace

TEST(small_integers_give_the_exact_answer) {
    Random rng(1);
    each_head(2, [&](Head h) {
        fill_exactly(h, rng);
        const Step first(h, h.state, 0), second(h, to_floats(first.state), 1);
        Guarded state(h.size * h.size), y(h.stride * h.tokens);
        std::copy(h.state.begin(), h.state.end(), state.data());
        h.run(state.data(), y.data(), 0, h.tokens);
        CHECK(state.intact() && y.intact());
        for (int64_t i = 0; i < h.size * h.size; ++i)
            CHECK(state[i] == static_cast<float>(second.state[static_cast<size_t>(i)]));
        for (int64_t i = 0; i < h.stride * h.tokens; ++i) {
            const auto at = static_cast<size_t>(i % h.stride);
            if (i % h.stride < h.size)
                CHECK(y[i] == static_cast<float>((i < h.stride ? first : second).y[at]));
            else  // belongs to the other heads
                CHECK(same_bits(y[i], Guarded::kCanary));
        }
    });
}

TEST(each_step_is_within_its_roundings) {
    Random rng(2);
    each_head(40, [&](Head h) {
        fill_as_a_model(h, rng);
        std::vector<float> y(h.r.size());
        for (int64_t t = 0; t < h.tokens; ++t) {
            const Step right(h, h.state, t);
            h.run(h.state.data(), y.data(), t, t + 1);
            for (size_t i = 0; i < right.state.size(); ++i)
                CHECK(std::fabs(h.state[i] - right.state[i]) <= right.state_bound[i]);
            for (size_t i = 0; i < right.y.size(); ++i)
                CHECK(std::fabs(y[static_cast<size_t>(t * h.stride) + i] - right.y[i]) <=
                      right.y_bound[i]);
        }
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

// What rounding adds to a row of S in a step, later steps transform as they do the row itself, by
//   A = diag(w) - kk (kk a)^T.
// If rounding is random, with the bounds of a step as deviations, the covariance C of a row's
// errors follows C <- A^T C A + that of the step.
TEST(no_drift_over_4096_steps) {
    Random rng(4);
    const int64_t size = 64, steps = 4096;
    const auto n = static_cast<size_t>(size);
    Head h(size, size, steps);
    fill_as_a_model(h, rng);
    std::vector<double> exact(n * n, 0.0), covariance(n * n, 0.0), image(n), replaced(n);
    std::vector<float> y(h.r.size());
    double worst = 0, allowed = 0;
    for (int64_t t = 0; t < steps; ++t) {
        const float* in_w = &h.w[static_cast<size_t>(t) * n];
        const float* in_kk = &h.kk[static_cast<size_t>(t) * n];
        const Step step(h, h.state, t);
        for (size_t i = 0; i < n; ++i) {
            double removed = 0;
            for (size_t j = 0; j < n; ++j) removed += exact[i * n + j] * in_kk[j];
            for (size_t j = 0; j < n; ++j) {
                const size_t at = static_cast<size_t>(t) * n;
                replaced[j] = double{in_kk[j]} * h.a[at + j];
                exact[i * n + j] = exact[i * n + j] * in_w[j] - removed * replaced[j] +
                                   double{h.v[at + i]} * h.k[at + j];
            }
        }
        double along = 0;  // kk^T C kk
        for (size_t i = 0; i < n; ++i) {
            image[i] = 0;
            for (size_t j = 0; j < n; ++j) image[i] += covariance[i * n + j] * in_kk[j];
            along += image[i] * in_kk[i];
        }
        for (size_t i = 0; i < n; ++i)
            for (size_t j = 0; j < n; ++j)
                covariance[i * n + j] =
                    in_w[i] * covariance[i * n + j] * in_w[j] - in_w[i] * image[i] * replaced[j] -
                    replaced[i] * image[j] * in_w[j] + along * replaced[i] * replaced[j];
        // the mean over rows; errors that a row has in common are taken as independent ones
        for (size_t i = 0; i < n * n; ++i)
            covariance[i % n * (n + 1)] +=
                step.state_bound[i] * step.state_bound[i] / static_cast<double>(n);
        h.run(h.state.data(), y.data(), t, t + 1);
        if (t % 64 != 63) continue;
        double square = 0, error = 0, expected = 0;
        for (size_t i = 0; i < n * n; ++i) {
            square += exact[i] * exact[i];
            error += (h.state[i] - exact[i]) * (h.state[i] - exact[i]);
        }
        for (size_t i = 0; i < n; ++i) expected += static_cast<double>(n) * covariance[i * (n + 1)];
        CHECK(error <= expected);
        worst = std::max(worst, std::sqrt(error / square));
        allowed = std::max(allowed, std::sqrt(expected / square));
    }
    std::printf("     relative error of the state after up to %d steps: %.2g of %.2g\n",
                static_cast<int>(steps), worst, allowed);
}
