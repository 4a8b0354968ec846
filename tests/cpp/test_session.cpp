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
using Ids = std::vector<int32_t>;
using Floats = std::vector<float>;

// The bytes of a parsed file must outlive the model.
std::shared_ptr<const Model> model(const std::string& version, int threads) {
    static std::map<std::string, std::vector<std::byte>> files;
    std::vector<std::byte>& bytes = files[version];
    if (bytes.empty()) bytes = tiny_model(version, 1).bytes();
    return std::make_shared<Model>(ModelFile::parse(bytes, "tiny.gguf"), threads);
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
        for (int threads = 1; threads <= 3; ++threads) {
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
