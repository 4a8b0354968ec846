# SPDX-License-Identifier: Apache-2.0
"""Text from logits, and a session that stands where the text stops."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from numbers import Real
from operator import index
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, SupportsIndex, TypedDict, cast

from . import _core
from .files.form import utf8
from .grammar import Constraint
from .lookup import Lookup
from .state import SamplerState
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Floats = bytearray
"""Of 32 bits, as the engine takes and gives them. Text is generated without numpy, which takes
longer to import than a model to open."""

Choice = tuple[_core.Sampler, int, "bytes | None"]
"""A sampler, a row of logits, and what is allowed."""

MAX_SEED = 2**64 - 1

# Where more sampled tokens wait to be fed again, none are drafted: long steps cost more.
MOST_AGAIN = 3


LogitsHook = Callable[["NDArray[np.float32]", list[int]], None]
"""Changes the logits [n_vocab] after the tokens that were generated so far."""


class Choosing(TypedDict, total=False):
    """How tokens are chosen. `Session.generate` says what the options mean."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    presence_penalty: float
    frequency_penalty: float
    penalty_decay: float
    penalty_window: int
    seed: int | None
    logit_bias: Mapping[int, float]
    banned: Iterable[int]
    forced: Iterable[int]
    earlier: Iterable[int]
    stop_tokens: Iterable[int]
    logits_hook: LogitsHook | None
    logprobs: int | None


class Sampling(Choosing, total=False):
    """The options of `Session.generate` but for those that depend on the prompt."""

    schema: dict[str, Any] | str | None
    regex: str | None
    choices: Iterable[str] | None
    grammar: str | None


class Options(Sampling, total=False):
    """All options of `Session.generate`."""

    stop: str | Sequence[str]
    lookup: int


FinishReason = Literal["stop", "length", "end", "cancelled"]


class TokenLogprob(NamedTuple):
    """What the model thought of a token that was chosen."""

    token: int
    logprob: float
    """ln p, at temperature 1 and before biases, penalties and cuts."""
    top: list[tuple[int, float]]
    """The likeliest tokens with theirs, best first."""


@dataclass(frozen=True)
class Details:
    """The facts about a text, as far as it was yielded."""

    tokens: list[int]
    """The text's tokens. Where a stop string begins inside one, it is the last."""
    logprobs: list[TokenLogprob] | None
    """One for each of `tokens`, where they were asked for."""
    finish_reason: FinishReason | None
    """stop: a stop string, a stop token or the end of a grammar. length: `max_tokens`. end: the
    token that ends a document. cancelled: the iterator was closed, or the session used otherwise.
    None: there is more to come."""
    prompt_tokens: int
    sampled_tokens: int
    """All that were chosen, with those of a stop string."""
    prompt_seconds: float
    """What the engine took until the first token was chosen,"""
    seconds: float
    """and from there on. What the caller did in between is not counted."""

    @property
    def tokens_per_second(self) -> float:
        """Of all tokens but the first; 0 where there are no others."""
        return max(self.sampled_tokens - 1, 0) / self.seconds if self.seconds else 0.0


# Keys of llama.cpp's that mean what options do here. Its repetition penalty divides logits and its
# window of 0 is none, so those do not; nor are there mirostat and XTC here.
RECOMMENDING = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}


def recommended_sampling(file: _core.ModelFile) -> Choosing:
    """The options that the keys general.sampling.* of a model's file recommend. Values that no text
    can be made with are left out."""
    found: dict[str, Any] = {}
    for key, name in RECOMMENDING.items():
        value = file.get(f"general.sampling.{key}")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if name != "top_k":
            value = float(f"{value:.7g}")  # 0.3 where the file has it in 32 bits
        with suppress(ValueError, TypeError):
            _core.Sampler(**{name: value})
            found[name] = value
    return cast(Choosing, found)


