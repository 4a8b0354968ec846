# SPDX-License-Identifier: Apache-2.0
"""`rwkv-edge state`."""

from __future__ import annotations

from pathlib import Path

import click

from ..files.form import printable
from .options import FILE


@click.group()
def state() -> None:
    """Inspect saved states."""


@state.command()
@click.argument("files", required=True, nargs=-1, type=FILE, metavar="FILE...")
def info(files: tuple[Path, ...]) -> None:
    """Show the model of a state, how many tokens it has read, and what it holds."""
    from ..describe import describe_state

    for i, path in enumerate(files):
        sentence, lines = describe_state(path)
        click.echo("\n" * (i > 0) + printable(sentence))
        for name, text in lines:
            click.echo(f"{name:<14}{printable(text)}")


@state.command()
@click.argument("one", type=FILE)
@click.argument("other", type=FILE)
def diff(one: Path, other: Path) -> None:
    """Compare two states, layer by layer and part by part.

    max: the largest difference of two values. relative: the length of the difference, as a share of
    the length of ONE's values.
    """
    from ..state import State, differences

    states = [State.load(path) for path in (one, other)]
    rows = differences(*states)
    parts = [name for name, _ in states[0].shape.parts]
    click.echo("layer" + "".join(f"{printable(name):>24}" for name in parts))
    click.echo(" " * 5 + f"{'max':>14}{'relative':>10}" * len(parts))
    for start in range(0, len(rows), len(parts)):
        cells = (
            f"{most:>14.3g}{share:>10.2g}" for *_, most, share in rows[start : start + len(parts)]
        )
        click.echo(f"{rows[start][0]:>5}" + "".join(cells))
    for path, loaded in zip((one, other), states, strict=True):
        said = loaded.tokens if loaded.tokens is not None else "an unknown number of"
        click.echo(
            f"{printable(str(path))}: {said} tokens, model {loaded.fingerprint or 'unknown'}"
        )
