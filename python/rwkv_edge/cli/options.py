# SPDX-License-Identifier: Apache-2.0
"""Arguments and options that several commands have."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import click
from click.core import ParameterSource

from .. import _core
from ..files.form import ALIASES, FILE_TYPES, printable, read_bytes
from ..generation import Answer, Sampling
from ..model import Model
from ..state import State

FILE = click.Path(path_type=Path)
MOST_BYTES = 1 << 30  # of a text
DEFAULTS = inspect.signature(Answer).parameters
TYPE = click.Choice([*FILE_TYPES, *ALIASES], case_sensitive=False)
Command = Callable[..., Any]
# A file, or a name that `local` knows.
model_argument = click.argument("model", required=False, type=FILE)
vocab_option = click.option(
    "--vocab", type=FILE, metavar="FILE", help="Vocabulary file, if the model file has none."
)
device_option = click.option(
    "--device",
    metavar="DEVICE",
    help="cpu, cuda for a GPU, or cuda:1 for the second one. Default: RWKV_EDGE_DEVICE, or cpu.",
)


def model_and_threads(command: Command) -> Command:
    threads = click.option(
        "-t",
        "--threads",
        type=click.IntRange(min=1),
        help="Threads. Default: one for each idle core, at most 8; one for a small model.",
    )
    return model_argument(threads(device_option(command)))


@dataclass(frozen=True)
class Writer:
    """What commands that write text have in common: the model, where its text begins, and how it
    goes on."""

    path: Path | None
    threads: int | None
    device: str | None
    vocab: Path | None
    state: Path | None
    any_model: bool
    lookup: int
    sampling: Sampling
    named: frozenset[str]
    """Of the sampling, what the user named."""

    def open(self) -> tuple[Model, State | None]:
        """The model, and the state to begin with."""
        model = open_model(self.path, self.vocab, self.threads, self.device)
        if self.state is None:
            return model, None
        return model, State.load(self.state, any_model=self.any_model)

    def sampling_for(self, model: Model) -> Sampling:
        """What the user named, then what the model's file recommends, then the defaults."""
        found: dict[str, Any] = {**self.sampling}
        found |= {k: v for k, v in model.recommended_sampling.items() if k not in self.named}
        return cast(Sampling, found)


def writing_options(least: int, most: int, help: str) -> Callable[[Command], Command]:
    """MODEL and the options of commands that write text, which get them as a Writer. `least`,
    `most` and `help` are of --max-tokens: its smallest value, its default, and what it is."""
    limit = click.option(
        "-n",
        "--max-tokens",
        type=click.IntRange(min=least),
        default=most,
        show_default=True,
        metavar="N",
        help=help,
    )
    state = click.option(
        "--state", type=FILE, metavar="FILE", help="Saved state or tuned state to begin with."
    )
    any_model = click.option(
        "--any-model", is_flag=True, help="Accept a --state of another model of the same shape."
    )
    lookup = click.option(
        "--lookup",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        metavar="N",
        help="Guess up to N tokens a step from the text so far. The result is the same. A text "
        "that repeats itself comes faster.",
    )

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_writer(
            *,
            model: Path | None,
            threads: int | None,
            device: str | None,
            vocab: Path | None,
            state: Path | None,
            any_model: bool,
            lookup: int,
            **rest: Any,
        ) -> Any:
            names = ("max_tokens", *(name.replace("-", "_") for name in SAMPLING))
            sampling = checked({name: rest.pop(name) for name in names})
            source = click.get_current_context().get_parameter_source
            named = frozenset(name for name in names if source(name) != ParameterSource.DEFAULT)
            writer = Writer(
                model, threads, device, vocab, state, any_model, lookup, sampling, named
            )
            return command(writer, **rest)

        made: Command = sampling_options(with_writer)
        for option in (any_model, state, vocab_option, lookup, limit, model_and_threads):
            made = option(made)
        return made

    return decorate


def local(path: Path) -> Path:
    """The file that a user means: a path, or a name as `rwkv-edge pull` takes it, whose file is
    brought here first where it is missing."""
    text = str(path)
    if ":" not in text or path.exists():
        return path
    from .. import hub

    name = hub.parse(text)
    if name is None:
        return path
    from .pull import fetched

    return hub.cached(name) or fetched(text)


def open_model(
    path: Path | None, vocab: Path | None, threads: int | None, device: str | None
) -> Model:
    path = None if path is None else local(path)
    model = Model(path, vocab=vocab, threads=threads, device=device)
    if model.device.startswith("cpu") and model.hint is not None:
        click.echo(printable(model.hint), err=True)
    return model


