# SPDX-License-Identifier: Apache-2.0
"""Fetching a model's file into the hub's cache (cache.py), which other programs share."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..files.form import amount
from ..files.output import OutputFile, sync_folder
from .cache import cache_folder, cached, offline, repository_folder
from .names import HubError, Name, parse

if TYPE_CHECKING:
    from .remote import Remote

Progress = Callable[[int, int], object]  # bytes that are here, bytes in all
# So much must have come before a try counts as one that brought something.
SOMETHING = 1 << 16


def pull(text: str, *, progress: Progress | None = None) -> Path:
    """Bring a model's file here, and return its path.

    `text` is a name such as "g1:0.4b", "hf:org/repo/file@revision" or "ms:org/repo/file". The file
    lies in the cache of the Hugging Face hub, or in one of the same layout for ModelScope. What is
    there already is used. A download that was stopped goes on where it stopped. `progress` gets the
    number of bytes that are here and of all; it may raise to stop.

    HF_TOKEN, HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_HUB_OFFLINE and HTTPS_PROXY mean what they mean
    to the hub's own programs.

    Raises ValueError for what is no name, or names no file (the message lists the repository's);
    HubError, an OSError, where the hub refuses, cannot be reached, or sends what it did not
    announce; OSError where the disk is full or another program is fetching the file.
    """
    name = parse(text)
    if name is None:
        raise ValueError(f"{text}: no name of a model, such as g1:0.4b or hf:org/repo/file")
    here = cached(name)
    if here is not None and (name.pinned or offline()):
        return here
    if offline():
        folder = cache_folder(name.source)
        raise HubError(f"{text}: not in {folder}, and HF_HUB_OFFLINE is set")
    from . import remote  # urllib is slow to import

    if not name.file:
        files = remote.candidates(name)
        raise ValueError(f"{text}: names no file of its repository, which has\n{files}")
    found = remote.describe(name)
    folder = repository_folder(name)
    blob = folder / "blobs" / found.digest
    with _locked(name, found.digest):
        if not blob.is_file() or blob.stat().st_size != found.size:
            _fetch(name, found, blob, progress)
        return _snapshot(name, found, folder, blob)


@contextlib.contextmanager
def _locked(name: Name, digest: str) -> Iterator[None]:
    """While no other program fetches the same bytes: the hub's own ones take the same lock."""
    folder = cache_folder(name.source) / ".locks" / repository_folder(name).name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{digest}.lock"
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                text = f"{name.text}: another program is fetching it; it holds {path}"
                raise HubError(text) from None
            except OSError:  # a file system without locks
                pass
            if not os.fstat(number).st_nlink:  # removed by who held it
                continue
            yield
            return
        finally:
            os.close(number)


class Part:
    """The beginning of a file, which stays on the disk whatever ends its writing."""

    def __init__(self, path: Path, digest: str, size: int) -> None:
        import hashlib

        self.path, self.size, self._expected = path, size, digest
        if len(digest) == 64:
            self._empty = hashlib.sha256()
        else:  # as git names a small file
            self._empty = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = open(os.open(path, flags, 0o666), "r+b", buffering=0)  # noqa: PTH123, SIM115
        self.done, self._digest = 0, self._empty.copy()
        try:
            if os.fstat(self._file.fileno()).st_size > size:
                self.begin()
            while data := self._file.read(1 << 20):
                self._digest.update(data)
                self.done += len(data)
        except BaseException:
            self._file.close()
            raise

    def begin(self) -> None:
        """Forget what came."""
        self._file.seek(0)
        self._file.truncate(0)
        self.done, self._digest = 0, self._empty.copy()

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._digest.update(data)
        self.done += len(data)

    def found(self) -> str:
        return self._digest.hexdigest()

    def become(self, blob: Path) -> None:
        os.fsync(self._file.fileno())
        self.path.replace(blob)
        sync_folder(blob.parent)

    def close(self) -> None:
        self._file.close()


def _fetch(name: Name, found: Remote, blob: Path, progress: Progress | None) -> None:
    """Write a blob. What came before is used, and what comes stays, whatever ends this."""
    blob.parent.mkdir(parents=True, exist_ok=True)
    path = blob.with_name(f"{blob.name}.incomplete")
    with contextlib.closing(Part(path, found.digest, found.size)) as part:
        free, rest = shutil.disk_usage(path.parent).free, found.size - part.done
        if free < rest:
            text = f"{name.text} needs {amount(rest)} more, {amount(free)} are free"
            raise OSError(errno.ENOSPC, text, str(path.parent))
        _go_on(name, found, part, progress)
        if part.found() != found.digest:
            path.unlink()
            raise HubError(
                f"{name.text}: the {found.size} bytes that came have the digest {part.found()}, "
                f"expected {found.digest}; they were removed"
            )
        part.become(blob)


def _go_on(name: Name, found: Remote, part: Part, progress: Progress | None) -> None:
    """Fetch what is missing, with as many requests as that takes."""
    from . import remote

    tries = 0
    while part.done < found.size:
        before, error = part.done, None
        with contextlib.closing(remote.body(name, found, part.done)) as pieces:
            while True:
                try:
                    piece = next(pieces, b"")
                except remote.NETWORK as caught:
                    if not remote.passing(caught):
                        raise
                    piece, error = b"", caught
                if piece == b"":
                    break
                if piece is None:
                    part.begin()
                    before = 0
                    continue
                if part.done + len(piece) > found.size:
                    raise HubError(f"{name.text}: more came than the {found.size} bytes announced")
                part.write(piece)
                if progress is not None:
                    progress(part.done, found.size)
        tries = 0 if part.done - before >= SOMETHING else tries + 1
        if part.done < found.size:
            if tries == remote.TRIES:
                cause = error or ConnectionError("it ends the connection early, again and again")
                raise remote.failed(name, found.url, cause) from error
            remote.pause(tries, None if error is None else remote.asked_pause(error))


def _snapshot(name: Name, found: Remote, folder: Path, blob: Path) -> Path:
    """Give a blob its name in a snapshot, and the branch its commit."""
    path = folder / "snapshots" / found.commit / name.file
    path.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(blob, path.parent)
    if not path.is_symlink() or os.readlink(path) != target:  # noqa: PTH115
        beside = path.with_name(f".{os.urandom(8).hex()}.part")
        beside.symlink_to(target)
        beside.replace(path)
    if name.source == "hf" and name.revision != found.commit:
        ref = folder / "refs" / name.revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        with OutputFile(ref) as file:
            file.write(found.commit.encode())
    return path
