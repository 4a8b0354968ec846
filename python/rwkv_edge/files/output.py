# SPDX-License-Identifier: Apache-2.0
"""How every file of ours is written: beside its target, which it replaces when it is whole.

At every moment the target is the old file or the new one. The new one lies in the same folder as
`.NAME.HEX.part` until then. Its writer holds a lock on it, so that the next writer can tell what a
killed one has left, and removes that.

On Windows an open file cannot be removed, so it needs no lock. A file that is mapped, as a model
is, cannot be replaced there either, but renamed: it stays as `.NAME.HEX.old` until a writer can
remove it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl

# Flags of os.open; no system has all of them.
PLAIN = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOINHERIT", "O_BINARY"))
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
AT_ONCE = getattr(os, "O_NONBLOCK", 0)  # opening a pipe that nobody writes to would never end
NAME_BYTES = 120  # of the target's name in the other's: the system's limits begin at 143
NO_FILES = {
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFLNK: "a symbolic link that leads to itself",
}


class OutputFile:
    """Context manager: `write`, and on leaving it the file takes the target's place.

    Where anything fails, the new file is removed and the target stays what it was; an OSError names
    the target. A symbolic link stays one, and the file that it leads to is replaced. The new file
    has the mode of the old one, or else `mode`, less the umask.
    """

    def __init__(self, target: Path, *, mode: int = 0o666) -> None:
        """Raises OSError where the target is a folder, a device or a pipe, or its folder is
        missing."""
        self.target = target
        self._path = Path(os.path.realpath(target))
        self._mode = mode
        self._old: os.stat_result | None = None
        self._fd = -1
        if not self._path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no such folder", str(self._path.parent))
        with contextlib.suppress(FileNotFoundError), self._named():
            self._old = self._path.lstat()
        if self._old is None or stat.S_ISREG(self._old.st_mode):
            return
        if stat.S_ISDIR(self._old.st_mode):
            raise IsADirectoryError(errno.EISDIR, "is a folder", str(target))
        what = NO_FILES.get(stat.S_IFMT(self._old.st_mode), "no file")
        text = f"is {what}; only a regular file can be replaced"
        raise OSError(errno.EINVAL, text, str(target))

    def __enter__(self) -> OutputFile:
        prefix = f".{shortened(self._path.name)}."
        sweep(self._path.parent, prefix)
        self._part = self._path.with_name(f"{prefix}{os.urandom(4).hex()}.part")
        # An interrupt may fall between any two steps; then the end of the process removes it.
        self._remove = weakref.finalize(self, remove, self._part, os.getpid())
        try:
            with self._named():
                self._open()
        except BaseException:
            self._discard()
            raise
        return self

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK | PLAIN
        if sys.platform == "win32":
            self._fd = os.open(self._part, flags, self._mode)
            return
        while self._fd < 0:
            self._fd = os.open(self._part, flags, self._mode if self._old is None else 0o600)
            with contextlib.suppress(OSError):  # a file system without locks; nothing is swept
                fcntl.flock(self._fd, fcntl.LOCK_EX)
            if not os.fstat(self._fd).st_nlink:  # swept before it was locked
                self._close()
        if self._old is not None:
            with contextlib.suppress(PermissionError):
                os.fchown(self._fd, self._old.st_uid, self._old.st_gid)
            os.fchmod(self._fd, stat.S_IMODE(self._old.st_mode) & 0o777)

    def write(self, data: bytes | memoryview) -> None:
        """Write bytes, all of them."""
        rest = memoryview(data)
        while rest:
            with self._named():
                rest = rest[os.write(self._fd, rest) :]

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                with self._named():
                    os.fsync(self._fd)
                    if sys.platform == "win32":
                        self._close()
                        replace_mapped(self._part, self._path)
                        return
                    self._part.replace(self._path)  # and then let go of the lock
                    self._close()
                    sync_folder(self._path.parent)
        finally:
            self._discard()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)

    def _discard(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                self._close()
        self._remove()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """An error of the system names the target, and not what lies beside it."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.target)) from error


def shortened(name: str) -> str:
    while len(os.fsencode(name)) > NAME_BYTES:
        name = name[:-1]
    return name


def remove(path: Path, process: int) -> None:
    if os.getpid() == process:  # and not in a child that was forked
        with contextlib.suppress(OSError):
            path.unlink()


def sweep(folder: Path, prefix: str) -> None:
    """Remove new files whose writers are gone."""
    pattern = re.compile(re.escape(prefix) + r"[0-9a-f]{8}\.(part|old)")
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if pattern.fullmatch(entry.name):
                remove_unlocked(folder / entry.name)


def remove_unlocked(path: Path) -> None:
    with contextlib.suppress(OSError):  # locked, or another user's
        if sys.platform == "win32":
            path.unlink()
            return
        fd = os.open(path, os.O_RDONLY | AT_ONCE | NO_LINK | PLAIN)
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        finally:
            os.close(fd)


def replace_mapped(part: Path, target: Path) -> None:
    """Rename a file to `target`, which may be mapped; then it is renamed first.

    So there is a moment without a target, and where the second renaming fails the first is undone.
    """
    try:
        part.replace(target)
    except PermissionError:
        old = part.with_suffix(".old")
        target.rename(old)
        try:
            part.rename(target)
        except OSError:
            old.rename(target)
            raise
        with contextlib.suppress(PermissionError):
            old.unlink()


def sync_folder(folder: Path) -> None:
    """Let a new name outlive a power failure, where the system can do that."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | PLAIN)
    except PermissionError:  # a folder that may be written and not read
        return
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)
