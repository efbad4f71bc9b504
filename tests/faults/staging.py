"""Storages that fail as those behind a network do: late, in threads, and as often as not."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from smart_assets.storage.base import Source, StoredObject
from smart_assets.storage.errors import ObjectExists, StorageError, StorageUnavailable
from smart_assets.threads import Threads
from tests.conftest import Service
from tests.faults.process import PATIENCE
from tests.staging import DistantStorage, FaultyStorage


async def eventually(condition: Callable[[], object], *, of: str = "it") -> None:
    """Wait until `condition` holds; an error where it never does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{of} never came about"
        await asyncio.sleep(0.01)


async def becomes_empty(service: Service, storage: FaultyStorage) -> None:
    """Wait until there is no row, no object and no temporary file."""
    deadline = time.monotonic() + PATIENCE
    while not (await service.leaves_nothing() and await storage.keys() == set()):
        assert time.monotonic() < deadline, (await service.rows(), await storage.keys(), service.temporary_files())
        await asyncio.sleep(0.01)


class LateStorage(FaultyStorage):
    """Over a network: its calls run in `limit` threads, as those of vendors' SDKs do.

    While `silent`, what is written gets no answer: `time_out` ends the wait, and the bytes arrive when the test says
    so with `land`.
    """

    late_write_seconds = 3600

    def __init__(self, name: str = "faulty", *, limit: int = 16, wait_seconds: float | None = None) -> None:
        self._distant = DistantStorage(name)
        super().__init__(name, self._distant)
        self._threads = Threads(f"storage-{name}", limit, wait_seconds=wait_seconds)
        self._timed_out = threading.Event()
        self._under_way: dict[str, bytes] = {}
        self.silent = False

    @property
    def waiting(self) -> int:
        """Writes that wait for an answer, or did."""
        return len(self._under_way)

    @property
    def there(self) -> set[str]:
        """The keys of what has arrived and was not removed."""
        return set(self._distant._objects)

    def time_out(self) -> None:
        """Let everybody who waits for an answer give up."""
        self._timed_out.set()

    async def land(self) -> set[str]:
        """Let everything that is under way arrive; the keys."""
        landed, self._under_way = self._under_way, {}
        for key, data in landed.items():
            with suppress(ObjectExists):
                await self.inner._put(key, data, content_type="image/jpeg", give_away=False)
        return set(landed)

    async def close(self) -> None:
        self._threads.close()

    async def _put(self, key: str, source: Source, *, content_type: str, give_away: bool) -> StoredObject:
        if self.silent:
            await self._threads.run(lambda: self._send(key, source))
        return await super()._put(key, source, content_type=content_type, give_away=give_away)

    async def _move(self, key: str, target: str) -> StoredObject:
        if self.silent:
            data = b"".join([chunk async for chunk in self.inner._read(key, 0, None)])
            await self._threads.run(lambda: self._send(target, data))
        if {key, target} <= await self.keys():  # a move that was broken off: carried to its end
            await self.inner._delete(key)
            return await self.inner._stat(target)
        return await super()._move(key, target)

    def _send(self, key: str, source: Source) -> None:
        self._under_way[key] = source if isinstance(source, bytes) else source.read_bytes()
        self._timed_out.wait(PATIENCE)
        raise StorageUnavailable("staged: no answer came")

    def _translate(self, error: Exception, key: str | None) -> StorageError | None:
        return None
