// SPDX-License-Identifier: Apache-2.0
#include "sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "base/error.h"
#include "kernels/dispatch.h"

namespace rwkv_edge {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void check_range(const char* name, double value, double low, double high) {
    if (!(value >= low && value <= high))
        throw std::invalid_argument(cat(name, " is ", value, ", expected ", low, " to ", high));
}

void check_count(const char* name, int64_t value, const char* zero) {
    if (value < 0)
        throw std::invalid_argument(cat(name, " is ", value, ", expected 0 (", zero, ") or more"));
}

// What the loops over a vocabulary go through at once, so that compilers make vectors of it: blocks
// of lanes. Sums have this order, so no vector width shows.
constexpr std::size_t kLanes = 32, kPerBlock = kLogitBlock;

std::size_t blocks(std::size_t n) { return (n + kPerBlock - 1) / kPerBlock; }

// Calls `look(values of a block, its number)`; the last block is filled up with -infinity.
template <class Look>
void each_block(std::span<const float> values, Look&& look) {
    std::size_t i = 0;
    for (; i + kPerBlock <= values.size(); i += kPerBlock) look(values.data() + i, i / kPerBlock);
    if (i == values.size()) return;
    std::array<float, kPerBlock> last;
    last.fill(-kInfinity);
    std::copy(values.begin() + static_cast<std::ptrdiff_t>(i), values.end(), last.begin());
    look(last.data(), i / kPerBlock);
}

// The sum of a block, in the order of a tree.
inline double folded(const float* x) {
    static_assert(kPerBlock == 64);
    float part[16];
    for (std::size_t j = 0; j < 16; ++j) part[j] = (x[j] + x[j + 16]) + (x[j + 32] + x[j + 48]);
    for (std::size_t j = 0; j < 8; ++j) part[j] += part[j + 8];
    for (std::size_t j = 0; j < 4; ++j) part[j] += part[j + 4];
    return static_cast<double>((part[0] + part[2]) + (part[1] + part[3]));
}

// Calls `use(powers, weights, number)` for each block: (x - top) * factor, and e to that power.
template <class Use>
void each_weight(std::span<const float> values, float top, float factor, Use&& use) {
    const auto weigh_logits = kernels().weigh_logits;
    each_block(values, [&](const float* x, std::size_t block) {
        float powers[kPerBlock], weights[kPerBlock];
        weigh_logits(x, kPerBlock, top, factor, powers, weights);
        use(powers, weights, block);
    });
}

// A sum of many floats: in floats over a few blocks, in doubles from there on.
class Sum {
public:
    void add(const float* block) {
        for (std::size_t j = 0; j < kPerBlock; ++j) lanes_[j] += block[j];
        if (++added_ % kSumBlocks == 0) flush();
    }
    double total() {
        flush();
        return total_;
    }

private:
    void flush() {
        total_ += folded(lanes_);
        std::fill_n(lanes_, kPerBlock, 0.0f);
    }

