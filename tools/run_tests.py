# SPDX-License-Identifier: Apache-2.0
"""Everything that must pass: style, types, the C++ tests on every ISA level, the Python tests.

Run after `pip install '.[test]'`, from the root of the repository. A workflow preset's name as
argument (asan, tsan, aarch64, ...) builds and runs the C++ tests so, instead of the whole list.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str) -> None:
    """Run a command in the repository's root; stop everything if it fails."""
    print("$", *command[:8], "..." if len(command) > 8 else "", flush=True)
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode != 0:
        sys.exit(f"failed: {' '.join(command[:8])}")


def cpp_tests(preset: str) -> None:
    run("cmake", "--workflow", "--preset", preset)


def main(presets: Sequence[str]) -> None:
    if presets:
        for preset in presets:
            cpp_tests(preset)
        return
    sources = [
        str(path.relative_to(ROOT))
        for folder in ("cpp", "tests", "bench")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in {".h", ".cpp", ".inl"}
    ]
    run("ruff", "check", ".")
    run("ruff", "format", "--check", ".")
    run("mypy")
    run("clang-format", "--dry-run", "--Werror", *sources)
    cpp_tests("release")
    run(sys.executable, "-m", "pytest")


if __name__ == "__main__":
    main(sys.argv[1:])
