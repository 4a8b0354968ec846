# SPDX-License-Identifier: Apache-2.0
"""`rwkv-edge batch`: what it writes beside what a session does alone, and what a signal leaves."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import GetModel
from program import PROGRAM, SECONDS, endless_model, run
from rwkv_edge import Conversation, Model, scoring

pytest.importorskip("starlette")

CHAT, TEXT, SCORES = "/v1/chat/completions", "/v1/completions", "/v1/scores"
VECTORS = "/v1/embeddings"


def line(custom_id: str, url: str, **body: Any) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}) + "\n"


def answers(path: Path) -> dict[str | None, Any]:
    found = [json.loads(text) for text in path.read_text("utf-8").splitlines()]
    assert len({each["custom_id"] for each in found}) == len(found)
    return {each["custom_id"]: each["response"] for each in found}


def test_texts_are_those_of_sessions_alone(tmp_path: Path, tiny_model: GetModel) -> None:
    """And so they do not depend on how many are answered together."""
    path, _ = tiny_model("q8_0", "d128")
    model = Model(path)
    source = tmp_path / "in"
    options = {"max_tokens": 9, "top_p": 1, "temperature": 1}
    source.write_text(
        "".join(line(f"{i}", TEXT, prompt=f"text {i}", seed=i, **options) for i in range(20))
    )
    expected = {
        f"{i}": "".join(
            model.session().generate(f"text {i}", seed=i, max_tokens=9, top_p=1, temperature=1)
        )
        for i in range(20)
    }
    for sessions in ("1", "7"):
        target = tmp_path / f"out {sessions}"
        done = run("batch", source, target, "--model", path, "--sessions", sessions)
        assert (done.returncode, done.stdout) == (0, b""), done.stderr
        assert done.stderr.startswith(f"{target}: 20 answered, ".encode())
        texts = {name: each["body"]["choices"][0]["text"] for name, each in answers(target).items()}
        assert texts == expected


def test_chats_scores_vectors_and_lines_that_cannot_be(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    pairs = [("User: hello\n\nAssistant:", [" Hello!", " Zebra"]), ("", ["Once"])]
    source.write_text(
        line("chat", CHAT, messages=[{"role": "user", "content": "Hello!"}], temperature=0)
        + line("two", SCORES, context=pairs[0][0], continuation=pairs[0][1])
        + line("one", SCORES, continuation="Once")
        + line("vectors", VECTORS, input=["a cat", "two cats"])
        + line("ids", VECTORS, input=[[1, 2]])
        + line("empty", SCORES, context="a", continuation="")
        + line("none", SCORES, context="a", continuation=["b", 7])
        + line("prompt", TEXT, prompt={"a": 1})
        + line("stream", TEXT, prompt="a", stream=True)
        + line("state", "/v1/states", prompt="a")
        + line("path", "/../etc/passwd")
        + "no line\n"
    )
    done = run("batch", source, target, "--sessions", "3")
    assert done.returncode == 0, done.stderr
    assert b": 4 answered, 8 errors, " in done.stderr
    found = answers(target)
    model = Model()
    talk = Conversation(model)
    text = "".join(talk.ask("Hello!", temperature=0))
    assert found["chat"]["body"]["choices"][0]["message"]["content"] == text.strip()
    vectors = [each["embedding"] for each in found["vectors"]["body"]["data"]]
    assert (np.array(vectors, np.float32) == model.embed(["a cat", "two cats"])).all()
    encode = model.tokenizer.encode
    for name, (context, texts) in zip(("two", "one"), pairs, strict=True):
        expected = scoring.score(model, [([0, *encode(context)], encode(each)) for each in texts])
        data = found[name]["body"]["data"]
        assert [each["greedy"] for each in data] == [greedy for _, greedy in expected]
        logprobs = [logprob for logprob, _ in expected]
        # Floats have 24 bits, and `score` also takes exp in them, once for each of up to 3 tokens.
        near = pytest.approx(logprobs, rel=2**-23, abs=3 * 2**-22)
        assert [each["logprob"] for each in data] == near
    statuses = {name: each["status_code"] for name, each in found.items()}
    refused: tuple[str | None, ...] = ("ids", "empty", "none", "prompt", "stream", None)
    expected_statuses: dict[str | None, int] = dict.fromkeys(refused, 400)
    expected_statuses |= dict.fromkeys(("chat", "two", "one", "vectors"), 200)
    assert statuses == expected_statuses | dict.fromkeys(("state", "path"), 404)
    assert all("message" in found[name]["body"]["error"] for name in refused)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_batch_goes_on_after_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    path = endless_model(tmp_path)
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_text(
        "".join(line(f"{i}", TEXT, prompt="a", max_tokens=300, temperature=0) for i in range(300))
    )
    command = [*PROGRAM, "batch", str(source), str(target), "--model", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + SECONDS
        while not target.exists() or target.read_bytes().count(b"\n") < 3:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(number)
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert errors == b""
    before = target.read_bytes()
    kept = before[: before.rfind(b"\n") + 1]
    assert kept.count(b"\n") < 300
    assert run(*command[len(PROGRAM) :]).returncode == 0
    assert target.read_bytes().startswith(kept)
    found = answers(target)
    assert len(found) == 300
    assert {each["body"]["choices"][0]["text"] for each in found.values()} == {"a" * 300}


def test_parts_of_a_file(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.write_text("".join(line(f"{i}", TEXT, prompt="a", max_tokens=1) for i in range(7)))
    names = []
    for i in (1, 2):
        target = tmp_path / f"out {i}"
        assert run("batch", source, target, "--shard", f"{i}/2").returncode == 0
        names.append(set(answers(target)))
    assert names == [set("0246"), set("135")]
    wrong = run("batch", source, tmp_path / "out", "--shard", "0/2")
    assert wrong.returncode == 2
    assert b"--shard: 0/2: no part of a file, such as 1/4" in wrong.stderr


def test_without_the_extra(tmp_path: Path) -> None:
    hide = "import sys; sys.modules['starlette'] = None; from rwkv_edge.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", hide, "batch", str(tmp_path / "in"), str(tmp_path / "out")],
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == b"Error: batch needs a package: pip install 'rwkv-edge[server]'\n"
