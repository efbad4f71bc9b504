"""What all families share: a run, cases that take turns in its rounds, and what came of a family."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import load
from benchmarks.load import NothingAnswered, Requests
from benchmarks.machine import Cores, NotThere, pinned
from benchmarks.servers import Server
from benchmarks.table import Row, Series

RATE = "/s"
CPU = "ms CPU"
MILLISECONDS = "ms"
BUSY = "of the load's core"

_PATIENCE = 3


@dataclass(frozen=True)
class Outcome:
    """What a family measured."""

    rows: Sequence[Row]
    series: Sequence[Series] = ()

    def to_json(self) -> dict[str, Any]:
        """Rows with what is judged, series with every sample behind them."""
        return {"rows": [row.to_json() for row in self.rows], "series": [each.to_json() for each in self.series]}


@dataclass
class Case:
    """One contestant at one task. `measure` does it once and says what it took, by unit.

    `keeps` are the servers that keep on their disk what it sends them.
    """

    name: str
    measure: Callable[[], Mapping[str, float]]
    keeps: Sequence[Server] = ()
    samples: dict[str, list[float]] = field(default_factory=dict)

    def rehearse(self) -> None:
        """Measure, and forget it."""
        self.measure()

    def take(self) -> None:
        """Measure, and keep it."""
        for unit, value in self.measure().items():
            self.samples.setdefault(unit, []).append(value)

    def series(self, unit: str) -> Series:
        """What came of it so far."""
        return Series(self.name, unit, tuple(self.samples[unit]))

    def all_series(self) -> list[Series]:
        """In every unit."""
        return [self.series(unit) for unit in self.samples]


@dataclass
class Run:
    """One run of the program: its cores, how often it measures, what just now, and where that keeps its files."""

    cores: Cores
    rounds: int
    quick: bool = False
    family: str = ""
    folder: Path = Path()
    _started: float = field(default_factory=time.monotonic)
    _said: str = ""

    def say(self, text: str) -> None:
        """Where it is: on a terminal one line that changes, elsewhere a line for what is new."""
        line = f"{time.monotonic() - self._started:4.0f} s  {self.family}: {text}"
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{line[:100]:<100}")
        elif text.split(":")[0] != self._said:
            sys.stderr.write(line.split(":")[0] + ": " + text.split(":")[0] + "\n")
        self._said = text.split(":")[0]
        sys.stderr.flush()

    def done(self) -> None:
        """Leave the terminal's line."""
        if sys.stderr.isatty():
            sys.stderr.write("\r" + " " * 100 + "\r")

    def new_folder(self, name: str) -> Path:
        """A folder of the family's own."""
        folder = self.folder / name
        folder.mkdir()
        return folder

    def take_turns(self, cases: Sequence[Case], *, warm_up: Sequence[Case] = (), rounds: int | None = None) -> None:
        """Let each case measure once a round, every other round in reverse. `warm_up` run before, and do not count.

        A machine whose speed drifts drifts for neighbours alike, and nobody always comes after the same one.
        """
        with pinned(self.cores.load):
            self._round("warming up", warm_up, Case.rehearse)
            rounds = rounds or self.rounds
            for number in range(rounds):
                turns = cases if number % 2 == 0 else cases[::-1]
                self._round(f"round {number + 1} of {rounds}", turns, Case.take)

    def _round(self, name: str, cases: Sequence[Case], turn: Callable[[Case], None]) -> None:
        """Each case once."""
        for case in cases:
            self.say(f"{name}: {case.name}")
            begin = time.time()
            self._patiently(partial(turn, case))
            # What was uploaded goes at once: the next one finds as much free memory as the last, and what some leave
            # for the disk to write later is not waited for by the fsync of others.
            for server in case.keeps:
                server.settle()
                server.forget(begin)
            if case.keeps:
                os.sync()

    def _patiently(self, work: Callable[[], object]) -> None:
        """Do it; a few times, where the machine stood still meanwhile."""
        for _ in range(_PATIENCE):
            try:
                work()
            except NothingAnswered:
                sys.stderr.write("nothing was answered for as long as it was measured: once more\n")
            else:
                return
        work()

    def under_load(self, name: str, server: Server, requests: Requests, connections: int, seconds: int = 1) -> Case:
        """Requests a server answers in a second, and the CPU time each takes there."""

        def measure() -> dict[str, float]:
            before = server.cpu_seconds()
            found = load.run(server.url, requests, connections=connections, seconds=seconds)
            cpu = server.cpu_seconds() - before
            return {RATE: found.requests / found.seconds, CPU: 1000 * cpu / found.requests, BUSY: found.busy}

        return Case(name, measure, keeps=(server,) if requests.uploads else ())


def start(stack: ExitStack, server: Callable[[], AbstractContextManager[Server]]) -> Server | str:
    """The server, for as long as the stack; or the sentence that says what is not there."""
    try:
        return stack.enter_context(server())
    except NotThere as error:
        return str(error)
