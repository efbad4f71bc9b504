"""What the contract said of each backend, at the end of a run: `pytest --contract-summary`.

A table of sentences, the sentences each backend declares absent, and the capabilities as they were measured: a
capability is there when every sentence marked with it held. Printed, appended to `$GITHUB_STEP_SUMMARY` where that is
set, and written to a file with `--contract-report`; Markdown each time.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import pytest

from tests.contracts.storage import ABSENT, INAPPLICABLE, StorageContract

Outcome = Literal["failed", "skipped", "passed", "absent", "inapplicable"]

# Of a sentence said of several examples, the first of these that any of them came to.
_WEIGHTS: Final[tuple[Outcome, ...]] = ("failed", "skipped", "passed", "absent", "inapplicable")
_COLUMNS: Final[dict[Outcome, str]] = {
    "passed": "passed",
    "absent": "unsupported by declaration",
    "skipped": "skipped for another reason",
    "failed": "failed",
    "inapplicable": "does not apply",
}
_PROPERTY: Final = "contract"
_LEGEND: Final = (
    "\nyes: every sentence of it held; NO: one did not; -: declared absent; ?: could not be told; nothing: not asked"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("storage contract")
    group.addoption("--contract-summary", action="store_true", help="say at the end what each storage can")
    group.addoption("--contract-report", type=Path, metavar="FILE", help="write the same to a file, as Markdown")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "capability(name): a sentence that holds where a storage has that capability")
    is_worker = hasattr(config, "workerinput")
    if not is_worker and (config.getoption("--contract-summary") or config.getoption("--contract-report")):
        config.pluginmanager.register(Summary(config), "contract-summary")


def pytest_itemcollected(item: pytest.Item) -> None:
    # Properties travel with the report, from the processes of pytest-xdist too.
    if isinstance(item, pytest.Function) and item.cls is not None and issubclass(item.cls, StorageContract):
        capabilities = [mark.args[0] for mark in item.iter_markers("capability")]
        item.user_properties.append((_PROPERTY, [item.cls.__name__.removeprefix("Test"), capabilities]))


class Summary:
    """What came of the contract's sentences, by backend."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._outcomes: defaultdict[str, dict[str, Outcome]] = defaultdict(dict)
        self._capabilities: defaultdict[str, set[str]] = defaultdict(set)
        self._reasons: dict[tuple[str, str], str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        said: Any = dict(report.user_properties).get(_PROPERTY)
        outcome = _outcome(report)
        if said is None or outcome is None:
            return
        backend, capabilities = said
        sentence = report.nodeid.rpartition("::")[2].partition("[")[0]
        if outcome == "absent":
            self._reasons[backend, sentence] = _reason(report).partition(ABSENT)[2].partition(":")[0]
        before = self._outcomes[backend].get(sentence, outcome)
        self._outcomes[backend][sentence] = min(before, outcome, key=_WEIGHTS.index)
        for capability in capabilities:
            self._capabilities[capability].add(sentence)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._outcomes:
            return
        text = self._text()
        if self._config.getoption("--contract-summary"):
            terminalreporter.section("storage contract")
            terminalreporter.write(text)
            if step_summary := os.environ.get("GITHUB_STEP_SUMMARY"):
                with Path(step_summary).open("a") as file:
                    file.write(text)
        if report := self._config.getoption("--contract-report"):
            report.write_text(text)

    def _text(self) -> str:
        parts = ["## Sentences of the storage contract", *self._sentences(), ""]
        parts += ["## Capabilities, as measured", *self._measured(), _LEGEND, ""]
        parts += ["## Unsupported by declaration", *self._absent(), ""]
        return "\n".join(parts)

    def _sentences(self) -> Iterable[str]:
        rows = []
        for backend, outcomes in sorted(self._outcomes.items()):
            counts = Counter(outcomes.values())
            rows.append([backend, *(str(counts[outcome]) for outcome in _COLUMNS)])
        return _table(["backend", *_COLUMNS.values()], rows)

    def _measured(self) -> Iterable[str]:
        backends = sorted(self._outcomes)
        rows = [
            [name, *(self._has(backend, sentences) for backend in backends)]
            for name, sentences in sorted(self._capabilities.items())
        ]
        return _table(["capability", *backends], rows)

    def _has(self, backend: str, sentences: set[str]) -> str:
        outcomes = self._outcomes[backend]
        found = {outcomes[sentence] for sentence in sentences & outcomes.keys()} - {"inapplicable"}
        if "failed" in found:
            return "NO"
        if "skipped" in found or not found:
            return "?" if found else ""
        return "yes" if "passed" in found else "-"

    def _absent(self) -> Iterable[str]:
        for backend, outcomes in sorted(self._outcomes.items()):
            for sentence in sorted(name for name, outcome in outcomes.items() if outcome == "absent"):
                words = sentence.removeprefix("test_").replace("_", " ")
                yield f"- {backend}, for want of {self._reasons[backend, sentence]}: {words}"


def _outcome(report: pytest.TestReport) -> Outcome | None:
    """What a sentence came to; None where this report does not say, being of what goes before or after."""
    if report.failed:
        return "failed"
    if report.skipped:
        reason = _reason(report)
        if ABSENT in reason:
            return "absent"
        return "inapplicable" if INAPPLICABLE in reason else "skipped"
    return "passed" if report.when == "call" else None


def _reason(report: pytest.TestReport) -> str:
    return report.longrepr[2] if isinstance(report.longrepr, tuple) else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    """In Markdown, the columns padded so that it can be read as it is."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    lines.insert(1, ["-" * width for width in widths])
    for line in lines:
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