class Answer:
    """A text in the making: it takes logits, gives text, and says which token to feed next.

    It knows no session: whoever feeds tokens, of one answer or of many, asks it after each step.
    `_core.Answer` knows what text is certain, and what ends it; C programs use the same.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        n_vocab: int,
        without_text: Sequence[int],
        *,
        stop: str | Sequence[str] = (),
        max_tokens: int = 256,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 0.3,
        min_p: float = 0.0,
        typical_p: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        penalty_decay: float = 0.996,
        penalty_window: int = 0,
        seed: int | None = None,
        logit_bias: Mapping[int, float] | None = None,
        banned: Iterable[int] = (),
        forced: Iterable[int] = (),
        earlier: Iterable[int] = (),
        stop_tokens: Iterable[int] = (),
        logits_hook: LogitsHook | None = None,
        logprobs: int | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        """`Session.generate` says what the options mean. The ids `without_text` are banned too.

        Raises ValueError for one out of range, TypeError for one of another kind.
        """
        if seed is None:
            seed = int.from_bytes(os.urandom(8), "little")
        self._sampler = _core.Sampler(
            temperature=real("temperature", temperature),
            top_k=whole("top_k", top_k, 0, 2**63 - 1),
            top_p=real("top_p", top_p),
            min_p=real("min_p", min_p),
            typical_p=real("typical_p", typical_p),
            presence_penalty=real("presence_penalty", presence_penalty),
            frequency_penalty=real("frequency_penalty", frequency_penalty),
            penalty_decay=real("penalty_decay", penalty_decay),
            penalty_window=whole("penalty_window", penalty_window, 0, 2**63 - 1),
            seed=whole("seed", seed, 0, MAX_SEED),
            logit_bias=biases(logit_bias, n_vocab),
            banned=[*without_text, *token_ids("banned", banned, n_vocab)],
            forced=token_ids("forced", forced, n_vocab),
        )
        self._earlier = token_ids("earlier", earlier, n_vocab)
        for token in self._earlier:
            self._sampler.accept(token, _core.frequency_weight(tokenizer.token_bytes(token)))
        self._seeds = [seed]  # at the beginning and after each token
        if logits_hook is not None and not callable(logits_hook):
            raise TypeError(f"logits_hook: found {logits_hook!r}, expected a function")
        self._hook = logits_hook
        self._constraint = constraint
        ends = token_ids("stop_tokens", stop_tokens, n_vocab)
        self.top = None if logprobs is None else whole("logprobs", logprobs, 0, n_vocab)
        most = min(whole("max_tokens", max_tokens, 0), 2**63 - 1)
        self._core = _core.Answer(stop_bytes(stop), ends, most)
        self._tokenizer = tokenizer
        self.tokens: list[int] = []
        """All that were sampled, but for the one that ends the text."""
        self.logprobs: list[TokenLogprob] = []
        """Of these tokens, where they were asked for."""

    @property
    def finish_reason(self) -> FinishReason | None:
        return self._core.finish_reason

    @property
    def stopped_by(self) -> bytes | None:
        """The stop string that ended the text."""
        return self._core.stopped_by

    @property
    def complete(self) -> bool:
        """Whether no token follows."""
        return self.finish_reason is not None

    @property
    def restricted(self) -> bool:
        """Whether the text has to have a form."""
        return self._constraint is not None

    @property
    def all_given(self) -> bool:
        """Whether the text of all tokens was returned."""
        return self._core.all_given

    def choice(self, row: int) -> Choice | None:
        """What `KeptLogits.sample` takes to choose the next token from a row; None where no token
        is chosen, or a copy of the row is needed.
        """
        if not self._core.wants_token or self._needs_row:
            return None
        return self._sampler, row, self._allowed()

    def take(
        self, logits: Floats | _core.KeptLogits, row: int, n_vocab: int, token: int | None = None
    ) -> str:
        """Sample the next token from a row of [rows, n_vocab] logits (0: all are one row), or take
        the one that was chosen from it.

        Returns the text that is now certain: whole characters that begin no stop string. Unless the
        answer is complete, the last of `tokens` is the one to feed next.
        """
        if not self._core.wants_token:
            return self._core.end("length")
        if self._needs_row and not isinstance(logits, bytearray):
            logits, row, n_vocab = logits.row(row), 0, 0
        if token is None:
            token = self._sample(logits, row, n_vocab)
        if reason := self._core.ends_at(token):
            return self._core.end(reason if self._constraint is None else "stop")
        data = self._tokenizer.token_bytes(token)
        self.tokens.append(token)
        if self.top is not None:
            assert isinstance(logits, bytearray)
            own, *best = _core.logprobs(logits, row, n_vocab, token, self.top)
            self.logprobs.append(TokenLogprob(*own, best))
        self._sampler.accept(token, _core.frequency_weight(data))
        self._seeds.append(self._sampler.seed)
        if self._constraint is not None:
            self._constraint.accept(token)
        last = self._constraint is not None and self._constraint.complete
        return self._core.take(token, data, last)

    def limit(self, tokens: int) -> None:
        """Let at most so many more come."""
        self._core.limit(tokens)

    def cut(self) -> str:
        """End the text where it is, as `max_tokens` does; returns what was held back."""
        return self._core.end("length")

    @property
    def _needs_row(self) -> bool:
        """Whether it looks at all logits, on the host."""
        return self._hook is not None or self.top is not None

    def _allowed(self) -> bytes | None:
        return None if self._constraint is None else self._constraint.allowed()

    def _sample(self, logits: Floats | _core.KeptLogits, row: int, n_vocab: int) -> int:
        if self._hook is not None:
            assert isinstance(logits, bytearray)
            import numpy as np

            rows = np.frombuffer(logits, np.float32).reshape(-1, n_vocab or len(logits) // 4)
            result: Any = self._hook(rows[row], list(self.tokens))
            if result is not None:
                raise TypeError(
                    f"logits_hook: it returned {type(result).__name__}, expected None: "
                    "it changes the array that it is given"
                )
        return self._sampler.sample(logits, row, n_vocab, self._allowed())

    def sampler_state(self) -> SamplerState:
        """Of the returned text, up to its last whole token."""
        count, _ = self.given()
        return SamplerState(self._seeds[count], (*self._earlier, *self.tokens[:count]))

    def given(self) -> tuple[int, list[int]]:
        """What the returned text consists of: so many of `tokens`, and where it ends inside the
        next one, the tokens of its beginning.
        """
        whole, begun = self._core.given()
        if not begun:
            return whole, []
        return whole, self._tokenizer.encode(
            self._tokenizer.token_bytes(self.tokens[whole])[:begun]
        )


class Stream:
    """An answer and the engine's session that feeds it."""

    def __init__(
        self, core: _core.Session, prompt: list[int], answer: Answer, lookup: Lookup | None = None
    ) -> None:
        """Without a prompt, the answer goes on from the last token that was fed. `lookup` knows the
        text so far, prompt included.
        """
        self.answer = answer
        self.lookup = lookup
        self.ended = False
        """Whether no text follows, and the session stands where it ends."""
        self.busy = False
        """Whether another thread works with the session, or is about to."""
        self.prompt_seconds = self.seconds = 0.0
        self._core = core
        self._prompt_tokens = len(prompt)
        self._prompt: list[int] | None = prompt or None
        self._start = core.tokens + len(prompt)
        self._draft: list[int] = []  # fed, or to be fed, and not yet sampled
        self._skip = 0  # rows of logits before the one that follows the last sampled token
        # Where the session can go back to: what was fed by then was also given out.
        self._mark: _core.Session | None = None
        self._marked = False
        self.keeps_mark = False
        """Whether `mark` is known after the end, too."""

    def part(self) -> tuple[_core.Session, list[int], _core.Logits]:
        """What to feed next: the prompt; then what was sampled, and perhaps a draft of more."""
        if self._prompt:
            return self._core, self._prompt, _core.Logits.last
        sampled = self.answer.tokens[self._core.tokens - self._start :]
        draft = self.lookup.draft() if self.lookup and len(sampled) <= MOST_AGAIN else []
        if self.answer.all_given:
            self._marked = False
        if not self._marked and (draft or not self.answer.all_given):
            if self._mark is None:
                self._mark = self._core.fork()
            else:
                self._mark.rewind(self._core)
            self._marked = True
        self._draft = draft
        self._skip = len(sampled) - 1 if draft else 0
        return self._core, sampled + draft, _core.Logits.all if draft else _core.Logits.last

    def choice(self, row: int) -> Choice | None:
        """Of the first token of `take`."""
        return self.answer.choice(row + self._skip)

    def take(
        self,
        logits: Floats | _core.KeptLogits,
        row: int,
        n_vocab: int,
        seconds: float = 0.0,
        token: int | None = None,
    ) -> str:
        """The text that is certain after the logits of `part`, which begin at a row, and which took
        so long. `token` is the first one, where it was chosen already.
        """
        start = time.perf_counter() - seconds
        begun = bool(self.answer.tokens)
        self._prompt = None
        known, draft = len(self.answer.tokens), self._draft
        row += self._skip
        text = self.answer.take(logits, row, n_vocab, token)
        accepted = 0
        while (
            accepted < len(draft)
            and not self.answer.complete
            and self.answer.tokens[-1] == draft[accepted]
        ):
            accepted += 1
            text += self.answer.take(logits, row + accepted, n_vocab)
        if accepted < len(draft):
            assert self._mark is not None
            self._core.rewind(self._mark)
        self._draft = []
        if self.lookup:
            self.lookup.extend(self.answer.tokens[known:])
            if draft:
                self.lookup.learn(len(draft), accepted)
        if begun:
            self.seconds += time.perf_counter() - start
        else:
            self.prompt_seconds += time.perf_counter() - start
        return text

    @property
    def goes_on(self) -> bool:
        """Whether the first token comes after the last one that was fed."""
        return self._prompt is None and not self.answer.tokens and not self.answer.complete

    def last_logits(self) -> bytearray:
        return self._core.logits()

    def details(self) -> Details:
        answer = self.answer
        whole, begun = answer.given()
        count = whole + bool(begun)
        return Details(
            tokens=answer.tokens[:count],
            logprobs=None if answer.top is None else answer.logprobs[:count],
            finish_reason=answer.finish_reason or ("cancelled" if self.ended else None),
            prompt_tokens=self._prompt_tokens,
            sampled_tokens=len(answer.tokens),
            prompt_seconds=self.prompt_seconds,
            seconds=self.seconds,
        )

    def settle(self) -> None:
        """End, and leave the session where the text ends that was returned."""
        if not self.ended:
            self.ended = True
            self._settle(self._core)
            if not self.keeps_mark:
                self._mark = None

    @property
    def mark(self) -> tuple[int, _core.Session] | None:
        """A session before the last tokens of the answer, and how many of them it has read."""
        return None if self._mark is None else (self._mark.tokens - self._start, self._mark)

    def back_to(self, tokens: list[int]) -> list[int] | None:
        """End, with the session where it has read a beginning of `tokens` behind the prompt, and
        nothing else. Returns the rest of them; None, and nothing has changed, where it has read
        something else and no such state is known.
        """
        core, given = self._core, self.answer.tokens
        fed = core.tokens - self._start
        if self._draft or fed < 0 or given[:fed] != tokens[:fed]:
            if self.mark is None or tokens[: self.mark[0]] != given[: self.mark[0]]:
                return None
            fed, mark = self.mark
            core.rewind(mark)
        self.ended = True
        return tokens[fed:]

    def settled_fork(self) -> _core.Session:
        """A second session where that text ends; this one goes on."""
        fork = self._core.fork()
        self._settle(fork)
        return fork

    def _settle(self, core: _core.Session) -> None:
        if core.tokens < self._start:  # the prompt was not read
            return
        # What was fed is counted by the engine: an interrupt cannot fall between the two.
        whole, begun = self.answer.given()
        if self._draft or core.tokens - self._start > whole:
            assert self._mark is not None
            core.rewind(self._mark)
        rest = self.answer.tokens[core.tokens - self._start : whole] + begun
        if rest:
            core.feed(rest, _core.Logits.none)


