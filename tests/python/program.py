# SPDX-License-Identifier: Apache-2.0
"""The program, run in pipes, and a model that never stops talking."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import tiny
from rwkv_edge import cli

PROGRAM = [sys.executable, "-m", "rwkv_edge"]
SECONDS = 300  # on an emulated CPU tens pass
GREEDY = ["--temperature", "0", "--max-tokens", "20"]


def run(*arguments: str | Path, stdin: str | bytes = "") -> subprocess.CompletedProcess[bytes]:
    """A program that runs in pipes."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    command = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(command, input=data, capture_output=True, timeout=SECONDS, check=False)


def commands() -> dict[str, click.Command]:
    context = click.Context(cli.main)
    found = {name: cli.main.get_command(context, name) for name in cli.main.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def endless_model(folder: Path, word: str = "a") -> Path:
    """A model that says one word for ever."""
    shape = tiny.SHAPES["d128"]
    made = tiny.tiny_model(shape, "f32", 1)
    token = 1 + ord(word[0])
    if len(word.encode()) > 1:
        tiny.put_vocabulary(made.file, shape.vocab, [word.encode()])
        token = 262  # the first behind those that every tiny model has
    first = np.eye(1, shape.width, dtype=np.float32)
    head = np.zeros((shape.vocab, shape.width), np.float32)
    head[token] = 50 * first
    for name, data in (
        ("output_norm.weight", 0 * first),
        ("output_norm.bias", first),
        ("output.weight", head),
    ):
        made.file.tensor(name).data = data.tobytes()
    return tiny.write(folder, "endless.gguf", made)
