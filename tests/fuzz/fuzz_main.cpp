// SPDX-License-Identifier: Apache-2.0
// A main for fuzz targets where there is no libFuzzer: runs every file of the corpus, then seeded
// mutations of them for some seconds. An input that kills the process is left in crash.bin.
//   fuzz_gguf CORPUS... [-max_total_time=SECONDS] [-seed=N]
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
// The sanitizers read these; abort() then brings every finding to on_signal.
extern "C" const char* __asan_default_options() { return "abort_on_error=1"; }
extern "C" const char* __ubsan_default_options() { return "abort_on_error=1:print_stacktrace=1"; }

namespace {

using Bytes = std::vector<uint8_t>;
using Random = std::mt19937_64;

Bytes current;  // what the target is looking at

void save_current() {
    std::ofstream("crash.bin", std::ios::binary)
        .write(reinterpret_cast<const char*>(current.data()),
               static_cast<std::streamsize>(current.size()));
    std::fprintf(stderr, "the input is in crash.bin (%zu bytes)\n", current.size());
}

void on_signal(int signal) {
    save_current();
    std::signal(signal, SIG_DFL);
    std::raise(signal);
}

// A copy of exactly the input's size, so that a sanitizer sees the first byte beyond it.
void run(Bytes input) {
    input.shrink_to_fit();
    current = std::move(input);
    LLVMFuzzerTestOneInput(current.data(), current.size());
}

size_t below(Random& rng, size_t n) { return n == 0 ? 0 : rng() % n; }

// Most of what a reader can get wrong lies in the first few kilobytes.
size_t place(Random& rng, const Bytes& x) {
    return below(rng, rng() % 8 != 0 ? std::min<size_t>(x.size(), 4096) : x.size());
}

// Overwrites 1, 2, 4 or 8 bytes with a number that readers trip over.
void put_number(Random& rng, Bytes& x) {
    constexpr uint64_t kNumbers[] = {
        0,          1,          2,          3,           4,
        13,         31,         33,         255,         65535,
        0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, UINT64_MAX / 8,
        1ull << 56, 1ull << 61, 1ull << 63, UINT64_MAX,  UINT64_MAX - 31};
    const uint64_t number =
        kNumbers[below(rng, std::size(kNumbers))] + (rng() % 4 == 0 ? rng() % 5 - 2 : 0);
    const size_t width = size_t{1} << rng() % 4, at = place(rng, x);
    for (size_t i = 0; i < width && at + i < x.size(); ++i)
        x[at + i] = static_cast<uint8_t>(number >> 8 * i);
}

// Mostly changes in place: what moves the rest of the file seldom gets past the header.
void mutate(Random& rng, Bytes& x) {
    if (x.empty()) x.resize(1);
    const size_t at = place(rng, x), n = std::min(x.size() - at, below(rng, 40));
    const auto begin = x.begin() + static_cast<std::ptrdiff_t>(at);
    const Bytes part(begin, begin + static_cast<std::ptrdiff_t>(n));
    switch (rng() % 16) {
        case 0: x.erase(begin, begin + static_cast<std::ptrdiff_t>(n)); break;
        case 1: x.insert(begin, part.begin(), part.end()); break;
        case 2: x.resize(below(rng, x.size() + 1)); break;
        case 3:
            std::copy(part.begin(), part.end(),
                      x.begin() + static_cast<std::ptrdiff_t>(below(rng, x.size() - n + 1)));
            break;
        case 4:
        case 5: x[at] = static_cast<uint8_t>(rng()); break;
        case 6:
        case 7:
        case 8: x[at] ^= static_cast<uint8_t>(1u << rng() % 8); break;
        default: put_number(rng, x);
    }
}

// Files, and the files of folders, in the order of their names: a seed means the same everywhere.
std::vector<Bytes> load(const std::vector<std::string>& paths) {
    std::vector<std::filesystem::path> files;
    for (const std::string& path : paths) {
        if (std::filesystem::is_directory(path))
            for (const auto& entry : std::filesystem::directory_iterator(path))
                files.push_back(entry.path());
        else
            files.emplace_back(path);
    }
    std::sort(files.begin(), files.end());
    std::vector<Bytes> corpus;
    for (const auto& path : files) {
        std::ifstream file(path, std::ios::binary);
        corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    }
    return corpus;
}

}  // namespace

int main(int argc, char** argv) {
    double seconds = 10;
    uint64_t seed = 1;
    std::vector<std::string> paths;
    for (int i = 1; i < argc; ++i) {
        const std::string arg = argv[i];
        if (arg.starts_with("-max_total_time="))
            seconds = std::atof(arg.c_str() + 16);
        else if (arg.starts_with("-seed="))
            seed = std::strtoull(arg.c_str() + 6, nullptr, 10);
        else
            paths.push_back(arg);
    }
    const std::vector<Bytes> corpus = load(paths);
    if (corpus.empty()) {
        std::fprintf(stderr, "usage: %s CORPUS... [-max_total_time=SECONDS] [-seed=N]\n", argv[0]);
        return 2;
    }
    std::signal(SIGABRT, on_signal);

    for (const Bytes& input : corpus) run(input);
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    Random rng(seed);
    uint64_t runs = 0;
    for (; std::chrono::steady_clock::now() < end; ++runs) {
        Bytes input = corpus[below(rng, corpus.size())];
        for (size_t i = rng() % 3 + 1; i > 0; --i) mutate(rng, input);
        run(std::move(input));
    }
    std::printf("%zu files, %llu mutations, no finding\n", corpus.size(),
                static_cast<unsigned long long>(runs));
}
