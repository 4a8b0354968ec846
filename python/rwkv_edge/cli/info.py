# SPDX-License-Identifier: Apache-2.0
"""`rwkv-edge info`."""

from __future__ import annotations

from pathlib import Path

import click

from ..files.form import printable
from ..model import bundled_model
from .options import local, model_argument


@click.command()
@model_argument
def info(model: Path | None) -> None:
    """Describe a file: a model in any format, a state, an adapter or a vocabulary."""
    from ..describe import describe

    sentence, lines = describe(bundled_model() if model is None else local(model))
    click.echo(printable(sentence))
    for name, text in lines:
        click.echo(f"{name:<14}{printable(text)}")
