# SPDX-License-Identifier: Apache-2.0
"""One request in the engine's thread: what it feeds, and what it makes of the logits.

A program is a generator. It yields what to feed to its session, gets the logits when all of that
was fed, and emits events on the way. It knows nothing of other programs: the scheduler feeds them
together, and no bit of an answer depends on that.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

from .. import _core
from ..chat.templates import HINTS, THINK_END
from ..chat.thinking import CLOSE, OPEN, ToldApart, WithoutBlanks
from ..chat.thinking import Thought as ThoughtPiece
from ..generation import Answer, Stream, TokenLogprob
from ..model import Model, Session
from ..prefix_cache import Entry, PrefixCache, Text
from ..state import State
from .calls import CallReader
from .compose import Composer, Prompt
from .fields import Refused
from .request import Echo, Event, Finish, Request, Thought, Usage
from .request import Text as TextPiece

TAIL = 80  # characters of a text that say which one it is
EMBEDDED_AT_ONCE = 64  # tokens
SOON = 8  # tokens that end an answer; more of them can wait for an idle moment
ROWS = 32  # of logits at once, where those of a whole prompt are wanted


class Feed(NamedTuple):
    """Tokens for a session."""

    session: _core.Session
    tokens: list[int]
    logits: _core.Logits
    speaking: bool
    """Whether a text waits for it: then it goes into the very next step, and whole."""


class Rows(NamedTuple):
    """Logits [rows, n_vocab] of a step, and where those of a feed begin."""

    logits: bytearray
    row: int


Steps = Generator["Feed | None", "Rows | None", None]
KeepOnDisk = Callable[[Text, int, Entry, State], None]


class Ended(NamedTuple):
    """A `Finish` whose state is not stored yet."""

    finish: Finish
    state: State | None
    tail: str
    """The last words of the text."""
    id: str | None = None
    """That the state gets; None: any."""


class Vector(NamedTuple):
    """What `Embedding` ends with."""

    values: list[float]
    tokens: int


class Program(ABC):
    """Work for the scheduler."""

    expired = False
    """Whether its time is over: it ends as soon as it can."""
    idle = False
    """Whether nobody waits for what it still does."""
    reads: frozenset[bytes] = frozenset()
    """Keys of beginnings that it reads, unless it finds them in the cache."""

    def __init__(self) -> None:
        self.events: list[Event | Ended | Vector] = []
        """That were emitted and not collected."""

    @abstractmethod
    def steps(self) -> Steps:
        """Runs in the engine's thread."""


