"""Progress on standard error, while a command works whose report goes to standard output."""

from __future__ import annotations

from rich.console import Console
from rich.progress import Progress, ProgressColumn


def on_stderr(*columns: ProgressColumn, shown: bool = True) -> Progress:
    """A context; nothing is shown where standard error is no terminal."""
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal))
