// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/emulator.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <numeric>
#include <random>
#include <span>
#include <stdexcept>

#include "base/error.h"
#include "quant/blocks.h"
#include "quant/codecs.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__) || defined(__SANITIZE_ADDRESS__)
#define RWKV_EDGE_UCONTEXT
#include <ucontext.h>
#endif

namespace emulator {

namespace {

constexpr std::size_t kStack = 64 << 10;
enum class Wait { Nothing, Barrier, Warp };

#ifdef RWKV_EDGE_UCONTEXT
using Context = ucontext_t;
#else
using Context = void*;
#endif

struct Fiber {
    Context context{};
    std::unique_ptr<char[]> stack;
    int id = 0;
    bool done = false;
    Wait wait = Wait::Nothing;
    std::source_location where;
};

struct Warp {
    int arrived = 0;
    Complete complete = nullptr;
    std::source_location where;
    void* lanes[kLanes];
};

struct Machine {
    int threads = 0;
    const std::function<void()>* body = nullptr;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    Context main{};
    Fiber* current = nullptr;
    int alive = 0, waiting = 0;
    std::string failure;
    std::mt19937 random{1};
};
// Made by the first launch: what code reads often needs no look whether it was.
thread_local std::unique_ptr<Machine> made;
constinit thread_local Machine* machine = nullptr;
std::atomic<Order> order{Order::Up};
std::atomic<uint64_t> resumed{0};

#ifdef RWKV_EDGE_UCONTEXT
void start_fiber();
void prepare(Fiber& fiber) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, start_fiber, 0);
}
void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }
#else
extern "C" void rwkv_edge_switch(void** from, void* to);
asm(R"(
.text
.type rwkv_edge_switch,@function
rwkv_edge_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size rwkv_edge_switch, .-rwkv_edge_switch
)");
void start_fiber();
void prepare(Fiber& fiber) {
    auto top = reinterpret_cast<std::uintptr_t>(fiber.stack.get() + kStack) & ~std::uintptr_t{63};
    void** sp = reinterpret_cast<void**>(top);
    *--sp = nullptr;  // where start_fiber would return to
    *--sp = reinterpret_cast<void*>(&start_fiber);
    for (int i = 0; i < 6; ++i) *--sp = nullptr;
    fiber.context = sp;
}
void switch_context(Context& from, Context& to) { rwkv_edge_switch(&from, to); }
#endif

void leave() { switch_context(machine->current->context, machine->main); }

void start_fiber() {
    (*machine->body)();
    machine->current->done = true;
    leave();
}

std::string place(const std::source_location& where) {
    return rwkv_edge::cat(where.file_name(), ":", where.line());
}

bool resume(Fiber& fiber) {
    Machine& m = *machine;
    if (fiber.done || fiber.wait != Wait::Nothing) return false;
    m.current = &fiber;
    here.thread = fiber.id;
    switch_context(m.main, fiber.context);
    if (fiber.done) --m.alive;
    return true;
}

void say_stuck() {
    std::string text;
    for (const Fiber& fiber : machine->fibers) {
        if (fiber.id >= machine->threads) break;
        if (fiber.done && fiber.id % kLanes == 0)
            text += rwkv_edge::cat("; thread ", fiber.id, " has ended");
        if (fiber.done || fiber.id % kLanes != 0) continue;
        text += rwkv_edge::cat("; thread ", fiber.id, " waits at ", place(fiber.where));
    }
    machine->failure = "not all threads reach a barrier or an exchange" + text;
}

