# SPDX-License-Identifier: Apache-2.0
"""Arguments and options that several commands have."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import click

from .. import _core
from ..files.form import ALIASES, FILE_TYPES, printable
from ..generation import Answer, Sampling
from ..model import Model

FILE = click.Path(path_type=Path)
DEFAULTS = inspect.signature(Answer).parameters
TYPE = click.Choice([*FILE_TYPES, *ALIASES], case_sensitive=False)
Command = Callable[..., Any]
model_argument = click.argument("model", required=False, type=FILE)


device_option = click.option(
    "--device",
    metavar="DEVICE",
    help="cpu, cuda, or cuda:1 for the second GPU; by default RWKV_EDGE_DEVICE, or cpu.",
)


def model_and_threads(command: Command) -> Command:
    threads = click.option(
        "-t",
        "--threads",
        type=click.IntRange(min=1),
        help="Threads; by default one for each idle core, at most 8, and one for a small model.",
    )
    return model_argument(threads(device_option(command)))


def text_options(command: Command) -> Command:
    """What a model needs beside its weights to read and write text."""
    command = click.option(
        "--state", type=FILE, metavar="FILE", help="Where to begin: a saved state or a tuned one."
    )(command)
    return click.option(
        "--vocab", type=FILE, metavar="FILE", help="Vocabulary, where the model file has none."
    )(command)


def open_model(
    path: Path | None, vocab: Path | None, threads: int | None, device: str | None
) -> Model:
    model = Model(path, vocab=vocab, threads=threads, device=device)
    if model.device.startswith("cpu") and model.hint is not None:
        click.echo(printable(model.hint), err=True)
    return model


def sampling_options(command: Command) -> Command:
    """The options of `Session.generate`, with its defaults."""
    kinds: dict[str, tuple[click.ParamType[Any], str]] = {
        "temperature": (click.FloatRange(min=0), "Below 1 more certain, above wilder; 0 is fixed."),
        "top-k": (click.IntRange(0, 2**31 - 1), "Choose among the K likeliest tokens; 0: all."),
        "top-p": (click.FloatRange(0, 1), "Choose among those that hold this probability."),
        "presence-penalty": (click.FLOAT, "Lower the logits of tokens that occurred."),
        "frequency-penalty": (click.FLOAT, "Lower them by this for each time."),
        "penalty-decay": (click.FloatRange(0, 1), "What a token leaves of each count."),
        "seed": (click.IntRange(0, 2**64 - 1), "Equal seeds give equal text."),
    }
    for name, (kind, text) in reversed(kinds.items()):
        default = DEFAULTS[name.replace("-", "_")].default
        option = click.option(f"--{name}", type=kind, default=default, show_default=True, help=text)
        command = option(command)
    return command


def checked(sampling: dict[str, Any]) -> Sampling:
    """Refuses options that no text can be made with, before a model is opened."""
    options = {name: value for name, value in sampling.items() if name != "max_tokens"}
    try:
        _core.Sampler(**{**options, "seed": options["seed"] or 0}, banned=[])
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    return cast(Sampling, sampling)


def type_options(command: Command) -> Command:
    command = click.option(
        "--sparse-ffn",
        is_flag=True,
        help="Transpose ffn.value: faster where relu^2 makes most activations zero. "
        "llama.cpp does not open such a file.",
    )(command)
    for part, what in (("embd", "the embedding"), ("head", "the output matrix")):
        text = f"Type of {what}; q8_0 in 4- and 5-bit files, else as the rest."
        command = click.option(f"--{part}-type", type=TYPE, metavar="TYPE", help=text)(command)
    return command
