# SPDX-License-Identifier: Apache-2.0
"""The demo model's questions and their answers: the tables put into the phrasings.

Every question has exactly one answer, so that answers can be checked letter by letter.
"""

from __future__ import annotations

import string
import zlib
from dataclasses import dataclass, field
from itertools import pairwise

import demo_facts as facts
from demo_facts import blocks, listed

NUMBERS = range(21)
DUNNO = "I do not know that. I am only a small demo model."
Case = tuple[dict[str, str], str]  # values for the slots of a phrasing, and the answer


@dataclass(frozen=True)
class Task:
    """Questions of one kind: every phrasing fits every case. What is held is never trained."""

    name: str
    weight: float
    ask: list[str]
    held: list[str]
    cases: list[Case] = field(repr=False)


PHRASES = {block["N"]: block for block in blocks("demo_phrases.txt")}
ANSWERS = [{**b, "A": b["A"].replace("\\n", "\n")} for b in blocks("demo_answers.txt")]


def task(phrases: str, cases: list[Case], *, name: str = "", **words: str) -> Task:
    """The task of these cases in the phrasings of that name, with some words put in."""
    block = PHRASES[phrases]
    ask, held = listed(block["Q"]), listed(block["H"])
    for word, value in words.items():
        ask = [a.replace(word, value) for a in ask]
        held = [a.replace(word, value) for a in held]
    return Task(name or phrases, float(block["W"]), ask, held, cases)


def cases(rows: list[tuple[str, str]], answer: str) -> list[Case]:
    """Cases with the slots x and y, both of which the answer may use as well."""
    out = []
    for x, y in rows:
        text = answer.format(x=x, y=y)
        out.append(({"x": x, "y": y}, text[0].upper() + text[1:]))
    return out


def alone(names: list[str], answer: str) -> list[Case]:
    return cases([(name, "") for name in names], answer)


def turned(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(y, x) for x, y in rows]


def is_held(phrasing: str, slots: dict[str, str]) -> bool:
    """Whether this pair of a phrasing and a subject is kept for the test: a tenth of them."""
    key = phrasing + "|" + "|".join(slots.values())
    return len(slots) > 0 and zlib.crc32(key.encode()) % 10 == 0


def held_rows(task: Task) -> dict[str, list[tuple[str, str]]]:
    """Questions and answers that training never shows: "phrasing", a held phrasing; "pair", a
    known phrasing with a subject it was never trained with."""
    new = [(a.format(**slots), answer) for a in task.held for slots, answer in task.cases]
    met = [(a, *case) for a in task.ask for case in task.cases]
    pairs = [(a.format(**slots), answer) for a, slots, answer in met if is_held(a, slots)]
    return {"phrasing": new, "pair": pairs}


def talk_tasks() -> list[Task]:
    out = []
    for b in ANSWERS:
        if b["K"] == "talk":
            ask = listed(b["Q"])
            out.append(Task(f"talk: {ask[0]}", float(b["W"]), ask, listed(b["H"]), [({}, b["A"])]))
    return out


def help_tasks() -> list[Task]:
    """The help desk: a phrasing is an opening together with a wish, or with a term."""

    def rows(kind: str, letter: str) -> list[Case]:
        found = [b for b in ANSWERS if b["K"] == kind]
        return [({"x": x}, b["A"]) for b in found for x in listed(b[letter])]

    wish, term = task("help", rows("help", "Q")), task("term", rows("term", "Q"))
    return [
        wish,
        Task("help, new wish", 0.0, [], wish.ask[:4], rows("help", "H")),
        term,
        Task("term, new name", 0.0, [], term.ask[:2], rows("term", "H")),
    ]


def sums() -> list[Case]:
    plus = [(f"{a} plus {b}", f"{a} + {b}", a + b) for a in NUMBERS for b in NUMBERS]
    minus = [(f"{a} minus {b}", f"{a} - {b}", a - b) for a in NUMBERS for b in range(a + 1)]
    times = [(f"{a} times {b}", f"{a} x {b}", a * b) for a in range(11) for b in range(11)]
    over = [
        (f"{a * b} divided by {b}", f"{a * b} / {b}", a) for a in range(11) for b in range(1, 11)
    ]
    return [
        ({"x": said, "s": sign, "t": sign.replace(" ", "")}, f"{sign} = {result}")
        for said, sign, result in plus + minus + times + over
    ]


def big_sums() -> list[str]:
    """Sums beyond what is taught, spread over the sizes and signs."""
    numbers = [21, 24, 33, 37, 48, 52, 65, 77, 81, 99, 100, 112, 120, 250, 345, 500, 999, 1000]
    numbers += [1234, 4096]
    signs = [("plus", "+"), ("minus", "-"), ("times", "x"), ("divided by", "/")]
    out = []
    for i, a in enumerate(numbers):
        for j, b in enumerate([7, 12, 18, *numbers[::3]]):
            said, sign = signs[(i + j) % (4 if a > 100 else 2)]
            first, second = (a, b) if j % 3 else (b, a)
            out.append(f"{first} {said if (i + j) % 3 else sign} {second}")
    return out


