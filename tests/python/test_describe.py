# SPDX-License-Identifier: Apache-2.0
"""`info`: a sentence for every kind of file, and its details."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import adapters
import checkpoints as ck
import gguf
import pile
import pytest
import tiny
from click.testing import CliRunner
from hub import folder_of
from rwkv_edge import Model, cli
from rwkv_edge.convert.vocab import WORLD_FILE, byte_vocabulary, world_file
from texts import train
from web_rwkv import as_st


def info(path: Path) -> tuple[str, str]:
    """The sentence, and the lines after it."""
    result = CliRunner().invoke(cli.main, ["info", str(path)])
    assert (result.exit_code, result.stderr) == (0, "")
    sentence, _, lines = result.stdout.partition("\n")
    return sentence, lines


def weights_of(version: str) -> adapters.Weights:
    return dict(tiny.random_weights(tiny.VERSIONS[version]["d128"], 1))


def as_gguf(folder: Path, version: str) -> Path:
    made = tiny.tiny_model(tiny.VERSIONS[version]["d128"], "q8_0", 1)
    return tiny.write(folder, "a.gguf", made)


FORMS: dict[str, tuple[Callable[[Path, str], Path], str]] = {
    "gguf": (as_gguf, "GGUF form, q8_0"),
    "pth": (
        lambda folder, version: ck.write(folder, ck.pth_of(weights_of(version), "bf16")),
        "PyTorch form (.pth), bf16",
    ),
    "safetensors": (
        lambda folder, version: ck.write(folder, ck.safetensors_of(weights_of(version), "f16")),
        "safetensors form, f16",
    ),
    "st": (
        lambda folder, version: ck.write(folder, ck.safetensors_of(as_st(weights_of(version)))),
        "safetensors form, f32",
    ),
    "rwkv.cpp": (
        lambda folder, version: ck.write(folder, ck.ggmf_of(weights_of(version), "f16").to_bytes()),
        "rwkv.cpp's form (.bin), f16",
    ),
}


def test_how_many_bits_a_weight_has(tmp_path: Path) -> None:
    """As the reader of the gguf package counts them."""
    path = as_gguf(tmp_path, "7")
    tensors = gguf.GGUFReader(path).tensors
    bits = 8 * sum(int(t.n_bytes) for t in tensors) / sum(int(t.n_elements) for t in tensors)
    assert 8.5 < bits < 16
    assert re.search(rf"^bits/weight +{bits:.2f}$", info(path)[1], re.MULTILINE)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("version", ["4", "5.0", "5.1", "5.2", "6", "7"])
def test_models(tmp_path: Path, form: str, version: str) -> None:
    make, expected = FORMS[form]
    sentence, lines = info(make(tmp_path, version))
    assert sentence == f"an RWKV-{version} model in {expected}, 3 layers, width 128"
    heads = "" if version == "4" else ", 2 heads of 64"
    state = "7.68 KB" if version == "4" else "101 KB"
    for line in (
        rf"architecture +rwkv{version[0]}",
        rf"shape +3 layers, width 128{heads}, feed-forward 384",
        rf"state +{state} per session",
        r"parameters +[\d,]+",
        "licence +not stated",
    ):
        assert re.search(f"^{line}$", lines, re.MULTILINE), line


@pytest.mark.parametrize("first", ["\n", "{", "P", "1"])
def test_a_header_length_that_looks_like_another_form(tmp_path: Path, first: str) -> None:
    """The first byte of a .safetensors is the low one of its header's length."""
    data = ck.safetensors_of(weights_of("7"))
    length = int.from_bytes(data[:8], "little")
    blanks = (ord(first) - length) % 256
    longer = (length + blanks).to_bytes(8, "little") + data[8 : 8 + length] + b" " * blanks
    sentence, _ = info(ck.write(tmp_path, longer + data[8 + length :]))
    assert sentence.startswith("an RWKV-7 model in safetensors form, f32")


def test_a_model_that_does_not_run(tmp_path: Path) -> None:
    made = tiny.tiny_model(tiny.SHAPES["d128"], "f32", 1)
    made.file.tensor("blk.1.time_mix_key.weight").name = "blk.1.time_mix_kez.weight"
    lines = info(tiny.write(tmp_path, "a.gguf", made))[1]
    assert re.search(r"^state +none: .*blk\.1\.time_mix_key\.weight", lines, re.MULTILINE)


@pytest.mark.parametrize("version", ["4", "6", "7"])
def test_folders_of_the_hub(tmp_path: Path, version: str) -> None:
    folder = folder_of(tmp_path, version)
    for path in (folder, *folder.glob("*.index.json")):
        sentence, _ = info(path)
        assert sentence.startswith(f"an RWKV-{version} model in the form of the Hugging Face hub, ")
        assert sentence.endswith(", 3 layers, width 128")


def test_deep_embed(tmp_path: Path) -> None:
    sentence, lines = info(ck.write(tmp_path, ck.pth_of(weights_of("7a"), "f16")))
    assert sentence == "an RWKV-7a model in PyTorch form (.pth), f16, 3 layers, width 128"
    assert re.search(r"^architecture +rwkv7a$", lines, re.MULTILINE)


