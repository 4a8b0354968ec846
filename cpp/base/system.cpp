// SPDX-License-Identifier: Apache-2.0
#include "base/system.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <malloc.h>
#include <sched.h>
#include <sys/syscall.h>
#endif

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <initializer_list>
#include <limits>
#include <memory>
#include <thread>
#include <utility>

#include "base/error.h"

namespace rwkv_edge {

namespace {

// What a control group and those above it grant: the least of the numbers in their files `names`.
uint64_t group_limit(const std::string& root, std::string group,
                     std::initializer_list<const char*> names) {
    uint64_t least = std::numeric_limits<uint64_t>::max(), bytes = 0;
    for (;;) {
        for (const char* name : names)
            if (std::ifstream(root + group + "/" + name) >> bytes) least = std::min(least, bytes);
        if (group.empty()) return least;
        group.resize(group.rfind('/'));
    }
}

struct Descriptor {
    int fd;
    ~Descriptor() {
        if (fd >= 0) ::close(fd);
    }
};

// Only addresses can run out: the pages come from the file, and go back to it.
FileError too_large(const std::string& path, int64_t size) {
    std::string room, way;
    rlimit limit{};
    if (::getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
        room = cat(", which `ulimit -v` limits to ", limit.rlim_cur, " bytes");
        way = "raise that limit, or ";
    } else if (sizeof(void*) < 8) {
        room = " of 32 bits";
        way = "take a 64-bit system, or ";
    }
    return {ENOMEM, path,
            cat("its ", size, " bytes do not fit in the address space of this process", room, ": ",
                way, "take a smaller model or type")};
}

}  // namespace

int usable_cpus() {
#if defined(__linux__)
    cpu_set_t cpus;
    if (sched_getaffinity(0, sizeof(cpus), &cpus) == 0) return CPU_COUNT(&cpus);
#endif
    return static_cast<int>(std::thread::hardware_concurrency());
}

int process_id() { return ::getpid(); }

void Waitable::wait(uint32_t old) {
    // A notifier that misses this addition comes before it, and so does what it changed.
    waiting_.fetch_add(1, std::memory_order_acq_rel);
    while (load(std::memory_order_acquire) == old)
#if defined(__linux__)
        ::syscall(SYS_futex, static_cast<std::atomic<uint32_t>*>(this), FUTEX_WAIT_PRIVATE, old,
                  nullptr);
#else
        std::atomic<uint32_t>::wait(old, std::memory_order_acquire);
#endif
    waiting_.fetch_sub(1, std::memory_order_relaxed);
}

void Waitable::notify(int threads) {
    if (waiting_.fetch_add(0, std::memory_order_acq_rel) == 0) return;
#if defined(__linux__)
    ::syscall(SYS_futex, static_cast<std::atomic<uint32_t>*>(this), FUTEX_WAKE_PRIVATE, threads);
#else
    if (threads == 1)
        std::atomic<uint32_t>::notify_one();
    else
        std::atomic<uint32_t>::notify_all();
#endif
}

uint64_t available_memory(const std::string& root) {
    uint64_t bytes = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) *
                     static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    std::ifstream meminfo(root + "/proc/meminfo");
    for (std::string word; meminfo >> word;)
        if (uint64_t kib = 0; word == "MemAvailable:" && meminfo >> kib) bytes = kib << 10;
    // "0::/a/b" is a group of version 2, "4:cpu,memory:/a/b" one of version 1.
    std::ifstream groups(root + "/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {
        const std::size_t controllers = line.find(':') + 1, path = line.find(":/") + 1;
        if (controllers == 0 || path <= controllers) continue;
        const std::string group = line.substr(path);
        const std::string names = cat(',', line.substr(controllers, path - 1 - controllers), ',');
        if (names == ",,")
            bytes = std::min(
                bytes, group_limit(root + "/sys/fs/cgroup", group, {"memory.max", "memory.high"}));
        else if (names.find(",memory,") != std::string::npos)
            bytes = std::min(bytes, group_limit(root + "/sys/fs/cgroup/memory", group,
                                                {"memory.limit_in_bytes"}));
    }
    return bytes;
}

void share_memory_pools() {
#if defined(__GLIBC__)
    mallopt(M_ARENA_MAX, 2);
#endif
}

void give_back_memory() {
#if defined(__GLIBC__)
    malloc_trim(0);
#endif
}

void use_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] std::size_t bytes,
                    [[maybe_unused]] bool huge) {
#ifdef MADV_HUGEPAGE
    ::madvise(memory, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#endif
}

// O_NONBLOCK: a pipe that nobody writes to would wait for ever.
MappedFile::MappedFile(const std::string& path) {
    map(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK), 0, 0, path);
}

MappedFile::MappedFile(int descriptor, int64_t offset, int64_t length, const std::string& name) {
    if (offset < 0 || length < 0)
        throw std::invalid_argument(
            cat(name, ": ", length, " bytes from ", offset, " on, expected no negative number"));
    map(::fcntl(descriptor, F_DUPFD_CLOEXEC, 0), offset, length, name);
}

