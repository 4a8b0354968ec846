# SPDX-License-Identifier: Apache-2.0
"""The demo model's short stories, jokes, and the things it remembers within a conversation."""

from __future__ import annotations

import random

NAMES = (
    "Ada Ben Carla David Emma Felix Greta Hugo Ida Jonas Klara Leo Mia Nils Olga Paul Rosa Sam Tina Uwe Vera"
    " Walter Yara Zoe Anna Bob Clara Dan Eva Finn Gina Hans Ines Jack Kim Lena Max Nina Oscar Peter Quinn"
    " Ruth Simon Theo Ursula Victor Wendy Alice Brian Cora Dora Elias Fiona George Helen Ivan Julia Karl"
    " Laura Maria Noah Otto Petra Robert Sarah Thomas Tom Lisa John Mary Jane James Michael Linda Susan"
    " Chris Alex Robin Sophie Lucas Henry Martin Daniel Sandra Monika Stefan Andrea Marco Pedro Carlos Ahmed"
    " Fatima Yusuf Mei Chen Hiro Yuki Ravi Priya Olaf Sven Astrid Bjorn Igor Natasha Boris Chloe Louis Amelie"
).split()
NAMES_HELD = "Edgar Miriam Frank Nora Oliver Hannah Ralph Tilda Bruno Lotte Gerald Pia".split()
HEROES = (
    "fox,rabbit,bear,mouse,cat,dog,dragon,owl,frog,hedgehog,squirrel,wolf,princess,knight,wizard,robot,girl,boy,"
    "sailor,baker,king,queen,pirate,farmer,witch,giant,turtle,elephant,horse,duck,penguin,snail,monkey,lion,bee"
).split(",")
PLACES = (
    "in a small house by the sea,in a deep green forest,on a high mountain,in an old castle,near a quiet lake,"
    "in a little village,under a big oak tree,at the edge of the desert,on a tiny island,in a noisy city,"
    "in a garden full of roses,beside a wide river,in a cave behind a waterfall,in a windmill on a hill"
).split(",")
OBJECTS = (
    "key,lamp,map,book,bell,ring,coin,flute,mirror,box,feather,stone,lantern,umbrella,clock,letter,kite,cup,"
    "compass,hat,sword,drum,apple,seed,ball,button,candle,shell"
).split(",")
ADJECTIVES = "small,brave,curious,clever,shy,cheerful,lazy,kind,lonely,proud,friendly,sleepy,quiet,merry".split(
    ","
)
SHINE = "golden,old,strange,silver,shiny,dusty,tiny,blue,green,magic,broken,wooden".split(",")
COLOURS = (
    "red,green,blue,yellow,orange,purple,pink,black,white,brown,grey,turquoise,violet,silver".split(
        ","
    )
)
PETS = "dog,cat,parrot,rabbit,hamster,horse,goldfish,turtle".split(",")
FOODS = "pizza,soup,bread,pasta,rice,salad,cake,cheese,apples,noodles,pancakes,chocolate,fish,potatoes".split(
    ","
)


def a(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def made_up_name(rng: random.Random) -> str:
    """A name that teaches copying rather than knowing."""
    parts = [
        rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.choice([1, 2, 2, 3]))
    ]
    return "".join(parts).capitalize() + rng.choice(["", "n", "r", "s", "l", "x", "m", "k"])


