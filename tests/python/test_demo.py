# SPDX-License-Identifier: Apache-2.0
"""The bundled demo model: its size, and that what it teaches about rwkv-edge is true."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import click
import pytest
from program import commands
from rwkv_edge import Conversation, Model
from rwkv_edge.cli.lines import COMMANDS
from rwkv_edge.model import bundled_model

ANSWERS = Path(__file__).parents[2] / "tools" / "demo_answers.txt"

# Commands that are younger than its last training, so that it cannot explain them.
NEWER = {"batch", "imatrix", "perplexity", "pull", "serve"}

# Phrasings and pairs that its training never held, and what only follows from the turn before.
CONVERSATION = [
    ("Hello you", "Hello! How can I help you?"),
    ("What sort of model are you?", "I am the rwkv-edge demo model"),
    ("Could you say what is 6 + 9?", "6 + 9 = 15"),
    ("My name is Ada.", "Nice to meet you, Ada!"),
    ("What comes after Friday?", "Saturday"),
    ("What is my name?", "Ada"),
    ("Can you name the capital of France?", "Paris"),
    ("And what about Germany?", "The capital of Germany is Berlin."),
    ("How deep is the ocean?", "I do not know that."),
    ("Compute 250 plus 33.", "That is too big for me."),
    ("What is 8 plus 4?", "8 + 4 = 12"),
    ("So what is that minus 5?", "12 - 5 = 7"),
    ("Are you really sure?", "I am only a tiny demo"),
    ("Do you remember my name?", "Your name is Ada."),
]


def taught() -> list[str]:
    """The answers of the help desk, each on one line."""
    text = ANSWERS.read_text(encoding="utf-8")
    found = re.findall(r"^A: (.*(?:\n   .*)*)", text, re.MULTILINE)
    return [re.sub(r"\n +", " ", answer) for answer in found]


def test_every_command_and_option_that_it_names_exists() -> None:
    found = r"(?:Run|For example): (rwkv-edge .*)"
    lines = [line for answer in taught() for line in re.findall(found, answer)]
    for line in lines:
        command = commands()[line.split()[1]]
        known = {o for p in command.params if isinstance(p, click.Option) for o in p.opts}
        assert set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", line)) <= known, line
    assert {line.split()[1] for line in lines} == set(commands()) - NEWER


def test_every_chat_command_that_it_names_exists() -> None:
    named = {word for answer in taught() for word in re.findall(r"(?<!\S)/[a-z]+\b", answer)}
    assert named
    assert named <= set(COMMANDS)


def test_the_types_that_it_names_can_be_written() -> None:
    option = next(p for p in commands()["quantize"].params if p.name == "kind")
    assert isinstance(option.type, click.Choice)
    named = {kind for answer in taught() for kind in re.findall(r"\b(?:q\d_\d|f16)\b", answer)}
    assert named
    assert named <= set(option.type.choices)


def test_it_is_small_and_whole() -> None:
    model = Model()
    assert bundled_model().stat().st_size < 6_000_000
    assert model.arch == "rwkv7"
    assert model.tokenizer.kind == "sentencepiece"
    assert model.tokenizer.n_vocab <= 4096
    assert model.metadata["general.license"] == "Apache-2.0"


@pytest.mark.parametrize("threads", [1, 2])
def test_it_holds_a_conversation(threads: int) -> None:
    conversation = Conversation(Model(threads=threads))
    for question, expected in CONVERSATION:
        answer = "".join(conversation.ask(question, temperature=0))
        assert expected in answer, (question, answer)


def test_it_knows_what_its_story_was_about() -> None:
    conversation = Conversation(Model())
    for seed in range(5):
        conversation.reset()
        story = "".join(conversation.ask("Tell me a story about a fox.", seed=seed))
        (name,) = re.findall(r"(?:called|named|name was) (\w+)", story)[:1]
        (thing,) = re.findall(r"(?:found|saw|blew) (an? \w+ \w+)", story)[:1]
        answer = "".join(conversation.ask(f"What did {name} find?", temperature=0))
        assert answer == f"{name} found {thing}.", story


def test_the_help_desk_gives_the_commands() -> None:
    conversation = Conversation(Model())
    for task in ("convert", "quantize"):
        conversation.reset()
        answer = "".join(conversation.ask(f"How do I {task} a model?", temperature=0))
        assert f"rwkv-edge {task} model" in inspect.cleandoc(answer)
