// SPDX-License-Identifier: Apache-2.0
// Sessions over a shared model of every version: their states, their independence, two of them in
// two threads, what their matrices multiply.
#ifndef _WIN32
#include <sys/wait.h>
#include <unistd.h>
#endif

#include <cmath>
#include <future>
#include <map>
#include <thread>
#include <utility>

#include "check.h"
#include "session.h"
#include "tiny_model.h"

using namespace rwkv_edge;

namespace {

constexpr std::size_t kVocab = 40;
const int kMostThreads = test_device() == "cpu" ? 3 : 1;  // a GPU has none of the host's
using Ids = std::vector<int32_t>;
using Floats = std::vector<float>;

// The bytes of a parsed file must outlive the model.
std::shared_ptr<Runner> model(const std::string& version, int threads) {
    static std::map<std::string, std::vector<std::byte>> files;
    std::vector<std::byte>& bytes = files[version];
    if (bytes.empty()) bytes = tiny_model(version, 1).bytes();
    return open_model(bytes, threads);
}

Ids prompt(std::size_t n, unsigned seed = 1) {
    std::mt19937 rng(seed);
    Ids ids(n);
    for (int32_t& id : ids) id = static_cast<int32_t>(rng() % kVocab);
    return ids;
}

Floats feed_all(Session& session, std::span<const int32_t> ids) {
    Floats logits(ids.size() * kVocab);
    session.feed(ids, Session::Logits::All, logits.data());
    return logits;
}

Floats feed_last(Session& session, std::span<const int32_t> ids) {
    Floats logits(kVocab);
    session.feed(ids, Session::Logits::Last, logits.data());
    return logits;
}

}  // namespace

TEST(logits_are_finite_and_differ) {
    for (const std::string& version : kTinyVersions) {
        Session session(model(version, 1));
        const Floats logits = feed_all(session, prompt(150));
        for (float l : logits) CHECK_CASE(std::isfinite(l), version);
        CHECK_CASE(Floats(logits.begin(), logits.begin() + kVocab) !=
                       Floats(logits.end() - kVocab, logits.end()),
                   version);
    }
}

TEST(chunks_and_threads_change_no_bit) {
    const Ids ids = prompt(100);
    for (const std::string& version : kTinyVersions) {
        Session whole(model(version, 1));
        const Floats expected = feed_all(whole, ids);
        for (int threads = 1; threads <= kMostThreads; ++threads) {
            const auto shared = model(version, threads);
            for (std::size_t chunk : {1u, 7u, 65u}) {
                Session parts(shared);
                Floats found;
                for (std::size_t at = 0; at < ids.size(); at += chunk) {
                    const auto part = std::span(ids).subspan(at, std::min(chunk, ids.size() - at));
                    const Floats logits = feed_all(parts, part);
                    found.insert(found.end(), logits.begin(), logits.end());
                }
                CHECK_CASE(found == expected, version);
                CHECK_CASE(state_of(parts) == state_of(whole), version);
            }
        }
    }
}

TEST(last_logits_are_the_last_of_all) {
    const Ids ids = prompt(70);
    for (const std::string& version : kTinyVersions) {
        const auto shared = model(version, 2);
        Session all(shared), last(shared), none(shared);
        const Floats expected = feed_all(all, ids);
        CHECK_CASE(feed_last(last, ids) == Floats(expected.end() - kVocab, expected.end()),
                   version);
        none.feed(ids, Session::Logits::None, nullptr);
        CHECK_CASE(state_of(none) == state_of(all), version);
    }
}

TEST(state_reset_and_fork) {
    for (const std::string& version : kTinyVersions) {
        Session session(model(version, 1));
        const Floats fresh = state_of(session);
        feed_last(session, prompt(5));
        CHECK_CASE(state_of(session) != fresh, version);
        const auto fork = session.fork();
        const Floats here = feed_last(session, prompt(9, 2));
        CHECK_CASE(feed_last(*fork, prompt(9, 2)) == here, version);
        const Floats saved = state_of(session);
        session.reset();
        CHECK_CASE(state_of(session) == fresh, version);
        CHECK_CASE(feed_last(session, prompt(5)) != here, version);
        session.set_state(saved);
        CHECK_CASE(state_of(session) == saved, version);
        CHECK_THROWS(std::invalid_argument, std::to_string(saved.size()),
                     session.set_state(Floats(3)));
    }
}

