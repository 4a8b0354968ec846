# SPDX-License-Identifier: Apache-2.0
"""States that clients keep and come back to. A state never changes, and belongs to its caller.

With a folder, each is a file as `State.save` writes it, and what is known of it stands in the
file's text as JSON. So a server that was killed finds them all again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import secrets
import tempfile
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import _core
from ..model import Model
from ..prefix_cache import own_folder
from ..state import State
from .fields import Refused

ID = re.compile(r"st_[A-Za-z0-9_-]{22}")
FORM = 1
"""Of what a folder holds."""
BESIDE = 1 << 16  # bytes of a file beside its values
MOST_NAME = 200


@dataclass(frozen=True)
class Kept:
    """What is known of a state."""

    id: str
    owner: str
    tokens: int | None
    """That were read since the beginning; None where a file did not say."""
    text_tail: str
    """The last words of the text."""
    parent: str | None
    bytes: int
    created: float
    expires: float | None
    name: str | None = None

    def seen(self, model: Model) -> dict[str, Any]:
        """As a client sees it."""
        found = {key: value for key, value in asdict(self).items() if key != "owner"}
        for key in ("created", "expires"):
            found[key] = None if found[key] is None else int(found[key])
        return {"object": "state", **found, "fingerprint": model.fingerprint}


class States:
    """Threads may share one. Its methods may take a while: not for an event loop's thread."""

    def __init__(
        self,
        model: Model,
        folder: Path | None = None,
        *,
        memory_bytes: int = 1 << 30,
        disk_bytes: int = 16 << 30,
    ) -> None:
        """Keep at most `memory_bytes` in memory and, in `folder`, `disk_bytes` on disk; what was
        used longest ago goes first. Without a folder it is forgotten then.

        Raises OSError for a folder that cannot be made, or where others could write.
        """
        self._model = model
        self._most, self._most_on_disk = memory_bytes, disk_bytes
        self._lock = threading.RLock()
        self._known: OrderedDict[str, Kept] = OrderedDict()  # the longest unused first
        self._loaded: OrderedDict[str, State] = OrderedDict()
        self._folder = None if folder is None else own_folder(folder / f"minds-{FORM}")
        if self._folder is not None:
            self._find(self._folder)

    def _find(self, folder: Path) -> None:
        """What another run of the server has left."""
        found = []
        for path in folder.glob("st_*.state"):
            with suppress(OSError, ValueError, TypeError, _core.UnsupportedError):
                file = _core.ModelFile(path)
                kept = Kept(**json.loads(file.get("rwkv_edge.state.text")))
                mark = file.get("rwkv_edge.state.fingerprint")
                if mark == self._model.fingerprint and path.name == f"{kept.id}.state":
                    found.append(kept)
        for kept in sorted(found, key=lambda kept: kept.created):
            self._known[kept.id] = kept

    @property
    def count(self) -> int:
        return len(self._known)

    @property
    def memory(self) -> int:
        """Bytes."""
        return sum(size_of(state) for state in list(self._loaded.values()))

    def put(
        self,
        owner: str,
        state: State,
        *,
        tail: str = "",
        parent: str | None = None,
        name: str | None = None,
        ttl: float | None = None,
        id: str | None = None,
    ) -> Kept:
        """Keep a state of the model; `id` is one of `new_id`. Raises Refused where it cannot be
        written, or is no state that a text can go on from."""
        if not all(np.isfinite(x).all() for x in (state.data, state.output) if x is not None):
            raise Refused(500, "the state holds NaN or infinity", kind="server_error")
        now = time.time()
        kept = Kept(
            id=id or new_id(),
            owner=owner,
            tokens=state.tokens,
            text_tail=tail,
            parent=parent,
            bytes=size_of(state),
            created=now,
            expires=None if ttl is None else now + ttl,
            name=name,
        )
        state = dataclasses.replace(state, text=None, source="a stored state")
        if self._folder is not None:
            told = dataclasses.replace(state, text=json.dumps(asdict(kept)))
            try:
                told.save(self._folder / f"{kept.id}.state")
            except OSError as error:
                text = f"the state could not be written: {os.strerror(error.errno or 0)}"
                raise Refused(503, text, kind="server_error") from None
        with self._lock:
            self._known[kept.id] = kept
            self._loaded[kept.id] = state
            self._forget(now)
        return kept

    def _forget(self, now: float) -> None:
        for each in [k for k in self._known.values() if k.expires is not None and k.expires < now]:
            self._drop(each.id)
        on_disk = self._folder is not None
        while len(self._loaded) > 1 and self.memory > self._most:
            oldest = next(iter(self._loaded))
            del self._loaded[oldest]
            if not on_disk:
                self._drop(oldest)
        if on_disk:
            used = sum(kept.bytes + BESIDE for kept in self._known.values())
            while len(self._known) > 1 and used > self._most_on_disk:
                oldest, kept = next(iter(self._known.items()))
                used -= kept.bytes + BESIDE
                self._drop(oldest)

    def _drop(self, id: str) -> None:
        self._known.pop(id, None)
        self._loaded.pop(id, None)
        if self._folder is not None:
            (self._folder / f"{id}.state").unlink(missing_ok=True)

    def get(self, owner: str, id: str) -> tuple[Kept, State]:
        """Raises Refused where the caller has no such state."""
        with self._lock:
            kept = self._kept(owner, id)
            self._known.move_to_end(id)
            state = self._loaded.get(id)
            if state is not None:
                self._loaded.move_to_end(id)
                return kept, state
        assert self._folder is not None
        try:
            state = State.load(self._folder / f"{id}.state")
        except (OSError, ValueError, _core.UnsupportedError):
            with self._lock:
                self._known.pop(id, None)
            raise missing(id) from None
        state = dataclasses.replace(state, text=None, source="a stored state")
        with self._lock:
            self._loaded[id] = state
            self._forget(time.time())
        return kept, state

    def _kept(self, owner: str, id: str) -> Kept:
        kept = self._known.get(id)
        gone = kept is not None and kept.expires is not None and kept.expires < time.time()
        if kept is None or kept.owner != owner or gone:
            raise missing(id)
        return kept

    def facts(self, owner: str, id: str) -> Kept:
        with self._lock:
            return self._kept(owner, id)

    def of(self, owner: str) -> list[Kept]:
        """The caller's own, the newest first."""
        now = time.time()
        with self._lock:
            own = [kept for kept in self._known.values() if kept.owner == owner]
        fresh = [kept for kept in own if kept.expires is None or kept.expires >= now]
        return sorted(fresh, key=lambda kept: kept.created, reverse=True)

    def delete(self, owner: str, id: str) -> None:
        with self._lock:
            self._kept(owner, id)
            self._drop(id)

    # ---- files ----------------------------------------------------------------------------------

    def file(self, owner: str, id: str) -> bytes:
        """A state as a file, for this server or any other program that has its model."""
        _, state = self.get(owner, id)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "state"
            state.save(path)
            return path.read_bytes()

    @property
    def most_upload(self) -> int:
        """Bytes of a file that can be a state of the model."""
        shape = self._model._shape
        return 4 * (shape.n_layer * shape.layer_size + shape.width) + (1 << 20)

    def upload(self, owner: str, data: bytes, *, name: str | None, ttl: float | None) -> Kept:
        """Keep the state in a file. Raises Refused for anything else."""
        if not data.startswith(b"GGUF"):
            raise Refused(400, "the body is no saved state: it does not begin with GGUF")
        model = self._model
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "state"
            path.write_bytes(data)
            try:
                state = State.load(path)
                state = state.fitted(model._shape, "the model", model.fingerprint)
            except (ValueError, _core.UnsupportedError, MemoryError) as error:
                # no path of the server leaves it
                text = str(error).replace(str(path), "the file")
                raise Refused(400, text, code="not_a_state") from None
        state = dataclasses.replace(state, fingerprint=model.fingerprint, model=model.path.name)
        return self.put(owner, state, name=name, ttl=ttl)


def new_id() -> str:
    return f"st_{secrets.token_urlsafe(16)}"


def size_of(state: State) -> int:
    return state.data.nbytes + (0 if state.output is None else state.output.nbytes)


def missing(id: str) -> Refused:
    shown = id if ID.fullmatch(id) else "that id"
    return Refused(404, f"no state {shown}", param="state", code="state_not_found")
