# SPDX-License-Identifier: Apache-2.0
"""Beginnings that were read before: system prompts, and turns that several texts share.

What is kept is the state after each segment of a text, under a SHA-256 of everything that decides
its bits: the model, the engine, where the text began, and the tokens. The tokens stand beside it
and are compared. On disk the states are files as `State.save` writes them, and an index in SQLite
says what they are. Each row has a SHA-256 of its key and of the values in its file, so a file
counts only where it holds the very bits that were read.

A file is written beside its name and renamed, and its row follows, all in one transaction of the
index. A process that is killed in between leaves a file without a row. The next one that keeps
something removes it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
import sys
import threading
import time
import warnings
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, SupportsIndex

from . import _core
from .files.form import check_kind, shown
from .files.output import NO_LINK, PLAIN
from .generation import whole
from .model import FeedProgress, Model, Session, checked_ids
from .model_file import stamp
from .state import A_STATE, OUTPUT, State, StateShape

if TYPE_CHECKING:
    import sqlite3

FORM = 1
"""Of what a folder holds; a folder may have several."""
INDEX = "index.sqlite"
TABLE = """
CREATE TABLE IF NOT EXISTS states (
    key TEXT PRIMARY KEY, root BLOB NOT NULL, tokens BLOB NOT NULL, digest BLOB NOT NULL,
    bytes INTEGER NOT NULL, used REAL NOT NULL)
