# SPDX-License-Identifier: Apache-2.0
"""The program in pipes, and what it says when something is wrong."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import checkpoints
import click
import pytest
import tiny
from click.testing import CliRunner
from program import GREEDY, PROGRAM, SECONDS, commands, endless_model, run
from rwkv_edge import Model, State, cli
from rwkv_edge.chat import TEMPLATES
from rwkv_edge.cli import terminal
from rwkv_edge.model import bundled_model
from scripted import talkative_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talkative_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return endless_model(tmp_path_factory.mktemp("models"))


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
    assert answers('"""hello"""\n') == answers('"""\nhello\n"""  \n') == one
    assert answers('"""a\n\nb\n"""\n') == answers('"""a\nb') != one
    assert answers('"""\n/exit\n"""\n') not in (b"", one)  # no command in there
    assert answers(f"hello\n/save {tmp_path}/s\nhello\n") == two
    assert answers(f"/load {tmp_path}/s\nhello") == two.removeprefix(one)


def test_the_options_of_chat(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: dict[str, object] = {}
    asked: dict[str, object] = {}

    class Recorder:
        turns = ()

        def __init__(self, model: Model, **options: object) -> None:
            made.clear()
            made.update(options, threads=model.threads)

        def ask(self, text: str, **sampling: object) -> Iterator[str]:
            asked.update(sampling, text=text)
            yield from (text, "!")

    monkeypatch.setattr("rwkv_edge.cli.chat.Conversation", Recorder)
    options = {"temperature": 0.5, "top_k": 7, "top_p": 0.9, "presence_penalty": 0.1}
    options |= {"frequency_penalty": 0.2, "penalty_decay": 0.9, "seed": 5, "max_tokens": 6}
    options |= {"min_p": 0.05, "typical_p": 0.8, "penalty_window": 9}
    arguments = ["chat", str(model), "-t", "1", "--system", "Be kind."]
    for name, value in options.items():
        arguments += [f"--{name.replace('_', '-')}", str(value)]
    more = ["--paragraphs", "--template", "raven", "--state", str(tmp_path / "state")]
    more += ["--think", "bit", "--think-tokens", "9", "--lookup", "3"]
    Model(model).session().state.save(tmp_path / "state")
    result = CliRunner().invoke(cli.main, [*arguments, *more], input="hi\n")
    assert (result.exit_code, result.output) == (0, "hi!\n")
    state = made.pop("state")
    assert isinstance(state, State)
    assert state.source == str(tmp_path / "state")
    given = {"paragraphs": True, "template": TEMPLATES["raven"], "think": "bit", "think_tokens": 9}
    assert made == {"system": "Be kind.", "threads": 1, "cache": None, **given}
    always = {"text": "hi", "thoughts": True, "undo": 0, "progress": None}
    assert asked == {**always, "lookup": 3, **options}
    CliRunner().invoke(cli.main, arguments, input="hi\n")
    plain = {"paragraphs": False, "template": None, "think": "off", "think_tokens": 2048}
    plain |= {"state": None, "cache": None}
    assert made == {"system": "Be kind.", "threads": 1, **plain}
    assert asked == {**always, "lookup": 0, **options}


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
    assert run("generate", model, "-p", "-", *arguments, stdin="The User\n").stdout == done.stdout
    assert run("generate", model, "-p", "-", *arguments, stdin="The User\n\n").stdout != done.stdout
    empty = run("generate", model, "-p", "", *arguments)
    assert (empty.returncode, empty.stderr) == (0, b"")
    assert empty.stdout


def test_generate_with_lookup(model: Path) -> None:
    arguments = ("generate", model, "-p", "aaaa", "-n", "12", "--temperature", "0")
    plain, fast = run(*arguments), run(*arguments, "--lookup", "4")
    assert fast.returncode == 0
    assert fast.stdout == plain.stdout
    summary = rb"lookup: \d+ of \d+ guessed tokens were right, \d+ steps\n"
    assert re.fullmatch(summary, fast.stderr)


def test_generate_of_a_form(model: Path, tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [1, 2]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    file, lark = tmp_path / "schema.json", tmp_path / "tick.lark"
    file.write_text(json.dumps(schema))
    lark.write_text('\ufeffstart: ("tick" | "tock") "!"', "utf-8")
    wild: tuple[str | Path, ...] = ("generate", model, "-p", "x", "--top-p", "1")

    def text(*options: str | Path) -> str:
        done = run(*wild, *options)
        assert (done.returncode, done.stderr) == (0, b""), options
        return done.stdout.decode()

    assert json.loads(text("--json-schema", file)) in ({"a": 1}, {"a": 2})
    assert re.fullmatch("[0-9]{3}\u00e9", text("--regex", "[0-9]{3}\u00e9"))
    assert text("--choice", "yes", "--choice", "no \U0001f600") in ("yes", "no \U0001f600")
    assert text("--grammar", lark) in ("tick!", "tock!")

    def error(*options: str | Path) -> str:
        done = run(*wild, *options)
        assert done.returncode == 1
        return done.stderr.decode()

    assert error("--json-schema", file, "-n", "3") == (
        "Error: the text was cut off after 3 tokens; --max-tokens N allows more\n"
    )
    for data, message in (
        (b'{"not": {}}', 'schema: Unimplemented keys: ["not"]'),
        (b"{", "schema: not JSON ("),
        (b"\xff", "not UTF-8 ("),
        (b" " * 2_000_000, "not a schema or grammar, larger than 1048576 bytes"),
    ):
        file.write_bytes(data)
        assert error("--json-schema", file).startswith(f"Error: {file}: {message}")
    lark.write_text("start: foo")
    assert error("--grammar", lark).startswith(f"Error: {lark}: grammar: ")
    assert error("--grammar", tmp_path / "none").startswith(f"Error: {tmp_path}/none: ")
    assert error("--regex", "(").startswith("Error: regex: ")
    assert error("--regex", "a", "--choice", "b").startswith("Error: regex and choices: ")


def test_where_generate_stops(endless: Path) -> None:
    def text(*arguments: str) -> bytes:
        return run("generate", endless, "-p", "x", "-n", "10", *arguments).stdout

    assert text() == b"a" * 10
    assert text("--stop", "aab", "--stop", "x") == b"a" * 10
    assert text("--stop", "b", "--stop", "aaa") == b""


@pytest.mark.posix("signals from other processes")
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

    monkeypatch.setattr("rwkv_edge.convert.convert", interrupted)
    result = CliRunner().invoke(cli.main, ["convert", "a", "b"])
    assert (result.exit_code, result.output) == (cli.INTERRUPTED, "")


# ---- the other commands -------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A .pth, with its vocabulary beside it under a name that nobody looks for."""
    tokens = [*(bytes([byte]) for byte in range(256)), b"User", b"Assistant", b"\n\n"]
    lines = [f"{i} {token!r} {len(token)}" for i, token in enumerate(tokens, 1)]
    (tmp_path / "vocabulary").write_text("\n".join(lines) + "\n")
    return checkpoints.write(tmp_path, checkpoints.pth_of(checkpoints.weights_of()))


def test_from_a_checkpoint_to_a_conversation(checkpoint: Path, tmp_path: Path) -> None:
    vocabulary = checkpoint.with_name("vocabulary")
    f16, q4_0 = tmp_path / "f16.gguf", tmp_path / "q4_0.gguf"
    for done, path in (
        (run("convert", checkpoint, f16, "--vocab", vocabulary, "--license", "apache-2.0"), f16),
        (run("quantize", f16, q4_0, "--type", "q4_0"), q4_0),
    ):
        assert (done.returncode, done.stderr) == (0, b"")
        line = rf"{re.escape(str(path))}: {path.stem}, [\d.]+ [KM]B, \d+\.\d s\n"
        assert re.fullmatch(line, done.stdout.decode())
    text = run("info", q4_0).stdout.decode()
    assert re.search("^tokenizer +RWKV World, 300 tokens$", text, re.MULTILINE)
    assert re.search("^licence +apache-2.0$", text, re.MULTILINE)
    done = run("chat", q4_0, *GREEDY, stdin="hello\n")
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout) > 10


def test_a_checkpoint_without_converting_it(checkpoint: Path) -> None:
    vocab = checkpoint.with_name("vocabulary")
    arguments: list[str | Path] = [checkpoint, "--vocab", vocab, "--temperature", "0"]
    chat = run("chat", *arguments, "--max-tokens", "5", stdin="hello\n")
    done = run("generate", *arguments, "-p", "hello", "-n", "5")
    for each in (chat, done):
        assert each.returncode == 0
        assert each.stdout
        hint = (
            rb"the weights of some model.pth are used as they lie there, .*`rwkv-edge convert .*\n"
        )
        assert re.fullmatch(hint, each.stderr)
    converted = checkpoint.with_name("f32.gguf")
    run("convert", checkpoint, converted, "--vocab", vocab, "--type", "f32")
    again = run("generate", converted, "--temperature", "0", "-p", "hello", "-n", "5")
    assert (again.stdout, again.stderr) == (done.stdout, b"")
    lost = run("generate", checkpoint, "-p", "hello")
    assert lost.returncode == 1
    assert b"no tokenizer" in lost.stderr
    assert b"--vocab FILE" in lost.stderr
    assert run("bench", checkpoint, "-t", "1", "-p", "0", "-n", "2", "-r", "1").returncode == 0


def test_where_generate_begins(model: Path, tmp_path: Path) -> None:
    def text(*arguments: str | Path) -> bytes:
        done = run("generate", model, "--temperature", "0", "-n", "9", *arguments)
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout

    session = Model(model).session()
    session.feed(Model(model).tokenizer.encode("The User"), logits="none")
    session.state.save(tmp_path / "state")
    assert text("-p", " the", "--state", tmp_path / "state") == text("-p", "The User the")
    states = tiny.random_states(tiny.SHAPES["d128"], 1)
    tuned = checkpoints.write(tmp_path, checkpoints.pth_of(states), "tuned.pth")
    assert text("-p", "The User", "--state", tuned) != text("-p", "The User")
    assert text("-p", "", "--state", tuned) != text("-p", "")
    assert text("-p", "", "--state", tmp_path / "state") == text("-p", "The User")
    replace(session.state, output=None).save(tmp_path / "state")
    done = run("generate", model, "-p", "", "--state", tmp_path / "state")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"Error: the prompt is empty")
    done = run("chat", model, "--state", model)
    assert done.stderr.decode().startswith(f"Error: {model}: not a saved state")


