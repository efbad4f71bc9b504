"""What the base class promises for every backend, over one that misbehaves as a test says."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import timedelta

import pytest

from smart_assets.storage.base import StorageBackend, StoredObject, check_key
from smart_assets.storage.errors import ObjectExists, StorageUnavailable
from smart_assets.storage.memory import MemoryStorage
from smart_assets.threads import Threads
from smart_assets.visibility import Visibility
from tests.contracts.storage import PNG, image, listed
from tests.staging import DistantStorage, FaultyStorage

KEY = "private/a.png"


async def land(storage: FaultyStorage) -> None:
    """The write whose answer was lost arrives after all."""
    await storage.inner.upload(KEY, image(), content_type=PNG)


async def test_what_may_still_land_is_left_over_until_it_cannot_any_more() -> None:
    storage = FaultyStorage()
    storage.late_write_seconds = 0.2
    storage.fail("put", at=1)
    with pytest.raises(StorageUnavailable):
        await storage.upload(KEY, image(), content_type=PNG)
    assert await storage.cleanup_failed_assets([KEY]) == (KEY,), "nothing is there, but it may come"
    await land(storage)
    left: tuple[str, ...] = (KEY,)
    while left:
        await asyncio.sleep(0.02)
        left = await storage.cleanup_failed_assets([KEY])
    assert await storage.keys() == set()


async def test_a_write_that_was_refused_cannot_land() -> None:
    storage = FaultyStorage()
    storage.late_write_seconds = 3600
    await storage.upload(KEY, image(), content_type=PNG)
    with pytest.raises(ObjectExists):
        await storage.upload(KEY, image(), content_type=PNG)
    assert await storage.cleanup_failed_assets([KEY]) == ()


async def test_a_key_that_was_written_in_the_end_is_free_to_be_removed() -> None:
    storage = FaultyStorage()
    storage.late_write_seconds = 3600
    storage.fail("put", at=1)
    with pytest.raises(StorageUnavailable):
        await storage.upload(KEY, image(), content_type=PNG)
    await storage.upload(KEY, image(), content_type=PNG)
    assert await storage.delete(KEY) is True
    assert await listed(storage, "") == {}


class HangingStorage(MemoryStorage):
    """Its server answers nothing until it is released; it has one thread for all calls."""

    def __init__(self) -> None:
        super().__init__("hanging", 1024)
        self.called = threading.Event()
        self.released = threading.Event()
        self.calling = Threads("hanging", limit=1, wait_seconds=0.1)

    async def _stat(self, key: str) -> StoredObject:
        await self.calling.run(self._wait)
        return await super()._stat(key)

    def _wait(self) -> None:
        self.called.set()
        self.released.wait()


async def test_a_call_that_waits_too_long_for_its_turn_is_unavailable_and_never_made() -> None:
    storage: StorageBackend = HangingStorage()
    assert isinstance(storage, HangingStorage)
    first = asyncio.create_task(storage.exists(KEY))
    while not storage.called.is_set():
        await asyncio.sleep(0.01)
    with pytest.raises(StorageUnavailable, match="busy") as caught:
        await storage.exists(KEY)
    assert caught.value.retry_after
    storage.released.set()
    assert await first is False
    assert await storage.exists(KEY) is False, "it works again"
    storage.calling.close()


class AgedStorage(DistantStorage):
    """One whose clock says that everything in it was written a while ago."""

    age = timedelta()

    async def _list(self, prefix: str) -> AsyncGenerator[StoredObject, None]:
        async for record in super()._list(prefix):
            assert record.modified is not None
            yield replace(record, modified=record.modified - self.age)


async def test_what_a_check_left_that_was_killed_is_removed_by_a_later_one_and_nothing_else() -> None:
    storage = AgedStorage()
    left = {check_key(visibility) for visibility in Visibility}
    for key in {*left, KEY}:
        await storage.upload(key, image(), content_type=PNG)
    await storage.check()
    assert set(await listed(storage, "")) == {*left, KEY}, "another process may be checking just now"
    storage.age = timedelta(hours=2)
    await storage.check()
    assert set(await listed(storage, "")) == {KEY}