TEST(a_session_goes_back_to_where_another_stands) {
    for (const std::string& version : kTinyVersions) {
        const auto shared = model(version, 1);
        Session session(shared);
        CHECK(session.tokens() == 0);
        CHECK_THROWS(std::invalid_argument, "no token was fed", session.logits(nullptr));
        const Floats after = feed_last(session, prompt(5));
        const auto mark = session.fork();
        const Floats there = state_of(session);
        Floats output(static_cast<std::size_t>(session.model().config().n_embd));
        session.copy_output(output);
        feed_last(session, prompt(70, 3));
        session.rewind(*mark);
        Floats again(kVocab);
        session.logits(again.data());
        CHECK_CASE(state_of(session) == there && again == after, version);
        session.rewind(session);
        CHECK_CASE(state_of(session) == there, version);
        session.set_state(there);
        CHECK(session.tokens() == 0 && mark->tokens() == 5);
        CHECK_THROWS(std::invalid_argument, "has an output", session.copy_output(output));
        session.set_state(there, output);
        session.logits(again.data());
        CHECK_CASE(session.tokens() == 1 && again == after, version);
        CHECK_THROWS(std::invalid_argument, "the output has 3 values",
                     session.set_state(there, Floats(3)));
        Session stranger(model(version, 1));
        CHECK_THROWS(std::invalid_argument, "another model", stranger.rewind(session));
    }
}

// Sessions that read prompts, speak, start, end, fork and go back, in steps of many: each gets what
// it gets alone.
TEST(company_changes_no_bit) {
    std::mt19937 rng(5);
    for (const std::string& version : kTinyVersions)
        for (int threads = 1; threads <= kMostThreads; threads += 2) {
            const auto shared = model(version, threads), other = model(version, 1);
            std::vector<std::unique_ptr<Session>> together, alone;
            const auto start = [&] {
                together.push_back(std::make_unique<Session>(shared));
                alone.push_back(std::make_unique<Session>(other));
            };
            for (int i = 0; i < 5; ++i) start();
            for (int round = 0; round < 8; ++round) {
                std::vector<Ids> ids;
                std::vector<Session::Part> parts;
                Floats expected;
                for (std::size_t i = 0; i < together.size(); ++i)  // at times a whole prompt
                    ids.push_back(prompt(rng() % 4 == 0 ? rng() % 150 : rng() % 3, rng()));
                for (std::size_t i = 0; i < together.size(); ++i) {
                    const auto mode = static_cast<Session::Logits>(rng() % 3);
                    parts.push_back({together[i].get(), ids[i], mode});
                    const Floats all = feed_all(*alone[i], ids[i]);
                    if (mode == Session::Logits::All)
                        expected.insert(expected.end(), all.begin(), all.end());
                    if (mode == Session::Logits::Last && !all.empty())
                        expected.insert(expected.end(), all.end() - kVocab, all.end());
                }
                Floats found(expected.size());
                Session::feed_together(parts, found.data());
                CHECK_CASE(found == expected, version);
                for (std::size_t i = 0; i < together.size(); ++i)
                    CHECK_CASE(state_of(*together[i]) == state_of(*alone[i]), version);
                // one ends, one starts, one goes on twice, one goes back to where another is
                const std::size_t gone = rng() % together.size();
                for (auto* sessions : {&together, &alone}) {
                    sessions->erase(sessions->begin() + static_cast<std::ptrdiff_t>(gone));
                    sessions->push_back(sessions->front()->fork());
                    (*sessions)[1]->rewind(*(*sessions)[2]);
                }
                if (round % 2 == 0) start();
            }
        }
}

