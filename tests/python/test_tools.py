# SPDX-License-Identifier: Apache-2.0
"""Calls of tools: what a model reads of them, and that what it writes is always a call."""

from __future__ import annotations

from typing import Any

import pytest
from rwkv_edge import Conversation, Model
from rwkv_edge.chat import TEMPLATES, Turn
from rwkv_edge.chat.tools import ToolCall, Tools, result
from scripted import bits, talkative_model

WEATHER = {
    "name": "weather",
    "description": "The weather\n\nof today.",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 12},
            "unit": {"enum": ["c", "f"]},
            "days": {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
        },
        "required": ["city"],
        "additionalProperties": False,
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(talkative_model(tmp_path_factory.mktemp("models")), threads=1)


def test_what_the_system_says() -> None:
    assert Tools([WEATHER, CLOCK]).system("Be brief.") == (
        "Tools:\n"
        '- weather(city: string, unit?: "c" | "f", days?: integer[]): The weather\nof today.\n'
        "- clock()\n"
        "Return only a JSON function call.\n"
        "Be brief."
    )
    assert result({"celsius": 21, "place": "\u6771\u4eac"}) == (
        'Function output:\n{"celsius": 21, "place": "\u6771\u4eac"}'
    )
    nested: Any = {"enum": ["c"]}
    for _ in range(900):  # more than Python's stack holds with a frame or two for each
        nested = {"type": "array", "items": nested}
    kinds = {"a": nested, "b": {"type": ["integer", "null"]}, "c": {"enum": 3}}
    tool = {"name": "deep", "parameters": {"properties": kinds, "required": ["a", "b", "c"]}}
    assert Tools([tool]).tools[0].signature == (
        f'deep(a: "c"{"[]" * 900}, b: integer | null, c: any)'
    )
    assert result("a\r\n\r\n\nb\n") == "Function output:\na\nb"


@pytest.mark.parametrize("think", ["off", "fast", "bit"])
def test_a_random_model_calls_tools(model: Model, think: str) -> None:
    """Whatever it would rather say; and the conversation is that of the visible text."""
    tools = Tools([WEATHER, CLOCK])
    calls = []
    for seed in range(12):
        talk = Conversation(
            model, template="g1", think=think, think_tokens=9, system=tools.system()
        )
        options: Any = {"seed": seed, "top_p": 1, "temperature": 3, "max_tokens": 500}
        text = "".join(talk.ask("How warm is it?", grammar=tools.grammar, **options))
        assert text.startswith("```json\n{")
        assert text.endswith("}\n```")
        calls.append(call := tools.parse(text))
        if call.name == "clock":
            assert call.arguments == {}
        else:
            assert call.name == "weather"
            assert "city" in call.arguments
            assert set(call.arguments) <= {"city", "unit", "days"}
            assert call.arguments.get("unit", "c") in ("c", "f")
        "".join(talk.ask(result({"celsius": 21}), max_tokens=5, seed=1))
        assert talk.turns[0] == Turn("How warm is it?", text)
        assert talk.turns[1].user == 'Function output:\n{"celsius": 21}'
        fresh, g1 = model.session(), TEMPLATES["g1"]
        texts = [g1.told(tools.system())]
        for turn in talk.turns:
            texts += [g1.asked(turn.user), g1.answered(turn.answer)]
        for read in texts:
            fresh.read(model.tokenizer.encode(read))
        assert bits(talk.session) == bits(fresh)
    assert {call.name for call in calls} == {"weather", "clock"}


def test_a_call_without_a_conversation(model: Model) -> None:
    tools = Tools([WEATHER, CLOCK])
    pieces = model.session().generate("Assistant:", grammar=tools.grammar, seed=3)
    call = tools.parse("".join(pieces))
    assert call.name in ("weather", "clock")
    assert pieces.details.finish_reason == "stop"
    cut = "".join(model.session().generate("Assistant:", grammar=tools.grammar, max_tokens=12))
    with pytest.raises(ValueError, match="expected a call in JSON"):
        tools.parse(cut)


@pytest.mark.parametrize("word", ["$defs", "definitions"])
def test_shared_definitions(model: Model, word: str) -> None:
    def tool(name: str, kind: str) -> dict[str, Any]:
        place = {"$ref": f"#/{word}/Place"}
        parameters = {
            "type": "object",
            "properties": {"at": place},
            "required": ["at"],
            "additionalProperties": False,
            word: {"Place": {"type": kind}},
        }
        return {"name": name, "parameters": parameters}

    tools = Tools([tool("go", "boolean"), tool("stay", "boolean")])
    pieces = model.session().generate("x", grammar=tools.grammar, seed=2, top_p=1, temperature=3)
    call = tools.parse("".join(pieces))
    assert call.arguments in ({"at": True}, {"at": False})
    with pytest.raises(ValueError, match="found two definitions of 'Place', expected one"):
        Tools([tool("go", "boolean"), tool("stay", "string")])


def test_calls_that_a_model_wrote_freely() -> None:
    tools = Tools([WEATHER, CLOCK])
    call = ToolCall("weather", {"city": "Paris"})
    json = '{"name": "weather", "arguments": {"city": "Paris"}}'
    for text in (json, f"\n{json}\n```\n\nUser: x", f" ```json\n{json}\n```", f"Well: {json} {{"):
        assert tools.parse(text) == call
    for text in (
        "",
        "no call",
        "{",
        '{"name": "rain", "arguments": {}}',
        '{"name": "clock"}',
        "{}",
    ):
        with pytest.raises(ValueError, match="expected"):
            tools.parse(text)
    with pytest.raises(ValueError, match="expected a call in JSON"):
        tools.parse('{"a":' * 100_000)


BAD: list[tuple[Any, str]] = [
    ([], "tools: found none, expected at least one"),
    ([CLOCK, {"name": "clock"}], "tools: found clock, clock, expected different names"),
    (["clock"], "tools: found 'clock', expected a dict"),
    ([{}], r"tools: found \{\}, expected a name"),
    ([{"function": 3}], "expected a name"),
    ([{"name": "a", "parameters": {"type": "string"}}], "parameters of a: expected a JSON schema"),
    ([{"name": "a", "parameters": [1]}], "parameters of a: expected a JSON schema"),
    ([{"name": "a", "parameters": {"properties": ["x"]}}], "a: properties is .*, expected a dict"),
    ([{"name": "a", "parameters": {"required": "x"}}], "a: required is 'x', expected a list"),
    ([{"name": "a", "parameters": {"$defs": 1}}], r"a: \$defs is 1, expected a dict"),
    ([{"name": "a", "parameters": {"definitions": 1}}], "a: definitions is 1, expected a dict"),
    ([{"name": "a", "parameters": {"properties": {"x": object()}}}], r"parameters of a: not JSON"),
]


@pytest.mark.parametrize(("tools", "message"), BAD)
def test_what_is_no_tool(tools: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        Tools(tools)
