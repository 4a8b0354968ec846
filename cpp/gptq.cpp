// SPDX-License-Identifier: Apache-2.0
#include "gptq.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <stdexcept>
#include <vector>

#include "base/aligned.h"
#include "base/error.h"
#include "quant/lanes.h"
#include "quant/search.h"
#include "quant/types.h"

namespace rwkv_edge {

namespace {

constexpr int64_t kTile = 128;          // columns that are worked on together
constexpr int64_t kRows = kOuterLanes;  // rows of weights that are worked on together: a panel
constexpr int64_t kDepth = 256;         // of products whose factors stay in the second cache
constexpr int64_t kGroup = 8;           // columns within a tile whose updates are not products
constexpr int64_t kChunkValues = int64_t{1} << 24;  // of the weights that are held as floats
constexpr int kSweeps = 4;

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// --- the Hessian ---

// H = M D M^T of the columns in an order, M unit upper triangular, D diagonal. Then the error of
// codes is the sum of D_j (w_j - q_j + sum over i < j of (w_i - q_i) M_ij)^2, which is what GPTQ
// makes small column by column. It needs no inverse.
class Factor {
public:
    // The order is by falling diagonal: what matters most is rounded while all others can still
    // make up for it.
    Factor(const float* hessian, int64_t n, float damp, const Kernels& kernels, ThreadPool& pool);

    const std::vector<int64_t>& order() const { return order_; }
    float added() const { return added_; }  // to the diagonal
    int64_t padded() const { return padded_; }
    // M_ij for i < j, both in the order.
    float at(int64_t i, int64_t j) const { return row(j)[i]; }
    // Row j of M^T: M_ij for all i < j.
    const float* row(int64_t j) const { return m_.data() + j * stride_; }

private:
    float* row(int64_t j) { return m_.data() + j * stride_; }
    void check(const float* hessian) const;
    void factor_tile(int64_t first);
    void factor_panel(int64_t first, int64_t tile);
    void update(int64_t first, int64_t row_block);

    // Column l of row k of the rows in work.
    static int64_t place(int64_t k, int64_t l) {
        return l / kOuterLanes * kTile * kOuterLanes + k * kOuterLanes + l % kOuterLanes;
    }

    const int64_t n_, padded_;
    const int64_t stride_;  // rows at distances of a power of two fight for the same sets
    const Kernels& kernels_;
    float added_ = 0;
    std::vector<int64_t> order_;
    AlignedVector<float> m_;  // [padded, stride], lower triangle
    // The rows in work times D, and those of -M^T: [padded / 64, kTile, 64].
    AlignedVector<float> scaled_, negative_;
    float pivots_[kTile];
};

Factor::Factor(const float* hessian, int64_t n, float damp, const Kernels& kernels,
               ThreadPool& pool)
    : n_(n), padded_(round_up(n, kTile)), stride_(padded_ + 16), kernels_(kernels) {
    check(hessian);
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += hessian[i * n + i];
    if (!(sum > 0))
        throw std::invalid_argument("hessian: its diagonal is zero, so no input was ever seen");
    added_ = static_cast<float>(sum / static_cast<double>(n) * damp);
    order_.resize(static_cast<std::size_t>(n));
    std::iota(order_.begin(), order_.end(), 0);
    std::stable_sort(order_.begin(), order_.end(),
                     [&](int64_t a, int64_t b) { return hessian[a * n + a] > hessian[b * n + b]; });
    m_.resize(static_cast<std::size_t>(padded_ * stride_));
    const int64_t tiles = padded_ / kTile;
    pool.run(tiles, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin * kTile; i < end * kTile; ++i) {
            float* to = row(i);
            std::fill(to, to + stride_, 0.0f);
            if (i >= n) {
                to[i] = 1;
                continue;
            }
            const float* from = hessian + order_[static_cast<std::size_t>(i)] * n;
            for (int64_t j = 0; j <= i; ++j) to[j] = from[order_[static_cast<std::size_t>(j)]];
            to[i] += added_;
        }
    });
    scaled_.resize(static_cast<std::size_t>(padded_ * kTile));
    negative_.resize(static_cast<std::size_t>(padded_ * kTile));
    for (int64_t first = padded_ - kTile; first >= 0; first -= kTile) {
        factor_tile(first);
        pool.run(first / kOuterLanes, [&](int64_t begin, int64_t end, int) {
            for (int64_t t = begin; t < end; ++t) factor_panel(first, t * kOuterLanes);
        });
        pool.run(first / kTile, [&](int64_t begin, int64_t end, int) {
            for (int64_t t = begin; t < end; ++t) update(first, t * kTile);
        });
    }
    scaled_ = {};
    negative_ = {};
}

