// SPDX-License-Identifier: Apache-2.0
// Sessions over a shared model of every version: their states, their independence, two of them in
// two threads.
#include <cmath>
#include <map>
#include <thread>

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
