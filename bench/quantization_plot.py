# SPDX-License-Identifier: Apache-2.0
"""KL divergence against bytes a token, as an SVG: a line of dots for each way to quantize."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 760, 470
LEFT, RIGHT, TOP, BOTTOM = 70, 24, 44, 50
CHARACTER = 6.4  # a usual one's width
SIDES = ((7, 4, "start"), (-7, 4, "end"), (0, -8, "middle"), (0, 16, "middle"))

STYLE = """
  text { font: 11px system-ui, sans-serif; fill: #1f2328 } .page { fill: #ffffff }
  .grid { stroke: #d8dee4; stroke-width: 1 } path { fill: none; stroke-width: 1.5 }
  .s0 { stroke: #6e7781; fill: #6e7781 } .s1 { stroke: #8f5a00; fill: #8f5a00 }
  .s2 { stroke: #1d5fbf; fill: #1d5fbf } .s3 { stroke: #1a7f37; fill: #1a7f37 }
  .s4 { stroke: #a0349b; fill: #a0349b } path.s0, path.s1, path.s2, path.s3, path.s4 { fill: none }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .page { fill: #0d1117 } .grid { stroke: #30363d }
    .s0 { stroke: #8b949e; fill: #8b949e } .s1 { stroke: #d29922; fill: #d29922 }
    .s2 { stroke: #58a6ff; fill: #58a6ff } .s3 { stroke: #3fb950; fill: #3fb950 }
    .s4 { stroke: #db61a2; fill: #db61a2 }
  }
"""


class Dot(NamedTuple):
    label: str
    nbytes: int
    """That a token reads."""
    kl: float


def svg(series: dict[str, list[Dot]]) -> str:
    """`series`: their names and dots, in the order of the legend."""
    dots = [dot for found in series.values() for dot in found]
    low, high = (math.log10(of(dot.kl for dot in dots)) for of in (min, max))
    low, high = math.floor(3 * low) / 3, math.ceil(3 * high) / 3
    least, most = (of(dot.nbytes for dot in dots) / 1e6 for of in (min, max))
    edge = 0.05 * (most - least)
    least, most = least - edge, most + 2 * edge

    def at(dot: Dot) -> tuple[float, float]:
        right = (dot.nbytes / 1e6 - least) / (most - least)
        up = (math.log10(dot.kl) - low) / (high - low)
        return LEFT + right * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    body = [*_grid(least, most, low, high)]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in map(at, dots)]
    for number, found in enumerate(series.values()):
        places = [at(dot) for dot in sorted(found, key=lambda dot: dot.nbytes)]
        line = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        body.append(f'<path class="s{number}" d="M{line}"/>')
        body += [f'<circle class="s{number}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places]
    for found in series.values():
        body += [text for dot in found for text in _label(dot.label, *at(dot), taken)]
    x = LEFT
    for number, name in enumerate(series):
        body.append(f'<circle class="s{number}" cx="{x + 4}" cy="20" r="4"/>')
        body.append(f'<text x="{x + 13}" y="24">{escape(name)}</text>')
        x += 34 + round(CHARACTER * len(name))
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    page = '<rect class="page" width="100%" height="100%" rx="6"/>'
    return "\n".join([head, f"<style>{STYLE}</style>", page, *body, "</svg>\n"])


def _label(
    text: str, x: float, y: float, taken: list[tuple[float, float, float, float]]
) -> Iterator[str]:
    """Beside its dot, where nothing is yet; nowhere if all sides are taken."""
    width = CHARACTER * len(text)
    for dx, dy, anchor in SIDES:
        left = x + dx - {"start": 0, "end": width, "middle": width / 2}[anchor]
        box = (left, y + dy - 9, left + width, y + dy + 2)
        if box[0] > LEFT and box[2] < WIDTH and not any(_meet(box, other) for other in taken):
            taken.append(box)
            yield (
                f'<text x="{x + dx:.1f}" y="{y + dy:.1f}" text-anchor="{anchor}">'
                f"{escape(text)}</text>"
            )
            return


def _meet(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _grid(least: float, most: float, low: float, high: float) -> Iterator[str]:
    step = next(
        step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 50, 100, 500) if most - least < 9 * step
    )
    for i in range(math.ceil(least / step), math.floor(most / step) + 1):
        x = LEFT + (i * step - least) / (most - least) * (WIDTH - LEFT - RIGHT)
        yield f'<path class="grid" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
        below = HEIGHT - BOTTOM + 16
        yield f'<text x="{x:.1f}" y="{below}" text-anchor="middle">{i * step:g}</text>'
    for power in range(math.floor(low), math.ceil(high)):
        for digit in (1, 2, 5):
            value = math.log10(digit) + power
            if low <= value <= high:
                y = HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)
                yield f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
                label = f"{digit * 10.0**power:g}"
                yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
    yield (
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">'
        "MB that a token reads</text>"
    )
    yield (
        f'<text transform="translate(16 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" '
        'text-anchor="middle">KL divergence from the float model</text>'
    )