void Factor::check(const float* hessian) const {
    for (int64_t i = 0; i < n_; ++i)
        for (int64_t j = 0; j < n_; ++j)
            if (!std::isfinite(hessian[i * n_ + j]))
                throw std::invalid_argument(cat("hessian[", i, ", ", j, "] is ",
                                                hessian[i * n_ + j], ", expected finite values"));
    for (int64_t i = 0; i < n_; ++i)
        if (hessian[i * n_ + i] < 0)
            throw std::invalid_argument(cat("hessian[", i, ", ", i, "] is ", hessian[i * n_ + i],
                                            ", expected a diagonal of at least 0"));
    constexpr int64_t kSquare = 64;  // of which both halves stay in the first cache
    for (int64_t bi = 0; bi < n_; bi += kSquare)
        for (int64_t bj = 0; bj <= bi; bj += kSquare)
            for (int64_t i = bi; i < std::min(bi + kSquare, n_); ++i)
                for (int64_t j = bj; j < std::min(bj + kSquare, i); ++j) {
                    const float a = hessian[i * n_ + j], b = hessian[j * n_ + i];
                    if (a == b) continue;
                    const double size = std::sqrt(static_cast<double>(hessian[i * n_ + i]) *
                                                  static_cast<double>(hessian[j * n_ + j]));
                    if (std::fabs(static_cast<double>(a) - static_cast<double>(b)) > 1e-3 * size)
                        throw std::invalid_argument(cat("hessian[", i, ", ", j, "] is ", a,
                                                        " and hessian[", j, ", ", i, "] is ", b,
                                                        ", expected a symmetric matrix"));
                }
}

// The rows of a tile, as far as they lie in its own columns.
void Factor::factor_tile(int64_t first) {
    for (int64_t k = kTile - 1; k >= 0; --k) {
        float* x = row(first + k) + first;  // columns 0 ... k of the tile
        for (int64_t later = kTile - 1; later > k; --later) {
            const float m = negative_[static_cast<std::size_t>(place(later, first + k))];
            for (int64_t l = 0; l <= k; ++l)
                x[l] += m * scaled_[static_cast<std::size_t>(place(later, first + l))];
        }
        const float pivot = x[k];
        if (!(pivot > 0) || !std::isfinite(pivot))
            throw std::invalid_argument(cat("hessian: not positive definite at column ",
                                            order_[static_cast<std::size_t>(first + k)],
                                            ", expected a larger damp"));
        pivots_[k] = pivot;
        for (int64_t l = 0; l <= k; ++l) {
            const auto at = static_cast<std::size_t>(place(k, first + l));
            scaled_[at] = x[l];
            x[l] /= pivot;
            negative_[at] = -x[l];
        }
    }
}

// The rows of a tile in kOuterLanes columns before it.
void Factor::factor_panel(int64_t first, int64_t column) {
    float* scaled = scaled_.data() + place(0, column);
    float* negative = negative_.data() + place(0, column);
    for (int64_t k = kTile - kGroup; k >= 0; k -= kGroup) {
        const float* later = negative_.data() + place(k + kGroup, first + k);
        kernels_.outer_products({later, kOuterLanes, scaled + (k + kGroup) * kOuterLanes,
                                 kOuterLanes, row(first + k) + column, stride_, kGroup,
                                 kTile - k - kGroup});
        for (int64_t i = k + kGroup - 1; i >= k; --i) {
            float* x = row(first + i) + column;
            for (int64_t done = k + kGroup - 1; done > i; --done) {
                const float m = negative_[static_cast<std::size_t>(place(done, first + i))];
                for (int64_t l = 0; l < kOuterLanes; ++l)
                    x[l] += m * scaled[done * kOuterLanes + l];
            }
            for (int64_t l = 0; l < kOuterLanes; ++l) {
                scaled[i * kOuterLanes + l] = x[l];
                x[l] /= pivots_[i];
                negative[i * kOuterLanes + l] = -x[l];
            }
        }
    }
}

