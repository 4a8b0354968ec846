# SPDX-License-Identifier: Apache-2.0
"""Small files made to hang, crash or mislead: what each reader says of them, and how much it does.

Work is counted or shown by the size that a limit allows; a test that hangs fails by the limit of
the job.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import adapters
import checkpoints as ck
import numpy as np
import pytest
import tiny
from click.testing import CliRunner
from program import GREEDY, PROGRAM, SECONDS, run
from refusal import refuses
from rwkv_edge import FormatError, Model, State, UnsupportedError, _core, cli
from rwkv_edge.cli import terminal
from rwkv_edge.convert import convert, quantize
from rwkv_edge.convert.adapter import apply_adapter, read_adapter
from rwkv_edge.convert.vocab import find_vocabulary, read_vocabulary
from rwkv_edge.describe import describe
from rwkv_edge.files import form, pth
from rwkv_edge.files.form import printable, shown
from rwkv_edge.files.safetensors import read_safetensors
from rwkv_edge.files.source import MappedFile
from texts import train

SHAPE = tiny.Shape(64, 32, 2, 96, 270, (8, 6, 4, 10), "absent")


def model_file(folder: Path, change: Callable[[tiny.Gguf], object] = lambda _: None) -> Path:
    made = tiny.tiny_model(SHAPE, "f32", seed=3)
    change(made.file)
    return tiny.write(folder, "m.gguf", made)


# ---- total work is linear in the file -----------------------------------------------------------


def test_nested_tuples_are_not_written_out(tmp_path: Path) -> None:
    """Each holds the one before it twice: `repr` of 60 has 2^60 parts."""
    doubled: Any = ck.Raw(b")" + b"q\x00h\x00\x86" * 60)
    nested: Any = ck.Raw(b")" + b"\x85" * 200_000)
    for value in (doubled, nested):
        for top in ({"_strategy": value}, {"a": value}, value, {"a": ck.Call(value, ())}):
            path = ck.write(tmp_path, ck.pth(top, {}))
            with refuses((FormatError, UnsupportedError), path) as caught:
                pth.read_pth(path)
            assert len(str(caught.value)) < 1000


def test_a_shape_of_many_huge_numbers(tmp_path: Path) -> None:
    shape = (1 << 2000,) * 10_000
    tensor = ck.torch_tensor("0", shape, numel=12, strides=(1,) * len(shape))
    path = ck.write(tmp_path, ck.pth({"a": tensor}, {"data/0": bytes(48)}))
    with refuses(FormatError, path, "a tensor with 10000 dimensions for a shape"):
        pth.read_pth(path)


def test_strides_that_nobody_needs(tmp_path: Path) -> None:
    """An axis of one value, or an empty array, may have a stride that no array can have."""
    tensors = {
        "a": ck.torch_tensor("0", (1, 12), strides=(1 << 2000, 1), numel=12),
        "b": ck.torch_tensor("0", (0, 12), strides=(1 << 2000, 1 << 70), numel=12),
    }
    path = ck.write(tmp_path, ck.pth(tensors, {"data/0": bytes(48)}))
    found = pth.read_pth(path).tensors
    assert [found[name].float32().shape for name in "ab"] == [(1, 12), (0, 12)]


def test_an_archive_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that takes the name of another while that is read is not mixed into it."""
    weights = {"a": ck.random(3, 4)}
    path = ck.write(tmp_path, ck.pth_of(weights))

    def swapped(name: Path) -> MappedFile:
        file = MappedFile(name)
        path.unlink()
        path.write_bytes(b"PK\3\4 another file")
        return file

    monkeypatch.setattr(pth, "MappedFile", swapped)
    assert ck.squeezed({"a": pth.read_pth(path).tensors["a"].float32()}) == ck.squeezed(weights)


def test_keys_that_occur_twice(tmp_path: Path) -> None:
    """100,000 of them, of which the last two are the same."""
    pairs = [f'"{i}": 0' for i in range(100_000)] + ['"x": 0, "x": 0']
    path = ck.write(tmp_path, ck.safetensors(("{" + ",".join(pairs) + "}").encode(), b""))
    with refuses(FormatError, path, "'x' appears twice"):
        read_safetensors(path)