"""
OURS = re.compile(r"[0-9a-f]{64}\.state|\.[0-9a-f]{64}\.state\.[0-9a-f]{8}\.(part|old)")
# Seconds to wait for other processes, one of which may be stopped in the middle: before a text is
# read again, which seldom takes longer, and before nothing more of it is kept.
HASTE, PATIENCE = 1.0, 10.0
SOON = 60.0  # seconds in which a second use is not noted
BESIDE = 1 << 10  # bytes that an entry takes in memory beside its arrays


class Beginning(NamedTuple):
    """Of a text, up to the end of a segment."""

    key: bytes
    end: int
    """How many tokens it has."""


class Text(NamedTuple):
    """What is to be read, and where it can be found again."""

    root: bytes
    start: State | None
    tokens: array[int]
    beginnings: list[Beginning]

    def up_to(self, number: int) -> Text:
        """So many of its beginnings."""
        return self._replace(beginnings=self.beginnings[:number])

    def other(self, tokens: array[int]) -> Text:
        """Another text in one piece, from the same start."""
        import hashlib

        key = hashlib.sha256(self.root + tokens.tobytes()).digest()
        return Text(self.root, self.start, tokens, [Beginning(key, len(tokens))])


class Entry(NamedTuple):
    """What was read, and where that led."""

    root: bytes
    tokens: bytes
    state: bytearray
    output: bytearray

    @property
    def nbytes(self) -> int:
        return len(self.tokens) + len(self.state) + len(self.output) + BESIDE


class PrefixCache:
    """Texts that begin alike are read once: in this process and, with a folder, in all.

    A session that begins with it has, to the bit, what it would have read itself. Threads may share
    one, and processes a folder.
    """

    def __init__(
        self,
        folder: str | PathLike[str] | None = None,
        *,
        memory_bytes: int = 256 << 20,
        disk_bytes: int = 4 << 30,
    ) -> None:
        """Keep at most `memory_bytes` in memory and, in `folder`, `disk_bytes` on disk; what was
        used longest ago goes first.

        The folder is made where it is missing. What it holds tells what was said, so only its owner
        can read it. Raises OSError where it cannot be made, or where others could write there,
        ValueError for a budget below 0.
        """
        self._most = whole("memory_bytes", memory_bytes, 0)
        self._most_on_disk = whole("disk_bytes", disk_bytes, 0)
        self._kept: OrderedDict[bytes, Entry] = OrderedDict()
        self._noted: dict[bytes, float] = {}  # when the index learned that these are used
        self._used = 0
        self._lock = threading.Lock()
        self._folder: Path | None = None
        if folder is not None:
            check_kind("folder", folder, (str, PathLike), "a path")
            try:
                import sqlite3
            except ImportError as error:  # Python can be built without
                raise _core.UnsupportedError(f"a cache on disk needs sqlite3: {error}") from None
            self._sqlite = sqlite3
            self._folder = own_folder(Path(folder) / f"states-{FORM}")

    def read(
        self,
        session: Session,
        segments: Iterable[str | Iterable[SupportsIndex]],
        *,
        start: State | None = None,
        salt: bytes = b"",
        progress: FeedProgress | None = None,
    ) -> int:
        """Let a session begin anew, at `start` or at the very beginning, and read the segments.

        Each is a text, encoded by itself, or tokens. A segment is what a conversation adds at once:
        the system text, a turn. Where it ends, the state is kept, and there it is found again. So
        segments must be cut as texts are built: one long text may have other tokens. In the World
        vocabulary "。\\n" is a token, and a turn that ends with "。" before one that begins with
        "\\n\\n" has it not.

        Only who knows the `salt` finds what was kept with it: with a salt for each user nobody can
        tell by the time that an answer takes what others said. `progress` is that of
        `Session.read`, for the tokens that are not in the cache. When it raises, the session is
        where it was.

        Returns how many tokens came from the cache. A state that cannot be kept on disk is a
        warning. Raises ValueError for a token outside the vocabulary, FormatError where `start` is
        of another model, TypeError for arguments of another type, such as one text in place of
        several segments.
        """
        check_kind("session", session, Session, "a Session")
        text = text_of(session.model, segments, start=start, salt=salt)
        mark = session.fork()
        try:
            known = self.begin(session, text)
            done = text.beginnings[known - 1].end if known else 0
            self._read_rest(session, text, known, progress)
        except BaseException:
            session.rewind(mark)
            raise
        return done

    def begin(self, session: Session, text: Text) -> int:
        """Let a session begin anew where the longest beginning ends that is kept; returns the
        number of those up to there."""
        for i in range(len(text.beginnings), 0, -1):
            key, end = text.beginnings[i - 1]
            read = text.tokens[:end]
            kept = self._find(key, text.root, read.tobytes(), session.model)
            if kept is not None:
                before = 0 if text.start is None else text.start.tokens
                session._stand(
                    kept.state, kept.output, None if before is None else before + end, read
                )
                return i
        session.reset(text.start)
        return 0

    def keep(self, session: Session, text: Text, number: int) -> Entry:
        """Keep in memory where a session stands, which has read that many beginnings."""
        key, end = text.beginnings[number - 1]
        core = session._readable
        read = text.tokens[:end].tobytes()
        entry = Entry(text.root, read, core.get_state(), core.get_output())
        self._keep(key, entry)
        return entry

    def keep_on_disk(self, text: Text, number: int, entry: Entry, state: State) -> str | None:
        """The same on disk, where there is a folder. Returns a warning where that failed."""
        if self._folder is None:
            return None
        try:
            self._keep_on_disk(self._folder, text.beginnings[number - 1].key, entry, state)
        except (OSError, ValueError, self._sqlite.Error) as error:  # a state may hold NaN
            return f"{self._folder}: a state was not kept, so it is read again: {error}"
        return None

    def _read_rest(
        self, session: Session, text: Text, known: int, progress: FeedProgress | None
    ) -> None:
        done = start = text.beginnings[known - 1].end if known else 0
        on_disk = self._folder is not None
        for number, (_, end) in enumerate(text.beginnings[known:], known + 1):
            report = shifted(progress, done - start, len(text.tokens) - start)
            session.read(text.tokens[done:end], progress=report)
            done = end
            entry = self.keep(session, text, number)
            if on_disk and (warning := self.keep_on_disk(text, number, entry, session.state)):
                on_disk = False  # the next one would wait as long
                warnings.warn(warning, stacklevel=3)

    @property
    def used(self) -> int:
        """Bytes in memory."""
        return self._used

    # ---- in memory ------------------------------------------------------------------------------

    def _find(self, key: bytes, root: bytes, tokens: bytes, model: Model) -> Entry | None:
        with self._lock:
            entry = self._kept.get(key)
            if entry is not None:
                self._kept.move_to_end(key)
                again = time.time() - self._noted[key] > SOON
                if again:
                    self._noted[key] = time.time()
        if entry is not None and self._folder is not None and again:
            self._note_use(self._folder, key)
        if entry is None and self._folder is not None:
            entry = self._find_on_disk(self._folder, key, root, tokens, model)
            if entry is not None:
                self._keep(key, entry)
        return entry if entry is not None and entry[:2] == (root, tokens) else None

    def _keep(self, key: bytes, entry: Entry) -> None:
        if entry.nbytes > self._most:
            return
        with self._lock:
            old = self._kept.pop(key, None)
            self._used += entry.nbytes - (old.nbytes if old else 0)
            self._kept[key], self._noted[key] = entry, time.time()
            while self._used > self._most:
                gone, old = self._kept.popitem(last=False)
                self._used -= old.nbytes
                del self._noted[gone]

    # ---- on disk --------------------------------------------------------------------------------

    @contextmanager
    def _index(self, folder: Path, patience: float) -> Iterator[sqlite3.Connection]:
        """A connection for each use: it must not cross a fork, and needs no lock of ours.

        A damaged index is removed, with the error that tells; the next use begins a new one.
        """
        path = folder / INDEX
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | NO_LINK | PLAIN, 0o600))
            made = self._sqlite.connect(path, timeout=patience, isolation_level=None)
            with closing(made) as index:
                index.text_factory = partial(str, encoding="utf-8", errors="replace")
                index.execute("PRAGMA synchronous = OFF")  # states are whole or nothing anyway
                index.execute(TABLE)
                yield index
        except self._sqlite.DatabaseError as error:
            if type(error) is self._sqlite.DatabaseError:  # and not a lock, say
                for name in (f"{INDEX}-journal", INDEX):
                    (folder / name).unlink(missing_ok=True)
            raise

    def _find_on_disk(
        self, folder: Path, key: bytes, root: bytes, tokens: bytes, model: Model
    ) -> Entry | None:
        """None where there is none, and where it cannot be read or is not what was kept."""
        try:
            with self._index(folder, HASTE) as index:
                ask = "SELECT root, tokens, digest, used < ? FROM states WHERE key = ?"
                row = index.execute(ask, (time.time() - SOON, key.hex())).fetchone()
                if row is None or row[:2] != (root, tokens):
                    return None
                values = read_values(file_of(folder, key), model._shape)
                index.execute("PRAGMA busy_timeout = 0")  # what follows can be done another time
                with suppress(self._sqlite.OperationalError):
                    if values is None or digest_of(key, *values) != row[2]:
                        values = None
                        index.execute("DELETE FROM states WHERE key = ?", (key.hex(),))
                    elif row[3]:
                        update = "UPDATE states SET used = ? WHERE key = ?"
                        index.execute(update, (time.time(), key.hex()))
        except (OSError, self._sqlite.Error):
            return None
        return None if values is None else Entry(root, tokens, *values)

    def _note_use(self, folder: Path, key: bytes) -> None:
        """On disk, too, it is not the one that was used longest ago. While others write, that can
        be noted another time."""
        with suppress(OSError, self._sqlite.Error), self._index(folder, 0) as index:
            update = "UPDATE states SET used = ? WHERE key = ?"
            index.execute(update, (time.time(), key.hex()))

    def _keep_on_disk(self, folder: Path, key: bytes, entry: Entry, state: State) -> None:
        path = file_of(folder, key)
        if len(entry.state) + len(entry.output) + BESIDE > self._most_on_disk:
            return
        with self._index(folder, PATIENCE) as index:
            index.execute("BEGIN IMMEDIATE")  # nobody else writes until the end
            names = {f"{known}.state" for (known,) in index.execute("SELECT key FROM states")}
            sweep(folder, names)
            row = (key.hex(), entry.root, entry.tokens, digest_of(key, entry.state, entry.output))
            same = "SELECT 1 FROM states WHERE key = ? AND root = ? AND tokens = ? AND digest = ?"
            if index.execute(same, row).fetchone() is not None:  # another process was quicker
                index.execute("ROLLBACK")
                return
            state.save(path, replace=True)  # which may be damaged
            nbytes = path.stat().st_size
            insert = "INSERT OR REPLACE INTO states VALUES (?, ?, ?, ?, ?, ?)"
            index.execute(insert, (*row, nbytes, time.time()))
            (used,) = index.execute("SELECT TOTAL(bytes) FROM states").fetchone()
            oldest = "SELECT rowid, key, CAST(bytes AS INTEGER) FROM states ORDER BY used, rowid"
            for number, old, size in index.execute(oldest).fetchall():
                if used <= self._most_on_disk:
                    break
                index.execute("DELETE FROM states WHERE rowid = ?", (number,))
                if OURS.fullmatch(name := f"{old}.state"):
                    (folder / name).unlink(missing_ok=True)
                used -= size
            index.execute("COMMIT")


def text_of(
    model: Model,
    segments: Iterable[str | Iterable[SupportsIndex]],
    *,
    start: State | None = None,
    salt: bytes = b"",
) -> Text:
    """The tokens of all segments, and where each ends; `PrefixCache.read` says the rest."""
    import hashlib  # slow, here and below: whoever uses no cache does without

    if isinstance(segments, (str, bytes)) or not isinstance(segments, Iterable):
        raise TypeError(f"segments: found {shown(segments)}, expected a list of segments")
    check_kind("salt", salt, bytes, "bytes")
    if start is not None:
        check_kind("start", start, State, A_STATE)
        start = start.fitted(model._shape, str(model.path), model.fingerprint)
    root = root_of(model, start, salt)
    tokens, digest, found = array("i"), hashlib.sha256(root), []
    for segment in segments:
        whole = model.tokenizer.encode(segment) if isinstance(segment, str) else segment
        if ids := checked_ids(whole, model.n_vocab):
            new = array("i", ids)
            tokens += new
            digest.update(new.tobytes())
            found.append(Beginning(digest.digest(), len(tokens)))
    return Text(root, start, tokens, found)


def root_of(model: Model, start: State | None, salt: bytes) -> bytes:
    """What decides a state's bits beside the tokens, and who may know of them.

    Beside the fingerprint, which does not cover every weight, that is the size and time of the
    model's file; and the engine's own, because another build may round in another way.
    """
    begin = [] if start is None else [start.data.tobytes(), repr(start.tokens).encode()]
    if start is not None and start.output is not None:
        begin.append(start.output.tobytes())
    import hashlib

    digest = hashlib.sha256()
    for part in (
        b"rwkv-edge, form %d" % FORM,
        salt,
        model.fingerprint.encode(),
        model.stamp.encode(),
        model._core.device.encode(),
        stamp(Path(_core.__file__)).encode(),
        *begin,
    ):
        digest.update(struct.pack("<Q", len(part)) + part)
    return digest.digest()


def digest_of(key: bytes, state: bytearray, output: bytearray) -> bytes:
    import hashlib

    digest = hashlib.sha256(key)
    digest.update(state)
    digest.update(output)
    return digest.digest()


def file_of(folder: Path, key: bytes) -> Path:
    return folder / f"{key.hex()}.state"


def own_folder(path: Path) -> Path:
    """A folder that only this user can read and write, made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    if sys.platform == "win32":  # where the folder of a user is closed to others
        return path
    found = path.stat()
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        text = "others can write there, and so decide what a model has read"
        raise PermissionError(errno.EPERM, text, str(path))
    return path


