"""The catalogue: what is written is found again, and rows change only from the state the caller thinks they are in."""

import asyncio
import logging
import random
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Never
from uuid import UUID

import anyio
import pytest
from hypothesis import given
from hypothesis.strategies import datetimes, just

from smart_assets.assets.objects import created_at, first_id_at, new_asset_id
from smart_assets.catalogue.database import Database
from smart_assets.catalogue.models import AssetRecord, AssetState, KeyRecord, TicketRecord, VariantRecord
from smart_assets.catalogue.repository import AssetFilter, Repository, fold
from smart_assets.errors import CatalogueUnavailable
from smart_assets.formats import ImageFormat
from smart_assets.settings import PostgresqlSettings
from smart_assets.visibility import Visibility

LEASE = "lease/1"
EVERYTHING = AssetFilter()


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    database = Database.open(url)
    yield database
    await database.close()


def a_record(**changes: object) -> AssetRecord:
    asset_id = new_asset_id()
    record = AssetRecord(
        id=asset_id,
        owner="ann",
        state=AssetState.PENDING,
        storage="local",
        visibility=Visibility.PUBLIC,
        filename="Ünïcode 写真.jpg",
        format=ImageFormat.JPEG,
        size_bytes=1000,
        width=40,
        height=30,
        sha256="0" * 64,
        created_at=created_at(asset_id),
        updated_at=created_at(asset_id),
        variants=(VariantRecord("800", "800-q60", ImageFormat.WEBP, 8, 6, 77),),
        tags=("trip", "été"),
        metadata={"album": 7, "nested": {"a": [1, None]}},
        expires_at=datetime(2030, 1, 1, tzinfo=UTC),
        lease=LEASE,
    )
    return replace(record, **changes)  # type: ignore[arg-type]


async def keep(database: Database, *records: AssetRecord) -> list[AssetRecord]:
    def insert(catalogue: Repository) -> bool:
        # At once: a service over the catalogue would take a row that nobody is at work on for left behind.
        catalogue.insert_pending(records)
        return all(catalogue.mark_ready(record) for record in records)

    assert await database.write(insert)
    return [replace(record, state=AssetState.READY, lease=None) for record in records]


async def ids(database: Database, criteria: AssetFilter = EVERYTHING) -> list[UUID]:
    found = await database.read(lambda catalogue: catalogue.list(criteria, limit=100))
    return [record.id for record in found]


async def test_an_asset_comes_back_as_it_went_in(database: Database) -> None:
    (kept,) = await keep(database, a_record())
    assert await database.read(lambda catalogue: catalogue.get(kept.id, "ann")) == kept


async def test_an_upload_under_way_is_not_there_for_callers(database: Database) -> None:
    record = a_record()
    await database.write(lambda catalogue: catalogue.insert_pending([record]))
    assert await database.read(lambda catalogue: catalogue.get(record.id)) is None
    assert await ids(database) == []
    assert await database.read(lambda catalogue: catalogue.totals()) == ()


async def test_another_owners_asset_is_not_there(database: Database) -> None:
    (kept,) = await keep(database, a_record())
    assert await database.read(lambda catalogue: catalogue.get(kept.id, "bob")) is None
    assert await ids(database, AssetFilter(owner="bob")) == []


async def test_a_row_taken_away_meanwhile_does_not_become_ready(database: Database) -> None:
    record = a_record()
    await database.write(lambda catalogue: catalogue.insert_pending([record]))
    taken = await database.write(lambda catalogue: catalogue.take_over(record, "another"))
    assert taken is not None
    assert taken.state is AssetState.DELETING
    assert not await database.write(lambda catalogue: catalogue.mark_ready(record))
    assert await database.write(lambda catalogue: catalogue.take_over(record, "a third")) is None


