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

import demo_stories as stories
from demo_facts import BEFORE, NAMES_HELD, SYSTEM, listed
from demo_tasks import all_tasks, held_rows, is_held

Segment = tuple[str, bool]  # text, and whether the model is taught to write it


def plain(question: str) -> str:
    """The question without what typing may change: case and punctuation."""
    return " ".join(re.sub(r"[^a-z0-9+*/ -]", "", question.lower()).split())


def typed(text: str, rng: random.Random) -> str:
    """The question as somebody in a hurry might type it."""
    if rng.random() < 0.12:
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

    def question(self) -> tuple[str, str]:
        while True:
            task = self.rng.choices(self.tasks, self.weights)[0]
            ask = self.rng.choice(task.ask)
            slots, answer = self.rng.choice(task.cases)
            text = typed(ask.format(**slots), self.rng)
            if not is_held(ask, slots) and plain(text) not in self.held:
                return text, answer

    def turns(self, count: int) -> list[tuple[str, str]]:
        """One conversation: questions, a story now and then, and things to remember."""
        rng = self.rng
        out: list[tuple[str, str]] = []
        memory = stories.Memory(rng)
        while len(out) < count:
            pick = rng.random()
            if pick < 0.16:
                out.append(memory.turn())
            elif pick < 0.21:
                out.append(stories.story_turn(rng))
            elif pick < 0.235:
                out.append(stories.joke_turn(rng))
            else:
                out.append(self.question())
        if memory.told and rng.random() < 0.5:
            out.append(memory.recall())
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
        for question, answer in self.turns(count):
            out.append((f"User: {question}\n\nAssistant:", False))
            out.append((f" {answer}\n\n", True))
        return out


class HeldWriter(Writer):
    """The same conversations with questions that training never shows."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.rows = {
            t.name: [q for rows in held_rows(t).values() for q in rows] for t in self.tasks
        }

    def question(self) -> tuple[str, str]:
        task = self.rng.choices(self.tasks, self.weights)[0]
        return self.rng.choice(self.rows[task.name])


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
