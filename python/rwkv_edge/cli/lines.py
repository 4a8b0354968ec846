# SPDX-License-Identifier: Apache-2.0
"""What is typed in a chat: editing, a history, file names on Tab, messages of several lines."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import click

from ..chat import THINK_MODES
from ..files.form import printable
from ..files.output import OutputFile
from .options import SAMPLING


class ReadLine(Protocol):
    """Shows a prompt, and perhaps a text to begin with; raises EOFError at the end."""

    def __call__(self, prompt: str, text: str = "", /) -> str: ...


BLOCK = '"""'
# What follows each, and what it does.
COMMANDS = {
    "/help": ("", "show this list"),
    "/undo": ("[N]", "take back the last question, or the last N, with its answer"),
    "/retry": ("", "answer the last question again"),
    "/edit": ("[TEXT]", "change the last question and ask it"),
    "/system": ("[TEXT]", "change the instructions before the conversation"),
    "/set": ("[NAME VALUE]", "change a sampling option, such as /set temperature 0.7"),
    "/think": ("[MODE]", "off, fast, bit, on or lot; show or hide it"),
    "/tokens": ("", "show how many tokens the model has read"),
    "/reset": ("", "start a new conversation"),
    "/save": ("FILE", "save the conversation to a file"),
    "/save!": ("FILE", "the same, and replace any file"),
    "/load": ("FILE", "continue a saved conversation"),
    "/load!": ("FILE", "the same, and accept one of another model of the same shape"),
    "/export": ("FILE", "write the conversation as Markdown"),
    "/export!": ("FILE", "the same, and replace a file"),
    "/exit": ("", "leave (or press Ctrl-D)"),
}
TAKE_FILES = tuple(name for name, (argument, _) in COMMANDS.items() if argument == "FILE")
# What may follow a command.
WORDS = {"/think": (*THINK_MODES, "show", "hide"), "/set": ("max-tokens", *SAMPLING)}
HISTORY_LINES = 1000
HISTORY_BYTES = 1 << 20
NEWLINE = "\v"  # inside a line of the history


def messages(read: Callable[[str], str], *, interactive: bool) -> Iterator[tuple[str, bool]]:
    """What was said, and whether it may be a command: one line that stands in no block.

    A line that begins with three quotes begins a block, which ends with a line that ends with them,
    or with the input. What was pasted comes as one line with newlines in it, and is one message.
    On a terminal, Ctrl-C drops what was typed.
    """
    while True:
        try:
            typed = read("> ")
            text = typed.strip()
            inside = text.removeprefix(BLOCK)
            block = inside != text and ("\n" not in text or inside.endswith(BLOCK))
            if block:
                text = read_block(inside, read)
            elif not text.startswith("/"):
                text = typed
        except EOFError:
            if interactive:
                click.echo()
            return
        except KeyboardInterrupt:
            if not interactive:
                raise
            click.echo("\n(Ctrl-D or /exit leaves)", err=True)
        else:
            yield text, not block and "\n" not in text


def read_block(text: str, read: Callable[[str], str]) -> str:
    while not text.rstrip().endswith(BLOCK):
        try:
            text += "\n" + read(". ")
        except EOFError:
            return text
    return text.rstrip().removesuffix(BLOCK)


def completions(line: str) -> list[str]:
    """What an unfinished line may become: a command, or one with a word or the name of a file."""
    name, space, rest = line.partition(" ")
    if not space:
        return [command for command in COMMANDS if line and command.startswith(line)]
    if name in WORDS:
        return [f"{name} {word}" for word in WORDS[name] if word.startswith(rest)]
    if name not in TAKE_FILES:
        return []
    folder, slash, start = rest.rpartition("/")
    found = []
    with contextlib.suppress(OSError, RuntimeError):  # no such folder, no such user's home
        for entry in os.scandir(Path(folder + slash).expanduser()):
            hidden = entry.name.startswith(".") and not start
            if entry.name.startswith(start) and not hidden and entry.name.isprintable():
                found.append(f"{name} {folder}{slash}{entry.name}{'/' if entry.is_dir() else ''}")
    return sorted(found)


# ---- the history --------------------------------------------------------------------------------


def history_file() -> Path:
    """Raises RuntimeError for a user without a home."""
    folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return folder / "rwkv-edge" / "history"


