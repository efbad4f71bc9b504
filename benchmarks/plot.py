"""One SVG of a family's rows: each its median, its spread and its target. Legible on light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from benchmarks.table import TIMES, Row, number

WIDTH, LABELS, FIGURES, ROW, MARGIN = 900, 310, 190, 26, 20
TRACK = WIDTH - LABELS - FIGURES - 2 * MARGIN

_SHAPES = """\
text { font: 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif }
.title { font-size: 16px; font-weight: 600 } .faint { font-size: 12px }
.end { text-anchor: end } .middle { text-anchor: middle }
.bound { stroke-width: 2 } .spread { stroke-width: 6; stroke-linecap: round; opacity: .35 } circle { stroke-width: 2.5 }
"""
# Written out for each, because not every program that shows an SVG knows CSS variables.
_COLOURS = """\
.page {{ fill: {page} }} text {{ fill: {ink} }} .faint {{ fill: {faint} }} .line {{ stroke: {line} }}
.bound {{ stroke: {ink} }} .met {{ fill: {met}; stroke: {met} }} .plain {{ fill: {plain}; stroke: {plain} }}
.missed {{ fill: {page}; stroke: {missed} }}
"""
LIGHT = {
    "page": "#ffffff",
    "ink": "#1f2328",
    "faint": "#59636e",
    "line": "#d1d9e0",
    "met": "#1a7f37",
    "missed": "#cf222e",
    "plain": "#0969da",
}
DARK = {
    "page": "#0d1117",
    "ink": "#f0f6fc",
    "faint": "#9198a1",
    "line": "#3d444d",
    "met": "#3fb950",
    "missed": "#f85149",
    "plain": "#4493f8",
}
_STYLE = _SHAPES + _COLOURS.format(**LIGHT) + f"@media (prefers-color-scheme: dark) {{\n{_COLOURS.format(**DARK)}}}\n"


@dataclass(frozen=True)
class Axis:
    """Where a value lies, in pixels; `ticks` are values worth a line. Logarithmic where the values differ widely."""

    least: float
    most: float
    logarithmic: bool
    ticks: tuple[float, ...]

    @classmethod
    def over(cls, values: Sequence[float]) -> Axis:
        """An axis on which all of `values` lie."""
        least, most = min(values), max(values)
        if least > 0 and most / least > 30:
            low, high = math.floor(math.log10(least)), math.ceil(math.log10(most))
            return cls(10.0**low, 10.0**high, logarithmic=True, ticks=tuple(10.0**n for n in range(low, high + 1)))
        least, most = min(least, 0.0), max(most, 0.0)
        if least == most:
            most = 1.0
        step = _round_step((most - least) / 5)
        first, last = math.floor(least / step), math.ceil(most / step)
        ticks = tuple(round(n * step, 10) for n in range(first, last + 1))
        return cls(ticks[0], ticks[-1], logarithmic=False, ticks=ticks)

    def x(self, value: float) -> float:
        """Pixels from the left of the picture."""
        if self.logarithmic:
            share = math.log(value / self.least) / math.log(self.most / self.least)
        else:
            share = (value - self.least) / (self.most - self.least)
        return round(MARGIN + LABELS + TRACK * share, 1)


def _round_step(step: float) -> float:
    """The next larger of 1, 2, 2.5 and 5 times a power of ten."""
    if step <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= step * 0.999)


def svg(title: str, subtitle: str, rows: Sequence[Row]) -> str:
    """The picture. Neighbours of one unit whose targets point the same way share an axis."""
    parts = [_text(MARGIN, 30, title, "title"), _text(MARGIN, 50, subtitle, "faint")]
    y = 62
    for panel_rows in _panels([row for row in rows if row.samples]):
        panel, y = _panel(panel_rows, y)
        parts += panel
    for row in rows:
        if row.missing:
            parts.append(_text(MARGIN, y + 20, f"{row.what}: not there: {row.missing}", "faint"))
            y += ROW
    legend = "dot: median · band: least to most · bar: target · filled: met · hollow: missed"
    parts.append(_text(MARGIN, y + 20, legend, "faint"))
    height = y + 36
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">\n<style>\n{_STYLE}</style>\n'
        f'<rect class="page" width="{WIDTH}" height="{height}" rx="8"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _panels(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows by the axis they share."""
    panels: list[list[Row]] = []
    axis: tuple[str, bool] | None = None
    for row in rows:
        # A row without a target stands beside its neighbour.
        own = (row.unit, row.target.at_most) if row.target else (row.unit, bool(axis and axis[1]))
        if own != axis:
            panels.append([])
            axis = own
        panels[-1].append(row)
    return panels


def _panel(rows: Sequence[Row], top: int) -> tuple[list[str], int]:
    """The rows on an axis of their own, and where the next panel begins."""
    bounds = [row.target.bound for row in rows if row.target]
    axis = Axis.over([*bounds, *(sample for row in rows for sample in row.samples)])
    bottom = top + 10 + len(rows) * ROW
    unit = rows[0].unit
    parts = []
    for tick in axis.ticks:
        x = axis.x(tick)
        parts.append(f'<line class="line" x1="{x}" x2="{x}" y1="{top + 6}" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 15, f"{tick:,g}" + (TIMES if unit == TIMES else ""), "faint middle"))
    if unit != TIMES:
        parts.append(_text(MARGIN + LABELS - 10, bottom + 15, unit, "faint end"))
    for place, row in enumerate(rows):
        parts += _line(row, axis, top + 24 + place * ROW)
    return parts, bottom + 26


def _line(row: Row, axis: Axis, y: int) -> list[str]:
    kind = {True: "met", False: "missed", None: "plain"}[row.met]
    left, right = axis.x(min(row.samples)), axis.x(max(row.samples))
    result = number(row.median) + (TIMES if row.unit == TIMES else f" {row.unit}")
    target = f" · {row.target.text(row.unit)}" if row.target else ""
    parts = [
        _text(MARGIN + LABELS - 10, y, row.what, "end"),
        f'<line class="spread {kind}" x1="{left}" x2="{right}" y1="{y - 4}" y2="{y - 4}"/>',
    ]
    if row.target:
        x = axis.x(row.target.bound)
        parts.append(f'<line class="bound" x1="{x}" x2="{x}" y1="{y - 13}" y2="{y + 5}"/>')
    parts.append(f'<circle class="{kind}" cx="{axis.x(row.median)}" cy="{y - 4}" r="5"/>')
    parts.append(_text(WIDTH - MARGIN - FIGURES + 12, y, result + target))
    return parts


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    of_kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x}" y="{y}"{of_kind}>{escape(text)}</text>'
