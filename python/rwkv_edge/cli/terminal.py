# SPDX-License-Identifier: Apache-2.0
"""What the command line shows and reads: progress, interrupts, and the loop of `chat`."""

from __future__ import annotations

import contextlib
import io
import shutil
import signal
import sys
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import FrameType

import click

from .._core import FormatError, ModelFile
from ..chat import Conversation
from ..files.form import amount, printable
from ..generation import Sampling
from .lines import clever, line_editing, messages

CLEAR_LINE = "\r\033[K"
HELP = """\
/help         this list
/reset        begin a new conversation
/save FILE    keep the conversation in a file
/save! FILE   the same, over a file that is no saved conversation
/load FILE    go on with a saved conversation
/exit         leave, as Ctrl-D does
Several lines: paste them, or put \"\"\" before and after them, or press Alt-Enter.
Tab completes commands and the names of files.
Ctrl-C stops an answer; the conversation goes on from there."""


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
            percent = 100 * done // max(total, 1)
            click.echo(
                f"{CLEAR_LINE}{self._label} {percent:3} %  {printable(detail[:40])}",
                err=True,
                nl=False,
            )
            self._next = time.monotonic() + self.INTERVAL
            self._shown = True

    def clear(self) -> None:
        if self._shown:
            click.echo(CLEAR_LINE, err=True, nl=False)
            self._shown = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()


@contextlib.contextmanager
def making(target: Path, label: str) -> Iterator[Callable[[int, int, str], None]]:
    """Long work that ends with a file, and with a line about it. Warnings come with the first
    progress."""
    start = time.monotonic()
    with warnings.catch_warnings(record=True) as caught, Progress(label) as bar:
        warnings.simplefilter("always")

        def progress(done: int, total: int, detail: str) -> None:
            while caught:
                click.echo(f"Warning: {printable(str(caught.pop(0).message))}", err=True)
            bar(done, total, detail)

        yield progress
    seconds = time.monotonic() - start
    size = amount(target.stat().st_size)
    click.echo(f"{printable(str(target))}: {file_type(target)}, {size}, {seconds:.1f} s")


def file_type(path: Path) -> str:
    """The type of most matrices of a GGUF file of ours."""
    from ..convert.policy import KEPT_FILE_TYPES

    number = ModelFile(path).get("general.file_type")
    return next(name for name, known in KEPT_FILE_TYPES.items() if known == number)


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
    """Let any bytes come in, and let no character that the terminal lacks end the program."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def write(text: str) -> None:
    """Write a piece of a model's text to stdout, at once."""
    click.echo(printable(text, lines=True) if sys.stdout.isatty() else text, nl=False)


class Wrap:
    """Breaks lines of a terminal between words, and not where its edge happens to be.

    Each letter is shown as it comes. A word that reaches the edge is taken back, and begins the
    next line.
    """

    def __init__(self) -> None:
        self._column = 0
        self._word = ""  # the letters since the last place where a line may be broken
        self._cells = 0  # which they take

    def __call__(self, text: str, columns: int) -> str:
        """What to write for the next piece of a text."""
        room = columns - 1  # a cursor behind the last column would not step back as others do
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
        # Between wide letters, those of Chinese or Japanese, a line may be broken anywhere.
        if size > 1 or letter.isspace():
            self._word, self._cells = "", 0
        else:
            self._word, self._cells = self._word + letter, self._cells + size
        return before + letter


def cells(letter: str) -> int:
    """The columns that a letter takes."""
    if letter.isascii():
        return 1
    if unicodedata.category(letter) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def talk(conversation: Conversation, sampling: Sampling) -> None:
    """Answer one message of stdin after the other: on a terminal with a prompt, else bare."""
    interactive = sys.stdin.isatty()
    with line_editing() if interactive else contextlib.nullcontext(read_line) as read:
        for text, is_line in messages(read, interactive=interactive):
            try:
                if is_line and text == "/exit":
                    break
                if is_line and text.startswith("/"):
                    done = run_command(conversation, text)
                    if interactive or text == "/help":
                        click.echo(done)
                elif text.strip():
                    (answer_terminal if interactive else answer)(conversation, text, sampling)
            except (FormatError, OSError, ValueError) as error:
                if not interactive or isinstance(error, BrokenPipeError):
                    raise
                click.echo(error_text(error), err=True)
            except KeyboardInterrupt:  # a moment before or after an answer
                if not interactive:
                    raise


def read_line(_prompt: str) -> str:
    """The next line of a pipe."""
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n")


def answer(conversation: Conversation, text: str, sampling: Sampling) -> None:
    for piece in conversation.ask(text, **sampling):
        write(piece)
    click.echo()


def answer_terminal(conversation: Conversation, text: str, sampling: Sampling) -> None:
    """As `answer`, with progress, whole words, and stopped by Ctrl-C."""
    wraps = sys.stdout.isatty() and clever()
    wrap = Wrap()
    with Interrupts() as interrupts, Progress("reading") as bar:

        def progress(done: int, total: int) -> None:
            if interrupts.pressed:
                raise KeyboardInterrupt
            bar(done, total)

        try:
            with closing(conversation.ask(text, progress=progress, **sampling)) as pieces:
                for piece in pieces:
                    bar.clear()
                    if wraps:
                        columns = shutil.get_terminal_size().columns
                        click.echo(wrap(printable(piece, lines=True), columns), nl=False)
                    else:
                        write(piece)
                    if interrupts.pressed:
                        break
        except KeyboardInterrupt:
            bar.clear()
            click.echo("(stopped; your message was not read)", err=True, nl=False)
    click.echo("\n")


def run_command(conversation: Conversation, line: str) -> str:
    """Run a line that begins with a slash; returns what it did."""
    name, _, rest = line.partition(" ")
    try:
        path = Path(rest.strip()).expanduser()
    except RuntimeError:
        raise ValueError(f"{rest.strip()}: no such user") from None
    if name in ("/save", "/save!", "/load") and not rest.strip():
        raise ValueError(f"{name} needs the name of a file")
    if name == "/help":
        return HELP
    if name == "/reset":
        conversation.reset()
        return "a new conversation"
    if name in ("/save", "/save!"):
        try:
            conversation.save(path, overwrite=name == "/save!")
        except FileExistsError:
            text = f"{path}: is no saved conversation; `/save! {path}` replaces it"
            raise ValueError(text) from None
        return f"saved in {path}"
    if name == "/load":
        conversation.load(path)
        return f"going on from {path}"
    raise ValueError(f"{name} is no command; /help lists them")


def error_text(error: BaseException) -> str:
    """An error as a line, or as a line and a list below it."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError) and not text:
        text = "not enough memory: a smaller model or fewer threads take less"
    return printable(text, lines=True) or type(error).__name__  # it may quote a hostile file
