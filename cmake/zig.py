#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""zig's clang as a compiler: zig.py c++|cc -target TRIPLE ARGUMENT... (pip install ziglang)."""

import os
import sys

# Its driver knows no -march for Arm.
SPELLING = {"-march=armv8.2-a+dotprod": "-mcpu=generic+dotprod"}
command = [sys.executable, "-m", "ziglang"]
command += [SPELLING.get(word, word) for word in sys.argv[1:]]
# Without one, as in CMake's own checks, it would build its libraries once more, to debug them.
if not any(word.startswith("-O") for word in command):
    command.append("-O1")
os.execv(sys.executable, command)
