# SPDX-License-Identifier: Apache-2.0
"""The program `rwkv-edge`."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import click

from . import __version__, _core
from .chat import TEMPLATES, Conversation
from .generation import Answer, Sampling
from .model import Model, bundled_model
from .model_file import ALIASES, FILE_TYPES
from .state import State
from .terminal import Progress, error_text, prepare_streams, talk, write

FILE = click.Path(path_type=Path)
INTERRUPTED = 130  # as the shell has it for a program that Ctrl-C ended
DEFAULTS = inspect.signature(Answer).parameters
TYPE = click.Choice([*FILE_TYPES, *ALIASES], case_sensitive=False)
Command = Callable[..., Any]


class Program(click.Group):
    """Errors that a user can cause end the program with one line, and not with a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            prepare_streams()
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # click ends quietly
        except (_core.UnsupportedError, OSError, ValueError, MemoryError) as error:
            raise click.ClickException(error_text(error)) from error
        except KeyboardInterrupt:
            if sys.stderr.isatty():
                click.echo(err=True)
            ctx.exit(INTERRUPTED)


def model_and_threads(command: Command) -> Command:
    threads = click.option(
        "-t",
        "--threads",
        type=click.IntRange(min=1),
        help="Threads; by default one for each core, at most 8.",
    )
    return model_argument(threads(command))


def text_options(command: Command) -> Command:
    """What a model needs beside its weights to read and write text."""
    command = click.option(
        "--state", type=FILE, metavar="FILE", help="Where to begin: a saved state or a tuned one."
    )(command)
    return click.option(
        "--vocab", type=FILE, metavar="FILE", help="Vocabulary, where the model file has none."
    )(command)


def open_model(path: Path | None, vocab: Path | None, threads: int | None) -> Model:
    model = Model(path, vocab=vocab, threads=threads)
    if model.hint is not None:
        click.echo(model.hint, err=True)
    return model


def model_argument(command: Command) -> Command:
    return click.argument("model", required=False, type=FILE)(command)


def sampling_options(command: Command) -> Command:
    """The options of `Session.generate`, with its defaults."""
    kinds: dict[str, tuple[click.ParamType[Any], str]] = {
        "temperature": (click.FloatRange(min=0), "Below 1 more certain, above wilder; 0 is fixed."),
        "top-k": (click.IntRange(min=0), "Choose among the K likeliest tokens; 0: all."),
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


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rwkv-edge")
def main() -> None:
    """RWKV language models on ordinary processors.

    Where no MODEL is named, the small one that comes with the program is used.
    """


@main.command()
@model_and_threads
@click.option("--system", metavar="TEXT", help="What the model is told before the conversation.")
@click.option("--paragraphs", is_flag=True, help="For models that answer in several paragraphs.")
@click.option(
    "--template",
    type=click.Choice(list(TEMPLATES)),
    help="How turns are written; raven for models of the Pile, else world.",
)
@text_options
@sampling_options
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    metavar="N",
    help="Longest answer.",
)
def chat(
    *,
    model: Path | None,
    threads: int | None,
    vocab: Path | None,
    state: Path | None,
    system: str | None,
    paragraphs: bool,
    template: str | None,
    **sampling: Any,
) -> None:
    """Talk with a model; /help inside lists the commands."""
    loaded = open_model(model, vocab, threads)
    conversation = Conversation(
        loaded,
        system=system,
        paragraphs=paragraphs,
        template=template,
        state=None if state is None else State.load(state),
    )
    if sys.stdin.isatty() and sys.stdout.isatty():
        click.echo(f"{loaded.path.name}. /help lists the commands, Ctrl-D leaves.\n")
    talk(conversation, cast(Sampling, sampling))


