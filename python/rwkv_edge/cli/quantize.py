# SPDX-License-Identifier: Apache-2.0
"""`rwkv-edge quantize`."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import click

from ..files.form import printable
from .options import FILE, TYPE, local, type_options, vocab_option
from .terminal import making

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def size(_ctx: object, _param: click.Parameter, text: str | None) -> int | None:
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
    required=True,
    help="Weight type. q3_k is small, but slow: a CPU multiplies it as float32.",
)
@click.option(
    "--calibrate",
    "texts",
    multiple=True,
    type=FILE,
    metavar="TEXT",
    help="Choose the codes so that the model errs least on a text: a file, a folder, - for stdin, "
    "or self for what the model writes. Repeatable. Takes several readings of the text; a run that "
    "was stopped goes on.",
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
    callback=size,
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
    kind: str,
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
            quantize_model(source, target, type=kind, known=known, progress=bar, **options)
        return
    from ..quantization.calibrate import calibration

    options.pop("sparse_ffn")
    started, first = time.monotonic(), -1
    with making(target, "calibrating") as bar:

        def left(done: int, total: int, detail: str) -> None:
            nonlocal first
            first = done if first < 0 else first
            spent = time.monotonic() - started
            if done > first and spent > 1:
                detail = f"{duration(spent * (total - done) / (done - first))} left, {detail}"
            bar(done, total, detail)

        found = calibration(
            source,
            target,
            [str(text) for text in texts],
            type=kind,
            tokens=calibration_tokens,
            memory=memory,
            threads=threads,
            progress=left,
            **options,
        )
        click.echo(printable(found.statement()), err=True)
        started, first = time.monotonic(), -1
        try:
            found.run(left)
        except KeyboardInterrupt:
            if found.folder.is_dir():
                click.echo(
                    f"\nStopped. {printable(str(found.folder))} keeps what is finished: the same "
                    "command goes on from there.",
                    err=True,
                )
            raise


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
