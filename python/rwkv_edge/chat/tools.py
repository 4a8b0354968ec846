# SPDX-License-Identifier: Apache-2.0
"""Calls of tools, in the words that RWKV-7 G1 was trained on:

    System: Tools:
    - weather(city: string, unit?: "c" | "f"): The weather of today.
    Return only a JSON function call.

    User: How warm is it in Paris?

    Assistant: ```json
    {"name": "weather", "arguments": {"city": "Paris"}}
    ```

    User: Function output:
    {"celsius": 21}

    Assistant: ...

The turns are the template's. What stands in them is made and read here:

    talk = Conversation(model, system=tools.system())
    call = tools.parse("".join(talk.ask("How warm is it in Paris?", grammar=tools.grammar)))
    answer = "".join(talk.ask(result(weather(**call.arguments))))
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..grammar import JSON_OPTIONS
from .templates import clean

DEFINITIONS = ("$defs", "definitions")
"""Where a JSON schema has what it refers to; the second in drafts before 2019."""


@dataclass(frozen=True)
class Tool:
    """What a model may call."""

    name: str
    description: str
    parameters: dict[str, Any]
    """A JSON schema of the arguments, an object."""

    @property
    def signature(self) -> str:
        needed = self.parameters.get("required", ())
        arguments = [
            f"{name}{'' if name in needed else '?'}: {kind_of(schema)}"
            for name, schema in self.parameters.get("properties", {}).items()
        ]
        text = f"{self.name}({', '.join(arguments)})"
        return f"{text}: {self.description}" if self.description else text


@dataclass(frozen=True)
class ToolCall:
    name: str
    arguments: dict[str, Any]


class Tools:
    """The tools of a conversation."""

    def __init__(self, tools: Iterable[Mapping[str, Any]]) -> None:
        """Each is a dict of name, description and parameters, a JSON schema; or one in which that
        is the value of "function", as OpenAI's clients have it.

        Raises ValueError and TypeError for what is no tool, and where two have one name.
        """
        self.tools = [read_tool(tool) for tool in tools]
        names = [tool.name for tool in self.tools]
        if not names:
            raise ValueError("tools: found none, expected at least one")
        if len(set(names)) < len(names):
            raise ValueError(f"tools: found {', '.join(names)}, expected different names")
        self.grammar = (
            f'start: " "? "```json\\n" call "\\n```"\ncall: %json {json.dumps(self.schema)}\n'
        )
        """An option for `generate` and `ask`: the answer is a call of one of the tools, with
        arguments of its schema."""

    def system(self, text: str = "") -> str:
        """What the system says of them, and then a text of its own."""
        lines = [f"- {clean(tool.signature)}" for tool in self.tools]
        return "\n".join(
            ["Tools:", *lines, "Return only a JSON function call.", *filter(None, [text])]
        )

    @property
    def schema(self) -> dict[str, Any]:
        """What a call is."""
        calls: list[dict[str, Any]] = []
        shared: dict[str, dict[str, Any]] = {word: {} for word in DEFINITIONS}
        for tool in self.tools:
            own = dict(tool.parameters)
            # References are looked up from the schema's root.
            for word in DEFINITIONS:
                for name, schema in own.pop(word, {}).items():
                    if shared[word].setdefault(name, schema) != schema:
                        raise ValueError(f"tools: found two definitions of '{name}', expected one")
            properties = {"name": {"const": tool.name}, "arguments": own}
            calls.append(
                {
                    "type": "object",
                    "properties": properties,
                    "required": list(properties),
                    "additionalProperties": False,
                }
            )
        return {"x-guidance": JSON_OPTIONS, **shared, "anyOf": calls}

    def parse(self, text: str) -> ToolCall:
        """The call in an answer, with or without a fence around it; what follows is not looked at.

        Raises ValueError where there is none of these tools, or `max_tokens` cut it off.
        """
        begin = text.find("{")
        try:
            found, _ = json.JSONDecoder().raw_decode(text, max(begin, 0))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"found {text[:80]!r}, expected a call in JSON ({error})") from None
        name, arguments = (
            (found.get("name"), found.get("arguments")) if isinstance(found, dict) else (None, None)
        )
        names = [tool.name for tool in self.tools]
        if name not in names or not isinstance(arguments, dict):
            raise ValueError(
                f"found {text[:80]!r}, expected the name and the arguments of {' or '.join(names)}"
            )
        return ToolCall(name, arguments)


def result(value: Any) -> str:
    """What the user says of a call's result: a text, or what JSON can hold."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"Function output:\n{clean(text)}"


def read_tool(found: Mapping[str, Any]) -> Tool:
    if not isinstance(found, Mapping):
        raise TypeError(f"tools: found {found!r}, expected a dict")
    inner = found.get("function", found)
    name = inner.get("name") if isinstance(inner, Mapping) else None
    if not isinstance(name, str) or not name:
        raise ValueError(f"tools: found {found!r}, expected a name")
    parameters = inner.get("parameters") or {}
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        raise ValueError(f"tools: parameters of {name}: expected a JSON schema of an object")
    kinds = {"properties": dict, "required": list, **dict.fromkeys(DEFINITIONS, dict)}
    for key, kind in kinds.items():
        if not isinstance(parameters.get(key, kind()), kind):
            raise ValueError(
                f"tools: parameters of {name}: {key} is {parameters[key]!r}, expected a "
                f"{kind.__name__}"
            )
    try:
        json.dumps(parameters)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"tools: parameters of {name}: not JSON ({error})") from None
    schema = {"type": "object", "properties": {}, "additionalProperties": False, **parameters}
    return Tool(name, str(inner.get("description") or ""), schema)


def kind_of(schema: Any) -> str:
    """The type of an argument, in a word or two."""
    brackets = ""
    while isinstance(schema, dict) and schema.get("type") == "array" and "enum" not in schema:
        schema, brackets = schema.get("items"), brackets + "[]"
    if not isinstance(schema, dict):
        return f"any{brackets}"
    kinds = schema.get("type", "any")
    if isinstance(values := schema.get("enum"), list):
        kinds = [json.dumps(value, ensure_ascii=False) for value in values]
    return (" | ".join(map(str, kinds)) if isinstance(kinds, list) else str(kinds)) + brackets
