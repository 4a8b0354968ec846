# SPDX-License-Identifier: Apache-2.0
"""All that is to be known of a GPU, in one run of ten minutes: python bench/cuda_all.py

It takes an installed build with CUDA and this checkout, and nothing from the network. It runs, in
this order: the tests on the card; compute-sanitizer's four tools over tiny models; 1,000 steps
twice, which must give equal bits; random models, which it makes meanwhile, with one and many
sessions; the CPU of the machine at every kernel level. Each part is bounded in time, and what does
not fit is left out and named. The results, OUT/cuda_all.json and OUT/cuda_all.md, are written after
each part.

`--tiny` takes models that an emulated GPU can bear, to try the script itself.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rwkv_edge import Model, _core

ROOT = Path(__file__).resolve().parent.parent
MAKER = ROOT / "tools" / "make_random_model.py"
PARTS = ("tests", "sanitizer", "repeat", "models", "cpu")
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
TESTS = ("test_cuda.py", "test_batch.py", "test_versions.py", "test_lookup.py")
Results = dict[str, Any]
Part = Callable[[float], Results]  # what it finds in so many seconds


def call(
    command: list[str], seconds: float, environment: Mapping[str, str], keep: int = 4000
) -> Results:
    """A program's end: its status, None where its time was up, and the last `keep` characters that
    it said.
    """
    begun = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=max(seconds, 1))
        status = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        status = None
    took = round(time.monotonic() - begun, 1)
    return {"status": status, "seconds": took, "said": said[-keep:]}


def calling(command: list[str], **environment: str) -> Part:
    return lambda seconds: call(command, seconds, environment)


def bench(model: Path, seconds: float, *options: str, **environment: str) -> Results:
    """`rwkv-edge bench`, its rows or how it failed."""
    command = [sys.executable, "-m", "rwkv_edge", "bench", str(model), "--json", *options]
    done = call(command, seconds, environment, keep=1 << 20)
    if done["status"] != 0:
        return done
    text = done.pop("said")
    try:
        return {**done, "rows": json.loads(text[text.index("{") :])["results"]}
    except ValueError as error:
        return {**done, "status": None, "said": f"{error}: {text}"}


class Session:
    """One run: where its results go, and how much time is left."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.deadline: float = time.monotonic() + 60 * options.minutes
        self.results: Results = {"parts": {}, "left_out": []}

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def part(self, name: str, seconds: float, run: Part) -> None:
        """Runs with so many seconds at most, and keeps what it returns or why it failed."""
        if name.partition(" ")[0] in self.options.skip:
            return
        limit = min(seconds, self.left())
        if limit < 2:
            self.results["left_out"].append(name)
        else:
            print(f"{self.left():6.0f} s left: {name}", flush=True)
            try:
                self.results["parts"][name] = run(limit)
            except (OSError, ValueError, RuntimeError, MemoryError) as error:
                self.results["parts"][name] = {"status": None, "said": str(error)}
        self.write()

    def write(self) -> None:
        folder: Path = self.options.out
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.results, indent=2)
        (folder / "cuda_all.json").write_text(text, encoding="utf-8")
        (folder / "cuda_all.md").write_text(markdown(self.results), encoding="utf-8")


def machine(device: str) -> Results:
    found: Results = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": f"{platform.processor() or platform.machine()}, {os.cpu_count()} threads",
        "isa_levels": _core.isa_levels(),
        "gpus": _core.cuda_devices(),
        "why_no_cuda": _core.why_no_cuda(),
    }
    if shutil.which("nvidia-smi"):
        wanted = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit"
        query = ["nvidia-smi", f"--query-gpu={wanted}", "--format=csv,noheader"]
        found["nvidia-smi"] = call(query, 20, {})["said"].strip()
    if not found["why_no_cuda"]:
        code = f"from rwkv_edge import _core; print(*_core.gpu_limits({device!r}))"
        done = call([sys.executable, "-c", code], 60, {})
        if done["status"] == 0:
            numbers = done["said"].split()
            found["read_gb"], found["f16_gops"] = map(float, numbers)
        else:
            found["limits"] = done
    return found


