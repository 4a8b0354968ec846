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
from program import PROGRAM, SECONDS

DOCS = Path(__file__).parents[2] / "docs"
# A block of Python and perhaps one of what it prints, or commands and what they print.
EXAMPLE = re.compile(
    r"^```(python|console)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE
)


def run_console(text: str) -> None:
    """Each command after `$ ` prints what follows it, where `...` stands for anything."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        line = command.replace("rwkv-edge", shlex.join(PROGRAM))
        line = line.replace("python3", shlex.quote(sys.executable))
        done = subprocess.run(
            line, shell=True, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), command
        pattern = ".*".join(map(re.escape, expected.rstrip("\n").split("...")))
        assert re.fullmatch(pattern, done.stdout.rstrip("\n"), re.DOTALL), done.stdout


@pytest.mark.parametrize("name", ["generation.md", "states.md"])
def test_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (DOCS / name).read_text("utf-8")
    names: dict[str, Any] = {"__name__": "example"}
    found = list(EXAMPLE.finditer(text))
    assert found
    for example in found:
        kind, body, output = example.groups()
        if kind == "console":
            run_console(body)
            continue
        line = text.count("\n", 0, example.start(2))
        code = compile("\n" * line + body, str(DOCS / name), "exec")
        said = io.StringIO()
        with contextlib.redirect_stdout(said), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the demo is quantized a second time
            exec(code, names)
        if output is not None:
            assert said.getvalue() == output, f"{name}, line {line}"