@pytest.mark.parametrize(
    "criteria",
    [
        AssetFilter(storage="memory"),
        AssetFilter(visibility=Visibility.PRIVATE),
        AssetFilter(tag="beach"),
        AssetFilter(tag="beach", owner="ann"),
        AssetFilter(filename_contains=fold("STRASSE")),
        AssetFilter(filename_contains=fold("100%_")),
    ],
)
async def test_lists_are_filtered(database: Database, criteria: AssetFilter) -> None:
    wanted = a_record(
        storage="memory", visibility=Visibility.PRIVATE, tags=("beach",), filename="Die Straße 100%_\\.jpg"
    )
    await keep(database, a_record(), wanted, a_record())
    assert await ids(database, criteria) == [wanted.id]


@pytest.mark.parametrize("criteria", [AssetFilter(tag="a\0"), AssetFilter(filename_contains="\0")])
async def test_nothing_has_a_text_that_cannot_be(database: Database, criteria: AssetFilter) -> None:
    await keep(database, a_record())
    assert await ids(database, criteria) == []


async def test_pages_follow_one_another_while_assets_come_and_go(database: Database) -> None:
    kept = [record.id for record in await keep(database, *(a_record() for _ in range(9)))]
    first = await database.read(lambda catalogue: catalogue.list(EVERYTHING, limit=4))
    assert [record.id for record in first] == kept[:4:-1]
    await keep(database, a_record())
    wanted = a_record(lease=LEASE)
    await database.write(lambda catalogue: catalogue.begin_deleting(kept[5], LEASE))
    await database.write(lambda catalogue: catalogue.remove(replace(wanted, id=kept[5])))
    second = await database.read(lambda catalogue: catalogue.list(EVERYTHING, limit=4, after=first[-1].id))
    assert [record.id for record in second] == kept[4:0:-1]
    oldest = await database.read(lambda catalogue: catalogue.list(EVERYTHING, limit=2, newest_first=False))
    assert [record.id for record in oldest] == kept[:2]


async def test_since_is_a_time_of_creation(database: Database) -> None:
    (kept,) = await keep(database, a_record())
    for moment, expected in ((kept.created_at, [kept.id]), (kept.created_at + timedelta(milliseconds=1), [])):
        assert await ids(database, AssetFilter(since=first_id_at(moment))) == expected


async def test_of_two_changes_to_one_version_one_wins(database: Database) -> None:
    (kept,) = await keep(database, a_record())
    first, second = (replace(kept, filename=name, tags=(name,), version=2) for name in ("a.jpg", "b.jpg"))
    assert await database.write(lambda catalogue: catalogue.change(first, 1))
    assert not await database.write(lambda catalogue: catalogue.change(second, 1))
    assert await database.read(lambda catalogue: catalogue.get(kept.id)) == first
    assert await ids(database, AssetFilter(tag="a.jpg")) == [kept.id]
    assert await ids(database, AssetFilter(tag="trip")) == []


async def test_totals_follow_every_change_of_state(database: Database) -> None:
    first, second = await keep(database, a_record(), a_record())
    (totals,) = await database.read(lambda catalogue: catalogue.totals())
    assert (totals.assets, totals.bytes) == (2, 2 * 1077)
    assert (totals.oldest, totals.newest) == (first.created_at, second.created_at)
    assert await database.write(lambda catalogue: catalogue.begin_deleting(first.id, LEASE))
    assert not await database.write(lambda catalogue: catalogue.begin_deleting(first.id, LEASE))
    (totals,) = await database.read(lambda catalogue: catalogue.totals())
    assert (totals.assets, totals.bytes, totals.oldest) == (1, 1077, second.created_at)
    assert await database.read(lambda catalogue: catalogue.count_deleting()) == 1


async def test_removing_an_asset_removes_its_tags(database: Database) -> None:
    (kept,) = await keep(database, a_record())
    await database.write(lambda catalogue: catalogue.begin_deleting(kept.id, LEASE))
    assert await database.write(lambda catalogue: catalogue.remove(replace(kept, lease=LEASE)))
    (again,) = await keep(database, replace(a_record(), tags=("trip",)))
    assert await ids(database, AssetFilter(tag="trip")) == [again.id]