def read_history(path: Path) -> list[str]:
    """The lines of a history, the oldest first; raises OSError where it cannot be read."""
    if not path.is_file():  # a pipe would be waited for
        return []
    with path.open("rb") as file:
        file.seek(-min(HISTORY_BYTES, path.stat().st_size), os.SEEK_END)
        data = file.read(HISTORY_BYTES)
    return [
        "\n".join(printable(part, lines=True) for part in line.split(NEWLINE))
        for line in data.decode("utf-8", "replace").split("\n")[-HISTORY_LINES - 1 :]
        if line
    ]


def add_to_history(path: Path, lines: list[str]) -> None:
    """Add lines, and keep the newest. Raises OSError where that cannot be done."""
    kept = [line.replace("\n", NEWLINE) for line in (*read_history(path), *lines) if line]
    text = "".join(f"{line}\n" for line in kept[-HISTORY_LINES:])
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with OutputFile(path, mode=0o600) as file:
        file.write(text.encode("utf-8", "replace"))


# ---- the terminal -------------------------------------------------------------------------------


def clever() -> bool:
    """Whether the terminal can do more than write line after line."""
    return os.environ.get("TERM", "dumb") != "dumb"


@contextlib.contextmanager
def line_editing() -> Iterator[ReadLine]:
    """Lines from the terminal: with prompt_toolkit where it is installed and the terminal can do
    what it asks for, else with readline, else bare."""
    history: list[str] = []
    with contextlib.suppress(OSError, RuntimeError):
        history = read_history(history_file())
    shown = sys.stdout.isatty()
    edit = (with_prompt_toolkit(history) if shown and clever() else None) or with_readline(history)
    new: list[str] = []

    def read(prompt: str, text: str = "") -> str:
        line = edit(prompt if shown else "", text)
        if line.strip() and line != (new or history or [""])[-1]:
            new.append(line)
        return line

    try:
        yield read
    finally:
        if new:
            with contextlib.suppress(OSError, RuntimeError):  # it stays as it is
                add_to_history(history_file(), new)


def with_prompt_toolkit(history: list[str]) -> ReadLine | None:
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import CompleteEvent, Completer, Completion
        from prompt_toolkit.document import Document
        from prompt_toolkit.history import InMemoryHistory
        from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
        from prompt_toolkit.shortcuts import CompleteStyle
    except ImportError:
        return None

    class Names(Completer):
        def get_completions(
            self, document: Document, _event: CompleteEvent
        ) -> Iterator[Completion]:
            line = document.text_before_cursor
            for whole in completions(line):
                shown = whole.partition(" ")[2].removesuffix("/").rpartition("/")[2] or whole
                yield Completion(whole, start_position=-len(line), display=shown)

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(
        history=InMemoryHistory(history),
        completer=Names(),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        key_bindings=keys,
        prompt_continuation=". ",
    )

    def read(prompt: str, text: str = "") -> str:
        return session.prompt(prompt, default=text)

    return read


def with_readline(history: list[str]) -> ReadLine:
    try:
        import readline  # absent on some platforms
    except ImportError:
        return lambda prompt, _text="": input(prompt)

    found: list[str] = []

    def complete(_text: str, number: int) -> str | None:
        if number == 0:
            line = readline.get_line_buffer()[: readline.get_endidx()]
            found[:] = [whole[readline.get_begidx() :] for whole in completions(line)]
        return found[number] if number < len(found) else None

    for line in history:
        readline.add_history(line)
    readline.set_completer(complete)
    readline.set_completer_delims(" /")
    if "libedit" in (readline.__doc__ or ""):
        readline.parse_and_bind("bind ^I rl_complete")
    else:
        readline.parse_and_bind("tab: complete")
        if clever():
            readline.parse_and_bind("set enable-bracketed-paste on")  # which Python turns off
        for enter in (r"\C-m", r"\C-j"):
            readline.parse_and_bind(rf'"\e{enter}": "\C-v\C-j"')

    def read(prompt: str, text: str = "") -> str:
        # As where lines are pasted, a newline must be quoted to stay inside of the line.
        readline.set_startup_hook(lambda: readline.insert_text(text))
        try:
            return input(prompt)
        finally:
            readline.set_startup_hook()

    return read
