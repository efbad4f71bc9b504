"""What was tried of each kind, and what came of it: told at the end of a run, and in CI's summary.

A test says `with tried("truncated images"):` around each input; an error that comes out of it is a failure.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

_PROPERTY: Final = "hostile inputs"
_inputs: Counter[str] = Counter()
_failures: Counter[str] = Counter()


@contextmanager
def tried(kind: str, count: int = 1) -> Iterator[None]:
    """Count the inputs of a kind, and those that fail."""
    _inputs[kind] += count
    try:
        yield
    except BaseException:
        _failures[kind] += 1
        raise


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Summary(), "hostile-summary")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    # What a test has tried travels with its report, from the processes of pytest-xdist too.
    _inputs.clear()
    _failures.clear()
    yield
    if _inputs:
        item.user_properties.append((_PROPERTY, [dict(_inputs), dict(_failures)]))


class _Summary:
    """Sums up what the reports bring."""

    def __init__(self) -> None:
        self._inputs: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        said: Any = dict(report.user_properties).get(_PROPERTY)
        if said is not None and report.when == "call":
            self._inputs.update(said[0])
            self._failures.update(said[1])

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._inputs:
            return
        lines = [f"- {kind}: inputs tried {count}, failures {self._failures[kind]}" for kind, count in self]
        lines.append(f"- all: inputs tried {self._inputs.total()}, failures {self._failures.total()}")
        text = "\n".join(["## Hostile input", *lines, ""])
        terminalreporter.section("hostile input")
        terminalreporter.write(text)
        if step_summary := os.environ.get("GITHUB_STEP_SUMMARY"):
            with Path(step_summary).open("a") as file:
                file.write(text)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(sorted(self._inputs.items()))