// The residual stream, of some sessions of a step: each gets what it gets alone, token by token.
TEST(hidden_values_are_the_same_however_they_are_read) {
    for (const std::string& version : kTinyVersions)
        for (int threads : {1, 3}) {
            const auto shared = model(version, threads);
            const auto n = static_cast<std::size_t>(shared->model().config().n_embd);
            const int64_t last = shared->model().config().n_layer;
            const Ids first = prompt(100), second = prompt(30, 2), third = prompt(41, 3);
            const std::vector<int64_t> some{last, 0}, all{0, last, 1};
            const auto alone = [&](const Ids& ids, const std::vector<int64_t>& layers) {
                Session session(shared);
                Floats found(layers.size() * ids.size() * n), one(layers.size() * n);
                for (std::size_t i = 0; i < ids.size(); ++i) {
                    const Session::Part part{&session, std::span(ids).subspan(i, 1),
                                             Session::Logits::None, layers, one.data()};
                    Session::feed_together({&part, 1}, nullptr);
                    for (std::size_t k = 0; k < layers.size(); ++k)
                        std::copy_n(
                            one.begin() + static_cast<std::ptrdiff_t>(k * n), n,
                            found.begin() + static_cast<std::ptrdiff_t>((k * ids.size() + i) * n));
                }
                return found;
            };
            Session a(shared), b(shared), c(shared), plain(shared);
            Floats of_a(2 * first.size() * n), of_c(3 * third.size() * n), logits(kVocab);
            const Session::Part parts[] = {
                {&a, first, Session::Logits::None, some, of_a.data()},
                {&b, second, Session::Logits::Last},
                {&c, third, Session::Logits::None, all, of_c.data()},
            };
            Session::feed_together(parts, logits.data());
            CHECK_CASE(of_a == alone(first, some) && of_c == alone(third, all), version);
            CHECK_CASE(logits == feed_last(plain, second), version);
            CHECK_CASE(state_of(b) == state_of(plain), version);
            const std::vector<int64_t> beyond{last + 1};
            const Session::Part wrong{&a, first, Session::Logits::None, beyond, of_a.data()};
            CHECK_THROWS(std::invalid_argument, "expected 0 to",
                         Session::feed_together({&wrong, 1}, nullptr));
            CHECK(a.tokens() == 100);
        }
}

TEST(only_different_sessions_of_one_model_feed_together) {
    const auto shared = model("7", 1);
    Session a(shared), b(model("7", 1));
    const Ids ids = prompt(3);
    const auto feed = [&](Session& first, Session& second) {
        const Session::Part parts[] = {{&first, ids, Session::Logits::None},
                                       {&second, ids, Session::Logits::None}};
        Session::feed_together(parts, nullptr);
    };
    CHECK_THROWS(std::invalid_argument, "several models", feed(a, b));
    CHECK_THROWS(std::invalid_argument, "twice", feed(a, a));
    CHECK(a.tokens() == 0);
    Session::feed_together({}, nullptr);
}

// Whatever moment it comes at, between two steps or between two layers.
TEST(an_interrupted_feed_changes_nothing) {
    struct Stop {};
    const Ids first = prompt(100), second = prompt(40, 2);
    for (const std::string& version : kTinyVersions) {
        const auto shared = model(version, 2);
        Session a(shared), b(shared);
        feed_last(a, prompt(3));
        const Floats state_a = state_of(a), state_b = state_of(b);
        Floats logits(2 * kVocab);
        const Session::Part parts[] = {{&a, first, Session::Logits::Last},
                                       {&b, second, Session::Logits::Last}};
        int calls = 0;
        for (int stop_at = 0;; ++stop_at) {
            calls = 0;
            try {
                Session::feed_together(parts, logits.data(), [&](int64_t tokens) {
                    CHECK(tokens == 0 || tokens == 64 || tokens == 128);
                    if (calls++ == stop_at) throw Stop();
                });
                break;
            } catch (const Stop&) {
                CHECK_CASE(state_of(a) == state_a && state_of(b) == state_b, version);
                CHECK(a.tokens() == 3 && b.tokens() == 0);
            }
        }
        CHECK_CASE(calls == 3 * 4, version);  // three steps through two halves of two layers
    }
}

TEST(a_wrong_token_changes_nothing) {
    for (const std::string& version : kTinyVersions) {
        Session session(model(version, 1));
        feed_last(session, prompt(3));
        const Floats before = state_of(session);
        for (int32_t wrong : {-1, 40, 1 << 30}) {
            CHECK_THROWS(std::invalid_argument, "token 2 is " + std::to_string(wrong),
                         feed_last(session, Ids{1, 2, wrong}));
            CHECK_CASE(state_of(session) == before, version);
        }
    }
}

