# SPDX-License-Identifier: Apache-2.0
"""Model and Session as users see them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from importlib.metadata import version
from pathlib import Path

import checkpoints as ck
import numpy as np
import pytest
import rwkv_edge
import tiny
from conftest import GetModel
from refusal import refuses
from rwkv_edge import (
    Conversation,
    FormatError,
    Model,
    Session,
    State,
    UnsupportedError,
    _core,
    model,
    model_file,
)

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
    assert "rwkv7 with 3 layers, width 192, 6 heads of 32" in repr(loaded)


@pytest.mark.parametrize(
    "name", ["a model", "m\u00f6del \u6a21\u578b", os.fsdecode(b"no utf-8 \xff")]
)
def test_paths_of_any_kind(tiny_model: GetModel, tmp_path: Path, name: str) -> None:
    """A GGUF file, a checkpoint and a state, as text or as a path."""
    file, made = tiny_model("q4_0", "d192")
    try:
        path = ck.write(tmp_path, file.read_bytes(), f"{name}.gguf")
    except OSError as error:
        pytest.skip(f"no such names here: {error}")
    expected = Model(file).session().feed([1, 2]).tobytes()
    for kind in (str, Path):
        found = Model(kind(path))
        assert found.path == path
        assert found.session().feed([1, 2]).tobytes() == expected
    pth = ck.write(tmp_path, ck.pth_of(made.weights), f"{name}.pth")
    assert Model(pth).path == pth
    state = tmp_path / f"{name}.state"
    Model(path).session().state.save(str(state))
    assert State.load(state).source == str(state)
    ck.write(tmp_path, b"no model", path.name)
    with refuses(FormatError, path, "neither a GGUF"):
        Model(path)


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
    for threads in (0, -1, 1025, 2**70):
        with pytest.raises(ValueError, match=f"threads: found {threads}, expected 1 to 1024"):
            Model(tiny_model("q4_0", "d192")[0], threads=threads)
    with pytest.raises(TypeError, match=r"threads: found 1\.5, expected a whole number"):
        Model(tiny_model("q4_0", "d192")[0], threads=1.5)  # type: ignore[arg-type]


def test_errors_of_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        Model(tmp_path / "none.gguf")
    assert missing.value.filename == str(tmp_path / "none.gguf")
    path = tmp_path / "text.gguf"
    path.write_text("This is no model.")
    with refuses(FormatError, path):
        Model(path)
    assert issubclass(FormatError, ValueError)
    assert issubclass(UnsupportedError, RuntimeError)


def test_a_tokenizer_that_is_too_large(tmp_path: Path) -> None:
    made = tiny.tiny_model(SHAPE, "f32", 1)
    tiny.put_vocabulary(made.file, SHAPE.vocab + 1)
    path = tiny.write(tmp_path, "a.gguf", made)
    with refuses(FormatError, path, r"a\.gguf: a tokenizer of 308 tokens, .* model's 307"):
        _ = Model(path).tokenizer


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="not on this system")
def test_one_thread_for_each_core_that_may_be_used() -> None:
    code = (
        "import os; from rwkv_edge.model_file import default_threads; "
        "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); print(default_threads(1 << 40))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "1\n"


# What Linux tells: the averages of 1, 5 and 15 minutes, how many tasks run of how many there are.
# This process is one of them.
LOADS = {
    "idle": ("0.00 0.10 0.50 1/140 2\n", 0),
    "busy": ("2.40 3.00 2.00 4/140 2\n", 2),
    "busier now": ("2.40 3.00 2.00 9/140 2\n", 2),
    "busy until now": ("7.90 3.00 2.00 1/140 2\n", 0),
    "busy from now on": ("0.10 0.00 0.00 8/140 2\n", 0),
    "busier than there are cores": ("99.00 99.00 99.00 99/140 2\n", 98),
    "a system that does not tell": ("0.00 0.00 0.00 0/0 0\n", 0),
    "another system": ("", 0),
}


@pytest.mark.parametrize("name", LOADS)
def test_threads_leave_busy_cores_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    text, busy = LOADS[name]
    monkeypatch.setattr(model_file, "LOAD", ck.write(tmp_path, text.encode(), "loadavg"))
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert model_file.busy_cores() == busy
    assert model_file.default_threads(1 << 40) == max(1, 6 - busy)
    monkeypatch.setattr(os, "cpu_count", lambda: 200)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(200)), raising=False)
    assert model_file.default_threads(1 << 40) == 8


def test_a_small_model_has_few_threads(
    tiny_model: GetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_file, "LOAD", Path("no such file"))
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    share = model_file.SHARE
    found = [model_file.default_threads(n * share) for n in (0, 1, 2, 5, 9)]
    assert found == [1, 1, 2, 5, 6]
    assert model_file.default_threads(2 * share - 1) == 1
    path = tiny_model("q4_0", "d192")[0]
    assert Model(path).threads == 1
    needed = model_file.bytes_per_token(_core.ModelFile(path))
    monkeypatch.setattr(model_file, "SHARE", needed // 3)
    assert Model(path).threads == 3


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


def test_reading_for_a_generation(loaded: Model) -> None:
    session = loaded.session()
    session.read(TOKENS[:9])
    session.read(TOKENS[9:].tolist(), progress=lambda *_: None)
    found = "".join(session.generate(max_tokens=9, seed=1))
    assert found == "".join(loaded.session().generate(TOKENS.tolist(), max_tokens=9, seed=1))


def test_logits_may_be_written_to(loaded: Model) -> None:
    session = loaded.session()
    session.feed(TOKENS)[:] = np.nan
    assert "".join(session.generate(max_tokens=9, seed=1)) == "".join(
        loaded.session().generate(TOKENS.tolist(), max_tokens=9, seed=1)
    )


FIRST_TOKEN = """
import sys
from rwkv_edge import Model

