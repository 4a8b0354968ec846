# SPDX-License-Identifier: Apache-2.0
"""The .st files of web-rwkv and Ai00: renamed and turned tensors, put back to the bit."""

from __future__ import annotations

from pathlib import Path

import checkpoints as ck
import numpy as np
import pytest
import tiny
from numpy.typing import NDArray
from reference import Weights
from refusal import refuses
from rwkv_edge import FormatError
from rwkv_edge.convert.open import open_checkpoint
from web_rwkv import TURNED, as_st, save

official = pytest.importorskip("safetensors.numpy")

MODELS = [(version, shape) for version in tiny.VERSIONS for shape in tiny.VERSIONS[version]]


def weights_of(version: str, shape: str = "d128", *, tuned: bool = True) -> Weights:
    """Those that the converter accepts: a u that is time_faaaa, and per channel in 5.1."""
    real = tiny.VERSIONS[version][shape]
    weights = tiny.random_weights(real, seed=3)
    if tuned and version != "4":
        weights |= tiny.random_states(real, seed=4)
    for name in list(weights):
        if version == "5.1" and name.endswith(("time_decay", "time_faaaa", "time_first")):
            weights[name] = np.repeat(weights[name][:, None], real.head_size, axis=1)
        if version[0] == "5" and name.endswith("time_first"):
            weights[name.replace("first", "faaaa")] = weights.pop(name)
    return weights


@pytest.mark.parametrize(("version", "shape"), [m for m in MODELS if m[0] != "5.0"])
@pytest.mark.parametrize("tuned", [False, True])
def test_everything_is_put_back(tmp_path: Path, version: str, shape: str, tuned: bool) -> None:
    weights = weights_of(version, shape, tuned=tuned)
    assert ck.opened(save(tmp_path, as_st(weights))) == ck.squeezed(weights)


@pytest.mark.parametrize("version", tiny.VERSIONS)
def test_safetensors_with_original_names(tmp_path: Path, version: str) -> None:
    """What was neither renamed nor turned stays as it is, the states as well."""
    weights = weights_of(version)
    assert ck.opened(save(tmp_path, weights)) == ck.squeezed(weights)


def test_a_logarithm_stays_one(tmp_path: Path) -> None:
    """With one value per head, time_first is BlinkDL's and means the logarithm of u."""
    weights = tiny.random_weights(tiny.VERSIONS["5.0"]["d128"], seed=3)
    assert "blocks.0.att.time_first" in weights
    assert ck.opened(save(tmp_path, weights)) == ck.squeezed(weights)
    v4 = tiny.random_weights(tiny.VERSIONS["4"]["d128"], seed=3)
    assert ck.opened(save(tmp_path, as_st(v4))) == ck.squeezed(v4)


def test_matrices_are_used_in_place(tmp_path: Path) -> None:
    halves = {n: np.ascontiguousarray(v, np.float16) for n, v in as_st(weights_of("7")).items()}
    path = tmp_path / "model.st"
    official.save_file(halves, path)
    for name, tensor in open_checkpoint(path).tensors.items():
        raw = tensor.raw()
        assert tensor.dtype == "f16"
        if any(part in name for part in TURNED):
            assert raw is None
        else:
            assert raw is not None
            assert raw.tobytes() == halves[name].tobytes()


# ---- when shapes do not tell --------------------------------------------------------------------


def square(weights: Weights, width: int = 128) -> Weights:
    """Every rank is the width of the model."""
    rng = np.random.default_rng(5)

    def grown(name: str, value: NDArray[np.float32]) -> NDArray[np.float32]:
        last = name.rsplit(".", maxsplit=1)[-1]
        if last not in (*ck.LOW_RANK_6, *ck.LOW_RANK_7):
            return value
        return rng.normal(0, 1, (*value.shape[:-2], width, width)).astype(np.float32)

    return {name: grown(name, value) for name, value in weights.items()}


def test_other_names_tell(tmp_path: Path) -> None:
    """In RWKV-6 an .st is known by its names, whatever its shapes."""
    weights = square(weights_of("6"))
    assert ck.opened(save(tmp_path, as_st(weights))) == ck.squeezed(weights)


def test_other_matrices_tell(tmp_path: Path) -> None:
    weights = square(weights_of("7"))
    weights["blocks.2.att.g1"] = weights["blocks.2.att.g1"][:, :40]
    for form in (weights, as_st(weights)):
        assert ck.opened(save(tmp_path, form)) == ck.squeezed(weights)


def test_names_alone_turn_nothing(tmp_path: Path) -> None:
    """Older converters renamed and did not transpose; the shapes have the last word."""
    weights = weights_of("6")
    renamed = {
        name.replace("time_maa", "time_mix").replace("time_faaaa", "time_first"): value
        for name, value in weights.items()
    }
    assert ck.opened(save(tmp_path, renamed)) == ck.squeezed(weights)


def test_nothing_tells(tmp_path: Path) -> None:
    weights = square(weights_of("7"))
    path = save(tmp_path, as_st(weights))
    with refuses(FormatError, path, r"att\.w2 \[128, 128\] may or may not be transposed"):
        open_checkpoint(path)
    # A .pth is always BlinkDL's.
    assert ck.opened(ck.write(tmp_path, ck.pth_of(weights))) == ck.squeezed(weights)


def test_a_turned_pth(tmp_path: Path) -> None:
    weights = weights_of("7")
    path = ck.write(tmp_path, ck.pth_of(as_st(weights)))
    assert ck.opened(path) == ck.squeezed(weights)


def test_matrices_that_lie_both_ways(tmp_path: Path) -> None:
    weights = as_st(weights_of("7"))
    weights["blocks.1.att.a1"] = weights["blocks.1.att.a1"].T
    path = save(tmp_path, weights)
    with refuses(FormatError, path, r"is transposed, blocks\.1\.att\..*a1 \[128, 20\] is not$"):
        open_checkpoint(path)


def test_two_tensors_of_one_meaning(tmp_path: Path) -> None:
    weights = as_st(weights_of("6"))
    weights["blocks.1.att.time_faaaa"] = weights["blocks.1.att.time_first"]
    path = save(tmp_path, weights)
    with refuses(FormatError, path, r"time_first' are both blocks\.1\.att\.time_faaaa"):
        open_checkpoint(path)
