# SPDX-License-Identifier: Apache-2.0
"""`rwkv-edge quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import FILE, TYPE, type_options
from .terminal import making


@click.command()
@click.argument("source", metavar="IN", type=FILE)
@click.argument("target", metavar="OUT", type=FILE)
@click.option(
    "--type",
    "kind",
    type=TYPE,
    required=True,
    help="Weight type. q3_k is small, but slow: a CPU multiplies it as float32.",
)
@type_options
def quantize(*, source: Path, target: Path, kind: str, **options: Any) -> None:
    """Quantize a GGUF file: store its weights in a smaller type."""
    from ..convert import quantize as quantize_model

    with making(target, "quantizing") as bar:
        quantize_model(source, target, type=kind, progress=bar, **options)