void run_block() {
    Machine& m = *machine;
    ++here.blocks;
    ++here.intervals;
    const int n = m.threads, warps = n / kLanes;
    for (int i = 0; i < n; ++i) {
        Fiber& f = m.fibers[static_cast<std::size_t>(i)];
        f.id = i;
        f.done = false;
        f.wait = Wait::Nothing;
        prepare(f);
    }
    for (Warp& warp : m.warps) warp.arrived = 0;
    m.alive = n;
    m.waiting = 0;
    const Order turn = order;
    uint64_t count = 0;
    int lanes[kLanes], every[1024 / kLanes];
    std::iota(std::begin(lanes), std::end(lanes), 0);
    std::iota(std::begin(every), std::end(every), 0);
    const std::span turns(every, static_cast<std::size_t>(warps));
    while (m.alive > 0) {
        if (turn == Order::Shuffled) std::ranges::shuffle(turns, m.random);
        bool moved = false;
        for (int w = 0; w < warps; ++w) {
            const int warp =
                turns[static_cast<std::size_t>(turn == Order::Down ? warps - 1 - w : w)];
            for (bool again = true; again;) {  // a warp goes on for as long as it can
                again = false;
                if (turn == Order::Shuffled) std::ranges::shuffle(lanes, m.random);
                for (int l = 0; l < kLanes; ++l) {
                    const int lane = lanes[turn == Order::Down ? kLanes - 1 - l : l];
                    if (resume(m.fibers[static_cast<std::size_t>(warp * kLanes + lane)])) {
                        again = true;
                        ++count;
                    }
                    if (!m.failure.empty()) return;
                }
                moved |= again;
            }
        }
        if (m.waiting > 0 && m.waiting == n) {
            m.waiting = 0;
            ++here.intervals;
            for (Fiber& f : m.fibers) f.wait = Wait::Nothing;
            moved = true;
        }
        if (!moved) {
            say_stuck();
            return;
        }
    }
    resumed += count;
}

}  // namespace

void set_order(Order wanted) { order = wanted; }
uint64_t switches() { return resumed; }

constinit thread_local Here here;

void fail(const std::string& what, const std::source_location& where) {
    Machine& m = *machine;
    if (m.failure.empty())
        m.failure =
            rwkv_edge::cat(where.line() == 0 ? "" : place(where) + ": ", what, " (thread ",
                           here.thread, " of block ", here.block.x, ", ", here.block.y, ")");
    for (;;) leave();
}

void barrier(const std::source_location& where) {
    Machine& m = *machine;
    m.current->wait = Wait::Barrier;
    m.current->where = where;
    ++m.waiting;
    leave();
}

void collective(void* mine, Complete complete, const std::source_location& where) {
    Machine& m = *machine;
    Fiber& fiber = *m.current;
    Warp& warp = m.warps[static_cast<std::size_t>(fiber.id / kLanes)];
    const int lane = fiber.id % kLanes;
    if (warp.arrived == 0) {
        warp.complete = complete;
        warp.where = where;
    } else if (warp.complete != complete || warp.where.line() != where.line()) {
        fail("an exchange that other lanes of the warp are not at: they wait at " +
                 place(warp.where),
             where);
    }
    warp.lanes[lane] = mine;
    if (++warp.arrived < kLanes) {
        fiber.where = where;
        fiber.wait = Wait::Warp;
        leave();
        return;
    }
    warp.complete(warp.lanes);
    warp.arrived = 0;
    for (int i = 0; i < kLanes; ++i)
        m.fibers[static_cast<std::size_t>(fiber.id - lane + i)].wait = Wait::Nothing;
}

