// SPDX-License-Identifier: Apache-2.0
#include "io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace rwkv_edge {

namespace {

struct Descriptor {
    int fd;
    ~Descriptor() {
        if (fd >= 0) ::close(fd);
    }
};

// Only addresses can run out: the pages come from the file, and go back to it.
FileError too_large(const std::string& path, off_t size) {
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

MappedFile::MappedFile(const std::string& path) {
    const auto fail = [&path](int code) { throw FileError(code, path, std::strerror(code)); };
    const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
    if (file.fd < 0) fail(errno);
    struct stat info{};
    if (::fstat(file.fd, &info) != 0) fail(errno);
    if (S_ISDIR(info.st_mode)) fail(EISDIR);
    if (info.st_size == 0) throw FormatError(cat(path, ": the file is empty"));
    if (!std::in_range<std::size_t>(info.st_size)) throw too_large(path, info.st_size);
    size_ = static_cast<std::size_t>(info.st_size);
    void* data = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, file.fd, 0);
    if (data == MAP_FAILED && errno == ENOMEM) throw too_large(path, info.st_size);
    if (data == MAP_FAILED) fail(errno);
    data_ = static_cast<const std::byte*>(data);
}

MappedFile::~MappedFile() { ::munmap(const_cast<std::byte*>(data_), size_); }

}  // namespace rwkv_edge
