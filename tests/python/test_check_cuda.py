# SPDX-License-Identifier: Apache-2.0
"""What tools/check_cuda.py finds in the listings of cuobjdump."""

from __future__ import annotations

import shutil

import check_cuda
import pytest
from check_cuda import Use

MANGLED = (
    "_ZN9rwkv_edge4cuda41_GLOBAL__N__fda1ba60_9_matmul_cu_7641b92d"
    "10few_kernelILi4EEEvNS0_8ProductsE"
)
USAGE = """
Fatbin elf code:
================
arch = sm_80
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function few_kernel<4>:
  REG:96 STACK:0 SHARED:9216 LOCAL:0 CONSTANT[0]:1368 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin elf code:
================
arch = sm_120
code version = [1,8]

Resource usage:
 Function few_kernel<4>:
  REG:90 STACK:8 SHARED:9216 LOCAL:0 CONSTANT[0]:1368 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
SASS = """
Fatbin elf code:
================
arch = sm_90

\tcode for sm_90
\t\tFunction : few_kernel<4>
\t.headerflags\t@"EF_CUDA_SM90"
LOADS
PRODUCTS
        /*0200*/                   EXIT ;
\t\tFunction : embed_kernel
        /*0200*/                   EXIT ;
"""
for place, line, count in (
    ("LOADS", "        /*0120*/          LDG.E.128.CONSTANT R12, desc[UR6][R12.64+0x10] ;", 10),
    ("PRODUCTS", "        /*01a0*/          HMMA.16816.F32 R20, R20, R24, RZ ;", 40),
):
    SASS = SASS.replace(place, "\n".join([line] * count))


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="needs binutils")
def test_kernels_have_the_names_of_the_source() -> None:
    assert check_cuda.demangled(f" Function {MANGLED}:\n") == " Function few_kernel<4>:\n"


def test_enumerations_in_names_are_numbers() -> None:
    full = "void a::(anonymous namespace)::some_kernel<(a::Layout)3, 4>(a::Products)"
    assert check_cuda.short(full) == "some_kernel<3,4>"


def test_names_of_arguments_may_have_no_namespace() -> None:
    full = "a::(anonymous namespace)::read_kernel(a::(anonymous namespace)::Read)"
    assert check_cuda.short(full) == "read_kernel"


def test_uses_and_the_table_of_them() -> None:
    uses = check_cuda.uses_of(USAGE)
    assert uses == {
        ("sm_80", "few_kernel<4>"): Use(96, 9216, 0),
        ("sm_120", "few_kernel<4>"): Use(90, 9216, 8),
    }
    assert check_cuda.read_table(check_cuda.written_table("13.0", uses)) == ("13.0", uses)


def test_growth_is_an_error() -> None:
    place = ("sm_90", "some_kernel")
    before = {place: Use(64, 1024, 0)}
    errors = [
        list(check_cuda.use_errors({place: now}, before))
        for now in (Use(64, 1024, 0), Use(60, 512, 0), Use(65, 1024, 0), Use(64, 1040, 0))
    ]
    assert [len(found) for found in errors] == [0, 0, 1, 1]
    assert errors[2][0].startswith("some_kernel, sm_90: 65 registers, in cuda_kernels.txt 64")
    assert "1040 bytes of shared memory" in errors[3][0]
    assert "a stack of 8 bytes" in next(check_cuda.use_errors({place: Use(64, 1024, 8)}, before))
    assert "not in cuda_kernels.txt" in next(check_cuda.use_errors(before, {}))
    assert "but no kernel" in next(check_cuda.use_errors({}, before))


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("", "", None),
        ("HMMA", "FFMA", "few_kernel<4>, sm_90: 0 tensor core instructions, expected 40 at least"),
        ("LDG.E.128", "LDG.E.64", "few_kernel<4>, sm_90: 0 128-bit loads, expected 10 at least"),
        ("EXIT ;\n\t\tF", "STL [R1], R4 ;\n\t\tF", "few_kernel<4>, sm_90: uses local memory"),
    ],
)
def test_instructions(old: str, new: str, error: str | None) -> None:
    errors = list(check_cuda.instruction_errors(SASS.replace(old, new) if old else SASS))
    assert errors == ([] if error is None else [error])


def test_the_table_in_the_tree_can_be_read() -> None:
    version, uses = check_cuda.read_table(check_cuda.TABLE.read_text(encoding="utf-8"))
    assert version.startswith("13.")
    assert {architecture for architecture, _ in uses} == set(check_cuda.ARCHITECTURES)
    kernels = {kernel.partition("<")[0] for _, kernel in uses}
    assert set(check_cuda.PROMISED) <= kernels
