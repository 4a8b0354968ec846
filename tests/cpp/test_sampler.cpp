// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>

#include "check.h"
#include "host_shortlist.h"
#include "sampler.h"

using namespace rwkv_edge;

namespace {

using Logits = std::vector<float>;

std::map<int32_t, double> frequencies(const SamplerOptions& options, const Logits& logits,
                                      int draws) {
    Sampler sampler(options);
    std::map<int32_t, double> out;
    for (int i = 0; i < draws; ++i) out[sampler.sample(logits)] += 1.0 / draws;
    return out;
}

std::set<int32_t> support(const SamplerOptions& options, const Logits& logits) {
    std::set<int32_t> out;
    for (const auto& [token, share] : frequencies(options, logits, 3000)) out.insert(token);
    return out;
}

// Probabilities .4 .3 .2 .1
const Logits kFour = {std::log(0.1f), std::log(0.4f), std::log(0.2f), std::log(0.3f)};

}  // namespace

TEST(temperature_0_is_the_most_likely) {
    Sampler greedy({.temperature = 0.0, .top_p = 1.0});
    for (int i = 0; i < 20; ++i) CHECK(greedy.sample(kFour) == 1);
    CHECK(greedy.sample(Logits{2, 5, 5, 5}) == 1);  // the first of equals
}

TEST(everything_off_draws_from_the_softmax) {
    const auto found = frequencies({.temperature = 1.0, .top_p = 1.0, .seed = 3}, kFour, 40000);
    const double right[] = {0.1, 0.4, 0.2, 0.3};
    // Five standard deviations of a share, sqrt(p (1 - p) / n) <= 0.0025
    for (int32_t t = 0; t < 4; ++t) CHECK(std::fabs(found.at(t) - right[t]) < 0.0125);
}

TEST(temperature_reshapes) {
    const auto found = frequencies({.temperature = 0.5, .top_p = 1.0, .seed = 4}, kFour, 40000);
    const double right[] = {0.01 / 0.30, 0.16 / 0.30, 0.04 / 0.30, 0.09 / 0.30};
    for (int32_t t = 0; t < 4; ++t) CHECK(std::fabs(found.at(t) - right[t]) < 0.0125);
}

TEST(top_p_keeps_the_smallest_set_that_reaches_it) {
    CHECK((support({.top_p = 0.35}, kFour) == std::set<int32_t>{1}));
    CHECK((support({.top_p = 0.45}, kFour) == std::set<int32_t>{1, 3}));
    CHECK((support({.top_p = 0.75}, kFour) == std::set<int32_t>{1, 2, 3}));
    CHECK((support({.top_p = 0.95}, kFour) == std::set<int32_t>{0, 1, 2, 3}));
    CHECK((support({.top_p = 1.0}, kFour) == std::set<int32_t>{0, 1, 2, 3}));
    // The temperature does not move the border, and equals at it stay together.
    CHECK((support({.temperature = 50, .top_p = 0.45}, kFour) == std::set<int32_t>{1, 3}));
    CHECK((support({.top_p = 0.3}, Logits{0, 0, 0, -9}) == std::set<int32_t>{0, 1, 2}));
}

TEST(top_p_in_a_large_vocabulary) {
    std::mt19937 rng(1);
    std::normal_distribution<float> normal(0.0f, 3.0f);
    Logits logits(4099);
    for (float& l : logits) l = normal(rng);
    std::vector<int32_t> best(logits.size());
    std::iota(best.begin(), best.end(), 0);
    const auto logit = [&](int32_t token) { return logits[static_cast<std::size_t>(token)]; };
    std::sort(best.begin(), best.end(), [&](auto a, auto b) { return logit(a) > logit(b); });
    double total = 0.0, mass = 0.0;
    for (const float l : logits) total += std::exp(static_cast<double>(l));
    std::set<int32_t> right;
    for (std::size_t i = 0; mass < 0.5 * total; ++i) {
        right.insert(best[i]);
        mass += std::exp(static_cast<double>(logit(best[i])));
    }
    CHECK(right.size() > 10);
    CHECK(support({.top_p = 0.5}, logits) == right);
}

TEST(top_k_keeps_the_k_best) {
    CHECK((support({.top_k = 2, .top_p = 1.0}, kFour) == std::set<int32_t>{1, 3}));
    CHECK((support({.top_k = 1, .top_p = 1.0}, kFour) == std::set<int32_t>{1}));
    CHECK((support({.top_k = 99, .top_p = 1.0}, kFour) == std::set<int32_t>{0, 1, 2, 3}));
    CHECK((support({.top_k = 3, .top_p = 0.45}, kFour) == std::set<int32_t>{1, 3}));
}

