// SPDX-License-Identifier: Apache-2.0
// Lets a call to the operating system fail, the one that a test names: loaded before the C library.
// Only calls that concern files in one folder are counted.

#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

namespace {

constexpr int kHalf = -1;  // in place of an error: write half of it

char folder[PATH_MAX];
char names[1 << 16];  // of the calls counted, one a line
int at = 0, code = 0, calls = 0;
bool lasting = false;

bool inside(const char* path) {
    return *folder && path && strncmp(path, folder, strlen(folder)) == 0;
}

bool inside(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t size = *folder ? readlink(link, path, sizeof path - 1) : -1;
    if (size < 0) return false;
    path[size] = 0;
    return inside(path);
}

// Counts a call; whether it is one that fails.
bool fails(const char* name) {
    ++calls;
    strncat(names, name, sizeof names - strlen(names) - 2);
    strcat(names, "\n");
    if (calls != at && !(lasting && at && calls > at)) return false;
    errno = code;
    return true;
}

template <class Function>
Function* real(const char* name, Function*) {
    return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

#define REAL(name) real(#name, &name)

extern "C" {

void fault_arm(const char* where, int number, int error, int forever) {
    strncpy(folder, where, sizeof folder - 1);
    at = number, code = error, lasting = forever, calls = 0, names[0] = 0;
}

const char* fault_calls() { return names; }

int open64(const char* path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    const unsigned mode = flags & O_CREAT ? va_arg(more, unsigned) : 0;
    va_end(more);
    if (inside(path) && fails("open") && code != kHalf) return -1;
    return REAL(open64)(path, flags, mode);
}

int open(const char* path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    const unsigned mode = flags & O_CREAT ? va_arg(more, unsigned) : 0;
    va_end(more);
    return open64(path, flags, mode);
}

ssize_t write(int fd, const void* data, size_t count) {
    const bool fail = inside(fd) && fails("write");
    if (fail && code != kHalf) return -1;
    return REAL(write)(fd, data, fail ? (count + 1) / 2 : count);
}

int fsync(int fd) {  // which takes long, and no test pulls the plug
    if (!inside(fd)) return REAL(fsync)(fd);
    return fails("fsync") && code != kHalf ? -1 : 0;
}

int fchmod(int fd, mode_t mode) {
    if (inside(fd) && fails("fchmod") && code != kHalf) return -1;
    return REAL(fchmod)(fd, mode);
}

int close(int fd) {
    const bool written = (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY;  // else nothing can be lost
    const bool fail = written && inside(fd) && fails("close") && code != kHalf;
    const int error = errno, done = REAL(close)(fd);  // it is closed whatever it says
    if (!fail) return done;
    errno = error;
    return -1;
}

int rename(const char* from, const char* to) {
    if (inside(to) && fails("rename") && code != kHalf) return -1;
    return REAL(rename)(from, to);
}

int mkdir(const char* path, mode_t mode) {
    if (inside(path) && fails("mkdir") && code != kHalf) return -1;
    return REAL(mkdir)(path, mode);
}

void* mmap64(void* where, size_t size, int access, int flags, int fd, off64_t offset) {
    if (fd >= 0 && inside(fd) && fails("mmap") && code != kHalf) return MAP_FAILED;
    return REAL(mmap64)(where, size, access, flags, fd, offset);
}

void* mmap(void* where, size_t size, int access, int flags, int fd, off_t offset) {
    return mmap64(where, size, access, flags, fd, offset);
}

}  // extern "C"
