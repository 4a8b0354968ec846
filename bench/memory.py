# SPDX-License-Identifier: Apache-2.0
"""Run a command and print its peak resident memory, its time, and what it read from the disk.

python bench/memory.py rwkv-edge convert model.pth model.gguf
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path


def peak_memory() -> int:
    """Bytes that this process held at most; Linux counts a parent's into ru_maxrss, but not into
    VmHWM."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text("ascii").splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    start = time.perf_counter()
    done = subprocess.run(sys.argv[1:], check=False)
    seconds = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is bytes there, KiB elsewhere
    cpu = usage.ru_utime + usage.ru_stime
    peak = usage.ru_maxrss * unit / 1e6
    disk = usage.ru_inblock * 512 / 1e6  # Linux counts blocks of 512 bytes
    print(
        f"peak {peak:.0f} MB, wall {seconds:.1f} s, cpu {cpu:.1f} s, disk {disk:.0f} MB",
        file=sys.stderr,
    )
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
