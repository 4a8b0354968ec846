# SPDX-License-Identifier: Apache-2.0
"""Whatever goes wrong while a file is written, it is the old one or the new one.

Calls to the operating system that fail, and writers that are killed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COMPILER = shutil.which(os.environ.get("CXX", "c++"))


@pytest.mark.skipif(sys.platform != "linux", reason="the calls are those of glibc on Linux")
@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
def test_any_call_may_fail(tmp_path: Path) -> None:
    library = tmp_path / "faults.so"
    source = str(HERE / "faults.cpp")
    options = ["-std=c++17", "-shared", "-fPIC", "-o", str(library), source, "-ldl"]
    subprocess.run([str(COMPILER), *options], check=True)
    (tmp_path / "work").mkdir()
    environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": str(HERE)}
    command = [sys.executable, str(HERE / "fault_cases.py"), str(tmp_path / "work")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    writes = {"open", "fchmod", "write", "fsync", "rename", "close"}
    assert {name: set(calls) for name, calls in json.loads(done.stdout).items()} == {
        "save": writes | {"mmap"},  # it looks at what it would replace
        "convert": writes,
        "quantize": writes,
        "history": writes | {"mkdir"},
        "open a model": {"open", "mmap"},
    }


def test_killed_writers() -> None:
    """At 30 random moments; `python tools/torture.py kill` does it a thousand times."""
    command = [sys.executable, str(HERE.parents[1] / "tools" / "torture.py"), "kill", "30"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for kind in ("a state", "a model"):
        assert f"{kind}: killed: 15\n" in done.stdout
        assert f"{kind}: after the next write: 0\n" in done.stdout