void launch(Index grid, unsigned threads, const std::function<void()>& body) {
    if (machine == nullptr) {
        made = std::make_unique<Machine>();
        machine = made.get();
    }
    Machine& m = *machine;
    if (threads == 0 || threads % kLanes != 0 || threads > 1024 || grid.x == 0 || grid.y == 0 ||
        grid.z == 0 || grid.y > 65535 || grid.z > 65535)
        throw std::logic_error(rwkv_edge::cat("a launch of ", grid.x, " x ", grid.y, " x ", grid.z,
                                              " blocks of ", threads, " threads"));
    here.grid = grid;
    here.block_size = {threads, 1, 1};
    m.threads = static_cast<int>(threads);
    m.body = &body;
    m.failure.clear();
    if (m.fibers.size() < threads) m.fibers.resize(threads);
    for (Fiber& fiber : m.fibers)
        if (fiber.stack == nullptr) fiber.stack = std::make_unique<char[]>(kStack);
    m.warps.resize(m.fibers.size() / kLanes);
    const uint64_t count = uint64_t{grid.x} * grid.y * grid.z;
    std::vector<uint64_t> shuffled(order == Order::Shuffled ? count : 0);
    std::iota(shuffled.begin(), shuffled.end(), uint64_t{0});
    std::ranges::shuffle(shuffled, m.random);
    for (uint64_t i = 0; i < count; ++i) {
        const uint64_t block = order == Order::Shuffled ? shuffled[i]
                               : order == Order::Down   ? count - 1 - i
                                                        : i;
        here.block = {static_cast<unsigned>(block % grid.x),
                      static_cast<unsigned>(block / grid.x % grid.y),
                      static_cast<unsigned>(block / grid.x / grid.y)};
        run_block();
        if (!m.failure.empty()) throw std::logic_error("emulated GPU: " + m.failure);
    }
}

}  // namespace emulator

namespace rwkv_edge::cuda {

namespace {

struct Halves {
    float value[65536];
    Halves() {
        for (uint32_t i = 0; i < 65536; ++i) value[i] = half_to_float(static_cast<uint16_t>(i));
    }
};
const Halves& halves() {
    static const Halves table;
    return table;
}

struct Integers {
    uint16_t half[4096];  // of i - 2048
    Integers() {
        for (int i = 0; i < 4096; ++i) half[i] = float_to_half(static_cast<float>(i - 2048));
    }
};

}  // namespace

float half_value(uint16_t half) { return halves().value[half]; }
uint16_t half_of(float value) { return float_to_half(value); }

uint32_t integers_to_halves(uint32_t v, int zero) {
    static const Integers table;
    const auto half = [&](uint32_t i) {
        return uint32_t{table.half[static_cast<int>(i) - zero + 2048]};
    };
    return half(v & 0x3ff) | half(v >> 16 & 0x3ff) << 16;
}

void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
         const std::source_location& where) {
    struct Given {
        float* d;
        const uint32_t* a;
        uint32_t b[2];
    } mine{d, a, {b0, b1}};
    emulator::collective(
        &mine,
        [](void* const(&lanes)[32]) {
            // Lane 4g + q has of A rows g and g + 8, columns 2q, 2q + 1 and those plus 8; of B
            // those rows of column g; of D columns 2q and 2q + 1 of rows g and g + 8.
            const float* table = halves().value;
            float left[16][16], right[16][8], sums[16][8];
            for (int lane = 0; lane < 32; ++lane) {
                const int g = lane / 4, q = lane % 4;
                const auto& given = *static_cast<const Given*>(lanes[lane]);
                for (int e = 0; e < 4; ++e) {
                    float* to = &left[g + e % 2 * 8][2 * q + e / 2 * 8];
                    to[0] = table[given.a[e] & 0xffff];
                    to[1] = table[given.a[e] >> 16];
                    sums[g + e / 2 * 8][2 * q + e % 2] = given.d[e];
                }
                for (int e = 0; e < 2; ++e) {
                    right[2 * q + 8 * e][g] = table[given.b[e] & 0xffff];
                    right[2 * q + 8 * e + 1][g] = table[given.b[e] >> 16];
                }
            }
            for (int row = 0; row < 16; ++row)
                for (int k = 0; k < 16; ++k)
                    for (int n = 0; n < 8; ++n)  // products of halves are exact
                        sums[row][n] += left[row][k] * right[k][n];
            for (int lane = 0; lane < 32; ++lane)
                for (int e = 0; e < 4; ++e)
                    static_cast<const Given*>(lanes[lane])->d[e] =
                        sums[lane / 4 + e / 2 * 8][2 * (lane % 4) + e % 2];
        },
        where);
}

}  // namespace rwkv_edge::cuda
