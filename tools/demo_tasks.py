# SPDX-License-Identifier: Apache-2.0
"""The demo model's questions and their answers: the tables put into the phrasings.

Every question has exactly one answer, so that answers can be checked letter by letter.
"""

from __future__ import annotations

import random
import re
import string
import zlib
from dataclasses import dataclass, field, replace
from itertools import pairwise

import demo_facts as facts
import demo_stories as stories
from demo_facts import blocks, listed

NUMBERS = range(21)
DUNNO = "I do not know that. I am only a small demo model."
TOO_BIG = "That is too big for me. I know sums up to 20 and times tables up to 10."
Case = tuple[dict[str, str], str]  # values for the slots of a phrasing, and the answer


@dataclass(frozen=True)
class Task:
    """Questions of one kind: every phrasing fits every case. What is held is never trained."""

    name: str
    weight: float
    ask: list[str]
    held: list[str]
    cases: list[Case] = field(repr=False)
    follow: list[str] = field(default_factory=list)  # for another case, after one of the task
    new_follow: list[str] = field(default_factory=list)
    chain: list[str] = field(default_factory=list)  # to go on from the answer
    new_chain: list[str] = field(default_factory=list)


PHRASES = {block["N"]: block for block in blocks("demo_phrases.txt")}
STRANGERS = {block["N"]: block for block in blocks("demo_strangers.txt")}
ANSWERS = [{**b, "A": b["A"].replace("\\n", "\n")} for b in blocks("demo_answers.txt")]


def task(phrases: str, cases: list[Case], *, name: str = "", **words: str) -> Task:
    """The task of these cases in the phrasings of that name, with some words put in."""
    block = PHRASES[phrases]
    if "L" in block:
        block = {k: v for k, v in PHRASES[block["L"]].items() if k in "QHFG"} | block

    def phrasings(letter: str) -> list[str]:
        text = block.get(letter, "")
        for word, value in words.items():
            text = text.replace(word, value)
        return listed(text) if text else []

    ask, held, follow, new_follow, chain, new_chain = map(phrasings, "QHFGCD")
    weight = float(block["W"])
    return Task(name or phrases, weight, ask, held, cases, follow, new_follow, chain, new_chain)


def filled(phrasing: str, slots: dict[str, str]) -> str:
    """The phrasing with its values, and "an" where a value wants it."""

    def article(found: re.Match[str]) -> str:
        return found[0] if slots[found[2]][0] not in "aeiou" else f"{found[1]}n {{{found[2]}}}"

    return re.sub(r"\b([Aa]) \{(\w+)\}", article, phrasing).format(**slots)


def cases(rows: list[tuple[str, str]], answer: str) -> list[Case]:
    """Cases with the slots x and y, both of which the answer may use as well."""
    out = []
    for x, y in rows:
        text = filled(answer, {"x": x, "y": y})
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
    new = [(filled(a, slots), answer) for a in task.held for slots, answer in task.cases]
    met = [(a, *case) for a in task.ask for case in task.cases]
    pairs = [(filled(a, slots), answer) for a, slots, answer in met if is_held(a, slots)]
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


SIGNS = {"plus": "+", "minus": "-", "times": "x", "divided by": "/"}


def asked(first: object, word: str, second: object) -> dict[str, str]:
    """A sum in words, in signs, and in signs without spaces."""
    sign = f"{first} {SIGNS[word]} {second}"
    return {"x": f"{first} {word} {second}", "s": sign, "t": sign.replace(" ", "")}


def sum_case(first: int, word: str, second: int) -> Case:
    results = {"plus": first + second, "minus": first - second, "times": first * second}
    result = results[word] if word in results else first // second
    slots = asked(first, word, second)
    return slots, f"{slots['s']} = {result}"


def sums() -> list[Case]:
    pairs = [(a, b) for a in NUMBERS for b in NUMBERS]
    table = [(a, b) for a in range(11) for b in range(11)]
    return [
        *(sum_case(a, word, b) for word in ("plus", "minus") for a, b in pairs),
        *(sum_case(a, "times", b) for a, b in table),
        *(sum_case(a * b, "divided by", b) for a, b in table if b),
    ]


def star_sums() -> list[Case]:
    """Products with the sign that keyboards have."""
    found = []
    for a in range(11):
        for b in range(11):
            slots, answer = sum_case(a, "times", b)
            stars = {key: value.replace("x", "*") for key, value in slots.items() if key != "x"}
            found.append((stars, answer))
    return found


def sums_in_words() -> list[Case]:
    """ "two plus three" """
    names = facts.NUMBERS[:11]
    return [
        ({"x": f"{first} {word} {second}"}, sum_case(a, word, b)[1])
        for word in ("plus", "minus", "times")
        for a, first in enumerate(names)
        for b, second in enumerate(names)
    ]


def uneven_sums() -> list[Case]:
    """Divisions without a whole result, in the reach of the times tables."""
    found = [(a, b) for b in range(2, 11) for a in range(1, 10 * b) if a % b]
    return [
        *((asked(a, "divided by", b), "That does not divide evenly.") for a, b in found),
        *((asked(a, "divided by", 0), "Nobody can divide by zero.") for a in NUMBERS),
    ]


def is_taught(first: int, word: str, second: int) -> bool:
    """Whether `sums` or `uneven_sums` answers it."""
    if word == "divided by":
        return second == 0 or (second <= 10 and first <= 10 * second)
    return max(first, second) <= (10 if word == "times" else 20)


