"""Credits in the catalogue: an account is what its ledger and the assets come to, whoever writes at the same time."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, date, datetime
from random import Random
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from smart_assets.catalogue.database import Database
from smart_assets.catalogue.models import (
    AssetRecord,
    AssetState,
    Charge,
    CreditAccount,
    CreditEntry,
    CreditKind,
    DailyUsage,
)
from smart_assets.catalogue.repository import Repository
from smart_assets.errors import InsufficientCredits
from tests.catalogue.test_repository import LEASE, a_record, keep

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
A_KEY = uuid7()


@pytest.fixture
async def two(url: str) -> AsyncIterator[tuple[Database, Database]]:
    """As two processes have them."""
    databases = Database.open(url), Database.open(url)
    yield databases
    for database in databases:
        await database.close()


def a_grant(amount: int, owner: str = "ann", request: str | None = None) -> CreditEntry:
    return CreditEntry(
        id=uuid7(), owner=owner, kind=CreditKind.GRANT, amount=amount, created_at=datetime.now(UTC), request=request
    )


def a_charge(record: AssetRecord, credits: int, at: datetime = NOON, key_id: UUID | None = None) -> Charge:
    return Charge(
        entry_id=uuid7(),
        owner=record.owner,
        credits=credits,
        at=at,
        asset_id=record.id,
        key_id=key_id,
        originals=1,
        sizes=2,
        size_bytes=1000,
    )


async def grant(database: Database, amount: int, owner: str = "ann") -> None:
    await database.write(lambda catalogue: catalogue.grant(a_grant(amount, owner)))


async def begin(database: Database, price: int, **changes: object) -> AssetRecord:
    record = a_record(credits_reserved=price, **changes)
    await database.write(lambda catalogue: catalogue.insert_pending([record]))
    return record


def close(catalogue: Repository, record: AssetRecord, credits: int) -> bool:
    closed = catalogue.mark_ready(replace(record, credits_used=credits))
    if closed:
        catalogue.charge(a_charge(record, credits))
    return closed


async def account(database: Database, owner: str = "ann") -> tuple[int, int, int]:
    """Balance, reserved and spent; once it is seen that they are what the rows come to."""
    assert await database.read(lambda catalogue: catalogue.accounts_that_differ()) == ()
    found = await database.read(lambda catalogue: catalogue.account(owner))
    return found.balance, found.reserved, found.spent


async def test_an_upload_holds_what_it_may_cost_and_pays_for_what_was_made(two: tuple[Database, Database]) -> None:
    database, _ = two
    await grant(database, 20)
    record = await begin(database, 12)
    assert await account(database) == (20, 12, 0)
    assert await database.write(lambda catalogue: close(catalogue, record, 7))
    assert await account(database) == (13, 0, 7)
    kept = await database.read(lambda catalogue: catalogue.get(record.id))
    assert kept is not None
    assert (kept.credits_used, kept.credits_reserved) == (7, None)
    (charge, _) = await database.read(lambda catalogue: catalogue.credit_entries("ann", after=None, limit=9))
    assert (charge.amount, charge.asset_id, charge.kind) == (-7, record.id, CreditKind.CHARGE)


async def test_what_cannot_be_paid_is_not_begun(two: tuple[Database, Database]) -> None:
    database, _ = two
    with pytest.raises(InsufficientCredits, match="takes 1 credits, and 0 are available"):
        await begin(database, 1)
    await grant(database, 10)
    await begin(database, 6)
    batch = [a_record(credits_reserved=3), a_record(credits_reserved=2)]
    with pytest.raises(InsufficientCredits, match="takes 5 credits, and 4 are available"):
        await database.write(lambda catalogue: catalogue.insert_pending(batch))
    assert await database.read(lambda catalogue: catalogue.get_in_any_state(batch[0].id)) is None
    assert await account(database) == (10, 6, 0)


@pytest.mark.parametrize("by", ["itself", "another process"])
async def test_what_is_given_up_costs_nothing_from_that_moment(two: tuple[Database, Database], by: str) -> None:
    database, other = two
    await grant(database, 20)
    record = await begin(database, 12)
    if by == "itself":
        assert await database.write(lambda catalogue: catalogue.give_up_pending(record)) is AssetState.DELETING
        gone = replace(record, state=AssetState.DELETING)
    else:
        taken = await other.write(lambda catalogue: catalogue.take_over(record, "another"))
        assert taken is not None
        gone = taken
    assert await account(database) == (20, 0, 0), "though its bytes may stay for long"
    assert not await database.write(lambda catalogue: close(catalogue, record, 7))
    assert await other.write(lambda catalogue: catalogue.remove(gone))
    assert not await database.write(lambda catalogue: catalogue.remove(gone))
    assert await account(database) == (20, 0, 0)


@pytest.mark.parametrize("ends", ["made", "undone", "undone by another process"])
async def test_sizes_added_later_are_paid_for_like_the_first(two: tuple[Database, Database], ends: str) -> None:
    database, other = two
    await grant(database, 20)
    (kept,) = await keep(database, a_record(credits_used=3))
    growing = replace(kept, state=AssetState.MOVING, lease=LEASE, credits_reserved=8)
    assert await database.write(lambda catalogue: catalogue.begin_growing(growing))
    assert not await other.write(lambda catalogue: catalogue.begin_growing(growing)), "it is being done"
    assert await account(database) == (20, 8, 0)

    def finish(catalogue: Repository) -> bool:
        if ends != "made":
            return catalogue.finish_growing(held, 0)
        catalogue.charge(a_charge(growing, 5))
        return catalogue.finish_growing(replace(growing, credits_used=8), 0)

    held = growing
    if ends == "undone by another process":
        taken = await other.write(lambda catalogue: catalogue.take_over(growing, "another"))
        assert taken is not None
        held = taken
        assert await account(database) == (20, 0, 0), "though its bytes may stay for long"
    assert await other.write(finish)
    assert await account(database) == ((15, 0, 5) if ends == "made" else (20, 0, 0))
    now = await database.read(lambda catalogue: catalogue.get(kept.id))
    assert now is not None
    assert (now.credits_used, now.credits_reserved) == (8 if ends == "made" else 3, None)


async def test_a_storage_that_is_forgotten_holds_nothing_any_more(two: tuple[Database, Database]) -> None:
    database, _ = two
    for owner in ("ann", "bob"):
        await grant(database, 20, owner)
        await begin(database, 5, owner=owner, storage="memory")
        await begin(database, 6, owner=owner, storage="memory")
        await begin(database, 7, owner=owner)
    await database.write(lambda catalogue: catalogue.remove_storage("memory"))
    assert await account(database, "ann") == (20, 7, 0)
    assert await account(database, "bob") == (20, 7, 0)


async def test_a_grant_that_is_asked_for_again_counts_once(two: tuple[Database, Database]) -> None:
    async def ask(database: Database) -> CreditEntry:
        return await database.write(lambda catalogue: catalogue.grant(a_grant(10, request="r")))

    entries = await asyncio.gather(*(ask(database) for database in two * 10))
    assert len({entry.id for entry in entries}) == 1
    assert await account(two[0]) == (10, 0, 0)
    await asyncio.gather(*(grant(database, 1) for database in two * 10))
    assert await account(two[0]) == (30, 0, 0)


async def test_credits_are_taken_back_only_as_far_as_they_are_there(two: tuple[Database, Database]) -> None:
    database, _ = two
    await grant(database, 10)
    await begin(database, 6)
    with pytest.raises(InsufficientCredits, match="takes 5 credits, and 4 are available"):
        await grant(database, -5)
    await grant(database, -4)
    with pytest.raises(InsufficientCredits):
        await grant(database, -1, "bob")
    assert await account(database) == (6, 6, 0)
    assert len(await database.read(lambda catalogue: catalogue.credit_entries(None, after=None, limit=9))) == 2


async def test_of_many_who_spend_the_same_credits_no_more_are_served_than_can_pay(
    two: tuple[Database, Database],
) -> None:
    await grant(two[0], 100, "ann")
    await grant(two[0], 40, "bob")

    async def upload(database: Database, number: int) -> str:
        random = Random(number)
        owner, price = random.choice(["ann", "bob"]), random.randint(1, 9)
        try:
            record = await begin(database, price, owner=owner)
        except InsufficientCredits:
            return "refused"
        match random.choice(["made", "made", "failed", "killed"]):
            case "made":
                assert await database.write(lambda catalogue: close(catalogue, record, random.randint(0, price)))
            case "failed":
                await database.write(lambda catalogue: catalogue.give_up_pending(record))
            case "killed":
                other = two[number % 2]
                await asyncio.gather(
                    *(each.write(lambda catalogue: catalogue.take_over(record, "x")) for each in (database, other))
                )
        found = await database.read(lambda catalogue: catalogue.account(owner))
        assert 0 <= found.reserved <= found.balance
        return "served"

    outcomes = Counter(await asyncio.gather(*(upload(two[number % 2], number) for number in range(150))))
    assert min(outcomes["refused"], outcomes["served"]) > 5
    for owner, given in (("ann", 100), ("bob", 40)):
        balance, reserved, spent = await account(two[1], owner)
        assert (reserved, balance + spent) == (0, given)
        assert balance >= 0


async def test_the_ledger_comes_in_pages_newest_first(two: tuple[Database, Database]) -> None:
    database, _ = two
    entries = [a_grant(number, owner) for number in range(1, 6) for owner in ("ann", "bob")]
    for entry in entries:
        await database.write(lambda catalogue, entry=entry: catalogue.grant(entry))  # type: ignore[misc]
    mine = [entry for entry in reversed(entries) if entry.owner == "ann"]

    async def page(owner: str | None, after: UUID | None, limit: int) -> list[CreditEntry]:
        return list(await database.read(lambda rows: rows.credit_entries(owner, after=after, limit=limit)))

    assert await page("ann", None, 2) == mine[:2]
    assert await page("ann", mine[1].id, 9) == mine[2:]
    assert await page(None, None, 99) == entries[::-1]
    assert await page("eve", None, 9) == []


async def test_what_was_used_is_known_by_day_and_key(two: tuple[Database, Database]) -> None:
    database, _ = two
    await grant(database, 100)
    record = a_record()
    days = [(NOON, None), (NOON, A_KEY), (NOON, A_KEY), (datetime(2026, 11, 19, 23, tzinfo=UTC), A_KEY)]

    def spend(catalogue: Repository) -> None:
        for at, key in days:
            catalogue.charge(a_charge(record, 3, at, key))

    await database.write(spend)
    await database.write(lambda catalogue: catalogue.charge(a_charge(record, 0)))

    def used(day: int, key: UUID | None, times: int, credits: int) -> DailyUsage:
        return DailyUsage(
            day=date(2026, 11, day),
            key_id=key,
            originals=times,
            sizes=2 * times,
            size_bytes=1000 * times,
            credits=credits,
        )

    found = await database.read(lambda catalogue: catalogue.daily_usage("ann", date(2026, 11, 1)))
    assert found == (used(20, A_KEY, 2, 6), used(20, None, 2, 3), used(19, A_KEY, 1, 3))
    assert len(await database.read(lambda catalogue: catalogue.daily_usage("ann", date(2026, 11, 20)))) == 2
    assert await account(database) == (88, 0, 12)


@pytest.mark.parametrize("damage", ["balance = balance + 1", "reserved = reserved + 1", "spent = spent - 1"])
async def test_an_account_that_is_not_the_sum_of_its_ledger_is_found(
    two: tuple[Database, Database], damage: str
) -> None:
    database, _ = two
    await grant(database, 20)
    await begin(database, 5)
    await database.write(
        lambda catalogue: catalogue._connection.exec_driver_sql(f"UPDATE credit_accounts SET {damage}")
    )
    ((there, right),) = await database.read(lambda catalogue: catalogue.accounts_that_differ())
    assert right == CreditAccount(owner="ann", balance=20, reserved=5)
    assert there != right


async def test_no_account_is_ever_written_that_is_not_covered(two: tuple[Database, Database]) -> None:
    database, _ = two
    await grant(database, 20)
    for damage in ("balance = -1", "reserved = -1", "reserved = 21"):
        with pytest.raises(Exception, match="ck_credit_accounts_covered"):
            await database.write(
                lambda catalogue, damage=damage: catalogue._connection.exec_driver_sql(  # type: ignore[misc]
                    f"UPDATE credit_accounts SET {damage}"
                )
            )
