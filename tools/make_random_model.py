# SPDX-License-Identifier: Apache-2.0
"""Write a random RWKV model of a real shape, to measure speed without a download.

    python tools/make_random_model.py --size 0.4b --type q4_0 random-0.4b.gguf
    python tools/make_random_model.py --version 6 --size 1.6b --pth random-1.6b.pth

It talks nonsense, but it runs like a real model of that size: activations stay near one, the state
decays, no value overflows. The same seed gives the same weights in both formats: converting the
.pth (bfloat16, as checkpoints are) gives the tensors of the .gguf. Nothing larger than a piece of
one tensor is ever in memory.
"""

from __future__ import annotations

import argparse
import math
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
from rwkv_edge.convert.names import plan_model
from rwkv_edge.convert.policy import CHUNK_VALUES, Types
from rwkv_edge.convert.vocab import WORLD, read_vocabulary, world_file, world_vocabulary
from rwkv_edge.convert.write import by_input, write_model
from rwkv_edge.files.gguf_writer import Progress, Value, string
from rwkv_edge.files.source import F32, Checkpoint

BLOCK_ROWS = 256  # each block of rows has its own random stream, so rows can be made in any order
ALIGNMENT = 64
FFN_MEAN = 0.5  # of what goes into a channel mix whose share of zeros was chosen


@dataclass(frozen=True)
class Size:
    """The shape of a released model.

    `ranks` of the small matrices: of w, a, v, g in version 7, of token shift and decay in 6.
    """

    layers: int
    width: int
    ranks: tuple[int, ...] = ()
    version: str = "7"
    vocab: int = 65536
    head_size: int = 64

    @property
    def heads(self) -> int:
        return self.width // self.head_size

    @property
    def ffn(self) -> int:
        return int(3.5 * self.width) // 32 * 32 if self.version in "56" else 4 * self.width