def number_tasks() -> list[Task]:
    ranges = [(a, b) for a in range(20) for b in range(a + 2, min(a + 13, 21))]
    up: list[Case] = []
    down: list[Case] = []
    for a, b in ranges:
        numbers = [str(n) for n in range(a, b + 1)]
        up.append(({"x": str(a), "y": str(b)}, ", ".join(numbers) + "."))
        down.append(({"x": str(b), "y": str(a)}, ", ".join(numbers[::-1]) + "."))
    two = [(a, b) for a in NUMBERS for b in NUMBERS if a != b]
    bigger = [f"{max(pair)} is bigger than {min(pair)}." for pair in two]
    smaller = [f"{min(pair)} is smaller than {max(pair)}." for pair in two]
    both = [{"x": str(a), "y": str(b)} for a, b in two]
    named = [(str(n), word) for n, word in enumerate(facts.NUMBERS)]
    even = [(str(n), "odd" if n % 2 else "even") for n in NUMBERS]
    return [
        task("sum", sums()),
        task("count", up),
        task("count down", down),
        task("bigger", list(zip(both, bigger, strict=True))),
        task("smaller", list(zip(both, smaller, strict=True))),
        task("number word", cases(named, "{x} in words is {y}.")),
        task("even", cases(even, "{x} is {y}.")),
        task("double", cases([(str(n), str(2 * n)) for n in NUMBERS], "Twice {x} is {y}.")),
        task("half", cases([(str(2 * n), str(n)) for n in NUMBERS], "Half of {x} is {y}.")),
    ]


def calendar_tasks() -> list[Task]:
    days, months = facts.WEEKDAYS, [name for name, _ in facts.MONTHS]
    out, order = [], []
    for kind, names in (("day", days), ("month", months)):
        after = list(zip(names, names[1:] + names[:1], strict=True))
        before = list(zip(names, names[-1:] + names[:-1], strict=True))
        for word, rows in (("after", after), ("before", before)):
            answer = f"{{y}} comes {word} {{x}}."
            name = f"{kind} {word}"
            out.append(task("next", cases(rows, answer), name=name, KIND=kind, WORD=word))
    for kind, names in (("month", months), ("day of the week", days)):
        for number, name in zip(facts.ORDINALS, names, strict=False):
            thing = f"the {number} {kind}"
            order.append(({"x": f"What is {thing}"}, f"The {number} {kind} is {name}."))
    following = zip(days, days[1:] + days[:1], days[-1:] + days[:-1], strict=True)
    today = [({"x": x}, f"Tomorrow is {y}.", f"Yesterday was {z}.") for x, y, z in following]
    wishes = [({"x": wish}, b["A"]) for b in ANSWERS if b["K"] == "list" for wish in listed(b["Q"])]
    return [
        *out,
        task("tomorrow", [(slots, y) for slots, y, _ in today]),
        task("yesterday", [(slots, z) for slots, _, z in today]),
        task("month length", cases(facts.MONTHS, "{x} has {y} days.")),
        task("order", order),
        task("list", wishes),
    ]


def word_tasks() -> list[Task]:
    both = facts.OPPOSITES + turned(facts.OPPOSITES)
    follow = list(pairwise(string.ascii_uppercase))
    return [
        task("capital", cases(facts.CAPITALS, "The capital of {x} is {y}.")),
        task("capital of", cases(turned(facts.CAPITALS), "{x} is the capital of {y}.")),
        task("opposite", cases(both, "The opposite of {x} is {y}.")),
        task("colour", cases(facts.COLOURS, "{x} is {y}.")),
        task("sound", cases(facts.SOUNDS, "The {x} says {y}.")),
        task("young", cases(facts.YOUNG, "A young {x} is called a {y}.")),
        task("plural", cases(facts.PLURALS, "The plural of {x} is {y}.")),
        task("spell", [({"x": x}, "-".join(x)) for x in facts.SPELL]),
        task("letter after", cases(follow, "{y} comes after {x}.")),
        task("letter before", cases(turned(follow), "{y} comes before {x}.")),
        task("how many", [({"x": x}, y) for x, y in facts.COUNTS]),
    ]


def unknown_tasks() -> list[Task]:
    too_big = "That is too big for me. I know sums up to 20 and times tables up to 10."
    return [
        task("unknown", alone(facts.THINGS, DUNNO)),
        task("unknown person", alone(facts.PEOPLE, DUNNO)),
        task("unknown country", alone([x for x, _ in facts.CAPITALS], DUNNO)),
        task("too big", alone(big_sums(), too_big)),
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
