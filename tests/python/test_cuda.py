# SPDX-License-Identifier: Apache-2.0
"""Models on a GPU, or on its emulation: against the oracle, beside the CPU, and what can go wrong.

In a build with RWKV_EDGE_CUDA=EMULATE the GPU is emulated. There the variable RWKV_EDGE_DEVICE=cuda
runs other tests of models on it as well.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import ggml_types as ggml
import numpy as np
import pytest
import tiny
from click.testing import CliRunner
from conftest import GetModel
from reference import comparable, oracle
from rwkv_edge import Model, UnsupportedError, _core, cli
from rwkv_edge.convert import quantize
from rwkv_edge.generation import Options, Sampling
from rwkv_edge.model_file import open_model_file
from scripted import talkative_model
from tolerances import F32_BOUND, worst

WHY = _core.why_no_cuda()
on_gpu = pytest.mark.skipif(bool(WHY), reason=WHY or "there is a GPU")
emulated = pytest.mark.skipif(
    _core.cuda_devices()[:1] != ["emulated GPU"], reason="needs a build that emulates"
)

# The K types come in blocks of 256 columns.
CASES = [(version, kind, "d256") for version in tiny.VERSIONS for kind in ggml.K_TYPES]
CASES += [
    (version, kind, "d192")
    for version in tiny.VERSIONS
    for kind in ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1")
]
TOKENS = np.random.default_rng(5).integers(0, 64, 22).tolist()


def bits(array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bytes:
    return array.tobytes()


@on_gpu
@pytest.mark.parametrize(("version", "kind", "shape"), CASES)
def test_every_version_and_type_agrees_with_the_oracle(
    tiny_model: GetModel, version: str, kind: str, shape: str
) -> None:
    """Weights are exact and inputs have 22 bits, so the bound is that of single precision. Tokens
    taken one by one, of which all but the first are recordings, give the same bits."""
    path, made = tiny_model(kind, shape, version)
    right, end = oracle(made.weights).forward(TOKENS)
    session = Model(path, device="cuda").session()
    found = session.feed(TOKENS, logits="all")
    assert worst(found - right)[1:].max() < F32_BOUND * right.std()
    state, expected = comparable(session.state.numpy()), comparable(end)
    for part in expected:
        error = np.abs(state[part] - expected[part]).max()
        assert error < F32_BOUND * expected[part].std(), part
    again = session.model.session()
    parts = [again.feed(TOKENS[:17], logits="all")]
    parts += [again.feed([token], logits="all") for token in TOKENS[17:]]
    assert bits(np.concatenate(parts)) == bits(found)
    assert bits(again.state.data) == bits(session.state.data)


@on_gpu
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])  # of others the CPU rounds inputs
def test_a_matrix_by_input_agrees_with_one_by_output(
    tmp_path: Path, tiny_model: GetModel, kind: str
) -> None:
    path, _ = tiny_model("f32", "d128")
    target = tmp_path / "sparse.gguf"
    quantize(path, target, type=kind, sparse_ffn=True)
    on_cpu, on_gpu = (Model(target, device=device).session() for device in ("cpu", "cuda"))
    right, found = (
        session.feed(TOKENS, logits="all").astype(float) for session in (on_cpu, on_gpu)
    )
    assert worst(found - right)[1:].max() < F32_BOUND * right.std()
    steps = Model(target, device="cuda").session()
    again = np.concatenate([steps.feed([t], logits="all") for t in TOKENS])
    assert (again.astype(float) == found).all()


@on_gpu
@pytest.mark.parametrize("version", tiny.VERSIONS)
def test_states_move_between_devices(tiny_model: GetModel, version: str) -> None:
    path, _ = tiny_model("f16", "d128", version)
    on_cpu, on_gpu = Model(path, device="cpu"), Model(path, device="cuda")
    assert on_cpu.device.startswith("cpu ")
    assert on_gpu.device.startswith("cuda:0 ")
    for here, there in ((on_cpu, on_gpu), (on_gpu, on_cpu)):
        first = here.session()
        first.feed(TOKENS)
        second = there.session(first.state)
        assert bits(second.state.data) == bits(first.state.data)
        right, found = first.feed([7, 3]), second.feed([7, 3])
        assert np.abs(found - right).max() < F32_BOUND * right.std()


@on_gpu
def test_text_is_that_of_the_cpu() -> None:
    prompt = "User: hi\n\nAssistant:"
    texts = [
        "".join(Model(device=device).session().generate(prompt, max_tokens=8, temperature=0))
        for device in ("cpu", "cuda")
    ]
    assert texts[0] == texts[1] != ""


@on_gpu
def test_company_and_interruption_change_no_bit(tiny_model: GetModel) -> None:
    model = Model(tiny_model("q4_0", "d192")[0], device="cuda")
    sessions = [model.session() for _ in range(5)]
    prompts = [TOKENS[:n] for n in (1, 22, 3, 9, 1)]
    batch = model.batch(sessions)

    def stop(done: int, total: int) -> None:  # noqa: ARG001
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batch.feed([[1] * 50] * 5, progress=stop)
    together = [batch.feed(prompts)]
    together += [batch.feed([[token]] * 5) for token in (4, 5, 6)]
    for i, prompt in enumerate(prompts):
        alone = model.session()
        rows = [alone.feed(prompt), *(alone.feed([token]) for token in (4, 5, 6))]
        assert bits(np.array(rows)) == bits(np.array([step[i] for step in together]))


def stay_or_copy(monkeypatch: pytest.MonkeyPatch, stay: bool) -> list[object]:
    """Where the logits of generated texts are; what the engine gave comes to the list."""
    feed, given = _core.feed_together, list[object]()

    def feeding(parts: Any, progress: Any = None, _stay: bool = False) -> object:
        given.append(feed(parts, progress, stay))
        return given[-1]

    monkeypatch.setattr(_core, "feed_together", feeding)
    return given


def upside_down(logits: np.ndarray[Any, np.dtype[np.float32]], _tokens: list[int]) -> None:
    logits *= -1


SETTINGS: list[Sampling] = [
    {"temperature": 0},
    {"top_p": 0.9, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    {"top_p": 1, "top_k": 9, "temperature": 1.5, "logit_bias": {7: 3.0, 8: -3.0}},
    {"top_p": 0.8, "typical_p": 0.9, "min_p": 0.02, "banned": [1, 2, 3]},
    {"top_p": 0.9, "logprobs": 3},
    {"top_p": 0.9, "logits_hook": upside_down},
    {"top_p": 0.9, "max_tokens": 0},
    {"top_p": 0.9, "forced": [4, 5], "penalty_window": 4, "frequency_penalty": 2.0},
]


@on_gpu
@pytest.mark.parametrize("lookup", [0, 4])
def test_texts_are_those_from_a_copy_of_the_logits(
    tiny_model: GetModel, monkeypatch: pytest.MonkeyPatch, lookup: int
) -> None:
    """One by one and together; the rows of logits that are copied are those that were asked for."""
    path = tiny_model("f32", "d128")[0]
    model = Model(talkative_model(path.parent), device="cuda")
    options: list[Options] = [
        cast(Options, {"max_tokens": 24, "seed": i, "lookup": lookup, **setting})
        for i, setting in enumerate(SETTINGS)
    ]
    found: dict[bool, list[object]] = {}
    for stay in (True, False):
        with monkeypatch.context() as patched:
            given = stay_or_copy(patched, stay)
            pieces = [model.session().generate("abcabc", **each) for each in options]
            texts = ["".join(each) for each in pieces]
            sessions = [model.session() for _ in options]
            together = model.batch(sessions).generate("abcabc", each=options)
            shared = [""] * len(options)
            for i, piece in together:
                shared[i] += piece
            assert shared == texts
            assert [each.tokens for each in together.details] == [
                each.details.tokens for each in pieces
            ]
            found[stay] = [texts, [each.details.logprobs for each in pieces]]
            found[stay] += [bits(session.state.data) for session in sessions]
            kind = _core.KeptLogits if stay else bytearray
            assert given
            assert all(isinstance(each, kind) for each in given)
    assert found[True] == found[False]
    assert len(set(found[True][0])) > 5  # type: ignore[call-overload]


@on_gpu
def test_forms_of_texts_in_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llguidance")
    model = Model(device="cuda")
    each: list[Options] = [{"regex": "[0-9]{6}"}, {}, {"choices": ["north", "south"]}]
    found = []
    for stay in (True, False):
        with monkeypatch.context() as patched:
            stay_or_copy(patched, stay)
            texts = [""] * 3
            batch = model.batch(model.session() for _ in each)
            for i, piece in batch.generate("a", each=each, seed=5, top_p=0.9, max_tokens=8):
                texts[i] += piece
        found.append(texts)
    assert found[0] == found[1]
    assert re.fullmatch("[0-9]{6}", found[0][0])
    assert found[0][2] in ("north", "south")


@on_gpu
def test_kept_logits_and_their_refusals(tiny_model: GetModel) -> None:
    model = Model(tiny_model("f16", "d128")[0], device="cuda")
    core = model.session()._engine
    kept = _core.feed_together([(core, TOKENS, _core.Logits.all)], None, True)
    assert isinstance(kept, _core.KeptLogits)
    assert kept.rows == len(TOKENS)
    right = model.session().feed(TOKENS, logits="all")
    assert all(kept.row(i) == bits(row) for i, row in enumerate(right))
    model.session().feed([1, 2, 3], logits="all")  # another step does not touch them
    assert kept.row(2) == bits(right[2])
    greedy = [_core.Sampler(temperature=0) for _ in TOKENS]
    choices = [(sampler, i, None) for i, sampler in enumerate(greedy)]
    assert kept.sample(choices) == right.argmax(1).tolist()
    assert kept.sample([]) == []
    for row in (-1, len(TOKENS)):
        with pytest.raises(ValueError, match=f"row {row} of logits, found 22 rows"):
            kept.row(row)
        with pytest.raises(ValueError, match=f"row {row} of logits, found 22 rows"):
            greedy[0].sample(kept, row)
    with pytest.raises(ValueError, match="a sampler occurs twice"):
        kept.sample([choices[0], choices[0]])
    on_cpu = Model(tiny_model("f16", "d128")[0], device="cpu").session()._engine
    parts = [(on_cpu, TOKENS, _core.Logits.last)]
    assert _core.feed_together(parts, None, True) == _core.Session.feed(
        Model(tiny_model("f16", "d128")[0], device="cpu").session()._engine,
        TOKENS,
        _core.Logits.last,
    )
    with pytest.raises(ValueError, match="sessions of several models"):
        _core.feed_together([(core, [1], _core.Logits.last), *parts], None, True)


@on_gpu
def test_an_exception_in_the_middle_of_a_batch_that_generates(
    tiny_model: GetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hook of one, and then the engine, raise: every session stands where its text ends."""
    model = Model(talkative_model(tiny_model("f32", "d128")[0].parent), device="cuda")

    def hook(_logits: object, tokens: list[int]) -> None:
        if len(tokens) == 3:
            raise KeyError

    def broken(*_: object) -> None:
        raise KeyError

    for who in ("hook", "engine"):
        sessions = [model.session() for _ in range(3)]
        each: list[Options] = [{}, {"logits_hook": hook} if who == "hook" else {}, {}]
        pieces = model.batch(sessions).generate("ab", each=each, seed=3, top_p=0.9)
        while len(pieces.details[2].tokens) < 3:
            next(pieces)
        with monkeypatch.context() as patched:
            if who == "engine":
                patched.setattr(_core, "feed_together", broken)
            with pytest.raises(KeyError):
                list(pieces)
        for session, details in zip(sessions, pieces.details, strict=True):
            assert details.tokens
            expected = model.session()
            expected.read([*model.tokenizer.encode("ab"), *details.tokens])
            assert bits(session.state.data) == bits(expected.state.data)


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="device 'gpu', expected 'cpu', 'cuda' or 'cuda:1'"):
        Model(device="gpu")
    with pytest.raises(ValueError if not WHY else UnsupportedError, match=WHY or "'cuda:99', exp"):
        Model(device="cuda:99")
    assert Model(device="cpu").device == f"cpu {_core.isa()}"
    devices = f"cpu (no cuda: {WHY})" if WHY else f"cpu, cuda:0 {_core.cuda_devices()[0]}"
    assert f"\ndevices       {devices}" in CliRunner().invoke(cli.main, ["info"]).output


