"""Handles: one object of a storage, as a value to pass around."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import BinaryIO

from anyio import to_thread

from smart_assets.errors import UnsupportedImage
from smart_assets.formats import SNIFF_BYTES, describe, sniff
from smart_assets.imaging.dimensions import read_dimensions
from smart_assets.storage.base import DEFAULT_EXPIRY_SECONDS, Source, StorageBackend, StoredObject
from smart_assets.storage.errors import Unsupported


class StorageFile:
    """An object that is there, or is going to be: `name` is its key, `storage` where it lies.

    Making one asks nobody anything. Methods raise what the backend's raise (`storage.errors`).
    """

    def __init__(self, name: str, storage: StorageBackend) -> None:
        """`name` is a key as `storage.keys.validate_key` takes it; a first segment but `public` makes it private."""
        self._name = name
        self._storage = storage

    @property
    def name(self) -> str:
        """Its key."""
        return self._name

    @property
    def storage(self) -> StorageBackend:
        """Where it lies."""
        return self._storage

    async def upload(
        self, source: Source | BinaryIO, *, content_type: str = "application/octet-stream"
    ) -> StoredObject:
        """Write it: bytes, a file by its path, or what an open file has left.

        ObjectExists where it is there already.
        """
        async with _as_source(source) as given:
            return await self._storage.upload(self._name, given, content_type=content_type)

    def open(self, *, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """Its bytes from `start` up to but not including `end`, in chunks. Who stops early closes the generator."""
        return self._storage.open(self._name, start=start, end=end)

    async def read(self, *, start: int = 0, end: int | None = None) -> bytes:
        """The same at once, in memory."""
        async with aclosing(self.open(start=start, end=end)) as chunks:
            return b"".join([chunk async for chunk in chunks])

    async def get_size(self) -> int:
        """In bytes; ObjectNotFound where it is missing."""
        return await self._storage.get_size(self._name)

    async def get_path(self, *, expiry_seconds: int = DEFAULT_EXPIRY_SECONDS) -> str:
        """Where it can be fetched: its public address, else one signed for so long, else its file on this disk.

        A private object's address is always signed. Unsupported where the storage has none of the three.
        """
        if address := self._storage.url(self._name):
            return address
        if self._storage.capabilities.signed_urls:
            return (await self._storage.generate_signed_url(self._name, expiry_seconds)).url
        if path := self._storage.path(self._name):
            return str(path)
        raise Unsupported(f"objects of {self._storage.name} have no address", storage=self._storage.name)

    async def delete(self) -> bool:
        """Remove it; whether there was something."""
        return await self._storage.delete(self._name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r}, {self._storage.name})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and (self._name, self._storage) == (other._name, other._storage)

    def __hash__(self) -> int:
        return hash((self._name, self._storage))


class StorageImage(StorageFile):
    """An image; its dimensions are read when first asked for, and only the header is fetched for them."""

    def __init__(self, name: str, storage: StorageBackend, *, width: int = 0, height: int = 0) -> None:
        """`width` and `height` in pixels where they are known; else 0."""
        super().__init__(name, storage)
        self._dimensions = (width, height) if width and height else None

    async def upload(self, source: Source | BinaryIO, *, content_type: str | None = None) -> StoredObject:
        """Write it. The content type comes from the bytes unless it is given; UnsupportedImage for what is no image."""
        self._dimensions = None
        async with _as_source(source) as given:
            return await super().upload(given, content_type=content_type or await _media_type(given))

    async def get_dimensions(self) -> tuple[int, int]:
        """Width and height in pixels as a person sees it: orientation applied.

        UnsupportedImage or CorruptImage where it is no image.
        """
        if self._dimensions is None:
            self._dimensions = await read_dimensions(self._fetch, await self.get_size())
        return self._dimensions

    async def _fetch(self, start: int, end: int) -> bytes:
        return await self.read(start=start, end=end)


@asynccontextmanager
async def _as_source(source: Source | BinaryIO) -> AsyncIterator[Source]:
    """What backends take; an open file's rest is copied to a temporary one, which is removed at the end."""
    if isinstance(source, (bytes, Path)):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="smart-assets-") as directory:
        path = Path(directory, "upload")
        await to_thread.run_sync(_copy, source, path)
        yield path


def _copy(source: BinaryIO, target: Path) -> None:
    with target.open("wb") as file:
        shutil.copyfileobj(source, file, 1024 * 1024)


async def _media_type(source: Source) -> str:
    head = source[:SNIFF_BYTES] if isinstance(source, bytes) else await to_thread.run_sync(_head, source)
    image_format = sniff(head)
    if image_format is None:
        raise UnsupportedImage(f"this looks like {describe(head)}")
    return image_format.media_type


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(SNIFF_BYTES)