TEST(small_temperatures_do_not_underflow) {
    for (double t : {1e-2, 1e-8, 1e-300}) {
        Sampler sampler({.temperature = t, .top_p = 1.0});
        CHECK(sampler.sample(Logits{0.1f, 0.2f, 0.15f}) == 1);
    }
}

TEST(a_large_vocabulary_with_top_p_1_is_not_greedy) {
    Logits logits(65536);
    for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(i % 7) * 0.1f;
    CHECK(frequencies({.top_p = 1.0}, logits, 200).size() > 150);
}

TEST(penalties_count_and_decay) {
    const SamplerOptions options{
        .temperature = 0, .presence_penalty = 1.0, .frequency_penalty = 0.5, .penalty_decay = 0.5};
    Sampler sampler(options);
    sampler.accept(0);
    // Token 0 stands at 10 - 1 - 0.5.
    CHECK(sampler.sample(Logits{10.0f, 8.51f}) == 1 && sampler.sample(Logits{10.0f, 8.49f}) == 0);
    sampler.accept(0);  // 1 * 0.5 + 1 occurrences
    CHECK(sampler.sample(Logits{10.0f, 8.26f}) == 1 && sampler.sample(Logits{10.0f, 8.24f}) == 0);
    sampler.accept(1);  // 0.75 occurrences of token 0, 1 of token 1
    CHECK(sampler.sample(Logits{10.0f, 10.13f}) == 1 && sampler.sample(Logits{10.0f, 10.12f}) == 0);
    Sampler other(options);
    other.accept(0, 0.0);  // weight 0: only its presence counts
    CHECK(other.sample(Logits{10.0f, 9.01f}) == 1 && other.sample(Logits{10.0f, 8.99f}) == 0);
}

TEST(banned_tokens_are_never_chosen) {
    CHECK(Sampler({.temperature = 0, .banned = {1, 99}}).sample(kFour) == 3);
    CHECK((support({.top_p = 1.0, .banned = {1, 3}}, kFour) == std::set<int32_t>{0, 2}));
    // What is left of .3 .2 .1
    CHECK((support({.top_p = 0.45, .banned = {1}}, kFour) == std::set<int32_t>{3}));
    CHECK_THROWS(std::invalid_argument, "no token is left",
                 Sampler({.banned = {0, 1}}).sample(Logits{1, 2}));
}

TEST(min_p_is_a_share_of_the_best) {
    CHECK((support({.top_p = 1.0, .min_p = 0.7}, kFour) == std::set<int32_t>{1, 3}));
    CHECK((support({.top_p = 1.0, .min_p = 0.3}, kFour) == std::set<int32_t>{1, 2, 3}));
    CHECK((support({.top_p = 1.0, .min_p = 1.0}, Logits{2, 1, 2}) == std::set<int32_t>{0, 2}));
    CHECK((support({.temperature = 100, .top_p = 1.0, .min_p = 0.7}, kFour) ==
           std::set<int32_t>{1, 3}));
}

TEST(typical_p_keeps_what_is_closest_to_the_expected_information) {
    // -sum p ln p = 1.280, and -ln p is 2.303, 0.916, 1.609, 1.204: the order is .3 .2 .4 .1
    CHECK((support({.top_p = 1.0, .typical_p = 0.2}, kFour) == std::set<int32_t>{3}));
    CHECK((support({.top_p = 1.0, .typical_p = 0.45}, kFour) == std::set<int32_t>{2, 3}));
    CHECK((support({.top_p = 1.0, .typical_p = 0.85}, kFour) == std::set<int32_t>{1, 2, 3}));
    // Of what is left of it, .3 and .2, the others take the best.
    CHECK((support({.top_k = 1, .top_p = 1.0, .typical_p = 0.45}, kFour) == std::set<int32_t>{3}));
    CHECK((support({.top_p = 0.59, .typical_p = 0.45}, kFour) == std::set<int32_t>{3}));
    CHECK((support({.top_p = 0.61, .typical_p = 0.45}, kFour) == std::set<int32_t>{2, 3}));
    CHECK((support({.top_p = 1, .min_p = 0.7, .typical_p = 0.45}, kFour) == std::set<int32_t>{3}));
}

