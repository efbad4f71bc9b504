"""What is asked of a catalogue of a million assets is found by an index, in the order it is wanted in.

Asserted from the plans of the statements themselves, so that it holds on any machine: SQLite's planner is told by its
own statistics, in `sqlite_stat1`, how many rows there are; and asked once more without any, as in a catalogue nobody
ran ANALYZE on (this service does not).
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from smart_assets.assets.objects import first_id_at, new_asset_id
from smart_assets.catalogue.database import Database
from smart_assets.catalogue.models import CreditEntry, CreditKind
from smart_assets.catalogue.repository import AssetFilter, Repository
from smart_assets.visibility import Visibility
from tests.catalogue.test_repository import a_record, keep

MILLION = 1_000_000
NOW = datetime.now(UTC)
SOME = new_asset_id()
SINCE = first_id_at(NOW - timedelta(days=7))

# Of each index: its rows, then how many of them share its first column, its first two, …: one owner, three storages.
STATISTICS = {
    ("assets", "sqlite_autoindex_assets_1"): (MILLION, 1),
    ("assets", "ix_assets_owner_id"): (MILLION, MILLION, 1),
    ("assets", "ix_assets_owner_storage_id"): (MILLION, MILLION, MILLION // 3, 1),
    ("assets", "ix_assets_owner_visibility_id"): (MILLION, MILLION, MILLION // 2, 1),
    ("assets", "ix_assets_storage_id"): (MILLION, MILLION // 3, 1),
    ("assets", "ix_assets_visibility_id"): (MILLION, MILLION // 2, 1),
    ("assets", "ix_assets_storage_expires_at_id"): (MILLION // 5, MILLION // 15, 2, 1),
    ("assets", "ix_assets_unsettled"): (100, 50, 2),
    ("asset_tags", "sqlite_autoindex_asset_tags_1"): (2 * MILLION, 2 * MILLION, 1000, 1),
    ("asset_tags", "ix_asset_tags_asset_id"): (2 * MILLION, 2),
    ("asset_tags", "ix_asset_tags_tag_asset_id"): (2 * MILLION, 1000, 1),
}


@pytest.fixture(params=["a million rows", "no statistics"])
async def database(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    path = tmp_path / "catalogue.sqlite3"
    database = Database.open(f"sqlite:///{path}")
    await keep(database, *(a_record() for _ in range(3)))
    await database.close()
    if request.param == "a million rows":
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("ANALYZE")
            known = dict(connection.execute("SELECT idx, tbl FROM sqlite_stat1 WHERE tbl IN ('assets', 'asset_tags')"))
            claimed = {index: table for table, index in STATISTICS}
            assert known.items() <= claimed.items(), "an index whose size nobody claims here"
            connection.execute("DELETE FROM sqlite_stat1 WHERE tbl IN ('assets', 'asset_tags')")
            connection.executemany(
                "INSERT INTO sqlite_stat1 VALUES (?, ?, ?)",
                [(table, index, " ".join(map(str, sizes))) for (table, index), sizes in STATISTICS.items()],
            )
    database = Database.open(f"sqlite:///{path}")  # which reads them
    yield database
    await database.close()


async def plans(database: Database, work: Callable[[Repository], Any], *, writes: bool = False) -> list[str]:
    """Each step of the plans of every statement that `work` runs."""
    statements: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        statements.append((statement, parameters))

    def explained(catalogue: Repository) -> list[str]:
        engine = catalogue._connection.engine
        event.listen(engine, "before_cursor_execute", note)
        work(catalogue)
        event.remove(engine, "before_cursor_execute", note)
        return [
            step.detail
            for statement, parameters in statements
            for step in catalogue._connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        ]

    steps = await (database.write if writes else database.read)(explained)
    assert statements
    return steps


def by_index(steps: list[str]) -> set[str]:
    """The indexes of a plan that reads nothing it does not want, and sorts nothing."""
    for step in steps:
        assert "TEMP B-TREE" not in step, steps
        if re.match(r"(SCAN|SEARCH) (assets|asset_tags)\b", step):
            assert " USING " in step, steps
    return {match for step in steps for match in re.findall(r"INDEX (\w+)", step)}


ID = "sqlite_autoindex_assets_1"
TAGS = "sqlite_autoindex_asset_tags_1"


@pytest.mark.parametrize("after", [None, SOME], ids=["first page", "next page"])
@pytest.mark.parametrize("newest_first", [True, False], ids=["newest first", "oldest first"])
@pytest.mark.parametrize(
    ("criteria", "indexes"),
    [
        ({}, {ID}),
        ({"visibility": Visibility.PRIVATE}, {"ix_assets_visibility_id"}),
        ({"tag": "trip"}, {"ix_asset_tags_tag_asset_id", ID}),
        ({"owner": "ann"}, {"ix_assets_owner_id"}),
        ({"owner": "ann", "since": SINCE}, {"ix_assets_owner_id"}),
        ({"owner": "ann", "filename_contains": "x"}, {"ix_assets_owner_id"}),
        ({"owner": "ann", "storage": "local"}, {"ix_assets_owner_storage_id"}),
        ({"owner": "ann", "storage": "local", "since": SINCE}, {"ix_assets_owner_storage_id"}),
        ({"owner": "ann", "visibility": Visibility.PRIVATE}, {"ix_assets_owner_visibility_id"}),
        ({"owner": "ann", "tag": "trip"}, {TAGS, ID}),
        ({"owner": "ann", "tag": "trip", "since": SINCE}, {TAGS, ID}),
        (
            {"owner": "ann", "tag": "trip", "storage": "local", "visibility": Visibility.PUBLIC},
            {TAGS, ID},
        ),
        ({"storage": "local"}, {"ix_assets_storage_id"}),
    ],
    ids=lambda value: " ".join(sorted(value)),
)
async def test_a_page_of_the_library(
    database: Database, criteria: dict[str, Any], indexes: set[str], newest_first: bool, after: Any
) -> None:
    found = await plans(
        database, lambda rows: rows.list(AssetFilter(**criteria), limit=51, after=after, newest_first=newest_first)
    )
    assert by_index(found) == indexes
    if criteria:
        assert not any(step.startswith("SCAN") for step in found)
        assert found[0].startswith("SEARCH asset_tags" if "tag" in criteria else "SEARCH assets")


@pytest.mark.parametrize("owner", [None, "ann"])
async def test_an_asset_by_its_id(database: Database, owner: str | None) -> None:
    assert by_index(await plans(database, lambda rows: rows.get(SOME, owner))) == {ID}


async def test_statistics(database: Database) -> None:
    found = await plans(database, lambda rows: (rows.totals(), rows.count_deleting(), rows.last_run("retention")))
    assert by_index([step for step in found if "storage_totals" not in step]) == {
        "ix_assets_storage_id",
        "ix_assets_unsettled",
        "sqlite_autoindex_job_runs_1",
    }


@pytest.mark.parametrize(
    ("question", "index"),
    [
        (lambda rows: rows.expired("local", NOW, after=None, limit=200), "ix_assets_storage_expires_at_id"),
        (lambda rows: rows.expired("local", NOW, after=(NOW, SOME), limit=200), "ix_assets_storage_expires_at_id"),
        (lambda rows: rows.count_expired("local", NOW, at_most=9), "ix_assets_storage_expires_at_id"),
        (lambda rows: rows.anything_expires(), "ix_assets_storage_expires_at_id"),
        (lambda rows: rows.oldest("local", before=SOME, after=None, limit=200), "ix_assets_storage_id"),
        (lambda rows: rows.oldest("local", before=SOME, after=SOME, limit=200), "ix_assets_storage_id"),
        (lambda rows: rows.oldest("local", before=None, after=None, limit=200), "ix_assets_storage_id"),
        (lambda rows: rows.oldest("local", before=None, after=SOME, limit=200), "ix_assets_storage_id"),
        (lambda rows: rows.count_older("local", SOME, at_most=9), "ix_assets_storage_id"),
    ],
    ids=range(9),
)
async def test_what_retention_looks_for(database: Database, question: Callable[[Repository], Any], index: str) -> None:
    found = await plans(database, question)
    assert by_index(found) == {index}


async def test_a_page_begins_where_the_last_one_ended(database: Database) -> None:
    for question, range_of in (
        (lambda rows: rows.expired("local", NOW, after=(NOW, SOME), limit=9), "(storage=? AND (expires_at,id)>(?,?)"),
        (lambda rows: rows.oldest("local", before=None, after=SOME, limit=9), "(storage=? AND id>?)"),
    ):
        (step,) = await plans(database, question)
        assert range_of in step


async def test_letting_an_asset_go(database: Database) -> None:
    def go(rows: Repository) -> None:
        record = rows.list(AssetFilter(), limit=1)[0]
        deleting = rows.begin_deleting(record.id, "x/1", version=record.version)
        assert deleting is not None
        assert rows.remove(deleting)

    found = await plans(database, go, writes=True)
    assert by_index([step for step in found if "storage_totals" not in step]) >= {ID}
    assert not [step for step in found if step.startswith("SCAN asset_tags")]


@pytest.mark.parametrize(
    ("criteria", "index"),
    [
        (AssetFilter(owner="ann"), "ix_assets_owner_id (owner=? AND id>? AND id<?)"),
        (
            AssetFilter(owner="ann", storage="local"),
            "ix_assets_owner_storage_id (owner=? AND storage=? AND id>? AND id<?)",
        ),
        (
            AssetFilter(owner="ann", tag="trip"),
            "sqlite_autoindex_asset_tags_1 (owner=? AND tag=? AND asset_id>? AND asset_",
        ),
        (AssetFilter(), "sqlite_autoindex_assets_1 (id>? AND id<?)"),
    ],
    ids=["of an owner", "in a storage", "with a tag", "of everybody"],
)
@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize("is_first", [True, False], ids=["first page", "next page"])
async def test_a_period_is_a_range_of_an_index_and_nothing_is_sorted(
    database: Database, criteria: AssetFilter, index: str, newest_first: bool, is_first: bool
) -> None:
    begin, end = new_asset_id(), new_asset_id()
    after = None if is_first else new_asset_id()

    def plan(catalogue: Repository) -> list[str]:
        seen: list[tuple[str, tuple[object, ...]]] = []
        cursor = catalogue._connection.connection.cursor()

        def note(_: object, __: object, statement: str, parameters: tuple[object, ...], *___: object) -> None:
            seen.append((statement, parameters))

        event.listen(catalogue._connection, "before_cursor_execute", note)
        wanted = replace(criteria, since=begin, until=end)
        catalogue.list(wanted, limit=10, after=after, newest_first=newest_first)
        ((statement, parameters),) = seen
        # With a second bound at the same end SQLite would look up one, and walk to the other.
        assert statement.count("id <") + statement.count("id >") == 2
        return [row[-1] for row in cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]

    found = await database.read(plan)
    assert index in found[0]
    assert not any("B-TREE" in step for step in found)


async def test_credits_are_found_by_their_owner_and_no_ledger_is_added_up(database: Database) -> None:
    def ask(rows: Repository) -> None:
        rows.account("ann")
        rows.credit_entries("ann", after=None, limit=51)
        rows.credit_entries("ann", after=SOME, limit=51)
        rows.credit_entries(None, after=SOME, limit=51)
        rows.daily_usage("ann", NOW.date())

    found = await plans(database, ask)
    assert not any("B-TREE" in step or (step.startswith("SCAN") and " USING " not in step) for step in found), found
    assert [step.partition(" USING ")[2].partition(" (")[0].removeprefix("COVERING ") for step in found] == [
        "INDEX sqlite_autoindex_credit_accounts_1",
        "INDEX ix_credit_entries_owner_id",
        "INDEX ix_credit_entries_owner_id",
        "INDEX sqlite_autoindex_credit_entries_1",
        "INDEX sqlite_autoindex_credit_usage_1",
    ]


async def test_paying_looks_up_one_account(database: Database) -> None:
    def pay(rows: Repository) -> None:
        rows.grant(
            CreditEntry(id=SOME, owner="ann", kind=CreditKind.GRANT, amount=9, created_at=NOW, request="invoice")
        )
        rows.finish()
        record = a_record(credits_reserved=5)
        rows.insert_pending([record])
        rows.mark_ready(record)
        rows.finish()

    found = await plans(database, pay, writes=True)
    about_credits = [step for step in found if "credit_" in step]
    assert about_credits
    assert all(step.startswith("SEARCH credit_accounts USING INDEX") for step in about_credits), found


async def test_tickets_whose_time_is_over_are_found_by_an_index(database: Database) -> None:
    now = datetime.now(UTC)
    for work in (
        lambda catalogue: catalogue.any_ticket_over(now),
        lambda catalogue: catalogue.tickets_over(now, but_for=["s3"], limit=100),
        lambda catalogue: catalogue.forget_tickets(now, 100),
    ):
        steps = await plans(database, work, writes=True)
        assert any("ix_upload_tickets_expires_at" in step for step in steps), steps
        assert not any("TEMP B-TREE" in step or step == "SCAN upload_tickets" for step in steps), steps


async def test_tickets_in_dead_hands_are_found_by_an_index(database: Database) -> None:
    steps = await plans(
        database,
        lambda catalogue: catalogue.free_abandoned_tickets(own_lease="a", held=["a/1"], living=["a", "b"]),
        writes=True,
    )
    assert any("ix_upload_tickets_claim" in step for step in steps), steps