@main.command()
@model_and_threads
@click.option(
    "-p", "--prompt", required=True, metavar="TEXT", help="What to go on from; - : stdin."
)
@click.option(
    "-n",
    "--max-tokens",
    type=click.IntRange(min=0),
    show_default=True,
    metavar="N",
    default=DEFAULTS["max_tokens"].default,
    help="Tokens to write at most.",
)
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; repeatable.")
@text_options
@sampling_options
def generate(
    *,
    model: Path | None,
    threads: int | None,
    vocab: Path | None,
    state: Path | None,
    prompt: str,
    stop: tuple[str, ...],
    **sampling: Any,
) -> None:
    """Write what follows a prompt. An empty one begins a document."""
    loaded = open_model(model, vocab, threads)
    text = sys.stdin.buffer.read() if prompt == "-" else prompt
    session = loaded.session(None if state is None else State.load(state))
    tokens = loaded.tokenizer.encode(text)
    if tokens:
        with Progress("reading") as bar:
            session.read(tokens, progress=bar)
    with closing(session.generate(stop=stop, **cast(Sampling, sampling))) as pieces:
        for piece in pieces:
            write(piece)
    if sys.stdout.isatty():
        click.echo()


def type_options(command: Command) -> Command:
    for part, what in (("embd", "the embedding"), ("head", "the output matrix")):
        text = f"Type of {what}; q8_0 in 4- and 5-bit files, else as the rest."
        command = click.option(f"--{part}-type", type=TYPE, metavar="TYPE", help=text)(command)
    return command


@main.command()
@click.argument("source", metavar="IN", type=FILE)
@click.argument("target", metavar="OUT", type=FILE)
@click.option(
    "--type", "kind", type=TYPE, help="By default f16, or the file's own where it is quantized."
)
@type_options
@click.option(
    "--vocab",
    type=FILE,
    metavar="FILE",
    help="Vocabulary; by default one beside IN, or World, from rwkv-edge[convert].",
)
@click.option("--license", metavar="NAME", help="Licence of the weights, to be kept in the file.")
@click.option("--state", type=FILE, metavar="FILE", help="Tuned state to begin with (.pth, .st).")
@click.option("--adapter", type=FILE, metavar="FILE", help="LoRA, PISSA or MiSS, or peft's folder.")
@click.option("--alpha", type=float, metavar="A", help="Alpha of a LoRA that does not say it.")
@click.option("--adapter-init", type=FILE, metavar="FILE", help="What a PISSA began with.")
def convert(*, source: Path, target: Path, kind: str | None, **options: Any) -> None:
    """Turn a checkpoint into a GGUF file: .pth, .safetensors, .st, rwkv.cpp's .bin, or a folder
    of the Hugging Face hub."""
    from .convert import convert as convert_model

    with Progress("converting") as bar:
        convert_model(source, target, type=kind, progress=bar, **options)


@main.command()
@click.argument("source", metavar="IN", type=FILE)
@click.argument("target", metavar="OUT", type=FILE)
@click.option("--type", "kind", type=TYPE, required=True)
@type_options
def quantize(
    *, source: Path, target: Path, kind: str, head_type: str | None, embd_type: str | None
) -> None:
    """Store the weights of a GGUF file in a smaller type."""
    from .convert import quantize as quantize_model

    with Progress("quantizing") as bar:
        quantize_model(
            source, target, type=kind, head_type=head_type, embd_type=embd_type, progress=bar
        )


@main.command()
@model_argument
def info(model: Path | None) -> None:
    """Say what a file is: a model in any form, a state, an adapter or a vocabulary."""
    from .describe import describe

    sentence, lines = describe(model or bundled_model())
    click.echo(sentence)
    for name, text in lines:
        click.echo(f"{name:<14}{text}")


def thread_counts(_ctx: object, _param: object, text: str | None) -> list[int]:
    counts = text.split(",") if text else []
    if not all(count.isdecimal() and int(count) > 0 for count in counts):
        raise click.BadParameter(f"'{text}' is no list of numbers of threads, such as 1,2")
    return [int(count) for count in counts]


@main.command()
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
    from . import bench as benchmark

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
    click.echo(f"{path}, {_core.isa()} kernels, median of {repeats}")
    for r in results:
        if r.test.startswith("tg"):
            bandwidth = r.limits.bandwidth_gb
            share = f"{r.share * bandwidth:6.2f} GB/s, {r.share:.0%} of {bandwidth:.2f} GB/s"
        else:
            peaks = f"f32 {r.limits.float_gops:.1f}, int8 {r.limits.int8_gops:.1f} GOPS"
            share = f"{r.share:.0%} of the peak ({peaks})"
        rate = f"{r.tokens_per_second:9.2f} tokens/s"
        click.echo(f"{r.threads:3} threads  {r.test:<8} {rate}  {share}")
