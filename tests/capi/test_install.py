# SPDX-License-Identifier: Apache-2.0
"""Programs outside the tree find the library that was installed, and say what they should:

test_install.py SOURCE BUILD KINDS [--run EMULATOR,ARGUMENT...] CMAKE_OPTION...

The programs of examples/ and those of docs/c.md, which print what stands under them, are built with
each of KINDS (shared,static) by find_package; where pkg-config is, also by a compiler alone.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

QUESTIONS = "What is the capital of France?\nAnd of Germany?\n"
ANSWERS = "The capital of France is Paris.\nThe capital of Germany is Berlin.\n"
PROMPT = "User: What is the capital of France?\n\nAssistant:"
BLOCK = re.compile(r"^```c\n(.*?)^```\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROJECT = """cmake_minimum_required(VERSION 3.20)
project(documented LANGUAGES C CXX)
find_package(rwkv_edge 0.1 REQUIRED)
"""
PROGRAM = """add_executable({0} {0}.c)
target_compile_options({0} PRIVATE -std=c99 -Wall -Wextra -pedantic -Werror)
target_link_libraries({0} PRIVATE ${{RWKV_EDGE}})
"""


def run(*command: str | Path, given: str = "") -> str:
    done = subprocess.run(command, input=given, capture_output=True, encoding="utf-8", check=False)
    if done.returncode != 0:
        sys.exit(f"{shlex.join(map(str, command))}: {done.stdout}{done.stderr}")
    return done.stdout.replace("\r\n", "\n")


def same(found: str, expected: str) -> None:
    if found != expected:
        sys.exit(f"found:\n{found}\nexpected:\n{expected}")


def main(source: Path, build: Path, kinds: str, *rest: str) -> None:
    emulator = rest[1].split(",") if rest[:1] == ("--run",) else []
    options = rest[2:] if rest[:1] == ("--run",) else rest
    demo = source / "python" / "rwkv_edge" / "demo.gguf"
    programs = BLOCK.findall((source / "docs" / "c.md").read_text("utf-8"))
    assert len(programs) == 2
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        prefix, documented = root / "prefix", root / "documented"
        run("cmake", "--install", build, "--component", "capi", "--prefix", prefix)
        documented.mkdir()
        project = PROJECT
        for i, (text, _) in enumerate(programs):
            (documented / f"program{i}.c").write_text(text, "utf-8")
            project += PROGRAM.format(f"program{i}")
        (documented / "CMakeLists.txt").write_text(project, "utf-8")

        def built(folder: Path, kind: str) -> Path:
            target = "rwkv_edge::static" if kind == "static" else "rwkv_edge::rwkv_edge"
            to = root / f"{folder.name}-{kind}"
            run("cmake", "-G", "Ninja", "-S", folder, "-B", to, f"-DCMAKE_PREFIX_PATH={prefix}",
                f"-DCMAKE_FIND_ROOT_PATH={prefix}", f"-DRWKV_EDGE={target}",
                "-DCMAKE_BUILD_TYPE=Release", *options)  # fmt: skip
            run("cmake", "--build", to)
            for library in (prefix / "bin").glob("*.dll"):  # Windows looks beside the program
                shutil.copy(library, to)
            return to

        def program(folder: Path, name: str) -> list[str]:
            return [*emulator, str(next(p for p in folder.glob(f"{name}*") if p.stem == name))]

        for kind in kinds.split(","):
            chat = program(built(source / "examples" / "c", kind), "chat")
            same(run(*chat, demo, given=QUESTIONS), ANSWERS)
            complete = program(built(source / "examples" / "cpp", kind), "complete")
            same(run(*complete, demo, PROMPT), " " + ANSWERS.splitlines()[0] + "\n")
            folder = built(documented, kind)
            for i, (_, expected) in enumerate(programs):
                same(run(*program(folder, f"program{i}"), demo), expected)
        # This machine's compiler links neither another system's libraries nor musl's.
        own = not emulator and "shared" in kinds
        if own and shutil.which("pkg-config") and shutil.which("cc"):
            (package,) = prefix.rglob("rwkv_edge.pc")
            flags = run(
                "env", f"PKG_CONFIG_PATH={package.parent}", "pkg-config", "--cflags", "--libs",
                "rwkv_edge",
            )  # fmt: skip
            out = root / "by-pkg-config"
            chat_c = source / "examples" / "c" / "chat.c"
            run("cc", chat_c, *flags.split(), f"-Wl,-rpath,{package.parent.parent}", "-o", out)
            same(run(out, demo, given=QUESTIONS), ANSWERS)
            print("pkg-config: as it should be")
        print(f"{kinds}: all programs say what they should")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