async def test_abandoned_is_what_no_living_process_is_at_work_on(database: Database) -> None:
    claims = ("mine/1", "mine/2", "theirs/1", None, "dead/1")
    held, given_up, theirs, nobodys, dead = (a_record(lease=claim) for claim in claims)
    elsewhere = replace(a_record(lease="dead/1"), storage="elsewhere")
    rows = [held, given_up, theirs, nobodys, dead, elsewhere]
    await database.write(lambda catalogue: catalogue.insert_pending(rows))
    await keep(database, replace(a_record(), storage="quiet"))
    assert await database.read(lambda catalogue: catalogue.unsettled_storages()) == ("elsewhere", "local")

    def abandoned(after: UUID | None, limit: int) -> Callable[[Repository], tuple[AssetRecord, ...]]:
        return lambda catalogue: catalogue.abandoned(
            own_lease="mine", held=["mine/1"], living=["mine", "theirs"], storage="local", after=after, limit=limit
        )

    found = await database.read(abandoned(None, 10))
    assert [record.id for record in found] == [given_up.id, nobodys.id, dead.id]
    assert [record.id for record in await database.read(abandoned(given_up.id, 1))] == [nobodys.id]


async def test_a_move_swaps_the_storages_of_its_row_under_its_claim_alone(database: Database) -> None:
    (kept,) = await keep(database, a_record())
    assert not await database.write(lambda catalogue: catalogue.begin_moving_to(kept.id, "s3", 7, "mine/1"))
    assert await database.write(lambda catalogue: catalogue.begin_moving_to(kept.id, "s3", 1, "mine/1"))
    assert not await database.write(lambda catalogue: catalogue.begin_moving_to(kept.id, "gcs", 1, "mine/2"))
    moving = await database.write(lambda catalogue: catalogue.hold_move(kept.id, "mine/1"))
    assert moving == replace(kept, state=AssetState.MOVING, target_storage="s3", lease="mine/1")
    assert await database.write(lambda catalogue: catalogue.hold_move(kept.id, "theirs/1")) is None
    now = datetime.now(UTC)
    theirs = replace(moving, lease="theirs/1")
    assert await database.write(lambda catalogue: catalogue.switch_storage(theirs, now)) is None
    switched = await database.write(lambda catalogue: catalogue.switch_storage(moving, now))
    assert switched == replace(moving, storage="s3", target_storage="local", version=2, updated_at=now)
    assert await database.write(lambda catalogue: catalogue.hold_move(kept.id, "mine/1")) == switched
    assert await database.write(lambda catalogue: catalogue.switch_storage(moving, now)) is None  # never a second time
    totals = {of.storage: (of.assets, of.bytes) for of in await database.read(lambda catalogue: catalogue.totals())}
    assert totals == {"local": (0, 0), "s3": (1, kept.total_bytes)}
    assert await database.read(lambda catalogue: catalogue.count_moves(storage="s3", other="local")) == 1
    assert await database.read(lambda catalogue: catalogue.count_moves(storage="local", other="s3")) == 0
    assert not await database.write(lambda catalogue: catalogue.close_move(theirs))
    assert await database.write(lambda catalogue: catalogue.close_move(switched))
    found = await database.read(lambda catalogue: catalogue.get(kept.id))
    assert found == replace(kept, storage="s3", version=2, updated_at=now)


