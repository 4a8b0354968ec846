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

import pytest
from program import PROGRAM, SECONDS

PROGRAMS = {"rwkv-edge": shlex.join(PROGRAM), "python3": shlex.quote(sys.executable)}
DOCS = Path(__file__).parents[2] / "docs"
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
