# SPDX-License-Identifier: Apache-2.0
"""The Jinja texts in our files, rendered by jinja2, say what `chat` says."""

from __future__ import annotations

from pathlib import Path

import checkpoints as ck
import jinja2
import jinja2.sandbox
import pytest
import tiny
from rwkv_edge import Conversation, Model
from rwkv_edge._core import ModelFile
from rwkv_edge.chat import TEMPLATES
from rwkv_edge.convert import convert, quantize
from rwkv_edge.convert.chat_template import G1, OLD, RAVEN, WORLD, chat_template
from scripted import byte_tokens, play, talkative_model

Messages = list[dict[str, str]]
SYSTEM = {"role": "system", "content": "Be\r\n\r\nbrief. "}
TALK = [
    {"role": "user", "content": "\n hi\n\n\nthere\rfriend "},
    {"role": "assistant", "content": " Hello.\n\nHow are you?\n"},
    {"role": "user", "content": "fine"},
]


def render(template: str, messages: Messages, **options: object) -> str:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
    options = {"add_generation_prompt": True, **options}
    return environment.from_string(template).render(messages=messages, **options)


@pytest.mark.parametrize(("text", "template"), [(WORLD, "world"), (G1, "g1"), (RAVEN, "raven")])
@pytest.mark.parametrize("system", [None, SYSTEM["content"], ""])
def test_the_words_are_those_of_chat(
    tmp_path: Path, text: str, template: str, system: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a conversation reads, and where its next answer begins."""
    model = Model(talkative_model(tmp_path))
    conversation = Conversation(model, system=system, template=template, paragraphs=True)
    play(monkeypatch, [*byte_tokens(TALK[1]["content"]), 0])
    assert "".join(conversation.ask(TALK[0]["content"])) == TALK[1]["content"].lstrip()
    read = model.tokenizer.decode(conversation.tokens)
    first = [] if system is None else [{"role": "system", "content": system}]
    assert read == render(text, [*first, *TALK[:2]], add_generation_prompt=False)
    begun = conversation.template.asked(conversation.template.clean(TALK[2]["content"]))
    assert read + begun == render(text, [*first, *TALK])


@pytest.mark.parametrize(("text", "user", "bot"), [
    (WORLD, "User", "Assistant"), (G1, "User", "Assistant"), (RAVEN, "Bob", "Alice"),
])  # fmt: skip
def test_a_conversation(text: str, user: str, bot: str) -> None:
    start = f"{user}: hi\nthere\nfriend\n\n{bot}: Hello.\n\nHow are you?\n\n{user}: fine\n\n"
    assert render(text, TALK).endswith(f"{start}{bot}:")
    assert render(text, TALK, add_generation_prompt=False).endswith(start)
    nothing = [{"role": "assistant", "content": None}, TALK[2]]
    assert f"{bot}: \n\n{user}: fine" in render(text, nothing)  # type: ignore[arg-type]


def test_thinking() -> None:
    old = {"role": "assistant", "content": "<think>Hm.</think>\n\nYes."}
    assert render(G1, [TALK[2], old]) == "User: fine\n\nAssistant: Yes.\n\nAssistant:"
    assert render(G1, TALK, enable_thinking=True).endswith("\n\nAssistant: <think>")
    assert render(G1, TALK, enable_thinking=False).endswith("\n\nAssistant: <think>\n</think>")
    assert render(WORLD, TALK, enable_thinking=True) == render(WORLD, TALK)
    # Ours leaves the last ">" to the model, and may have a hint before it.
    asked = TEMPLATES["g1"].asked
    assert render(G1, TALK, enable_thinking=True).endswith(
        asked("fine", "on").replace(" (think)", "") + ">"
    )
    assert render(G1, TALK, enable_thinking=False).endswith(
        asked("fine", "fast") + " <think>\n</think>"
    )


@pytest.mark.parametrize(("name", "text"), [
    ("rwkv7-g1-0.4b-20250324-ctx4096", G1), ("rwkv7-g0a3-7.2b", G1), ("rwkv7a-g1b-0.1b", G1),
    ("RWKV-x060-World-1B6-v2.1", WORLD), ("rwkv-ring1", WORLD), ("my g12 model", WORLD),
])  # fmt: skip
def test_which_template(name: str, text: str) -> None:
    assert chat_template("rwkv", name) == text
    assert chat_template("gpt2", name) == RAVEN


def test_what_a_file_says(tmp_path: Path) -> None:
    def said(path: Path) -> object:
        return ModelFile(path).get("tokenizer.chat_template")

    vocab = tmp_path / "vocab.txt"
    vocab.write_text(ck.VOCABULARY, "utf-8")
    for name, text in (("model.pth", WORLD), ("rwkv7-g1-0.1b.pth", G1)):
        path = ck.write(tmp_path, ck.pth_of(ck.weights_of()), name)
        convert(path, tmp_path / "a.gguf", vocab=vocab)
        assert said(tmp_path / "a.gguf") == text
    model = tiny.tiny_model(tiny.SHAPES["d128"], "f16", seed=1)
    # What older files of ours say is no Jinja. Another's template is copied, and never executed.
    for old, new in ((OLD, WORLD), ("{{ 1 / 0 }}", "{{ 1 / 0 }}")):
        model.file.put("tokenizer.chat_template", tiny.STRING, old)
        path = tiny.write(tmp_path, "in.gguf", model)
        quantize(path, tmp_path / "b.gguf", type="q8_0")
        assert said(tmp_path / "b.gguf") == new
