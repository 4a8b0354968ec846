# SPDX-License-Identifier: Apache-2.0
"""`rwkv-edge imatrix`."""

from __future__ import annotations

from pathlib import Path

import click

from ..files.form import amount, printable
from .options import FILE, open_model, vocab_option
from .terminal import Progress


@click.command()
@click.argument("model", type=FILE)
@click.argument("texts", metavar="TEXT...", nargs=-1, required=True, type=FILE)
@click.option("-o", "--output", type=FILE, required=True, metavar="FILE", help="File to write.")
@click.option(
    "--window",
    type=click.IntRange(min=2),
    default=512,
    show_default=True,
    metavar="N",
    help="Tokens that are read from the zero state.",
)
@click.option("-t", "--threads", type=click.IntRange(min=1), help="Threads, as of `chat`.")
@vocab_option
def imatrix(
    *,
    model: Path,
    texts: tuple[Path, ...],
    output: Path,
    window: int,
    threads: int | None,
    vocab: Path | None,
) -> None:
    """Write how much each input of each matrix matters on texts, for quantization.

    TEXT is a file, a folder of files, or - for stdin. `quantize --imatrix` and llama-quantize read
    the file.
    """
    from ..quantization import collect
    from ..quantization.imatrix import Sums, write_imatrix
    from ..quantization.text import tokens_of, windows_of

    name = ", ".join(map(str, texts))
    with Progress("reading") as bar:
        opened = open_model(model, vocab, threads, "cpu")
        windows = windows_of(tokens_of(opened, texts), window, name)
        names = list(collect.matrices_of(opened))
        found = collect.collect(opened, windows, names, progress=bar)
    sums = {name: Sums(inputs.squares, inputs.tokens) for name, inputs in found.items()}
    write_imatrix(output, sums, text=name, windows=len(windows), size=window)
    click.echo(
        f"{printable(str(output))}: {len(sums)} matrices on {windows.size:,} tokens, "
        f"{amount(output.stat().st_size)}"
    )
