# SPDX-License-Identifier: Apache-2.0
"""Feed every reader of files damaged ones, made from good ones by their structure.

    python tools/fuzz.py --minutes 10                 each reader for ten minutes
    python tools/fuzz.py --seconds 20 --reader pth --reader gguf
    python tools/fuzz.py --reader pth --seed 7 --only 1234     one input again, with its traceback

Each input has 10 seconds and 1 GB. A reader may take it, or refuse it with FormatError,
UnsupportedError or ValueError, whose message begins with the file's path, or OSError. All else (a
crash, a hang, too much memory, another exception, a warning) is a failure: its files and its error
are kept below build/fuzz-findings, and the program ends with 1. An input is made from the seed and
its number alone.

With AddressSanitizer and UndefinedBehaviorSanitizer in the engine (docs/security.md says how to
build that) memory is watched from outside, since their shadow needs terabytes of addresses.
"""

from __future__ import annotations

import argparse
import errno
import faulthandler
import os
import random
import resource
import secrets
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FINDINGS = ROOT / "build" / "fuzz-findings"
SECONDS = 10.0  # for one input
MEMORY = 1 << 30  # bytes above what the process has before the first
BREATH = 0.1  # seconds between two looks at a child
PAGE = resource.getpagesize()
MEMORY_DISK = "/dev/shm" if Path("/dev/shm").is_dir() else None  # writing to disk takes longest

Files = Mapping[str, bytes]  # by their names in a folder; the first is what is read


@dataclass(frozen=True)
class Reader:
    """Something that reads files. `make` gives an input; `uses` are all tried with its path, and
    `needs` must be there for them."""

    name: str
    make: Callable[[random.Random], Files]
    uses: Sequence[Callable[[Path], object]]
    needs: Path | None = None

    @property
    def lacks(self) -> Path | None:
        return None if self.needs is None or self.needs.is_file() else self.needs


@dataclass(frozen=True)
class Failure:
    number: int  # of the input
    what: str


@dataclass
class Report:
    name: str
    inputs: int = 0
    accepted: int = 0  # by every use
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)

    def __str__(self) -> str:
        rate = self.inputs / max(self.seconds, 1e-9)
        return (
            f"{self.name:<14}{self.inputs:>8} inputs in {self.seconds:.0f} s, {rate:.0f} a second, "
            f"{100 * self.accepted / max(self.inputs, 1):.0f} % accepted, "
            f"{len(self.failures)} failures"
        )


# ---- one input ----------------------------------------------------------------------------------


def input_of(reader: Reader, seed: int, number: int) -> Files:
    return reader.make(random.Random(f"{reader.name}/{seed}/{number}"))


@contextmanager
def written(files: Files, folder: Path) -> Iterator[Path]:
    """A folder with the files of an input; gives the path of the first, or of the folder itself
    where that has several."""
    place = folder / "input"
    place.mkdir()
    try:
        for name, data in files.items():
            (place / name).write_bytes(data)
        yield place / next(iter(files)) if len(files) == 1 else place
    finally:
        shutil.rmtree(place)


def read(reader: Reader, path: Path, folder: Path) -> tuple[bool, BaseException | None]:
    """Whether every use took the input, and what must not have left one of them. Messages may name
    another file in `folder`, such as the model that an adapter is for."""
    from rwkv_edge import FormatError, UnsupportedError

    accepted = True
    for use in reader.uses:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                use(path)
        except (FormatError, UnsupportedError, OSError, ValueError) as error:
            accepted = False
            system = isinstance(error, OSError) and error.errno != errno.ENOMEM
            if not system and not str(error).startswith(str(folder)):
                return False, error
        except BaseException as error:  # a library's panic is no Exception
            return False, error
    return accepted, None


# ---- many, in a child ---------------------------------------------------------------------------


def sanitized() -> bool:
    return "libasan" in Path("/proc/self/maps").read_text("utf-8")


def resident(pid: int) -> int:
    """Bytes of memory that a process has now; 0 where it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * PAGE
    except (OSError, IndexError):
        return 0


def child(reader: Reader, seed: int, first: int, folder: Path, out: int, memory: int) -> None:
    """Read inputs for ever. A line for each: "+" where it begins, "=" or "-" where it was accepted
    or not, or "!" and an error, after which nothing is known of the process any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    errors = os.open(folder / "stderr", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(errors, 2)
    faulthandler.enable(2)
    if not sanitized():
        size = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * PAGE
        resource.setrlimit(resource.RLIMIT_AS, (size + memory, size + memory))
    number = first
    while True:
        files = input_of(reader, seed, number)
        os.ftruncate(2, 0)
        with written(files, folder) as path:
            os.write(out, b"+\n")
            accepted, error = read(reader, path, folder)
        if error is not None:
            lines = "".join(traceback.format_exception(error, limit=-20))[-6000:]
            os.write(out, b"!" + lines.encode("utf-8", "replace").replace(b"\n", b"\r") + b"\n")
            return
        os.write(out, b"=\n" if accepted else b"-\n")
        number += 1


def fuzz(
    reader: Reader,
    seed: int,
    seconds: float,
    *,
    budget: float = SECONDS,
    memory: int = MEMORY,
    most_failures: int = 20,
) -> Report:
    """Read inputs for so many seconds, in children of this process."""
    report, clock, next_input = Report(reader.name), Clock(), 0
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=MEMORY_DISK) as name:
        while clock.now() < seconds and len(report.failures) < most_failures:
            folder = Path(name) / secrets.token_hex(4)
            folder.mkdir()
            coming, out = os.pipe()
            pid = os.fork()
            if pid == 0:
                try:
                    os.close(coming)
                    child(reader, seed, next_input, folder, out, memory)
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(3)
            os.close(out)
            watch = Watch(report, pid, coming, next_input, clock, seconds, budget, memory)
            what = watch.run()
            os.close(coming)
            if what is not None:
                said = (folder / "stderr").read_bytes()[-6000:].decode("utf-8", "replace")
                report.failures.append(Failure(watch.number, f"{what}\n{said}"))
            next_input = watch.number + 1
    report.seconds = clock.now()
    return report