async def test_a_move_is_unsettled_at_both_storages_and_settled_at_the_one_that_is_to_be_emptied(
    database: Database,
) -> None:
    (kept,) = await keep(database, a_record())
    await database.write(lambda catalogue: catalogue.begin_moving_to(kept.id, "s3", 1, "dead/1"))
    assert await database.read(lambda catalogue: catalogue.count_by_storage(unsettled=True)) == {"local": 1, "s3": 1}
    assert await database.read(lambda catalogue: catalogue.count_by_storage()) == {"local": 1}
    assert await database.read(lambda catalogue: catalogue.unsettled_storages()) == ("s3",)
    for storage, number in (("s3", 1), ("local", 0)):
        found = await database.read(
            lambda catalogue, storage=storage: catalogue.abandoned(  # type: ignore[misc]
                own_lease="mine", held=[], living=[], storage=storage, after=None, limit=9
            )
        )
        assert len(found) == number


async def test_a_lease_that_beat_again_is_not_dropped(database: Database) -> None:
    for lease, beat in (("dead", 7), ("only stopped", 8)):
        await database.write(lambda catalogue, lease=lease, beat=beat: catalogue.beat(lease, beat))  # type: ignore[misc]
    await database.write(lambda catalogue: catalogue.drop_leases({"dead": 7, "only stopped": 7}))
    assert await database.read(lambda catalogue: catalogue.beats()) == {"only stopped": 8}


async def test_a_transaction_that_raises_leaves_nothing(database: Database) -> None:
    record = a_record()

    def fail(catalogue: Repository) -> Never:
        catalogue.insert_pending([record])
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await database.write(fail)
    await keep(database, record)


async def test_many_writers_at_once_lose_nothing(database: Database) -> None:
    records = [a_record() for _ in range(100)]
    async with anyio.create_task_group() as group:
        for record in records:
            group.start_soon(keep, database, record)
    assert len(await ids(database)) == 100
    (totals,) = await database.read(lambda catalogue: catalogue.totals())
    assert totals.assets == 100


async def test_one_failure_among_many_writers_is_its_own_alone(database: Database) -> None:
    def fail(_: Repository) -> Never:
        raise RuntimeError

    records = [a_record() for _ in range(20)]
    outcomes = await asyncio.gather(
        *(database.write(fail) if number % 5 == 0 else keep(database, records[number]) for number in range(20)),
        return_exceptions=True,
    )
    assert [isinstance(outcome, RuntimeError) for outcome in outcomes] == [number % 5 == 0 for number in range(20)]
    assert len(await ids(database)) == 16


async def test_a_write_that_is_cancelled_before_its_turn_never_happens(url: str) -> None:
    database = Database.open(url, PostgresqlSettings(writers=1))
    begun, go_on = threading.Event(), threading.Event()

    def slow(_: Repository) -> None:
        begun.set()
        go_on.wait(60)

    first = asyncio.create_task(database.write(slow))
    await asyncio.to_thread(begun.wait, 60)
    record = a_record()
    second = asyncio.create_task(database.write(lambda catalogue: catalogue.insert_pending([record])))
    await asyncio.sleep(0)
    second.cancel()
    first.cancel()
    await asyncio.sleep(0.05)
    assert not first.done(), "a transaction that runs is waited for"
    go_on.set()
    for task in (first, second):
        with pytest.raises(asyncio.CancelledError):
            await task
    await keep(database, record)
    await database.close()


async def test_writers_of_two_processes_lose_nothing(url: str) -> None:
    first, second = Database.open(url), Database.open(url)
    async with anyio.create_task_group() as group:
        for database in (first, second) * 40:
            group.start_soon(keep, database, a_record())
    (totals,) = await first.read(lambda catalogue: catalogue.totals())
    assert totals.assets == 80
    await first.close()
    await second.close()


async def test_a_catalogue_that_is_gone_is_an_error_of_ours(database: Database) -> None:
    await database.write(lambda catalogue: catalogue._connection.exec_driver_sql("DROP TABLE leases"))
    with pytest.raises(CatalogueUnavailable):
        await database.read(lambda catalogue: catalogue.beats())


