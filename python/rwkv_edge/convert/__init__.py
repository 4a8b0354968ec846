# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint to a GGUF file, and from a GGUF file to a smaller one; without PyTorch."""

from .write import convert, quantize

__all__ = ["convert", "quantize"]
