// SPDX-License-Identifier: Apache-2.0
// The smallest test framework that serves us. Each test file is a program: TEST bodies register
// themselves, main runs them all and returns 1 when a CHECK failed. An argument selects tests by name.
#pragma once

#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

namespace check {

struct Test {
    const char* name;
    void (*body)();
};

inline std::vector<Test>& tests() {
    static std::vector<Test> all;
    return all;
}

inline int failures = 0;

inline bool add(const char* name, void (*body)()) {
    tests().push_back({name, body});
    return true;
}

inline void fail(const char* file, int line, const std::string& what) {
    constexpr int kShown = 20;
    if (++failures <= kShown) std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
}

// What is wrong with the way `body` throws; empty when it throws an Error whose text holds `part`.
template <class Error, class Body>
std::string throws(const std::string& part, Body&& body) {
    try {
        body();
    } catch (const Error& error) {
        const std::string text = error.what();
        return text.find(part) == std::string::npos ? "error without \"" + part + "\": " + text : "";
    } catch (const std::exception& error) {
        return std::string("an error of another type: ") + error.what();
    }
    return "no error, expected one with \"" + part + "\"";
}

inline void expect_none(const char* file, int line, const std::string& wrong) {
    if (!wrong.empty()) fail(file, line, wrong);
}

inline int run(const char* filter) {
    int ran = 0;
    for (const Test& test : tests()) {
        if (filter != nullptr && std::strstr(test.name, filter) == nullptr) continue;
        const int before = failures;
        try {
            test.body();
        } catch (const std::exception& error) {
            fail(test.name, 0, std::string("uncaught: ") + error.what());
        }
        std::printf("%s %s\n", failures == before ? "ok  " : "FAIL", test.name);
        ++ran;
    }
    std::printf("%d tests, %d failed checks\n", ran, failures);
    return failures == 0 && ran > 0 ? 0 : 1;
}

}  // namespace check

#define TEST(name)                                              \
    static void name();                                         \
    static const bool name##_added = check::add(#name, name);   \
    static void name()
#define CHECK(condition) ((condition) ? void() : check::fail(__FILE__, __LINE__, #condition))
// As CHECK, with a text that says which of many cases it was.
#define CHECK_CASE(condition, text) \
    ((condition) ? void() : check::fail(__FILE__, __LINE__, std::string(#condition) + ": " + (text)))
#define CHECK_THROWS(Error, part, expression) \
    check::expect_none(__FILE__, __LINE__, check::throws<Error>(part, [&] { (void)(expression); }))

int main(int argc, char** argv) { return check::run(argc > 1 ? argv[1] : nullptr); }