def test_convert_merges_what_was_trained(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}
    monkeypatch.setattr("rwkv_edge.convert.convert", lambda *_, **options: asked.update(options))
    arguments = ["convert", str(checkpoint), str(bundled_model())]
    CliRunner().invoke(cli.main, arguments)
    assert {name for name, value in asked.items() if value not in (None, False)} == {"progress"}
    arguments += ["--state", "a", "--adapter", "b", "--alpha", "16", "--adapter-init", "c"]
    result = CliRunner().invoke(cli.main, [*arguments, "--type", "int8", "--vocab", "d"])
    assert result.exit_code == 0
    paths = {name: Path(x) for name, x in zip(("state", "adapter"), "ab", strict=True)}
    paths |= {"adapter_init": Path("c"), "vocab": Path("d")}
    assert asked.items() >= (paths | {"alpha": 16.0, "type": "int8"}).items()


def test_quantize_info_bench(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "q4.gguf"
    done = run("quantize", model, path, "--type", "int4")
    assert (done.returncode, done.stderr) == (0, b"")
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
        assert result["share"] > 0
        assert all(limit > 0 for limit in result["limits"].values())
    read, write = (
        run("bench", path, "-t", "1", *test).stdout.decode().splitlines()[1:]
        for test in (("-p", "8", "-n", "0"), ("-p", "0", "-n", "4"))
    )
    for (line,), test, share in (
        (read, "pp8", r"\d+% of the peak \(f32 [\d.]+, int8 [\d.]+ GOPS\)"),
        (write, "tg4", r" *[\d.]+ GB/s, \d+% of [\d.]+ GB/s"),
    ):
        assert re.fullmatch(rf"  1 threads  {test} +[\d.]+ tokens/s  {share}", line), line


def test_bench_of_sessions(model: Path) -> None:
    done = run("bench", model, "-t", "1", "-p", "0", "-n", "2", "-r", "1", "--sessions", "1,3")
    one, three = done.stdout.decode().splitlines()[1:]
    assert re.match(r"  1 threads    1 sessions  tg2 +[\d.]+ tokens/s", one), one
    assert re.fullmatch(
        r"  1 threads    3 sessions  tg2 +[\d.]+ tokens/s  \d+% of what memory and arithmetic "
        r"allow, [\d.]+ times one session",
        three,
    ), three


@pytest.mark.posix("pipes with names")
def test_save_replaces_saved_conversations_only(model: Path, tmp_path: Path) -> None:
    notes, fifo, other = tmp_path / "notes.txt", tmp_path / "fifo", tmp_path / "other.gguf"
    notes.write_text("my notes")
    other.write_bytes(bundled_model().read_bytes())
    os.mkfifo(fifo)

    def save(line: str) -> bytes:
        done = run("chat", model, *GREEDY, stdin=f"hello\n{line}\n")
        assert (done.returncode == 0) == (done.stderr == b"")
        return done.stderr

    for path in (notes, other):
        before = path.read_bytes()
        assert b"is no saved conversation; `/save! " in save(f"/save {path}")
        assert path.read_bytes() == before
    for command in ("/save", "/save!"):
        assert b"fifo: " in save(f"{command} {fifo}")
        assert fifo.is_fifo()
        assert b"is the model itself" in save(f"/save! {model}")
    assert save(f"/save! {notes}") == save(f"/save {notes}") == b""
    assert State.load(notes).source == str(notes)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
@pytest.mark.posix("signals from other processes")
def test_signals_leave_nothing(tmp_path: Path, name: str) -> None:
    """In the middle of a conversion, which a pipe would not even begin: the target stays."""
    number = signal.Signals[name]
    target = tmp_path / "target"
    target.write_bytes(b"old")
    slow = f"""
import signal, sys, time
signal.signal({int(number)}, signal.SIG_DFL)  # under nohup the tests ignore SIGHUP
from rwkv_edge import cli
from rwkv_edge.convert import policy
pieces = policy.encode
def encode(*arguments):
    time.sleep(0.05)
    return pieces(*arguments)
policy.encode = encode
sys.argv = ["rwkv-edge", "convert", {str(bundled_model())!r}, {str(target)!r}, "--type", "f16"]
cli.main()
"""
    with subprocess.Popen([sys.executable, "-c", slow], stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + SECONDS
        while not list(tmp_path.glob(".target.*.part")):
            assert time.monotonic() < deadline
            assert process.poll() is None
        process.send_signal(number)
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == -number
    assert b"Traceback" not in errors
    assert (target.read_bytes(), list(tmp_path.iterdir())) == (b"old", [target])


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
    "folder": "",
}
COMMANDS: dict[str, Callable[[Path], list[str | Path]]] = {
    "chat": lambda path: ["chat", path],
    "generate": lambda path: ["generate", path, "-p", "x"],
    "info": lambda path: ["info", path],
    "state": lambda path: ["state", "info", path],
    "tokenize": lambda path: ["tokenize", path, "-p", "x"],
    "embed": lambda path: ["embed", path, "-p", "x"],
    "serve": lambda path: ["serve", path, "--port", "0"],
    "batch": lambda path: ["batch", __file__, path.parent / "out", "--model", path],
    "bench": lambda path: ["bench", path],
    "perplexity": lambda path: ["perplexity", path, __file__],
    "imatrix": lambda path: ["imatrix", path, __file__, "-o", path.parent / "out"],
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


def test_an_error_is_a_line_and_a_list(tmp_path: Path) -> None:
    """Names come from the file, and cannot steer a terminal."""
    more = {name: checkpoints.random(2) for name in ("blocks.0.\x1b[2J", "blocks.0.b")}
    path = checkpoints.write(tmp_path, checkpoints.pth_of({**checkpoints.weights_of(), **more}))
    done = run("convert", path, tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.decode() == (
        f"Error: {path}: the tensors do not fit:\n"
        "  unused blocks.0.\ufffd[2J [2]\n  unused blocks.0.b [2]\n"
    )
    assert list(tmp_path.iterdir()) == [path]


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
        ["chat", "--temperature", "2000"],
        ["chat", "--temperature", "nan"],
        ["chat", "--presence-penalty", "nan"],
        ["generate", "-p", "x", "--frequency-penalty", "1e9"],
        ["generate", "-p", "x", "--top-k", str(2**63)],
        ["generate"],
        ["generate", "-p", "x", "-n", "-1"],
        ["quantize", "a", "b"],
        ["quantize", "a", "b", "--type", "q2_k"],
        ["bench", "-t", "1,x"],
        ["bench", "-t", "0"],
        ["bench", "--sessions", "1,"],
        ["convert", "a"],
    ],
    ids=" ".join,
)
def test_wrong_usage(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: ")


def test_help_lists_the_commands() -> None:
    assert sorted(commands()) == sorted([*COMMANDS, "pull"])
    result = CliRunner().invoke(cli.main, ["--help"])
    assert result.exit_code == 0
    for name, command in commands().items():
        start = command.get_short_help_str(40).removesuffix("...")
        assert re.search(rf"^  {name} +{re.escape(start)}", result.stdout, re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_option(name: str) -> None:
    result = CliRunner().invoke(cli.main, [name, "--help"])
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: main {name} [OPTIONS]")
    options = [p for p in commands()[name].params if isinstance(p, click.Option)]
    assert options or name in ("info", "state")
    for option in options:
        names = ", ".join(sorted(option.opts, key=len))
        assert re.search(rf"^  {names}(?![\w-])", result.stdout, re.MULTILINE), names


def test_what_help_imports() -> None:
    """Importing numpy takes longer than all the rest."""
    code = (
        "import sys; from rwkv_edge.cli import main; main(['--help'], standalone_mode=False); "
        "sys.exit('numpy' in sys.modules or 'rwkv_edge.convert' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


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
def test_lines_between_the_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "22")
    with (
        contextlib.redirect_stderr(Screen()) as screen,
        terminal.making(bundled_model(), "converting") as bar,
    ):
        bar(1, 4, "a.weight")
        bar.say("a fact")
        bar(2, 4, "b.weight")
        warnings.warn("mind this", stacklevel=1)
        bar(3, 4, "c.weight")
    assert screen.getvalue().split(terminal.CLEAR_LINE) == [
        "",
        "converting  25 %  a.w",
        "a fact\n",
        "converting  50 %  b.w",
        "Warning: mind this\n",
        "converting  75 %  c.w",
        "",
    ]


@pytest.mark.usefixtures("hasty")
def test_a_long_prompt_shows_progress(model: Path) -> None:
    with contextlib.redirect_stderr(Screen()) as screen, pytest.raises(SystemExit):
        cli.main(["generate", str(model), "-p", "x" * 200, "-n", "0"])
    assert "reading  32 %" in screen.getvalue()
    assert screen.getvalue().endswith(terminal.CLEAR_LINE)


def test_no_progress_in_a_pipe(model: Path) -> None:
    done = run("generate", model, "-p", "x" * 2000, "-n", "0")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