// What a tile of rows takes from kTile rows before it.
void Factor::update(int64_t, int64_t row_block) {
    for (int64_t l = 0; l < row_block + kTile; l += kOuterLanes)
        for (int64_t i = row_block; i < row_block + kTile; i += kOuterLanes)
            kernels_.outer_products({negative_.data() + place(0, i), kOuterLanes,
                                     scaled_.data() + place(0, l), kOuterLanes, row(i) + l, stride_,
                                     kOuterLanes, kTile});
}

// --- rows of weights ---

// Grids and codes of kRows rows; lanes are rows.
struct Panel {
    AlignedVector<float>
        errors;                  // [padded, kRows] weight less value, columns in the Factor's order
    AlignedVector<float> work;   // [kTile, kRows]
    std::vector<uint8_t> codes;  // [cols, kRows]
    std::vector<float> d, dmin;  // [blocks, kRows]
    std::vector<int16_t> scale, min;             // [subs, kRows]
    AlignedVector<float> step, inverse, offset;  // [subs, kRows] of the values
};

class Quantizer {
public:
    Quantizer(Type type, int64_t cols, const float* hessian, float damp, const Kernels& kernels,
              ThreadPool& pool)
        : type_(type),
          form_(*block_form(type)),
          cols_(cols),
          hessian_(hessian),
          kernels_(kernels),
          pool_(pool),
          factor_(hessian, cols, damp, kernels, pool),
          rank_(static_cast<std::size_t>(cols)),
          importance_(static_cast<std::size_t>(cols)),
          packed_(static_cast<std::size_t>(factor_.padded() * kTile)),
          square_(kTile * kTile),
          scratch_(static_cast<std::size_t>(pool.size() * kScratch)) {
        for (int64_t p = 0; p < cols; ++p) rank_[index(factor_.order()[index(p)])] = p;
        for (int64_t j = 0; j < cols; ++j)
            importance_[index(j)] = hessian[j * cols + j] + factor_.added();
    }

    void run(const float* weights, int64_t rows, uint8_t* out) {
        const int64_t most = std::max(int64_t{1}, kChunkValues / (factor_.padded() * kRows));
        const int64_t all = (rows + kRows - 1) / kRows;
        for (int64_t first = 0; first < all; first += most) {
            const int64_t n = std::min(most, all - first);
            panels_.resize(index(n));
            const auto each = [&](auto&& body) {
                pool_.run(n, [&](int64_t begin, int64_t end, int worker) {
                    for (int64_t p = begin; p < end; ++p) body(p, worker);
                });
            };
            each([&](int64_t p, int) {
                const int64_t row = (first + p) * kRows;
                load(panels_[index(p)], weights + row * cols_, std::min(kRows, rows - row));
            });
            for (int64_t column = 0; column < cols_; column += kTile) round_tile(column);
            for (int sweep = 0; sweep < kSweeps; ++sweep)
                for (int64_t column = 0; column < cols_; column += kTile)
                    sweep_tile(column, sweep + 1 < kSweeps);
            const int64_t bytes = type_bytes(type_, cols_);
            each([&](int64_t p, int) {
                const int64_t row = (first + p) * kRows;
                pack(panels_[index(p)], std::min(kRows, rows - row), out + row * bytes);
            });
        }
    }

private:
    static std::size_t index(int64_t i) { return static_cast<std::size_t>(i); }
    static constexpr int64_t kScratch = 3 * kTile * kRows;  // floats of a worker

