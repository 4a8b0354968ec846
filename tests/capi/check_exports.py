# SPDX-License-Identifier: Apache-2.0
"""A library exports what its list and its header have, no more and no less:
check_exports.py LIBRARY LIST HEADER"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path


def exported(library: str) -> set[str]:
    if library.endswith(".dll"):
        listing = subprocess.run(
            ["objdump", "-p", library], capture_output=True, text=True, check=True
        ).stdout
        table = listing.partition("[Ordinal/Name Pointer] Table")[2].partition("\n\n")[0]
        return set(re.findall(r"\] (?:\+base\[ *\d+\] +[0-9a-f]+ )?(\w+)$", table, re.MULTILINE))
    command = ["nm", "--dynamic", "--defined-only", library]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {line.split()[-1] for line in listing.splitlines()}


def main(library: str, names: str, header: str) -> int:
    listed = set(re.findall(r"^ +(\w+);$", Path(names).read_text("utf-8"), re.MULTILINE))
    declared = set(
        re.findall(r"^RWKV\w*_API [^;(]*?(\w+)\(", Path(header).read_text("utf-8"), re.MULTILINE)
    )
    found = exported(library)
    errors = [
        f"{where}: {name} is missing"
        for where, there in ((library, found), (names, listed), (header, declared))
        for name in sorted((found | listed | declared) - there)
    ]
    print("\n".join(errors) or f"{library}: {len(found)} names")
    return bool(errors or not found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