SIZES = {
    "4": {
        "0.1b": Size(12, 768, version="4"),
        "0.4b": Size(24, 1024, version="4"),
        "1.5b": Size(24, 2048, version="4"),
        "3b": Size(32, 2560, version="4"),
        "7b": Size(32, 4096, version="4"),
        "14b": Size(40, 5120, version="4", vocab=50277),  # of the Pile and Raven models
    },
    "5": {  # as 5.2
        "0.4b": Size(24, 1024, version="5"),
        "1.5b": Size(24, 2048, version="5"),
        "3b": Size(32, 2560, version="5"),
        "7b": Size(32, 4096, version="5"),
    },
    "6": {
        "1.6b": Size(24, 2048, (32, 64), "6"),
        "3b": Size(32, 2560, (32, 64), "6"),
        "7b": Size(32, 4096, (64, 128), "6"),
        "14b": Size(61, 4096, (64, 128), "6"),
    },
    "7": {
        "tiny": Size(2, 128, (32, 32, 32, 32), vocab=512),  # no released one; to try programs
        "0.1b": Size(12, 768, (64, 64, 32, 128)),
        "0.4b": Size(24, 1024, (64, 64, 32, 128)),
        "1.5b": Size(24, 2048, (96, 96, 64, 256)),
        "2.9b": Size(32, 2560, (96, 96, 64, 320)),
        "7.2b": Size(32, 4096, (128, 128, 96, 480)),
    },
    "7a": {"0.1b": Size(12, 768, (64, 64, 32, 128), "7a")},
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

    def raw(self) -> None:
        return None

    def _block(self, index: int) -> F32:
        rng = np.random.default_rng((self.seed, zlib.crc32(self.name.encode()), index))
        rows = min(BLOCK_ROWS, self.shape[0] - index * BLOCK_ROWS)
        values = rng.standard_normal((rows, *self.shape[1:]), dtype=np.float32)
        values *= np.float32(self.std)
        values += np.float32(self.mean)
        bits = values.view(np.uint32)
        bits &= np.uint32(0xFFFF0000)
        return values


class Maker:
    """Collects the tensors of a checkpoint under BlinkDL's names."""

    def __init__(self, size: Size, seed: int, ffn_zeros: float | None) -> None:
        self.size, self.seed, self.ffn_zeros = size, seed, ffn_zeros
        self.tensors: dict[str, RandomTensor] = {}

    def add(self, name: str, shape: tuple[int, ...], mean: float, std: float) -> None:
        self.tensors[name] = RandomTensor(name, shape, self.seed, mean, std)

    def vector(self, name: str, mean: float, std: float, width: int | None = None) -> None:
        self.add(name, (1, 1, width or self.size.width), mean, std)

    def norm(self, name: str, mean: float = 0.0) -> None:
        self.add(f"{name}.weight", (self.size.width,), 1.0, 0.1)
        self.add(f"{name}.bias", (self.size.width,), mean, 0.05)

    def matrix(self, name: str, rows: int, columns: int, gain: float = 1.0) -> None:
        self.add(name, (rows, columns), 0.0, gain * columns**-0.5)

    def ffn_norm(self, name: str) -> None:
        self.norm(name, 0.0 if self.ffn_zeros is None else FFN_MEAN)

    def ffn_key(self, ffn: str) -> None:
        """Half of its products are positive; with `ffn_zeros`, so many are not.

        The input has mean FFN_MEAN in every channel, so a constant in the matrix lowers them all.
        """
        width, below = self.size.width, 0.0
        if self.ffn_zeros is not None:
            # Mixes of two inputs that hardly depend on each other have (1 - m)^2 + m^2 of their
            # variance, with m = 0.5 +- 0.2.
            std = math.sqrt(0.58 + FFN_MEAN**2)
            below = -NormalDist().inv_cdf(self.ffn_zeros) * std / (width * FFN_MEAN)
        self.add(f"{ffn}key.weight", (self.size.ffn, width), below, width**-0.5)

    def squares(self, prefix: str, gains: dict[str, float]) -> None:
        for name, gain in gains.items():
            self.matrix(f"{prefix}{name}.weight", self.size.width, self.size.width, gain)


def random_tensors(
    size: Size, seed: int, ffn_zeros: float | None = None
) -> dict[str, RandomTensor]:
    """A checkpoint with BlinkDL's names, in the order of a real one.

    `ffn_zeros` is about the share of zeros that relu^2 leaves; by itself it would be a half.
    """
    make = Maker(size, seed, ffn_zeros)
    make.matrix("emb.weight", size.vocab, size.width, gain=size.width**0.5)
    time_mix, channel_mix = MIXES[size.version]
    for i in range(size.layers):
        for name in ("ln1", "ln2") if i else ("ln1", "ln2", "ln0"):
            norm = make.ffn_norm if name == "ln2" else make.norm
            norm(f"blocks.{i}.{name}")
        time_mix(make, f"blocks.{i}.att.")
        channel_mix(make, f"blocks.{i}.ffn.")
    make.norm("ln_out")
    make.matrix("head.weight", size.vocab, size.width)
    return make.tensors


def time_mix_4(make: Maker, att: str) -> None:
    make.add(f"{att}time_decay", (make.size.width,), -1.0, 1.0)
    make.add(f"{att}time_first", (make.size.width,), 0.3, 0.5)
    for x in "kvr":
        make.vector(f"{att}time_mix_{x}", 0.5, 0.2)
    make.squares(att, {"key": 1, "value": 1, "receptance": 1, "output": 0.5})


def time_mix_5(make: Maker, att: str) -> None:
    for x in "kvrg":
        make.vector(f"{att}time_mix_{x}", 0.5, 0.2)
    shape = (make.size.heads, make.size.head_size)
    make.add(f"{att}time_decay", shape, -1.0, 1.0)
    make.add(f"{att}time_faaaa", shape, 0.2, 0.3)
    make.squares(att, {"receptance": 1, "key": 0.7, "value": 1, "output": 0.5, "gate": 1})
    make.norm(f"{att}ln_x")


def time_mix_6(make: Maker, att: str) -> None:
    size, (mix, decay) = make.size, make.size.ranks
    for x in "xwkvrg":
        make.vector(f"{att}time_maa_{x}", 0.5, 0.2)
    make.add(f"{att}time_maa_w1", (size.width, 5 * mix), 0.0, 0.5 * size.width**-0.5)
    make.add(f"{att}time_maa_w2", (5, mix, size.width), 0.0, 0.3 * mix**-0.5)
    make.vector(f"{att}time_decay", -1.5, 1.0)
    make.add(f"{att}time_decay_w1", (size.width, decay), 0.0, 0.5 * size.width**-0.5)
    make.add(f"{att}time_decay_w2", (decay, size.width), 0.0, 0.5 * decay**-0.5)
    make.add(f"{att}time_faaaa", (size.heads, size.head_size), 0.2, 0.3)
    make.squares(att, {"receptance": 1, "key": 0.7, "value": 1, "output": 0.5, "gate": 1})
    make.norm(f"{att}ln_x")


def time_mix_7(make: Maker, att: str) -> None:
    size, width = make.size, make.size.width
    for x in "rwkvag":
        make.vector(f"{att}x_{x}", 0.5, 0.2)
    # Decay, learning rate and value residual: sigmoid(vector + small matrices).
    for x, rank, mean, std in zip(
        "wav", size.ranks[:3], (-3, 0, 0.5), (1.5, 0.5, 0.5), strict=True
    ):
        make.vector(f"{att}{x}0", mean, std)
        make.add(f"{att}{x}1", (width, rank), 0.0, 0.5 * width**-0.5)
        make.add(f"{att}{x}2", (rank, width), 0.0, 0.5 * rank**-0.5)
    make.add(f"{att}g1", (width, size.ranks[3]), 0.0, width**-0.5)
    make.add(f"{att}g2", (size.ranks[3], width), 0.0, 2 * size.ranks[3] ** -0.5)
    make.vector(f"{att}k_k", 0.85, 0.05)
    make.vector(f"{att}k_a", 1.0, 0.05)
    make.add(f"{att}r_k", (size.heads, size.head_size), 0.0, 0.1)
    make.squares(att, {"receptance": 1, "key": 0.7, "value": 1, "output": 0.5})
    make.norm(f"{att}ln_x")


def gated_channel_mix(make: Maker, ffn: str) -> None:
    """Of versions 4 to 6."""
    for x in "kr":
        make.vector(f"{ffn}time_{'maa' if make.size.version == '6' else 'mix'}_{x}", 0.5, 0.2)
    make.ffn_key(ffn)
    make.matrix(f"{ffn}receptance.weight", make.size.width, make.size.width)
    make.matrix(f"{ffn}value.weight", make.size.width, make.size.ffn, 0.5)


def channel_mix_7(make: Maker, ffn: str) -> None:
    make.vector(f"{ffn}x_k", 0.5, 0.2)
    make.ffn_key(ffn)
    make.matrix(f"{ffn}value.weight", make.size.width, make.size.ffn, 0.5)


def channel_mix_7a(make: Maker, ffn: str) -> None:
    size = make.size
    channel_mix_7(make, ffn)
    make.add(f"{ffn}s_emb.weight", (size.vocab, 1024), 0.0, 0.15)
    make.matrix(f"{ffn}s_emb_x.weight", 1024, size.width, 0.1)
    make.add(f"{ffn}s1", (size.width, 32), 0.0, size.width**-0.5)
    make.add(f"{ffn}s2", (32, size.ffn), 0.0, 0.3 * 32**-0.5)
    make.vector(f"{ffn}s0", 1.0, 0.1, size.ffn)


MIXES = {
    "4": (time_mix_4, gated_channel_mix),
    "5": (time_mix_5, gated_channel_mix),
    "6": (time_mix_6, gated_channel_mix),
    "7": (time_mix_7, channel_mix_7),
    "7a": (time_mix_7, channel_mix_7a),
}


# ---- GGUF ---------------------------------------------------------------------------------------


def vocabulary(rows: int) -> dict[str, Value]:
    """World where it is installed, else the 256 single bytes; the description says which."""
    world = world_file()
    if world is not None and rows >= WORLD:
        return read_vocabulary(world).padded(rows) | _description("RWKV World vocabulary")
    tokens = {i + 1: bytes([i]) for i in range(min(256, rows - 1))}
    bytes_only = world_vocabulary("vocabulary", tokens).padded(rows)
    return bytes_only | _description("vocabulary of single bytes")


def _description(vocabulary: str) -> dict[str, Value]:
    text = f"Random weights of a real shape, for measuring speed. {vocabulary}."
    return {"general.description": string(text)}


def write_gguf(
    target: Path,
    size: Size,
    seed: int,
    types: Types,
    progress: Progress | None = None,
    *,
    ffn_zeros: float | None = None,
    sparse_ffn: bool = False,
) -> None:
    metadata, outputs = plan_model(Checkpoint(target, random_tensors(size, seed, ffn_zeros)))
    if sparse_ffn:
        outputs = by_input(target, outputs, types)
    metadata["general.name"] = string(f"random RWKV-{size.version} {size.layers}x{size.width}")
    write_model(target, metadata | vocabulary(size.vocab), outputs, types, progress=progress)


# ---- .pth ---------------------------------------------------------------------------------------


def write_pth(
    target: Path,
    size: Size,
    seed: int,
    progress: Progress | None = None,
    *,
    ffn_zeros: float | None = None,
) -> None:
    """A zip of stored entries as torch.save writes it, bytes aligned to multiples of 64."""
    tensors = list(random_tensors(size, seed, ffn_zeros).values())
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
    parser.add_argument("--version", choices=SIZES, default="7", help="RWKV version (default 7)")
    sizes = "; ".join(f"{version}: {', '.join(known)}" for version, known in SIZES.items())
    parser.add_argument("--size", required=True, help=f"by version {sizes}")
    parser.add_argument("--type", default="f16", help="type of the matrices (default f16)")
    parser.add_argument("--head-type", help="type of the output matrix")
    parser.add_argument("--embd-type", help="type of the embedding")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--ffn-zeros", type=float, metavar="SHARE", help="of relu^2, such as 0.88 (about 0.5)"
    )
    parser.add_argument("--sparse-ffn", action="store_true", help="as of convert")
    parser.add_argument("--pth", action="store_true", help="write a bfloat16 .pth, not a GGUF")
    args = parser.parse_args()
    size = SIZES[args.version].get(args.size)
    if size is None:
        parser.error(
            f"--size {args.size}: version {args.version} has {', '.join(SIZES[args.version])}"
        )
    if args.ffn_zeros is not None and not 0 < args.ffn_zeros < 1:
        parser.error(f"--ffn-zeros {args.ffn_zeros}: expected a share between 0 and 1")
    progress = show_progress if sys.stderr.isatty() else None
    if args.pth:
        write_pth(args.target, size, args.seed, progress, ffn_zeros=args.ffn_zeros)
        return
    try:
        types = Types.choose(args.type, args.head_type, args.embd_type)
    except ValueError as error:
        parser.error(str(error))
    write_gguf(
        args.target,
        size,
        args.seed,
        types,
        progress,
        ffn_zeros=args.ffn_zeros,
        sparse_ffn=args.sparse_ffn,
    )


if __name__ == "__main__":
    main()
