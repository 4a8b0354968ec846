// SPDX-License-Identifier: Apache-2.0
// The recurrence of RWKV-4 at the active kernel level: exact where every exponential is 0 or 1,
// within its roundings for exponents far beyond what exp() can hold, the same bits however the work
// is cut.
#include "check.h"
#include "kernels/dispatch.h"
#include "matmul_case.h"

using namespace rwkv_edge;

namespace {

constexpr double kRounding = 0x1p-24;
constexpr float kFresh = -1e30f;  // p of a new session

using Floats = std::vector<float>;

struct Channels {
    int64_t n, stride, tokens;
    Floats a, b, p, w, u, k, v;

    Channels(int64_t count, int64_t step, int64_t n_tokens)
        : n(count), stride(step), tokens(n_tokens) {
        for (Floats* each : {&a, &b, &w, &u}) each->assign(static_cast<size_t>(n), 0.0f);
        p.assign(static_cast<size_t>(n), kFresh);
        for (Floats* each : {&k, &v}) each->assign(static_cast<size_t>(stride * tokens), 0.0f);
    }

    // Channels [first, last) of tokens [from, to).
    void run(float* as, float* bs, float* ps, float* y, int64_t from, int64_t to, int64_t first,
             int64_t last) const {
        const int64_t at = from * stride + first;
        kernels().wkv4({as + first, bs + first, ps + first, &w[0] + first, &u[0] + first,
                        &k[0] + at, &v[0] + at, y + at, last - first, stride, to - from});
    }
    void run(Floats& y, int64_t from, int64_t to) {
        run(a.data(), b.data(), p.data(), y.data(), from, to, 0, n);
    }
};

// One channel in double, and how far single precision may be from it. `size` is the numerator with
// |v| for v. The bounds follow the errors step by step: a sum of exponents x is rounded by
// kRounding * |x|, which scales its exponential; exp() itself takes 4 roundings, the products and
// the sum 2 more; exponents below -87 may count as -87.
struct Exact {
    double a, b, p, size, p_bound = 0, a_bound = 0, b_bound = 0, y = 0, y_bound = 0;

    static constexpr double kLeast = 2e-38;  // e^-87 and what lies below

    Exact(const Channels& c, size_t i) : a(c.a[i]), b(c.b[i]), p(c.p[i]), size(std::fabs(c.a[i])) {}

    struct Sums {
        double a, b, size, a_bound, b_bound;
    };
    // The sums with one more token, all weights divided by e^q with q the larger exponent.
    Sums add(double past_exponent, double past_rounded, double k, double k_rounded,
             double v) const {
        const double q = std::max(past_exponent, k);
        const double past = std::exp(past_exponent - q), now = std::exp(k - q);
        const double past_error =
            kRounding * (past_rounded + std::fabs(past_exponent - q) + 6) * past + kLeast;
        const double now_error = kRounding * (k_rounded + std::fabs(k - q) + 6) * now + kLeast;
        return {past * a + now * v, past * b + now, past * size + now * std::fabs(v),
                past * a_bound + past_error * size + now_error * std::fabs(v),
                past * b_bound + past_error * b + now_error};
    }

    void step(double w, double u, double k, double v) {
        const Sums out = add(p, 0, u + k, std::fabs(u + k), v);
        y = out.a / out.b;
        y_bound =
            1.001 * (out.a_bound + std::fabs(y) * out.b_bound) / out.b + kRounding * std::fabs(y);
        const Sums next = add(p + w, std::fabs(p + w), k, 0, v);
        p_bound = p + w > k ? p_bound + kRounding * std::fabs(p + w) : 0;
        p = std::max(p + w, k);
        a = next.a, b = next.b, size = next.size;
        a_bound = 1.001 * next.a_bound, b_bound = 1.001 * next.b_bound;
    }
};

// k up to +-100, u + k from -132 to +120, decays from e^-0.0003 to e^-20 a step.
void fill_widely(Channels& c, Random& rng, float k_limit) {
    std::uniform_real_distribution<float> k(-k_limit, k_limit), u(-32, 20), rate(-8, 3);
    std::normal_distribution<float> normal;
    for (float& x : c.w) x = -std::exp(rate(rng));
    for (float& x : c.u) x = u(rng);
    for (float& x : c.k) x = k(rng);
    for (float& x : c.v) x = normal(rng);
}

// Runs all tokens of all channels against Exact; returns the worst error of an output, as a share
// of the largest |v|.
double compare(Channels c) {
    std::vector<Exact> right;
    for (size_t i = 0; i < c.a.size(); ++i) right.emplace_back(c, i);
    Floats y(c.k.size());
    double worst = 0, largest = 0;
    for (float v : c.v) largest = std::max<double>(largest, std::fabs(v));
    for (int64_t t = 0; t < c.tokens; ++t) {
        c.run(y, t, t + 1);
        for (size_t i = 0; i < c.a.size(); ++i) {
            const size_t at = static_cast<size_t>(t * c.stride) + i;
            Exact& e = right[i];
            e.step(c.w[i], c.u[i], c.k[at], c.v[at]);
            CHECK(std::isfinite(y[at]) && std::isfinite(c.a[i]) && std::isfinite(c.b[i]));
            CHECK(std::fabs(y[at] - e.y) <= e.y_bound);
            CHECK(std::fabs(c.p[i] - e.p) <= e.p_bound);
            const double scale = std::exp(c.p[i] - e.p);  // both sums are divided by their own e^p
            CHECK(std::fabs(c.a[i] * scale - e.a) <= e.a_bound + 1.01 * e.p_bound * e.size);
            CHECK(std::fabs(c.b[i] * scale - e.b) <= e.b_bound + 1.01 * e.p_bound * e.b);
            worst = std::max(worst, std::fabs(y[at] - e.y) / largest);
        }
    }
    return worst;
}

}  // namespace

