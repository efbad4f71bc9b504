"""The staged storage keeps the contract as long as nothing is staged, and fails exactly where it is told to."""

from __future__ import annotations

import asyncio

import pytest

from smart_assets.storage.errors import StorageFull, StorageUnavailable, WriteNotVerified
from tests.contracts.storage import PNG, StorageContract, image, read
from tests.staging import FaultyStorage

KEYS = ["public/1.png", "public/2.png", "public/3.png"]


class TestFaultyStorage(StorageContract):
    heavy = False

    @pytest.fixture
    def storage(self) -> FaultyStorage:
        return FaultyStorage()


async def _upload_all(storage: FaultyStorage) -> None:
    for key in KEYS:
        await storage.upload(key, image(), content_type=PNG)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", [1, 2, 3])
async def test_the_nth_write_fails_before_or_after_its_bytes_landed(at: int, *, after: bool) -> None:
    storage = FaultyStorage()
    storage.fail("put", at=at, after=after, error=StorageFull("no room"))
    with pytest.raises(StorageFull) as caught:
        await _upload_all(storage)
    assert (caught.value.storage, caught.value.key) == ("faulty", KEYS[at - 1])
    assert await storage.keys() == set(KEYS[: at if after else at - 1])
    assert storage.calls["put"] == at


async def test_clean_up_never_raises_and_answers_what_is_left(caplog: pytest.LogCaptureFixture) -> None:
    storage = FaultyStorage()
    await _upload_all(storage)
    storage.fail("delete", at=2)
    storage.fail("delete", at=3, error=RuntimeError("a bug"))
    assert await storage.cleanup_failed_assets(KEYS) == tuple(KEYS[1:])
    assert await storage.keys() == set(KEYS[1:])
    assert {record.__dict__["key"] for record in caplog.records} == set(KEYS[1:])
    storage.relent()
    assert await storage.cleanup_failed_assets(KEYS) == ()
    assert await storage.keys() == set()


async def test_a_write_that_came_short_is_noticed_and_removed() -> None:
    storage = FaultyStorage()
    storage.shorten(at=2)
    with pytest.raises(WriteNotVerified):
        await _upload_all(storage)
    assert await storage.keys() == {KEYS[0]}


async def test_an_error_amid_the_bytes_is_a_storage_error() -> None:
    storage = FaultyStorage()
    await _upload_all(storage)
    storage.fail("read", after=True)
    with pytest.raises(StorageUnavailable) as caught:
        await read(storage, KEYS[0])
    assert caught.value.key == KEYS[0]


async def test_a_bug_is_not_made_a_storage_error() -> None:
    storage = FaultyStorage()
    storage.fail("stat", error=ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await storage.stat(KEYS[0])


async def test_a_hanging_call_waits_until_it_is_released() -> None:
    storage = FaultyStorage()
    hang = storage.hang("put", at=1)
    task = asyncio.create_task(storage.upload(KEYS[0], image(), content_type=PNG))
    await hang.reached.wait()
    assert await storage.keys() == set()
    hang.release()
    await task
    assert await storage.keys() == {KEYS[0]}
