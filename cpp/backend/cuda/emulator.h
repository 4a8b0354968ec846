// SPDX-License-Identifier: Apache-2.0
// Runs device code on the CPU, to test it where no GPU is. Every thread of a block is a fiber; a
// barrier or an exchange within a warp lets the next one run. Blocks run one after the other.
//
// It finds what a GPU would pass over in silence: shared memory that is read before it was written
// (it holds NaN), that two threads touch between two barriers (a race), collectives that not all
// threads reach. The order of threads and blocks can be turned round or shuffled: results must not
// depend on it. Each of these ends the launch with std::logic_error.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <string>

#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __restrict__

struct uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

namespace emulator {

struct Index {
    unsigned x = 0, y = 0, z = 0;
};

enum class Order { Up, Down, Shuffled };
void set_order(Order order);
// Fibers that were resumed so far, by all threads of the process.
uint64_t switches();

void launch(Index grid, unsigned threads, const std::function<void()>& body);

// --- what device code calls ---

// Where this thread of the process is.
struct Here {
    Index block, block_size, grid;
    int thread = 0;
    uint64_t blocks = 0, intervals = 0;  // so far: blocks, and what lies between two barriers
};
extern constinit thread_local Here here;

inline Index thread_index() { return {static_cast<unsigned>(here.thread), 0, 0}; }

// What is wrong with the program; ends the launch.
[[noreturn]] void fail(const std::string& what, const std::source_location& where);
void barrier(const std::source_location& where);

constexpr int kLanes = 32;
// All lanes of a warp give what they have and wait for each other; the last one calls complete()
// with all of it, which leaves with each what it is to get.
using Complete = void (*)(void* const (&lanes)[kLanes]);
void collective(void* mine, Complete complete, const std::source_location& where);

// An element of shared memory, which knows who touched it since the last barrier.
template <class T>
class Cell {
public:
    operator T() const {
        const Here& at = here;
        if (written_in_ == at.intervals && writer_ != at.thread)
            fail("a race: read what another thread wrote since the last barrier", {});
        reader_ = read_in_ == at.intervals && reader_ != at.thread ? kMany : at.thread;
        read_in_ = at.intervals;
        return value_;
    }
    Cell& operator=(T value) {
        const Here& at = here;
        if ((written_in_ == at.intervals && writer_ != at.thread) ||
            (read_in_ == at.intervals && reader_ != at.thread))
            fail("a race: wrote what another thread touched since the last barrier", {});
        written_in_ = at.intervals;
        writer_ = at.thread;
        value_ = value;
        return *this;
    }
    Cell& operator=(const Cell& other) { return *this = static_cast<T>(other); }
    void spoil() {
        std::memset(&value_, 0xff, sizeof value_);
        read_in_ = written_in_ = 0;
    }

private:
    static constexpr int kMany = -1;
    T value_;
    mutable uint64_t read_in_ = 0;
    uint64_t written_in_ = 0;
    mutable int reader_ = 0;
    int writer_ = 0;
};

// An array of shared memory: one for each place in the code, new for every block.
template <class T, int kLength>
class Shared {
public:
    Cell<T>* begin() {
        if (block_ != here.blocks) {
            for (Cell<T>& cell : cells_) cell.spoil();
            block_ = here.blocks;
        }
        return cells_;
    }

private:
    Cell<T> cells_[kLength];
    uint64_t block_ = 0;
};

}  // namespace emulator

#define SHARED(T, name, length)                                      \
    static thread_local emulator::Shared<T, length> name##_of_block; \
    emulator::Cell<T>* const name = name##_of_block.begin()
#define SHARED_POINTER(T) emulator::Cell<T>*
#define threadIdx (emulator::thread_index())
#define blockIdx (emulator::here.block)
#define blockDim (emulator::here.block_size)
#define gridDim (emulator::here.grid)
#define __syncthreads() emulator::barrier(std::source_location::current())

#define DEVICE [[maybe_unused]] static inline
#define DEVICE_MEMBER inline

namespace rwkv_edge::cuda {

DEVICE float bits_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
DEVICE uint32_t float_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
// Halves as their bits.
float half_value(uint16_t half);
uint16_t half_of(float value);

template <class T>
T shuffle_xor(T value, int lanes,
              const std::source_location& where = std::source_location::current()) {
    struct Given {
        T value, result;
        int lanes;
    } mine{value, value, lanes};
    emulator::collective(
        &mine,
        [](void* const(&all)[32]) {
            for (int lane = 0; lane < 32; ++lane) {
                auto* own = static_cast<Given*>(all[lane]);
                own->result = static_cast<Given*>(all[lane ^ own->lanes])->value;
            }
        },
        where);
    return mine.result;
}
DEVICE uint32_t ballot(bool mine,
                       const std::source_location& where = std::source_location::current()) {
    uint32_t word = mine;
    emulator::collective(
        &word,
        [](void* const(&lanes)[32]) {
            uint32_t all = 0;
            for (int lane = 0; lane < 32; ++lane)
                all |= *static_cast<uint32_t*>(lanes[lane]) << lane;
            for (void* lane : lanes) *static_cast<uint32_t*>(lane) = all;
        },
        where);
    return word;
}
DEVICE int bits_set(uint32_t word) { return std::popcount(word); }
// The integers in both halves of `v` (each below 1024), less `zero`, as two halves.
uint32_t integers_to_halves(uint32_t v, int zero);
// D += A B: 16 x 16 times 16 x 8, halves in and floats out, from the lanes' fragments.
void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
         const std::source_location& where = std::source_location::current());

template <class T>
T load_once(const T* from) {  // what is read only once
    return *from;
}
DEVICE void prefetch(const void*) {}
DEVICE void wait_for_previous() {}

}  // namespace rwkv_edge::cuda
