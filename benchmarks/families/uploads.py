"""Uploads to the local disk, no sizes: ours as a form and as raw bytes, beside a naive endpoint and filestore.

Ours are authenticated, hashed, sniffed, walked through, synced to disk and catalogued before they are answered; the
others write the file. Eight connections.

With small files there is one contestant more: the least code that does what an upload promises. What lies between it
and the naive endpoint is the price of the promises on this machine and disk; between it and ours, that of all else.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from benchmarks import peers, photographs
from benchmarks.load import Requests, form
from benchmarks.photographs import Photograph
from benchmarks.rounds import RATE, Case, Outcome, Run, start
from benchmarks.servers import Server, service
from benchmarks.table import Row, Series, Target, ratio

TITLE = "Uploads to local disk, no sizes"
SUBTITLE = "requests a second over 8 connections, server on one core, load on another"

_CONNECTIONS = 8
_IN_MEMORY = 1024 * 1024
_FILESTORE = Target(1.1)
_RAW = Target(1.05)


def _naive_target(photograph: Photograph) -> Target:
    if photograph is photographs.SMALL:
        return Target(0.35, goal=0.5)
    return Target(0.9, goal=1.0) if photograph.name.startswith("0.8") else Target(1.0)


def measure(run: Run) -> Outcome:
    """Every file, every way."""
    with ExitStack() as stack:
        ours = stack.enter_context(service(run.new_folder("ours"), on=run.cores.server))
        naive = stack.enter_context(peers.naive(run.new_folder("naive"), on=run.cores.server))
        least = None if run.quick else stack.enter_context(peers.least(run.new_folder("least"), on=run.cores.server))
        folder = run.new_folder("filestore")
        filestore = "" if run.quick else start(stack, lambda: peers.filestore(folder, on=run.cores.server))
        scripts = run.new_folder("scripts")
        contests = [
            _Contest(run, scripts, photograph, ours, naive, least, filestore)
            for photograph in ((photographs.SMALL, photographs.WEB) if run.quick else photographs.UPLOADS)
        ]
        cases = [case for contest in contests for case in contest.cases]
        run.take_turns(cases, warm_up=contests[0].cases)
    rows = [row for contest in contests for row in contest.rows()]
    return Outcome(rows, [series for case in cases for series in case.all_series()])


class _Contest:
    """One file, sent to everybody. In a quick run, ours as a form and naive only."""

    def __init__(
        self,
        run: Run,
        folder: Path,
        photograph: Photograph,
        ours: Server,
        naive: Server,
        least: Server | None,
        filestore: Server | str,
    ) -> None:
        self._photograph, self._quick = photograph, run.quick
        content, of_type, name = photograph.content, photograph.content_type, photograph.name
        body, headers = form("file", content, f"photo.{photograph.extension}", of_type)
        to_ours = Requests(folder, ["/api/v1/assets"], headers={**ours.headers, **headers}, body=body)
        as_raw = Requests(folder, ["/api/v1/assets"], headers={**ours.headers, "Content-Type": of_type}, body=content)
        to_others = Requests(folder, ["/upload"], headers=headers, body=body)
        self._form = run.under_load(f"ours, form, {name}", ours, to_ours, _CONNECTIONS)
        self._naive = run.under_load(f"naive, {name}", naive, to_others, _CONNECTIONS)
        self._raw = run.under_load(f"ours, raw, {name}", ours, as_raw, _CONNECTIONS)
        # It keeps the whole file in memory: for large ones that would be no promise kept.
        self._least = (
            run.under_load(f"least code, {name}", least, to_others, _CONNECTIONS)
            if least and len(content) < _IN_MEMORY
            else None
        )
        self._filestore = (
            filestore
            if isinstance(filestore, str)
            else run.under_load(f"filestore, {name}", filestore, to_others, _CONNECTIONS)
        )

    @property
    def cases(self) -> list[Case]:
        """Whoever is there."""
        if self._quick:
            return [self._naive, self._form]
        others = [] if isinstance(self._filestore, str) else [self._filestore]
        return [self._naive, self._form, self._raw, *([self._least] if self._least else []), *others]

    def rows(self) -> list[Row]:
        """Its lines of the table."""
        name, ours = self._photograph.name, self._form.series(RATE)
        rows = [ratio(f"{name}, form : naive", ours, self._naive.series(RATE), _naive_target(self._photograph))]
        if self._quick:
            return rows
        if self._least is not None:
            rows.append(ratio(f"{name}, form : least code", ours, self._least.series(RATE), None))
            rows.append(ratio(f"{name}, least code : naive", self._least.series(RATE), self._naive.series(RATE), None))
        small = self._photograph is photographs.SMALL
        theirs: Series | str = self._filestore if isinstance(self._filestore, str) else self._filestore.series(RATE)
        rows.append(ratio(f"{name}, form : filestore", ours, theirs, None if small else _FILESTORE))
        rows.append(ratio(f"{name}, raw : our form", self._raw.series(RATE), ours, None if small else _RAW))
        return rows
