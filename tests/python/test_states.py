# SPDX-License-Identifier: Apache-2.0
"""States of every version: their parts, their files, and where a training put the beginning."""

from __future__ import annotations

import hashlib
import math
import random
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import checkpoints as ck
import numpy as np
import pytest
import tiny
from click.testing import CliRunner
from conftest import GetModel
from numpy.typing import NDArray
from reference import oracle
from refusal import refuses
from rwkv_edge import Conversation, FormatError, Model, State, UnsupportedError
from rwkv_edge._core import ModelFile
from rwkv_edge.cli import main
from rwkv_edge.convert import convert
from rwkv_edge.state import differences
from tolerances import F32_BOUND, wrong_by

VERSIONS = tuple(tiny.VERSIONS)
RECURRENT = tuple(version for version in VERSIONS if version != "4")
TOKENS = np.random.default_rng(1).integers(0, 300, 70)


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def loaded(tiny_model: GetModel, version: str) -> Model:
    return Model(tiny_model("f32", "d128", version)[0])


def test_the_parts_of_a_state(loaded: Model, version: str) -> None:
    shape = tiny.VERSIONS[version]["d128"]
    middle: dict[str, tuple[int, ...]] = dict.fromkeys(("aa", "bb", "pp"), (128,))
    if version != "4":
        middle = {"wkv": (shape.heads, shape.head_size, shape.head_size)}
    assert loaded.head_size == shape.head_size
    assert loaded.arch == ("rwkv7a" if version == "7a" else f"rwkv{version[0]}")
    session = loaded.session()
    session.feed(TOKENS)
    state = session.state
    parts = state.numpy()
    assert [(name, part.shape) for name, part in parts.items()] == [
        (name, (shape.layers, *part))
        for name, part in {"att_shift": (128,), **middle, "ffn_shift": (128,)}.items()
    ]
    layers = [
        np.concatenate([part[i].ravel() for part in parts.values()]) for i in range(shape.layers)
    ]
    assert np.concatenate(layers).tobytes() == state.data.tobytes()
    parts["ffn_shift"][:] = 0
    again = loaded.session(state).state.numpy()
    assert not again["ffn_shift"].any()
    assert again["att_shift"].tobytes() == parts["att_shift"].tobytes()


def test_the_first_state_is_that_of_the_papers(tiny_model: GetModel, version: str) -> None:
    path, made = tiny_model("f32", "d192", version)
    session = Model(path).session()
    session.feed(TOKENS)
    session.reset()
    found = session.state.numpy()
    for part, right in oracle(made.weights).start().items():
        assert found[part].tobytes() == right.astype(np.float32).tobytes(), part


def test_a_saved_state(loaded: Model, tmp_path: Path) -> None:
    session = loaded.session()
    session.feed(TOKENS[:9])
    session.state.save(tmp_path / "a.state")
    found = State.load(tmp_path / "a.state")
    assert found.data.tobytes() == session.state.data.tobytes()
    assert found.shape == session.state.shape
    expected = session.feed(TOKENS[9:], logits="all")
    assert loaded.session(found).feed(TOKENS[9:], logits="all").tobytes() == expected.tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["a.state"]
    with pytest.raises(OSError, match="no such folder"):
        session.state.save(tmp_path / "none" / "a.state")


def test_only_a_saved_state_is_replaced(tmp_path: Path, tiny_model: GetModel) -> None:
    """A mixed-up name must not cost a model."""
    path, _ = tiny_model("f32", "d128")
    session = Model(path).session()
    files = {"model.gguf": path.read_bytes(), "notes.txt": b"buy milk", "cut.gguf": b"GGUF\x03"}
    for name, data in files.items():
        target = tmp_path / name
        target.write_bytes(data)
        for save in (session.state.save, Conversation(Model(path)).save):
            with pytest.raises(FileExistsError, match=r"no saved state; replace=True replaces it"):
                save(target)
            assert target.read_bytes() == data
        session.state.save(target, replace=True)
        assert State.load(target).data.tobytes() == session.state.data.tobytes()
        session.feed([1])
        session.state.save(target)  # now it is one
        assert State.load(target).data.tobytes() == session.state.data.tobytes()
    (tmp_path / "empty").touch()  # as tempfile makes one
    session.state.save(tmp_path / "empty")
    assert State.load(tmp_path / "empty").data.tobytes() == session.state.data.tobytes()


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        (
            ("7", "d192"),
            ("7", "d128"),
            "width 128, 2 heads of 64 does not fit .*width 192, 6 heads",
        ),
        (("7", "d128"), ("7a", "d128"), "rwkv7a .* does not fit .*: rwkv7 with"),
        (("6", "d128"), ("5.2", "d128"), "rwkv5 .* does not fit .*: rwkv6 with"),
        (
            ("6", "d128"),
            ("4", "d128"),
            "rwkv4 with 3 layers, width 128 does not fit .*: rwkv6 with",
        ),
    ],
)
def test_a_state_of_another_model(
    tiny_model: GetModel,
    tmp_path: Path,
    ours: tuple[str, str],
    theirs: tuple[str, str],
    message: str,
) -> None:
    model = Model(tiny_model("f32", ours[1], ours[0])[0])
    state = Model(tiny_model("f32", theirs[1], theirs[0])[0]).session().state
    state.save(tmp_path / "a.state")
    with refuses(FormatError, "this state", f"a state of .*{message}"):
        model.session(state)
    with refuses(FormatError, tmp_path / "a.state", message):
        model.session().reset(State.load(tmp_path / "a.state"))


