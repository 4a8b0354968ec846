# SPDX-License-Identifier: Apache-2.0
"""Turns of the demo model's conversations that make sense only after the turn before."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field

import demo_stories as stories
from demo_facts import listed
from demo_tasks import (
    PHRASES,
    SIGNS,
    TOO_BIG,
    Case,
    Task,
    asked,
    filled,
    is_held,
    is_taught,
    sum_case,
    sum_tasks,
)

THING = re.compile(r"\b(?:a|my|the) (?:model|chat|checkpoint|gguf|gguf file|conversation)\b")
LONGEST_AGAIN = 80  # characters that it is asked to say again
SUMS = sum_tasks()
SUM_NAMES = [task.name for task in SUMS]


@dataclass(frozen=True)
class Turn:
    """A question and its answer, and where they come from."""

    question: str
    answer: str
    task: Task | None = None
    slots: dict[str, str] = field(default_factory=dict)
    cast: stories.Cast | None = None  # of a story
    joke: bool = False


def pick(rng: random.Random, block: dict[str, str], held: bool) -> str:
    return rng.choice(listed(block["H" if held else "Q"]))


def fixed(rng: random.Random, name: str, held: bool) -> Turn:
    """A follow-up with the same answer each time."""
    block = PHRASES[name]
    return Turn(pick(rng, block, held), block["A"])


def follow_up(rng: random.Random, last: Turn, held: bool) -> Turn | None:
    """A turn that refers to the last one; in words that are trained, or in held ones."""
    if last.cast:
        return after_story(rng, last, held)
    if last.joke:
        return after_joke(rng, held)
    kind = rng.random()
    again = 0.2 if last.task and last.task.name in SUM_NAMES else 0.45  # sums go on more often
    if last.task and kind < again and last.task.follow:
        return same_task(rng, last.task, last.slots, held)
    if last.task and kind < 0.75 and last.task.chain:
        return chain(rng, last.task, last.answer, held)
    return about_answer(rng, last, held) if kind > 0.7 else None


def about_answer(rng: random.Random, last: Turn, held: bool) -> Turn | None:
    """ "Why?", "Are you sure?", and what else fits any answer."""
    name = rng.choice(["why", "sure", "more", "again"])
    if name != "again":
        return fixed(rng, name, held)
    if len(last.answer) > LONGEST_AGAIN:
        return None
    return Turn(pick(rng, PHRASES["again"], held), last.answer, last.task, last.slots)


def after_joke(rng: random.Random, held: bool) -> Turn:
    if rng.random() < 0.5:
        return fixed(rng, "after the joke", held)
    return Turn(pick(rng, PHRASES["another"], held), rng.choice(stories.JOKES), joke=True)


def after_story(rng: random.Random, last: Turn, held: bool) -> Turn:
    """A question about the story, what came then, or another story."""
    assert last.cast
    kind = rng.random()
    if kind < 0.15:
        return fixed(rng, "after the story", held)
    if kind < 0.3:
        cast = stories.Cast(rng)
        ask = pick(rng, PHRASES["another"], held)
        return Turn(ask, stories.story(rng, cast), cast=cast)
    block = rng.choices(stories.QUESTIONS, stories.QUESTION_WEIGHTS)[0]
    slots = last.cast.slots()
    return Turn(pick(rng, block, held).format(**slots), block["A"].format(**slots), cast=last.cast)


def same_task(rng: random.Random, task: Task, slots: dict[str, str], held: bool) -> Turn | None:
    """ "And of Germany?"; after a sum also one of another kind."""
    if task.name in SUM_NAMES and rng.random() < 0.5:
        task = rng.choices(SUMS, [t.weight for t in SUMS])[0]
    new, answer = rng.choice(task.cases)
    ask = rng.choice(task.new_follow if held else task.follow)
    if new == slots or (not held and is_held(ask, new)):
        return None
    if task.name == "help" and rng.random() < 0.4:  # "And how do I quantize it?"
        return Turn(ask.format(x=THING.sub("it", new["x"])), answer, task, new)
    return Turn(filled(ask, new), answer, task, new)


def chain(rng: random.Random, task: Task, answer: str, held: bool) -> Turn | None:
    """ "And after that?", "And plus 3?": goes on from the answer."""
    ask = rng.choice(task.new_chain if held else task.chain)
    if task.name in SUM_NAMES:
        task = SUMS[0]
        found = sum_on(rng, answer)
    else:
        found = next_case(task, answer)
    if found is None:
        return None
    shown, (slots, result) = found
    return Turn(ask.format(**shown), result, task, slots)


def next_case(task: Task, answer: str) -> tuple[dict[str, str], Case] | None:
    subject = answer.split(" comes ", maxsplit=1)[0]
    case = next((c for c in task.cases if c[0]["x"] == subject), None)
    return ({}, case) if case else None


def sum_on(rng: random.Random, answer: str) -> tuple[dict[str, str], Case] | None:
    """A step from the result of a sum to another sum, which now and then is too big."""
    match = re.search(r"= (\d+)$", answer)
    if not match:
        return None
    first = int(match[1])
    word = rng.choice(["plus", "minus", "times"])
    if first > 10 and rng.random() < 0.8:
        word = rng.choice(["plus", "minus"])
    most = {"plus": 20, "minus": min(first, 20), "times": 10}[word]
    second = rng.randint(0, most if rng.random() < 0.8 else 99)
    slots = asked(first, word, second)
    shown = {"x": f"{word} {second}", "s": f"{SIGNS[word]} {second}"}
    taught = is_taught(first, word, second)
    return shown, sum_case(first, word, second) if taught else (slots, TOO_BIG)
