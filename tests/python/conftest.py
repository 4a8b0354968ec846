# SPDX-License-Identifier: Apache-2.0
"""Fixtures: tiny random models, one file per tensor type, made once per test run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

GetModel = Callable[[str, str], tuple[Path, tiny.TinyModel]]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> GetModel:
    """tiny_model(kind, shape) -> (path of the file, the model that lies in it)."""
    folder = tmp_path_factory.mktemp("models")
    made: dict[tuple[str, str], tuple[Path, tiny.TinyModel]] = {}

    def get(kind: str, shape: str) -> tuple[Path, tiny.TinyModel]:
        if (kind, shape) not in made:
            model = tiny.tiny_model(tiny.SHAPES[shape], kind, seed=len(made) + 1)
            made[kind, shape] = tiny.write(folder, f"tiny-{shape}-{kind}.gguf", model), model
        return made[kind, shape]

    return get
