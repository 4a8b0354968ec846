# SPDX-License-Identifier: Apache-2.0
"""Compile the CUDA kernels for real, without a GPU, and hold them against a table.

    pip install '.[cuda-build]' && python tools/cuda_kernels.py [sm_80 sm_90 sm_120]

It fails where the compiler warns, where a kernel keeps anything in local memory (spilled registers,
arrays that are indexed at run time), where one takes more registers or shared memory than the table
allows, and where the machine code lacks what speed rests on: 128-bit loads of weights and HMMA.
nvcc comes from the extra `cuda-build`, or from PATH. The machine code is looked at if nvdisasm is
there.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("gpu_cuda", "limits", "matmul", "vectors", "wkv")
ARCHITECTURES = ("sm_80", "sm_90", "sm_120")
FLAGS = (
    "-std=c++20",
    "-fmad=false",
    "--expt-relaxed-constexpr",
    "-Xcompiler=-Wall,-Wextra",
    "-Werror=all-warnings",
    "-Xptxas=-v,-warn-spills,-warn-lmem-usage,-Werror",
)
# Registers and bytes of shared memory at most, whatever the architecture. A block of the products
# has 256 threads: with 64 registers four of them share a processor, with 80 three, with 128 two.
MOST = {
    "embed_kernel": (32, 0),
    "few_kernel<1>": (64, 2048),
    "few_kernel<2>": (80, 4096),
    "few_kernel<4>": (112, 8192),
    "input_kernel": (64, 8192),
    "keep_kernel": (32, 0),
    "many_kernel": (168, 0),
    "multiply_kernel": (64, 0),
    "norm_kernel<2>": (40, 8),
    "norm_kernel<8>": (40, 32),
    "prepare_kernel": (40, 0),
    "read_kernel": (40, 0),
    "repack_kernel": (64, 0),
    "shift_kernel<2>": (40, 8),
    "shift_kernel<8>": (40, 32),
    "shift_last_kernel": (32, 0),
    "token_product_kernel": (40, 0),
    "wkv4_kernel": (48, 0),
    "wkv6_kernel<0>": (56, 16388),
    "wkv6_kernel<64>": (56, 1028),
    "wkv7_kernel<0>": (72, 28676),
    "wkv7_kernel<64>": (80, 1796),
}
# In the machine code of a kernel: so many of these instructions at least.
PROMISED = {
    "few_kernel<1>": {r"LDG\.E\.[\w.]*128": 10, r"HMMA\.16816\.F32": 40},
    "many_kernel": {r"LDG\.E\.[\w.]*128": 10, r"HMMA\.16816\.F32": 200},
}
LOCAL = r"\b(?:LDL|STL)\b"  # local memory


def toolkit() -> tuple[str, dict[str, str]]:
    """nvcc, and the environment in which it and its helpers are found."""
    spec = importlib.util.find_spec("nvidia")
    for place in spec.submodule_search_locations or () if spec else ():
        for folder in sorted(Path(place).glob("cu*"), reverse=True):
            if (nvcc := folder / "bin" / "nvcc").is_file():
                path = f"{nvcc.parent}{os.pathsep}{os.environ['PATH']}"
                return str(nvcc), {**os.environ, "PATH": path}
    if (found := shutil.which("nvcc")) is not None:
        return found, dict(os.environ)
    sys.exit("nvcc: not found; pip install '.[cuda-build]' brings it")


def kernel_name(symbol: str) -> str | None:
    """The name of a kernel, with its template's number, in what the compiler made of it: there its
    length stands before it."""
    for match in re.finditer(r"_kernel(?:ILi(\d+)E)?", symbol):
        end = match.start() + len("_kernel")
        for start in range(match.start() - 1, 0, -1):
            if symbol[start].isalpha() and symbol[:start].endswith(str(end - start)):
                name = symbol[start:end]
                return f"{name}<{match[1]}>" if match[1] else name
    return None


def resources(log: str) -> dict[str, tuple[int, int]]:
    """Registers and shared memory of each kernel, as ptxas reports them."""
    found = {}
    for symbol, text in re.findall(r"entry function '(\w+)'(.*?)(?=Compiling|\Z)", log, re.DOTALL):
        registers = re.search(r"Used (\d+) registers", text)
        shared = re.search(r"(\d+) bytes smem", text)
        name = kernel_name(symbol)
        if name is not None and registers is not None:
            found[name] = (int(registers[1]), int(shared[1]) if shared else 0)
    return found


def check_resources(found: dict[str, tuple[int, int]]) -> list[str]:
    errors = [f"{name}: not compiled, but in the table" for name in sorted({*MOST} - {*found})]
    for name, (registers, shared) in sorted(found.items()):
        if name not in MOST:
            errors.append(f"{name}: {registers} registers, {shared} bytes shared; not in the table")
        elif registers > MOST[name][0] or shared > MOST[name][1]:
            errors.append(
                f"{name}: {registers} registers and {shared} bytes of shared memory, expected at "
                f"most {MOST[name][0]} and {MOST[name][1]}"
            )
    return errors


def check_code(listing: str) -> list[str]:
    """What the machine code of the kernels lacks, or has and should not."""
    errors = []
    parts = re.split(r"^\s*\.section\s+\.text\.(\w+).*$", listing, flags=re.MULTILINE)
    for symbol, code in zip(parts[1::2], parts[2::2], strict=True):
        name = kernel_name(symbol)
        if name is None:
            continue
        if re.search(LOCAL, code):
            errors.append(f"{name}: loads from or stores to local memory")
        for pattern, least in PROMISED.get(name, {}).items():
            count = len(re.findall(pattern, code))
            if count < least:
                errors.append(f"{name}: {count} times {pattern}, expected at least {least}")
    return errors


def compile_for(architecture: str, folder: Path) -> list[str]:
    nvcc, environment = toolkit()
    log, errors = "", []
    disassembler = shutil.which("nvdisasm", path=environment["PATH"])
    for source in SOURCES:
        file = str(ROOT / "cpp" / "backend" / "cuda" / f"{source}.cu")
        cubin = str(folder / f"{source}.cubin")
        command = [nvcc, *FLAGS, f"-arch={architecture}", f"-I{ROOT / 'cpp'}"]
        done = subprocess.run(
            [*command, "-cubin", file, "-o", cubin],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        log += done.stdout + done.stderr
        if done.returncode != 0:
            return [done.stdout + done.stderr]
        if disassembler is not None:
            listing = subprocess.run(
                [disassembler, "-c", cubin], capture_output=True, text=True, check=True
            ).stdout
            errors += check_code(listing)
    found = resources(log)
    for name, (registers, shared) in sorted(found.items()):
        print(f"{architecture}  {name:<22} {registers:3} registers {shared:6} bytes shared")
    if disassembler is None:
        print(f"{architecture}  nvdisasm not found: the machine code was not looked at")
    return errors + check_resources(found)


def main(architectures: Sequence[str]) -> int:
    errors: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for architecture in architectures or ARCHITECTURES:
            errors += [f"{architecture}: {e}" for e in compile_for(architecture, Path(folder))]
    print("\n".join(errors or ["kernels: as the table has them"]))
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
