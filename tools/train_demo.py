# SPDX-License-Identifier: Apache-2.0
"""Trains the bundled demo model: a small RWKV-7 on the text of demo_text.py, on a CPU.

    python tools/train_demo.py --out build/demo --minutes 90

writes demo.model (the sentencepiece vocabulary) and demo.pth (fp32, the usual RWKV-7 tensor
names). `--start demo.gguf` goes on from a model that was trained before, with its vocabulary. Then
`rwkv-edge convert demo.pth demo.gguf --vocab demo.model` makes a GGUF of them.
Needs the extra `rwkv-edge[train]` (torch). SIGTERM ends a run early but properly: the learning
rate falls to its end over a last few steps, then the model is saved.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import demo_text
import numpy as np
import sentencepiece
import torch
from demo_model import CHUNK, Rwkv7
from numpy.typing import NDArray
from rwkv_edge import _core
from rwkv_edge.tokenizer import SENTENCEPIECE_KEY
from torch import Tensor, distributed, multiprocessing, nn

# --- the text as tokens ---------------------------------------------------------------------


def train_vocabulary(path: Path, pieces: int, seed: int) -> None:
    """Learns the sentencepiece vocabulary; id 0 ends a document and no text encodes to it."""
    source = demo_text.samples(seed)
    lines = ("".join(text for text, _ in next(source)) for _ in range(20_000))
    learnt = io.BytesIO()  # a file's path would become part of the vocabulary
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line.replace("\n", " ") for line in lines),
        model_writer=learnt,
        model_type="bpe",
        vocab_size=pieces,
        eos_id=0,
        unk_id=1,
        bos_id=-1,
        pad_id=-1,
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        user_defined_symbols=["\n\n", "\n", "User:", "Assistant:", "System:"],
        max_sentence_length=20_000,
        minloglevel=2,
    )
    path.write_bytes(learnt.getvalue())


def token_samples(
    vocabulary: sentencepiece.SentencePieceProcessor, seed: int
) -> Iterator[tuple[list[int], list[bool]]]:
    """Each sample's tokens and which of them are taught; a bare story ends with a taught 0."""
    for sample in demo_text.samples(seed):
        tokens: list[int] = []
        teach: list[bool] = []
        for text, taught in sample:
            ids = vocabulary.encode(text)
            tokens += ids
            teach += [taught] * len(ids)
        yield [*tokens, 0], [*teach, len(sample) == 1]


def rows(
    source: Iterator[tuple[list[int], list[bool]]], length: int
) -> Iterator[tuple[list[int], list[bool]]]:
    """Packs whole samples into rows of `length`: always the longest waiting one that fits."""
    waiting: list[tuple[list[int], list[bool]]] = []
    while True:
        tokens: list[int] = []
        teach: list[bool] = []
        while True:
            while len(waiting) < 64:
                sample = next(source)
                if len(sample[0]) <= length:
                    waiting.append(sample)
            room = length - len(tokens)
            first = len(tokens) == 0  # any sample may begin a row, at the zero state
            fits = [i for i, s in enumerate(waiting) if len(s[0]) <= room]
            if not fits:
                break
            best = fits[0] if first else max(fits, key=lambda i: len(waiting[i][0]))
            ids, flags = waiting.pop(best)
            tokens += ids
            teach += flags
        pad = length - len(tokens)
        yield tokens + [0] * pad, teach + [False] * pad


