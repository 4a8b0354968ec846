# SPDX-License-Identifier: Apache-2.0
"""The demo model's short stories, jokes, and the things it remembers within a conversation."""

from __future__ import annotations

import random

import demo_facts as facts
from demo_facts import blocks, listed

BLOCKS = {block["N"]: block for block in blocks("demo_stories.txt")}
PARTS = [listed(BLOCKS[n]["P"]) for n in ("opening", "find", "trouble", "turn", "ending")]
STORY_ASKS = [
    listed(BLOCKS[n]["Q"])
    for n in ("story", "story of a hero", "story of a hero and a thing", "story of a name")
]
JOKES, JOKE_ASK = listed(BLOCKS["joke"]["P"]), listed(BLOCKS["joke"]["Q"])
MEMORIES = {n.removeprefix("memory of "): b for n, b in BLOCKS.items() if "M" in b}


def a(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def made_up_name(rng: random.Random) -> str:
    """A name that teaches copying rather than knowing."""
    syllables = rng.choice([1, 2, 2, 3])
    parts = [rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(syllables)]
    return "".join(parts).capitalize() + rng.choice(["", "n", "r", "s", "l", "x", "m", "k"])


def some_name(rng: random.Random) -> str:
    return made_up_name(rng) if rng.random() < 0.5 else rng.choice(facts.NAMES)


class Cast:
    """Who and what a story is about."""

    def __init__(self, rng: random.Random) -> None:
        self.hero = rng.choice(facts.HEROES)
        self.name = some_name(rng)
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


def story_turn(rng: random.Random) -> tuple[str, str]:
    """A wish for a story, and one with what was wished for."""
    cast = Cast(rng)
    question = rng.choice(rng.choices(STORY_ASKS, [4, 4, 2, 2])[0]).format(**cast.slots())
    if rng.random() < 0.2:
        question = question.lower().rstrip(".").replace(cast.name.lower(), cast.name)
    return question, story(rng, cast)


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
        return {"x": x, "y": rng.choice(facts.PETS)}

    def turn(self) -> tuple[str, str]:
        """Tells something new, or asks for something told before, or for something never told."""
        rng = self.rng
        if self.told and rng.random() < 0.6:
            return self.recall()
        kind = rng.choices(list(MEMORIES), [5, 1, 1, 1, 1, 1])[0]
        block = MEMORIES[kind]
        if kind not in self.told and rng.random() < 0.2:
            slots = {"y": rng.choice(facts.PETS)}
            return rng.choice(listed(block["Q"])).format(**slots), block["M"].format(**slots)
        self.told[kind] = slots = self.value(kind)
        return rng.choice(listed(block["T"])).format(**slots), block["R"].format(**slots)

    def recall(self) -> tuple[str, str]:
        kind = self.rng.choice(list(self.told))
        slots, block = self.told[kind], MEMORIES[kind]
        return self.rng.choice(listed(block["Q"])).format(**slots), block["A"].format(**slots)
