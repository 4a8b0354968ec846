# SPDX-License-Identifier: Apache-2.0
"""Fixtures: tiny random models, one file per version, shape and type, made once per test run."""

from __future__ import annotations

import inspect
import signal
import sys
import zlib
from functools import partialmethod
from pathlib import Path
from typing import Protocol

import pytest
import tiny
from click.testing import CliRunner

# A shell that starts the tests in the background has them ignore Ctrl-C, and the programs that
# they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Before click 8.2 a runner gives errors as part of the output, unless told not to.
if "mix_stderr" in inspect.signature(CliRunner).parameters:
    made = partialmethod(CliRunner.__init__, mix_stderr=False)
    CliRunner.__init__ = made  # type: ignore[assignment, method-assign]


def pytest_runtest_setup(item: pytest.Item) -> None:
    mark = item.get_closest_marker("posix")
    if mark is not None and sys.platform == "win32":
        pytest.skip(f"Windows has no {mark.args[0]}")


class GetModel(Protocol):
    def __call__(
        self, kind: str, shape: str, version: str = "7"
    ) -> tuple[Path, tiny.TinyModel]: ...


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> GetModel:
    """tiny_model(kind, shape, version) -> (path of the file, the model that lies in it)."""
    folder = tmp_path_factory.mktemp("models")
    made: dict[Path, tuple[Path, tiny.TinyModel]] = {}

    def get(kind: str, shape: str, version: str = "7") -> tuple[Path, tiny.TinyModel]:
        path = folder / version / f"tiny-{shape}-{kind}.gguf"
        if path not in made:
            seed = zlib.crc32(f"{version} {shape} {kind}".encode())
            model = tiny.tiny_model(tiny.VERSIONS[version][shape], kind, seed)
            path.parent.mkdir(exist_ok=True)
            made[path] = tiny.write(path.parent, path.name, model), model
        return made[path]

    return get
