# SPDX-License-Identifier: Apache-2.0
"""Predict tokens per second on Arm boards, from counted cycles and published bandwidths.

    python bench/arm_counts.py --json counts.json && python bench/arm_predict.py counts.json

A token takes as long as memory needs for the weights that it touches, or as the cores for their
products and recurrences, whichever is longer: at most that fast. Norms, mixes and the waking of
threads are left out.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from arm_counts import CORES, PROMPT
from rwkv_edge._core import ModelFile
from rwkv_edge.bench import HEAD, Work, matrices
from rwkv_edge.convert.names import plan_model
from rwkv_edge.convert.policy import Types, plan_types
from rwkv_edge.files.gguf_writer import header
from rwkv_edge.files.source import Checkpoint

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))
from make_random_model import SIZES, Size, random_tensors

CyclesOf = dict[tuple[str, str, str], float]
"""Cycles per unit, by core, kernel and test."""


@dataclass(frozen=True)
class Board:
    core: str
    cores: int
    ghz: float
    memory_gb: int
    """Of the largest one."""
    bandwidth_gb: float
    """Measured, 10^9 bytes per second."""
    source: str


# Of copies, what is read and written together.
BOARDS = {
    "Pi 3 B+": Board("A53", 4, 1.4, 1, 2.3, "memcpy, 2.1 to 2.5: ThomasKaiser/sbc-bench"),
    "Pi 4": Board("A72", 4, 1.5, 8, 4.5, "memcpy, 4.5 to 5.6: ThomasKaiser/sbc-bench"),
    "Pi 5": Board("A76", 4, 2.4, 16, 11.1, "copy, 8 GB; 4 GB 12.3: raspberrypi/firmware#1876"),
    "RK3588": Board("A76", 4, 2.2, 32, 22.0, "STREAM copy, Rock 5B: EntityFX/anybench#39"),
}
FITS = 0.8  # of a board's memory that a file may take
SHAPES = ["0.1b", "0.4b", "1.5b", "2.9b"]
# As make_random_model.py and `quantize` write them; of K types, as llama.cpp does, but unmixed.
KINDS = {
    kind: Types(kind, head, head)
    for kind, head in (
        ("f16", "f16"), ("q8_0", "q8_0"), ("q6_k", "q6_k"), ("q5_1", "q8_0"), ("q5_0", "q8_0"),
        ("q4_1", "q8_0"), ("q4_0", "q8_0"), ("q4_k", "q6_k"),
    )
}  # fmt: skip


def planned(shape: Size, types: Types) -> ModelFile:
    """The file of a model, its weights whatever memory holds."""
    where = Path("planned")
    metadata, outputs = plan_model(Checkpoint(where, random_tensors(shape, seed=1)))
    plans = plan_types(where, outputs, types)
    memory = np.empty(max(plan.nbytes for plan in plans) + 64, np.uint8)
    memory = memory[-memory.ctypes.data % 64 :]
    parts = [memory[: plan.nbytes] for plan in plans]
    return ModelFile.assemble(str(where), header(metadata, plans), parts)


@dataclass(frozen=True)
class Load:
    """What a model asks for."""

    nbytes: int
    """Of the file."""
    touched: int
    """Bytes that a token touches."""
    weights: dict[str, int]
    """By type, of the layers' matrices."""
    head: tuple[str, int]
    """Type and weights."""
    state: int
    """Elements of the recurrence's state."""

    @classmethod
    def of(cls, shape: Size, types: Types) -> Load:
        file = planned(shape, types)
        weights: dict[str, int] = {}
        head = ("", 0)
        for tensor in matrices(file):
            count = math.prod(tensor.shape)
            if tensor.name == HEAD:
                head = (tensor.type, count)
            else:
                weights[tensor.type] = weights.get(tensor.type, 0) + count
        return cls(
            sum(tensor.nbytes for tensor in file.tensors),
            Work.of(file).bytes_per_token,
            weights,
            head,
            shape.layers * shape.width * shape.head_size,
        )

    def cycles(self, core: str, tokens: int, cycles: CyclesOf) -> float:
        """Of all cores together, to read some tokens at once."""
        test = "decode" if tokens == 1 else "prompt"
        each = sum(cycles[core, kind, test] * count for kind, count in self.weights.items())
        each += cycles[core, "wkv7", "recurrence"] * self.state
        return tokens * each + cycles[core, self.head[0], "decode"] * self.head[1]


@dataclass(frozen=True)
class Prediction:
    """Tokens per second at most, as memory and as arithmetic allow."""

    memory: float
    arithmetic: float

    @property
    def rate(self) -> float:
        return min(self.memory, self.arithmetic)

    @classmethod
    def of(cls, load: Load, board: Board, tokens: int, cycles: CyclesOf) -> Prediction:
        clocks = board.cores * board.ghz * 1e9
        return cls(
            tokens * board.bandwidth_gb * 1e9 / load.touched,
            tokens * clocks / load.cycles(board.core, tokens, cycles),
        )


def read_cycles(path: Path) -> CyclesOf:
    return {
        (core, count["kernel"], count["test"]): each
        for count in json.loads(path.read_text("utf-8"))
        for core, each in count["cycles"].items()
    }


def table(cycles: CyclesOf) -> Iterator[str]:
    """tg / pp64 at most, bold where it is arithmetic, not memory, that holds tg."""
    yield f"| predicted tg / pp{PROMPT} | MB a token | {' | '.join(BOARDS)} | measured |"
    yield f"|---|---:|{'---:|' * len(BOARDS)}---|"
    margins: dict[str, list[float]] = {name: [] for name in BOARDS}
    for size in SHAPES:
        for kind, types in KINDS.items():
            load = Load.of(SIZES["7"][size], types)
            cells = []
            for name, board in BOARDS.items():
                if load.nbytes > FITS * board.memory_gb * 1e9:
                    cells.append("")
                    continue
                tg, pp = (Prediction.of(load, board, tokens, cycles) for tokens in (1, PROMPT))
                margins[name].append(tg.arithmetic / tg.memory)
                held = "" if tg.memory < tg.arithmetic else "**"
                cells.append(f"{held}{tg.rate:.1f}{held} / {pp.rate:.0f}")
            yield f"| {size} {kind} | {load.touched / 1e6:.0f} | {' | '.join(cells)} | |"
    yield ""
    yield "| board | cores | level | GB/s | source | tg: arithmetic / memory |"
    yield "|---|---|---|---:|---|---:|"
    for name, board in BOARDS.items():
        cells = [
            f"{board.cores} {board.core}, {board.ghz} GHz",
            CORES[board.core].level,
            f"{board.bandwidth_gb}",
            board.source,
            f"{min(margins[name]):.1f} to {max(margins[name]):.1f}",
        ]
        yield f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("counts", type=Path, help="of arm_counts.py --json")
    args = parser.parse_args()
    print(*table(read_cycles(args.counts)), sep="\n")


if __name__ == "__main__":
    main()
