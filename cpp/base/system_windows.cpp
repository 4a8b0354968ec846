// SPDX-License-Identifier: Apache-2.0
#include <windows.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <string>
#include <thread>
#include <utility>

#include "base/error.h"
#include "base/system.h"

namespace rwkv_edge {

namespace {

struct Handle {
    HANDLE handle;
    ~Handle() {
        if (handle != nullptr && handle != INVALID_HANDLE_VALUE) ::CloseHandle(handle);
    }
};

int errno_of(DWORD error) {
    switch (error) {
        case ERROR_FILE_NOT_FOUND:
        case ERROR_PATH_NOT_FOUND:
        case ERROR_INVALID_NAME:
        case ERROR_INVALID_DRIVE:
        case ERROR_BAD_NETPATH: return ENOENT;
        case ERROR_ACCESS_DENIED:
        case ERROR_SHARING_VIOLATION:
        case ERROR_LOCK_VIOLATION: return EACCES;
        case ERROR_TOO_MANY_OPEN_FILES: return EMFILE;
        case ERROR_NOT_ENOUGH_MEMORY:
        case ERROR_OUTOFMEMORY:
        case ERROR_COMMITMENT_LIMIT: return ENOMEM;
        default: return EIO;
    }
}

[[noreturn]] void fail(const std::string& path) {
    const DWORD error = ::GetLastError();
    const int code = errno_of(error);
    throw FileError(code, path, cat(std::strerror(code), " (Windows error ", error, ")"));
}

std::wstring wide(const std::string& path) {
    if (path.find('\0') != std::string::npos)
        throw FileError(EINVAL, path, "a path with a zero byte");
    if (path.empty()) throw FileError(ENOENT, path, std::strerror(ENOENT));
    const int bytes = static_cast<int>(path.size());
    const auto convert = [&](wchar_t* to, int room) {
        return ::MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path.data(), bytes, to, room);
    };
    const int n = convert(nullptr, 0);
    if (n <= 0) throw FileError(EINVAL, path, "the path is not UTF-8");
    std::wstring name(static_cast<std::size_t>(n), L'\0');
    convert(name.data(), n);
    return name;
}

HANDLE handle_of(intptr_t file) { return reinterpret_cast<HANDLE>(file); }

}  // namespace

int usable_cpus() {
    DWORD_PTR process = 0, system = 0;
    if (::GetProcessAffinityMask(::GetCurrentProcess(), &process, &system) != 0 && process != 0)
        return std::popcount(static_cast<uint64_t>(process));
    return static_cast<int>(std::thread::hardware_concurrency());
}

int process_id() { return static_cast<int>(::GetCurrentProcessId()); }

void Waitable::wait(uint32_t old) {
    // A notifier that misses this addition comes before it, and so does what it changed.
    waiting_.fetch_add(1, std::memory_order_acq_rel);
    while (load(std::memory_order_acquire) == old)
        ::WaitOnAddress(static_cast<std::atomic<uint32_t>*>(this), &old, sizeof old, INFINITE);
    waiting_.fetch_sub(1, std::memory_order_relaxed);
}

void Waitable::notify(int threads) {
    if (waiting_.fetch_add(0, std::memory_order_acq_rel) == 0) return;
    if (threads == 1)
        ::WakeByAddressSingle(static_cast<std::atomic<uint32_t>*>(this));
    else
        ::WakeByAddressAll(static_cast<std::atomic<uint32_t>*>(this));
}

uint64_t available_memory(const std::string&) {
    MEMORYSTATUSEX status{};
    status.dwLength = sizeof status;
    return ::GlobalMemoryStatusEx(&status) != 0 ? status.ullAvailPhys : 0;
}

// Only glibc keeps memory so.
void share_memory_pools() {}
void give_back_memory() {}

// Large pages need a right that programs do not have.
void use_huge_pages(void*, std::size_t, bool) {}

// A mapped file cannot be cut short here, but the drive of the network that it lies on may go.
void say_on_bus_error(std::string text) {
    static std::string said;
    said = std::move(text);
    ::SetUnhandledExceptionFilter([](EXCEPTION_POINTERS* found) -> LONG {
        DWORD written = 0;
        if (found->ExceptionRecord->ExceptionCode == EXCEPTION_IN_PAGE_ERROR)
            ::WriteFile(::GetStdHandle(STD_ERROR_HANDLE), said.data(),
                        static_cast<DWORD>(said.size()), &written, nullptr);
        return EXCEPTION_CONTINUE_SEARCH;
    });
}

