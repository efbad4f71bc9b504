"""An upload with four sizes over HTTP: how much the service adds to its engine, and what a second core is worth.

The engine's own time is that of the same job (the sizes and a placeholder) in a process of its own, wall clock. thumbor
makes sizes when they are fetched: beside it stands the time of its four answers.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import mean

from benchmarks import peers, photographs
from benchmarks.families.sizes import SIZES
from benchmarks.machine import pinned
from benchmarks.peers import Engine
from benchmarks.rounds import MILLISECONDS, RATE, Case, Outcome, Run, start
from benchmarks.servers import Server, service
from benchmarks.table import Target, ratio

TITLE = "Upload of a 12 MP JPEG with four sizes, over HTTP"
SUBTITLE = "one request at a time on one core; then two at a time on two cores"

_OVERHEAD = Target(1.15, at_most=True)
_SECOND_CORE = Target(1.8)
_TIMES = 6


def measure(run: Run) -> Outcome:
    """Alone, beside the engine and thumbor; then two at a time."""
    files, folder = run.new_folder("files"), run.new_folder("thumbor")
    source = photographs.PHONE.write(files)
    with ExitStack() as stack:
        engine = stack.enter_context(peers.our_engine(on=run.cores.server))
        narrow = stack.enter_context(service(run.new_folder("one-core"), on=run.cores.server))
        wide = stack.enter_context(service(run.new_folder("two-cores"), on=run.cores.both))
        thumbor = start(stack, lambda: peers.thumbor(folder, files, on=run.cores.server))
        cases = [
            of_engine := _engine(engine, source, files),
            upload := _uploads("upload, one core", narrow, at_once=1, seen_from=run.cores.load),
            one := _uploads("one at a time, two cores", wide, at_once=1, seen_from=run.cores.both),
            two := _uploads("two at a time, two cores", wide, at_once=2, seen_from=run.cores.both),
        ]
        of_thumbor = thumbor if isinstance(thumbor, str) else _thumbor(thumbor, source)
        if isinstance(of_thumbor, Case):
            cases.append(of_thumbor)
        run.take_turns(cases, warm_up=cases)
    ours = upload.series(MILLISECONDS)
    theirs = of_thumbor if isinstance(of_thumbor, str) else of_thumbor.series(MILLISECONDS)
    rows = [
        ratio("one at a time : the engine alone", ours, of_engine.series(MILLISECONDS), _OVERHEAD),
        ratio("two at a time : one, on two cores", two.series(RATE), one.series(RATE), _SECOND_CORE),
        ratio("one at a time : thumbor's four answers", ours, theirs, None),
    ]
    return Outcome(rows, [series for case in cases for series in case.all_series()])


def _engine(engine: Engine, source: Path, folder: Path) -> Case:
    def measure() -> dict[str, float]:
        made = [engine.make(source, SIZES, "jpeg", folder, placeholder=True) for _ in range(_TIMES)]
        for file in [file for each in made for file in each["files"]]:
            Path(file).unlink()
        return {MILLISECONDS: mean(each["wall_ms"] for each in made)}

    return Case("the engine alone", measure)


def _uploads(name: str, server: Server, *, at_once: int, seen_from: int | frozenset[int]) -> Case:
    path = f"/api/v1/assets?sizes={','.join(map(str, SIZES))}"
    content, headers = photographs.PHONE.content, {"Content-Type": photographs.PHONE.content_type}

    def upload(_: int) -> None:
        server.post(path, content, headers)

    def measure() -> dict[str, float]:
        with pinned(seen_from), ThreadPoolExecutor(at_once) as callers:
            begin = time.perf_counter()
            list(callers.map(upload, range(_TIMES * at_once)))
            seconds = time.perf_counter() - begin
        return {RATE: _TIMES * at_once / seconds, MILLISECONDS: 1000 * seconds / _TIMES}

    return Case(name, measure, keeps=(server,))


def _thumbor(server: Server, source: Path) -> Case:
    def measure() -> dict[str, float]:
        begin = time.perf_counter()
        for width in SIZES:
            server.fetch(f"/unsafe/{width}x0/{source.name}")
        return {MILLISECONDS: 1000 * (time.perf_counter() - begin)}

    return Case("thumbor", measure)
