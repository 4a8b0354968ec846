# SPDX-License-Identifier: Apache-2.0
"""tools/check_layers.py finds violations planted for it, and none in the tree."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import check_layers as tool
import pytest

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "check_layers.py"


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
        ("io/gguf.cpp", "#include <sys/mman.h>"),
        ("backend/limits.cpp", "#include <unistd.h>"),
        ("io/gguf.cpp", 'printf("%d", 1);'),
        ("io/gguf.cpp", "std::cerr << 1;"),
        ("io/gguf.cpp", "if (bad) abort();"),
        ("io/gguf.cpp", "std::exit(1);"),
        ("io/gguf.cpp", "} catch (...) {"),
        ("model/model.cpp", "std::copy_n(embedded, tokens * n, x);"),
        ("model/model.cpp", "std::ranges::fill(state, 0.0f);"),
        ("model/rwkv7.cpp", "memcpy(x, y, n);"),
        ("model/arch.h", "return std::span<const float>(x, n);"),
        ("io/gguf.cpp", "auto* p = new Thing;"),
        ("io/gguf.cpp", "void* p = malloc(3);"),
        ("backend/cpu.cpp", "#include <cuda_runtime.h>"),
        ("session.cpp", '#include "backend/cuda/gpu.h"'),
        ("backend/cuda/wkv.cu", "#if __CUDA_ARCH__ >= 900"),
        ("session.cpp", '#include "capi/rwkv_edge.h"'),
        ("capi/rwkv_edge.cpp", 'printf("%d", 1);'),
        ("capi/rwkv_cpp.cpp", "} catch (...) {"),
    ],
)
def test_a_planted_violation_is_found(path: str, line: str) -> None:
    (error,) = tool.check_source(path, f"// a comment\n\n{line}\n")
    assert error.startswith(f"cpp/{path}:3: ")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("model/rwkv7.cpp", '#include "backend/ops.h"\n#include <vector>\n'),
        ("kernels/x86/avx2.cpp", '#include <math.h>\n#include "kernels/generic/rows.inl"\n'),
        ("kernels/dispatch.cpp", '#include <vector>\n#include "base/error.h"\n'),
        ("model/model.cpp", "float* x = embedded + tokens * n;\nops.copy(embedded, n, x);\n"),
        ("base/system.cpp", "#include <fcntl.h>\n#include <sys/mman.h>\n"),
        ("kernels/dispatch.cpp", "#include <sys/auxv.h>\n"),
        ("base/aligned.h", "#include <new>\nreturn ::operator new(n, kAlignment);\n"),
        ("io/gguf.cpp", '// printf( and abort( and new x\nfail("catch (...)");\n'),
        ("capi/rwkv_edge.cpp", "} catch (...) {\nreturn new Thing{};\n"),
        ("capi/rwkv_cpp.cpp", 'std::fprintf(stderr, "%s", text);\n'),
        ("bindings.cpp", "#include <pybind11/pybind11.h>\n} catch (...) {\n"),
    ],
)
def test_what_is_allowed_is_not_reported(path: str, text: str) -> None:
    assert list(tool.check_source(path, text)) == []


# ---- Python -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "line", "target"),
    [
        ("state.py", "from .model import Model", "model"),
        ("state.py", "from . import _core, chat", "chat"),
        ("state.py", "from . import __version__", "__init__"),
        ("state.py", "import rwkv_edge.cli.options", "cli.options"),
        ("state.py", "from rwkv_edge import bench", "bench"),
        ("files/form.py", "from ..convert.open import open_checkpoint", "convert.open"),
        ("files/form.py", "from ..convert import open", "convert.open"),
        ("files/__init__.py", "from ..convert import convert", "convert"),
        ("convert/open.py", "def f():\n    from ..model_file import hint", "model_file"),
        ("convert/open.py", "if TYPE_CHECKING:\n    from .. import state", "state"),
        ("cli/options.py", "from ..__main__ import main", "__main__"),
    ],
)
def test_an_import_that_reaches_up_is_found(path: str, line: str, target: str) -> None:
    others = ("model", "chat", "bench", "state", "model_file", "cli/options", "convert/__init__")
    sources = {f"{name}.py": "" for name in (*others, "convert/open", "__init__", "__main__")}
    (error,) = tool.check_python({**sources, path: f"import os\n\n{line}\n"})
    number = 3 + line.count("\n")
    assert error == f"python/rwkv_edge/{path}:{number}: imports {target}, which is above it"


def test_imports_that_are_allowed() -> None:
    sources = {
        "__init__.py": "from .model import Model\n",
        "model.py": "import numpy as np\nfrom . import _core\nfrom .files.form import Form\n",
        "files/form.py": "import json\nfrom .._core import FormatError\n",
        "files/pth.py": "from . import form\nfrom .form import Form\n",
        "cli/__init__.py": "from .. import __version__, _core\n",
        "cli/chat.py": "def f():\n    from ..chat import Conversation\n",
        "chat.py": "from .model import Model\n",
    }
    assert list(tool.check_python(sources)) == []


def test_a_circle_is_found() -> None:
    """On one floor, and however well it is hidden."""
    sources = {
        "convert/a.py": "from .b import f\n",
        "convert/b.py": "def f():\n    from . import c\n",
        "convert/c.py": "if TYPE_CHECKING:\n    from .a import A\n",
    }
    (error,) = tool.check_python(sources)
    assert error.startswith("python/rwkv_edge: a circle of imports: convert.")
    assert {name for name in "abc" if f"convert.{name}" in error} == set("abc")


def test_a_room_that_the_table_lacks_is_found() -> None:
    (error,) = tool.check_python({"new/thing.py": ""})
    assert error == "python/rwkv_edge/new/thing.py: has no place in PYTHON_LAYERS"


# ---- what is there ------------------------------------------------------------------------------


def test_the_tree_has_no_violation() -> None:
    assert tool.check_tree(ROOT / "cpp") == []
    assert tool.check_package(ROOT / "python" / "rwkv_edge") == []
    for check in (tool.check_tree, tool.check_package):
        assert check(ROOT / "docs") != []  # a wrong folder is noticed


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


def test_weak_sections_and_aligned_moves_of_windows_are_found() -> None:
    """In what objdump says of the objects a.obj and b.obj."""
    sections = """