SAMPLING: dict[str, tuple[click.ParamType[Any], str]] = {
    "temperature": (
        click.FloatRange(min=0),
        "Randomness. 0 always takes the likeliest token; 1 samples as the model was trained.",
    ),
    "top-k": (click.IntRange(0, 2**31 - 1), "Sample among the K likeliest tokens. 0 means all."),
    "top-p": (
        click.FloatRange(0, 1),
        "Sample among the likeliest tokens, as many as together have this probability.",
    ),
    "min-p": (
        click.FloatRange(0, 1),
        "Leave out tokens below this share of the likeliest one's probability.",
    ),
    "typical-p": (
        click.FloatRange(0, 1),
        "Sample among the tokens of typical probability. 1 means off.",
    ),
    "presence-penalty": (
        click.FLOAT,
        "Subtract this from the logit of every token that has occurred.",
    ),
    "frequency-penalty": (click.FLOAT, "Subtract this for each time that the token has occurred."),
    "penalty-decay": (
        click.FloatRange(0, 1),
        "Each new token multiplies all counts by this. 1 never forgets.",
    ),
    "penalty-window": (
        click.IntRange(0, 2**31 - 1),
        "Apply penalties to the last N tokens only. 0 means all.",
    ),
    "seed": (
        click.IntRange(0, 2**64 - 1),
        "Seed of the sampling. The same seed gives the same text.",
    ),
}


def sampling_options(command: Command) -> Command:
    """The options of `Session.generate`, with its defaults."""
    for name, (kind, text) in reversed(SAMPLING.items()):
        default = DEFAULTS[name.replace("-", "_")].default
        option = click.option(f"--{name}", type=kind, default=default, show_default=True, help=text)
        command = option(command)
    return command


def checked(sampling: dict[str, Any]) -> Sampling:
    """Refuses options that no text can be made with, before a model is opened."""
    options = {name: value for name, value in sampling.items() if name != "max_tokens"}
    try:
        _core.Sampler(**{**options, "seed": options["seed"] or 0})
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    return cast(Sampling, sampling)


def changed(sampling: Sampling, name: str, value: str) -> Sampling:
    """Sampling with one option changed: its name and value as on the command line, or `none` for a
    random seed. Raises ValueError."""
    kinds = {"max-tokens": click.IntRange(min=1), **{each: SAMPLING[each][0] for each in SAMPLING}}
    if name not in kinds:
        raise ValueError(f"{name}: no such option, expected one of {', '.join(kinds)}")
    try:
        new = None if (name, value) == ("seed", "none") else kinds[name].convert(value, None, None)
        return checked({**sampling, name.replace("-", "_"): new})
    except click.UsageError as error:
        raise ValueError(f"{name}: {error.message}") from None


def read_prompt() -> bytes:
    """All of stdin but for one newline at its end, which `echo` and editors add."""
    return sys.stdin.buffer.read().removesuffix(b"\n")


def texts_options(command: Command) -> Command:
    """MODEL, and texts from arguments, files and stdin, which the command gets as `texts`."""
    prompt = click.option(
        "-p",
        "--prompt",
        multiple=True,
        metavar="TEXT",
        help="A text; - : stdin, less a last newline. Repeatable.",
    )
    file = click.option(
        "-f",
        "--file",
        multiple=True,
        type=FILE,
        metavar="FILE",
        help="A text in a file. Repeatable.",
    )
    lines = click.option("--lines", is_flag=True, help="Each line is a text, but for empty ones.")

    @functools.wraps(command)
    def with_texts(
        *, prompt: tuple[str, ...], file: tuple[Path, ...], lines: bool, **rest: Any
    ) -> Any:
        texts = [
            read_prompt() if text == "-" else text.encode("utf-8", "surrogateescape")
            for text in prompt
        ]
        texts += [read_bytes(path, MOST_BYTES, "a text") for path in file]
        if not texts:
            raise click.UsageError("no text: name one with -p TEXT or -f FILE")
        if lines:
            texts = [line for text in texts for line in text.splitlines() if line.strip()]
        return command(texts=texts, **rest)

    return model_and_threads(vocab_option(prompt(file(lines(with_texts)))))


def type_options(command: Command) -> Command:
    command = click.option(
        "--sparse-ffn",
        is_flag=True,
        help="Transpose ffn.value. A token then reads only the rows of activations that are not "
        "zero. This is faster where relu^2 makes most of them zero. llama.cpp does not open such "
        "a file.",
    )(command)
    for part, what in (("embd", "the embedding"), ("head", "the output matrix")):
        text = f"Weight type of {what}. Default: more bits in files of 3 to 5 bits."
        command = click.option(f"--{part}-type", type=TYPE, metavar="TYPE", help=text)(command)
    return command
