# SPDX-License-Identifier: Apache-2.0
"""What programs for the package `rwkv` rely on; and opt-in, the package beside ours."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rwkv_edge
import test_rwkv_package as package
import tiny
from conftest import GetModel
from numpy.typing import NDArray
from rwkv_edge.compat import PIPELINE, PIPELINE_ARGS, RWKV

DOCS = Path(__file__).parents[2] / "docs" / "compat.md"
PROMPT = "User: the the\n\nAssistant:"
SETTINGS: list[dict[str, Any]] = [
    {"alpha_frequency": 0.0, "alpha_presence": 0.0},
    {"alpha_frequency": 0.4, "alpha_presence": 0.3, "alpha_decay": 0.9},
    {"alpha_frequency": 2.0, "alpha_presence": 0.0, "alpha_decay": 0.5, "token_ban": [33, 98, 257]},
    {"alpha_frequency": 0.1, "alpha_presence": 5.0, "token_stop": [110, 120]},
]


def oracle(model: RWKV, pipeline: PIPELINE, count: int, args: PIPELINE_ARGS) -> list[int]:
    """The tokens of the package's generate(), where they are chosen greedily, from its rules."""
    ids, state = pipeline.encode(PROMPT), None
    tokens: list[int] = []
    counts: dict[int, float] = {}
    while len(tokens) < count:
        logits, state = model.forward(ids, state)
        logits[args.token_ban] = -np.inf
        for token, times in counts.items():
            logits[token] -= args.alpha_presence + times * args.alpha_frequency
        token = int(logits.argmax())
        if token in args.token_stop:
            break
        tokens.append(token)
        counts = {old: times * args.alpha_decay for old, times in counts.items()}
        text = pipeline.tokenizer.token_bytes(token)
        counts[token] = counts.get(token, 0.0) + (not text or text not in b" \t0123456789")
        ids = [token]
    return tokens


@pytest.mark.parametrize("version", ["4", "6", "7"])
@pytest.mark.parametrize("setting", SETTINGS, ids="-".join)
def test_greedy_text(tiny_model: GetModel, version: str, setting: dict[str, Any]) -> None:
    path, _ = tiny_model("f32", "d128", version)
    model = RWKV(path, "cpu fp32")
    pipeline = PIPELINE(model, "rwkv_vocab_v20230424")
    args = PIPELINE_ARGS(top_p=0, **setting)
    tokens = oracle(model, pipeline, 60, args)
    assert len(tokens) == 60 or args.token_stop
    pieces: list[str] = []
    text = pipeline.generate(PROMPT, token_count=60, args=args, callback=pieces.append)
    expected = b"".join(pipeline.tokenizer.token_bytes(token) for token in tokens)
    assert text == "".join(pieces)
    whole = expected.decode("utf-8", "replace")
    assert text in (whole, whole[:-1])  # without a character that is cut off


def test_forward_in_parts(tiny_model: GetModel) -> None:
    path, _ = tiny_model("q8_0", "d128", "7")
    model = RWKV(str(path), "cpu fp32")
    tokens = list(range(1, 41))
    whole, end = model.forward(tokens, None, full_output=True)
    assert whole.shape == (40, model.args.vocab_size)
    out, state = model.forward(tokens[:25], model.generate_zero_state())
    assert np.array_equal(out.detach().cpu().numpy(), whole[24])
    kept = copy.deepcopy(state)
    for token in tokens[25:]:
        out, state = model.forward(token, state)
    assert np.array_equal(out, whole[39])
    assert out.shape == model.forward([1], None, full_output=True)[0].shape == whole[0].shape
    for part, expected in zip(state, end, strict=True):
        assert np.array_equal(part, expected)
    out, _ = model.forward(tokens[25:], kept)
    assert np.array_equal(out, whole[39])
    state[1][:] *= 2  # a program may change it
    assert not np.array_equal(model.forward([1], state)[0], model.forward([1], end)[0])


@pytest.mark.parametrize("version", ["4", "5.2", "6", "7", "7a"])
def test_the_list_that_is_given(tiny_model: GetModel, version: str) -> None:
    path, _ = tiny_model("f32", "d128", version)
    model = RWKV(path, "cpu fp32")
    _, state = model.forward([1, 2], None)
    before = copy.deepcopy(state)
    _, after = model.forward([3], state)
    same = [np.array_equal(a, b) for a, b in zip(before, state, strict=True)]
    if version[0] == "7":
        assert after is not state
        assert all(same)
    else:
        assert after is state
        assert not any(same)
    expected = [5 if version == "4" else 3][0] * model.n_layer
    assert len(state) == expected

    # generate leaves it behind the last token but one
    pipeline = PIPELINE(model)
    args = PIPELINE_ARGS(top_p=0, alpha_presence=0, alpha_frequency=0)
    state = copy.deepcopy(before)
    tokens = []
    logits, reached = model.forward(pipeline.encode("a"), copy.deepcopy(before))
    for _ in range(3):
        tokens.append(int(logits.argmax()))
        logits, reached = model.forward(tokens[-1], reached)
    pipeline.generate("a", token_count=4, args=args, state=state)
    for part, expected_part in zip(state, before if version[0] == "7" else reached, strict=True):
        assert np.array_equal(part, expected_part)


