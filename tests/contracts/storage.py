"""What every storage does, in sentences. A backend's tests subclass `StorageContract` and give it a `storage`.

Keys are new in each test, so that a bucket may be shared and need not be empty. What a backend declares absent is
skipped, but for the sentences that say how it answers then. The mark `capability` names what a sentence shows, so that
`contracts.summary` can tell what was measured, and not only declared.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import random
from base64 import b64decode
from collections.abc import Callable
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import NoReturn
from uuid import uuid4

import anyio
import pytest
from PIL import Image

from smart_assets.storage.base import StorageBackend, StoredObject
from smart_assets.storage.errors import InvalidKey, ObjectExists, ObjectNotFound, StorageError, Unsupported
from smart_assets.storage.keys import MAX_KEY_BYTES, Visibility, with_visibility

PNG = "image/png"

ABSENT = "declared absent: "
INAPPLICABLE = "does not apply: "

HOSTILE_KEYS = (
    "",
    "/",
    ".",
    "..",
    "/etc/passwd",
    "public/",
    "public//a.png",
    "public/./a.png",
    "public/../private/a.png",
    "../outside.png",
    "public/..",
    "public\\..\\a.png",
    "public/a\x00.png",
    "public/a\n.png",
    "public/a\x7f.png",
    "public/a\x85.png",
    "public/\ud800.png",
    "public/cafe\u0301.png",
    "public/" + "a/" * 446 + "ab",
)

STRANGE_NAMES = (
    "a b.png",
    "a+b.png",
    "a%20b.png",
    "a%2Fb.png",
    "a%b.png",
    "a#b?c=d&e.png",
    "a:b;c,d@e!f$g'h(i)*j~k.png",
    'a"b<c>d|e^f`g{h}[i].png',
    ".hidden",
    "...",
    "-rf",
    "con.png",
    "UPPER.png",
    "upper.png",
    "日本語/写真.png",
    "żółć-ñ-ü.png",
    "עברית-العربية.png",
    "\U0001f5bc\ufe0f.png",
    "x" * 255,
)


def noise(seed: int, side: int) -> bytes:
    """A real PNG, about 3 bytes a pixel."""
    pixels = random.Random(seed).randbytes(side * side * 3)
    buffer = io.BytesIO()
    Image.frombytes("RGB", (side, side), pixels).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


@cache
def image(seed: int = 0, side: int = 24) -> bytes:
    """A small one by default; another for each seed."""
    return noise(seed, side)


def large_image(seed: int = 0) -> bytes:
    """One of more than 8 MB."""
    return image(seed, 1680)


async def read(storage: StorageBackend, key: str, start: int = 0, end: int | None = None) -> bytes:
    """The object's bytes."""
    async with aclosing(storage.open(key, start=start, end=end)) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def listed(storage: StorageBackend, prefix: str) -> dict[str, StoredObject]:
    """The records of a prefix by key; a key listed twice is an error."""
    async with aclosing(storage.list(prefix)) as records:
        found = [record async for record in records]
    assert len({record.key for record in found}) == len(found)
    return {record.key: record for record in found}


def absent(storage: StorageBackend, capability: str, what: str) -> NoReturn:
    """Leave out a sentence of a capability that the backend declares it has not."""
    pytest.skip(f"{ABSENT}{capability}: {storage.name} {what}")


