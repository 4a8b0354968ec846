// SPDX-License-Identifier: Apache-2.0
// What a choice costs: microseconds per token for the usual settings, on three kinds of logits of
// the World vocabulary.
//
//     bench_sampling [name of a setting]
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "sampler.h"

using namespace rwkv_edge;

namespace {

constexpr std::size_t kVocab = 65536;
constexpr int kRows = 16, kRounds = 41;

using Row = std::vector<float>;

// The r-th likeliest token has a probability like (r + 3)^-exponent, as in text; at random places.
std::vector<Row> zipf(double exponent) {
    std::mt19937 rng(1);
    std::vector<Row> rows(kRows, Row(kVocab));
    for (Row& row : rows) {
        for (std::size_t r = 0; r < kVocab; ++r)
            row[r] = static_cast<float>(12.0 - exponent * std::log(static_cast<double>(r) + 3.0));
        std::shuffle(row.begin(), row.end(), rng);
    }
    return rows;
}

std::vector<Row> normal() {
    std::mt19937 rng(1);
    std::normal_distribution<float> noise;
    std::vector<Row> rows(kRows, Row(kVocab));
    for (Row& row : rows)
        for (float& logit : row) logit = noise(rng);
    return rows;
}

// The best of the rounds: others use this machine too
double microseconds(const SamplerOptions& options, const std::vector<Row>& rows) {
    Sampler sampler(options);
    std::mt19937 rng(2);
    for (int i = 0; i < 1000; ++i) sampler.accept(static_cast<int32_t>(rng() % kVocab));
    std::vector<double> times;
    volatile int32_t sink = 0;
    for (int round = 0; round < kRounds; ++round) {
        const auto start = std::chrono::steady_clock::now();
        for (const Row& row : rows) {
            const int32_t token = sampler.sample(row);
            sampler.accept(token);
            sink = sink + token;
        }
        const std::chrono::duration<double, std::micro> spent =
            std::chrono::steady_clock::now() - start;
        times.push_back(spent.count() / kRows);
    }
    std::sort(times.begin(), times.end());
    return times[0];
}

}  // namespace

int main(int argc, char** argv) {
    struct Setting {
        const char* name;
        SamplerOptions options;
    };
    const std::vector<int32_t> banned{65530, 65531, 65532, 65533, 65534, 65535};
    const Setting settings[] = {
        {"greedy", {.temperature = 0.0, .top_p = 1.0, .banned = banned}},
        {"default", {.temperature = 1.0, .top_p = 0.3, .banned = banned}},
        {"top_p 0.5", {.temperature = 0.8, .top_p = 0.5, .banned = banned}},
        {"top_p 0.9, penalties",
         {.top_p = 0.9, .presence_penalty = 0.2, .frequency_penalty = 0.2, .banned = banned}},
        {"top_k 50", {.top_k = 50, .top_p = 1.0, .banned = banned}},
#ifndef BEFORE
        {"min_p 0.05", {.top_p = 1.0, .min_p = 0.05, .banned = banned}},
        {"typical_p 0.9", {.top_p = 1.0, .typical_p = 0.9, .banned = banned}},
#endif
        {"all tokens", {.top_p = 1.0, .banned = banned}},
    };
    const std::vector<Row> texts = zipf(2.0), tails = zipf(1.2), flat = normal();
    std::printf("%-22s %10s %10s %10s   us per token\n", "", "zipf 2.0", "zipf 1.2", "normal");
    for (const auto& [name, options] : settings)
        if (argc < 2 || std::strcmp(name, argv[1]) == 0)
            std::printf("%-22s %10.1f %10.1f %10.1f\n", name, microseconds(options, texts),
                        microseconds(options, tails), microseconds(options, flat));
}
