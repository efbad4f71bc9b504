"""Whatever owners, processes and operators do, in whatever order, an account is what its ledger and its assets say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule
from sqlalchemy import create_engine
from sqlalchemy.pool import StaticPool
from uuid_utils.compat import uuid7

from smart_assets.access.credits import Credits
from smart_assets.catalogue.models import AssetRecord, AssetState, CreditEntry, CreditKind, metadata
from smart_assets.catalogue.repository import Repository
from smart_assets.errors import InsufficientCredits
from smart_assets.settings import CreditSettings
from tests.catalogue.test_repository import a_record

OWNERS = st.sampled_from(["ann", "bob"])
PRICES = CreditSettings(per_size=1)
REQUESTS = st.sampled_from([None, None, "invoice 1", "invoice 2"])


@dataclass
class Account:
    """What an owner should have, by what was done."""

    granted: int = 0
    reserved: int = 0
    spent: int = 0

    @property
    def available(self) -> int:
        return self.granted - self.spent - self.reserved


@dataclass(frozen=True)
class Work:
    """An upload, or sizes being added, that has reserved `record.credits_reserved`."""

    record: AssetRecord
    is_growth: bool = False

    @property
    def price(self) -> int:
        return self.record.credits_reserved or 0


class Ledger(RuleBasedStateMachine):
    """Owners who are granted credits and spend them, on uploads that end, fail, die and come back to life."""

    at_work = Bundle("at_work")
    dead = Bundle("dead")
    ready = Bundle("ready")

    def __init__(self) -> None:
        super().__init__()
        self.engine = create_engine("sqlite://", poolclass=StaticPool)
        metadata.create_all(self.engine)
        self.accounts = {"ann": Account(), "bob": Account()}
        self.requests: dict[str, CreditEntry] = {}
        self.credits = Credits(PRICES, None)  # type: ignore[arg-type]  # only its prices

    def commit(self, *works: Callable[[Repository], object]) -> list[object]:
        """What they come to, in one transaction: of several uploads at once, one commit."""
        with self.engine.begin() as connection:
            catalogue = Repository(connection, writes=True)
            results = [work(catalogue) for work in works]
            catalogue.finish()
        return results

    # ── What is done ────────────────────────────────────────────────────────────────────────────────────────────────

    @rule(owner=OWNERS, amount=st.integers(-10, 30).filter(bool), request=REQUESTS)
    def grant(self, owner: str, amount: int, request: str | None) -> None:
        entry = CreditEntry(
            id=uuid7(),
            owner=owner,
            kind=CreditKind.GRANT,
            amount=amount,
            created_at=datetime.now(UTC),
            request=request,
        )
        if request in self.requests:
            assert self.commit(lambda catalogue: catalogue.grant(entry)) == [self.requests[request]]
            return
        account = self.accounts[owner]
        if amount + account.available < 0:
            with pytest.raises(InsufficientCredits):
                self.commit(lambda catalogue: catalogue.grant(entry))
            return
        self.commit(lambda catalogue: catalogue.grant(entry))
        account.granted += amount
        if request is not None:
            self.requests[request] = entry

    @rule(target=at_work, owner=OWNERS, prices=st.lists(st.integers(0, 12), min_size=1, max_size=3))
    def upload(self, owner: str, prices: list[int]) -> object:
        records = [a_record(owner=owner, credits_reserved=price) for price in prices]
        account = self.accounts[owner]
        if sum(prices) > account.available:
            with pytest.raises(InsufficientCredits):
                self.commit(lambda catalogue: catalogue.insert_pending(records))
            return multiple()
        self.commit(lambda catalogue: catalogue.insert_pending(records))
        account.reserved += sum(prices)
        return multiple(*(Work(record) for record in records))

    @rule(target=at_work, asset=consumes(ready), price=st.integers(0, 12))
    def grow(self, asset: AssetRecord, price: int) -> object:
        growing = replace(asset, state=AssetState.MOVING, lease="lease/2", credits_reserved=price)
        account = self.accounts[asset.owner]
        if price > account.available:
            with pytest.raises(InsufficientCredits):
                self.commit(lambda catalogue: catalogue.begin_growing(growing))
            return multiple()
        assert self.commit(lambda catalogue: catalogue.begin_growing(growing)) == [True]
        account.reserved += price
        return Work(growing, is_growth=True)

    @rule(target=ready, works=st.lists(consumes(at_work), min_size=1, max_size=3), part=st.floats(0, 1))
    def close(self, works: list[Work], part: float) -> object:
        made = [replace(work.record, credits_used=self._cost(work, part)) for work in works]
        pairs = list(zip(works, made, strict=True))
        assert self.commit(*(self._closing(work, record, part) for work, record in pairs)) == [True] * len(works)
        for work in works:
            account = self.accounts[work.record.owner]
            account.reserved -= work.price
            account.spent += int(work.price * part)
        return multiple(*(replace(r, state=AssetState.READY, lease=None, credits_reserved=None) for r in made))

    def _cost(self, work: Work, part: float) -> int:
        return (work.record.credits_used or 0) + int(work.price * part)

    def _closing(self, work: Work, record: AssetRecord, part: float) -> Callable[[Repository], bool]:
        def close(catalogue: Repository) -> bool:
            is_ours = catalogue.finish_growing(record, 0) if work.is_growth else catalogue.mark_ready(record)
            charge = self.credits.charge(record.owner, asset_id=record.id, key_id=None, sizes=int(work.price * part))
            if is_ours and charge is not None:
                catalogue.charge(charge)
            return is_ours

        return close

    @rule(target=ready, work=consumes(at_work))
    def fail(self, work: Work) -> object:
        self.accounts[work.record.owner].reserved -= work.price
        if not work.is_growth:
            gone = replace(work.record, state=AssetState.DELETING)
            self.commit(lambda catalogue: catalogue.give_up_pending(work.record))
            self.commit(lambda catalogue: catalogue.remove(gone))
            return multiple()
        self.commit(lambda catalogue: catalogue.finish_growing(work.record, 0))
        return replace(work.record, state=AssetState.READY, lease=None, credits_reserved=None)

    @rule(target=dead, work=consumes(at_work))
    def die(self, work: Work) -> Work:
        """Another process takes its row over, and finishes it."""
        (taken,) = self.commit(lambda catalogue: catalogue.take_over(work.record, "another/1"))
        assert isinstance(taken, AssetRecord)
        last = (lambda rows: rows.finish_growing(taken, 0)) if work.is_growth else (lambda rows: rows.remove(taken))
        assert self.commit(last, last) == [True, False]
        self.accounts[work.record.owner].reserved -= work.price
        return work

    @rule(work=dead)
    def come_back(self, work: Work) -> None:
        """It was only stopped, and does what it was about to."""
        assert self.commit(self._closing(work, replace(work.record, credits_used=99), 1.0)) == [False]
        if not work.is_growth:
            self.commit(lambda catalogue: catalogue.give_up_pending(work.record))

    @rule(owner=OWNERS, price=st.integers(1, 12))
    def compute_directly(self, owner: str, price: int) -> None:
        """Nothing is kept, so nothing was reserved."""
        charge = self.credits.charge(owner, asset_id=None, key_id=None, sizes=price)
        assert charge is not None
        account = self.accounts[owner]
        if price > account.available:
            with pytest.raises(InsufficientCredits):
                self.commit(lambda catalogue: catalogue.charge(charge))
            return
        self.commit(lambda catalogue: catalogue.charge(charge))
        account.spent += price

    @rule(asset=consumes(ready))
    def delete(self, asset: AssetRecord) -> None:
        def delete(catalogue: Repository) -> bool:
            deleting = catalogue.begin_deleting(asset.id, "lease/3")
            return deleting is not None and catalogue.remove(deleting)

        assert self.commit(delete) == [True]

    # ── What always holds ───────────────────────────────────────────────────────────────────────────────────────────

    @invariant()
    def every_account_is_what_its_rows_come_to(self) -> None:
        with self.engine.begin() as connection:
            catalogue = Repository(connection)
            assert catalogue.accounts_that_differ() == ()
            for owner, expected in self.accounts.items():
                found = catalogue.account(owner)
                entries = catalogue.credit_entries(owner, after=None, limit=10_000)
                assert found.balance == sum(entry.amount for entry in entries) == expected.granted - expected.spent
                assert (found.reserved, found.spent) == (expected.reserved, expected.spent)
                assert 0 <= found.reserved <= found.balance
                used = catalogue.daily_usage(owner, datetime(2020, 1, 1, tzinfo=UTC).date())
                assert sum(day.credits for day in used) == expected.spent

    def teardown(self) -> None:
        self.engine.dispose()


TestLedger = Ledger.TestCase
TestLedger.settings = settings(max_examples=25, stateful_step_count=25)


@pytest.mark.parametrize(
    ("size_bytes", "sizes", "price"),
    [(1, 0, 12), (1024 * 1024, 0, 12), (1024 * 1024 + 1, 0, 14), (1, 20, 72), (0, 0, 10)],
)
def test_each_begun_megabyte_counts(size_bytes: int, sizes: int, price: int) -> None:
    credits = Credits(CreditSettings(per_original=10, per_size=3, per_mb=2), None)  # type: ignore[arg-type]
    assert credits.price(originals=1, size_bytes=size_bytes, sizes=sizes) == price


def test_where_nothing_has_a_price_there_is_none() -> None:
    credits = Credits(CreditSettings(), None)  # type: ignore[arg-type]
    assert credits.price(originals=1, size_bytes=9, sizes=9) is None
    assert credits.charge("ann", asset_id=UUID(int=1), key_id=None, originals=1) is None
