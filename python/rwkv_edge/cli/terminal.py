# SPDX-License-Identifier: Apache-2.0
"""What the command line shows and reads: progress, interrupts, and the loop of `chat`."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import FrameType

import click

from .._core import FormatError
from ..chat import Conversation
from ..files.form import printable
from ..generation import Sampling

CLEAR_LINE = "\r\033[K"
HISTORY_LINES = 1000
HELP = """\
/help        this list
/reset       begin a new conversation
/save FILE   keep the conversation in a file
/load FILE   go on with a saved conversation
/exit        leave, as Ctrl-D does
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


def talk(conversation: Conversation, sampling: Sampling) -> None:
    """Answer one line of stdin after the other: on a terminal with a prompt, else bare."""
    interactive = sys.stdin.isatty()
    prompt = "> " if interactive and sys.stdout.isatty() else ""
    with line_editing() if interactive else contextlib.nullcontext():
        for line in map(str.strip, read_lines(prompt) if interactive else sys.stdin):
            try:
                if line == "/exit":
                    break
                if line.startswith("/"):
                    done = run_command(conversation, line)
                    if interactive or line == "/help":
                        click.echo(done)
                elif line:
                    (answer_terminal if interactive else answer)(conversation, line, sampling)
            except (FormatError, OSError, ValueError) as error:
                if not interactive or isinstance(error, BrokenPipeError):
                    raise
                click.echo(error_text(error), err=True)
            except KeyboardInterrupt:  # a moment before or after an answer
                if not interactive:
                    raise


def read_lines(prompt: str) -> Iterator[str]:
    while True:
        try:
            yield input(prompt)
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:
            click.echo("\n(Ctrl-D or /exit leaves)", err=True)


def answer(conversation: Conversation, line: str, sampling: Sampling) -> None:
    for piece in conversation.ask(line, **sampling):
        write(piece)
    click.echo()


def answer_terminal(conversation: Conversation, line: str, sampling: Sampling) -> None:
    """As `answer`, with progress, and stopped by Ctrl-C."""
    with Interrupts() as interrupts, Progress("reading") as bar:

        def progress(done: int, total: int) -> None:
            if interrupts.pressed:
                raise KeyboardInterrupt
            bar(done, total)

        try:
            with closing(conversation.ask(line, progress=progress, **sampling)) as pieces:
                for piece in pieces:
                    bar.clear()
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
    path = Path(rest.strip()).expanduser()
    if name in ("/save", "/load") and not rest.strip():
        raise ValueError(f"{name} needs the name of a file")
    if name == "/help":
        return HELP
    if name == "/reset":
        conversation.reset()
        return "a new conversation"
    if name == "/save":
        conversation.save(path)
        return f"saved in {path}"
    if name == "/load":
        conversation.load(path)
        return f"going on from {path}"
    raise ValueError(f"{name} is no command; /help lists them")


@contextlib.contextmanager
def line_editing() -> Iterator[None]:
    """Editing and a history that outlives the program, where this Python has readline."""
    try:
        import readline  # absent on some platforms
    except ImportError:
        yield
        return
    folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    history = folder / "rwkv-edge" / "history"
    readline.set_history_length(HISTORY_LINES)
    with contextlib.suppress(OSError):
        readline.read_history_file(history)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            history.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            readline.write_history_file(history)


def error_text(error: BaseException) -> str:
    """An error as a line, or as a line and a list below it."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError) and not text:
        text = "not enough memory: a smaller model or fewer threads take less"
    return printable(text, lines=True) or type(error).__name__  # it may quote a hostile file
