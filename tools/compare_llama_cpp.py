# SPDX-License-Identifier: Apache-2.0
"""Hold rwkv-edge beside llama.cpp: logits of RWKV-6 and 7 in files of either, and the tokenizer.

    pip install llama-cpp-python 'rwkv-edge[convert]'
    python tools/compare_llama_cpp.py

Random models are written by us in f32 and f16, and by llama.cpp from the f32 file in each of its
types; both read them all. llama.cpp rounds the activations it multiplies, to halves beside f16 and
to 8 bits beside blocks, so each file has a third reading that is free of that: llama.cpp turns it
into f32 and runs it. Where we do not round activations either we must be there but for the order of
sums, elsewhere no further from it than llama.cpp, give or take a half. Distances are root mean
squares over the logits of 32 tokens, from the second on, in standard deviations of the logits.

It ends with 1 where we are too far, or if the tokens of a megabyte of mixed text differ.
"""

from __future__ import annotations

import argparse
import ctypes
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import llama_cpp
import make_random_model as maker
import numpy as np
from rwkv_edge import Model
from rwkv_edge.convert.policy import Types
from rwkv_edge.files.source import F32

SIZES = {
    "6": maker.Size(6, 512, (32, 64), "6"),
    "7": maker.Size(6, 512, (64, 64, 32, 128), "7"),
}
FILE_TYPES = {  # llama.cpp's numbers
    "q4_0": 2, "q4_1": 3, "q5_0": 8, "q5_1": 9, "q8_0": 7, "bf16": 32,
    "q2_k": 10, "q3_k": 12, "q4_k": 15, "q5_k": 17, "q6_k": 18,
}  # fmt: skip
F32_FILE = 0
# Beside blocks we round activations, too (files of q2_k or q3_k hold other K types as well).
# Beside f16 we do not, but llama.cpp does not turn the small matrices of RWKV-7 into f32, so that
# its third reading is not exact.
FREE_OF_ROUNDING = ("f32", "bf16")
TOKENS = 32
EXACT = 1e-4  # sums in another order; ten times the worst that is seen
MEGABYTE = 1_000_000


def our_logits(path: Path, tokens: list[int]) -> F32:
    return Model(path).session().feed(tokens, logits="all")


def their_logits(path: Path, tokens: list[int]) -> F32:
    model = llama_cpp.Llama(str(path), n_ctx=64, n_batch=64, logits_all=True, verbose=False)
    model.eval(tokens)
    return np.array(model.scores[: len(tokens)])


def distance(a: F32, b: F32) -> float:
    return float(np.sqrt(np.mean((a[1:] - b[1:]) ** 2)) / b[1:].std())


def quantize_with_llama_cpp(source: Path, target: Path, file_type: int) -> None:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = file_type, True
    failed = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    if failed:
        raise SystemExit(f"llama.cpp could not write {target}")


def compare_models(folder: Path, version: str, tokens: list[int]) -> bool:
    good = True
    plain = folder / f"{version}-f32.gguf"
    for kind in ("f32", "f16", *FILE_TYPES):
        path, writer = folder / f"{version}-{kind}.gguf", "llama.cpp"
        if kind in FILE_TYPES:
            quantize_with_llama_cpp(plain, path, FILE_TYPES[kind])
        else:
            maker.write_gguf(path, SIZES[version], 7, Types.choose(kind, None, None))
            writer = "rwkv-edge"
        quantize_with_llama_cpp(path, folder / "exact.gguf", F32_FILE)
        exact = their_logits(folder / "exact.gguf", tokens)
        ours = distance(our_logits(path, tokens), exact)
        theirs = distance(their_logits(path, tokens), exact)
        limit = EXACT if kind in FREE_OF_ROUNDING else max(EXACT, 1.5 * theirs)
        line = f"RWKV-{version} {kind:5} written by {writer}: ours {ours:.1e} off"
        good &= report(f"{line}, llama.cpp's {theirs:.1e}", ours < limit)
    return good


def report(line: str, good: bool) -> bool:
    sys.stdout.write(line + ("\n" if good else "  TOO FAR\n"))
    sys.stdout.flush()
    return good


# ---- the tokenizer ------------------------------------------------------------------------------


# First and last character of alphabets: Latin with accents, Greek, Cyrillic, Arabic, Devanagari,
# kana, Chinese, Korean, emoji, and everything there is but surrogates.
SCRIPTS = (
    (0xC0, 0x17F), (0x391, 0x3C9), (0x410, 0x44F), (0x620, 0x64A), (0x904, 0x939),
    (0x3041, 0x30FA), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0x1F300, 0x1F64F), (0xE000, 0x10FFFF),
)  # fmt: skip


def mixed_text() -> str:
    """Code, numbers, spaces and words of several scripts, one megabyte of UTF-8.

    Without "<s>" and "[PAD": to llama.cpp these are tokens wherever they stand.
    """
    rng = random.Random(1)
    sources = sorted(Path(__file__).parent.glob("*.py"))
    words = [word for path in sources for word in path.read_text("utf-8").split(" ")]
    words += ["\n\n", "\r\n", "\t\t", "    ", "  \n", "User:", "Assistant:", "\0", "e\u0301"]
    pieces, size = [], 0
    while size < MEGABYTE:
        kind = rng.random()
        if kind < 0.5:
            piece = rng.choice(words)
        elif kind < 0.6:
            piece = str(rng.randrange(10 ** rng.randrange(1, 12)))
        else:
            script = rng.choice(SCRIPTS)
            piece = "".join(chr(rng.randint(*script)) for _ in range(rng.randint(1, 8)))
        pieces.append(piece + rng.choice([" ", " ", "", "\n"]))
        size += len(pieces[-1].encode())
    return "".join(pieces).replace("<s>", "").replace("[PAD", "")


def compare_tokenizers(path: Path) -> bool:
    text = mixed_text()
    data = text.encode()
    theirs = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    found: Any = theirs.tokenize(data, add_bos=False, special=False)
    ours = Model(path).tokenizer.encode(text)
    same = ours == list(found)
    return report(f"tokenizer: {len(data):,} bytes, {len(ours):,} tokens compared", same)


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def say_nothing(_level: int, _text: bytes, _data: object) -> None:
    """llama.cpp's own reports are long."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="keep the files here")
    args = parser.parse_args()
    llama_cpp.llama_log_set(say_nothing, ctypes.c_void_p(0))
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        tokens = np.random.default_rng(3).integers(1, 65000, TOKENS).tolist()
        results = [compare_models(folder, version, tokens) for version in SIZES]
        results.append(compare_tokenizers(folder / "7-f16.gguf"))
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
