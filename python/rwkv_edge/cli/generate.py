# SPDX-License-Identifier: Apache-2.0
"""`rwkv-edge generate`."""

from __future__ import annotations

import sys
from contextlib import closing

import click

from .options import DEFAULTS, Writer, read_prompt, writing_options
from .terminal import Progress, write


@click.command()
@writing_options(0, DEFAULTS["max_tokens"].default, "Tokens to write at most.")
@click.option(
    "-p",
    "--prompt",
    required=True,
    metavar="TEXT",
    help="What to go on from; - : stdin, less a last newline.",
)
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; repeatable.")
def generate(writer: Writer, *, prompt: str, stop: tuple[str, ...]) -> None:
    """Write what follows a prompt. An empty one begins a document."""
    text = read_prompt() if prompt == "-" else prompt
    loaded, state = writer.open()
    session = loaded.session(state)
    tokens = loaded.tokenizer.encode(text)
    if tokens:
        with Progress("reading") as bar:
            session.read(tokens, progress=bar)
    with closing(session.generate(stop=stop, lookup=writer.lookup, **writer.sampling)) as pieces:
        for piece in pieces:
            write(piece)
    if sys.stdout.isatty():
        click.echo()
    if writer.lookup:
        guessed, right, steps = session.lookups
        click.echo(
            f"lookup: {right} of {guessed} guessed tokens were right, {steps} steps", err=True
        )