async def test_what_one_transaction_has_got_another_changes_only_after_it(url: str) -> None:
    """Else a row is deleted by the keys it had when it was read, and its bytes stay at those it has got meanwhile."""
    first, second = Database.open(url), Database.open(url)
    (kept,) = await keep(first, a_record())
    got, go_on = threading.Event(), threading.Event()

    def delete(catalogue: Repository) -> AssetRecord | None:
        there = catalogue.get(kept.id)
        got.set()
        go_on.wait(60)
        assert catalogue.get(kept.id) == there
        return catalogue.begin_deleting(kept.id, LEASE)

    deleting = asyncio.create_task(first.write(delete))
    await asyncio.to_thread(got.wait, 60)
    changed = replace(kept, filename="new.jpg", version=2)
    changing = asyncio.create_task(second.write(lambda catalogue: catalogue.change(changed, 1)))
    done, _ = await asyncio.wait({changing}, timeout=0.1)
    assert not done
    go_on.set()
    assert await deleting == replace(kept, state=AssetState.DELETING, lease=LEASE)
    assert not await changing
    await first.close()
    await second.close()


async def test_of_many_who_ask_at_once_one_says_who_the_catalogue_is(url: str) -> None:
    databases = [Database.open(url) for _ in range(4)]
    known = await asyncio.gather(
        *(each.write(partial(Repository.identity, candidate=new_asset_id())) for each in databases * 3)
    )
    assert len(set(known)) == 1
    for each in databases:
        await each.close()


async def test_no_number_of_a_run_is_given_twice(url: str) -> None:
    databases = [Database.open(url) for _ in range(4)]
    runs = await asyncio.gather(*(each.write(partial(Repository.next_run, storage="s3")) for each in databases * 5))
    assert sorted(runs) == list(range(1, 21))
    assert await databases[0].write(lambda catalogue: catalogue.next_run("s3", beyond=99)) == 100
    assert await databases[0].read(lambda catalogue: catalogue.runs("s3")) == 100
    for each in databases:
        await each.close()


async def test_of_the_same_key_at_two_processes_one_wins(url: str) -> None:
    databases = [Database.open(url) for _ in range(4)]
    for number in range(10):
        record = KeyRecord(owner="ann", key=f"k{number}", request="0" * 64, created_at=datetime.now(UTC))
        won = await asyncio.gather(
            *(
                each.write(partial(Repository.claim_key, record=replace(record, claim=f"lease/{claim}")))
                for claim, each in enumerate(databases)
            )
        )
        assert sum(won) == 1
        found = await databases[0].read(partial(Repository.find_key, owner="ann", key=record.key))
        assert found is not None
        assert found.claim == f"lease/{won.index(True)}"
    for each in databases:
        await each.close()


async def test_names_come_in_the_order_of_their_letters_codes(database: Database) -> None:
    names = ["b", "A", "a", "_", "B", "ä", "Z"]
    await keep(database, *(a_record(storage=name) for name in names))
    await database.write(lambda catalogue: catalogue.insert_pending([a_record(storage=name) for name in names]))
    totals = await database.read(lambda catalogue: catalogue.totals())
    assert [each.storage for each in totals] == sorted(names)
    assert await database.read(lambda catalogue: catalogue.unsettled_storages()) == tuple(sorted(names))


