# SPDX-License-Identifier: Apache-2.0
"""The loop of `chat`, and its commands."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path

import click

from .._core import FormatError
from ..chat import THINK_MODES, Conversation, Thought
from ..files.form import printable
from ..generation import MAX_SEED, Sampling
from .lines import COMMANDS, ReadLine, clever, line_editing, messages
from .options import changed
from .terminal import Interrupts, Progress, Wrap, error_text, terminal_columns

HELP = "\n".join(
    [f"{f'{name} {argument}':18} {what}" for name, (argument, what) in COMMANDS.items()]
    + [
        'Several lines: paste them, or put """ before and after them, or press Alt-Enter.',
        "Tab completes commands and the names of files.",
        "Ctrl-C stops an answer; the conversation goes on from there.",
    ]
)
REPEATED = "(at temperature 0 the seed changes nothing; try /set temperature 1)"
DIM, PLAIN = "\033[2m", "\033[0m"


class Screen:
    """Shows the text of a model: where a terminal can, with words whole and thoughts dim."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._clever = self._terminal and clever()
        self._wrap = Wrap()
        self._thinking = False
        self._blank = ""  # at the end of the thoughts so far
        self._begun = False

    def write(self, piece: str) -> None:
        self._begun = True
        if isinstance(piece, Thought) != self._thinking:
            self._change()
        text = piece if not self._terminal else printable(self._blank + piece, lines=True)
        if self._thinking:  # white space at its end would be more than what is put there
            self._blank = text[len(text.rstrip()) :]
            text = text.rstrip()
        click.echo(self._wrap(text, terminal_columns()) if self._clever else text, nl=False)

    def _change(self) -> None:
        self._thinking = not self._thinking
        before, after = (DIM, f"{PLAIN}\n\n") if self._clever else ("<think>\n", "\n</think>\n\n")
        click.echo(before if self._thinking else after, nl=False)
        self._wrap, self._blank = Wrap(), ""

    def end(self) -> None:
        """Leave the text, which may be half-way in a thought."""
        if self._thinking:
            click.echo(PLAIN if self._clever else "\n</think>", nl=False)
        if self._begun or not self._terminal:
            click.echo()


class Talk:
    """A conversation with whoever types."""

    def __init__(
        self,
        conversation: Conversation,
        sampling: Sampling,
        *,
        lookup: int = 0,
        show_thoughts: bool = True,
        verbose: bool = False,
    ) -> None:
        self._chat = conversation
        self._sampling = sampling
        self._lookup = lookup
        self._show_thoughts = show_thoughts
        self._verbose = verbose
        self._interactive = sys.stdin.isatty()
        self._tries = 0  # of the last question, those before this one
        self._read: ReadLine = read_line

    def run(self) -> None:
        """Answer one message of stdin after the other: on a terminal with a prompt, else bare."""
        editing = line_editing() if self._interactive else contextlib.nullcontext(read_line)
        with editing as self._read:
            for text, is_line in messages(self._read, interactive=self._interactive):
                try:
                    if is_line and text == "/exit":
                        break
                    if is_line and text.startswith("/"):
                        self._command(text)
                    elif text.strip() or (self._chat.template.exact and self._chat.turns):
                        self._ask(text)
                except (FormatError, OSError, ValueError) as error:
                    if not self._interactive or isinstance(error, BrokenPipeError):
                        raise
                    click.echo(error_text(error), err=True)
                except KeyboardInterrupt:  # a moment before or after an answer
                    if not self._interactive:
                        raise

    # ---- answers --------------------------------------------------------------------------------

    def _ask(self, text: str, tries: int = 0, undo: int = 0) -> None:
        """Show the answer to a question, which may replace the last ones; on a terminal, Ctrl-C
        stops it."""
        old = self._chat.turns[-1:]
        sampling = self._sampling.copy()
        if (seed := sampling.get("seed")) is not None:
            sampling["seed"] = (seed + tries) % (MAX_SEED + 1)
        screen = Screen()
        with self._reading("nothing was changed" if undo else "your message was not read") as bar:
            answer = self._chat.ask(
                text, thoughts=True, undo=undo, lookup=self._lookup, progress=bar, **sampling
            )
            self._show(answer, bar, screen)
            self._tries = tries  # not before: the question may not have been read
            screen.end()
            if self._interactive and self._chat.work.finish_reason == "length":
                most = sampling["max_tokens"]
                note(f"(cut off after {most} tokens; /set max-tokens N allows more)")
            if self._interactive and not self._chat.turns[-1].answer:
                note("(no answer; /retry asks again)")
            repeated = tries and sampling["temperature"] == 0 and self._chat.turns[-1:] == old
            if self._interactive and repeated:
                note(REPEATED)
            if self._verbose:
                note(self._facts())
        if self._interactive:
            click.echo()

    def _show(
        self, answer: Generator[str, None, None], progress: Reading | None, screen: Screen
    ) -> None:
        shows = self._show_thoughts and self._interactive and sys.stdout.isatty()
        with closing(answer) as pieces:
            for piece in pieces:
                hidden = isinstance(piece, Thought) and not shows
                if progress is not None:
                    if hidden:
                        progress.bar.busy("thinking")
                    else:
                        progress.bar.clear()
                if not hidden:
                    screen.write(piece)
                if progress is not None and progress.interrupts.pressed:
                    break
        if progress is not None:
            progress.bar.clear()

    def _facts(self) -> str:
        work = self._chat.work
        read = f"{work.read} tokens read, {work.read / max(work.reading, 1e-9):.0f} per second"
        rate = work.written / max(work.writing, 1e-9)
        text = f"({read}; {work.written} written, {rate:.1f} per second"
        if self._lookup:
            guessed, right, _ = self._chat.session.lookups
            text += f"; {right} of {guessed} guesses right"
        return f"{text})"

    @contextlib.contextmanager
    def _reading(self, otherwise: str) -> Iterator[Reading | None]:
        """Progress for what is read, which Ctrl-C stops: then `otherwise` is said. In a pipe there
        is neither.
        """
        if not self._interactive:
            yield None
            return
        with Interrupts() as interrupts, Progress("reading") as bar:
            try:
                yield Reading(interrupts, bar)
            except KeyboardInterrupt:
                bar.clear()
                note(f"(stopped; {otherwise})")

    # ---- commands -------------------------------------------------------------------------------

    def _command(self, line: str) -> None:
        """Run a line that begins with a slash."""
        name, _, rest = line.partition(" ")
        if name not in COMMANDS:
            raise ValueError(f"{name} is no command; /help lists them")
        argument, _ = COMMANDS[name]
        rest = rest.strip()
        if argument == "FILE" and not rest:
            raise ValueError(f"{name} needs the name of a file")
        if not argument and rest:
            raise ValueError(f"{name} takes nothing behind it, found {rest!r}")
        run: Callable[[str], None] = getattr(self, f"_{name[1:].replace('!', '_over')}")
        run(rest)

    def _done(self, text: str) -> None:
        """Say what a command did, to someone who watches."""
        if self._interactive:
            say(text)

    def _help(self, _rest: str) -> None:
        click.echo(HELP)

    def _undo(self, rest: str) -> None:
        if rest and not rest.isdecimal():
            raise ValueError(f"/undo: found {rest!r}, expected how many questions")
        with self._reading("nothing was taken back") as progress:
            turn = self._chat.undo(int(rest or 1), progress=progress)
            self._done(f"took back: {short(turn.user)}")

    def _retry(self, _rest: str) -> None:
        self._again(self._last("/retry"), self._tries + 1)

    def _edit(self, rest: str) -> None:
        last = self._last("/edit")
        if not rest:
            if not self._interactive:
                raise ValueError("/edit needs the new text behind it, unless at a terminal")
            rest = self._read("> ", last)
        if rest.strip():
            self._again(rest, 0)

    def _last(self, name: str) -> str:
        if not self._chat.turns:
            raise ValueError(f"{name}: nothing was asked yet")
        return self._chat.turns[-1].user

    def _again(self, text: str, tries: int) -> None:
        self._ask(text, tries, undo=1)

    def _system(self, rest: str) -> None:
        if not rest:
            click.echo(printable(self._chat.system or "no system text", lines=True))
            return
        with self._reading("the system text is what it was") as progress:
            self._chat.tell(rest, progress=progress)
            self._done("read the conversation again with this system text")

    def _set(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        if not rest:
            advice = self._chat.model.recommended_sampling
            for each, found in self._sampling.items():
                known = each in advice and advice.get(each) == found
                source = "  (recommended by the model's file)" if known else ""
                click.echo(f"{each.replace('_', '-'):18} {found}{source}")
            return
        self._sampling = changed(self._sampling, name, value.strip())
        self._done(f"{name} is {value.strip()}")

    def _think(self, rest: str) -> None:
        mode = rest.removeprefix("a ")  # a bit, a lot
        if mode in ("show", "hide"):
            self._show_thoughts = mode == "show"
        elif mode:
            if mode not in THINK_MODES:
                modes = ", ".join(THINK_MODES)
                raise ValueError(f"/think: found {rest!r}, expected {modes}, show or hide")
            self._chat.think = mode
        shown = "shown" if self._show_thoughts else "hidden"
        text = f"thinking is {self._chat.think}, and {shown}"
        if mode:
            self._done(text)
        else:
            click.echo(text)

    def _tokens(self, _rest: str) -> None:
        read, turns = len(self._chat.tokens), len(self._chat.turns)
        click.echo(f"{read} tokens in {turns} {'turn' if turns == 1 else 'turns'}")

    def _reset(self, _rest: str) -> None:
        self._chat.reset()
        self._done("a new conversation")

    def _save(self, rest: str, *, replace: bool = False) -> None:
        path = path_of(rest)
        try:
            self._chat.save(path, replace=replace)
        except FileExistsError:
            text = f"{path}: is no saved conversation; `/save! {path}` replaces it"
            raise ValueError(text) from None
        self._done(f"saved in {path}")

    def _save_over(self, rest: str) -> None:
        self._save(rest, replace=True)

    def _load(self, rest: str, *, any_model: bool = False) -> None:
        path = path_of(rest)
        self._chat.load(path, any_model=any_model)
        self._tries = 0
        if self._interactive:
            self._transcript()
        self._done(f"going on from {path}")

    def _load_over(self, rest: str) -> None:
        self._load(rest, any_model=True)

    def _transcript(self) -> None:
        """Show what was said."""
        if self._chat.system:
            say(f"({self._chat.system})")
        for turn in self._chat.turns:
            say(f"> {turn.user}")
            say(f"{turn.answer}\n")

    def _export(self, rest: str, *, replace: bool = False) -> None:
        path = path_of(rest)
        try:
            self._chat.export(path, replace=replace)
        except FileExistsError:
            raise ValueError(f"{path}: is there already; `/export! {path}` replaces it") from None
        self._done(f"written to {path}")

    def _export_over(self, rest: str) -> None:
        self._export(rest, replace=True)


class Reading:
    """The progress of a text that is read; Ctrl-C ends it."""

    def __init__(self, interrupts: Interrupts, bar: Progress) -> None:
        self.interrupts = interrupts
        self.bar = bar

    def __call__(self, done: int, total: int) -> None:
        if self.interrupts.pressed:
            raise KeyboardInterrupt
        self.bar(done, total)


def read_line(_prompt: str, _text: str = "") -> str:
    """The next line of a pipe."""
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n")


def say(text: str) -> None:
    screen = Screen()
    screen.write(text)
    screen.end()


def note(text: str) -> None:
    """A remark of the program's beside the conversation."""
    if sys.stderr.isatty() and clever():
        text = f"{DIM}{Wrap()(text, terminal_columns())}{PLAIN}"
    click.echo(text, err=True)


def short(text: str) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:59]}…"


def path_of(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"{text}: no such user") from None
