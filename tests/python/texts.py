# SPDX-License-Identifier: Apache-2.0
"""Texts that are hard to keep to the byte, and a sentencepiece model."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import sentencepiece

TEXTS = [
    "The quick brown fox jumps over the lazy dog. 0123456789",
    "def f(x):\n    return {'a': [x ** 2, \"b\\n\"]}  # comment\r\n\tif x:\n\n\n        pass\n",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002 \u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8",
    "\ud55c\uad6d\uc5b4 \ubb38\uc7a5.\u3000\u5168\u89d2\uff21\uff11",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 a family, \U0001f1e9\U0001f1ea a flag",
    "\u00e9 vs e\u0301, \ufb01, \u2581 a block, \ufffd, \u200b\ufeff",
    "<s></s><unk><0x41>[PAD65535] control symbols are text\0\x01\x7f",
    "<|endoftext|> <|padding|><|endoftext|>",
    "  leading,  double   spaces and trailing   ",
    "",
    " ",
    "\n\n",
]


def train(**options: Any) -> bytes:
    model = io.BytesIO()
    text = Path(__file__).with_name("test_tokenizer.py").read_text("utf-8").splitlines()
    settings: dict[str, Any] = {
        "vocab_size": 500,
        "model_type": "bpe",
        "byte_fallback": True,
        "eos_id": 0,
        "unk_id": 1,
        "bos_id": -1,
        "control_symbols": ["<ctl>"],
        "user_defined_symbols": ["\n\n"],
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=model, **(settings | options)
    )
    return model.getvalue()