// Exponents are multiples of 1000, so each exponential is 0 (as good as) or 1 and all sums are of
// small integers.
TEST(small_integers_give_the_exact_answer) {
    Random rng(1);
    const auto thousands = [&](int low, int high) {
        return 1000.0f * static_cast<float>(random_int(rng, low, high));
    };
    for (int64_t n : {8, 16, 24, 72, 136}) {
        Channels c(n, n + 24, 6);
        for (size_t i = 0; i < c.a.size(); ++i) {
            c.a[i] = static_cast<float>(random_int(rng, 1, 9));
            c.b[i] = static_cast<float>(random_int(rng, 1, 9));
            c.p[i] = thousands(-1, 1);
            c.w[i] = thousands(-1, 0);
            c.u[i] = thousands(-1, 1);
        }
        for (float& x : c.k) x = thousands(-1, 1);
        for (float& x : c.v) x = static_cast<float>(random_int(rng, 1, 9));
        Guarded a(n), b(n), p(n), y(c.stride * c.tokens);
        std::copy(c.a.begin(), c.a.end(), a.data());
        std::copy(c.b.begin(), c.b.end(), b.data());
        std::copy(c.p.begin(), c.p.end(), p.data());
        c.run(a.data(), b.data(), p.data(), y.data(), 0, c.tokens, 0, n);
        CHECK(a.intact() && b.intact() && p.intact() && y.intact());
        for (int64_t i = 0; i < c.stride; ++i) {
            for (int64_t t = 0; i >= n && t < c.tokens; ++t)  // no channel of ours
                CHECK(same_bits(y[t * c.stride + i], Guarded::kCanary));
            if (i >= n) continue;
            const auto at = static_cast<size_t>(i);
            Exact right(c, at);
            for (int64_t t = 0; t < c.tokens; ++t) {
                const auto token = static_cast<size_t>(t * c.stride) + at;
                right.step(c.w[at], c.u[at], c.k[token], c.v[token]);
                CHECK(y[t * c.stride + i] == static_cast<float>(right.y));
            }
            CHECK(a[i] == static_cast<float>(right.a) && b[i] == static_cast<float>(right.b));
            CHECK(p[i] == static_cast<float>(right.p));
        }
    }
}

TEST(wide_exponents_stay_within_their_roundings) {
    Random rng(2);
    for (int64_t n : {8, 24, 64, 104}) {
        for (float limit : {1.0f, 10.0f, 100.0f}) {
            Channels c(n, n + 8, 60);
            fill_widely(c, rng, limit);
            compare(c);
        }
    }
}

// The first token's output is its own v, whatever its exponent: even where exp(u + k) is 0 or
// overflows.
TEST(a_fresh_channel_answers_with_v) {
    for (float k : {-132.0f, -104.0f, -88.0f, -87.0f, -1.0f, 0.0f, 1.0f, 88.0f, 89.0f, 120.0f}) {
        Channels c(8, 8, 1);
        c.u.assign(8, 0.25f * k);
        c.k.assign(8, 0.75f * k);
        for (size_t i = 0; i < 8; ++i) {
            c.w[i] = -std::exp(static_cast<float>(i) - 6);
            c.v[i] = static_cast<float>(i) - 3.7f;
        }
        Floats y(8);
        c.run(y, 0, 1);
        CHECK(y == c.v && c.a == c.v && c.b == Floats(8, 1.0f) && c.p == c.k);
    }
}

TEST(no_drift_over_4096_steps) {
    Random rng(3);
    Channels c(64, 64, 4096);
    fill_widely(c, rng, 4.0f);
    // On this grid exponents are exact; a decay that is off the grid of p is rounded the same way
    // each time, so its error grows with the steps until a larger k comes.
    for (Floats* each : {&c.w, &c.k})
        for (float& x : *each) x = std::floor(x * 1024) / 1024;
    const double worst = compare(c);
    std::printf("     largest error of an output over 4096 steps: %.2g of the largest |v|\n",
                worst);
    // At most 4096 steps remembered, a rounding each, at random: 2^-24 * sqrt(4096).
    CHECK(worst < 64 * kRounding);
}

TEST(cuts_in_time_and_between_channels_change_no_bit) {
    Random rng(4);
    Channels c(72, 80, 21);
    fill_widely(c, rng, 30.0f);
    Channels parts = c;
    Floats y(c.k.size()), y_parts(y.size());
    c.run(y, 0, 21);
    for (int64_t t = 0, step = 1; t < 21; t += step, step = step % 5 + 1)
        for (int64_t i = 0; i < 72; i += 24)
            parts.run(parts.a.data(), parts.b.data(), parts.p.data(), y_parts.data(), t,
                      std::min<int64_t>(t + step, 21), i, i + 24);
    CHECK(y == y_parts && c.a == parts.a && c.b == parts.b && c.p == parts.p);
}

TEST(no_number_stays_visible_in_its_channel) {
    Random rng(5);
    for (bool in_k : {true, false}) {
        Channels c(16, 16, 4);
        fill_widely(c, rng, 3.0f);
        (in_k ? c.k : c.v)[16 + 5] = NAN;  // token 1, channel 5
        Floats y(c.k.size());
        c.run(y, 0, 4);
        for (size_t i = 0; i < y.size(); ++i) CHECK(std::isnan(y[i]) == (i % 16 == 5 && i >= 16));
    }
}
