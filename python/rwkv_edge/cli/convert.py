# SPDX-License-Identifier: Apache-2.0
"""`rwkv-edge convert`."""

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
    "--type", "kind", type=TYPE, help="By default f16, or the file's own where it is quantized."
)
@type_options
@click.option(
    "--vocab",
    type=FILE,
    metavar="FILE",
    help="Vocabulary; by default one beside IN, or World, from rwkv-edge[convert].",
)
@click.option("--license", metavar="NAME", help="Licence of the weights, to be kept in the file.")
@click.option("--state", type=FILE, metavar="FILE", help="Tuned state to begin with (.pth, .st).")
@click.option("--adapter", type=FILE, metavar="FILE", help="LoRA, PISSA or MiSS, or peft's folder.")
@click.option("--alpha", type=float, metavar="A", help="Alpha of a LoRA that does not say it.")
@click.option("--adapter-init", type=FILE, metavar="FILE", help="What a PISSA began with.")
def convert(*, source: Path, target: Path, kind: str | None, **options: Any) -> None:
    """Turn a checkpoint into a GGUF file: .pth, .safetensors, .st, rwkv.cpp's .bin, a folder of
    the Hugging Face hub, or another GGUF file."""
    from ..convert import convert as convert_model

    with making(target, "converting") as bar:
        convert_model(source, target, type=kind, progress=bar, **options)