class Clock:
    """Seconds in which this process ran: it may be stopped, and its children with it."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._total = 0.0

    def now(self) -> float:
        """To be asked often: of a longer pause one second counts."""
        time_now = time.monotonic()
        self._total += min(time_now - self._last, 1.0)
        self._last = time_now
        return self._total


class Watch:
    """Follows a child until it fails or its time is over."""

    def __init__(
        self,
        report: Report,
        pid: int,
        coming: int,
        first: int,
        clock: Clock,
        end: float,
        budget: float,
        memory: int,
    ) -> None:
        self.report, self.pid, self.coming, self.number = report, pid, coming, first
        self.clock, self.end, self.budget = clock, end, budget
        self.busy = False
        self.most = resident(pid) + memory
        self.text = b""

    def run(self) -> str | None:
        """What went wrong with input `number`."""
        begun = self.clock.now()
        while True:
            ready, _, _ = select.select([self.coming], [], [], BREATH)
            now = self.clock.now()
            if ready:
                piece = os.read(self.coming, 1 << 16)
                if not piece:
                    return self.ended(os.waitpid(self.pid, 0)[1])
                begun = now
                if (failed := self.take(piece)) is not None:
                    os.waitpid(self.pid, 0)
                    return failed
            if resident(self.pid) > self.most:
                return self.kill(f"more memory than {self.most} bytes")
            if now - begun > self.budget:
                return self.kill(f"more than {self.budget:g} seconds")
            if now > self.end and not self.busy:
                return self.kill(None)

    def take(self, piece: bytes) -> str | None:
        *lines, self.text = (self.text + piece).split(b"\n")
        for line in lines:
            self.busy = line == b"+"
            if line.startswith(b"!"):
                return line[1:].replace(b"\r", b"\n").decode("utf-8", "replace")
            if line in (b"=", b"-"):
                self.report.inputs += 1
                self.report.accepted += line == b"="
                self.number += 1
        return None

    def ended(self, status: int) -> str:
        if os.WIFSIGNALED(status):
            return f"killed by signal {signal.Signals(os.WTERMSIG(status)).name}"
        return f"ended with {os.WEXITSTATUS(status)}"

    def kill(self, what: str | None) -> str | None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return what


# ---- the program --------------------------------------------------------------------------------


def keep(reader: Reader, seed: int, failure: Failure) -> Path:
    """The files of an input that failed, and its error, for somebody to look at."""
    folder = FINDINGS / f"{reader.name}-{seed}-{failure.number}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in input_of(reader, seed, failure.number).items():
        (folder / name).write_bytes(data)
    (folder / "error.txt").write_text(failure.what, "utf-8")
    return folder


def again(reader: Reader, seed: int, number: int) -> int:
    with (
        tempfile.TemporaryDirectory(prefix="fuzz-") as name,
        written(input_of(reader, seed, number), Path(name)) as path,
    ):
        accepted, error = read(reader, path, Path(name))
    if error is not None:
        traceback.print_exception(error)
        return 1
    print("accepted" if accepted else "refused")
    return 0


def main(arguments: Sequence[str]) -> int:
    sys.path.append(str(ROOT / "tests" / "python"))
    from fuzz_readers import READERS

    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seconds", type=float, default=20, help="for each reader (%(default)s)")
    parser.add_argument("--minutes", type=float, help="the same in minutes")
    parser.add_argument("--reader", action="append", choices=list(READERS), metavar="NAME",
                        help=f"only these, of {', '.join(READERS)}")  # fmt: skip
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--only", type=int, metavar="N", help="input N of --seed, in this process")
    options = parser.parse_args(arguments)
    readers = [READERS[name] for name in options.reader or READERS]
    for reader in readers:
        if reader.lacks is not None:
            print(f"{reader.name} is left out: it needs {reader.lacks}")
    if options.reader and any(reader.lacks for reader in readers):
        return 1
    readers = [reader for reader in readers if reader.lacks is None]
    if options.only is not None:
        return max(again(reader, options.seed, options.only) for reader in readers)
    seconds = options.seconds if options.minutes is None else 60 * options.minutes
    print(f"seed {options.seed}", flush=True)
    failed = False
    for reader in readers:
        report = fuzz(reader, options.seed, seconds)
        print(report, flush=True)
        for failure in report.failures:
            failed = True
            lines = failure.what.strip().splitlines() or ["nothing said"]
            print(f"  input {failure.number}: {lines[0]} ... {lines[-1]}")
            print(f"  kept in {keep(reader, options.seed, failure)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ.setdefault(variable, "1")  # threads do not survive a fork
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main(sys.argv[1:]))
