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
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from peer_plot import Group, svg
from rwkv_edge import _core
from rwkv_edge.bench import weight_bytes_per_token
from rwkv_edge.convert.assemble import open_model_file

HERE = Path(__file__).parent
ENGINES = str(HERE / "engines.py")
MAKER = str(HERE.parent / "tools" / "make_random_model.py")
OURS = "rwkv-edge"
READERS = {".gguf": (OURS, "llama.cpp"), ".pth": (OURS, "rwkv")}
K_TYPES = {"q2_k": 10, "q3_k": 12, "q4_k": 15, "q5_k": 17, "q6_k": 18}  # llama.cpp's numbers


@dataclass(frozen=True)
class Run:
    """One process."""

    file: str
    """MODEL-TYPE"""
    threads: int
    engine: str
    rates: dict[str, float]
    """Tokens per second: "pp32" reads a prompt of 32 tokens, "tg128" takes 128 one by one."""
    load_s: float
    first_token_s: float
    peak_mb: float
    bandwidth: list[float]
    """GB/s, before and after."""
    gflops: list[float]
    bytes_per_token: int
    operations_per_token: int
    """Of a prompt, of which only the last token needs the head."""

    @property
    def tg(self) -> str:
        return next(test for test in self.rates if test.startswith("tg"))

    @property
    def limit(self) -> float:
        """Tokens per second at which all weights are read at the memory's bandwidth."""
        return mean(self.bandwidth) * 1e9 / self.bytes_per_token

    @property
    def bandwidth_share(self) -> float:
        return self.rates[self.tg] / self.limit

    @property
    def arithmetic_share(self) -> float:
        """Of the float32 peak, by the fastest prompt."""
        prompts = max(rate for test, rate in self.rates.items() if test != self.tg)
        return prompts * self.operations_per_token / 1e9 / mean(self.gflops)

    def line(self) -> str:
        rates = "  ".join(f"{test} {rate:.1f}" for test, rate in self.rates.items())
        return (
            f"{self.file}  {self.threads} T  {self.engine:9}  {rates} "
            f"({self.bandwidth_share:.0%} of {mean(self.bandwidth):.1f} GB/s)  "
            f"load {self.load_s:.2f} s  first token {self.first_token_s:.2f} s  "
            f"{self.peak_mb:.0f} MB  [GB/s {_pair(self.bandwidth)}, GFLOPS {_pair(self.gflops)}]"
        )


def _pair(values: list[float]) -> str:
    return " then ".join(f"{value:.1f}" for value in values)


# ---- measuring ----------------------------------------------------------------------------------