// Run under TSan: the model is shared, so are its threads.
TEST(two_sessions_in_two_threads) {
    const Ids ids = prompt(90);
    for (const std::string& version : kTinyVersions) {
        const auto shared = model(version, 2);
        Session alone(shared);
        const Floats expected = feed_all(alone, ids);
        Floats found[2];
        const auto work = [&](Floats& out) {
            Session session(shared);
            for (std::size_t at = 0; at < ids.size(); at += 9) {
                const Floats logits = feed_all(session, std::span(ids).subspan(at, 9));
                out.insert(out.end(), logits.begin(), logits.end());
            }
        };
        std::thread other(work, std::ref(found[1]));
        work(found[0]);
        other.join();
        CHECK_CASE(found[0] == expected && found[1] == expected, version);
    }
}

TEST(one_session_in_two_threads_waits) {
    Session session(model("7", 2));
    const Ids ids = prompt(30);
    const auto work = [&] {
        for (int i = 0; i < 20; ++i) {
            feed_last(session, ids);
            (void)state_of(session);
        }
    };
    std::thread other(work);
    work();
    other.join();
    for (float v : state_of(session)) CHECK(std::isfinite(v));
}

#ifndef _WIN32  // which has no fork
// The child has the locks as they stood, and not the thread that would give them back.
TEST(what_was_busy_at_a_fork_says_so_in_the_child) {
    if (test_device() != "cpu") return;
    const auto shared = model("7", 1);
    Session busy(shared), idle(shared);
    std::promise<void> inside, leave;
    std::thread other([&] {
        bool first = true;
        busy.feed(prompt(100), Session::Logits::None, nullptr, [&](int64_t) {
            if (!std::exchange(first, false)) return;
            inside.set_value();
            leave.get_future().wait();
        });
    });
    inside.get_future().wait();
    const pid_t child = fork();
    if (child == 0) {
        alarm(20);  // a child that waits would wait for good
        const auto refused = [](auto&& call) {
            try {
                call();
                return false;
            } catch (const std::runtime_error& error) {
                return std::string(error.what())
                    .starts_with(
                        "this session, or another one of its model, was busy in another thread "
                        "when "
                        "this process was forked: open the model again");
            }
        };
        const int32_t id = 1;
        const bool right = refused([&] { (void)busy.tokens(); }) && idle.tokens() == 0 &&
                           refused([&] { idle.feed({&id, 1}, Session::Logits::None, nullptr); });
        _exit(right ? 0 : 1);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    leave.set_value();
    other.join();
    Session alone(shared);
    alone.feed(prompt(100), Session::Logits::None, nullptr);
    CHECK(busy.tokens() == 100 && state_of(busy) == state_of(alone));
}
#endif

// --- what matrices multiply ---

namespace {

using Names = std::vector<std::string>;
constexpr std::size_t kWidth = 64, kFfn = 96;
// Each value below is the end of less than 100 roundings of numbers that stay below 8.
constexpr double kRoundings = 100 * 8 * 0x1p-24;

Floats inputs_of(Session& session, const Ids& ids, const Names& names) {
    Floats found(static_cast<std::size_t>(session.input_floats(names, std::ssize(ids))));
    session.inputs(ids, names, found.data());
    return found;
}

const Floats& weights(const std::string& version, const std::string& name) {
    static std::map<std::string, GgufBytes> files;
    if (!files.contains(version)) files[version] = tiny_model(version, 1);
    return files[version].at(name).x;
}

// The norm of a row of the residual stream, in doubles.
std::vector<double> normalised(const float* x, const Floats& weight, const Floats& bias) {
    double mean = 0, variance = 0;
    for (std::size_t i = 0; i < kWidth; ++i) mean += static_cast<double>(x[i]) / kWidth;
    for (std::size_t i = 0; i < kWidth; ++i) variance += std::pow(x[i] - mean, 2) / kWidth;
    std::vector<double> y(kWidth);
    for (std::size_t i = 0; i < kWidth; ++i)
        y[i] = (x[i] - mean) / std::sqrt(variance + 1e-5) * weight[i] + bias[i];
    return y;
}

// What the residual stream holds when so many layers have run: [tokens, kWidth].
Floats residual(const std::shared_ptr<Runner>& shared, const Ids& ids, int64_t layers) {
    Session session(shared);
    Floats found(ids.size() * kWidth);
    const Session::Part part{&session, ids, Session::Logits::None, {&layers, 1}, found.data()};
    Session::feed_together({&part, 1}, nullptr);
    return found;
}

bool on_cpu() { return test_device() == "cpu"; }  // other devices have matrices of their own

}  // namespace

TEST(inputs_of_the_head_and_of_time_mixes_are_what_the_equations_say) {
    if (!on_cpu()) return;
    const Ids ids = prompt(70);
    for (const std::string& version : kTinyVersions) {
        const auto shared = model(version, 2);
        Session session(shared);
        const Floats head = inputs_of(session, ids, {"output.weight"});
        const Floats last = residual(shared, ids, 2);
        for (std::size_t t = 0; t < ids.size(); ++t) {
            const auto y = normalised(&last[t * kWidth], weights(version, "output_norm.weight"),
                                      weights(version, "output_norm.bias"));
            for (std::size_t i = 0; i < kWidth; ++i)
                CHECK_CASE(std::fabs(head[t * kWidth + i] - y[i]) < kRoundings, version);
        }
        if (version == "6") continue;  // whose mixes depend on the token
        // The order of the mixes, and whether a mix is the share of the token itself.
        const bool itself = version[0] < '7';
        const std::map<std::string, std::size_t> places =
            itself
                ? std::map<std::string, std::size_t>{{"key", 0}, {"value", 1}, {"receptance", 2}}
                : std::map<std::string, std::size_t>{{"receptance", 0}, {"key", 2}, {"value", 3}};
        for (const std::string block : {"blk.0.", "blk.1."}) {
            const Floats before = residual(shared, ids, block[4] - '0');
            const Floats& mix = weights(version, block + "time_mix_lerp_fused.weight");
            for (const auto& [name, place] : places) {
                session.reset();
                const Floats found =
                    inputs_of(session, ids, {block + "time_mix_" + name + ".weight"});
                std::vector<double> previous(kWidth, 0.0);
                for (std::size_t t = 0; t < ids.size(); ++t) {
                    const auto now = normalised(&before[t * kWidth],
                                                weights(version, block + "attn_norm.weight"),
                                                weights(version, block + "attn_norm.bias"));
                    for (std::size_t i = 0; i < kWidth; ++i) {
                        const double share = mix[place * kWidth + i];
                        const double right = itself ? previous[i] + (now[i] - previous[i]) * share
                                                    : now[i] + (previous[i] - now[i]) * share;
                        CHECK_CASE(std::fabs(found[t * kWidth + i] - right) < kRoundings,
                                   version + " " + block + name);
                    }
                    previous = now;
                }
            }
        }
    }
}

// The second matrix of a channel mix multiplies relu(K x)^2, where the first one multiplies x.
TEST(inputs_of_channel_mixes_follow_from_each_other) {
    if (!on_cpu()) return;
    const Ids ids = prompt(70);
    for (const std::string& version : kTinyVersions) {
        if (version == "7a") continue;  // which scales them by token
        Session session(model(version, 2));
        const Names names{"blk.1.channel_mix_value.weight", "blk.1.channel_mix_key.weight"};
        const Floats found = inputs_of(session, ids, names);
        CHECK(found.size() == ids.size() * (kFfn + kWidth));
        const Floats& key = weights(version, names[1]);
        const float* x = &found[ids.size() * kFfn];
        int positive = 0;
        for (std::size_t t = 0; t < ids.size(); ++t)
            for (std::size_t j = 0; j < kFfn; ++j) {
                double sum = 0, size = 0;
                for (std::size_t i = 0; i < kWidth; ++i) {
                    const double product =
                        static_cast<double>(key[j * kWidth + i]) * x[t * kWidth + i];
                    sum += product;
                    size += std::fabs(product);
                }
                const double off = 2 * kWidth * 0x1p-24 * size, y = std::max(sum, 0.0);
                positive += sum > 0;
                CHECK_CASE(std::fabs(found[t * kFfn + j] - y * y) <= 2 * y * off + off * off,
                           version);
            }
        CHECK_CASE(positive > 1000, version);
    }
}

TEST(looking_at_inputs_changes_no_bit) {
    if (!on_cpu()) return;
    const Ids ids = prompt(150);
    for (const std::string& version : kTinyVersions) {
        const auto shared = model(version, 2);
        const Names names{"blk.1.time_mix_output.weight", "output.weight",
                          "blk.0.channel_mix_key.weight"};
        Session whole(shared), parts(shared), plain(shared);
        const Floats expected = inputs_of(whole, ids, names);
        Floats found(expected.size());
        for (std::size_t at = 0; at < ids.size(); at += 50) {
            const Floats part = inputs_of(parts,
                                          Ids(ids.begin() + static_cast<std::ptrdiff_t>(at),
                                              ids.begin() + static_cast<std::ptrdiff_t>(at + 50)),
                                          names);
            for (std::size_t k = 0; k < names.size(); ++k)
                std::copy_n(&part[k * 50 * kWidth], 50 * kWidth,
                            &found[(k * ids.size() + at) * kWidth]);
        }
        plain.feed(ids, Session::Logits::None, nullptr);
        CHECK_CASE(found == expected, version);
        CHECK_CASE(state_of(whole) == state_of(plain) && state_of(parts) == state_of(plain),
                   version);
        Floats after_looking(kVocab), after_feeding(kVocab);
        whole.logits(after_looking.data());
        plain.logits(after_feeding.data());
        CHECK_CASE(after_looking == after_feeding && whole.tokens() == 150, version);
        inputs_of(plain, {}, names);
        CHECK(plain.tokens() == 150);
    }
}

// One layer after the other over all tokens: what lies between two layers is the caller's.
TEST(layers_one_by_one_give_the_bits_of_all) {
    if (!on_cpu()) return;
    const Ids ids = prompt(150);
    for (const std::string& version : kTinyVersions) {
        const auto shared = model(version, 2);
        const Names names{"blk.0.time_mix_output.weight", "blk.1.time_mix_output.weight",
                          "output.weight"};
        Session whole(shared), layers(shared);
        const Floats expected = inputs_of(whole, ids, names);
        Floats between(ids.size() * kWidth), found(expected.size());
        Floats carry(ids.size() * static_cast<std::size_t>(shared->model().carry_width()));
        Section section{0, 1, between, carry};
        layers.inputs(ids, std::span(names).first(1), found.data(), {}, &section);
        CHECK_CASE(between == residual(shared, ids, 1), version);
        section.begin = 1;
        section.end = 2;
        layers.inputs(ids, std::span(names).subspan(1), &found[ids.size() * kWidth], {}, &section);
        CHECK_CASE(between == residual(shared, ids, 2), version);
        CHECK_CASE(found == expected, version);
        CHECK_CASE(state_of(layers) == state_of(whole), version);
    }
}

TEST(inputs_that_there_are_not) {
    const Ids ids = prompt(70);
    GgufBytes file = tiny_model("7", 1);
    GgufBytes::Tensor& value = file.at("blk.0.channel_mix_value.weight");
    value.name = "blk.0.channel_mix_value_t.weight";
    std::swap(value.dims[0], value.dims[1]);  // by input; what it holds does not matter
    const std::vector<std::byte> bytes = file.bytes();
    Session session(open_model(bytes, 1));
    feed_last(session, prompt(3, 2));
    const Floats state = state_of(session);
    const auto refused = [&](const std::string& name, const std::string& text) {
        CHECK_THROWS(std::invalid_argument, text, inputs_of(session, ids, {name}));
        CHECK_CASE(state_of(session) == state && session.tokens() == 3, name);
    };
    refused("blk.9.x", "tiny.gguf: no matrix 'blk.9.x', expected one of the file's");
    refused("output_norm.weight", "no matrix 'output_norm.weight'");
    const std::string device = session.model().backend().name();
    for (const std::string name : {"token_embd.weight", "blk.0.channel_mix_value_t.weight"})
        refused(name, "tiny.gguf: no product on " + device + " reads the matrix '" + name +
                          "' as the file has it");
    if (!on_cpu()) refused("output.weight", "no product on " + device);
    Floats between(ids.size() * kWidth), carry(between);
    for (const auto& [begin, end] : {std::pair{-1, 1}, {2, 1}, {0, 3}, {3, 3}}) {
        const Section section{begin, end, between, carry};
        CHECK_THROWS(std::invalid_argument,
                     "layers " + std::to_string(begin) + " to " + std::to_string(end) +
                         ", expected some of 0 to 2",
                     session.inputs(ids, {}, nullptr, {}, &section));
    }
    // The head runs only with the last layer.
    const Section first{0, 1, between, carry};
    const Names head{"output.weight"};
    Floats to(between.size());
    CHECK_THROWS(std::invalid_argument, "reads the matrix 'output.weight'",
                 session.inputs(ids, head, to.data(), {}, &first));
    CHECK(state_of(session) == state && session.tokens() == 3);
}
