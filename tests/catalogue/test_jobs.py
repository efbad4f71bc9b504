"""A job is done by one process of all at a time."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial

import pytest

from smart_assets.catalogue.database import Database
from smart_assets.catalogue.repository import Repository


@pytest.fixture
async def two(url: str) -> AsyncIterator[tuple[Database, Database]]:
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


async def test_who_is_cancelled_in_the_middle_is_in_nobodys_way(two: tuple[Database, Database]) -> None:
    one, other = two
    begun = asyncio.Event()

    async def work() -> None:
        async with one.job("retention") as mine:
            assert mine
            begun.set()
            await asyncio.Event().wait()

    for _ in range(10):
        begun.clear()
        for moment in (0, 1):
            working = asyncio.create_task(work())
            if moment:
                await begun.wait()
            else:
                await asyncio.sleep(0.0005)
            working.cancel()
            await asyncio.wait({working})
        async with other.job("retention") as theirs:
            assert theirs


async def test_parts_of_a_job_that_are_put_down_at_once_are_all_there(two: tuple[Database, Database]) -> None:
    at = datetime(2026, 1, 31, tzinfo=UTC)
    parts = [f"part {number}" for number in range(10)]
    for _ in range(2):  # the first time there is no row yet
        notes = [partial(Repository.note_part, job="audit", part=part, at=at, outcome={"of": part}) for part in parts]
        await asyncio.gather(*(two[number % 2].write(note) for number, note in enumerate(notes)))
    run = await two[0].read(lambda catalogue: catalogue.last_run("audit"))
    assert run is not None
    assert run.outcome == {part: {"of": part} for part in parts}
