"""Where the catalogue of a test is."""

from pathlib import Path

import pytest


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A new catalogue's, not made yet. The same tests run on PostgreSQL: `tests/live/test_postgresql.py`."""
    return f"sqlite:///{tmp_path}/catalogue.sqlite3"


@pytest.fixture
def empty_url(url: str) -> str:
    """One in which there is no schema yet."""
    return url
