# SPDX-License-Identifier: Apache-2.0
"""Run a command and print its peak resident memory and wall time.

python bench/memory.py rwkv-edge convert model.pth model.gguf
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time


def main() -> None:
    start = time.perf_counter()
    done = subprocess.run(sys.argv[1:], check=False)
    seconds = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is bytes there, KiB elsewhere
    cpu = usage.ru_utime + usage.ru_stime
    peak = usage.ru_maxrss * unit / 1e6
    print(f"peak {peak:.0f} MB, wall {seconds:.1f} s, cpu {cpu:.1f} s", file=sys.stderr)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
