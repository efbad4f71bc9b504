"""Half a minute of the load that `make torture` keeps up for ten."""

from __future__ import annotations

import os
from pathlib import Path

from tests.faults.process import Usage
from tests.load import CONNECTIONS, Report, load

SECONDS = 24


def say(report: Report) -> None:
    """Print it, and where this is CI, have it in its summary."""
    print(report.summary())
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(f"Load: {report.summary()}\n\n")


async def test_under_load_nothing_fails_nothing_leaks_and_catalogue_and_disk_agree(tmp_path: Path) -> None:
    report = await load(tmp_path, seconds=SECONDS)
    say(report)
    assert report.wrong == []
    assert report.failures == 0
    assert report.grown() == []
    assert report.exit_code == 0
    assert report.connections == CONNECTIONS
    assert report.requests.total() > CONNECTIONS * 10
    assert len(report.requests) >= 10, "of every kind"


def test_growth_is_told_by_quarters() -> None:
    steady = Usage(200_000_000, 100, 40)
    report = Report(samples=[Usage(1, 1, 1)] * 20 + [steady] * 20)
    assert report.grown() == []
    report.samples[30:] = [Usage(200_000_000, 150, 40)] * 10
    assert report.grown() == ["files: 100 in the third quarter, 150 in the fourth"]
