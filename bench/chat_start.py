# SPDX-License-Identifier: Apache-2.0
"""How long a chat with a long system text takes to start: the first time, from the cache, and
beside a chat without such a text.

python bench/chat_start.py [MODEL [TOKENS]]

In each round, three processes in turn: one that reads the text and caches its state, one that finds
it, and one without a text. "Ready" is what `--verbose` says: from the opened model to the state
behind the text. "Process" is the whole, to the exit.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rwkv_edge import Model
from rwkv_edge.model import bundled_model

ROUNDS = 7
SENTENCE = "If somebody asks about room {}, say that it is empty. "


def start(*arguments: str) -> tuple[float, float]:
    """Seconds until a chat was ready, and of its process."""
    command = [sys.executable, "-m", "rwkv_edge", "chat", *arguments, "--verbose"]
    begin = time.monotonic()
    done = subprocess.run(command, input="/exit\n", capture_output=True, text=True, check=True)
    seconds = time.monotonic() - begin
    found = re.search(r"in ([\d.]+) s\)", done.stderr)
    return float(found[1]) if found else 0.0, seconds


def main() -> None:
    model = Path(sys.argv[1]) if len(sys.argv) > 1 else bundled_model()
    tokens = int(sys.argv[2]) if len(sys.argv) > 2 else 10_000
    encode = Model(model).tokenizer.encode
    rooms = [SENTENCE.format(room) for room in range(1000, 1000 + tokens)]
    count = 100 * tokens // len(encode("".join(rooms[:100])))
    text = "".join(rooms[:count])
    print(f"{model.name}, a system text of {len(encode(text))} tokens, median of {ROUNDS}:")
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "system.txt"
        file.write_text(text, encoding="utf-8")
        for number in range(1 + ROUNDS):  # the first one compiles and fills the page cache
            cached = ["--system-file", str(file), "--cache-dir", f"{folder}/{number}"]
            for name, arguments in {
                "read": cached,
                "from the cache": cached,
                "without a text": [],
            }.items():
                times = start(str(model), *arguments)
                if number:
                    found.setdefault(name, []).append(times)
    for name, runs in found.items():
        ready, process = (statistics.median(values) for values in zip(*runs, strict=True))
        print(f"{name:16} ready {ready:6.3f} s   process {process:6.3f} s")


if __name__ == "__main__":
    main()
