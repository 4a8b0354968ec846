# SPDX-License-Identifier: Apache-2.0
"""Perplexity and KL divergence, against the sums as they are written, one token after another."""

from __future__ import annotations

import io
import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from conftest import GetModel
from numpy.typing import NDArray
from program import run
from refusal import refuses
from rwkv_edge import FormatError, Model
from rwkv_edge.files.base_file import BaseReader, BaseWriter
from rwkv_edge.model import bundled_model
from rwkv_edge.quantization import perplexity
from rwkv_edge.quantization.text import tokens_of, windows_of

SIZE, WINDOWS = 40, 5


@pytest.fixture(scope="module")
def pair(tiny_model: GetModel) -> tuple[Model, Model]:
    """A model, and another one of its shape that is not far from it."""
    path, _ = tiny_model("f32", "d128", "7")
    rng = np.random.default_rng(2)
    data = bytearray(path.read_bytes())
    file = Model(path)._file
    head = next(tensor for tensor in file.tensors if tensor.name == "output.weight")
    values = head.data.view("<f4") * rng.normal(1, 0.1, head.nbytes // 4).astype("<f4")
    data[head.offset : head.offset + head.nbytes] = values.tobytes()
    other = path.with_name("another.gguf")
    other.write_bytes(data)
    return Model(path), Model(other)


@pytest.fixture(scope="module")
def windows(pair: tuple[Model, Model]) -> NDArray[np.int32]:
    rng = np.random.default_rng(1)
    return rng.integers(0, pair[0].n_vocab, (WINDOWS, SIZE)).astype(np.int32)


def oracle(
    model: Model, base: Model, windows: NDArray[np.int32], first: int
) -> tuple[list[float], list[float], list[bool]]:
    nll, kl, same = [], [], []
    for window in windows.tolist():
        one, two = model.session(), base.session()
        for i, token in enumerate(window[:-1]):
            p, q = (
                np.exp(row - row.max()) / np.exp(row - row.max()).sum()
                for row in (session.feed([token]).astype(float) for session in (one, two))
            )
            if i >= first:
                nll.append(-math.log(p[window[i + 1]]))
                kl.append(float(sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))))
                same.append(bool(p.argmax() == q.argmax()))
    return nll, kl, same


