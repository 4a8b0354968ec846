# SPDX-License-Identifier: Apache-2.0
"""tools/check_layers.py finds violations planted for it, and none in the tree."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "check_layers.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_layers", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("base/error.h", '#include "quant/types.h"'),
        ("io/gguf.cpp", '#include "model/model.h"'),
        ("io/gguf.cpp", '  #  include   "session.h"'),
        ("model/rwkv7.cpp", '#include "kernels/kernels.h"'),
        ("model/rwkv7.cpp", '#include "session.h"'),
        ("session.cpp", "#include <pybind11/pybind11.h>"),
        ("kernels/x86/avx2.cpp", "#include <vector>"),
        ("kernels/generic/rows.inl", '#include "base/error.h"'),
        ("kernels/kernels.h", "#include <cstdint>"),
        ("quant/blocks.h", "#include <cstring>"),
        ("io/gguf.cpp", 'printf("%d", 1);'),
        ("io/gguf.cpp", "std::cerr << 1;"),
        ("io/gguf.cpp", "if (bad) abort();"),
        ("io/gguf.cpp", "std::exit(1);"),
        ("io/gguf.cpp", "} catch (...) {"),
        ("io/gguf.cpp", "auto* p = new Thing;"),
        ("io/gguf.cpp", "void* p = malloc(3);"),
    ],
)
def test_a_planted_violation_is_found(tool: ModuleType, path: str, line: str) -> None:
    (error,) = tool.check_source(path, f"// a comment\n\n{line}\n")
    assert error.startswith(f"cpp/{path}:3: ")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("model/rwkv7.cpp", '#include "backend/ops.h"\n#include <vector>\n'),
        ("kernels/x86/avx2.cpp", '#include <math.h>\n#include "kernels/generic/rows.inl"\n'),
        ("kernels/dispatch.cpp", '#include <vector>\n#include "base/error.h"\n'),
        ("base/aligned.h", "#include <new>\nreturn ::operator new(n, kAlignment);\n"),
        ("io/gguf.cpp", '// printf( and abort( and new x\nfail("catch (...)");\n'),
        ("bindings.cpp", "#include <pybind11/pybind11.h>\n} catch (...) {\n"),
    ],
)
def test_what_is_allowed_is_not_reported(tool: ModuleType, path: str, text: str) -> None:
    assert list(tool.check_source(path, text)) == []


def test_the_tree_has_no_violation(tool: ModuleType) -> None:
    assert tool.check_tree(TOOL.parents[1] / "cpp") == []
    assert tool.check_tree(TOOL.parent) != []  # a wrong folder is noticed


@pytest.mark.skipif(
    not (shutil.which("c++") and shutil.which("nm")), reason="needs a compiler and nm"
)
def test_a_weak_symbol_in_a_kernel_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    folder.mkdir()
    sources = {
        "clean": "static int f() { return 1; }\nint g() { return f(); }\n",
        "weak": "inline int shared(int x) { return x + 1; }\nint (*keep)(int) = shared;\n",
    }
    for name, code in sources.items():
        (folder / f"{name}.cpp").write_text(code)
        command = ["c++", "-c", "-O0", f"{name}.cpp", "-o", f"{name}.o"]
        subprocess.run(command, cwd=folder, check=True)

    def run(*objects: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(TOOL), *objects]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    found = run("kernels/clean.o", "kernels/weak.o")
    assert found.returncode == 1
    assert found.stdout.strip() == "kernels/weak.o: weak symbol shared(int)"
    assert run("kernels/clean.o").returncode == 0
    assert run("other/clean.o").returncode == 1  # nothing to check is not success
    assert run("kernels/missing.o").returncode != 0
