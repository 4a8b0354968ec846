# SPDX-License-Identifier: Apache-2.0
"""A model, and the sessions that run it."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from operator import index
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, TypeVar, cast, overload

from . import _core
from .files.form import ARCH_KEY, check_kind
from .generation import (
    MAX_SEED,
    Answer,
    BatchGeneration,
    Choosing,
    Generation,
    Options,
    Sampling,
    Stream,
    recommended_sampling,
    whole,
)
from .grammar import FORMS, Grammars, form_of
from .lookup import Lookup
from .model_file import bytes_per_token, default_threads, hint, open_model_file, stamp
from .state import A_STATE, State, StateShape
from .tokenizer import END_OF_TEXT, Tokenizer, tokenizer_from_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from .asynchronous import AsyncBatchGeneration, AsyncGeneration

# Tokens that a lookup knows at most.
MOST_LOOKED_UP = 8192

# Of a long text; each takes n_embd floats.
EMBEDDED_AT_ONCE = 512
SCORED_AT_ONCE = 256  # rows of logits: 67 MB in a World model

T = TypeVar("T")
FeedProgress = Callable[[int, int], None]  # tokens fed, tokens in all


def bundled_model() -> Path:
    """The path of the demo model; raises FileNotFoundError where it was not installed."""
    path = Path(__file__).with_name("demo.gguf")
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: this installation has no demo model; name a model file instead"
        )
    return path


def device_name(device: str | None) -> str:
    """The device that is meant where none is named."""
    return device or os.environ.get("RWKV_EDGE_DEVICE") or "cpu"


class Model:
    """An RWKV model: the weights in a mapped file, and the tokenizer.

    A model does not change. Several threads may run its sessions at once.
    """

    def __init__(
        self,
        path: str | PathLike[str] | None = None,
        *,
        vocab: str | PathLike[str] | None = None,
        threads: int | None = None,
        device: str | None = None,
    ) -> None:
        """Open the model in `path`, or the bundled demo model.

        `threads` is the number of threads. By default it is the number of idle cores, at most 8,
        and at most one for each 16 MiB of weights that a token reads. So a small model has one.

        `path` may be any file or folder that `convert` takes; weights keep their precision. `vocab`
        is a vocabulary file for a model that holds none. By default the vocabulary is a file beside
        the model, or the World vocabulary of the package pyrwkv-tokenizer.

        `device` is "cpu", "cuda" for a GPU, or "cuda:1" for the second GPU. By default it is what
        the environment variable RWKV_EDGE_DEVICE says, else "cpu".

        Raises FormatError for a file that is damaged or not a model, UnsupportedError for a model
        or a device that this build cannot run, ValueError for a GPU that is not there, MemoryError
        if the model does not fit into the GPU's memory, OSError if the file cannot be read or the
        system refuses a thread.
        """
        if threads is not None:
            threads = whole("threads", threads, 1, 1024)
        path = Path(bundled_model() if path is None else path)
        self.stamp = stamp(path)
        """Of the file when it was opened: its size and its time."""
        self._file = open_model_file(path, vocab=vocab)
        if self._file.get(ARCH_KEY) is not None:
            raise _core.FormatError(
                f"{self._file.path}: a saved state, not a model; "
                "`rwkv-edge chat MODEL --state FILE` goes on from it"
            )
        self._core = _core.Runner(
            self._file,
            threads or default_threads(bytes_per_token(self._file)),
            device_name(device),
        )
        self.path = Path(self._file.path)

    def __repr__(self) -> str:
        return f"Model('{self.path}': {self._shape})"

    @property
    def arch(self) -> str:
        return self._core.arch

    @property
    def n_layer(self) -> int:
        return self._core.n_layer

    @property
    def n_embd(self) -> int:
        return self._core.n_embd

    @property
    def n_vocab(self) -> int:
        return self._core.n_vocab

    @property
    def head_size(self) -> int:
        """Channels of each head; 0 in RWKV-4, which has no heads."""
        return dict(self._core.state_parts).get("wkv", (0,))[-1]

    @property
    def threads(self) -> int:
        return self._core.threads

    @cached_property
    def fingerprint(self) -> str:
        """What tells this model from others of its shape: 64 hex digits. Names and licences do
        not count, and of large tensors only some bytes (cpp/io/fingerprint.h)."""
        return self._file.fingerprint()

    @property
    def device(self) -> str:
        """What it runs on, such as "cpu avx2" or "cuda:0 NVIDIA H100 80GB HBM3"."""
        return self._core.device

    @property
    def hint(self) -> str | None:
        """Advice on how this model could run faster on this machine, or None."""
        return hint(self._file)

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """The keys of the file and their values: bool, int, float, str or a list of these."""
        return {key: self._file.get(key) for key in self._file.keys()}  # noqa: SIM118 (no mapping)

    @property
    def recommended_sampling(self) -> Choosing:
        """How the file recommends to choose tokens, in its keys general.sampling.*: options of
        `Session.generate`, which uses them only where they are given to it. Empty where the file
        says nothing.
        """
        return recommended_sampling(self._file)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer.

        Raises FormatError if the file holds none that fits, UnsupportedError for an unknown kind.
        """
        tokenizer = tokenizer_from_file(self._file)
        if tokenizer.n_vocab > self.n_vocab:
            raise _core.FormatError(
                f"{self.path}: a tokenizer of {tokenizer.n_vocab} tokens, "
                f"expected at most the model's {self.n_vocab}"
            )
        return tokenizer

    @cached_property
    def _without_text(self) -> list[int]:
        """The ids that no text can produce, but for END_OF_TEXT."""
        tokenizer = self.tokenizer
        return [*tokenizer.without_text(), *range(tokenizer.n_vocab, self.n_vocab)]

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self.tokenizer, self.n_vocab)

    @property
    def _shape(self) -> StateShape:
        return StateShape(self.arch, self.n_layer, tuple(self._core.state_parts))

    def session(self, state: State | None = None) -> Session:
        """A new session, which begins with `state`: a copied, saved or tuned state; None: no text.

        Raises FormatError if the state belongs to another model. `State.load` can allow that.
        """
        session = Session(self, self._core.session())
        if state is not None:
            session.reset(state)
        return session

    def embed(
        self,
        texts: Iterable[str | bytes],
        *,
        layer: int | None = None,
        pooling: Literal["mean", "last"] = "mean",
    ) -> NDArray[np.float32]:
        """A vector for each text, float32 [len(texts), n_embd], of length 1; so the dot of two is
        their cosine.

        It is the residual stream after `layer` layers, as `Session.hidden` counts them, averaged
        over the text's tokens; or with `pooling` "last" that of its last token. Each text is read
        by itself, as the beginning of a document. No RWKV was trained to give such vectors. By
        default it is after two thirds of the layers: the first know words, the last know what word
        comes next.

        Raises ValueError for an empty text, and for a layer that the model lacks; TypeError for one
        text in place of several.
        """
        import numpy as np

        if isinstance(texts, (str, bytes)):
            raise TypeError(f"texts: found {texts[:40]!r}, expected a list of texts")
        if pooling not in ("mean", "last"):
            raise ValueError(f"pooling: found {pooling!r}, expected 'mean' or 'last'")
        depth = self.embedding_depth if layer is None else layer
        vectors = []
        for i, text in enumerate(texts):
            ids = self.tokenizer.encode(text)
            if not ids:
                raise ValueError(f"text {i} is empty")
            *_, vector = self._embedding(ids, depth, pooling, EMBEDDED_AT_ONCE)
            vectors.append(vector)
        return np.array(vectors, np.float32).reshape(-1, self.n_embd)

    def _embedding(
        self, ids: list[int], depth: int, pooling: str, at_once: int
    ) -> Iterator[NDArray[np.float64]]:
        """Vectors after so many tokens at once, the last of which is that of the text."""
        import numpy as np

        session = self.session()
        session.read([END_OF_TEXT])
        total = np.zeros(self.n_embd)
        for start in range(0, len(ids), at_once):
            (found,) = session.hidden(ids[start : start + at_once], [depth])
            total = found[-1] if pooling == "last" else total + found.sum(0, np.float64)
            yield total / np.linalg.norm(total)

    @property
    def embedding_depth(self) -> int:
        """The layers after which `embed` takes a text's vector by default."""
        return (2 * self.n_layer + 1) // 3

    def batch(self, sessions: Iterable[Session]) -> Batch:
        """A batch of sessions of this model, which read and write together.

        Raises ValueError if a session occurs twice or belongs to another model.
        """
        return Batch(self, sessions)


