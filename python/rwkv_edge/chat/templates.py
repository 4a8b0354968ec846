# SPDX-License-Identifier: Apache-2.0
"""How conversations are written, in the words that models were trained on:

    System: <text>\\n\\nUser: <text>\\n\\nAssistant: <text>\\n\\nUser: ...

Two newlines end a turn there, so no text of ours may hold them.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from .._core import FormatError, chat_template_of, chat_templates
from ..files.form import read_bytes, shown
from ..model import Model

TURN_END = "\n\n"
PLACE = "{}"
MOST_BYTES = 1 << 16  # of a template's file
MOST_STOPS = 32

# What a user's text gets behind it. The words are those of G1's training.
HINTS = {
    "off": "",
    "fast": "",
    "bit": " (think a bit)",
    "on": " (think)",
    "lot": " (think a lot)",
}
THINK_MODES = tuple(HINTS)
THINK, THINK_END = "<think", "</think"
"""Without ">": in G1's training a token joins it with what follows, so the model writes it."""


@dataclass(frozen=True)
class Template:
    """How a conversation is written; {} is where a text goes."""

    name: str
    user: str
    assistant: str
    stop: tuple[str, ...]
    """What ends an answer, besides the token that ends a document."""
    system: str = ""
    """Empty where there is no such turn."""
    opening: str = ""
    """The system text where the user gives none."""
    think: bool = False
    """Whether its models may think before they answer."""
    exact: bool = False
    """Whether texts stay as they are, white space included."""

    def stops(self, paragraphs: bool) -> tuple[str, ...]:
        """What ends an answer; `paragraphs`: even where blank lines do in this template."""
        return tuple(text for text in self.stop if text.strip() or not paragraphs)

    def clean(self, text: str) -> str:
        """A text of the user or the system that cannot end its turn."""
        if self.exact:
            return text
        return clean(text) if TURN_END in self.user else newlines(text).strip()

    def told(self, text: str) -> str:
        """What is read for a system text."""
        return self.system.replace(PLACE, text) if text else ""

    def asked(self, text: str, think: str = "off") -> str:
        """What is read for a user's text, to where the answer begins, or the thinking."""
        thinks = " " + THINK if HINTS[think] else ""
        return self.user.replace(PLACE, text + HINTS[think]) + self._lead.rstrip(" ") + thinks

    def answered(self, text: str) -> str:
        """What is read for an answer behind `asked`, with what ends its turn."""
        lead, end = self._lead, self.assistant.partition(PLACE)[2]
        # Models were trained on ": text", and write the blank themselves.
        return (lead[len(lead.rstrip(" ")) :] + text if text else "") + end

    @property
    def _lead(self) -> str:
        return self.assistant.partition(PLACE)[0]


def roles(*names: str, ends: tuple[str, ...] = ("\n\n", "\n")) -> tuple[str, ...]:
    """Stops at the turns of these. Whatever a model was trained on, it must not go on there."""
    return tuple(f"{end}{name}:" for end in ends for name in names)


# Those of the engine, which C programs have too.
TEMPLATES = {
    name: Template(name, user, assistant, stop, system, opening, think, exact)
    for name, user, assistant, stop, system, opening, think, exact in chat_templates()
}


def newlines(text: str) -> str:
    return re.sub("\r\n?", "\n", text)


def clean(text: str) -> str:
    """A text that cannot end its turn: newlines are LF and single, none at either end."""
    return re.sub("\n{2,}", "\n", newlines(text)).strip()


# ---- which one ----------------------------------------------------------------------------------


def find_template(model: Model) -> tuple[Template, str]:
    """The template of a model, and what says so: its name, in the file or of the file; the words of
    the chat template that the file carries, which is not executed; or its tokenizer.
    """
    name, source = chat_template_of(model._file)
    return TEMPLATES[name], source


# ---- one that a user writes ---------------------------------------------------------------------


def load_template(path: str | PathLike[str]) -> Template:
    """A template from a file: a JSON object with the fields of Template but for `name`, of which
    `user`, `assistant` and `stop` must be there.

    Raises FormatError for anything else, OSError where it cannot be read.
    """
    from ..files.safetensors import json_object

    path = Path(path)
    data = read_bytes(path, MOST_BYTES, "a chat template").removeprefix(BOM_UTF8)
    try:
        found = json_object(f"{path}: the chat template", data)
    except FormatError:
        if b"{%" not in data and b"{{" not in data:
            raise
        raise FormatError(
            f"{path}: found a Jinja text, which is not executed; expected a chat template as JSON "
            "(docs/chat.md)"
        ) from None
    return template_from_fields(found, path.name, str(path))


def template_from_fields(found: Any, name: str, source: str) -> Template:
    """A template from the JSON of its fields; FormatError, beginning with `source`."""
    for error in errors_of_fields(found):  # the first; others may follow from it
        raise FormatError(f"{source}: {error}")
    return Template(**{**found, "name": name, "stop": tuple(found["stop"])})


def fields_of_template(template: Template) -> dict[str, Any]:
    return {name: value for name, value in asdict(template).items() if name != "name"}


def is_text(value: Any) -> bool:
    """A string without half characters, which JSON can write."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def is_turn(value: Any) -> bool:
    return is_text(value) and value.count(PLACE) == 1


def is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def is_stops(value: Any) -> bool:
    whole = isinstance(value, (list, tuple)) and len(value) <= MOST_STOPS
    return whole and all(is_text(text) and text for text in value)


A_TURN = f"a text with one {PLACE}"
FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "user": (is_turn, A_TURN),
    "assistant": (is_turn, A_TURN),
    "stop": (is_stops, f"a list of at most {MOST_STOPS} texts, none of them empty"),
    "system": (lambda value: value == "" or is_turn(value), A_TURN),
    "opening": (is_text, "a text"),
    "think": (is_bool, "true or false"),
    "exact": (is_bool, "true or false"),
}
NEEDED = ("user", "assistant", "stop")


def errors_of_fields(found: Any) -> Iterator[str]:
    """What is wrong with the fields of a template."""
    if not isinstance(found, dict):
        yield f"found {shown(found)}, expected a JSON object"
        return
    for name, value in found.items():
        if name not in FIELDS:
            yield f"found the field {shown(name)}, expected {', '.join(FIELDS)}"
        elif not FIELDS[name][0](value):
            yield f"{name}: found {shown(value)}, expected {FIELDS[name][1]}"
    for name in NEEDED:
        if name not in found:
            yield f"the field {name} is missing"
    if found.get("think") and any(not text.strip() for text in found["stop"]):
        yield "stop: found white space, which also stands between the thinking and the answer"
    if found.get("opening") and not found.get("system"):
        yield "opening: found a text, but no field system that says where it goes"
