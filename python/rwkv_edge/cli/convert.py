# SPDX-License-Identifier: Apache-2.0
"""`rwkv-edge convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import FILE, TYPE, local, type_options
from .terminal import making


@click.command()
@click.argument("source", metavar="IN", type=FILE)
@click.argument("target", metavar="OUT", type=FILE)
@click.option(
    "--type",
    "kind",
    type=TYPE,
    help="Weight type. Default: f16, or that of IN where it is quantized.",
)
@type_options
@click.option(
    "--vocab",
    type=FILE,
    metavar="FILE",
    help="Vocabulary file. Default: one beside IN, else World, which rwkv-edge[convert] brings.",
)
@click.option("--license", metavar="NAME", help="Licence of the weights, written to OUT.")
@click.option(
    "--state", type=FILE, metavar="FILE", help="Tuned state (.pth, .st) for sessions to begin with."
)
@click.option(
    "--adapter", type=FILE, metavar="FILE", help="Adapter to merge: a file, or a peft folder."
)
@click.option("--alpha", type=float, metavar="A", help="LoRA alpha, if the file does not store it.")
@click.option(
    "--adapter-init", type=FILE, metavar="FILE", help="The init_lora file of a PISSA training."
)
def convert(*, source: Path, target: Path, kind: str | None, **options: Any) -> None:
    """Convert a checkpoint to GGUF.

    IN is a .pth, .safetensors or .st file, a .bin of rwkv.cpp, a Hugging Face folder, or a GGUF
    file, or a name as `rwkv-edge pull` takes it. --adapter takes LoRA, PISSA, DiSHA, Bone and MiSS.
    """
    from ..convert import convert as convert_model

    path = local(source)
    with making(target, "converting") as bar:
        convert_model(path, target, type=kind, progress=bar, **options)
