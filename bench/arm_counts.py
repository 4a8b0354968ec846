# SPDX-License-Identifier: Apache-2.0
"""Count what the aarch64 kernels execute, and let llvm-mca say how many cycles that takes.

    python bench/arm_counts.py --json counts.json            every level, kernel and core
    python bench/arm_counts.py --level neon --kernel q4_0 --listing

Builds bench_one_kernel for aarch64 and runs it under qemu, which logs the address of every
instruction. A kernel is run on two sizes and what the larger run executes beyond the smaller one
is counted, so that what a call costs once falls out. The same instructions, in the order in which
they were executed, are what llvm-mca simulates: every load hits the first cache, every branch is
foreseen. Needs cmake, ninja, g++-aarch64-linux-gnu, qemu-user-static and llvm-mca 16 or newer.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HAND_COUNTS = ROOT / "bench/arm_hand_counts.txt"
TYPES = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k"]
VECTORS = [
    *("round_activations", "layer_norm", "lerp", "add", "mul", "l2_normalize", "bonus"),
    *("sigmoid", "silu", "tanh", "relu2", "decay6", "decay7"),
]
PROMPT = 64
MOST = 100_000  # instructions to simulate; llvm-mca takes 60,000 a second
OBJDUMP = "aarch64-linux-gnu-objdump"
QEMU = "qemu-aarch64-static"


@dataclass(frozen=True)
class Core:
    """A core, as llvm-mca models it, and the level that it runs."""

    options: tuple[str, ...]
    level: str


LEVELS = ["scalar", "neon", "neon_dotprod"]
CORES = {
    "A53": Core(("-mcpu=cortex-a53",), "neon"),
    "A72": Core(("-mcpu=cortex-a72",), "neon"),
    # LLVM gives cortex-a76 the model of the A57. The Neoverse N1 is the A76 made for servers, and
    # both decode four instructions a cycle, where the model says three.
    "A76": Core(("-mcpu=neoverse-n1", "-dispatch=4"), "neon_dotprod"),
}


@dataclass(frozen=True)
class Case:
    """A kernel on two sizes, each (rows, columns, tokens) as bench_one_kernel takes them."""

    kernel: str
    test: str
    small: tuple[int, int, int]
    large: tuple[int, int, int]
    unit: str
    units: int
    """By how many of these the sizes differ."""


def cases() -> Iterator[Case]:
    for kind in TYPES:
        yield Case(kind, "decode", (16, 2048, 1), (32, 2048, 1), "weight", 16 * 2048)
        small, large = (8, 1024, PROMPT), (16, 1024, PROMPT)
        yield Case(kind, "prompt", small, large, "weight and token", 8 * 1024 * PROMPT)
    for kernel, elements in ("wkv4", 64), ("wkv6", 64 * 64), ("wkv7", 64 * 64):
        unit = "channel" if kernel == "wkv4" else "state element"
        yield Case(kernel, "recurrence", (0, 64, 8), (0, 64, 16), unit, 8 * elements)
    for kernel in VECTORS:
        yield Case(kernel, "vector", (0, 1024, 0), (0, 2048, 0), "element", 1024)


@dataclass(frozen=True)
class Count:
    level: str
    kernel: str
    test: str
    unit: str
    instructions: float
    """Per unit."""
    cycles: dict[str, float]
    """Per unit, by core."""


Hand = dict[tuple[str, str, str], float]
"""Instructions per unit counted by hand, by level, kernel and test."""


class Program:
    """bench_one_kernel for aarch64."""

    def __init__(self, path: Path) -> None:
        self.path = path
        dump = run([OBJDUMP, "-d", "--no-show-raw-insn", str(path)])
        self.text = dict(instructions(dump.splitlines()))

    def executed(self, level: str, case: Case, size: tuple[int, int, int]) -> array[int]:
        """Addresses of the instructions of one call, in order."""
        # that a kernel may call, the C library chooses by CPU: memcpy would use SVE under `max`
        cpu = "cortex-a76" if level == "neon_dotprod" else "cortex-a72"
        emulated = {"QEMU_CPU": cpu, "QEMU_LOG": "exec,nochain"}
        # one instruction a block, as older and newer versions call it
        emulated |= {"QEMU_SINGLESTEP": "1", "QEMU_ONE_INSN_PER_TB": "1"}
        command = [QEMU, str(self.path), level, case.kernel, *map(str, size)]
        with subprocess.Popen(command, env=os.environ | emulated, stderr=subprocess.PIPE) as qemu:
            assert qemu.stderr is not None
            addresses = marked(qemu.stderr)
        if not addresses:
            raise SystemExit(f"{' '.join(command)}: status {qemu.returncode}, nothing counted")
        return addresses


def run(command: Sequence[str], text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command)}: status {done.returncode}\n{(done.stdout + done.stderr)[-2000:]}"
        )
    return done.stdout


def build(folder: Path) -> Program:
    toolchain = ROOT / "cmake/aarch64-linux-gnu.cmake"
    options = ["-DRWKV_EDGE_BENCH=ON", "-DCMAKE_EXE_LINKER_FLAGS=-static"]
    run(["cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(folder),
         f"-DCMAKE_TOOLCHAIN_FILE={toolchain}", *options])  # fmt: skip
    run(["cmake", "--build", str(folder), "--target", "bench_one_kernel"])
    return Program(folder / "bench_one_kernel")


def marked(log: Iterable[bytes]) -> array[int]:
    """The addresses between the marks, of lines `Trace 0: HOST [BASE/ADDRESS/FLAGS/FLAGS] NAME`."""
    addresses = array("Q")
    inside = False
    for line in log:
        if line.endswith(b"kernel_begins\n"):
            inside = True
        elif line.endswith(b"kernel_ends\n"):
            inside = False
        elif inside and line.startswith(b"Trace "):
            addresses.append(int(line.split(b"/", 2)[1], 16))
    return addresses


def instructions(dump: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Address and text of objdump's lines."""
    for line in dump:
        found = re.match(r"\s*([0-9a-f]+):\t(.*)", line)
        if found:
            text = found[2].split("//")[0]
            yield int(found[1], 16), " ".join(text.split())


