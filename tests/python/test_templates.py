# SPDX-License-Identifier: Apache-2.0
"""Which template a model gets, where its answers end, and templates that users write."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pile
import pytest
import tiny
from refusal import refuses
from rwkv_edge import Conversation, FormatError, Model
from rwkv_edge.chat import TEMPLATES, load_template
from rwkv_edge.chat.templates import MOST_BYTES, MOST_STOPS
from rwkv_edge.cli.chat import first_line
from rwkv_edge.convert.chat_template import G1, RAVEN, WORLD
from scripted import bits, bits_after, byte_tokens, play, talkative_model

# What llama.cpp puts into every RWKV file that it converts, World models included, in short.
LLAMA_CPP = """{%- for message in messages -%}{{- 'User: ' + message.content -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:' + ' <think>\\n</think>' -}}{%- endif -%}"""
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
NAME, WORDS, TOKENIZER = "by its name", "by its chat template", "by its tokenizer"


@pytest.mark.parametrize(
    ("name", "file", "jinja", "template", "source"),
    [
        ("rwkv7-g1d-0.4b-20260210-ctx8192", "a.gguf", G1, "g1", NAME),
        ("Rwkv7 G1 0.4B", "a.gguf", LLAMA_CPP, "g1", NAME),
        ("rwkv7-g0a3-7.2b", "a.gguf", None, "g1", NAME),
        ("RWKV-x070-World-0.4B-v2.9", "a.gguf", LLAMA_CPP, "world", NAME),
        ("RWKV-4-Raven-7B-v12", "a.gguf", None, "raven", NAME),
        ("RWKV-4-Pile-430M", "a.gguf", None, "raven", NAME),
        (None, "rwkv7-g1-1.5b.gguf", WORLD, "g1", NAME),
        ("my model", "a.gguf", G1, "g1", WORDS),
        ("my model", "a.gguf", LLAMA_CPP, "g1", WORDS),
        ("my model", "a.gguf", WORLD, "world", WORDS),
        ("my model", "a.gguf", RAVEN, "raven", WORDS),
        ("my model", "a.gguf", CHATML, "world", TOKENIZER),
        ("my model", "a.gguf", "rwkv-world", "world", TOKENIZER),
        ("my model", "a.gguf", None, "world", TOKENIZER),
        (7, "a.gguf", 7, "world", TOKENIZER),
    ],
)
def test_which_template(
    tmp_path: Path,
    name: str | int | None,
    file: str,
    jinja: str | int | None,
    template: str,
    source: str,
) -> None:
    made = tiny.tiny_model(tiny.SHAPES["d128"], "f32", 1)
    made.file.drop("general.name")
    for key, value in (("general.name", name), ("tokenizer.chat_template", jinja)):
        if value is not None:
            made.file.put(key, tiny.STRING if isinstance(value, str) else tiny.U32, value)
    chat = Conversation(Model(tiny.write(tmp_path, file, made), threads=1))
    assert (chat.template, chat.template_source) == (TEMPLATES[template], source)


PARAGRAPHS = "answers may have paragraphs"
FIRST_LINES = [
    ("rwkv7-world", None, {}, "world (by its name), answers end at a blank line.\n"),
    ("rwkv7-world", None, {"paragraphs": True}, f"world (by its name), {PARAGRAPHS}.\n"),
    ("rwkv7-g1", LLAMA_CPP, {"think": "on"}, f"g1 (by its name), {PARAGRAPHS}, thinking on.\n"),
    ("x", None, {"template": "raw"}, "raw (named), answers end where the document does.\n"),
    ("x", None, {"template": "g1"}, f"g1 (named), {PARAGRAPHS}, thinking off.\n"),
    ("x", LLAMA_CPP, {}, f"g1 (by its chat template), {PARAGRAPHS}, thinking off.\n"
     "If this is a World model, --template world is right. "),
]  # fmt: skip


@pytest.mark.parametrize(("name", "jinja", "options", "line"), FIRST_LINES)
def test_what_the_chat_says_at_first(
    tmp_path: Path, name: str, jinja: str | None, options: dict[str, Any], line: str
) -> None:
    made = tiny.tiny_model(tiny.SHAPES["d128"], "f32", 1)
    made.file.put("general.name", tiny.STRING, name)
    if jinja is not None:
        made.file.put("tokenizer.chat_template", tiny.STRING, jinja)
    model = Model(tiny.write(tmp_path, "a.gguf", made), threads=1)
    assert first_line(Conversation(model, **options)) == f"template {line}/help lists the commands."


def test_the_tokenizer_of_the_pile(tmp_path: Path) -> None:
    made = tiny.tiny_model(tiny.VERSIONS["4"]["d192"], "f32", 1)
    made.file.put("tokenizer.ggml.model", tiny.STRING, "gpt2")
    made.file.put("tokenizer.huggingface.json", tiny.STRING, json.dumps(pile.tokenizer()))
    chat = Conversation(Model(tiny.write(tmp_path, "a.gguf", made), threads=1))
    assert (chat.template.name, chat.template_source) == ("raven", TOKENIZER)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(talkative_model(tmp_path_factory.mktemp("models")), threads=1)


# What a model writes, and what is taken for its answer.
ENDS = {
    "g1": [
        ("One.\n\nTwo:\n\n* a\n\n    code\n\nUser: and", "One.\n\nTwo:\n\n* a\n\n    code"),
        ("name:\nUser: x\nAssistant: y\n\nSystem: z", "name:\nUser: x\nAssistant: y"),
        ("yes\n\nAssistant: no", "yes"),
        ("Dear\n\nUsers, hi", "Dear\n\nUsers, hi"),
    ],
    "world": [
        ("One.\n\nTwo.", "One."),
        ("yes\nUser: and", "yes"),
        ("yes\nAssistant: and", "yes"),
        ("One.\nTwo.", "One.\nTwo."),
    ],
    "raven": [
        ("One.\n\nTwo.", "One."),
        ("yes\nBob: and", "yes"),
        ("One.\nUser: x", "One.\nUser: x"),
    ],
    "instruct": [("One.\n\nTwo.\n\n# Instruction:\nx", "One.\n\nTwo."), ("a\n# Response:", "a")],
    "raw": [("One.\n\nUser: x\n", "One.\n\nUser: x\n")],
}


@pytest.mark.parametrize(
    ("template", "written", "answer"),
    [(template, *case) for template, cases in ENDS.items() for case in cases],
)
def test_where_answers_end(
    model: Model, monkeypatch: pytest.MonkeyPatch, template: str, written: str, answer: str
) -> None:
    chat = Conversation(model, template=template)
    play(monkeypatch, [*byte_tokens(written), 0])
    assert "".join(chat.ask("hi")) == answer
    assert chat.turns == (("hi", answer),)


def test_paragraphs_where_a_template_has_one(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Conversation(model, paragraphs=True)
    play(monkeypatch, byte_tokens("One.\n\nTwo.\n\nUser:"))
    assert "".join(chat.ask("hi")) == "One.\n\nTwo."


# ---- templates of users -------------------------------------------------------------------------

OWN: dict[str, Any] = {
    "user": "<|user|>{}<|end|>\n",
    "assistant": "<|model|> {}<|end|>\n",
    "stop": ["<|end|>"],
    "system": "<|system|>{}<|end|>\n",
    "opening": "Be kind.",
}


def write(folder: Path, found: object) -> Path:
    path = folder / "own.json"
    path.write_text(found if isinstance(found, str) else json.dumps(found))
    return path


def test_a_template_of_ones_own(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chat = Conversation(model, template=load_template(write(tmp_path, OWN)))
    assert chat.template.name == "own.json"
    play(monkeypatch, byte_tokens("Yes.\n\nNo.<|end|>"))
    assert "".join(chat.ask(" {0} \r\n\n{} ")) == "Yes.\n\nNo."
    encode = model.tokenizer.encode
    expected = encode("<|system|>Be kind.<|end|>\n")
    # Its turns do not end at a blank line, so texts may hold some.
    expected += encode("<|user|>{0} \n\n{}<|end|>\n<|model|>")
    expected += encode(" Yes.\n\nNo.<|end|>\n")
    assert bits(chat.session) == bits_after(model, expected)


def test_a_byte_order_mark_is_left_out(tmp_path: Path) -> None:
    """As Windows' editors write it."""
    path = write(tmp_path, OWN)
    expected = load_template(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_template(path) == expected


def test_one_that_thinks(model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chat = Conversation(
        model, template=load_template(write(tmp_path, {**OWN, "think": True})), think="on"
    )
    play(monkeypatch, [*byte_tokens(">Hm\n</think"), *byte_tokens(">Yes<|end|>")])
    assert "".join(chat.ask("hi")) == "Yes"


BAD: dict[str, tuple[object, str]] = {
    "a Jinja text": (CHATML, "a Jinja text, which is not executed; expected a chat template as"),
    "deep": ("[" * 60000, "the chat template is no proper JSON"),
    "long": (" " * (MOST_BYTES + 1), f"not a chat template, larger than {MOST_BYTES} bytes"),
    "no object": ([1], "the chat template is no JSON object"),
    "twice": (
        '{"user": "", "user": ""}',
        "the chat template is no proper JSON .'user' appears twi",
    ),
    "unknown": (
        {**OWN, "bos": "x"},
        "found the field 'bos', expected user, assistant, stop, system",
    ),
    "the name": ({**OWN, "name": "x"}, "found the field 'name', expected user, assistant"),
    "no user": ({"assistant": "{}", "stop": []}, "the field user is missing"),
    "no stop": ({"assistant": "{}", "user": "{}"}, "the field stop is missing"),
    "user": ({**OWN, "user": "x"}, r"user: found 'x', expected a text with one \{\}"),
    "two": ({**OWN, "assistant": "{}{}"}, r"assistant: found '\{\}\{\}', expected a text with one"),
    "system": ({**OWN, "system": 1}, r"system: found 1, expected a text with one \{\}"),
    "stop": ({**OWN, "stop": ""}, "stop: found '', expected a list of at most 32 texts"),
    "empty": ({**OWN, "stop": ["a", ""]}, r"stop: found \['a', ''\], expected a list"),
    "many": (
        {**OWN, "stop": ["a"] * (MOST_STOPS + 1)},
        "stop: found .*, expected a list of at most",
    ),
    "half": ({**OWN, "opening": "\ud800"}, "opening: found .*, expected a text"),
    "think": ({**OWN, "think": 1}, "think: found 1, expected true or false"),
    "both": ({**OWN, "think": True, "stop": ["\n\n"]}, "stop: found white space, which also"),
    "opening": ({**OWN, "system": ""}, "opening: found a text, but no field system"),
}


@pytest.mark.parametrize(("found", "message"), BAD.values(), ids=BAD)
def test_a_template_that_is_wrong(tmp_path: Path, found: object, message: str) -> None:
    path = write(tmp_path, found)
    with refuses(FormatError, path, message):
        load_template(path)


@pytest.mark.posix("pipes with names")
def test_a_template_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with refuses(FormatError, tmp_path / "pipe", "a pipe or a device"):
        load_template(tmp_path / "pipe")
    with pytest.raises(OSError, match="own"):
        load_template(tmp_path / "own.json")
