#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""zig's clang as a compiler: zig.py c++|cc -target TRIPLE ARGUMENT... (pip install ziglang)."""

import os
import sys

# Its driver knows no -march for Arm.
SPELLING = {"-march=armv8.2-a+dotprod": "-mcpu=generic+dotprod"}
command = [sys.executable, "-m", "ziglang"]
os.execv(sys.executable, command + [SPELLING.get(word, word) for word in sys.argv[1:]])
