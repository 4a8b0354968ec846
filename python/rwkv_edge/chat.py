# SPDX-License-Identifier: Apache-2.0
"""Conversations, in the words that models were trained on:

    System: <text>\\n\\nUser: <text>\\n\\nAssistant: <text>\\n\\nUser: ...

Two newlines end a turn, so no text of ours may hold them.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from .generation import Sampling
from .model import FeedProgress, Model
from .state import State

if TYPE_CHECKING:
    from typing_extensions import Unpack

TURN_END = "\n\n"


@dataclass(frozen=True)
class Template:
    """How a conversation is written; {} is where a text goes."""

    ask: str
    system: str
    roles: tuple[str, ...]
    opening: str = ""
    """The system text where the user gives none."""
    paragraphs: bool = False
    """Whether its models answer in several paragraphs."""

    def stops(self, paragraphs: bool) -> tuple[str, ...]:
        """What ends an answer.

        Whatever a model was trained on, it must not go on into another turn. Where answers have
        one paragraph, some models go on with anything after it.
        """
        turns = [f"{newlines}{role}:" for newlines in ("\n\n", "\n") for role in self.roles]
        return (*turns,) if paragraphs or self.paragraphs else (TURN_END, *turns)


TEMPLATES = {
    "world": Template(
        "User: {}\n\nAssistant:", "System: {}\n\n", roles=("User", "System", "Assistant")
    ),
    # RWKV-4 Pile and Raven.
    "raven": Template(
        "Bob: {}\n\nAlice:",
        "\n{}\n\n",
        roles=("Bob", "Alice"),
        opening="The following is a conversation between Bob and his friend Alice. "
        "Alice is intelligent, friendly and knows a lot; her answers are detailed and correct.",
    ),
    # RWKV-4 Raven, for single tasks.
    "instruct": Template(
        "# Instruction:\n{}\n\n# Response:\n",
        "{}\n\n",
        roles=("# Instruction", "# Response"),
        opening="Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.",
        paragraphs=True,
    ),
}
# By the kind of tokenizer. That of the Pile models is the only one that comes from Hugging Face.
DEFAULT_TEMPLATES = {"huggingface": "raven"}


def clean(text: str) -> str:
    """A text that cannot end its turn: newlines are LF and single, none at either end."""
    return re.sub("\n{2,}", "\n", re.sub("\r\n?", "\n", text)).strip()


class Conversation:
    """A session that alternates between a user and the model.

    Between two calls the session stands at the start of the user's turn, so a saved state is all
    that another process needs to go on with the same words.
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

        Raises FormatError where the state is of another model.
        """
        name = template or DEFAULT_TEMPLATES.get(model.tokenizer.kind, "world")
        self.template = TEMPLATES[name]
        self.session = model.session()
        self.stop = self.template.stops(paragraphs)
        self._begin = state
        fresh = state is None or state.tuned
        self._system = clean((self.template.opening if fresh else "") if system is None else system)
        self._running: Generator[str, None, None] | None = None
        self.reset()

    def reset(self) -> None:
        """Forget everything but the state and the system text that the conversation began with."""
        self._finish()
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
        self._finish()
        prompt = self.session.model.tokenizer.encode(self.template.ask.format(message))
        self._running = self._ask(prompt, progress, sampling)
        return self._running

    def _ask(
        self, prompt: list[int], progress: FeedProgress | None, sampling: Sampling
    ) -> Generator[str, None, None]:
        self.session.read(prompt, progress=progress)
        shown, tail = False, ""
        try:
            with closing(self.session.generate(stop=self.stop, **sampling)) as pieces:
                for piece in pieces:
                    tail = (tail + piece)[-len(TURN_END) :]
                    text = piece if shown else piece.lstrip()
                    if text:
                        shown = True
                        yield text
        finally:
            newlines = len(tail) - len(tail.rstrip("\n"))
            if newlines < len(TURN_END):
                self._feed(TURN_END[newlines:])

    def save(self, path: str | PathLike[str]) -> None:
        """Write the conversation's state.

        Raises ValueError where `path` is the model's file, OSError where it cannot be written.
        """
        model = self.session.model.path
        if Path(path).exists() and model.exists() and model.samefile(path):
            raise ValueError(f"{path}: is the model itself; name another file")
        self._finish()
        self.session.state.save(path)

    def load(self, path: str | PathLike[str]) -> None:
        """Go on with a saved conversation, and with its system text.

        Raises FormatError for a file that is no state or of another model, OSError where it cannot
        be read; the conversation is then what it was.
        """
        self._finish()
        self.session.reset(State.load(path))

    def _feed(self, text: str) -> None:
        self.session.feed(self.session.model.tokenizer.encode(text), logits="none")

    def _finish(self) -> None:
        """End an answer that was left half-way, and its turn."""
        if self._running is not None:
            self._running.close()
            self._running = None
