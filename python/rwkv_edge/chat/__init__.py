# SPDX-License-Identifier: Apache-2.0
"""Conversations: their templates, and a session that alternates between a user and the model."""

from .conversation import Conversation
from .templates import TEMPLATES, Template, clean

__all__ = ["TEMPLATES", "Conversation", "Template", "clean"]
