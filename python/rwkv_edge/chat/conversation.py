# SPDX-License-Identifier: Apache-2.0
"""A session that talks."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from ..generation import Sampling
from ..model import FeedProgress, Model
from ..state import State
from .templates import DEFAULT_TEMPLATES, TEMPLATES, TURN_END, clean

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass
class Turn:
    """An answer that is being given."""

    begun: bool = False
    """Whether the question was read."""
    tail: str = ""
    """The last characters of the answer."""

    @property
    def missing(self) -> str:
        """What ends the turn after them."""
        newlines = len(self.tail) - len(self.tail.rstrip("\n"))
        return TURN_END[newlines:] if self.begun else ""


class Conversation:
    """A chat: a session in which a user and the model take turns.

    Between two calls the user's turn begins. So a saved state is all that another process needs to
    continue the conversation.
    """

    def __init__(
        self,
        model: Model,
        *,
        system: str | None = None,
        paragraphs: bool = False,
        template: str | None = None,
        state: State | None = None,
    ) -> None:
        """`system` is a text that the model reads first. `paragraphs` is for models that answer in
        several. `template` is a name of TEMPLATES, by default the one that fits the tokenizer.
        `state` is where every conversation begins, a tuned state or one that was saved.

        Raises FormatError where the state is of another model, ValueError for another template.
        """
        name = template or DEFAULT_TEMPLATES.get(model.tokenizer.kind, "world")
        if name not in TEMPLATES:
            names = ", ".join(TEMPLATES)
            raise ValueError(f"template: found {name!r}, expected one of {names}")
        self.template = TEMPLATES[name]
        self.session = model.session(state)
        self.stop = self.template.stops(paragraphs)
        self._begin = state
        fresh = state is None or state.tuned
        self._system = clean((self.template.opening if fresh else "") if system is None else system)
        self._turn: Turn | None = None  # an answer that did not end its turn yet
        self.reset()

    def reset(self) -> None:
        """Forget everything but the state and the system text that the conversation began with."""
        self._turn = None
        self.session.reset(self._begin)
        if self._system:
            self._feed(self.template.system.format(self._system))

    def ask(
        self, text: str, *, progress: FeedProgress | None = None, **sampling: Unpack[Sampling]
    ) -> Generator[str, None, None]:
        """Yield the answer to a user's text, piece by piece, without white space before it.

        Closing the iterator stops the answer; the conversation then goes on from the words that
        were yielded. When an exception ends the reading of the text (`progress` may raise one),
        it is as if the text had not been said. The sampling options are those of
        `Session.generate`. Raises ValueError for an empty text.
        """
        message = clean(text)
        if not message:
            raise ValueError("the message is empty")
        self._end_turn()
        self._turn = Turn()
        prompt = self.session.model.tokenizer.encode(self.template.ask.format(message))
        return self._ask(self._turn, prompt, progress, sampling)

    def _ask(
        self, turn: Turn, prompt: list[int], progress: FeedProgress | None, sampling: Sampling
    ) -> Generator[str, None, None]:
        if turn is not self._turn:
            return
        self.session.read(prompt, progress=progress)
        turn.begun = True
        shown = False
        try:
            with closing(self.session.generate(stop=self.stop, **sampling)) as pieces:
                for piece in pieces:
                    turn.tail = (turn.tail + piece)[-len(TURN_END) :]
                    text = piece if shown else piece.lstrip()
                    if text:
                        shown = True
                        yield text
        finally:
            if turn is self._turn:
                self._end_turn()

    def _end_turn(self) -> None:
        """End the turn of an answer, which may be half-way."""
        turn, self._turn = self._turn, None
        if turn is not None and turn.missing:
            self._feed(turn.missing)

    def save(self, path: str | PathLike[str], *, overwrite: bool = False) -> None:
        """Write the conversation's state; while an answer is given, as if it ended with the words
        that were yielded.

        A file that is no saved state is replaced only with `overwrite`, and the model's never.
        Raises ValueError where `path` is the model's file, FileExistsError for another that is not
        to be replaced, OSError where the state cannot be written.
        """
        model = self.session.model.path
        if Path(path).exists() and model.exists() and model.samefile(path):
            raise ValueError(f"{path}: is the model itself; name another file")
        session = self.session
        if self._turn is not None and self._turn.missing:
            session = session.fork()
            session.read(session.model.tokenizer.encode(self._turn.missing))
        session.state.save(path, overwrite=overwrite)

    def load(self, path: str | PathLike[str]) -> None:
        """Go on with a saved conversation, and with its system text.

        Raises FormatError for a file that is no state or of another model, OSError where it cannot
        be read; the conversation is then what it was.
        """
        self.session.reset(State.load(path))
        self._turn = None

    def _feed(self, text: str) -> None:
        self.session.read(self.session.model.tokenizer.encode(text))