class Session:
    """A text or conversation in progress: the recurrent state and the last logits.

    One thread at a time may use a session.
    """

    def __init__(self, model: Model, core: _core.Session) -> None:
        """For `Model.session` and `Session.fork`."""
        self.model = model
        self._engine = core
        self._before: int | None = 0  # tokens before those that the engine counts; None: unknown
        self._stream: Stream | None = None  # the text that is being generated
        self._lookup = Lookup(0)
        self._read = array("i")  # the last tokens, for a lookup; wrong ones would do no harm

    @property
    def _writable(self) -> _core.Session:
        """The engine's session, to change it: where the text yielded so far ends, and no more of it
        will follow.
        """
        if self._stream is not None:
            if self._stream.busy:  # or its work would follow what is done now
                raise RuntimeError("the session is in use: another task generates text with it")
            self._stream.settle()
            self._note(self._stream.answer.tokens)
            self._stream = None
        return self._engine

    @property
    def _readable(self) -> _core.Session:
        """The engine's session, to look at: where the text yielded so far ends."""
        if self._stream is None or self._stream.ended:
            return self._engine
        return self._stream.settled_fork()

    @overload
    def feed(
        self,
        tokens: Iterable[SupportsIndex],
        *,
        logits: Literal["last", "all"] = "last",
        progress: FeedProgress | None = None,
    ) -> NDArray[np.float32]: ...
    @overload
    def feed(
        self,
        tokens: Iterable[SupportsIndex],
        *,
        logits: Literal["none"],
        progress: FeedProgress | None = None,
    ) -> None: ...
    def feed(
        self,
        tokens: Iterable[SupportsIndex],
        *,
        logits: Literal["last", "all", "none"] = "last",
        progress: FeedProgress | None = None,
    ) -> NDArray[np.float32] | None:
        """Read T tokens, at least one. If an exception ends the call, none of them was read.

        Returns the logits, float32: with "last" [n_vocab], those after the last token; with "all"
        [T, n_vocab], those after each token; with "none" None. `progress` is called now and then
        with the numbers of tokens read and of all tokens. It may raise to end the call.

        Raises ValueError for no tokens or a token outside the vocabulary.
        """
        mode = logits_mode(logits)
        found = self._feed(self._checked(tokens), mode, progress)
        return rows_of(found, mode, self.model.n_vocab)

    def read(
        self, tokens: Iterable[SupportsIndex], *, progress: FeedProgress | None = None
    ) -> None:
        """Read tokens as `feed` does, without logits. `generate` continues from there."""
        self._feed(self._checked(tokens), _core.Logits.none, progress)

    def hidden(
        self,
        tokens: Iterable[SupportsIndex],
        layers: Iterable[SupportsIndex],
        *,
        progress: FeedProgress | None = None,
    ) -> NDArray[np.float32]:
        """Read tokens as `feed` does, and return what the model makes of them on the way.

        That is the residual stream, float32 [len(layers), T, n_embd]: for each of `layers`, after
        each token, what it holds when so many layers have run. 0 is the embedding after its norm,
        what the first layer reads. `model.n_layer` or -1 is what the head reads before the last
        norm, and other negative numbers count from there.
        Raises ValueError for a layer that the model lacks, and as `feed` does.
        """
        import numpy as np

        last = self.model.n_layer
        numbers = [whole("layer", layer, -last - 1, last) % (last + 1) for layer in layers]
        ids = self._checked(tokens)
        found = self._writable.hidden(ids, numbers, of_all(progress, len(ids)))
        self._note(ids)
        shape = (len(numbers), len(ids), self.model.n_embd)
        return np.frombuffer(found, np.float32).reshape(shape)

    def inputs(
        self,
        tokens: Iterable[SupportsIndex],
        tensors: Iterable[str],
        *,
        progress: FeedProgress | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Read tokens as `feed` does, and return what matrices of the model multiply on the way.

        `tensors` are names in the model's file, such as "blk.0.channel_mix_value.weight". Each has
        an array, float32 [T, columns]. Quantization uses it to find out which columns matter.

        Raises ValueError for a tensor that is no matrix of the file, and for one that no product
        reads as the file has it: the embedding, a transposed one, any on a GPU.
        """
        names, ids = list(tensors), self._checked(tokens)
        found = self._writable.inputs(ids, names, of_all(progress, len(ids)))
        self._note(ids)
        return inputs_by_name(self.model, found, names, len(ids))

    def score(self, text: str | bytes | Iterable[SupportsIndex]) -> NDArray[np.float64]:
        """Read a text, or tokens, and return how likely it was: ln p of each of its T tokens,
        float64 [T].

        The first one follows what the session has read. At the very beginning it follows the token
        that ends a document. If an exception ends the call, nothing was read.
        Raises ValueError for no tokens, and where the last token's logits are not known.
        """
        import numpy as np

        if isinstance(text, (str, bytes)):
            text = self.model.tokenizer.encode(text)
        ids = self._checked(text)
        twin = self.fork()
        if not twin._engine.tokens:
            if twin._before != 0:
                raise ValueError("the last token's logits are not known")
            twin.read([END_OF_TEXT])
        last = np.frombuffer(twin._engine.logits(), np.float32)[None]
        found = []
        for start in range(0, len(ids), SCORED_AT_ONCE):
            part = ids[start : start + SCORED_AT_ONCE]
            rows = twin.feed(part, logits="all")
            found.append(logprobs_of(np.concatenate([last, rows[:-1]]), part))
            last = rows[-1:]
        self.rewind(twin)
        return np.concatenate(found)

    def _checked(self, tokens: Iterable[SupportsIndex]) -> list[int]:
        ids = self._ids(tokens)
        if not ids:
            raise ValueError("tokens: found none, expected at least one")
        return ids

    def _ids(self, tokens: Iterable[SupportsIndex]) -> list[int]:
        return checked_ids(tokens, self.model.n_vocab)

    def _feed(
        self, ids: list[int], logits: _core.Logits, progress: FeedProgress | None
    ) -> bytearray:
        found = self._writable.feed(ids, logits, of_all(progress, len(ids)))
        self._note(ids)
        return found

    def _note(self, ids: list[int]) -> None:
        self._read = (self._read + array("i", ids))[-MOST_LOOKED_UP:]

    @property
    def state(self) -> State:
        """A copy of the session's state. While text is generated, it is the state at the end of the
        text that was yielded.
        """
        import numpy as np

        core = self._readable
        output = np.frombuffer(core.get_output(), np.float32) if core.tokens else None
        return State(
            np.frombuffer(core.get_state(), np.float32),
            self.model._shape,
            output=output,
            tokens=None if self._before is None else self._before + core.tokens,
            fingerprint=self.model.fingerprint,
            model=self.model.path.name,
            sampler=None if self._stream is None else self._stream.answer.sampler_state(),
        )

    @property
    def tokens(self) -> int | None:
        """How many tokens were read since the beginning; None after a state that does not say."""
        return None if self._before is None else self._before + self._readable.tokens

    def reset(self, state: State | None = None) -> None:
        """Forget the text and begin with `state`; None: with no text.

        Raises FormatError if the state does not fit the model, TypeError if it is no State.
        """
        if state is None:
            self._writable.reset()
            self._before = 0
        else:
            check_kind("state", state, State, A_STATE)
            model = self.model
            fitted = state.fitted(model._shape, str(model.path), model.fingerprint)
            output = bytearray() if fitted.output is None else bytearray(fitted.output)
            self._stand(bytearray(fitted.data), output, fitted.tokens)
            return
        self._read = array("i")

    def _stand(
        self,
        state: bytearray,
        output: bytearray,
        tokens: int | None,
        read: array[int] = array("i"),  # noqa: B008
    ) -> None:
        """Go to where so many tokens were read, the last of which had that output, or no token."""
        self._writable.set_state(state, output)
        # the engine counts the last one
        self._before = tokens - 1 if output and tokens is not None else tokens
        self._read = read[-MOST_LOOKED_UP:]

    def fork(self) -> Session:
        """A copy of the session, which continues independently. While text is generated, it begins
        at the end of the text that was yielded.
        """
        twin = Session(self.model, self._readable.fork())
        twin._before, twin._read = self._before, self._read
        return twin

    def rewind(self, to: Session) -> None:
        """Copy the state of another session of this model, such as a fork made earlier.

        Raises ValueError for a session of another model.
        """
        if to.model is not self.model:
            raise ValueError(f"a session of {to.model}, expected one of {self.model}")
        self._writable.rewind(to._readable)
        self._before, self._read = to._before, to._read

    def generate(
        self,
        prompt: str | Sequence[int] = "",
        *,
        stop: str | Sequence[str] = (),
        lookup: int = 0,
        **sampling: Unpack[Sampling],
    ) -> Generation:
        """Read the prompt, and yield the text that follows in pieces of whole characters. The
        iterator's `details` have the tokens, the reason for the end, counts and times.

        The text ends after `max_tokens` (256) tokens, at the token that ends a document, at one of
        the `stop_tokens`, or before a `stop` string. Then, or after the iterator was closed early,
        the session stands exactly at the end of the yielded text. Between two pieces, `state` and
        `fork` copy the session at that place; whatever changes the session ends the text. An empty
        prompt continues from the last token fed. At the very beginning it stands for the token that
        ends a document. The text begins with the tokens `forced`, whatever the logits are.

        First the logits are changed. `logits_hook(logits, tokens)` may change them in place: they
        are float32 [n_vocab], and `tokens` were generated so far. `logit_bias` ({token: number}) is
        added. `presence_penalty` (0) is subtracted from the logit of every token that was
        generated, and `frequency_penalty` (0) times its count. Each new token multiplies all counts
        by `penalty_decay` (0.996). Digits and blanks are not counted. Only the last
        `penalty_window` (0: all) tokens count. `banned` tokens are never sampled.

        Then tokens are left out. Each rule uses the probabilities that the one before it has left.
        `typical_p` (1: off) keeps the tokens whose information, -ln p, is closest to the expected
        one, as many as together have this probability. `top_p` (0.3; 1: off) keeps the likeliest
        tokens, as few as together have this probability. `top_k` (0: off) keeps the K likeliest.
        `min_p` (0: off) keeps those with at least this share of the largest probability. Last,
        `temperature` (1) sharpens (< 1) or flattens (> 1) the rest; 0 always takes the likeliest
        token. The same `seed` gives the same text; None is random.

        The tokens `earlier` count for the penalties as if they had been generated just before. With
        these and the seed of a `state.sampler`, a stopped text continues as if it had not been
        stopped.

        The text can be restricted to a form: JSON of a `schema` (a dict, or its JSON), a `regex`,
        one of some `choices`, or a `grammar` in Lark's notation. It ends where the form allows
        nothing more, or where it may end and the model ends it. `max_tokens` may cut it short. This
        needs the package llguidance (rwkv-edge[grammar]).

        With `logprobs` K (None: off), `details` have ln p of each token and of the K likeliest
        ones, before biases, penalties and rules, but after the hook.

        With `lookup` N, up to N tokens are guessed from the text so far and read in one step. The
        text is the same, and comes faster if it repeats itself. `lookups` says how many guesses
        were right.

        Raises ValueError for options out of range and for an empty prompt whose logits are not
        known, TypeError for options of another kind, UnsupportedError for a missing package.
        """
        stream = self._generating(prompt, {**sampling, "stop": stop, "lookup": lookup})
        return Generation(stream, self.model.n_vocab)

    def agenerate(
        self,
        prompt: str | Sequence[int] = "",
        *,
        stop: str | Sequence[str] = (),
        lookup: int = 0,
        **sampling: Unpack[Sampling],
    ) -> AsyncGeneration:
        """As `generate`, for `async for`. The engine works in another thread, and other tasks of
        the event loop run meanwhile.

        After a cancelled task, the session stands at the end of the yielded text. While the engine
        works, nothing else may change the session: that raises RuntimeError. After a `break`, call
        `aclose`, or use the session again, which also ends the text.
        """
        from .asynchronous import AsyncGeneration

        stream = self._generating(prompt, {**sampling, "stop": stop, "lookup": lookup})
        return AsyncGeneration(stream, self.model.n_vocab)

    @property
    def lookups(self) -> tuple[int, int, int]:
        """Figures of the last text that was generated with `lookup`: tokens guessed, tokens guessed
        right, and steps.
        """
        return self._lookup.drafted, self._lookup.accepted, self._lookup.steps

    @property
    def _generated(self) -> list[int]:
        """The tokens of the text that was generated last, as far as it was yielded; none once the
        session has changed.
        """
        if self._stream is None:
            return []
        number, begun = self._stream.answer.given()
        return self._stream.answer.tokens[:number] + begun

    def _amend(self, tokens: list[int]) -> bool:
        """Read these tokens in place of those that were generated last; False, and nothing has
        changed, where the state that it needs is not known any more.
        """
        given = self._generated
        mark = None if self._stream is None else self._stream.mark
        if tokens[: len(given)] == given:
            rest = tokens[len(given) :]
        elif mark is not None and tokens[: mark[0]] == given[: mark[0]]:
            self._writable.rewind(mark[1])
            rest = tokens[mark[0] :]
        else:
            return False
        if rest:
            self.read(rest)
        return True

    def _generating(self, prompt: str | Sequence[int], options: Options) -> Stream:
        model = self.model
        lookup = whole("lookup", options.get("lookup", 0), 0)
        for name in options:
            if name not in Options.__optional_keys__:
                raise TypeError(f"{name}: no option of generate")
        form = form_of(options)
        constraint = None if form is None else model._grammars.constraint(*form)
        mine = ("lookup", *FORMS)
        own = cast(Choosing, {name: options[name] for name in options if name not in mine})  # type: ignore[literal-required]
        answer = Answer(
            model.tokenizer, model.n_vocab, model._without_text, constraint=constraint, **own
        )
        encode = model.tokenizer.encode
        ids = self._ids(encode(prompt) if isinstance(prompt, str) else prompt)
        core = self._writable
        if not ids and not core.tokens:
            if self._before != 0:
                raise ValueError("the prompt is empty, and the last token's logits are not known")
            ids = [END_OF_TEXT]
        self._note(ids)
        self._lookup = Lookup(lookup, self._read if lookup else ())
        self._stream = Stream(core, ids, answer, self._lookup if lookup else None)
        return self._stream


class Batch:
    """Sessions of one model that read and write together.

    A step reads the weights once for all sessions, so eight of them take far less time than one
    after the other. Each session gets the same bits as it would alone. One thread at a time may use
    a batch.
    """

    def __init__(self, model: Model, sessions: Iterable[Session]) -> None:
        """For `Model.batch`."""
        self.model = model
        self.sessions = tuple(sessions)
        if any(session.model is not model for session in self.sessions):
            raise ValueError(f"a session of another model, expected sessions of {model}")
        if len(set(self.sessions)) < len(self.sessions):
            raise ValueError("a session occurs twice, expected different ones")

    @overload
    def feed(
        self,
        tokens: Iterable[Iterable[SupportsIndex]],
        *,
        logits: Literal["last"] = "last",
        progress: FeedProgress | None = None,
    ) -> NDArray[np.float32]: ...
    @overload
    def feed(
        self,
        tokens: Iterable[Iterable[SupportsIndex]],
        *,
        logits: Literal["all"],
        progress: FeedProgress | None = None,
    ) -> list[NDArray[np.float32]]: ...
    @overload
    def feed(
        self,
        tokens: Iterable[Iterable[SupportsIndex]],
        *,
        logits: Literal["none"],
        progress: FeedProgress | None = None,
    ) -> None: ...
    def feed(
        self,
        tokens: Iterable[Iterable[SupportsIndex]],
        *,
        logits: Literal["last", "all", "none"] = "last",
        progress: FeedProgress | None = None,
    ) -> NDArray[np.float32] | list[NDArray[np.float32]] | None:
        """Read tokens, at least one for each session. If an exception ends the call, none of them
        was read.

        Returns the logits after the last token of each session, float32 [n_sessions, n_vocab]; with
        "all" a list of [T, n_vocab] for the T tokens of each; with "none" None.

        Raises ValueError for another number of lists than sessions, an empty list, or a token
        outside the vocabulary.
        """
        mode = logits_mode(logits)
        ids = [
            session._checked(each)
            for session, each in zip(self.sessions, self._each(tokens, "tokens"), strict=True)
        ]
        parts = [(s._writable, each, mode) for s, each in zip(self.sessions, ids, strict=True)]
        found = _core.feed_together(parts, of_all(progress, sum(map(len, ids))))
        for session, each in zip(self.sessions, ids, strict=True):
            session._note(each)
        rows = rows_of(found, mode, self.model.n_vocab, len(self.sessions))
        if rows is None or mode == _core.Logits.last:
            return rows
        ends = list(accumulate(map(len, ids)))
        return [rows[end - len(each) : end] for end, each in zip(ends, ids, strict=True)]

    def generate(
        self,
        prompts: str | Iterable[str | Sequence[int]] = "",
        *,
        each: Iterable[Options] | None = None,
        **options: Unpack[Options],
    ) -> BatchGeneration:
        """Read a prompt for each session, or one prompt for all, and yield pairs of a session's
        number and the next piece of its text, as they come. The iterator's `details` are a list.

        The text of session i is what its `Session.generate` would yield with these options and the
        seed `seed` + i. `each` has a dict of options for each session, which replace those for all.
        The same errors are raised.
        """
        return BatchGeneration(self._streams(prompts, each, options), self.model.n_vocab)

    def agenerate(
        self,
        prompts: str | Iterable[str | Sequence[int]] = "",
        *,
        each: Iterable[Options] | None = None,
        **options: Unpack[Options],
    ) -> AsyncBatchGeneration:
        """As `generate`, for `async for`; `Session.agenerate` says what that means."""
        from .asynchronous import AsyncBatchGeneration

        return AsyncBatchGeneration(self._streams(prompts, each, options), self.model.n_vocab)

    def _streams(
        self,
        prompts: str | Iterable[str | Sequence[int]],
        each: Iterable[Options] | None,
        options: Options,
    ) -> list[Stream]:
        if isinstance(prompts, str):
            prompts = [prompts] * len(self.sessions)
        asked = self._each(prompts, "prompts")
        own = [Options()] * len(self.sessions) if each is None else self._each(each, "each")
        streams = []
        for i, session in enumerate(self.sessions):
            found: Options = {**options, **own[i]}
            if "seed" not in own[i] and (seed := options.get("seed")) is not None:
                found["seed"] = (whole("seed", seed, 0, MAX_SEED) + i) % (MAX_SEED + 1)
            streams.append(session._generating(asked[i], found))
        return streams

    def _each(self, values: Iterable[T], name: str) -> list[T]:
        found = list(values)
        if len(found) != len(self.sessions):
            raise ValueError(
                f"{name}: found {len(found)}, expected {len(self.sessions)}, one for each session"
            )
        return found


def checked_ids(tokens: Iterable[SupportsIndex], n_vocab: int) -> list[int]:
    expected = "expected a list or an array of whole numbers"
    if isinstance(tokens, (str, bytes, bytearray, memoryview)):
        raise ValueError(f"tokens: found {type(tokens).__name__}, {expected}")
    try:
        ids = [index(token) for token in tokens]
    except TypeError as error:
        raise ValueError(f"tokens: {error}, {expected}") from error
    outside = next((i for i in ids if not 0 <= i < n_vocab), None)
    if outside is not None:
        raise ValueError(f"token {outside} is outside the vocabulary of {n_vocab}")
    return ids


def logits_mode(logits: str) -> _core.Logits:
    if logits not in ("last", "all", "none"):
        raise ValueError(f"logits: found '{logits}', expected 'last', 'all' or 'none'")
    return _core.Logits[logits]


def rows_of(
    found: bytearray, mode: _core.Logits, n_vocab: int, rows: int | None = None
) -> NDArray[np.float32] | None:
    """Logits as the engine gives them, as an array: [n_vocab] of the last token or [rows, n_vocab];
    None where none were asked for.
    """
    if mode == _core.Logits.none:
        return None
    import numpy as np

    flat = mode == _core.Logits.last and rows is None
    return np.frombuffer(found, np.float32).reshape((n_vocab,) if flat else (-1, n_vocab))


def inputs_by_name(
    model: Model, found: bytearray, names: Sequence[str], tokens: int
) -> dict[str, NDArray[np.float32]]:
    """What the engine gives of matrices, one after the other: of each [tokens, columns]."""
    import numpy as np

    floats = np.frombuffer(found, np.float32)
    columns = {tensor.name: tensor.shape[-1] for tensor in model._file.tensors}
    ends = list(accumulate(columns[name] * tokens for name in names))
    return {
        name: floats[end - columns[name] * tokens : end].reshape(tokens, -1)
        for name, end in zip(names, ends, strict=True)
    }


def logprobs_of(rows: NDArray[np.float32], tokens: Sequence[int]) -> NDArray[np.float64]:
    """ln p of a token after each of the logits, [T, n_vocab]: [T]."""
    import numpy as np

    top = rows.max(axis=1)
    total = np.exp(rows - top[:, None]).sum(axis=1, dtype=np.float64)
    chosen = rows[np.arange(len(rows)), np.asarray(tokens)].astype(np.float64)
    found: NDArray[np.float64] = chosen - top - np.log(total)
    return found


def of_all(progress: FeedProgress | None, total: int) -> Callable[[int], None] | None:
    """A progress function as the engine calls it, with the tokens fed."""
    if progress is None:
        return None
    call = progress
    return lambda done: call(done, total)
