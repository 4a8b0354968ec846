# SPDX-License-Identifier: Apache-2.0
"""Conversations: their templates, and a session that alternates between a user and the model."""

from .conversation import Conversation, Work
from .saved import Turn, markdown
from .templates import TEMPLATES, THINK_MODES, Template, clean, load_template
from .thinking import Thought

__all__ = [
    "TEMPLATES",
    "THINK_MODES",
    "Conversation",
    "Template",
    "Thought",
    "Turn",
    "Work",
    "clean",
    "load_template",
    "markdown",
]
