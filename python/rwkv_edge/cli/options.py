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


def model_and_threads(command: Command) -> Command:
    threads = click.option(
        "-t",
        "--threads",
        type=click.IntRange(min=1),
        help="Threads. Default: one for each idle core, at most 8; one for a small model.",
    )
    return model_argument(threads(command))


def text_options(command: Command) -> Command:
    """What a model needs beside its weights to read and write text."""
    command = click.option(
        "--state", type=FILE, metavar="FILE", help="Saved state or tuned state to begin with."
    )(command)
    return click.option(
        "--vocab",
        type=FILE,
        metavar="FILE",
        help="Vocabulary file, for a model file that holds none.",
    )(command)


def open_model(path: Path | None, vocab: Path | None, threads: int | None) -> Model:
    model = Model(path, vocab=vocab, threads=threads)
    if model.hint is not None:
        click.echo(printable(model.hint), err=True)
    return model


def sampling_options(command: Command) -> Command:
    """The options of `Session.generate`, with its defaults."""
    kinds: dict[str, tuple[click.ParamType[Any], str]] = {
        "temperature": (
            click.FloatRange(min=0),
            "Randomness. 0 always takes the likeliest token; 1 samples as the model was trained.",
        ),
        "top-k": (
            click.IntRange(0, 2**31 - 1),
            "Sample among the K likeliest tokens. 0 means all.",
        ),
        "top-p": (
            click.FloatRange(0, 1),
            "Sample among the likeliest tokens, as many as together have this probability.",
        ),
        "presence-penalty": (
            click.FLOAT,
            "Subtract this from the logit of every token that has occurred.",
        ),
        "frequency-penalty": (
            click.FLOAT,
            "Subtract this for each time that the token has occurred.",
        ),
        "penalty-decay": (
            click.FloatRange(0, 1),
            "Each new token multiplies all counts by this. 1 never forgets.",
        ),
        "seed": (
            click.IntRange(0, 2**64 - 1),
            "Seed of the sampling. The same seed gives the same text.",
        ),
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
        help="Transpose ffn.value. A token then reads only the rows of activations that are not "
        "zero. This is faster where relu^2 makes most of them zero. llama.cpp does not open such "
        "a file.",
    )(command)
    for part, what in (("embd", "the embedding"), ("head", "the output matrix")):
        text = f"Weight type of {what}. Default: q8_0 in 4- and 5-bit files, else that of --type."
        command = click.option(f"--{part}-type", type=TYPE, metavar="TYPE", help=text)(command)
    return command
