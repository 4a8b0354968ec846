# SPDX-License-Identifier: Apache-2.0
"""The examples of the documentation run, and print what stands under them."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
# A block of Python, and perhaps one of what it prints.
EXAMPLE = re.compile(
    r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE
)


@pytest.mark.parametrize("name", ["generation.md"])
def test_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (DOCS / name).read_text("utf-8")
    names: dict[str, Any] = {"__name__": "example"}
    found = list(EXAMPLE.finditer(text))
    assert found
    for example in found:
        line = text.count("\n", 0, example.start(1))
        code = compile("\n" * line + example[1], str(DOCS / name), "exec")
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(code, names)
        if example[2] is not None:
            assert said.getvalue() == example[2], f"{name}, line {line}"
