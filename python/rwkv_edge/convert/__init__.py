# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint to a GGUF file, and from a GGUF file to a smaller one; without PyTorch."""

from .convert import convert
from .quantize import quantize

__all__ = ["convert", "quantize"]
