# SPDX-License-Identifier: Apache-2.0
"""How much of the code the tests run: of cpp/ by the C++ tests, of python/ by the Python tests.

    python tools/measure_coverage.py            both; fails where one is below its floor
    python tools/measure_coverage.py cpp        one of them: cpp or python

Needs gcov (it comes with GCC) and `pip install '.[test]'`. Pages that show every line are written
to build/coverage-cpp and build/coverage-python. docs/testing.md has the figures.
"""

from __future__ import annotations

import sys

from run_tests import PYTEST, ROOT, run

# In percent of lines (C++), of lines and branches (Python). A little below what was measured.
FLOORS = {"cpp": 95, "python": 97}
PYTHON = (sys.executable, "-m")


def cpp() -> None:
    """The engine, without the bindings, which the Python tests run. The build that counts has the
    sanitizers too: one build and one run for both."""
    build = ROOT / "build" / "asan"
    for counts in build.rglob("*.gcda"):  # of an earlier run
        counts.unlink()
    run("cmake", "--workflow", "--preset", "asan")
    pages = ROOT / "build" / "coverage-cpp"
    pages.mkdir(exist_ok=True)
    run(
        *(*PYTHON, "gcovr", "--root", ".", "--filter", "cpp/", "--merge-lines"),
        "--gcov-suspicious-hits-threshold=0",  # kernels run for billions of times
        # Threads lose counts, so a difference of counts may be below zero. Atomic counters are
        # exact, and take many times as long.
        "--gcov-ignore-parse-errors=negative_hits.warn_once_per_file",
        *("--object-directory", str(build), str(build / "CMakeFiles" / "rwkv_engine.dir")),
        *("--html-details", str(pages / "index.html"), "--print-summary", "--txt"),
        *("--fail-under-line", str(FLOORS["cpp"])),
    )


def python() -> None:
    run(*PYTHON, "coverage", "erase")
    # An interrupt inside coverage's own lock would hold it for ever.
    run(*PYTHON, "coverage", "run", *PYTEST, "-k", "not ctrl_c_at_any_moment")
    run(*PYTHON, "coverage", "combine", "--quiet")
    run(*PYTHON, "coverage", "html", "--quiet")
    run(*PYTHON, "coverage", "report", "--fail-under", str(FLOORS["python"]))


def main() -> None:
    kinds = {"cpp": cpp, "python": python}
    for name in sys.argv[1:] or kinds:
        kinds[name]()


if __name__ == "__main__":
    main()