def ask(python: str, *arguments: str, threads: int = 1) -> Any:
    """The answer of engines.py, which is the last line that it prints."""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": str(threads)}
    command = [python, ENGINES, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def find_engines(peers: list[str]) -> dict[str, str]:
    """The Python of each engine; ours is the one that runs this."""
    found: dict[str, str] = {}
    for python in (sys.executable, *peers):
        for engine, version in ask(python).items():
            if engine not in found:
                found[engine] = python
                print(f"{engine} {version}: {python}")
    if len(found) < 2:
        print(
            "No peer is installed here: pip install llama-cpp-python rwkv torch, or --peer-python"
        )
    return found


def model_file(folder: Path, size: str, kind: str, engines: dict[str, str]) -> Path:
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
        ask(engines["llama.cpp"], "quantize", str(source), str(part), str(K_TYPES[kind]))
        part.replace(path)
    return path


def measure(
    path: Path, threads: int, engines: dict[str, str], args: argparse.Namespace
) -> Iterator[Run]:
    """All runs of a file: the engines that read it in turn, limits between them."""
    tensors = open_model_file(path)
    matrices = [t for t in tensors.tensors if len(t.shape) == 2]
    used = [t for t in matrices if t.name not in ("token_embd.weight", "output.weight")]
    with path.open("rb") as file:  # into the page cache
        while file.read(1 << 24):
            pass
    before = ask(sys.executable, "limits", str(threads), threads=threads)
    for _ in range(args.runs):
        for engine in (name for name in READERS.get(path.suffix, (OURS,)) if name in engines):
            start = time.monotonic()
            test = (str(threads), args.prompts, str(args.tokens))
            found = ask(engines[engine], "measure", engine, str(path), *test)
            after = ask(sys.executable, "limits", str(threads), threads=threads)
            yield Run(
                file=path.stem,
                threads=threads,
                engine=engine,
                first_token_s=found.pop("first_token_at") - start,
                bandwidth=[before["bandwidth"], after["bandwidth"]],
                gflops=[before["gflops"], after["gflops"]],
                bytes_per_token=weight_bytes_per_token(tensors),
                operations_per_token=2 * sum(math.prod(t.shape) for t in used),
                **found,
            )
            before = after


# ---- reporting ----------------------------------------------------------------------------------


def group_runs(runs: list[Run]) -> dict[tuple[str, int], dict[str, list[Run]]]:
    """By file and threads, then by engine."""
    groups: dict[tuple[str, int], dict[str, list[Run]]] = {}
    for run in runs:
        group = groups.setdefault((run.file, run.threads), {})
        group.setdefault(run.engine, []).append(run)
    return groups


def table(runs: list[Run]) -> Iterator[str]:
    """Medians in Markdown, and the medians of the ratios of runs that followed each other."""
    tests = list(runs[0].rates)
    heads = ["file", "T", "engine", *tests, "bandwidth", "f32 peak", "load s", "first s", "MB"]
    yield f"| {' | '.join(heads)} |"
    yield f"|---|---:|---|{'---:|' * (len(heads) - 3)}"
    for (file, threads), group in group_runs(runs).items():
        for engine, own in group.items():
            rates = [f"{median(run.rates[test] for run in own):.1f}" for test in tests]
            rest = [
                f"{median(run.bandwidth_share for run in own):.0%}",
                f"{median(run.arithmetic_share for run in own):.0%}",
                f"{median(run.load_s for run in own):.2f}",
                f"{median(run.first_token_s for run in own):.2f}",
                f"{median(run.peak_mb for run in own):.0f}",
            ]
            yield f"| {' | '.join([file, str(threads), engine, *rates, *rest])} |"
        for peer in group.keys() - {OURS}:
            pairs = list(zip(group[OURS], group[peer], strict=False))
            ratios = [median(a.rates[test] / b.rates[test] for a, b in pairs) for test in tests]
            cells = [f"**{ratio:.2f}**" for ratio in ratios]
            yield f"| {' | '.join([file, str(threads), 'ratio', *cells, *[''] * 5])} |"


def plot(runs: list[Run]) -> str:
    """A row of panels for each model, one for each number of threads; in it a group per type."""
    panels: dict[str, dict[int, list[Group]]] = {}
    for (file, threads), group in group_runs(runs).items():
        model, _, kind = file.rpartition("-")
        rates = {name: median(run.rates[run.tg] for run in own) for name, own in group.items()}
        limit = median(run.limit for own in group.values() for run in own)
        row = panels.setdefault(model, {})
        row.setdefault(threads, []).append(Group(kind, rates, limit))
    titled = [
        [(f"{model}, {n} thread{'s' * (n > 1)}", row[n]) for n in sorted(row)]
        for model, row in panels.items()
    ]
    return svg(titled, list(dict.fromkeys(run.engine for run in runs)), runs[0].tg)


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'processor'}, {os.cpu_count()} cores, level {_core.isa()}"


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
    parser.add_argument("--read", action="append", type=Path, default=[], help="runs of earlier")
    parser.add_argument("--json", type=Path, help="write all runs here, after each one")
    parser.add_argument("--svg", type=Path, help="draw tokens per second here")
    args = parser.parse_args()
    runs = [Run(**run) for path in args.read for run in json.loads(path.read_text("utf-8"))["runs"]]
    machine = processor()
    print(f"{time.strftime('%Y-%m-%d')}, {machine}")
    engines = find_engines(args.peer_python) if args.files or args.size else {}
    sizes = [size for size in args.size.split(",") if size]
    made = [
        model_file(args.folder, s, kind, engines) for s in sizes for kind in args.type.split(",")
    ]
    for path in (*args.files, *made):
        for threads in args.threads.split(","):
            for run in measure(path, int(threads), engines, args):
                print(run.line(), flush=True)
                runs.append(run)
                if args.json:
                    record = {"machine": machine, "runs": [asdict(run) for run in runs]}
                    args.json.write_text(json.dumps(record, indent=1), "utf-8")
    if not runs:
        parser.error("no runs: name files, or --size, or --read")
    if args.svg:
        args.svg.write_text(plot(runs), "utf-8")
    print("", *table(runs), sep="\n")


if __name__ == "__main__":
    main()
