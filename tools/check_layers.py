# SPDX-License-Identifier: Apache-2.0
"""Checks what no compiler and no linter does: tools/check_layers.py [--unaligned] [OBJECT...]

- A file includes or imports its own layer and lower ones only; the exceptions are stated once,
  below. In Python an import counts wherever it stands, in a function or for the type checker only.
- Python modules do not import each other in a circle.
- The engine does not print, exit or swallow what it does not know.
- Object files of kernels, where given, define no weak symbol: an inline function compiled for a
  newer CPU must not become the copy that the whole program calls.
- With --unaligned, no object moves 32 or 64 bytes from or to memory by an instruction that asks for
  alignment: GCC for Windows cannot align the stack, and such a move crashes every second time.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

# Low to high. Files outside a folder (session, sampler) stand beside text/.
LAYERS = ("base", "quant", "kernels", "io", "backend", "model", "text", "capi", "bindings.cpp")
TOP = LAYERS.index("text")
# Kernels speak a C subset, and so do the headers that they share with the rest.
C_SUBSET = re.compile(r"<(stdint|stddef|math|string|float|\w*intrin|arm_neon)\.h>")
KERNEL_HEADERS = (
    "quant/blocks.h",
    "kernels/kernels.h",
    "kernels/levels.h",
    "kernels/logit_weight.h",
)
# The operating system is asked in one place; dispatch.cpp asks it about the CPU.
SYSTEM = re.compile(r"<(unistd|fcntl|sched|pthread|windows|asm/\w+|sys/\w+)\.h>")
MAY_ASK = ("base/system.cpp", "base/system_windows.cpp", "kernels/dispatch.cpp")
# CUDA is the business of one folder, and what depends on the card of one file.
CUDA = re.compile(r"<(cuda|cub/|mma|cooperative_groups)[\w/.]*>")
CUDA_FOLDER, CARDS = "backend/cuda/", "backend/cuda/device.h"
# The model speaks to the hardware through backend/ops.h alone. A pointer that a backend gave may be
# of another address space: the model adds to it and passes it on, and never follows it.
MODEL_MAY_NOT = ("kernels/", "backend/cpu")
FOLLOWS_POINTERS = re.compile(
    r"\bmem(?:cpy|move|set|cmp)\b|\bstd::(?:ranges::)?(?:copy|fill|transform)\w*\s*\("
    r"|\breinterpret_cast\b|\bstd::span\s*(?:<[^>]*>)?\s*[({]"
)

# The modules and folders of python/rwkv_edge, low to high.
PYTHON_LAYERS = (
    ("_core",),
    ("files", "grammar", "lookup", "tokenizer"),
    ("batch", "convert", "hub"),
    ("model_file", "state"),
    ("asynchronous", "generation"),
    ("model",),
    ("prefix_cache",),
    ("bench", "chat", "compat", "describe", "quantization", "scoring"),
    ("__init__", "harness"),
    ("server",),
    ("cli",),
    ("__main__",),
)

FORBIDDEN = {
    "prints": r"\b(?:f|s|sn|v\w*)?printf\s*\(|\bf?put(?:s|c|char)\s*\(|\bstd::(?:cout|cerr|clog)\b",
    "ends the process": r"\b(?:abort|exit|_exit|quick_exit|terminate)\s*\(",
    "swallows every exception": r"\bcatch\s*\(\s*\.\.\.\s*\)",
    "allocates by hand": r"(?<!operator )\bnew\s+[\w:(]|\b(?:malloc|calloc|realloc|free)\s*\(",
}
# What C functions do and nobody else: no exception leaves them, and their results are pointers.
# rwkv.cpp's print their errors, as their header promises.
ALLOWED = {
    "capi/rwkv_edge.cpp": ("swallows every exception", "allocates by hand"),
    "capi/rwkv_cpp.cpp": ("prints",),
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
    if not path.startswith(CUDA_FOLDER) and (CUDA.match(target) or name.startswith(CUDA_FOLDER)):
        return "CUDA is behind backend/backend.h"
    if target.startswith("<"):
        allowed = path in MAY_ASK or not SYSTEM.fullmatch(target)
        return None if allowed else "base/system.cpp asks the operating system"
    if layer(name) > layer(path):
        return f"{LAYERS[layer(path)]} is below {LAYERS[layer(name)]}"
    past_ops = path.startswith("model/") and name.startswith(MODEL_MAY_NOT)
    return "the model speaks through backend/ops.h" if past_ops else None


def check_source(path: str, text: str) -> Iterator[str]:
    """Errors of one file; `path` is relative to cpp/."""
    for match in INCLUDE.finditer(text):
        line = text.count("\n", 0, match.start(1)) + 1
        if error := include_error(path, match[1]):
            yield f"cpp/{path}:{line}: includes {match[1]}: {error}"
    if path == "bindings.cpp":
        return
    code = NOT_CODE.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text)
    forbidden: dict[str, str | re.Pattern[str]] = {**FORBIDDEN}
    if path.startswith("model/"):
        forbidden["reads memory that may be a device's"] = FOLLOWS_POINTERS
    if path != CARDS:
        forbidden["depends on the card"] = r"\b__CUDA_ARCH__\b"
    for what in ALLOWED.get(path, ()):
        del forbidden[what]
    for what, pattern in forbidden.items():
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


def python_layer(module: str) -> int | None:
    room = module.split(".", maxsplit=1)[0]
    return next((i for i, rooms in enumerate(PYTHON_LAYERS) if room in rooms), None)


def python_imports(path: str, text: str, modules: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Lines and modules of the package that a file imports, all named from its root."""
    folders = path.split("/")[:-1]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = ["rwkv_edge", *folders][: 2 + len(folders) - node.level] if node.level else []
            whole = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{whole}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, inner = f"{name}.".partition(".")
            if package == "rwkv_edge":
                # What is no module, nor in one, comes from the package's __init__.
                parents = (inner.strip("."), inner.strip(".").rpartition(".")[0])
                yield node.lineno, next((name for name in parents if name in modules), "__init__")


