# SPDX-License-Identifier: Apache-2.0
"""How conversations are written, in the words that models were trained on:

    System: <text>\\n\\nUser: <text>\\n\\nAssistant: <text>\\n\\nUser: ...

Two newlines end a turn, so no text of ours may hold them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

TURN_END = "\n\n"


@dataclass(frozen=True)
class Template:
    """How a conversation is written; {} is where a text goes."""

    ask: str
    system: str
    roles: tuple[str, ...]
    opening: str = ""
    """The system text where the user gives none."""
    paragraphs: bool = False
    """Whether its models answer in several paragraphs."""

    def stops(self, paragraphs: bool) -> tuple[str, ...]:
        """What ends an answer.

        Whatever a model was trained on, it must not go on into another turn. Where answers have
        one paragraph, some models go on with anything after it.
        """
        turns = [f"{newlines}{role}:" for newlines in ("\n\n", "\n") for role in self.roles]
        return (*turns,) if paragraphs or self.paragraphs else (TURN_END, *turns)


TEMPLATES = {
    "world": Template(
        "User: {}\n\nAssistant:", "System: {}\n\n", roles=("User", "System", "Assistant")
    ),
    # RWKV-4 Pile and Raven.
    "raven": Template(
        "Bob: {}\n\nAlice:",
        "\n{}\n\n",
        roles=("Bob", "Alice"),
        opening="The following is a conversation between Bob and his friend Alice. "
        "Alice is intelligent, friendly and knows a lot; her answers are detailed and correct.",
    ),
    # RWKV-4 Raven, for single tasks.
    "instruct": Template(
        "# Instruction:\n{}\n\n# Response:\n",
        "{}\n\n",
        roles=("# Instruction", "# Response"),
        opening="Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.",
        paragraphs=True,
    ),
}
# By the kind of tokenizer. That of the Pile models is the only one that comes from Hugging Face.
DEFAULT_TEMPLATES = {"huggingface": "raven"}


def clean(text: str) -> str:
    """A text that cannot end its turn: newlines are LF and single, none at either end."""
    return re.sub("\n{2,}", "\n", re.sub("\r\n?", "\n", text)).strip()