def inapplicable(reason: str) -> NoReturn:
    """Leave out a sentence that is about another kind of backend, or was said of this one before."""
    pytest.skip(f"{INAPPLICABLE}{reason}")


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class StorageContract:
    """The behaviours. A subclass supplies the fixture `storage`: an open backend that is closed afterwards."""

    heavy = True
    """Whether to say the sentences that take many objects, bytes or seconds; once a backend is enough."""
    objects_past_one_page = 1001
    """More than the server lists at once."""

    def fits(self, storage: StorageBackend, key: str) -> bool:
        """Whether the storage takes so long a key, and its neighbour of the other visibility."""
        longest = max(len(with_visibility(key, visibility).encode()) for visibility in Visibility)
        return longest <= storage.capabilities.max_key_bytes

    @pytest.fixture
    def storage(self) -> StorageBackend:
        raise NotImplementedError

    @pytest.fixture
    def folder(self) -> str:
        return f"private/contract-{uuid4()}"

    @pytest.fixture
    def key(self, folder: str) -> str:
        return f"{folder}/image.png"

    @pytest.fixture
    def keeping(self, storage: StorageBackend) -> StorageBackend:
        if not storage.capabilities.persistent:
            absent(storage, "persistent", "keeps nothing")
        return storage

    @pytest.fixture
    async def exclusive(self, keeping: StorageBackend) -> StorageBackend:
        await keeping.check()  # some find out only then whether the server can
        if not keeping.capabilities.create_if_absent:
            absent(keeping, "create_if_absent", "cannot tell who came first")
        return keeping

    @pytest.fixture
    async def descriptors_before(self) -> int:
        return open_descriptors()

    # ── Writing and reading ─────────────────────────────────────────────────────────────────────────────────────────

    @pytest.mark.capability("persistent")
    @pytest.mark.parametrize("data", [image(), large_image()], ids=["small", "8 MB"])
    @pytest.mark.parametrize("way", ["bytes", "file", "given-away file"])
    async def test_an_image_comes_back_byte_for_byte(
        self, keeping: StorageBackend, key: str, data: bytes, way: str, tmp_path: Path
    ) -> None:
        file = tmp_path / "upload"
        file.write_bytes(data)
        if way == "bytes":
            await keeping.upload(key, data, content_type=PNG)
        else:
            await keeping.upload(key, file, content_type=PNG, give_away=way == "given-away file")
        file.unlink(missing_ok=True)
        assert await read(keeping, key) == data

    async def test_an_image_of_60_mb_comes_back_byte_for_byte(
        self, keeping: StorageBackend, key: str, tmp_path: Path
    ) -> None:
        if not self.heavy:
            inapplicable("said of this backend elsewhere")
        file = tmp_path / "upload"
        file.write_bytes(noise(1, 4480))
        size = file.stat().st_size
        if size > (keeping.capabilities.max_object_bytes or size):
            absent(keeping, "max_object_bytes", "takes no image of 60 MB")
        stored = await keeping.upload(key, file, content_type=PNG)
        assert stored.size == size
        received = hashlib.sha256()
        async with aclosing(keeping.open(key)) as chunks:
            async for chunk in chunks:
                received.update(chunk)
        with file.open("rb") as sent:
            assert received.digest() == hashlib.file_digest(sent, "sha256").digest()
        assert await keeping.delete(key)

    async def test_a_file_that_is_not_given_away_stays_the_callers(
        self, keeping: StorageBackend, key: str, tmp_path: Path
    ) -> None:
        file = tmp_path / "upload"
        file.write_bytes(image())
        await keeping.upload(key, file, content_type=PNG)
        file.write_bytes(b"changed afterwards")
        assert await read(keeping, key) == image()

    @pytest.mark.capability("arbitrary_bytes")
    @pytest.mark.parametrize("data", [b"", b"\x00", bytes(range(256)) * 17], ids=["none", "one", "all values"])
    async def test_any_bytes_come_back_where_any_are_taken(
        self, keeping: StorageBackend, key: str, data: bytes
    ) -> None:
        if not keeping.capabilities.arbitrary_bytes:
            absent(keeping, "arbitrary_bytes", "takes images only")
        await keeping.upload(key, data, content_type="application/octet-stream")
        assert await read(keeping, key) == data
        assert await keeping.get_size(key) == len(data)

    async def test_a_range_gives_just_those_bytes(self, keeping: StorageBackend, key: str) -> None:
        data = large_image()
        size = len(data)
        await keeping.upload(key, data, content_type=PNG)
        for start, end in [(0, 1), (0, size), (1, 2), (5, None), (size - 1, None), (1024 * 1024 - 1, 3 * 1024 * 1024)]:
            assert await read(keeping, key, start, end) == data[start:end]

    async def test_a_range_past_the_end_gives_what_there_is(self, keeping: StorageBackend, key: str) -> None:
        data = image()
        await keeping.upload(key, data, content_type=PNG)
        assert await read(keeping, key, len(data) - 3, len(data) + 10) == data[-3:]
        assert await read(keeping, key, len(data)) == b""
        assert await read(keeping, key, len(data) + 7, len(data) + 9) == b""
        assert await read(keeping, key, 4, 4) == b""

    async def test_reading_can_stop_early(self, keeping: StorageBackend, key: str) -> None:
        await keeping.upload(key, large_image(), content_type=PNG)
        async with aclosing(keeping.open(key)) as chunks:
            async for chunk in chunks:
                assert large_image().startswith(chunk)
                break
        assert await keeping.delete(key)

    # ── Records ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def test_upload_answers_with_a_record(self, storage: StorageBackend, key: str) -> None:
        stored = await storage.upload(key, image(), content_type=PNG)
        assert (stored.key, stored.size) == (key, len(image()))
        assert stored.content_type in {None, PNG}
        if not storage.capabilities.data_urls:
            assert stored.url is None, "a private object has no open address"

    @pytest.mark.capability("data_urls")
    async def test_a_records_data_url_holds_the_bytes(self, storage: StorageBackend, key: str) -> None:
        if not storage.capabilities.data_urls:
            inapplicable(f"{storage.name} gives addresses, not bytes")
        stored = await storage.upload(key, image(), content_type=PNG)
        assert stored.url is not None
        head, _, payload = stored.url.partition(",")
        assert head == "data:image/png;base64"
        assert b64decode(payload, validate=True) == image()

    async def test_stat_and_list_tell_the_same_record(self, keeping: StorageBackend, key: str) -> None:
        stored = await keeping.upload(key, image(), content_type=PNG)
        found = await keeping.stat(key)
        assert (found.key, found.size) == (key, len(image()))
        assert found.modified is not None
        assert abs(found.modified - datetime.now(UTC)) < timedelta(minutes=15)
        in_list = (await listed(keeping, key))[key]
        assert (in_list.key, in_list.size) == (key, len(image()))
        etags = {record.etag for record in (stored, found, in_list)} - {None}
        assert len(etags) <= 1
        assert not any('"' in etag for etag in etags if etag)
        assert await keeping.get_size(key) == len(image())
        assert await keeping.exists(key)

    async def test_a_missing_object_is_missing_and_not_empty(self, keeping: StorageBackend, key: str) -> None:
        for call in (keeping.stat(key), keeping.get_size(key), read(keeping, key), read(keeping, key, 3, 3)):
            with pytest.raises(ObjectNotFound) as caught:
                await call
            assert (caught.value.storage, caught.value.key) == (keeping.name, key)
        with pytest.raises(ObjectNotFound):
            await keeping.set_visibility(key, Visibility.PUBLIC)
        assert not await keeping.exists(key)
        assert keeping.at_hand(key) is None

    async def test_a_folder_of_an_object_is_no_object(self, keeping: StorageBackend, folder: str, key: str) -> None:
        await keeping.upload(key, image(), content_type=PNG)
        assert not await keeping.exists(folder)
        assert not await keeping.delete(folder)
        assert keeping.at_hand(folder) is None
        with pytest.raises(ObjectNotFound):
            await read(keeping, folder)
        assert await read(keeping, key) == image()

    # ── Nothing is overwritten ──────────────────────────────────────────────────────────────────────────────────────

    @pytest.mark.capability("create_if_absent")
    @pytest.mark.parametrize("way", ["bytes", "file", "given-away file"])
    async def test_a_taken_key_is_refused_and_the_first_bytes_stay(
        self, exclusive: StorageBackend, key: str, way: str, tmp_path: Path
    ) -> None:
        await exclusive.upload(key, image(1), content_type=PNG)
        file = tmp_path / "upload"
        file.write_bytes(image(2))
        with pytest.raises(ObjectExists):
            await exclusive.upload(
                key, image(2) if way == "bytes" else file, content_type=PNG, give_away=way == "given-away file"
            )
        assert await read(exclusive, key) == image(1)

    @pytest.mark.capability("create_if_absent")
    @pytest.mark.parametrize(("side", "writers"), [(24, 24), (1680, 4)], ids=["small", "8 MB"])
    async def test_of_many_writers_to_one_key_exactly_one_wins(
        self, exclusive: StorageBackend, key: str, side: int, writers: int
    ) -> None:
        winners = []

        async def write(seed: int) -> None:
            with suppress(ObjectExists):
                await exclusive.upload(key, image(seed, side), content_type=PNG, exclusive=True)
                winners.append(seed)

        async with anyio.create_task_group() as group:
            for seed in range(writers):
                group.start_soon(write, seed)
        assert len(winners) == 1
        assert await read(exclusive, key) == image(winners[0], side)

    async def test_a_key_is_free_again_after_delete(self, keeping: StorageBackend, key: str) -> None:
        await keeping.upload(key, image(1), content_type=PNG)
        await keeping.delete(key)
        await keeping.upload(key, image(2), content_type=PNG)
        assert await read(keeping, key) == image(2)

    # ── Removing ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def test_delete_says_whether_something_was_there(self, keeping: StorageBackend, key: str) -> None:
        await keeping.upload(key, image(), content_type=PNG)
        assert await keeping.delete(key) is True
        assert await keeping.delete(key) is False
        assert not await keeping.exists(key)
        assert await listed(keeping, key) == {}

    async def test_clean_up_removes_what_is_there_and_leaves_nothing(
        self, storage: StorageBackend, folder: str
    ) -> None:
        keys = [f"{folder}/{number}.png" for number in range(6)]
        for key in keys[::2]:
            await storage.upload(key, image(), content_type=PNG)
        assert await storage.cleanup_failed_assets(keys) == ()
        assert await storage.cleanup_failed_assets(keys) == ()
        assert await storage.cleanup_failed_assets(HOSTILE_KEYS) == ()
        if storage.capabilities.persistent:
            assert await listed(storage, folder) == {}

    # ── Keys ────────────────────────────────────────────────────────────────────────────────────────────────────────

    @pytest.mark.parametrize("hostile", HOSTILE_KEYS, ids=ascii)
    async def test_what_is_not_a_key_is_refused_everywhere(self, storage: StorageBackend, hostile: str) -> None:
        calls: list[Callable[[], object]] = [
            lambda: storage.upload(hostile, image(), content_type=PNG),
            lambda: storage.stat(hostile),
            lambda: storage.get_size(hostile),
            lambda: storage.exists(hostile),
            lambda: storage.delete(hostile),
            lambda: read(storage, hostile),
            lambda: storage.set_visibility(hostile, Visibility.PUBLIC),
            lambda: storage.generate_signed_url(hostile),
        ]
        for call in calls:
            with pytest.raises(InvalidKey):
                await call()  # type: ignore[misc]
        with pytest.raises(InvalidKey):
            storage.url(hostile)
        assert storage.at_hand(hostile) is None

    async def test_names_of_every_kind_are_kept_apart(self, keeping: StorageBackend, folder: str) -> None:
        keys = [f"{folder}/{name}" for name in STRANGE_NAMES]
        written = {key: image(seed) for seed, key in enumerate(keys) if self.fits(keeping, key)}
        for key, data in written.items():
            await keeping.upload(key, data, content_type=PNG)
        for key, data in written.items():
            assert await read(keeping, key) == data
        assert (await listed(keeping, f"{folder}/")).keys() == written.keys()
        for key in written:
            assert await keeping.delete(key)

    async def test_the_longest_key_works(self, keeping: StorageBackend, folder: str) -> None:
        limit = keeping.capabilities.max_key_bytes
        key = f"{folder}/"
        for segment in ("é" * 100, "b" * 200, "c" * 200):  # in segments no file system refuses
            key += f"{segment}/" if len(f"{key}{segment}/d".encode()) <= limit else ""
        key += "d" * (limit - len(key.encode()))
        await keeping.upload(key, image(), content_type=PNG)
        assert await read(keeping, key) == image()
        assert list(await listed(keeping, key)) == [key]
        assert await keeping.delete(key)

    # ── Listing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def test_list_gives_every_key_that_begins_so_and_no_other(self, keeping: StorageBackend, folder: str) -> None:
        keys = {f"{folder}/{name}" for name in ("a.png", "ab.png", "a/b.png", "a/b/c.png", "b.png", "b/a.png")}
        for key in keys:
            await keeping.upload(key, image(), content_type=PNG)
        for prefix in (folder, f"{folder}/", f"{folder}/a", f"{folder}/a/", f"{folder}/a/b", f"{folder}/b.png"):
            assert (await listed(keeping, prefix)).keys() == {key for key in keys if key.startswith(prefix)}
        assert await listed(keeping, f"{folder}/c") == {}
        assert await listed(keeping, f"{folder}/../") == {}

    async def test_list_goes_past_one_page_and_can_stop_early(self, keeping: StorageBackend, folder: str) -> None:
        if not self.heavy:
            inapplicable("said of this backend elsewhere")
        keys = {f"{folder}/{number}.png" for number in range(self.objects_past_one_page)}
        turns = asyncio.Semaphore(32)

        async def upload(key: str) -> None:
            async with turns:
                await keeping.upload(key, image(), content_type=PNG)

        async with anyio.create_task_group() as group:
            for key in keys:
                group.start_soon(upload, key)
        assert (await listed(keeping, folder)).keys() == keys
        async with aclosing(keeping.list(folder)) as records:
            async for record in records:
                assert record.key in keys
                break
        assert await keeping.cleanup_failed_assets(keys) == ()
        assert await listed(keeping, folder) == {}

    # ── Visibility ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def test_changing_visibility_moves_the_object_and_the_old_key_is_gone(
        self, keeping: StorageBackend, key: str
    ) -> None:
        public = with_visibility(key, Visibility.PUBLIC)
        await keeping.upload(key, image(), content_type=PNG)
        for old, new, visibility in ((key, public, Visibility.PUBLIC), (public, key, Visibility.PRIVATE)):
            for _again in range(2):
                moved = await keeping.set_visibility(old, visibility)
                assert (moved.key, moved.size) == (new, len(image()))
                assert not await keeping.exists(old)
                assert await read(keeping, new) == image()
        assert (await keeping.set_visibility(key, Visibility.PRIVATE)).key == key
        assert await keeping.delete(key)

    @pytest.mark.capability("create_if_absent")
    async def test_a_move_never_overwrites(self, exclusive: StorageBackend, key: str) -> None:
        public = with_visibility(key, Visibility.PUBLIC)
        await exclusive.upload(key, image(1), content_type=PNG)
        await exclusive.upload(public, image(2), content_type=PNG)
        with pytest.raises(ObjectExists):
            await exclusive.set_visibility(key, Visibility.PUBLIC)
        assert await read(exclusive, key) == image(1)
        assert await read(exclusive, public) == image(2)
        assert await exclusive.cleanup_failed_assets([key, public]) == ()

    @pytest.mark.capability("create_if_absent")
    async def test_of_two_moves_to_one_key_one_arrives_and_the_other_object_stays(
        self, exclusive: StorageBackend, key: str
    ) -> None:
        public = with_visibility(key, Visibility.PUBLIC)
        sources = [key, f"other/{key.partition('/')[2]}"]
        for seed, source in enumerate(sources):
            await exclusive.upload(source, image(seed), content_type=PNG)
        refused = []

        async def move(source: str) -> None:
            try:
                await exclusive.set_visibility(source, Visibility.PUBLIC)
            except ObjectExists:
                refused.append(source)

        async with anyio.create_task_group() as group:
            for source in sources:
                group.start_soon(move, source)
        assert len(refused) == 1
        stayed = sources.index(refused[0])
        assert await read(exclusive, refused[0]) == image(stayed)
        assert await read(exclusive, public) == image(1 - stayed)
        assert not await exclusive.exists(sources[1 - stayed])
        assert await exclusive.cleanup_failed_assets([*sources, public]) == ()

    async def test_the_same_move_made_by_many_at_once_is_made(self, keeping: StorageBackend, key: str) -> None:
        public = with_visibility(key, Visibility.PUBLIC)
        await keeping.upload(key, image(), content_type=PNG)
        moved = []

        async def move() -> None:
            moved.append((await keeping.set_visibility(key, Visibility.PUBLIC)).key)

        async with anyio.create_task_group() as group:
            for _mover in range(4):
                group.start_soon(move)
        assert moved == [public] * 4
        assert await read(keeping, public) == image()
        assert not await keeping.exists(key)
        assert await keeping.delete(public)

    async def test_a_key_without_a_folder_has_no_visibility_to_change(self, keeping: StorageBackend) -> None:
        with pytest.raises(InvalidKey):
            await keeping.set_visibility("image.png", Visibility.PUBLIC)

    async def test_a_key_that_would_grow_too_long_cannot_change_visibility(self, keeping: StorageBackend) -> None:
        limit = keeping.capabilities.max_key_bytes
        with pytest.raises((InvalidKey, Unsupported), match=f"{limit}"):
            await keeping.set_visibility("a/" * (limit // 2 - 1) + "ab", Visibility.PRIVATE)

    async def test_a_private_object_has_no_open_address(self, storage: StorageBackend, key: str) -> None:
        assert storage.url(key) is None
        if not storage.capabilities.public_access:
            assert storage.url(with_visibility(key, Visibility.PUBLIC)) is None

    # ── At hand ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @pytest.mark.capability("at_hand")
    async def test_an_object_at_hand_can_be_read_at_once(self, keeping: StorageBackend, key: str) -> None:
        if not keeping.capabilities.at_hand:
            absent(keeping, "at_hand", "has nothing at hand")
        data = large_image()
        await keeping.upload(key, data, content_type=PNG)
        found = keeping.at_hand(key)
        assert found is not None
        stored = await keeping.stat(key)
        assert stored.modified is not None
        assert found.size == len(data)
        assert abs(found.modified_ns / 1e9 - stored.modified.timestamp()) < 0.001
        for start, length in ((0, 10), (0, len(data)), (100, 1024 * 1024), (len(data) - 5, 5), (len(data) - 5, 50)):
            assert found.read(start, length, wait=True) == data[start : start + length]
            assert found.read(start, length, wait=False) in {None, data[start : start + length]}
        assert await keeping.delete(key)
        assert found.read(7, 9, wait=True) == data[7:16], "who has it open reads it to its end"
        found.close()
        found.close()
        assert keeping.at_hand(key) is None

    # ── Many at once, and broken off ────────────────────────────────────────────────────────────────────────────────

    async def test_many_tasks_use_it_at_once(self, storage: StorageBackend, folder: str) -> None:
        async def live(number: int) -> None:
            key, data = f"{folder}/{number}/image.png", image(number)
            stored = await storage.upload(key, data, content_type=PNG)
            assert stored.size == len(data)
            if storage.capabilities.persistent:
                assert await read(storage, key) == data
                await storage.set_visibility(key, Visibility.PUBLIC)
                assert await storage.delete(with_visibility(key, Visibility.PUBLIC))

        async with anyio.create_task_group() as group:
            for number in range(40):
                group.start_soon(live, number)
        if storage.capabilities.persistent:
            assert await listed(storage, folder) == {}

    @pytest.mark.parametrize("way", ["Task.cancel", "cancel scope"])
    async def test_a_cancelled_upload_leaves_all_or_nothing_and_nothing_after_clean_up(
        self, keeping: StorageBackend, folder: str, way: str
    ) -> None:
        data = large_image()
        left: list[str] = []
        for turns in (0, 1, 2, 3, 5, 8, 50):
            key = f"{folder}/{turns}.png"
            scope = anyio.CancelScope()

            async def upload(key: str = key, scope: anyio.CancelScope = scope) -> None:
                with scope:
                    await keeping.upload(key, data, content_type=PNG)

            task = asyncio.create_task(upload())
            for _turn in range(turns):
                await asyncio.sleep(0)
            if way == "Task.cancel":
                task.cancel()
            else:
                scope.cancel()
            with suppress(asyncio.CancelledError):
                await task
            if await keeping.exists(key):
                assert await read(keeping, key) == data
            left += await keeping.cleanup_failed_assets([key])
        await asyncio.sleep(0.05)
        assert left == []
        assert await listed(keeping, folder) == {}

    @pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system does not show open files")
    async def test_nothing_is_left_open_after_close(
        self, descriptors_before: int, storage: StorageBackend, folder: str, tmp_path: Path
    ) -> None:
        file = tmp_path / "upload"
        file.write_bytes(large_image())
        key = f"{folder}/image.png"
        await storage.upload(key, file, content_type=PNG, give_away=True)
        if storage.capabilities.persistent:
            with suppress(StorageError):
                await storage.upload(key, file, content_type=PNG, give_away=True)
            await self.test_reading_can_stop_early(storage, f"{folder}/b.png")
            await self.test_a_folder_of_an_object_is_no_object(storage, f"{folder}/c", f"{folder}/c/d.png")
            await self.test_changing_visibility_moves_the_object_and_the_old_key_is_gone(storage, f"{folder}/d.png")
            async with aclosing(storage.list(folder)) as records:
                await anext(records)
            await storage.check()
            await storage.cleanup_failed_assets([key, f"{folder}/c/d.png"])
        await storage.close()
        with anyio.fail_after(60):  # a server in this process closes its ends a moment later
            while open_descriptors() > descriptors_before:
                await asyncio.sleep(0.01)

    async def test_it_can_be_checked_and_asked_whether_it_answers(self, storage: StorageBackend) -> None:
        await storage.check()
        await storage.ping()

    # ── What is declared absent ─────────────────────────────────────────────────────────────────────────────────────

    async def test_what_needs_kept_objects_is_unsupported_where_nothing_is_kept(
        self, storage: StorageBackend, key: str
    ) -> None:
        if storage.capabilities.persistent:
            inapplicable(f"{storage.name} keeps objects")
        await storage.upload(key, image(), content_type=PNG)
        for call in (
            storage.stat(key),
            storage.get_size(key),
            storage.exists(key),
            storage.delete(key),
            storage.set_visibility(key, Visibility.PUBLIC),
        ):
            with pytest.raises(Unsupported):
                await call
        with pytest.raises(Unsupported):
            storage.open(key)
        with pytest.raises(Unsupported):
            storage.list()

    async def test_bytes_that_are_no_image_are_refused_where_only_images_are_taken(
        self, storage: StorageBackend, key: str
    ) -> None:
        if storage.capabilities.arbitrary_bytes:
            inapplicable(f"{storage.name} takes any bytes")
        for data in (b"\x00", b"no image at all", image()[:20], b""):
            with pytest.raises(StorageError):
                await storage.upload(key, data, content_type=PNG)
            assert await storage.cleanup_failed_assets([key]) == ()
            assert not await storage.exists(key)

    async def test_an_exclusive_upload_is_unsupported_where_nobody_can_tell_who_came_first(
        self, storage: StorageBackend, key: str
    ) -> None:
        await storage.check()
        if storage.capabilities.create_if_absent:
            inapplicable(f"{storage.name} can tell")
        with pytest.raises(Unsupported):
            await storage.upload(key, image(), content_type=PNG, exclusive=True)
        if storage.capabilities.persistent:
            assert not await storage.exists(key)

    async def test_a_key_longer_than_it_takes_is_unsupported(self, storage: StorageBackend, folder: str) -> None:
        limit = storage.capabilities.max_key_bytes
        if limit == MAX_KEY_BYTES:
            inapplicable(f"{storage.name} takes every key")
        key = f"{folder}/".ljust(limit + 1, "a")
        for call in (
            storage.upload(key, image(), content_type=PNG),
            storage.stat(key),
            storage.exists(key),
            storage.delete(key),
            storage.set_visibility(key, Visibility.PUBLIC),
            storage.generate_signed_url(key),
        ):
            with pytest.raises(Unsupported):
                await call
        with pytest.raises(Unsupported):
            storage.open(key)
        assert await storage.cleanup_failed_assets([key]) == (), "it cannot be there"

    async def test_signed_urls_are_unsupported_where_there_are_none(self, storage: StorageBackend, key: str) -> None:
        if storage.capabilities.signed_urls:
            inapplicable(f"{storage.name} signs URLs")
        with pytest.raises(Unsupported) as caught:
            await storage.generate_signed_url(key)
        assert caught.value.storage == storage.name

    async def test_uploads_past_the_service_are_unsupported_where_strangers_cannot_be_let_write(
        self, storage: StorageBackend, key: str
    ) -> None:
        if storage.capabilities.presigned_uploads:
            inapplicable(f"{storage.name} lets strangers write one object")
        assert not storage.capabilities.caps_uploads
        with pytest.raises(Unsupported) as caught:
            await storage.presign_upload(key, max_bytes=1, expires_at=datetime.now(UTC) + timedelta(minutes=1))
        assert caught.value.storage == storage.name

    async def test_nothing_is_at_hand_where_a_network_lies_between(self, storage: StorageBackend, key: str) -> None:
        if storage.capabilities.at_hand:
            inapplicable(f"{storage.name} has objects at hand")
        await storage.upload(key, image(), content_type=PNG)
        assert storage.at_hand(key) is None
        await storage.cleanup_failed_assets([key])

    async def test_an_object_larger_than_it_takes_is_unsupported(
        self, storage: StorageBackend, key: str, tmp_path: Path
    ) -> None:
        limit = storage.capabilities.max_object_bytes
        if limit is None:
            inapplicable(f"{storage.name} has no limit of its own")
        file = tmp_path / "sparse"
        with file.open("wb") as sparse:
            sparse.truncate(limit + 1)
        with pytest.raises(Unsupported):
            await storage.upload(key, file, content_type=PNG)
