# SPDX-License-Identifier: Apache-2.0
"""`rwkv-edge generate`."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from ..state import State
from .options import (
    DEFAULTS,
    checked,
    model_and_threads,
    open_model,
    sampling_options,
    text_options,
)
from .terminal import Progress, write


@click.command()
@model_and_threads
@click.option(
    "-p",
    "--prompt",
    required=True,
    metavar="TEXT",
    help="Text to continue. - reads it from stdin, less one newline at the end.",
)
@click.option(
    "-n",
    "--max-tokens",
    type=click.IntRange(min=0),
    show_default=True,
    metavar="N",
    default=DEFAULTS["max_tokens"].default,
    help="Maximum number of tokens to write.",
)
@click.option("--stop", multiple=True, metavar="TEXT", help="Stop before this text. Repeatable.")
@click.option(
    "--lookup",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Guess up to N tokens a step from the text so far. The result is the same. A text that "
    "repeats itself comes faster.",
)
@text_options
@sampling_options
def generate(
    *,
    model: Path | None,
    threads: int | None,
    vocab: Path | None,
    state: Path | None,
    prompt: str,
    stop: tuple[str, ...],
    lookup: int,
    **sampling: Any,
) -> None:
    """Continue a text. An empty prompt begins a new document."""
    options = checked(sampling)
    loaded = open_model(model, vocab, threads)
    text = read_prompt() if prompt == "-" else prompt
    session = loaded.session(None if state is None else State.load(state))
    tokens = loaded.tokenizer.encode(text)
    if tokens:
        with Progress("reading") as bar:
            session.read(tokens, progress=bar)
    with closing(session.generate(stop=stop, lookup=lookup, **options)) as pieces:
        for piece in pieces:
            write(piece)
    if sys.stdout.isatty():
        click.echo()
    if lookup:
        guessed, right, steps = session.lookups
        click.echo(
            f"lookup: {right} of {guessed} guessed tokens were right, {steps} steps", err=True
        )


def read_prompt() -> bytes:
    """All of stdin but for one newline at its end, which `echo` and editors add."""
    return sys.stdin.buffer.read().removesuffix(b"\n")
