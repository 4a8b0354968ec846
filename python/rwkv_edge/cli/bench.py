# SPDX-License-Identifier: Apache-2.0
"""`rwkv-edge bench`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from .. import _core
from ..files.form import printable
from ..model import Model, bundled_model
from .options import model_argument
from .terminal import Progress


def thread_counts(_ctx: object, _param: object, text: str | None) -> list[int]:
    counts = text.split(",") if text else []
    if not all(count.isdecimal() and int(count) > 0 for count in counts):
        raise click.BadParameter(f"'{text}' is no list of numbers of threads, such as 1,2")
    return [int(count) for count in counts]


@click.command()
@model_argument
@click.option(
    "-t",
    "--threads",
    callback=thread_counts,
    metavar="N,...",
    help="Numbers of threads; by default one for each core, at most 8.",
)
@click.option(
    "-p",
    "--prompt",
    type=click.IntRange(min=0),
    default=512,
    show_default=True,
    metavar="N",
    help="Tokens to read; 0: do not measure reading.",
)
@click.option(
    "-n",
    "--max-tokens",
    type=click.IntRange(min=0),
    default=128,
    show_default=True,
    metavar="N",
    help="Tokens to write; 0: do not measure writing.",
)
@click.option("-r", "--repeats", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench(
    *,
    model: Path | None,
    threads: list[int],
    prompt: int,
    max_tokens: int,
    repeats: int,
    as_json: bool,
) -> None:
    """Measure reading (pp) and writing (tg) in tokens per second.

    Each with its share of what this machine gives at most: reading, of the arithmetic peak of the
    weights' types; writing, which needs every weight for every token, of the rate at which memory
    is read. Each figure is the median of the repeats.
    """
    from .. import bench as benchmark

    path = model or bundled_model()
    counts = threads or [Model(path).threads]
    with Progress("measuring") as bar:
        results = list(
            benchmark.measure(
                path, counts, prompt=prompt, generated=max_tokens, repeats=repeats, progress=bar
            )
        )
    if as_json:
        rows = [dataclasses.asdict(r) for r in results]
        click.echo(json.dumps({"model": str(path), "isa": _core.isa(), "results": rows}, indent=2))
        return
    click.echo(f"{printable(str(path))}, {_core.isa()} kernels, median of {repeats}")
    for r in results:
        if r.test.startswith("tg"):
            bandwidth = r.limits.bandwidth_gb
            share = f"{r.share * bandwidth:6.2f} GB/s, {r.share:.0%} of {bandwidth:.2f} GB/s"
        else:
            peaks = f"f32 {r.limits.float_gops:.1f}, int8 {r.limits.int8_gops:.1f} GOPS"
            share = f"{r.share:.0%} of the peak ({peaks})"
        rate = f"{r.tokens_per_second:9.2f} tokens/s"
        click.echo(f"{r.threads:3} threads  {r.test:<8} {rate}  {share}")
