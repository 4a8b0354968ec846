# SPDX-License-Identifier: Apache-2.0
"""Ways to spoil a GGUF file of `tiny`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tiny
from tiny import Gguf

Change = Callable[[Gguf], object]


def put(key: str, kind: int, value: Any) -> Change:
    return lambda file: file.put(key, kind, value)


def drop(key: str) -> Change:
    return lambda file: file.drop(key)


def overwrite(target: object, **fields: Any) -> None:
    for name, value in fields.items():
        setattr(target, name, value)


def header(**fields: Any) -> Change:
    """Overrides fields of the file's header: magic, version, n_keys, n_tensors."""
    return lambda file: overwrite(file, **fields)


def tensor(of: str, **fields: Any) -> Change:
    """Overrides fields of a tensor: name, dims, n_dims, type_id, offset, data."""
    return lambda file: overwrite(file.tensor(of), **fields)


def patch(at: int, raw: bytes) -> Change:
    return lambda file: file.patches.append((at, raw))


def remove(name: str) -> Change:
    return lambda file: file.tensors.remove(file.tensor(name))


def extra(name: str) -> Change:
    return lambda file: file.tensors.append(tiny.Entry(name, [8], 0, bytes(32)))


def as_type(name: str, type_id: int, n_bytes: int) -> Change:
    return tensor(name, type_id=type_id, data=bytes(n_bytes))


def add_key(name: str | bytes, kind: int, value: bytes) -> Change:
    return lambda file: file.keys.append((name, kind, value))


def vocabulary(size: int) -> Change:
    return lambda file: tiny.put_vocabulary(file, size)
