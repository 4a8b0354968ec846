# SPDX-License-Identifier: Apache-2.0
"""Writes the training text of the demo model: conversations and short stories from templates.

Everything is ours and follows from a seed; no outside text is used. Two kinds of questions are
never trained: held phrasings, and a tenth of the pairs of a phrasing and a subject.

    python tools/demo_text.py --seed 1 --count 20      # print some of it
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Iterator
from dataclasses import replace

import demo_stories as stories
from demo_facts import BEFORE, NAMES_HELD, SYSTEM, listed
from demo_follow_ups import Turn, follow_up
from demo_tasks import all_tasks, filled, held_rows, is_held

LONGEST_ANSWER = 200  # characters of an answer that can be right to the letter: no story
Segment = tuple[str, bool]  # text, and whether the model is taught to write it


def plain(question: str) -> str:
    """The question without what typing may change: case and punctuation, but for "2.5"."""
    text = re.sub(r"(?<!\d)\.|\.(?!\d)|[^a-z0-9+*/. -]", "", question.lower())
    return " ".join(text.split())


def typed(text: str, rng: random.Random, *, before: bool = True) -> str:
    """The question as somebody in a hurry might type it; `before`: with a word before it."""
    if before and rng.random() < 0.12:
        text = rng.choice(BEFORE) + " " + text[0].lower() + text[1:]
    if rng.random() < 0.08 and text[-1] in ".?":
        text = text[:-1] + rng.choice([", please", " please"]) + text[-1]
    if rng.random() < 0.3:
        text = text.rstrip(".?!")
    if rng.random() < 0.25:
        text = text.lower()
    if rng.random() < 0.05:
        text = text.replace("'", "").replace("What is", "Whats").replace("what is", "whats")
    if rng.random() < 0.04 and len(text) > 8:
        at = rng.randrange(2, len(text) - 2)
        slip = rng.choice(["", text[at] * 2, text[at + 1] + text[at]])
        if text[at : at + 2].isalpha():  # another number would make the answer wrong
            text = text[:at] + slip + text[at + (2 if len(set(slip)) == 2 else 1) :]
    return text


class Writer:
    """An endless source of samples; the same seed gives the same samples."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.tasks = [t for t in all_tasks() if t.ask]
        self.weights = [t.weight for t in self.tasks]
        held = [held_rows(t) for t in all_tasks()]
        self.held = {plain(q) for kinds in held for rows in kinds.values() for q, _ in rows}
        self.held |= {
            plain(filled(ask, slots))
            for task in self.tasks
            for ask in task.new_follow
            for slots, _ in task.cases
        }

    def question(self) -> Turn:
        while True:
            task = self.rng.choices(self.tasks, self.weights)[0]
            ask = self.rng.choice(task.ask)
            slots, answer = self.rng.choice(task.cases)
            text = typed(filled(ask, slots), self.rng)
            if not is_held(ask, slots) and plain(text) not in self.held:
                return Turn(text, answer, task, slots)

    def follow_up(self, last: Turn) -> Turn | None:
        turn = follow_up(self.rng, last, held=False)
        if turn is None:
            return None
        text = typed(turn.question, self.rng, before=False)
        return None if plain(text) in self.held else replace(turn, question=text)

    def first_turn(self, memory: stories.Memory) -> Turn:
        """A question, a story, a joke, or something to remember."""
        rng = self.rng
        pick = rng.random()
        if pick < 0.2:
            return Turn(*memory.turn())
        if pick < 0.21:
            return Turn(*memory.story())
        if pick < 0.28:
            question, answer, cast = stories.story_turn(rng)
            return Turn(question, answer, cast=cast)
        if pick < 0.3:
            return Turn(*stories.joke_turn(rng), joke=True)
        return self.question()

    def turns(self, count: int) -> list[Turn]:
        """One conversation. After what can be followed up, that comes about every other time, and
        more often after a story."""
        out: list[Turn] = []
        memory = stories.Memory(self.rng)
        while len(out) < count:
            turn = None
            last = out[-1] if out else None
            often = 0.8 if last and last.cast else 0.5
            if last and (last.task or last.cast or last.joke) and self.rng.random() < often:
                turn = self.follow_up(last)
            out.append(turn or self.first_turn(memory))
        if memory.told and self.rng.random() < 0.5:
            out.append(Turn(*memory.recall()))
        return out

    def sample(self) -> list[Segment]:
        """A conversation, or sometimes a story on its own."""
        rng = self.rng
        if rng.random() < 0.05:
            return [(stories.story(rng, stories.Cast(rng)), True)]
        out: list[Segment] = []
        if rng.random() < 0.1:
            out.append((f"System: {rng.choice(SYSTEM)}\n\n", False))
        count = rng.choices(range(1, 11), [4, 5, 5, 4, 3, 3, 1, 1, 1, 1])[0]
        for turn in self.turns(count):
            out.append((f"User: {turn.question}\n\nAssistant:", False))
            out.append((f" {turn.answer}\n\n", True))
        return out


class HeldWriter(Writer):
    """The same conversations with questions that training never shows."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.rows = {
            t.name: [q for rows in held_rows(t).values() for q in rows] for t in self.tasks
        }

    def question(self) -> Turn:
        while True:
            task = self.rng.choices(self.tasks, self.weights)[0]
            if self.rows[task.name]:
                return Turn(*self.rng.choice(self.rows[task.name]))


def samples(seed: int, writer: type[Writer] = Writer) -> Iterator[list[Segment]]:
    source = writer(seed)
    while True:
        yield source.sample()


def held_out(seed: int, per_task: int) -> Iterator[tuple[str, str, str, str]]:
    """At most per_task held questions of each kind, as (set, task, question, answer)."""
    rng = random.Random(seed)
    for task in all_tasks():
        for name, rows in held_rows(task).items():
            for question, answer in rng.sample(rows, min(per_task, len(rows))):
                yield name, task.name, question, answer


def held_names(seed: int, count: int) -> Iterator[tuple[list[str], str]]:
    """Conversations that tell a name, talk of something else and ask for the name, with the right
    last answer. Neither the names nor the questions between were trained."""
    rng = random.Random(seed)
    between = [question for _, _, question, _ in held_out(seed, 2)]
    tell, ask, answer = (stories.MEMORIES["name"][letter] for letter in "TQA")
    for _ in range(count):
        name = rng.choice(NAMES_HELD)
        questions = [rng.choice(listed(tell)).format(x=name), rng.choice(between)]
        yield [*questions, rng.choice(listed(ask))], answer.format(x=name)


def held_follow_ups(seed: int, count: int) -> Iterator[tuple[list[Turn], str]]:
    """A follow-up in words that were never trained, with the turns before it, and its name."""
    writer = Writer(seed)
    memory = stories.Memory(writer.rng)
    found = 0
    while found < count:
        first = writer.first_turn(memory)
        turn = follow_up(writer.rng, first, held=True)
        if turn and not turn.joke and len(turn.answer) < LONGEST_ANSWER:
            found += 1
            yield [first, turn], (turn.task.name if turn.task else turn.question)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=10)
    args = parser.parse_args()
    source = samples(args.seed)
    for _ in range(args.count):
        print("".join(text for text, _ in next(source)), end="\n----\n")


if __name__ == "__main__":
    main()
