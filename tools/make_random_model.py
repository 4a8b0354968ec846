# SPDX-License-Identifier: Apache-2.0
"""Write a random RWKV-7 model of a real shape, to measure speed without a download.

    python tools/make_random_model.py --size 0.4b --type q4_0 random-0.4b.gguf
    python tools/make_random_model.py --size 0.4b --pth random-0.4b.pth

It talks nonsense, but it runs like a real model of that size: activations stay near one, the state
decays, no value overflows. The same seed gives the same weights in both formats: converting the
.pth (bfloat16, as checkpoints are) gives the tensors of the .gguf. Nothing larger than a piece of
one tensor is ever in memory.
"""

from __future__ import annotations

import argparse
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rwkv_edge.convert.convert import plan_model, write_model
from rwkv_edge.convert.gguf_writer import Progress, Value, string
from rwkv_edge.convert.quantize import CHUNK_VALUES, Types
from rwkv_edge.convert.source import F32
from rwkv_edge.convert.vocab import load_vocabulary, world_file, world_metadata

BLOCK_ROWS = 256  # each block of rows has its own random stream, so rows can be made in any order
ALIGNMENT = 64


@dataclass(frozen=True)
class Size:
    """The shape of a released model; `ranks` of the small matrices of w, a, v, g."""

    layers: int
    width: int
    ranks: tuple[int, int, int, int]
    vocab: int = 65536
    head_size: int = 64


SIZES = {
    "0.1b": Size(12, 768, (64, 64, 32, 128)),
    "0.4b": Size(24, 1024, (64, 64, 32, 128)),
    "1.5b": Size(24, 2048, (96, 96, 64, 256)),
    "2.9b": Size(32, 2560, (96, 96, 64, 320)),
    "7.2b": Size(32, 4096, (128, 128, 96, 480)),
}


