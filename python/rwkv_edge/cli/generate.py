# SPDX-License-Identifier: Apache-2.0
"""`rwkv-edge generate`."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from .._core import FormatError
from ..grammar import form_of
from ..state import State
from ..tokenizer import END_OF_TEXT
from .options import (
    DEFAULTS,
    FILE,
    checked,
    model_and_threads,
    open_model,
    sampling_options,
    text_options,
)
from .terminal import Progress, write

MAX_FORM = 1 << 20


@click.command()
@model_and_threads
@click.option(
    "-p",
    "--prompt",
    required=True,
    metavar="TEXT",
    help="What to go on from; - : stdin, less a last newline.",
)
@click.option(
    "-n",
    "--max-tokens",
    type=click.IntRange(min=0),
    show_default=True,
    metavar="N",
    default=DEFAULTS["max_tokens"].default,
    help="Tokens to write at most.",
)
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; repeatable.")
@click.option(
    "--lookup",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Guess up to N tokens from the text so far; the text is the same, and may come sooner.",
)
@click.option(
    "--json-schema", type=FILE, metavar="FILE", help="Write JSON of this schema and nothing else."
)
@click.option("--regex", metavar="TEXT", help="Write what this regular expression matches.")
@click.option(
    "--choice", "choices", multiple=True, metavar="TEXT", help="Write this or another; repeatable."
)
@click.option("--grammar", type=FILE, metavar="FILE", help="Write text of this Lark grammar.")
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
    json_schema: Path | None,
    regex: str | None,
    choices: tuple[str, ...],
    grammar: Path | None,
    **sampling: Any,
) -> None:
    """Write what follows a prompt. An empty one begins a document.

    A text of a given form (--json-schema, --regex, --choice, --grammar) is that form alone, without
    a blank before it.
    """
    options = checked(sampling)
    options["schema"] = None if json_schema is None else read_form(json_schema)
    options["grammar"] = None if grammar is None else read_form(grammar)
    options["regex"], options["choices"] = regex, choices or None
    formed = form_of(options) is not None
    loaded = open_model(model, vocab, threads)
    text = read_prompt() if prompt == "-" else prompt
    session = loaded.session(None if state is None else State.load(state))
    tokens = loaded.tokenizer.encode(text)
    try:  # before a long text is read for nothing
        session.generate([END_OF_TEXT], stop=stop, lookup=lookup, **options)
    except ValueError as error:
        file = json_schema or grammar
        raise error if file is None else FormatError(f"{file}: {error}") from None
    if tokens:
        with Progress("reading") as bar:
            session.read(tokens, progress=bar)
    with closing(session.generate(stop=stop, lookup=lookup, **options)) as pieces:
        for piece in pieces:
            write(piece)
        details = pieces.details
    if sys.stdout.isatty():
        click.echo()
    if lookup:
        guessed, right, steps = session.lookups
        click.echo(
            f"lookup: {right} of {guessed} guessed tokens were right, {steps} steps", err=True
        )

    if formed and details.finish_reason == "length":
        raise click.ClickException(
            f"the text was cut off after {len(details.tokens)} tokens; --max-tokens N allows more"
        )


def read_form(path: Path) -> str:
    """A schema or a grammar."""
    with path.open("rb") as file:
        data = file.read(MAX_FORM + 1)
    if len(data) > MAX_FORM:
        raise FormatError(f"{path}: more than {MAX_FORM} bytes, too large for a schema or grammar")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8 ({error})") from None


def read_prompt() -> bytes:
    """All of stdin but for one newline at its end, which `echo` and editors add."""
    return sys.stdin.buffer.read().removesuffix(b"\n")