Work = Callable[[], "bytearray | _core.KeptLogits | None"]
Piece = tuple[int, str]  # the number of the stream, its text
Flow = Generator[Work | Piece, "bytearray | _core.KeptLogits | None", None]


def flow(
    streams: Sequence[Stream], n_vocab: int, progress: Callable[[int], None] | None = None
) -> Flow:
    """The way in which all texts come about, of one stream or of several that are fed together.

    It yields pieces of text, and in between work for the engine: whoever drives it does that, in
    this thread or another, and sends the result. Whenever it stops, the sessions stand where the
    texts end that were yielded. `progress` is called in the middle of long work, and may raise.
    """
    try:
        for i, stream in enumerate(streams):
            if stream.goes_on:
                yield from step([(i, stream, 1)], stream.last_logits, n_vocab)
        while active := [(i, s) for i, s in enumerate(streams) if not s.ended]:
            parts = [stream.part() for _, stream in active]
            members = [
                (i, stream, len(ids) if mode == _core.Logits.all else 1)
                for (i, stream), (_, ids, mode) in zip(active, parts, strict=True)
            ]
            yield from step(members, partial(_core.feed_together, parts, progress, True), n_vocab)
    finally:
        for stream in streams:
            stream.settle()


def step(members: Sequence[tuple[int, Stream, int]], work: Work, n_vocab: int) -> Flow:
    """One step of some streams, given with their numbers and rows of logits."""
    start = time.perf_counter()
    logits = yield work
    assert logits is not None
    chosen = {} if isinstance(logits, bytearray) else choose(members, logits)
    seconds = time.perf_counter() - start
    row = 0
    for i, stream, rows in members:
        # the one who got the text before may have ended this stream
        if not stream.ended:
            if text := stream.take(logits, row, n_vocab, seconds, chosen.get(i)):
                yield i, text
            if stream.answer.complete:
                yield stream.settle
        row += rows


