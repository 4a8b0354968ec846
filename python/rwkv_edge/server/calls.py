# SPDX-License-Identifier: Apache-2.0
"""Calls of tools in an answer, told from its text as the pieces come."""

from __future__ import annotations

import json
import secrets

from ..chat.tools import ToolCall, Tools
from .request import CallBegin, CallText, Event, Text

FENCE, FENCE_END = "```json", "\n```"


class CallReader:
    """An answer with calls in fences, as G1 writes them, or as bare JSON.

    What may be a call is held back until it is whole, because only then it is known for one.
    """

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._held = ""
        self._inside = False
        self._bare = False  # whether the answer may be JSON and nothing else
        self._begun = False
        self.calls = 0
        """That were found so far."""

    def push(self, piece: str) -> list[Event]:
        """The events that are now certain."""
        self._held += piece
        if not self._begun and self._held.strip():
            self._begun, self._bare = True, self._held.lstrip().startswith("{")
        if self._bare:
            return []
        found: list[Event] = []
        while True:
            mark = FENCE_END if self._inside else FENCE
            before, there, after = self._held.partition(mark)
            if not there:
                break
            found += (
                self._call(before, FENCE + before + there) if self._inside else self._say(before)
            )
            self._inside, self._held = not self._inside, after
        if not self._inside:
            cut = len(self._held) - begins(self._held, FENCE)
            if self._held[:cut].strip() or not self.calls:
                found += self._say(self._held[:cut])
                self._held = self._held[cut:]
        return found

    def end(self) -> list[Event]:
        """What was held back."""
        if self._inside:
            return self._call(self._held, FENCE + self._held)
        if self._bare:
            return self._call(self._held, self._held)
        return self._say(self._held)

    def _say(self, text: str) -> list[Event]:
        """A text, unless it is the white space behind a call."""
        return said(text) if text.strip() or not self.calls else []

    def _call(self, text: str, instead: str) -> list[Event]:
        """The call in a text, or the text that is none."""
        try:
            call: ToolCall = self._tools.parse(text)
        except ValueError:
            return said(instead)
        number, self.calls = self.calls, self.calls + 1
        return [
            CallBegin(number, f"call_{secrets.token_hex(12)}", call.name),
            CallText(number, json.dumps(call.arguments, ensure_ascii=False)),
        ]


def said(text: str) -> list[Event]:
    return [Text(text)] if text else []


def begins(text: str, mark: str) -> int:
    """How many characters at the end may turn out to begin the mark."""
    return next((n for n in range(len(mark) - 1, 0, -1) if text.endswith(mark[:n])), 0)