def check_python(sources: Mapping[str, str]) -> Iterator[str]:
    """Errors of the package's files, named from its root."""
    named = {
        path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path
        for path in sources
    }
    modules = [*named, "_core"]
    graph: dict[str, set[str]] = {}
    for module, path in named.items():
        own = python_layer(module)
        if own is None:
            yield f"python/rwkv_edge/{path}: has no place in PYTHON_LAYERS"
            continue
        graph[module] = set()
        for line, target in python_imports(path, sources[path], modules):
            graph[module].add(target)
            if (other := python_layer(target)) is not None and other > own:
                yield f"python/rwkv_edge/{path}:{line}: imports {target}, which is above it"
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield f"python/rwkv_edge: a circle of imports: {' -> '.join(error.args[1])}"


def check_package(root: Path) -> list[str]:
    sources = {p.relative_to(root).as_posix(): p.read_text("utf-8") for p in root.rglob("*.py")}
    return list(check_python(sources)) if sources else [f"{root}: no sources found"]


def check_objects(objects: Sequence[str]) -> list[str]:
    kernels = [
        path
        for path in objects
        if re.search(r"(?:^|/)kernels/(?:x86/|arm/)?(?!dispatch\b)[^/]*$", path)
    ]
    if not kernels:
        return ["no kernel among the object files"]
    if all(path.endswith(".obj") for path in kernels):
        return list(link_once(output_of("objdump", "--section-headers", *kernels)))
    listing = output_of("nm", "--defined-only", "--demangle", "--print-file-name", *kernels)
    weak = re.findall(r"^(.*?):[0-9a-f]* [WVwvu] (.*)$", listing, re.MULTILINE)
    return [f"{path}: weak symbol {name}" for path, name in weak]


def output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def link_once(listing: str) -> Iterator[str]:
    """What is weak in objects of Windows, by objdump: nm calls it T there, but the linker keeps
    one section of several with the same name."""
    path = name = ""
    for line in listing.splitlines():
        if found := re.match(r"(\S+):\s+file format", line):
            path = found[1]
        elif found := re.match(r"\s*\d+ (\S+) ", line):
            name = found[1]
        elif "LINK_ONCE" in line:
            yield f"{path}: weak section {name}"


ALIGNED = re.compile(
    r"\tvmov(?:ap[sd]|dqa(?:32|64)?|nt(?:p[sd]|dqa?))\s+(?=.*%[yz]mm)(?=.*\().*$", re.MULTILINE
)


def aligned_moves(listing: str) -> Iterator[str]:
    """Moves of wide vectors that ask for alignment, in what objdump disassembles."""
    for part in re.split(r"\n(?=\S+:\s+file format)", listing):
        path = part.lstrip().partition(":")[0]
        for match in ALIGNED.finditer(part):
            yield f"{path}: needs alignment: {' '.join(match[0].split())}"


def main(arguments: Sequence[str]) -> int:
    root = Path(__file__).parents[1]
    errors = check_tree(root / "cpp") + check_package(root / "python" / "rwkv_edge")
    objects = [argument for argument in arguments if argument != "--unaligned"]
    if objects:
        errors += check_objects(objects)
    if "--unaligned" in arguments:
        errors += aligned_moves(output_of("objdump", "-d", "--no-show-raw-insn", *objects))
    print("\n".join(errors or ["layers: no violation"]))
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
