# SPDX-License-Identifier: Apache-2.0
"""Speed beside llama.cpp and the `rwkv` package, where they are installed, on the same files.

    python bench/compare_peers.py --size 0.4b --type f16,q4_0 --peer-python PEERS/bin/python
    python bench/compare_peers.py MODEL-q4_0.gguf --threads 1 --json runs.json --svg runs.svg
    python bench/compare_peers.py --read runs.json --svg runs.svg

Each run is a process of its own; the engines take turns; the machine's limits are measured before
and after each run. bench/README.md says what the figures mean.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

from peer_plot import Group, svg
from rwkv_edge import _core
from rwkv_edge.bench import Limits, Work
from rwkv_edge.model_file import open_model_file

HERE = Path(__file__).resolve().parent
ENGINES = str(HERE / "engines.py")
MAKER = str(HERE.parent / "tools" / "make_random_model.py")
OURS = "rwkv-edge"
READERS = {".gguf": (OURS, "llama.cpp"), ".pth": (OURS, "rwkv")}
K_TYPES = {"q2_k": 10, "q3_k": 12, "q4_k": 15, "q5_k": 17, "q6_k": 18}  # llama.cpp's numbers


class Engine(NamedTuple):
    """An engine that is installed: in which Python, and its version."""

    python: str
    version: str


@dataclass(frozen=True)
class Run:
    """One process."""

    date: str
    """When it began, UTC."""
    machine: str
    file: str
    """MODEL-TYPE"""
    threads: int
    engine: str
    versions: dict[str, str]
    """Of the engine, and of rwkv-edge, which measures the limits."""
    rates: dict[str, float]
    """Tokens per second: "pp32" reads a prompt of 32 tokens, "tg128" takes 128 one by one."""
    load_s: float
    first_token_s: float
    peak_mb: float
    work: Work
    limits: tuple[Limits, Limits]
    """Before and after."""

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Run:
        before, after = (Limits(**limits) for limits in found.pop("limits"))
        return cls(work=Work(**found.pop("work")), limits=(before, after), **found)

    @property
    def tg(self) -> str:
        return next(test for test in self.rates if test.startswith("tg"))

    @property
    def pp(self) -> str:
        """The longest prompt."""
        prompts = [test for test in self.rates if test.startswith("pp")]
        return max(prompts, key=lambda test: int(test.removeprefix("pp")))

    def limit(self, test: str) -> float:
        """Tokens per second at the machine's limit: memory for tg, arithmetic for pp."""
        return mean(limits.rate(self.work, test) for limits in self.limits)

    def share(self, test: str) -> float:
        return self.rates[test] / self.limit(test)

    def line(self) -> str:
        rates = "  ".join(
            f"{test} {rate:.1f} ({self.share(test):.0%})" for test, rate in self.rates.items()
        )
        limits = " then ".join(map(describe, self.limits))
        return (
            f"{self.file}  {self.threads} T  {self.engine:9}  {rates}  load {self.load_s:.2f} s  "
            f"first token {self.first_token_s:.2f} s  {self.peak_mb:.0f} MB  [{limits}]"
        )


def describe(x: Limits) -> str:
    return f"{x.bandwidth_gb:.1f} GB/s, f32 {x.float_gops:.1f}, int8 {x.int8_gops:.1f} GOPS"


# ---- measuring ----------------------------------------------------------------------------------