def test_the_tokenizer_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwkv_edge.convert.vocab.world_file", lambda: None)
    path = ck.write(tmp_path, ck.pth_of(weights_of("4")))
    assert re.search("^tokenizer +none in the file or beside it$", info(path)[1], re.MULTILINE)
    ck.write(tmp_path, pile.text().encode(), "20B_tokenizer.json")
    found = re.search("^tokenizer +(.*)$", info(path)[1], re.MULTILINE)
    assert found
    assert found[1] == "byte-level BPE (as GPT-2's), 300 tokens"


def test_the_tokenizer_of_a_byte_level_model(tmp_path: Path) -> None:
    made = tiny.tiny_model(tiny.SHAPES["d128"], "f32", 1)
    texts = byte_vocabulary().texts
    made.file.put("tokenizer.ggml.tokens", tiny.ARRAY, tiny.array(tiny.STRING, texts))
    lines = info(tiny.write(tmp_path, "a.gguf", made))[1]
    assert re.search("^tokenizer +single bytes$", lines, re.MULTILINE)


def test_another_model(tmp_path: Path) -> None:
    made = tiny.tiny_model(tiny.SHAPES["d128"], "f32", 1)
    made.file.put("general.architecture", tiny.STRING, "llama")
    path = tiny.write(tmp_path, "a.gguf", made)
    assert info(path)[0] == "a GGUF file of 'llama', which is no RWKV model"


def test_states(tmp_path: Path) -> None:
    model = Model(as_gguf(tmp_path, "6"))
    model.session().state.save(tmp_path / "a.state")
    sentence, lines = info(tmp_path / "a.state")
    assert sentence.startswith("a saved state of rwkv6 with 3 layers, width 128, 2 heads of 64 (")
    assert "att_shift [128], wkv [2, 64, 64], ffn_shift [128]" in lines
    tuned = tiny.random_states(tiny.SHAPES["d128"], 1)
    for data in (ck.pth_of(tuned), ck.safetensors_of(tuned)):
        sentence, _ = info(ck.write(tmp_path, data, "tuned"))
        assert sentence.startswith(
            "a tuned state, to begin with, for an RWKV-5, 6 or 7 of 3 layers"
        )


def test_adapters(tmp_path: Path) -> None:
    base, modules = adapters.base_of(), adapters.modules_of("7")
    lora = adapters.pairs_of(base, modules)
    start = adapters.pairs_of(base, modules, prefix="init_")
    miss = adapters.shards_of(base, "disha", lambda out, _: (16, out))
    for tensors, sentence in (
        (lora, "a LoRA adapter of rank 6 for 2 layers, to be .*, which needs its alpha"),
        (start, "a PISSA adapter of rank 6 for 2 layers, what the training began with"),
        (miss, "a MiSS .* adapter of rank 16 for 2 layers, to be merged .* --adapter`$"),
    ):
        path = ck.write(tmp_path, ck.pth_of(tensors), "a.pth")
        assert re.match(sentence, info(path)[0])
        assert re.search("^matrices +12 are changed$", info(path)[1], re.MULTILINE)
    folder = adapters.peft_folder(tmp_path, lora, adapters.LORA)
    assert re.match("a LoRA adapter of rank 6 .* --adapter`$", info(folder)[0])


def test_vocabularies(tmp_path: Path) -> None:
    count = len(pile.tokenizer()["model"]["vocab"]) + 2
    for data, sentence in (
        (ck.VOCABULARY.encode(), r"a vocabulary \(RWKV World\) of 6 tokens"),
        (pile.text().encode(), rf"a vocabulary \(Hugging Face\) of {count} tokens"),
        (train(), r"a vocabulary \(sentencepiece\) of [\d,]+ tokens"),
    ):
        assert re.match(sentence, info(ck.write(tmp_path, data, "vocabulary"))[0])


@pytest.mark.skipif(world_file() is None, reason="needs pyrwkv-tokenizer")
def test_the_world_vocabulary() -> None:
    path = world_file()
    assert path is not None
    assert path.name == WORLD_FILE
    assert info(path)[0] == "a vocabulary (RWKV World) of 65,530 tokens (--vocab)"


# ---- what is no file of ours, and files of ours in the wrong place ------------------------------

EXPERIMENTS = {
    "blocks.0.qkv.qq.weight": "RWKV-7b",
    "blocks.0.ffn.enn.weight": "RWKV-8",
    "head_q.weight": "an RWKV experiment",
}


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("command", ["info", "chat", "generate", "convert"])
def test_versions_that_do_not_run(tmp_path: Path, command: str, name: str) -> None:
    path = ck.write(tmp_path, ck.pth_of({**weights_of("7"), name: ck.random(4, 4)}))
    more = {"generate": ["-p", "x"], "convert": [str(tmp_path / "out")]}.get(command, [])
    result = CliRunner().invoke(cli.main, [command, str(path), *more])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"Error: {path}: this is {EXPERIMENTS[name]}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["chat", "convert"])
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ck.pth_of(tiny.random_states(tiny.SHAPES["d128"], 1)), "an initial state, not a"),
        (
            lambda: ck.pth_of(adapters.pairs_of(adapters.base_of(), ["blocks.0.att.key"])),
            "an adapter, not a model",
        ),
    ],
    ids=["state", "adapter"],
)
def test_what_is_no_model(
    tmp_path: Path, command: str, make: Callable[[], bytes], sentence: str
) -> None:
    path = ck.write(tmp_path, make(), "a file")
    more = [str(tmp_path / "out")] if command == "convert" else []
    result = CliRunner().invoke(cli.main, [command, str(path), *more])
    assert (result.exit_code, result.stdout) == (1, "")
    assert sentence in result.stderr
