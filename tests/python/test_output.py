# SPDX-License-Identifier: Apache-2.0
"""Files of ours take the place of others whole, and of nothing that is no file."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rwkv_edge import State
from rwkv_edge.files.output import OutputFile, replace_mapped
from rwkv_edge.state import StateShape


def write(target: Path, data: bytes = b"new", mode: int = 0o666) -> None:
    with OutputFile(target, mode=mode) as file:
        file.write(data)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def make_null(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (make_null, "is a device"),
        (make_fifo, "is a pipe"),
        (make_socket, "is a socket"),
        (Path.mkdir, "is a folder"),
        (lambda path: path.symlink_to(path), "is a symbolic link that leads to itself"),
    ],
    ids=["device", "pipe", "socket", "folder", "loop"],
)
@pytest.mark.posix("pipes, sockets and devices with names")
def test_only_files_are_replaced(
    tmp_path: Path, make: Callable[[Path], None], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket has 100 characters at most
    target = Path("target")
    make(target)
    before = target.lstat()
    with pytest.raises(OSError, match=what) as caught:
        write(target)
    assert caught.value.filename == str(target)
    assert (target.lstat().st_mode, target.lstat().st_rdev) == (before.st_mode, before.st_rdev)
    assert names(tmp_path) == ["target"]


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_followed(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "other").mkdir()
    file, link = tmp_path / "other" / "file", tmp_path / "link"
    link.symlink_to("other/file")
    if exists:
        file.write_bytes(b"old")
    write(link)
    assert link.is_symlink()
    assert file.read_bytes() == b"new"
    assert (names(tmp_path), names(file.parent)) == (["link", "other"], ["file"])


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
@pytest.mark.posix("modes of files")
def test_an_existing_file_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")
    target.chmod(mode)
    with OutputFile(target) as file:
        (part,) = tmp_path.glob(".target.*.part")
        assert mode_of(part) == mode  # nobody else may read it meanwhile
        file.write(b"new")
    assert (target.read_bytes(), mode_of(target)) == (b"new", mode)


@pytest.mark.posix("modes of files")
def test_the_mode_of_a_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "a")
        write(tmp_path / "b", mode=0o600)
    finally:
        os.umask(before)
    assert (mode_of(tmp_path / "a"), mode_of(tmp_path / "b")) == (0o640, 0o600)


@pytest.mark.posix("modes of files")
def test_a_saved_state_is_private(tmp_path: Path) -> None:
    shape = StateShape("rwkv4", 1, (("aa", (4,)),))
    path = tmp_path / "state"
    State(np.zeros(4, np.float32), shape).save(path)
    assert mode_of(path) == 0o600


@pytest.mark.parametrize("name", ["x" * 250, "é" * 125, "*[a]?"])
def test_names(tmp_path: Path, name: str) -> None:
    for data in (b"old", b"new"):
        write(tmp_path / name, data)
    assert names(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == b"new"


KILLED = """
import os, signal, sys
from pathlib import Path
from rwkv_edge.files.output import OutputFile
with OutputFile(Path(sys.argv[1])) as file:
    file.write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("name", ["target", "y" * 250])
@pytest.mark.posix("SIGKILL")
def test_what_a_killed_writer_left_is_swept(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    for _ in range(2):
        subprocess.run([sys.executable, "-c", KILLED, target], check=False)
        assert len(names(tmp_path)) == 1  # the second sweeps what the first left
    others = [f".{name[:100]}.part", ".other.0123abcd.part", f".{name[:100]}.0123abcX.part"]
    for other in others:
        (tmp_path / other).touch()
    write(target)
    assert names(tmp_path) == sorted([name, *others])


def test_a_writer_that_lives_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with OutputFile(target) as first:
        first.write(b"first")
        write(target, b"second")
        assert target.read_bytes() == b"second"
        assert len(names(tmp_path)) == 2
    assert (target.read_bytes(), names(tmp_path)) == (b"first", ["target"])


@pytest.mark.posix("fork")
def test_a_child_leaves_the_file_to_its_writer(tmp_path: Path) -> None:
    program = """
import os, sys
from pathlib import Path
from rwkv_edge.files.output import OutputFile
with OutputFile(Path(sys.argv[1])) as file:
    file.write(b"whole")
    child = os.fork()
    if child == 0:
        del file
        sys.exit()
    os.waitpid(child, 0)
"""
    target = tmp_path / "target"
    # The child leaves the block too, by an exception.
    subprocess.run([sys.executable, "-W", "ignore", "-c", program, target], check=True)
    assert (target.read_bytes(), names(tmp_path)) == (b"whole", ["target"])


@pytest.mark.parametrize("fails", [False, True])
def test_a_mapped_file_of_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """It cannot be replaced, nor removed, but renamed: as Windows does it, on any system."""
    target, part = tmp_path / "target", tmp_path / ".target.0123abcd.part"
    target.write_bytes(b"old")
    part.write_bytes(b"new")
    rename = Path.rename

    def refuse(*_: object) -> None:
        raise PermissionError

    def rename_old(path: Path, to: Path) -> None:
        if fails and path == part:
            raise FileNotFoundError
        rename(path, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        patch.setattr(Path, "unlink", refuse)
        patch.setattr(Path, "rename", rename_old)
        with pytest.raises(FileNotFoundError) if fails else contextlib.nullcontext():
            replace_mapped(part, target)
    assert target.read_bytes() == (b"old" if fails else b"new")
    write(target)  # sweeps
    assert names(tmp_path) == ["target"]


@pytest.mark.posix("fsync of folders")
def test_the_folder_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the rename, so that the name outlives a power failure."""
    synced: list[tuple[bool, bool]] = []

    def fsync(fd: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(fd).st_mode), (tmp_path / "target").exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write(tmp_path / "target")
    assert synced == [(False, False), (True, True)]


def test_errors_name_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = tmp_path / "target"
    target.write_bytes(b"old")
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write(target)
    assert caught.value.filename == str(target)
    assert (target.read_bytes(), names(tmp_path)) == (b"old", ["target"])
