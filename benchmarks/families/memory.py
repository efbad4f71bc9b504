"""Peak memory of one upload above idle, over all processes of the service.

Idle is a service that has answered one small upload with sizes, so that its workers have started. Then the kernel is
told to forget each process's peak (`clear_refs`); what counts is the sum of the peaks (`VmHWM`) less what was resident
before. That misses nothing between two looks, and errs upwards: the processes need not peak together, and pages of
files that are mapped count as if they were taken.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from benchmarks import photographs
from benchmarks.families.sizes import SIZES
from benchmarks.photographs import Photograph
from benchmarks.rounds import Case, Outcome, Run
from benchmarks.servers import Server, service
from benchmarks.table import Target, figure

TITLE = "Peak memory of one upload"
SUBTITLE = "above idle, all processes of the service together"

MEGABYTES = "MB"
_WITH_SIZES = f"?sizes={','.join(map(str, SIZES))}"
_UPLOADS = (
    ("50 MB PNG, no sizes", photographs.HEAVY, "", Target(16, at_most=True)),
    ("100 MP baseline JPEG, four sizes", photographs.HUGE, _WITH_SIZES, Target(200, at_most=True)),
)


def measure(run: Run) -> Outcome:
    """Each upload, every time to a service just started."""
    folder = run.new_folder("services")
    cases = [_case(run, folder, name, photograph, query) for name, photograph, query, _ in _UPLOADS]
    run.take_turns(cases)
    rows = [
        figure(case.name, case.series(MEGABYTES), target)
        for case, (_, _, _, target) in zip(cases, _UPLOADS, strict=True)
    ]
    return Outcome(rows, [series for case in cases for series in case.all_series()])


def _case(run: Run, folder: Path, name: str, photograph: Photograph, query: str) -> Case:
    def measure() -> dict[str, float]:
        into = folder / str(len(list(folder.iterdir())))
        with service(into, on=run.cores.server) as server:
            _upload(server, photographs.SMALL, _WITH_SIZES)
            server.settle()
            idle = {pid: _forget_peak(pid) for pid in server.processes()}
            _upload(server, photograph, query)
            grown = sum(max(peak - idle.get(pid, 0), 0) for pid, peak in _peaks(server).items())
        return {MEGABYTES: grown / 1e6}

    return Case(name, measure)


def _upload(server: Server, photograph: Photograph, query: str) -> None:
    server.post(f"/api/v1/assets{query}", photograph.content, {"Content-Type": photograph.content_type})


def _forget_peak(pid: int) -> int:
    """Make what a process holds now its peak; the bytes."""
    with suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")
        return bytes_of(Path(f"/proc/{pid}/status").read_text(), "VmRSS")
    return 0


def _peaks(server: Server) -> dict[int, int]:
    """The most bytes each process of the server held."""
    found = {}
    for pid in server.processes():
        with suppress(OSError):
            found[pid] = bytes_of(Path(f"/proc/{pid}/status").read_text(), "VmHWM")
    return found


def bytes_of(status: str, name: str) -> int:
    """A figure of /proc/PID/status."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
