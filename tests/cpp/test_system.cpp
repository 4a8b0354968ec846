// SPDX-License-Identifier: Apache-2.0
#ifndef _WIN32
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/system.h"
#include "check.h"
#include "folder.h"

using namespace rwkv_edge;

namespace {

int code_of(const std::string& path) {
    try {
        const MappedFile file(path);
        return 0;
    } catch (const FileError& error) {
        CHECK_CASE(error.path == path, error.path);
        return error.code;
    }
}

#ifndef _WIN32
// A folder with files as Linux shows them below /, removed at the end.
class Root {
public:
    Root() : path_(std::filesystem::temp_directory_path() / cat("rwkv-edge-root-", process_id())) {
        put("/proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    1000 kB\nBuffers: 1 kB\n");
    }
    ~Root() { std::filesystem::remove_all(path_); }
    void put(const std::string& name, const std::string& text) {
        const std::filesystem::path file = path_ + name;
        std::filesystem::create_directories(file.parent_path());
        std::ofstream(file) << text;
    }
    uint64_t memory() const { return available_memory(path_); }

private:
    std::string path_;
};
#endif

}  // namespace

TEST(a_file_is_mapped_and_read_whatever_its_name) {
    const Folder folder;
    for (const std::u8string name : {u8"plain", u8"Gr\u00fc\u00dfe \u4f60\u597d \U0001f600"}) {
        const std::string path = folder.put(name, "0123456789");
        const MappedFile file(path);
        const auto bytes = file.bytes();
        CHECK(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()) ==
              "0123456789");
        std::vector<char> part(3);
        file.read(6, std::as_writable_bytes(std::span(part)), path);
        CHECK(std::string(part.begin(), part.end()) == "678");
        CHECK_THROWS(FileError, "the file ends after 10 bytes",
                     file.read(8, std::as_writable_bytes(std::span(part)), path));
        file.forget();
        CHECK(file.bytes()[9] == std::byte{'9'});
    }
}

TEST(what_is_no_file_is_refused) {
    const Folder folder;
    CHECK(code_of(folder.of(u8"missing")) == ENOENT);
    CHECK(code_of(folder.of(u8"missing/too")) == ENOENT);
    CHECK(code_of(folder.of(u8".")) == EISDIR);
    CHECK(code_of("") == ENOENT);
    const std::string empty = folder.put(u8"empty", "");
    CHECK_THROWS(FormatError, empty + ": the file is empty", MappedFile(empty));
}

#ifndef _WIN32
// Nobody writes to it, so that opening it to read would wait for ever.
TEST(a_pipe_is_refused_at_once) {
    const Folder folder;
    const std::string path = folder.of(u8"pipe");
    CHECK(::mkfifo(path.c_str(), 0600) == 0);
    CHECK_THROWS(FormatError, path + ": a pipe or a device, expected a regular file",
                 MappedFile(path));
    CHECK_THROWS(FormatError, "/dev/null: a pipe or a device", MappedFile("/dev/null"));
}

