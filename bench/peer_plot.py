# SPDX-License-Identifier: Apache-2.0
"""Bars of tokens per second beside the line of the memory bandwidth, as an SVG."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, LABEL, BARS = 420, 56, 330  # of a panel, of the types' names, of the longest bar
TOP, TITLE, BAR, GAP = 60, 30, 15, 9
LEGEND = 600

STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #1f2328 }
  .page { fill: #ffffff } .title { font-weight: 600 } .value { fill: #ffffff; font-size: 11px }
  .e0 { fill: #1d5fbf } .e1 { fill: #6e7781 } .e2 { fill: #8f5a00 }
  .limit { fill: none; stroke: #d1242f; stroke-width: 2 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .page { fill: #0d1117 }
    .e0 { fill: #2f72d6 } .e1 { fill: #656c76 } .e2 { fill: #9a6700 }
    .limit { stroke: #ff7b72 }
  }
"""


@dataclass(frozen=True)
class Group:
    """One type's bars."""

    label: str
    rates: dict[str, float]
    """Tokens per second of each engine."""
    limit: float
    """Tokens per second at which all weights are read at the memory's bandwidth."""


def svg(panels: list[list[tuple[str, list[Group]]]], engines: list[str], test: str) -> str:
    """`panels`: rows of titles and groups."""
    body, y, columns = [], TOP, max(len(row) for row in panels)
    for row in panels:
        for column, (title, groups) in enumerate(row):
            body += [f'<g transform="translate({16 + column * WIDTH},{y})">']
            body += [
                f'<text class="title">{escape(title)}</text>',
                *_panel(groups, engines),
                "</g>",
            ]
        y += TITLE + max(_height(groups) for _, groups in row)
    width = max(columns * WIDTH, LEGEND)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" width="{width}">',
            f"<style>{STYLE}</style>",
            '<rect class="page" width="100%" height="100%" rx="6"/>',
            *_legend(engines, test),
            *body,
            "</svg>\n",
        ]
    )


def _legend(engines: list[str], test: str) -> Iterator[str]:
    x = 16
    for i, name in enumerate(engines):
        yield f'<rect class="e{i}" x="{x}" y="14" width="12" height="12"/>'
        yield f'<text x="{x + 17}" y="24">{escape(name)}</text>'
        x += 40 + 7 * len(name)
    yield f'<path class="limit" d="M{x + 6} 12V28"/>'
    yield f'<text x="{x + 14}" y="24">memory bandwidth; {test}, tokens per second</text>'


def _height(groups: list[Group]) -> int:
    return sum(BAR * len(group.rates) + GAP for group in groups)


def _panel(groups: list[Group], engines: list[str]) -> Iterator[str]:
    scale = BARS / max(max(group.limit, *group.rates.values()) for group in groups)
    y, line = GAP, ""
    for group in groups:
        height = BAR * len(group.rates)
        yield f'<text y="{y + height / 2 + 4:g}">{escape(group.label)}</text>'
        for i, (engine, rate) in enumerate(group.rates.items()):
            top, length = y + i * BAR, rate * scale
            kind = engines.index(engine)
            yield (
                f'<rect class="e{kind}" x="{LABEL}" y="{top}" '
                f'width="{length:.1f}" height="{BAR - 1}"/>'
            )
            yield _value(rate, length, top + 11)
        edge = f"{LABEL + group.limit * scale:.1f}"
        line += f"{'H' if line else 'M'}{edge}{'' if line else f' {y - 3}'}V{y + height + GAP - 3}"
        y += height + GAP
    yield f'<path class="limit" d="{line}"/>'


def _value(rate: float, length: float, y: int) -> str:
    """In the bar's end, or behind a bar that is too short."""
    text = f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}"
    if length < 34:
        return f'<text x="{LABEL + length + 4:.1f}" y="{y}">{text}</text>'
    return (
        f'<text class="value" text-anchor="end" x="{LABEL + length - 4:.1f}" y="{y}">{text}</text>'
    )