    float lanes_[kPerBlock] = {};
    std::size_t added_ = 0;
    double total_ = 0.0;
};

// The sum of e^(x - top), and where wanted that of (x - top) e^(x - top).
double sum_of_exp(std::span<const float> values, float top, double* products = nullptr) {
    Sum sum, more;
    each_weight(values, top, 1.0f, [&](const float* powers, float* weights, std::size_t) {
        sum.add(weights);
        if (products == nullptr) return;
        for (std::size_t j = 0; j < kPerBlock; ++j) weights[j] *= powers[j];
        more.add(weights);
    });
    if (products != nullptr) *products = more.total();
    return sum.total();
}

// weights = e^((x - top) * factor); `sums` gets those of the blocks.
void weigh(std::span<const float> values, float top, float factor, std::vector<float>& to,
           std::vector<double>& sums) {
    to.resize(values.size());
    sums.resize(blocks(values.size()));
    each_weight(values, top, factor, [&](const float*, float* weights, std::size_t block) {
        const std::size_t begin = block * kPerBlock, n = std::min(kPerBlock, values.size() - begin);
        std::copy_n(weights, n, to.data() + begin);
        sums[block] = folded(weights);
    });
}

[[noreturn]] void throw_no_maximum() {
    throw std::invalid_argument(
        "the logits have no finite maximum: the weights or the state hold NaN or infinity. "
        "Was the model's file changed while it was open?");
}

// The largest of the best of all blocks. Throws where one is NaN or infinity.
float largest_of(std::span<const float> best) {
    float top = -kInfinity;
    for (const float value : best) {
        if (!(value < kInfinity)) throw_no_maximum();
        top = std::max(top, value);
    }
    return top;
}

// The largest value; `best` gets those of the blocks. Throws where one is NaN or infinity.
float largest(std::span<const float> values, std::vector<float>& best) {
    best.resize(blocks(values.size()));
    int32_t nan[kLanes] = {};
    each_block(values, [&](const float* x, std::size_t block) {
        float most[kLanes];
        for (std::size_t j = 0; j < kLanes; ++j) {
            const float a = x[j], b = x[j + kLanes];
            most[j] = a > b ? a : b;
            nan[j] |= a != a || b != b;
        }
        for (std::size_t half = kLanes / 2; half > 0; half /= 2)
            for (std::size_t j = 0; j < half; ++j)
                most[j] = most[j] > most[j + half] ? most[j] : most[j + half];
        best[block] = most[0];
    });
    if (std::any_of(nan, nan + kLanes, std::identity{})) throw_no_maximum();
    return largest_of(best);
}

// A value that at least `count` values reach, and not many more; `best` is of the blocks.
float reached_by(std::vector<float> best, std::size_t count) {
    if (count > best.size()) return -kInfinity;
    const auto last = best.begin() + static_cast<std::ptrdiff_t>(count) - 1;
    std::nth_element(best.begin(), last, best.end(), std::greater{});
    return *last;
}

// The values that are at least `least`, and their places.
void gather(std::span<const float> values, std::span<const float> best, float least,
            std::vector<float>& to, std::vector<int32_t>& places) {
    least = std::max(least, std::numeric_limits<float>::lowest());
    to.clear();
    places.clear();
    float found[kPerBlock];
    int32_t at[kPerBlock];
    for (std::size_t block = 0; block < best.size(); ++block) {
        if (best[block] < least) continue;
        const std::size_t end = std::min(values.size(), (block + 1) * kPerBlock);
        std::size_t n = 0;
        for (std::size_t i = block * kPerBlock; i < end; ++i) {
            found[n] = values[i];
            at[n] = static_cast<int32_t>(i);
            n += values[i] >= least;
        }
        to.insert(to.end(), found, found + n);
        places.insert(places.end(), at, at + n);
    }
}

// The key up to which the smallest keys together weigh `enough`, or the largest of all.
float cutoff(std::span<const float> keys, std::span<const float> weights, double enough) {
    struct Item {
        float key, weight;
    };
    std::vector<Item> items(keys.size());
    for (std::size_t i = 0; i < items.size(); ++i) items[i] = {keys[i], weights[i]};
    double before = 0.0;  // what smaller keys weigh
    // Histograms narrow down where it lies.
    constexpr std::size_t kFew = 128, kBins = 512;
    while (items.size() > kFew) {
        float low = kInfinity, high = -kInfinity;
        for (const Item& item : items) {
            low = item.key < low ? item.key : low;
            high = item.key > high ? item.key : high;
        }
        if (low == high) break;
        const double scale = (kBins - 1) / (static_cast<double>(high) - static_cast<double>(low));
        const auto bin_of = [=](const Item& item) {
            const double distance = static_cast<double>(item.key) - static_cast<double>(low);
            return static_cast<std::size_t>(distance * scale);
        };
        std::array<double, kBins> bins{};
        for (const Item& item : items) bins[bin_of(item)] += static_cast<double>(item.weight);
        std::size_t bin = 0;
        while (bin < kBins - 1 && before + bins[bin] < enough) before += bins[bin++];
        std::size_t n = 0;
        for (const Item& item : items) {
            const bool stays = bin_of(item) == bin;
            items[n] = item;
            n += stays ? 1 : 0;
        }
        items.resize(n);
    }
    std::sort(items.begin(), items.end(),
              [](const Item& a, const Item& b) { return a.key < b.key; });
    for (const Item& item : items)
        if ((before += static_cast<double>(item.weight)) >= enough) return item.key;
    return items.empty() ? kInfinity : items.back().key;
}

}  // namespace

