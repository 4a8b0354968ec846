# SPDX-License-Identifier: Apache-2.0
"""The engine's boundary (cpp/bindings.cpp). Use the classes of rwkv_edge itself."""

from collections.abc import Callable, Sequence
from enum import Enum
from os import PathLike
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

class FormatError(ValueError):
    """A file is malformed or does not fit; the message begins with the file's path."""

class UnsupportedError(RuntimeError):
    """Well-formed, but not something this build or this machine can run."""

TYPE_NAMES: tuple[str, ...]

def type_id(name: str) -> int: ...
def type_block(name: str) -> tuple[int, int]:
    """Values per block, bytes per block."""

def quantize(x: NDArray[np.float32], type: str) -> NDArray[np.uint8]:
    """[..., cols] floats to [..., row_bytes] blocks, by round to nearest as ggml does it.

    ValueError for values that the type cannot hold and for rows that are no multiple of its block;
    UnsupportedError for q2_k to q6_k, which `quantize_matrix` writes (but for q2_k).
    """

def quantize_matrix(
    weights: NDArray[np.float32],
    type: str,
    importance: NDArray[np.float32] | None = None,
    hessian: NDArray[np.float32] | None = None,
    damp: float = 0.1,
    threads: int = 0,
) -> NDArray[np.uint8]:
    """[rows, cols] floats to [rows, row_bytes] blocks whose scales are searched.

    The search minimizes the sum of importance[col] * (weight - value)^2. Without an importance,
    squares are weighted with |x| plus the root mean square of 32 weights x in q4_k and q5_k, with
    x^2 plus the mean square of 256 in q3_k and q6_k, and alike in q4_0 to q5_1.
    The types f32, f16, bf16 and q8_0 are rounded to nearest, and take neither importance nor
    hessian.

    `hessian` [cols, cols] is the mean of x x^T over inputs x of the matrix, or a multiple of it.
    With it all codes of a row are chosen together (GPTQ), to make tr (W - Q) H' (W - Q)^T small,
    where H' = H + damp * mean(diag H) * I. It takes 4 * cols^2 bytes more, and at most some 160 MB
    beside. `threads` 0 takes all CPUs; the bytes are always the same.

    ValueError for values that the type cannot hold, for shapes that do not fit, for an importance
    that is negative or not finite, for a hessian that is not finite, not symmetric, not positive
    definite or zero; UnsupportedError for q2_k.
    """

def add_outer_products(sums: NDArray[np.float32], x: NDArray[np.float32], threads: int = 1) -> None:
    """sums[i, j] += sum of x[t, i] * x[t, j] for i <= j, in place: sums [n, n], x [T, n].

    Of the others, which are the same, some are added to. The bits depend neither on the threads nor
    on the calls that the rows of x come in. ValueError for other shapes.
    """

def dequantize(data: NDArray[np.uint8], type: str) -> NDArray[np.float32]:
    """[..., row_bytes] blocks to [..., cols] floats."""

def isa() -> str:
    """The kernel level in use.

    UnsupportedError where the variable RWKV_EDGE_ISA names none of isa_levels().
    """

def isa_levels() -> list[str]: ...
def why_no_cuda() -> str:
    """Why no model runs on a GPU here, in a sentence; empty where one can."""

def cuda_devices() -> list[str]:
    """The names of the GPUs here, by index."""

def gpu_limits(device: str) -> tuple[float, float]:
    """What a GPU ("cuda", "cuda:1") gives at most, in 10^9 per second: bytes read from its memory,
    and operations of its tensor cores on halves, two per product.

    Takes a quarter of a second. UnsupportedError where a GPU cannot be used, ValueError for a
    device that is not there, MemoryError where its memory is full.
    """

def share_memory_pools() -> None:
    """For a program: its threads take memory from two pools, and not from up to eight per core."""

def give_back_memory() -> None:
    """Give the system the pages that this process no longer uses, where its allocator can."""

def available_memory() -> int:
    """Bytes of memory that the system can give to this process, mapped files included."""

def say_on_bus_error(text: str) -> None:
    """For a program: what stands on stderr where a file that was cut while mapped ends it."""

def read_bandwidth(threads: int) -> float:
    """GB/s that `threads` threads read from memory together; takes about a second.

    ValueError for threads outside 1 to 1024; so the two below. MemoryError where there is too
    little memory to read.
    """

def float_peak(threads: int) -> float:
    """GFLOPS of f32 arithmetic at the level in use, two per product, all threads together."""

def int8_peak(threads: int) -> float:
    """GOPS of 8-bit dots at the level in use, two per product, all threads together."""

