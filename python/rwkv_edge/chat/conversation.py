# SPDX-License-Identifier: Apache-2.0
"""A session that talks.

The model remembers exactly the visible text. The state is bit-equal to that of a fresh session
which reads the system text and then each turn. Two parts of a turn are encoded separately: the
question with the start of the answer ("User: hi\\n\\nAssistant:"), and the answer with its end
(" Hello\\n\\n"). With the World vocabulary that gives the tokens of the whole text. If the model
had thoughts, or wrote tokens other than those of the text, the turn is read again without them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ..files.form import check_kind, utf8
from ..generation import FinishReason, Sampling, integer, whole
from ..grammar import FORMS, form_of
from ..model import FeedProgress, Model, Session
from ..prefix_cache import PrefixCache
from ..state import State
from ..tokenizer import END_OF_TEXT
from .saved import (
    Transcript,
    Turn,
    digest,
    text_of,
    transcript_of,
    write_markdown,
)
from .templates import (
    HINTS,
    TEMPLATES,
    THINK_END,
    THINK_MODES,
    Template,
    find_template,
)
from .thinking import OPEN, Thought, told_apart, without_blanks

if TYPE_CHECKING:
    from typing_extensions import Unpack

KEPT = 4
"""Of so many last turns the states before them are kept. To take back more, the conversation is
read again from its beginning."""

OF_ANSWERS = (*FORMS, "forced", "logprobs")
"""Options that the thinking before an answer does not have."""


@dataclass
class Work:
    """What the last answer took."""

    read: int = 0
    """Tokens of the question, as far as they are new."""
    reading: float = 0.0
    """Seconds."""
    written: int = 0
    """Tokens of the answer and of the thinking before it, with those of what ended them."""
    writing: float = 0.0
    """Seconds of the engine."""
    finish_reason: FinishReason | None = None
    """Why the answer ended, as in `Details`; None before that."""


@dataclass
class Reply:
    """An answer that is being given."""

    user: str
    think: str
    undo: int
    """So many turns are taken back when the question was read."""
    before: Session | None = None
    """Where the user's turn begins, once the question was read."""
    asked: Session | None = None
    """Where the answer begins in the visible text, where the session was there."""
    thought: bool = False
    """Whether the session has read more than can be seen."""
    pieces: list[str] = field(default_factory=list)


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
        template: str | Template | None = None,
        think: str = "off",
        think_tokens: int = 2048,
        state: State | None = None,
        cache: PrefixCache | None = None,
    ) -> None:
        """`system` is a text that the model reads first. `paragraphs` allows answers of several
        paragraphs with any template. `template` is a name of TEMPLATES or a result of
        `load_template`. By default it is found by the model's name, the template in its file, or
        its tokenizer. `think`, one of THINK_MODES, says how long a model thinks before it answers,
        and `think_tokens` is the maximum. `state` is a tuned or saved state to begin with. A system
        text that is in `cache` is not read again.

        Raises FormatError if the state belongs to another model, ValueError for an unknown
        template and for half a character, TypeError for arguments of another type.
        """
        check_kind("model", model, Model, "a Model")
        if cache is not None:
            check_kind("cache", cache, PrefixCache, "a PrefixCache")
        if system is not None:
            utf8("system", system)
        self.template_source = "named"
        if template is None:
            template, self.template_source = find_template(model)
        elif not isinstance(template, Template):
            if template not in [*TEMPLATES]:  # a list has no hash to look up
                names = ", ".join(TEMPLATES)
                raise ValueError(f"template: found {template!r}, expected one of {names}")
            template = TEMPLATES[template]
        self._paragraphs = paragraphs
        self.think_tokens = whole("think_tokens", think_tokens, 0)
        self.work = Work()
        self.cached = 0
        """Tokens of the system text that the cache had when it was needed last."""
        self._cache = cache
        self._session = model.session(state)
        self._use(template)
        self.think = think
        fresh = state is None or state.tuned
        opening = template.opening if fresh else ""
        self._first = state, template, template.clean(opening if system is None else system)
        self._check_system(self._first[2])
        self._begin = state
        self._fixed = 0  # of the turns, those that are known to be in _begin
        self._told_before = False  # whether the system text is in there, too
        self._system = ""
        self._turns: list[Turn] = []
        self._marks: list[tuple[int, Session]] = []  # where so many turns end
        self._reply: Reply | None = None  # an answer that did not end its turn yet
        self._stands = False  # whether the session is where the text ends
        self.reset()

    def _use(self, template: Template) -> None:
        self.template = template
        self.stop: tuple[str, ...] = template.stops(self._paragraphs)
        self._think = "off"

    # ---- what can be seen -----------------------------------------------------------------------

    @property
    def model(self) -> Model:
        return self._session.model

    @property
    def session(self) -> Session:
        """Where the text ends; while an answer is given, wherever the model is."""
        if self._reply is None and not self._stands:
            self._move(self._system, self._turns)
        return self._session

    @property
    def system(self) -> str:
        return self._system

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The turns so far, without an unfinished answer."""
        return tuple(self._turns)

    @property
    def tokens(self) -> list[int]:
        """The tokens that a fresh session reads to get this session's state, after the state that
        the conversation began with.
        """
        turns = self._turns[self._fixed :]
        return [*self._told(self._system), *(i for turn in turns for i in self._turn(turn))]

    @property
    def think(self) -> str:
        """How long the model thinks before it answers: one of THINK_MODES.

        Setting it raises ValueError for anything else, and for a template without thinking.
        """
        return self._think

    @think.setter
    def think(self, mode: str) -> None:
        if mode not in THINK_MODES:
            raise ValueError(f"think: found {mode!r}, expected one of {', '.join(THINK_MODES)}")
        if mode != "off" and not self.template.think:
            raise ValueError(
                f"think: found {mode!r}, but the template {self.template.name} has no thinking"
            )
        self._think = mode

    # ---- talking --------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget everything but the state and the system text that the conversation began with."""
        self._reply = None
        self._begin, template, system = self._first
        if template is not self.template:
            self._use(template)
        self._fixed, self._marks, self._told_before = 0, [], False
        self._move(system, [])

    def ask(
        self,
        text: str,
        *,
        thoughts: bool = False,
        undo: int = 0,
        lookup: int = 0,
        progress: FeedProgress | None = None,
        **sampling: Unpack[Sampling],
    ) -> Generator[str, None, None]:
        """Yield the answer to a user's text, piece by piece, without white space before it. With
        `thoughts`, also yield the thoughts before it, as pieces of the type Thought. The turn
        replaces the last `undo` turns.

        Closing the iterator stops the answer, and the conversation continues from the words that
        were yielded. If an exception ends the reading of the text (`progress` may raise one), it is
        as if the text had not been said, and nothing is taken back. The sampling options and
        `lookup` are those of `Session.generate`; `max_tokens` and a form apply to the answer, not
        to the thoughts.

        Raises ValueError for an empty text and for half a character, TypeError for what is no text,
        what `undo` raises, and what `Session.generate` raises for its options.
        """
        utf8("text", text)
        undo = integer("undo", undo)
        message = self.template.clean(text)
        if not message and not (self.template.exact and len(self._turns) > undo):
            raise ValueError("the message is empty")
        self._end_turn()
        if undo:
            self._left(undo)
        # Wrong options are refused before anything is read.
        self._session.generate([END_OF_TEXT], stop=self.stop, lookup=lookup, **sampling)
        self._reply = Reply(message, self._think, undo)
        return self._ask(self._reply, thoughts, lookup, progress, sampling)

    def _ask(
        self,
        reply: Reply,
        thoughts: bool,
        lookup: int,
        progress: FeedProgress | None,
        sampling: Sampling,
    ) -> Generator[str, None, None]:
        if reply is not self._reply:
            return
        session, started = self._session, time.monotonic()
        prompt = self._encode(self.template.asked(reply.user, reply.think))
        if reply.undo:
            before = self._replaced(session, prompt, reply.undo, progress)
        else:
            before = session.fork()
            if prompt:
                session.read(prompt, progress=progress)
        self._stands, reply.before = False, before
        self._marks = [*(mark for mark in self._marks if mark[0] < len(self._turns))]
        self._marks = [*self._marks, (len(self._turns), before)][-KEPT:]
        if not HINTS[reply.think]:
            reply.asked = session.fork()
        if reply.think == "fast":
            session.read(self._encode(f" {OPEN}\n{THINK_END}"))
        self.work = Work(len(prompt), time.monotonic() - started)
        try:
            with closing(self._pieces(reply, lookup, sampling)) as pieces:
                for piece in pieces:
                    if not isinstance(piece, Thought):
                        reply.pieces.append(piece)
                    if thoughts or not isinstance(piece, Thought):
                        yield piece
        finally:
            if reply is self._reply:
                self._end_turn()

    def _replaced(
        self, session: Session, prompt: list[int], undo: int, progress: FeedProgress | None
    ) -> Session:
        """Let the session read a question in place of the last turns, all or nothing; returns one
        that stands before the question."""
        turns = self._turns[: len(self._turns) - undo]
        before, marks, report = self._reached(self._system, turns, progress, len(prompt))
        asked = before.fork()
        if prompt:
            asked.read(prompt, progress=report)
        self._stands = False
        self._turns, self._marks = turns, marks
        session.rewind(asked)
        return before

    def _pieces(self, reply: Reply, lookup: int, sampling: Sampling) -> Generator[str, None, None]:
        """The pieces of a reply, its thoughts as Thoughts."""
        if HINTS[reply.think]:
            yield from self._thoughts(reply, lookup, sampling)
        if reply.think != "off" and form_of(sampling) is not None:
            self._session.read(self._encode(">\n"))  # which the form would not let it write
        with closing(self._generate(self.stop, lookup, sampling)) as pieces:
            if reply.think != "off":
                reply.thought = True
                yield from without_blanks(pieces, bracket=">")
            elif self.template.exact:
                yield from pieces
            elif not self.template.think:
                yield from without_blanks(pieces)
            else:
                for piece in told_apart(pieces):
                    reply.thought = reply.thought or isinstance(piece, Thought)
                    yield piece

    def _thoughts(
        self, reply: Reply, lookup: int, sampling: Sampling
    ) -> Generator[str, None, None]:
        """What the model thinks; then the session stands where the answer begins."""
        reply.thought, last = True, ""
        options = cast(Sampling, {k: v for k, v in sampling.items() if k not in OF_ANSWERS})
        options["max_tokens"] = self.think_tokens
        with closing(self._generate(THINK_END, lookup, options)) as pieces:
            for piece in without_blanks(pieces, bracket=">"):
                last = piece
                yield Thought(piece)
        self.work.finish_reason = None  # that of an answer
        # It may also have ended its document, or thought for too long.
        self._session.read(self._encode(THINK_END if last.endswith("\n") else f"\n{THINK_END}"))

    def _generate(
        self, stop: str | Sequence[str], lookup: int, sampling: Sampling
    ) -> Generator[str, None, None]:
        pieces = self._session.generate(stop=stop, lookup=lookup, **sampling)
        stream = self._session._stream
        assert stream is not None
        stream.keeps_mark = True  # until the turn is ended
        try:
            with closing(pieces):
                yield from pieces
        finally:
            facts = pieces.details
            self.work.written += facts.sampled_tokens
            self.work.writing += facts.prompt_seconds + facts.seconds
            self.work.finish_reason = facts.finish_reason

    def _end_turn(self) -> None:
        """End the turn of an answer, which may be half-way; then the session is where the text
        ends."""
        reply, self._reply = self._reply, None
        if reply is not None and reply.before is not None:
            self._turns.append(self._ended(reply))
            self._marks = self._marks[-KEPT:]
            self._finish(self._session, reply, self._turns[-1])
            self._stands = True
        elif not self._stands:
            self._move(self._system, self._turns)

    def _ended(self, reply: Reply) -> Turn:
        answer = "".join(reply.pieces)
        return Turn(reply.user, answer if self.template.exact else answer.strip())

    def _finish(self, session: Session, reply: Reply, turn: Turn) -> None:
        """Bring the session of a reply, or a fork of it, to where its turn ends."""
        assert reply.before is not None
        tokens = self._answer(turn.answer)
        if session is self._session and not reply.thought and session._amend(tokens):
            return
        if reply.asked is not None:
            session.rewind(reply.asked)
        else:
            session.rewind(reply.before)
            tokens = self._turn(turn)
        if tokens:
            session.read(tokens)

    # ---- changing what was said -----------------------------------------------------------------

    def undo(self, turns: int = 1, *, progress: FeedProgress | None = None) -> Turn:
        """Take back the last turns; returns the first of them.

        The states before the last KEPT turns are kept; to take back more, the text before them is
        read again. When an exception ends that, nothing has changed. Raises ValueError where less
        was said, or is known only as a state.
        """
        turns = integer("turns", turns)
        self._end_turn()
        left = self._left(turns)
        undone = self._turns[left]
        self._move(self._system, self._turns[:left], progress)
        return undone

    def _left(self, turns: int) -> int:
        """How many turns are left when so many are taken back."""
        left = len(self._turns) - turns
        if turns < 1 or left < 0:
            said = len(self._turns)
            if not said:
                raise ValueError("nothing was said that could be taken back")
            raise ValueError(f"found {turns} turns to take back, expected 1 to {said}")
        if left < self._fixed:
            raise ValueError("what was said by then is known only as a state")
        return left

    def tell(self, system: str, *, progress: FeedProgress | None = None) -> None:
        """Replace the system text, and read the conversation again behind it.

        When an exception ends that, nothing has changed. Raises ValueError where the template has
        no system text, for half a character, and where the old text is known only as a state.
        """
        utf8("system", system)
        text = self.template.clean(system)
        self._check_system(text)
        self._end_turn()
        if self._told_before:
            raise ValueError("what was said is known only as a state, with its system text")
        self._move(text, self._turns, progress)

    def _check_system(self, text: str) -> None:
        if text and not self.template.system:
            raise ValueError(f"system: the template {self.template.name} has no system text")

    def _move(
        self, system: str, turns: Sequence[Turn], progress: FeedProgress | None = None
    ) -> None:
        """Go to where another text ends, and make it that of the conversation; all or nothing."""
        session, marks, _ = self._reached(system, turns, progress)
        self._stands = False
        self._system, self._turns, self._marks = system, list(turns), marks
        self._session.rewind(session)
        self._stands = True

    def _reached(
        self,
        system: str,
        turns: Sequence[Turn],
        progress: FeedProgress | None,
        more: int = 0,
    ) -> tuple[Session, list[tuple[int, Session]], FeedProgress]:
        """A session where another text ends, the marks on the way, and the progress of `more`
        tokens that are read behind it."""
        same = system == self._system
        shared = next(
            (i for i, (a, b) in enumerate(zip(turns, self._turns, strict=False)) if a != b),
            min(len(turns), len(self._turns)),
        )
        marks = [(n, mark) for n, mark in self._marks if same and n <= shared]
        if marks:
            at, session, first = marks[-1][0], marks[-1][1].fork(), []
        else:
            at, session = self._fixed, self.model.session(self._begin)
            first = self._told(system)
        told = first if self._cache is not None else []
        kept = max(at, len(turns) - KEPT)  # from here on, states are
        for turn in turns[at:kept]:
            first = first + self._turn(turn)
        parts = [self._turn(turn) for turn in turns[kept:]]
        done, total = 0, len(first) + sum(map(len, parts)) + more

        def report(now: int, _total: int) -> None:
            if progress is not None:
                progress(done + now, total)

        if self._cache is not None and told:
            self.cached = self._cache.read(session, [told], start=self._begin, progress=report)
            first, done = first[len(told) :], len(told)
        for number, part in enumerate((first, *parts)):
            if number and (not marks or marks[-1][0] < kept + number - 1):
                marks.append((kept + number - 1, session.fork()))
            if part:
                session.read(part, progress=report)
            done += len(part)
        return session, marks[-KEPT:], report

    # ---- files ----------------------------------------------------------------------------------

    def save(self, path: str | PathLike[str], *, replace: bool = False) -> None:
        """Write the conversation's state and its text; while an answer is given, as if it ended
        with the words that were yielded.

        A file that is no saved state is replaced only with `replace`, and the model's never. Raises
        ValueError where `path` is the model's file, FileExistsError for another that is not to be
        replaced, OSError where the state cannot be written.
        """
        self._refuse_model(path)
        session, turns = self.session, self.turns
        if self._reply is not None and self._reply.before is not None:
            session, turn = session.fork(), self._ended(self._reply)
            self._finish(session, self._reply, turn)
            turns = (*turns, turn)
        begin = None if self._begin is None else digest(self._begin)
        text = text_of(Transcript(self.template, self._system, turns, begin))
        dataclasses.replace(session.state, text=text).save(path, replace=replace)

    def load(self, path: str | PathLike[str], *, any_model: bool = False) -> None:
        """Go on with a saved conversation, and with its template and system text. Its turns are
        known where it was saved with its text. `any_model` is that of `State.load`.

        Raises FormatError for a file that is no state or of another model, OSError where it cannot
        be read; the conversation is then what it was.
        """
        state = State.load(path, any_model=any_model)
        found = None if state.text is None else transcript_of(state.text)
        first = self._first[0]
        self._session.reset(state)
        self._reply, self._marks, self._stands = None, [], True
        self._begin, self._system, self._turns, self._fixed = state, "", [], 0
        self._told_before = False
        if found is None:
            return
        self._turns, self._system = list(found.turns), found.system
        if found.template != self.template:
            self._use(found.template)
        if found.begin is None:
            self._begin = None
        elif first is not None and found.begin == digest(first):
            self._begin = first
        else:
            self._fixed, self._told_before = len(self._turns), True

    def export(self, path: str | PathLike[str], *, replace: bool = False) -> None:
        """Write the conversation as Markdown, without what was thought.

        Raises ValueError where `path` is the model's file, FileExistsError where there is a file
        that is not to be replaced, OSError where it cannot be written.
        """
        self._refuse_model(path)
        write_markdown(path, self._system, self.turns, replace=replace)

    def _refuse_model(self, path: str | PathLike[str]) -> None:
        model = self.model.path
        if Path(path).exists() and model.exists() and model.samefile(path):
            raise ValueError(f"{path}: is the model itself; name another file")

    # ---- tokens ---------------------------------------------------------------------------------

    def _encode(self, text: str) -> list[int]:
        return self.model.tokenizer.encode(text) if text else []

    def _told(self, system: str) -> list[int]:
        return [] if self._told_before else self._encode(self.template.told(system))

    def _answer(self, text: str) -> list[int]:
        return self._encode(self.template.answered(text))

    def _turn(self, turn: Turn) -> list[int]:
        return [*self._encode(self.template.asked(turn.user)), *self._answer(turn.answer)]
