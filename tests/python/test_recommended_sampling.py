# SPDX-License-Identifier: Apache-2.0
"""The sampling that a model's file recommends: which keys count, and who uses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
from click.testing import CliRunner
from rwkv_edge import Model, cli
from rwkv_edge.server.service import Options, Service
from scripted import talkative_model
from served import answered, client_of

KEY = "general.sampling."
KEYS = {"temp": (tiny.F32, 0.7), "top_k": (tiny.I32, 40), "top_p": (tiny.F32, 0.9)}
FOUND = {"temperature": 0.7, "top_k": 40, "top_p": 0.9}
LINES = ["-n", "20", "--seed", "1"]


def with_keys(folder: Path, keys: dict[str, tuple[int, Any]]) -> Path:
    made = tiny.tiny_model(tiny.SHAPES["d128"], "f32", 1)
    for name, (kind, value) in keys.items():
        data = tiny.array(tiny.F32, value) if kind == tiny.ARRAY else value
        made.file.put(KEY + name, kind, data)
    return tiny.write(folder, "recommending.gguf", made)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_keys(tmp_path_factory.mktemp("models"), KEYS)


def says(*arguments: str, typed: str = "") -> str:
    found = CliRunner().invoke(cli.main, [*arguments], input=typed)
    assert found.exit_code == 0, found.output
    return str(found.stdout)


def test_what_a_file_recommends(path: Path) -> None:
    assert Model(path, threads=1).recommended_sampling == FOUND
    assert Model(threads=1).recommended_sampling == {}


ODD: dict[str, tuple[int, Any]] = {
    "temp": (tiny.F32, -1.0),
    "top_k": (tiny.I32, -1),
    "top_p": (tiny.F32, 1.5),
    "min_p": (tiny.F32, float("nan")),
}
OTHERS: dict[str, tuple[int, Any]] = {
    "temp": (tiny.STRING, "0.7"),
    "top_k": (tiny.F32, 40.0),
    "top_p": (tiny.BOOL, True),
    "min_p": (tiny.ARRAY, [0.1]),
}
WITHOUT_OURS: dict[str, tuple[int, Any]] = {  # of llama.cpp's keys; the last two nobody has
    "sequence": (tiny.STRING, "top_k;temperature"),
    "xtc_probability": (tiny.F32, 0.5),
    "xtc_threshold": (tiny.F32, 0.1),
    "penalty_last_n": (tiny.I32, 64),
    "penalty_repeat": (tiny.F32, 1.1),
    "mirostat": (tiny.I32, 2),
    "mirostat_tau": (tiny.F32, 5.0),
    "mirostat_eta": (tiny.F32, 0.1),
    "penalty_freq": (tiny.F32, 0.5),
    "penalty_present": (tiny.F32, 0.5),
}


@pytest.mark.parametrize("keys", [ODD, OTHERS, WITHOUT_OURS], ids=["range", "type", "others"])
def test_what_is_left_out(tmp_path: Path, keys: dict[str, tuple[int, Any]]) -> None:
    """Each of its own, and what stands beside it counts."""
    assert Model(with_keys(tmp_path, keys), threads=1).recommended_sampling == {}
    for name, odd in keys.items():
        mixed = {"min_p": (tiny.F32, 0.1), **KEYS, name: odd}
        found = Model(with_keys(tmp_path, mixed), threads=1).recommended_sampling
        expected = {**FOUND, "min_p": 0.1}
        expected.pop({"temp": "temperature"}.get(name, name), None)
        assert found == expected


def test_limits_count(tmp_path: Path) -> None:
    keys = {"temp": (tiny.F32, 0.0), "top_k": (tiny.U32, 0), "top_p": (tiny.F64, 1.0)}
    model = Model(with_keys(tmp_path, {**keys, "min_p": (tiny.F32, 1.0)}), threads=1)
    assert model.recommended_sampling == {"temperature": 0, "top_k": 0, "top_p": 1, "min_p": 1}


def test_generate_takes_it_where_the_user_named_nothing(path: Path) -> None:
    model = Model(path, threads=1)

    def text(**options: Any) -> str:
        return "".join(model.session().generate("the", max_tokens=20, seed=1, **options))

    command = ["generate", str(path), "-p", "the", *LINES]
    assert says(*command) == text(**FOUND)
    assert says(*command, "--top-p", "0.3") == text(**{**FOUND, "top_p": 0.3})  # the default, named
    assert says(*command, "--temperature", "0") == text(temperature=0)
    # From Python only what is asked for counts.
    assert text() == text(temperature=1, top_p=0.3) != text(**FOUND)


def test_the_chat_takes_it_and_shows_it(path: Path, tmp_path: Path) -> None:
    named = ["--temperature", "0.7", "--top-k", "40", "--top-p", "0.9"]
    plain = talkative_model(tmp_path)
    shown = says("chat", str(path), *LINES, "--top-k", "7", typed="/set\n/set top-p 1\n/set\n")
    first, second = shown.partition("temperature")[2].split("temperature")
    assert "        0.7  (recommended by the model's file)\n" in first
    assert "top-k              7\n" in first
    assert "top-p              0.9  (recommended by the model's file)\n" in first
    assert "top-p              1.0\n" in second
    assert "recommended" not in says("chat", str(plain), typed="/set\n")
    typed = "the\nand the\n"
    expected = says("chat", str(path), *LINES, *named, typed=typed)
    assert says("chat", str(path), *LINES, typed=typed) == expected
    defaults = ["--temperature", "1", "--top-k", "0", "--top-p", "0.3"]
    assert says("chat", str(path), *LINES, *defaults, typed=typed) != expected


def test_info_shows_it(path: Path) -> None:
    line = "sampling      --temperature 0.7, --top-k 40, --top-p 0.9 (recommended by the file)\n"
    assert line in says("info", str(path))
    assert "sampling" not in says("info")


def test_the_server_takes_it(path: Path) -> None:
    model = Model(path, threads=1)
    body = {"prompt": "the", "seed": 1, "max_tokens": 20}

    def text(**options: Any) -> str:
        return "".join(model.session().generate("the", max_tokens=20, seed=1, **options))

    with client_of(Service(model, Options(max_tokens=3))) as client:
        params = client.get("/props").json()["default_generation_settings"]["params"]
        assert params == {**FOUND, "max_tokens": 3}
        found = answered(client, "/v1/completions", body)["choices"][0]["text"]
        assert found == text(**FOUND)
        found = answered(client, "/v1/completions", {**body, "top_p": 0.3})["choices"][0]["text"]
        assert found == text(**{**FOUND, "top_p": 0.3})


def test_a_file_with_odd_values_is_served(tmp_path: Path) -> None:
    """Every request failed, before the values were checked."""
    model = Model(with_keys(tmp_path, ODD), threads=1)
    with client_of(Service(model)) as client:
        answered(client, "/v1/completions", {"prompt": "the", "max_tokens": 2})
