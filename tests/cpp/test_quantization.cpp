// SPDX-License-Identifier: Apache-2.0
// Encoders that search and GPTQ: their bytes do not depend on threads nor on which rows come
// together, and what they write errs as much as they say. Comparisons with other implementations
// are in tests/python/test_search.py and test_collect.py.
#include <cmath>
#include <random>

#include "check.h"
#include "gptq.h"
#include "gram.h"
#include "quant/search.h"
#include "quant/types.h"

using namespace rwkv_edge;

namespace {

using Floats = std::vector<float>;

Floats normals(unsigned seed, int64_t n) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    Floats out(static_cast<size_t>(n));
    for (float& v : out) v = normal(rng);
    return out;
}

// The mean of x x^T of `tokens` inputs whose columns go together, all of it.
Floats hessian_of(int64_t tokens, int64_t n) {
    Floats x = normals(7, tokens * n);
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t i = 1; i < n; ++i)
            x[static_cast<size_t>(t * n + i)] += 0.8f * x[static_cast<size_t>(t * n + i - 1)];
    Floats h(static_cast<size_t>(n * n));
    ThreadPool pool(2);
    add_outer_products(x.data(), tokens, n, h.data(), kernels(), pool);
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = i; j < n; ++j) {
            float& mean = h[static_cast<size_t>(i * n + j)];
            mean /= static_cast<float>(tokens);
            h[static_cast<size_t>(j * n + i)] = mean;
        }
    return h;
}

// tr (W - Q) H (W - Q)^T
double error_of(Type type, const Floats& w, const std::vector<uint8_t>& blocks, int64_t cols,
                const Floats& h) {
    Floats q(w.size());
    type_info(type).dequantize(blocks.data(), q.data(), std::ssize(q));
    double sum = 0;
    for (int64_t row = 0; row < std::ssize(w); row += cols)
        for (int64_t i = 0; i < cols; ++i) {
            double of_row = 0;
            for (int64_t j = 0; j < cols; ++j)
                of_row += static_cast<double>(h[static_cast<size_t>(i * cols + j)]) *
                          (w[static_cast<size_t>(row + j)] - q[static_cast<size_t>(row + j)]);
            sum += of_row * (w[static_cast<size_t>(row + i)] - q[static_cast<size_t>(row + i)]);
        }
    return sum;
}

constexpr Type kSearched[] = {Type::Q4_0, Type::Q4_1, Type::Q5_0, Type::Q5_1,
                              Type::Q3_K, Type::Q4_K, Type::Q5_K, Type::Q6_K};

}  // namespace

TEST(sums_of_outer_products_are_right_of_the_diagonal) {
    for (int64_t n : {1, 63, 64, 200})
        for (int64_t tokens : {0, 1, 37}) {
            const Floats x = normals(3, tokens * n), start = normals(4, n * n);
            Floats one = start, three = start;
            ThreadPool alone(1), together(3);
            add_outer_products(x.data(), tokens, n, one.data(), kernels(), alone);
            add_outer_products(x.data(), tokens / 2, n, three.data(), kernels(), together);
            add_outer_products(x.data() + tokens / 2 * n, tokens - tokens / 2, n, three.data(),
                               kernels(), together);
            for (int64_t i = 0; i < n; ++i)
                for (int64_t j = i; j < n; ++j) {
                    const auto at = static_cast<size_t>(i * n + j);
                    double right = start[at], size = std::fabs(right);
                    for (int64_t t = 0; t < tokens; ++t) {
                        const double product =
                            static_cast<double>(x[static_cast<size_t>(t * n + i)]) *
                            x[static_cast<size_t>(t * n + j)];
                        right += product;
                        size += std::fabs(product);
                    }
                    // The scalar level rounds each product and each sum, to half of 2^-23.
                    CHECK(std::fabs(one[at] - right) <=
                          static_cast<double>(tokens + 1) * 2 * 0x1p-24 * size);
                    CHECK(one[at] == three[at]);
                }
        }
}

TEST(rows_and_threads_do_not_know_each_other) {
    constexpr int64_t kRows = 70;  // a panel and a part of one
    for (const Type type : kSearched)
        for (int64_t cols : {256, 512}) {
            const Floats w = normals(5, kRows * cols), h = hessian_of(300, cols);
            const auto bytes = static_cast<size_t>(type_bytes(type, cols));
            std::vector<uint8_t> searched(kRows * bytes), found(searched), others(searched);
            ThreadPool alone(1), together(3);
            search_rows(type, w.data(), nullptr, kRows, cols, searched.data(), alone);
            search_rows(type, w.data(), nullptr, kRows, cols, others.data(), together);
            CHECK(searched == others);
            const auto quantize = [&](int64_t row, int64_t rows, uint8_t* to, ThreadPool& pool) {
                quantize_with_hessian(type, w.data() + row * cols, rows, cols, h.data(), 0.1f,
                                      to + static_cast<size_t>(row) * bytes, kernels(), pool);
            };
            quantize(0, kRows, found.data(), alone);
            quantize(0, 1, others.data(), together);
            quantize(1, kRows - 1, others.data(), together);
            CHECK(found == others);
            // 0.45 to 0.6 of it, by type, are seen.
            CHECK_CASE(
                error_of(type, w, found, cols, h) < 0.8 * error_of(type, w, searched, cols, h),
                type_info(type).name);
        }
}

TEST(hessians_that_are_refused) {
    const Floats w = normals(1, 256);
    std::vector<uint8_t> to(static_cast<size_t>(type_bytes(Type::Q4_K, 256)));
    ThreadPool pool(2);
    const auto refused = [&](const char* text, const Floats& h, float damp) {
        CHECK_THROWS(std::invalid_argument, text,
                     quantize_with_hessian(Type::Q4_K, w.data(), 1, 256, h.data(), damp, to.data(),
                                           kernels(), pool));
    };
    Floats h(256 * 256);
    refused("its diagonal is zero", h, 0.1f);
    h = hessian_of(300, 256);
    h[3] = std::nanf("");
    refused("hessian[0, 3] is nan", h, 0.1f);
    h[3] = 1e6f;
    refused("expected a symmetric matrix", h, 0.1f);
    h = hessian_of(300, 256);
    h[0] = -1;
    refused("hessian[0, 0] is -1", h, 0.1f);
    refused("not positive definite", hessian_of(20, 256), 0.0f);
}
