# SPDX-License-Identifier: Apache-2.0
"""Reader of PyTorch's .pth files, without PyTorch and without running what they contain.

A .pth is a zip archive of stored entries: `<root>/data.pkl`, a pickle that describes the tensors,
and `<root>/data/<key>`, the bytes of each storage. The pickle is interpreted here, opcode by
opcode: only dictionaries and tensors can come out, no name in it is ever imported or called.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from .._core import FormatError, UnsupportedError
from .form import LEGACY_MAGIC, shown
from .source import MAX_DIMS, Checkpoint, MappedFile, MappedTensor, check_names, check_shape

ITEM_BYTES = {"f32": 4, "f16": 2, "bf16": 2}
STORAGES = {
    "torch.FloatStorage": "f32",
    "torch.HalfStorage": "f16",
    "torch.BFloat16Storage": "bf16",
}
# Storages that torch has and we do not read: known only so that the refusal can name them.
OTHER_STORAGES = {
    "torch.DoubleStorage": "float64",
    "torch.ByteStorage": "uint8",
    "torch.CharStorage": "int8",
    "torch.ShortStorage": "int16",
    "torch.IntStorage": "int32",
    "torch.LongStorage": "int64",
    "torch.BoolStorage": "bool",
    "torch.storage.UntypedStorage": "untyped",
}
OTHER_DTYPES = ("torch.float8_", "torch.uint", "torch.float4_", "torch.int", "torch.complex")

ORDERED_DICT = "collections.OrderedDict"
TENSOR = "torch._utils._rebuild_tensor_v2"
TENSOR_WITH_DTYPE = "torch._utils._rebuild_tensor_v3"
PARAMETER = "torch._utils._rebuild_parameter"
FUNCTIONS = (ORDERED_DICT, TENSOR, TENSOR_WITH_DTYPE, PARAMETER)

# What a file may have at most (docs/security.md). The pickle of a model of 14 billion weights has
# 200,000 bytes and 50,000 opcodes, and the directory of its archive as many bytes.
MAX_PICKLE = 1 << 24
MAX_OPCODES = 1 << 20
MAX_DIRECTORY = 1 << 23
MAX_KEY = 1 << 32  # of a dict or of the memo: larger numbers can be chosen to have equal hashes


def read_pth(path: Path) -> Checkpoint:
    """Open a .pth file. No value is read yet; the tensors are views of the mapped file.

    Raises FormatError where the file is damaged or holds more than tensors, UnsupportedError for
    the format before torch 1.6, big-endian files, files that the `rwkv` package converted, and
    tensors that are not float32, float16 or bfloat16, OSError where it cannot be opened.
    """
    file = MappedFile(path)
    if file.read(0, len(LEGACY_MAGIC)) == LEGACY_MAGIC:
        raise UnsupportedError(
            f"{path}: written in the format of torch before 1.6; "
            "load and save it once with a newer torch: torch.save(torch.load(f), f)"
        )
    archive = _Archive(file)
    if archive.read("byteorder", missing=b"little", most=64) != b"little":
        raise UnsupportedError(f"{path}: a big-endian file, only little-endian ones are read")
    pickle = archive.read("data.pkl", most=MAX_PICKLE)
    try:
        top = _Pickle(pickle).run()
    except FormatError as error:
        raise FormatError(f"{path}: data.pkl: {error}") from None
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise FormatError(f"{path}: data.pkl: malformed pickle ({error})") from None
    refs = _state_dict(path, top)
    for name, ref in refs.items():
        check_shape(f"{path}: tensor {name!r}", ref.shape)
    # Some share bytes, as a head that is the embedding; strides of 0 would let them claim any size.
    claimed = sum(
        math.prod(ref.shape) * ITEM_BYTES.get(ref.storage.dtype, 1) for ref in refs.values()
    )
    if claimed > 2 * file.size:
        raise FormatError(f"{path}: tensors of {claimed} bytes in a file of {file.size}")
    return Checkpoint(path, {name: _tensor(archive, name, ref) for name, ref in refs.items()})


def _state_dict(path: Path, top: object) -> dict[str, _TensorRef]:
    if isinstance(top, dict) and isinstance(top.get("state_dict"), dict):
        top = top["state_dict"]
    if not isinstance(top, dict):
        raise FormatError(f"{path}: holds one {_kind(top)}, expected a dict of tensors")
    if "_strategy" in top or "_rescale_layer" in top:
        raise UnsupportedError(
            f"{path}: converted by the `rwkv` package for the strategy "
            f"{shown(top.get('_strategy'))}: the embedding in it is already normalised and the "
            "weights of that norm are left out, so the model cannot be restored; "
            "use the original .pth"
        )
    for name, value in top.items():
        if not isinstance(name, str) or not isinstance(value, _TensorRef):
            raise FormatError(f"{path}: entry {shown(name)} is a {_kind(value)}, expected a tensor")
    if not top:
        raise FormatError(f"{path}: holds no tensors")
    check_names(path, top)
    return top


def _kind(value: object) -> str:
    return "tensor" if isinstance(value, _TensorRef) else type(value).__name__


def _tensor(archive: _Archive, name: str, ref: _TensorRef) -> MappedTensor:
    """Check that all of the tensor lies in its storage, and the storage in the file."""
    where = f"{archive.path}: tensor {name!r}"
    storage = ref.storage
    if storage.dtype not in ITEM_BYTES:
        raise UnsupportedError(
            f"{where} is {ref.dtype or storage.dtype}, expected float32, float16 or bfloat16"
        )
    numbers = (storage.numel, ref.offset, *ref.strides)
    if any(n < 0 for n in numbers) or len(ref.shape) != len(ref.strides):
        raise FormatError(
            f"{where}: impossible shape {ref.shape} with strides {shown(ref.strides)}"
        )
    offset, size = archive.find(f"data/{storage.key}", where)
    if size != storage.numel * ITEM_BYTES[storage.dtype]:
        raise FormatError(
            f"{where}: its storage {shown(storage.key)} has {size} bytes, "
            f"expected {shown(storage.numel)} values of {storage.dtype}"
        )
    empty = 0 in ref.shape
    # What is not gone along may have any stride, also one that numpy cannot hold.
    strides = tuple(
        0 if n == 1 or empty else stride for n, stride in zip(ref.shape, ref.strides, strict=True)
    )
    last = ref.offset + sum((n - 1) * stride for n, stride in zip(ref.shape, strides, strict=True))
    if not empty and last >= storage.numel:
        raise FormatError(
            f"{where}: shape {ref.shape} with strides {shown(ref.strides)} from "
            f"{shown(ref.offset)} reaches value {shown(last)} of a storage of {storage.numel}"
        )
    start = offset + (0 if empty else ref.offset * ITEM_BYTES[storage.dtype])
    data = archive.file.view(storage.dtype, start, ref.shape, strides)
    return MappedTensor(name, storage.dtype, data, archive.file)


# ---- the zip archive ----------------------------------------------------------------------------


class _Archive:
    """Where the entries of a zip file lie. Checksums are not looked at: torch may leave them 0."""

    def __init__(self, file: MappedFile) -> None:
        self.file, self.path = file, file.path
        try:
            # Of the file that is mapped, and not of one that has taken its name.
            with zipfile.ZipFile(cast(io.BufferedReader, _Bytes(file))) as archive:
                infos = archive.infolist()
        except FormatError:
            raise
        except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError) as error:
            raise FormatError(
                f"{self.path}: not a whole zip archive ({error}); is the download complete?"
            ) from None
        self.entries = {info.filename: info for info in infos}
        if len(self.entries) != len(infos):
            raise FormatError(f"{self.path}: the zip archive has two entries of one name")
        # The root folder is named after the file as it was called when it was saved.
        roots = [name.removesuffix("data.pkl") for name in self.entries if _is_main(name)]
        if len(roots) != 1:
            raise FormatError(f"{self.path}: {len(roots)} entries named data.pkl, expected one")
        self.root = roots[0]

    def find(self, name: str, where: str) -> tuple[int, int]:
        """Offset in the file and size of an entry's bytes."""
        info = self.entries.get(self.root + name)
        if info is None:
            raise FormatError(f"{where}: the archive has no entry {shown(self.root + name)}")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise FormatError(f"{where}: entry {shown(name)} is compressed or encrypted")
        # The local header repeats the name and has an extra field of its own; it knows no sizes.
        start = info.header_offset
        header = self.file.read(start, 30) if start >= 0 else b""
        if header[:4] != b"PK\3\4" or len(header) < 30:
            raise FormatError(f"{where}: no local header of entry {shown(name)} at byte {start}")
        name_length, extra_length = struct.unpack_from("<HH", header, 26)
        offset = start + 30 + name_length + extra_length
        if offset + info.file_size > self.file.size:
            raise FormatError(
                f"{where}: entry {shown(name)} ends at byte {offset + info.file_size}, "
                f"the file has {self.file.size}"
            )
        return offset, info.file_size

    def read(self, name: str, *, most: int, missing: bytes | None = None) -> bytes:
        if missing is not None and self.root + name not in self.entries:
            return missing
        offset, size = self.find(name, str(self.path))
        if size > most:
            raise FormatError(f"{self.path}: {name} has {size} bytes, expected at most {most}")
        return self.file.read(offset, size)