async def test_totals_of_several_storages_are_changed_by_many_at_once(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In whatever order each changes them: none waits for another that waits for it."""
    caplog.set_level(logging.INFO, "smart_assets.catalogue")
    databases = [Database.open(url) for _ in range(2)]
    chance = random.Random(6)

    async def one(database: Database) -> None:
        storages = chance.sample(["a", "b", "c", "d"], 4)
        records = [a_record(storage=storage) for storage in storages]
        await database.write(lambda catalogue: catalogue.insert_pending(records))
        await database.write(lambda catalogue: [catalogue.mark_ready(record) for record in records])

    await asyncio.gather(*(one(each) for each in databases * 20))
    totals = await databases[0].read(lambda catalogue: catalogue.totals())
    assert [(each.storage, each.assets, each.bytes) for each in totals] == [(name, 40, 40 * 1077) for name in "abcd"]
    assert caplog.records == [], "none had to be run again"
    for each in databases:
        await each.close()


async def test_text_that_is_half_a_surrogate_pair_is_read_back(database: Database) -> None:
    (kept,) = await keep(database, a_record(metadata={"half": "\ud800"}))
    assert await database.read(lambda catalogue: catalogue.get_in_any_state(kept.id)) == kept


# ── Periods ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(
    moment=datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9999, 12, 31), timezones=just(UTC))  # noqa: DTZ001
)
def test_the_first_id_at_a_moment_is_the_first_made_then_or_later(moment: datetime) -> None:
    first = first_id_at(moment)
    milliseconds = first.int >> 80
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert epoch + timedelta(milliseconds=milliseconds) >= moment
    assert milliseconds == 0 or epoch + timedelta(milliseconds=milliseconds - 1) < moment


# ── Rows that come with their bytes there ───────────────────────────────────────────────────────────────────────────


async def test_rows_made_of_what_is_there_count_and_are_found(database: Database) -> None:
    one, two = (a_record(state=AssetState.READY, lease=None) for _ in range(2))
    assert await database.write(lambda catalogue: catalogue.insert_ready([one])) == 1
    assert await database.write(lambda catalogue: catalogue.insert_ready([replace(one, filename="x"), two])) == 1
    assert await database.write(lambda catalogue: catalogue.insert_ready([one, two])) == 0
    found = await database.read(lambda catalogue: catalogue.list(AssetFilter(tag="trip"), limit=10))
    assert found == (two, one)
    (totals,) = await database.read(lambda catalogue: catalogue.totals())
    assert (totals.assets, totals.bytes) == (2, one.total_bytes + two.total_bytes)


async def test_what_is_unsettled_is_counted_by_the_storage_that_is_to_be_put_right(database: Database) -> None:
    records = [a_record(), a_record(storage="s3"), a_record(storage="s3")]
    await database.write(lambda catalogue: catalogue.insert_pending(records))
    moving = await keep(database, a_record(), a_record())
    await database.write(
        lambda catalogue: [
            catalogue.begin_moving_to(moving[0].id, "azure", moving[0].version, "lease/2"),
            catalogue.begin_deleting(moving[1].id, "lease/2"),
        ]
    )
    assert await database.read(Repository.count_unsettled) == {
        ("local", AssetState.PENDING): 1,
        ("s3", AssetState.PENDING): 2,
        ("azure", AssetState.MOVING): 1,
        ("local", AssetState.DELETING): 1,
    }


# ── Tickets ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def a_ticket(**changes: object) -> TicketRecord:
    now = datetime.now(UTC)
    record = TicketRecord(
        id=new_asset_id(),
        owner="ann",
        key_id=new_asset_id(),
        storage="s3",
        incoming="private/incoming/x",
        max_bytes=2**40,
        wanted={"tags": ["été"], "nested": {"a": None}},
        created_at=now,
        expires_at=now,
    )
    return replace(record, **changes)  # type: ignore[arg-type]


async def keep_tickets(database: Database, *records: TicketRecord) -> None:
    for record in records:
        await database.write(partial(Repository.insert_ticket, record=record))


async def test_a_ticket_is_found_as_it_was_put_there_and_by_its_owner_only(database: Database) -> None:
    record, service = a_ticket(), a_ticket(key_id=None, incoming=None)
    await keep_tickets(database, record, service)
    assert await database.read(lambda catalogue: catalogue.find_ticket(record.id)) == record
    assert await database.read(lambda catalogue: catalogue.find_ticket(service.id, "ann")) == service
    assert await database.read(lambda catalogue: catalogue.find_ticket(record.id, "bob")) is None
    assert await database.read(lambda catalogue: catalogue.find_ticket(new_asset_id())) is None
    found = await database.read(lambda catalogue: catalogue.find_tickets([record.id, new_asset_id()]))
    assert found == {record.id: record}
    assert await database.read(lambda catalogue: catalogue.newest_id()) == max(record.id, service.id)


async def test_a_ticket_changes_only_under_the_claim_its_user_thinks_it_has(database: Database) -> None:
    record = a_ticket()
    await keep_tickets(database, record)
    claims = [partial(Repository.claim_ticket, record=record, claim=f"{LEASE}{number}") for number in range(8)]
    won = await asyncio.gather(*(database.write(claim) for claim in claims))
    assert sum(won) == 1
    mine = replace(record, claim=f"{LEASE}{won.index(True)}")
    theirs = replace(record, claim="other/1")
    for change in (Repository.free_ticket, Repository.finish_ticket, Repository.remove_ticket):
        for lost in (theirs, record):
            assert not await database.write(partial(change, record=lost))
    used = replace(mine, outcome={"file": {"asset": None}})
    assert await database.write(partial(Repository.finish_ticket, record=used))
    kept = await database.read(lambda catalogue: catalogue.find_ticket(record.id))
    assert kept == replace(record, outcome={"file": {"asset": None}})
    assert await database.write(partial(Repository.remove_ticket, record=record))
    assert await database.read(lambda catalogue: catalogue.find_ticket(record.id)) is None


async def test_tickets_of_the_dead_are_free_and_those_of_the_living_are_not(database: Database) -> None:
    claims = ("own/1", "own/2", "living/1", "dead/1", None)
    tickets = {claim: a_ticket(claim=claim) for claim in claims}
    await keep_tickets(database, *tickets.values())
    freed = await database.write(
        lambda catalogue: catalogue.free_abandoned_tickets(own_lease="own", held=["own/1"], living=["own", "living"])
    )
    assert freed == 2
    left = await database.read(lambda catalogue: catalogue.find_tickets([ticket.id for ticket in tickets.values()]))
    assert [left[ticket.id].claim for ticket in tickets.values()] == ["own/1", None, "living/1", None, None]


async def test_tickets_are_over_once_their_time_is(database: Database) -> None:
    now = datetime.now(UTC)
    old = [a_ticket(expires_at=now - timedelta(hours=hours)) for hours in (3, 5, 4)]
    elsewhere = a_ticket(expires_at=now - timedelta(hours=6), storage="gcs")
    others = [a_ticket(), a_ticket(expires_at=now - timedelta(hours=9), claim="lease/1")]
    plain = [a_ticket(expires_at=now - timedelta(hours=hours), incoming=None) for hours in (7, 8)]
    held = a_ticket(expires_at=now - timedelta(hours=8), incoming=None, claim="lease/2")
    before = now - timedelta(hours=2)
    assert not await database.read(lambda catalogue: catalogue.any_ticket_over(before))
    await keep_tickets(database, *old, elsewhere, *others, *plain, held)
    assert await database.read(lambda catalogue: catalogue.any_ticket_over(before))

    async def over(*but_for: str, limit: int = 10) -> list[UUID]:
        found = await database.read(lambda catalogue: catalogue.tickets_over(before, but_for=but_for, limit=limit))
        return [record.id for record in found]

    assert await over() == [elsewhere.id, old[1].id, old[2].id, old[0].id]
    assert await over("gcs", limit=2) == [old[1].id, old[2].id]
    assert await database.write(lambda catalogue: catalogue.forget_tickets(before, 1)) == 1
    assert await database.read(lambda catalogue: catalogue.find_ticket(plain[1].id)) is None
    assert await database.write(lambda catalogue: catalogue.forget_tickets(before, 10)) == 1
    left = await database.read(lambda catalogue: catalogue.find_tickets([*(each.id for each in plain), held.id]))
    assert set(left) == {held.id}
