# SPDX-License-Identifier: Apache-2.0
"""Writes the training text of the demo model: conversations and short stories from templates.

Everything is ours and follows from a seed; no outside text is used. Every question has exactly
one answer, so that answers can be checked letter by letter. Two kinds of questions are never
trained: phrasings listed as `held`, and a tenth of the pairs (phrasing, subject).

    python tools/demo_text.py --seed 1 --count 20      # print some of it
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import demo_facts as facts
import demo_phrases as phrases
import demo_stories as stories

Segment = tuple[str, bool]  # text, and whether the model is taught to write it
NUMBERS = range(21)


@dataclass(frozen=True)
class Task:
    """Questions of one kind: every phrasing fits every case (values for its slots, answer)."""

    name: str
    weight: float
    ask: list[str]
    held: list[str]
    cases: list[tuple[dict[str, str], str]] = field(repr=False)


def cases(rows: list[tuple[str, str]], answer: str) -> list[tuple[dict[str, str], str]]:
    """Cases with the slots x and y, both of which the answer may use as well."""
    out = []
    for x, y in rows:
        text = answer.format(x=x, y=y)
        out.append(({"x": x, "y": y}, text[0].upper() + text[1:]))
    return out


def is_held(phrasing: str, slots: dict[str, str]) -> bool:
    """Whether this pair of a phrasing and a subject is kept for the test."""
    key = phrasing + "|" + "|".join(slots.values())
    return len(slots) > 0 and zlib.crc32(key.encode()) % 10 == 0


def plain(question: str) -> str:
    """The question without what typing may change: case and punctuation."""
    return " ".join(re.sub(r"[^a-z0-9+*/ -]", "", question.lower()).split())


def unknown_tasks() -> list[Task]:
    dunno = "I do not know that. I am only a small demo model."
    things = [(x, "") for x in phrases.THINGS]
    return [
        Task("unknown", 5.0, phrases.UNKNOWN, phrases.UNKNOWN_HELD, cases(things, dunno)),
        Task(
            "unknown person",
            1.0,
            ["Who is {x}?", "Do you know {x}?", "When was {x} born?", "Tell me about {x}."],
            ["Have you heard of {x}?"],
            cases([(x, "") for x in phrases.PEOPLE], dunno),
        ),
        Task(
            "unknown country",
            1.0,
            [
                "How many people live in {x}?",
                "Who is the president of {x}?",
                "What is the population of {x}?",
                "What language do people speak in {x}?",
                "How big is {x}?",
                "What is the weather like in {x}?",
                "Is {x} a nice country?",
                "What do people eat in {x}?",
            ],
            ["Who is the king of {x}?", "What is the money of {x} called?"],
            cases([(x, "") for x, _ in facts.CAPITALS], dunno),
        ),
        Task(
            "too big",
            2.0,
            [
                "What is {x}?",
                "How much is {x}?",
                "{x}",
                "{x} =",
                "Can you work out {x}?",
                "Calculate {x}.",
            ],
            ["Compute {x}.", "What does {x} make?"],
            cases(
                [(x, "") for x in phrases.big_sums()],
                "That is too big for me. I know sums up to 20 and times tables up to 10.",
            ),
        ),
    ]


def number_tasks() -> list[Task]:
    plus = [(f"{a} plus {b}", f"{a} + {b}", str(a + b)) for a in NUMBERS for b in NUMBERS]
    minus = [(f"{a} minus {b}", f"{a} - {b}", str(a - b)) for a in NUMBERS for b in range(a + 1)]
    times = [(f"{a} times {b}", f"{a} x {b}", str(a * b)) for a in range(11) for b in range(11)]
    over = [
        (f"{a * b} divided by {b}", f"{a * b} / {b}", str(a))
        for a in range(11)
        for b in range(1, 11)
    ]
    sums = [
        ({"x": said, "s": sign, "t": sign.replace(" ", "")}, f"{sign} = {result}")
        for said, sign, result in plus + minus + times + over
    ]
    ranges = [(a, b) for a in range(20) for b in range(a + 2, min(a + 13, 21))]
    up = [(str(a), str(b), ", ".join(map(str, range(a, b + 1))) + ".") for a, b in ranges]
    down = [(str(b), str(a), ", ".join(map(str, range(b, a - 1, -1))) + ".") for a, b in ranges]
    two = [(a, b) for a in NUMBERS for b in NUMBERS if a != b]
    named = [(str(n), word) for n, word in enumerate(facts.NUMBERS)]
    even = [(str(n), "even" if n % 2 == 0 else "odd") for n in NUMBERS]
    return [
        Task("sum", 14.0, phrases.SUM_ASK, phrases.SUM_HELD, sums),
        Task(
            "count",
            2.5,
            [
                "Count from {x} to {y}.",
                "Count from {x} to {y}, please.",
                "Can you count from {x} to {y}?",
                "Please count from {x} up to {y}.",
                "Count up from {x} to {y}.",
                "I want you to count from {x} to {y}.",
                "Write the numbers from {x} to {y}.",
                "Say the numbers from {x} to {y}.",
                "Count {x} to {y}.",
            ],
            ["Could you count from {x} to {y} for me?", "List the numbers from {x} to {y}."],
            [({"x": x, "y": y}, a) for x, y, a in up],
        ),
        Task(
            "count down",
            2.0,
            [
                "Count down from {x} to {y}.",
                "Count backwards from {x} to {y}.",
                "Can you count down from {x} to {y}?",
                "Please count backwards from {x} to {y}.",
                "Count from {x} down to {y}.",
                "Count back from {x} to {y}.",
            ],
            ["Could you count backwards from {x} to {y}?"],
            [({"x": x, "y": y}, a) for x, y, a in down],
        ),
        Task(
            "bigger",
            1.5,
            [
                "Which is bigger, {x} or {y}?",
                "What is bigger, {x} or {y}?",
                "Which number is larger, {x} or {y}?",
                "What is more, {x} or {y}?",
                "Is {x} or {y} bigger?",
                "Which is greater: {x} or {y}?",
            ],
            ["Which one is larger, {x} or {y}?", "Tell me which is bigger, {x} or {y}."],
            [
                ({"x": str(a), "y": str(b)}, f"{max(a, b)} is bigger than {min(a, b)}.")
                for a, b in two
            ],
        ),
        Task(
            "smaller",
            1.0,
            [
                "Which is smaller, {x} or {y}?",
                "What is smaller, {x} or {y}?",
                "Which number is smaller, {x} or {y}?",
                "What is less, {x} or {y}?",
                "Is {x} or {y} smaller?",
            ],
            ["Which one is smaller, {x} or {y}?"],
            [
                ({"x": str(a), "y": str(b)}, f"{min(a, b)} is smaller than {max(a, b)}.")
                for a, b in two
            ],
        ),
        Task(
            "number word",
            0.6,
            ["Write {x} in words.", "How do you write {x} in words?", "What is {x} in words?"],
            ["Write the number {x} as a word."],
            cases(named, "{x} in words is {y}."),
        ),
        Task(
            "even",
            0.6,
            ["Is {x} even or odd?", "Is {x} odd or even?", "Is the number {x} even or odd?"],
            ["Tell me whether {x} is even or odd."],
            cases(even, "{x} is {y}."),
        ),
        Task(
            "double",
            0.6,
            [
                "What is twice {x}?",
                "Double {x}.",
                "What is the double of {x}?",
                "What is two times {x}?",
            ],
            ["How much is twice {x}?"],
            cases([(str(n), str(2 * n)) for n in NUMBERS], "Twice {x} is {y}."),
        ),
        Task(
            "half",
            0.4,
            [
                "What is half of {x}?",
                "Halve {x}.",
                "How much is half of {x}?",
                "What is one half of {x}?",
            ],
            ["Tell me half of {x}."],
            cases([(str(2 * n), str(n)) for n in NUMBERS], "Half of {x} is {y}."),
        ),
    ]


def calendar_tasks() -> list[Task]:
    days, months = facts.WEEKDAYS, [name for name, _ in facts.MONTHS]
    in_order = [
        (f"What is the {facts.ORDINALS[i]} month", f"The {facts.ORDINALS[i]} month is {m}.")
        for i, m in enumerate(months)
    ] + [
        (
            f"What is the {facts.ORDINALS[i]} day of the week",
            f"The {facts.ORDINALS[i]} day of the week is {d}.",
        )
        for i, d in enumerate(days)
    ]
    out = []
    for kind, names in (("day", days), ("month", months)):
        after = [(x, names[(i + 1) % len(names)]) for i, x in enumerate(names)]
        before = [(x, names[i - 1]) for i, x in enumerate(names)]
        for word, rows in (("after", after), ("before", before)):
            ask = [a.replace("KIND", kind).replace("WORD", word) for a in phrases.NEXT_ASK]
            held = [a.replace("KIND", kind).replace("WORD", word) for a in phrases.NEXT_HELD]
            out.append(
                Task(f"{kind} {word}", 0.9, ask, held, cases(rows, f"{{y}} comes {word} {{x}}."))
            )
    today = [(x, days[(i + 1) % 7], days[i - 1]) for i, x in enumerate(days)]
    return [
        *out,
        Task(
            "tomorrow",
            0.6,
            ["If today is {x}, what day is tomorrow?", "Today is {x}. What is tomorrow?"],
            ["Today is {x}. What day will it be tomorrow?"],
            [({"x": x}, f"Tomorrow is {y}.") for x, y, _ in today],
        ),
        Task(
            "yesterday",
            0.6,
            ["If today is {x}, what day was yesterday?", "Today is {x}. What was yesterday?"],
            ["Today is {x}. What day was it yesterday?"],
            [({"x": x}, f"Yesterday was {y}.") for x, _, y in today],
        ),
        Task(
            "month length",
            1.0,
            [
                "How many days are in {x}?",
                "How many days does {x} have?",
                "How long is {x}?",
                "How many days has {x}?",
                "How many days are there in {x}?",
            ],
            ["Tell me how many days {x} has.", "What number of days does {x} have?"],
            cases(facts.MONTHS, "{x} has {y} days."),
        ),
        Task(
            "order",
            0.8,
            ["{x}?", "{x}", "Tell me: {x}?"],
            ["Please tell me: {x}?"],
            [({"x": q}, a) for q, a in in_order],
        ),
        Task(
            "list",
            0.8,
            ["{x}.", "Please {x}.", "Can you {x}?"],
            ["Could you {x}?"],
            [({"x": q}, a) for q, a in phrases.LISTS],
        ),
    ]


def word_tasks() -> list[Task]:
    both = facts.OPPOSITES + [(b, a) for a, b in facts.OPPOSITES]
    abc = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    follow = list(zip(abc, abc[1:], strict=False))
    spelled = [(w, "-".join(w)) for w in facts.SPELL]
    table = phrases.WORD_TASKS
    rows = {
        "capital": cases(facts.CAPITALS, "The capital of {x} is {y}."),
        "capital of": cases([(b, a) for a, b in facts.CAPITALS], "{x} is the capital of {y}."),
        "opposite": cases(both, "The opposite of {x} is {y}."),
        "colour": cases(facts.COLOURS, "{x} is {y}."),
        "sound": cases(facts.SOUNDS, "The {x} says {y}."),
        "young": cases(facts.YOUNG, "A young {x} is called a {y}."),
        "plural": cases(facts.PLURALS, "The plural of {x} is {y}."),
        "spell": [({"x": x}, y) for x, y in spelled],
        "letter after": cases(follow, "{y} comes after {x}."),
        "letter before": cases([(b, a) for a, b in follow], "{y} comes before {x}."),
        "how many": [({"x": x}, y) for x, y in facts.COUNTS],
    }
    return [Task(name, weight, ask, held, rows[name]) for name, weight, ask, held in table]


def help_tasks() -> list[Task]:
    """The help desk: a phrasing is an opening together with a wish, or a term."""
    wish, term = [], []
    wish_held, term_held = [], []
    for answer, verbs in facts.HELP:
        wish += [({"x": x}, answer) for x in verbs[:-2]]
        wish_held += [({"x": x}, answer) for x in verbs[-2:]]
    for answer, names in facts.TERMS:
        term += [({"x": x}, answer) for x in names[:-1]]
        term_held += [({"x": x}, answer) for x in names[-1:]]
    ask, held = phrases.WISH_ASK, phrases.WISH_HELD
    return [
        Task("help", 10.0, ask, held, wish),
        Task("help, new wish", 0.0, [], ask[:4], wish_held),
        Task("term", 2.5, phrases.TERM_ASK, phrases.TERM_HELD, term),
        Task("term, new name", 0.0, [], phrases.TERM_ASK[:2], term_held),
    ]


def talk_tasks() -> list[Task]:
    return [
        Task(f"talk: {ask[0]}", weight, ask, held, [({}, answer)])
        for weight, answer, ask, held in phrases.TALK
    ]


def all_tasks() -> list[Task]:
    return [
        *talk_tasks(),
        *help_tasks(),
        *number_tasks(),
        *calendar_tasks(),
        *word_tasks(),
        *unknown_tasks(),
    ]


# --- how people type -------------------------------------------------------------------------


def typed(text: str, rng: random.Random) -> str:
    """The question as somebody in a hurry might type it."""
    if rng.random() < 0.12:
        text = rng.choice(phrases.BEFORE) + text[0].lower() + text[1:]
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
        text = text[:at] + slip + text[at + (2 if len(slip) == 2 and slip[0] != slip[1] else 1) :]
    return text


class Writer:
    """An endless source of samples; the same seed gives the same samples."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.tasks = [t for t in all_tasks() if t.ask]
        self.weights = [t.weight for t in self.tasks]
        self.held = {plain(row[2]) for row in held_out(0, sys.maxsize)}

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
        rng, out = self.rng, []
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
        rng = self.rng
        if rng.random() < 0.05:
            return [(stories.story(rng, stories.Cast(rng)), True)]
        out: list[Segment] = []
        if rng.random() < 0.1:
            out.append((f"System: {rng.choice(phrases.SYSTEM)}\n\n", False))
        count = rng.choices(range(1, 11), [4, 5, 5, 4, 3, 3, 1, 1, 1, 1])[0]
        for question, answer in self.turns(count):
            out.append((f"User: {question}\n\nAssistant:", False))
            out.append((f" {answer}\n\n", True))
        return out


