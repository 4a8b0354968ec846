// SPDX-License-Identifier: Apache-2.0
// The smallest test framework that serves us. Each test file is a program: TEST bodies register
// themselves, main runs them all; 1 means that a CHECK failed, 77 that this CPU lacks the kernel
// level that RWKV_EDGE_ISA asks for.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "kernels/dispatch.h"

namespace check {

inline std::vector<std::pair<const char*, void (*)()>> tests;
inline int failures = 0;

inline void fail(const char* file, int line, const std::string& what) {
    constexpr int kShown = 20;
    if (++failures <= kShown) std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
}

// Fails unless `body` throws an Error whose text holds `part`.
template <class Error, class Body>
void throws(const char* file, int line, const std::string& part, Body&& body) {
    try {
        body();
        fail(file, line, "no error, expected one with \"" + part + "\"");
    } catch (const Error& error) {
        const std::string text = error.what();
        if (text.find(part) == std::string::npos) fail(file, line, "not \"" + part + "\": " + text);
    } catch (const std::exception& error) {
        fail(file, line, std::string("an error of another type: ") + error.what());
    }
}

inline bool has_level(const char* name) {
    for (const rwkv_edge::Kernels& level : rwkv_edge::available_kernels())
        if (name == nullptr || *name == '\0' || std::strcmp(level.isa, name) == 0) return true;
    return false;
}

inline int run() {
    if (!has_level(std::getenv("RWKV_EDGE_ISA"))) return 77;
    for (const auto& [name, body] : tests) {
        const int before = failures;
        try {
            body();
        } catch (const std::exception& error) {
            fail(name, 0, std::string("uncaught: ") + error.what());
        }
        std::printf("%s %s\n", failures == before ? "ok  " : "FAIL", name);
    }
    std::printf("%zu tests, %d failed checks\n", tests.size(), failures);
    return failures == 0 && !tests.empty() ? 0 : 1;
}

}  // namespace check

#define TEST(name)                                                                   \
    static void name();                                                              \
    static const bool name##_added = (check::tests.emplace_back(#name, name), true); \
    static void name()
#define CHECK(condition) ((condition) ? void() : check::fail(__FILE__, __LINE__, #condition))
// As CHECK, with a text that says which of many cases it was.
#define CHECK_CASE(condition, text) \
    ((condition) ? void()           \
                 : check::fail(__FILE__, __LINE__, std::string(#condition) + ": " + (text)))
#define CHECK_THROWS(Error, part, expression) \
    check::throws<Error>(__FILE__, __LINE__, part, [&] { (void)(expression); })

int main() { return check::run(); }
