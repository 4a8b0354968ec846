# SPDX-License-Identifier: Apache-2.0
"""tools/aarch64_wheel.py, as far as it goes without an emulator and a network."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import aarch64_wheel
import pytest


def test_python_is_a_script_that_is_its_own_executable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So sys.executable is the script, and what the tests start is emulated too."""
    monkeypatch.setattr(aarch64_wheel, "FOLDER", tmp_path)
    root = tmp_path / "root"
    (root / "usr" / "bin").mkdir(parents=True)
    (root / "usr" / "bin" / "python3").symlink_to("python3.11")
    emulator = tmp_path / "qemu-aarch64-static"
    emulator.write_text("""#!/bin/sh\nprintf '%s\\n' "$@"\n""")
    emulator.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    python = aarch64_wheel.make_environment(root)
    assert aarch64_wheel.make_environment(root) == python  # a second run
    shown = subprocess.check_output([python, "-c", "a  b"], text=True)
    real = f"{root}/usr/bin/python3.11"
    assert shown.splitlines() == ["-0", python, "-L", str(root), real, "-c", "a  b"]
    assert f"home = {root}/usr/bin\n" in (tmp_path / "venv" / "pyvenv.cfg").read_text()
    assert (tmp_path / "venv" / "lib" / "python3.11" / "site-packages").is_dir()


def test_the_tag_is_auditwheels() -> None:
    shown = (
        "\nrwkv_edge-0.1.0-cp311-cp311-linux_aarch64.whl is consistent with the\n"
        'following platform tag: "manylinux_2_34_aarch64".\n\nThe wheel references ...\n'
    )
    assert aarch64_wheel.manylinux_tag(shown) == "manylinux_2_34_aarch64"
    with pytest.raises(SystemExit, match=r"names no platform tag:\nnothing"):
        aarch64_wheel.manylinux_tag("nothing")


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aarch64_wheel, "PROGRAMS", ("sh", "no-such-program"))
    with pytest.raises(SystemExit, match="no-such-program is missing"):
        aarch64_wheel.main([])
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"ID": "fedora"})
    with pytest.raises(SystemExit, match="runs fedora, expected debian"):
        aarch64_wheel.unpack_debian(Path("root"))
