# SPDX-License-Identifier: Apache-2.0
"""Tests the demo model on questions and conversations that its training never shows.

    python tools/eval_demo.py demo-f32.gguf demo-q8_0.gguf

prints a table: the rate of answers that are right to the letter, for new phrasings, for known
phrasings with a subject they were not trained with, for sums, for sums that it should refuse, for
what the model should say it does not know, for names told two turns before, and for follow-ups
("And of Germany?") in words that were not trained; and the perplexity of the answers and stories in
held-out conversations.
`--wrong` lists the wrong answers instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import demo_tasks
import demo_text
import numpy as np
from rwkv_edge import Model, Session

HEADER = """\
| model | MB | new phrasing | new pair | sum | refused | unknown | name | follow-up | perplexity |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"""
SETS = ("phrasing", "pair", "sum", "refused", "unknown", "name", "follow-up")
REFUSED = tuple(demo_tasks.big_sums())
SUMS = tuple(task.name for task in demo_tasks.sum_tasks() if task.name not in REFUSED)
LONGEST = 120  # tokens; the longest answer of one case has about 70


def reply(model: Model, session: Session, question: str) -> str:
    """The most likely answer, token by token, to the next turn of the session's conversation."""
    logits = session.feed(model.tokenizer.encode(f"User: {question}\n\nAssistant:"))
    tokens: list[int] = []
    text = ""
    while len(tokens) < LONGEST and not text.endswith("\n\n"):
        token = int(np.argmax(logits))
        if token == 0:
            break
        tokens.append(token)
        text = model.tokenizer.decode(tokens)
        logits = session.feed([token])
    return text.strip()


def answers(model: Model, per_task: int, seed: int) -> Iterator[tuple[str, str, str, str, str]]:
    """(set, task, question, right answer, given answer) for each held-out question."""
    session = model.session()
    for kind, task, question, right in demo_text.held_out(seed, per_task):
        session.reset()
        unknown = "unknown" in task or "stranger" in task
        column = "sum" if task in SUMS else "refused" if task in REFUSED else kind
        if unknown:
            column = "unknown"
        yield column, task, question, right, reply(model, session, question)
    for questions, right in demo_text.held_names(seed, 10 * per_task):
        session.reset()
        given = [reply(model, session, question) for question in questions]
        yield "name", "name", " / ".join(questions), right, given[-1]
    for turns, name in demo_text.held_follow_ups(seed, 20 * per_task):
        session.reset()
        for turn in turns[:-1]:
            text = f"User: {turn.question}\n\nAssistant: {turn.answer}\n\n"
            session.read(model.tokenizer.encode(text))
        given_last = reply(model, session, turns[-1].question)
        yield "follow-up", name, " / ".join(t.question for t in turns), turns[-1].answer, given_last


def perplexity(model: Model, count: int, seed: int) -> float:
    """Of the taught tokens in held-out conversations."""
    total, taught_tokens = 0.0, 0
    session = model.session()
    for sample in islice(demo_text.samples(seed, demo_text.HeldWriter), count):
        tokens: list[int] = []
        taught: list[bool] = []
        for text, teach in sample:
            ids = model.tokenizer.encode(text)
            tokens += ids
            taught += [teach] * len(ids)
        session.reset()
        logits = np.asarray(session.feed(tokens[:-1], logits="all"), dtype=np.float64)
        top = logits.max(axis=1)
        spread = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        losses = spread - logits[np.arange(len(tokens) - 1), tokens[1:]]
        total += float(losses[taught[1:]].sum())
        taught_tokens += sum(taught[1:])
    return float(np.exp(total / taught_tokens))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--per-task", type=int, default=10, help="questions of each task and set")
    parser.add_argument("--samples", type=int, default=200, help="conversations for the perplexity")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--wrong", action="store_true", help="list the wrong answers instead")
    args = parser.parse_args()
    if not args.wrong:
        print(HEADER)
    for path in args.models:
        model = Model(path, threads=args.threads)
        score: dict[str, list[bool]] = {kind: [] for kind in SETS}
        for kind, task, question, right, given in answers(model, args.per_task, args.seed):
            score[kind].append(given == right)
            if args.wrong and given != right:
                print(kind, task, question, right, given, sep=" | ")
        if not args.wrong:
            rates = " | ".join(f"{100 * np.mean(v):.0f} % of {len(v)}" for v in score.values())
            size = path.stat().st_size / 1e6
            value = perplexity(model, args.samples, args.seed)
            print(f"| {path.name} | {size:.2f} | {rates} | {value:.4f} |", flush=True)


if __name__ == "__main__":
    main()
