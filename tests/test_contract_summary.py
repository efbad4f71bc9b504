"""The summary says of each backend what came of the contract, and what that shows of its capabilities."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

BACKENDS = """
import pytest

from smart_assets.storage.direct import DirectDownloadStorage
from smart_assets.storage.memory import MemoryStorage
from tests.contracts.storage import StorageContract


class Overwriting(MemoryStorage):
    async def _put(self, key, source, **more):
        await self._delete(key)
        return await super()._put(key, source, **more)


class TestWorking(StorageContract):
    @pytest.fixture
    def storage(self):
        return MemoryStorage("memory", 64_000_000)


class TestOverwriting(StorageContract):
    @pytest.fixture
    def storage(self):
        return Overwriting("memory", 64_000_000)


class TestKeepingNothing(StorageContract):
    @pytest.fixture
    def storage(self):
        return DirectDownloadStorage("direct")


class TestElsewhere(StorageContract):
    @pytest.fixture
    def storage(self):
        pytest.skip("there is no server")
"""


SENTENCES = "taken_key or reading_can_stop_early or what_needs_kept_objects"


@pytest.fixture
def backends(tmp_path: Path) -> Path:
    (tmp_path / "test_backends.py").write_text(BACKENDS)
    return tmp_path


def run(backends: Path, *options: str) -> str:
    """What is printed where these sentences of the contract are said of these backends."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.contracts.summary"]
    command += [
        "-c",
        str(ROOT / "pyproject.toml"),
        "--rootdir",
        str(backends),
        "-k",
        SENTENCES,
        *options,
        "test_backends.py",
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "GITHUB_STEP_SUMMARY": str(backends / "step.md"),
        "COLUMNS": "200",
    }
    return subprocess.run(command, cwd=backends, env=environment, capture_output=True, text=True, timeout=300).stdout


def rows(text: str) -> dict[str, list[str]]:
    """The tables' rows by their first cell."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {first: others for first, *others in lines}


@pytest.mark.parametrize("processes", ["0", "2"])
def test_each_backend_has_its_row_and_each_capability_its_verdict(backends: Path, processes: str) -> None:
    printed = run(backends, "--contract-summary", "-n", processes)
    table = rows(printed)
    # passed, unsupported by declaration, skipped for another reason, failed, does not apply
    assert table["Working"] == ["2", "0", "0", "0", "1"]
    assert table["Overwriting"] == ["1", "0", "0", "1", "1"]
    assert table["KeepingNothing"] == ["1", "2", "0", "0", "0"]
    assert table["Elsewhere"] == ["0", "0", "3", "0", "0"]
    verdicts = dict(zip(table["capability"], table["create_if_absent"], strict=True))
    assert verdicts == {"Working": "yes", "Overwriting": "NO", "KeepingNothing": "-", "Elsewhere": "?"}
    assert "- KeepingNothing, for want of persistent: reading can stop early" in printed
    step = (backends / "step.md").read_text()
    assert step in printed
    assert rows(step) == table


def test_it_is_written_to_a_file_and_says_nothing_unasked(backends: Path) -> None:
    printed = run(backends, "--contract-report", str(backends / "report.md"))
    assert "|" not in printed
    assert not (backends / "step.md").exists()
    assert rows((backends / "report.md").read_text()).keys() > {"Working", "create_if_absent"}
