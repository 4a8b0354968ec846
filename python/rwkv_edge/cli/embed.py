# SPDX-License-Identifier: Apache-2.0
"""`rwkv-edge embed`."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Literal

import click

from .options import FILE, open_model, texts_options


@click.command()
@texts_options
@click.option(
    "--layer", type=int, metavar="N", help="Number of layers to run. Default: two thirds of them."
)
@click.option(
    "--pooling",
    type=click.Choice(["mean", "last"]),
    default="mean",
    show_default=True,
    help="Take the mean over the tokens of a text, or its last token.",
)
@click.option(
    "-o", "--output", type=FILE, metavar="FILE", help="Write a .npy file, [texts, width] of f32."
)
def embed(
    *,
    model: Path | None,
    threads: int | None,
    device: str | None,
    vocab: Path | None,
    texts: list[bytes],
    layer: int | None,
    pooling: Literal["mean", "last"],
    output: Path | None,
) -> None:
    """Turn each text into a vector of length 1, written as a line of JSON."""
    vectors = open_model(model, vocab, threads, device).embed(texts, layer=layer, pooling=pooling)
    if output is None:
        for vector in vectors:
            click.echo(json.dumps([float(f"{value:.9g}") for value in vector]))
        return
    import numpy as np

    from ..files.output import OutputFile

    data = io.BytesIO()
    np.save(data, vectors, allow_pickle=False)
    with OutputFile(output) as file:
        file.write(data.getvalue())