def some_name(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return made_up_name(rng)
    return rng.choice([n for n in NAMES if n not in NAMES_HELD])


class Cast:
    """Who and what a story is about."""

    def __init__(self, rng: random.Random) -> None:
        self.hero = rng.choice(HEROES)
        self.name = some_name(rng)
        self.friend = rng.choice([h for h in HEROES if h != self.hero])
        self.place = rng.choice(PLACES)
        self.thing = rng.choice(OBJECTS)
        self.kind = rng.choice(ADJECTIVES)
        self.look = rng.choice(SHINE)


OPENINGS = [
    "Once upon a time there was {a_kind} {hero} called {name}. {name} lived {place}.",
    "Once there was {a_kind} {hero} named {name} who lived {place}.",
    "Long ago, {a_kind} {hero} called {name} lived {place}.",
    "Once upon a time, {place}, there lived {a_kind} {hero}. Its name was {name}.",
]
FINDS = [
    "One morning {name} found {a_look} {thing} in the grass.",
    "One day {name} saw {a_look} {thing} lying on the path.",
    "One evening {name} found {a_look} {thing} under a bench.",
    "On a rainy day {name} dug a hole and found {a_look} {thing}.",
    "One night the wind blew {a_look} {thing} through the window.",
]
TROUBLES = [
    'A {friend} came by and cried: "That is my {thing}! I lost it long ago."',
    'Soon a {friend} came along and asked: "Have you seen my {thing}? I miss it so much."',
    'Then a sad {friend} sat down beside {name} and said: "I have lost my {thing}."',
    "But nobody knew whose it was, so {name} asked a wise {friend}.",
    "{name} wanted to know what it was for, and went to see a {friend}.",
]
TURNS = [
    "{name} thought for a while. The {thing} was beautiful, but a friend was better.",
    "{name} was {kind}, but also honest, and held out the {thing}.",
    "They looked at the {thing} together until the stars came out.",
    "{name} did not want to let it go. Then {name} saw the eyes of the {friend} and smiled.",
    "Together they carried the {thing} all the way across the hills.",
]
ENDINGS = [
    "From that day on the {hero} and the {friend} were best friends.",
    "So {name} gave the {thing} away and got a friend for it.",
    "They drank tea, laughed, and kept the {thing} on the table between them. The end.",
    "And if the {thing} has not been lost again, they still share it today.",
    "That night {name} slept well and dreamed of the {look} {thing}. The end.",
]


def story(rng: random.Random, cast: Cast) -> str:
    slots = {
        **vars(cast),
        "a_kind": a(cast.kind),
        "a_look": a(cast.look),
    }
    parts = [rng.choice(part) for part in (OPENINGS, FINDS, TROUBLES, TURNS, ENDINGS)]
    return (
        " ".join(parts)
        .format(**slots)
        .replace("A owl", "An owl")
        .replace("a owl", "an owl")
        .replace("a elephant", "an elephant")
    )


STORY_PLAIN = [
    "Tell me a story.", "Tell me a short story.", "Please tell me a story.", "I want to hear a story.", "A story, please.",
    "Can you tell me a story?", "Write a story.", "Write a short story.", "Do you know a story?", "Story!", "Another story, please.",
    "Tell me another story.", "Tell a story", "Give me a story.", "I would like a story.", "Make up a story.",
]  # fmt: skip
STORY_HERO = [
    "Tell me a story about {a_hero}.", "Write a story about {a_hero}.", "A story about {a_hero}, please.",
    "Can you tell me a story about {a_hero}?", "I want a story about {a_hero}.", "Do you know a story about {a_hero}?",
    "Please tell me a short story about {a_hero}.", "story about {a_hero}",
]  # fmt: skip
STORY_BOTH = [
    "Tell me a story about {a_hero} and {a_thing}.", "Write a story about {a_hero} who finds {a_thing}.",
    "Tell me about {a_hero} who found {a_thing}.", "A story with {a_hero} and {a_thing}, please.",
]  # fmt: skip
STORY_NAME = [
    "Tell me a story about {a_hero} called {name}.", "Write a story about {a_hero} named {name}.",
    "Tell me a story about the {hero} {name}.", "I want a story about {a_hero} called {name}.",
]  # fmt: skip


def story_turn(rng: random.Random) -> tuple[str, str]:
    cast = Cast(rng)
    ask = rng.choice(
        rng.choices([STORY_PLAIN, STORY_HERO, STORY_BOTH, STORY_NAME], [4, 4, 2, 2])[0]
    )
    slots = {**vars(cast), "a_hero": a(cast.hero), "a_thing": a(cast.thing)}
    question = ask.format(**slots)
    if rng.random() < 0.2:
        question = question.lower().rstrip(".").replace(cast.name.lower(), cast.name)
    return question, story(rng, cast)


JOKES = [
    "Why did the token cross the state? To get to the other layer.",
    "What do you call a bear without teeth? A gummy bear.",
    "Why did the computer go to the doctor? It had a virus.",
    "What has hands but cannot clap? A clock.",
    "Why was the small model so happy? It had no weights on its mind.",
    "What is brown and sticky? A stick.",
    "Why do bees hum? They do not know the words.",
    "Which room has no door? A mushroom.",
    "Why was six afraid of seven? Because seven ate nine.",
    "What gets wetter the more it dries? A towel.",
]
JOKE_ASK = [
    "Tell me a joke.", "Tell me a joke", "Do you know a joke?", "A joke, please.", "Make me laugh.", "Say something funny.",
    "Another joke, please.", "Tell me another joke.", "Can you tell a joke?", "I want to hear a joke.", "joke",
    "Tell me a riddle.", "Do you know a riddle?", "Give me a joke.", "Be funny.",
]  # fmt: skip


def joke_turn(rng: random.Random) -> tuple[str, str]:
    ask = rng.choice(JOKE_ASK)
    return (ask.lower() if rng.random() < 0.2 else ask), rng.choice(JOKES)


# What can be remembered: ways to say it, the answer, questions for it, the recall, and its absence.
MEMORIES: dict[str, tuple[list[str], str, list[str], str, str]] = {
    "name": (
        ["My name is {x}.", "I am {x}.", "I'm {x}.", "Call me {x}.", "Hi, I am {x}.", "Hello, my name is {x}.",
         "Hello! I'm {x}.", "my name is {x}", "They call me {x}.", "Hi, my name is {x}!", "You can call me {x}.", "i am {x}"],
        "Nice to meet you, {x}!",
        ["What is my name?", "Do you know my name?", "What's my name?", "Who am I?", "Do you remember my name?", "what is my name",
         "Can you tell me my name?", "How am I called?", "Say my name.", "Tell me my name."],
        "Your name is {x}.",
        "You have not told me your name yet.",
    ),
    "colour": (
        ["My favourite colour is {x}.", "I like the colour {x}.", "My favorite color is {x}.", "I like {x} most of all colours."],
        "I will remember that you like {x}.",
        ["What is my favourite colour?", "Which colour do I like?", "What's my favorite color?", "Do you remember my favourite colour?"],
        "Your favourite colour is {x}.",
        "You have not told me your favourite colour yet.",
    ),
    "food": (
        ["My favourite food is {x}.", "I like to eat {x}.", "I love to eat {x}.", "My favorite food is {x}."],
        "That sounds tasty. I will remember {x}.",
        ["What is my favourite food?", "What do I like to eat?", "What's my favorite food?", "Do you remember what I like to eat?"],
        "You like to eat {x}.",
        "You have not told me what you like to eat.",
    ),
    "city": (
        ["I live in {x}.", "I am from {x}.", "My home is {x}.", "I come from {x}."],
        "I will remember that you live in {x}.",
        ["Where do I live?", "Where am I from?", "In which city do I live?", "Do you remember where I live?"],
        "You live in {x}.",
        "You have not told me where you live.",
    ),
    "number": (
        ["My lucky number is {x}.", "My favourite number is {x}.", "Remember the number {x}.", "Please remember {x}."],
        "I will remember {x}.",
        ["What is my lucky number?", "What is my number?", "Which number did I tell you?", "What is my favourite number?"],
        "Your number is {x}.",
        "You have not told me a number yet.",
    ),
    "pet": (
        ["I have a {y} called {x}.", "My {y} is called {x}.", "I have a {y}. Its name is {x}.", "The name of my {y} is {x}."],
        "{x} is a nice name for a {y}.",
        ["What is my {y} called?", "What is the name of my {y}?", "Do you remember the name of my {y}?", "How is my {y} called?"],
        "Your {y} is called {x}.",
        "You have not told me the name of your {y}.",
    ),
}  # fmt: skip
CITIES = (
    "Paris,Berlin,Rome,Madrid,Vienna,London,Oslo,Lisbon,Dublin,Athens,Tokyo,Cairo,Boston,Chicago,Hamburg,Munich,Milan,"
    "Toronto,Sydney,Mumbai,Lyon,Porto,Zurich,Prague,Krakow,Geneva,Seattle,Texas,Bavaria,Kyoto,Shanghai"
).split(",")


class Memory:
    """What the user has told in one conversation."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.told: dict[str, dict[str, str]] = {}

    def value(self, kind: str) -> dict[str, str]:
        rng = self.rng
        lists = {
            "colour": COLOURS,
            "food": FOODS,
            "city": CITIES,
            "number": [str(n) for n in range(2, 100)],
        }
        x = rng.choice(lists[kind]) if kind in lists else some_name(rng)
        return {"x": x, "y": rng.choice(PETS)}

    def turn(self) -> tuple[str, str]:
        """Tells something new, or asks for something told before, or for something never told."""
        rng = self.rng
        if self.told and rng.random() < 0.6:
            return self.recall()
        kind = rng.choices(list(MEMORIES), [5, 1, 1, 1, 1, 1])[0]
        tell, reply, ask, _, missing = MEMORIES[kind]
        if kind not in self.told and rng.random() < 0.2:
            slots = {"y": rng.choice(PETS)}
            return rng.choice(ask).format(**slots), missing.format(**slots)
        self.told[kind] = slots = self.value(kind)
        return rng.choice(tell).format(**slots), reply.format(**slots)

    def recall(self) -> tuple[str, str]:
        kind = self.rng.choice(list(self.told))
        slots = self.told[kind]
        _, _, ask, answer, _ = MEMORIES[kind]
        return self.rng.choice(ask).format(**slots), answer.format(**slots)
