# SPDX-License-Identifier: Apache-2.0
"""`rwkv-edge generate`."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import click

from .._core import FormatError
from ..files.form import read_bytes
from ..generation import Sampling
from ..grammar import form_of
from ..tokenizer import END_OF_TEXT
from .options import DEFAULTS, FILE, Writer, read_prompt, writing_options
from .terminal import Progress, write

MAX_FORM = 1 << 20


@click.command()
@writing_options(0, DEFAULTS["max_tokens"].default, "Maximum number of tokens to write.")
@click.option(
    "-p",
    "--prompt",
    required=True,
    metavar="TEXT",
    help="Text to continue. - reads it from stdin, less one newline at the end.",
)
@click.option("--stop", multiple=True, metavar="TEXT", help="Stop before this text. Repeatable.")
@click.option("--json-schema", type=FILE, metavar="FILE", help="Write only JSON of this schema.")
@click.option(
    "--regex", metavar="TEXT", help="Write only text that this regular expression matches."
)
@click.option(
    "--choice",
    "choices",
    multiple=True,
    metavar="TEXT",
    help="Write one of the choices. Repeatable.",
)
@click.option("--grammar", type=FILE, metavar="FILE", help="Write only text of this Lark grammar.")
def generate(
    writer: Writer,
    *,
    prompt: str,
    stop: tuple[str, ...],
    json_schema: Path | None,
    regex: str | None,
    choices: tuple[str, ...],
    grammar: Path | None,
) -> None:
    """Continue a text. An empty prompt begins a new document.

    With --json-schema, --regex, --choice or --grammar the result has this form and nothing else,
    not even a space before it.
    """
    form: Sampling = {
        "schema": None if json_schema is None else read_form(json_schema),
        "grammar": None if grammar is None else read_form(grammar),
        "regex": regex,
        "choices": choices or None,
    }
    formed = form_of(form) is not None
    text = read_prompt() if prompt == "-" else prompt
    loaded, state = writer.open()
    options: Sampling = {**writer.sampling_for(loaded), **form}
    session = loaded.session(state)
    tokens = loaded.tokenizer.encode(text)
    try:  # before a long text is read for nothing
        session.generate([END_OF_TEXT], stop=stop, lookup=writer.lookup, **options)
    except ValueError as error:
        file = json_schema or grammar
        raise error if file is None else FormatError(f"{file}: {error}") from None
    if tokens:
        with Progress("reading") as bar:
            session.read(tokens, progress=bar)
    with closing(session.generate(stop=stop, lookup=writer.lookup, **options)) as pieces:
        for piece in pieces:
            write(piece)
        details = pieces.details
    if sys.stdout.isatty():
        click.echo()
    if writer.lookup:
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
    try:
        return read_bytes(path, MAX_FORM, "a schema or grammar").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8 ({error})") from None
