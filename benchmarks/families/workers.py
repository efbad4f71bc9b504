"""Two processes on two cores beside one on one: what a request costs when work is shared out.

The same 16 connections in both cases, over one catalogue and one data directory. The load needs a core too: beside two
processes it shares theirs, so rates say little here and CPU times count.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks import load, photographs
from benchmarks.load import Requests, form
from benchmarks.machine import pinned
from benchmarks.photographs import Photograph
from benchmarks.rounds import CPU, RATE, Case, Outcome, Run
from benchmarks.servers import Server, service
from benchmarks.table import Target, ratio

TITLE = "Two processes on two cores"
SUBTITLE = "CPU time of a request, beside one process on one core; 16 connections in both cases"

_CONNECTIONS = 16
_TARGET = Target(1.1, at_most=True)
_KINDS = ("upload of 21 KB", "upload of 0.8 MB", "delivery of 21 KB")


def measure(run: Run) -> Outcome:
    """Every kind of request, from one and from two."""
    scripts = run.new_folder("scripts")
    with ExitStack() as stack:
        one = stack.enter_context(service(run.new_folder("one"), on=run.cores.server))
        two = stack.enter_context(service(run.new_folder("two"), on=run.cores.both, workers=2))
        ones = [_case(scripts, f"{kind}, one", one, run.cores.load) for kind in _KINDS]
        twos = [_case(scripts, f"{kind}, two", two, run.cores.both) for kind in _KINDS]
        cases = [case for pair in zip(ones, twos, strict=True) for case in pair]
        run.take_turns(cases, warm_up=cases[:2])
    rows = [
        ratio(f"{kind}, CPU of two : one", after.series(CPU), before.series(CPU), _TARGET)
        for kind, before, after in zip(_KINDS, ones, twos, strict=True)
    ]
    return Outcome(rows, [series for case in cases for series in case.all_series()])


def _case(scripts: Path, kind: str, server: Server, seen_from: int | frozenset[int]) -> Case:
    requests = _requests(scripts, kind, server)

    def measure() -> dict[str, float]:
        before = server.cpu_seconds()
        with pinned(seen_from):
            found = load.run(server.url, requests, connections=_CONNECTIONS, seconds=1)
        return {CPU: 1000 * (server.cpu_seconds() - before) / found.requests, RATE: found.requests / found.seconds}

    return Case(kind, measure, keeps=[server] if kind.startswith("upload") else ())


def _requests(scripts: Path, kind: str, server: Server) -> Requests:
    small = photographs.SMALL
    if kind.startswith("delivery"):
        asset = server.post("/api/v1/assets", small.content, {"Content-Type": small.content_type})
        return Requests(scripts, [urlsplit(asset["url"]).path])
    photograph: Photograph = small if "21 KB" in kind else photographs.WEB
    body, headers = form("file", photograph.content, "photo.jpg", photograph.content_type)
    return Requests(scripts, ["/api/v1/assets"], headers={**server.headers, **headers}, body=body)