class TensorInfo:
    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def offset(self) -> int:
        """In the file; -1 in an assembled one."""
    @property
    def data(self) -> NDArray[np.uint8]:
        """[nbytes], read-only, in the map of the file."""
    def read(self, start: int, size: int) -> bytes:
        """A copy of some bytes of the data, for who does without numpy."""

class MappedFile:
    """A whole file, mapped for reading. OSError where that fails, FormatError where it is empty."""

    def __init__(self, path: str | PathLike[str]) -> None: ...
    @property
    def data(self) -> NDArray[np.uint8]:
        """All bytes, read-only."""
    def forget(self) -> None:
        """Give back the pages read so far, so that reading 14 GB does not look like using it."""

class ModelFile:
    def __init__(self, path: str | PathLike[str]) -> None: ...
    @staticmethod
    def assemble(
        path: str | PathLike[str], header: bytes, tensors: list[NDArray[np.uint8]]
    ) -> ModelFile:
        """A GGUF file of parts: a header, up to the padding before the tensors' data, and each
        tensor's bytes in the header's order, contiguous and of the size that type and shape ask
        for. They are used in place, or copied where they are misaligned. `path` is for messages.
        """
    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def version(self) -> int: ...
    @property
    def alignment(self) -> int: ...
    @property
    def tensors(self) -> list[TensorInfo]: ...
    def keys(self) -> list[str]: ...
    def get(self, key: str, default: Any = None) -> Any: ...
    def value_type(self, key: str) -> str: ...
    def forget(self) -> None:
        """As that of MappedFile; nothing happens to an assembled file."""
    def fingerprint(self) -> str:
        """What tells a model from others of its shape: 64 hex digits."""

