# SPDX-License-Identifier: Apache-2.0
"""The program: in a pseudo-terminal, in a pipe, and what it says when something is wrong."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import tiny
from click.testing import CliRunner
from rwkv_edge import Model, chat, cli, terminal
from scripted import talkative_model

PROGRAM = [sys.executable, "-m", "rwkv_edge"]
# Makes the pseudo-terminal the one whose Ctrl-C reaches the program.
IN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
SECONDS = 30
CTRL_C, CTRL_D = "\x03", "\x04"
GREEDY = ["--temperature", "0", "--max-tokens", "20"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talkative_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says "a" for ever."""
    shape = tiny.SHAPES["d128"]
    made = tiny.tiny_model(shape, "f32", 1)
    first = np.eye(1, shape.width, dtype=np.float32)
    head = np.zeros((shape.vocab, shape.width), np.float32)
    head[1 + ord("a")] = 50 * first
    for name, data in (
        ("output_norm.weight", 0 * first),
        ("output_norm.bias", first),
        ("output.weight", head),
    ):
        made.file.tensor(name).data = data.tobytes()
    return tiny.write(tmp_path_factory.mktemp("models"), "endless.gguf", made)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.delenv("INPUTRC", raising=False)


class Terminal:
    """A program that runs in a pseudo-terminal."""

    def __init__(self, *arguments: str | Path) -> None:
        self.fd, inside = pty.openpty()
        command = [sys.executable, "-c", IN_TERMINAL, *PROGRAM, *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdin=inside, stdout=inside, stderr=inside, start_new_session=True
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
        os.write(self.fd, keys.encode())

    def ask(self, line: str) -> str:
        """Type a line and return the answer."""
        self.type(line + "\n")
        self.until(line + "\n")
        return self.until("\n\n> ")

    def command(self, line: str, reply: str) -> None:
        self.type(line + "\n")
        self.until(reply)
        self.until("\n> ")

    def ends(self) -> int:
        while self.read(0.1):
            pass
        return self.process.wait(SECONDS)


def run(*arguments: str | Path, stdin: str | bytes = "") -> subprocess.CompletedProcess[bytes]:
    """A program that runs in pipes."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    command = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(command, input=data, capture_output=True, timeout=SECONDS, check=False)


# ---- chat in a terminal -------------------------------------------------------------------------


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
        session.command("/help", "/save FILE   keep the conversation in a file")
        session.command("/save", "/save needs the name of a file")
        session.command("/load  ", "/load needs the name of a file")
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
        session.ask("hello")
        session.command(f"/save {path}", f"saved in {path}")
        expected = session.ask("and then?")
    with Terminal("chat", model, *GREEDY) as other:
        other.until("\n> ")
        assert other.ask("and then?") != expected
        other.command(f"/load {path}", f"going on from {path}")
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
        assert not set(program.text) & {chr(c) for c in terminal.CONTROLS}
    piped = run("generate", model, "-p", "x", *arguments).stdout.decode()
    assert "\x1b" in piped
    assert piped.translate(terminal.CONTROLS) + "\n" == program.text


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


# ---- in pipes -----------------------------------------------------------------------------------


def test_chat_in_a_pipe(model: Path, tmp_path: Path) -> None:
    def answers(lines: str) -> bytes:
        done = run("chat", model, *GREEDY, stdin=lines)
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout

    one, two = answers("hello\n"), answers("hello\n\nhello\n")
    assert one.endswith(b"\n")
    assert two.startswith(one)
    assert two != one + one
    assert answers("hello\n/reset\nhello\n/exit\nhello\n") == one + one
    assert answers(f"hello\n/save {tmp_path}/s\nhello\n") == two
    assert answers(f"/load {tmp_path}/s\nhello") == two.removeprefix(one)


def test_the_options_of_chat(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, object] = {}
    asked: dict[str, object] = {}

    class Recorder:
        def __init__(self, model: Model, **options: object) -> None:
            made.update(options, threads=model.threads)

        def ask(self, text: str, **sampling: object) -> list[str]:
            asked.update(sampling, text=text)
            return [text, "!"]

    monkeypatch.setattr(cli, "Conversation", Recorder)
    options = {"temperature": 0.5, "top_k": 7, "top_p": 0.9, "presence_penalty": 0.1}
    options |= {"frequency_penalty": 0.2, "penalty_decay": 0.9, "seed": 5, "max_tokens": 6}
    arguments = ["chat", str(model), "-t", "1", "--system", "Be kind."]
    for name, value in options.items():
        arguments += [f"--{name.replace('_', '-')}", str(value)]
    result = CliRunner().invoke(cli.main, [*arguments, "--paragraphs"], input="hi\n")
    assert (result.exit_code, result.output) == (0, "hi!\n")
    assert made == {"system": "Be kind.", "stop": chat.TURN_STOPS, "threads": 1}
    assert asked == {"text": "hi", **options}
    CliRunner().invoke(cli.main, arguments, input="hi\n")
    assert made["stop"] == chat.PARAGRAPH_STOPS


def test_chat_in_a_pipe_stops_at_an_error(model: Path) -> None:
    done = run("chat", model, *GREEDY, stdin="/load none\nhello\n")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"Error: none: No such file or directory\n"


def test_any_bytes_may_be_said(model: Path) -> None:
    done = run("chat", model, *GREEDY, stdin=b"\xff\xfe \xe2\x96\n")
    assert (done.returncode, done.stderr) == (0, b"")


def test_generate(model: Path) -> None:
    arguments = ["-n", "30", "--temperature", "0"]
    done = run("generate", model, "-p", "The User", *arguments)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout
    assert run("generate", model, "-p", "-", *arguments, stdin="The User").stdout == done.stdout
    assert run("generate", model, "-p", "-", *arguments, stdin="The User\n").stdout != done.stdout
    empty = run("generate", model, "-p", "", *arguments)
    assert (empty.returncode, empty.stderr) == (0, b"")
    assert empty.stdout


def test_where_generate_stops(endless: Path) -> None:
    def text(*arguments: str) -> bytes:
        return run("generate", endless, "-p", "x", "-n", "10", *arguments).stdout

    assert text() == b"a" * 10
    assert text("--stop", "aab", "--stop", "x") == b"a" * 10
    assert text("--stop", "b", "--stop", "aaa") == b""


def test_ctrl_c_ends_generate(endless: Path) -> None:
    command = [*PROGRAM, "generate", str(endless), "-p", "x", "-n", "100000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.read(10) == b"a" * 10
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, errors) == (cli.INTERRUPTED, b"")


def test_a_reader_that_leaves(endless: Path) -> None:
    command = [*PROGRAM, "generate", str(endless), "-p", "x", "-n", "100000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""


def test_ctrl_c_ends_the_other_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "convert_model", interrupted)
    result = CliRunner().invoke(cli.main, ["convert", "a", "b"])
    assert (result.exit_code, result.output) == (cli.INTERRUPTED, "")


# ---- the other commands -------------------------------------------------------------------------


def test_from_a_checkpoint_to_a_conversation(tmp_path: Path) -> None:
    tokens = [*(bytes([byte]) for byte in range(256)), b"User", b"Assistant", b"\n\n"]
    lines = [f"{i} {token!r} {len(token)}" for i, token in enumerate(tokens, 1)]
    vocabulary = tmp_path / "vocabulary.txt"
    vocabulary.write_text("\n".join(lines) + "\n")
    source = checkpoints.write(tmp_path, checkpoints.pth_of(checkpoints.weights_of()))
    f16, q4_0 = tmp_path / "f16.gguf", tmp_path / "q4_0.gguf"
    for done in (
        run("convert", source, f16, "--vocab", vocabulary, "--license", "apache-2.0"),
        run("quantize", f16, q4_0, "--type", "q4_0"),
    ):
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    text = run("info", q4_0).stdout.decode()
    assert re.search("^tokenizer +RWKV World, 300 tokens$", text, re.MULTILINE)
    assert re.search("^licence +apache-2.0$", text, re.MULTILINE)
    done = run("chat", q4_0, *GREEDY, stdin="hello\n")
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout) > 10


def test_quantize_info_bench(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "q4.gguf"
    done = run("quantize", model, path, "--type", "int4")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    done = run("info", path)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    for line in (
        rf"file +{re.escape(str(path))}",
        r"name +tiny test model",
        r"architecture +rwkv7",
        rf"shape +3 layers, width 128, 2 heads of 64, feed-forward {tiny.SHAPES['d128'].ffn}",
        r"tokenizer +RWKV World, 300 tokens",
        r"bits/weight +\d+\.\d\d",
        r"q4_0 +18 tensors, [\d,]+ values, \d+ KB",
        r"q8_0 +2 tensors, 76,800 values, 81.6 KB",
        r"licence +not stated",
    ):
        assert re.search(f"^{line}$", text, re.MULTILINE), line
    done = run("bench", path, "-t", "1,2", "-p", "8", "-n", "4", "-r", "2", "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    found = json.loads(done.stdout)
    tests = [(result["test"], result["threads"]) for result in found["results"]]
    assert tests == [("pp8", 1), ("tg4", 1), ("pp8", 2), ("tg4", 2)]
    for result in found["results"]:
        assert len(result["runs"]) == 2
        assert result["tokens_per_second"] > 0
        assert (result["bandwidth_share"] is None) == result["test"].startswith("pp")
    text = run("bench", path, "-t", "1", "-p", "0", "-n", "4").stdout.decode()
    assert re.search(r"^  1 threads  tg4 +[\d.]+ tokens/s +[\d.]+ GB/s, \d+%", text, re.MULTILINE)
    assert "pp" not in text


@pytest.fixture
def bad_files(tmp_path: Path, model: Path) -> dict[str, Path]:
    paths = {name: tmp_path / name for name in ("missing", "text", "empty", "cut", "folder")}
    paths["text"].write_text("This is a text, and not a model.\n")
    paths["empty"].write_bytes(b"")
    paths["cut"].write_bytes(model.read_bytes()[:5000])
    paths["folder"].mkdir()
    return paths


BAD_FILES = {
    "missing": "No such file or directory",
    "text": "",
    "empty": "",
    "cut": "",
    "folder": "Is a directory",
}
COMMANDS: dict[str, Callable[[Path], list[str | Path]]] = {
    "chat": lambda path: ["chat", path],
    "generate": lambda path: ["generate", path, "-p", "x"],
    "info": lambda path: ["info", path],
    "bench": lambda path: ["bench", path],
    "quantize": lambda path: ["quantize", path, path.parent / "out", "--type", "q8_0"],
    "convert": lambda path: ["convert", path, path.parent / "out"],
}


@pytest.mark.parametrize("name", BAD_FILES)
@pytest.mark.parametrize("command", COMMANDS)
def test_bad_files(bad_files: dict[str, Path], command: str, name: str) -> None:
    path = bad_files[name]
    result = CliRunner().invoke(cli.main, list(map(str, COMMANDS[command](path))))
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"Error: {path}: {BAD_FILES[name]}")
    assert result.stderr.count("\n") == 1
    assert not (path.parent / "out").exists()


def test_an_error_has_no_traceback(tmp_path: Path) -> None:
    done = run("info", tmp_path / "none")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == f"Error: {tmp_path}/none: No such file or directory\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["talk"],
        ["chat", "--top-p", "2"],
        ["chat", "--top-k", "-1"],
        ["chat", "--temperature", "warm"],
        ["generate"],
        ["generate", "-p", "x", "-n", "-1"],
        ["quantize", "a", "b"],
        ["quantize", "a", "b", "--type", "q3_k"],
        ["bench", "-t", "1,x"],
        ["bench", "-t", "0"],
        ["convert", "a"],
    ],
    ids=" ".join,
)
def test_wrong_usage(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: ")


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=str)
def test_help(command: list[str]) -> None:
    result = CliRunner().invoke(cli.main, [*command, "--help"])
    assert result.exit_code == 0
    assert "Usage: " in result.stdout


# ---- progress -----------------------------------------------------------------------------------


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal.Progress, "DELAY", 0)
    monkeypatch.setattr(terminal.Progress, "INTERVAL", 0)


@pytest.mark.usefixtures("hasty")
def test_progress_on_a_terminal() -> None:
    with contextlib.redirect_stderr(Screen()) as screen, terminal.Progress("converting") as bar:
        bar(1, 4, "a.weight")
        bar(4, 4)
    shown = screen.getvalue().split(terminal.CLEAR_LINE)
    assert shown == ["", "converting  25 %  a.weight", "converting 100 %  ", ""]


@pytest.mark.usefixtures("hasty")
def test_a_long_prompt_shows_progress(model: Path) -> None:
    with contextlib.redirect_stderr(Screen()) as screen, pytest.raises(SystemExit):
        cli.main(["generate", str(model), "-p", "x" * 200, "-n", "0"])
    assert "reading  32 %" in screen.getvalue()
    assert screen.getvalue().endswith(terminal.CLEAR_LINE)


def test_no_progress_in_a_pipe(model: Path) -> None:
    done = run("generate", model, "-p", "x" * 2000, "-n", "0")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
