"""Objects in this process's memory: for tests and pipelines, forgotten at restart."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

import anyio

from smart_assets.settings import MemoryStorageSettings, Settings
from smart_assets.storage.base import Capabilities, ObjectAtHand, Source, StorageBackend, StoredObject
from smart_assets.storage.errors import ObjectExists, ObjectNotFound, StorageError, StorageFull

_CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True)
class _Object:
    data: bytes
    content_type: str
    modified_ns: int

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, start: int, length: int, *, wait: bool) -> bytes | None:
        return self.data[start : start + length]

    def close(self) -> None:
        pass

    def record(self, key: str) -> StoredObject:
        return StoredObject(
            key=key,
            size=self.size,
            etag=f"{self.modified_ns:x}-{self.size:x}",
            modified=datetime.fromtimestamp(self.modified_ns / 1e9, tz=UTC),
            content_type=self.content_type,
        )


class MemoryStorage(StorageBackend):
    """A dictionary with a cap. Every change is one step on the event loop, so nobody sees half of one."""

    capabilities = Capabilities(at_hand=True, one_process=True)

    def __init__(self, name: str, max_bytes: int) -> None:
        """`max_bytes` of all objects together; past it writes raise StorageFull."""
        super().__init__(name)
        self._max_bytes = max_bytes
        self._used_bytes = 0
        self._objects: dict[str, _Object] = {}

    @classmethod
    def from_settings(cls, name: str, own: MemoryStorageSettings, settings: Settings) -> Self:  # noqa: ARG003 - all have it
        """An empty one."""
        return cls(name, own.max_bytes)

    def at_hand(self, key: str) -> ObjectAtHand | None:
        """The object, or None."""
        return self._objects.get(key)

    async def close(self) -> None:
        """Forget everything."""
        self._objects.clear()
        self._used_bytes = 0

    async def _put(self, key: str, source: Source, *, content_type: str, give_away: bool) -> StoredObject:
        data = source if isinstance(source, bytes) else await anyio.Path(source).read_bytes()
        if key in self._objects:
            raise ObjectExists("the key is taken")
        if self._used_bytes + len(data) > self._max_bytes:
            raise StorageFull(
                f"{self.name} holds {self._used_bytes} of at most {self._max_bytes} bytes: no room for {len(data)} more"
            )
        self._used_bytes += len(data)
        stored = self._objects[key] = _Object(data, content_type, time.time_ns())
        return stored.record(key)

    async def _read(self, key: str, start: int, end: int | None) -> AsyncGenerator[bytes, None]:
        data = self._get(key).data
        stop = len(data) if end is None else min(end, len(data))
        for position in range(start, stop, _CHUNK_BYTES):
            yield data[position : min(position + _CHUNK_BYTES, stop)]

    async def _stat(self, key: str) -> StoredObject:
        return self._get(key).record(key)

    async def _delete(self, key: str) -> bool:
        removed = self._objects.pop(key, None)
        if removed is None:
            return False
        self._used_bytes -= removed.size
        return True

    async def _list(self, prefix: str) -> AsyncGenerator[StoredObject, None]:
        for key, stored in tuple(self._objects.items()):
            if key.startswith(prefix):
                yield stored.record(key)

    async def _move(self, key: str, target: str) -> StoredObject:
        stored = self._get(key)
        if target in self._objects:
            raise ObjectExists("the key is taken", key=target)
        self._objects[target] = self._objects.pop(key)
        return stored.record(target)

    def _translate(self, error: Exception, key: str | None) -> StorageError | None:
        return None

    def _get(self, key: str) -> _Object:
        try:
            return self._objects[key]
        except KeyError:
            raise ObjectNotFound("there is no such object") from None