def colliding(count: int) -> list[bytes]:
    """Keys that libstdc++'s std::hash, which has a fixed seed, gives one value.

    It goes on in blocks of eight bytes: h = (h ^ mix(block)) * m. With pairs of blocks that undo
    each other's difference all keys end in one h.
    """
    mask, m = (1 << 64) - 1, 0xC6A4A7935BD1E995
    inverse = pow(m, -1, 1 << 64)

    def mix(block: int) -> int:
        block = block * m & mask
        return (block ^ block >> 47) * m & mask

    def unmix(mixed: int) -> int:
        block = mixed * inverse & mask
        return (block ^ block >> 47) * inverse & mask

    # h ^ mix(b1) = x for any x that is wished for: then h -> x * m. All keys take the same x.
    target, keys = 0x1234567, []
    seed = 0xC70F6907
    start = (seed ^ 24 * m) & mask
    for i in range(count):
        first = 0x6161616100000000 + i
        h = (start ^ mix(first)) * m & mask
        second = unmix(h ^ target)
        keys.append(b"".join(n.to_bytes(8, "little") for n in (first, second, 7)))
    return keys


def test_keys_of_one_hash(tmp_path: Path) -> None:
    """In a hash table 60,000 of them would take 60,000^2 / 2 comparisons."""

    def change(file: tiny.Gguf) -> None:
        file.keys += [(key, tiny.U8, b"\0") for key in colliding(60_000)]

    path = model_file(tmp_path, change)
    assert len(_core.ModelFile(path).keys()) > 60_000
    assert Model(path).n_layer == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda file: file.keys.extend((f"{i}", tiny.U8, b"\0") for i in range(1 << 16)),
            r"655\d\d keys, expected at most 65536",
        ),
        (
            lambda file: file.tensors.extend(
                tiny.Entry(f"{i}", [8], 0, bytes(32)) for i in range(1 << 16)
            ),
            r"655\d\d tensors, expected at most 65536",
        ),
        (lambda file: file.put("a" * 1025, tiny.U8, 0), "has 1025 bytes, expected 1 to 1024"),
        (
            lambda file: setattr(file.tensors[1], "name", "a" * 1025),
            "has 1025 bytes, expected 1 to 1024",
        ),
        (
            lambda file: file.put("general.architecture", tiny.STRING, "a" * 1025),
            "'general.architecture' has 1025 bytes, expected at most 1024",
        ),
    ],
    ids=["keys", "tensors", "a key", "a name", "a text"],
)
def test_limits_of_gguf(
    tmp_path: Path, change: Callable[[tiny.Gguf], object], message: str
) -> None:
    path = model_file(tmp_path, change)
    with refuses(FormatError, path, message):
        Model(path)


def test_a_vocabulary_of_one_long_run(tmp_path: Path) -> None:
    """Every place of a text of one letter would be compared with the longest token."""
    runs = ["<s>", *("a" * i for i in range(1, 269)), "b"]
    tokens = tiny.array(tiny.STRING, runs)
    path = model_file(tmp_path, lambda file: file.put("tokenizer.ggml.tokens", tiny.ARRAY, tokens))
    with refuses(FormatError, path, r"tokens\[257\]: found 257 bytes, 'a+', expected at most 256"):
        Model(path).tokenizer.encode("a")
    with pytest.raises(ValueError, match="token 1 has 257 bytes, expected at most 256"):
        _core.Tokenizer.from_vocab([b"", b"a" * 257])


def test_numbers_of_equal_hashes(tmp_path: Path) -> None:
    """A multiple of 2^61 - 1 has the hash 0 in Python."""
    vocab = {f"t{i}": i * ((1 << 61) - 1) for i in range(60_000)}
    spec = {"model": {"type": "BPE", "vocab": vocab}, "pre_tokenizer": {"type": "ByteLevel"}}
    path = ck.write(tmp_path, json.dumps(spec).encode(), "tokenizer.json")
    with refuses(FormatError, path, "a token has id 2305843009213693951, expected below 1048576"):
        read_vocabulary(path)


def test_large_json(tmp_path: Path) -> None:
    text = b'{"a": [' + b"[]," * (6 << 20) + b"0]}"
    path = ck.write(tmp_path, text, "model.safetensors.index.json")
    with refuses(FormatError, path, "larger than 16777216 bytes"):
        describe(path)


def test_more_embeddings_than_tokens_can_be(tmp_path: Path) -> None:
    path = ck.write(tmp_path, ck.VOCABULARY.encode(), "v.txt")
    with refuses(FormatError, path, "a model of 1048577 embeddings, expected at most 1048576"):
        find_vocabulary(tmp_path, (1 << 20) + 1, path)