def choose(members: Sequence[tuple[int, Stream, int]], logits: _core.KeptLogits) -> dict[int, int]:
    """The first token of each stream where a GPU finds many together; {} for a single one."""
    choices: dict[int, Choice] = {}
    row = 0
    for i, stream, rows in members:
        if len(members) > 1 and (choice := stream.choice(row)):
            choices[i] = choice
        row += rows
    return dict(zip(choices, logits.sample(list(choices.values())), strict=True))


def run(streams: Sequence[Stream], n_vocab: int) -> Generator[Piece, None, None]:
    """The pieces of a flow, whose work is done here."""
    steps = flow(streams, n_vocab)
    result = None
    try:
        while True:
            found = steps.send(result)
            if isinstance(found, tuple):
                result = None
                yield found
            else:
                result = found()
    except StopIteration:
        return
    finally:
        steps.close()


class Generation(Iterator[str]):
    """A text as it comes: its pieces, and the facts about it."""

    def __init__(self, stream: Stream, n_vocab: int) -> None:
        """For `Session.generate`."""
        self._stream = stream
        self._pieces = run([stream], n_vocab)

    def __next__(self) -> str:
        return next(self._pieces)[1]

    def close(self) -> None:
        """End the text where it stands."""
        self._pieces.close()
        self._stream.settle()  # where it had not begun

    @property
    def details(self) -> Details:
        """Of the pieces so far; of the whole text when there are no more."""
        return self._stream.details()


