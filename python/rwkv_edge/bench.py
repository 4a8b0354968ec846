# SPDX-License-Identifier: Apache-2.0
"""Speed of a model on this machine: tokens per second, and their share of the machine's limits."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import _core
from .model import Batch, Model, device_name
from .model_file import by_input, bytes_per_token, open_model_file, weights_per_token

HEAD = "output.weight"


def matrices(file: _core.ModelFile) -> list[_core.TensorInfo]:
    """Those that every token is multiplied with."""
    return [w for w in weights_per_token(file) if len(w.shape) > 1 and w.shape[-2] > 1]


@dataclass(frozen=True)
class Work:
    """What a model's weights ask for.

    Operations are two per weight of a matrix, counted apart for float types and for block types,
    which are multiplied in 8 bits: (float, int8). Matrices by input are multiplied in floats, and
    counted whole.
    """

    bytes_per_token: int
    """Of all weights but the tables of which a token needs one row."""
    layers: tuple[int, int]
    """Operations of each token."""
    head: tuple[int, int]
    """Operations that a prompt needs once, after its last token."""

    @classmethod
    def of(cls, file: _core.ModelFile) -> Work:
        layers, head = [0, 0], [0, 0]
        in_floats = {tensor.name for tensor in by_input(file)}
        for tensor in matrices(file):
            in_blocks = _core.type_block(tensor.type)[0] > 1 and tensor.name not in in_floats
            place = head if tensor.name == HEAD else layers
            place[in_blocks] += 2 * math.prod(tensor.shape)
        return cls(bytes_per_token(file), (layers[0], layers[1]), (head[0], head[1]))


@dataclass(frozen=True)
class Limits:
    """What a device gives at most, in 10^9 per second; the CPU with some number of threads."""

    bandwidth_gb: float
    """Bytes read from memory."""
    float_gops: float
    """Operations on float32, two per product, at the kernel level in use; of a GPU on float16, in
    its tensor cores."""
    int8_gops: float
    """The same of 8-bit products. A GPU makes all products of float16, two for each, so that half
    of its peak is the most that can be reached."""

    @classmethod
    def measure(cls, threads: int, device: str = "cpu") -> Limits:
        """Takes about a second. Raises ValueError for threads outside 1 to 1024, and what `Model`
        raises for a device.
        """
        if device != "cpu":
            bandwidth, peak = _core.gpu_limits(device)
            return cls(bandwidth, peak, peak)
        return cls(
            _core.read_bandwidth(threads), _core.float_peak(threads), _core.int8_peak(threads)
        )

    def rate(self, work: Work, test: str, sessions: int = 1) -> float:
        """Tokens per second of a test where nothing but the limit takes time.

        That is memory for "tg128", which reads every weight for every step, and arithmetic for
        "pp512": the time of its products, each kind at its own peak. Where many sessions write
        together, it is the one that takes longer.
        """
        if test.startswith("tg"):
            from_memory = work.bytes_per_token / (self.bandwidth_gb * 1e9)
            if sessions == 1:
                return 1 / from_memory
            return sessions / max(from_memory, self._seconds(work, sessions, heads=sessions))
        tokens = int(test.removeprefix("pp"))
        return tokens / self._seconds(work, tokens, heads=1)

    def _seconds(self, work: Work, tokens: int, *, heads: int) -> float:
        floats, int8 = (
            tokens * layers + heads * head
            for layers, head in zip(work.layers, work.head, strict=True)
        )
        return (floats / self.float_gops + int8 / self.int8_gops) / 1e9


@dataclass(frozen=True)
class Result:
    """One test: "pp512" reads a prompt of 512 tokens, "tg128" takes 128 tokens one by one."""

    test: str
    device: str
    """As `Model.device` has it."""
    threads: int
    sessions: int
    """Those that write together; each takes the tokens."""
    tokens_per_second: float
    """The median of the runs, of all sessions together."""
    runs: list[float]
    share: float
    """Of the tokens per second that the limits allow."""
    limits: Limits
    """Measured just before, with these threads."""


def measure(
    path: Path,
    threads: list[int],
    *,
    device: str | None = None,
    prompt: int,
    generated: int,
    sessions: list[int],
    repeats: int,
    progress: Callable[[int, int], None],
) -> Iterator[Result]:
    """Yield the results for each number of threads, and of sessions that write together; 0 tokens
    leave a test out. A GPU has no threads, so one number of them will do.
    """
    device = device_name(device)
    work = Work.of(open_model_file(path))
    tests = [("pp", prompt, 1)] if prompt else []
    if generated:
        tests += [("tg", generated, together) for together in sessions]
    done, total = 0, len(threads) * (repeats + 1) * len(tests)
    for count in threads:
        limits = Limits.measure(count, device)
        model = Model(path, threads=count, device=device)
        tokens = np.random.default_rng(0).integers(1, model.n_vocab, max(prompt, 1))
        rates: dict[tuple[str, int, int], list[float]] = {test: [] for test in tests}
        for run in range(repeats + 1):
            for test in tests:  # in turn, so that the machine's moods meet all alike
                kind, n, together = test
                progress(done, total)
                batch = model.batch(model.session() for _ in range(together))
                seconds = read(batch, tokens) if kind == "pp" else take(batch, n)
                done += 1
                if run > 0:  # the first one brings the weights into memory
                    rates[test].append(together * n / seconds)
        for (kind, n, together), found in rates.items():
            name, rate = f"{kind}{n}", statistics.median(found)
            share = rate / limits.rate(work, name, together)
            yield Result(name, model.device, count, together, rate, found, share, limits)


def read(batch: Batch, tokens: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
    """Seconds for each session to read the prompt."""
    start = time.perf_counter()
    batch.feed([tokens] * len(batch.sessions))
    return time.perf_counter() - start


def take(batch: Batch, n: int) -> float:
    """Seconds for n tokens of each session, each the likeliest after the one before."""
    tokens = list(range(len(batch.sessions)))  # so that no two write the same
    start = time.perf_counter()
    for _ in range(n):
        tokens = batch.feed([[token] for token in tokens]).argmax(axis=1).tolist()
    return time.perf_counter() - start
