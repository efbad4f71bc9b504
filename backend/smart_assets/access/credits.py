"""What uploads cost their owner, and who pays when.

    reserve   with the intent, in its transaction: all that is asked for, or InsufficientCredits
    charge    with the close, in its transaction: what was delivered; what is left of the reservation is free again

An upload that fails, or whose process dies, sets its reservation free in the transaction that gives its row up. Where
no row is kept (`direct`) there is nothing to hold a reservation by: what was delivered is charged at the end, in the
transaction that remembers the answer, and is not handed out where it cannot be paid.

The rows say what is held, not the settings: prices may change, or go, while uploads are under way.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from uuid_utils.compat import uuid7

from smart_assets.access.api_keys import Caller
from smart_assets.catalogue.database import Database
from smart_assets.catalogue.models import Charge, CreditAccount, CreditEntry, CreditKind, DailyUsage
from smart_assets.errors import IdempotencyConflict, InsufficientCredits
from smart_assets.settings import CreditSettings

MOST_AT_ONCE: Final = 10**12
"""Most credits of one grant."""

_MB: Final = 1024 * 1024


class Credits:
    """The credits of all owners, at this service's prices."""

    def __init__(self, prices: CreditSettings, database: Database) -> None:
        """Over the catalogue."""
        self._prices = prices
        self._database = database

    # ── Prices ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def are_on(self) -> bool:
        """Whether anything is metered."""
        return self._prices.are_on

    def price(self, *, originals: int = 0, size_bytes: int = 0, sizes: int = 0) -> int | None:
        """What an original of so many bytes (or none) and sizes cost; None where nothing is metered."""
        if not self._prices.are_on:
            return None
        megabytes = -(-size_bytes // _MB)
        return originals * self._prices.per_original + megabytes * self._prices.per_mb + sizes * self._prices.per_size

    def charge(
        self,
        owner: str,
        *,
        asset_id: UUID | None,
        key_id: UUID | None,
        originals: int = 0,
        size_bytes: int = 0,
        sizes: int = 0,
    ) -> Charge | None:
        """What an owner is to pay for what was delivered; None where nothing is metered."""
        price = self.price(originals=originals, size_bytes=size_bytes, sizes=sizes)
        if price is None:
            return None
        return Charge(
            entry_id=uuid7(),
            owner=owner,
            credits=price,
            at=datetime.now(UTC),
            asset_id=asset_id,
            key_id=key_id,
            originals=originals,
            sizes=sizes,
            size_bytes=size_bytes,
        )

    # ── Accounts ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def check(self, owner: str, price: int | None) -> None:
        """InsufficientCredits where an owner could not pay so much now; nothing is reserved.

        For before the work, where that cannot be reserved yet. The catalogue is not asked where nothing is to be paid.
        """
        if price:
            available = (await self.account(owner)).available
            if available < price:
                raise InsufficientCredits(price, available)

    async def account(self, owner: str) -> CreditAccount:
        """What an owner has."""
        return await self._database.read(lambda catalogue: catalogue.account(owner))

    async def grant(
        self, owner: str, amount: int, *, note: str | None, by: Caller, idempotency_key: str | None
    ) -> tuple[CreditEntry, bool]:
        """Give an owner credits, or (below 0) take some back: the line in its ledger, and whether it was there before.

        Under an `idempotency_key` of the caller's that is done once, however late it is asked for again: money is not
        forgotten after a day. IdempotencyConflict where the key was used for another grant, InsufficientCredits where
        there are not as many to be taken back.
        """
        entry = CreditEntry(
            id=uuid7(),
            owner=owner,
            kind=CreditKind.GRANT,
            amount=amount,
            created_at=datetime.now(UTC),
            key_id=by.key_id,
            note=note,
            request=_request(by.owner, idempotency_key) if idempotency_key is not None else None,
        )
        written = await self._database.write(lambda catalogue: catalogue.grant(entry))
        if (written.owner, written.amount, written.note) != (owner, amount, note):
            raise IdempotencyConflict("this Idempotency-Key was used for another grant")
        return written, written.id != entry.id

    async def ledger(self, owner: str | None, *, after: UUID | None, limit: int) -> tuple[CreditEntry, ...]:
        """Lines of an owner's ledger, or (None) of everybody's, newest first."""
        return await self._database.read(lambda catalogue: catalogue.credit_entries(owner, after=after, limit=limit))

    async def daily(self, owner: str, *, days: int) -> tuple[DailyUsage, ...]:
        """What was delivered to an owner on each of the last `days` (UTC), today's among them, by key; newest first."""
        since = datetime.now(UTC).date() - timedelta(days=days - 1)
        return await self._database.read(lambda catalogue: catalogue.daily_usage(owner, since))


def _request(owner: str, idempotency_key: str) -> str:
    return hashlib.sha256(f"{owner}\0{idempotency_key}".encode()).hexdigest()
