# SPDX-License-Identifier: Apache-2.0
"""Text of a given form: JSON of a schema, a regular expression, choices, a grammar.

The package llguidance says which tokens may come next. It looks at their bytes, so tokens that are
parts of characters are treated as what they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from . import _core
from .files.form import utf8
from .tokenizer import END_OF_TEXT, Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

FORMS = ("schema", "regex", "choices", "grammar")
"""The options of `Session.generate` that give a text a form, one at a time."""

MOST_SAID = 300  # characters of an error of llguidance's

# Between two parts of JSON: a model that may write any number of blanks may write nothing else.
JSON_OPTIONS: Any = {"whitespace_pattern": " ?"}


class Constraint:
    """What a text may look like, and where in it the tokens so far have come to."""

    def __init__(self, name: str, matcher: LLMatcher) -> None:
        """For `Grammars`. Raises ValueError, with the option's name, for what is no form."""
        self._name = name
        self._matcher = matcher
        self._check()

    def allowed(self) -> bytes:
        """Bit i % 8 of byte i // 8 says whether token i may be next. The one that ends a document
        may be where the text may end."""
        mask = self._matcher.compute_bitmask()
        self._check()
        return mask

    def accept(self, token: int) -> None:
        """The text goes on. Raises ValueError for a token that is not allowed."""
        self._matcher.consume_token(token)
        self._check()

    @property
    def complete(self) -> bool:
        """Whether nothing more may follow."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ValueError(f"{self._name}: {reason(self._matcher.get_error())}")


def form_of(options: Mapping[str, Any]) -> tuple[str, Any] | None:
    """The one of FORMS that is asked for, and its value. Raises ValueError for several."""
    given = [(name, options[name]) for name in FORMS if options.get(name) is not None]
    if len(given) > 1:
        names = " and ".join(name for name, _ in given)
        raise ValueError(f"{names}: found {len(given)} forms, expected at most one")
    return given[0] if given else None


class Grammars:
    """Makes constraints for the texts of a model."""

    def __init__(self, tokenizer: Tokenizer, n_vocab: int) -> None:
        """Raises UnsupportedError where llguidance is not installed."""
        try:
            from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
        except ImportError:
            raise _core.UnsupportedError(
                "schema, regex, choices and grammar need a package: "
                "pip install 'rwkv-edge[grammar]'"
            ) from None
        wrapper = TokenizerWrapper(Vocabulary(tokenizer, n_vocab))
        self._tokens = LLTokenizer(wrapper, eos_token=END_OF_TEXT)
        self._matcher = LLMatcher

    def constraint(self, name: str, value: Any) -> Constraint:
        """One of FORMS. Raises ValueError and TypeError, with its name."""
        try:
            form = source(name, value)
        except ValueError as error:  # llguidance's own do not say where
            text = str(error)
            raise ValueError(text if text.startswith(name) else f"{name}: {reason(text)}") from None
        return Constraint(name, self._matcher(self._tokens, form, log_level=0))


class Vocabulary:
    """A tokenizer as llguidance looks at it."""

    eos_token_id = END_OF_TEXT
    bos_token_id = None
    special_token_ids = (END_OF_TEXT,)

    def __init__(self, tokenizer: Tokenizer, n_vocab: int) -> None:
        self._encode = tokenizer.encode
        known = range(1, tokenizer.n_vocab)
        # Tokens without bytes are never allowed; the one that ends a document must have some.
        self.tokens = [b"<end>", *map(tokenizer.token_bytes, known)]
        self.tokens += [b""] * (n_vocab - len(self.tokens))

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text)


def reason(error: str) -> str:
    """What llguidance says, without its inner state and without all of a long form."""
    text = error.partition("\n<state>")[0].strip()
    if text == "NoExtensionBias":  # its name for a form of which it can begin no text
        text = "no text has this form"
    return text if len(text) <= MOST_SAID else f"{text[:MOST_SAID]}..."


def source(name: str, value: Any) -> str:
    """A form in llguidance's own language. Raises ValueError and TypeError."""
    from llguidance import LLMatcher

    if name == "schema":
        return LLMatcher.grammar_from_json_schema(json_schema(value), JSON_OPTIONS)
    if name == "choices":
        return LLMatcher.grammar_from_regex("|".join(map(literal, texts_of(name, value))))
    if not isinstance(value, str):
        raise TypeError(f"{name}: found {value!r}, expected a text")
    text = encodable(name, value)
    return LLMatcher.grammar_from_regex(text) if name == "regex" else text


def json_schema(value: Any) -> str:
    """The option `schema`, a dict or its JSON, as JSON."""
    if not isinstance(value, (str, dict)):
        raise TypeError(f"schema: found {value!r}, expected a dict or JSON")
    try:
        found = json.loads(value) if isinstance(value, str) else value
        text = json.dumps(found)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"schema: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"schema: found {text[:40]}, expected an object")
    return text


def texts_of(name: str, value: Any) -> list[str]:
    texts = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else None
    if texts is None or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{name}: found {value!r}, expected a list of texts")
    if not texts or "" in texts:
        raise ValueError(f"{name}: found {texts!r}, expected texts that are not empty")
    return [encodable(name, text) for text in texts]


def literal(text: str) -> str:
    """A regular expression that matches this text only."""
    return "".join(
        char if char.isalnum() or not char.isascii() else f"\\x{ord(char):02x}" for char in text
    )


def encodable(name: str, text: str) -> str:
    utf8(name, text, "strict")
    return text