def tests(run: Session) -> Iterator[tuple[str, float, Part]]:
    device = run.options.device
    if run.options.build:
        command = ["ctest", "--test-dir", str(run.options.build), "-R", "cuda", "--timeout", "120"]
        yield "tests in C++", 120, calling(command, RWKV_EDGE_DEVICE=device)
    for name in TESTS[:1] if run.options.tiny else TESTS:
        test = ["-m", "pytest", "-q", "-x", "--no-header", f"tests/python/{name}"]
        line = [sys.executable, *test, *(["-k", "q4_0"] if run.options.tiny else [])]
        yield f"tests of {name}", 100, calling(line, RWKV_EDGE_DEVICE=device)


def sanitizers(run: Session) -> Iterator[tuple[str, float, Part]]:
    program = shutil.which("compute-sanitizer")
    for tool in SANITIZERS:
        name = f"sanitizer {tool}"
        own = [sys.executable, __file__, "--child", "tiny", "--device", run.options.device]
        if program is None:
            if run.options.tiny:  # at least what it would look at
                yield name, 120, calling(own)
                return
            yield name, 5, lambda _: {"status": None, "said": "compute-sanitizer: not found"}
            continue
        yield name, 60, calling([program, "--tool", tool, "--error-exitcode", "9", *own])


def child_tiny(device: str) -> None:
    """A few steps of a tiny model of every version."""
    sys.path.insert(0, str(ROOT / "tests" / "python"))
    import tiny

    with tempfile.TemporaryDirectory() as folder:
        for version, shapes in tiny.VERSIONS.items():
            for kind in ("f16", "q4_0"):
                made = tiny.tiny_model(shapes["d128"], kind, 1)
                path = tiny.write(Path(folder), f"{version}-{kind}.gguf", made)
                model = Model(path, device=device)
                sessions = [model.session() for _ in range(3)]
                sessions[0].feed(range(1, 20))
                for token in (1, 2, 3):
                    model.batch(sessions).feed([[token]] * 3)
                print(version, kind, "ok", flush=True)


def child_repeat(device: str, path: str, steps: int) -> None:
    """Steps of three sessions, twice; prints a hash of all logits and states of each run."""
    for _ in range(2):
        model = Model(path, device=device)
        sessions = [model.session() for _ in range(3)]
        batch, found = model.batch(sessions), hashlib.sha256()
        tokens = [1, 2, 3]
        for _ in range(steps):
            logits = batch.feed([[token] for token in tokens])
            found.update(logits.tobytes())
            tokens = logits.argmax(axis=1).tolist()
        for session in sessions:
            found.update(np.ascontiguousarray(session.state.data).tobytes())
        print(found.hexdigest(), flush=True)


class Models:
    """Random models, made side by side in the background, the largest first."""

    def __init__(self, sizes: list[str], types: list[str], folder: Path, at_once: int) -> None:
        order = [(size, kind) for size in reversed(sizes) for kind in types]
        self._waiting = [(size, kind, folder / f"{size}-{kind}.gguf") for size, kind in order]
        self._made: dict[tuple[str, str], tuple[Path, subprocess.Popen[bytes]]] = {}
        self._at_once = at_once

    def poll(self) -> None:
        running = sum(process.poll() is None for _, process in self._made.values())
        while self._waiting and running < self._at_once:
            size, kind, path = self._waiting.pop(0)
            command = [sys.executable, str(MAKER), "--size", size, "--type", kind, str(path)]
            self._made[size, kind] = (
                path,
                subprocess.Popen(
                    command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT
                ),
            )
            running += 1

    def get(self, size: str, kind: str, seconds: float) -> Path:
        """Waits for a model; RuntimeError where it is not there in time."""
        end = time.monotonic() + seconds
        while True:
            self.poll()
            path, process = self._made.get((size, kind), (None, None))
            if path is not None and process is not None and process.poll() is not None:
                if process.returncode == 0:
                    return path
                said = process.stderr.read().decode() if process.stderr else ""
                raise RuntimeError(f"the model was not made: {said[-500:]}")
            if time.monotonic() > end:
                raise RuntimeError("the model was not made in time")
            time.sleep(0.2)

    def stop(self) -> None:
        self._waiting.clear()
        for _, process in self._made.values():
            if process.poll() is None:
                process.kill()
            process.wait()