def batches(
    source: Iterator[tuple[list[int], list[bool]]], size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        picked = [next(source) for _ in range(size)]
        yield torch.tensor([r[0] for r in picked]), torch.tensor([r[1] for r in picked])


# --- a model to go on from ------------------------------------------------------------------


def started(path: Path, layers: int) -> dict[str, Tensor]:
    """The parameters of an RWKV-7 file by the names of a checkpoint: `convert/rwkv7.py` undone."""
    file = _core.ModelFile(path)
    found = {t.name: _core.dequantize(t.data, t.type).reshape(t.shape) for t in file.tensors}
    names = {"token_embd": "emb", "token_embd_norm": "blocks.0.ln0", "output_norm": "ln_out"}
    names |= {"output": "head"}
    out: dict[str, NDArray[np.float32]] = {}
    for i in range(layers):
        source, target = f"blk.{i}.", f"blocks.{i}."
        names |= {f"{source}attn_norm": f"{target}ln1", f"{source}attn_norm_2": f"{target}ln2"}
        names |= {f"{source}time_mix_ln": f"{target}att.ln_x"}
        for name in ("receptance", "key", "value", "output"):
            names[f"{source}time_mix_{name}"] = f"{target}att.{name}"
        for name in ("key", "value"):
            names[f"{source}channel_mix_{name}"] = f"{target}ffn.{name}"
        lerps = found[f"{source}time_mix_lerp_fused.weight"].reshape(6, 1, 1, -1)
        out |= {f"{target}att.x_{x}": lerp for x, lerp in zip("rwkvag", lerps, strict=True)}
        out[f"{target}ffn.x_k"] = found[f"{source}channel_mix_lerp_k.weight"]
        for name in ("k_k", "k_a", "r_k", "w0", "a0", *["v0"] * (i > 0)):
            out[f"{target}att.{name}"] = found[f"{source}time_mix_{name}.weight"]
        for name in ("w", "a", "g", *["v"] * (i > 0)):
            for part in "12":
                matrix = found[f"{source}time_mix_{name}{part}.weight"]
                out[f"{target}att.{name}{part}"] = matrix.transpose()
    for old, new in names.items():
        for part in ("weight", "bias"):
            if f"{old}.{part}" in found:
                out[f"{new}.{part}"] = found[f"{old}.{part}"]
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in out.items()}


def go_on(model: Rwkv7, path: Path) -> None:
    """Take over the parameters of a file, all of them."""
    parameters = model.state_dict()
    found = started(path, len(model.blocks))
    shaped = {name: found[name].reshape(p.shape) for name, p in parameters.items()}
    model.load_state_dict(shaped)


# --- training -------------------------------------------------------------------------------


class Schedule:
    """How far the run is, by steps or by time, whichever is further, and the rate at that point.

    Time is the sum of the steps' times, each at most three times the median, so that a stopped
    process loses nothing.
    """

    def __init__(self, peak: float, steps: int, minutes: float) -> None:
        self.peak, self.steps, self.seconds = peak, steps, minutes * 60
        self.done, self.spent = 0, 0.0
        self.recent: list[float] = []
        self.ending: tuple[int, float] | None = None  # step and rate when told to end

    def add(self, seconds: float) -> None:
        self.recent = [*self.recent[-99:], seconds]
        self.done += 1
        self.spent += min(seconds, 3 * statistics.median(self.recent))

    def rate(self) -> float:
        if self.ending:
            left = 1 - (self.done - self.ending[0]) / 150
            return self.ending[1] * max(left, 0.0)
        warm = min(1.0, (self.done + 1) / 100)
        return warm * self.peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.progress())))

    def progress(self) -> float:
        if self.ending and self.done >= self.ending[0] + 150:
            return 1.0
        return min(1.0, max(self.done / self.steps, self.spent / self.seconds))

    def end(self) -> None:
        self.ending = self.ending or (self.done, self.rate())


def optimizer(model: Rwkv7, peak: float) -> torch.optim.AdamW:
    """Weight decay on the large matrices only; w0 learns twice as fast, as in RWKV-LM."""
    groups: dict[str, list[nn.Parameter]] = {"decay": [], "plain": [], "double": []}
    for name, p in model.named_parameters():
        large = name.endswith(".weight") and p.dim() == 2
        groups["decay" if large else "double" if name.endswith("att.w0") else "plain"].append(p)
    return torch.optim.AdamW(
        [
            {"params": groups["decay"], "weight_decay": 0.1, "scale": 1.0},
            {"params": groups["plain"], "weight_decay": 0.0, "scale": 1.0},
            {"params": groups["double"], "weight_decay": 0.0, "scale": 2.0},
        ],
        lr=peak,
        betas=(0.9, 0.98),
        eps=1e-12,
        fused=True,
    )