    void load(Panel& panel, const float* weights, int64_t rows);
    void take_grid(Panel& panel, int64_t sub, int64_t lane) const;
    void round_tile(int64_t column);
    void round_columns(Panel& panel, int64_t column);
    void sweep_tile(int64_t column, bool refit_too);
    void descend(Panel& panel, int64_t column, int64_t n, float* scratch);
    void refit(Panel& panel, int64_t column, int64_t n, float* scratch);
    void pack(const Panel& panel, int64_t rows, uint8_t* out) const;

    float* errors_of(Panel& panel, int64_t column) const {
        return panel.errors.data() + rank_[index(column)] * kRows;
    }
    // y [rows, kRows] += a^T b over `depth`.
    void add(const float* a, int64_t a_stride, const float* b, float* y, int64_t rows,
             int64_t depth) const {
        kernels_.outer_products({a, a_stride, b, kRows, y, kRows, rows, depth});
    }

    const Type type_;
    const BlockForm& form_;
    const int64_t cols_;
    const float* hessian_;
    const Kernels& kernels_;
    ThreadPool& pool_;
    const Factor factor_;
    std::vector<int64_t> rank_;      // [cols] in the order
    std::vector<float> importance_;  // [cols]
    AlignedVector<float> packed_;    // [padded, kTile] what a tile takes from all columns
    AlignedVector<float> square_;    // [kTile, kTile] the same within the tile
    AlignedVector<float> scratch_;   // [workers, kScratch]
    std::vector<Panel> panels_;
};

void Quantizer::load(Panel& panel, const float* weights, int64_t rows) {
    const int64_t subs = cols_ / form_.sub, blocks = cols_ / form_.block;
    panel.errors.assign(index(factor_.padded() * kRows), 0.0f);
    panel.work.resize(index(kTile * kRows));
    panel.codes.assign(index(cols_ * kRows), static_cast<uint8_t>(form_.zero));
    for (auto* halves : {&panel.d, &panel.dmin}) halves->assign(index(blocks * kRows), 0.0f);
    for (auto* integers : {&panel.scale, &panel.min}) integers->assign(index(subs * kRows), 0);
    for (auto* floats : {&panel.step, &panel.inverse, &panel.offset})
        floats->assign(index(subs * kRows), 0.0f);
    float error_weight[kSuperBlock];
    OpenBlock block;
    for (int64_t lane = 0; lane < rows; ++lane) {
        const float* x = weights + lane * cols_;
        for (int64_t b = 0; b < blocks; ++b) {
            const int64_t at = b * form_.block;
            error_weights(type_, x + at, importance_.data() + at, form_.block, error_weight);
            search_block(form_, x + at, error_weight, block);
            panel.d[index(b * kRows + lane)] = block.d;
            panel.dmin[index(b * kRows + lane)] = block.dmin;
            for (int64_t s = 0; s < form_.subs(); ++s) {
                const int64_t sub = b * form_.subs() + s;
                panel.scale[index(sub * kRows + lane)] = static_cast<int16_t>(block.scale[s]);
                panel.min[index(sub * kRows + lane)] = static_cast<int16_t>(block.min[s]);
                take_grid(panel, sub, lane);
            }
        }
        for (int64_t j = 0; j < cols_; ++j) errors_of(panel, j)[lane] = x[j];
    }
}

void Quantizer::take_grid(Panel& panel, int64_t sub, int64_t lane) const {
    const std::size_t at = index(sub * kRows + lane);
    const std::size_t block = index(sub / form_.subs() * kRows + lane);
    panel.step[at] = panel.d[block] * static_cast<float>(panel.scale[at]);
    panel.inverse[at] = inverse_scale(panel.step[at]);
    panel.offset[at] = -(panel.dmin[block] * static_cast<float>(panel.min[at]));
}

// The values of a sub-block's grid in four rows.
struct Grid {
    Lanes step, inverse, offset, low, high;