Sampler::Sampler(const SamplerOptions& options) : options_(options), random_(options.seed) {
    check_range("temperature", options.temperature, 0.0, 1000.0);
    check_range("typical_p", options.typical_p, 0.0, 1.0);
    check_range("top_p", options.top_p, 0.0, 1.0);
    check_range("min_p", options.min_p, 0.0, 1.0);
    check_range("presence_penalty", options.presence_penalty, -1000.0, 1000.0);
    check_range("frequency_penalty", options.frequency_penalty, -1000.0, 1000.0);
    check_range("penalty_decay", options.penalty_decay, 0.0, 1.0);
    for (const auto& [token, bias] : options.logit_bias)
        check_range(cat("logit_bias of token ", token).c_str(), bias, -1000.0, 1000.0);
    check_count("top_k", options.top_k, "off");
    check_count("penalty_window", options.penalty_window, "all");
}

// All that changes single logits, in order.
void Sampler::list_changes(std::size_t n_vocab) {
    changes_.clear();
    const auto change = [&](int32_t token, float add) {
        if (static_cast<std::size_t>(token) < n_vocab) changes_.push_back({token, add});
    };
    for (const auto& [token, bias] : options_.logit_bias) change(token, static_cast<float>(bias));
    for (const auto& [token, seen] : occurrences_) {
        const double penalty = options_.presence_penalty + seen.count * options_.frequency_penalty;
        change(token, -static_cast<float>(penalty));
    }
    for (const int32_t token : options_.banned) change(token, -kInfinity);
}

// Takes the logits over, with the changes.
void Sampler::adjust(std::span<const float> logits,
                     std::optional<std::span<const uint8_t>> allowed) {
    logits_.assign(logits.begin(), logits.end());
    for (const auto& [token, add] : changes_) {
        float& logit = logits_[static_cast<std::size_t>(token)];
        logit = add == -kInfinity ? add : logit + add;
    }
    if (!allowed) return;
    // Most bytes are of one kind.
    for (std::size_t i = 0; i < logits_.size(); i += 8) {
        const uint8_t bits = i / 8 < allowed->size() ? (*allowed)[i / 8] : 0;
        const std::size_t n = std::min<std::size_t>(8, logits_.size() - i);
        if (bits == 0)
            std::fill_n(logits_.data() + i, n, -kInfinity);
        else if (bits != 0xff)
            for (std::size_t j = 0; j < n; ++j)
                if ((bits >> j & 1) == 0) logits_[i + j] = -kInfinity;
    }
}

std::optional<int32_t> Sampler::next_forced(std::size_t n_vocab,
                                            std::optional<std::span<const uint8_t>> allowed) {
    if (forced_ >= options_.forced.size()) return {};
    const int32_t token = options_.forced[forced_];
    const auto i = static_cast<std::size_t>(token);
    if (i >= n_vocab)
        throw std::invalid_argument(
            cat("forced token ", token, " is outside the vocabulary of ", n_vocab));
    if (allowed && (i / 8 >= allowed->size() || ((*allowed)[i / 8] >> i % 8 & 1) == 0))
        throw std::invalid_argument(cat("forced token ", token, " is not allowed here"));
    ++forced_;
    return token;
}

