# SPDX-License-Identifier: Apache-2.0
"""Writing, embedding and scoring many texts, as Ray Data wants it.

Each class opens the model when it is made, once in each worker, and is then called with batches of
rows: a dict of columns. It returns the columns with more of them. None needs Ray itself:

    Generate("model.gguf", max_tokens=20)({"id": np.array([0]), "prompt": np.array(["Once"])})
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from rwkv_edge import Model, scoring
from rwkv_edge.generation import MAX_SEED
from rwkv_edge.tokenizer import END_OF_TEXT

Rows = dict[str, NDArray[Any]]


class Worker:
    """`model` is a file, or None for the demo model. All workers of a machine share the pages of
    the file. `threads` is the number of cores that Ray gives to a worker (`num_cpus`)."""

    def __init__(self, model: str | None = None, *, threads: int = 1) -> None:
        self.model = Model(model, threads=threads)


class Generate(Worker):
    """Adds `text`: what follows each `prompt`. A row of the number `id` has the seed `seed` + `id`,
    so its text does not depend on the worker and the batch that it comes to."""

    def __init__(
        self, model: str | None = None, *, threads: int = 1, seed: int = 0, **options: Any
    ) -> None:
        super().__init__(model, threads=threads)
        self.seed, self.options = seed, options

    def __call__(self, rows: Rows) -> Rows:
        prompts = [str(prompt) for prompt in rows["prompt"]]
        seeds = [{"seed": (self.seed + int(number)) % (MAX_SEED + 1)} for number in rows["id"]]
        texts = [""] * len(prompts)
        batch = self.model.batch(self.model.session() for _ in prompts)
        for i, piece in batch.generate(prompts, each=seeds, **self.options):  # type: ignore[arg-type]
            texts[i] += piece
        return {**rows, "text": np.array(texts, dtype=object)}


class Embed(Worker):
    """Adds `embedding`, float32 [rows, n_embd]: a vector of length 1 for each `text`."""

    def __call__(self, rows: Rows) -> Rows:
        return {**rows, "embedding": self.model.embed(str(text) for text in rows["text"])}


class Score(Worker):
    """Adds `logprob`: ln p of each `continuation` after its `context`, and `greedy`: whether each
    of its tokens is the likeliest. The context begins a document."""

    def __call__(self, rows: Rows) -> Rows:
        encode = self.model.tokenizer.encode
        pairs = [
            ([END_OF_TEXT, *encode(str(context))], encode(str(continuation)))
            for context, continuation in zip(rows["context"], rows["continuation"], strict=True)
        ]
        logprobs, greedy = zip(*scoring.score(self.model, pairs), strict=True)
        return {**rows, "logprob": np.array(logprobs), "greedy": np.array(greedy)}