    Grid(const Panel& panel, const BlockForm& form, int64_t column, int64_t lane)
        : low(all_lanes(static_cast<float>(-form.zero))),
          high(all_lanes(static_cast<float>(form.top - form.zero))) {
        const auto at = static_cast<std::size_t>(column / form.sub * kRows + lane);
        step = load_lanes(&panel.step[at]);
        inverse = load_lanes(&panel.inverse[at]);
        offset = load_lanes(&panel.offset[at]);
    }
    Lanes code(Lanes x) const { return nearest(clip((x - offset) * inverse, low, high)); }
    Lanes value(Lanes code) const { return step * code + offset; }
};

void put_codes(Lanes codes, int zero, uint8_t* to) {
    for (int i = 0; i < kLanes; ++i)
        to[i] = static_cast<uint8_t>(static_cast<int>(codes[i]) + zero);
}
Lanes get_codes(const uint8_t* from, int zero) {
    Lanes codes;
    for (int i = 0; i < kLanes; ++i) codes[i] = static_cast<float>(from[i] - zero);
    return codes;
}

// Rounds the columns of a tile of the order, with what the errors of earlier ones add to them.
void Quantizer::round_tile(int64_t column) {
    const int64_t n = std::min(kTile, cols_ - column);
    pool_.run((column + kTile - 1) / kTile, [&](int64_t begin, int64_t end, int) {
        for (int64_t k = begin * kTile; k < std::min(end * kTile, column); ++k)
            for (int64_t j = 0; j < kTile; ++j)
                packed_[index(k * kTile + j)] = factor_.at(k, column + j);
    });
    for (int64_t k = 0; k < kTile; ++k)
        for (int64_t j = 0; j < kTile; ++j)
            square_[index(k * kTile + j)] = k < j ? factor_.at(column + k, column + j) : 0.0f;
    pool_.run(std::ssize(panels_), [&](int64_t begin, int64_t end, int) {
        const auto panels = std::span(panels_).subspan(index(begin), index(end - begin));
        for (Panel& panel : panels)
            std::copy_n(panel.errors.data() + column * kRows, n * kRows, panel.work.data());
        for (int64_t k = 0; k < column; k += kDepth)
            for (Panel& panel : panels)
                add(&packed_[index(k * kTile)], kTile, panel.errors.data() + k * kRows,
                    panel.work.data(), n, std::min(kDepth, column - k));
        for (Panel& panel : panels) round_columns(panel, column);
    });
}

void Quantizer::round_columns(Panel& panel, int64_t column) {
    const int64_t n = std::min(kTile, cols_ - column);
    float* errors = panel.errors.data() + column * kRows;
    for (int64_t group = 0; group < n; group += kGroup) {
        float* targets = panel.work.data() + group * kRows;
        add(&square_[index(group)], kTile, errors, targets, kGroup, group);
        for (int64_t i = 0; i < kGroup; ++i) {
            const int64_t j = factor_.order()[index(column + group + i)];
            const float* factors = &square_[index((group + i) * kTile + group)];
            for (int64_t lane = 0; lane < kRows; lane += kLanes) {
                const Grid grid(panel, form_, j, lane);
                const Lanes code = grid.code(load_lanes(targets + i * kRows + lane));
                put_codes(code, form_.zero, &panel.codes[index(j * kRows + lane)]);
                float* error = errors + (group + i) * kRows + lane;
                const Lanes left = load_lanes(error) - grid.value(code);
                store_lanes(error, left);
                for (int64_t later = i + 1; later < kGroup; ++later) {
                    float* target = targets + later * kRows + lane;
                    store_lanes(target, load_lanes(target) + all_lanes(factors[later]) * left);
                }
            }
        }
    }
}

