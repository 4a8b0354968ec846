# SPDX-License-Identifier: Apache-2.0
"""Checks what no compiler does in the C++ tree: python tools/check_layers.py [OBJECT...]

- A file includes its own layer and lower ones only; the exceptions are stated once, below.
- The engine does not print, exit or swallow what it does not know.
- Object files of kernels, where given, define no weak symbol: an inline function compiled for a
  newer CPU must not become the copy that the whole program calls.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

# Low to high. Files outside a folder (session, sampler) stand beside text/.
LAYERS = ("base", "quant", "kernels", "io", "backend", "model", "text", "bindings.cpp")
TOP = LAYERS.index("text")
# Kernels speak a C subset, and so does the one header they share with the rest.
C_SUBSET = re.compile(r"<(stdint|stddef|math|string|float|\w*intrin|arm_neon)\.h>")
KERNEL_HEADERS = ("quant/blocks.h", "kernels/kernels.h", "kernels/levels.h")
# The model speaks to the hardware through backend/ops.h alone.
MODEL_MAY_NOT = ("kernels/", "backend/cpu")

FORBIDDEN = {
    "prints": r"\b(?:f|s|sn|v\w*)?printf\s*\(|\bf?put(?:s|c|char)\s*\(|\bstd::(?:cout|cerr|clog)\b",
    "ends the process": r"\b(?:abort|exit|_exit|quick_exit|terminate)\s*\(",
    "swallows every exception": r"\bcatch\s*\(\s*\.\.\.\s*\)",
    "allocates by hand": r"(?<!operator )\bnew\s+[\w:(]|\b(?:malloc|calloc|realloc|free)\s*\(",
}
INCLUDE = re.compile(r'^\s*#\s*include\s*(<[^>]*>|"[^"]*")', re.MULTILINE)
NOT_CODE = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])\'', re.DOTALL)


def layer(path: str) -> int:
    folder = path.split("/", maxsplit=1)[0]
    return LAYERS.index(folder) if folder in LAYERS else TOP


def is_kernel(path: str) -> bool:
    return path.startswith("kernels/") and not path.startswith("kernels/dispatch.")


def include_error(path: str, target: str) -> str | None:
    """What is wrong with `path` including `target`, as written; None if nothing is."""
    name = target[1:-1]
    if name.startswith("pybind11") and path != "bindings.cpp":
        return "only bindings.cpp knows Python"
    if is_kernel(path) or path == "quant/blocks.h":
        local = path != "quant/blocks.h" and (name in KERNEL_HEADERS or name.endswith(".inl"))
        return None if local or C_SUBSET.fullmatch(target) else "kernels use a C subset"
    if target.startswith("<"):
        return None
    if layer(name) > layer(path):
        return f"{LAYERS[layer(path)]} is below {LAYERS[layer(name)]}"
    if path.startswith("model/") and name.startswith(MODEL_MAY_NOT):
        return "the model speaks through backend/ops.h"
    return None


def check_source(path: str, text: str) -> Iterator[str]:
    """Errors of one file; `path` is relative to cpp/."""
    for match in INCLUDE.finditer(text):
        line = text.count("\n", 0, match.start(1)) + 1
        if error := include_error(path, match[1]):
            yield f"cpp/{path}:{line}: includes {match[1]}: {error}"
    if path == "bindings.cpp":
        return
    code = NOT_CODE.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text)
    for what, pattern in FORBIDDEN.items():
        for match in re.finditer(pattern, code):
            line = code.count("\n", 0, match.start()) + 1
            yield f"cpp/{path}:{line}: {what}: {match[0].strip()}"


def check_tree(root: Path) -> list[str]:
    sources = sorted(p for p in root.rglob("*") if p.suffix in {".h", ".cpp", ".inl", ".cu"})
    if not sources:
        return [f"{root}: no sources found"]
    return [
        error
        for source in sources
        for error in check_source(source.relative_to(root).as_posix(), source.read_text("utf-8"))
    ]


def check_objects(objects: Sequence[str]) -> list[str]:
    kernels = [
        path
        for path in objects
        if re.search(r"(?:^|/)kernels/(?:x86/|arm/)?(?!dispatch\b)[^/]*$", path)
    ]
    if not kernels:
        return ["no kernel among the object files"]
    command = ["nm", "--defined-only", "--demangle", "--print-file-name", *kernels]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    weak = re.findall(r"^(.*?):[0-9a-f]* [WVwvu] (.*)$", listing, re.MULTILINE)
    return [f"{path}: weak symbol {name}" for path, name in weak]


def main(arguments: Sequence[str]) -> int:
    errors = check_tree(Path(__file__).parents[1] / "cpp")
    if arguments:
        errors += check_objects(arguments)
    print("\n".join(errors or ["layers: no violation"]))
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