for _ in Model(sys.argv[1]).session().generate("the", max_tokens=3):
    pass
print([name for name in ("numpy", "sentencepiece", "rwkv_edge.convert") if name in sys.modules])
"""


def test_what_a_first_token_imports(tiny_model: GetModel) -> None:
    """Importing any of these takes longer than the opening of a model."""
    command = [sys.executable, "-c", FIRST_TOKEN, str(tiny_model("q4_0", "d192")[0])]
    assert subprocess.check_output(command, text=True) == "[]\n"


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


NO_NUMBERS = ", expected a list or an array of whole numbers"
BAD_TOKENS: dict[str, tuple[object, str]] = {
    "none": ([], "tokens: found none, expected at least one"),
    "negative": ([1, -1], "token -1 is outside the vocabulary of 307"),
    "too large": ([307, 1], "token 307 is outside the vocabulary of 307"),
    "far too large": ([2**70], "token 1180591620717411303424 is outside the vocabulary of 307"),
    "two dimensions": ([[1, 2]], NO_NUMBERS),
    "an array of two dimensions": (np.ones((1, 1), int), NO_NUMBERS),
    "one number": (3, NO_NUMBERS),
    "an array of none": (np.array(3), NO_NUMBERS),
    "fractions": ([1.0], NO_NUMBERS),
    "an array of fractions": (np.ones(1), NO_NUMBERS),
    "text": ("a", NO_NUMBERS),
    "bytes": (b"a", "tokens: found bytes" + NO_NUMBERS),
    "bytes that can change": (bytearray(b"a"), "tokens: found bytearray" + NO_NUMBERS),
}


@pytest.mark.parametrize("name", BAD_TOKENS)
def test_bad_tokens(loaded: Model, name: str) -> None:
    tokens, message = BAD_TOKENS[name]
    session = loaded.session()
    with pytest.raises(ValueError, match=re.escape(message)):
        session.feed(tokens)  # type: ignore[arg-type, unused-ignore, call-overload]
    assert not session.state.data.any()


@pytest.mark.parametrize("prompt", [b"User: hi", 5, None, [1.5]])
def test_prompts_that_are_no_tokens(loaded: Model, prompt: object) -> None:
    with pytest.raises(ValueError, match=re.escape(NO_NUMBERS)):
        loaded.session().generate(prompt)  # type: ignore[arg-type]


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


def test_a_path_is_no_state(loaded: Model) -> None:
    message = re.escape("state: found 'z.state', expected a State, as State.load(path) gives")
    for take in (loaded.session, loaded.session().reset):
        with pytest.raises(TypeError, match=message):
            take("z.state")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=message):
        Conversation(loaded, state="z.state")  # type: ignore[arg-type]


def test_a_template_that_is_none(loaded: Model) -> None:
    message = "template: found 'x', expected one of world, g1, raven, instruct, raw"
    with pytest.raises(ValueError, match=message):
        Conversation(loaded, template="x")


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
    assert rwkv_edge.__version__ == version("rwkv-edge")
    assert all(hasattr(rwkv_edge, name) for name in rwkv_edge.__all__)
    assert _core.isa() in _core.isa_levels()