class _Bytes(io.RawIOBase):
    """A mapped file as `zipfile` wants one; it reads the whole directory of an archive at once."""

    def __init__(self, file: MappedFile) -> None:
        self.file, self.at = file, 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.file.size}[whence]
        if start + offset < 0:
            raise OSError("a place before the file")  # as of a file that is too short
        self.at = start + offset
        return self.at

    def read(self, count: int = -1) -> bytes:
        left = max(0, self.file.size - self.at)
        count = left if count < 0 else min(count, left)
        if count > MAX_DIRECTORY:
            raise FormatError(
                f"{self.file.path}: the zip archive has a directory of {count} bytes, "
                f"expected at most {MAX_DIRECTORY}"
            )
        data = self.file.read(self.at, count)
        self.at += count
        return data


def _is_main(name: str) -> bool:
    return name == "data.pkl" or (name.endswith("/data.pkl") and name.count("/") == 1)


# ---- the pickle ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Global:
    """A name that the pickle asks for; it stays a name."""

    name: str


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str
    numel: int


@dataclass(frozen=True)
class _TensorRef:
    """A tensor as described, not yet checked. All numbers count values, not bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str | None = None  # where the pickle names one apart from the storage


# What the opcodes push or consume; None for a count means everything above the last MARK.
LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTIES = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE": None, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
FILLS = {"SETITEM": 2, "SETITEMS": None, "APPEND": 1, "APPENDS": None}


class _Stream(io.BytesIO):
    """A pickle. No line of one that holds tensors has an escape, and pickletools warns of some."""

    def readline(self, size: int | None = -1) -> bytes:
        line = super().readline(size)
        if b"\\" in line:
            raise ValueError(f"a backslash in {shown(line)}")
        return line


class _Pickle:
    """Interpreter of the opcodes that torch writes; any other is an error."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below each MARK
        self.memo: dict[int, Any] = {}

    def run(self) -> object:
        for count, (opcode, arg, position) in enumerate(pickletools.genops(_Stream(self.data))):
            name = opcode.name
            if count == MAX_OPCODES:
                raise FormatError(f"more than {MAX_OPCODES} opcodes")
            if name == "STOP":
                return self.stack.pop()
            if name in LITERALS:
                self.stack.append(arg)
            elif name in CONSTANTS:
                self.stack.append(CONSTANTS[name])
            elif name in EMPTIES:
                self.stack.append(EMPTIES[name]())
            elif name in TUPLES:
                items = self.pop(TUPLES[name])
                self.stack.append(tuple(items))
            elif name in FILLS:
                self.fill(self.pop(FILLS[name]))
            elif (action := ACTIONS.get(name)) is not None:
                action(self, arg)
            elif name not in ("PROTO", "FRAME"):
                raise FormatError(f"opcode {name} at byte {position} has no place among tensors")
        raise FormatError("the pickle does not end")

    def pop(self, count: int | None) -> list[Any]:
        if count is None:
            items, self.stack = self.stack, self.outer.pop()
            return items
        start = len(self.stack) - count
        if start < 0:
            raise IndexError("stack underflow")
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def fill(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict) and len(items) % 2 == 0:
            if not all(isinstance(key, str) or _is_small(key) for key in items[::2]):
                raise TypeError("a key that is no string or small number")
            target.update(zip(items[::2], items[1::2], strict=True))
        elif isinstance(target, list):
            target.extend(items)
        else:
            raise TypeError("items for something that is no dict or list")

    def mark(self, _: Any) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def put(self, index: Any) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def get(self, index: Any) -> None:
        self.stack.append(self.memo[index])

    def ask(self, arg: Any) -> None:
        """GLOBAL has module and name as its argument, STACK_GLOBAL on the stack."""
        name = arg.replace(" ", ".") if arg is not None else ".".join(self.pop(2))
        known = name in FUNCTIONS or name in STORAGES or name in OTHER_STORAGES
        if not known and not name.startswith(OTHER_DTYPES):
            raise FormatError(f"asks for {shown(name)}; only tensors are read from a .pth")
        self.stack.append(_Global(name))

    def storage(self, _: Any) -> None:
        kind, storage, key, _, numel = self.stack.pop()
        proper = isinstance(storage, _Global) and isinstance(key, str) and type(numel) is int
        if kind != "storage" or not proper:
            raise TypeError("a persistent id that is not a storage")
        dtype = STORAGES.get(storage.name) or OTHER_STORAGES.get(storage.name)
        if dtype is None:
            raise TypeError(f"a storage of {storage.name}")
        self.stack.append(_Storage(dtype, key, numel))

    def reduce(self, _: Any) -> None:
        function, args = self.pop(2)
        name = function.name if isinstance(function, _Global) else type(function).__name__
        if name == ORDERED_DICT and args == ():
            self.stack.append({})
        elif name in (TENSOR, TENSOR_WITH_DTYPE):
            self.stack.append(_tensor_ref(args, name == TENSOR_WITH_DTYPE))
        elif name == PARAMETER and isinstance(args[0], _TensorRef):
            self.stack.append(args[0])
        else:
            raise FormatError(f"calls {name!r}; only tensors are read from a .pth")

    def build(self, _: Any) -> None:
        # Attributes of a dict, as `state_dict()` adds them; we have no use for them.
        self.pop(1)
        if not isinstance(self.stack[-1], dict):
            raise TypeError("attributes for something that is no dict")