// The block of the likeliest token, where that is the choice.
std::optional<std::size_t> Sampler::greedy(float top) const {
    if (top == -kInfinity)
        throw std::invalid_argument(
            "no token is left to choose: all are banned, not allowed, or have a logit of "
            "-infinity");
    if (options_.temperature != 0.0 &&
        (options_.typical_p < 1.0 || (options_.top_k != 1 && options_.top_p != 0.0)))
        return {};
    return static_cast<std::size_t>(std::find(best_.begin(), best_.end(), top) - best_.begin());
}

int32_t Sampler::sample(std::span<const float> logits,
                        std::optional<std::span<const uint8_t>> allowed) {
    if (const std::optional<int32_t> token = next_forced(logits.size(), allowed)) return *token;
    list_changes(logits.size());
    adjust(logits, allowed);
    const float top = largest(logits_, best_);
    if (const std::optional<std::size_t> block = greedy(top)) {
        const auto begin = logits_.begin() + static_cast<std::ptrdiff_t>(*block * kPerBlock);
        return static_cast<int32_t>(std::find(begin, logits_.end(), top) - logits_.begin());
    }
    if (needs_sums())
        total_ = sum_of_exp(logits_, top, options_.typical_p < 1.0 ? &products_ : nullptr);
    gather(logits_, best_, bound(top, logits_.size()), candidates_, ids_);
    return draw(top);
}

// One of the candidates.
int32_t Sampler::draw(float top) {
    const float best = cut(top);
    // Further apart than 1 / 1e30, two logits have nothing to share.
    const double factor = std::min(1.0 / options_.temperature, 1e30);
    weigh(candidates_, best, static_cast<float>(factor), weights_, sums_);
    double left = uniform() * std::accumulate(sums_.begin(), sums_.end(), 0.0);
    std::size_t block = 0;
    while (block + 1 < sums_.size() && left >= sums_[block]) left -= sums_[block++];
    for (std::size_t i = block * kPerBlock; i < ids_.size(); ++i) {
        left -= static_cast<double>(weights_[i]);
        if (left < 0.0) return ids_[i];
    }
    // Rounding ate the last bit.
    return ids_[static_cast<std::size_t>(std::find(candidates_.begin(), candidates_.end(), best) -
                                         candidates_.begin())];
}

