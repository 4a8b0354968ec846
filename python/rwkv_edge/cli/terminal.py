# SPDX-License-Identifier: Apache-2.0
"""What the command line shows: progress, texts of models, errors; and how it is interrupted."""

from __future__ import annotations

import contextlib
import io
import shutil
import signal
import sys
import time
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import click

from .._core import ModelFile
from ..files.form import amount, printable

CLEAR_LINE = "\r\033[K"


class Progress:
    """A line on stderr that says how far long work has come: on a terminal, and not at once."""

    DELAY = 0.4  # seconds before the first line, so that short work shows none
    INTERVAL = 0.1

    def __init__(self, label: str) -> None:
        self._label = label
        self._next = time.monotonic() + self.DELAY if sys.stderr.isatty() else float("inf")
        self._shown = False

    def __call__(self, done: int, total: int, detail: str = "") -> None:
        if time.monotonic() >= self._next:
            line = f"{self._label} {100 * done // max(total, 1):3} %  {printable(detail)}"
            room = terminal_columns() - 1
            click.echo(f"{CLEAR_LINE}{line[:room]}", err=True, nl=False)
            self._next = time.monotonic() + self.INTERVAL
            self._shown = True

    def busy(self, what: str) -> None:
        """Say what takes long, where it is not known how much of it there is."""
        if time.monotonic() >= self._next and not self._shown:
            click.echo(f"{CLEAR_LINE}{what} ...", err=True, nl=False)
            self._shown = True

    def clear(self) -> None:
        if self._shown:
            click.echo(CLEAR_LINE, err=True, nl=False)
            self._shown = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()


class Making(Progress):
    """Progress between which warnings and other lines are shown."""

    def __init__(self, label: str, caught: list[warnings.WarningMessage]) -> None:
        super().__init__(label)
        self._caught = caught

    def __call__(self, done: int, total: int, detail: str = "") -> None:
        while self._caught:
            self.say(f"Warning: {self._caught.pop(0).message}")
        super().__call__(done, total, detail)

    def say(self, line: str) -> None:
        self.clear()
        click.echo(printable(line), err=True)


@contextlib.contextmanager
def making(target: Path, label: str) -> Iterator[Making]:
    """Long work that ends with a file, and with a line about it. Warnings come with the first
    progress."""
    start = time.monotonic()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bar = Making(label, caught)
        with bar:
            yield bar
    seconds = time.monotonic() - start
    size = amount(target.stat().st_size)
    click.echo(f"{printable(str(target))}: {file_type(target)}, {size}, {seconds:.1f} s")


def file_type(path: Path) -> str:
    """The type of most matrices of a GGUF file of ours, or that they are a mixture."""
    from ..convert.policy import KEPT_FILE_TYPES
    from ..describe import is_mixture, main_type

    file = ModelFile(path)
    if is_mixture(file):
        return main_type(file)
    number = file.get("general.file_type")
    return next(name for name, known in KEPT_FILE_TYPES.items() if known == number)


@contextlib.contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Warnings of the library, as a program shows them."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: click.echo(
            f"Warning: {printable(str(message))}", err=True
        )
        yield


class Interrupts:
    """While it is entered, Ctrl-C is only noted, so that nothing stops half-way."""

    def __init__(self) -> None:
        self.pressed = False

    def _note(self, _signal: int, _frame: FrameType | None) -> None:
        self.pressed = True

    def __enter__(self) -> Interrupts:
        self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)


def prepare_streams() -> None:
    """Let any bytes come in, and let no character that the terminal lacks end the program.

    On Windows the streams are UTF-8, as they are elsewhere: a pipe there has the encoding that the
    system had in the nineties.
    """
    encoding = "utf-8" if sys.platform == "win32" else None
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding=encoding, errors="surrogateescape")
    for stream in (sys.stdout, sys.stderr) if encoding else (sys.stdout,):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=encoding, errors="replace")


def write(text: str) -> None:
    """Write a piece of a model's text to stdout, at once."""
    click.echo(printable(text, lines=True) if sys.stdout.isatty() else text, nl=False)


class Wrap:
    """Breaks lines of a terminal between words, and not where its edge happens to be.

    Each letter is shown as it comes. A word that reaches the edge is taken back, and begins the
    next line.
    """

    def __init__(self) -> None:
        self._columns = 0  # of the terminal, at the last letter
        self._column = 0
        self._word = ""  # the letters since the last place where a line may be broken
        self._cells = 0  # which they take

    def __call__(self, text: str, columns: int) -> str:
        """What to write for the next piece of a text."""
        room = max(columns - 1, 1)  # a cursor behind the last column would not step back
        if columns != self._columns:
            # A narrower terminal has folded the line by itself, perhaps in the word.
            self._column, self._word, self._cells = self._column % columns, "", 0
            self._columns = columns
        return "".join(self._letter(letter, room) for letter in text)

    def _letter(self, letter: str, room: int) -> str:
        if letter == "\n":
            self._column, self._word, self._cells = 0, "", 0
            return letter
        size = 8 - self._column % 8 if letter == "\t" else cells(letter)
        before = ""
        if self._column + size > room and self._column:
            if letter.isspace():
                return self._letter("\n", room)
            if 0 < self._cells < self._column:
                before = f"\033[{self._cells}D\033[K\n{self._word}"
            else:  # a letter that is a word itself, or a word longer than a line
                before, self._word, self._cells = "\n", "", 0
            self._column = self._cells
        self._column += size
        # Between wide letters, those of Chinese or Japanese, a line may be broken anywhere. Where
        # terminals do not agree on the width, nothing is taken back.
        if size > 1 or letter.isspace() or joins(letter):
            self._word, self._cells = "", 0
        else:
            self._word, self._cells = self._word + letter, self._cells + size
        return before + letter


def terminal_columns() -> int:
    """Of the terminal, or 80 where it does not know: Python 3.10 then says 0."""
    return shutil.get_terminal_size().columns or 80


def cells(letter: str) -> int:
    """The columns that a letter takes."""
    if letter.isascii():
        return 1
    if unicodedata.category(letter) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def joins(letter: str) -> bool:
    """Whether the letter makes one sign with its neighbours, of which not all terminals know: those
    of emoji (joiners, variants, flags), Korean vowels, and marks that may stand beside a letter.
    """
    return (
        letter in "\u200d\ufe0e\ufe0f\u20e3"
        or "\u1160" <= letter <= "\u11ff"
        or "\U0001f1e6" <= letter <= "\U0001f1ff"
        or unicodedata.category(letter) == "Mc"
    )


def error_text(error: BaseException) -> str:
    """An error as a line, or as a line and a list below it."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError) and not text:
        text = "not enough memory: a smaller model or fewer threads take less"
    return printable(text, lines=True) or type(error).__name__  # it may quote a hostile file
