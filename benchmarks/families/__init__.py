"""What is measured, each family in a module of its own, in the order of the table.

A family has a `TITLE`, a `SUBTITLE` that says how it is measured, and `measure(run)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from benchmarks.families import (
    bucket,
    catalogue,
    delivery,
    memory,
    sized_uploads,
    sizes,
    start,
    uploads,
    workers,
)
from benchmarks.rounds import Outcome, Run


class Family(Protocol):
    """What these modules are."""

    TITLE: str
    SUBTITLE: str

    def measure(self, run: Run) -> Outcome:
        """Measure, and judge."""


FAMILIES: Mapping[str, Family] = {
    "uploads": uploads,
    "delivery": delivery,
    "sizes": sizes,
    "sized-uploads": sized_uploads,
    "memory": memory,
    "workers": workers,
    "bucket": bucket,
    "catalogue": catalogue,
    "start": start,
}

QUICK = ("uploads", "delivery", "sizes")
"""For a change in hand."""