class BatchGeneration(Iterator[Piece]):
    """Several texts as they come: numbers and pieces, and the facts about each."""

    def __init__(self, streams: Sequence[Stream], n_vocab: int) -> None:
        """For `Batch.generate`."""
        self._streams = streams
        self._pieces = run(streams, n_vocab)

    def __next__(self) -> Piece:
        return next(self._pieces)

    def close(self) -> None:
        """End all texts where they stand."""
        self._pieces.close()
        for stream in self._streams:
            stream.settle()

    @property
    def details(self) -> list[Details]:
        """Of each text so far."""
        return [stream.details() for stream in self._streams]


def integer(name: str, value: SupportsIndex) -> int:
    """An option that is a whole number of any size."""
    try:
        return index(value)
    except TypeError:
        raise TypeError(f"{name}: found {value!r}, expected a whole number") from None


def whole(name: str, value: SupportsIndex, least: int, most: int | None = None) -> int:
    """An option that is a whole number."""
    number = integer(name, value)
    if number < least or (most is not None and number > most):
        limits = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"{name}: found {number}, expected {limits}")
    return number


def real(name: str, value: float) -> float:
    """An option that is a number; the sampler knows its range."""
    if not isinstance(value, Real):
        raise TypeError(f"{name}: found {value!r}, expected a number")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def token_ids(name: str, tokens: Iterable[SupportsIndex], n_vocab: int) -> list[int]:
    """An option that is a list of tokens."""
    if isinstance(tokens, (str, bytes)) or not isinstance(tokens, Iterable):
        raise TypeError(f"{name}: found {tokens!r}, expected a list of whole numbers")
    return [whole(name, token, 0, n_vocab - 1) for token in tokens]


def biases(found: Mapping[int, float] | None, n_vocab: int) -> list[tuple[int, float]]:
    """The option `logit_bias`."""
    if found is None:
        return []
    if not isinstance(found, Mapping):
        raise TypeError(f"logit_bias: found {found!r}, expected a dict of tokens and numbers")
    ids = token_ids("logit_bias", found, n_vocab)
    return [
        (token, real(f"logit_bias of token {token}", bias))
        for token, bias in zip(ids, found.values(), strict=True)
    ]


def stop_bytes(stop: str | Sequence[str]) -> list[bytes]:
    """The stop strings as bytes; raises ValueError for an empty one, TypeError for no text."""
    texts = [stop] if isinstance(stop, str) or not isinstance(stop, Iterable) else list(stop)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"stop: found {stop!r}, expected a text or a list of texts")
    stops = [utf8("stop", text) for text in texts]
    if b"" in stops:
        raise ValueError("stop: found an empty string, expected some text")
    return stops
