// SPDX-License-Identifier: Apache-2.0
// The products of the active kernel level, every type. ctest runs this once per level.
#ifdef _WIN32
#include <windows.h>
#else
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <algorithm>

#include "check.h"
#include "kernels/dispatch.h"
#include "matmul_case.h"

using namespace rwkv_edge;

namespace {

std::vector<Type> matmul_types() {
    std::vector<Type> types;
    for (const TypeInfo& info : all_types())
        if (kernels().matmul[static_cast<int>(info.type)] != nullptr) types.push_back(info.type);
    return types;
}

void multiply(const MatmulArgs& args, Type type) { kernels().matmul[static_cast<int>(type)](args); }

// One block, three blocks, the widths of real models; ranks of LoRAs for the plain types.
std::vector<int64_t> widths(Type type) {
    if (is_plain(type)) return {1, 5, 8, 12, 20, 31, 32, 33, 96, 768, 2560};
    if (is_super(type)) return {256, 768, 2560};
    return {32, 96, 768, 2560};
}

// Some tiles or panels wide, and a rest.
int64_t odd_width(Type type) { return is_plain(type) ? 1100 : is_super(type) ? 1280 : 1120; }

// A copy of some bytes that ends where a page begins that nobody may read.
class AtPageEnd {
public:
    AtPageEnd(const void* data, int64_t bytes) {
#ifdef _WIN32
        const size_t page = 4096;
#else
        const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
#endif
        const auto n = static_cast<size_t>(bytes), used = (n + page - 1) / page * page;
        size_ = used + page;
#ifdef _WIN32
        DWORD before = 0;
        map_ = static_cast<char*>(
            VirtualAlloc(nullptr, size_, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE));
        CHECK(map_ != nullptr && VirtualProtect(map_ + used, page, PAGE_NOACCESS, &before) != 0);
#else
        map_ = static_cast<char*>(
            mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        CHECK(map_ != MAP_FAILED && mprotect(map_ + used, page, PROT_NONE) == 0);
#endif
        copy_ = static_cast<char*>(std::memcpy(map_ + used - n, data, n));
    }
    ~AtPageEnd() {
#ifdef _WIN32
        VirtualFree(map_, 0, MEM_RELEASE);
#else
        munmap(map_, size_);
#endif
    }
    AtPageEnd(const AtPageEnd&) = delete;
    AtPageEnd& operator=(const AtPageEnd&) = delete;
    const void* data() const { return copy_; }

private:
    char *map_, *copy_;
    size_t size_;
};

}  // namespace

TEST(every_type_has_a_product_or_goes_through_f32) {
    CHECK(matmul_types().size() >= 11);
    for (Type type : {Type::F32, Type::F16, Type::BF16, Type::Q8_0, Type::Q4_0, Type::Q4_1,
                      Type::Q5_0, Type::Q5_1, Type::Q4_K, Type::Q5_K, Type::Q6_K})
        CHECK(kernels().matmul[static_cast<int>(type)] != nullptr);
}

TEST(exact_inputs_give_the_exact_answer) {
    Random rng(1);
    for (Type type : matmul_types()) {
        for (int64_t cols : widths(type)) {
            for (int64_t rows : {1, 2, 3, 4, 5, 7, 8, 9, 16, 25}) {
                MatmulCase c(type, rows, cols, rows % 5 + 1);
                c.fill_exactly(rng);
                Guarded y(c.tokens * rows);
                multiply(c.args(y.data(), rows), type);
                CHECK_CASE(y.intact(), c.name());
                for (int64_t t = 0; t < c.tokens; ++t)
                    for (int64_t r = 0; r < rows; ++r)
                        CHECK_CASE(y[t * rows + r] == static_cast<float>(c.answer(r, t).value),
                                   c.name());
            }
        }
    }
}

TEST(rounding_errors_stay_within_their_bound) {
    Random rng(2);
    for (Type type : matmul_types()) {
        for (int64_t cols : widths(type)) {
            MatmulCase c(type, 9, cols, 3);
            c.fill_normally(rng);
            Guarded y(c.tokens * c.rows);
            multiply(c.args(y.data(), c.rows), type);
            // Additions on the longest path of a sum, over eight lanes: one per element of a lane;
            // block types add at most two terms a block, themselves rounded.
            const double lanes = 8;
            const double steps = is_plain(type) ? static_cast<double>(cols) / lanes
                                                : static_cast<double>(2 * cols / kBlock);
            for (int64_t t = 0; t < c.tokens; ++t)
                for (int64_t r = 0; r < c.rows; ++r) {
                    const MatmulCase::Answer right = c.answer(r, t);
                    const double bound = (steps + lanes + 4) * 0x1p-24 * right.magnitude;
                    CHECK_CASE(std::fabs(y[t * c.rows + r] - right.value) <= bound, c.name());
                }
        }
    }
}

TEST(cuts_in_rows_and_tokens_change_no_bit) {
    Random rng(3);
    for (Type type : matmul_types()) {
        MatmulCase c(type, 53, is_plain(type) ? 100 : is_super(type) ? 512 : 160, 11);
        c.fill_normally(rng);
        Guarded whole(c.tokens * c.rows), parts(c.tokens * c.rows);
        multiply(c.args(whole.data(), c.rows), type);
        const MatmulArgs all = c.args(parts.data(), c.rows);
        MatmulArgs args = all;
        for (int64_t t = 0; t < c.tokens; t += args.tokens) {
            args.tokens = std::min<int64_t>(t % 3 + 1, c.tokens - t);
            args.x = static_cast<const char*>(all.x) + t * c.x_stride;
            args.y = parts.data() + t * c.rows;
            for (args.row_begin = 0; args.row_begin < c.rows; args.row_begin = args.row_end) {
                args.row_end = std::min<int64_t>(args.row_begin * 2 + 1, c.rows);
                multiply(args, type);
            }
        }
        CHECK_CASE(parts.intact(), c.name());
        for (int64_t i = 0; i < c.tokens * c.rows; ++i)
            CHECK_CASE(same_bits(parts[i], whole[i]), c.name());
    }
}

// Few tokens take the weights as they come, many through a tile or a panel: same bits on each path,
// also where rows and columns are no multiple of what these take at a time.
TEST(any_number_of_tokens_gives_the_bits_of_one) {
    Random rng(9);
    for (Type type : matmul_types())
        for (int64_t cols : {is_super(type) ? int64_t{768} : 288, odd_width(type)}) {
            MatmulCase c(type, 43, cols, 65);
            c.fill_normally(rng);
            Guarded one(c.tokens * c.rows);
            MatmulArgs args = c.args(one.data(), c.rows);
            args.tokens = 1;
            for (int64_t t = 0; t < c.tokens; ++t) {
                multiply(args, type);
                args.x = static_cast<const char*>(args.x) + c.x_stride;
                args.y += c.rows;
            }
            for (int64_t tokens :
                 {2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 16, 17, 24, 25, 33, 64, 65}) {
                Guarded y(tokens * c.rows);
                args = c.args(y.data(), c.rows);
                args.tokens = tokens;
                multiply(args, type);
                CHECK_CASE(y.intact(), c.name());
                for (int64_t i = 0; i < tokens * c.rows; ++i)
                    CHECK_CASE(same_bits(y[i], one[i]), c.name() + ", " + std::to_string(tokens));
            }
        }
}

// The last matrix of a file ends where its map does.
TEST(nothing_is_read_past_the_end) {
    Random rng(10);
    for (Type type : matmul_types()) {
        const int64_t least = is_super(type) ? 256 : 32;
        for (int64_t cols : {is_plain(type) ? int64_t{13} : least, odd_width(type)}) {
            for (int64_t rows : {1, 7, 8, 13, 16, 33}) {
                MatmulCase c(type, rows, cols, 65);
                c.fill_normally(rng);
                const AtPageEnd w(c.row(0), rows * c.row_bytes());
                for (int64_t tokens : {1, 2, 3, 4, 8, 9, 17, 65}) {
                    Guarded right(tokens * rows), y(tokens * rows);
                    MatmulArgs args = c.args(right.data(), rows);
                    args.tokens = tokens;
                    multiply(args, type);
                    const AtPageEnd x(args.x, tokens * c.x_stride);
                    args.w = w.data();
                    args.x = x.data();
                    args.y = y.data();
                    multiply(args, type);
                    for (int64_t i = 0; i < tokens * rows; ++i)
                        CHECK_CASE(same_bits(y[i], right[i]),
                                   c.name() + ": " + std::to_string(tokens));
                }
            }
        }
    }
}

TEST(only_the_rows_asked_for_are_written) {
    Random rng(4);
    for (Type type : matmul_types()) {
        MatmulCase c(type, 9, 64 * (is_plain(type) ? 1 : 4), 5);
        c.fill_exactly(rng);
        const int64_t stride = 13;
        Guarded y(c.tokens * stride);
        MatmulArgs args = c.args(y.data(), stride);
        args.row_begin = 3;
        args.row_end = 8;
        multiply(args, type);
        CHECK_CASE(y.intact(), c.name());
        for (int64_t i = 0; i < c.tokens * stride; ++i) {
            const bool ours = i % stride >= 3 && i % stride < 8;
            CHECK_CASE(same_bits(y[i], Guarded::kCanary) != ours, c.name());
        }
    }
}

// The sign trick of byte products fails at -128: our codecs never write it, foreign files may.
TEST(q8_0_weights_of_minus_128_are_survived) {
    MatmulCase c(Type::Q8_0, 4, 64, 2);
    Random rng(5);
    c.fill_exactly(rng);
    const uint16_t d = float_to_half(1.0f);
    for (int64_t r = 0; r < c.rows; ++r)
        for (int64_t b = 0; b < 2; ++b) {
            uint8_t* block = c.row(r) + b * 34;
            std::memcpy(block, &d, sizeof d);
            std::memset(block + 2, r % 2 == 0 ? 0x80 : 0x7f, 32);
        }
    for (size_t i = 0; i < c.x.size(); ++i) c.x[i] = i < 64 ? -127.0f : 127.0f;
    c.round();
    Guarded y(8);
    multiply(c.args(y.data(), 4), Type::Q8_0);
    for (int64_t i = 0; i < 8; ++i) CHECK(y[i] == static_cast<float>(c.answer(i % 4, i / 4).value));
}

// The largest codes at once: sums of byte products must not saturate.
TEST(extreme_codes_do_not_saturate) {
    for (Type type : matmul_types()) {
        if (is_plain(type)) continue;
        MatmulCase c(type, 19, is_super(type) ? 512 : 96, 5);
        Random rng(6);
        c.fill_exactly(rng);
        for (int64_t r = 0; r < c.rows; ++r)
            for (int64_t b = 0; b < c.blocks(); ++b) {
                const auto bytes = static_cast<size_t>(type_info(type).block_bytes);
                const int code = r % 2 == 0 ? 0 : type == Type::Q8_0 ? 0x81 : 0xff;
                std::memset(c.block(r, b), code, bytes);
                // the largest scale of Q6_K is not its last code
                if (type == Type::Q6_K) std::memset(c.block(r, b) + 192, 0x80, 16);
                c.set_half(r, b, c.scale_at(), 0.5f);
                c.set_half(r, b, c.minimum_at(), 0.25f);
            }
        for (size_t i = 0; i < c.x.size(); ++i)
            c.x[i] = i / static_cast<size_t>(c.cols) % 2 == 0 ? 127.0f : -127.0f;
        c.round();
        Guarded y(c.tokens * c.rows);
        multiply(c.args(y.data(), c.rows), type);
        for (int64_t i = 0; i < c.tokens * c.rows; ++i)
            CHECK_CASE(y[i] == static_cast<float>(c.answer(i % c.rows, i / c.rows).value),
                       c.name());
    }
}

TEST(zeros_and_denormal_scales_are_exact) {
    for (Type type : matmul_types()) {
        MatmulCase c(type, 3, is_super(type) ? 256 : 64, 2);
        Random rng(7);
        c.fill_exactly(rng);
        for (int64_t r = 0; r < c.rows; ++r)
            std::memset(c.row(r), 0, static_cast<size_t>(c.row_bytes()));
        Guarded y(6);
        multiply(c.args(y.data(), 3), type);
        for (int64_t i = 0; i < 6; ++i) CHECK_CASE(y[i] == 0.0f, c.name());

        c.fill_exactly(rng);
        // A half of 2^-24, the smallest there is: as the scale of each block, or as each weight.
        for (int64_t r = 0; r < c.rows; ++r) {
            const std::vector<float> tiny(64, 0x1p-24f);
            if (is_plain(type)) type_info(type).quantize(tiny.data(), c.row(r), c.cols);
            for (int64_t b = 0; b < c.blocks() && !is_plain(type); ++b) {
                c.set_half(r, b, c.scale_at(), 0x1p-24f);
                c.set_half(r, b, c.minimum_at(), 0.0f);
            }
        }
        multiply(c.args(y.data(), 3), type);
        for (int64_t i = 0; i < 6; ++i)
            CHECK_CASE(y[i] == static_cast<float>(c.answer(i % 3, i / 3).value), c.name());
    }
}

TEST(scales_that_are_no_numbers_reach_the_result) {
    for (Type type : matmul_types()) {
        if (is_plain(type)) continue;
        for (uint16_t bad : {uint16_t{0x7c00}, uint16_t{0x7e00}}) {
            MatmulCase c(type, 2, is_super(type) ? 256 : 64, 1);
            Random rng(8);
            c.fill_exactly(rng);
            std::memcpy(c.row(1) + c.scale_at(), &bad, sizeof bad);
            Guarded y(2);
            multiply(c.args(y.data(), 2), type);
            CHECK_CASE(std::isfinite(y[0]), c.name());
            CHECK_CASE(!std::isfinite(y[1]), c.name());
        }
    }
}