// Looks for better codes and, if asked, for better scales, in a tile of columns as they are stored.
// The gradient R = (W - Q) H of the tile is computed anew.
void Quantizer::sweep_tile(int64_t column, bool refit_too) {
    const int64_t n = std::min(kTile, cols_ - column);
    pool_.run((cols_ + kTile - 1) / kTile, [&](int64_t begin, int64_t end, int) {
        for (int64_t p = begin * kTile; p < std::min(end * kTile, cols_); ++p)
            std::copy_n(hessian_ + factor_.order()[index(p)] * cols_ + column, n,
                        &packed_[index(p * kTile)]);
    });
    for (int64_t k = 0; k < n; ++k) {
        std::copy_n(hessian_ + (column + k) * cols_ + column, n, &square_[index(k * kTile)]);
        square_[index(k * kTile + k)] += factor_.added();
    }
    pool_.run(std::ssize(panels_), [&](int64_t begin, int64_t end, int worker) {
        const auto panels = std::span(panels_).subspan(index(begin), index(end - begin));
        for (Panel& panel : panels)
            for (int64_t j = 0; j < n; ++j) {
                const float* error = errors_of(panel, column + j);
                for (int64_t lane = 0; lane < kRows; ++lane)
                    panel.work[index(j * kRows + lane)] = factor_.added() * error[lane];
            }
        for (int64_t k = 0; k < cols_; k += kDepth)
            for (Panel& panel : panels)
                add(&packed_[index(k * kTile)], kTile, panel.errors.data() + k * kRows,
                    panel.work.data(), n, std::min(kDepth, cols_ - k));
        float* scratch = &scratch_[index(worker * kScratch)];
        for (Panel& panel : panels) {
            descend(panel, column, n, scratch);
            if (refit_too) refit(panel, column, n, scratch);
        }
    });
}

// Gives each column in turn the code that is best for all the others. panel.work holds R.
void Quantizer::descend(Panel& panel, int64_t column, int64_t n, float* scratch) {
    float* r = scratch;                        // [n, kRows] as far as it is known
    float* changes = scratch + kTile * kRows;  // [n, kRows] of the errors
    std::copy_n(panel.work.data(), n * kRows, r);
    for (int64_t group = 0; group < n; group += kGroup) {
        add(&square_[index(group)], kTile, changes, r + group * kRows, kGroup, group);
        for (int64_t i = group; i < group + kGroup; ++i) {
            const float* factors = &square_[index(i * kTile)];
            const Lanes inverse = all_lanes(1.0f / factors[i]);
            uint8_t* codes = &panel.codes[index((column + i) * kRows)];
            float* errors = errors_of(panel, column + i);
            for (int64_t lane = 0; lane < kRows; lane += kLanes) {
                const Grid grid(panel, form_, column + i, lane);
                const Lanes old = grid.value(get_codes(codes + lane, form_.zero));
                const Lanes code = grid.code(old + load_lanes(r + i * kRows + lane) * inverse);
                put_codes(code, form_.zero, codes + lane);
                const Lanes change = old - grid.value(code);
                store_lanes(changes + i * kRows + lane, change);
                store_lanes(errors + lane, load_lanes(errors + lane) + change);
                for (int64_t later = i + 1; later < group + kGroup; ++later) {
                    float* to = r + later * kRows + lane;
                    store_lanes(to, load_lanes(to) + all_lanes(factors[later]) * change);
                }
            }
        }
    }
    add(square_.data(), kTile, changes, panel.work.data(), n, n);
}

