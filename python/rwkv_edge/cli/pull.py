# SPDX-License-Identifier: Apache-2.0
"""`rwkv-edge pull`, and what other commands do with a model's name."""

from __future__ import annotations

import time
from collections import deque
from importlib.util import find_spec
from pathlib import Path

import click

from .. import hub
from ..files.form import amount, printable
from .terminal import Progress

WINDOW = 20  # seconds that a speed is the average of
VOCABULARY = "pip install 'rwkv-edge[convert]', which brings the vocabulary; then "


@click.command()
@click.argument("name", required=False)
def pull(name: str | None) -> None:
    """Bring a model here, and print where its file lies.

    NAME is hf:org/repo/file or ms:org/repo/file (ModelScope), perhaps with @revision, or a short
    name. Without NAME, the short names are listed. Where no file is named, those of the repository
    are listed. A pull that was stopped goes on where it stopped.

    The file lies in the cache of the Hugging Face hub. Other commands take the same names as MODEL.
    """
    if name is None:
        for alias, (repo, file, *_) in hub.ALIASES.items():
            click.echo(f"{alias:<11} hf:{repo}/{file}")
        return
    path = fetched(name)
    click.echo(path)
    click.echo(printable(advice(name, path)), err=True)


def advice(name: str, path: Path) -> str:
    """What to do next with a file."""
    if path.suffix == ".gguf":
        return f"next: rwkv-edge chat {name}"
    missing = find_spec("pyrwkv_tokenizer") is None
    return (
        f"next: {VOCABULARY * missing}rwkv-edge chat {name}, or "
        f"rwkv-edge convert {name} {path.stem}.gguf --type q8_0 for a smaller and faster file"
    )


def fetched(name: str) -> Path:
    """Bring a file here with a line that shows how far it has come."""
    with Progress(f"pulling {printable(name)}" if len(name) < 16 else "pulling") as bar:
        speed = Speed()

        def progress(done: int, total: int) -> None:
            bar(done, total, speed(done, total, time.monotonic()))

        return hub.pull(name, progress=progress)


class Speed:
    """How fast bytes come, and how long the rest will take."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def __call__(self, done: int, total: int, now: float) -> str:
        """`now` in seconds; `done` is of all bytes, also of those that were here before."""
        if not self._seen or now - self._seen[-1][0] >= 0.1 or done == total:
            self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] >= WINDOW:
            self._seen.popleft()
        text = f"{amount(done)} of {amount(total)}"
        start, first = self._seen[0]
        if now - start < 0.5 or done <= first:
            return text
        rate = (done - first) / (now - start)
        return f"{text}, {amount(rate)}/s, {duration((total - done) / rate)} left"


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"