def big_sums() -> dict[str, list[Case]]:
    """Sums beyond what is taught, by the name of their task: the model says that it cannot."""
    rng = random.Random(1)
    steps = ["plus", "minus"]

    def number() -> int:
        """Of one to four digits, each as often."""
        return rng.randrange(10 ** rng.randint(1, 4))

    def too_big(words: list[str], big: tuple[int, int], other: tuple[int, int]) -> list[Case]:
        out: list[Case] = []
        while len(out) < 2500:
            pair = (rng.randint(*big), min(rng.randint(*other), number()))
            first, second = pair if rng.random() < 0.5 else pair[::-1]
            word = rng.choice(words)
            if not is_taught(first, word, second):
                out.append((asked(first, word, second), TOO_BIG))
        return out

    factors = too_big(["times"], (11, 99), (0, 99)) + too_big(["times"], (11, 20), (1, 20))
    stars = [({**slots, "s": slots["s"].replace("x", "*")}, answer) for slots, answer in factors]
    three, fractions = [], []
    for _ in range(800):
        a, b, c = (rng.randint(0, rng.choice([10, 40])) for _ in range(3))
        first, second = rng.choice([*steps, "times"]), rng.choice([*steps, "times"])
        slots = asked(f"{a} {first} {b}", second, c)
        signs = asked(f"{a} {SIGNS[first]} {b}", second, c)
        three.append(({**signs, "x": slots["x"]}, "I only know sums of two numbers."))
        half = asked(f"{a}.{rng.randint(1, 9)}", first, rng.choice([b, f"{b}.5"]))
        fractions.append((half, "I only know whole numbers."))
    return {
        "two digits": too_big(steps, (21, 99), (0, 99)) + too_big(steps, (21, 50), (5, 50)),
        "large numbers": too_big([*steps, "times"], (100, 9999), (0, 9999)),
        "large factors": factors + stars,
        "large division": too_big(["divided by"], (11, 999), (1, 99))
        + too_big(["divided by"], (11, 200), (1, 10)),
        "three numbers": three,
        "fractions": fractions,
    }


def sum_tasks() -> list[Task]:
    known = task("sum", sums())
    others = [task("star", star_sums()), task("sum in words", sums_in_words())]
    return [
        known,
        *(replace(t, chain=known.chain, new_chain=known.new_chain) for t in others),
        task("division", [case for case in sums() if " / " in case[1]]),
        task("uneven", uneven_sums()),
        *(task(name, found) for name, found in big_sums().items()),
    ]


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
    even = [(str(n), "odd" if n % 2 else "even") for n in range(100)]
    to = [({"y": str(n)}, ", ".join(map(str, range(1, n + 1))) + ".") for n in range(2, 21)]
    too_far = [({"y": str(n)}, "I can only count up to 20.") for n in range(21, 1001)]
    return [
        *sum_tasks(),
        task("count", up),
        task("count down", down),
        task("count to", to * 50 + too_far),
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
    return [
        task("unknown", alone(facts.THINGS, DUNNO)),
        task("unknown person", alone(facts.PEOPLE, DUNNO)),
        task("unknown country", alone([x for x, _ in facts.CAPITALS], DUNNO)),
        *unknown_word_tasks(),
        *stranger_tasks(),
    ]


def unknown_word_tasks() -> list[Task]:
    """Known questions with a subject that no table has: an eighth of the words is never trained."""
    nouns = facts.words(STRANGERS["noun"]["W"])
    bare = [noun for noun in nouns if zlib.crc32(noun.encode()) % 8 != 0]
    new = [noun for noun in nouns if noun not in bare]
    rng = random.Random(1)
    known = {word for pair in facts.OPPOSITES for word in pair} | set(facts.SPELL)
    names = [
        name for name in (stories.some_name(rng) for _ in range(300)) if name.lower() not in known
    ]
    subjects = {
        "capital": (facts.OTHER_COUNTRIES * 4 + names, facts.NEW_COUNTRIES),
        "opposite": (bare * 2 + facts.words(STRANGERS["plural"]["W"]) + names, new),
        "colour": ([f"the {noun}" for noun in bare], [f"my {noun}" for noun in new]),
        "sound": (bare, new),
        "young": (bare, new),
        "spell": (bare, new),
    }
    out = []
    for name, (trained, held) in subjects.items():
        taught = task(name, alone(trained, DUNNO), name=f"{name}, unknown")
        out.append(replace(taught, weight=taught.weight * 0.7))
        asks = taught.ask[:2]
        out.append(Task(f"{name}, new unknown", 0.0, [], asks, alone(held, DUNNO)))
    return out


def stranger_tasks() -> list[Task]:
    """Whatever else people type: whole questions, and made-up ones."""
    words = {name: facts.words(b["W"]) for name, b in STRANGERS.items() if "W" in b}
    sentences = listed(STRANGERS["sentences"]["P"])
    rng = random.Random(1)
    made = []
    for _ in range(6000):
        text = rng.choice(sentences)
        while match := re.search(r"\{(\w+)\}", text):
            text = text[: match.start()] + rng.choice(words[match[1]]) + text[match.end() :]
        made.append(text[0].upper() + text[1:])
    whole = listed(STRANGERS["questions"]["Q"])
    return [
        task("stranger", alone(whole * 10 + made, DUNNO)),
        Task("stranger, new", 0.0, [], ["{x}"], alone(listed(STRANGERS["questions"]["H"]), DUNNO)),
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