def save(model: Rwkv7, path: Path) -> None:
    """Writes the weights beside the target first, so that a file under its name is whole."""
    part = path.with_suffix(".part")
    torch.save({name: p.detach().clone() for name, p in model.state_dict().items()}, part)
    part.replace(path)


def average(model: Rwkv7, workers: int, extra: list[float]) -> list[float]:
    """Averages the gradients over the workers and adds up `extra`."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([*(g.view(-1) for g in grads), torch.tensor(extra)])
    if workers > 1:
        distributed.all_reduce(flat)
        flat[: -len(extra)] /= workers
    start = 0
    for g in grads:
        g.copy_(flat[start : start + g.numel()].view_as(g))
        start += g.numel()
    return [float(x) for x in flat[-len(extra) :]]


def train(rank: int, args: argparse.Namespace) -> None:
    """One worker. Each has one thread and its share of the batch; only gradients are shared."""
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    if args.workers > 1:
        place = f"file://{(args.out / 'workers').resolve()}"
        distributed.init_process_group("gloo", place, rank=rank, world_size=args.workers)
    vocabulary = sentencepiece.SentencePieceProcessor(model_file=str(args.out / "demo.model"))
    model = Rwkv7(vocabulary.vocab_size(), args.width, args.layers)
    if args.start:
        go_on(model, args.start)
    schedule = Schedule(args.rate, args.steps, args.minutes)
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    adam = optimizer(model, args.rate)
    texts = token_samples(vocabulary, args.seed + rank)
    source = batches(rows(texts, args.length), args.batch // args.workers)
    log = (args.out / "train.jsonl").open("a", encoding="utf-8") if rank == 0 else None
    losses: list[float] = []
    seconds = 0.0
    while schedule.progress() < 1:
        start = time.monotonic()
        for group in adam.param_groups:
            group["lr"] = schedule.rate() * group["scale"]
        loss = model.loss(*next(source))
        torch.autograd.backward(loss)
        mine = [loss.item(), seconds if rank == 0 else 0.0, float(len(told))]
        total, last_seconds, stop = average(model, args.workers, mine)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        losses.append(total / args.workers)
        schedule.add(last_seconds)
        if stop:
            schedule.end()
        if log and schedule.done % 50 == 0:
            report(log, schedule, float(np.mean(losses[-50:])), args.batch * args.length)
        if rank == 0 and schedule.done % 300 == 0:
            save(model, args.out / "demo.pth")
        seconds = time.monotonic() - start
    if rank == 0:
        save(model, args.out / "demo.pth")


def report(log: TextIO, schedule: Schedule, loss: float, tokens: int) -> None:
    line = {
        "step": schedule.done,
        "loss": round(loss, 4),
        "rate": schedule.rate(),
        "minutes": round(schedule.spent / 60, 2),
        "tokens": schedule.done * tokens,
    }
    log.write(json.dumps(line) + "\n")
    log.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for demo.model and demo.pth"
    )
    parser.add_argument("--start", type=Path, help="GGUF file of these sizes to go on from")
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=256, help="a multiple of 64")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--pieces", type=int, default=1792)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512, help=f"a multiple of {CHUNK}")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="processes, one for each core")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "workers").unlink(missing_ok=True)
    if args.start:
        pieces = bytes(_core.ModelFile(args.start).get(SENTENCEPIECE_KEY))
        (args.out / "demo.model").write_bytes(pieces)
    else:
        train_vocabulary(args.out / "demo.model", args.pieces, args.seed)
    start = multiprocessing.get_context("spawn").Process
    for rank in range(1, args.workers):
        start(target=train, args=(rank, args), daemon=True).start()
    train(0, args)
    (args.out / "workers").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
