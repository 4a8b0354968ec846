# SPDX-License-Identifier: Apache-2.0
"""Model, Session and State as users see them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from conftest import GetModel
from rwkv_edge import FormatError, Model, Session, State, UnsupportedError, _core, model

SHAPE = tiny.SHAPES["d192"]
TOKENS = np.random.default_rng(1).integers(0, SHAPE.vocab, 150)


@pytest.fixture(scope="module")
def loaded(tiny_model: GetModel) -> Model:
    return Model(tiny_model("q4_0", "d192")[0], threads=2)


def test_a_model_says_what_it_is(loaded: Model, tiny_model: GetModel) -> None:
    assert loaded.path == tiny_model("q4_0", "d192")[0]
    assert (loaded.arch, loaded.n_layer, loaded.n_embd) == ("rwkv7", SHAPE.layers, SHAPE.width)
    assert (loaded.n_vocab, loaded.head_size) == (SHAPE.vocab, SHAPE.head_size)
    assert loaded.threads == 2
    assert loaded.metadata["general.name"] == "tiny test model"
    assert loaded.metadata["rwkv7.block_count"] == SHAPE.layers
    assert len(loaded.metadata["tokenizer.ggml.tokens"]) == SHAPE.vocab
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("User the\n\n")) == "User the\n\n"
    assert "rwkv7 with 3 layers, width 192, heads of 32" in repr(loaded)


def test_paths_of_any_kind(tiny_model: GetModel) -> None:
    path = tiny_model("q4_0", "d192")[0]
    assert Model(str(path)).n_layer == Model(path).n_layer


def test_no_path_is_the_bundled_model(
    tiny_model: GetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_model("q4_0", "d192")[0]
    monkeypatch.setattr(model, "bundled_model", lambda: path)
    assert Model().path == path


def test_a_missing_bundled_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(model, "__file__", str(tmp_path / "model.py"))
    with pytest.raises(FileNotFoundError, match=r"demo\.gguf: this installation has no demo model"):
        Model()


def test_bad_numbers_of_threads(tiny_model: GetModel) -> None:
    for threads in (0, -1):
        with pytest.raises(ValueError, match=f"threads: found {threads}, expected at least 1"):
            Model(tiny_model("q4_0", "d192")[0], threads=threads)


def test_errors_of_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        Model(tmp_path / "none.gguf")
    assert missing.value.filename == str(tmp_path / "none.gguf")
    path = tmp_path / "text.gguf"
    path.write_text("This is no model.")
    with pytest.raises(FormatError, match=str(path)):
        Model(path)
    assert issubclass(FormatError, ValueError)
    assert issubclass(UnsupportedError, RuntimeError)


def test_a_tokenizer_that_is_too_large(tmp_path: Path) -> None:
    made = tiny.tiny_model(SHAPE, "f32", 1)
    tiny.put_vocabulary(made.file, SHAPE.vocab + 1)
    path = tiny.write(tmp_path, "a.gguf", made)
    with pytest.raises(FormatError, match=r"a\.gguf: a tokenizer of 308 tokens, .* model's 307"):
        _ = Model(path).tokenizer


# ---- feed ---------------------------------------------------------------------------------------


def test_which_logits(loaded: Model) -> None:
    every = loaded.session().feed(TOKENS, logits="all")
    assert every.shape == (len(TOKENS), SHAPE.vocab)
    assert every.dtype == np.float32
    last = loaded.session().feed(TOKENS.tolist())
    assert last.tobytes() == every[-1].tobytes()
    session = loaded.session()
    session.feed(TOKENS[:-1], logits="none")
    assert session.feed(tuple(TOKENS[-1:])).tobytes() == last.tobytes()


def test_progress_changes_nothing_else(loaded: Model) -> None:
    seen: list[tuple[int, int]] = []
    session = loaded.session()
    found = session.feed(TOKENS, logits="all", progress=lambda *at: seen.append(at))
    assert found.tobytes() == loaded.session().feed(TOKENS, logits="all").tobytes()
    assert len(seen) > 1
    assert seen[0] == (0, len(TOKENS))
    assert sorted(seen) == seen


def test_feeding_is_all_or_nothing(loaded: Model) -> None:
    session = loaded.session()
    session.feed(TOKENS[:5])
    before = session.state.data.tobytes()

    def progress(done: int, _: int) -> None:
        if done:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        session.feed(TOKENS, progress=progress)
    assert session.state.data.tobytes() == before


BAD_TOKENS: dict[str, tuple[object, str]] = {
    "none": ([], r"tokens: found shape \[0\], expected \[T\] with T > 0"),
    "negative": ([1, -1], "token -1 is outside the vocabulary of 307"),
    "too large": ([307, 1], "token 307 is outside the vocabulary of 307"),
    "far too large": ([2**40], "token 1099511627776 is outside the vocabulary"),
    "huge": ([2**70], "tokens: found object, expected whole numbers"),
    "two dimensions": ([[1, 2]], r"tokens: found shape \[1, 2\]"),
    "one number": (3, r"tokens: found shape \[\]"),
    "fractions": ([1.0], "tokens: found float64, expected whole numbers"),
    "text": (["a"], "tokens: found <U1, expected whole numbers"),
}


@pytest.mark.parametrize("name", BAD_TOKENS)
def test_bad_tokens(loaded: Model, name: str) -> None:
    tokens, message = BAD_TOKENS[name]
    session = loaded.session()
    with pytest.raises(ValueError, match=message):
        session.feed(tokens)  # type: ignore[arg-type, unused-ignore, call-overload]
    assert not session.state.data.any()


def test_a_wrong_kind_of_logits(loaded: Model) -> None:
    with pytest.raises(ValueError, match="logits: found 'some', expected 'last', 'all' or 'none'"):
        loaded.session().feed([1], logits="some")  # type: ignore[call-overload]


# ---- sessions and states ------------------------------------------------------------------------


def test_a_state_is_a_copy(loaded: Model) -> None:
    session = loaded.session()
    session.feed(TOKENS[:20])
    state = session.state
    expected = session.feed(TOKENS[20:])
    assert loaded.session(state).feed(TOKENS[20:]).tobytes() == expected.tobytes()
    session.reset(state)
    assert session.feed(TOKENS[20:]).tobytes() == expected.tobytes()
    session.reset()
    assert session.state.data.tobytes() == loaded.session().state.data.tobytes()


def test_a_fork_goes_its_own_way(loaded: Model) -> None:
    session = loaded.session()
    session.feed(TOKENS[:20])
    twin = session.fork()
    assert twin.feed(TOKENS[20:30]).tobytes() == session.feed(TOKENS[20:30]).tobytes()
    twin.feed(TOKENS[:3])
    assert twin.state.data.tobytes() != session.state.data.tobytes()
    assert "".join(twin.fork().generate(max_tokens=9, seed=1)) == "".join(
        twin.generate(max_tokens=9, seed=1)
    )


def test_the_parts_of_a_state(loaded: Model) -> None:
    session = loaded.session()
    session.feed(TOKENS)
    state = session.state
    parts = state.numpy()
    heads = SHAPE.width // SHAPE.head_size
    assert {name: part.shape for name, part in parts.items()} == {
        "att_shift": (SHAPE.layers, SHAPE.width),
        "wkv": (SHAPE.layers, heads, SHAPE.head_size, SHAPE.head_size),
        "ffn_shift": (SHAPE.layers, SHAPE.width),
    }
    layers = [
        np.concatenate([parts[name][i].ravel() for name in ("att_shift", "wkv", "ffn_shift")])
        for i in range(SHAPE.layers)
    ]
    assert np.concatenate(layers).tobytes() == state.data.tobytes()
    parts["wkv"][:] = 0
    assert not loaded.session(state).state.numpy()["wkv"].any()


def test_a_saved_state(loaded: Model, tmp_path: Path) -> None:
    session = loaded.session()
    session.feed(TOKENS)
    session.state.save(tmp_path / "a.state")
    found = State.load(tmp_path / "a.state")
    assert found.data.tobytes() == session.state.data.tobytes()
    assert found.shape == session.state.shape
    assert loaded.session(found).feed([1]).tobytes() == session.feed([1]).tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["a.state"]


def test_a_state_of_another_model(loaded: Model, tiny_model: GetModel, tmp_path: Path) -> None:
    other = Model(tiny_model("f32", "d128")[0])
    state = other.session().state
    state.save(tmp_path / "a.state")
    message = (
        r"width 128, heads of 64 does not fit .*tiny-d192-q4_0\.gguf: .*width 192, heads of 32"
    )
    with pytest.raises(FormatError, match=f"^this state: a state of rwkv7 .*{message}"):
        loaded.session(state)
    with pytest.raises(FormatError, match=rf"^{tmp_path}/a\.state: .*{message}"):
        loaded.session().reset(State.load(tmp_path / "a.state"))


def test_a_state_of_wrong_size(loaded: Model) -> None:
    state = loaded.session().state
    for data in (state.data[:-1], state.data.astype(np.float64)):
        with pytest.raises(ValueError, match="a state of rwkv7 with 3 layers"):
            State(data, state.shape)  # type: ignore[arg-type]


def saved_state() -> tiny.Gguf:
    file = tiny.Gguf()
    file.put("rwkv_edge.state.arch", tiny.STRING, "rwkv7")
    for name, value in (("n_layer", 2), ("n_embd", 8), ("head_size", 4)):
        file.put(f"rwkv_edge.state.{name}", tiny.U32, value)
    file.tensors.append(tiny.Entry("state", [96], 0, bytes(4 * 96)))
    return file


def put(name: str, value: int) -> Callable[[tiny.Gguf], None]:
    return lambda file: file.put(f"rwkv_edge.state.{name}", tiny.U32, value)


BAD_STATES: dict[str, tuple[Callable[[tiny.Gguf], None], str]] = {
    "no state": (lambda file: file.drop("rwkv_edge.state.arch"), "not a saved state"),
    "no layers": (lambda file: file.drop("rwkv_edge.state.n_layer"), "n_layer: found None"),
    "0 layers": (put("n_layer", 0), "n_layer: found 0, expected a positive whole number"),
    "head size": (put("head_size", 3), "n_embd is 8, expected a multiple of .*head_size 3"),
    "size": (put("n_layer", 3), r"tensor state: found f32 \[96\], expected f32 \[144\]"),
    "huge": (put("n_layer", 2**32 - 1), r"expected f32 \[206158430160\]"),
    "no tensor": (lambda file: file.tensors.clear(), "tensor state: found none"),
    "text": (
        lambda file: file.put("rwkv_edge.state.n_embd", tiny.STRING, "8"),
        "n_embd: found '8'",
    ),
}


@pytest.mark.parametrize("name", BAD_STATES)
def test_bad_state_files(tmp_path: Path, name: str) -> None:
    change, message = BAD_STATES[name]
    file, path = saved_state(), tmp_path / "a.state"
    path.write_bytes(file.to_bytes())
    assert State.load(path).shape.n_layer == 2
    change(file)
    path.write_bytes(file.to_bytes())
    with pytest.raises(FormatError, match=message) as caught:
        State.load(path)
    assert str(caught.value).startswith(str(path))


def test_a_state_is_not_saved_into_nothing(loaded: Model, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no such folder"):
        loaded.session().state.save(tmp_path / "none" / "a.state")


def test_sessions_in_several_threads(loaded: Model) -> None:
    def run(session: Session, seed: int) -> bytes:
        tokens = np.random.default_rng(seed).integers(0, SHAPE.vocab, 60)
        text = "".join(session.generate(tokens.tolist(), max_tokens=60, seed=seed, top_p=1))
        return text.encode() + session.state.data.tobytes()

    expected = [run(loaded.session(), seed) for seed in range(6)]
    found: dict[int, bytes] = {}

    def work(seed: int) -> None:
        found[seed] = run(loaded.session(), seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[seed] for seed in range(6)] == expected


def test_a_state_outlives_its_model(tiny_model: GetModel) -> None:
    session = Model(tiny_model("q4_0", "d192")[0]).session()
    session.feed([1, 2, 3])
    state = session.state
    assert isinstance(session, Session)
    del session
    assert np.isfinite(state.data).all()


def test_the_version() -> None:
    import rwkv_edge

    assert rwkv_edge.__version__.count(".") == 2
    assert all(hasattr(rwkv_edge, name) for name in rwkv_edge.__all__)
    assert _core.isa() in _core.isa_levels()