def test_sample_logits(tiny_model: GetModel) -> None:
    pipeline = PIPELINE(RWKV(tiny_model("f32", "d128")[0], "cpu fp32"))
    logits = np.random.default_rng(1).normal(0, 2, 1000).astype(np.float32)
    order = logits.argsort()[::-1]
    assert pipeline.sample_logits(logits, temperature=0) == order[0]
    assert pipeline.sample_logits(list(logits), top_p=0) == order[0]
    found = {pipeline.sample_logits(logits, 5.0, 1.0, 3) for _ in range(200)}
    assert found == set(order[:3].tolist())
    without = logits.copy()
    without[order[:2]] = -np.inf  # a program's way to ban a token
    assert pipeline.sample_logits(without, top_p=0) == order[2]
    assert len({pipeline.sample_logits(logits, 1.0, 1.0, 0) for _ in range(200)}) > 20
    both = []
    for _ in range(2):
        np.random.seed(5)  # noqa: NPY002 (as such programs do)
        both.append([pipeline.sample_logits(logits, 1.0, 0.9, 0) for _ in range(50)])
    assert both[0] == both[1]


def test_the_demo_model() -> None:
    pipeline = PIPELINE(RWKV(rwkv_edge.model.bundled_model(), "cpu fp32"))
    args = PIPELINE_ARGS(temperature=0, token_stop=pipeline.encode("\n\n"))
    assert pipeline.generate("User: What is 3 plus 4?\n\nAssistant:", args=args) == " 3 + 4 = 7"
    assert pipeline.refine_context(" a \r\n\n\u3000b\n") == "\na\nb"


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        ("cpu fp32", None),
        ("cpu bf16", None),
        ("cpu fp32 *3 -> cpu bf16", None),
        ("cuda fp16", "it runs on the CPU$"),
        ("cuda:1 fp16i8 *10+ -> cpu fp32", "it runs on the CPU and its weights stay as they are"),
        ("cpu fp32i8", "strategy 'cpu fp32i8': its weights stay as they are in the file"),
    ],
)
def test_strategies(tiny_model: GetModel, strategy: str, said: str | None) -> None:
    path, _ = tiny_model("f32", "d128")
    if said:
        with pytest.warns(UserWarning, match=said) as caught:
            model = RWKV(path, strategy)
        assert caught[0].filename == __file__
    else:
        model = RWKV(path, strategy)
    assert model.args.strategy_string == strategy
    assert model.forward([1], None)[0].shape == (model.model.n_vocab,)


def test_refusals(tiny_model: GetModel, tmp_path: Path) -> None:
    path, _ = tiny_model("f32", "d128", "7")
    for strategy in ("", "gpu fp16", "cpu", "cpu fp64", "cpu fp32 ->"):
        with pytest.raises(ValueError, match="strategy: found '"):
            RWKV(path, strategy)
    with pytest.raises(OSError, match="nowhere"):
        RWKV(tmp_path / "nowhere")
    model = RWKV(path, "cpu fp32")
    with pytest.raises(ValueError, match="tokens: found none"):
        model.forward([], None)
    state = model.generate_zero_state()
    with pytest.raises(ValueError, match=rf"found 2 arrays, expected {len(state)} of Model"):
        model.forward([1], state[:2])
    short: list[Any] = [*state[:1], state[1][:1], *state[2:]]
    with pytest.raises(ValueError, match=r"array 1 is \[1, 64, 64\], not \[2, 64, 64\]"):
        model.forward([1], short)
    pipeline = PIPELINE(model, "rwkv_vocab_v20230424")
    with pytest.raises(ValueError, match="ctx: found no text"):
        pipeline.generate("")
    assert pipeline.generate("a", token_count=0) == ""
    with pytest.raises(ValueError, match="WORD_NAME: found 'cl100k_base', expected 'rwkv_voc"):
        PIPELINE(model, "cl100k_base")
    demo = RWKV(rwkv_edge.model.bundled_model(), "cpu fp32")
    with pytest.raises(ValueError, match="which is of the kind 'sentencepiece'"):
        PIPELINE(demo, "rwkv_vocab_v20230424")


def run_example(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, "example", "exec"), names)
    return names


def test_the_example_in_the_docs(
    tiny_model: GetModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)[0]
    (tmp_path / "rwkv7-0.4b.pth").symlink_to(tiny_model("f32", "d128", "7")[0])
    names = run_example(code, tmp_path, monkeypatch)
    assert len(names["text"]) > 0
    assert names["out"].shape == (names["model"].model.n_vocab,)


