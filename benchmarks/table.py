"""What was measured, beside what it is to come to: series of samples, rows that judge them, and tables of rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import geometric_mean, median
from typing import Any

TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class Target:
    """What a row's median is to be: at least `bound`, or with `at_most` at most. `goal` is what would be better yet."""

    bound: float
    at_most: bool = False
    goal: float | None = None

    def is_met(self, value: float) -> bool:
        """Whether `value` is within the bound."""
        return value <= self.bound if self.at_most else value >= self.bound

    def text(self, unit: str) -> str:
        """For people."""
        text = f"{'≤' if self.at_most else '≥'} {quantity(self.bound, unit)}"
        return text if self.goal is None else f"{text} (goal {quantity(self.goal, unit)})"


@dataclass(frozen=True)
class Series:
    """One figure of one contestant, round by round."""

    name: str
    unit: str
    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle of its samples."""
        return median(self.samples)

    def to_json(self) -> dict[str, Any]:
        """Every sample, to four digits."""
        return {"name": self.name, "unit": self.unit, "samples": [_rounded(sample) for sample in self.samples]}


@dataclass(frozen=True)
class Row:
    """One line of a table: what the rounds say of `ours`, most often beside `theirs`, and what they are to say.

    `samples` are what is judged, one of each round, in `unit`. `missing` is why there are none.
    """

    what: str
    target: Target | None
    unit: str = TIMES
    samples: tuple[float, ...] = ()
    ours: str = ""
    theirs: str = ""
    missing: str = ""

    @property
    def median(self) -> float:
        """The figure that counts."""
        return median(self.samples)

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none, or nothing was measured."""
        return self.target.is_met(self.median) if self.target and self.samples else None

    @property
    def verdict(self) -> str:
        """In a word."""
        return {True: "met", False: "MISSED", None: ""}[self.met]

    @property
    def spread(self) -> str:
        """Least to most."""
        return f"{number(min(self.samples))}..{number(max(self.samples))}" if len(self.samples) > 1 else ""

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        row: dict[str, Any] = {"what": self.what, "unit": self.unit}
        if self.samples:
            row |= {"median": _rounded(self.median), "samples": [_rounded(sample) for sample in self.samples]}
            row |= {"least": _rounded(min(self.samples)), "most": _rounded(max(self.samples))}
            row |= {"ours": self.ours, "theirs": self.theirs}
        if self.target:
            row["target"] = {"bound": self.target.bound, "at_most": self.target.at_most, "goal": self.target.goal}
            row["met"] = self.met
        if self.missing:
            row["missing"] = self.missing
        return row

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Row:
        """What `to_json` made."""
        return cls(
            row["what"],
            Target(**row["target"]) if "target" in row else None,
            row["unit"],
            tuple(row.get("samples", ())),
            row.get("ours", ""),
            row.get("theirs", ""),
            row.get("missing", ""),
        )


def ratio(what: str, ours: Series, theirs: Series | str, target: Target | None) -> Row:
    """Ours divided by theirs, round by round. Where theirs is a sentence, it says why there is nothing to divide by."""
    if isinstance(theirs, str):
        return Row(what, target, missing=theirs)
    samples = tuple(mine / other for mine, other in zip(ours.samples, theirs.samples, strict=True))
    return Row(what, target, TIMES, samples, _figure(ours), _figure(theirs))


def speedup(what: str, ours: Series, theirs: Series, target: Target | None) -> Row:
    """How many times as long theirs takes, round by round."""
    samples = tuple(other / mine for mine, other in zip(ours.samples, theirs.samples, strict=True))
    return Row(what, target, TIMES, samples, _figure(ours), _figure(theirs))


def difference(what: str, ours: Series, theirs: Series, target: Target) -> Row:
    """Ours less theirs, round by round."""
    samples = tuple(mine - other for mine, other in zip(ours.samples, theirs.samples, strict=True))
    return Row(what, target, ours.unit, samples, _figure(ours), _figure(theirs))


def figure(what: str, ours: Series, target: Target | None) -> Row:
    """Ours alone, in its own unit."""
    return Row(what, target, ours.unit, ours.samples, _figure(ours))


def together(name: str, series: Sequence[Series]) -> Series:
    """The geometric mean of several series, round by round."""
    rounds = zip(*(each.samples for each in series), strict=True)
    return Series(name, series[0].unit, tuple(geometric_mean(samples) for samples in rounds))


def number(value: float) -> str:
    """About three digits; whole numbers from a hundred on."""
    places = next((places for least, places in ((100, 0), (10, 1), (1, 2), (0.01, 3)) if abs(value) >= least), 4)
    return f"{value:,.{places}f}"


def quantity(value: float, unit: str) -> str:
    """A number with its unit."""
    text = f"{value:,g}"
    return text + unit if unit == TIMES else f"{text} {unit}".rstrip()


def _figure(series: Series) -> str:
    return f"{number(series.median)} {series.unit}".rstrip()


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


HEADINGS = ("what", "ours", "theirs", "result", "least..most", "target", "")


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, under HEADINGS."""
    target = row.target.text(row.unit) if row.target else ""
    if row.missing:
        return row.what, "", "", "", "", target, f"not there: {row.missing}"
    result = number(row.median) + (row.unit if row.unit == TIMES else f" {row.unit}".rstrip())
    return row.what, row.ours, row.theirs, result, row.spread, target, row.verdict


def plain(rows: Iterable[Row]) -> str:
    """A table for a terminal."""
    lines = [HEADINGS, *map(cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS) - 1)]
    # What is no word stands right-aligned.
    return "\n".join(
        "  ".join(
            (text.ljust(width) if column in {0, 5} else text.rjust(width))
            for column, (text, width) in enumerate(zip(line, [*widths, 0], strict=True))
        ).rstrip()
        for line in lines
    )


def markdown(rows: Iterable[Row]) -> str:
    """A table for a document."""
    lines = [HEADINGS, ("---", "---:", "---:", "---:", "---:", "---", "---"), *map(cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
