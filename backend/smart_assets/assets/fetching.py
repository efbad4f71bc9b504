"""Fetching back what is stored, and knowing that it is what its row says."""

from __future__ import annotations

from contextlib import aclosing

from smart_assets.assets.spool import Spool
from smart_assets.errors import BodyTooLarge
from smart_assets.storage.base import StorageBackend
from smart_assets.storage.errors import StorageError


async def fetch(backend: StorageBackend, key: str, spool: Spool, *, size: int, sha256: str | None = None) -> None:
    """Fill `spool`, which takes `size` bytes at most, with an object, and finish it.

    ObjectNotFound; StorageError where it has another size, or another hash than `sha256` (None: nobody knows it).
    """
    damaged = StorageError(
        f"an object in {backend.name} is not what the asset's row says", storage=backend.name, key=key
    )
    try:
        async with aclosing(backend.open(key)) as chunks:
            async for chunk in chunks:
                await spool.write(chunk)
    except BodyTooLarge:
        raise damaged from None
    await spool.finish()
    if spool.size != size or spool.sha256 != (sha256 or spool.sha256):
        raise damaged