@pytest.mark.skipif(not WHY, reason="this build has CUDA")
@pytest.mark.parametrize("command", ["generate", "chat", "bench"])
def test_the_program_says_why_there_is_no_gpu(command: str) -> None:
    prompt = ["-p", "a"] if command == "generate" else []
    result = CliRunner().invoke(cli.main, [command, *prompt, "--device", "cuda"])
    assert result.exit_code == 1
    assert result.stderr == f"Error: device 'cuda:0': {WHY}\n"


@on_gpu
def test_bench_measures_the_card_and_has_no_threads(tiny_model: GetModel) -> None:
    path = str(tiny_model("q4_0", "d128")[0])
    short = ["-p", "4", "-n", "2", "-r", "1", "--device", "cuda"]
    done = CliRunner().invoke(cli.main, ["bench", path, *short, "--sessions", "1,2", "--json"])
    assert (done.exit_code, done.stderr) == (0, "")
    rows = json.loads(done.stdout)["results"]
    assert [(row["test"], row["sessions"]) for row in rows] == [("pp4", 1), ("tg2", 1), ("tg2", 2)]
    for row in rows:
        assert row["device"].startswith("cuda:0 ")
        assert all(limit > 0 for limit in row["limits"].values())
        assert row["share"] > 0
    done = CliRunner().invoke(cli.main, ["bench", path, *short])
    assert re.search(r"\npp4 +[\d.]+ tokens/s +\d+% of the peak \(f16 [\d.]+ TFLOPS\)", done.stdout)
    refused = CliRunner().invoke(cli.main, ["bench", path, *short, "-t", "2"])
    assert refused.exit_code == 2
    assert "--threads is for --device cpu, found --device cuda" in refused.stderr


