# SPDX-License-Identifier: Apache-2.0
"""The program `rwkv-edge`."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import click

from . import __version__, _core
from . import bench as benchmark
from .chat import PARAGRAPH_STOPS, TURN_STOPS, Conversation
from .convert import convert as convert_model
from .convert import quantize as quantize_model
from .convert.quantize import ALIASES, FILE_TYPES
from .generation import Sampling
from .model import Model, Session, bundled_model
from .terminal import Progress, error_text, prepare_streams, talk, write
from .tokenizer import END_OF_TEXT

INTERRUPTED = 130  # as the shell has it for a program that Ctrl-C ended
DEFAULTS = inspect.signature(Session.generate).parameters
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
        "-t", "--threads", type=click.IntRange(min=1), help="Threads; by default one per core."
    )
    return model_argument(threads(command))


def model_argument(command: Command) -> Command:
    return click.argument("model", required=False, type=click.Path(path_type=Path))(command)


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
    system: str | None,
    paragraphs: bool,
    **sampling: Any,
) -> None:
    """Talk with a model; /help inside lists the commands."""
    loaded = Model(model, threads=threads)
    stops = TURN_STOPS if paragraphs else PARAGRAPH_STOPS
    conversation = Conversation(loaded, system=system, stop=stops)
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
@sampling_options
def generate(
    *, model: Path | None, threads: int | None, prompt: str, stop: tuple[str, ...], **sampling: Any
) -> None:
    """Write what follows a prompt. An empty one begins a document."""
    loaded = Model(model, threads=threads)
    text = sys.stdin.buffer.read() if prompt == "-" else prompt
    session = loaded.session()
    with Progress("reading") as bar:
        session.feed(loaded.tokenizer.encode(text) or [END_OF_TEXT], progress=bar)
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
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--type", "kind", type=TYPE, default="f16", show_default=True)
@type_options
@click.option(
    "--vocab",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="World vocabulary or sentencepiece model; by default World, from rwkv-edge[convert].",
)
@click.option("--license", metavar="NAME", help="Licence of the weights, to be kept in the file.")
def convert(
    *,
    source: Path,
    target: Path,
    kind: str,
    head_type: str | None,
    embd_type: str | None,
    vocab: Path | None,
    license: str | None,
) -> None:
    """Turn a .pth or .safetensors checkpoint into a GGUF file."""
    with Progress("converting") as bar:
        convert_model(
            source,
            target,
            type=kind,
            head_type=head_type,
            embd_type=embd_type,
            vocab=vocab,
            license=license,
            progress=bar,
        )


@main.command()
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--type", "kind", type=TYPE, required=True)
@type_options
def quantize(
    *, source: Path, target: Path, kind: str, head_type: str | None, embd_type: str | None
) -> None:
    """Store the weights of a GGUF file in a smaller type."""
    with Progress("quantizing") as bar:
        quantize_model(
            source, target, type=kind, head_type=head_type, embd_type=embd_type, progress=bar
        )


@main.command()
@model_argument
def info(model: Path | None) -> None:
    """Say what a model file holds."""
    file = _core.ModelFile(str(model or bundled_model()))
    for name, text in describe(file):
        click.echo(f"{name:<14}{text}")


def describe(file: _core.ModelFile) -> list[tuple[str, str]]:
    """The lines of `info`, each with its name."""
    arch = file.get("general.architecture")
    if not isinstance(arch, str):
        raise _core.FormatError(f"{file.path}: not a model (no key general.architecture)")
    keys = ("block_count", "embedding_length", "wkv.head_size", "feed_forward_length")
    layers, width, size, ffn = (int(file.get(f"{arch}.{key}", 0)) for key in keys)
    heads = f"{width // size} heads of {size}" if size else "heads unknown"
    values = sum(math.prod(tensor.shape) for tensor in file.tensors)
    nbytes = sum(tensor.nbytes for tensor in file.tensors)
    licence = [file.get(f"general.license{part}") for part in ("", ".name", ".link")]
    return [
        ("file", file.path),
        ("size", f"{amount(file.size)}, GGUF v{file.version}"),
        ("name", file.get("general.name", "none")),
        ("architecture", arch),
        ("shape", f"{layers} layers, width {width}, {heads}, feed-forward {ffn}"),
        ("tokenizer", describe_tokenizer(file)),
        ("parameters", f"{values:,}"),
        ("bits/weight", f"{8 * nbytes / values:.2f}" if values else "no weights"),
        *describe_types(file),
        ("state", f"{amount(4 * layers * width * (2 + size))} per session"),
        ("licence", ", ".join(text for text in licence if text) or "not stated"),
        ("kernels", f"{_core.isa()} (this CPU runs {', '.join(_core.isa_levels())})"),
    ]


def describe_tokenizer(file: _core.ModelFile) -> str:
    kind = file.get("tokenizer.ggml.model", "none")
    if file.get("rwkv_edge.sentencepiece_model") is not None:
        kind = "sentencepiece"
    name = {"rwkv": "RWKV World"}.get(kind, kind)
    return f"{name}, {len(file.get('tokenizer.ggml.tokens', [])):,} tokens"


def describe_types(file: _core.ModelFile) -> list[tuple[str, str]]:
    """One line per type, that with most bytes first."""
    groups: dict[str, list[_core.TensorInfo]] = defaultdict(list)
    for tensor in file.tensors:
        groups[tensor.type].append(tensor)
    sizes = {kind: sum(tensor.nbytes for tensor in groups[kind]) for kind in groups}
    return [
        (
            kind,
            f"{len(groups[kind])} tensors, "
            f"{sum(math.prod(tensor.shape) for tensor in groups[kind]):,} values, "
            f"{amount(sizes[kind])}",
        )
        for kind in sorted(groups, key=lambda kind: -sizes[kind])
    ]


def amount(nbytes: float) -> str:
    """A number of bytes as people read it."""
    unit = next((unit for unit in (1, 1e3, 1e6) if nbytes < 1000 * unit), 1e9)
    name = {1: "bytes", 1e3: "KB", 1e6: "MB", 1e9: "GB"}[unit]
    return f"{nbytes / unit:.3g} {name}"


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
    help="Numbers of threads; by default one per core.",
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

    For writing, which reads every weight for every token, also what share that is of the rate at
    which this machine reads memory. Each figure is the median of the repeats.
    """
    path = model or bundled_model()
    counts = threads or [Model(path).threads]
    with Progress("measuring") as bar:
        results = list(
            benchmark.measure(
                path, counts, prompt=prompt, generated=max_tokens, repeats=repeats, progress=bar
            )
        )
    if as_json:
        rows = [dataclasses.asdict(r) | {"bandwidth_share": r.bandwidth_share} for r in results]
        click.echo(json.dumps({"model": str(path), "isa": _core.isa(), "results": rows}, indent=2))
        return
    click.echo(f"{path}, {_core.isa()} kernels, median of {repeats}")
    for r in results:
        line = f"{r.threads:3} threads  {r.test:<8} {r.tokens_per_second:9.2f} tokens/s"
        if r.bandwidth_share is not None:
            line += (
                f"  {r.read_gb_per_second:6.2f} GB/s, {r.bandwidth_share:.0%} of "
                f"{r.bandwidth_gb_per_second:.2f} GB/s"
            )
        click.echo(line)