void sample(Shortlist& shortlist, std::span<const Choice> choices, std::span<int32_t> tokens) {
    const auto n_vocab = static_cast<std::size_t>(shortlist.n_vocab());
    std::vector<std::size_t> left;  // choices that the shortlist is for
    for (std::size_t i = 0; i < choices.size(); ++i) {
        const Choice& choice = choices[i];
        Sampler& sampler = *choice.sampler;
        if (const auto token = sampler.next_forced(n_vocab, choice.allowed)) {
            tokens[i] = *token;
            continue;
        }
        sampler.list_changes(n_vocab);
        std::ranges::stable_sort(sampler.changes_, {}, &LogitChange::token);
        if (std::ssize(sampler.changes_) <= shortlist.most_changes()) {
            left.push_back(i);
            continue;
        }
        std::vector<float> logits(n_vocab);
        shortlist.copy(logits, choice.logits);
        tokens[i] = sampler.sample(logits, choice.allowed);
    }

    std::vector<Shortlist::Row> rows;
    std::vector<float> tops, least;
    const auto most = static_cast<std::size_t>(shortlist.most_rows());
    for (std::size_t done = 0; done < left.size(); done += rows.size()) {
        const std::span some = std::span(left).subspan(done, std::min(most, left.size() - done));
        rows.clear();
        for (const std::size_t i : some)
            rows.push_back({choices[i].logits, choices[i].sampler->changes_, choices[i].allowed});
        shortlist.survey(rows);
        tops.assign(some.size(), 0.0f);
        least.assign(some.size(), kInfinity);
        for (std::size_t j = 0; j < some.size(); ++j) {
            Sampler& sampler = *choices[some[j]].sampler;
            const Shortlist::Survey survey = shortlist.surveyed(j);
            sampler.best_.assign(survey.best.begin(), survey.best.end());
            tops[j] = largest_of(survey.best);
            if (const std::optional<std::size_t> block = sampler.greedy(tops[j])) {
                tokens[some[j]] = survey.first[*block];
                continue;
            }
            sampler.total_ = std::accumulate(survey.sums.begin(), survey.sums.end(), 0.0);
            sampler.products_ =
                std::accumulate(survey.products.begin(), survey.products.end(), 0.0);
            least[j] = sampler.bound(tops[j], n_vocab);
        }
        // Where nothing is cut, all are candidates.
        std::vector<float> asked = least;
        std::ranges::replace(asked, -kInfinity, kInfinity);
        if (std::ranges::any_of(asked, [](float bound) { return bound < kInfinity; }))
            shortlist.gather(asked);
        for (std::size_t j = 0; j < some.size(); ++j) {
            if (least[j] == kInfinity) continue;
            Sampler& sampler = *choices[some[j]].sampler;
            const bool asked_for = asked[j] < kInfinity;
            if (const auto found = asked_for ? shortlist.gathered(j) : Shortlist::Candidates{};
                found.all) {
                sampler.candidates_.assign(found.logits.begin(), found.logits.end());
                sampler.ids_.assign(found.tokens.begin(), found.tokens.end());
            } else {
                sampler.logits_.resize(n_vocab);
                shortlist.copy(sampler.logits_, shortlist.changed(j));
                gather(sampler.logits_, sampler.best_, least[j], sampler.candidates_, sampler.ids_);
            }
            tokens[some[j]] = sampler.draw(tops[j]);
        }
    }
}

template <class Keep>
void Sampler::keep_if(Keep&& keep) {
    std::size_t n = 0;
    for (std::size_t i = 0; i < ids_.size(); ++i) {
        const bool stays = keep(i);
        candidates_[n] = candidates_[i];
        ids_[n] = ids_[i];
        n += stays ? 1 : 0;
    }
    candidates_.resize(n);
    ids_.resize(n);
}

bool Sampler::needs_sums() const { return options_.typical_p < 1.0 || options_.top_p < 1.0; }

// What all tokens that the options leave reach: most are below and need not be looked at.
float Sampler::bound(float top, std::size_t n_vocab) const {
    // All tokens below this together have less than a share of the probability. The last term is
    // for rounding.
    const auto negligible = [&](double share) {
        const double each = share * total_ / static_cast<double>(n_vocab);
        return top + static_cast<float>(std::log(each)) - 0.01f;
    };
    // Those above the first hold typical_p, and no token outside is closer to the expected one.
    if (options_.typical_p < 1.0)
        return std::min(negligible(1.0 - options_.typical_p),
                        top + 2.0f * static_cast<float>(products_ / total_) - 0.01f);
    float least = -kInfinity;
    if (options_.top_p < 1.0) least = negligible(1.0 - options_.top_p);
    if (options_.top_k > 0)
        least = std::max(least, reached_by(best_, static_cast<std::size_t>(options_.top_k)));
    if (options_.min_p > 0.0)
        least = std::max(least, top + static_cast<float>(std::log(options_.min_p)));
    return least;
}