class Runner:
    """A model on a backend, and what its sessions share to advance."""

    def __init__(self, file: ModelFile, threads: int = 0, device: str = "cpu") -> None:
        """`device` is "cpu", "cuda" or "cuda:1" for the second GPU.

        UnsupportedError where a GPU cannot be used, ValueError for a device that is not there,
        MemoryError where the model does not fit into the GPU's memory.
        """
    @property
    def device(self) -> str:
        """Such as "cpu avx2" or "cuda:0 NVIDIA H100 80GB HBM3"."""
    @property
    def arch(self) -> str: ...
    @property
    def n_layer(self) -> int: ...
    @property
    def n_embd(self) -> int: ...
    @property
    def n_vocab(self) -> int: ...
    @property
    def carry_width(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def state_parts(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes of what makes up each layer's part of a state, in order."""
    def session(self) -> Session: ...

class Logits(Enum):
    """Those that a feed returns."""

    none = 0
    last = 1
    all = 2

class Session:
    # Logits and states are float32.
    def feed(
        self, tokens: list[int], logits: Logits, progress: Callable[[int], object] | None = None
    ) -> bytearray:
        """Feeds all tokens or, where `progress` or a signal handler raises, none."""
    def hidden(
        self,
        tokens: list[int],
        layers: list[int],
        progress: Callable[[int], object] | None = None,
    ) -> bytearray:
        """As `feed`; gives the residual stream when so many layers have run, [layers, tokens,
        n_embd]."""
    def inputs(
        self,
        tokens: list[int],
        tensors: list[str],
        progress: Callable[[int], object] | None = None,
    ) -> bytearray:
        """As `feed`; gives what matrices multiply on the way: of each of `tensors` [tokens, its
        columns], one after the other.

        ValueError for a tensor that the file lacks, and for one that no product reads as the file
        has it, such as a transposed one.
        """
    def section_inputs(
        self,
        tokens: list[int],
        tensors: list[str],
        begin: int,
        end: int,
        residual: NDArray[np.float32],
        carry: NDArray[np.float32],
    ) -> bytearray:
        """As `inputs`, of the layers from `begin` to before `end` alone, and of the head with end =
        n_layer. `residual` [tokens, n_embd] holds what `begin` reads, unless that is 0, and becomes
        what `end` reads. `carry` [tokens, carry_width] is what layer 0 leaves to all later ones:
        written from there, else read. The states of other layers stay as they are.
        """
    @property
    def tokens(self) -> int:
        """Fed since the session was reset or its state was set."""
    def logits(self) -> bytearray:
        """After the last token fed."""
    def get_state(self) -> bytearray: ...
    def get_output(self) -> bytearray:
        """[n_embd] of the last token fed, from which the head makes its logits."""
    def set_state(self, state: bytearray, output: bytearray = ...) -> None:
        """With an output, its token counts as fed: there are logits after it."""
    def reset(self) -> None: ...
    def fork(self) -> Session: ...
    def rewind(self, to: Session) -> None:
        """Goes to where another session of the same runner stands."""

@overload
def feed_together(
    parts: Sequence[tuple[Session, list[int], Logits]],
    progress: Callable[[int], object] | None = None,
    stay: Literal[False] = False,
) -> bytearray:
    """Feeds several sessions of one runner in the same steps; returns what each part asked for,
    one after the other."""

@overload
def feed_together(
    parts: Sequence[tuple[Session, list[int], Logits]],
    progress: Callable[[int], object] | None,
    stay: bool,
) -> bytearray | KeptLogits:
    """The same; on a GPU the logits stay there."""

class KeptLogits:
    """Logits that stay where the model lives: [rows, n_vocab]."""

    @property
    def rows(self) -> int: ...
    def row(self, row: int) -> bytearray:
        """A copy of one, [n_vocab]; ValueError for one that is not there."""
    def sample(self, choices: Sequence[tuple[Sampler, int, bytes | None]]) -> list[int]:
        """A token for each sampler, a row and what is allowed: that of `Sampler.sample` from a copy
        of the row. Errors as there, and ValueError for a sampler that occurs twice."""

class Sampler:
    """Chooses tokens by the rules that `Session.generate` states; everything is off by default."""

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        typical_p: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        penalty_decay: float = 0.996,
        penalty_window: int = 0,
        seed: int = 0,
        logit_bias: Sequence[tuple[int, float]] = [],
        banned: Sequence[int] = [],
        forced: Sequence[int] = [],
    ) -> None:
        """ValueError for an option out of range."""
    def sample(
        self,
        logits: bytearray | KeptLogits,
        row: int = 0,
        n_vocab: int = 0,
        allowed: bytes | None = None,
    ) -> int:
        """From one row of [rows, n_vocab]; 0: all are one row. Of `allowed`, bit i % 8 of byte
        i // 8 says whether token i may be chosen.

        ValueError where a logit is NaN or infinity, or no token is left.
        """
    def accept(self, token: int, weight: float = 1.0) -> None:
        """For the penalties: the token was chosen, and counts so much."""
    @property
    def seed(self) -> int:
        """With it another sampler goes on in the random sequence where this one is."""

def logprobs(
    logits: bytearray, row: int, n_vocab: int, token: int, top: int = 0
) -> list[tuple[int, float]]:
    """ln p of a token at temperature 1, and then the `top` likeliest tokens with theirs."""

class Utf8Stream:
    """Decodes UTF-8 that comes in pieces. Invalid bytes become U+FFFD."""

    def __init__(self) -> None: ...
    def push(self, data: bytes) -> str: ...
    def flush(self) -> str: ...
    @property
    def pending(self) -> int: ...

class Answer:
    """A text in the making; `generation.Answer` says what it does."""

    def __init__(self, stop: list[bytes], stop_tokens: list[int], max_tokens: int) -> None: ...
    @property
    def wants_token(self) -> bool: ...
    def ends_at(self, token: int) -> Literal["stop", "end"] | None:
        """Why the text ends at a token that is no part of it."""
    def take(self, token: int, data: bytes, last: bool = False) -> str:
        """The text that is certain after a token with these bytes. With `last` none follows."""
    def end(self, reason: str) -> str:
        """What was held back. `reason` is stop, length or end."""
    @property
    def finish_reason(self) -> Literal["stop", "length", "end"] | None: ...
    def limit(self, tokens: int) -> None:
        """Let at most so many more come."""
    @property
    def stopped_by(self) -> bytes | None:
        """The stop string that ended the text."""
    @property
    def all_given(self) -> bool: ...
    def given(self) -> tuple[int, int]:
        """Of so many tokens, and of so many bytes of the next one, the returned text consists."""

def frequency_weight(data: bytes) -> float:
    """How much a token counts for the frequency penalty: blanks and digits do not."""

def chat_templates() -> list[tuple[str, str, str, tuple[str, ...], str, str, bool, bool]]:
    """The fields of each `chat.Template`, in their order."""

def chat_template_of(file: ModelFile) -> tuple[str, str]:
    """The name of the template that suits a model, and what says so."""

def is_g1(name: str) -> bool:
    """Whether the name of a model or its file is of the series G0 or G1, which may think."""

def sentencepiece_model(data: bytes, source: str) -> tuple[list[str], list[float], list[int], bool]:
    """Texts, scores and types of the pieces, and whether other programs put a space before a text.

    Raises FormatError and UnsupportedError, beginning with `source`.
    """

class Tokenizer:
    @staticmethod
    def from_vocab(tokens: list[bytes | None]) -> Tokenizer: ...
    @staticmethod
    def from_model_file(file: ModelFile) -> Tokenizer: ...
    @property
    def kind(self) -> str: ...
    @property
    def n_vocab(self) -> int: ...
    def without_text(self) -> list[int]: ...
    def encode(self, data: bytes) -> list[int]: ...
    def token_bytes(self, id: int) -> bytes: ...
