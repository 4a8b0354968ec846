# SPDX-License-Identifier: Apache-2.0
"""The program `rwkv-edge`."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from importlib import import_module
from types import FrameType
from typing import Any

import click

from .. import __version__, _core
from .terminal import error_text, prepare_streams

COMMANDS = (
    "batch",
    "chat",
    "generate",
    "convert",
    "quantize",
    "info",
    "pull",
    "state",
    "tokenize",
    "embed",
    "serve",
    "bench",
    "perplexity",
    "imatrix",
)
INTERRUPTED = 130  # as the shell has it for a program that Ctrl-C ended
LOST_FILE = (
    "\nError: the model's file was cut short, or its disk failed, while it was in use; "
    "put the whole file back and start again\n"
)


class Program(click.Group):
    """Each command is a module here, imported when it is asked for.

    Errors that a user can cause end the program with one line, and not with a traceback.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f".{name}", __name__), name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            prepare_streams()
            _core.say_on_bus_error(LOST_FILE)
            with ended_by_signals():
                return super().invoke(ctx)
        except Ended as ended:
            signal.signal(ended.number, signal.SIG_DFL)
            signal.raise_signal(ended.number)
        except BrokenPipeError:
            raise  # click ends quietly
        except (_core.UnsupportedError, OSError, ValueError, MemoryError) as error:
            raise click.ClickException(error_text(error)) from error
        except KeyboardInterrupt:
            if sys.stderr.isatty():
                click.echo(err=True)
            ctx.exit(INTERRUPTED)


if sys.platform == "win32":
    HANG_UP = signal.SIGBREAK
else:
    HANG_UP = signal.SIGHUP


class Ended(BaseException):
    """A signal asked the program to end."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP (on Windows SIGBREAK, which a window that is closed sends too) end the
    program as an exception does: nothing half-written stays behind.
    One that is ignored, as after `nohup`, stays so.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one must not stop the cleaning up
        raise Ended(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, HANG_UP):
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rwkv-edge")
def main() -> None:
    """Run RWKV language models on the CPU.

    MODEL is a file or a name such as g1:0.4b (see `rwkv-edge pull`). Without MODEL, a command uses
    the small demo model that comes with the program.
    """