def test_states_are_told_apart_by_what_they_are_not_by_their_values(loaded: Model) -> None:
    """Two arrays have no one answer to whether they are equal."""
    one, other = loaded.session().state, loaded.session().state
    assert one == one  # noqa: PLR0124
    assert one != other
    assert len({one, other}) == 2
    for frozen in (one, one.shape):
        with pytest.raises(AttributeError):
            frozen.arch = frozen.source = "another"  # type: ignore[misc, union-attr]


def test_a_state_of_wrong_size(tiny_model: GetModel) -> None:
    state = Model(tiny_model("f32", "d128")[0]).session().state
    for data in (state.data[:-1], state.data.astype(np.float64)):
        with pytest.raises(ValueError, match="a state of rwkv7 with 3 layers"):
            State(data, state.shape)  # type: ignore[arg-type]
    for last in (np.zeros(127, np.float32), np.zeros(128)):
        with pytest.raises(ValueError, match=r"the output of a state of rwkv7 .* float32 \[128\]"):
            replace(state, output=last, tokens=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a last token, and 0 tokens"):
        replace(state, output=np.zeros(128, np.float32))
    with pytest.raises(ValueError, match="tokens: found -1, expected 0 or more"):
        replace(state, tokens=-1)


def saved_state() -> tiny.Gguf:
    file = tiny.Gguf()
    file.put("rwkv_edge.state.arch", tiny.STRING, "rwkv7")
    file.tensors.append(tiny.Entry("att_shift", [8, 2], 0, bytes(4 * 16)))
    file.tensors.append(tiny.Entry("wkv", [4, 4, 2, 2], 0, bytes(4 * 64)))
    return file


BF16 = 30  # ggml's number


def key(name: str, kind: int, value: object) -> Callable[[tiny.Gguf], None]:
    return lambda file: file.put(f"rwkv_edge.state.{name}", kind, value)


def output(dims: list[int], type_id: int = 0, value: float = 0) -> Callable[[tiny.Gguf], None]:
    data = np.full(int(np.prod(dims)), value, "<f2" if type_id else "<f4").tobytes()
    return lambda file: file.tensors.append(tiny.Entry("output", dims, type_id, data))


def entry(i: int, dims: list[int], type_id: int = 0) -> Callable[[tiny.Gguf], None]:
    def change(file: tiny.Gguf) -> None:
        size = 2 if type_id in (1, BF16) else 4
        data = bytes(size * int(np.prod(dims)))
        file.tensors[i] = tiny.Entry(file.tensors[i].name, dims, type_id, data)

    return change


BAD_STATES: dict[str, tuple[Callable[[tiny.Gguf], None], str]] = {
    "no state": (lambda file: file.drop("rwkv_edge.state.arch"), "not a saved state"),
    "a number": (
        lambda file: file.put("rwkv_edge.state.arch", tiny.U32, 7),
        "arch is missing",
    ),
    "no tensors": (lambda file: file.tensors.clear(), "a saved state without values"),
    "layers": (entry(1, [4, 4, 2, 3]), r"wkv: found f32 \[3, 2, 4, 4\], expected .* \[2, ...\]"),
    "one dimension": (entry(0, [2]), r"att_shift: found f32 \[2\], expected f32"),
    "type": (entry(0, [8, 2], BF16), r"att_shift: found bf16 \[2, 8\], expected f32 or f16 \[2,"),
    "an output of another width": (output([7]), r"output: found f32 \[7\], expected f32 \[8\]"),
    "an output by layer": (output([8, 2]), r"output: found f32 \[2, 8\], expected f32 \[8\]"),
    "an output of another type": (output([8], 1), r"output: found f16 \[8\], expected f32 \[8\]"),
    "an output of no token": (
        lambda file: (output([8])(file), key("tokens", tiny.U64, 0)(file))[0],
        "output of a last token, and 0 tokens",
    ),
    "an output that is not finite": (
        output([8], value=np.nan),
        "tensor output holds NaN or infinity",
    ),
    "a part that is not finite": (
        lambda file: setattr(file.tensors[1], "data", np.full(64, np.inf, "<f4").tobytes()),
        "tensor wkv holds NaN or infinity",
    ),
    "tokens": (key("tokens", tiny.U32, 3), "state.tokens is uint32, expected uint64"),
    "text": (key("text", tiny.U32, 3), "state.text is uint32, expected string"),
    "fingerprint": (key("fingerprint", tiny.STRING, "0" * 63), "is '0+', expected 64 hex digits"),
    "version": (key("version", tiny.STRING, "2"), "state.version is string, expected uint32"),
    "a seed alone": (
        key("sampler.seed", tiny.U64, 3),
        r"sampler\.tokens is missing, expected array\[uint32\]",
    ),
    "a seed": (key("sampler.seed", tiny.U32, 3), r"sampler\.seed is uint32, expected uint64"),
    "generated": (
        lambda file: (
            key("sampler.seed", tiny.U64, 3)(file),
            key("sampler.tokens", tiny.ARRAY, struct.pack("<IQf", tiny.F32, 1, 1))(file),
        )[0],
        r"sampler\.tokens is array\[float32\], expected",
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
    with refuses(FormatError, path, message):
        State.load(path)


def test_a_file_of_the_first_version(tmp_path: Path, tiny_model: GetModel) -> None:
    """It has the parts alone, and goes with any model of its shape."""
    model = Model(tiny_model("f32", "d128")[0])
    session = model.session()
    session.feed(TOKENS)
    right = session.state
    file = tiny.Gguf()
    file.put("rwkv_edge.state.arch", tiny.STRING, "rwkv7")
    for name, part in right.numpy().items():
        file.tensors.append(tiny.Entry(name, list(part.shape[::-1]), 0, part.tobytes()))
    old = State.load(ck.write(tmp_path, file.to_bytes(), "old.state"))
    assert old.data.tobytes() == right.data.tobytes()
    assert (old.tokens, old.fingerprint, old.output, old.text) == (None,) * 4
    resumed = model.session(old)
    assert resumed.tokens is None
    with pytest.raises(ValueError, match="the last token's logits are not known"):
        resumed.generate("")
    expected = session.feed([3, 4])
    assert resumed.feed([3, 4]).tobytes() == expected.tobytes()
    assert resumed.tokens is resumed.state.tokens is None
    assert resumed.state.output is not None


@pytest.mark.parametrize(
    ("version", "error", "message"),
    [
        (0, FormatError, "a saved state of version 0, expected 1 to 2$"),
        (3, UnsupportedError, "a saved state of version 3, expected 1 to 2; a later"),
    ],
)
def test_a_file_of_another_version(
    tmp_path: Path, version: int, error: type[Exception], message: str
) -> None:
    file = saved_state()
    key("version", tiny.U32, version)(file)
    path = ck.write(tmp_path, file.to_bytes(), "a.state")
    with refuses(error, path, message):
        State.load(path)


# ---- what a state knows -------------------------------------------------------------------------


def test_a_state_goes_on_as_if_nothing_had_happened(loaded: Model, tmp_path: Path) -> None:
    """Its file has the last output, so the next token needs no other before it."""
    session = loaded.session()
    session.feed(TOKENS[:30])
    assert session.tokens == session.state.tokens == 30
    session.state.save(tmp_path / "a.state")
    other = loaded.session(State.load(tmp_path / "a.state"))
    assert other.tokens == other.state.tokens == 30
    last = session.feed(TOKENS[30:31], logits="last")
    session.state.save(tmp_path / "b.state")
    other = loaded.session(State.load(tmp_path / "b.state"))
    assert bytes(other._engine.logits()) == last.tobytes()
    fork = other.fork()
    other.feed([1, 2])
    assert (other.tokens, fork.tokens) == (33, 31)
    fork.rewind(other)
    assert fork.tokens == 33
    other.reset()
    assert (other.tokens, other.state.output) == (0, None)


def test_text_goes_on_from_a_file(tiny_model: GetModel, tmp_path: Path) -> None:
    """Also from the middle of a text that is being generated."""
    model = Model(tiny_model("f32", "d128")[0])
    session = model.session()
    pieces = session.generate("the", max_tokens=40, seed=3)
    shown = next(pieces) + next(pieces)
    state = session.state
    assert state.tokens == session.tokens
    state.save(tmp_path / "a.state")
    pieces.close()
    expected = "".join(session.generate("", max_tokens=9, seed=4))
    found = model.session(State.load(tmp_path / "a.state")).generate("", max_tokens=9, seed=4)
    assert "".join(found) == expected
    assert shown


@pytest.mark.parametrize("temperature", [1.0, 0.0])
@pytest.mark.parametrize("lookup", [0, 4])
def test_a_stopped_text_goes_on_as_if_it_had_not_been(
    tiny_model: GetModel, tmp_path: Path, temperature: float, lookup: int
) -> None:
    """Wherever it was stopped: its random numbers and its penalties are those of the whole text."""
    model = Model(tiny_model("f32", "d128")[0])
    options: dict[str, Any] = {"temperature": temperature, "top_p": 1.0, "presence_penalty": 0.3}
    options |= {"frequency_penalty": 0.7, "penalty_window": 25, "lookup": lookup, "stop": "zzz"}
    generation = model.session().generate("the", max_tokens=60, seed=3, **options)
    whole, tokens = "".join(generation), generation.details.tokens
    assert len(tokens) == 60
    for stopped in (1, 17, 59):
        session = model.session()
        begun = session.generate("the", max_tokens=stopped, seed=3, **options)
        text = "".join(begun)
        session.state.save(tmp_path / "a.state")
        kept = State.load(tmp_path / "a.state")
        assert kept.sampler is not None
        if begun.details.tokens != tokens[:stopped]:
            continue  # it ends inside a character, which can go on in another way
        assert kept.sampler.tokens == tuple(tokens[:stopped])
        seed, earlier = kept.sampler
        rest = model.session(kept).generate(
            "", max_tokens=60 - stopped, seed=seed, earlier=earlier, **options
        )
        assert text + "".join(rest) == whole
        assert rest.details.tokens == tokens[stopped:]


def test_a_text_that_is_left_in_the_middle(tiny_model: GetModel) -> None:
    """What was sampled and not yet yielded is not in the state of the sampler either."""
    model = Model(tiny_model("f32", "d128")[0])
    options: dict[str, Any] = {"top_p": 1.0, "frequency_penalty": 0.7, "stop": "no such stop"}
    session = model.session()
    generation = session.generate("the", max_tokens=60, seed=3, **options)
    text, whole = "", "".join(model.session().generate("the", max_tokens=60, seed=3, **options))
    resumed = 0
    for piece in generation:
        text += piece
        state = session.state
        assert state.sampler is not None
        if model.tokenizer.decode(state.sampler.tokens) != text:
            continue  # the text ends inside a token
        seed, earlier = state.sampler
        left = 60 - len(earlier)
        rest = model.session(state).generate(
            "", max_tokens=left, seed=seed, earlier=earlier, **options
        )
        assert text + "".join(rest) == whole
        resumed += 1
    assert resumed > 5
    session.read([1])
    assert session.state.sampler is None


def test_earlier_tokens_count(tiny_model: GetModel) -> None:
    model = Model(tiny_model("f32", "d128")[0])
    plain = model.session().generate([1], max_tokens=1, temperature=0)
    list(plain)
    (first,) = plain.details.tokens
    other = model.session().generate(
        [1], max_tokens=1, temperature=0, earlier=[first], presence_penalty=1000
    )
    list(other)
    assert other.details.tokens != [first]
    with pytest.raises(ValueError, match="earlier: found 100000"):
        model.session().generate("", earlier=[100_000])


def test_saving_twice_gives_the_same_bytes(loaded: Model, tmp_path: Path) -> None:
    session = loaded.session()
    session.feed(TOKENS)
    for type_ in ("f32", "f16"):
        for name in "ab":
            replace(session.state, text="Was it here?").save(tmp_path / name, type=type_)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
        State.load(tmp_path / "a").save(tmp_path / "b", type=type_)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("text", [None, "", "Grüße\n\n\udcff \x1b[31m 日本", "x" * 100_000])
def test_a_state_carries_a_text(tiny_model: GetModel, tmp_path: Path, text: str | None) -> None:
    state = replace(Model(tiny_model("f32", "d128")[0]).session().state, text=text)
    state.save(tmp_path / "a.state")
    found = State.load(tmp_path / "a.state")
    assert found.text == text
    assert (found.tokens, found.model) == (0, tiny_model("f32", "d128")[0].name)


@pytest.mark.parametrize("name", ["text", "model"])
@pytest.mark.parametrize("half", [0xD800, 0xDC7F, 0xDD00, 0xDFFF])
def test_a_state_carries_no_half_characters(tiny_model: GetModel, name: str, half: int) -> None:
    state = Model(tiny_model("f32", "d128")[0]).session().state
    with pytest.raises(ValueError, match=f"^{name}: found 'a.*, expected characters that UTF-8 ha"):
        replace(state, **{name: f"a{chr(half)}"})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=f"^{name}: found 5, expected a text$"):
        replace(state, **{name: 5})  # type: ignore[arg-type]


def test_a_file_of_half_the_size(loaded: Model, tmp_path: Path, version: str) -> None:
    """f16 has 11 bits of a value, and steps of 2^-24 below 2^-14; each value is the nearest."""
    session = loaded.session()
    session.feed(TOKENS)
    state = session.state
    assert state.output is not None
    state.save(tmp_path / "a.state")
    state.save(tmp_path / "h.state", type="f16")
    sizes = [(tmp_path / name).stat().st_size for name in ("a.state", "h.state")]
    kept = 4 * len(state.output) * (1 + (version == "4") * loaded.n_layer)
    assert sizes[0] - sizes[1] == pytest.approx((4 * len(state.data) - kept + 512) / 2, abs=256)
    half = State.load(tmp_path / "h.state")
    assert half.output is not None
    assert half.output.tobytes() == state.output.tobytes()
    for name, right in state.numpy().items():
        found = half.numpy()[name]
        if name == "pp":
            assert found.tobytes() == right.tobytes()
            continue
        assert found.tobytes() != right.tobytes()
        assert (np.abs(found - right) <= np.maximum(np.abs(right) / 2048, 2.0**-25)).all(), name


def test_what_f16_cannot_hold(tiny_model: GetModel, tmp_path: Path) -> None:
    state = Model(tiny_model("f32", "d128")[0]).session().state
    state.numpy()["wkv"][1, 0, 2, 3] = 65505
    with pytest.raises(
        ValueError, match=r"a\.state: wkv: value .* is 65505, .* f16; f32 holds all"
    ):
        state.save(tmp_path / "a.state", type="f16")
    with pytest.raises(ValueError, match="type: found 'q8_0', expected one of f32, f16"):
        state.save(tmp_path / "a.state", type="q8_0")
    assert not list(tmp_path.iterdir())


def test_a_tuned_state_of_half_the_size(tiny_model: GetModel, tmp_path: Path) -> None:
    state = State.load(ck.write(tmp_path, ck.pth_of(states_of("7")), "tuned.pth"))
    state.save(tmp_path / "h.state", type="f16")
    half = State.load(tmp_path / "h.state")
    assert half.tuned
    assert half.data.tobytes() == state.data.astype(np.float16).astype(np.float32).tobytes()
    assert Model(tiny_model("f32", "d128")[0]).session(half).tokens == 0


# ---- of which model it is -----------------------------------------------------------------------


def changed(folder: Path, name: str, change: Callable[[tiny.Gguf], None]) -> Model:
    made = tiny.tiny_model(tiny.SHAPES["d192"], "f32", 7)
    change(made.file)
    return Model(tiny.write(folder, name, made))


def weight(name: str, at: int, by: float = 1e-3) -> Callable[[tiny.Gguf], None]:
    """One value of a tensor is another."""

    def change(file: tiny.Gguf) -> None:
        tensor = file.tensor(name)
        values = np.frombuffer(tensor.data, np.float32).copy()
        values[at] += by
        tensor.data = values.tobytes()

    return change


def test_a_fingerprint_tells_models_apart(tmp_path: Path) -> None:
    same = changed(tmp_path, "a", lambda file: file.put("general.name", tiny.STRING, "another"))
    plain = changed(tmp_path, "b", lambda _: None)
    assert len(plain.fingerprint) == 64
    assert same.fingerprint == plain.fingerprint
    table = next(tensor for tensor in plain._file.tensors if tensor.name == "token_embd.weight")
    assert table.nbytes > 8 * 1024
    names = ("token_embd.weight", "blk.1.attn_norm.bias", "output.weight", "blk.2.time_mix_k_k")
    changes = {
        **{f"{name} {at}": weight(name, at) for name in names[:3] for at in (0, -1)},
        "eps": lambda file: file.put("rwkv7.attention.layer_norm_epsilon", tiny.F32, 2e-5),
    }
    marks = {name: changed(tmp_path, "c", change).fingerprint for name, change in changes.items()}
    assert len({plain.fingerprint, *marks.values()}) == len(marks) + 1


def own_fingerprint(file: ModelFile) -> str:
    """What cpp/io/fingerprint.h describes, written a second time."""
    digest = hashlib.sha256()

    def add(data: bytes) -> None:
        digest.update(struct.pack("<Q", len(data)) + data)

    prefix = file.get("general.architecture") + "."
    for key in sorted(key for key in file.keys() if key.startswith(prefix)):  # noqa: SIM118
        add(f"{key} {file.get(key)!r}".encode())
    for tensor in sorted(file.tensors, key=lambda tensor: tensor.name):
        add(f"{tensor.name} {tensor.type} {tensor.shape}".encode())
        data = bytes(tensor.data)
        if len(data) <= 8192:
            add(data)
            continue
        for i in range(8):
            start = (len(data) - 1024) * i // 7
            add(data[start : start + 1024])
    return digest.hexdigest()


def test_a_fingerprint_shows_keys_as_python_does(tmp_path: Path) -> None:
    """Files of other programs may have keys of any kind. The halves of numbers that are powers of
    two are the hard ones: more numbers above than below round to them."""
    numbers = [
        0.0,
        -0.0,
        1e-5,
        64e-5,
        0.1,
        -1.5,
        100.0,
        123456.0,
        1e15,
        1e16,
        1e17,
        1.5e300,
        5e-324,
    ]
    numbers += [2.0**power for power in range(-1074, 1024)]
    numbers += [
        sign * random.Random(i).uniform(0.1, 10) ** 99 for i in range(99) for sign in (1, -1)
    ]
    singles = [struct.unpack("<f", struct.pack("<f", x))[0] for x in numbers if abs(x) < 3e38]
    more = {
        "f64": (tiny.F64, math.pi),
        "f32": (tiny.F32, 1e-5),
        "whole": (tiny.F32, 3.0),
        "nan": (tiny.F32, math.nan),
        "inf": (tiny.F64, -math.inf),
        "bool": (tiny.BOOL, True),
        "u64": (tiny.U64, 2**64 - 1),
        "i8": (tiny.I8, -7),
        "text": (tiny.STRING, "a text"),
        "none": (tiny.ARRAY, tiny.array(tiny.U32, [])),
        "ids": (tiny.ARRAY, tiny.array(tiny.U32, [1, 2, 3])),
        "words": (tiny.ARRAY, tiny.array(tiny.STRING, ["one", "two"])),
        "singles": (tiny.ARRAY, tiny.array(tiny.F32, singles)),
        "doubles": (tiny.ARRAY, tiny.array(tiny.F64, numbers)),
    }

    def change(file: tiny.Gguf) -> None:
        for name, (kind, value) in more.items():
            file.put(f"rwkv7.own.{name}", kind, value)

    file = changed(tmp_path, "keys", change)._file
    assert file.get("rwkv7.own.doubles") == numbers
    assert file.fingerprint() == own_fingerprint(file)
    plain = changed(tmp_path, "plain", lambda _: None)._file
    assert plain.fingerprint() == own_fingerprint(plain) != file.fingerprint()


def test_a_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    """A checkpoint that opens in place, and the file that `convert` makes of it, are one model."""
    weights = tiny.random_weights(tiny.VERSIONS["7"]["d128"], 5)
    source = ck.write(tmp_path, ck.pth_of(weights))
    vocab = ck.write(tmp_path, ck.VOCABULARY.encode(), "vocab.txt")
    for kind in ("f32", "q8_0"):
        convert(source, tmp_path / f"{kind}.gguf", type=kind, vocab=vocab)
    in_place = Model(source, vocab=vocab).fingerprint
    assert Model(tmp_path / "f32.gguf").fingerprint == in_place
    assert Model(tmp_path / "q8_0.gguf").fingerprint != in_place


def test_a_state_of_another_training(tmp_path: Path) -> None:
    """Equal shapes are not enough, and it can be overridden."""
    one = changed(tmp_path, "one.gguf", lambda _: None)
    other = changed(tmp_path, "other.gguf", weight("output.weight", 0))
    session = one.session()
    session.feed(TOKENS)
    session.state.save(tmp_path / "a.state")
    state = State.load(tmp_path / "a.state")
    message = (
        f"of another model, .*'one.gguf' with fingerprint {one.fingerprint[:16]}, expected "
        f".*other.gguf with {other.fingerprint[:16]}; --any-model, /load! "
    )
    with refuses(FormatError, tmp_path / "a.state", message):
        other.session(state)
    fork = other.session()
    fork.feed([1])
    with refuses(FormatError, tmp_path / "a.state", message):
        fork.reset(state)
    assert fork.tokens == 1
    taken = other.session(State.load(tmp_path / "a.state", any_model=True))
    assert taken.state.data.tobytes() == state.data.tobytes()
    assert (taken.tokens, taken.state.fingerprint) == (len(TOKENS), other.fingerprint)
    arguments = ["generate", str(tmp_path / "other.gguf"), "-p", "the", "-n", "3"]
    arguments += ["--state", str(tmp_path / "a.state")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "a state of another model" in result.stderr
    assert CliRunner().invoke(main, [*arguments, "--any-model"]).exit_code == 0
    chat = ["chat", str(tmp_path / "other.gguf")]
    for load, said in (("/load", "a state of another model"), ("/load!", "")):
        result = CliRunner().invoke(main, chat, input=f"{load} {tmp_path / 'a.state'}\n")
        assert said in result.stderr
        assert bool(said) == ("Error" in result.stderr)


def test_a_state_of_nan_is_not_saved(tmp_path: Path, tiny_model: GetModel) -> None:
    """Which could not be loaded; the earlier file stays."""
    model = Model(tiny_model("f32", "d128")[0])
    state = model.session().state
    state.save(tmp_path / "a.state")
    state.data[3] = np.nan
    with refuses(ValueError, tmp_path / "a.state", "of this state holds NaN or infinity"):
        state.save(tmp_path / "a.state")
    assert not State.load(tmp_path / "a.state").data.any()


# ---- state info, state diff ---------------------------------------------------------------------


def test_state_info(tiny_model: GetModel, tmp_path: Path) -> None:
    model = Model(tiny_model("f32", "d128")[0])
    session = model.session()
    session.feed(TOKENS)
    replace(session.state, text="\x1b[31m").save(tmp_path / "a.state")
    model.session().state.save(tmp_path / "b.state")
    result = CliRunner().invoke(main, ["state", "info", *map(str, tmp_path.iterdir())])
    assert result.exit_code == 0, result.output
    for text in (
        "a saved state of rwkv7 with 3 layers, width 128",
        "fingerprint   " + model.fingerprint,
        "tokens read   70",
        "tokens read   0",
        "last output   kept",
        "text          5 characters",
    ):
        assert text in result.stdout
    assert result.stdout.count("last output") == 1


def test_state_diff(loaded: Model, tmp_path: Path) -> None:
    session = loaded.session()
    session.feed(TOKENS)
    one = session.state
    session.feed(TOKENS)
    other = session.state
    rows = differences(one, other)
    assert len(rows) == loaded.n_layer * len(one.shape.parts)
    for layer, name, most, share in rows:
        a, b = (state.numpy()[name][layer].astype(np.float64).ravel() for state in (one, other))
        assert most == max(abs(x - y) for x, y in zip(a, b, strict=True))
        length = np.sqrt(sum(x * x for x in a))
        assert share == pytest.approx(np.sqrt(sum((a - b) ** 2)) / length, rel=1e-12)
    one.save(tmp_path / "a")
    other.save(tmp_path / "b")
    result = CliRunner().invoke(main, ["state", "diff", str(tmp_path / "a"), str(tmp_path / "b")])
    assert result.exit_code == 0, result.output
    table = [line.split() for line in result.stdout.splitlines()]
    assert table[0] == ["layer", *(name for name, _ in one.shape.parts)]
    numbers = [float(cell) for line in table[2 : 2 + loaded.n_layer] for cell in line[1:]]
    assert numbers == pytest.approx([x for row in rows for x in row[2:]], rel=0.06)
    assert [*table[-1][1:3], table[-1][-1]] == ["140", "tokens,", loaded.fingerprint]
    same = CliRunner().invoke(main, ["state", "diff", str(tmp_path / "a"), str(tmp_path / "a")])
    assert {cell for line in same.stdout.splitlines()[2:-2] for cell in line.split()[1:]} == {"0"}


def test_states_of_two_shapes_have_no_difference(tiny_model: GetModel, tmp_path: Path) -> None:
    for name in ("d128", "d192"):
        Model(tiny_model("f32", name)[0]).session().state.save(tmp_path / name)
    paths = [str(tmp_path / name) for name in ("d128", "d192")]
    result = CliRunner().invoke(main, ["state", "diff", *paths])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {paths[1]}: a state of rwkv7 with 3 layers, width 192")


def test_a_difference_from_nothing(tiny_model: GetModel) -> None:
    model = Model(tiny_model("f32", "d128")[0])
    session = model.session()
    session.feed(TOKENS)
    assert {row[3] for row in differences(model.session().state, session.state)} == {np.inf}
    assert {row[3] for row in differences(session.state, model.session().state)} == {1.0}


# ---- tuned states -------------------------------------------------------------------------------


def states_of(version: str, shape: str = "d128") -> dict[str, NDArray[np.float32]]:
    return dict(tiny.random_states(tiny.VERSIONS[version][shape], 7))


def merged_model(folder: Path, version: str) -> Model:
    """A model that has the state of `states_of` inside, as the tests lay it there."""
    shape = tiny.VERSIONS[version]["d128"]
    made = tiny.tiny_model(shape, "f32", seed=5, tuned=True)
    for name, value in states_of(version).items():
        made.file.tensor(tiny.gguf_name(name)).data = tiny.state_of(value, shape).tobytes()
    return Model(tiny.write(folder, "merged.gguf", made))


@pytest.mark.parametrize(("version", "shape"), list(product(RECURRENT, ["d128", "d192"])))
def test_a_tuned_state_in_the_file_is_where_sessions_begin(
    tmp_path: Path, version: str, shape: str
) -> None:
    """In the orientation that each version has on disk; `test_oracle` shows that turned ones
    lie far beyond the bound."""
    made = tiny.tiny_model(tiny.VERSIONS[version][shape], "f32", 4, tuned=True)
    right, end = oracle(made.weights).forward(TOKENS.tolist())
    session = Model(tiny.write(tmp_path, "tuned.gguf", made)).session()
    assert wrong_by(session.feed(TOKENS, logits="all"), right) < F32_BOUND
    found = session.state.numpy()["wkv"]
    assert np.abs(found - end["wkv"]).max() < F32_BOUND * end["wkv"].std()


def in_st(states: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """As Ai00's converter writes it."""
    return {name: np.ascontiguousarray(value.swapaxes(1, 2)) for name, value in states.items()}


TUNED_FORMS: dict[str, Callable[[Mapping[str, NDArray[np.float32]]], bytes]] = {
    "pth": ck.pth_of,
    "prefixed": lambda s: ck.pth_of({f"_forward_module.{n}": v for n, v in s.items()}),
    "st": lambda s: ck.safetensors_of(in_st(s)),
}


@pytest.mark.parametrize("form", TUNED_FORMS)
@pytest.mark.parametrize("version", RECURRENT)
def test_a_session_begins_at_a_tuned_state(tmp_path: Path, version: str, form: str) -> None:
    path = ck.write(tmp_path, TUNED_FORMS[form](states_of(version)), "tuned")
    made = tiny.tiny_model(tiny.VERSIONS[version]["d128"], "f32", seed=5)
    plain = Model(tiny.write(tmp_path, "plain.gguf", made))
    state = State.load(path)
    assert state.tuned
    found = plain.session(state).feed(TOKENS, logits="all")
    assert (
        found.tobytes()
        == merged_model(tmp_path, version).session().feed(TOKENS, logits="all").tobytes()
    )
    assert found.tobytes() != plain.session().feed(TOKENS, logits="all").tobytes()


@pytest.mark.parametrize("version", RECURRENT)
def test_a_tuned_state_becomes_part_of_a_model(tmp_path: Path, version: str) -> None:
    weights = tiny.random_weights(tiny.VERSIONS[version]["d128"], 5)
    source = ck.write(tmp_path, ck.pth_of(weights))
    state = ck.write(tmp_path, ck.pth_of(states_of(version)), "tuned.pth")
    vocab = ck.write(tmp_path, ck.VOCABULARY.encode(), "vocab.txt")
    convert(source, tmp_path / "out.gguf", type="f32", vocab=vocab, state=state)
    # A model that has one already gets the new one.
    old = {name: 2 * value for name, value in states_of(version).items()}
    source = ck.write(tmp_path, ck.pth_of({**weights, **old}))
    convert(source, tmp_path / "again.gguf", type="f32", vocab=vocab, state=state)
    expected = merged_model(tmp_path, version).session().feed(TOKENS, logits="all")
    for name in ("out.gguf", "again.gguf"):
        found = Model(tmp_path / name).session().feed(TOKENS, logits="all")
        assert found.tobytes() == expected.tobytes()


def test_a_tuned_state_is_a_beginning(tiny_model: GetModel, tmp_path: Path) -> None:
    model = Model(tiny_model("f32", "d128")[0])
    state = State.load(ck.write(tmp_path, ck.pth_of(states_of("7")), "tuned.pth"))
    empty = "".join(model.session(state).generate("", max_tokens=5, seed=1))
    assert empty == "".join(model.session(state).generate([0], max_tokens=5, seed=1))
    fresh = model.session().state  # of no token, as it says itself
    assert empty != "".join(model.session(fresh).generate("", max_tokens=5, seed=1))
    with pytest.raises(ValueError, match="the prompt is empty"):
        model.session(replace(fresh, tokens=None)).generate("")


def test_a_tuned_state_may_be_saved(tiny_model: GetModel, tmp_path: Path) -> None:
    model = Model(tiny_model("f32", "d128", "6")[0])
    state = State.load(ck.write(tmp_path, ck.pth_of(states_of("6")), "tuned.pth"))
    state.save(tmp_path / "a.state")
    again = State.load(tmp_path / "a.state")
    assert again.tuned
    assert model.session(again).state.data.tobytes() == model.session(state).state.data.tobytes()


@pytest.mark.parametrize(
    ("version", "shape", "message"),
    [
        ("7", "d192", "a tuned state of 3 layers, 2 heads of 64 does not fit .* 6 heads of 32"),
        ("4", "d128", "does not fit .*: rwkv4 with 3 layers, width 128$"),
    ],
)
def test_a_tuned_state_of_another_model(
    tiny_model: GetModel, tmp_path: Path, version: str, shape: str, message: str
) -> None:
    path = ck.write(tmp_path, ck.pth_of(states_of("7")), "tuned.pth")
    model = Model(tiny_model("f32", shape, version)[0])
    with refuses(FormatError, path, message):
        model.session(State.load(path))


@pytest.mark.parametrize(
    ("version", "change", "message"),
    [
        ("7", lambda s: dict(list(s.items())[:2]), "of 2 layers with 2 heads of 64 does not fit"),
        ("7", lambda s: {n: v[:1] for n, v in s.items()}, "1 heads of 64 .* 3 layers of width 128"),
        ("4", dict, "does not fit .*: not RWKV-5, 6 or 7"),
    ],
)
def test_a_tuned_state_that_cannot_be_merged(
    tmp_path: Path, version: str, change: Callable[[Any], Any], message: str
) -> None:
    weights = tiny.random_weights(tiny.VERSIONS[version]["d128"], 5)
    source = ck.write(tmp_path, ck.pth_of(weights))
    state = ck.write(tmp_path, ck.pth_of(change(states_of("7"))), "tuned.pth")
    with refuses(FormatError, state, message):
        convert(source, tmp_path / "out.gguf", state=state)
    assert not (tmp_path / "out.gguf").exists()


GOOD = states_of("7")
BAD_TUNED: dict[str, tuple[bytes, str]] = {
    "text": (b"This is no state.", "no .pth and no .safetensors file; expected a tuned state"),
    "a model": (
        ck.pth_of(tiny.random_weights(tiny.SHAPES["d128"], 1)),
        "no state; it holds emb.weight, expected blocks.N.att.time_state",
    ),
    "a layer is missing": (
        ck.pth_of({n: v for n, v in GOOD.items() if ".1." not in n}),
        r"no blocks\.1\.att\.time_state of 2 layers",
    ),
    "not square": (
        ck.pth_of({"blocks.0.att.time_state": ck.random(2, 4, 3)}),
        r"blocks\.0\.att\.time_state is \[2, 4, 3\], expected \[heads, size, size\]",
    ),
    "a vector": (
        ck.pth_of({"blocks.0.att.time_state": ck.random(16)}),
        r"time_state is \[16\], expected \[heads, size, size\]",
    ),
    "two shapes": (
        ck.pth_of({**GOOD, "blocks.1.att.time_state": ck.random(4, 32, 32)}),
        r"blocks\.1\.att\.time_state is \[4, 32, 32\], expected \[2, 64, 64\]",
    ),
    "not a number": (
        ck.pth_of({n: v * np.float32(np.inf) for n, v in GOOD.items()}),
        "the state holds NaN or infinity",
    ),
    "torn": (ck.pth_of(GOOD)[:-100], "not a whole zip archive"),
    "torn st": (ck.safetensors_of(GOOD)[:-100], "is the download complete"),
    "two prefixes": (
        ck.pth_of({**GOOD, "model.blocks.0.att.time_state": ck.random(2, 64, 64)}),
        "two tensors have one name",
    ),
}


@pytest.mark.parametrize("name", BAD_TUNED)
def test_bad_tuned_states(tmp_path: Path, name: str) -> None:
    data, message = BAD_TUNED[name]
    path = ck.write(tmp_path, data, "tuned")
    with refuses(FormatError, path, message):
        State.load(path)


def test_a_tuned_state_is_no_model(tmp_path: Path) -> None:
    path = ck.write(tmp_path, ck.pth_of(GOOD))
    with refuses(UnsupportedError, path, r"an initial state, not a model; .*--state FILE"):
        Model(path)


def test_a_saved_state_is_no_model(tiny_model: GetModel, tmp_path: Path) -> None:
    Model(tiny_model("f32", "d128")[0]).session().state.save(tmp_path / "a.state")
    with refuses(FormatError, tmp_path / "a.state", r"a saved state, not a model; .* --state FILE"):
        Model(tmp_path / "a.state")


def test_a_missing_state(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        State.load(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        State.load(tmp_path)