@dataclass(frozen=True)
class RandomTensor:
    """Values made when asked for: normal, around `mean` with deviation `std`, exact in bfloat16."""

    name: str
    shape: tuple[int, ...]
    seed: int
    mean: float
    std: float
    dtype: str = "bf16"

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * 2

    def float32(self, start: int = 0, stop: int | None = None) -> F32:
        stop = self.shape[0] if stop is None else stop
        first = start // BLOCK_ROWS
        blocks = [self._block(i) for i in range(first, -(-stop // BLOCK_ROWS))]
        rows = np.concatenate(blocks)[start - first * BLOCK_ROWS :]
        return rows[: stop - start]

    def _block(self, index: int) -> F32:
        rng = np.random.default_rng((self.seed, zlib.crc32(self.name.encode()), index))
        rows = min(BLOCK_ROWS, self.shape[0] - index * BLOCK_ROWS)
        values = rng.standard_normal((rows, *self.shape[1:]), dtype=np.float32)
        values *= np.float32(self.std)
        values += np.float32(self.mean)
        bits = values.view(np.uint32)
        bits &= np.uint32(0xFFFF0000)
        return values


def random_tensors(size: Size, seed: int) -> dict[str, RandomTensor]:
    """A checkpoint with BlinkDL's names, in the order of a real one."""
    width, ffn = size.width, 4 * size.width
    tensors: dict[str, RandomTensor] = {}

    def add(name: str, shape: tuple[int, ...], mean: float, std: float) -> None:
        tensors[name] = RandomTensor(name, shape, seed, mean, std)

    def vector(name: str, mean: float, std: float) -> None:
        add(name, (1, 1, width), mean, std)

    def norm(name: str) -> None:
        add(f"{name}.weight", (width,), 1.0, 0.1)
        add(f"{name}.bias", (width,), 0.0, 0.05)

    def matrix(name: str, rows: int, columns: int, gain: float = 1.0) -> None:
        add(name, (rows, columns), 0.0, gain * columns**-0.5)

    matrix("emb.weight", size.vocab, width, gain=width**0.5)
    for i in range(size.layers):
        block, att, ffn_name = f"blocks.{i}.", f"blocks.{i}.att.", f"blocks.{i}.ffn."
        for name in ("ln1", "ln2") if i else ("ln1", "ln2", "ln0"):
            norm(block + name)
        for x in "rwkvag":
            vector(f"{att}x_{x}", 0.5, 0.2)
        # Decay, learning rate and value residual: sigmoid(vector + small matrices).
        for x, rank, mean, std in zip(
            "wav", size.ranks[:3], (-3, 0, 0.5), (1.5, 0.5, 0.5), strict=True
        ):
            vector(f"{att}{x}0", mean, std)
            add(f"{att}{x}1", (width, rank), 0.0, 0.5 * width**-0.5)
            add(f"{att}{x}2", (rank, width), 0.0, 0.5 * rank**-0.5)
        add(f"{att}g1", (width, size.ranks[3]), 0.0, width**-0.5)
        add(f"{att}g2", (size.ranks[3], width), 0.0, 2 * size.ranks[3] ** -0.5)
        vector(f"{att}k_k", 0.85, 0.05)
        vector(f"{att}k_a", 1.0, 0.05)
        add(f"{att}r_k", (width // size.head_size, size.head_size), 0.0, 0.1)
        for name, gain in (("receptance", 1), ("key", 0.7), ("value", 1), ("output", 0.5)):
            matrix(f"{att}{name}.weight", width, width, gain)
        norm(f"{att}ln_x")
        vector(f"{ffn_name}x_k", 0.5, 0.2)
        matrix(f"{ffn_name}key.weight", ffn, width)
        matrix(f"{ffn_name}value.weight", width, ffn, 0.5)
    norm("ln_out")
    matrix("head.weight", size.vocab, width)
    return tensors


# ---- GGUF ---------------------------------------------------------------------------------------


def vocabulary(rows: int) -> dict[str, Value]:
    """World where it is installed, else the 256 single bytes; the description says which."""
    if world_file() is not None and rows >= SIZES["0.1b"].vocab:
        return load_vocabulary(None, rows) | _description("RWKV World vocabulary")
    tokens = {i + 1: bytes([i]) for i in range(min(256, rows - 1))}
    return world_metadata("vocabulary", tokens, rows) | _description("vocabulary of single bytes")


def _description(vocabulary: str) -> dict[str, Value]:
    text = f"Random weights of a real shape, for measuring speed. {vocabulary}."
    return {"general.description": string(text)}


def write_gguf(
    target: Path, size: Size, seed: int, types: Types, progress: Progress | None = None
) -> None:
    metadata, outputs = plan_model(target, random_tensors(size, seed))
    metadata["general.name"] = string(f"random RWKV-7 {size.layers}x{size.width}")
    write_model(target, metadata | vocabulary(size.vocab), outputs, types, progress=progress)


# ---- .pth ---------------------------------------------------------------------------------------


def write_pth(target: Path, size: Size, seed: int, progress: Progress | None = None) -> None:
    """A zip of stored entries as torch.save writes it, bytes aligned to multiples of 64."""
    tensors = list(random_tensors(size, seed).values())
    total, done = sum(tensor.nbytes for tensor in tensors), 0
    temporary = target.with_name(target.name + ".part")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            _entry(archive, "data.pkl", [_pickle(tensors)])
            _entry(archive, "byteorder", [b"little"])
            for key, tensor in enumerate(tensors):
                _entry(archive, f"data/{key}", _bfloat16(tensor))
                done += tensor.nbytes
                if progress is not None:
                    progress(done, total, tensor.name)
            _entry(archive, "version", [b"3\n"])
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _entry(archive: zipfile.ZipFile, name: str, pieces: Iterator[bytes] | list[bytes]) -> None:
    info = zipfile.ZipInfo(f"archive/{name}")
    assert archive.fp is not None
    # The local header has 30 bytes, the name, a Zip64 field of 20, and padding in a field of ours.
    start = archive.fp.tell() + 30 + len(info.filename) + 20 + 4
    padding = -start % ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=True) as file:
        for piece in pieces:
            file.write(piece)


def _bfloat16(tensor: RandomTensor) -> Iterator[bytes]:
    step = max(1, CHUNK_VALUES // int(np.prod(tensor.shape[1:])))
    for start in range(0, tensor.shape[0], step):
        values = tensor.float32(start, min(start + step, tensor.shape[0]))
        yield (values.view(np.uint32) >> 16).astype("<u2").tobytes()


def _pickle(tensors: list[RandomTensor]) -> bytes:
    """Pickle, protocol 2, of {name: _rebuild_tensor_v2(storage, 0, shape, strides, ...)}."""
    out = [b"\x80\x02}("]
    for key, tensor in enumerate(tensors):
        count = int(np.prod(tensor.shape))
        strides = [int(np.prod(tensor.shape[i + 1 :])) for i in range(len(tensor.shape))]
        storage = _text("storage") + b"ctorch\nBFloat16Storage\n" + _text(str(key)) + _text("cpu")
        out += [
            _text(tensor.name) + b"ctorch._utils\n_rebuild_tensor_v2\n(",
            b"(" + storage + _number(count) + b"tQ",
            _number(0) + _numbers(tensor.shape) + _numbers(strides),
            b"\x89ccollections\nOrderedDict\n)RtR",
        ]
    return b"".join([*out, b"u."])


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _number(number: int) -> bytes:
    return b"J" + struct.pack("<i", number)


def _numbers(numbers: tuple[int, ...] | list[int]) -> bytes:
    return b"(" + b"".join(_number(n) for n in numbers) + b"t"


# ---- the command --------------------------------------------------------------------------------


def show_progress(done: int, total: int, name: str) -> None:
    sys.stderr.write(f"\r{100 * done // max(total, 1):3d} % {name:40.40}")
    if done >= total:
        sys.stderr.write("\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path, metavar="OUT")
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--type", default="f16", help="type of the matrices (default f16)")
    parser.add_argument("--head-type", help="type of the output matrix")
    parser.add_argument("--embd-type", help="type of the embedding")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pth", action="store_true", help="write a bfloat16 .pth, not a GGUF")
    args = parser.parse_args()
    progress = show_progress if sys.stderr.isatty() else None
    if args.pth:
        write_pth(args.target, SIZES[args.size], args.seed, progress)
        return
    try:
        types = Types.choose(args.type, args.head_type, args.embd_type)
    except ValueError as error:
        parser.error(str(error))
    write_gguf(args.target, SIZES[args.size], args.seed, types, progress)


if __name__ == "__main__":
    main()
