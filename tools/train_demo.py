# SPDX-License-Identifier: Apache-2.0
"""Trains the bundled demo model: a small RWKV-7 on the text of demo_text.py, on a CPU.

    python tools/train_demo.py --out build/demo --minutes 90

writes demo.model (the sentencepiece vocabulary) and demo.pth (fp32, the usual RWKV-7 tensor
names), which `rwkv-edge convert demo.pth demo.gguf --vocab demo.model` turns into a GGUF.
Needs the extra `rwkv-edge[train]` (torch). SIGTERM ends a run early but properly: the learning
rate falls to its end over a last few steps, then the model is saved.
"""

from __future__ import annotations

import argparse
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
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn import functional as F  # noqa: N812

HEAD = 64
CHUNK = 16  # the decay is at least 0.545 a step, so a product of 16 stays above 6e-5
LORA = {"w": 16, "a": 16, "v": 16, "g": 32}


# --- the model ------------------------------------------------------------------------------


def carry(
    from_state: Tensor, from_chunk: Tensor, end: Tensor, added: Tensor, b_end: Tensor
) -> tuple[Tensor, Tensor]:
    """Carries the state over the chunks: the states before each, and the updates within each."""
    state = torch.zeros_like(added[0])
    states, updates = [], []
    pieces = (t.unbind(0) for t in (from_state, from_chunk, end, added, b_end))
    for old, new, decay, add, b in zip(*pieces, strict=True):
        states.append(state)
        u = torch.baddbmm(new, old, state.transpose(1, 2))
        state = torch.baddbmm(torch.addcmul(add, state, decay), u.transpose(1, 2), b)
        updates.append(u)
    return torch.stack(states), torch.stack(updates)


def inverse(lower: Tensor) -> Tensor:
    """(I - lower)^-1 for strictly lower triangular [.., 16, 16]: (I+L)(I+L^2)(I+L^4)(I+L^8)."""
    out = torch.eye(CHUNK) + lower
    power = lower
    for _ in range(3):
        power = power @ power
        out = out + power @ out
    return out


def wkv7(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, kk: Tensor, b: Tensor) -> Tensor:
    """The RWKV-7 recurrence S' = S*w - (S kk) b^T + v k^T, y = S' r, over whole chunks at once.

    All [B, T, H, N] float32 with T a multiple of CHUNK; returns y, the same shape. Within a
    chunk the rank-one updates become a unit lower triangular system; only the state is carried
    from chunk to chunk one by one.
    """
    batch, length, heads, size = r.shape
    chunks = length // CHUNK

    def split(x: Tensor) -> Tensor:
        x = x.view(batch, chunks, CHUNK, heads, size).permute(1, 0, 3, 2, 4)
        return x.reshape(chunks, batch * heads, CHUNK, size)

    log_w, v = split(log_w), split(v)
    total = log_w.cumsum(2)
    grow = torch.exp(-total)
    a = -split(kk) * torch.exp(total - log_w)
    r = split(r) * torch.exp(total)
    b, k = split(b) * grow, split(k) * grow
    end = torch.exp(total[:, :, -1:])
    bt, kt = b.transpose(2, 3), k.transpose(2, 3)
    solve = inverse((a @ bt).tril(-1))
    from_state, from_chunk = solve @ a, solve @ ((a @ kt).tril(-1) @ v)
    added = v.transpose(2, 3) @ (k * end)
    b_end = b * end

    states, updates = carry(from_state, from_chunk, end, added, b_end)
    y = r @ states.transpose(2, 3) + (r @ bt).tril() @ updates + (r @ kt).tril() @ v
    y = y.view(chunks, batch, heads, CHUNK, size).permute(1, 0, 3, 2, 4)
    return y.reshape(batch, length, heads, size)


def shift(x: Tensor) -> Tensor:
    """The difference from each token's vector to the one before it; zeros come before the first."""
    return F.pad(x, (0, 0, 1, -1)) - x


def ortho(rows: int, cols: int, scale: float) -> nn.Parameter:
    gain = math.sqrt(rows / cols) if rows > cols else 1.0
    return nn.Parameter(nn.init.orthogonal_(torch.empty(rows, cols), gain=gain * scale))


def linear(rows: int, cols: int, bound: float) -> nn.Linear:
    layer = nn.Linear(cols, rows, bias=False)
    nn.init.uniform_(layer.weight, -bound, bound)
    return layer