def repeat(run: Session, models: Models) -> Part:
    def compare(limit: float) -> Results:
        path = models.get(run.options.sizes[0], run.options.types[-1], limit / 2)
        steps = "20" if run.options.tiny else "1000"
        own = [sys.executable, __file__, "--device", run.options.device]
        done = call([*own, "--child", "repeat", str(path), steps], limit / 2, {})
        hashes = done["said"].split()
        equal = len(hashes) == 2 and hashes[0] == hashes[1]
        return {**done, "status": done["status"] if equal else done["status"] or 1, "equal": equal}

    return compare


def measured(run: Session, models: Models) -> Iterator[tuple[str, float, Part]]:
    options = run.options
    writing = ["-n", "4" if options.tiny else "64", "--sessions", options.sessions]
    for size in options.sizes:
        for kind in options.types:

            def both(limit: float, size: str = size, kind: str = kind) -> Results:
                end = time.monotonic() + limit
                path = models.get(size, kind, limit)
                device = ["--device", options.device, "-r", "1" if options.tiny else "3"]
                short, long = ("8", "70") if options.tiny else ("512", "4096")
                rows: list[Any] = []
                for line in (
                    [*device, "-p", short, *writing],
                    [*device, "-p", long, "-n", "0"],
                ):
                    done = bench(path, end - time.monotonic(), *line)
                    rows += done.get("rows", [])
                    if done["status"] != 0:
                        return {**done, "rows": rows}
                return {"status": 0, "rows": rows}

            yield f"models {size} {kind}", 90, both


def on_cpu(run: Session, models: Models) -> Iterator[tuple[str, float, Part]]:
    options = run.options
    size = options.sizes[min(1, len(options.sizes) - 1)]
    count = os.cpu_count() or 1
    threads = ",".join(str(n) for n in (1, 2, 4, 8, 16) if n <= count)
    length = ["-p", "8", "-n", "2"] if options.tiny else ["-p", "64", "-n", "16"]
    for level in reversed(_core.isa_levels()):
        for kind in options.types if level != "scalar" else options.types[-1:]:

            def level_of(limit: float, level: str = level, kind: str = kind) -> Results:
                end = time.monotonic() + limit
                path = models.get(size, kind, limit)
                line = ["--device", "cpu", "-t", threads, "-r", "1", *length]
                return bench(path, end - time.monotonic(), *line, RWKV_EDGE_ISA=level)

            yield f"cpu {level} {size} {kind}", 40, level_of


def cell(row: Mapping[str, Any] | None) -> str:
    return "" if row is None else f"{row['tokens_per_second']:,.1f} ({row['share']:.0%})"


