# SPDX-License-Identifier: Apache-2.0
"""Speed of a model on this machine: tokens per second, and how much of the memory bandwidth."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import _core
from .convert.assemble import open_model_file
from .model import Model, Session


@dataclass(frozen=True)
class Result:
    """One test: "pp512" reads a prompt of 512 tokens, "tg128" takes 128 tokens one by one."""

    test: str
    threads: int
    tokens_per_second: float
    """The median of the runs."""
    runs: list[float]
    read_gb_per_second: float | None
    """Weights read per second, in 10^9 bytes; for tg, which reads all of them for every token."""
    bandwidth_gb_per_second: float
    """What the machine reads at most with these threads, measured just before."""

    @property
    def bandwidth_share(self) -> float | None:
        if self.read_gb_per_second is None:
            return None
        return self.read_gb_per_second / self.bandwidth_gb_per_second


def weight_bytes_per_token(file: _core.ModelFile) -> int:
    """Bytes of weights that one token needs: all but the tables of which it needs one row."""
    tables = ["channel_mix_s_emb.weight"]
    if any(tensor.name == "output.weight" for tensor in file.tensors):
        tables.append("token_embd.weight")
    return sum(tensor.nbytes for tensor in file.tensors if not tensor.name.endswith((*tables,)))


def measure(
    path: Path,
    threads: list[int],
    *,
    prompt: int,
    generated: int,
    repeats: int,
    progress: Callable[[int, int], None],
) -> Iterator[Result]:
    """Yield the results for each number of threads; 0 tokens leave a test out."""
    per_token = weight_bytes_per_token(open_model_file(path))
    done, total = 0, len(threads) * (repeats + 1) * ((prompt > 0) + (generated > 0))
    for count in threads:
        bandwidth = _core.read_bandwidth(count)
        session = Model(path, threads=count).session()
        tokens = np.random.default_rng(0).integers(1, session.model.n_vocab, max(prompt, 1))
        for kind, n in (("pp", prompt), ("tg", generated)):
            rates: list[float] = []
            for run in range(repeats + 1 if n else 0):
                progress(done, total)
                rate = n / (read(session, tokens) if kind == "pp" else take(session, n))
                done += 1
                if run > 0:  # the first one brings the weights into memory
                    rates.append(rate)
            if n:
                rate = statistics.median(rates)
                reading = rate * per_token / 1e9 if kind == "tg" else None
                yield Result(f"{kind}{n}", count, rate, rates, reading, bandwidth)


def read(session: Session, tokens: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
    """Seconds to read a prompt from the beginning."""
    session.reset()
    start = time.perf_counter()
    session.feed(tokens)
    return time.perf_counter() - start


def take(session: Session, n: int) -> float:
    """Seconds for n tokens, each the likeliest after the one before."""
    session.reset()
    token = 0
    start = time.perf_counter()
    for _ in range(n):
        token = int(session.feed([token]).argmax())
    return time.perf_counter() - start