TEST(a_bias_is_added) {
    Sampler sampler({.temperature = 0, .logit_bias = {{0, 1.5}, {2, -9.0}, {77, 1.0}}});
    CHECK(sampler.sample(Logits{1.0f, 2.4f, 3.0f}) == 0);
    CHECK(sampler.sample(Logits{1.0f, 2.6f, 3.0f}) == 1);
}

TEST(forced_tokens_come_first) {
    Sampler sampler({.temperature = 0, .banned = {2}, .forced = {2, 0}});
    CHECK(sampler.sample(kFour) == 2 && sampler.sample(kFour) == 0 && sampler.sample(kFour) == 1);
    CHECK_THROWS(std::invalid_argument, "forced token 4 is outside the vocabulary of 4",
                 Sampler({.forced = {4}}).sample(kFour));
    CHECK_THROWS(std::invalid_argument, "outside", Sampler({.forced = {-1}}).sample(kFour));
    const uint8_t bits[] = {0b0111};
    CHECK_THROWS(std::invalid_argument, "forced token 3 is not allowed",
                 Sampler({.forced = {3}}).sample(kFour, bits));
}

TEST(what_is_not_allowed_is_never_chosen) {
    std::mt19937 rng(1);
    Logits logits(200);
    for (float& l : logits) l = static_cast<float>(rng() % 100) * 0.01f;
    std::vector<uint8_t> bits(25, 0);
    std::set<int32_t> right;
    for (const int32_t token : {3, 8, 9, 63, 64, 190}) {
        bits[static_cast<std::size_t>(token / 8)] |= static_cast<uint8_t>(1 << token % 8);
        right.insert(token);
    }
    for (int32_t token = 80; token < 96; ++token) right.insert(token);
    bits[10] = bits[11] = 0xff;
    std::set<int32_t> found;
    Sampler sampler({.top_p = 1.0});
    for (int i = 0; i < 3000; ++i) found.insert(sampler.sample(logits, bits));
    CHECK(found == right);
    // Tokens beyond the bits are not allowed either.
    const std::span<const uint8_t> few(bits.data(), 1);
    CHECK(sampler.sample(logits, few) == 3);
    CHECK_THROWS(std::invalid_argument, "no token is left",
                 sampler.sample(logits, std::span<const uint8_t>{}));
}

TEST(penalties_look_back_through_a_window) {
    Sampler sampler({.temperature = 0,
                     .presence_penalty = 1.0,
                     .frequency_penalty = 0.5,
                     .penalty_decay = 0.5,
                     .penalty_window = 2});
    const auto stands_at = [&](float value) {
        return sampler.sample(Logits{10.0f, value + 0.01f, -99}) == 1 &&
               sampler.sample(Logits{10.0f, value - 0.01f, -99}) == 0;
    };
    sampler.accept(0);
    sampler.accept(0);
    CHECK(stands_at(10.0f - 1.0f - 0.5f * 1.5f));
    sampler.accept(2);  // the first occurrence is out of the window, the second counts 0.5
    CHECK(stands_at(10.0f - 1.0f - 0.5f * 0.5f));
    sampler.accept(2);
    CHECK(stands_at(10.0f));
}

TEST(many_candidates) {
    // Where almost all tokens are needed: equal ones, and a line of different ones
    for (const float step : {0.0f, 1e-4f}) {
        Logits logits(65536);
        for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(i) * step;
        double total = 0.0, mass = 0.0;
        for (const float l : logits) total += std::exp(static_cast<double>(l - logits.back()));
        std::size_t border = logits.size();
        while (mass < 0.9 * total)
            mass += std::exp(static_cast<double>(logits[--border] - logits.back()));
        if (step == 0.0f) border = 0;  // equals stay together
        Sampler sampler({.top_p = 0.9});
        int32_t least = 65535;
        for (int i = 0; i < 1000; ++i) least = std::min(least, sampler.sample(logits));
        // The share of the tokens close to the border is so large that one of them was drawn.
        CHECK(least >= static_cast<int32_t>(border) - 1);
        CHECK(least <= static_cast<int32_t>(border) + 1000);
    }
}

TEST(logits_as_large_as_floats_are) {
    const float large = std::numeric_limits<float>::max();
    const Logits logits{-large, 0.0f, large, large, -INFINITY};
    for (const SamplerOptions& options :
         {SamplerOptions{.top_p = 1.0}, SamplerOptions{.top_k = 3, .top_p = 0.9},
          SamplerOptions{.temperature = 1e-300, .top_p = 1.0, .min_p = 1e-9},
          SamplerOptions{.top_p = 0.9, .typical_p = 0.5}})
        CHECK((support(options, logits) == std::set<int32_t>{2, 3}));
}

