# SPDX-License-Identifier: Apache-2.0
"""`rwkv-edge chat`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from ..chat import TEMPLATES, THINK_MODES, Conversation, Template, load_template
from ..files.form import read_bytes
from ..prefix_cache import PrefixCache
from .options import FILE, Writer, writing_options
from .talk import Talk, note, say
from .terminal import warnings_as_lines

MOST_BYTES = 1 << 26  # of a system text


@click.command()
@writing_options(1, 1024, "Maximum length of an answer in tokens.")
@click.option(
    "--system", metavar="TEXT", help="Instructions that the model reads before the conversation."
)
@click.option("--system-file", type=FILE, metavar="FILE", help="A file with these instructions.")
@click.option(
    "--cache-dir",
    type=FILE,
    metavar="DIR",
    help="Cache the state after a system text in this folder. Several chats may share it.",
)
@click.option(
    "--template",
    metavar="NAME|FILE",
    help=f"Format of the turns: {', '.join(TEMPLATES)}, or a file (docs/chat.md). Default: found "
    "by the model's name, the template in its file, or its tokenizer.",
)
@click.option(
    "--paragraphs",
    is_flag=True,
    help="Let an answer have several paragraphs, whatever the template says.",
)
@click.option(
    "--think",
    type=click.Choice(THINK_MODES),
    default="off",
    show_default=True,
    help="How long a model thinks before it answers, if it was trained to.",
)
@click.option("--hide-thinking", is_flag=True, help="Do not show the thoughts.")
@click.option(
    "--think-tokens",
    type=click.IntRange(min=0),
    default=2048,
    show_default=True,
    metavar="N",
    help="Maximum length of the thoughts in tokens.",
)
@click.option("-v", "--verbose", is_flag=True, help="Show the speed of reading and writing.")
def chat(
    writer: Writer,
    *,
    system: str | None,
    system_file: Path | None,
    cache_dir: Path | None,
    template: str | None,
    paragraphs: bool,
    think: str,
    hide_thinking: bool,
    think_tokens: int,
    verbose: bool,
) -> None:
    """Talk with a model. Type /help in the chat for its commands."""
    found = template_named(template)
    if system_file is not None:
        if system is not None:
            raise click.UsageError("--system and --system-file exclude each other")
        system = read_bytes(system_file, MOST_BYTES, "a system text").decode("utf-8-sig", "replace")
    cache = None if cache_dir is None else PrefixCache(cache_dir)
    model, state = writer.open()
    began = time.monotonic()
    with warnings_as_lines():
        conversation = Conversation(
            model,
            system=system,
            paragraphs=paragraphs,
            template=found,
            think=think,
            think_tokens=think_tokens,
            state=state,
            cache=cache,
        )
    if verbose and conversation.system:
        how = "from the cache" if conversation.cached else "read"
        seconds = time.monotonic() - began
        note(f"(system text: {len(conversation.tokens)} tokens {how} in {seconds:.3f} s)")
    if sys.stdin.isatty() and sys.stdout.isatty():
        say(f"{model.path.name}: {first_line(conversation)}\n")
    talk = Talk(
        conversation,
        writer.sampling_for(model),
        lookup=writer.lookup,
        show_thoughts=not hide_thinking,
        verbose=verbose,
    )
    with warnings_as_lines():
        talk.run()


def template_named(name: str | None) -> Template | None:
    if name is None or name in TEMPLATES:
        return None if name is None else TEMPLATES[name]
    if not Path(name).exists():
        raise click.UsageError(
            f"--template: found {name!r}, which is no file; expected one or {', '.join(TEMPLATES)}"
        )
    return load_template(name)


def first_line(conversation: Conversation) -> str:
    """What was found out about a model; and below, where to go from here."""
    template, source = conversation.template, conversation.template_source
    ends = "answers may have paragraphs"
    if not conversation.stop:
        ends = "answers end where the document does"
    elif any(not text.strip() for text in conversation.stop):
        ends = "answers end at a blank line"
    thinks = f", thinking {conversation.think}" if template.think else ""
    doubt = ""
    if (template.name, source) == ("g1", "by its chat template"):  # llama.cpp's are all alike
        doubt = "If this is a World model, --template world is right. "
    return f"template {template.name} ({source}), {ends}{thinks}.\n{doubt}/help lists the commands."
