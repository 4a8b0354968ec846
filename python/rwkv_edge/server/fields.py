# SPDX-License-Identifier: Apache-2.0
"""JSON that strangers send: each value has a type and a range, and errors name the field."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from ..files.form import shown

MOST_DEPTH = 64
MOST_SAID = 60  # characters of a value in an error
T = TypeVar("T")


class Refused(Exception):
    """What a request gets in place of an answer. Each dialect writes it in its own words."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        """`status` is that of HTTP; the rest are OpenAI's fields, and seconds for Retry-After."""
        super().__init__(message)
        self.status, self.kind, self.param, self.code = status, kind, param, code
        self.retry_after = retry_after


def wrong(param: str, found: Any, expected: str, status: int = 400) -> Refused:
    text = shown(found)
    text = text if len(text) <= MOST_SAID else f"{text[:MOST_SAID]}..."
    return Refused(status, f"{param}: found {text}, expected {expected}", param=param)


def read_json(data: bytes) -> dict[str, Any]:
    """The object in a body, of UTF-8. Refuses anything else, NaN, infinity, deep nesting and halves
    of characters, which JSON can write and UTF-8 cannot."""
    if depth_of(data) > MOST_DEPTH:
        raise Refused(400, f"the body is nested deeper than {MOST_DEPTH} levels")
    try:
        found = json.loads(data.decode("utf-8-sig"), parse_constant=no_number)
        if b"\\ud" in data.lower():
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = str(error)[:MOST_SAID]
        raise Refused(400, f"the body is not JSON: {reason}", code="invalid_json") from None
    if not isinstance(found, dict):
        raise Refused(400, "the body is JSON, but no object", code="invalid_json")
    return found


def no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def depth_of(data: bytes) -> int:
    """How deep brackets nest, those in strings included: at least as deep as the values do."""
    deepest = depth = 0
    for byte in data.translate(None, delete=NO_BRACKETS):
        depth += 1 if byte in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class Fields:
    """A JSON object in the reading. A field that is null counts as not sent."""

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        """`path` is what errors call the object: "" for the body itself."""
        self._values = values
        self._path = path

    def get(self, name: str, default: Any = None) -> Any:
        """A value that nothing was checked of."""
        return self._values.get(name, default)

    @property
    def values(self) -> dict[str, Any]:
        """All of them."""
        return dict(self._values)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def path(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def sent(self, *names: str) -> str | None:
        """The first of these spellings that was sent."""
        return next((name for name in names if self._values.get(name) is not None), None)

    def _one(self, names: Sequence[str], test: Callable[[Any], bool], expected: str) -> Any:
        name = self.sent(*names)
        if name is None:
            return None
        value = self._values[name]
        if not test(value):
            raise wrong(self.path(name), value, expected)
        return value

    def integer(self, *names: str, least: int, most: int) -> int | None:
        """A whole number; true is none, 1.0 is one (some clients send it)."""
        value = self._one(
            names,
            lambda x: is_number(x) and x == int(x) and least <= x <= most,
            f"a whole number from {least} to {most}",
        )
        return None if value is None else int(value)

    def number(self, *names: str, least: float, most: float) -> float | None:
        value = self._one(
            names,
            lambda x: is_number(x) and least <= x <= most,
            f"a number from {least:g} to {most:g}",
        )
        return None if value is None else float(value)

    def boolean(self, *names: str) -> bool | None:
        value: bool | None = self._one(names, lambda x: isinstance(x, bool), "true or false")
        return value

    def text(self, *names: str, most: int) -> str | None:
        """A string of at most so many characters."""
        value: str | None = self._one(
            names,
            lambda x: isinstance(x, str) and len(x) <= most,
            f"a text of at most {most} characters",
        )
        return value

    def texts(self, name: str, *, most: int, items: int) -> list[str]:
        """A text or a list of texts; those that are null are empty."""
        if not isinstance(self._values.get(name), list):
            found = [self._values.get(name)]
        else:
            found = self.array(name, most=items) or []
        return [Fields({name: each}, self._path).text(name, most=most) or "" for each in found]

    def choice(self, *names: str, among: Sequence[str]) -> str | None:
        value: str | None = self._one(
            names, lambda x: isinstance(x, str) and x in among, " or ".join(among)
        )
        return value

    def object(self, *names: str) -> Fields | None:
        value = self._one(names, lambda x: isinstance(x, dict), "an object")
        return None if value is None else Fields(value, self.path(self.sent(*names) or ""))

    def array(self, *names: str, most: int) -> list[Any] | None:
        value: list[Any] | None = self._one(
            names,
            lambda x: isinstance(x, list) and len(x) <= most,
            f"a list of at most {most} items",
        )
        return value

    def objects(self, *names: str, most: int) -> list[Fields] | None:
        """A list of objects, each with its own path."""
        found = self.array(*names, most=most)
        if found is None:
            return None
        name = self.path(self.sent(*names) or "")
        for i, item in enumerate(found):
            if not isinstance(item, dict):
                raise wrong(f"{name}[{i}]", item, "an object")
        return [Fields(item, f"{name}[{i}]") for i, item in enumerate(found)]

    def needed(self, value: T | None, name: str) -> T:
        """A value that a method above gave, which must have been sent."""
        if value is None:
            raise Refused(400, f"{self.path(name)}: is missing", param=self.path(name))
        return value


def is_number(value: Any) -> bool:
    """Whether JSON has a number there. Large whole numbers are too slow to turn into floats."""
    if isinstance(value, int):
        return not isinstance(value, bool) and value.bit_length() <= 64
    return isinstance(value, float) and math.isfinite(value)
