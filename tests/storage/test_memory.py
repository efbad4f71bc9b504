"""Objects in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from smart_assets.storage.errors import StorageFull
from smart_assets.storage.memory import MemoryStorage
from tests.contracts.storage import PNG, StorageContract, image


class TestMemoryStorage(StorageContract):
    @pytest.fixture
    async def storage(self) -> AsyncIterator[MemoryStorage]:
        storage = MemoryStorage("memory", 64 * 1024 * 1024)
        yield storage
        await storage.close()


async def test_past_its_cap_it_is_full_and_says_how_much_it_holds() -> None:
    size = len(image())
    storage = MemoryStorage("memory", 2 * size)
    await storage.upload("public/1.png", image(1), content_type=PNG)
    await storage.upload("public/2.png", image(2), content_type=PNG)
    with pytest.raises(StorageFull, match=f"at most {2 * size} bytes"):
        await storage.upload("public/3.png", image(3), content_type=PNG)
    await storage.delete("public/1.png")
    await storage.upload("public/3.png", image(3), content_type=PNG)
    assert not await storage.exists("public/1.png")


async def test_a_refused_write_takes_no_room() -> None:
    storage = MemoryStorage("memory", 2 * len(image()))
    await storage.upload("public/1.png", image(1), content_type=PNG)
    for _again in range(5):
        with pytest.raises(Exception, match="taken"):
            await storage.upload("public/1.png", image(2), content_type=PNG)
    await storage.upload("public/2.png", image(2), content_type=PNG)


async def test_it_remembers_the_content_type() -> None:
    storage = MemoryStorage("memory", 1024 * 1024)
    await storage.upload("public/1.png", image(), content_type=PNG)
    assert (await storage.stat("public/1.png")).content_type == PNG


async def test_it_declares_that_only_this_process_knows_it() -> None:
    assert MemoryStorage.capabilities.one_process
    storage = MemoryStorage("memory", 1024 * 1024)
    await storage.upload("public/1.png", image(), content_type=PNG)
    await storage.close()
    assert not await storage.exists("public/1.png")
