# SPDX-License-Identifier: Apache-2.0
"""The text of a conversation in files: as JSON in that of its state, and as Markdown for people."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from ..files.form import utf8
from ..files.output import OutputFile
from ..state import State
from .templates import Template, errors_of_fields, fields_of_template, template_from_fields


class Turn(NamedTuple):
    """What a user said, and what the model answered, as both can be seen."""

    user: str
    answer: str


@dataclass(frozen=True)
class Transcript:
    """The text of a conversation."""

    template: Template
    system: str
    turns: tuple[Turn, ...]
    begin: str | None
    """The digest of the state that it began at, None where that was the very beginning."""


def digest(state: State) -> str:
    import hashlib

    return hashlib.sha256(state.data.tobytes()).hexdigest()


def text_of(transcript: Transcript) -> str:
    """As it is saved: JSON."""
    template = transcript.template
    return json.dumps(
        {
            "template": {"name": template.name, **fields_of_template(template)},
            "system": transcript.system,
            "turns": transcript.turns,
            "begin": transcript.begin,
        }
    )


def transcript_of(text: str) -> Transcript | None:
    """A saved text; None where it is none of ours, or damaged."""
    try:
        found = json.loads(text)
        template, turns, begin = found["template"], found["turns"], found["begin"]
        name = template.pop("name")
        strings = [name, found["system"], *([] if begin is None else [begin])]
        for turn in turns:
            user, answer = turn
            strings += [user, answer]
        for each in strings:
            utf8("a text", each)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if any(errors_of_fields(template)):
        return None
    return Transcript(
        template_from_fields(template, name, "a saved conversation"),
        found["system"],
        tuple(Turn(*turn) for turn in turns),
        begin,
    )


def markdown(system: str, turns: Sequence[Turn]) -> str:
    """A conversation for people: each text under a line that says whose it is."""
    told = [("System", system)] if system else []
    said = [each for turn in turns for each in (("User", turn.user), ("Assistant", turn.answer))]
    return "".join(f"**{name}:**\n\n{text}\n\n" for name, text in told + said)


def write_markdown(
    path: str | PathLike[str], system: str, turns: Sequence[Turn], *, replace: bool = False
) -> None:
    """Raises FileExistsError for a file that is there, unless it is to be replaced."""
    path = Path(path)
    if not replace and os.path.lexists(path):
        raise FileExistsError(f"{path}: is there already")
    with OutputFile(path, mode=0o600) as file:
        file.write(markdown(system, turns).encode("utf-8", "replace"))
