"""A progress bar on standard error, for who looks at it; what is printed meanwhile does not end up in it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

import typer

from smart_assets.commands.service import complain, is_watched

if TYPE_CHECKING:
    from rich.progress import Progress


class Bar:
    """How much of `total` bytes was sent, as a context; where standard error is no terminal, nothing is shown."""

    def __init__(self, total: int | None) -> None:
        """`total` None: nobody knows."""
        self._progress = _progress(total) if sys.stderr.isatty() else None
        self._sent: dict[str, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def sent(self, file: str, count: int) -> None:
        """So many bytes of a file have been sent; fewer than before where it had to begin again. From any thread."""
        if self._progress is None:
            return
        with self._lock:
            more = count - self._sent.get(file, 0)
            self._sent[file] = count
        self._progress.advance(self._progress.task_ids[0], more)

    def print(self, line: str) -> None:
        """A line on standard output."""
        if is_watched():
            with self._out_of_the_way():
                typer.echo(line)
        else:
            typer.echo(line)

    def complain(self, sentence: str) -> None:
        """A sentence on standard error."""
        with self._out_of_the_way():
            complain(sentence)

    @contextmanager
    def _out_of_the_way(self) -> Iterator[None]:
        if self._progress is None:
            yield
            return
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.start()


def _progress(total: int | None) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    progress = Progress(
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        # Else what goes to standard output would come out on standard error.
        redirect_stdout=False,
        redirect_stderr=False,
    )
    progress.add_task("", total=total)
    return progress
