"""From the start of the process to its first answer of 200 at `/health/ready`, on one core.

The first start makes the data directory, the catalogue and the signing key; the next ones find them.
"""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.rounds import Case, Outcome, Run
from benchmarks.servers import service
from benchmarks.table import Target, figure

TITLE = "Start to first answer"
SUBTITLE = "process start until /health/ready answers 200, on one core"

SECONDS = "s"
_TARGET = Target(1.5, at_most=True)


def measure(run: Run) -> Outcome:
    """On a folder that is new, and on one that has been used."""
    folder = run.new_folder("services")
    used = folder / "used"
    first = Case("first start", lambda: _start(run, folder / str(len(list(folder.iterdir())))))
    again = Case("later start", lambda: _start(run, used))
    run.take_turns([first, again], warm_up=[again])
    cases = (first, again)
    return Outcome([figure(case.name, case.series(SECONDS), _TARGET) for case in cases], [])


def _start(run: Run, folder: Path) -> dict[str, float]:
    begin = time.perf_counter()
    with service(folder, on=run.cores.server):
        return {SECONDS: time.perf_counter() - begin}
