# SPDX-License-Identifier: Apache-2.0
"""`rwkv-edge perplexity`."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..files.form import amount, printable
from ..model import Model
from ..model_file import bytes_per_token, open_model_file
from .options import FILE, device_option, local, open_model, vocab_option
from .terminal import Progress

if TYPE_CHECKING:
    from ..quantization.perplexity import Estimate, Scores


@click.command()
@click.argument("model", type=FILE)
@click.argument("text", required=False, type=FILE)
@click.option(
    "--against",
    type=FILE,
    metavar="BASE",
    help="Compare with this model, such as the f16 file that MODEL was made from, or with a base "
    "file of llama-perplexity.",
)
@click.option("--save-base", type=FILE, metavar="FILE", help="Write a base file for --against.")
@click.option(
    "--window",
    type=click.IntRange(min=2),
    metavar="N",
    help="Tokens that are read from the zero state. Default: 512.",
)
@click.option(
    "--first",
    type=click.IntRange(min=0),
    metavar="N",
    help="Score from this position of a window on. Default: 32; half of the window, as "
    "llama-perplexity has it, with a base file.",
)
@click.option("--by-position", is_flag=True, help="Show the figures for parts of the window too.")
@click.option("-t", "--threads", type=click.IntRange(min=1), help="Threads, as of `chat`.")
@device_option
@vocab_option
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def perplexity(
    *,
    model: Path,
    text: Path | None,
    against: Path | None,
    save_base: Path | None,
    window: int | None,
    first: int | None,
    by_position: bool,
    threads: int | None,
    device: str | None,
    vocab: Path | None,
    as_json: bool,
) -> None:
    """Measure how well MODEL predicts the file TEXT ("-" is stdin), and how far it is from BASE.

    The KL divergence says what quantization has changed: 0.01 and less is hard to notice. Its
    interval comes from drawing windows anew. ln ppl ratio is the relative loss of perplexity.
    """
    from ..files.base_file import BaseReader, is_base_file
    from ..quantization import perplexity as measure
    from ..quantization.text import tokens_of, windows_of

    model, against = local(model), None if against is None else local(against)
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(Progress("measuring"))
        measured = open_model(model, vocab, threads, device)
        base: Model | BaseReader | None = None
        if against is not None and is_base_file(against):
            base = stack.enter_context(BaseReader(against))
            if window not in (None, base.n_ctx):
                raise click.UsageError(f"--window {window}: {against} has windows of {base.n_ctx}")
            window = base.n_ctx
        elif against is not None:
            base = Model(against, threads=threads, device=device)
        if text is not None:
            ids = tokens_of(measured, [text])
            windows = windows_of(ids, window or measure.WINDOW, str(text))
        elif isinstance(base, BaseReader):
            windows = base.tokens
        else:
            raise click.UsageError("no TEXT; only a base file has one")
        scores = measure.score(
            measured, windows, first=first, base=base, save=save_base, progress=bar
        )
    file = open_model_file(model, vocab=vocab)
    weights = sum(math.prod(tensor.shape) for tensor in file.tensors)
    found = figures(scores) | {
        "bits_per_weight": 8 * sum(tensor.nbytes for tensor in file.tensors) / weights,
        "file_bytes": file.size,
        "bytes_per_token": bytes_per_token(file),
    }
    parts = [(low, high, figures(part)) for low, high, part in scores.by_position()]
    if as_json:
        if by_position:
            found["by_position"] = [{"from": a, "to": b, **part} for a, b, part in parts]
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(
        f"{printable(str(model))}: {scores.nll.size:,} tokens scored, in {len(windows)} windows of "
        f"{windows.shape[1]}, from position {scores.first} on"
    )
    click.echo("\n".join(lines(found)))
    if by_position:
        click.echo("positions      perplexity" + "         KL   same top" * (base is not None))
        for low, high, part in parts:
            line = f"{f'{low}-{high - 1}':<12} {part['perplexity']['mean']:12.4f}"
            if base is not None:
                line += f" {part['kl']['mean']:10.6f} {part['same_top']:9.2%}"
            click.echo(line)


def figures(scores: Scores) -> dict[str, Any]:
    import numpy as np

    def of(estimate: Estimate) -> dict[str, float]:
        return {"mean": estimate.mean, "low": estimate.low, "high": estimate.high}

    found: dict[str, Any] = {
        "tokens": int(scores.nll.size),
        "perplexity": of(scores.perplexity()),
    }
    if scores.kl is None or scores.same_top is None:
        return found
    median, most = np.quantile(scores.kl, (0.5, 0.99))
    return found | {
        "base_perplexity": of(scores.base_perplexity()),
        "ln_ppl_ratio": of(scores.log_ratio()),
        "kl": of(scores.divergence()) | {"median": float(median), "99%": float(most)},
        "same_top": float(scores.same_top.mean()),
    }


def lines(found: dict[str, Any]) -> list[str]:
    def of(name: str, digits: int) -> str:
        value = found[name]
        mean, low, high = (f"{value[part]:.{digits}f}" for part in ("mean", "low", "high"))
        return f"{mean}  (95 %: {low} to {high})"

    listed = [f"perplexity       {of('perplexity', 4)}"]
    if "kl" in found:
        kl = found["kl"]
        listed += [
            f"of the base      {of('base_perplexity', 4)}",
            f"ln ppl ratio     {of('ln_ppl_ratio', 5)}",
            f"KL divergence    {of('kl', 6)}",
            f"KL median, 99 %  {kl['median']:.6f}, {kl['99%']:.6f}",
            f"same top token   {found['same_top']:.2%}",
        ]
    return [
        *listed,
        f"bits per weight  {found['bits_per_weight']:.3f}",
        f"file             {found['file_bytes']:,} bytes ({amount(found['file_bytes'])})",
        f"read per token   {found['bytes_per_token']:,} bytes",
    ]
