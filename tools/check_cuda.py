# SPDX-License-Identifier: Apache-2.0
"""Compiles the CUDA backend for real and checks what came out: python tools/check_cuda.py

It needs no GPU. nvcc and cuobjdump come from the extra `cuda-build`, from $CUDACXX or from PATH.
Every .cu file is compiled for sm_80, sm_90 and sm_120 as CMake does it, with warnings and spilled
registers as errors. Then, for each kernel:

- Registers and shared memory may not grow beyond tools/cuda_kernels.txt, and no kernel has a
  stack. `--update` writes the table.
- No instruction reads or writes local memory.
- Those that promise it have tensor core instructions (HMMA) and loads of 128 bits.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "check-cuda"
TABLE = ROOT / "tools" / "cuda_kernels.txt"
ARCHITECTURES = ("sm_80", "sm_90", "sm_120")

HMMA = r"\bHMMA\."
WIDE_LOAD = r"\bLDG\.E\.(?:\w+\.)*128\b"
LOCAL = r"\b(?:LDL|STL)\b"
# How many of these each kernel must have; the part of a name before <.
PROMISED = {
    "few_kernel": {HMMA: 40, WIDE_LOAD: 10},
    "many_kernel": {HMMA: 200, WIDE_LOAD: 10},
    "read_kernel": {WIDE_LOAD: 4},
    "multiply_kernel": {HMMA: 8},
}
NAMES = {HMMA: "tensor core instructions", WIDE_LOAD: "128-bit loads"}


class Use(NamedTuple):
    registers: int
    shared: int  # bytes
    stack: int


Uses = dict[tuple[str, str], Use]  # by architecture and kernel


def toolkit(name: str) -> str:
    """A program of the toolkit: $CUDACXX for nvcc, else that of the extra, else that on PATH."""
    if name == "nvcc" and (chosen := os.environ.get("CUDACXX")):
        return chosen
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec and spec.submodule_search_locations) or []:
        program = Path(folder) / "cu13" / "bin" / name
        if program.is_file():
            return str(program)
    if found := shutil.which(name):
        return found
    sys.exit(f"no {name}: pip install '.[cuda-build]' brings it")


def output(*command: str, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\nfailed: {' '.join(command[:6])}")
    return done.stdout


def compiled(nvcc: str) -> list[str]:
    """The objects of all .cu files, each for all architectures."""
    # The packages have their libraries in lib, where nvcc does not look for them.
    library = str(Path(nvcc).resolve().parent.parent / "lib")
    environment = {
        "CUDACXX": nvcc,
        "LIBRARY_PATH": os.pathsep.join(filter(None, [library, os.environ.get("LIBRARY_PATH")])),
    }
    numbers = ";".join(f"{name.removeprefix('sm_')}-real" for name in ARCHITECTURES)
    output(
        *("cmake", "-S", ".", "-B", str(BUILD), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"),
        *("-DRWKV_EDGE_CUDA=ON", "-DRWKV_EDGE_WERROR=ON", f"-DCMAKE_CUDA_ARCHITECTURES={numbers}"),
        **environment,
    )
    commands = json.loads((BUILD / "compile_commands.json").read_text(encoding="utf-8"))
    # absolute in some versions of CMake, and relative in Ninja's own file
    objects = [
        os.path.relpath(BUILD / entry["output"], BUILD)
        for entry in commands
        if entry["file"].endswith(".cu")
    ]
    output("cmake", "--build", str(BUILD), "--target", *objects, **environment)
    return [str(BUILD / each) for each in objects]


def demangled(text: str) -> str:
    """A listing with kernels by the names that the source has: few_kernel<4>."""
    names = sorted(set(re.findall(r"\b_Z\w+", text)))
    plain = output("c++filt", *names).splitlines() if names else []
    known = {name: short(full) for name, full in zip(names, plain, strict=True)}
    return re.sub(r"\b_Z\w+", lambda match: known[match[0]], text)


def short(name: str) -> str:
    """few_kernel<4> of void rwkv_edge::cuda::(anonymous namespace)::few_kernel<4>(...)."""
    # without namespaces that have none, and the types of numbers: (a::Layout)3
    plain = re.sub(r"\(anonymous namespace\)::|\([\w:]+\)(?=\d)", "", name)
    found = re.fullmatch(r".*?(\w+)(<[\w:, ]*>)?\([^()]*\)", plain)
    return (
        name.replace(" ", "") if found is None else (found[1] + (found[2] or "")).replace(" ", "")
    )


def by_architecture(listing: str) -> Iterator[tuple[str, str]]:
    """(architecture, its part) of what cuobjdump prints of an object."""
    parts = re.split(r"^arch = (sm_\w+)$", listing, flags=re.MULTILINE)
    yield from zip(parts[1::2], parts[2::2], strict=True)


def uses_of(listing: str) -> Uses:
    """Of `cuobjdump --dump-resource-usage`."""
    line = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")
    return {
        (architecture, kernel): Use(int(registers), int(shared), int(stack))
        for architecture, part in by_architecture(listing)
        for kernel, registers, stack, shared in line.findall(part)
    }


def instruction_errors(listing: str) -> Iterator[str]:
    """Of `cuobjdump -sass`."""
    for architecture, part in by_architecture(listing):
        _, *rest = re.split(r"^\s*Function : (\S+)$", part, flags=re.MULTILINE)
        for kernel, code in zip(rest[::2], rest[1::2], strict=True):
            if re.search(LOCAL, code):
                yield f"{kernel}, {architecture}: uses local memory"
            for pattern, least in PROMISED.get(kernel.partition("<")[0], {}).items():
                if (count := len(re.findall(pattern, code))) < least:
                    yield (
                        f"{kernel}, {architecture}: {count} {NAMES[pattern]}, "
                        f"expected {least} at least"
                    )


def use_errors(found: Mapping[tuple[str, str], Use], table: Uses) -> Iterator[str]:
    for (architecture, kernel), use in sorted(found.items()):
        place = f"{kernel}, {architecture}"
        if use.stack:
            yield f"{place}: a stack of {use.stack} bytes, expected none"
        known = table.get((architecture, kernel))
        if known is None:
            yield f"{place}: not in {TABLE.name}; --update writes it"
            continue
        for what, now, before in (
            ("registers", use.registers, known.registers),
            ("bytes of shared memory", use.shared, known.shared),
        ):
            if now > before:
                yield f"{place}: {now} {what}, in {TABLE.name} {before}; --update accepts it"
    for architecture, kernel in sorted(set(table) - set(found)):
        yield f"{kernel}, {architecture}: in {TABLE.name}, but no kernel; --update removes it"


def read_table(text: str) -> tuple[str, Uses]:
    """The version of nvcc, and the uses."""
    version, uses = "", {}
    for line in text.splitlines():
        words = line.split()
        if line.startswith("# nvcc"):
            version = words[2]
        elif words and not line.startswith("#"):
            kernel, architecture, *numbers = words
            uses[architecture, kernel] = Use(*map(int, numbers))
    return version, uses


def written_table(version: str, uses: Uses) -> str:
    lines = [
        f"# nvcc {version}",
        "# What each kernel takes, written by `python tools/check_cuda.py --update`:",
        "# registers of a thread, bytes of static shared memory of a block, bytes of stack.",
    ]
    rows = sorted((kernel, ARCHITECTURES.index(sm), use) for (sm, kernel), use in uses.items())
    lines += [
        f"{kernel:<24} {ARCHITECTURES[sm]:<7} {use.registers:4} {use.shared:6} {use.stack:3}"
        for kernel, sm, use in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--update", action="store_true", help="write the table")
    update = parser.parse_args().update
    nvcc, cuobjdump = toolkit("nvcc"), toolkit("cuobjdump")
    release = re.search(r"release (\S+),", output(nvcc, "--version"))
    version = release[1] if release else "unknown"
    uses: Uses = {}
    errors: list[str] = []
    # cuobjdump wants nvdisasm beside it
    path = os.pathsep.join([str(Path(cuobjdump).parent), os.environ["PATH"]])
    for each in compiled(nvcc):
        uses |= uses_of(demangled(output(cuobjdump, "--dump-resource-usage", each, PATH=path)))
        errors += instruction_errors(demangled(output(cuobjdump, "-sass", each, PATH=path)))
    if not uses:
        errors.append("no kernels found")
    if update:
        TABLE.write_text(written_table(version, uses), encoding="utf-8")
    known_version, table = read_table(TABLE.read_text(encoding="utf-8"))
    if known_version != version:
        errors.append(
            f"nvcc {version}, but {TABLE.name} is of {known_version}: what kernels take "
            "depends on it"
        )
    else:
        errors += use_errors(uses, table)
    kernels = len({kernel for _, kernel in uses})
    print("\n".join(errors or [f"{kernels} kernels for {', '.join(ARCHITECTURES)}: as expected"]))
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