class TimeMix(nn.Module):
    """Initial values as in RWKV-LM, RWKV-v7/train_temp."""

    def __init__(self, width: int, layer: int, layers: int) -> None:
        super().__init__()
        self.layer = layer
        depth, rest = layer / max(layers - 1, 1), 1.0 - layer / layers
        at = torch.arange(width) / width
        ramp = torch.arange(width) / (width - 1)
        zigzag = (torch.arange(width) % HEAD - (HEAD - 1) / 2) / ((HEAD - 1) / 2)
        zigzag = zigzag * zigzag.abs()

        def vector(x: Tensor) -> nn.Parameter:
            return nn.Parameter(x.view(1, 1, width).clone())

        for name, power in {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}.items():
            setattr(self, "x_" + name, vector(1.0 - at ** (power * rest)))
        for name, rank in LORA.items():
            if name != "v" or layer > 0:
                setattr(self, name + "1", nn.Parameter(torch.zeros(width, rank)))
                setattr(self, name + "2", ortho(rank, width, 0.1))
        self.w0 = vector(-5.5 + 6 * ramp ** (1 + depth**0.3) + 2.5 * zigzag)
        self.a0 = vector(-0.19 + 0.3 * zigzag + 0.4 * (ramp - 0.5))
        if layer > 0:
            self.v0 = vector(0.73 - 0.4 * (ramp - 0.5))
        self.k_k = vector(0.71 - 0.1 * (ramp - 0.5))
        self.k_a = vector(torch.full((width,), 1.02))
        self.r_k = nn.Parameter(torch.full((width // HEAD, HEAD), -0.04))
        unit = width**-0.5
        self.receptance = linear(width, width, 0.5 * unit)
        self.key = linear(width, width, 0.05 * unit)
        self.value = linear(width, width, 0.5 * unit)
        self.output = linear(width, width, 0.0)
        self.ln_x = nn.GroupNorm(width // HEAD, width, eps=64e-5)
        nn.init.constant_(self.ln_x.weight, ((1 + layer) / layers) ** 0.7)

    def forward(self, x: Tensor, v_first: Tensor | None) -> tuple[Tensor, Tensor]:
        batch, length, width = x.shape
        dx = shift(x)
        r = self.receptance(torch.addcmul(x, dx, self.x_r))
        k = self.key(torch.addcmul(x, dx, self.x_k))
        x_v = torch.addcmul(x, dx, self.x_v)
        v = self.value(x_v)
        w = self.w0 + torch.tanh(torch.addcmul(x, dx, self.x_w) @ self.w1) @ self.w2
        log_w = -math.exp(-0.5) * torch.sigmoid(w)
        a = torch.sigmoid(self.a0 + torch.addcmul(x, dx, self.x_a) @ self.a1 @ self.a2)
        g = torch.sigmoid(torch.addcmul(x, dx, self.x_g) @ self.g1) @ self.g2
        if v_first is None:
            v_first = v
        else:
            v = v + (v_first - v) * torch.sigmoid(self.v0 + x_v @ self.v1 @ self.v2)

        def heads(t: Tensor) -> Tensor:
            return t.view(batch, length, width // HEAD, HEAD)

        kk = F.normalize(heads(k * self.k_k), dim=-1)
        k = k * (1 + (a - 1) * self.k_a)
        y = wkv7(heads(r), heads(log_w), heads(k), heads(v), kk, kk * heads(a))
        y = self.ln_x(y.view(batch * length, width)).view(batch, length, width)
        bonus = (heads(r * k) * self.r_k).sum(-1, keepdim=True) * heads(v)
        return self.output((y + bonus.view(batch, length, width)) * g), v_first


class ChannelMix(nn.Module):
    def __init__(self, width: int, layer: int, layers: int) -> None:
        super().__init__()
        at = torch.arange(width) / width
        self.x_k = nn.Parameter((1.0 - at ** ((1.0 - layer / layers) ** 4)).view(1, 1, width))
        self.key = linear(4 * width, width, 0.5 * width**-0.5)
        self.value = linear(width, 4 * width, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.value(
            torch.relu(self.key(torch.addcmul(x, shift(x), self.x_k))).square()
        )
        return out


class Block(nn.Module):
    def __init__(self, width: int, layer: int, layers: int) -> None:
        super().__init__()
        if layer == 0:
            self.ln0 = nn.LayerNorm(width)
        self.ln1 = nn.LayerNorm(width)
        self.ln2 = nn.LayerNorm(width)
        self.att = TimeMix(width, layer, layers)
        self.ffn = ChannelMix(width, layer, layers)

    def forward(self, x: Tensor, v_first: Tensor | None) -> tuple[Tensor, Tensor]:
        y, v_first = self.att(self.ln1(x), v_first)
        x = x + y
        return x + self.ffn(self.ln2(x)), v_first


class Rwkv7(nn.Module):
    def __init__(self, vocab: int, width: int, layers: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(vocab, width)
        nn.init.uniform_(self.emb.weight, -1e-4, 1e-4)
        self.blocks = nn.ModuleList(Block(width, i, layers) for i in range(layers))
        self.ln_out = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab, bias=False)
        nn.init.orthogonal_(self.head.weight, gain=0.5 * math.sqrt(max(vocab / width, 1)))

    def features(self, tokens: Tensor) -> Tensor:
        """[B, T] token ids -> [B, T, width], what the head reads."""
        x = self.blocks[0].ln0(self.emb(tokens))
        v_first = None
        for block in self.blocks:
            x, v_first = block(x, v_first)
        out: Tensor = self.ln_out(x)
        return out

    def loss(self, tokens: Tensor, teach: Tensor) -> Tensor:
        """Mean cross-entropy over the tokens [B, T] for which teach [B, T] is true.

        The head runs only where a token is taught.
        """
        x = self.features(tokens)[:, :-1]
        keep = teach[:, 1:]
        return F.cross_entropy(self.head(x[keep]), tokens[:, 1:][keep])


# --- the text as tokens ---------------------------------------------------------------------


def train_vocabulary(path: Path, pieces: int, seed: int) -> None:
    """Learns the sentencepiece vocabulary; id 0 ends a document and no text encodes to it."""
    source = demo_text.samples(seed)
    lines = ("".join(text for text, _ in next(source)) for _ in range(20_000))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line.replace("\n", " ") for line in lines),
        model_prefix=str(path.with_suffix("")),
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
        loss.backward()
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
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for demo.model and demo.pth"
    )
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
    train_vocabulary(args.out / "demo.model", args.pieces, args.seed)
    start = multiprocessing.get_context("spawn").Process
    for rank in range(1, args.workers):
        start(target=train, args=(rank, args), daemon=True).start()
    train(0, args)


if __name__ == "__main__":
    main()
