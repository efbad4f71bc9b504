"""A job is done by one process of all at a time."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from smart_assets.catalogue.database import Database


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[tuple[Database, Database]]:
    url = f"sqlite:///{tmp_path}/catalogue.sqlite3"
    databases = Database.open(url), Database.open(url)
    yield databases
    for database in databases:
        await database.close()


async def test_one_at_a_time_and_the_next_when_it_has_ended(two: tuple[Database, Database]) -> None:
    one, other = two
    async with one.job("retention") as mine:
        assert mine
        async with other.job("retention") as theirs, one.job("retention") as again:
            assert (theirs, again) == (False, False)
    async with other.job("retention") as theirs:
        assert theirs


async def test_one_job_is_in_no_other_ones_way(two: tuple[Database, Database]) -> None:
    one, other = two
    async with one.job("retention") as mine, other.job("migration") as theirs:
        assert (mine, theirs) == (True, True)
