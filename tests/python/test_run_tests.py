# SPDX-License-Identifier: Apache-2.0
"""tools/run_tests.py: which versions are the oldest."""

from __future__ import annotations

import re
from pathlib import Path

import run_tests as tool
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]


def test_the_oldest_versions() -> None:
    text = 'dependencies = ["numpy>=1.23", "a-b>=0.2.2"]\ntest = ["x>=8", "ninja", "y==2.4.1"]\n'
    assert tool.oldest_versions(text) == ["numpy~=1.23.0", "a-b==0.2.2", "x~=8.0"]


def test_every_dependency_has_one() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    versions = tool.oldest_versions(text)
    oldest = {found.name: found.specifier for found in map(Requirement, versions)}
    bounds = re.findall(r'"([^"]+>=[^"]+)"', text)
    for wanted in map(Requirement, bounds):
        (bound,) = wanted.specifier
        patches = [Version(f"{bound.version}{end}") for end in ("", ".0", ".7")]
        assert any(patch in oldest[wanted.name] for patch in patches)
        assert Version("9999") not in oldest[wanted.name]


def test_what_is_run_on_a_wheel() -> None:
    required, sources, command = tool.wheel_tests((ROOT / "pyproject.toml").read_text())
    assert required == ["pytest>=8"]
    assert {"tests", "pyproject.toml"} <= set(sources)
    assert command[:2] == ["pytest", "-q"]
    files = [ROOT / name for name in (*sources, *command[2:])]
    assert [path for path in files if not path.exists()] == []
