# SPDX-License-Identifier: Apache-2.0
"""Everything that must pass: style, types, the C++ tests on every ISA level, the Python tests.

Run after `pip install '.[test]'`, from the root of the repository. A workflow preset's name as
argument (asan, tsan, aarch64, ...) builds and runs the C++ tests so, instead of the whole list.
`oldest` runs the Python tests with the oldest dependencies and the oldest Python that
pyproject.toml allows, in an environment of its own, `build/oldest`, and measures their coverage
(tools/measure_coverage.py). Where that Python is missing
(on the PATH, and among pyenv's), `oldest` says so and takes the one that runs it. The whole list
runs with the Python and the dependencies that are installed.

`wheel` (Linux, with the extra `platforms`) builds a wheel that auditwheel accepts, and runs the
tests that cibuildwheel runs on each of its own: in a new environment, away from the source.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Two processes: many tests wait, for a program that they start or for a clock.
PYTEST = ("-m", "pytest", "--numprocesses=2", "--dist=loadfile")


def run(*command: str, folder: Path = ROOT) -> None:
    """Run a command in the repository's root; stop everything if it fails."""
    print("$", *command[:8], "..." if len(command) > 8 else "", flush=True)
    done = subprocess.run(command, cwd=folder, check=False)
    if done.returncode != 0:
        sys.exit(f"failed: {' '.join(command[:8])}")


def cpp_tests(preset: str) -> None:
    run("cmake", "--workflow", "--preset", preset)


def oldest_versions(pyproject: str) -> list[str]:
    """pip's constraints that hold each `name>=version` at that version, or at its last patch."""
    found = re.findall(r'"([\w-]+)>=([\d.]+)"', pyproject)
    return [
        f"{name}=={version}" if version.count(".") == 2 else f"{name}~={version}.0"
        for name, version in found
    ]


def oldest_python(pyproject: str) -> str:
    """The interpreter of the version that `requires-python` begins with, or this one."""
    (version,) = re.findall(r'requires-python = ">=([\d.]+)"', pyproject)
    find = [f"python{version}", "-c", "import sys; print(sys.executable)"]
    environ = {**os.environ, "PYENV_VERSION": version}  # pyenv keeps those that are not chosen
    try:
        found = subprocess.run(find, env=environ, capture_output=True, text=True, check=True)
        return found.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        print(f"no python{version} here: the oldest dependencies run on {sys.version}", flush=True)
        return sys.executable


def oldest() -> None:
    environment = ROOT / "build" / "oldest"
    python = str(environment / ("Scripts" if os.name == "nt" else "bin") / "python")
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    run(oldest_python(pyproject), "-m", "venv", "--clear", str(environment))
    constraints = environment / "constraints.txt"
    versions = oldest_versions(pyproject)
    constraints.write_text("\n".join(versions) + "\n", encoding="utf-8")
    pip = (python, "-m", "pip", "install", "--prefer-binary")
    run(*pip, "--constraint", str(constraints), ".[test]")
    run(python, "tools/measure_coverage.py", "python")


def wheel_tests(pyproject: str) -> tuple[list[str], list[str], list[str]]:
    """What cibuildwheel's configuration names: what the tests require, their sources, and the
    command that runs them."""
    required, sources = (
        re.findall(r'"([^"]+)"', line)
        for line in re.findall(r"^test-(?:requires|sources) = \[(.*)\]$", pyproject, re.MULTILINE)
    )
    (command,) = re.findall(r'^test-command = "(.*)"$', pyproject, re.MULTILINE)
    return required, sources, command.split()


def wheel() -> None:
    folder = ROOT / "build" / "wheel"
    for old in ("plain", "manylinux", "away"):
        shutil.rmtree(folder / old, ignore_errors=True)
    pip = ("-m", "pip", "--disable-pip-version-check")
    build = ("wheel", "--no-deps", f"-Cbuild-dir={folder / 'cmake'}", "-w", f"{folder / 'plain'}")
    run(sys.executable, *pip, *build, ".")
    (plain,) = (folder / "plain").iterdir()
    run("auditwheel", "repair", "-w", str(folder / "manylinux"), str(plain))
    (made,) = (folder / "manylinux").iterdir()
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    required, sources, command = wheel_tests(pyproject)
    away = folder / "away"
    run(sys.executable, "-m", "venv", "--clear", str(away / "venv"))
    python = str(away / "venv" / "bin" / "python")
    run(python, *pip, "install", str(made), *required)
    for name in sources:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, away / name)
    run(python, "-m", *command, folder=away)


def main(presets: Sequence[str]) -> None:
    if presets:
        for preset in presets:
            if preset == "oldest":
                oldest()
            elif preset == "wheel":
                wheel()
            else:
                cpp_tests(preset)
        return
    sources = [
        str(path.relative_to(ROOT))
        for folder in ("cpp", "tests", "bench", "examples")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in {".h", ".c", ".cpp", ".inl", ".cu"}
    ]
    run("ruff", "check", ".")
    run("ruff", "format", "--check", ".")
    run("mypy")
    stubs = "tests/stubtest.txt"
    run(sys.executable, "-m", "mypy.stubtest", "rwkv_edge._core", "--allowlist", stubs)
    run("clang-format", "--dry-run", "--Werror", *sources)
    cpp_tests("release")
    run(sys.executable, *PYTEST)


if __name__ == "__main__":
    main(sys.argv[1:])
