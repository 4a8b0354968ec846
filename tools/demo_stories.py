# SPDX-License-Identifier: Apache-2.0
"""The demo model's short stories, jokes, and the things it remembers within a conversation."""

from __future__ import annotations

import random

import demo_facts as facts
from demo_facts import blocks, listed, words

BLOCKS = {block["N"]: block for block in blocks("demo_stories.txt")}
PARTS = [listed(BLOCKS[n]["P"]) for n in ("opening", "find", "trouble", "turn", "ending")]
STORY_ASKS = [
    listed(BLOCKS[n]["Q"])
    for n in ("story", "story of a hero", "story of a hero and a thing", "story of a name")
]
JOKES, JOKE_ASK = listed(BLOCKS["joke"]["P"]), listed(BLOCKS["joke"]["Q"])
MEMORIES = {n.removeprefix("memory of "): b for n, b in BLOCKS.items() if n.startswith("memory")}
QUESTIONS = [block for n, block in BLOCKS.items() if n.startswith("story question")]
QUESTION_WEIGHTS = [float(block["W"]) for block in QUESTIONS]
ONSETS = words(
    """
    b, bl, br, c, ch, cl, cr, d, dr, f, fl, fr, g, gl, gr, h, j, k, kl, kr, l, m, n, p, ph, pl,
    pr, qu, r, s, sch, sh, sl, st, sv, t, th, tr, v, w, y, z, , , , ,
    """
)
VOWELS = words("a, e, i, o, u, a, e, i, o, u, ai, au, ea, ee, ei, eo, ia, ie, io, oa, oo, ou, y")
CODAS = words(
    """
    , , , , , , b, ck, d, ff, g, l, ld, ll, lf, lph, m, n, nd, ng, nk, nn, ns, nt, p, r, rd, rg,
    rk, rt, s, sk, ss, st, t, th, tt, tz, v, x, z
    """
)
WORDS = [
    word
    for block in blocks("demo_strangers.txt")
    for text in words(block.get("W", ""))
    for word in text.lower().split()
    if word.isalpha() and len(word) > 3
]


def a(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def made_up_name(rng: random.Random) -> str:
    """A name that teaches copying rather than knowing: of syllables, names, or ends of words."""
    while True:
        kind = rng.random()
        if kind < 0.4:
            first, last = rng.choice(facts.NAMES), rng.choice(facts.NAMES).lower()
            name = first[: rng.randint(2, 4)] + last[-rng.randint(2, 4) :]
        elif kind < 0.7:  # pieces that no name has
            name = (rng.choice(ONSETS) + rng.choice(WORDS)[-rng.randint(3, 5) :]).capitalize()
        else:
            syllables = rng.choice([1, 2, 2, 3])
            parts = [rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(syllables)]
            name = ("".join(parts) + rng.choice(CODAS)).capitalize()
        if len(name) > 1 and name not in facts.NAMES_HELD:
            return name


def some_name(rng: random.Random) -> str:
    return made_up_name(rng) if rng.random() < 0.6 else rng.choice(facts.NAMES)


class Cast:
    """Who and what a story is about."""

    def __init__(self, rng: random.Random, name: str = "") -> None:
        self.hero = rng.choice(facts.HEROES)
        self.name = name or some_name(rng)
        self.friend = rng.choice([h for h in facts.HEROES if h != self.hero])
        self.place = rng.choice(facts.PLACES)
        self.thing = rng.choice(facts.OBJECTS)
        self.kind = rng.choice(facts.ADJECTIVES)
        self.look = rng.choice(facts.SHINE)

    def slots(self) -> dict[str, str]:
        nouns = {"a_" + key: a(value) for key, value in vars(self).items()}
        return {**vars(self), **nouns}


def story(rng: random.Random, cast: Cast) -> str:
    text = " ".join(rng.choice(part) for part in PARTS).format(**cast.slots())
    for noun in ("owl", "elephant"):
        text = text.replace(f"A {noun}", f"An {noun}").replace(f" a {noun}", f" an {noun}")
    return text


def story_turn(rng: random.Random) -> tuple[str, str, Cast]:
    """A wish for a story, one with what was wished for, and who it is about."""
    cast = Cast(rng)
    question = rng.choice(rng.choices(STORY_ASKS, [4, 4, 2, 2])[0]).format(**cast.slots())
    if rng.random() < 0.2:
        question = question.lower().rstrip(".").replace(cast.name.lower(), cast.name)
    return question, story(rng, cast), cast


def joke_turn(rng: random.Random) -> tuple[str, str]:
    ask = rng.choice(JOKE_ASK)
    return (ask.lower() if rng.random() < 0.2 else ask), rng.choice(JOKES)


class Memory:
    """What the user has told in one conversation."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.told: dict[str, dict[str, str]] = {}

    def value(self, kind: str) -> dict[str, str]:
        rng = self.rng
        lists = {
            "colour": facts.LIKED_COLOURS,
            "food": facts.FOODS,
            "city": facts.CITIES,
            "number": [str(n) for n in range(2, 100)],
        }
        x = rng.choice(lists[kind]) if kind in lists else some_name(rng)
        if rng.random() < 0.1:
            x = x.lower()  # as some people type
        return {"x": x, "y": rng.choice(facts.PETS)}

    def turn(self) -> tuple[str, str]:
        """Tells something new, or asks for something told before, or for something never told."""
        rng = self.rng
        if self.told and rng.random() < 0.6:
            return self.recall()
        if rng.random() < 0.06:
            return rng.choice(listed(BLOCKS["everything"]["Q"])), self.everything()
        kind = rng.choices(list(MEMORIES), [6, 1, 1, 1, 1, 1])[0]
        block = MEMORIES[kind]
        if kind not in self.told and rng.random() < 0.2:
            slots = {"y": rng.choice(facts.PETS)}
            return rng.choice(listed(block["Q"])).format(**slots), block["M"].format(**slots)
        self.told[kind] = slots = self.value(kind)
        return rng.choice(listed(block["T"])).format(**slots), block["R"].format(**slots)

    def everything(self) -> str:
        """What the user has told, the newest two things."""
        found = [MEMORIES[kind]["A"].format(**slots) for kind, slots in self.told.items()]
        return " ".join(found[-2:]) or BLOCKS["everything"]["M"]

    def story(self) -> tuple[str, str]:
        """A story about the user."""
        ask = self.rng.choice(listed(BLOCKS["story of the user"]["Q"]))
        if "name" not in self.told:
            return ask, MEMORIES["name"]["M"]
        return ask, story(self.rng, Cast(self.rng, self.told["name"]["x"]))

    def recall(self) -> tuple[str, str]:
        """Asks for something told; now and then the user has another name instead."""
        rng = self.rng
        if rng.random() < 0.08:
            return rng.choice(listed(BLOCKS["everything"]["Q"])), self.everything()
        kind = rng.choice(list(self.told))
        if kind == "name" and rng.random() < 0.2:
            self.told[kind] = slots = self.value(kind)
            block = MEMORIES[kind]
            return rng.choice(listed(block["C"])).format(**slots), block["D"].format(**slots)
        slots, block = self.told[kind], MEMORIES[kind]
        return self.rng.choice(listed(block["Q"])).format(**slots), block["A"].format(**slots)
