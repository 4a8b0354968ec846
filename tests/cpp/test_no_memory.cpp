// SPDX-License-Identifier: Apache-2.0
// Memory that runs out, at each allocation in turn: an error and nothing worse, and what was there
// before goes on as if nothing had been.
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <map>
#include <memory>
#include <new>
#include <utility>

#include "check.h"
#include "session.h"
#include "tiny_model.h"

using namespace rwkv_edge;

namespace {

std::atomic<int64_t> left{-1};   // allocations until one fails; below 0 none does
std::atomic<int64_t> in_use{0};  // bytes

// Lies before the memory that is given, because not every system says how large a block is.
struct Header {
    void* block;
    std::size_t size;
};

void* allocate(std::size_t size, std::size_t alignment) {
    if (left.load() >= 0 && left.fetch_sub(1) == 0) throw std::bad_alloc();
    alignment = std::max(alignment, sizeof(Header));
    std::size_t room = size + 2 * alignment;
    void* const block = std::malloc(room);
    if (block == nullptr) throw std::bad_alloc();
    void* memory = static_cast<char*>(block) + alignment;
    std::align(alignment, size, memory, room);
    static_cast<Header*>(memory)[-1] = {block, size};
    in_use += static_cast<int64_t>(size);
    return memory;
}

void release(void* memory) {
    if (memory == nullptr) return;
    const Header header = static_cast<Header*>(memory)[-1];
    in_use -= static_cast<int64_t>(header.size);
    std::free(header.block);
}

// Calls body with the first, the second ... allocation failing, until none does; returns how many
// failed. after() follows each failure.
template <class Body, class After>
int each_failure(Body&& body, After&& after) {
    for (int failed = 0;; ++failed) {
        left = failed;
        try {
            body();
            left = -1;
            return failed;
        } catch (const std::bad_alloc&) {
            left = -1;
            after();
        }
    }
}

std::shared_ptr<Runner> model(const std::string& version, Type type, int threads) {
    static std::map<std::pair<std::string, Type>, std::vector<std::byte>> files;  // outlive models
    std::vector<std::byte>& bytes = files[{version, type}];
    if (bytes.empty()) {
        GgufBytes file = tiny_model(version, 1);
        for (const char* name : {"blk.0.time_mix_key.weight", "blk.1.channel_mix_value.weight"})
            file.at(name).type = type;
        bytes = file.bytes();
    }
    return open_model(bytes, threads);
}

// A GPU under emulation takes its time, and differs in nothing that a version changes.
const std::vector<std::string> kVersions =
    test_device() == "cpu" ? kTinyVersions : std::vector<std::string>{"4", "7a"};
const std::vector<Type> kTypes = test_device() == "cpu"
                                     ? std::vector<Type>{Type::F32, Type::Q4_0, Type::Q4_1}
                                     : std::vector<Type>{Type::Q4_1};

std::vector<float> feed(Session& session, const std::vector<int32_t>& ids) {
    std::vector<float> logits(40);
    session.feed(ids, Session::Logits::Last, logits.data());
    return logits;
}

}  // namespace

// Not inline: GCC would see malloc's memory given to delete, and warn.
#define OUTSIDE [[gnu::noinline]]
OUTSIDE void* operator new(std::size_t size) { return allocate(size, alignof(std::max_align_t)); }
OUTSIDE void* operator new(std::size_t size, std::align_val_t alignment) {
    return allocate(size, static_cast<std::size_t>(alignment));
}
OUTSIDE void operator delete(void* memory) noexcept { release(memory); }
OUTSIDE void operator delete(void* memory, std::size_t) noexcept { release(memory); }
OUTSIDE void operator delete(void* memory, std::align_val_t) noexcept { release(memory); }
OUTSIDE void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
    release(memory);
}

// Whatever allocation fails, nothing was fed: neither where a session takes its first step, for
// which its runner needs memory, nor later, nor where two sessions share the steps.
TEST(a_session_stays_where_it_was) {
    const std::vector<int32_t> one{7}, many(100, 3);
    for (const std::string& version : kVersions)
        for (const Type type : kTypes) {
            Session whole(model(version, type, 2));
            const auto first = feed(whole, one), second = feed(whole, many);
            Session session(model(version, type, 2));
            const auto fresh = state_of(session);
            const int early = each_failure([&] { CHECK(feed(session, one) == first); },
                                           [&] { CHECK(state_of(session) == fresh); });
            const auto fork = session.fork();
            const auto state = state_of(session);
            std::vector<float> logits(80);
            const Session::Part parts[] = {{&session, many, Session::Logits::Last},
                                           {fork.get(), many, Session::Logits::Last}};
            const int late = each_failure([&] { Session::feed_together(parts, logits.data()); },
                                          [&] {
                                              CHECK(state_of(session) == state);
                                              CHECK(state_of(*fork) == state);
                                          });
            CHECK(std::vector<float>(logits.begin(), logits.begin() + 40) == second);
            CHECK(std::vector<float>(logits.begin() + 40, logits.end()) == second);
            CHECK_CASE(early > 10 && late > 5, version);
        }
}

// Whatever it has read, and whoever shared its steps: the scratch memory is its runner's.
TEST(a_session_costs_its_state) {
    if (test_device() != "cpu") return;  // what it costs there is not the host's
    const std::vector<int32_t> many(100, 3);
    for (const std::string& version : kVersions) {
        const auto shared = model(version, Type::Q4_0, 2);
        const int64_t state = 4 * shared->model().state_size();
        Session first(shared);
        feed(first, many);
        const int64_t before = in_use;
        std::vector<std::unique_ptr<Session>> sessions;
        for (int64_t n = 1; n <= 20; ++n) {
            sessions.push_back(n % 2 == 0 ? first.fork() : std::make_unique<Session>(shared));
            feed(*sessions.back(), many);
            const Session::Part parts[] = {{&first, many, Session::Logits::None},
                                           {sessions.back().get(), many, Session::Logits::None}};
            Session::feed_together(parts, nullptr);
            CHECK_CASE(in_use - before <= n * (state + 4096), version);
        }
        sessions.clear();
        CHECK_CASE(in_use - before < 4096, version);
    }
}

// Once a step has succeeded no copy is kept to go back to, so no later step may need memory
// half-way, whichever logits it gives.
TEST(later_steps_need_no_memory_half_way) {
    const std::vector<int32_t> one{7}, few(8, 3);
    for (const std::string& version : kVersions) {
        const auto shared = model(version, Type::F32, 2);
        Session session(shared), other(shared);
        feed(session, one);
        const auto state = state_of(session), begin = state_of(other);
        const auto after = [&] {
            CHECK_CASE(state_of(session) == state && state_of(other) == begin, version);
        };
        std::vector<float> logits(8 * 40 + 40);
        for (const auto mode : {Session::Logits::None, Session::Logits::All}) {
            const auto back = session.fork();
            each_failure([&] { session.feed(few, mode, logits.data()); }, after);
            session.rewind(*back);
        }
        // logits of every token of one, and of the last of the other, which are not neighbours
        const Session::Part parts[] = {{&session, one, Session::Logits::Last},
                                       {&other, few, Session::Logits::All}};
        each_failure([&] { Session::feed_together(parts, logits.data()); }, after);
    }
}

TEST(a_model_does_not_open_by_halves) {
    const std::vector<std::byte> bytes = tiny_model("7", 1).bytes();
    const int failed = each_failure(
        [&] {
            const auto shared = open_model(bytes, 3);
            const auto fork = Session(shared).fork();
        },
        [] {});
    CHECK_CASE(failed > 20, std::to_string(failed));
}
