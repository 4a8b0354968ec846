# SPDX-License-Identifier: Apache-2.0
"""One process of compare_peers.py, under the Python that has the engine. Answers in JSON.

engines.py                                       which engines this Python has: {name: version}
engines.py limits THREADS                        what the machine gives at most
engines.py measure ENGINE FILE THREADS PROMPTS TOKENS
engines.py quantize SOURCE TARGET FILE_TYPE      with llama.cpp
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np
from memory import peak_memory

PACKAGES = {"rwkv-edge": "rwkv-edge", "llama.cpp": "llama-cpp-python", "rwkv": "rwkv"}
LEAST_SECONDS = 1.0  # a shorter test is repeated until so much time has passed


class Engine(NamedTuple):
    """A model ready to read: `feed` returns the logits [n_vocab] after the last of its tokens."""

    n_vocab: int
    reset: Callable[[], None]
    feed: Callable[[list[int]], Any]


def open_rwkv_edge(path: str, threads: int, _longest: int) -> Engine:
    from rwkv_edge import Model

    session = Model(path, threads=threads).session()
    return Engine(session.model.n_vocab, session.reset, session.feed)


def open_llama_cpp(path: str, threads: int, longest: int) -> Engine:
    """As llama-bench does it: no Python around llama_decode, and logits of the last token only."""
    import llama_cpp

    model = llama_cpp.Llama(
        path, n_ctx=longest, n_batch=longest, n_threads=threads, n_threads_batch=threads,
        verbose=False,
    )  # fmt: skip
    n_vocab = model.n_vocab()

    def feed(tokens: list[int]) -> Any:
        ids = (llama_cpp.llama_token * len(tokens))(*tokens)
        if llama_cpp.llama_decode(model.ctx, llama_cpp.llama_batch_get_one(ids, len(tokens))):
            raise SystemExit(f"{path}: llama.cpp could not read {len(tokens)} tokens")
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(model.ctx), shape=(n_vocab,))

    return Engine(n_vocab, model.reset, feed)


def open_rwkv(path: str, threads: int, _longest: int) -> Engine:
    """In float32, its fastest on a CPU."""
    os.environ.update(RWKV_V7_ON="1", RWKV_JIT_ON="1", RWKV_CUDA_ON="0")
    import torch
    from rwkv.model import RWKV

    torch.set_num_threads(threads)
    model = RWKV(model=path.removesuffix(".pth"), strategy="cpu fp32")
    state: Any = None

    def reset() -> None:
        nonlocal state
        state = None

    def feed(tokens: list[int]) -> Any:
        nonlocal state
        logits, state = model.forward(tokens, state)
        return logits

    return Engine(model.args.vocab_size, reset, feed)


OPEN = {"rwkv-edge": open_rwkv_edge, "llama.cpp": open_llama_cpp, "rwkv": open_rwkv}


def measure(name: str, path: str, threads: int, prompts: list[int], tokens: int) -> dict[str, Any]:
    start = time.monotonic()
    engine = OPEN[name](path, threads, max(512, tokens, *prompts))
    loaded = time.monotonic()
    take(engine, 1)
    # One clock for all processes: the parent subtracts the moment at which it started this one.
    first_token_at = time.monotonic()
    read(engine, min(prompts))  # what is set up once, and the rest of the file
    rates = {f"pp{n}": tokens_per_second(read, engine, n) for n in prompts}
    rates[f"tg{tokens}"] = tokens_per_second(take, engine, tokens)
    return {
        "rates": rates,
        "load_s": loaded - start,
        "first_token_at": first_token_at,
        "peak_mb": peak_memory() / 1e6,
    }


def tokens_per_second(test: Callable[[Engine, int], float], engine: Engine, n: int) -> float:
    seconds: list[float] = []
    while sum(seconds) < LEAST_SECONDS:
        seconds.append(test(engine, n))
    return n * len(seconds) / sum(seconds)


def read(engine: Engine, n: int) -> float:
    """Seconds to read a prompt of n tokens."""
    tokens = np.random.default_rng(0).integers(1, engine.n_vocab, n).tolist()
    engine.reset()
    start = time.perf_counter()
    engine.feed(tokens)
    return time.perf_counter() - start


def take(engine: Engine, n: int) -> float:
    """Seconds for n tokens, each the likeliest after the one before."""
    engine.reset()
    token = 0
    start = time.perf_counter()
    for _ in range(n):
        token = int(engine.feed([token]).argmax())
    return time.perf_counter() - start


def limits(threads: int) -> dict[str, float]:
    from rwkv_edge.bench import Limits

    return asdict(Limits.measure(threads))


def quantize(source: str, target: str, file_type: int) -> None:
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp could not write {target}")


def installed() -> dict[str, str]:
    found = {}
    for name, package in PACKAGES.items():
        try:
            found[name] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    answer: Any
    match sys.argv[1:]:
        case []:
            answer = installed()
        case ["limits", threads]:
            answer = limits(int(threads))
        case ["measure", name, path, threads, prompts, tokens]:
            lengths = [int(n) for n in prompts.split(",")]
            answer = measure(name, path, int(threads), lengths, int(tokens))
        case ["quantize", source, target, file_type]:
            quantize(source, target, int(file_type))
            answer = target
        case _:
            raise SystemExit(__doc__)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
