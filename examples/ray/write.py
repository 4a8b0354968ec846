# SPDX-License-Identifier: Apache-2.0
"""Continue the prompts of a file on all workers of a Ray cluster:

    python examples/ray/write.py prompts.jsonl texts --model model.gguf --workers 8 --threads 1

A line of the input has a number `id` and a text `prompt`. The output is a folder of JSON lines. Ray
does not keep the order, which is what the `id` is for. Each machine needs the model's file.
"""

from __future__ import annotations

import argparse

import ray
from workers import Generate


def write(
    source: str,
    target: str,
    model: str | None,
    workers: int,
    threads: int,
    max_tokens: int,
    seed: int = 0,
) -> None:
    # Files need no cores: the workers may have all of them, and never give one back.
    files = {"num_cpus": 0}
    (
        ray.data.read_json(source, lines=True, ray_remote_args=files)
        .map_batches(
            Generate,
            fn_constructor_args=(model,),
            fn_constructor_kwargs={"threads": threads, "max_tokens": max_tokens, "seed": seed},
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=threads,
            batch_size=16,
        )
        .write_json(target, ray_remote_args=files)
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Continue the prompts of a file with Ray Data.")
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--model")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-tokens", type=int, default=100)
    found = parser.parse_args()
    ray.init(include_dashboard=False)
    write(found.source, found.target, found.model, found.workers, found.threads, found.max_tokens)
