# SPDX-License-Identifier: Apache-2.0
"""What `--lookup` gains where a model writes certain texts.

    python bench/lookup.py MODEL --read BEGINNING.py --write REST.py --tokens 300

The session reads the last tokens of one text. Then it is made to write another one, token by token
(the option `forced`), with drafts and without, in turn. So the drafts are those of a model that
writes just this text, and the steps are real ones. How well a model copies is not measured.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from rwkv_edge import Model
from rwkv_edge.model import Session


def seconds(session: Session, prompt: list[int], written: list[int], lookup: int) -> float:
    """To write these tokens after the prompt, whose last token is read in that time, too."""
    session.reset()
    session.read(prompt[:-1])
    start = time.perf_counter()
    for _ in session.generate(
        prompt[-1:], lookup=lookup, forced=written, max_tokens=len(written), temperature=0
    ):
        pass
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--read", type=Path, required=True, help="its end is the prompt")
    parser.add_argument("--write", type=Path, required=True, help="its beginning is written")
    parser.add_argument("--prompt", type=int, default=1000, help="tokens of --read at most")
    parser.add_argument("--tokens", type=int, default=300, help="tokens of --write at most")
    parser.add_argument("--lookup", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    model = Model(args.model, threads=args.threads)
    encode = model.tokenizer.encode
    prompt = encode(args.read.read_text("utf-8"))[-args.prompt :]
    written = encode(args.write.read_text("utf-8"))[: args.tokens]
    if not (prompt and written):
        parser.error("--read, --write: found no text, expected some")
    session = model.session()
    pairs = [
        [seconds(session, prompt, written, lookup) for lookup in (0, args.lookup)]
        for _ in range(args.runs + 1)
    ][1:]  # the first brings the weights into memory
    drafted, accepted, steps = session.lookups
    ratio = statistics.median(plain / fast for plain, fast in pairs)
    print(
        f"{args.read.name} -> {args.write.name}: {len(written)} tokens, {accepted} of {drafted} "
        f"drafted tokens were right, {len(written) / steps:.2f} tokens a step, {ratio:.2f} times "
        "as fast"
    )


if __name__ == "__main__":
    main()