def assembly(text: str) -> str:
    """An instruction as llvm-mca reads it: a branch goes anywhere, and is one, not a call."""
    if text.split(maxsplit=1)[0] in ("bl", "blr", "br", "ret"):
        return "b #0"
    return re.sub(r"[0-9a-f]+ <[^>]*>", "#0", text)


def simulate(llvm_mca: str, core: Core, texts: Iterable[str], *options: str) -> str:
    command = [llvm_mca, "-mtriple=aarch64-linux-gnu", *core.options, "-iterations=1",
               "-instruction-info=0", *options]  # fmt: skip
    return run(command, "\n".join(map(assembly, texts)) + "\n")


def total_cycles(report: str) -> int:
    return int(report.split("Total Cycles:")[1].split(maxsplit=1)[0])


def measure(program: Program, llvm_mca: str, level: str, case: Case, listing: bool) -> Count:
    before = len(program.executed(level, case, case.small))
    beyond = program.executed(level, case, case.large)[before:]
    texts = [program.text[address] for address in beyond[-MOST:]]
    units = case.units * len(texts) / len(beyond)
    cores = {name: core for name, core in CORES.items() if level == core.level}
    cycles = {
        name: total_cycles(simulate(llvm_mca, core, texts, "-resource-pressure=0")) / units
        for name, core in cores.items()
    }
    if listing:
        print_listing(program, beyond, case)
        part = texts[-MOST // 20 :]  # to find what holds it up takes long
        parts = case.units / 32 * len(part) / len(beyond)
        for name, core in cores.items():
            report = simulate(llvm_mca, core, part, "-bottleneck-analysis=1")
            print(f"{name}: {pressure(report, parts)}")
    count = len(beyond) / case.units
    return Count(level, case.kernel, case.test, case.unit, count, cycles)


def blocks(addresses: Iterable[int]) -> list[tuple[int, list[int]]]:
    """Runs of neighbouring instructions that were executed equally often, by address."""
    found: list[tuple[int, list[int]]] = []
    for address, times in sorted(Counter(addresses).items()):
        if found and found[-1][0] == times and found[-1][1][-1] + 4 == address:
            found[-1][1].append(address)
        else:
            found.append((times, [address]))
    return found


def print_listing(program: Program, addresses: Sequence[int], case: Case) -> None:
    """What makes up at least a hundredth of the instructions, with executions per 32 units."""
    for times, block in blocks(addresses):
        if times * len(block) < len(addresses) / 100:
            continue
        each = 32 * times / case.units
        print(f"-- {each:.3f} times per 32 {case.unit}s: {len(block)} instructions")
        for address in block:
            print(f"  {address:x}  {program.text[address]}")


def pressure(report: str, parts: float) -> str:
    """How long each unit of a core is busy, in cycles per part, and what holds it up."""
    names = re.findall(r"^\[[\d.]+\]\s+- (\w+)", report, re.MULTILINE)
    values = report.split("Resource pressure per iteration:")[1].splitlines()[2].split()
    used = [
        f"{name} {float(value) / parts:.2f}"
        for name, value in zip(names, values, strict=True)
        if value != "-"
    ]
    held = re.findall(r"(Resource Pressure|(?:Data|Register) Dependencies)\s+(\[.*?\])", report)
    return ", ".join([*used, *(f"{what} {share}" for what, share in held)])


def hand_counts(table: str) -> Hand:
    """What arm_hand_counts.txt says."""
    lines = [line.split() for line in table.splitlines() if not line.startswith("#")]
    (_, _, _, *levels), *rows = lines
    return {
        (level, kernel, test): float(value) / int(units)
        for kernel, test, units, *values in rows
        for level, value in zip(levels, values, strict=True)
    }


def row(counts: Sequence[Count], hand: Hand) -> str:
    """A case's counts: instructions by level, where known with the ratio to those by hand, then
    cycles by core."""
    instructions = {count.level: f"{count.instructions:.3f}" for count in counts}
    for count in counts:
        by_hand = hand.get((count.level, count.kernel, count.test))
        if by_hand is not None:
            instructions[count.level] += f" ({count.instructions / by_hand:.2f})"
    cycles = {core: f"{32 * each:.1f}" for count in counts for core, each in count.cycles.items()}
    cells = [
        f"{counts[0].kernel} {counts[0].test}",
        counts[0].unit,
        *(instructions.get(level, "") for level in LEVELS),
        *(cycles.get(core, "") for core in CORES),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, default=ROOT / "build/arm_counts", metavar="FOLDER")
    parser.add_argument("--level", action="append", choices=LEVELS, help="default: all")
    parser.add_argument("--kernel", action="append", help="q4_0, wkv7, ...; default: all")
    parser.add_argument("--test", action="append", help="decode, prompt, ...; default: all")
    parser.add_argument("--listing", action="store_true", help="show the loops")
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--llvm-mca", default="llvm-mca-22", metavar="PROGRAM")
    args = parser.parse_args()
    needed = ["cmake", "ninja", "aarch64-linux-gnu-g++", OBJDUMP, QEMU, args.llvm_mca]
    if missing := [name for name in needed if shutil.which(name) is None]:
        parser.error(f"not installed: {', '.join(missing)}; bench/README.md names the packages")
    program = build(args.build)
    hand = hand_counts(HAND_COUNTS.read_text("utf-8"))
    found: list[Count] = []
    heads = [*LEVELS, *(f"{core}, {CORES[core].level}" for core in CORES)]
    print(f"| kernel | unit | {' | '.join(heads)} |\n|---|---|{'---:|' * len(heads)}")
    for case in cases():
        if case.kernel not in (args.kernel or [case.kernel]):
            continue
        if case.test not in (args.test or [case.test]):
            continue
        levels = args.level or LEVELS
        if case.test == "prompt":  # scalar reads one token after the other
            levels = [level for level in levels if level != "scalar"]
        counts = [measure(program, args.llvm_mca, level, case, args.listing) for level in levels]
        print(row(counts, hand), flush=True)
        found += counts
    if args.json:
        args.json.write_text(json.dumps([asdict(count) for count in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