a.obj:     file format pe-x86-64

Sections:
Idx Name          Size      VMA               LMA               File off  Algn
  0 .text         00000010  0000000000000000  0000000000000000  0000012c  2**4
                  CONTENTS, ALLOC, LOAD, READONLY, CODE
  3 .text$_Z1fi   00000010  0000000000000000  0000000000000000  0000012c  2**4
                  CONTENTS, ALLOC, LOAD, READONLY, CODE, LINK_ONCE_DISCARD (COMDAT _Z1fi 6)
"""
    assert list(tool.link_once(sections)) == ["a.obj: weak section .text$_Z1fi"]
    code = """
a.obj:     file format pe-x86-64

   0:\tvmovups %ymm6,0x20(%rsp)
   6:\tvmovaps %xmm6,0x20(%rsp)
   c:\tvmovaps %ymm1,%ymm2
  10:\tvaddps 0x20(%rsp),%ymm1,%ymm2

b.obj:     file format pe-x86-64

   0:\tvmovaps %ymm6,0x20(%rsp)
   6:\tvmovdqa64 (%rax),%zmm3{%k1}
   c:\tvmovntdqa (%rax),%ymm3
"""
    assert list(tool.aligned_moves(code)) == [
        "b.obj: needs alignment: vmovaps %ymm6,0x20(%rsp)",
        "b.obj: needs alignment: vmovdqa64 (%rax),%zmm3{%k1}",
        "b.obj: needs alignment: vmovntdqa (%rax),%ymm3",
    ]
