# SPDX-License-Identifier: Apache-2.0
"""Types for a size: each matrix gets the type in which its bytes save the most loss.

The loss of a matrix in a type is its loss at four bits times the ratio of its errors in both. The
error is measured on some rows. The loss at four bits is measured on a text (`quantization/
sensitivity.py`), or assumed from published figures. Losses of matrices add up, nearly.

All matrices begin in their smallest type. A step to a larger one costs bytes and saves loss, and
the steps that save the most a byte are taken first. So all steps were taken that save more than a
price, and a last few that still fitted.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from .. import _core
from ..files.form import amount
from ..files.gguf_writer import ALIGNMENT, TensorPlan, header, uint32
from ..files.source import F32
from .plan import Output
from .policy import (
    MASSIVE,
    MASSIVE_ARCHS,
    SEARCHED,
    FilePlan,
    Known,
    Scale,
    Types,
    check_values,
    is_quantizable,
    parse_type,
    plan_types,
    with_file_type,
)

# What a matrix may become, by the columns that a block takes.
LADDERS = {
    256: ("q3_k", "q4_k", "q5_k", "q6_k", "q8_0"),
    32: ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0"),
    1: ("f16",),
}
FOUR_BITS = "q4_k"
ROWS, PIECES = 256, 8  # of a matrix to measure errors on, in so many pieces

# KL divergence at four bits of a matrix of each kind, times 1e5, plain search: halfway between an
# RWKV-7 of 1.5B (rwkv-quant's published shares of the loss) and one of 3.4M.
ASSUMED = {
    "token_embd": 270.0,
    "output": 830.0,
    "channel_mix_key": 40.0,
    "channel_mix_value": 28.0,
    "time_mix_output": 12.0,
    "time_mix_value": 10.0,
    "time_mix_gate": 10.0,
    "channel_mix_receptance": 4.0,
    "time_mix_key": 2.5,
    "time_mix_receptance": 2.0,
}
OTHERS = 10.0
# Beside these, that of the output of the first time mix, for the massive channel of its input.
MASSIVE_LOSS = 1200.0
USUAL_ERROR = 0.0055  # of q4_k, relative, on normal values: what ASSUMED belongs to
# What GPTQ leaves of the error of a search with weighted columns, q4_k, as bench/RESULTS.md has it.
LEFT = {
    "output": 0.3,
    "time_mix_output": 0.35,
    "channel_mix_value": 0.6,
    "token_embd": 1.0,
}
LEFT_USUALLY = 0.5
# Of q3_k where losses are assumed, which may be wrong: it is the type that breaks models.
RISK = 2.0
# No matrix matters less than this share of the mean, by weights: the text did not show all.
LEAST_SHARE = 0.01


@dataclass(frozen=True)
class Budget:
    """What a mixture may take: `bits` a weight in the matrices, or `size` bytes of the file."""

    bits: float | None = None
    size: int | None = None
    least: str | None = None
    """No matrix gets fewer bits than this type has."""
    head: str | None = None
    embd: str | None = None

    def count(self, nbytes: int) -> int:
        """What a tensor of so many bytes takes of the budget."""
        return nbytes if self.size is None else up(nbytes)

    @staticmethod
    def of(
        bits: float | None,
        size: int | None,
        least: str | None = None,
        head: str | None = None,
        embd: str | None = None,
    ) -> Budget:
        """ValueError for the name of no type."""
        named = [None if name is None else parse_type(name) for name in (least, head, embd)]
        return Budget(bits, size, *named)

    def __post_init__(self) -> None:
        if (self.bits is None) == (self.size is None):
            raise ValueError("bits and size: expected one of them")
        if self.bits is not None and not 0 < self.bits < 64:
            raise ValueError(f"bits {self.bits:g}, expected such as 4.5")
        if self.least is not None and bits(self.least) > bits("q8_0"):
            raise ValueError(
                f"type {self.least} is larger than all of which a mixture is made, up to q8_0"
            )


@dataclass(frozen=True)
class Losses:
    """KL divergences of matrices quantized to four bits by themselves, and on what they were
    measured."""

    of: Mapping[str, float]
    tokens: int


@dataclass(frozen=True)
class Choice:
    """What a matrix becomes, and why: its loss at four bits and what is left of it, as KL
    divergences."""

    name: str
    shape: tuple[int, ...]
    type: str
    at_four: float
    left: float

    @property
    def nbytes(self) -> int:
        return TensorPlan(self.name, self.shape, self.type).nbytes


@dataclass(frozen=True)
class Mixture:
    """The types of a file's matrices, for a size."""

    choices: tuple[Choice, ...]
    nbytes: int
    """Of the file."""
    price: float
    """The KL divergence that one more byte would save at most."""
    tokens: int | None
    """On how many the losses were measured; None where they are assumed."""

    @property
    def types(self) -> dict[str, str]:
        return {choice.name: choice.type for choice in self.choices}

    @property
    def base(self) -> str:
        """The type of most weights in the blocks."""
        sizes: Counter[str] = Counter()
        for choice in self.choices:
            sizes[choice.type] += choice.name.startswith("blk.") * math.prod(choice.shape)
        return sizes.most_common(1)[0][0]

    @property
    def bits(self) -> float:
        """A weight, in the matrices."""
        values = sum(math.prod(choice.shape) for choice in self.choices)
        return 8 * sum(choice.nbytes for choice in self.choices) / values

    def report(self) -> str:
        """Which matrices got what and why: a line for each kind and type, and one for all."""
        rows = [("matrix", "type", "layers", "size", "KL at 4 bits", "KL left")]
        of = {choice.name: choice for choice in self.choices}
        for (kind, group), names in by_kind_and_type((c.name, c.type) for c in self.choices):
            found = [of[name] for name in names]
            rows.append(
                (
                    kind,
                    group,
                    layers_of(names),
                    amount(sum(choice.nbytes for choice in found)),
                    f"{sum(choice.at_four for choice in found):.2g}",
                    f"{sum(choice.left for choice in found):.2g}",
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        how = (
            "assumed, from published models"
            if self.tokens is None
            else f"measured on {self.tokens:,} tokens"
        )
        lines.append(
            f"{self.bits:.2f} bits a weight in {len(self.choices)} matrices, {self.nbytes:,} bytes "
            f"in all. Losses are {how}; KL left {sum(c.left for c in self.choices):.2g}, and one "
            f"more KB would save {1000 * self.price:.1g}"
        )
        return "\n".join(lines)


def bits(kind: str) -> float:
    """Of a weight."""
    values, nbytes = _core.type_block(kind)
    return 8 * nbytes / values


def kind_of(name: str) -> str:
    """What a matrix is in each layer: "time_mix_key"."""
    return re.sub(r"^blk\.\d+\.", "", name).removesuffix(".weight").removesuffix("_by_input")


def by_kind_and_type(
    matrices: Iterable[tuple[str, str]],
) -> list[tuple[tuple[str, str], list[str]]]:
    """The names of matrices, each given with its type: kinds as they come, small types first."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, kind in matrices:
        groups.setdefault((kind_of(name), kind), []).append(name)
    order = list(dict.fromkeys(kind for kind, _ in groups))
    return sorted(groups.items(), key=lambda item: (order.index(item[0][0]), bits(item[0][1])))


def layers_of(names: Iterable[str]) -> str:
    """Their numbers: "0-3, 7"."""
    found = (re.match(r"blk\.(\d{1,6})\.", name) for name in names)
    numbers = sorted(int(match[1]) for match in found if match)
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


def ladder(columns: int, least: str | None) -> tuple[str, ...]:
    """The types that a matrix may become, from small to large."""
    found = next(kinds for block, kinds in LADDERS.items() if columns % block == 0)
    floor = 0.0 if least is None else bits(least)
    return tuple(kind for kind in found if bits(kind) >= floor) or found[-1:]


def four_bits(columns: int) -> str:
    """The type of losses at four bits; f16 where columns fit no block."""
    return FOUR_BITS if columns % 256 == 0 else "q4_0" if columns % 32 == 0 else "f16"


def fit(
    plan: FilePlan,
    budget: Budget,
    known: Known,
    losses: Losses | None = None,
    *,
    gptq: bool = False,
) -> Mixture:
    """The mixture with the least loss that a budget allows.

    With `gptq` the codes will be chosen by it.

    Raises ValueError, which names the smallest and the largest size, where none fits, and what
    `quantize` raises for the source.
    """
    matrices, most = matrices_of(plan), room_of(plan, budget)
    kinds = [kinds_of(plan, output, budget) for output in matrices]
    errors = [
        errors_of(plan.path, output, {*found, four_bits(output.shape[-1])}, known)
        for output, found in zip(matrices, kinds, strict=True)
    ]
    at_four = [
        loss_of(output, plan.arch, found[four_bits(output.shape[-1])], losses)
        for output, found in zip(matrices, errors, strict=True)
    ]
    least = LEAST_SHARE * sum(at_four) / sum(math.prod(output.shape) for output in matrices)
    options = []
    for output, names, found, loss in zip(matrices, kinds, errors, at_four, strict=True):
        usual = found[four_bits(output.shape[-1])]
        most_left = max(loss, least * math.prod(output.shape)) if loss > 0 else 0.0
        risk = RISK if losses is None else 1.0
        calibrated = gptq and output.name in known.importance
        options.append(
            [
                Option(
                    kind,
                    size_of(output, kind),
                    most_left
                    * (found[kind] / usual if usual > 0 else 1.0)
                    * (left_by_gptq(output.name) if calibrated and kind in SEARCHED else 1.0)
                    * (risk if kind == "q3_k" else 1.0),
                )
                for kind in names
            ]
        )
    chosen, price = solve(options, most, budget.count)
    choices = tuple(
        Choice(output.name, output.shape, option.type, loss, option.loss)
        for output, option, loss in zip(matrices, chosen, at_four, strict=True)
    )
    size = fixed_bytes(plan) + sum(up(option.nbytes) for option in chosen)
    return Mixture(choices, size, price, None if losses is None else losses.tokens)


def kinds_of(plan: FilePlan, output: Output, budget: Budget) -> tuple[str, ...]:
    """The types that a matrix may become.

    Raises UnsupportedError where it is quantized already and may not be again.
    """
    plan.types.of(str(plan.path), output.name, output.shape, output.tensor.dtype)
    fixed = {"output.weight": budget.head, "token_embd.weight": budget.embd}.get(output.name)
    if fixed is None:
        return ladder(output.shape[-1], budget.least)
    return (Types(fixed, fixed, fixed).of(str(plan.path), output.name, output.shape, "f32"),)


def size_of(output: Output, kind: str) -> int:
    return TensorPlan(output.name, output.shape, kind).nbytes


def left_by_gptq(name: str) -> float:
    """Of the loss."""
    return LEFT.get(kind_of(name), LEFT_USUALLY)


@dataclass(frozen=True)
class Option:
    """A type that a matrix may become."""

    type: str
    nbytes: int
    loss: float


def up(nbytes: int) -> int:
    """What a tensor takes in a file."""
    return nbytes + -nbytes % ALIGNMENT


def matrices_of(plan: FilePlan) -> list[Output]:
    return [output for output in plan.outputs if is_quantizable(output.name, output.shape)]


def fixed_bytes(plan: FilePlan) -> int:
    """Of a file, beside its matrices."""
    names = {output.name for output in matrices_of(plan)}
    # Their types change no byte of the header.
    small = plan_types(plan.path, plan.outputs, plan.types, settled=plan.settled)
    start = up(len(header(with_file_type(plan.metadata, uint32(0)), small)))
    return start + sum(up(tensor.nbytes) for tensor in small if tensor.name not in names)


def room_of(plan: FilePlan, budget: Budget) -> int:
    """The bytes that the matrices may take. ValueError where no mixture takes so many."""
    matrices, count = matrices_of(plan), budget.count
    found = [
        [count(size_of(output, kind)) for kind in kinds_of(plan, output, budget)]
        for output in matrices
    ]
    smallest, largest = sum(map(min, found)), sum(map(max, found))
    if budget.size is not None:
        beside = fixed_bytes(plan)
        if not smallest + beside <= budget.size <= largest + beside:
            raise ValueError(
                f"{plan.path}: a size of {budget.size:,} bytes, expected {smallest + beside:,} to "
                f"{largest + beside:,}"
            )
        return budget.size - beside
    assert budget.bits is not None
    values = sum(math.prod(output.shape) for output in matrices)
    low, high = (math.ceil(800 * nbytes / values) / 100 for nbytes in (smallest, largest))
    most = int(budget.bits * values / 8)
    if smallest > most or budget.bits > high:
        raise ValueError(
            f"{plan.path}: {budget.bits:g} bits a weight in the matrices, expected {low:.2f} to "
            f"{high:.2f}"
        )
    return most


def loss_of(output: Output, arch: str, error: float, losses: Losses | None) -> float:
    """At four bits."""
    if losses is not None and output.name in losses.of:
        return losses.of[output.name]
    assumed = ASSUMED.get(kind_of(output.name), OTHERS)
    if output.name == MASSIVE and arch in MASSIVE_ARCHS:
        assumed += MASSIVE_LOSS
    # A type that rounds nothing here is no reason to leave a matrix out.
    return 1e-5 * assumed * (error or USUAL_ERROR) / USUAL_ERROR


def errors_of(path: Path, output: Output, kinds: set[str], known: Known) -> dict[str, float]:
    """The squared error of a matrix in each type relative to its square, columns weighted by their
    importance: of some rows from all over it."""
    scale = known.scales.get(output.name, Scale())
    importance = known.importance.get(output.name)
    if importance is not None and scale.columns is not None:
        importance = (importance / scale.columns**2).astype(np.float32)
    weights = np.ones(output.shape[-1]) if importance is None else importance.astype(np.float64)
    wrong, whole = dict.fromkeys(kinds, 0.0), 0.0
    for start, raw in some_rows(output):
        values = np.ascontiguousarray(scale.apply(raw, start))
        check_values(values, "f16", f"{path}: tensor {output.name}")
        whole += float((values.astype(np.float64) ** 2 @ weights).sum())
        for kind in kinds:
            given = importance if kind in SEARCHED else None
            found = _core.dequantize(_core.quantize_matrix(values, kind, given), kind)
            wrong[kind] += float(((values - found).astype(np.float64) ** 2 @ weights).sum())
    return {kind: wrong[kind] / whole if whole > 0 else 0.0 for kind in kinds}


def some_rows(output: Output) -> Iterator[tuple[int, F32]]:
    """Pieces of a matrix, and the row that each begins with."""
    count = output.tensor.shape[0]
    each = math.prod(output.shape[:-1]) // count  # rows in an entry of the first axis
    if count * each <= ROWS:
        yield 0, output.tensor.float32().reshape(-1, output.shape[-1])
        return
    size = max(1, ROWS // PIECES // each)
    for start in np.linspace(0, count - size, PIECES).astype(int).tolist():
        values = output.tensor.float32(start, start + size)
        yield start * each, values.reshape(-1, output.shape[-1])


def solve(
    options: Sequence[Sequence[Option]], most: int, count: Callable[[int], int] = int
) -> tuple[list[Option], float]:
    """One option of each, so that they take `most` bytes at most and lose little; and how much the
    best step that did not fit would save a byte. `count` says what bytes take in a file."""
    hulls = [hull(found, count) for found in options]
    chosen = [found[0] for found in hulls]
    room = most - sum(count(option.nbytes) for option in chosen)
    price = 0.0
    steps = sorted(
        (-saving(a, b, count), i, step)
        for i, found in enumerate(hulls)
        for step, (a, b) in enumerate(pairwise(found), 1)
    )
    for worth, i, step in steps:
        need = count(hulls[i][step].nbytes) - count(chosen[i].nbytes)
        if need > room:  # and so does every later step of this matrix
            price = price or -worth
            continue
        room -= need
        chosen[i] = hulls[i][step]
    while True:  # what is left
        fitting = [
            (chosen[i].loss - option.loss, i, option)
            for i, found in enumerate(options)
            for option in found
            if option.loss < chosen[i].loss
            and count(option.nbytes) - count(chosen[i].nbytes) <= room
        ]
        if not fitting:
            return chosen, price
        _, i, option = max(fitting, key=lambda each: each[0])
        room -= count(option.nbytes) - count(chosen[i].nbytes)
        chosen[i] = option


def saving(a: Option, b: Option, count: Callable[[int], int]) -> float:
    """Loss that a step saves, a byte."""
    return (a.loss - b.loss) / (count(b.nbytes) - count(a.nbytes))


def hull(found: Sequence[Option], count: Callable[[int], int]) -> list[Option]:
    """The options from the smallest on of which each step saves less a byte than the one before."""
    kept: list[Option] = []
    for option in sorted(found, key=lambda o: (count(o.nbytes), o.loss)):
        if kept and option.loss >= kept[-1].loss:
            continue
        while len(kept) > 1 and saving(kept[-2], kept[-1], count) <= saving(
            kept[-1], option, count
        ):
            kept.pop()
        kept.append(option)
    return kept
