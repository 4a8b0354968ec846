# SPDX-License-Identifier: Apache-2.0
"""The commands of a chat, in pipes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from program import GREEDY, run
from rwkv_edge import Model, cli
from rwkv_edge.cli.lines import COMMANDS
from rwkv_edge.cli.options import SAMPLING
from rwkv_edge.cli.talk import HELP, short
from scripted import byte_tokens, play, talkative_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talkative_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def g1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    return talkative_model(folder).rename(folder / "rwkv7-g1-tiny.gguf")


def said(model: Path, typed: str, *arguments: str) -> str:
    """What a chat in a pipe writes."""
    found = CliRunner().invoke(cli.main, ["chat", str(model), *arguments], input=typed)
    assert found.exit_code == 0, found.output
    return str(found.stdout)


def refused(model: Path, typed: str, *arguments: str) -> str:
    """What a chat in a pipe stops at."""
    found = CliRunner().invoke(cli.main, ["chat", str(model), *arguments], input=typed)
    assert found.exit_code in (1, 2), found.output
    return str(found.stderr).splitlines()[-1]


def test_undo(model: Path) -> None:
    a, b = (said(model, f"{text}\n", *GREEDY) for text in "ab")
    both = said(model, "a\nb\n", *GREEDY)
    assert said(model, "a\n/undo\nb\n", *GREEDY) == a + b
    assert said(model, "a\nx\ny\n/undo 2\nb\n", *GREEDY).startswith(a)
    assert said(model, "a\nx\ny\n/undo 2\nb\n", *GREEDY).endswith(both.removeprefix(a))
    assert "nothing was said" in refused(model, "/undo\n")
    assert "expected 1 to 1" in refused(model, "a\n/undo 2\n", *GREEDY)
    assert "/undo: found '-1', expected how many questions" in refused(model, "/undo -1\n")


def test_retry(model: Path) -> None:
    wild = ["--top-p", "0.9", "--max-tokens", "20"]
    seeds = [said(model, "a\n", *wild, "--seed", str(seed)) for seed in (7, 8, 9)]
    assert len(set(seeds)) == 3
    assert said(model, "a\n/retry\n/retry\n", *wild, "--seed", "7") == "".join(seeds)
    assert said(model, "x\n/retry\n/edit a\n", *wild, "--seed", "7").endswith(seeds[0])
    assert "/retry: nothing was asked yet" in refused(model, "/retry\n")
    last = said(model, "a\n", *wild, "--seed", str(2**64 - 1))
    assert said(model, "a\n/retry\n", *wild, "--seed", str(2**64 - 1)) != last * 2


def test_edit(model: Path) -> None:
    first, other = said(model, "a\nb\n", *GREEDY), said(model, "a\nc d\n", *GREEDY)
    found = said(model, "a\nb\n/edit  c d \n", *GREEDY)
    assert found.startswith(first)
    assert other.endswith(found.removeprefix(first))
    assert "/edit needs the new text behind it" in refused(model, "a\n/edit\n", *GREEDY)
    assert "/edit: nothing was asked yet" in refused(model, "/edit a\n")


def test_system(model: Path) -> None:
    kind = said(model, "a\nb\n", *GREEDY, "--system", "Be kind.")
    plain = said(model, "a\n", *GREEDY)
    assert said(model, "/system Be kind.\na\nb\n", *GREEDY) == kind
    assert kind != said(model, "a\nb\n", *GREEDY)
    shown = said(model, "/system\na\n/system Be kind.\n/system\n", *GREEDY)
    assert shown == f"no system text\n{plain}Be kind.\n"


def test_a_system_text_in_a_file_with_a_byte_order_mark(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "system.txt"
    path.write_bytes(b"\xef\xbb\xbfBe kind.\r\n")
    assert said(model, "/system\n", "--system-file", str(path)) == "Be kind.\n"


def test_set(model: Path) -> None:
    short = said(model, "a\n", "--temperature", "0", "--max-tokens", "3")
    typed = "/set temperature 0\n/set max-tokens 3\na\n/set\n"
    shown = said(model, typed)
    assert shown.startswith(short)
    found = dict(re.findall(r"^(\S+) +(\S+)$", shown.removeprefix(short), re.MULTILINE))
    assert list(found) == ["max-tokens", *SAMPLING]
    assert (found["max-tokens"], found["temperature"], found["seed"]) == ("3", "0.0", "None")
    seven = said(model, "a\n", "--top-p", "1", "--seed", "7", "--max-tokens", "9")
    typed = "/set seed 7\na\n/set seed none\n/set\n"
    shown = said(model, typed, "--top-p", "1", "--max-tokens", "9")
    assert shown.startswith(seven)
    assert "seed               None" in shown
    for line, message in {
        "/set warmth 1": "warmth: no such option, expected one of max-tokens, temperature, top-k",
        "/set temperature": "temperature: '' is not a valid float",
        "/set temperature warm": "temperature: 'warm' is not a valid float",
        "/set temperature 2000": "temperature: temperature is 2000",
        "/set top-p 2": "top-p: 2.0 is not in the range",
        "/set max-tokens none": "max-tokens: 'none' is not a valid integer",
    }.items():
        assert message in refused(model, f"{line}\n")


def test_think(g1: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, [*byte_tokens(">Hm\n</think"), *byte_tokens(">\nYes\n\nNo\n\nUser:")])
    assert said(g1, "a\n", "--think", "on") == "Yes\n\nNo\n"  # thoughts are for who watches
    play(monkeypatch, [*byte_tokens(">Hm\n</think"), *byte_tokens(">Yes"), 0])
    assert said(g1, "/think a lot\na\n/think\n/think hide\n/think off\n/think\n") == (
        "Yes\nthinking is lot, and shown\nthinking is off, and hidden\n"
    )
    expected = "/think: found 'much', expected off, fast, bit, on, lot, show or hide"
    assert expected in refused(g1, "/think much\n")
    assert "the template world has no thinking" in refused(model, "/think on\n")
    assert "the template world has no thinking" in refused(model, "", "--think", "on")


def test_tokens(model: Path) -> None:
    read = len(Model(model).tokenizer.encode("User: a\n\nAssistant:"))
    shown = said(model, "/tokens\na\n/tokens\n/undo\n/tokens\n", "--max-tokens", "4", *GREEDY[:2])
    found = [int(number) for number in re.findall(r"(\d+) tokens in (?:0|1) turn", shown)]
    assert found[0] == found[2] == 0
    assert found[1] > read + 1


def test_verbose(model: Path) -> None:
    arguments = ["chat", str(model), "-v", "--lookup", "3", "--max-tokens", "4"]
    found = CliRunner().invoke(cli.main, arguments, input="a\n")
    expected = r"\((\d+) tokens read, \d+ per second; 4 written, [\d.]+ per second; \d+ of \d+ gu"
    match = re.match(expected, found.stderr)
    assert match
    assert int(match[1]) == len(Model(model).tokenizer.encode("User: a\n\nAssistant:"))


def test_files(model: Path, tmp_path: Path) -> None:
    path, note = tmp_path / "a chat.md", tmp_path / "note"
    answer = said(model, f"a\n/export {path}\n", *GREEDY)
    assert path.read_text("utf-8", "replace").startswith("**User:**\n\na\n\n**Assistant:**\n\n")
    message = f"{path}: is there already; `/export! {path}` replaces it"
    assert message in refused(model, f"/export {path}\n")
    said(model, f"/export! {path}\n")
    assert path.read_text() == ""
    note.write_text("mine")
    assert f"`/save! {note}` replaces it" in refused(model, f"/save {note}\n")
    both = said(model, "a\nb\n", *GREEDY)
    said(model, f"a\nb\n/save {tmp_path}/state\n", *GREEDY)
    assert said(model, f"/load {tmp_path}/state\n/undo\nb\n", *GREEDY) == both.removeprefix(answer)


@pytest.mark.parametrize("line", ["/quit", "/help me", "/reset x", "/export", "/load", "/Undo"])
def test_lines_that_are_no_commands(model: Path, line: str) -> None:
    assert refused(model, f"{line}\n").startswith(f"Error: {line.split(maxsplit=1)[0]} ")


def test_help_lists_every_command(model: Path) -> None:
    assert said(model, "/help\n") == f"{HELP}\n"
    assert re.findall(r"^(/\S+)", HELP, re.MULTILINE) == list(COMMANDS)
    assert max(map(len, HELP.splitlines())) < 90


def test_raw(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, [*byte_tokens(" b\n\nc"), 0, *byte_tokens(" d"), 0])
    assert said(model, "\n a\n\n", "--template", "raw") == " b\n\nc\n d\n"


def test_a_template_from_a_file(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text('{"user": "{}\\n", "assistant": "{}\\n", "stop": ["\\n"]}')
    assert said(model, "a\n", "--template", str(path), *GREEDY)
    expected = "--template: found 'none.json', which is no file; expected one or world, g1, raven"
    assert expected in refused(model, "", "--template", "none.json")
    path.write_text("{{ bos }}")
    assert f"Error: {path}: found a Jinja text" in refused(model, "", "--template", str(path))


def test_short() -> None:
    assert short(" a\n\nb ") == "a b"
    assert short("x" * 61) == "x" * 59 + "…"


def test_the_program_says_what_it_found_only_to_people(g1: Path) -> None:
    done = run("chat", g1, *GREEDY, stdin="/exit\n")
    assert (done.stdout, done.stderr) == (b"", b"")
