# SPDX-License-Identifier: Apache-2.0
"""Text in, numbers out: hidden activations, vectors of texts, tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from click.testing import CliRunner
from conftest import GetModel
from program import run
from reference import oracle
from rwkv_edge import FormatError, Model
from rwkv_edge.cli import main
from tolerances import F32_BOUND, wrong_by

TOKENS = [int(token) for token in np.random.default_rng(1).integers(0, 300, 150)]


@pytest.fixture(params=list(tiny.VERSIONS))
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(tiny_model: GetModel) -> Model:
    return Model(tiny_model("f32", "d128")[0])


# ---- hidden activations -------------------------------------------------------------------------


def test_hidden_values_are_the_oracles(tiny_model: GetModel, version: str) -> None:
    path, made = tiny_model("f32", "d128", version)
    session = Model(path).session()
    layers = session.model.n_layer
    found = session.hidden(TOKENS[:70], range(layers + 1))
    assert found.shape == (layers + 1, 70, 128)
    assert found.dtype == np.float32
    reference = oracle(made.weights)
    reference.forward(TOKENS[:70])
    for values, right in zip(found, reference.residuals, strict=True):
        assert wrong_by(values, right) < F32_BOUND
    # Neighbouring layers are far more apart than that, so none can pass for another.
    for one, other in zip(reference.residuals, reference.residuals[1:], strict=False):
        assert wrong_by(one.astype(np.float32), other) > 100 * F32_BOUND


def test_hidden_values_are_the_same_however_they_are_read(
    tiny_model: GetModel, version: str
) -> None:
    model = Model(tiny_model("q8_0", "d128", version)[0])
    session, plain = model.session(), model.session()
    whole = session.hidden(TOKENS, [-1, 0, 1])
    plain.feed(TOKENS)
    state, right = session.state, plain.state
    assert state.data.tobytes() == right.data.tobytes()
    assert (session.tokens, state.output is None) == (150, False)
    for cut in (1, 7, 64, 65):
        session.reset()
        parts = [
            session.hidden(TOKENS[at : at + cut], [-1, 0, 1]) for at in range(0, len(TOKENS), cut)
        ]
        assert np.concatenate(parts, axis=1).tobytes() == whole.tobytes()
        assert session.state.data.tobytes() == right.data.tobytes()
    turned = model.session().hidden(TOKENS, [0, model.n_layer, 0, -model.n_layer])
    assert turned[1].tobytes() == whole[0].tobytes()
    assert turned[0].tobytes() == turned[2].tobytes() == whole[1].tobytes()
    assert turned[3].tobytes() == whole[2].tobytes()


def test_the_head_reads_the_last_of_them(tiny_model: GetModel) -> None:
    path, made = tiny_model("f32", "d128")
    session = Model(path).session()
    (last,) = session.hidden(TOKENS, [-1])
    x = last[-1].astype(np.float64)
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
    x = x * made.weights["ln_out.weight"] + made.weights["ln_out.bias"]
    output = session.state.output
    assert output is not None
    assert np.abs(output - x).max() < 1e-5 * np.abs(x).max()


def test_hidden_values_that_do_not_exist(model: Model) -> None:
    session = model.session()
    for layer in (4, -5):
        with pytest.raises(ValueError, match=f"layer: found {layer}, expected -4 to 3"):
            session.hidden([1], [0, layer])
    with pytest.raises(TypeError, match="layer: found 'last', expected a whole number"):
        session.hidden([1], ["last"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="found none, expected at least one"):
        session.hidden([], [0])
    assert session.hidden([1, 2], []).shape == (0, 2, 128)
    assert session.tokens == 2


def test_an_interrupt_reads_nothing(model: Model) -> None:
    session = model.session()
    session.read([1, 2])
    before = session.state

    def progress(done: int, total: int) -> None:
        assert total == 150
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.hidden(TOKENS, [0], progress=progress)
    assert session.tokens == 2
    assert session.state.data.tobytes() == before.data.tobytes()


# ---- vectors of texts ---------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("layer", [None, 0, -1, 1])
def test_embeddings(tiny_model: GetModel, pooling: str, layer: int | None) -> None:
    path, made = tiny_model("f32", "d128")
    model = Model(path)
    texts = ["the User", "a", "The long one. " * 100]
    found = model.embed(texts, layer=layer, pooling=pooling)  # type: ignore[arg-type]
    assert found.shape == (3, 128)
    assert found.dtype == np.float32
    for vector, text in zip(found, texts, strict=True):
        reference = oracle(made.weights)
        reference.forward([0, *model.tokenizer.encode(text)])
        stream = reference.residuals[2 if layer is None else layer][1:]
        right = stream[-1] if pooling == "last" else stream.mean(axis=0)
        assert np.abs(vector - right / np.linalg.norm(right)).max() < F32_BOUND
    alone = model.embed(texts[1:2], layer=layer, pooling=pooling)  # type: ignore[arg-type]
    assert alone[0].tobytes() == found[1].tobytes()


def test_what_has_no_embedding(model: Model) -> None:
    assert model.embed([]).shape == (0, 128)
    for text in ("ab", b"ab"):  # and not a vector for each letter
        with pytest.raises(TypeError, match=r"texts: found b?'ab', expected a list of texts"):
            model.embed(text)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="text 1 is empty"):
        model.embed(["a", ""])
    with pytest.raises(ValueError, match="pooling: found 'max', expected 'mean' or 'last'"):
        model.embed(["a"], pooling="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layer: found 4"):
        model.embed(["a"], layer=4)


def test_embed(tiny_model: GetModel, tmp_path: Path) -> None:
    path = tiny_model("f32", "d128")[0]
    right = Model(path).embed(["the", "User", "a b"], layer=1, pooling="last")
    (tmp_path / "texts").write_bytes(b"User\n\na b\n")
    arguments = ["embed", str(path), "-p", "the", "-f", str(tmp_path / "texts"), "--lines"]
    arguments += ["--layer", "1", "--pooling", "last"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    found = np.array([json.loads(line) for line in result.stdout.splitlines()], np.float32)
    assert found.tobytes() == right.tobytes()
    result = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path / "out.npy")])
    assert (result.exit_code, result.output) == (0, "")
    assert np.load(tmp_path / "out.npy").tobytes() == right.tobytes()


# ---- tokens -------------------------------------------------------------------------------------


def test_tokenize(model: Model, tmp_path: Path) -> None:
    data = "the User\n\n日本 \x1b[31m".encode() + bytes(range(256))
    (tmp_path / "text").write_bytes(data)
    ids = model.tokenizer.encode(data)
    hello = model.tokenizer.encode("hello")
    given = ("-p", "hello", "-f", tmp_path / "text")
    done = run("tokenize", model.path, *given, "--ids")
    assert done.stdout.decode().splitlines() == [" ".join(map(str, each)) for each in (hello, ids)]
    done = run("tokenize", model.path, *given, "--count")
    assert done.stdout.decode().split() == [str(len(hello)), str(len(ids))]
    done = run("tokenize", model.path, "-p", "-", "--decode", stdin=" ".join(map(str, ids)))
    assert (done.stdout, done.stderr) == (data, b"")
    done = run("tokenize", model.path, "-p", str(ids), "--decode")
    assert done.stdout == data
    done = run("tokenize", model.path, "-p", "-", stdin=data + b"\n")
    *lines, last = done.stdout.decode().splitlines()
    assert last == f"{len(ids)} tokens"
    assert [int(line[:6]) for line in lines] == ids
    pieces = [eval(line[6:]) for line in lines]
    assert b"".join(p.encode() if isinstance(p, str) else p for p in pieces) == data
    assert done.stdout.isascii() or "日" in done.stdout.decode()
    assert b"\x1b" not in done.stdout


@pytest.mark.parametrize("text", ["300000", "-1", "x", "1 2 é", "9" * 30])
def test_ids_that_do_not_exist(model: Model, text: str) -> None:
    done = run("tokenize", model.path, "-p", text, "--decode")
    assert (done.returncode, done.stdout) == (1, b"")
    expected = f"expected ids from 0 to {model.tokenizer.n_vocab - 1}\n"
    assert done.stderr.decode().endswith(expected)
    assert done.stderr.count(b"\n") == 1


def test_which_texts(model: Model, tmp_path: Path) -> None:
    done = run("tokenize", model.path)
    assert done.returncode == 2
    assert b"no text: name one with -p TEXT or -f FILE" in done.stderr
    done = run("tokenize", model.path, "-p", "x", "--ids", "--count")
    assert done.returncode == 2
    assert b"exclude each other" in done.stderr
    done = run("tokenize", model.path, "-p", "", "--count")
    assert done.stdout == b"0\n"
    missing = run("embed", model.path, "-f", tmp_path / "none")
    assert missing.returncode == 1
    assert b"none: No such file" in missing.stderr


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    made = tiny.tiny_model(tiny.SHAPES["d128"], "f32", 1)
    made.file.drop("tokenizer.ggml.model")
    model = Model(tiny.write(tmp_path, "a.gguf", made))
    assert model.session().hidden([1], [0]).shape == (1, 1, 128)
    with pytest.raises(FormatError, match="no tokenizer"):
        model.embed(["a"])
