# SPDX-License-Identifier: Apache-2.0
"""The examples of the documentation run, and print what stands under them."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from program import PROGRAM, SECONDS, run
from rwkv_edge import State
from rwkv_edge.model import bundled_model

PROGRAMS = {"rwkv-edge": shlex.join(PROGRAM), "python3": shlex.quote(sys.executable)}
DOCS = Path(__file__).parents[2] / "docs"
README = (DOCS.parent / "README.md").read_text("utf-8")
BLOCK = re.compile(r"^```(python|console|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run_console(text: str) -> None:
    """Each command after `$ ` prints what follows it, where `...` stands for anything."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        line = re.sub("rwkv-edge|python3", lambda found: PROGRAMS[found[0]], command)
        done = subprocess.run(
            line, shell=True, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), command
        pattern = ".*".join(map(re.escape, expected.rstrip("\n").split("...")))
        assert re.fullmatch(pattern, done.stdout.rstrip("\n"), re.DOTALL), done.stdout


@pytest.mark.parametrize(
    "name", ["batch.md", "generation.md", "models.md", "quantization.md", "states.md"]
)
def test_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall((DOCS / name).read_text("utf-8"))
    assert blocks
    names: dict[str, object] = {}
    printed = io.StringIO()
    for kind, text in blocks:
        if kind == "python":
            printed = io.StringIO()
            with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
                warnings.simplefilter("ignore", UserWarning)  # the demo is quantized a second time
                exec(compile(text, name, "exec"), names)
        elif kind == "text":  # what the Python before it prints
            assert printed.getvalue() == text
        else:
            run_console(text)


def test_the_chat_in_the_readme() -> None:
    """Line for line, where the likeliest token is always taken."""
    (block,) = re.findall(r"^    \$ .*rwkv-edge chat\n((?:    .+\n)+)", README, re.MULTILINE)
    lines = [line[4:] for line in block.splitlines()]
    asked = [line[2:] for line in lines if line.startswith("> ")]
    done = run("chat", "--temperature", "0", stdin="".join(f"{text}\n" for text in asked))
    assert (done.returncode, done.stderr) == (0, b"")
    answers = [line for line in lines if not line.startswith("> ")]
    assert len(answers) == len(asked) > 3
    assert done.stdout.decode().splitlines() == answers


def test_the_python_in_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").symlink_to(bundled_model())
    first, second = (text for kind, text in BLOCK.findall(README) if kind == "python")
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(first, "README.md", "exec"), names)
    assert printed.getvalue().strip()
    assert names["logits"].shape == (names["model"].n_vocab,)
    assert State.load(tmp_path / "here.state").tokens == names["session"].tokens
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(second, "README.md", "exec"), names)
    numbers = re.findall(r"^(\d) \S", printed.getvalue(), re.MULTILINE)
    assert set(numbers) == set("01234567")
