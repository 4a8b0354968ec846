# SPDX-License-Identifier: Apache-2.0
"""Files of requests: lines of OpenAI's batch form in, lines of answers out.

    {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {...}}
    {"id": "...", "custom_id": "a", "response": {"status_code": 200, "request_id": "...",
     "body": {...}}, "error": null}

An answer is one write at the end of the output, so whatever ends the program loses the answers in
flight and no others. The ids in the output are what a later run leaves out. A line without an id of
its own has its answer named by `line`, its number.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import secrets
import stat
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ._core import FormatError
from .files.form import open_regular, printable, shown

MOST_LINE = 1 << 24  # bytes of a line of requests
MOST_ANSWER = 1 << 28  # bytes of a line of answers
MOST_ID = 512

# For a URL and a body: the status and the body of the answer.
Answer = Callable[[str, Any], Awaitable[tuple[int, dict[str, Any]]]]
Progress = Callable[[int, int], object]  # bytes of the input that are done, and all of them


@dataclass
class Counts:
    answered: int = 0
    refused: int = 0
    failed: int = 0
    """Lines that could not be answered now, which have no answer in the output."""
    skipped: int = 0
    """Lines that the output already had."""


@dataclass(frozen=True)
class Line:
    """A line of the input. `problem` is what is wrong with it."""

    number: int  # from 1
    custom_id: str | None
    url: str = ""
    body: Any = None
    problem: str = ""

    def key(self) -> str | int:
        """What its answer is known by."""
        return self.number if self.custom_id is None or self.problem else self.custom_id


def shard(text: str) -> tuple[int, int]:
    """`2/4`: the second of four. Raises ValueError."""
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"{text}: no part of a file, such as 1/4 for the first of four")
    return int(found[1]), int(found[2])


async def run(
    source: Path,
    target: Path,
    answer: Answer,
    *,
    together: int = 16,
    part: tuple[int, int] = (1, 1),
    progress: Progress | None = None,
) -> Counts:
    """Answer the lines of `source` that `target` does not have yet, `together` at a time.

    Of `part` (i, n), only every n-th line is taken, beginning with line i. A line that cannot be
    answered gets an answer that says why, and the next one follows. Answers come in the order in
    which they are ready.

    Raises FormatError where `target` holds something else than answers, OSError where another
    program writes to it or a file cannot be read or written.
    """
    counts = Counts()
    with open_regular(source) as file, Output(target) as output:
        size = os.fstat(file.fileno()).st_size
        waiting: set[asyncio.Task[None]] = set()

        async def one(line: Line) -> None:
            status, body = (
                (400, problem_body(line.problem))
                if line.problem
                else await answer(line.url, line.body)
            )
            if status == 429 or status >= 500:  # of the moment, and not of the line
                counts.failed += 1
                return
            output.write(line, status, body)
            if status < 400:
                counts.answered += 1
            else:
                counts.refused += 1

        try:
            for line in lines(file, part):
                if line.key() in output.known:
                    counts.skipped += 1
                    continue
                waiting.add(asyncio.ensure_future(one(line)))
                if len(waiting) >= together:
                    await finished(waiting)
                if progress is not None:
                    progress(file.tell(), size)
            while waiting:
                await finished(waiting)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
    return counts


async def finished(waiting: set[asyncio.Task[None]]) -> None:
    """Wait for one, and raise what it raised."""
    done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    waiting -= done
    errors = [error for task in done if (error := task.exception()) is not None]
    if errors:
        raise errors[0]


def lines(file: BinaryIO, part: tuple[int, int] = (1, 1)) -> Iterator[Line]:
    """The lines of a file of requests, but for empty ones, that belong to a part."""
    used: dict[str, int] = {}
    number = 0
    while data := file.readline(MOST_LINE + 1):
        number += 1
        whole = data
        while len(whole) > MOST_LINE and not whole.endswith(b"\n"):
            whole = file.readline(MOST_LINE + 1)
            if not whole:
                break
        if (number - part[0]) % part[1] or not data.strip():
            continue
        if len(data) > MOST_LINE:
            yield Line(number, None, problem=f"line {number}: more than {MOST_LINE} bytes")
            continue
        line = read_line(number, data)
        if line.custom_id is not None and not line.problem:
            before = used.setdefault(line.custom_id, number)
            if before != number:
                text = f"line {number}: custom_id {shown(line.custom_id)} is that of line {before}"
                line = Line(number, line.custom_id, problem=text)
        yield line


def read_line(number: int, data: bytes) -> Line:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        return Line(number, None, problem=f"line {number}: no JSON: {printable(str(error))[:100]}")
    if not isinstance(found, dict):
        return Line(
            number, None, problem=f"line {number}: found {shown(found)}, expected an object"
        )
    custom_id = found.get("custom_id")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MOST_ID:
        text = f"line {number}: custom_id: found {shown(custom_id)}, expected a text"
        return Line(number, None, problem=f"{text} of at most {MOST_ID} characters")
    url, method = found.get("url"), found.get("method", "POST")
    if method != "POST":
        text = f"line {number}: method: found {shown(method)}, expected 'POST'"
        return Line(number, custom_id, problem=text)
    if not isinstance(url, str):
        text = f"line {number}: url: found {shown(url)}, expected a text"
        return Line(number, custom_id, problem=text)
    return Line(number, custom_id, url, found.get("body"))


def problem_body(text: str) -> dict[str, Any]:
    """An error as the API has it."""
    error = {"message": text, "type": "invalid_request_error", "param": None, "code": None}
    return {"error": error}


class Output:
    """Context manager: a file of answers, to whose end more are written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: set[str | int] = set()
        """The ids and line numbers of the answers that it has."""

    def __enter__(self) -> Output:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
        self._file = os.fdopen(os.open(self.path, flags, 0o666), "r+b", buffering=0)
        try:
            if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
                raise FormatError(f"{self.path}: a pipe or a device, expected a regular file")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OSError(f"{self.path}: another program is writing to it") from None
            except OSError:  # a file system without locks
                pass
            self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _read(self) -> None:
        """Find what is there. A last line that was cut off is removed."""
        whole = number = 0
        with open_regular(self.path) as file:
            while data := file.readline(MOST_ANSWER + 1):
                if not data.endswith(b"\n"):
                    # Only what `write` would have begun may be cut off, and so removed.
                    if whole == 0 and not b'{"id": "batch_req_'.startswith(data[:18]):
                        raise FormatError(f"{self.path}: line 1 is no answer of a batch")
                    break
                number += 1
                self.known.add(self._key(data, number))
                whole += len(data)
        self._file.truncate(whole)

    def _key(self, data: bytes, number: int) -> str | int:
        with contextlib.suppress(ValueError, RecursionError, KeyError, TypeError):
            found = json.loads(data)
            if "response" in found:
                key = found["line"] if "line" in found else found["custom_id"]
                if isinstance(key, (str, int)):
                    return key
        raise FormatError(f"{self.path}: line {number} is no answer of a batch; name another file")

    def write(self, line: Line, status: int, body: dict[str, Any]) -> None:
        name = secrets.token_hex(12)
        found: dict[str, Any] = {
            "id": f"batch_req_{name}",
            "custom_id": line.custom_id,
            "response": {"status_code": status, "request_id": f"req_{name}", "body": body},
            "error": None,
        }
        if line.key() == line.number:
            found["line"] = line.number
        try:
            data = json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # half a character, as JSON may write one
            data = json.dumps(found).encode()
        try:
            rest = memoryview(data + b"\n")
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self.known.add(line.key())
