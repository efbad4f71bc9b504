"""A storage that fails, hangs or cheats where a test says, over one that works."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, TypeVar
from urllib.parse import quote, urlencode

from smart_assets.expiry import Validity
from smart_assets.storage.base import (
    Capabilities,
    ObjectAtHand,
    PresignedUpload,
    SignedUrl,
    Source,
    StorageBackend,
    StoredObject,
)
from smart_assets.storage.errors import StorageError, StorageUnavailable
from smart_assets.storage.memory import MemoryStorage

Operation = Literal["put", "read", "stat", "delete", "list", "move", "check"]
T = TypeVar("T")


class DistantStorage(MemoryStorage):
    """Memory that behaves as if it lay behind a network: it is not at hand, signs URLs of its own, and may be open."""

    def __init__(self, name: str = "distant", *, public_access: bool = False, links_public: bool = True) -> None:
        super().__init__(name, 256 * 1024 * 1024)
        self.capabilities = Capabilities(
            signed_urls=True, presigned_uploads=True, public_access=public_access, links_public=links_public
        )

    def at_hand(self, key: str) -> ObjectAtHand | None:
        return None

    def _public_url(self, key: str) -> str | None:
        return f"https://bucket.example/{quote(key)}"

    async def _signed_url(self, key: str, validity: Validity, filename: str | None) -> SignedUrl:
        query = urlencode({"from": validity.begins, "until": validity.expires, "as": filename or ""})
        return SignedUrl(f"https://bucket.example/{quote(key)}?{query}", datetime.fromtimestamp(validity.expires, UTC))

    async def _presigned_upload(self, key: str, max_bytes: int, validity: Validity) -> PresignedUpload:
        query = urlencode({"most": max_bytes, "until": validity.expires})
        url = f"https://bucket.example/{quote(key)}?{query}"
        return PresignedUpload("PUT", url, datetime.fromtimestamp(validity.expires, UTC), headers={"X-Kind": "raw"})


@dataclass
class Hang:
    """A call that waits: `reached` is set when it has come, `release` lets it go on."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)

    def release(self) -> None:
        self.released.set()


@dataclass
class _Fault:
    operation: Operation
    at: int | None
    after: bool
    error: Exception | None = None
    hang: Hang | None = None


class FaultyStorage(StorageBackend):
    """Does what `inner` does (memory, unless another is given) but for the faults staged.

    Calls are counted by operation in `calls`; `at` is the number of the call, from 1, and None every call.
    """

    def __init__(self, name: str = "faulty", inner: StorageBackend | None = None) -> None:
        super().__init__(name)
        self.inner = inner or MemoryStorage(name, 256 * 1024 * 1024)
        self.capabilities = self.inner.capabilities
        self.calls: Counter[Operation] = Counter()
        self._faults: list[_Fault] = []
        self._short_puts: set[int] = set()
        self._spoilt_puts: set[int] = set()

    # ── Staging ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def fail(
        self, operation: Operation, *, at: int | None = None, after: bool = False, error: Exception | None = None
    ) -> None:
        """Fail, StorageUnavailable unless another error is given; `after=True`: when it is done all the same."""
        self._faults.append(_Fault(operation, at, after, error=error or StorageUnavailable("staged")))

    def hang(self, operation: Operation, *, at: int | None = None, after: bool = False) -> Hang:
        """Wait until released, or cancelled; `after=True`: when it is done."""
        hang = Hang()
        self._faults.append(_Fault(operation, at, after, hang=hang))
        return hang

    def shorten(self, *, at: int) -> None:
        """Keep only the first half of what that `put` is given, and report it truthfully."""
        self._short_puts.add(at)

    def spoil(self, *, at: int) -> None:
        """Keep other bytes than that `put` is given, as many of them, and say nothing of it."""
        self._spoilt_puts.add(at)

    def relent(self) -> None:
        """Work from now on, and count from the beginning."""
        self._faults.clear()
        self._short_puts.clear()
        self._spoilt_puts.clear()
        self.calls.clear()

    async def keys(self) -> set[str]:
        """What is really there, not counted and never failing."""
        async with aclosing(self.inner.list()) as records:
            return {record.key async for record in records}

    async def _play(self, operation: Operation, number: int, *, after: bool) -> None:
        for fault in tuple(self._faults):
            if fault.operation == operation and fault.at in {None, number} and fault.after == after:
                if fault.hang is not None:
                    fault.hang.reached.set()
                    await fault.hang.released.wait()
                if fault.error is not None:
                    raise fault.error

    async def _staged(self, operation: Operation, act: Callable[[], Awaitable[T]]) -> T:
        self.calls[operation] += 1
        number = self.calls[operation]
        await self._play(operation, number, after=False)
        result = await act()
        await self._play(operation, number, after=True)
        return result

    async def _staged_items(self, operation: Operation, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        self.calls[operation] += 1
        number = self.calls[operation]
        await self._play(operation, number, after=False)
        async with aclosing(items):
            async for item in items:
                yield item
                await self._play(operation, number, after=True)

    # ── The backend ─────────────────────────────────────────────────────────────────────────────────────────────────

    def at_hand(self, key: str) -> ObjectAtHand | None:
        return self.inner.at_hand(key)

    async def close(self) -> None:
        await self.inner.close()

    async def _put(self, key: str, source: Source, *, content_type: str, give_away: bool) -> StoredObject:
        if self.calls["put"] + 1 in self._short_puts:
            whole = source if isinstance(source, bytes) else source.read_bytes()
            source = whole[: len(whole) // 2]
        if self.calls["put"] + 1 in self._spoilt_puts:
            whole = source if isinstance(source, bytes) else source.read_bytes()
            source = whole[:-1] + bytes([whole[-1] ^ 1])
        return await self._staged(
            "put", lambda: self.inner._put(key, source, content_type=content_type, give_away=give_away)
        )

    def _read(self, key: str, start: int, end: int | None) -> AsyncGenerator[bytes, None]:
        return self._staged_items("read", self.inner._read(key, start, end))

    async def _stat(self, key: str) -> StoredObject:
        return await self._staged("stat", lambda: self.inner._stat(key))

    async def _delete(self, key: str) -> bool:
        return await self._staged("delete", lambda: self.inner._delete(key))

    def _list(self, prefix: str) -> AsyncGenerator[StoredObject, None]:
        return self._staged_items("list", self.inner._list(prefix))

    async def _move(self, key: str, target: str) -> StoredObject:
        return await self._staged("move", lambda: self.inner._move(key, target))

    async def _ping(self) -> None:
        await self._staged("check", self.inner._ping)

    async def _check(self) -> None:
        await self._staged("check", self.inner._check)

    def _public_url(self, key: str) -> str | None:
        return self.inner._public_url(key)

    async def _signed_url(self, key: str, validity: Validity, filename: str | None) -> SignedUrl:
        return await self.inner._signed_url(key, validity, filename)

    async def _presigned_upload(self, key: str, max_bytes: int, validity: Validity) -> PresignedUpload:
        return await self.inner._presigned_upload(key, max_bytes, validity)

    def _translate(self, error: Exception, key: str | None) -> StorageError | None:
        return self.inner._translate(error, key)