void MappedFile::map(int descriptor, int64_t offset, int64_t length, const std::string& path) {
    Descriptor file{descriptor};
    const auto fail = [&path](int code) { throw FileError(code, path, std::strerror(code)); };
    if (file.fd < 0) fail(errno);
    struct stat info{};
    if (::fstat(file.fd, &info) != 0) fail(errno);
    if (S_ISDIR(info.st_mode)) fail(EISDIR);
    if (!S_ISREG(info.st_mode))
        throw FormatError(cat(path, ": a pipe or a device, expected a regular file"));
    if (info.st_size == 0) throw FormatError(cat(path, ": the file is empty"));
    if (offset >= info.st_size || length > info.st_size - offset)
        throw std::invalid_argument(
            cat(path, ": ", length, " bytes from ", offset, " on, the file has ", info.st_size));
    if (length == 0) length = info.st_size - offset;
    if (!std::in_range<std::size_t>(length)) throw too_large(path, length);
    skipped_ = static_cast<std::size_t>(offset % ::sysconf(_SC_PAGESIZE));
    begin_ = offset;
    size_ = static_cast<std::size_t>(length);
    data_ = ::mmap(nullptr, skipped_ + size_, PROT_READ, MAP_SHARED, file.fd,
                   static_cast<off_t>(offset) - static_cast<off_t>(skipped_));
    if (data_ == MAP_FAILED && errno == ENOMEM) throw too_large(path, length);
    if (data_ == MAP_FAILED) fail(errno);
    file_ = std::exchange(file.fd, -1);
}

MappedFile::~MappedFile() {
    ::munmap(data_, skipped_ + size_);
    ::close(static_cast<int>(file_));
}

void MappedFile::read(int64_t offset, std::span<std::byte> to, const std::string& path) const {
    while (!to.empty()) {
        const ssize_t n = ::pread(static_cast<int>(file_), to.data(), to.size(),
                                  static_cast<off_t>(begin_ + offset));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) throw FileError(errno, path, std::strerror(errno));
        if (n == 0)
            throw FileError(EIO, path,
                            cat("the file ends after ", offset,
                                " bytes: it was cut short while the model was read from it"));
        offset += n;
        to = to.subspan(static_cast<std::size_t>(n));
    }
}

void say_on_bus_error(std::string text) {
    // The handler may call little more than write().
    static std::string said;
    said = std::move(text);
    struct sigaction action{};
    action.sa_handler = [](int signal) {
        [[maybe_unused]] const auto written = ::write(STDERR_FILENO, said.data(), said.size());
        ::raise(signal);
    };
    action.sa_flags = static_cast<int>(SA_RESETHAND);  // the second signal ends the process
    ::sigaction(SIGBUS, &action, nullptr);
}

void replace_file(const std::string& path, std::span<const std::span<const std::byte>> pieces) {
    const auto fail = [&path](int code) { throw FileError(code, path, std::strerror(code)); };
    const std::unique_ptr<char, void (*)(void*)> real(::realpath(path.c_str(), nullptr), std::free);
    const std::string target = real == nullptr ? path : real.get();
    struct stat old{}, info{}, named{};
    const bool there = ::stat(target.c_str(), &old) == 0;
    if (!there && errno != ENOENT) fail(errno);
    if (there && S_ISDIR(old.st_mode)) fail(EISDIR);
    if (there && !S_ISREG(old.st_mode))
        throw FileError(EINVAL, path, "a pipe or a device, expected a regular file");
    const std::size_t name = target.rfind('/') + 1;  // 0 where there is none
    const std::string part =
        cat(target.substr(0, name), '.', target.substr(name), ".00000000.part");

    Descriptor file{-1};
    for (;;) {
        file.fd =
            ::open(part.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
        if (file.fd < 0) fail(errno);
        // Without locks in the file system, writers do not wait.
        while (::flock(file.fd, LOCK_EX) != 0 && errno == EINTR) continue;
        // It may have become the target, or have been swept, before the lock was ours.
        if (::fstat(file.fd, &info) != 0) fail(errno);
        if (::lstat(part.c_str(), &named) == 0 && named.st_ino == info.st_ino) break;
        ::close(std::exchange(file.fd, -1));
    }
    if (info.st_uid != ::geteuid() || !S_ISREG(info.st_mode))
        throw FileError(EEXIST, path, cat(part, " is another's, or no regular file"));
    try {
        if (::ftruncate(file.fd, 0) != 0) fail(errno);
        ::fchmod(file.fd, there ? old.st_mode & 0777 : 0600);  // where the file system has modes
        for (std::span<const std::byte> rest : pieces)
            while (!rest.empty()) {
                const ssize_t n = ::write(file.fd, rest.data(), rest.size());
                if (n < 0 && errno == EINTR) continue;
                if (n < 0) fail(errno);
                rest = rest.subspan(static_cast<std::size_t>(n));
            }
        if (::fsync(file.fd) != 0) fail(errno);
        if (::rename(part.c_str(), target.c_str()) != 0) fail(errno);
        // The new name outlives a power failure, where the system can do that.
        const std::string folder = name == 0 ? "." : target.substr(0, name);
        const Descriptor opened{::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
        if (opened.fd >= 0) ::fsync(opened.fd);
    } catch (const FileError&) {
        ::unlink(part.c_str());
        throw;
    }
}

void MappedFile::forget() const { ::madvise(data_, skipped_ + size_, MADV_DONTNEED); }

}  // namespace rwkv_edge
