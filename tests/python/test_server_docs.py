# SPDX-License-Identifier: Apache-2.0
"""The examples of docs/server.md do what stands there; and the program as it is started."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import subprocess
from pathlib import Path

import httpx
import pytest
from program import PROGRAM, SECONDS
from rwkv_edge import Model
from rwkv_edge.server.service import Service
from served import answered, ask, content, serving

TEXT = (Path(__file__).parents[2] / "docs" / "server.md").read_text("utf-8")
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("anthropic", "ollama"):
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    printed = ""
    with serving(Service(Model(threads=1))) as url:
        try:
            for kind, text in BLOCK.findall(TEXT):
                if kind == "text":
                    assert printed == text
                    continue
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    exec(compile(text.replace("http://localhost:8080", url), "docs", "exec"), names)
                printed = out.getvalue()
        finally:
            for name in names.keys() & {"client", "http", "house", "sdk"}:
                names[name].close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda x: x.name)
def test_the_program(tmp_path: Path, number: signal.Signals) -> None:
    """It says where it is, serves, and ends when it is asked to."""
    keys = tmp_path / "keys"
    keys.write_text("key-of-the-test\n")
    command = [*PROGRAM, "serve", "--port", "0", "--api-key-file", str(keys), "-v"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline().decode()
        found = re.search(r"demo at (http://127\.0\.0\.1:\d+) \(OpenAI's API: ", line)
        assert found is not None, line + process.stderr.read().decode()
        with httpx.Client(base_url=found[1], timeout=SECONDS) as client:
            headers = {"authorization": "Bearer key-of-the-test"}
            assert content(answered(client, "/v1/chat/completions", ask("Hello!"), **headers))
        process.send_signal(number)
        process.wait(SECONDS)
        errors = process.stderr.read().decode()
    assert "POST /v1/chat/completions 200" in errors
    assert "Hello" not in errors
    assert "Traceback" not in errors
    assert process.returncode in (0, 130, -number)


def test_a_port_that_is_taken() -> None:
    with serving(Service(Model(threads=1))) as url:
        port = url.rpartition(":")[2]
        done = subprocess.run(
            [*PROGRAM, "serve", "--port", port], capture_output=True, timeout=SECONDS, check=False
        )
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert b"in use" in done.stderr
