# SPDX-License-Identifier: Apache-2.0
"""The program in a pseudo-terminal."""

from __future__ import annotations

import json
import os
import re
import select
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import make_random_model as tool
import pytest
from program import GREEDY, PROGRAM, SECONDS, endless_model, run
from rwkv_edge.cli.terminal import cells
from rwkv_edge.convert.policy import Types
from rwkv_edge.files.form import printable
from scripted import talkative_model

# Makes the pseudo-terminal the one whose Ctrl-C reaches the program.
IN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
pytestmark = pytest.mark.posix("pseudo-terminal")
CTRL_C, CTRL_D = "\x03", "\x04"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talkative_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return endless_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("INPUTRC", raising=False)


class Terminal:
    """A program that runs in a pseudo-terminal."""

    def __init__(self, *arguments: str | Path, columns: int | None = None) -> None:
        self.fd, inside = os.openpty()
        if columns is not None:
            self.resize(columns)
        command = [sys.executable, "-c", IN_TERMINAL, *PROGRAM, *map(str, arguments)]
        self.process = subprocess.Popen(
            command,
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
            env=dict(os.environ),  # without the size that readline tells programs in its own way
        )
        os.close(inside)
        self.text = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)

    def read(self, seconds: float) -> bool:
        """Take what the program wrote; False at its end."""
        if not select.select([self.fd], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self.fd, 65536)
        except OSError:  # Linux's way to say that the other side is closed
            data = b""
        self.text += data.decode("utf-8", "replace").replace("\r\n", "\n")
        return bool(data)

    def until(self, end: str) -> str:
        """Wait until the program has written `end`; returns what came before it, and drops both."""
        deadline = time.monotonic() + SECONDS
        while end not in self.text:
            running = self.read(0.1)
            assert running or end in self.text, f"the program ended after {self.text!r}"
            assert time.monotonic() < deadline, f"no {end!r} in {self.text!r}"
        before, _, self.text = self.text.partition(end)
        return before

    def type(self, keys: str) -> None:
        """What the program does not take yet waits in the terminal, which holds some 4 KB."""
        data = keys.encode()
        while data:
            if select.select([], [self.fd], [], 0.1)[1]:
                data = data[os.write(self.fd, data[:512]) :]
            self.read(0)

    def resize(self, columns: int) -> None:
        """The program gets a SIGWINCH."""
        import fcntl
        import termios

        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))

    def ask(self, line: str) -> str:
        """Type a line and return the answer, without the remark that it was cut off."""
        self.type(line + "\n")
        self.until(line + "\n")
        return self.until("\n\n> ").partition("\n(cut off after ")[0]

    def command(self, line: str, reply: str) -> None:
        self.type(line + "\n")
        self.until(reply)
        self.until("\n> ")

    def ends(self) -> int:
        while self.read(0.1):
            pass
        return self.process.wait(SECONDS)


def test_a_conversation(model: Path) -> None:
    with Terminal("chat", model, *GREEDY) as session:
        assert "/help lists the commands" in session.until("\n> ")
        first = session.ask("hello")
        second = session.ask("hello")
        assert first
        assert first != second  # it remembers the first
        session.command("/reset", "a new conversation")
        assert session.ask("hello") == first
        session.type(CTRL_D)
        assert session.ends() == 0


def test_commands(model: Path, tmp_path: Path) -> None:
    with Terminal("chat", model) as session:
        session.until("\n> ")
        session.command("/help", "/save FILE         save the conversation to a file")
        session.command("/save", "/save needs the name of a file")
        session.command("/save!", "/save! needs the name of a file")
        session.command("/load  ", "/load needs the name of a file")
        session.command("/save ~no one/a", "~no one/a: no such user")
        session.command("/quit", "/quit is no command; /help lists them")
        session.command(f"/load {tmp_path}/none", "none: No such file or directory")
        session.command(f"/load {model}", "not a saved state")
        session.command(f"/save {tmp_path}/none/a", "none: no such folder")
        session.type("\n")  # an empty line says nothing
        session.until("\n> ")
        session.type("/exit\n")
        assert session.ends() == 0


