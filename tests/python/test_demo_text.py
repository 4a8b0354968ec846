# SPDX-License-Identifier: Apache-2.0
"""The demo model's text: true, and never what it is tested with."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import demo_follow_ups
import demo_stories
import demo_tasks
import demo_text
import numpy as np
import pytest
from demo_facts import NAMES_HELD, words
from rwkv_edge.convert import convert
from test_rwkv_package import write_vocabulary

SIGNS: dict[str, Callable[[int, int], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "x": operator.mul,
    "/": operator.truediv,
}


def training(count: int) -> list[tuple[str, str]]:
    """Questions and answers of the training text."""
    found = []
    for sample in islice(demo_text.samples(7), count):
        text = "".join(part for part, _ in sample)
        found += re.findall(r"User: (.*)\n\nAssistant: ((?:.|\n(?!\n))*)\n\n", text)
    return found


def test_it_is_not_trained_with_what_it_is_tested_with() -> None:
    turns = training(1500)
    asked = {demo_text.plain(question) for question, _ in turns}
    assert len(asked) > 2000
    held = {demo_text.plain(q) for _, _, q, _ in demo_text.held_out(3, 1000)}
    assert len(held) > 5000
    assert not asked & held
    follow_ups = [turns[-1] for turns, _ in demo_text.held_follow_ups(5, 300)]
    # A question of a task is held with any subject; others are alike in all conversations.
    assert not asked & {demo_text.plain(turn.question) for turn in follow_ups}
    names = {name for name in NAMES_HELD if any(name in question for question, _ in turns)}
    assert not names


def test_every_question_has_one_answer() -> None:
    answers: dict[str, str] = {}
    for task in demo_tasks.all_tasks():
        for ask in [*task.ask, *task.held]:
            for slots, answer in task.cases:
                question = demo_text.plain(demo_tasks.filled(ask, slots))
                assert answers.setdefault(question, answer) == answer, question
    assert len(answers) > 100_000


def test_all_sums_are_right() -> None:
    found = [turn for turn in training(1500) if re.fullmatch(r"\d+ \S \d+ = -?\d+", turn[1])]
    assert len(found) > 300
    for _, answer in found:
        a, sign, b, _, result = answer.split()
        assert SIGNS[sign](int(a), int(b)) == int(result)
    for slots, answer in demo_tasks.uneven_sums():
        a, _, b = slots["s"].split()
        assert (int(b) == 0) == (answer == "Nobody can divide by zero.")
        assert int(b) == 0 or int(a) % int(b)
    for slots, answer in demo_tasks.star_sums():
        a, _, b = slots["s"].split()
        assert answer == f"{a} x {b} = {int(a) * int(b)}"
    # What is too big is not also taught with a result.
    taught = {slots["s"] for slots, _ in [*demo_tasks.sums(), *demo_tasks.uneven_sums()]}
    for cases in demo_tasks.big_sums().values():
        assert not taught & {slots["s"].replace("*", "x") for slots, _ in cases}


def test_what_is_typed_has_the_numbers_of_its_answer() -> None:
    for question, answer in training(1500):
        if re.fullmatch(r"\d+ \S \d+ = -?\d+", answer) and re.search(r"\d\D+\d", question):
            asked = re.findall(r"\d+", question)
            assert asked == re.findall(r"\d+", answer.partition("=")[0]), question


def test_follow_ups_follow() -> None:
    kinds = set()
    for held in (False, True):
        writer = demo_text.Writer(11)
        memory = demo_stories.Memory(writer.rng)
        for _ in range(4000):
            last = writer.first_turn(memory)
            turn = demo_follow_ups.follow_up(writer.rng, last, held)
            if turn is None:
                continue
            if turn.cast and turn.cast is last.cast:
                kinds.add("story")
                slots = turn.cast.slots()
                values = {slots[k] for k in ("place", "thing", "friend", "hero", "name")}
                assert any(value in turn.answer and value in last.answer for value in values)
            elif turn.answer == last.answer:
                kinds.add("again")
            elif turn.task and turn.task is last.task:
                assert turn.slots in [slots for slots, _ in turn.task.cases]
                kinds.add("same")
                if turn.task.name == "sum" and "= " not in turn.question and held:
                    kinds.add("sum")
            elif turn.task is None and not turn.joke:
                kinds.add("fixed")
    assert kinds >= {"story", "again", "same", "sum", "fixed"}


def test_a_sum_goes_on_from_its_result() -> None:
    writer = demo_text.Writer(2)
    for _ in range(200):
        found = demo_follow_ups.sum_on(writer.rng, "3 + 4 = 7")
        assert found
        shown, (slots, answer) = found
        assert slots["s"] == f"7 {shown['s']}"
        second = int(slots["s"].split()[2])
        if second <= (10 if "x" in slots["s"] else 20):
            assert answer.startswith(f"{slots['s']} = ")
        else:
            assert answer == demo_tasks.TOO_BIG
        beyond = demo_follow_ups.sum_on(writer.rng, "9 x 9 = 81")
        assert beyond
        assert beyond[1][1] == demo_tasks.TOO_BIG
    assert demo_follow_ups.sum_on(writer.rng, "3 - 4 = -1") is None


def test_names_are_of_many_kinds() -> None:
    writer = demo_text.Writer(2)
    names = {demo_stories.made_up_name(writer.rng) for _ in range(2000)}
    assert len(names) > 1500
    assert all(name[0].isupper() and name[1:].islower() and name.isalpha() for name in names)
    assert not names & set(NAMES_HELD)
    assert words("a, , b") == ["a", "", "b"]  # an empty one stands for no letter


@pytest.mark.torch
@pytest.mark.skipif(find_spec("torch") is None, reason="torch not installed")
def test_a_training_goes_on_from_a_file(tmp_path: Path) -> None:
    import demo_model
    import torch
    import train_demo

    torch.manual_seed(1)
    model = demo_model.Rwkv7(260, 128, 2)
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) / 100
    train_demo.save(model, tmp_path / "m.pth")
    write_vocabulary(tmp_path / "vocab.txt")
    convert(tmp_path / "m.pth", tmp_path / "m.gguf", type="f32", vocab=tmp_path / "vocab.txt")
    twin = demo_model.Rwkv7(260, 128, 2)
    train_demo.go_on(twin, tmp_path / "m.gguf")
    for name, values in model.state_dict().items():
        assert np.array_equal(twin.state_dict()[name], values), name
