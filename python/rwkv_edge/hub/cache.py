# SPDX-License-Identifier: Apache-2.0
"""Where files of the hubs lie, in the layout of the Hugging Face hub's cache:

models--ORG--REPO/blobs/DIGEST              the bytes; DIGEST.incomplete while they come
                  snapshots/COMMIT/FILE     a link to a blob
                  refs/REVISION             the commit that a branch had when it was asked
.locks/models--ORG--REPO/DIGEST.lock        held by who writes the blob
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from .names import COMMIT, Name


def cached(name: Name) -> Path | None:
    """The file in the cache, or None. Asks no network."""
    if not name.file:
        return None
    folder = repository_folder(name)
    if name.sha256:
        with contextlib.suppress(OSError):
            for commit in sorted((folder / "snapshots").iterdir()):
                path = commit / name.file
                if path.is_file() and Path(os.path.realpath(path)).name == name.sha256:
                    return path
        return None
    commit_id = name.revision
    if name.source == "hf" and not COMMIT.fullmatch(commit_id):
        try:
            commit_id = (folder / "refs" / name.revision).read_text("ascii").strip()
        except (OSError, ValueError):
            return None
        if not COMMIT.fullmatch(commit_id):
            return None
    path = folder / "snapshots" / commit_id / name.file
    return path if path.is_file() else None


def cache_folder(source: str) -> Path:
    """Where files of a hub are kept."""
    if source == "ms":
        return cache_home() / "rwkv-edge" / "modelscope"
    if found := os.environ.get("HF_HUB_CACHE"):
        return Path(found).expanduser()
    return hub_home() / "hub"


def repository_folder(name: Name) -> Path:
    return cache_folder(name.source) / f"models--{name.repo.replace('/', '--')}"


def hub_home() -> Path:
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser()
    return cache_home() / "huggingface"


def cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
