"""What every storage behind a network does besides: its URLs as strangers use them, and what goes wrong on the way.

A backend's tests subclass `RemoteStorageContract` and give it `connect` and `server_address`.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import anyio
import httpx
import pytest

from smart_assets.disposition import content_disposition
from smart_assets.storage.base import PresignedUpload, StorageBackend
from smart_assets.storage.errors import ObjectExists, StorageError, StorageUnavailable
from smart_assets.storage.keys import Visibility, with_visibility
from tests.contracts.storage import (
    PNG,
    STRANGE_NAMES,
    StorageContract,
    absent,
    image,
    inapplicable,
    large_image,
    listed,
    open_descriptors,
    read,
)
from tests.wire import Wire

REFUSED = {400, 401, 403, 404, 405, 410, 412}
LONG_AFTER = 120
"""Seconds after which only what hangs for good is still running."""
FILENAMES = ("holiday photo.png", 'żółć "写真";\r\n%.png')
SLOW_DOWN = b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code><Message>Busy</Message></Error>'


def medium_image(seed: int = 0) -> bytes:
    """One of more than 120 KB: more than a request's headers, less than anybody sends in parts."""
    return image(seed, 200)


ANSWERS_LOST = (0, 25, 60, 300, 600, 900, 1200, 1800)
"""After how many bytes of answers a connection is cut: before the first (25 is a `100 Continue`), or amid one."""

Transfers = pytest.mark.parametrize(
    ("data", "after"), [(medium_image(), 60_000), (large_image(), 1_000_000)], ids=["120 KB", "8 MB"]
)
"""An image, and after how many bytes of a connection a fault meets it midway."""


async def errors(storage: StorageBackend, key: str, file: Path) -> dict[str, Exception | None]:
    """What each call raises, all made at once."""
    file.write_bytes(image())
    calls: dict[str, Awaitable[object]] = {
        "upload": storage.upload(key, image(), content_type=PNG),
        "upload of a file": storage.upload(f"{key}.png", file, content_type=PNG),
        "stat": storage.stat(key),
        "exists": storage.exists(key),
        "open": read(storage, key),
        "delete": storage.delete(key),
        "list": listed(storage, key),
        "set_visibility": storage.set_visibility(key, Visibility.PUBLIC),
        "check": storage.check(),
        "ping": storage.ping(),
    }
    raised: dict[str, Exception | None] = {}

    async def attempt(name: str, call: Awaitable[object]) -> None:
        try:
            await call
        except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at it
            raised[name] = error
        else:
            raised[name] = None

    with anyio.fail_after(LONG_AFTER):
        async with anyio.create_task_group() as group:
            for name, call in calls.items():
                group.start_soon(attempt, name, call)
    return raised