// All three ways of sharing: others may write a new file, rename this one and take its place.
MappedFile::MappedFile(const std::string& path) {
    const std::wstring name = wide(path);
    const DWORD attributes = ::GetFileAttributesW(name.c_str());
    if (attributes == INVALID_FILE_ATTRIBUTES) fail(path);
    if ((attributes & FILE_ATTRIBUTE_DIRECTORY) != 0)
        throw FileError(EISDIR, path, std::strerror(EISDIR));
    Handle file{::CreateFileW(name.c_str(), GENERIC_READ,
                              FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, nullptr,
                              OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr)};
    if (file.handle == INVALID_HANDLE_VALUE) fail(path);
    if (::GetFileType(file.handle) != FILE_TYPE_DISK)
        throw FormatError(cat(path, ": a pipe or a device, expected a regular file"));
    LARGE_INTEGER size{};
    if (::GetFileSizeEx(file.handle, &size) == 0) fail(path);
    if (size.QuadPart == 0) throw FormatError(cat(path, ": the file is empty"));
    if (!std::in_range<std::size_t>(size.QuadPart))
        throw FileError(ENOMEM, path,
                        cat("its ", size.QuadPart,
                            " bytes do not fit in the address space of this process of 32 bits: "
                            "take a 64-bit system, or take a smaller model or type"));
    size_ = static_cast<std::size_t>(size.QuadPart);
    const Handle map{::CreateFileMappingW(file.handle, nullptr, PAGE_READONLY, 0, 0, nullptr)};
    if (map.handle == nullptr) fail(path);
    data_ = ::MapViewOfFile(map.handle, FILE_MAP_READ, 0, 0, 0);
    if (data_ == nullptr) fail(path);
    file_ = reinterpret_cast<intptr_t>(std::exchange(file.handle, nullptr));
}

MappedFile::MappedFile(int, int64_t, int64_t, const std::string& name) {
    throw UnsupportedError(cat(name, ": descriptors are not opened on Windows; take the path"));
}

MappedFile::~MappedFile() {
    ::UnmapViewOfFile(data_);
    ::CloseHandle(handle_of(file_));
}

void MappedFile::read(int64_t offset, std::span<std::byte> to, const std::string& path) const {
    constexpr std::size_t kMost = std::size_t{1} << 30;
    while (!to.empty()) {
        OVERLAPPED at{};
        at.Offset = static_cast<DWORD>(offset & 0xffffffff);
        at.OffsetHigh = static_cast<DWORD>(offset >> 32);
        DWORD n = 0;
        const auto wanted = static_cast<DWORD>(std::min(to.size(), kMost));
        if (::ReadFile(handle_of(file_), to.data(), wanted, &n, &at) == 0 &&
            ::GetLastError() != ERROR_HANDLE_EOF)
            fail(path);
        if (n == 0)
            throw FileError(EIO, path,
                            cat("the file ends after ", offset,
                                " bytes: it was cut short while the model was read from it"));
        offset += n;
        to = to.subspan(n);
    }
}

void replace_file(const std::string& path, std::span<const std::span<const std::byte>> pieces) {
    const std::size_t name = path.find_last_of("/\\:") + 1;  // 0 where there is none
    const std::wstring target = wide(path);
    const std::wstring part =
        wide(cat(path.substr(0, name), '.', path.substr(name), ".00000000.part"));
    Handle file{::CreateFileW(part.c_str(), GENERIC_WRITE, 0, nullptr, CREATE_ALWAYS,
                              FILE_ATTRIBUTE_NORMAL, nullptr)};
    if (file.handle == INVALID_HANDLE_VALUE) fail(path);
    try {
        for (std::span<const std::byte> rest : pieces)
            while (!rest.empty()) {
                DWORD n = 0;
                const auto most = static_cast<DWORD>(std::min(rest.size(), std::size_t{1} << 30));
                if (::WriteFile(file.handle, rest.data(), most, &n, nullptr) == 0) fail(path);
                rest = rest.subspan(n);
            }
        if (::FlushFileBuffers(file.handle) == 0) fail(path);
        ::CloseHandle(std::exchange(file.handle, nullptr));
        if (::MoveFileExW(part.c_str(), target.c_str(), MOVEFILE_REPLACE_EXISTING) == 0) fail(path);
    } catch (const FileError&) {
        if (file.handle != nullptr) ::CloseHandle(std::exchange(file.handle, nullptr));
        ::DeleteFileW(part.c_str());
        throw;
    }
}

// Unlocking pages that are not locked takes them out of the working set.
void MappedFile::forget() const { ::VirtualUnlock(data_, size_); }

}  // namespace rwkv_edge
