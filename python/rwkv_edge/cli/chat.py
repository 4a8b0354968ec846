# SPDX-License-Identifier: Apache-2.0
"""`rwkv-edge chat`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ..chat import TEMPLATES, Conversation
from ..files.form import printable
from ..state import State
from .options import checked, model_and_threads, open_model, sampling_options, text_options
from .terminal import talk


@click.command()
@model_and_threads
@click.option(
    "--system", metavar="TEXT", help="Instructions that the model reads before the conversation."
)
@click.option(
    "--paragraphs",
    is_flag=True,
    help="Let an answer have several paragraphs. By default an empty line ends it.",
)
@click.option(
    "--template",
    type=click.Choice(list(TEMPLATES)),
    help="Format of the turns. Default: raven for models of the Pile, else world.",
)
@text_options
@sampling_options
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    metavar="N",
    help="Maximum length of an answer in tokens.",
)
def chat(
    *,
    model: Path | None,
    threads: int | None,
    vocab: Path | None,
    state: Path | None,
    system: str | None,
    paragraphs: bool,
    template: str | None,
    **sampling: Any,
) -> None:
    """Talk with a model. Type /help in the chat for its commands."""
    options = checked(sampling)
    loaded = open_model(model, vocab, threads)
    conversation = Conversation(
        loaded,
        system=system,
        paragraphs=paragraphs,
        template=template,
        state=None if state is None else State.load(state),
    )
    if sys.stdin.isatty() and sys.stdout.isatty():
        click.echo(f"{printable(loaded.path.name)}. /help lists the commands, Ctrl-D leaves.\n")
    talk(conversation, options)