TEST(logprobs_of_a_token_and_of_the_best) {
    const auto near = [](double a, double b) { return std::fabs(a - b) < 1e-6; };
    const std::vector<Logprob> found = logprobs(kFour, 2, 3);
    CHECK(found.size() == 4);
    CHECK(found[0].token == 2 && near(found[0].logprob, std::log(0.2)));
    CHECK(found[1].token == 1 && near(found[1].logprob, std::log(0.4)));
    CHECK(found[2].token == 3 && near(found[2].logprob, std::log(0.3)));
    CHECK(found[3].token == 2 && near(found[3].logprob, std::log(0.2)));
    CHECK(logprobs(kFour, 0, 0).size() == 1 && logprobs(kFour, 0, 99).size() == 5);
    Logits equal(1000, 1.0f);
    equal[500] = 2.0f;
    const std::vector<Logprob> best = logprobs(equal, 999, 3);
    CHECK(best[1].token == 500 && best[2].token == 0 && best[3].token == 1);
    CHECK(std::isinf(logprobs(Logits{0.0f, -INFINITY}, 1, 0)[0].logprob));
    CHECK_THROWS(std::invalid_argument, "token 4 is outside the vocabulary of 4",
                 logprobs(kFour, 4, 0));
    CHECK_THROWS(std::invalid_argument, "logprobs is -1", logprobs(kFour, 0, -1));
    CHECK_THROWS(std::invalid_argument, "finite", logprobs(Logits{NAN, 0.0f}, 1, 0));
    CHECK_THROWS(std::invalid_argument, "finite", logprobs(Logits{-INFINITY}, 0, 0));
}

TEST(the_seed_decides) {
    const auto draw = [](uint64_t seed) {
        Sampler sampler({.top_p = 1.0, .seed = seed});
        std::vector<int32_t> out;
        for (int i = 0; i < 50; ++i) out.push_back(sampler.sample(kFour));
        return out;
    };
    CHECK(draw(7) == draw(7) && draw(7) != draw(8));
}

TEST(options_out_of_range_are_refused) {
    CHECK_THROWS(std::invalid_argument, "temperature is -1", Sampler({.temperature = -1}));
    CHECK_THROWS(std::invalid_argument, "temperature", Sampler({.temperature = NAN}));
    CHECK_THROWS(std::invalid_argument, "top_p is 1.5", Sampler({.top_p = 1.5}));
    CHECK_THROWS(std::invalid_argument, "top_k is -1", Sampler({.top_k = -1}));
    CHECK_THROWS(std::invalid_argument, "penalty_decay", Sampler({.penalty_decay = 1.1}));
    CHECK_THROWS(std::invalid_argument, "presence_penalty",
                 Sampler({.presence_penalty = INFINITY}));
    CHECK_THROWS(std::invalid_argument, "min_p is nan", Sampler({.min_p = NAN}));
    CHECK_THROWS(std::invalid_argument, "typical_p is 2", Sampler({.typical_p = 2}));
    CHECK_THROWS(std::invalid_argument, "penalty_window is -1", Sampler({.penalty_window = -1}));
    CHECK_THROWS(std::invalid_argument, "logit_bias of token 3 is inf, expected -1000 to 1000",
                 Sampler({.logit_bias = {{3, INFINITY}}}));
}

TEST(logits_without_a_maximum_are_refused) {
    Sampler sampler(SamplerOptions{});
    CHECK_THROWS(std::invalid_argument, "finite", sampler.sample(Logits{0.0f, NAN}));
    CHECK_THROWS(std::invalid_argument, "-inf", sampler.sample(Logits{-INFINITY, -INFINITY}));
    CHECK_THROWS(std::invalid_argument, "finite", sampler.sample(Logits{0.0f, INFINITY}));
    CHECK_THROWS(std::invalid_argument, "no token is left", sampler.sample(Logits{}));
    CHECK(sampler.sample(Logits{-INFINITY, 0.0f}) == 1);  // single tokens may be banned
}