def test_the_limits_of_a_device_that_is_no_gpu() -> None:
    with pytest.raises(ValueError, match="device 'cpu', expected 'cuda'"):
        _core.gpu_limits("cpu")
    with pytest.raises(UnsupportedError if WHY else ValueError, match="device 'cuda:99'"):
        _core.gpu_limits("cuda:99")


@on_gpu
@pytest.mark.parametrize("command", ["embed", "tokenize", "generate"])
def test_commands_that_take_a_model_take_a_device(command: str) -> None:
    result = CliRunner().invoke(cli.main, [command, "--device", "cuda:99", "-p", "a"])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: device 'cuda:99', expected 'cuda:0'")


def child(code: str, **environment: str) -> str:
    """What a program that may fail says last."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return (done.stdout + done.stderr).strip().splitlines()[-1]


@emulated
@pytest.mark.parametrize(
    ("count", "why"), [("-1", "there is no NVIDIA driver here"), ("0", "finds no GPU here")]
)
def test_without_a_driver_or_a_gpu(count: str, why: str) -> None:
    code = "from rwkv_edge import Model; Model(device='cuda')"
    said = child(code, RWKV_EDGE_EMULATED_GPUS=count)
    assert "UnsupportedError: " in said
    assert why in said


@emulated
def test_a_model_that_does_not_fit_is_refused_before_anything_is_uploaded() -> None:
    said = child(
        "from rwkv_edge import Model; Model(device='cuda')", RWKV_EDGE_EMULATED_MEMORY="6000000"
    )
    assert said.startswith("MemoryError: ")
    for part in ("the model takes", "the state of a session", "scratch memory", "6 MiB free of"):
        assert part in said


@emulated
def test_the_hundredth_session_finds_no_memory_and_the_others_go_on() -> None:
    code = """
