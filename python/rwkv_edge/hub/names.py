# SPDX-License-Identifier: Apache-2.0
"""Names of models: `g1:0.4b`, `hf:org/repo/file[@revision]`, `ms:org/repo/file[@revision]`."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAIN = {"hf": "main", "ms": "master"}  # the revision that is meant where none is named
G1, WORLD = "BlinkDL/rwkv7-g1", "BlinkDL/rwkv-7-world"
# Repository, file, revision, SHA-256. An empty revision is `main`. An empty hash was not known when
# this was written; then the one that the hub sends is checked alone.
ALIASES = {
    "g1:0.1b": (G1, "rwkv7-g1d-0.1b-20260129-ctx8192.pth", "", ""),
    "g1:0.4b": (
        G1,
        "rwkv7-g1d-0.4b-20260210-ctx8192.pth",
        "",
        "947cb9b8013224e06b112b72204256bec65096cc935a7767ce63d8e3ddef83bb",
    ),
    "g1:1.5b": (
        G1,
        "rwkv7-g1j-1.5b-20260831-ctx16384.pth",
        "",
        "c43176881caf85fe22ad654ab02e7519260d560f3d20420ab590adb0c823860f",
    ),
    "g1:2.9b": (
        G1,
        "rwkv7-g1j-2.9b-20260831-ctx16384.pth",
        "",
        "966f3420f833532aae3fb1fd6326533b08d43d23b7b03eaa2f0694a30b64a239",
    ),
    "g1:7.2b": (
        G1,
        "rwkv7-g1j-7.2b-20260831-ctx16384.pth",
        "",
        "e3091a579c23ea7ebce9a0ad1ecfbda27082eeecd64d7f0474016e626df8f9c3",
    ),
    "g1:13.3b": (
        G1,
        "rwkv7-g1k-13.3b-20260930-ctx25600.pth",
        "cd67fb95fa9e2ce8757f8d21d713e74a9c788118",
        "31799b3f8207e74c1b47f359184ac1c658c927ff697971447f7bf0fd18ae393f",
    ),
    "world:0.1b": (
        WORLD,
        "RWKV-x070-World-0.1B-v2.8-20241210-ctx4096.pth",
        "",
        "60c98129b9529963bff2c164b8ab4bd17c19332ae06dc2dcae32aa3a3739295a",
    ),
    "world:0.4b": (
        WORLD,
        "RWKV-x070-World-0.4B-v2.9-20250107-ctx4096.pth",
        "",
        "c08cf602b33e59a5717b8f0cafaf7f04c50c1c67166e477aa2f47c5ca180da4a",
    ),
    "world:1.5b": (
        WORLD,
        "RWKV-x070-World-1.5B-v3-20250127-ctx4096.pth",
        "",
        "23e13ff62ac6f80b28910ffc230324939e80ddb00b98f892a5951c0da071e700",
    ),
    "world:2.9b": (
        WORLD,
        "RWKV-x070-World-2.9B-v3-20250211-ctx4096.pth",
        "",
        "5d7901b91ef1646115db03d03d171370bca454061ad426a1256fda9e1c428cf8",
    ),
}
# What a model's file may be called; a repository holds other things too.
ENDINGS = (".gguf", ".pth", ".safetensors", ".st", ".bin")
COMMIT = re.compile(r"[0-9a-f]{40}")
REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95}){0,3}")
SERIES = re.compile(r"[a-z][a-z0-9-]*:[^/:\\]*")


class HubError(OSError):
    """A hub did not give what was asked for, or gave something else."""


@dataclass(frozen=True)
class Name:
    """A file of a repository. `text` is how the user wrote it; `file` is empty where none is named,
    `sha256` where it is not known."""

    text: str
    source: str  # "hf" or "ms"
    repo: str
    file: str
    revision: str
    sha256: str = ""

    @property
    def pinned(self) -> bool:
        """Whether it means the same bytes for ever."""
        return bool(self.sha256 or (self.source == "hf" and COMMIT.fullmatch(self.revision)))


def parse(text: str) -> Name | None:
    """The file that a name means; None for what is no name but a path.

    Raises ValueError for an unknown alias and for a name that cannot be one.
    """
    source, _, rest = text.partition(":")
    if source in MAIN:
        return _of_repository(text, source, rest)
    if not SERIES.fullmatch(text.lower()):
        return None
    if text.lower() not in ALIASES:
        raise ValueError(f"{text}: no such file or model; known names are {', '.join(ALIASES)}")
    repo, file, revision, sha256 = ALIASES[text.lower()]
    return Name(text, "hf", repo, file, revision or MAIN["hf"], sha256)


def _of_repository(text: str, source: str, rest: str) -> Name:
    where, at, revision = rest.rpartition("@")
    if not at:
        where, revision = rest, MAIN[source]
    org, _, below = where.partition("/")
    repo, _, file = below.partition("/")
    if not all(REPO.fullmatch(part) and not re.search(r"--|\.\.", part) for part in (org, repo)):
        raise ValueError(f"{text}: expected {source}:org/repo/file, or with @revision at its end")
    if not REVISION.fullmatch(revision) or ".." in revision:
        raise ValueError(f"{text}: found the revision {revision!r}, expected a branch or a commit")
    if file and not is_file_name(file):
        raise ValueError(f"{text}: found the file {file!r}, expected one inside the repository")
    return Name(text, source, f"{org}/{repo}", file, revision)


def is_file_name(file: str) -> bool:
    """Whether it names a file inside a repository, and nothing outside."""
    return all(
        part not in ("", ".", "..")
        and len(part.encode("utf-8", "surrogateescape")) <= 255
        and part.isprintable()
        and "\\" not in part
        for part in file.split("/")
    )
