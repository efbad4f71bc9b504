"""One object of a storage, as a value to pass around."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from smart_assets.assets import StorageFile, StorageImage
from smart_assets.errors import UnsupportedImage
from smart_assets.settings import Settings
from smart_assets.storage import StorageBackend, get_storage_backend
from smart_assets.storage.errors import ObjectExists, ObjectNotFound, Unsupported
from tests.images import IMAGES
from tests.staging import FaultyStorage

JPEG = IMAGES["jpeg with metadata"]()


@pytest.fixture(params=["local", "memory"])
async def storage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StorageBackend]:
    backend = get_storage_backend(request.param, Settings(data_dir=tmp_path / "data"))
    yield backend
    await backend.close()


async def test_a_file_is_written_read_measured_and_removed(storage: StorageBackend) -> None:
    file = StorageFile("private/notes/a b.txt", storage)
    assert file.name == "private/notes/a b.txt"
    assert (await file.upload(b"hello", content_type="text/plain")).size == 5
    assert await file.get_size() == 5
    assert await file.read() == b"hello"
    assert await file.read(start=1, end=3) == b"el"
    async with aclosing(file.open(start=4)) as chunks:
        assert [chunk async for chunk in chunks] == [b"o"]
    assert await file.delete() is True
    assert await file.delete() is False
    with pytest.raises(ObjectNotFound):
        await file.get_size()


@pytest.mark.parametrize("way", ["bytes", "path", "open file"])
async def test_bytes_a_path_or_an_open_file_can_be_written(storage: StorageBackend, way: str, tmp_path: Path) -> None:
    path = tmp_path / "photo"
    path.write_bytes(JPEG)
    source = {"bytes": JPEG, "path": path, "open file": io.BytesIO(JPEG)}[way]
    image = StorageImage("public/photo.jpg", storage)
    stored = await image.upload(source)  # type: ignore[arg-type]
    assert stored.content_type in {None, "image/jpeg"}, "the disk keeps no content type"
    assert await image.read() == JPEG
    assert path.read_bytes() == JPEG
    with pytest.raises(ObjectExists):
        await image.upload(JPEG)


async def test_an_images_dimensions_are_read_once_and_only_when_asked_for() -> None:
    storage = FaultyStorage()
    await StorageImage("public/photo.jpg", storage).upload(JPEG)
    image = StorageImage("public/photo.jpg", storage)
    assert storage.calls["read"] == 0
    assert await image.get_dimensions() == (240, 320), "as a person sees it"
    assert await image.get_dimensions() == (240, 320)
    assert (storage.calls["read"], storage.calls["stat"]) == (1, 1)
    known = StorageImage("public/elsewhere.jpg", storage, width=3, height=4)
    assert await known.get_dimensions() == (3, 4)


async def test_what_is_no_image_is_refused_before_it_is_written(storage: StorageBackend) -> None:
    image = StorageImage("public/a.png", storage)
    with pytest.raises(UnsupportedImage):
        await image.upload(b"<html>")
    assert not await storage.exists("public/a.png")
    await StorageFile("public/a.png", storage).upload(b"<html>")
    with pytest.raises(UnsupportedImage):
        await image.get_dimensions()


async def test_the_path_of_a_file_on_this_disk_opens(tmp_path: Path) -> None:
    storage = get_storage_backend("local", Settings(data_dir=tmp_path / "data"))
    image = StorageImage("private/a.jpg", storage)
    await image.upload(JPEG)
    assert Path(await image.get_path()).read_bytes() == JPEG
    await storage.close()


async def test_what_has_no_address_says_so() -> None:
    storage = FaultyStorage()
    with pytest.raises(Unsupported, match="no address"):
        await StorageFile("public/a", storage).get_path()


async def test_two_handles_of_one_object_are_equal(storage: StorageBackend) -> None:
    assert StorageFile("a/b", storage) == StorageFile("a/b", storage)
    assert len({StorageFile("a/b", storage), StorageFile("a/b", storage), StorageFile("a/c", storage)}) == 2
    assert StorageFile("a/b", storage) != StorageImage("a/b", storage)
    assert repr(StorageFile("a/b", storage)) == f"StorageFile('a/b', {storage.name})"