@pytest.mark.parametrize("first", [0, 7])
def test_scores(
    pair: tuple[Model, Model],
    windows: NDArray[np.int32],
    first: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(perplexity, "ROWS", 9)
    monkeypatch.setattr(perplexity, "BLOCK_VALUES", 4 * 300)
    model, base = pair
    seen: list[tuple[int, int]] = []
    found = perplexity.score(
        model, windows, first=first, base=base, progress=lambda *done: seen.append(done)
    )
    nll, kl, same = oracle(model, base, windows, first)
    # Both are sums in double precision over the same float32 logits.
    assert found.nll.ravel().tolist() == pytest.approx(nll, rel=1e-12)
    assert found.kl is not None
    assert found.same_top is not None
    assert found.kl.ravel().tolist() == pytest.approx(kl, abs=1e-12)
    assert found.same_top.ravel().tolist() == same
    assert min(kl) > 0
    assert not all(same)
    assert found.perplexity().mean == pytest.approx(math.exp(sum(nll) / len(nll)))
    kl_estimate = found.divergence()
    assert kl_estimate.low < kl_estimate.mean == pytest.approx(sum(kl) / len(kl))
    assert kl_estimate.mean < kl_estimate.high
    assert seen[-1] == (WINDOWS * SIZE - 1, WINDOWS * SIZE)
    parts = list(found.by_position())
    assert [(low, high) for low, high, _ in parts] == {
        0: [(0, 1), (1, 2), (2, 4), (4, 8), (8, 16), (16, 32), (32, 39)],
        7: [(7, 14), (14, 28), (28, 39)],
    }[first]
    assert sum(part.nll.sum() for _, _, part in parts) == pytest.approx(sum(nll))
    alone = perplexity.score(model, windows, first=first)
    assert np.array_equal(alone.nll, found.nll)
    assert alone.kl is None


def test_a_model_is_no_distance_from_itself(
    pair: tuple[Model, Model], windows: NDArray[np.int32]
) -> None:
    found = perplexity.score(pair[0], windows, base=pair[0])
    assert found.kl is not None
    assert found.first == 32
    assert not found.kl.any()
    assert found.log_ratio() == perplexity.Estimate(0, 0, 0)


def test_the_interval_covers_the_mean() -> None:
    """Of 200 samples of 40 windows, 95 % of the intervals have the true mean in them: less than
    180 of 200 would be a chance of 1 in 200 for an exact interval, and this one is near that."""
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(200):
        values = rng.normal(1, 1, (40, 1)) + rng.normal(0, 1, (40, 30))
        found = perplexity.Scores(0, values, values * 0, values).divergence()
        hits += found.low <= 1 <= found.high
    assert 180 <= hits < 200


def base_file(tmp_path: Path, model: Model, windows: NDArray[np.int32]) -> Path:
    path = tmp_path / "base"
    perplexity.score(model, windows, save=path)
    return path


def test_base_files(pair: tuple[Model, Model], windows: NDArray[np.int32], tmp_path: Path) -> None:
    """Its layout to the byte, its values as the format says, and figures near those of a model."""
    model, base = pair
    path = base_file(tmp_path, base, windows)
    raw = path.read_bytes()
    start = b"_logits_" + struct.pack("<Iii", SIZE, 300, WINDOWS)
    assert raw.startswith(start + windows.tobytes())
    row = np.dtype([("scale", "<f4"), ("least", "<f4"), ("codes", "<u2", 300)])
    rows = np.frombuffer(raw[len(start) + windows.nbytes :], row)
    assert len(rows) == WINDOWS * (SIZE - 1 - SIZE // 2)
    logits = base.session().feed(windows[0].tolist(), logits="all")[SIZE // 2 : -1].astype(float)
    expected = logits - logits.max(1, keepdims=True)
    expected -= np.log(np.exp(expected).sum(1, keepdims=True))
    decoded = rows["scale"][:, None] * rows["codes"].astype(float) + rows["least"][:, None]
    # Half a step of the codes, and float32's rounding of what is up to 16 apart.
    bound = rows["scale"].max() / 2 + 16 * 2**-22
    assert np.abs(decoded[: len(expected)] - expected).max() <= bound
    exact = perplexity.score(model, windows, base=base, first=SIZE // 2)
    with BaseReader(path) as reader:
        found = perplexity.score(model, windows, base=reader)
    assert found.kl is not None
    assert exact.kl is not None
    assert np.array_equal(found.nll, exact.nll)
    # p_base is off by the bound, relatively, in each term; their sum is 1.
    assert np.abs(found.kl - exact.kl).max() <= 4 * bound * (1 + np.abs(logits).max() * 2)


def test_base_file_of_equal_and_far_logits(tmp_path: Path) -> None:
    tokens = np.zeros((1, 4), np.int32)
    with BaseWriter(tmp_path / "equal", tokens, 3) as writer:
        writer.write(np.full((1, 3), 2.0, np.float32))
    with BaseReader(tmp_path / "equal") as reader:
        assert reader.rows(1)[0].tolist() == pytest.approx([-math.log(3)] * 3)
    with BaseWriter(tmp_path / "far", tokens, 3) as writer:
        writer.write(np.array([[0.0, -50.0, 0.0]], np.float32))
    with BaseReader(tmp_path / "far") as reader:
        assert reader.rows(1)[0].tolist() == pytest.approx(
            [-math.log(2), -16 - math.log(2), -math.log(2)]
        )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda raw: b"_Logits_" + raw[8:], "no base file"),
        (lambda raw: raw[:12], "no base file"),
        (lambda raw: raw[:-1], "expected"),
        (lambda raw: raw + b"x", "expected"),
        (lambda raw: raw[:8] + struct.pack("<I", 0) + raw[12:], "n_ctx is 0"),
        (lambda raw: raw[:12] + struct.pack("<i", -1) + raw[16:], "n_vocab is -1"),
        (lambda raw: raw[:16] + struct.pack("<i", 2**31 - 1) + raw[20:], "n_chunk is 2147483647"),
        (lambda raw: raw[:20] + struct.pack("<i", 300) + raw[24:], "tokens . to 300"),
        (lambda raw: raw[: 20 + 4 * 200] + b"\xff" * 4 + raw[24 + 4 * 200 :], "no number"),
    ],
)
def test_damaged_base_files(
    pair: tuple[Model, Model],
    windows: NDArray[np.int32],
    tmp_path: Path,
    change: object,
    text: str,
) -> None:
    path = base_file(tmp_path, pair[0], windows)
    assert callable(change)
    path.write_bytes(change(path.read_bytes()))
    with refuses(FormatError, path, text), BaseReader(path) as reader:
        perplexity.score(pair[0], windows, base=reader)


def test_what_does_not_fit(
    pair: tuple[Model, Model], windows: NDArray[np.int32], tmp_path: Path
) -> None:
    model = pair[0]
    path = base_file(tmp_path, model, windows)
    with BaseReader(path) as reader, refuses(ValueError, path, "another text"):
        perplexity.score(model, windows[:, ::-1], base=reader)
    with refuses(ValueError, bundled_model(), "vocabulary of 1792 .* has 300"):
        perplexity.score(model, windows, base=Model())
    with pytest.raises(ValueError, match="positions from 39 on, expected 0 to 38"):
        perplexity.score(model, windows, first=39)
    with pytest.raises(ValueError, match="positions from 3 on, a base file has those from 20"):
        perplexity.score(model, windows, first=3, save=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    (tmp_path / "folder" / "in").mkdir(parents=True)
    one, two = tmp_path / "folder" / "a", tmp_path / "folder" / "in" / "b"
    one.write_text("Hello you", "utf-8")
    two.write_text("Good morning", "utf-8")
    encode = model.tokenizer.encode
    expected = [*encode("Hello you"), 0, *encode("Good morning")]
    assert tokens_of(model, [tmp_path / "folder"]) == tokens_of(model, [one, two]) == expected
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hello you")))
    assert tokens_of(model, ["-"]) == encode("Hello you")
    assert (
        windows_of(expected, 3, "x").tolist() == [expected[:3], expected[3:6]][: len(expected) // 3]
    )
    with refuses(ValueError, one, f"{len(encode('Hello you'))} tokens, .* one window of 99"):
        windows_of(encode("Hello you"), 99, str(one))
    one.write_bytes(b"ab\xffcd")
    with refuses(ValueError, one, "byte 2 is 0xff, expected a text in UTF-8"):
        tokens_of(model, [one])
    one.write_bytes(b" \n")
    with refuses(ValueError, one, "an empty text"):
        tokens_of(model, [one])
    (tmp_path / "empty").mkdir()
    with refuses(ValueError, tmp_path / "empty", "an empty folder"):
        tokens_of(model, [tmp_path / "empty"])


def test_session_score() -> None:
    model = Model()
    text = "Hello, how are you? " * 50
    ids = model.tokenizer.encode(text)
    assert len(ids) > 256
    session = model.session()
    logits = model.session().feed([0, *ids], logits="all").astype(float)[:-1]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = np.log(shares[np.arange(len(ids)), ids])
    found = session.score(text)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-6)  # sums of float32 terms
    assert session.tokens == len(ids) + 1
    again = model.session()
    split = [*again.score(ids[:5]), *again.score(ids[5:])]
    assert split == found.tolist()
    with pytest.raises(ValueError, match="found none"):
        again.score("")
    with pytest.raises(ValueError, match="outside the vocabulary"):
        again.score([5, 99999])
    assert again.tokens == session.tokens


def test_command(tmp_path: Path) -> None:
    text, base = tmp_path / "text", tmp_path / "base"
    text.write_text("The User says hello, and the Assistant says hello too.\n" * 40, "utf-8")
    model = bundled_model()
    window = ("--window", "64")
    done = run("perplexity", model, text, *window, "--save-base", base, "--by-position")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"from position 32 on" in done.stdout
    assert b"32-62" in done.stdout
    assert b"KL" not in done.stdout
    for against in (model, base):
        more = () if against == base else (text, *window)
        done = run("perplexity", model, *more, "--against", against, "--json", "--by-position")
        assert (done.returncode, done.stderr) == (0, b"")
        found = json.loads(done.stdout)
        # half a step of the file's 16 bits over 16 nats
        assert abs(found["kl"]["mean"]) <= (16 / 65535 / 2 if against == base else 0)
        assert found["same_top"] > 0.99
        assert found["file_bytes"] == model.stat().st_size
        assert found["by_position"][0]["from"] == 32
        assert found["perplexity"]["low"] <= found["perplexity"]["mean"]
    for arguments, message in (
        ((model,), "no TEXT; only a base file has one"),
        ((model, text, "--against", base, "--window", "63"), "has windows of 64"),
        ((model, text, "--window", "4000"), "expected at least one window of 4000"),
        ((model, text, "--first", "600"), "expected 0 to 510"),
    ):
        done = run("perplexity", *arguments)
        assert done.returncode != 0
        assert message in done.stderr.decode()
