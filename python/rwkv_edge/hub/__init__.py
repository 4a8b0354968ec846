# SPDX-License-Identifier: Apache-2.0
"""Models by name: from the Hugging Face hub or ModelScope, into the hub's cache."""

from .cache import cached
from .download import pull
from .names import ALIASES, HubError, Name, parse

__all__ = ["ALIASES", "HubError", "Name", "cached", "parse", "pull"]
