# SPDX-License-Identifier: Apache-2.0
"""What the module of the engine shows to the process that loads it."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from rwkv_edge import _core

NM = shutil.which("nm")


@pytest.mark.skipif(NM is None or sys.platform != "linux", reason="needs nm, and a module in ELF")
def test_the_module_exports_one_symbol() -> None:
    command = [str(NM), "--dynamic", "--defined-only", _core.__file__]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [line.split()[-1] for line in listing.splitlines()] == ["PyInit__core"]
