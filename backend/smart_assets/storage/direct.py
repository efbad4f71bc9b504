"""No storage at all: the bytes go back to the caller in a `data:` URI (RFC 2397)."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncGenerator
from typing import Self

import anyio

from smart_assets.settings import DirectStorageSettings, Settings
from smart_assets.storage.base import Capabilities, Source, StorageBackend, StoredObject
from smart_assets.storage.errors import StorageError


class DirectDownloadStorage(StorageBackend):
    """Keeps nothing. What needs an object that was kept is Unsupported: the base class says so before it gets here."""

    capabilities = Capabilities(persistent=False, create_if_absent=False, data_urls=True)

    @classmethod
    def from_settings(cls, name: str, own: DirectStorageSettings, settings: Settings) -> Self:  # noqa: ARG003 - all have it
        """Its limit is that of a request, which is not this class's affair."""
        return cls(name)

    async def _put(self, key: str, source: Source, *, content_type: str, give_away: bool) -> StoredObject:
        data = source if isinstance(source, bytes) else await anyio.Path(source).read_bytes()
        url = f"data:{content_type};base64,{b64encode(data).decode()}"
        return StoredObject(key=key, size=len(data), content_type=content_type, url=url)

    def _read(self, key: str, start: int, end: int | None) -> AsyncGenerator[bytes, None]:
        raise NotImplementedError

    async def _stat(self, key: str) -> StoredObject:
        raise NotImplementedError

    async def _delete(self, key: str) -> bool:
        raise NotImplementedError

    def _list(self, prefix: str) -> AsyncGenerator[StoredObject, None]:
        raise NotImplementedError

    def _translate(self, error: Exception, key: str | None) -> StorageError | None:
        return None