ACTIONS: dict[str, Callable[[_Pickle, Any], None]] = {
    "MARK": _Pickle.mark,
    "BINPUT": _Pickle.put,
    "LONG_BINPUT": _Pickle.put,
    "MEMOIZE": _Pickle.put,
    "BINGET": _Pickle.get,
    "LONG_BINGET": _Pickle.get,
    "GLOBAL": _Pickle.ask,
    "STACK_GLOBAL": _Pickle.ask,
    "BINPERSID": _Pickle.storage,
    "REDUCE": _Pickle.reduce,
    "BUILD": _Pickle.build,
}


def _is_small(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < MAX_KEY


def _tensor_ref(args: Any, with_dtype: bool) -> _TensorRef:
    storage, offset, shape, strides = args[:4]
    if not isinstance(storage, _Storage):
        raise TypeError("a tensor without a storage")
    for sizes in (shape, strides):
        if not isinstance(sizes, tuple) or len(sizes) > MAX_DIMS:
            found = f"{len(sizes)} dimensions" if isinstance(sizes, tuple) else _kind(sizes)
            raise TypeError(f"a tensor with {found} for a shape, expected at most {MAX_DIMS}")
    if any(type(n) is not int for n in (offset, *shape, *strides)):
        raise TypeError("a tensor whose shape is not made of numbers")
    dtype = args[-1] if with_dtype else None
    name = dtype.name.removeprefix("torch.") if isinstance(dtype, _Global) else None
    return _TensorRef(storage, offset, shape, strides, name)