class Writing(Program):
    """Reads a prompt and writes the text behind it."""

    def __init__(
        self,
        composer: Composer,
        request: Request,
        prompt: Prompt,
        answer: Answer,
        *,
        cache: PrefixCache,
        keep_on_disk: KeepOnDisk | None,
        think_tokens: int,
        max_tokens: int,
    ) -> None:
        """`answer` is that of `composer.answer`, with `max_tokens`."""
        super().__init__()
        self._composer, self._request, self._prompt = composer, request, prompt
        self._model: Model = composer.model
        self._answer = answer
        self._cache, self._keep_on_disk = cache, keep_on_disk
        self._scores = request.echo and answer.top is not None  # those of the prompt
        self._uses_cache = request.cache and not self._scores
        self._think_tokens, self._max_tokens = think_tokens, max_tokens
        self._mode = composer.mode(request)
        self._calls = CallReader(request.tools) if request.tools is not None else None
        self._base: Session | None = None  # where the shared beginnings end
        self._visible: list[str] = []  # the answer's pieces, calls included
        self._said = 0  # of the answer's logprobs, those that were emitted
        self._thinks = False  # whether a thought is being told as text
        self._newline = False  # whether the last thought ends with one
        self._cached = self._thought_tokens = 0
        self._begun = self._first = 0.0  # moments
        self._behind: Rows | None = None  # what was fed last; None: the session knows
        if self._uses_cache:
            self.reads = frozenset(key for key, _ in prompt.text.beginnings[: prompt.shared])

    # ---- the whole of it ------------------------------------------------------------------------

    def steps(self) -> Steps:
        self._begun = self._first = time.monotonic()
        session = self._model.session()
        yield from self._score(session) if self._scores else self._read(session)
        stream = None if self.expired else (yield from self._write(session))
        if self._calls is not None:
            self._emit_all(self._calls.end())
        if self._answer.top is not None and len(self._answer.logprobs) > self._said:
            self._emit_text("")
        if self.expired or not self._request.store:
            self.events.append(Ended(self._finish(), None, ""))
            self.idle = True
            if self.expired or not self._uses_cache or self._request.prompt is not None:
                return
        if self._request.prompt is None:
            yield from self._remember(session, stream)
        elif stream is not None:
            stream.settle()
        if self._request.store:
            tail = "".join(self._visible)[-TAIL:]
            self.events.append(Ended(self._finish(), session.state, tail, self._request.store_as))

    def _read(self, session: Session) -> Steps:
        prompt, text = self._prompt, self._prompt.text
        number = 0
        if self._uses_cache:
            number = self._cache.begin(session, text.up_to(prompt.shared))
        else:
            session.reset(text.start)
        done = self._cached = text.beginnings[number - 1].end if number else 0
        while True:
            self.reads -= {key for key, _ in text.beginnings[:number]}
            if number == prompt.shared and self._mode != "off":  # so it will be gone back to
                self._base = session.fork()
            if number == len(text.beginnings) or self.expired:
                break
            end, number = text.beginnings[number].end, number + 1
            wanted = _core.Logits.last if end == len(text.tokens) else _core.Logits.none
            yield from self._feed(session._engine, list(text.tokens[done:end]), wanted)
            done = end
            if self._uses_cache and number <= prompt.shared:
                self._keep(session, text, number)
        if self._request.echo:
            self.events.append(Echo(self._model.tokenizer.decode(text.tokens)))

    def _feed(
        self,
        core: _core.Session,
        tokens: list[int],
        logits: _core.Logits = _core.Logits.last,
        *,
        speaking: bool = False,
    ) -> Steps:
        """Feed, and remember the logits behind it. Those of a step are in one memory: who kept them
        while others go on would keep the rows of all."""
        self._behind = None
        self._behind = yield Feed(core, tokens, logits, speaking)

    def _keep(self, session: Session, text: Text, number: int) -> None:
        entry = self._cache.keep(session, text, number)
        if self._keep_on_disk is not None:
            self._keep_on_disk(text, number, entry, session.state)

    def _score(self, session: Session) -> Steps:
        """Read the prompt and tell how likely each of its tokens was."""
        tokens = list(self._prompt.text.tokens)
        session.reset(self._prompt.text.start)
        found: list[TokenLogprob | int] = [*tokens[:1]]
        for start in range(0, len(tokens), ROWS):
            part = tokens[start : start + ROWS]
            yield from self._feed(session._engine, part, _core.Logits.all)
            if self.expired:
                return
            found += self._scored(tokens[start + 1 : start + ROWS + 1])
        self.events.append(Echo(self._model.tokenizer.decode(tokens), tuple(found)))

    def _scored(self, tokens: list[int]) -> Iterator[TokenLogprob]:
        """Each behind the token before it. Then the logits are those behind the last one."""
        assert self._behind is not None
        logits, row = self._behind
        for token in tokens:
            own, *best = _core.logprobs(
                logits, row, self._model.n_vocab, token, self._answer.top or 0
            )
            yield TokenLogprob(*own, best)
            row += 1
        self._behind = Rows(logits, row)

    def _write(self, session: Session) -> Generator[Feed | None, Rows | None, Stream | None]:
        """Think and answer; returns the stream of the answer, where it was begun."""
        core, left = session._engine, self._max_tokens
        if self._mode == "fast":
            forced = self._composer.encode(f" {OPEN}\n{THINK_END}")
            yield from self._feed(core, forced, speaking=True)
        elif HINTS[self._mode]:
            yield from self._think(session, min(self._think_tokens, left))
            left -= self._thought_tokens
            if left <= 0 or self.expired:
                return None
            # It may also have ended its document, or thought for too long.
            ended = THINK_END if self._newline else f"\n{THINK_END}"
            yield from self._feed(core, self._composer.encode(ended), speaking=True)
        if self._mode != "off" and self._answer.restricted:
            # which the form would not let it write
            yield from self._feed(core, self._composer.encode(">\n"), speaking=True)
        self._answer.limit(left)
        stream = Stream(core, [], self._answer)
        reader = self._reader()
        yield from self._sample(stream, core, lambda piece: self._say(reader.push(piece)))
        self._say(reader.end())
        return stream

    def _sample(self, stream: Stream, core: _core.Session, say: Callable[[str], None]) -> Steps:
        answer = stream.answer
        while True:
            piece = self._taken(stream, core)
            if self._first == self._begun:
                self._first = time.monotonic()
            if self.expired and not answer.complete:
                piece += answer.cut()
            say(piece)
            if answer.complete:
                return
            core, ids, mode = stream.part()
            yield from self._feed(core, ids, mode, speaking=True)

    def _taken(self, stream: Stream, core: _core.Session) -> str:
        """The next piece of a text."""
        rows, self._behind = self._behind or Rows(core.logits(), 0), None
        return stream.take(rows.logits, rows.row, self._model.n_vocab)

    def _think(self, session: Session, most: int) -> Steps:
        core = session._engine
        stream = Stream(core, [], self._composer.thoughts(self._request, most, THINK_END))
        trim = WithoutBlanks(bracket=">")

        def say(piece: str) -> None:
            if seen := trim.push(piece):
                self._newline = seen.endswith("\n")
                self._emit_thought(seen)

        yield from self._sample(stream, core, say)
        stream.settle()
        self._thought_tokens = len(stream.answer.tokens)

    # ---- pieces ---------------------------------------------------------------------------------

    def _reader(self) -> Reader:
        template = self._composer.template
        if self._request.prompt is not None or template.exact or self._prompt.begun:
            return Reader()
        if self._mode != "off":
            return Trimmed(">")
        return Apart() if template.think else Trimmed()

    def _say(self, pieces: Sequence[str]) -> None:
        for piece in pieces:
            if isinstance(piece, ThoughtPiece):
                self._emit_thought(piece)
            elif piece:
                self._visible.append(piece)
                if self._calls is None:
                    self._emit_text(piece)
                else:
                    self._emit_all(self._calls.push(piece))

    def _emit_all(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, TextPiece):
                self._emit_text(event.text)
            else:
                self.events.append(event)

    def _emit_text(self, text: str) -> None:
        if self._thinks:
            self._thinks, text = False, f"\n{CLOSE}\n\n{text}"
        answer = self._answer
        whole, begun = answer.given() if answer.top is not None else (0, [])
        new = answer.logprobs[self._said : whole + bool(begun)]
        self._said += len(new)
        self.events.append(TextPiece(text, tuple(new)))

    def _emit_thought(self, text: str) -> None:
        self._said = len(self._answer.tokens)  # their tokens are not those of the text
        if not self._request.thoughts_in_text:
            self.events.append(Thought(text))
            return
        self.events.append(TextPiece(text if self._thinks else f"{OPEN}{text}"))
        self._thinks = True

    # ---- the end --------------------------------------------------------------------------------

    def _remember(self, session: Session, stream: Stream | None) -> Steps:
        """Let the session stand where the visible text ends, and keep that: the next turn begins
        there."""
        prompt = self._prompt
        visible = self._composer.visible(prompt, self._request, "".join(self._visible))
        begun = list(prompt.begun_tokens)
        rest: list[int] | None = None
        if stream is not None and self._mode == "off" and visible[: len(begun)] == begun:
            rest = stream.back_to(visible[len(begun) :])
        if rest is None:
            rest = [*self._back_to_base(session), *prompt.asked, *visible]
        read = array("i", [*prompt.text.tokens[: prompt.base], *prompt.asked, *visible])
        text = prompt.text.other(read)
        if self.idle and len(rest) <= SOON:
            # The next turn may come at once, and waits for it.
            self.idle, self.reads = False, frozenset({text.beginnings[0].key})
        if rest:
            yield from self._feed(session._engine, rest, _core.Logits.none)
        if self._uses_cache:
            self._keep(session, text, 1)

    def _back_to_base(self, session: Session) -> Sequence[int]:
        """Let the session stand where the shared beginnings end; returns what it has still to read
        of them."""
        if self._base is not None:
            session.rewind(self._base)
            return ()
        text, number = self._prompt.text, 0
        if self._uses_cache:
            number = self._cache.begin(session, text.up_to(self._prompt.shared))
        else:
            session.reset(text.start)
        done = text.beginnings[number - 1].end if number else 0
        return text.tokens[done : self._prompt.base]

    def _finish(self) -> Finish:
        answer, now = self._answer, time.monotonic()
        reason = answer.finish_reason
        called = self._calls is not None and self._calls.calls > 0
        stop = answer.stopped_by.decode("utf-8", "surrogateescape") if answer.stopped_by else None
        return Finish(
            "length" if reason in ("length", None) else "tool_calls" if called else "stop",
            Usage(
                prompt_tokens=len(self._prompt.text.tokens),
                cached_tokens=self._cached,
                completion_tokens=len(answer.tokens) + self._thought_tokens,
                thought_tokens=self._thought_tokens,
                prompt_seconds=self._first - self._begun,
                seconds=now - self._first,
            ),
            stop if stop in self._request.stop else None,
            parent=self._request.state,
        )


