# SPDX-License-Identifier: Apache-2.0
"""Run RWKV language models on the CPU.

from rwkv_edge import Model

session = Model().session()
for piece in session.generate("User: hello\\n\\nAssistant:", stop="\\n\\n"):
    ...
"""

from ._core import FormatError, UnsupportedError
from .chat import Conversation
from .hub import pull
from .model import Model, Session
from .prefix_cache import PrefixCache
from .state import State
from .tokenizer import StreamDecoder, Tokenizer

__version__ = "0.1.0"
__all__ = [
    "Conversation",
    "FormatError",
    "Model",
    "PrefixCache",
    "Session",
    "State",
    "StreamDecoder",
    "Tokenizer",
    "UnsupportedError",
    "pull",
]
