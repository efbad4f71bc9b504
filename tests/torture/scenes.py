"""The requests in which the steps lie.

Each prepares what it needs, arms the service, and sends the one request during which it is to die; it returns what the
request was about.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from tests.torture.callers import SIZES, Callers, Unanswered, damaged, large, photo
from tests.torture.ledger import Asset, Ledger, Upload
from tests.torture.process import Service
from tests.torture.steps import CELLAR, Scene

_STOCK = 4


@dataclass(frozen=True)
class Stage:
    """A service that is to die, and who calls it."""

    service: Service
    callers: Callers
    ledger: Ledger

    async def upload(self, upload: Upload) -> Upload:
        """Send it to a service that dies of it."""
        self.service.arm()
        with suppress(Unanswered):
            await self.callers.send(self.service.url, upload)
        return upload

    async def asset(self, visibility: str) -> Asset:
        """One that is there with all its sizes, in the storage it was uploaded to; uploaded now, with some more for
        other scenes, where there is none."""
        for asset in self.ledger.kept():
            there = (asset.visibilities, asset.storages) == ({visibility}, {self.callers.storage})
            if asset.sizes == SIZES and asset.added == {()} and there:
                return asset
        upload = self.callers.new_batch(_STOCK, sizes=SIZES, visibility=visibility)
        status = await self.callers.send(self.service.url, upload)
        if status != 201:
            raise RuntimeError(f"an upload that nobody disturbs was answered {status}")
        return upload.assets[0]


async def _change(stage: Stage, was: str, becomes: str) -> Asset:
    asset = await stage.asset(was)
    stage.service.arm()
    with suppress(Unanswered):
        await stage.callers.change(stage.service.url, asset, becomes)
    return asset


async def small_upload(stage: Stage) -> Upload:
    return await stage.upload(stage.callers.new_upload(media_type="image/jpeg"))


async def large_upload(stage: Stage) -> Upload:
    return await stage.upload(stage.callers.new_upload(large(), visibility="private"))


async def sized_upload(stage: Stage) -> Upload:
    return await stage.upload(stage.callers.new_upload(sizes=SIZES))


async def batch(stage: Stage) -> Upload:
    return await stage.upload(stage.callers.new_batch(3, visibility="private"))


async def damaged_batch(stage: Stage) -> Upload:
    return await stage.upload(stage.callers.new_upload(photo(1), damaged(), sizes=SIZES, batch=True))


async def deletion(stage: Stage) -> Asset:
    asset = await stage.asset("public")
    stage.service.arm()
    with suppress(Unanswered):
        await stage.callers.delete(stage.service.url, asset)
    return asset


async def growth(stage: Stage) -> Asset:
    asset = await stage.asset("private")
    stage.service.arm()
    with suppress(Unanswered):
        await stage.callers.grow(stage.service.url, asset)
    return asset


async def publishing(stage: Stage) -> Asset:
    return await _change(stage, "private", "public")


async def withdrawal(stage: Stage) -> Asset:
    return await _change(stage, "public", "private")


async def move(stage: Stage) -> Asset:
    asset = await stage.asset("private")
    stage.service.arm()
    with suppress(Unanswered):
        await stage.callers.move(stage.service.url, asset, CELLAR)
    return asset


async def keyed_upload(stage: Stage) -> Upload:
    return await stage.upload(stage.callers.new_upload(keyed=True))


async def keyed_batch(stage: Stage) -> Upload:
    return await stage.upload(stage.callers.new_batch(2, keyed=True))


async def keyed_refusal(stage: Stage) -> Upload:
    return await stage.upload(stage.callers.new_upload(damaged(), sizes=SIZES, keyed=True))


async def keyed_mistake(stage: Stage) -> Upload:
    return await stage.upload(stage.callers.new_upload(b"words", media_type="text/plain", keyed=True))


async def ticket_upload(stage: Stage) -> Upload:
    return await stage.upload(await stage.callers.new_ticket(stage.service.url))


async def ticket_completion(stage: Stage) -> Upload:
    return await stage.upload(await stage.callers.new_ticket(stage.service.url, to=CELLAR))


REQUESTS: dict[Scene, Callable[[Stage], Awaitable[Upload | Asset]]] = {
    Scene.SMALL_UPLOAD: small_upload,
    Scene.LARGE_UPLOAD: large_upload,
    Scene.SIZED_UPLOAD: sized_upload,
    Scene.BATCH: batch,
    Scene.DAMAGED_BATCH: damaged_batch,
    Scene.DELETION: deletion,
    Scene.GROWTH: growth,
    Scene.PUBLISHING: publishing,
    Scene.WITHDRAWAL: withdrawal,
    Scene.MOVE: move,
    Scene.KEYED_UPLOAD: keyed_upload,
    Scene.KEYED_BATCH: keyed_batch,
    Scene.KEYED_REFUSAL: keyed_refusal,
    Scene.KEYED_MISTAKE: keyed_mistake,
    Scene.TICKET_UPLOAD: ticket_upload,
    Scene.TICKET_COMPLETION: ticket_completion,
}