// Gives each sub-block in turn the scale, and then the min, that is best for its codes and for all
// the others. panel.work holds R.
void Quantizer::refit(Panel& panel, int64_t column, int64_t n, float* scratch) {
    const bool integer_scales = form_.scale_high > form_.scale_low;
    const bool integer_mins = form_.min_high > 1;
    const int64_t sub = form_.sub;
    float* r = scratch;
    float* changes = scratch + kTile * kRows;
    float* codes = scratch + 2 * kTile * kRows;         // [sub, kRows], as floats
    float* products = codes + kSuperBlock / 8 * kRows;  // [sub, kRows] H codes
    std::copy_n(panel.work.data(), n * kRows, r);
    for (int64_t first = 0; first < n; first += sub) {
        const float* h = &square_[index(first * kTile + first)];
        add(&square_[index(first)], kTile, changes, r + first * kRows, sub, first);
        for (int64_t i = 0; i < sub * kRows; i += kLanes)
            store_lanes(codes + i,
                        get_codes(&panel.codes[index((column + first) * kRows + i)], form_.zero));
        std::fill(products, products + sub * kRows, 0.0f);
        add(h, kTile, codes, products, sub, sub);
        float all = 0;  // 1^T H 1
        for (int64_t i = 0; i < sub; ++i)
            for (int64_t j = 0; j < sub; ++j) all += h[i * kTile + j];
        const int64_t at_sub = (column + first) / sub;
        for (int64_t lane = 0; lane < kRows; ++lane) {
            float rc = 0, r1 = 0, cc = 0, c1 = 0;  // R^T c, R^T 1, c^T H c, c^T H 1
            for (int64_t i = 0; i < sub; ++i) {
                const float c = codes[i * kRows + lane], p = products[i * kRows + lane];
                const float gradient = r[(first + i) * kRows + lane];
                rc += gradient * c;
                r1 += gradient;
                cc += p * c;
                c1 += p;
            }
            const std::size_t at = index(at_sub * kRows + lane);
            const std::size_t block = index(at_sub / form_.subs() * kRows + lane);
            const float step = panel.step[at], offset = panel.offset[at];
            if (cc > 0) {
                const float change = rc / cc;
                if (!integer_scales) {
                    panel.d[block] = to_half_value(panel.d[block] + change);
                } else if (panel.d[block] != 0) {
                    const float best = std::nearbyint(static_cast<float>(panel.scale[at]) +
                                                      change / panel.d[block]);
                    panel.scale[at] =
                        static_cast<int16_t>(std::clamp(best, static_cast<float>(form_.scale_low),
                                                        static_cast<float>(form_.scale_high)));
                }
                take_grid(panel, at_sub, lane);
                r1 -= (panel.step[at] - step) * c1;
            }
            if (form_.has_min && all > 0) {
                const float change = -r1 / all;
                if (!integer_mins) {
                    panel.dmin[block] = to_half_value(panel.dmin[block] + change);
                } else if (panel.dmin[block] != 0) {
                    const float best = std::nearbyint(static_cast<float>(panel.min[at]) +
                                                      change / panel.dmin[block]);
                    panel.min[at] = static_cast<int16_t>(
                        std::clamp(best, 0.0f, static_cast<float>(form_.min_high)));
                }
                take_grid(panel, at_sub, lane);
            }
            const float step_change = panel.step[at] - step;
            const float offset_change = panel.offset[at] - offset;
            for (int64_t i = 0; i < sub; ++i) {
                const float change = -(step_change * codes[i * kRows + lane] + offset_change);
                changes[(first + i) * kRows + lane] = change;
                errors_of(panel, column + first + i)[lane] += change;
            }
        }
    }
    add(square_.data(), kTile, changes, panel.work.data(), n, n);
}

void Quantizer::pack(const Panel& panel, int64_t rows, uint8_t* out) const {
    const int64_t bytes = type_bytes(type_, form_.block);
    OpenBlock block;
    for (int64_t lane = 0; lane < rows; ++lane)
        for (int64_t b = 0; b < cols_ / form_.block; ++b, out += bytes) {
            block.d = panel.d[index(b * kRows + lane)];
            block.dmin = panel.dmin[index(b * kRows + lane)];
            for (int64_t s = 0; s < form_.subs(); ++s) {
                const std::size_t at = index((b * form_.subs() + s) * kRows + lane);
                block.scale[s] = panel.scale[at];
                block.min[s] = panel.min[at];
            }
            for (int64_t i = 0; i < form_.block; ++i)
                block.codes[i] = panel.codes[index((b * form_.block + i) * kRows + lane)];
            pack_block(type_, block, out);
        }
}

}  // namespace

void quantize_with_hessian(Type type, const float* weights, int64_t rows, int64_t cols,
                           const float* hessian, float damp, uint8_t* out, const Kernels& kernels,
                           ThreadPool& pool) {
    Quantizer(type, cols, hessian, damp, kernels, pool).run(weights, rows, out);
}

}  // namespace rwkv_edge