// In a child, which the signal ends as it ends every program.
TEST(a_bus_error_ends_with_a_sentence) {
    const Folder folder;
    const std::string path = folder.put(u8"short", std::string(1 << 20, 'a'));
    int said[2];
    CHECK(::pipe(said) == 0);
    const pid_t child = ::fork();
    if (child == 0) {
        ::dup2(said[1], STDERR_FILENO);
        say_on_bus_error("the file was cut short\n");
        const MappedFile file(path);
        std::filesystem::resize_file(path, 100);
        volatile std::byte last = file.bytes().back();
        (void)last;
        ::_exit(0);
    }
    ::close(said[1]);
    std::string text(100, ' ');
    const ssize_t size = ::read(said[0], text.data(), text.size());
    ::close(said[0]);
    // An emulator may have something to say after it.
    CHECK(size > 0 && text.starts_with("the file was cut short\n"));
    int status = 0;
    CHECK(::waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
}
#endif

// A writer renames the old file, and gives the new one its name, while the old one is mapped.
TEST(a_mapped_file_can_be_renamed) {
    const Folder folder;
    const std::string path = folder.put(u8"model", "old");
    const MappedFile file(path);
    std::filesystem::rename(path, folder.of(u8"aside"));
    folder.put(u8"model", "new!");
    CHECK(file.bytes().size() == 3 && file.bytes()[0] == std::byte{'o'});
    CHECK(MappedFile(path).bytes()[0] == std::byte{'n'});
}

TEST(a_file_is_replaced_when_it_is_whole) {
    const Folder folder;
    const std::string path = folder.of(u8"Gr\u00fc\u00dfe");
    const auto write = [&](std::vector<std::string> texts) {
        std::vector<std::span<const std::byte>> pieces;
        for (const std::string& text : texts) pieces.push_back(std::as_bytes(std::span(text)));
        replace_file(path, pieces);
        const MappedFile file(path);
        return std::string(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
    };
    CHECK(write({"one, ", "", "two"}) == "one, two");
    folder.put(u8".Gr\u00fc\u00dfe.00000000.part", "what a killed writer has left");
    CHECK(write({"new"}) == "new");
    const auto files = [&] {
        const auto all = std::filesystem::directory_iterator(
            std::filesystem::path(std::u8string(path.begin(), path.end())).parent_path());
        return std::distance(begin(all), end(all));
    };
    CHECK(files() == 1);
    CHECK_THROWS(FileError, folder.of(u8"no/file") + ": ",
                 replace_file(folder.of(u8"no/file"), {}));
    CHECK_THROWS(FileError, ": ", replace_file(folder.of(u8"."), {}));
    CHECK(files() == 1);
}

#ifndef _WIN32
TEST(a_replaced_file_keeps_its_mode_and_its_link) {
    namespace fs = std::filesystem;
    const Folder folder;
    const fs::path path = folder.of(u8"file"), link = folder.of(u8"link");
    const auto mode = [&] { return static_cast<unsigned>(fs::status(path).permissions()); };
    replace_file(path.string(), {});
    CHECK(mode() == 0600);
    fs::permissions(path, fs::perms(0644));
    fs::create_symlink("file", link);
    const std::byte text[3] = {};
    const std::span<const std::byte> pieces[] = {text, text};
    replace_file(link.string(), pieces);
    CHECK(mode() == 0644 && fs::is_symlink(link) && fs::file_size(path) == 6);
    fs::create_symlink("elsewhere", folder.of(u8".file.00000000.part"));
    CHECK_THROWS(FileError, path.string() + ": ", replace_file(path.string(), pieces));
    CHECK(!fs::exists(folder.of(u8"elsewhere")));
}

// Whoever comes last wins, and nobody sees a mixture.
TEST(writers_of_one_file_wait_for_each_other) {
    const Folder folder;
    const std::string path = folder.put(u8"file", std::string(1 << 16, 'a'));
    std::vector<std::thread> writers;
    for (const char letter : {'a', 'b', 'c'})
        writers.emplace_back([&path, letter] {
            const std::string text(1 << 16, letter);
            const std::span<const std::byte> piece = std::as_bytes(std::span(text));
            for (int i = 0; i < 20; ++i) replace_file(path, {&piece, 1});
        });
    for (int i = 0; i < 50; ++i) {
        const MappedFile file(path);
        const auto bytes = file.bytes();
        CHECK(bytes.size() == 1 << 16);
        CHECK(std::ranges::all_of(bytes, [&](std::byte byte) { return byte == bytes[0]; }));
    }
    for (std::thread& writer : writers) writer.join();
}
#endif

TEST(the_system_answers) {
    CHECK(usable_cpus() >= 1);
    CHECK(process_id() != 0);
    CHECK(available_memory() > 1 << 20);
}

#ifndef _WIN32
TEST(available_memory_is_the_least_that_anything_grants) {
    CHECK(available_memory("/nowhere") == available_memory("/nowhere/else"));  // all there is
    Root root;
    CHECK(root.memory() == 1000 << 10);
    root.put("/proc/self/cgroup", "0::/a/b\n");
    CHECK(root.memory() == 1000 << 10);
    root.put("/sys/fs/cgroup/a/b/memory.max", "max\n");
    CHECK(root.memory() == 1000 << 10);
    root.put("/sys/fs/cgroup/a/memory.max", "500000\n");
    CHECK(root.memory() == 500000);
    root.put("/sys/fs/cgroup/a/b/memory.high", "400000\n");
    CHECK(root.memory() == 400000);
    root.put("/proc/self/cgroup", "7:cpuset:/\n3:cpu,memory:/docker/1\n1:name=systemd:/\n");
    CHECK(root.memory() == 1000 << 10);
    root.put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "300000\n");  // seen from inside
    CHECK(root.memory() == 300000);
}
#endif
