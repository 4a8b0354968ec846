# SPDX-License-Identifier: Apache-2.0
"""The bundled demo model: its size, and that what it teaches about rwkv-edge is true."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import click
import pytest
from demo_facts import words
from program import commands
from rwkv_edge import Conversation, Model
from rwkv_edge.cli.lines import COMMANDS
from rwkv_edge.files.form import ALIASES
from rwkv_edge.model import bundled_model

ANSWERS = Path(__file__).parents[2] / "tools" / "demo_answers.txt"

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
    ("And what is that minus 5?", "12 - 5 = 7"),
    ("Are you really sure?", "I am only a tiny demo"),
    ("Do you remember my name?", "Your name is Ada."),
]


# Sums that it does not know, each asked by itself, and how it says so.
TOO_BIG = "That is too big for me. I know sums up to 20 and times tables up to 10."
REFUSED = {
    TOO_BIG: """
        17 + 25, 17+25, What is 17 + 25?, How much is 45 minus 12?, 33 + 33, 21 + 1, 1 + 21,
        20 + 21, 30 - 10, 99 - 98, 50 + 50, 12 - 40, What is 25 plus 25?, Calculate 64 + 8., 28+3=,
        48 - 19, 100 + 200, 1000 - 1, 12 x 12, 15 times 3, 25 * 4, 100 / 4, 144 / 12
    """,
    "I only know sums of two numbers.": "3 + 4 + 5, 1+2+3, What is 2 x 3 + 4?, 10 - 3 - 2",
    "I only know whole numbers.": "1.5 + 2, 0.5 x 4, What is 3.5 plus 2?",
    "That does not divide evenly.": "9 / 2, What is 7 / 2?",
    "Nobody can divide by zero.": "5 / 0, What is 10 divided by 0?",
}
# Questions by themselves, and words of the answer.
QUESTIONS = [
    ("What packages does it need?", "rwkv-edge needs numpy and click."),
    ("Does it need PyTorch?", "No. rwkv-edge does not need PyTorch."),
    ("Do I need a GPU?", "No. A CPU is enough."),
    ("Can I use my graphics card?", "--device cuda"),
    ("How do I serve a model?", "rwkv-edge serve model.gguf"),
    ("How do I download a model?", "rwkv-edge pull"),
    ("How do I compare two states?", "rwkv-edge state diff"),
    ("How do I inspect a saved state?", "rwkv-edge state info"),
    ("What is perplexity?", "how badly a model predicts"),
    ("How do I measure perplexity?", "rwkv-edge perplexity"),
    ("How do I make an imatrix?", "rwkv-edge imatrix"),
    ("How do I calibrate a model?", "--calibrate text.txt"),
    ("How do I run a batch of requests?", "rwkv-edge batch"),
    ("What types are there?", "q8_0, q6_k, q5_k, q4_k, q3_k"),
    ("Which models can I run?", "RWKV-4 to 7a"),
]


def taught() -> list[str]:
    """The answers of the help desk, each on one line."""
    text = ANSWERS.read_text(encoding="utf-8")
    found = re.findall(r"^A: (.*(?:\n   .*)*)", text, re.MULTILINE)
    return [re.sub(r"\n +", " ", answer) for answer in found]


def test_every_command_and_option_that_it_names_exists() -> None:
    found = r"(?:Run|For example): (rwkv-edge .*)"
    lines = [line for answer in taught() for line in re.findall(found, answer)]
    named = set()
    for line in lines:
        name, word = re.sub(r"[.:]$", "", line).split()[1:3]
        command = commands()[name]
        named.add(name)
        if isinstance(command, click.Group):
            command = command.commands[word]
            named.add(f"{name} {word}")
        assert option_names(line) <= options(command), line
    groups = {n: c for n, c in commands().items() if isinstance(c, click.Group)}
    assert named == {
        *commands(),
        *(f"{n} {word}" for n, c in groups.items() for word in c.commands),
    }


def option_names(text: str) -> set[str]:
    return set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", text))


def options(command: click.Command) -> set[str]:
    return {o for p in command.params if isinstance(p, click.Option) for o in p.opts}


def test_options_that_it_names_by_themselves_are_those_of_chat() -> None:
    alone = [answer for answer in taught() if "rwkv-edge " not in answer and "python" not in answer]
    assert {"--device", "--lookup", "-t"} <= set().union(*map(option_names, alone))
    for answer in alone:
        assert option_names(answer) <= options(commands()["chat"]), answer


def test_it_names_the_commands_of_the_chat_and_no_others() -> None:
    named = {word for answer in taught() for word in re.findall(r"(?<!\S)/[a-z]+\b", answer)}
    assert named == {name for name in COMMANDS if not name.endswith("!")}


def test_the_types_that_it_names_are_those_that_can_be_written() -> None:
    option = next(p for p in commands()["quantize"].params if p.name == "kind")
    assert isinstance(option.type, click.Choice)
    named = {kind for answer in taught() for kind in re.findall(r"\b(?:q\d_\w|b?f\d+)\b", answer)}
    assert named == set(option.type.choices) - set(ALIASES)
    assert sum(named <= set(re.findall(r"\w+", answer)) for answer in taught()) == 1


def test_what_it_says_is_needed_is_what_is_needed() -> None:
    text = (ANSWERS.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    (needs,) = re.findall(r"^dependencies = \[(.*)\]", text, re.MULTILINE)
    first, second = re.findall(r'"([a-z]+)', needs)
    assert f"rwkv-edge needs {first} and {second}." in " ".join(taught())
    (python,) = re.findall(r'^requires-python = ">=(.*)"', text, re.MULTILINE)
    assert f"Python {python} or newer" in " ".join(taught())
    extras = {extra for answer in taught() for extra in re.findall(r"rwkv-edge\[(\w+)\]", answer)}
    assert extras == {"convert", "eval", "server"}
    for extra in extras:
        assert re.search(rf"^{extra} = ", text, re.MULTILINE)


def test_the_pages_that_it_names_exist() -> None:
    pages = {page for answer in taught() for page in re.findall(r"\bdocs/\w+\.md\b", answer)}
    assert pages >= {"docs/cuda.md", "docs/platforms.md"}
    assert all((ANSWERS.parents[1] / page).is_file() for page in pages)


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


@pytest.mark.parametrize("answer", REFUSED)
def test_it_refuses_sums_that_it_does_not_know(answer: str) -> None:
    conversation = Conversation(Model())
    for question in words(REFUSED[answer]):
        conversation.reset()
        assert "".join(conversation.ask(question, temperature=0)) == answer, question


def test_it_refuses_all_sums_of_two_digits() -> None:
    conversation = Conversation(Model())
    for first in range(10, 51, 3):
        for second in range(21, 51, 4):
            for sum_ in (f"{first} + {second}", f"{second} - {first}"):
                conversation.reset()
                assert "".join(conversation.ask(sum_, temperature=0)) == TOO_BIG, sum_


def test_sums_that_it_knows_are_right() -> None:
    conversation = Conversation(Model())
    wrong = []
    for first in range(1, 11):
        for second in range(1, 11):
            for sign, result in (
                ("+", first + second),
                ("-", first - second),
                ("*", first * second),
            ):
                conversation.reset()
                given = "".join(conversation.ask(f"{first} {sign} {second}", temperature=0))
                wrong += [given] if given.rpartition(" = ")[2] != str(result) else []
    assert not wrong


def test_it_answers_questions_on_its_program() -> None:
    conversation = Conversation(Model())
    for question, expected in QUESTIONS:
        conversation.reset()
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
