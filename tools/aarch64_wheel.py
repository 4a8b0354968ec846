# SPDX-License-Identifier: Apache-2.0
"""Build a wheel for 64-bit Arm and run the Python tests with it, on a PC with Debian.

    apt-get install g++-aarch64-linux-gnu qemu-user-static
    python tools/aarch64_wheel.py [PYTEST ARGUMENT...]

Debian's Python for arm64 is unpacked under build/aarch64-wheel/root and started through qemu by a
script, venv/bin/python: to pip, to CMake and to the tests that is Python on an Arm machine. Only
the compiler is a program of the PC. The wheel lies in build/aarch64-wheel/dist, tagged for the
oldest manylinux that has all symbols it needs. QEMU_CPU names the CPU: cortex-a76 unless set.
Without arguments the tests are those of TESTS; `tests/python` as argument runs all of them.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from run_tests import ROOT, run

FOLDER = ROOT / "build" / "aarch64-wheel"
PROGRAMS = ("aarch64-linux-gnu-g++", "qemu-aarch64-static", "cmake", "ninja", "apt-get", "dpkg-deb")
# What runs on the engine, in a quarter of an hour. The others are larger matrices of the same, or
# Python at work on files, which is the same everywhere.
FILES = "api chat cli demo generate memory oracle states types versions"
TESTS = [f"tests/python/test_{name}.py" for name in FILES.split()]
PACKAGES = ("python3", "libpython3-dev", "libstdc++6")
SOURCE = (
    "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
    " http://deb.debian.org/debian {suite} main\n"
)
EMULATED = """#!/bin/sh
exec qemu-aarch64-static -0 "$0" -L "{root}" "{root}/usr/bin/{python}" "$@"
"""


def unpack_debian(root: Path) -> None:
    """Debian's packages for arm64 in a folder, of the suite of this machine's cross compiler.

    apt works on lists of its own below FOLDER, so this machine's are not touched.
    """
    system = platform.freedesktop_os_release()
    if system["ID"] != "debian":
        sys.exit(f"this machine runs {system['ID']}, expected debian: its arm64 packages are used")
    apt = FOLDER / "apt"
    for folder in ("lists/partial", "archives/partial"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    (apt / "status").write_text("")
    (apt / "sources.list").write_text(SOURCE.format(suite=system["VERSION_CODENAME"]))
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "Dir::Cache": apt,
        "Dir::Etc::SourceList": apt / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": apt / "lists",
        "Dir::State::Status": apt / "status",
    }
    apt_get = ["apt-get", "-q", *(f"-o{name}={value}" for name, value in options.items())]
    run(*apt_get, "update")
    run(*apt_get, "install", "-y", "--download-only", "--no-install-recommends", *PACKAGES)
    whole = root.with_name("root.part")
    shutil.rmtree(whole, ignore_errors=True)
    whole.mkdir()
    for package in sorted((apt / "archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", package, whole], check=True)
    whole.rename(root)


def make_environment(root: Path) -> str:
    """A virtual environment whose Python is emulated; returns the path of that Python."""
    binaries = root / "usr" / "bin"
    venv = FOLDER / "venv"
    (venv / "bin").mkdir(parents=True, exist_ok=True)
    (venv / "pyvenv.cfg").write_text(f"home = {binaries}\ninclude-system-site-packages = false\n")
    python = venv / "bin" / "python"
    real = (binaries / "python3").readlink()
    python.write_text(EMULATED.format(root=root, python=real))
    python.chmod(0o755)
    (venv / "lib" / real / "site-packages").mkdir(parents=True, exist_ok=True)
    return str(python)


def pip(python: str) -> list[str]:
    """This machine's pip, at work in another Python's environment."""
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]


def manylinux_tag(shown: str) -> str:
    """The platform tag in what `auditwheel show` prints, in lines of any length."""
    found = re.search(r'following\s+platform\s+tag:\s+"(\w+)"', shown)
    if found is None:
        sys.exit(f"auditwheel names no platform tag:\n{shown}")
    return found[1]


def build_wheel(python: str, root: Path) -> str:
    """Returns the path of the wheel."""
    dist = FOLDER / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    toolchain = f"CMAKE_TOOLCHAIN_FILE={ROOT / 'cmake' / 'aarch64-linux-gnu.cmake'}"
    # Debian's Python.h includes a file from there; the C headers stay those of the compiler.
    flags = f"CXXFLAGS=-idirafter {root}/usr/include"
    build = ["wheel", "--no-deps", "-w", str(dist), f"-Cbuild-dir={FOLDER / 'cmake'}", "."]
    run("env", toolchain, flags, *pip(python), *build)
    (wheel,) = dist.iterdir()
    run(*pip(python), "install", "-q", "--no-compile", "auditwheel", "wheel")
    shown = subprocess.check_output([python, "-m", "auditwheel", "show", str(wheel)], text=True)
    tag = ["--remove", "--platform-tag", manylinux_tag(shown)]
    run(python, "-m", "wheel", "tags", *tag, str(wheel))
    (wheel,) = dist.iterdir()
    return str(wheel)


def main(arguments: Sequence[str]) -> None:
    for program in PROGRAMS:
        if shutil.which(program) is None:
            sys.exit(f"{program} is missing; the first lines of {__file__} say what is needed")
    os.environ.setdefault("QEMU_CPU", "cortex-a76")
    root = FOLDER / "root"
    if not root.exists():
        unpack_debian(root)
    python = make_environment(root)
    wheel = build_wheel(python, root)
    install = [*pip(python), "install", "-q", "--no-compile"]
    run(*install, f"{wheel}[test]")
    run(*install, "--force-reinstall", "--no-deps", wheel)  # also where its version is there
    run(python, "-m", "pytest", *(arguments or TESTS))


if __name__ == "__main__":
    main(sys.argv[1:])