def test_a_conversation_goes_on_in_another_process(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a state"
    with Terminal("chat", model, *GREEDY, "--system", "Be brief.") as session:
        session.until("\n> ")
        answer = session.ask("hello")
        session.command(f"/save {path}", f"saved in {path}")
        expected = session.ask("and then?")
    with Terminal("chat", model, *GREEDY) as other:
        other.until("\n> ")
        assert other.ask("and then?") != expected
        other.type(f"/load {path}\n")
        shown = other.until(f"going on from {path}\n> ")
        assert f"(Be brief.)\n> hello\n{answer.strip()}" in shown  # what was said
        assert other.ask("and then?") == expected


def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(endless: Path, tmp_path: Path) -> None:
    with Terminal("chat", endless, "--max-tokens", "100000000") as session:
        session.until("\n> ")
        for _ in range(2):
            session.type("hello\n")
            session.until("aaaaaaaaaa")
            session.type(CTRL_C)
            assert set(session.until("\n\n> ")) <= {"a", "^", "C"}
        session.command(f"/save {tmp_path}/s", "saved in")
        session.type("/exit\n")
        assert session.ends() == 0
    assert (tmp_path / "s").stat().st_size > 1000


def test_ctrl_c_at_the_prompt(model: Path) -> None:
    with Terminal("chat", model, *GREEDY) as session:
        session.until("\n> ")
        session.type("half a line")
        session.until("half a line")
        time.sleep(0.2)  # readline does not look for signals while it takes a key
        session.type(CTRL_C)
        session.until("(Ctrl-D or /exit leaves)\n> ")
        assert session.ask("hello")
        session.type(CTRL_D)
        assert session.ends() == 0


def test_a_model_cannot_steer_the_terminal(model: Path) -> None:
    arguments = ["--temperature", "1000", "--top-p", "1", "--seed", "1", "--max-tokens", "400"]
    with Terminal("generate", model, "-p", "x", *arguments) as program:
        assert program.ends() == 0
        assert not set(program.text) - set("\n") & set(map(chr, range(32)))
    piped = run("generate", model, "-p", "x", *arguments).stdout.decode()
    assert "\x1b" in piped
    assert printable(piped, lines=True) + "\n" == program.text


def test_lines_are_remembered(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("readline")
    history = tmp_path / "xdg" / "rwkv-edge" / "history"
    with Terminal("chat", model, *GREEDY) as session:
        session.until("\n> ")
        session.ask("a first line")
        session.type(CTRL_D)
        assert session.ends() == 0
    assert "a first line" in history.read_text()
    with Terminal("chat", model, *GREEDY) as session:
        session.until("\n> ")
        session.type("\x10\n")  # Ctrl-P, the line before
        session.until("a first line")
        session.until("\n\n> ")


def test_a_history_that_cannot_be_written(model: Path, tmp_path: Path) -> None:
    (tmp_path / "xdg").write_text("not a folder")
    with Terminal("chat", model, *GREEDY) as session:
        session.until("\n> ")
        session.ask("hello")
        session.type(CTRL_D)
        assert session.ends() == 0
        assert "Error" not in session.text


# ---- thinking, and taking back ------------------------------------------------------------------


THINKS = ["--think", "on", "--think-tokens", "3", "--max-tokens", "4", "--temperature", "0"]


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that thinks "aaa" and says "aaaa", with these options."""
    folder = tmp_path_factory.mktemp("models")
    return endless_model(folder).rename(folder / "rwkv7-g1-endless.gguf")


def test_thoughts_are_dim(thinker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Terminal("chat", thinker, *THINKS) as session:
        first = "rwkv7-g1-endless.gguf: template g1 (by its name), answers may have paragraphs, thi"
        assert first in session.until("\n\n> ")
        assert session.ask("hi") == "<think>\naaa\n</think>\n\naaaa"
        session.command("/think hide", "thinking is on, and hidden")
        assert session.ask("hi") == "aaaa"
        session.command("/think show", "thinking is on, and shown")
        assert session.ask("hi") == "<think>\naaa\n</think>\n\naaaa"
        session.command("/think off", "thinking is off, and shown")
        assert session.ask("hi") == "aaaa"
    with Terminal("chat", thinker, *THINKS, "--hide-thinking") as session:
        session.until("\n\n> ")
        assert session.ask("hi") == "aaaa"
        session.command("/think", "thinking is on, and hidden")
        session.command("/think show", "thinking is on, and shown")
        assert session.ask("hi") == "<think>\naaa\n</think>\n\naaaa"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("PROMPT_TOOLKIT_NO_CPR", "1")
    with Terminal("chat", thinker, *THINKS) as session:
        session.until(">")
        session.type("hi\r/exit\r")
        assert session.ends() == 0
        assert "\033[2maaa\033[0m\n\naaaa\n\033[2m(cut off after 4 tokens; " in session.text
        assert " allows more)\033[0m\n\n" in session.text


def test_an_answer_that_was_cut_off(endless: Path) -> None:
    with Terminal("chat", endless, "--max-tokens", "3") as session:
        session.until("\n> ")
        session.type("hello\n")
        remark = "aaa\n(cut off after 3 tokens; /set max-tokens N allows more)\n\n> "
        session.until(remark)
    assert run("chat", endless, "--max-tokens", "3", stdin="hello\n").stderr == b""


def test_ctrl_c_while_it_thinks(thinker: Path, tmp_path: Path) -> None:
    with Terminal("chat", thinker, *THINKS, "--think-tokens", "100000000") as session:
        session.until("\n> ")
        session.type("hello\n")
        session.until("aaaaaaaaaa")
        session.type(CTRL_C)
        assert "(no answer; /retry asks again)\n" in session.until("\n> ")
        session.command(f"/export {tmp_path}/chat.md", "written to")
        session.command("/undo", "took back: hello")
        session.command("/undo", "nothing was said")
        session.command("/think off", "thinking is off")
        assert session.ask("hi") == "aaaa"
    assert (tmp_path / "chat.md").read_text().startswith("**User:**\n\nhello\n\n")


def test_asking_again_in_vain(model: Path) -> None:
    with Terminal("chat", model, *GREEDY) as session:
        session.until("\n> ")
        first = session.ask("hello")
        session.type("/retry\n")
        assert first in session.until("\n(at temperature 0 the seed changes nothing")
        session.until("\n\n> ")
        assert "(" not in session.ask("/edit hello there")
        session.command("/set max-tokens 1", "max-tokens is 1")
        assert "(" not in session.ask("/retry")  # another answer
        session.command("/tokens", "in 1 turn")


def test_undo_in_the_middle_of_a_story(endless: Path) -> None:
    with Terminal("chat", endless, "--max-tokens", "100000000") as session:
        session.until("\n> ")
        session.type("tell me a story\n")
        session.until("aaaaaaaaaa")
        session.type(CTRL_C)
        session.until("\n\n> ")
        session.command("/undo", "took back: tell me a story")
        session.command("/tokens", "0 tokens in 0 turns")
        session.command("/set max-tokens 5", "max-tokens is 5")
        assert session.ask("tell me a story") == "aaaaa"


# ---- messages of several lines ------------------------------------------------------------------


@pytest.fixture(params=["prompt_toolkit", "readline"])
def editor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """What edits the lines of a chat, in a terminal that can do everything."""
    name = str(request.param)
    if "libedit" in (getattr(pytest.importorskip(name), "__doc__", None) or ""):
        pytest.skip("libedit takes no pasted lines")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("PROMPT_TOOLKIT_NO_CPR", "1")  # this terminal does not say where it is
    if name == "readline":
        (tmp_path / "site").mkdir()
        hide = "import sys; sys.modules['prompt_toolkit'] = None"
        (tmp_path / "site" / "sitecustomize.py").write_text(hide)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    return name


SEVERAL_LINES = {
    "pasted": "\x1b[200~first\rsecond\r\rthird\x1b[201~\r",
    "Alt-Enter": "first\x1b\rsecond\x1b\rthird\r",
    "block": '"""\rfirst\rsecond\rthird\r"""\r',
}


@pytest.mark.parametrize("keys", SEVERAL_LINES.values(), ids=list(SEVERAL_LINES))
def test_several_lines_are_one_message(model: Path, tmp_path: Path, editor: str, keys: str) -> None:
    one, other = tmp_path / f"{editor} one", tmp_path / "other"
    with Terminal("chat", model, *GREEDY) as session:
        session.until(">")
        # Both names with Tab: a command, and a file that is there by then.
        session.type(f"{keys}/sa\t! {one}\r")
        session.until("saved in")
        session.type(f"/load {tmp_path}/{editor} o\t\r")
        session.until("going on from")
        session.type("/exit\r")
        assert session.ends() == 0
    done = run("chat", model, *GREEDY, stdin=f'"""first\nsecond\nthird"""\n/save {other}\n')
    assert done.returncode == 0
    assert one.read_bytes() == other.read_bytes()
    history = (tmp_path / "xdg" / "rwkv-edge" / "history").read_text()
    assert "first" in history


def shown(written: str) -> str:
    """What stands on the screen in the end: of words that went to the next line, those there."""
    text = ""
    for back, rest in re.findall(r"(?:\033\[(\d+)D\033\[K)?([^\033]*)", written):
        text = (text[: -int(back)] if back else text) + rest
    return text


def width(line: str) -> int:
    return sum(map(cells, line))


@pytest.mark.usefixtures("editor")
def test_answers_keep_words_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    with Terminal("chat", *GREEDY) as session:  # the demo model
        session.until(">")
        session.type("What can you do?\r/exit\r")
        assert session.ends() == 0
        answer = shown(session.text)
    plain = run("chat", *GREEDY, stdin="What can you do?\n").stdout.decode().rstrip("\n")
    expected = textwrap.wrap(plain, 19)
    lines = [line.rstrip() for line in answer[answer.index(expected[0]) :].split("\n")]
    assert lines[: len(expected)] == expected


def test_edit_begins_with_the_last_question(model: Path, tmp_path: Path, editor: str) -> None:
    with Terminal("chat", model, *GREEDY) as session:
        session.until(">")
        session.type("first\x1b\rsecond\r")
        session.type("/edit\r")
        session.type(" more\r")
        session.type(f"/save {tmp_path}/{editor}\r/exit\r")
        assert session.ends() == 0
    typed = f'"""first\nsecond more"""\n/save {tmp_path}/other\n'
    assert run("chat", model, *GREEDY, stdin=typed).returncode == 0
    assert (tmp_path / editor).read_bytes() == (tmp_path / "other").read_bytes()


PAGE = "\n".join(f"{i}. a line of the page \u4f60\u597d \U0001f600" for i in range(1, 41))


def test_a_pasted_page_is_one_message(model: Path, tmp_path: Path, editor: str) -> None:
    with Terminal("chat", model, *GREEDY) as session:
        session.until(">")
        session.type("\x1b[200~" + PAGE.replace("\n", "\r") + "\x1b[201~\r")
        session.type(f"/export {tmp_path}/{editor}.md\r/tokens\r")
        session.until("in 1 turn")
        session.type("/exit\r")
        assert session.ends() == 0
    text = (tmp_path / f"{editor}.md").read_text("utf-8")
    assert text.startswith(f"**User:**\n\n{PAGE}\n\n**Assistant:**\n\n")


CHINESE = "\u4f60\u597d\U0001f600"


def test_chinese_and_emoji(tmp_path: Path, editor: str) -> None:
    """Typed with a correction, and answered; each letter of both takes two columns."""
    model = endless_model(tmp_path, CHINESE)
    with Terminal("chat", model, "--max-tokens", "20", columns=24) as session:
        session.until(">")
        session.type(f"{CHINESE}\U0001f600\x7f \u00e9\r")  # a backspace
        written = session.until("(cut off after 20")
        session.type(f"/export {tmp_path}/{editor}.md\r/exit\r")
        assert session.ends() == 0
    text = (tmp_path / f"{editor}.md").read_text("utf-8")
    assert text == f"**User:**\n\n{CHINESE} \u00e9\n\n**Assistant:**\n\n{CHINESE * 20}\n\n"
    lines = [line for line in shown(written).split("\n") if line and set(line) <= set(CHINESE)]
    assert len(lines) >= 5  # the first stands behind what the editor wrote
    assert (CHINESE * 20).endswith("".join(lines))
    assert {width(line) for line in lines[:-1]} == {22}  # of 23 columns, as each letter takes two


def widest(written: str, lines: int) -> int:
    """Columns of the widest of the last lines; 0 where there are less."""
    *whole, _ = shown(written).split("\n")
    return max(map(width, whole[-lines:])) if len(whole) > lines else 0


@pytest.mark.usefixtures("editor")
def test_a_window_that_becomes_narrower(tmp_path: Path) -> None:
    """While an answer is written, which goes on with shorter lines."""
    model = endless_model(tmp_path, "some words ")
    with Terminal("chat", model, "--max-tokens", "100000000", columns=80) as session:
        session.until(">")
        session.type("hello\r")
        for columns in (80, 30, 50):
            session.resize(columns)
            deadline = time.monotonic() + SECONDS
            session.text = ""
            # Lines of the old width are on their way first.
            while not 0.7 * columns < widest(session.text, 20) < columns:
                assert session.read(0.1)
                assert time.monotonic() < deadline, session.text[-2000:]
                session.text = session.text[-20_000:]
        session.type(CTRL_C)
        session.until(">")
        session.type("/exit\r")
        assert session.ends() == 0


def test_undo_that_is_typed_while_a_story_is_told(endless: Path) -> None:
    with Terminal("chat", endless, "--max-tokens", "20000") as session:
        session.until("\n> ")
        session.type("tell me a story\n")
        session.until("aaaaaaaaaa")
        session.type("/undo\n")
        session.until("took back: tell me a story\n> ")
        session.command("/tokens", "0 tokens in 0 turns")


def test_ctrl_c_while_a_question_is_read(tmp_path: Path) -> None:
    """It was not said then; nor was the question changed that it would have replaced."""
    size = tool.Size(12, 512, (32,) * 4, vocab=300)  # which reads some seconds
    tool.write_gguf(tmp_path / "slow.gguf", size, 1, Types.choose("q8_0", None, None))
    long = "x" * 3900  # a terminal takes 4096 at once
    with Terminal("chat", tmp_path / "slow.gguf", *GREEDY) as session:
        session.until("\n> ")
        session.ask("hello")
        session.type(f'"""{long}\n{long}\n{long}"""\n')
        session.until("reading ")
        session.type(CTRL_C)
        session.until("(stopped; your message was not read)\n")
        session.until("> ")
        session.type(f"/edit {long}\n")
        session.until("reading ")
        session.type(CTRL_C)
        session.until("(stopped; nothing was changed)\n")
        session.until("> ")
        session.command("/undo", "took back: hello")
        session.command("/tokens", "0 tokens in 0 turns")


def test_json_on_a_terminal(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    number = {"type": "integer", "minimum": 0, "maximum": 99}
    schema = {"type": "object", "properties": {"a": number}, "required": ["a"]}
    (tmp_path / "schema.json").write_text(json.dumps({**schema, "additionalProperties": False}))
    arguments = ["-p", "x", "--json-schema", str(tmp_path / "schema.json"), "--seed", "1"]
    with Terminal("generate", model, *arguments) as program:
        assert program.ends() == 0
        assert list(json.loads(program.text)) == ["a"]
        assert program.text.endswith("}\n")
