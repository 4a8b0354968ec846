// SPDX-License-Identifier: Apache-2.0
// The errors of the engine. Bindings turn them into Python exceptions of the same meaning; bad
// arguments from a caller are std::invalid_argument (ValueError).
#pragma once

#include <new>
#include <sstream>
#include <stdexcept>
#include <string>

namespace rwkv_edge {

// A file is malformed, or does not fit the model. The message begins with the file's path.
class FormatError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

// Well-formed, but not something this build or this machine can run.
class UnsupportedError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

// The system refused to open or map a file; `code` is errno.
class FileError : public std::runtime_error {
public:
    FileError(int errno_code, std::string file, std::string why)
        : std::runtime_error(file + ": " + why),
          code(errno_code),
          path(std::move(file)),
          reason(std::move(why)) {}
    int code;
    std::string path, reason;
};

// The system gives no more memory, and the text says what it was for.
class NoMemory : public std::bad_alloc {
public:
    explicit NoMemory(std::string text) : text_(std::move(text)) {}
    const char* what() const noexcept override { return text_.c_str(); }

private:
    std::string text_;
};

// Joins anything printable into one string.
template <class... Parts>
std::string cat(const Parts&... parts) {
    std::ostringstream out;
    out.exceptions(std::ios::badbit);  // where memory runs out, no half of a string
    try {
        (out << ... << parts);
    } catch (const std::ios_base::failure&) {  // which libc++ makes of it
        throw std::bad_alloc();
    }
    return out.str();
}

}  // namespace rwkv_edge
