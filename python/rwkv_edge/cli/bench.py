# SPDX-License-Identifier: Apache-2.0
"""`rwkv-edge bench`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from .. import _core
from ..files.form import amount, printable
from ..model import Model, bundled_model, device_name
from ..model_file import by_input, bytes_per_token, open_model_file
from .options import device_option, local, model_argument
from .terminal import Progress


def counts(_ctx: object, param: click.Parameter, text: str | None) -> list[int]:
    found = text.split(",") if text else []
    if not all(count.isdecimal() and int(count) > 0 for count in found):
        raise click.BadParameter(f"'{text}' is no list of numbers of {param.name}, such as 1,2")
    return [int(count) for count in found]


@click.command()
@model_argument
@click.option(
    "-t",
    "--threads",
    callback=counts,
    metavar="N,...",
    help="Numbers of threads, such as 1,2. Default: the number that chat takes.",
)
@click.option(
    "-p",
    "--prompt",
    type=click.IntRange(min=0),
    default=512,
    show_default=True,
    metavar="N",
    help="Length of the prompt in tokens. 0 leaves pp out.",
)
@click.option(
    "-n",
    "--max-tokens",
    type=click.IntRange(min=0),
    default=128,
    show_default=True,
    metavar="N",
    help="Number of tokens to write. 0 leaves tg out.",
)
@click.option(
    "--sessions",
    default="1",
    callback=counts,
    metavar="N,...",
    show_default=True,
    help="Numbers of sessions that write together, such as 1,8,32.",
)
@device_option
@click.option(
    "-r",
    "--repeats",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    metavar="N",
    help="Measurements of each figure.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def bench(
    *,
    model: Path | None,
    threads: list[int],
    prompt: int,
    max_tokens: int,
    sessions: list[int],
    device: str | None,
    repeats: int,
    as_json: bool,
) -> None:
    """Measure how fast a model reads and writes, in tokens per second.

    pp is reading a prompt. Arithmetic limits it. The share is of this machine's peak for the types
    of the weights.

    tg is writing a text. Memory bandwidth limits it, because every step reads all weights. The
    share is of this machine's bandwidth. Sessions that write together read the weights once.

    Each figure is the median of the repeats. In a file made with --sparse-ffn the shares count all
    rows, also those that no token reads. On a GPU the peak is that of its tensor cores.
    """
    from .. import bench as benchmark

    path = bundled_model() if model is None else local(model)
    device = device_name(device)
    on_cpu = device == "cpu"
    if threads and not on_cpu:
        raise click.UsageError(f"--threads is for --device cpu, found --device {device}")
    with Progress("measuring") as bar:
        results = list(
            benchmark.measure(
                path,
                threads or [Model(path, device=device).threads if on_cpu else 1],
                prompt=prompt,
                generated=max_tokens,
                sessions=sessions,
                repeats=repeats,
                progress=bar,
                device=device,
            )
        )
    file = open_model_file(path)
    sparse = sum(tensor.nbytes for tensor in by_input(file))
    if as_json:
        rows = [dataclasses.asdict(r) for r in results]
        found = {
            "model": str(path),
            "isa": _core.isa(),
            "bytes_by_input": sparse,
            "results": rows,
        }
        click.echo(json.dumps(found, indent=2))
        return
    where = results[0].device if results and not on_cpu else f"{_core.isa()} kernels"
    click.echo(f"{printable(str(path))}, {where}, median of {repeats}")
    if sparse:
        whole = bytes_per_token(file)
        click.echo(
            f"{amount(sparse)} of {amount(whole)} of weights lie by input: a token reads some of "
            "their rows, the shares below count all"
        )
    alone = {
        r.threads: r.tokens_per_second for r in results if r.test[:2] == "tg" and r.sessions == 1
    }
    for r in results:
        if r.sessions > 1:
            share = f"{r.share:.0%} of what memory and arithmetic allow"
            if r.threads in alone:
                share += f", {r.tokens_per_second / alone[r.threads]:.2f} times one session"
        elif r.test.startswith("tg"):
            bandwidth = r.limits.bandwidth_gb
            share = f"{r.share * bandwidth:6.2f} GB/s, {r.share:.0%} of {bandwidth:.2f} GB/s"
        else:
            peaks = f"f16 {r.limits.float_gops / 1e3:.1f} TFLOPS"
            if on_cpu:
                peaks = f"f32 {r.limits.float_gops:.1f}, int8 {r.limits.int8_gops:.1f} GOPS"
            share = f"{r.share:.0%} of the peak ({peaks})"
        rate = f"{r.tokens_per_second:9.2f} tokens/s"
        together = f"{r.sessions:3} sessions  " if sessions != [1] else ""
        own = f"{r.threads:3} threads  " if on_cpu else ""
        click.echo(f"{own}{together}{r.test:<8} {rate}  {share}")
