# SPDX-License-Identifier: Apache-2.0
"""`rwkv-edge quantize`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..files.form import printable
from .options import FILE, TYPE, local, type_options, vocab_option
from .terminal import making

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def nbytes_of(_ctx: object, _param: click.Parameter, text: str | None) -> int | None:
    """A number of bytes: 1500000, 1.5MB, 2GB."""
    if text is None:
        return None
    found = re.fullmatch(r"(?i)(\d+(?:\.\d*)?|\.\d+) ?([KMG]?)B?", text)
    if found is None:
        raise click.BadParameter(f"'{text}' is no size, such as 800MB or 1.2GB")
    return int(float(found[1]) * UNITS[found[2].upper()])


@click.command()
@click.argument("source", metavar="IN", type=FILE)
@click.argument("target", metavar="OUT", type=FILE)
@click.option(
    "--type",
    "kind",
    type=TYPE,
    help="Weight type. q3_k is small, but slow: a CPU multiplies it as float32. With --bits or "
    "--size: the smallest that any matrix gets.",
)
@click.option(
    "--bits",
    type=float,
    metavar="B",
    help="Give each matrix its own type: B bits a weight in all of them, such as 4.5, where the "
    "model loses the least. --calibrate measures what each loses.",
)
@click.option(
    "--size",
    callback=nbytes_of,
    metavar="SIZE",
    help="The same for a file of at most this size, such as 1.2GB.",
)
@click.option(
    "--calibrate",
    "texts",
    multiple=True,
    type=FILE,
    metavar="TEXT",
    help="Choose the codes so that the model errs least on a text: a file, a folder, - for stdin, "
    "or self for what the model writes. Repeatable. The model reads the text once; a run that was "
    "stopped goes on.",
)
@click.option(
    "--calibration-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens of the text to read. Default: 8 for each column of the widest matrix, at least "
    "65536.",
)
@click.option(
    "--memory",
    callback=nbytes_of,
    metavar="SIZE",
    help="Memory to calibrate in, such as 2GB. Default: half of what is free.",
)
@click.option(
    "--imatrix",
    type=FILE,
    metavar="FILE",
    help="Importance of columns, written by `rwkv-edge imatrix` or llama-imatrix.",
)
@click.option("-t", "--threads", type=click.IntRange(min=1), help="Threads to calibrate with.")
@vocab_option
@type_options
def quantize(
    *,
    source: Path,
    target: Path,
    kind: str | None,
    bits: float | None,
    size: int | None,
    texts: tuple[Path, ...],
    calibration_tokens: int | None,
    memory: int | None,
    imatrix: Path | None,
    threads: int | None,
    **options: Any,
) -> None:
    """Quantize a model: store its weights in a smaller type.

    IN is a GGUF file, or what else `convert` takes. With --calibrate a 4-bit file errs about half
    as much.
    """
    from ..convert import quantize as quantize_model
    from ..convert.policy import NOTHING, Known

    if bits is not None and size is not None:
        raise click.UsageError("--bits and --size: expected one of them")
    if kind is None and bits is None and size is None:
        raise click.UsageError("expected --type, --bits or --size")
    if texts and (imatrix is not None or options["sparse_ffn"]):
        other = "--imatrix" if imatrix is not None else "--sparse-ffn"
        raise click.UsageError(f"--calibrate and {other}: expected one of them")
    source = local(source)
    if not texts:
        for name, value in (("--memory", memory), ("--calibration-tokens", calibration_tokens)):
            if value is not None:
                raise click.UsageError(f"{name} belongs to --calibrate")
        known = NOTHING if imatrix is None else Known(importance=importance(imatrix, source))
        with making(target, "quantizing") as bar:
            mixture = quantize_model(
                source,
                target,
                type=kind,
                bits=bits,
                size=size,
                known=known,
                progress=bar,
                **options,
            )
        if mixture is not None:
            click.echo(mixture.report())
        return
    from ..quantization.calibrate import calibration, folder_of

    options.pop("sparse_ffn")
    try:
        with making(target, "calibrating") as bar:
            left = with_time_left(bar)
            found = calibration(
                source,
                target,
                [str(text) for text in texts],
                type=kind,
                bits=bits,
                size=size,
                tokens=calibration_tokens,
                memory=memory,
                threads=threads,
                progress=left,
                **options,
            )
            bar.say(found.statement())
            found.run(left)
    except KeyboardInterrupt:
        if folder_of(target).is_dir():
            click.echo(
                f"\nStopped. {printable(str(folder_of(target)))} keeps what is finished: the same "
                "command goes on from there.",
                err=True,
            )
        raise
    if found.mixture is not None:
        click.echo(found.mixture.report())


def with_time_left(bar: Callable[[int, int, str], None]) -> Callable[[int, int, str], None]:
    """Say how long each part of the work still takes; a new total begins a new part."""
    started, first, of = time.monotonic(), 0, -1

    def progress(done: int, total: int, detail: str) -> None:
        nonlocal started, first, of
        if total != of:
            started, first, of = time.monotonic(), done, total
        spent = time.monotonic() - started
        if done > first and spent > 1:
            detail = f"{duration(spent * (total - done) / (done - first))} left, {detail}"
        bar(done, total, detail)

    return progress


def importance(path: Path, source: Path) -> Any:
    """Of the columns of the matrices of a model, from a file that belongs to it."""
    from ..model_file import open_model_file
    from ..quantization.imatrix import read_imatrix

    found = read_imatrix(path)
    file = open_model_file(source)
    found.check(str(source), {t.name: t.shape for t in file.tensors if len(t.shape) == 2})
    return found.means


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{round(seconds)} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