def tampered(url: str) -> Iterator[tuple[str, str]]:
    """The URL with one character of a query parameter's value changed: each parameter's name, and the URL."""
    address, _, query = url.partition("?")
    pairs = [pair.partition("=") for pair in query.split("&")]
    for index, (name, _, value) in enumerate(pairs):
        places = [found.start() for found in re.finditer("%..|([0-9A-Za-z])", value) if found[1]]
        for place in sorted({places[0], places[len(places) // 2]} if places else set()):
            step = -1 if value[place] in "9fFzZ" else 1  # a digit stays a digit, hexadecimal or not
            changed = f"{value[:place]}{chr(ord(value[place]) + step)}{value[place + 1 :]}"
            others = [*pairs[:index], (name, "=", changed), *pairs[index + 1 :]]
            yield name, f"{address}?{'&'.join(''.join(pair) for pair in others)}"


def soon(seconds: float) -> datetime:
    """So long from now."""
    return datetime.now(UTC) + timedelta(seconds=seconds)


def minutes(count: float) -> datetime:
    """So long from now."""
    return soon(60 * count)


async def used(leave: PresignedUpload, content: bytes, stranger: httpx.AsyncClient) -> httpx.Response:
    """What a stranger is answered who writes as he was told, the way a browser would."""
    if leave.method == "PUT":
        return await stranger.put(leave.url, content=content, headers=dict(leave.headers))
    files = {"file": ("photo.png", content, PNG)}
    return await stranger.post(leave.url, data=dict(leave.fields), files=files, headers=dict(leave.headers))


class Connect(Protocol):
    """Makes a backend as its settings would; the contract closes it."""

    def __call__(
        self,
        *,
        address: str | None = None,
        wrong_secret: bool = False,
        missing_bucket: bool = False,
        timeout_seconds: float = 30.0,
    ) -> StorageBackend:
        """`address`: where to reach the server, instead of its own; `timeout_seconds` of one request."""
        ...


class RemoteStorageContract(StorageContract):
    """The behaviours of a backend behind a network. A subclass supplies the fixtures `connect` and `server_address`."""

    secrets: tuple[str, ...] = ()
    """What no error may ever tell."""
    own_headers = True
    """Objects carry the headers they were written with; where the vendor sends its own, False."""
    named_downloads = True
    """A signed URL says what the object is to be saved as."""
    unchecked_parameters: frozenset[str] = frozenset()
    """Of a signed URL: what the server does not look at."""

    unchecked_fields: frozenset[str] = frozenset()
    """Of a form with which a stranger may write: what the server does not look at."""

    @pytest.fixture
    def connect(self) -> Connect:
        raise NotImplementedError

    @pytest.fixture
    def server_address(self) -> str | None:
        """`http://127.0.0.1:port`; None where the server is somebody else's, and nothing can be put before it."""
        raise NotImplementedError

    def unsigned_address(self, storage: StorageBackend, signed_url: str, key: str) -> str:
        """Where the object would be fetched if it were open."""
        return urlunsplit(urlsplit(signed_url)._replace(query=""))

    async def unfinished(self, storage: StorageBackend) -> list[str]:
        """Uploads begun and neither finished nor removed."""
        return []

    @pytest.fixture
    async def connected(self, connect: Connect) -> AsyncIterator[Connect]:
        """`connect`, but that everything it gave is closed afterwards."""
        backends: list[StorageBackend] = []

        def remembering(
            *,
            address: str | None = None,
            wrong_secret: bool = False,
            missing_bucket: bool = False,
            timeout_seconds: float = 30.0,
        ) -> StorageBackend:
            backend = connect(
                address=address,
                wrong_secret=wrong_secret,
                missing_bucket=missing_bucket,
                timeout_seconds=timeout_seconds,
            )
            backends.append(backend)
            return backend

        yield remembering
        for backend in backends:
            await backend.close()

    @pytest.fixture
    async def storage(self, connected: Connect) -> StorageBackend:
        return connected()

    @pytest.fixture
    async def wire(self, server_address: str | None) -> AsyncIterator[Wire]:
        if server_address is None:
            pytest.skip("nothing can be put before a server that is not ours")
        parts = urlsplit(server_address)
        assert parts.hostname is not None
        assert parts.port is not None
        async with Wire(parts.hostname, parts.port) as wire:
            yield wire

    @pytest.fixture
    async def stranger(self) -> AsyncIterator[httpx.AsyncClient]:
        """A plain client: it knows nothing but the URL it is given."""
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            yield client

    @pytest.fixture
    def open_to_all(self, storage: StorageBackend) -> StorageBackend:
        if not storage.capabilities.public_access:
            absent(storage, "public_access", "shows strangers nothing")
        return storage

    @pytest.fixture
    def signing(self, storage: StorageBackend) -> StorageBackend:
        if not storage.capabilities.signed_urls:
            absent(storage, "signed_urls", "signs no URLs")
        return storage

    @pytest.fixture
    def presigning(self, storage: StorageBackend) -> StorageBackend:
        if not storage.capabilities.presigned_uploads:
            absent(storage, "presigned_uploads", "lets no strangers write")
        return storage

    @pytest.fixture
    def public_key(self, key: str) -> str:
        return with_visibility(key, Visibility.PUBLIC)

    # ── Public addresses ────────────────────────────────────────────────────────────────────────────────────────────

    @pytest.mark.capability("public_access")
    async def test_a_public_object_is_given_to_anybody_at_its_address(
        self, open_to_all: StorageBackend, public_key: str, stranger: httpx.AsyncClient
    ) -> None:
        stored = await open_to_all.upload(public_key, image(), content_type=PNG)
        url = open_to_all.url(public_key)
        assert url is not None
        assert stored.url in {None, url}
        answer = await stranger.get(url)
        assert (answer.status_code, answer.headers["content-type"]) == (200, PNG)
        assert answer.content == image()
        assert answer.headers.get("content-disposition", "inline") == "inline"
        assert "public" in answer.headers["cache-control"]
        assert await open_to_all.delete(public_key)

    @pytest.mark.capability("public_access")
    async def test_a_public_address_holds_names_of_every_kind(
        self, open_to_all: StorageBackend, folder: str, stranger: httpx.AsyncClient
    ) -> None:
        public = with_visibility(folder, Visibility.PUBLIC)
        keys = [f"{public}/{name}" for name in STRANGE_NAMES if self.fits(open_to_all, f"{public}/{name}")]
        for seed, key in enumerate(keys):
            await open_to_all.upload(key, image(seed), content_type=PNG)
        for seed, key in enumerate(keys):
            url = open_to_all.url(key)
            assert url is not None
            answer = await stranger.get(url)
            assert (answer.status_code, answer.content) == (200, image(seed)), key
        assert await open_to_all.cleanup_failed_assets(keys) == ()

    @pytest.mark.capability("public_access")
    async def test_an_object_gone_private_is_gone_from_its_public_address(
        self, open_to_all: StorageBackend, key: str, public_key: str, stranger: httpx.AsyncClient
    ) -> None:
        await open_to_all.upload(public_key, image(), content_type=PNG)
        url = open_to_all.url(public_key)
        assert url is not None
        assert (await stranger.get(url)).status_code == 200
        await open_to_all.set_visibility(public_key, Visibility.PRIVATE)
        assert (await stranger.get(url)).status_code in REFUSED
        await open_to_all.set_visibility(key, Visibility.PUBLIC)
        assert (await stranger.get(url)).content == image()
        await open_to_all.delete(public_key)
        assert (await stranger.get(url)).status_code in REFUSED

    @pytest.mark.capability("public_access")
    async def test_strangers_can_neither_write_nor_remove_a_public_object(
        self, open_to_all: StorageBackend, public_key: str, stranger: httpx.AsyncClient
    ) -> None:
        await open_to_all.upload(public_key, image(1), content_type=PNG)
        url = open_to_all.url(public_key)
        assert url is not None
        assert (await stranger.put(url, content=image(2), headers={"content-type": PNG})).status_code in REFUSED
        assert (await stranger.delete(url)).status_code in REFUSED
        assert await read(open_to_all, public_key) == image(1)

    # ── Uploads by strangers ────────────────────────────────────────────────────────────────────────────────────────

    @pytest.mark.capability("presigned_uploads")
    async def test_a_stranger_may_write_the_one_object_he_was_given_leave_for(
        self, presigning: StorageBackend, key: str, stranger: httpx.AsyncClient
    ) -> None:
        leave = await presigning.presign_upload(key, max_bytes=len(image()), expires_at=minutes(5))
        assert minutes(4) < leave.expires_at <= minutes(5)
        assert (await used(leave, image(), stranger)).is_success
        assert await read(presigning, key) == image()

    @pytest.mark.capability("presigned_uploads")
    async def test_leave_to_write_is_good_for_nothing_else(
        self, presigning: StorageBackend, folder: str, stranger: httpx.AsyncClient
    ) -> None:
        mine, other = f"{folder}/{uuid4()}", f"{folder}/{uuid4()}"
        leave = await presigning.presign_upload(mine, max_bytes=1_000_000, expires_at=minutes(5))
        one, two = mine.rpartition("/")[2], other.rpartition("/")[2]
        elsewhere = replace(
            leave,
            url=leave.url.replace(one, two),
            fields={name: value.replace(one, two) for name, value in leave.fields.items()},
        )
        assert elsewhere != leave
        assert (await used(elsewhere, image(), stranger)).status_code in REFUSED
        assert not await presigning.exists(other)
        if leave.method == "PUT":
            assert (await used(leave, image(), stranger)).is_success
            assert (await stranger.get(leave.url)).status_code in REFUSED
            assert (await stranger.delete(leave.url)).status_code in REFUSED
            assert await read(presigning, mine) == image()

    @pytest.mark.capability("presigned_uploads")
    async def test_leave_to_write_is_refused_when_one_character_is_changed(
        self, presigning: StorageBackend, key: str, stranger: httpx.AsyncClient
    ) -> None:
        if not self.heavy:
            inapplicable("said of this backend elsewhere")
        leave = await presigning.presign_upload(key, max_bytes=1_000_000, expires_at=minutes(5))
        tried = [(name, replace(leave, url=url)) for name, url in tampered(leave.url)] if "?" in leave.url else []
        for name, value in leave.fields.items():
            for place in {0, len(value) // 2}:
                other = "1" if value[place] != "1" else "2"
                changed = f"{value[:place]}{other}{value[place + 1 :]}"
                tried.append((name, replace(leave, fields={**leave.fields, name: changed})))
            lacking = {left: value for left, value in leave.fields.items() if left != name}
            tried.append((f"no {name}", replace(leave, fields=lacking)))
        assert tried
        for name, changed_leave in tried:
            if name in self.unchecked_fields:
                continue
            answer = await used(changed_leave, image(), stranger)
            assert answer.status_code in REFUSED, (name, answer.text)
        assert not await presigning.exists(key)

    @pytest.mark.capability("presigned_uploads")
    async def test_leave_to_write_expires(
        self, presigning: StorageBackend, key: str, stranger: httpx.AsyncClient
    ) -> None:
        if not self.heavy:
            inapplicable("said of this backend elsewhere")
        leave = await presigning.presign_upload(key, max_bytes=1_000_000, expires_at=soon(3))
        while datetime.now(UTC) <= leave.expires_at + timedelta(seconds=1):
            await anyio.sleep(0.1)
        assert (await used(leave, image(), stranger)).status_code in REFUSED
        assert not await presigning.exists(key)

    @pytest.mark.capability("presigned_uploads")
    async def test_who_writes_twice_is_refused_or_replaces_the_first(
        self, presigning: StorageBackend, key: str, stranger: httpx.AsyncClient
    ) -> None:
        leave = await presigning.presign_upload(key, max_bytes=1_000_000, expires_at=minutes(5))
        assert (await used(leave, image(1), stranger)).is_success
        again = await used(leave, image(2), stranger)
        assert again.is_success or again.status_code in {*REFUSED, 409}
        assert await read(presigning, key) == (image(2) if again.is_success else image(1))

    @pytest.mark.capability("caps_uploads")
    async def test_more_than_there_is_leave_for_is_refused_by_the_storage_itself(
        self, presigning: StorageBackend, key: str, stranger: httpx.AsyncClient
    ) -> None:
        if not presigning.capabilities.caps_uploads:
            absent(presigning, "caps_uploads", "does not limit what strangers write")
        leave = await presigning.presign_upload(key, max_bytes=len(image()) - 1, expires_at=minutes(5))
        for content in (image(), b""):
            assert (await used(leave, content, stranger)).status_code in {*REFUSED, 413}
        assert not await presigning.exists(key)
        assert (await used(leave, image()[:-1], stranger)).is_success

    # ── Signed URLs ─────────────────────────────────────────────────────────────────────────────────────────────────

    @pytest.mark.capability("signed_urls")
    async def test_a_private_object_is_given_to_who_has_a_signature_and_to_nobody_else(
        self, signing: StorageBackend, key: str, stranger: httpx.AsyncClient
    ) -> None:
        await signing.upload(key, image(), content_type=PNG)
        signed = await signing.generate_signed_url(key, 60)
        answer = await stranger.get(signed.url)
        assert (answer.status_code, answer.headers["content-type"]) == (200, PNG)
        assert answer.content == image()
        unsigned = await stranger.get(self.unsigned_address(signing, signed.url, key))
        assert unsigned.status_code in REFUSED
        assert signing.url(key) is None

    @pytest.mark.capability("signed_urls")
    @pytest.mark.parametrize("filename", FILENAMES, ids=ascii)
    async def test_a_signed_url_says_what_to_save_the_object_as(
        self, signing: StorageBackend, key: str, filename: str, stranger: httpx.AsyncClient
    ) -> None:
        if not self.named_downloads:
            inapplicable(f"{signing.name} does not name downloads")
        await signing.upload(key, image(), content_type=PNG)
        answer = await stranger.get((await signing.generate_signed_url(key, 60, filename=filename)).url)
        assert (answer.status_code, answer.content) == (200, image())
        assert answer.headers["content-disposition"] == content_disposition(filename)

    @pytest.mark.capability("signed_urls")
    async def test_a_signed_url_is_refused_when_one_character_is_changed(
        self, signing: StorageBackend, key: str, stranger: httpx.AsyncClient
    ) -> None:
        await signing.upload(key, image(), content_type=PNG)
        signed = await signing.generate_signed_url(key, 3600, filename="photo.png")
        assert (await stranger.get(signed.url)).status_code == 200
        tried = [(name, url) for name, url in tampered(signed.url) if name not in self.unchecked_parameters]
        assert tried
        for name, url in tried:
            answer = await stranger.get(url)
            assert answer.status_code in REFUSED, (name, url)
            assert image() not in answer.content

    @pytest.mark.capability("signed_urls")
    async def test_a_signed_url_is_good_for_no_other_object(
        self, signing: StorageBackend, folder: str, stranger: httpx.AsyncClient
    ) -> None:
        mine, other = str(uuid4()), str(uuid4())
        for seed, name in enumerate((mine, other)):
            await signing.upload(f"{folder}/{name}.png", image(seed), content_type=PNG)
        signed = await signing.generate_signed_url(f"{folder}/{mine}.png", 3600)
        assert mine in signed.url
        answer = await stranger.get(signed.url.replace(mine, other))
        assert answer.status_code in REFUSED
        assert image(1) not in answer.content

    @pytest.mark.capability("signed_urls")
    async def test_a_signed_url_is_good_for_nothing_but_reading(
        self, signing: StorageBackend, key: str, stranger: httpx.AsyncClient
    ) -> None:
        await signing.upload(key, image(1), content_type=PNG)
        url = (await signing.generate_signed_url(key, 3600)).url
        assert (await stranger.put(url, content=image(2), headers={"content-type": PNG})).status_code in REFUSED
        assert (await stranger.delete(url)).status_code in REFUSED
        assert await read(signing, key) == image(1)

    @pytest.mark.capability("signed_urls")
    async def test_a_signed_url_expires(self, signing: StorageBackend, key: str, stranger: httpx.AsyncClient) -> None:
        await signing.upload(key, image(), content_type=PNG)
        for lifetime in ({"expiry_seconds": 3}, {"expiry_seconds": 3600, "not_after": time.time() + 3}):
            signed = await signing.generate_signed_url(key, **lifetime)
            answer = await stranger.get(signed.url)
            if datetime.now(UTC) < signed.expires_at:  # else this machine was held up, and nothing is to be said
                assert (answer.status_code, answer.content) == (200, image())
            await asyncio.sleep(max(signed.expires_at.timestamp() + 1.1 - time.time(), 0))
            answer = await stranger.get(signed.url)
            assert answer.status_code in REFUSED, lifetime
            assert image() not in answer.content

    @pytest.mark.capability("signed_urls")
    async def test_a_signed_url_lives_as_long_as_asked_but_for_a_window(
        self, signing: StorageBackend, key: str
    ) -> None:
        before = time.time()
        for asked in (10, 3600, 86_400, 604_800):
            window = min(asked // 10, 3600)
            expires = (await signing.generate_signed_url(key, asked)).expires_at.timestamp()
            assert before + asked - window - 1 <= expires <= time.time() + asked
        not_after = before + 100.5
        assert (await signing.generate_signed_url(key, not_after=not_after)).expires_at.timestamp() <= not_after + 1

    @pytest.mark.capability("signed_urls")
    async def test_within_a_window_every_process_signs_the_same_url(
        self, signing: StorageBackend, connected: Connect, key: str
    ) -> None:
        async def same() -> bool:
            first = await signing.generate_signed_url(key, 604_800, filename="photo.png")
            await asyncio.sleep(1.1)
            return first == await connected().generate_signed_url(key, 604_800, filename="photo.png")

        assert await same() or await same()  # a window lasts an hour: it may just have ended, but not twice

    @pytest.mark.capability("signed_urls")
    async def test_a_signed_url_holds_names_of_every_kind(
        self, signing: StorageBackend, folder: str, stranger: httpx.AsyncClient
    ) -> None:
        keys = [f"{folder}/{name}" for name in STRANGE_NAMES if self.fits(signing, f"{folder}/{name}")]
        for seed, key in enumerate(keys):
            await signing.upload(key, image(seed), content_type=PNG)
        for seed, key in enumerate(keys):
            answer = await stranger.get((await signing.generate_signed_url(key, 3600, filename="a b.png")).url)
            assert (answer.status_code, answer.content) == (200, image(seed)), key
        assert await signing.cleanup_failed_assets(keys) == ()

    @pytest.mark.capability("signed_urls")
    @pytest.mark.parametrize("way", ["delete", "clean-up", "going public"])
    async def test_a_signed_url_is_dead_when_its_object_is_gone(
        self, signing: StorageBackend, key: str, way: str, stranger: httpx.AsyncClient
    ) -> None:
        await signing.upload(key, image(), content_type=PNG)
        url = (await signing.generate_signed_url(key, 3600)).url
        assert (await stranger.get(url)).status_code == 200
        if way == "delete":
            assert await signing.delete(key)
        elif way == "clean-up":
            assert await signing.cleanup_failed_assets([key]) == ()
        else:
            await signing.set_visibility(key, Visibility.PUBLIC)
        assert (await stranger.get(url)).status_code in REFUSED

    @pytest.mark.capability("signed_urls")
    async def test_an_object_gone_private_is_given_to_who_has_a_signature_and_to_nobody_else(
        self, signing: StorageBackend, key: str, public_key: str, stranger: httpx.AsyncClient
    ) -> None:
        await signing.upload(public_key, image(), content_type=PNG)
        await signing.set_visibility(public_key, Visibility.PRIVATE)
        signed = await signing.generate_signed_url(key, 60)
        assert (await stranger.get(signed.url)).content == image()
        unsigned = await stranger.get(self.unsigned_address(signing, signed.url, key))
        assert unsigned.status_code in REFUSED

    @pytest.mark.capability("signed_urls")
    async def test_type_and_cache_rule_follow_the_object_where_it_moves(
        self, signing: StorageBackend, key: str, public_key: str, stranger: httpx.AsyncClient
    ) -> None:
        if not self.own_headers:
            inapplicable(f"{signing.name} sends headers of its own")

        async def headers(of: str) -> tuple[str, str, str]:
            answer = await stranger.get((await signing.generate_signed_url(of, 60)).url)
            sent = answer.headers
            return sent["content-type"], re.sub(r"\d+", "N", sent["cache-control"]), sent["content-disposition"]

        private = (PNG, "private, no-cache", "inline")
        public = (PNG, "public, max-age=N", "inline")
        await signing.upload(key, image(), content_type=PNG)
        assert await headers(key) == private
        await signing.set_visibility(key, Visibility.PUBLIC)
        assert await headers(public_key) == public
        await signing.set_visibility(public_key, Visibility.PRIVATE)
        assert await headers(key) == private

    # ── Transfers broken off ────────────────────────────────────────────────────────────────────────────────────────

    @pytest.fixture
    async def leaves_nothing(self, storage: StorageBackend) -> Callable[[str], Awaitable[bool]]:
        """Whether there is nothing of a key after clean-up, not even parts."""
        before = set(await self.unfinished(storage))

        async def leaves_nothing(key: str) -> bool:
            assert await storage.cleanup_failed_assets([key]) == ()
            return await listed(storage, key) == {} and set(await self.unfinished(storage)) <= before

        return leaves_nothing

    @Transfers
    async def test_an_upload_cancelled_midway_leaves_nothing(
        self,
        connected: Connect,
        storage: StorageBackend,
        wire: Wire,
        key: str,
        data: bytes,
        after: int,
        leaves_nothing: Callable[[str], Awaitable[bool]],
    ) -> None:
        behind = connected(address=wire.address)
        midway = wire.stall(up=after)
        task = asyncio.create_task(behind.upload(key, data, content_type=PNG))
        with anyio.fail_after(LONG_AFTER):
            await midway.reached.wait()
            task.cancel()
            await asyncio.wait((task,), timeout=0.2)
            if not task.done():  # it waits for what it began
                midway.release()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await leaves_nothing(key)
            midway.release()
            await asyncio.sleep(0.2)
        assert not await storage.exists(key), "it landed after all"

    @Transfers
    async def test_an_upload_cut_midway_is_whole_in_the_end_or_leaves_nothing(
        self,
        connected: Connect,
        storage: StorageBackend,
        wire: Wire,
        key: str,
        data: bytes,
        after: int,
        leaves_nothing: Callable[[str], Awaitable[bool]],
    ) -> None:
        behind = connected(address=wire.address, timeout_seconds=3)
        wire.cut(up=after)
        with anyio.fail_after(LONG_AFTER):
            try:
                await behind.upload(key, data, content_type=PNG)
            except StorageUnavailable:
                assert await leaves_nothing(key)
            else:  # it went on where it was cut
                assert await read(storage, key) == data

    @pytest.mark.parametrize("data", [image(), large_image()], ids=["small", "8 MB"])
    async def test_an_upload_whose_answer_is_lost_is_not_taken_for_somebody_elses(
        self, connected: Connect, storage: StorageBackend, wire: Wire, folder: str, data: bytes
    ) -> None:
        behind = connected(address=wire.address)
        await behind.upload(f"{folder}/first.png", image(), content_type=PNG)  # what it asks before the first is asked
        for after in ANSWERS_LOST:
            key = f"{folder}/{after}.png"
            wire.cut(down=after, once=True)
            try:
                await behind.upload(key, data, content_type=PNG)
            except ObjectExists:
                raise
            except StorageError:
                assert await storage.cleanup_failed_assets([key]) == ()
                assert not await storage.exists(key)
            else:
                assert await read(storage, key) == data

    async def test_a_move_whose_answer_is_lost_can_be_carried_to_its_end(
        self, connected: Connect, storage: StorageBackend, wire: Wire, folder: str
    ) -> None:
        behind = connected(address=wire.address)
        await behind.upload(f"{folder}/first.png", image(), content_type=PNG)  # what it asks before the first is asked
        for seed, after in enumerate(ANSWERS_LOST):
            key = f"{folder}/{after}.png"
            await storage.upload(key, image(seed), content_type=PNG)
            wire.cut(down=after, once=True)
            with suppress(StorageUnavailable):
                await behind.set_visibility(key, Visibility.PUBLIC)
            moved = await storage.set_visibility(key, Visibility.PUBLIC)
            assert not await storage.exists(key)
            assert await read(storage, moved.key) == image(seed)
            assert await storage.delete(moved.key)

    @pytest.mark.capability("verifies_writes")
    @Transfers
    async def test_wrong_bytes_are_noticed_and_never_stay(
        self,
        connected: Connect,
        storage: StorageBackend,
        wire: Wire,
        key: str,
        data: bytes,
        after: int,
        leaves_nothing: Callable[[str], Awaitable[bool]],
    ) -> None:
        behind = connected(address=wire.address)
        wire.corrupt(up=after)
        try:
            await behind.upload(key, data, content_type=PNG)
        except StorageError:
            assert await leaves_nothing(key)
        else:  # noticed, and sent again
            assert await read(storage, key) == data
        assert wire.corrupted

    @Transfers
    async def test_a_download_cut_short_never_ends_quietly(
        self, connected: Connect, storage: StorageBackend, wire: Wire, key: str, data: bytes, after: int
    ) -> None:
        await storage.upload(key, data, content_type=PNG)
        behind = connected(address=wire.address, timeout_seconds=3)
        wire.cut(down=after)
        with suppress(StorageUnavailable):  # or it goes on where it was cut
            assert await read(behind, key) == data

    @pytest.mark.parametrize("after", [20, 100, 250, 400])
    async def test_an_answer_is_taken_whole_or_is_an_error(
        self, connected: Connect, storage: StorageBackend, wire: Wire, key: str, after: int
    ) -> None:
        # Where a connection ends amid the headers, Python's own HTTP client takes them for all there are, and what
        # should follow for an empty body.
        stored = await storage.upload(key, image(), content_type=PNG)
        behind = connected(address=wire.address, timeout_seconds=3)
        wire.cut(down=after)

        async def whole_or_an_error(call: Awaitable[object], expected: object) -> None:
            with suppress(StorageUnavailable):
                assert await call == expected

        async def sizes() -> list[int]:
            return [record.size for record in (await listed(behind, key)).values()]

        async with anyio.create_task_group() as group:
            group.start_soon(whole_or_an_error, behind.get_size(key), stored.size)
            group.start_soon(whole_or_an_error, behind.exists(key), True)
            group.start_soon(whole_or_an_error, read(behind, key), image())
            group.start_soon(whole_or_an_error, sizes(), [stored.size])

    @Transfers
    async def test_a_download_that_stalls_midway_is_an_error(
        self, connected: Connect, storage: StorageBackend, wire: Wire, key: str, data: bytes, after: int
    ) -> None:
        await storage.upload(key, data, content_type=PNG)
        behind = connected(address=wire.address, timeout_seconds=1)
        wire.stall(down=after)
        with anyio.fail_after(LONG_AFTER), pytest.raises(StorageUnavailable):
            await read(behind, key)

    async def test_a_download_cancelled_midway_harms_nothing(
        self, connected: Connect, storage: StorageBackend, wire: Wire, key: str
    ) -> None:
        await storage.upload(key, large_image(), content_type=PNG)
        behind = connected(address=wire.address)
        midway = wire.stall(down=1_000_000)
        task = asyncio.create_task(read(behind, key))
        with anyio.fail_after(LONG_AFTER):
            await midway.reached.wait()
            task.cancel()
            midway.release()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await read(behind, key) == large_image()

    async def test_a_slow_way_is_no_error(self, connected: Connect, wire: Wire, key: str) -> None:
        behind = connected(address=wire.address)
        wire.delay(0.05)
        await behind.upload(key, medium_image(), content_type=PNG)
        assert await read(behind, key) == medium_image()

    # ── What the server says, translated ────────────────────────────────────────────────────────────────────────────

    def discreet(self, error: Exception | None, *never: str) -> bool:
        """Whether an error tells a caller nothing of the server."""
        assert isinstance(error, StorageError)
        words = ("127.0.0.1", "://", "Traceback", "<", *self.secrets, *never)
        return not any(word in error.detail for word in words)

    async def all_unavailable(self, storage: StorageBackend, key: str, file: Path) -> None:
        raised = await errors(storage, key, file)
        assert {name: type(error) for name, error in raised.items()} == dict.fromkeys(raised, StorageUnavailable)
        assert all(self.discreet(error, str(file), str(file.parent)) for error in raised.values())
        assert await storage.cleanup_failed_assets([key]) == (key,)

    async def works(self, storage: StorageBackend, key: str) -> bool:
        await storage.upload(key, image(), content_type=PNG)
        return await read(storage, key) == image() and await storage.delete(key)

    @pytest.mark.parametrize("wrong", ["wrong_secret", "missing_bucket"])
    async def test_wrong_settings_are_an_error_of_their_own_in_every_call(
        self, connected: Connect, key: str, tmp_path: Path, wrong: str
    ) -> None:
        storage = connected(**{wrong: True})  # type: ignore[arg-type]
        raised = await errors(storage, key, tmp_path / "upload")
        assert {name: type(error) for name, error in raised.items()} == dict.fromkeys(raised, StorageError)
        assert all(self.discreet(error, str(tmp_path)) for error in raised.values())
        assert await storage.cleanup_failed_assets([key]) == (key,)
        for call in ("check", "ping"):
            error = raised[call]
            assert isinstance(error, StorageError)
            assert len(error.detail.split()) > 3, "an operator reads this"

    async def test_a_server_that_refuses_connections_is_unavailable(
        self, connected: Connect, wire: Wire, key: str, tmp_path: Path
    ) -> None:
        storage = connected(address=wire.address, timeout_seconds=2)
        wire.refuse()
        await self.all_unavailable(storage, key, tmp_path / "upload")
        wire.restore()
        assert await self.works(storage, key)

    async def test_a_server_that_does_not_answer_is_unavailable(
        self, connected: Connect, wire: Wire, key: str, tmp_path: Path
    ) -> None:
        if not self.heavy:
            inapplicable("said of this backend elsewhere")
        storage = connected(address=wire.address, timeout_seconds=1)
        wire.stall()
        await self.all_unavailable(storage, key, tmp_path / "upload")
        wire.restore()
        assert await self.works(storage, key)

    @pytest.mark.parametrize("status", [429, 500, 503])
    async def test_a_server_that_cannot_now_is_unavailable(
        self, connected: Connect, wire: Wire, key: str, tmp_path: Path, status: int
    ) -> None:
        if not self.heavy:
            inapplicable("said of this backend elsewhere")
        storage = connected(address=wire.address, timeout_seconds=2)
        wire.answer(status, {"Content-Type": "application/xml"}, SLOW_DOWN)
        await self.all_unavailable(storage, key, tmp_path / "upload")
        assert wire.answered
        wire.restore()
        assert await self.works(storage, key)

    # ── Nothing is held for nothing ─────────────────────────────────────────────────────────────────────────────────

    async def test_making_one_asks_nobody_and_opens_nothing(self, connected: Connect, wire: Wire) -> None:
        wire.refuse()
        descriptors, threads = open_descriptors(), threading.active_count()
        storage = connected(address=wire.address)
        assert open_descriptors() <= descriptors
        assert threading.active_count() <= threads
        await storage.close()

    async def test_its_threads_end_when_it_is_closed(self, connected: Connect, key: str) -> None:
        before = set(threading.enumerate())
        storage = connected()
        assert await self.works(storage, key)
        await storage.close()
        with anyio.fail_after(LONG_AFTER):
            while {thread for thread in threading.enumerate() if thread not in before}:
                await asyncio.sleep(0.01)

    async def test_closing_twice_does_no_harm(self, connected: Connect, key: str) -> None:
        storage = connected()
        assert await self.works(storage, key)
        await storage.close()
        await storage.close()
