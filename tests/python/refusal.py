# SPDX-License-Identifier: Apache-2.0
"""What every refusal of a file has in common: the message begins with its path."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

Kind = type[Exception] | tuple[type[Exception], ...]


@contextmanager
def refuses(
    error: Kind, path: str | Path | None, *texts: str
) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """What is done inside fails, with a message that begins with the path, or with that of a file
    below it, and has all the patterns."""
    assert path is not None
    with pytest.raises(error) as caught:
        yield caught
    message = str(caught.value)
    assert message.startswith((f"{path}:", f"{path}/")), message
    for text in texts:
        assert re.search(text, message), message
