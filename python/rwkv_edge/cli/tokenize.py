# SPDX-License-Identifier: Apache-2.0
"""`rwkv-edge tokenize`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from ..files.form import shown
from .options import open_model, texts_options


@click.command()
@texts_options
@click.option("--ids", is_flag=True, help="Print only the ids, a line for each text.")
@click.option("--count", is_flag=True, help="Print only the number of tokens of each text.")
@click.option("--decode", is_flag=True, help="Take ids instead of texts, and write their bytes.")
def tokenize(
    *,
    model: Path | None,
    threads: int | None,
    device: str | None,
    vocab: Path | None,
    texts: list[bytes],
    ids: bool,
    count: bool,
    decode: bool,
) -> None:
    """Show the tokens of texts: their ids and pieces."""
    if ids + count + decode > 1:
        raise click.UsageError("--ids, --count and --decode exclude each other")
    tokenizer = open_model(model, vocab, threads, device).tokenizer
    for text in texts:
        if decode:
            sys.stdout.buffer.write(tokenizer.decode_bytes(numbers(text, tokenizer.n_vocab)))
            continue
        tokens = tokenizer.encode(text)
        if ids:
            click.echo(" ".join(map(str, tokens)))
        elif count:
            click.echo(len(tokens))
        else:
            for token in tokens:
                click.echo(f"{token:>6}  {piece(tokenizer.token_bytes(token))}")
            click.echo(f"{len(tokens)} tokens")
    sys.stdout.buffer.flush()


def piece(data: bytes) -> str:
    """A token's bytes on a line: as text where they are whole characters."""
    try:
        return repr(data.decode("utf-8"))
    except UnicodeDecodeError:
        return repr(data)


def numbers(text: bytes, n_vocab: int) -> list[int]:
    """Ids between blanks, commas or brackets."""
    found = []
    for word in re.split(rb"[\s,\[\]]+", text):
        if not word:
            continue
        if not re.fullmatch(rb"[0-9]{1,10}", word) or int(word) >= n_vocab:
            found_text = shown(word.decode("utf-8", "replace"))
            raise ValueError(f"found {found_text}, expected ids from 0 to {n_vocab - 1}")
        found.append(int(word))
    return found