def test_what_a_message_shows() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep, deep]
    assert len(shown(deep)) < 200
    assert len(shown("a" * 10_000)) < 100
    assert len(shown(1 << 4000)) < 100
    while deep:  # or its end would be deep as well
        deep = deep.pop()


# ---- what is no regular file --------------------------------------------------------------------

READERS: dict[str, Callable[[Path], object]] = {
    "model": Model,
    "describe": describe,
    "state": State.load,
    "vocabulary": read_vocabulary,
    "adapter": read_adapter,
    "quantize": lambda path: quantize(path, path.with_name("out"), type="q8_0"),
    "convert": lambda path: convert(path, path.with_name("out")),
    "core": _core.MappedFile,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.posix("pipes with names")
def test_a_pipe_or_a_device(tmp_path: Path, reader: str) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        with refuses(FormatError, path, "a pipe or a device, expected a regular file"):
            READERS[reader](path)


@pytest.mark.parametrize(
    "name", ["config.json", "adapter_config.json", "model.safetensors", "20B_tokenizer.json"]
)
@pytest.mark.posix("pipes with names")
def test_a_pipe_in_a_folder(tmp_path: Path, name: str) -> None:
    """A pipe there counts as missing; what matters is that nothing waits for it."""
    ck.write(tmp_path, ck.safetensors_of(ck.weights_of(SHAPE)), "model.safetensors")
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    if name in ("model.safetensors",):
        with refuses(FormatError, tmp_path, "a folder without any of"):
            describe(tmp_path)
    else:
        assert "RWKV-7 model" in describe(tmp_path)[0]


# ---- a file that changes while it is mapped -----------------------------------------------------


def test_a_file_that_is_cut_while_it_is_mapped(tmp_path: Path) -> None:
    """The system ends the process; the program says why. (The library cannot: ARCHITECTURE.md.)"""
    path = tiny.write(tmp_path, "m.gguf", tiny.tiny_model(tiny.SHAPES["d128"], "f32", 1))
    with subprocess.Popen(
        [*PROGRAM, "chat", str(path), *GREEDY, "--threads", "1"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as program:  # fmt: skip
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write(b"hello\n")
        program.stdin.flush()
        assert program.stdout.read(1)
        os.truncate(path, 4096)
        _, stderr = program.communicate(b"hello\n" * 3, timeout=SECONDS)
    assert program.returncode < 0
    assert stderr.decode().startswith("\nError: the model's file was cut short")


def test_a_file_that_is_overwritten_while_it_is_mapped(tmp_path: Path) -> None:
    path = model_file(tmp_path)
    session = Model(path).session()
    with path.open("r+b") as file:
        file.seek(-(64 * 270 * 4), os.SEEK_END)
        file.write(np.full(64 * 270, np.nan, "<f4").tobytes())
    with pytest.raises(ValueError, match="Was the model's file changed while it was open"):
        list(session.generate("a"))


def test_a_source_that_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`quantize` takes all from one file, whichever it found."""
    path, other = model_file(tmp_path), tiny.tiny_model(tiny.SHAPES["d128"], "f32", 1)
    real = form.form_of

    def swapped(name: Path) -> form.Form:
        found = real(name)
        if name == path:
            path.unlink()
            path.write_bytes(other.file.to_bytes())
        return found

    monkeypatch.setattr(form, "form_of", swapped)
    quantize(path, tmp_path / "out.gguf", type="q8_0")
    model = Model(tmp_path / "out.gguf")
    assert (model.n_layer, model.n_embd) == (3, 128)
    assert np.isfinite(model.session().feed([1])).all()


# ---- metadata of another kind, names of no text -------------------------------------------------

INFINITE = tiny.scalar(tiny.F64, float("inf"))
STRANGE: dict[str, tuple[int, bytes]] = {
    "a number": (tiny.U32, tiny.scalar(tiny.U32, 7)),
    "infinity": (tiny.F64, INFINITE),
    "a text": (tiny.STRING, tiny.string(b"\xff\x1b[2J")),
    "texts": (tiny.ARRAY, tiny.array(tiny.STRING, ["a", "b"])),
    "numbers": (tiny.ARRAY, tiny.array(tiny.F32, [1.5])),
    "a bool": (tiny.BOOL, b"\2"),
}
KEYS = (
    "general.architecture",
    "general.name",
    "general.license",
    "general.license.link",
    "rwkv_edge.version",
    "rwkv7.block_count",
    "rwkv7.embedding_length",
    "rwkv7.wkv.head_size",
    "rwkv7.feed_forward_length",
    "tokenizer.ggml.model",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.token_type",
    "rwkv_edge.state.arch",
    "rwkv_edge.sentencepiece_model",
    "tokenizer.huggingface.json",
    b"odd\xff",
)


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("key", KEYS)
def test_metadata_of_another_kind(tmp_path: Path, key: Any, kind: str) -> None:
    path = model_file(tmp_path, lambda file: file.put(key, *STRANGE[kind]))

    def talk() -> None:
        assert Model(path).tokenizer.encode("a")

    def small() -> None:
        quantize(path, tmp_path / "out.gguf", type="q8_0")
        assert len(_core.ModelFile(tmp_path / "out.gguf").keys()) > 10

    for use in (lambda: describe(path), lambda: State.load(path), talk, small):
        try:
            use()
        except (FormatError, UnsupportedError) as error:
            assert str(error).startswith(f"{path}: ")  # noqa: PT017 - many kinds are fine
    result = CliRunner().invoke(cli.main, ["info", str(path)])
    assert result.exit_code in (0, 1)
    assert "\x1b" not in result.output
    if result.exit_code:
        assert result.stderr.startswith(f"Error: {path}: ")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """Of a tensor, of a key, of the file itself: messages show them, and nothing fails."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    path = model_file(folder, lambda file: setattr(file.tensors[1], "name", b"\xff\xfe"))
    with refuses(FormatError, path, "is missing|not part of"):
        Model(path)
    with refuses(FormatError, path, "'odd\udcff' occurs twice"):
        model_file(folder, lambda file: file.keys.extend([(b"odd\xff", tiny.U8, b"\0")] * 2))
        Model(path)
    path = model_file(
        folder, lambda file: file.put("general.architecture", tiny.STRING, tiny.string(b"\xff"))
    )
    with refuses(UnsupportedError, path, "architecture '\udcff', expected one of rwkv4"):
        Model(path)
    good = model_file(folder)
    Model(good).session().state.save(folder / "a.state")
    assert describe(good)[0].startswith("an RWKV-7 model")
    quantize(good, folder / "out.gguf", type="q8_0")
    done = run("info", good)
    assert (done.returncode, done.stderr) == (0, b"")
    done = run("info", folder / "no such file")
    assert done.returncode == 1
    assert done.stderr.startswith(b"Error: ")


ODD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "a list for a kind": ({"peft_type": []}, r"peft_type \[\], expected LORA"),
    "infinity": ({"lora_alpha": float("inf")}, "lora_alpha: found inf, expected a number above 0"),
    "no number": ({"lora_alpha": float("nan")}, "lora_alpha: found nan"),
    "a number of 400 digits": ({"lora_alpha": 10**400}, "lora_alpha: found 1000.*, expected"),
    "a rank of 400 digits": ({"r": 10**400}, "r: found 1000.*, expected a number above 0"),
    "a text": ({"lora_alpha": "16"}, "lora_alpha: found '16'"),
    "patterns that are a list": ({"alpha_pattern": [1]}, r"lora_alpha: found \[1\], expected an"),
    "a start that is a dict": ({"init_lora_weights": {"a": {}}}, r"init_lora_weights is \{'a'"),
}


@pytest.mark.parametrize("name", ODD_CONFIGS)
def test_odd_configurations_of_adapters(tmp_path: Path, name: str) -> None:
    changes, message = ODD_CONFIGS[name]
    base = adapters.base_of()
    lora = adapters.pairs_of(base, adapters.modules_of("7"))
    folder = adapters.peft_folder(tmp_path, lora, adapters.LORA | changes)
    with refuses((FormatError, UnsupportedError), folder / "adapter_config.json", message):
        apply_adapter(adapters.opened(tmp_path, base), folder)


def test_an_adapter_of_no_numbers(tmp_path: Path) -> None:
    """No warning of numpy's, but an error of ours."""
    base = adapters.base_of()
    for value in (np.nan, np.inf, 3e38):
        lora = {name: np.full_like(v, value) for name, v in adapters.pairs_of(
            base, ["blocks.0.att.key"]).items()}  # fmt: skip
        path = ck.write(tmp_path, ck.pth_of(lora), "adapter.pth")
        source = ck.write(tmp_path, ck.pth_of(base), "base.pth")
        vocab = ck.write(tmp_path, ck.VOCABULARY.encode(), "v.txt")
        with refuses(FormatError, source, "time_mix_key.weight holds NaN or infinity"):
            convert(source, tmp_path / "out", adapter=path, alpha=1.0, vocab=vocab)


# ---- states -------------------------------------------------------------------------------------


def saved(folder: Path, arch: str, *tensors: tiny.Entry) -> Path:
    file = tiny.Gguf()
    file.put("rwkv_edge.state.arch", tiny.STRING, arch)
    file.tensors += tensors
    return ck.write(folder, file.to_bytes(), "a.state")


def entry(name: str, *shape: int) -> tiny.Entry:
    return tiny.Entry(name, list(shape[::-1]), 0, bytes(4 * int(np.prod(shape))))


def test_a_state_that_is_not_finite(tmp_path: Path) -> None:
    path = model_file(tmp_path)
    session = Model(path).session()
    session.read([1, 2])
    for value in (np.nan, np.inf):
        state = session.state
        data = state.data.copy()
        data[70] = mark = np.float32(1.2345e30)  # no other value has these bytes
        State(data, state.shape).save(tmp_path / "a.state")
        saved = (tmp_path / "a.state").read_bytes()
        assert saved.count(mark.tobytes()) == 1
        spoilt = saved.replace(mark.tobytes(), np.float32(value).tobytes())
        (tmp_path / "a.state").write_bytes(spoilt)
        with refuses(FormatError, tmp_path / "a.state", "tensor .* holds NaN or infinity"):
            State.load(tmp_path / "a.state")
    done = run("chat", path, "--state", tmp_path / "a.state", stdin="hello")
    assert done.returncode == 1
    assert b"holds NaN or infinity" in done.stderr


@pytest.mark.parametrize(
    "tensors",
    [
        [entry("wkv", 2, 1, 4, 4)],
        [entry("time_state", 2, 1, 4, 4), entry("b", 2, 4)],
        [entry("time_state", 2, 4)],
        [entry("time_state", 2, 1, 4, 3)],
        [],
    ],
    ids=["another name", "two", "a vector", "not square", "none"],
)
def test_a_tuned_state_of_other_parts(tmp_path: Path, tensors: list[tiny.Entry]) -> None:
    path = saved(tmp_path, "time_state", *tensors)
    for read in (State.load, describe):
        with refuses(
            FormatError, path, r"a tuned state of .*, expected one tensor time_state, f32"
        ):
            read(path)


def test_convert_takes_a_tuned_state_that_was_saved(tmp_path: Path) -> None:
    shape = tiny.SHAPES["d128"]
    base = ck.write(tmp_path, ck.pth_of(tiny.random_weights(shape, 1)), "base.pth")
    trained = ck.write(tmp_path, ck.pth_of(tiny.random_states(shape, 2)), "tuned.pth")
    State.load(trained).save(tmp_path / "tuned.state")
    vocab = ck.write(tmp_path, ck.VOCABULARY.encode(), "v.txt")
    for source, target in ((trained, "a.gguf"), (tmp_path / "tuned.state", "b.gguf")):
        convert(base, tmp_path / target, state=source, vocab=vocab)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    Model(tmp_path / "a.gguf").session().state.save(tmp_path / "read.state")
    for path, found in (
        (tmp_path / "read.state", "a state of 'rwkv7', expected a tuned state"),
        (tmp_path / "a.gguf", "a GGUF file that is no state, expected a tuned state"),
    ):
        with refuses(FormatError, path, found):
            convert(base, tmp_path / "c.gguf", state=path, vocab=vocab)


def test_quantize_of_a_state(tmp_path: Path) -> None:
    Model(model_file(tmp_path)).session().state.save(tmp_path / "z.state")
    with refuses(UnsupportedError, tmp_path / "z.state", "a saved state, which has nothing to"):
        quantize(tmp_path / "z.state", tmp_path / "out.gguf", type="q8_0")


# ---- what reaches the screen --------------------------------------------------------------------

ESCAPES = "\x1b[2J\x9b1m\r\x07\u202eevil\nline"


def test_text_of_a_file_cannot_steer_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(file: tiny.Gguf) -> None:
        for key in ("general.name", "general.license", "rwkv_edge.version"):
            file.put(key, tiny.STRING, ESCAPES)
        file.tensors[1].name = ESCAPES

    path = model_file(tmp_path, change)
    output = CliRunner().invoke(cli.main, ["info", str(path)]).output
    assert not set(output) & set("\x1b\x9b\r\x07\u202e")
    assert "evil\ufffdline" in output
    lines: list[str] = []
    monkeypatch.setattr("click.echo", lambda text, **_: lines.append(text))
    bar = terminal.Progress("x")
    bar._next = 0
    bar(1, 2, ESCAPES)
    assert lines == [f"{terminal.CLEAR_LINE}x  50 %  {printable(ESCAPES)}"]


def test_printable() -> None:
    assert printable("a\tb\n\x1b\u2066\udc80c") == "a\ufffdb" + "\ufffd" * 4 + "c"
    assert printable("a\tb\n\x1bc", lines=True) == "a\tb\n\ufffdc"
    family = "\u00e9 \u4f60 \U0001f469\u200d\U0001f467"
    assert printable(family) == family


# ---- what info says -----------------------------------------------------------------------------


def test_the_type_that_info_names(tmp_path: Path) -> None:
    """That of the blocks, where embedding and head have more bytes in another."""
    shape = tiny.Shape(64, 32, 1, 96, 2000, (8, 6, 4, 10), "absent")
    made = tiny.write(tmp_path, "m.gguf", tiny.tiny_model(shape, "f32", seed=3))
    quantize(made, tmp_path / "q.gguf", type="q4_0")
    assert "in GGUF form, q4_0, 1 layers" in describe(tmp_path / "q.gguf")[0]


def test_the_size_that_info_names(tmp_path: Path) -> None:
    """That of the file, whatever the tensors take in memory."""
    weights = ck.weights_of()
    path = ck.write(tmp_path, ck.pth_of(weights, "bf16"))
    os.truncate(path, path.stat().st_size)
    assert dict(describe(path)[1])["size"] == form.amount(path.stat().st_size)
    folder = tmp_path / "hub"
    folder.mkdir()
    names = sorted(weights)
    parts = {f"model-{i}.safetensors": names[i::2] for i in range(2)}
    for name, listed in parts.items():
        ck.write(folder, ck.safetensors_of({n: weights[n] for n in listed}, "bf16"), name)
    index = {"weight_map": {n: name for name, listed in parts.items() for n in listed}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    size = sum((folder / name).stat().st_size for name in parts)
    assert dict(describe(folder)[1])["size"] == form.amount(size)


def test_a_checkpoint_without_its_vocabulary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rwkv_edge.convert.vocab.world_file", lambda: None)
    path = ck.write(tmp_path, ck.pth_of(ck.weights_of()))
    with refuses(FormatError, path, r"pip install 'rwkv-edge\[convert\]'"):
        Model(path).tokenizer.encode("a")


# ---- sentencepiece ------------------------------------------------------------------------------


def with_charsmap(model: bytes, charsmap: bytes) -> bytes:
    """`model` with another precompiled_charsmap, to normalize with (3) and to denormalize (5)."""
    inner = bytes([0x12, len(charsmap)]) + charsmap
    return model + b"".join(bytes([tag, len(inner)]) + inner for tag in (0x1A, 0x2A))


def test_pieces_that_are_no_text(tmp_path: Path) -> None:
    """Twice the same one, which the package's message quotes, and one that a vocabulary has."""
    piece = b"\x0a\x02\xff\xfe"
    for count in (1, 2):
        model = train() + (b"\x0a" + bytes([len(piece)]) + piece) * count
        path = ck.write(tmp_path, model, "a.model")
        with refuses(FormatError, path, "not a sentencepiece model"):
            read_vocabulary(path)


def test_a_hostile_charsmap_is_not_read(tmp_path: Path) -> None:
    """0.2.0 and 0.2.1 crash with it, later ones refuse it: reading shows that it was left out."""
    model = train()
    charsmap = (64).to_bytes(4, "little") + b"\xff" * 64
    plain = read_vocabulary(ck.write(tmp_path, model, "a.model"))
    hostile = read_vocabulary(ck.write(tmp_path, with_charsmap(model, charsmap), "b.model"))
    assert hostile.texts == plain.texts
    space = "tokenizer.ggml.add_space_prefix"
    assert hostile.metadata[space] == plain.metadata[space]
