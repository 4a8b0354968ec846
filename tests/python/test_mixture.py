# SPDX-License-Identifier: Apache-2.0
"""Files of a size: each matrix in the type in which its bytes save the most loss."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import checkpoints as ck
import numpy as np
import pytest
from conftest import GetModel
from program import run
from refusal import refuses
from rwkv_edge import Model, UnsupportedError, _core
from rwkv_edge._core import ModelFile
from rwkv_edge.convert import quantize
from rwkv_edge.convert.mixture import Budget, Losses, Mixture, Option, bits, fit, solve, up
from rwkv_edge.convert.policy import Known, Scale, Types, is_quantizable
from rwkv_edge.convert.write import plan_file
from rwkv_edge.quantization import sensitivity
from rwkv_edge.quantization.calibrate import calibration, folder_of
from rwkv_edge.quantization.perplexity import score
from rwkv_edge.quantization.sensitivity import measure, part_of
from rwkv_edge.quantization.text import Windows, tokens_of, windows_of

WORDS = "In the beginning was the word, and 3 others; then nobody said anything. "


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    rng = np.random.default_rng(1)
    path.write_text("".join(rng.permuted(list(WORDS)).tobytes().decode("utf-32") for _ in range(5)))
    return path


def types_of(path: Path) -> dict[str, str]:
    """Of the matrices of a file."""
    return {t.name: t.type for t in ModelFile(path).tensors if is_quantizable(t.name, t.shape)}


def fitted(
    path: Path, budget: Budget, losses: Losses | None = None, known: Known | None = None
) -> Mixture:
    plan = plan_file(path, path.with_name("out.gguf"), Types.choose("q4_k", None, None))
    return fit(plan, budget, known or Known(), losses)


def test_no_other_types_of_the_size_lose_less() -> None:
    """Against all combinations: to the best of any that takes a step less."""
    rng = np.random.default_rng(1)
    for _ in range(60):
        options = [
            [
                Option(str(i), int(nbytes), float(loss))
                for i, (nbytes, loss) in enumerate(
                    zip(np.cumsum(rng.integers(1, 60, 4)), rng.exponential(1, 4), strict=True)
                )
            ]
            for _ in range(4)
        ]
        every = [
            (sum(o.nbytes for o in found), sum(o.loss for o in found))
            for found in itertools.product(*options)
        ]
        smallest, largest = min(every)[0], max(every)[0]
        step = max(found[-1].nbytes - found[0].nbytes for found in options)
        for most in np.linspace(smallest, largest, 12).astype(int).tolist():
            chosen, price = solve(options, most)
            size, loss = sum(o.nbytes for o in chosen), sum(o.loss for o in chosen)
            assert size <= most
            assert loss >= min(x for n, x in every if n <= most) - 1e-12
            assert loss <= min([math.inf, *(x for n, x in every if n <= most - step)]) + 1e-12
            # At its price it is the best of all, up to what was left when a step did not fit.
            best = min(x + price * n for n, x in every)
            assert loss + price * size <= best + price * step + 1e-9
        assert sum(o.loss for o in solve(options, largest)[0]) == min(x for _, x in every)


@pytest.mark.parametrize("version", ["4", "5.2", "6", "7", "7a"])
def test_a_file_has_the_size_asked_for(tmp_path: Path, tiny_model: GetModel, version: str) -> None:
    path, _ = tiny_model("f32", "d256", version)
    target = tmp_path / "out.gguf"
    sizes = []
    for kind in ("q3_k", "q8_0"):
        known = Known(types={"blk.0.time_mix_output.weight": kind})
        quantize(path, target, type=kind, head_type=kind, embd_type=kind, known=known)
        sizes.append(target.stat().st_size)
    for size in (sizes[0], sum(sizes) // 2, sizes[1]):
        found = quantize(path, target, size=size)
        assert found is not None
        assert target.stat().st_size == found.nbytes <= size
        # The largest step that is left out has at most so many bytes.
        assert found.nbytes > size - 0.1 * sizes[1]
        assert types_of(target) == found.types
        assert len(set(found.types.values())) > (1 if sizes[0] < size < sizes[1] else 0)
        assert np.isfinite(Model(target).session().feed([1, 2])).all()
    for size in (sizes[0] - 1, sizes[1] + 1):
        message = f"a size of {size:,} bytes, expected {sizes[0]:,} to {sizes[1]:,}"
        with refuses(ValueError, path, message):
            quantize(path, target, size=size)


def test_bits_are_those_of_the_matrices(tmp_path: Path, tiny_model: GetModel) -> None:
    path, _ = tiny_model("f32", "d256", "7")
    target = tmp_path / "out.gguf"
    before = 0
    for wanted in (3.5, 4.5, 8.5):
        found = quantize(path, target, bits=wanted)
        assert found is not None
        tensors = [t for t in ModelFile(target).tensors if is_quantizable(t.name, t.shape)]
        having = 8 * sum(t.nbytes for t in tensors) / sum(math.prod(t.shape) for t in tensors)
        assert wanted - 0.6 < having <= wanted
        assert found.bits == having
        assert before < target.stat().st_size
        before = target.stat().st_size
    for wrong in (3.43, 8.6):
        with refuses(ValueError, path, f"{wrong} bits a weight .* expected 3.44 to 8.50"):
            quantize(path, target, bits=wrong)
    # No matrix has fewer bits than the type that is named, and the ends have theirs.
    found = quantize(path, target, bits=5.2, type="q4_k", head_type="q8_0", embd_type="q4_0")
    assert found is not None
    assert found.types["output.weight"] == "q8_0"
    assert found.types["token_embd.weight"] == "q4_0"
    assert min(map(bits, found.types.values())) == 4.5
    with refuses(ValueError, path, "3.6 bits a weight .* expected 4.50 to 8.50"):
        quantize(path, target, bits=3.6, type="q4_k")


def test_columns_that_fit_no_block_of_256(tmp_path: Path, tiny_model: GetModel) -> None:
    path, _ = tiny_model("f32", "d128", "7")
    found = quantize(path, tmp_path / "out.gguf", bits=5)
    assert found is not None
    assert types_of(tmp_path / "out.gguf") == found.types
    assert len(set(found.types.values()) & {"q4_0", "q4_1", "q5_0", "q5_1", "q8_0"}) >= 2


def test_a_checkpoint_and_a_quantized_source(tmp_path: Path, tiny_model: GetModel) -> None:
    source, target = ck.write(tmp_path, ck.pth_of(ck.weights_of())), tmp_path / "out.gguf"
    vocab = tmp_path / "vocab.txt"
    vocab.write_text(ck.VOCABULARY, "utf-8")
    quantize(source, target, type="q8_0", vocab=vocab)
    size = target.stat().st_size - 1000
    found = quantize(source, target, size=size, vocab=vocab)
    assert found is not None
    assert target.stat().st_size == found.nbytes <= size
    path, _ = tiny_model("f32", "d256", "7")
    quantize(path, tmp_path / "small.gguf", type="q6_k")
    with refuses(UnsupportedError, tmp_path / "small.gguf", "q6_k already"):
        quantize(tmp_path / "small.gguf", target, bits=4.5)


def test_what_is_asked_for_is_checked(tmp_path: Path, tiny_model: GetModel) -> None:
    path, _ = tiny_model("f32", "d256", "7")
    target = tmp_path / "out.gguf"
    with pytest.raises(ValueError, match="type, bits and size: expected one of them"):
        quantize(path, target)
    with pytest.raises(ValueError, match="type, bits and size: expected one of them"):
        calibration(path, target, [path])
    with pytest.raises(ValueError, match="bits and size: expected one of them"):
        quantize(path, target, bits=4.5, size=1 << 20)
    with pytest.raises(ValueError, match="type f16 is larger than all"):
        quantize(path, target, bits=9, type="f16")
    for wrong in (0.0, -1.0, 64.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"bits .*, expected such as 4\.5"):
            quantize(path, target, bits=wrong)
    assert not target.exists()


def test_what_is_assumed_without_a_text(tiny_model: GetModel) -> None:
    """In RWKV-7 the first output matrix has more bits than the others, and the ends have many."""
    path, _ = tiny_model("f32", "d256", "7")
    types = fitted(path, Budget(bits=5)).types
    assert bits(types["blk.0.time_mix_output.weight"]) > bits(types["blk.1.time_mix_output.weight"])
    assert bits(types["output.weight"]) > bits(types["blk.1.time_mix_key.weight"])
    assert bits(types["token_embd.weight"]) > bits(types["blk.1.time_mix_key.weight"])
    path, _ = tiny_model("f32", "d256", "6")
    types = fitted(path, Budget(bits=5)).types
    assert types["blk.0.time_mix_output.weight"] == types["blk.1.time_mix_output.weight"]


def test_an_importance_moves_bits(tiny_model: GetModel) -> None:
    """To a matrix in which columns that matter are the small ones of their blocks."""
    path, _ = tiny_model("f32", "d256", "6")
    name = "blk.1.time_mix_key.weight"
    tensor = next(t for t in ModelFile(path).tensors if t.name == name)
    values = tensor.data.view("<f4").reshape(tensor.shape)
    rare = np.zeros(256, np.float32)
    rare[np.argsort(np.abs(values).mean(axis=0))[:3]] = 1
    plain = fitted(path, Budget(bits=5))
    moved = fitted(path, Budget(bits=5), known=Known(importance={name: rare}))
    at_four = [next(c.at_four for c in m.choices if c.name == name) for m in (plain, moved)]
    assert at_four[1] != pytest.approx(at_four[0], rel=0.05)
    others = [{c.name: c.at_four for c in m.choices if c.name != name} for m in (plain, moved)]
    assert others[0] == others[1]


def test_bits_go_where_the_loss_is(tiny_model: GetModel) -> None:
    path, _ = tiny_model("f32", "d256", "7")
    names = list(fitted(path, Budget(bits=5)).types)
    for name in names[::7]:
        losses = Losses({other: 1e-3 if other == name else 1e-5 for other in names}, 1024)
        found = fitted(path, Budget(bits=5), losses)
        assert bits(found.types[name]) == max(map(bits, found.types.values())), name
        assert "measured on 1,024 tokens" in found.report()
    # What seems to lose nothing has a share all the same, so it is not the smallest at any price.
    silent = Losses({name: 1e-12 if name == names[0] else 1e-5 for name in names}, 1024)
    assert fitted(path, Budget(bits=8.4), silent).types[names[0]] != "q3_k"


def window(model: Model, text: Path) -> Windows:
    return windows_of(tokens_of(model, [text]), 64, "text")


@pytest.mark.parametrize("version", ["4", "6", "7"])
def test_a_loss_is_that_of_a_file_with_one_matrix_changed(
    tmp_path: Path, tiny_model: GetModel, version: str, text: Path
) -> None:
    path, _ = tiny_model("f32", "d256", version)
    model, other = Model(path), tmp_path / "other.gguf"
    windows = window(model, text)
    types = dict.fromkeys(types_of(path), "q4_k")
    found = measure(model, types, windows, importance={}, scales={}, kept=tmp_path / "losses")
    part = part_of(windows, len(types), model.n_vocab)
    assert found.tokens == part.size
    assert set(found.of) == set(types)
    tensors = {t.name: t for t in ModelFile(path).tensors}
    for name in ("token_embd.weight", "blk.1.channel_mix_key.weight", "output.weight"):
        values = tensors[name].data.view("<f4").reshape(tensors[name].shape)
        wrong = _core.dequantize(_core.quantize_matrix(values, "q4_k"), "q4_k")
        whole = bytearray(path.read_bytes())
        start = tensors[name].offset
        whole[start : start + values.nbytes] = wrong.tobytes()
        other.write_bytes(whole)
        # `score` leaves the last position of a window out; here they are all of equal worth.
        kl = score(Model(other), part, base=model, first=32).kl
        assert kl is not None
        assert found.of[name] == pytest.approx(kl.mean(), rel=0.15)
        assert found.of[name] > 0


def test_losses_do_not_depend_on_scales(tmp_path: Path, tiny_model: GetModel, text: Path) -> None:
    """Powers of two for all columns at once change no code, so nothing is lost by them."""
    path, _ = tiny_model("f32", "d256", "7")
    model = Model(path)
    name = "blk.1.time_mix_output.weight"
    scales = {name: Scale(columns=np.full(256, 8, np.float32))}
    found = [
        measure(
            model, {name: "q4_k"}, window(model, text), importance={}, scales=each,
            kept=tmp_path / str(i),
        ).of[name]
        for i, each in enumerate(({}, scales))
    ]  # fmt: skip
    assert found[0] == pytest.approx(found[1], rel=0.01)
    assert found[0] > 0


def test_how_much_of_a_text_each_matrix_reads() -> None:
    windows = np.zeros((128, 512), np.int32)
    assert part_of(windows, 20, 1792).shape == (12, 256)
    assert part_of(windows, 200, 1792).shape == (4, 256)
    assert part_of(windows, 1, 1792).shape == (32, 256)
    assert part_of(windows, 20, 1 << 17).shape == (2, 256)
    assert part_of(windows[:2, :100], 20, 1792).shape == (2, 100)


def test_calibrated(tmp_path: Path, tiny_model: GetModel, text: Path) -> None:
    """Nearer than the same bits for all, and it goes on where it was stopped."""
    path, _ = tiny_model("f32", "d256", "7")
    target, right = tmp_path / "out.gguf", tmp_path / "right.gguf"

    def planned(target: Path, text: Path = text, **stop: object) -> None:
        plan = calibration(path, target, [text], bits=4.8, window=64, tokens=9999, **stop)  # type: ignore[arg-type]
        assert plan.mixture is not None
        plan.run()
        assert types_of(target) == plan.mixture.types
        assert target.stat().st_size == plan.mixture.nbytes
        assert plan.mixture.tokens

    planned(right)
    seen: list[str] = []

    def watch(_done: int, _total: int, what: str) -> None:
        seen.append(what)
        if what == "what blk.1.time_mix_value.weight loses":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        planned(target, progress=watch)
    assert "what blk.0.time_mix_value.weight loses" in seen
    assert (folder_of(target) / "losses").is_file()
    seen.clear()
    planned(target, progress=lambda _done, _total, what: seen.append(what))
    assert "what blk.1.time_mix_value.weight loses" in seen
    assert "what blk.0.time_mix_value.weight loses" not in seen
    assert target.read_bytes() == right.read_bytes()
    assert not folder_of(target).exists()

    # What another text has left is not used, nor what is no list of losses.
    target.unlink()
    folder_of(target).mkdir()
    kept = folder_of(target) / "losses"
    for left in (b"", b"[]", b'{"key": "other", "losses": {}}', b'{"losses": 1}', b"\xff"):
        kept.write_bytes(left)
        assert sensitivity.kept_losses(kept, "key") == {}
    kept.write_bytes(b'{"key": "other", "losses": {"blk.0.time_mix_key.weight": 1.0}}')
    plan = calibration(path, target, [text], bits=4.8, window=64, tokens=9999)
    assert plan.mixture is not None
    assert plan.mixture.types == types_of(right)

    with refuses(ValueError, path, "2 bits a weight .* expected 3.44 to 8.50"):
        calibration(path, tmp_path / "none.gguf", [text], bits=2, window=64, tokens=9999)
    assert not folder_of(tmp_path / "none.gguf").exists()


def test_command(tmp_path: Path, tiny_model: GetModel, text: Path) -> None:
    path, _ = tiny_model("f32", "d256", "7")
    target = tmp_path / "out.gguf"
    done = run("quantize", path, target, "--bits", "5")
    assert done.returncode == 0, done.stderr
    first, title, *rows, last = done.stdout.decode().splitlines()
    assert "a mixture of " in first
    assert title.split()[:3] == ["matrix", "type", "layers"]
    assert {row.split()[0] for row in rows} >= {"token_embd", "output", "time_mix_key"}
    size = target.stat().st_size
    assert f" bits a weight in 20 matrices, {size:,} bytes in all. Losses are assumed" in last
    shown = run("info", target).stdout.decode()
    assert ", a mixture of q" in shown.splitlines()[0]
    assert "bits/weight: token_embd " in shown
    text.write_text(WORDS * 15)
    done = run("quantize", path, target, "--size", f"{size}", "--calibrate", text)
    assert done.returncode == 0, done.stderr
    assert b"Losses are measured on " in done.stdout
    assert target.stat().st_size <= size
    for arguments, message in (
        ((), "expected --type, --bits or --size"),
        (("--bits", "4", "--size", "1MB"), "--bits and --size: expected one of them"),
        (("--bits", "1"), "1 bits a weight in the matrices, expected 3.44 to 8.50"),
        (("--size", "big"), "'big' is no size"),
    ):
        done = run("quantize", path, target, *arguments)
        assert done.returncode != 0
        assert message in " ".join(done.stderr.decode().split())
    # A file of one type is none.
    quantize(path, target, type="q4_k")
    assert run("info", target).stdout.decode().splitlines()[0].count("mixture") == 0


def test_padding_counts() -> None:
    assert [up(n) for n in (0, 1, 32, 33)] == [0, 32, 32, 64]