def test_the_harness_in_the_docs(
    tiny_model: GetModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as it goes without the harness and its data; test_harness.py runs the real one."""
    asked: list[tuple[Any, list[str]]] = []
    stand_ins: dict[str, dict[str, Any]] = {
        "lm_eval": {"simple_evaluate": lambda model, tasks: asked.append((model, tasks))},
        "lm_eval.api": {},
        "lm_eval.api.model": {"TemplateLM": object},
        "lm_eval.api.registry": {"register_model": lambda _name: lambda kind: kind},
        "tqdm": {"tqdm": None},
    }
    for name, values in stand_ins.items():
        module = types.ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "rwkv_edge.harness", raising=False)
    code = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)[1]
    (tmp_path / "model.gguf").symlink_to(tiny_model("f32", "d128", "7")[0])
    try:
        run_example(code, tmp_path, monkeypatch)
    finally:
        sys.modules.pop("rwkv_edge.harness", None)  # made with the stand-ins
    ((model, tasks),) = asked
    assert tasks == ["lambada_openai"]
    assert model.batch_size == 16
    assert model.tok_encode("the") == model.model.tokenizer.encode("the")


# ---- beside the package -------------------------------------------------------------------------

GENERATE = """
import json, sys
from rwkv.model import RWKV
from rwkv.utils import PIPELINE, PIPELINE_ARGS
pipeline = PIPELINE(RWKV(sys.argv[1], "cpu fp32"), "rwkv_vocab_v20230424")
prompt, settings = json.load(open(sys.argv[2]))
found = []
for setting in settings:
    pieces = []
    args = PIPELINE_ARGS(top_p=0, **setting)
    text = pipeline.generate(prompt, token_count=80, args=args, callback=pieces.append)
    found.append([text, pieces])
json.dump(found, open(sys.argv[3], "w"))
"""
README = """
import importlib.metadata, sys
text = importlib.metadata.metadata("rwkv").get_payload()
open(sys.argv[1], "w", encoding="utf-8").write(text.split("```python\\n")[1].split("```")[0])
"""
WORDS = [b" ", b"1", b"23", b"the", b" word", b"User", b"good", b"bad", b".", "\u00e9".encode()]


def world_model(folder: Path, version: str) -> Path:
    """A model with the whole World vocabulary that speaks a few words of it, as m.pth."""
    shape = dataclasses.replace(tiny.VERSIONS[version]["d128"], vocab=65536)
    weights = tiny.random_weights(shape, seed=4)
    tokens = pytest.importorskip("pyrwkv_tokenizer").RWKVTokenizer()
    spoken = [tokens.encode(word.decode())[0] for word in WORDS]
    # The last norm adds one to each channel, which all other tokens take off the logits.
    weights["ln_out.bias"][:] = 1
    head: NDArray[np.float32] = np.full_like(weights["head.weight"], -1)
    head[spoken] = weights["head.weight"][spoken]
    np.savez(folder / "weights.npz", allow_pickle=False, **{**weights, "head.weight": head})
    package.run(version, package.SAVE, folder / "weights.npz", folder / "m.pth")
    return folder / "m"  # the package adds .pth


def opt_in(test: Callable[..., None]) -> Callable[..., None]:
    for mark in package.pytestmark:
        test = mark(test)
    return test


@opt_in
@pytest.mark.parametrize("version", ["4", "6", "7"])
def test_the_text_of_the_package(tmp_path: Path, version: str) -> None:
    path = world_model(tmp_path, version)
    settings = [
        {"alpha_frequency": 0.0, "alpha_presence": 0.0},
        {"alpha_frequency": 0.05, "alpha_presence": 0.02, "alpha_decay": 0.9},
        {"alpha_frequency": 0.5, "alpha_presence": 0.0, "token_ban": [33, 50], "chunk_len": 3},
    ]
    (tmp_path / "in.json").write_text(json.dumps([PROMPT, settings]))
    package.run(version, GENERATE, path, tmp_path / "in.json", tmp_path / "out.json")
    pipeline = PIPELINE(RWKV(path, "cpu fp32"), "rwkv_vocab_v20230424")
    theirs = json.loads((tmp_path / "out.json").read_text())
    for setting, expected in zip(settings, theirs, strict=True):
        pieces: list[str] = []
        args = PIPELINE_ARGS(top_p=0, **setting)  # type: ignore[arg-type]
        text = pipeline.generate(PROMPT, token_count=80, args=args, callback=pieces.append)
        assert [text, pieces] == expected
        assert len(text) > 80


@opt_in
def test_the_readme_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It runs but for the import and the name of the model."""
    path = world_model(tmp_path, "7")
    package.run("7", README, tmp_path / "readme.py")
    code = (tmp_path / "readme.py").read_text(encoding="utf-8")
    for old, new in {
        r"from rwkv\.model import": "from rwkv_edge.compat import",
        r"from rwkv\.utils import": "from rwkv_edge.compat import",
        r"RWKV\(model='[^']*'": f"RWKV(model={str(path)!r}",
    }.items():
        code, count = re.subn(old, new, code)
        assert count == 1
    for name in re.findall(r"^os\.environ\[['\"](\w+)", code, re.MULTILINE):
        monkeypatch.setitem(os.environ, name, "")
    with pytest.warns(UserWarning, match="it runs on the CPU"):
        run_example(code, tmp_path, monkeypatch)
    rows = re.findall(r"\[[^\[\]]*\]", capsys.readouterr().out)
    assert len(rows) == 2
    assert rows[0] == rows[1]