// Leaves the candidates that all options leave, in the order of their ids; returns the largest.
float Sampler::cut(float top) {
    const auto most = static_cast<std::size_t>(options_.top_k);
    double total = total_;
    if (options_.typical_p < 1.0) {
        // How far a token's information is from the expected one
        const auto expected = static_cast<float>(products_ / total_);
        weigh(candidates_, top, 1.0f, weights_, sums_);
        keys_.resize(ids_.size());
        for (std::size_t i = 0; i < ids_.size(); ++i)
            keys_[i] = std::fabs(candidates_[i] - top - expected);
        const float last = cutoff(keys_, weights_, options_.typical_p * total);
        keep_if([&](std::size_t i) { return keys_[i] <= last; });
        top = *std::max_element(candidates_.begin(), candidates_.end());
        total = sum_of_exp(candidates_, top);
    }
    const auto keep_best = [&](double enough) {
        keys_.resize(ids_.size());
        for (std::size_t i = 0; i < ids_.size(); ++i) keys_[i] = -candidates_[i];
        const float last = -cutoff(keys_, weights_, enough);
        keep_if([&](std::size_t i) { return candidates_[i] >= last; });
        return last;
    };
    if (options_.top_p < 1.0) {
        weigh(candidates_, top, 1.0f, weights_, sums_);
        keep_best(options_.top_p * total);
    }
    if (most > 0 && ids_.size() > most) {
        weights_.assign(ids_.size(), 1.0f);
        const float last = keep_best(static_cast<double>(most));
        // Of equals at the border, the first ids
        auto equals = static_cast<std::ptrdiff_t>(most) -
                      std::count_if(candidates_.begin(), candidates_.end(),
                                    [&](float logit) { return logit > last; });
        keep_if([&](std::size_t i) { return candidates_[i] > last || equals-- > 0; });
    }
    if (options_.min_p > 0.0) {
        const float last = top + static_cast<float>(std::log(options_.min_p));
        keep_if([&](std::size_t i) { return candidates_[i] >= last; });
    }
    return top;
}

void Sampler::accept(int32_t token, double weight) {
    if (options_.presence_penalty == 0.0 && options_.frequency_penalty == 0.0) return;
    for (auto& [_, seen] : occurrences_) seen.count *= options_.penalty_decay;
    Occurrences& now = occurrences_[token];
    now.count += weight;
    ++now.times;
    if (options_.penalty_window == 0) return;
    for (auto& [_, left] : window_) left *= options_.penalty_decay;
    window_.emplace_back(token, weight);
    if (std::ssize(window_) <= options_.penalty_window) return;
    const auto [oldest, left] = window_.front();
    window_.pop_front();
    const auto seen = occurrences_.find(oldest);
    seen->second.count -= left;
    if (--seen->second.times == 0) occurrences_.erase(seen);
}

// splitmix64 (Steele, Lea, Flood 2014), the top 53 bits as a fraction
double Sampler::uniform() {
    random_ += 0x9e3779b97f4a7c15;
    uint64_t z = random_;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    z ^= z >> 31;
    return static_cast<double>(z >> 11) * 0x1p-53;
}

std::vector<Logprob> logprobs(std::span<const float> logits, int32_t token, int64_t top) {
    const auto i = static_cast<std::size_t>(token);
    if (i >= logits.size())
        throw std::invalid_argument(
            cat("token ", token, " is outside the vocabulary of ", logits.size()));
    check_count("logprobs", top, "only the token's own");
    std::vector<float> best, values;
    std::vector<int32_t> ids;
    const float highest = largest(logits, best);
    if (highest == -kInfinity)
        throw std::invalid_argument("the logits have no finite maximum: all are -infinity");
    const double total = static_cast<double>(highest) + std::log(sum_of_exp(logits, highest));
    std::vector<Logprob> found{{token, static_cast<double>(logits[i]) - total}};
    if (top == 0) return found;
    const std::size_t count = std::min(logits.size(), static_cast<std::size_t>(top));
    gather(logits, best, reached_by(best, count), values, ids);
    for (std::size_t j = 0; j < ids.size(); ++j)
        found.push_back({ids[j], static_cast<double>(values[j]) - total});
    std::stable_sort(found.begin() + 1, found.end(),
                     [](const Logprob& a, const Logprob& b) { return a.logprob > b.logprob; });
    found.resize(std::min(found.size(), count + 1));
    return found;
}

}  // namespace rwkv_edge