namespace {

Logits normal(std::mt19937& rng, std::size_t n, float spread) {
    std::normal_distribution<float> values(0.0f, spread);
    Logits logits(n);
    for (float& l : logits) l = values(rng);
    return logits;
}

std::vector<std::pair<int32_t, double>> biases(int32_t count) {
    std::vector<std::pair<int32_t, double>> out;
    for (int32_t token = 0; token < count; ++token) out.emplace_back(token, 0.5 * token);
    return out;
}

// What takes each of the sampler's ways: nothing cut, each option alone and with others, the best
// token, one that is forced, more changes than a shortlist has room for.
const std::vector<SamplerOptions> kWays = {
    {.top_p = 1.0},
    {.top_p = 0.7},
    {.temperature = 0.0},
    {.top_k = 1},
    {.top_k = 5, .top_p = 1.0},
    {.top_p = 1.0, .min_p = 0.1},
    {.top_p = 1.0, .typical_p = 0.6},
    {.temperature = 1.5, .top_k = 40, .top_p = 0.9, .min_p = 0.01, .typical_p = 0.95},
    {.top_p = 0.8, .presence_penalty = 0.5, .frequency_penalty = 0.5, .penalty_window = 6},
    {.top_p = 0.8, .logit_bias = {{0, 1.0}, {2, -1.0}, {0, 0.25}}, .banned = {1}},
    {.top_p = 0.8, .forced = {3, 0}},
    {.top_p = 0.8, .logit_bias = biases(9)},
};

}  // namespace

// One by one and together, however the device shortens the vocabulary.
TEST(choices_from_a_shortlist_are_those_from_the_logits) {
    std::mt19937 rng(7);
    for (const std::size_t n : {4u, 63u, 64u, 65u, 1024u, 1100u, 5000u}) {
        HostShortlist shortlist(static_cast<int64_t>(n));
        std::vector<Logits> rows;
        for (const float spread : {0.01f, 1.0f, 4.0f}) rows.push_back(normal(rng, n, spread));
        rows.push_back(normal(rng, n, 1.0f));
        for (float& l : rows.back()) l = std::round(2 * l);  // many are equal
        std::vector<uint8_t> allowed((n + 7) / 8);
        for (uint8_t& bits : allowed) bits = static_cast<uint8_t>(rng() | 13);
        std::vector<Sampler> here, there;
        for (SamplerOptions options : kWays) {
            options.seed = rng();
            here.emplace_back(options);
            there.emplace_back(options);
        }
        for (std::size_t step = 0; step < 12; ++step) {
            std::vector<Choice> choices;
            for (std::size_t i = 0; i < there.size(); ++i) {
                choices.push_back({&there[i], rows[(step + i) % rows.size()].data()});
                if (step % 3 == 1) choices.back().allowed = allowed;
            }
            std::vector<int32_t> tokens(choices.size());
            if (step % 2 == 0)
                sample(shortlist, choices, tokens);
            else
                for (std::size_t i = 0; i < choices.size(); ++i)
                    sample(shortlist, {&choices[i], 1}, {&tokens[i], 1});
            for (std::size_t i = 0; i < choices.size(); ++i) {
                const Logits& row = rows[(step + i) % rows.size()];
                const int32_t right = here[i].sample(row, choices[i].allowed);
                CHECK_CASE(tokens[i] == right && here[i].seed() == there[i].seed(),
                           std::to_string(n) + ", way " + std::to_string(i) + ", step " +
                               std::to_string(step));
                here[i].accept(right);
                there[i].accept(right);
            }
        }
    }
}

TEST(a_shortlist_refuses_what_the_logits_do) {
    HostShortlist shortlist(100);
    const auto choose = [&](const Logits& row, const SamplerOptions& options = {},
                            std::optional<std::span<const uint8_t>> allowed = {}) {
        Sampler sampler(options);
        const Choice choice{&sampler, row.data(), allowed};
        int32_t token = -1;
        sample(shortlist, {&choice, 1}, {&token, 1});
        return token;
    };
    std::mt19937 rng(8);
    for (const float wrong : {NAN, INFINITY})
        for (const std::size_t at : {0u, 70u, 99u}) {
            Logits row = normal(rng, 100, 1.0f);
            row[at] = wrong;
            const auto token = static_cast<int32_t>(at);
            CHECK_THROWS(std::invalid_argument, "no finite maximum", choose(row));
            CHECK(choose(row, {.banned = {token}}) != token);
        }
    CHECK_THROWS(std::invalid_argument, "no token is left", choose(Logits(100, -INFINITY)));
    CHECK_THROWS(std::invalid_argument, "no token is left",
                 choose(Logits(100), {}, std::span<const uint8_t>()));
    CHECK_THROWS(std::invalid_argument, "forced token 100 is outside the vocabulary of 100",
                 choose(Logits(100), {.forced = {100}}));
}
