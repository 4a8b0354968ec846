# SPDX-License-Identifier: Apache-2.0
"""The program `rwkv-edge`."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

from .. import __version__, _core
from .terminal import error_text, prepare_streams

COMMANDS = ("chat", "generate", "convert", "quantize", "info", "bench")
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
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # click ends quietly
        except (_core.UnsupportedError, OSError, ValueError, MemoryError) as error:
            raise click.ClickException(error_text(error)) from error
        except KeyboardInterrupt:
            if sys.stderr.isatty():
                click.echo(err=True)
            ctx.exit(INTERRUPTED)


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rwkv-edge")
def main() -> None:
    """RWKV language models on ordinary processors.

    Where no MODEL is named, the small one that comes with the program is used.
    """
