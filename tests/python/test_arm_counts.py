# SPDX-License-Identifier: Apache-2.0
"""bench/arm_counts.py and arm_predict.py: what they make of logs, disassembly and counts."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module("arm_counts")


@pytest.fixture
def predict(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module("arm_predict")


def test_what_lies_between_the_marks_is_counted(counts: ModuleType) -> None:
    line = "Trace 0: 0x7ff108000100 [0000000001009331/{:016x}/00000001/00000201] {}\n"
    places = [(0x10, "main"), (0x20, "kernel_begins"), (0x30, "f"), (0x34, ""), (0x30, "f")]
    places += [(0x40, "kernel_ends"), (0x14, "main")]
    log = [line.format(*place).encode() for place in places]
    log.insert(3, b"a line of the program's own\n")
    assert list(counts.marked(log)) == [0x30, 0x34, 0x30]


DUMP = """
0000000000402280 <_ZN1a1bE>:
  402280:\tadrp\tx0, 4a0000 <_ZL5table+0x10>
  402284:\tldr\tq0, [x1], #16
  402288:\tb.ne\t402284 <_ZN1a1bE+0x4>  // b.any
  40228c:\ttbnz\tw0, #3, 402280 <_ZN1a1bE>
  402290:\tbl\t401000 <memcpy>
  402294:\tret
"""


def test_the_disassembly_becomes_what_llvm_mca_reads(counts: ModuleType) -> None:
    text = dict(counts.instructions(DUMP.splitlines()))
    assert list(text) == list(range(0x402280, 0x402298, 4))
    assert [counts.assembly(each) for each in text.values()] == [
        "adrp x0, #0",
        "ldr q0, [x1], #16",
        "b.ne #0",
        "tbnz w0, #3, #0",
        "b #0",
        "b #0",
    ]


def test_blocks_are_neighbours_executed_equally_often(counts: ModuleType) -> None:
    executed = [0, 4, 8, 4, 8, 4, 8, 12, 40, 44]
    assert counts.blocks(executed) == [(1, [0]), (3, [4, 8]), (1, [12]), (1, [40, 44])]


TABLE = """# For four rows and 32 columns.
kernel test       units neon neon_dotprod
q4_0   decode       128   64         32.5
wkv7   recurrence    32   96           96
"""


def test_hand_counts_are_read_from_the_table(counts: ModuleType) -> None:
    hand = counts.hand_counts(TABLE)
    assert hand == {
        ("neon", "q4_0", "decode"): 0.5,
        ("neon_dotprod", "q4_0", "decode"): 32.5 / 128,
        ("neon", "wkv7", "recurrence"): 3.0,
        ("neon_dotprod", "wkv7", "recurrence"): 3.0,
    }
    count = counts.Count("neon", "q4_0", "decode", "weight", 0.55, {"A72": 0.25})
    assert counts.row([count], hand) == "| q4_0 decode | weight |  | 0.550 (1.10) |  |  | 8.0 |  |"


def test_every_kernel_counted_by_hand_is_one_that_is_counted(counts: ModuleType) -> None:
    named = {(case.kernel, case.test) for case in counts.cases()}
    hand = counts.hand_counts(counts.HAND_COUNTS.read_text("utf-8"))
    assert len(hand) > 70
    assert {(kernel, test) for _, kernel, test in hand} <= named


REPORT = """
Cycles with backend pressure increase [ 48.07% ]
Throughput Bottlenecks:
  Resource Pressure       [ 40.00% ]
  Data Dependencies:      [ 8.07% ]
  - Register Dependencies [ 8.07% ]

Resources:
[0]   - N1UnitB
[1.0] - N1UnitL
[1.1] - N1UnitL

Resource pressure per iteration:
[0]    [1.0]  [1.1]
 -     8.00   4.00
"""


def test_pressure_is_told_per_part(counts: ModuleType) -> None:
    held = "Resource Pressure [ 40.00% ], Register Dependencies [ 8.07% ]"
    assert counts.pressure(REPORT, 4.0) == f"N1UnitL 2.00, N1UnitL 1.00, {held}"


def test_the_slower_of_memory_and_arithmetic_is_predicted(predict: ModuleType) -> None:
    board = predict.Board("A72", cores=2, ghz=1.0, memory_gb=1, bandwidth_gb=4.0, source="")
    load = predict.Load(
        nbytes=10**9, touched=10**8, weights={"q4_0": 10**7}, head=("q8_0", 10**6), state=10**5
    )
    cycles = {
        ("A72", "q4_0", "decode"): 0.5,
        ("A72", "q4_0", "prompt"): 0.25,
        ("A72", "q8_0", "decode"): 2.0,
        ("A72", "wkv7", "recurrence"): 5.0,
    }
    one = predict.Prediction.of(load, board, 1, cycles)
    # a token: 25 ms of memory; (5 + 2 + 0.5) * 10^6 cycles on two cores
    assert one.memory == pytest.approx(40.0)
    assert one.arithmetic == pytest.approx(2e9 / 7.5e6)
    assert one.rate == one.memory
    # a prompt reads the weights once, and needs the head once
    many = predict.Prediction.of(load, board, 10, cycles)
    assert many.memory == pytest.approx(400.0)
    assert many.arithmetic == pytest.approx(10 * 2e9 / (10 * 3e6 + 2e6))


def test_a_model_is_counted_as_its_file_would_hold_it(predict: ModuleType) -> None:
    shape = predict.Size(2, 128, (32, 32, 32, 64), vocab=300)
    load = predict.Load.of(shape, predict.KINDS["q4_0"])
    n, ffn = 128, 512
    assert load.weights["q4_0"] == 2 * (4 * n * n + 2 * n * ffn)
    assert load.weights["f32"] == 2 * 2 * n * 32  # of the decay, as llama.cpp keeps them
    assert load.weights["f16"] == 2 * 2 * n * (32 + 32 + 64)
    assert load.head == ("q8_0", 300 * n)
    assert load.state == 2 * n * 64
    table = 300 * n // 32 * 34
    assert load.nbytes - load.touched == table