def sweep(folder: Path, names: set[str]) -> None:
    """Remove what killed processes left: files of ours that the index does not know."""
    with os.scandir(folder) as entries:
        ours = [entry.name for entry in entries if OURS.fullmatch(entry.name) and entry.is_file()]
    for name in set(ours) - names:
        with suppress(PermissionError):  # on Windows, while another process reads it
            (folder / name).unlink(missing_ok=True)


def read_values(path: Path, shape: StateShape) -> tuple[bytearray, bytearray] | None:
    """The state and the output in a file of that shape, as the engine takes them; None where there
    is no such file.

    `State.load` gives the same, but numpy takes longer to import than this.
    """
    try:
        tensors = {tensor.name: tensor for tensor in _core.ModelFile(path).tensors}
    except (OSError, _core.FormatError, _core.UnsupportedError):
        return None
    layers = shape.n_layer
    expected = {name: (layers, *part) for name, part in shape.parts} | {OUTPUT: (shape.width,)}
    if {name: (x.type, x.shape) for name, x in tensors.items()} != {
        name: ("f32", each) for name, each in expected.items()
    }:
        return None
    parts = []
    for name, _ in shape.parts:
        size = tensors[name].nbytes // layers
        parts.append([tensors[name].read(size * layer, size) for layer in range(layers)])
    state = bytearray().join(rows[layer] for layer in range(layers) for rows in parts)
    return state, bytearray(tensors[OUTPUT].read(0, tensors[OUTPUT].nbytes))


def shifted(progress: FeedProgress | None, before: int, total: int) -> FeedProgress | None:
    """A progress function for a part of the tokens."""
    if progress is None:
        return None
    call = progress
    return lambda done, _: call(before + done, total)