def markdown(results: Results) -> str:
    found = results.get("machine", {})
    lines = [
        f"# {', '.join(found.get('gpus', [])) or 'no GPU'}, {found.get('date', '')}",
        "",
        *(
            f"- {name}: {found[name]}"
            for name in ("nvidia-smi", "cpu", "why_no_cuda")
            if found.get(name)
        ),
    ]
    if "read_gb" in found:
        lines.append(
            f"- read bandwidth {found['read_gb']:,.1f} GB/s, f16 products "
            f"{found['f16_gops'] / 1e3:,.1f} TFLOPS, both measured"
        )
    parts = results["parts"]
    others = {
        name: part for name, part in parts.items() if name.split()[0] not in ("models", "cpu")
    }
    if others:
        lines += ["", "| part | | seconds |", "|---|---|---:|"]
        for name, part in others.items():
            verdict = {0: "ok", None: "no result"}.get(part["status"], "FAILED")
            last = "" if part["status"] == 0 else f": {part['said'].strip()[-200:]}"
            one_line = " ".join(last.split()).replace("|", "/")
            lines.append(f"| {name} | {verdict}{one_line} | {part.get('seconds', '')} |")
    for kind in ("models", "cpu"):
        rows = {n: p for n, p in parts.items() if n.split()[0] == kind}
        tests_of = [
            (r["sessions"], r["threads"], r["test"])
            for p in rows.values()
            for r in p.get("rows", [])
        ]
        columns = sorted(set(tests_of), key=tests_of.index)
        if not rows:
            continue
        heads = [
            f"{test}, {together} sessions"
            if kind == "models" and test.startswith("tg")
            else test
            if kind == "models"
            else f"{test}, -t {threads}"
            for together, threads, test in columns
        ]
        lines += ["", "Tokens per second, and their share of what the device gives at most:", ""]
        lines += [f"| {kind} | {' | '.join(heads)} |", "|---|" + "---:|" * len(columns)]
        for name, part in rows.items():
            known = {(r["sessions"], r["threads"], r["test"]): r for r in part.get("rows", [])}
            cells = [cell(known.get(column)) for column in columns]
            why = "" if part["status"] == 0 else f" ({' '.join(part['said'].split())[-120:]})"
            lines.append(f"| {name.partition(' ')[2]}{why} | {' | '.join(cells)} |")
    if results["left_out"]:
        lines += ["", f"No time was left for: {', '.join(results['left_out'])}."]
    return "\n".join(lines) + "\n"


def options_of(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("cuda_all"), help="folder of the results")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", help="default 0.1b,0.4b,1.5b,7.2b")
    parser.add_argument("--types", default="f16,q8_0,q4_0")
    parser.add_argument("--sessions", help="default 1,8,32,128")
    parser.add_argument("--skip", default="", help=f"parts to leave out: {','.join(PARTS)}")
    parser.add_argument("--build", type=Path, help="a CMake build with tests, to run those too")
    parser.add_argument("--models", type=Path, help="where the models go, and stay")
    parser.add_argument("--tiny", action="store_true", help="models for an emulated GPU")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.out = options.out.resolve()
    options.sizes = (options.sizes or ("tiny" if options.tiny else "0.1b,0.4b,1.5b,7.2b")).split(
        ","
    )
    options.types = options.types.split(",")
    options.sessions = options.sessions or ("1,3" if options.tiny else "1,8,32,128")
    options.skip = options.skip.split(",") if options.skip else []
    if unknown := set(options.skip) - set(PARTS):
        parser.error(f"--skip: found {', '.join(unknown)}, expected some of {', '.join(PARTS)}")
    return options


def main(arguments: list[str]) -> int:
    options = options_of(arguments)
    if options.child:
        name, *rest = options.child
        if name == "tiny":
            child_tiny(options.device)
        else:
            child_repeat(options.device, rest[0], int(rest[1]))
        return 0
    run = Session(options)
    run.results["machine"] = machine(options.device)
    run.write()
    if run.results["machine"]["why_no_cuda"]:
        print(run.results["machine"]["why_no_cuda"])
        return 1
    with contextlib.ExitStack() as stack:
        folder = options.models or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        # The GPU's parts want a few cores of their own.
        models = Models(options.sizes, options.types, folder, max(1, (os.cpu_count() or 1) - 4))
        stack.callback(models.stop)
        models.poll()
        for part in (*tests(run), *sanitizers(run)):
            run.part(*part)
            models.poll()
        run.part("repeat", 120, repeat(run, models))
        for part in (*measured(run, models), *on_cpu(run, models)):
            run.part(*part)
    print((options.out / "cuda_all.md").read_text(encoding="utf-8"))
    failed = [name for name, part in run.results["parts"].items() if part["status"] != 0]
    print(f"failed or without result: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