def ask(python: str, *arguments: str) -> Any:
    """The answer of engines.py, which is the last line that it prints."""
    command = [python, ENGINES, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def find_engines(peers: list[str]) -> dict[str, Engine]:
    """The engines there are; ours is in the Python that runs this."""
    found: dict[str, Engine] = {}
    for python in (sys.executable, *peers):
        for name, version in ask(python).items():
            if name not in found:
                found[name] = Engine(python, version + (commit() if name == OURS else ""))
                print(f"{name} {found[name].version}: {python}")
    if len(found) < 2:
        print(
            "No peer is installed here: pip install llama-cpp-python rwkv torch, or --peer-python"
        )
    return found


def commit() -> str:
    """What this checkout is at; empty where this is none."""
    root = HERE.parent
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    return f" ({subprocess.check_output(command, text=True).strip()})"


def model_file(folder: Path, size: str, kind: str, engines: dict[str, Engine]) -> Path:
    """A random model of the size and type, made where it is not there yet."""
    path = folder / f"rwkv7-{size}-{kind}{'.pth' if kind == 'pth' else '.gguf'}"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    if kind not in K_TYPES:
        form = ["--pth"] if kind == "pth" else ["--type", kind]
        subprocess.run([sys.executable, MAKER, "--size", size, *form, path], check=True)
    elif "llama.cpp" not in engines:
        raise SystemExit(f"--type {kind}: only llama.cpp can write it, and it is not installed")
    else:
        part = path.with_suffix(".part")
        source = model_file(folder, size, "f16", engines)
        ask(engines["llama.cpp"].python, "quantize", str(source), str(part), str(K_TYPES[kind]))
        part.replace(path)
    return path


def measure(
    path: Path, threads: int, engines: dict[str, Engine], args: argparse.Namespace
) -> Iterator[Run]:
    """All runs of a file: the engines that read it in turn, limits between them."""
    work, machine = Work.of(open_model_file(path)), processor()
    with path.open("rb") as file:  # into the page cache
        while file.read(1 << 24):
            pass
    before = limits(threads)
    for _ in range(args.runs):
        for name in (name for name in READERS.get(path.suffix, (OURS,)) if name in engines):
            date, start = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.monotonic()
            test = (str(threads), args.prompts, str(args.tokens))
            with neighbours(args.busy):
                found = ask(engines[name].python, "measure", name, str(path), *test)
            after = limits(threads)
            yield Run(
                date=date,
                machine=machine,
                file=path.stem + (f" beside {args.busy} busy" if args.busy else ""),
                threads=threads,
                engine=name,
                versions={each: engines[each].version for each in dict.fromkeys((OURS, name))},
                first_token_s=found.pop("first_token_at") - start,
                work=work,
                limits=(before, after),
                **found,
            )
            before = after


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Processes that use the CPU meanwhile, as other programs do."""
    spin = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(spin) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def limits(threads: int) -> Limits:
    return Limits(**ask(sys.executable, "limits", str(threads)))


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    board = Path("/proc/device-tree/model")  # where cpuinfo of an Arm CPU names none
    if not names and board.exists():
        names = [board.read_text("utf-8").strip("\0")]
    return f"{names[0] if names else 'processor'}, {os.cpu_count()} cores, level {_core.isa()}"


# ---- reporting ----------------------------------------------------------------------------------


Runs = dict[str, list[Run]]
"""By engine, ours first."""


def group_runs(runs: list[Run]) -> dict[tuple[str, int], Runs]:
    """By file and threads, then by engine."""
    groups: dict[tuple[str, int], Runs] = {}
    for run in runs:
        group = groups.setdefault((run.file, run.threads), {})
        group.setdefault(run.engine, []).append(run)
    return groups


def medians(group: Runs, value: Callable[[Run], float], form: str) -> str:
    return " / ".join(format(median(map(value, own)), form) for own in group.values())


def table(runs: list[Run]) -> Iterator[str]:
    """Medians in Markdown, one row per file: ours / a peer's = the median of the ratios of runs
    that followed each other; then the shares of the limits, the start and the memory of each."""
    tests = list(runs[0].rates)
    heads = ["file", "T", "engines", *tests, "bandwidth", "peak", "first s", "MB"]
    yield f"| {' | '.join(heads)} |"
    yield f"|---|---:|---|{'---|' * (len(heads) - 3)}"
    for (file, threads), group in group_runs(runs).items():
        cells = [file, str(threads), " / ".join(group)]
        for test in tests:
            cells.append(medians(group, lambda run: run.rates[test], ".1f"))  # noqa: B023
            for peer in group.keys() - {OURS}:
                pairs = zip(group[OURS], group[peer], strict=False)
                ratio = median(a.rates[test] / b.rates[test] for a, b in pairs)
                cells[-1] += f" = **{ratio:.2f}**"
        cells.append(medians(group, lambda run: run.share(run.tg), ".0%"))
        cells.append(medians(group, lambda run: run.share(run.pp), ".0%"))
        cells.append(medians(group, lambda run: run.first_token_s, ".2f"))
        cells.append(medians(group, lambda run: run.peak_mb, ".0f"))
        yield f"| {' | '.join(cells)} |"


def plot(runs: list[Run]) -> str:
    """A row of panels for each model, one for each number of threads; in it a group per type."""
    panels: dict[str, dict[int, list[Group]]] = {}
    for (file, threads), group in group_runs(runs).items():
        model, _, kind = file.rpartition("-")
        rates = {name: median(run.rates[run.tg] for run in own) for name, own in group.items()}
        limit = median(run.limit(run.tg) for own in group.values() for run in own)
        row = panels.setdefault(model, {})
        row.setdefault(threads, []).append(Group(kind, rates, limit))
    titled = [
        [(f"{model}, {n} thread{'s' * (n > 1)}", row[n]) for n in sorted(row)]
        for model, row in panels.items()
    ]
    return svg(titled, list(dict.fromkeys(run.engine for run in runs)), runs[0].tg)


def origins(runs: list[Run]) -> Iterator[str]:
    """Where and when, the medians of the limits there, and with which versions."""
    for origin in dict.fromkeys((run.date[:10], run.machine) for run in runs):
        yield ", ".join(origin)
        limits: dict[int, list[Limits]] = {}
        for run in runs:
            if (run.date[:10], run.machine) == origin:
                limits.setdefault(run.threads, []).extend(run.limits)
        for threads, found in sorted(limits.items()):
            middle = Limits(*map(median, zip(*map(astuple, found), strict=True)))
            yield f"{threads} thread{'s' * (threads > 1)}: {describe(middle)}"
    yield from dict.fromkeys(" ".join(pair) for run in runs for pair in run.versions.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="MODEL-TYPE.gguf")
    parser.add_argument("--size", default="", help="random models of these sizes: 0.1b,0.4b,1.5b")
    parser.add_argument("--type", default="f16,q8_0,q4_0", help="their types; pth for `rwkv`")
    parser.add_argument("--folder", type=Path, default=HERE.parent / "build" / "models")
    parser.add_argument("--peer-python", action="append", default=[], help="has a peer installed")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--prompts", default="32,128,512", help="tokens read at once")
    parser.add_argument("--tokens", type=int, default=128, help="tokens taken one by one")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--busy", type=int, default=0, help="other processes that use the CPU")
    parser.add_argument("--read", action="append", type=Path, default=[], help="runs of earlier")
    parser.add_argument("--json", type=Path, help="write all runs here, after each one")
    parser.add_argument("--svg", type=Path, help="draw tokens per second here")
    args = parser.parse_args()
    runs = [Run.from_json(run) for path in args.read for run in json.loads(path.read_text("utf-8"))]
    engines = find_engines(args.peer_python) if args.files or args.size else {}
    sizes = [size for size in args.size.split(",") if size]
    made = [
        model_file(args.folder, s, kind, engines) for s in sizes for kind in args.type.split(",")
    ]
    tests = {" ".join(run.rates) for run in runs}
    if args.files or made:
        tests.add(" ".join([*(f"pp{n}" for n in args.prompts.split(",")), f"tg{args.tokens}"]))
    if len(tests) > 1:
        found = " and ".join(sorted(tests))
        parser.error(f"--read, --prompts, --tokens: expected one set of tests, found {found}")
    for path in (*args.files, *made):
        for threads in args.threads.split(","):
            for run in measure(path, int(threads), engines, args):
                print(run.line(), flush=True)
                runs.append(run)
                if args.json:
                    args.json.write_text(json.dumps([asdict(x) for x in runs], indent=1), "utf-8")
    if not runs:
        parser.error("no runs: name files, or --size, or --read")
    if args.svg:
        args.svg.write_text(plot(runs), "utf-8")
    print("", *origins(runs), "", *table(runs), sep="\n")


if __name__ == "__main__":
    main()
