# SPDX-License-Identifier: Apache-2.0
"""Quantization that knows the texts a model will read: GPTQ of every matrix, and what it needs.

The float model reads the text layer by layer. The sums of x x^T are taken for the matrices of a
layer, or for as many of them at once as memory allows. Then each of these is quantized. A folder
beside the target keeps their blocks until all are made, and what the next layer reads of the text.
A run that was stopped goes on from there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..convert import quantize
from ..convert.mixture import FOUR_BITS, Budget, Mixture, bits, fit, room_of
from ..convert.policy import (
    MASSIVE,
    MASSIVE_TYPE,
    SEARCHED,
    Known,
    Scale,
    Types,
    check_values,
    is_quantizable,
    parse_type,
)
from ..convert.write import plan_file, tensor_of
from ..files.form import amount, read_bytes
from ..files.output import OutputFile, shortened
from ..files.source import F32, NUMPY_TYPES
from ..model import Model
from ..model_file import weights_per_token
from ..tokenizer import END_OF_TEXT
from .collect import CARRY, Inputs, Section, collect, groups_of, matrices_of, residual
from .fold import BLOCKS, combined, equalise, foldings
from .sensitivity import measure
from .text import Windows, tokens_of, windows_of

SELF = "self"  # in place of texts
WINDOW = 512
JUDGED = 8  # windows, to decide on foldings
SHOWN = 32  # tokens whose inputs are looked at by themselves
DAMP = 0.1
TOKENS_PER_COLUMN = 8  # of the widest matrix: with fewer, H fits the text and not the language
LEAST_TOKENS = 1 << 16
CHUNK_VALUES = 1 << 25  # of a matrix at once: 134 MB
FIXED_MEMORY = 512 << 20  # beside what grows with the width: chunks, inputs, the engine
# How much larger than the usual one an input must be to be a massive one.
MASSIVE_RATIO = 1000.0
# Of head and embedding beside these types, where the head is calibrated too.
ENDS = {"q4_0": "q5_k", "q4_1": "q5_k", "q5_0": "q6_k", "q5_1": "q6_k"}
# What `self` begins documents with, so that they are of several kinds where the model knows them.
OPENINGS = ("", "", "", "The ", "Der ", "Les ", "El ", "Это ", "这", "日本", "import ", "User: ")
WRITERS = 16  # documents at once
# Passes over a matrix that GPTQ and its descent take, in products of all its values with H.
GPTQ_PASSES = 6

Progress = Callable[[int, int, str], object]  # work done, and in all, and what is done now


@dataclass
class Calibration:
    """What is to be done: `statement` says it, `run` does it."""

    model: Model
    source: Path
    target: Path
    types: dict[str, str]
    """Of every matrix that is quantized."""
    windows: Windows
    memory: int
    base: str
    vocab: Path | None = None
    scales: dict[str, Scale] = field(default_factory=dict)
    """Of the tensors, which leave what the model computes as it is."""
    mixture: Mixture | None = None
    """Where the types were chosen for a size."""

    @property
    def folder(self) -> Path:
        return folder_of(self.target)

    def __post_init__(self) -> None:
        shapes = matrices_of(self.model)
        # Those whose codes are chosen by their inputs.
        self._shapes = {
            name: shapes[name]
            for name, kind in self.types.items()
            if name in shapes and kind in SEARCHED
        }
        self._widest = max((shape[-1] for shape in self._shapes.values()), default=0)
        self._groups_of(list(self._shapes))  # raises where one does not fit

    def _layers(self) -> dict[int, list[str]]:
        """The matrices of each layer; the head comes after the last one."""
        found: dict[int, list[str]] = {layer: [] for layer in range(self.model.n_layer + 1)}
        for name in self._shapes:
            in_layer = name.startswith("blk.")
            found[int(name.split(".")[1]) if in_layer else self.model.n_layer].append(name)
        return found

    def _groups_of(self, names: Sequence[str]) -> list[list[str]]:
        """Those that a pass takes."""
        room = self.memory - FIXED_MEMORY - 4 * self._widest**2
        try:
            return groups_of({name: self._shapes[name] for name in names}, room)
        except ValueError:
            least = FIXED_MEMORY + 8 * self._widest**2
            raise ValueError(
                f"{self.source}: --memory {amount(self.memory)}, needed are {amount(least)} for "
                f"matrices of {self._widest} columns"
            ) from None

    def statement(self) -> str:
        scaled = sum(
            name in self.types and scale.columns is not None for name, scale in self.scales.items()
        )
        if not self._shapes:
            return (
                f"{matrices(self.types)}, {scaled} of them with scaled columns, judged by "
                f"{self.windows.size:,} tokens"
            )
        groups = [self._groups_of(names) for names in self._layers().values()]
        most = max(
            sum(4 * self._shapes[name][-1] ** 2 for name in group)
            for layer in groups
            for group in layer
        )
        most += FIXED_MEMORY + 4 * self._widest**2
        times = max(map(len, groups))
        return (
            f"{matrices(self._shapes)} on {self.windows.size:,} tokens, layer by layer"
            f"{f', up to {times} times each' if times > 1 else ''}; up to {amount(most)} of memory "
            f"beside the model's file, and {amount(self._disk())} on the disk beside {self.target}"
        )

    def _disk(self) -> int:
        """Bytes of what is kept at once, besides the blocks that the target will have."""
        width = 2 * self.model.n_embd + self.model._core.carry_width
        return 4 * width * self.windows.size

    def run(self, progress: Progress | None = None) -> Counter[str]:
        """Quantize everything and write the target. Returns how many matrices have which type.

        Raises ValueError where an input is no finite number, and what `quantize` raises.
        """
        self.folder.mkdir(exist_ok=True)
        self._keep_job()
        self._check_room()
        made = self._made()
        left: dict[int, list[list[str]]] = {}  # groups by layer
        for layer, names in self._layers().items():
            missing = [name for name in names if name not in made]
            if missing:
                left[layer] = self._groups_of(missing)
        # (layer to begin with, layer to end before, matrices, whether what it leaves is kept)
        passes: list[tuple[int, int, list[str], bool]] = []
        known = self._known(min(left, default=0))
        for layer, groups in left.items():
            if known < layer:
                passes.append((known, layer, [], True))
            for group in groups:
                last = group is groups[-1] and layer < self.model.n_layer
                passes.append((layer, min(layer + 1, self.model.n_layer), group, last))
            known = layer + 1
        total = sum(
            self._reading(*step[:3]) + sum(gptq_work(self._shapes[name]) for name in step[2])
            for step in passes
        )
        done = 0

        def tell(now: int, what: str) -> None:
            if progress is not None:
                progress(min(done + now, total), total, what)

        for begin, end, group, kept in passes:
            for old in range(begin):
                residual(self.folder, old).unlink(missing_ok=True)
            work = self._reading(begin, end, group)
            what = f"layer {begin + 1} of {self.model.n_layer}"
            if begin == self.model.n_layer:
                what = "the head"
            with Section(self.model, self.folder, begin, end, kept=kept) as section:
                found = collect(
                    self.model,
                    self.windows,
                    group,
                    hessians=True,
                    section=section,
                    progress=part(tell, work, what),
                )
            done += work
            for name in group:
                tell(0, name)
                self._make(name, found.pop(name))
                done += gptq_work(self._shapes[name])

        def written(now: int, of: int, name: str) -> None:
            if progress is not None:
                progress(now, of, f"writing {name}")

        made = self._made()
        types = self.types | {name: path.suffix[1:] for name, path in made.items()}
        quantize(
            self.source,
            self.target,
            type=self.base,
            vocab=self.vocab,
            again=True,
            known=Known(types=types, made=made, scales=self.scales),
            progress=written,
        )
        shutil.rmtree(self.folder, ignore_errors=True)
        return Counter(types.values())

    def _known(self, layer: int) -> int:
        """The last layer up to this one whose input on the text is kept; 0 needs nothing."""
        tokens = self.windows.size
        expected = {self.folder / CARRY: 4 * tokens * self.model._core.carry_width}
        for known in range(layer, 0, -1):
            expected[residual(self.folder, known)] = 4 * tokens * self.model.n_embd
            if all(p.is_file() and p.stat().st_size == size for p, size in expected.items()):
                return known
            del expected[residual(self.folder, known)]
        return 0

    def _reading(self, begin: int, end: int, group: Sequence[str]) -> int:
        """Products that a pass takes."""
        layers = tuple(f"blk.{layer}." for layer in range(begin, end))
        weights = sum(
            np.prod(tensor.shape)
            for tensor in weights_per_token(self.model._file)
            if tensor.name.startswith(layers)
        )
        squares = sum(self._shapes[name][-1] ** 2 // 2 for name in group)
        return int(self.windows.size * (weights + squares))

    def _check_room(self) -> None:
        """OSError where what is kept would fill the disk."""
        kept = sum(path.stat().st_size for path in self.folder.iterdir())
        free, need = shutil.disk_usage(self.folder).free + kept, self._disk()
        if self._shapes and free < need:
            raise OSError(
                errno.ENOSPC,
                f"{amount(free)} are free, needed are {amount(need)}",
                str(self.folder.parent),
            )

    def _keep_job(self) -> None:
        """Forget what another model, text or type has left."""
        found = hashlib.sha256(self.windows.tobytes()).hexdigest(), self.windows.shape
        scales = hashlib.sha256()
        for name, scale in self.scales.items():
            scales.update(name.encode())
            for factors in (scale.rows, scale.columns):
                scales.update(b"" if factors is None else factors.tobytes())
        key = [self.model.fingerprint, found, self.types, DAMP, scales.hexdigest()]
        job = json.dumps(key, sort_keys=True).encode()
        path = self.folder / "job"
        with contextlib.suppress(OSError):
            if read_bytes(path, len(job), "a job") == job:
                return
        for pattern in ("*.weight.*", "residual.*", CARRY, path.name):
            for old in self.folder.glob(pattern):
                old.unlink(missing_ok=True)
        with OutputFile(path) as file:
            file.write(job)

    def _made(self) -> dict[str, Path]:
        """The finished matrices."""
        made = {}
        for name, shape in self._shapes.items():
            for kind in (self.types[name], MASSIVE_TYPE):
                path = self.folder / f"{name}.{kind}"
                values, nbytes = _core.type_block(kind)
                expected = int(np.prod(shape)) // values * nbytes
                if path.is_file() and path.stat().st_size == expected:
                    made[name] = path
                    break
        return made

    def _make(self, name: str, inputs: Inputs) -> None:
        kind = self.types[name]
        scale = self.scales.get(name, Scale())
        if scale.columns is not None:
            inputs.scale((1 / scale.columns).astype(np.float32))
        if self.mixture is None and name == MASSIVE and massive(inputs) and bits(kind) < 6:
            kind = MASSIVE_TYPE
        info = next(t for t in self.model._file.tensors if t.name == name)
        tensor = tensor_of(self.model._file, info)
        rows, columns = self._shapes[name]
        hessian = inputs.hessian() if kind in SEARCHED and inputs.squares.any() else None
        step = max(1, CHUNK_VALUES // columns)
        with OutputFile(self.folder / f"{name}.{kind}") as file:
            for start in range(0, rows, step):
                values = tensor.float32(start, min(start + step, rows)).reshape(-1, columns)
                values = scale.apply(values, start)
                where = f"{self.source}: tensor {name}"
                check_values(values, kind, where)
                try:
                    blocks = _core.quantize_matrix(
                        np.ascontiguousarray(values), kind, None, hessian, DAMP, self.model.threads
                    )
                except ValueError as error:
                    raise ValueError(f"{where}: {error}") from error
                file.write(blocks.reshape(-1).data)


def matrices(names: Collection[str]) -> str:
    return f"{len(names)} {'matrix' if len(names) == 1 else 'matrices'}"


def folder_of(target: Path) -> Path:
    """Where finished work is kept until all is."""
    return target.with_name(f".{shortened(target.name)}.calibration")


def part(tell: Callable[[int, str], None], work: int, what: str) -> Callable[[int, int], None]:
    return lambda read, of: tell(work * read // of, what)


def massive(inputs: Inputs) -> bool:
    """Whether one input is thousands of times as large as the usual one."""
    usual = float(np.median(inputs.squares))
    return float(inputs.squares.max()) > MASSIVE_RATIO * usual > 0


def gptq_work(shape: tuple[int, ...]) -> int:
    rows, columns = shape
    return int(GPTQ_PASSES * rows * columns**2 + columns**3 // 3)


def calibration(
    source: Path,
    target: Path,
    texts: Sequence[str | Path],
    *,
    type: str | None = None,
    bits: float | None = None,
    size: int | None = None,
    head_type: str | None = None,
    embd_type: str | None = None,
    vocab: Path | None = None,
    window: int = WINDOW,
    tokens: int | None = None,
    memory: int | None = None,
    threads: int | None = None,
    equal: bool = True,
    progress: Progress | None = None,
) -> Calibration:
    """Open the model and the texts, and say what is to be done.

    `texts` are files, folders and "-" for stdin, or SELF alone: then the model writes the text.
    `tokens` is how many of them are read, from all over the text: by default 8 for each column of
    the widest matrix, and at least 65,536. `memory` is a bound in bytes: by default half of what is
    free. `equal` lets columns be scaled where that helps.

    `bits` or `size` lets each matrix have its own type, as in `quantize`. What each loses at four
    bits is measured here. That takes as long as one reading of the text, or as reading 1,024 tokens
    for each matrix where that is longer. It is kept beside `target`, as finished matrices are.

    A UserWarning says so where the source is quantized already.

    Raises what `Model` and `quantize` raise; ValueError for a text that is empty, too short or not
    UTF-8, and for too little memory.
    """
    budget = None
    if bits is not None or size is not None:
        budget = Budget.of(bits, size, type, head_type, embd_type)
    elif type is None:
        raise ValueError("type, bits and size: expected one of them")
    base = FOUR_BITS if type is None or budget is not None else parse_type(type)
    if base not in BLOCKS:
        raise ValueError(f"type {base}: nothing to calibrate, expected one of {', '.join(BLOCKS)}")
    model = Model(source, vocab=vocab, threads=threads, device="cpu")
    ends = ENDS.get(base)
    chosen = Types.choose(base, head_type or ends, embd_type or ends, again=True)
    types = {
        tensor.name: chosen.of(str(source), tensor.name, tensor.shape, tensor.type)
        for tensor in model._file.tensors
        if is_quantizable(tensor.name, tensor.shape)
    }
    already = {t.type for t in model._file.tensors if t.name in types} - set(NUMPY_TYPES)
    changed = {t.type for t in model._file.tensors if types.get(t.name, t.type) != t.type}
    if changed & already:
        warnings.warn(
            f"{source}: {', '.join(sorted(changed & already))} already: quantizing a second time "
            "loses more than quantizing the f32, f16 or bf16 file it was made from",
            stacklevel=2,
        )
    wide = max(tensor.shape[-1] for tensor in model._file.tensors if tensor.name in types)
    count = max(1, (tokens or max(LEAST_TOKENS, TOKENS_PER_COLUMN * wide)) // window)
    if budget is None and not any(kind in SEARCHED for kind in types.values()):
        count = min(count, JUDGED)  # no codes to choose, only columns to scale
    windows = _windows(model, texts, count, window, progress)
    if len(windows) < count and tokens is None:
        warnings.warn(
            f"{', '.join(map(str, texts))}: {windows.size:,} tokens, expected {count * window:,} "
            "or more: with fewer the file fits this text more than others",
            stacklevel=2,
        )
    plan = None
    if budget is not None:
        plan = plan_file(Path(source), Path(target), chosen, vocab=vocab)
        room_of(plan, budget)  # raises where no mixture fits, before what takes long
    scaling = equal and not already
    importance, scales, shown = {}, {}, {}
    if plan is not None or scaling:
        found = collect(model, spread(windows, JUDGED), list(matrices_of(model)))
        importance = {name: inputs.importance() for name, inputs in found.items()}
    if scaling:
        shown = _last_inputs(model, list(importance), windows[0])
        scales = _scales(model, types, importance, shown)
    mixture = None
    if plan is not None and budget is not None:
        known = Known(importance=importance, scales=scales)
        folder_of(Path(target)).mkdir(exist_ok=True)
        losses = measure(
            model,
            types,
            windows,
            importance=importance,
            scales=scales,
            kept=folder_of(Path(target)) / "losses",
            progress=progress,
        )
        mixture = fit(plan, budget, known, losses, gptq=True)
        types, base = mixture.types, mixture.base
        if scaling:
            scales = _scales(model, types, importance, shown)
    bound = memory if memory is not None else _core.available_memory() // 2
    return Calibration(
        model, Path(source), Path(target), types, windows, bound, base, vocab, scales, mixture
    )


def _windows(
    model: Model, texts: Sequence[str | Path], count: int, size: int, progress: Progress | None
) -> Windows:
    """So many windows from all over the texts, if they have as many."""
    if SELF not in texts:
        ids = tokens_of(model, texts)
        return spread(windows_of(ids, size, ", ".join(map(str, texts))), count)
    if len(texts) > 1:
        raise ValueError(f"{SELF}, which the model writes, and other texts: expected one of them")
    return own_text(model, count, size, progress)


def _last_inputs(model: Model, names: list[str], window: NDArray[np.int32]) -> dict[str, F32]:
    """What the last tokens of a window give matrices to multiply, [tokens, columns] of each."""
    session = model.session()
    if len(window) > SHOWN:
        session.read(window[:-SHOWN].tolist())
    return session.inputs(window[-SHOWN:].tolist(), names)


def _scales(
    model: Model, types: dict[str, str], importance: dict[str, F32], shown: dict[str, F32]
) -> dict[str, Scale]:
    """Of the foldings that pay, judged by the importance of columns and by some inputs."""
    tensors = {tensor.name: tensor for tensor in model._file.tensors}

    def values_of(name: str, rows: int) -> F32:
        tensor = tensor_of(model._file, tensors[name])
        count, columns = tensors[name].shape
        return tensor.float32(0, min(rows, count)).reshape(-1, columns)

    all_of = foldings(model.arch, set(tensors))
    return combined(equalise(all_of, types, importance, values_of, shown))


def spread(windows: Windows, count: int) -> Windows:
    """So many windows from all over a text; all where it has no more."""
    if len(windows) <= count:
        return windows
    chosen: Windows = windows[np.linspace(0, len(windows) - 1, count).round().astype(int)]
    return chosen


def own_text(model: Model, count: int, size: int, progress: Progress | None) -> Windows:
    """Windows of what the model writes by itself, the same every time."""
    ids: list[int] = []
    seed = 0
    while len(ids) < count * size:
        openings = [OPENINGS[(seed + i) % len(OPENINGS)] for i in range(WRITERS)]
        batch = model.batch(model.session() for _ in openings)
        prompts = [[END_OF_TEXT, *model.tokenizer.encode(text)] for text in openings]
        texts = batch.generate(prompts, max_tokens=size, temperature=1.0, top_p=1.0, seed=seed)
        for _ in texts:
            pass
        for prompt, details in zip(prompts, texts.details, strict=True):
            ids += [*prompt, *details.tokens]
        seed += len(openings)
        if progress is not None:
            progress(min(len(ids), count * size), count * size, "the model writes its text")
    return windows_of(ids[: count * size], size, SELF)
