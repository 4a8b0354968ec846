# SPDX-License-Identifier: Apache-2.0
"""RWKV-7 for training, in PyTorch: the parameters have the names and shapes of a checkpoint.

The recurrence runs in chunks, which gives the same values as token by token (to about 2e-6 of the
output's spread) several times faster on a CPU. Initial values are those of RWKV-LM,
RWKV-v7/train_temp; without them training is much slower.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

HEAD = 64
CHUNK = 16  # the decay is at least 0.545 a step, so a product of 16 stays above 6e-5
LORA = {"w": 16, "a": 16, "v": 16, "g": 32}


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
    return functional.pad(x, (0, 0, 1, -1)) - x


def ortho(rows: int, cols: int, scale: float) -> nn.Parameter:
    gain = math.sqrt(rows / cols) if rows > cols else 1.0
    return nn.Parameter(nn.init.orthogonal_(torch.empty(rows, cols), gain=gain * scale))


def linear(rows: int, cols: int, bound: float) -> nn.Linear:
    layer = nn.Linear(cols, rows, bias=False)
    nn.init.uniform_(layer.weight, -bound, bound)
    return layer


class TimeMix(nn.Module):
    x_r: Tensor
    x_w: Tensor
    x_k: Tensor
    x_v: Tensor
    x_a: Tensor
    x_g: Tensor
    w1: Tensor
    w2: Tensor
    a1: Tensor
    a2: Tensor
    v1: Tensor
    v2: Tensor
    g1: Tensor
    g2: Tensor

    def __init__(self, width: int, layer: int, layers: int) -> None:
        super().__init__()
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

        kk = functional.normalize(heads(k * self.k_k), dim=-1)
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
        if v_first is None:
            x = self.ln0(x)
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
        x = self.emb(tokens)
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
        return functional.cross_entropy(self.head(x[keep]), tokens[:, 1:][keep])
