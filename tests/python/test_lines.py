# SPDX-License-Identifier: Apache-2.0
"""What is typed in a chat: messages of several lines, names on Tab, the history, whole words."""

from __future__ import annotations

import os
import random
import re
import stat
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from rwkv_edge.cli import lines
from rwkv_edge.cli.lines import add_to_history, completions, messages, read_history
from rwkv_edge.cli.terminal import Wrap

# ---- messages -----------------------------------------------------------------------------------


def said(*typed: str) -> list[tuple[str, bool]]:
    source = iter(typed)

    def read(_prompt: str) -> str:
        try:
            return next(source)
        except StopIteration:
            raise EOFError from None

    return list(messages(read, interactive=False))


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["a", " /save x "], [("a", True), ("/save x", True)]),
        (["a\nb", "/*\n */"], [("a\nb", False), ("/*\n */", False)]),  # pasted
        (['"""a', "", 'b"""', "c"], [("a\n\nb", False), ("c", True)]),
        (['"""', "/exit", '"""  '], [("\n/exit\n", False)]),
        (['"""a"""', '""""""', '"""'], [("a", False), ("", False), ("", False)]),
        (['"""a', "b"], [("a\nb", False)]),  # and the end
        (['"""a\nb"""', '"""a\nb', "c"], [("a\nb", False), ('"""a\nb', False), ("c", True)]),
    ],
    ids=str,
)
def test_messages(typed: list[str], expected: list[tuple[str, bool]]) -> None:
    assert said(*typed) == expected


def test_ctrl_c_drops_a_block(capsys: pytest.CaptureFixture[str]) -> None:
    script: Iterator[str | type[BaseException]] = iter(
        ['"""a', KeyboardInterrupt, "b", KeyboardInterrupt, EOFError]
    )

    def read(_prompt: str) -> str:
        found = next(script)
        if isinstance(found, str):
            return found
        raise found

    assert list(messages(read, interactive=True)) == [("b", True)]
    assert capsys.readouterr().err == "\n(Ctrl-D or /exit leaves)\n" * 2


# ---- names --------------------------------------------------------------------------------------


def test_completions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "sub"))
    for name in ("my state", "my other", ".hidden", "x*", "\x1b[2J", "\udcff"):
        (tmp_path / name).touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "deep").touch()
    assert completions("/sa") == ["/save", "/save!"]
    assert completions("/save my s") == ["/save my state"]
    assert completions("/load my") == ["/load my other", "/load my state"]
    assert completions("/load ") == ["/load my other", "/load my state", "/load sub/", "/load x*"]
    assert completions("/load .h") == ["/load .hidden"]
    assert completions("/save! sub/") == ["/save! sub/deep"]
    assert completions("/save ~/d") == ["/save ~/deep"]
    assert completions(f"/save {tmp_path}/s") == [f"/save {tmp_path}/sub/"]
    assert completions("/think o") == ["/think off", "/think on"]
    assert completions("/set to") == ["/set top-k", "/set top-p"]
    for nothing in (
        "",
        "my",
        "/set x",
        "/set seed 1",
        "tell me /l",
        "/reset my",
        "/load no/",
        "/load ~nobody/",
        "/load z",
    ):
        assert completions(nothing) == []


# ---- the history --------------------------------------------------------------------------------


def test_the_history(tmp_path: Path) -> None:
    path = tmp_path / "state" / "rwkv-edge" / "history"
    assert read_history(path) == []
    add_to_history(path, ["one", "two\nlines \\n", ""])
    add_to_history(path, ["three é"])
    assert read_history(path) == ["one", "two\nlines \\n", "three é"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    add_to_history(path, [f"line {i}" for i in range(2 * lines.HISTORY_LINES)])
    found = read_history(path)
    assert len(found) == lines.HISTORY_LINES
    assert found[-1] == f"line {2 * lines.HISTORY_LINES - 1}"


@pytest.mark.posix("pipes with names")
def test_a_strange_history(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_bytes(b"\xff\x1b[2J\0\n\n" + b"x" * lines.HISTORY_BYTES + b"\nlast")
    assert [line[-4:] for line in read_history(path)] == ["xxxx", "last"]
    path.write_bytes(b"\xff\x1b[2J\0\n")
    assert read_history(path) == ["\ufffd\ufffd[2J\ufffd"]
    path.unlink()
    os.mkfifo(path)
    assert read_history(path) == []
    with pytest.raises(OSError, match="is a pipe"):
        add_to_history(path, ["a"])
    assert path.is_fifo()
    assert read_history(tmp_path) == []


# ---- whole words --------------------------------------------------------------------------------


def screen(text: str, columns: int, seed: int) -> str:
    """What a terminal shows of a text that comes in pieces."""
    wrap, chance = Wrap(), random.Random(seed)
    shown = ""
    while text:
        size = chance.randint(1, 9)
        piece, text = wrap(text[:size], columns), text[size:]
        for back, rest in re.findall(r"(?:\033\[(\d+)D\033\[K)?([^\033]*)", piece):
            shown = (shown[: -int(back)] if back else shown) + rest
    return shown


@pytest.mark.parametrize("columns", [20, 37, 80])
def test_words_are_whole(columns: int) -> None:
    chance = random.Random(columns)
    words = ["x" * chance.randint(1, 15) for _ in range(500)]
    # A blank at the edge stands for the break; the terminal's last column stays free.
    expected = textwrap.fill(" ".join(words), columns - 1)
    shown = screen(" ".join(words), columns, seed=1)
    assert [line.rstrip() for line in shown.split("\n")] == expected.split("\n")


def test_long_and_wide_words() -> None:
    assert screen("ab " + "x" * 25, 11, seed=2) == "ab \n" + "x" * 10 + "\n" + "x" * 10 + "\nxxxxx"
    assert screen("漢字" * 6, 11, seed=3) == "漢字漢字漢\n字漢字漢字\n漢字"
    assert screen("abc de漢字かな。", 11, seed=4) == "abc de漢字\nかな。"
    assert screen("a\tb\tcde", 20, seed=5) == "a\tb\tcde"
    assert screen("e\u0301" * 12, 11, seed=6) == "e\u0301" * 10 + "\n" + "e\u0301" * 2
    assert screen("one two\nthree four", 11, seed=7) == "one two\nthree four"


def test_a_terminal_that_changes_its_width() -> None:
    wrap = Wrap()
    assert wrap("aaaa bbbb cc", 20) == "aaaa bbbb cc"
    # It has folded the line after ten letters; the word is no longer where it could be taken back.
    assert wrap("ccccc", 10) == "ccccc"
    assert wrap("ccc", 10) == "cc\033[7D\033[K\ncccccccc"
    assert wrap(" ffff", 20) == " ffff"


@pytest.mark.parametrize("letters", ["❤\ufe0f", "👩\u200d👧", "🇩🇪", "नी", "1\ufe0f\u20e3"])
def test_what_terminals_show_in_different_widths_is_not_taken_back(letters: str) -> None:
    shown = Wrap()("abc " + letters + "def" * 3, 12)
    steps = [int(back) for back in re.findall(r"\033\[(\d+)D", shown)]
    assert all(back <= len("def" * 3) for back in steps)
    assert shown.startswith("abc " + letters)
