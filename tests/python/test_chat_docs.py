# SPDX-License-Identifier: Apache-2.0
"""The examples of docs/chat.md do what stands there."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rwkv_edge import cli
from rwkv_edge.chat import load_template
from rwkv_edge.cli import terminal
from rwkv_edge.cli.lines import ReadLine
from scripted import byte_tokens, play, talkative_model

TEXT = (Path(__file__).parents[2] / "docs" / "chat.md").read_text("utf-8")
# A block of four blanks that begins with a command, and what the model says in it.
SESSIONS = re.findall(
    r"^(?:<!-- says (.*) -->\n\n)?    \$ rwkv-edge (chat.*)\n((?:    .*\n|\n(?=    ))*)",
    TEXT,
    re.MULTILINE,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(written: str) -> str:
    """What a terminal shows of it: without colours, and words taken back to the next line."""
    text = ""
    for back, rest in re.findall(
        r"(?:\033\[(\d+)D\033\[K)?([^\033]*)", re.sub(r"\033\[\d*m", "", written)
    ):
        text = (text[: -int(back)] if back else text) + rest
    return "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")


@pytest.mark.parametrize(("says", "command", "block"), SESSIONS, ids=range(len(SESSIONS)))
def test_a_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, command: str, block: str
) -> None:
    expected = "\n".join(line[4:] for line in block.split("\n")).strip("\n")
    typed = re.findall(r"^[>.](?: (.*))?$", expected, re.MULTILINE)
    # What `/load` shows begins with the same sign, and was not typed.
    typed = [line for i, line in enumerate(typed) if not (i and typed[i - 1].startswith("/load"))]
    screen = Terminal()

    @contextlib.contextmanager
    def line_editing() -> Iterator[ReadLine]:
        def read(prompt: str, _text: str = "") -> str:
            if not typed:
                raise EOFError
            line: str = typed.pop(0)
            screen.write(f"{prompt}{line}\n")
            return line

        yield read

    if says:
        tokens: list[int] = []
        for text in json.loads(says):
            tokens += [*byte_tokens(text), *([] if text.endswith(("</think", "User:")) else [0])]
        play(monkeypatch, tokens)
        talkative_model(tmp_path).rename(tmp_path / command.split()[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(terminal.Progress, "DELAY", 1e9)
    monkeypatch.setattr("rwkv_edge.cli.talk.line_editing", line_editing)
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, screen)
    cli.main.main(command.split(), prog_name="rwkv-edge", standalone_mode=False)
    assert shown(screen.getvalue()) == expected


def test_the_program_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    exec(program, {})
    assert capsys.readouterr().out == "Nice to meet you, Anna!\nYour name is Anna.\n"


def test_the_template_in_it(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```json\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    (tmp_path / "own.json").write_text(text)
    template = load_template(tmp_path / "own.json")
    assert template.asked("hi") == "Question: hi\n\nAnswer:"
    assert template.answered("ho") == " ho\n\n"


def test_every_session_is_found() -> None:
    assert len(SESSIONS) == TEXT.count("$ rwkv-edge chat") == 7
