# SPDX-License-Identifier: Apache-2.0
"""tools/cuda_kernels.py reads what the compiler says."""

from __future__ import annotations

import cuda_kernels as tool

LOG = """
ptxas info    : Compiling entry function '_ZN9rwkv_edge4cuda38_GLOBAL__N__8e9c5d05_6_wkv_cu_46296
9cf11wkv7_kernelILi64EEEvNS0_8Wkv7ArgsE' for 'sm_90'
ptxas info    : Used 70 registers, used 1 barriers, 1796 bytes smem
ptxas info    : Compiling entry function '_ZN9rwkv_edge4cuda12_GLOBAL__N_114prepare_kernelENS0_7Pre
pareE' for 'sm_90'
ptxas info    : Used 99 registers, used 0 barriers
""".replace("46296\n", "46296").replace("7Pre\n", "7Pre")


def test_registers_and_shared_memory_are_read_and_held_against_the_table() -> None:
    found = tool.resources(LOG)
    assert found == {"wkv7_kernel<64>": (70, 1796), "prepare_kernel": (99, 0)}
    complete = {name: (1, 0) for name in tool.MOST} | found
    (error,) = tool.check_resources(complete)
    assert error.startswith("prepare_kernel: 99 registers and 0 bytes of shared memory, expected")
    assert len(tool.check_resources(found)) == len(tool.MOST) - 1
    assert any("not in the table" in e for e in tool.check_resources({"new_kernel": (1, 0)}))


def test_the_machine_code_has_what_was_promised_and_no_local_memory() -> None:
    promised = "LDG.E.NA.128.CONSTANT R4\n" * 10 + "HMMA.16816.F32 R4\n" * 200
    section = '\t.section\t.text._ZN9rwkv_edge4cuda12_GLOBAL__N_1{}ENS0_8ProductsE,"ax"\n{}'
    assert tool.check_code(section.format("11many_kernel", promised)) == []
    assert len(tool.check_code(section.format("11many_kernel", "LDG.E.128 R4\n"))) == 2
    (error,) = tool.check_code(section.format("11keep_kernel", "LDL R4, [R1]\n"))
    assert error == "keep_kernel: loads from or stores to local memory"