from rwkv_edge import Model
model = Model(device="cuda")
sessions = [model.session()]
sessions[0].feed([1])  # takes the scratch memory
try:
    while True:
        sessions.append(model.session())
except MemoryError as error:
    said = str(error)
sessions[0].feed([1, 2])
spare = sessions.pop()
before = sessions[0].state.data.tobytes()
del spare
model.session().feed([3])
assert sessions[0].state.data.tobytes() == before
print(len(sessions) > 5, said)
"""
    said = child(code, RWKV_EDGE_EMULATED_MEMORY=str(24 << 20))
    assert said.startswith("True cuda:0 emulated GPU: no memory left for 1 MiB")
    assert "of 24 MiB are free" in said


@emulated
def test_no_memory_for_logits_that_stay() -> None:
    code = """
from rwkv_edge import Model, _core
model = Model(device="cuda")
session = model.session()
text = "".join(session.generate("a", max_tokens=3, temperature=0))
before = session.state.data.tobytes()
tokens = [1] * (1 + (24 << 20) // (4 * model.n_vocab))
try:
    _core.feed_together([(session._engine, tokens, _core.Logits.all)], None, True)
except MemoryError as error:
    said = str(error)
assert session.state.data.tobytes() == before
again = "".join(model.session().generate("a", max_tokens=3, temperature=0))
print(text == again, said)
"""
    said = child(code, RWKV_EDGE_EMULATED_MEMORY=str(24 << 20))
    assert said.startswith("True cuda:0 emulated GPU: no memory left for ")


@emulated
@pytest.mark.posix("fork")
def test_after_a_fork_the_gpu_is_not_touched() -> None:
    code = """
import os
from rwkv_edge import Model, _core
model = Model(device="cuda")
session = model.session()
kept = _core.feed_together([(session._engine, [1], _core.Logits.last)], None, True)
if os.fork() == 0:
    try:
        session.feed([1])
    except RuntimeError as error:
        print(error, flush=True)
    try:
        kept.sample([(_core.Sampler(), 0, None)])
        print("sampled", flush=True)
    except RuntimeError:
        pass
    del session, model, kept
    os._exit(0)
os.wait()
session.feed([1])
"""
    assert "forked from one that had a model on a GPU" in child(code)


@on_gpu
def test_a_file_that_is_cut_while_it_is_uploaded(tmp_path: Path, tiny_model: GetModel) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_model("f32", "d128")[0].read_bytes())
    file = open_model_file(path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(OSError, match="cut short while the model was read"):
        _core.Runner(file, device="cuda")


@emulated
def test_a_failed_upload_gives_its_memory_back(tmp_path: Path, tiny_model: GetModel) -> None:
    """Three models do not fit beside a fourth and the buffers of its upload."""
    whole = tiny_model("f32", "d256")[0]
    path = tmp_path / "model.gguf"
    path.write_bytes(whole.read_bytes())
    size = path.stat().st_size
    code = f"""
import os
from rwkv_edge import Model, _core
from rwkv_edge.model_file import open_model_file
for _ in range(3):
    file = open_model_file({str(path)!r})
    os.truncate({str(path)!r}, {size // 2})
    try:
        _core.Runner(file, device="cuda")
    except OSError as error:
        said = str(error)
    open({str(path)!r}, "r+b").truncate({size})
model = Model({str(whole)!r}, device="cuda")
model.session().feed([1])
print(said)
"""
    assert "cut short" in child(code, RWKV_EDGE_EMULATED_MEMORY=str(4 * size + (2 << 20)))