class Embedding(Program):
    """Makes the vector of a text."""

    def __init__(self, model: Model, ids: list[int]) -> None:
        super().__init__()
        self._model, self._ids = model, ids

    def steps(self) -> Steps:
        model = self._model
        vectors = model._embedding(self._ids, model.embedding_depth, "mean", EMBEDDED_AT_ONCE)
        found: list[float] = []
        for vector in vectors:
            if self.expired:
                raise Refused(503, "the vector was not ready in time", kind="server_error")
            found = vector.tolist()
            yield None  # others go first
        self.events.append(Vector(found, len(self._ids)))


class Reading(Program):
    """Reads a prompt, to store the state behind it."""

    def __init__(
        self, model: Model, prompt: Prompt, cache: PrefixCache, keep_on_disk: KeepOnDisk | None
    ) -> None:
        super().__init__()
        self._model, self._prompt = model, prompt
        self._cache, self._keep_on_disk = cache, keep_on_disk
        self.reads = frozenset(key for key, _ in prompt.text.beginnings)

    def steps(self) -> Steps:
        began = time.monotonic()
        session, text = self._model.session(), self._prompt.text
        number = self._cache.begin(session, text)
        done = cached = text.beginnings[number - 1].end if number else 0
        for number, (_, end) in enumerate(text.beginnings[number:], number + 1):  # noqa: B020
            self.reads -= {key for key, _ in text.beginnings[: number - 1]}
            if self.expired:
                raise Refused(503, "the text was not read in time", kind="server_error")
            part = list(text.tokens[done:end])
            yield Feed(session._engine, part, _core.Logits.none, False)
            entry = self._cache.keep(session, text, number)
            if self._keep_on_disk is not None:
                self._keep_on_disk(text, number, entry, session.state)
            done = end
        usage = Usage(len(text.tokens), cached, 0, 0, time.monotonic() - began, 0.0)
        self.events.append(Ended(Finish("stop", usage), session.state, ""))


class Reader:
    """The text of an answer as it comes."""

    def push(self, piece: str) -> Sequence[str]:
        return [piece]

    def end(self) -> Sequence[str]:
        return []


class Trimmed(Reader):
    """Without blanks before it."""

    def __init__(self, bracket: str = "") -> None:
        self._text = WithoutBlanks(bracket)

    def push(self, piece: str) -> Sequence[str]:
        return [self._text.push(piece)]


class Apart(Reader):
    """With thoughts told apart."""

    def __init__(self) -> None:
        self._text = ToldApart()

    def push(self, piece: str) -> Sequence[str]:
        return self._text.push(piece)

    def end(self) -> Sequence[str]:
        return self._text.end()
