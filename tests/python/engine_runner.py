# SPDX-License-Identifier: Apache-2.0
"""Feeds tokens to the engine in a process of its own and stores what came out.

The kernel level is chosen once per process from RWKV_EDGE_ISA, so a test that wants another level
needs another process. `python engine_runner.py` reads jobs (JSON) on stdin:
{"isa": name, "out": file.npz, "jobs": [{"id", "model", "threads", "chunks": [[tokens], ...]}]}.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Results = dict[str, NDArray[np.float32]]


def run_jobs(isa: str, jobs: list[dict[str, Any]], out: Path) -> Results:
    """Of every job "<id>/logits" [T, V], and after each chunk "<id>/<part of the state>"."""
    subprocess.run(
        [sys.executable, __file__],
        input=json.dumps({"isa": isa, "out": str(out), "jobs": jobs}),
        env={**os.environ, "RWKV_EDGE_ISA": isa},
        text=True,
        check=True,
        timeout=300,
    )
    with np.load(out) as stored:
        return dict(stored)


def main() -> None:
    import rwkv_edge
    from rwkv_edge import _core

    order = json.load(sys.stdin)
    assert _core.isa() == order["isa"], "RWKV_EDGE_ISA did not take effect"
    results: Results = {}
    for job in order["jobs"]:
        session = rwkv_edge.Model(job["model"], threads=job["threads"]).session()
        parts: dict[str, list[NDArray[np.float32]]] = defaultdict(list)
        for chunk in job["chunks"]:
            parts["logits"].append(session.feed(chunk, logits="all"))
            for name, value in session.state.numpy().items():
                parts[name].append(value[None])
        for name, values in parts.items():
            results[f"{job['id']}/{name}"] = np.concatenate(values)
    np.savez(order["out"], allow_pickle=False, **results)


if __name__ == "__main__":
    main()
