# SPDX-License-Identifier: Apache-2.0
"""What `rwkv-edge bench` holds its figures against."""

from __future__ import annotations

import pytest
import tiny
from conftest import GetModel
from rwkv_edge import _core
from rwkv_edge.bench import Limits, Work
from rwkv_edge.model_file import open_model_file

LIMITS = Limits(bandwidth_gb=20.0, float_gops=100.0, int8_gops=200.0)


@pytest.mark.parametrize("version", ["7", "7a"])
@pytest.mark.parametrize("kind", ["f16", "q4_0", "q6_k"])
def test_work_is_that_of_the_matrices(tiny_model: GetModel, version: str, kind: str) -> None:
    shape = tiny.VERSIONS[version]["d256"]
    file = open_model_file(tiny_model(kind, "d256", version)[0])
    work = Work.of(file)
    n, ffn, layers = shape.width, shape.ffn, shape.layers
    small = 2 * n * sum(shape.ranks)
    if version == "7a":  # s_emb_x, s1, s2
        small += 1024 * n + 32 * n + ffn * 32
    large = 4 * n * n + 2 * n * ffn
    place = kind != "f16"
    expected = [2 * layers * small, 0]
    expected[place] += 2 * layers * large
    assert sum(work.layers) == sum(expected)
    if version == "7":
        assert list(work.layers) == expected
    assert work.head[place] == sum(work.head) == 2 * shape.vocab * n
    tables = ("token_embd.weight", "s_emb.weight")
    needed = sum(t.nbytes for t in file.tensors if not t.name.endswith(tables))
    assert work.bytes_per_token == needed


def test_the_limit_of_writing_is_memory() -> None:
    work = Work(bytes_per_token=400_000_000, layers=(1, 1), head=(1, 1))
    assert LIMITS.rate(work, "tg128") == pytest.approx(50.0)


def test_sessions_together_read_the_weights_once_and_multiply_each() -> None:
    work = Work(bytes_per_token=400_000_000, layers=(10**8, 10**9), head=(10**8, 10**9))
    # memory: 20 ms a step; arithmetic: 2 + 10 ms a session
    assert LIMITS.rate(work, "tg128", 1) == pytest.approx(1 / 0.02)
    assert LIMITS.rate(work, "tg128", 2) == pytest.approx(2 / 0.024)
    assert LIMITS.rate(work, "tg128", 8) == pytest.approx(8 / 0.096)


def test_the_limit_of_reading_is_arithmetic_and_the_head_counts_once() -> None:
    work = Work(bytes_per_token=1, layers=(10**9, 4 * 10**9), head=(0, 6 * 10**9))
    # a token: 10 ms of floats, 20 ms of int8; the head: 30 ms
    assert LIMITS.rate(work, "pp1") == pytest.approx(1 / 0.06)
    assert LIMITS.rate(work, "pp9") == pytest.approx(9 / 0.3)


def test_limits_are_measured_with_the_threads_asked_for() -> None:
    limits = Limits.measure(2)
    assert min(limits.bandwidth_gb, limits.float_gops, limits.int8_gops) > 0
    for function in (_core.read_bandwidth, _core.float_peak, _core.int8_peak):
        for threads in (-1, 0, 1025):
            with pytest.raises(ValueError, match=f"threads is {threads}, expected 1 to 1024"):
                function(threads)