class HeldWriter(Writer):
    """The same conversations with questions that training never shows."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.rows = {task.name: sum(held_rows(task).values(), []) for task in self.tasks}

    def question(self) -> tuple[str, str]:
        task = self.rng.choices(self.tasks, self.weights)[0]
        return self.rng.choice(self.rows[task.name])


def samples(seed: int, writer: type[Writer] = Writer) -> Iterator[list[Segment]]:
    source = writer(seed)
    while True:
        yield source.sample()


def held_rows(task: Task) -> dict[str, list[tuple[str, str]]]:
    """Questions and answers that training never shows: "phrasing", a held phrasing; "pair", a
    known phrasing with a subject it was never trained with."""
    new = [(a.format(**slots), answer) for a in task.held for slots, answer in task.cases]
    met = [(a, *case) for a in task.ask for case in task.cases]
    pairs = [(a.format(**slots), answer) for a, slots, answer in met if is_held(a, slots)]
    return {"phrasing": new, "pair": pairs}


def held_out(seed: int, per_task: int) -> Iterator[tuple[str, str, str, str]]:
    """At most per_task questions of each kind, as (set, task, question, answer)."""
    rng = random.Random(seed)
    for task in all_tasks():
        for name, rows in held_rows(task).items():
            for question, answer in rng.sample(rows, min(per_task, len(rows))):
                yield name, task.name, question, answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=10)
    args = parser.parse_args()
    source = samples(args.seed)
    for _ in range(args.count):
        sys.stdout.write("".join(text for text, _ in next(source)) + "\n----\n")


if __name__ == "__main__":
    main()
