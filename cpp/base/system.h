// SPDX-License-Identifier: Apache-2.0
// Everything that the engine asks the operating system, so that another system is one more file.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace rwkv_edge {

// Of a container or of taskset, not of the machine.
int usable_cpus();

// A forked child has another one than its parent.
int process_id();

// Tells the core that this thread only waits for another.
inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// A number that threads can wait on, by the system's own call. std::atomic::wait is not that call
// everywhere: GCC 12's loses wake-ups where the system has no futex.
class Waitable : public std::atomic<uint32_t> {
public:
    using std::atomic<uint32_t>::atomic;
    // Returns once the number is no longer `old`.
    void wait(uint32_t old);
    // After each change that someone may wait for. Costs no system call where nobody waits.
    void notify_one() { notify(1); }
    void notify_all() { notify(INT32_MAX); }

private:
    void notify(int threads);

    std::atomic<uint32_t> waiting_{0};
};

// Bytes of memory that the system can give to this process, mapped files included: what is free or
// can be freed, and no more than its control group may have, as Linux tells in files below `root`.
uint64_t available_memory(const std::string& root = "");

// A program, not a library, may ask for this before it has many threads: they take memory from two
// pools, where glibc gives up to eight per core, each of which keeps what its threads once needed.
void share_memory_pools();

// Gives the system the pages of memory that this process no longer uses and that its allocator has
// kept, where the allocator can (glibc's). Threads may go on meanwhile.
void give_back_memory();

// Whether untouched memory, which begins at a multiple of 2 MiB, comes in pages of that size.
void use_huge_pages(void* memory, std::size_t bytes, bool huge);

// A program, not a library, may ask for this: where SIGBUS ends the process, as it does when a
// mapped file was cut short, `text` stands on stderr.
void say_on_bus_error(std::string text);

// Writes a file of these pieces. It is written beside its target, as `.NAME.00000000.part`, and
// takes its place when it is whole: at every moment the target is the old file or the new one. What
// a killed writer has left, the next one writes again; writers of one file wait for each other, or
// on Windows the second one fails. A new file is for its owner only, an old one keeps its mode, and
// a link stays one. Throws FileError.
void replace_file(const std::string& path, std::span<const std::span<const std::byte>> pieces);

// A whole regular file, mapped read-only. The map is the only copy of the weights. A file that is
// cut short while it is mapped kills the process (SIGBUS), as with every program that maps files.
class MappedFile {
public:
    // Throws FileError when the file cannot be opened or mapped, FormatError when it is empty or no
    // regular file.
    explicit MappedFile(const std::string& path);
    // `length` bytes of an open file from `offset` on; 0: to its end. `name` appears in messages
    // only. Throws FileError, FormatError, std::invalid_argument for a part that the file lacks,
    // and on Windows UnsupportedError.
    MappedFile(int descriptor, int64_t offset, int64_t length, const std::string& name);
    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    std::span<const std::byte> bytes() const {
        return {static_cast<std::byte*>(data_) + skipped_, size_};
    }
    // Copies bytes from the file itself, of which no page comes into the map. Throws FileError with
    // this path, for a file that was cut short too.
    void read(int64_t offset, std::span<std::byte> to, const std::string& path) const;
    // Gives back the pages read so far; they come from the file again when they are needed.
    void forget() const;

private:
    // Takes the descriptor, which may be the result of a call that failed.
    void map(int descriptor, int64_t offset, int64_t length, const std::string& path);

    intptr_t file_;  // a descriptor, or a HANDLE
    void* data_;
    std::size_t size_;
    std::size_t skipped_ = 0;  // bytes of the map before the part, which begins inside a page
    int64_t begin_ = 0;        // of the part in the file
};

}  // namespace rwkv_edge
