# SPDX-License-Identifier: Apache-2.0
"""examples/ray: the workers as plain callables, and, where Ray is installed, two of them on a
cluster on this machine."""

from __future__ import annotations

import importlib.util
import json
import socket
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import GetModel
from rwkv_edge import Model, scoring

EXAMPLES = Path(__file__).parents[2] / "examples" / "ray"
PROMPTS = [f"Once {i}" for i in range(40)]


@pytest.fixture(scope="module")
def workers() -> Iterator[ModuleType]:
    yield from module("workers")


def module(name: str) -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found  # as the examples import each other
    spec.loader.exec_module(found)
    yield found
    del sys.modules[name]


@pytest.fixture(scope="module")
def path(tiny_model: GetModel) -> str:
    return str(tiny_model("q8_0", "d128", "7")[0])


def alone(path: str) -> list[str]:
    """The texts, one session after the other."""
    model = Model(path, threads=1)
    return [
        "".join(model.session().generate(prompt, max_tokens=8, seed=5 + i))
        for i, prompt in enumerate(PROMPTS)
    ]


def test_generate(workers: ModuleType, path: str) -> None:
    worker = workers.Generate(path, seed=5, max_tokens=8)
    texts = [""] * len(PROMPTS)
    for some in ([3, 1], list(range(4, 40)), [0, 2]):  # as batches may come
        rows = {"id": np.array(some), "prompt": np.array([PROMPTS[i] for i in some])}
        found = worker(rows)
        assert list(found) == ["id", "prompt", "text"]
        for i, text in zip(some, found["text"], strict=True):
            texts[i] = text
    assert texts == alone(path)


def test_embed(workers: ModuleType, path: str) -> None:
    rows = {"text": np.array(PROMPTS[:3])}
    found = workers.Embed(path)(rows)
    assert np.array_equal(found["embedding"], Model(path).embed(PROMPTS[:3]))


def test_score(workers: ModuleType, path: str) -> None:
    rows = {"context": np.array(["a", "a", ""]), "continuation": np.array(["b", "c", "ab"])}
    found = workers.Score(path)(rows)
    model = Model(path)
    ids = [
        (([0, *model.tokenizer.encode(a)]), model.tokenizer.encode(b))
        for a, b in (("a", "b"), ("a", "c"), ("", "ab"))
    ]
    expected = scoring.score(model, ids)
    assert list(zip(found["logprob"], found["greedy"], strict=True)) == expected


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    found = pytest.importorskip("ray")
    environment = {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(EXAMPLES)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        found.init(
            num_cpus=3,  # of Ray Serve's proxy one
            include_dashboard=False,
            object_store_memory=200 << 20,
            log_to_driver=False,
            runtime_env={"env_vars": environment},
        )
        yield found
        found.shutdown()


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_two_workers_write_what_one_does(
    workers: ModuleType, path: str, ray: Any, tmp_path: Path
) -> None:
    """The example's program, on a file of prompts."""
    assert workers.Generate
    assert ray.is_initialized()
    (write,) = module("write")
    source = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"id": i, "prompt": prompt}) for i, prompt in enumerate(PROMPTS)]
    source.write_text("\n".join(lines))
    write.write(str(source), str(tmp_path / "out"), path, 2, 1, 8, seed=5)
    found: dict[int, str] = {}
    for file in (tmp_path / "out").iterdir():
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        found |= {row["id"]: row["text"] for row in rows}
    assert [found[i] for i in range(len(PROMPTS))] == alone(path)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_two_workers_embed_and_score(workers: ModuleType, path: str, ray: Any) -> None:
    for name, rows in (
        ("Embed", [{"id": i, "text": text} for i, text in enumerate(PROMPTS)]),
        ("Score", [{"id": i, "context": "a", "continuation": x} for i, x in enumerate(PROMPTS)]),
    ):
        made = ray.data.from_items(rows).map_batches(
            getattr(workers, name),
            fn_constructor_args=(path,),
            compute=ray.data.ActorPoolStrategy(size=2),
            num_cpus=1,
            batch_size=8,
        )
        found = sorted(made.take_all(), key=lambda row: int(row["id"]))
        columns = {key: np.array([row[key] for row in rows]) for key in rows[0]}
        expected = getattr(workers, name)(path)(columns)
        for key, values in expected.items():
            assert np.array_equal(np.array([row[key] for row in found]), values), key


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_two_replicas_serve(path: str, ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("starlette")
    serve = pytest.importorskip("ray.serve")
    assert ray.is_initialized()
    monkeypatch.setenv("RWKV_MODEL", path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        (serving,) = module("serving")
        serve.run(serving.app)
        assert serve.status().applications["default"].deployments["Server"].replica_states == {
            "RUNNING": 2
        }
        expected = alone(path)
        for i in range(6):
            body = {"prompt": PROMPTS[i], "max_tokens": 8, "seed": 5 + i, "temperature": 1}
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/completions",
                json.dumps({**body, "top_p": 0.3}).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert json.load(answer)["choices"][0]["text"] == expected[i]
    finally:
        serve.shutdown()
