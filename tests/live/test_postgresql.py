"""The catalogue in PostgreSQL: its own tests once more, and what only a server can do to it."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import Connection, event, text

from smart_assets.catalogue.database import Database
from smart_assets.catalogue.models import AssetRecord
from smart_assets.catalogue.postgresql import PostgresqlDatabase
from smart_assets.catalogue.repository import AssetFilter, Repository
from smart_assets.errors import CatalogueUnavailable, ConfigurationError, NoSpace
from smart_assets.settings import PostgresqlSettings
from smart_assets.visibility import Visibility

# The tests that SQLite passes, over the `url` and the `empty_url` given here.
from tests.catalogue.test_credits import *  # noqa: F403
from tests.catalogue.test_jobs import *  # noqa: F403
from tests.catalogue.test_migrations import *  # noqa: F403
from tests.catalogue.test_repository import *  # noqa: F403
from tests.catalogue.test_repository import a_record, ids, keep
from tests.live.postgres import OwnServer, PostgresServer, postgres_server


@pytest.fixture
def url(postgres: PostgresServer) -> Iterator[str]:
    url = postgres.new_database()
    yield url
    postgres.drop(url)


@pytest.fixture
def empty_url(postgres: PostgresServer) -> Iterator[str]:
    url = postgres.new_database(empty=True)
    yield url
    postgres.drop(url)


@pytest.fixture
def server() -> Iterator[OwnServer]:
    """One of a test's own, to be killed."""
    with postgres_server() as server:
        yield server


@pytest.fixture
async def its_catalogue(server: OwnServer) -> AsyncIterator[Database]:
    database = Database.open(server.new_database(), PostgresqlSettings(readers=2, writers=2))
    yield database
    await database.close()


def setting(name: str, catalogue: Repository) -> str:
    return str(catalogue._connection.exec_driver_sql(f"SHOW {name}").scalar_one())


async def test_commits_are_durable_and_nothing_may_take_for_ever(postgres: PostgresServer, url: str) -> None:
    with psycopg.connect(url, autocommit=True) as administrator:
        name = administrator.info.dbname
        administrator.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
        administrator.execute(f"ALTER DATABASE \"{name}\" SET default_transaction_isolation = 'serializable'")
    database = Database.open(url, PostgresqlSettings(statement_timeout_seconds=20, lock_timeout_seconds=5))
    expected = {
        "synchronous_commit": "on",
        "statement_timeout": "20s",
        "lock_timeout": "5s",
        "idle_in_transaction_session_timeout": "20s",
        "transaction_isolation": "read committed",
        "transaction_read_only": "off",
    }
    assert await database.write(lambda catalogue: {name: setting(name, catalogue) for name in expected}) == expected
    reading = {"transaction_isolation": "repeatable read", "transaction_read_only": "on"}
    assert await database.read(lambda catalogue: {name: setting(name, catalogue) for name in reading}) == reading
    await database.close()


async def test_a_stronger_promise_than_ours_is_kept(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as administrator:
        administrator.execute(f'ALTER DATABASE "{administrator.info.dbname}" SET synchronous_commit = remote_apply')
    database = Database.open(url)
    assert await database.write(lambda catalogue: setting("synchronous_commit", catalogue)) == "remote_apply"
    await database.close()


async def test_a_reader_sees_one_state_throughout_while_others_write(database: Database) -> None:
    await keep(database, a_record())
    began, go_on = threading.Event(), threading.Event()

    def twice(catalogue: Repository) -> tuple[int, int]:
        (before,) = catalogue.totals()
        began.set()
        go_on.wait(60)
        (after,) = catalogue.totals()
        return before.assets, after.assets

    reading = asyncio.create_task(database.read(twice))
    await asyncio.to_thread(began.wait, 60)
    await keep(database, a_record())
    go_on.set()
    assert await reading == (1, 1)


async def test_of_two_that_wait_for_each_other_both_come_through(database: Database) -> None:
    one, other = await keep(database, a_record(), a_record())
    both = threading.Barrier(2)
    runs: list[str] = []

    def change(first: AssetRecord, second: AssetRecord, name: str, catalogue: Repository) -> None:
        runs.append(name)
        for record in (first, second):
            current = catalogue.get(record.id)
            assert current is not None
            changed = replace(current, version=current.version + 1, filename=f"{current.filename}{name}")
            assert catalogue.change(changed, current.version)
            if len(runs) <= 2 and record is first:
                both.wait(60)

    await asyncio.gather(
        database.write(lambda catalogue: change(one, other, "1", catalogue)),
        database.write(lambda catalogue: change(other, one, "2", catalogue)),
    )
    # The one that was undone may have come back before the other went on, and have stood in its way again.
    assert len(runs) > 2
    assert set(runs) == {"1", "2"}
    for record in (one, other):
        now = await database.read(lambda catalogue, record=record: catalogue.get(record.id))  # type: ignore[misc]
        assert now is not None
        assert now.version == 3
        assert sorted((now.filename or "")[-2:]) == ["1", "2"]


@pytest.mark.parametrize(
    ("state", "error"),
    [
        ("53100", NoSpace),
        ("53200", CatalogueUnavailable),
        ("57014", CatalogueUnavailable),
        ("55P03", CatalogueUnavailable),
        ("40001", CatalogueUnavailable),
        ("25006", CatalogueUnavailable),
    ],
)
async def test_what_the_server_says_is_an_error_of_ours(database: Database, state: str, error: type[Exception]) -> None:
    record = a_record()

    def fail(catalogue: Repository) -> None:
        catalogue.insert_pending([record])
        catalogue._connection.execute(text(f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{state}'; END $$"))

    with pytest.raises(error):
        await database.write(fail)
    await keep(database, record)


async def test_a_statement_that_takes_too_long_is_ended(url: str) -> None:
    database = Database.open(url, PostgresqlSettings(statement_timeout_seconds=1))
    with pytest.raises(CatalogueUnavailable):
        await database.read(lambda catalogue: catalogue._connection.execute(text("SELECT pg_sleep(60)")))
    await keep(database, a_record())
    await database.close()


async def test_who_finds_no_connection_free_is_told_so(url: str) -> None:
    database = Database.open(url, PostgresqlSettings(writers=1, wait_seconds=0.05))
    begun, go_on = threading.Event(), threading.Event()

    def slow(_: Repository) -> None:
        begun.set()
        go_on.wait(60)

    first = asyncio.create_task(database.write(slow))
    await asyncio.to_thread(begun.wait, 60)
    with pytest.raises(CatalogueUnavailable):
        await database.write(lambda catalogue: catalogue.beat("a", 1))
    assert await database.read(lambda catalogue: catalogue.beats()) == {}, "reading goes on"
    go_on.set()
    await first
    await database.close()


async def test_a_process_that_stood_still_in_a_transaction_runs_it_again(url: str) -> None:
    """What it had locked is free meanwhile, and nobody waits for it."""
    database = Database.open(url, PostgresqlSettings(statement_timeout_seconds=1))
    (kept,) = await keep(database, a_record())
    runs: list[str | None] = []

    def stand_still(catalogue: Repository) -> bool:
        record = catalogue.get(kept.id)
        assert record is not None
        runs.append(record.filename)
        if len(runs) == 1:
            threading.Event().wait(1.5)
        return catalogue.change(replace(record, filename="late.jpg", version=record.version + 1), record.version)

    standing = asyncio.create_task(database.write(stand_still))
    while not runs:
        await asyncio.sleep(0.01)
    assert await database.write(lambda catalogue: catalogue.change(replace(kept, filename="new.jpg", version=2), 1))
    assert await standing
    assert runs == [kept.filename, "new.jpg"]
    await database.close()


async def test_a_server_that_was_killed_is_away_and_then_back(server: OwnServer, its_catalogue: Database) -> None:
    database = its_catalogue
    kept = await keep(database, *(a_record() for _ in range(4)))
    server.kill()
    with pytest.raises(CatalogueUnavailable):
        await database.read(lambda catalogue: catalogue.beats())
    with pytest.raises(CatalogueUnavailable):
        await database.write(lambda catalogue: catalogue.beat("a", 1))
    with pytest.raises(CatalogueUnavailable):
        async with database.job("retention"):
            raise AssertionError
    server.start()
    assert sorted(await ids(database)) == [record.id for record in kept]
    await keep(database, a_record())


async def test_a_server_that_was_restarted_is_noticed_by_nobody(server: OwnServer, its_catalogue: Database) -> None:
    database = its_catalogue
    records = [a_record() for _ in range(40)]
    await asyncio.gather(*(keep(database, record) for record in records[:20]), *(ids(database) for _ in range(20)))
    server.kill()
    server.start()
    await asyncio.gather(*(keep(database, record) for record in records[20:]), *(ids(database) for _ in range(20)))
    (totals,) = await database.read(lambda catalogue: catalogue.totals())
    assert totals.assets == 40


async def test_a_transaction_whose_connection_breaks_in_the_middle_is_run_again(database: Database) -> None:
    record, runs = a_record(), []

    def break_once(catalogue: Repository) -> None:
        catalogue.insert_pending([record])
        runs.append(1)
        if len(runs) == 1:
            catalogue._connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    await database.write(break_once)
    assert len(runs) == 2
    assert await database.write(lambda catalogue: catalogue.mark_ready(record))


async def test_a_commit_of_which_nobody_knows_is_not_made_twice(
    url: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, runs = a_record(), []

    def break_at_the_end(catalogue: Repository) -> None:
        catalogue.insert_pending([record])
        runs.append(1)
        finish = catalogue.finish

        def finish_and_break() -> None:
            finish()
            pid = catalogue._connection.connection.driver_connection.info.backend_pid  # type: ignore[union-attr]
            with psycopg.connect(url, autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])

        monkeypatch.setattr(catalogue, "finish", finish_and_break)

    with pytest.raises(CatalogueUnavailable):
        await database.write(break_at_the_end)
    assert len(runs) == 1


HOLD = """
import asyncio, sys
from smart_assets.catalogue.database import Database

async def hold():
    async with Database.open(sys.argv[1]).job("retention") as mine:
        print(mine, flush=True)
        await asyncio.Event().wait()

asyncio.run(hold())
"""


async def test_a_job_ends_with_the_process_that_does_it(url: str, database: Database) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, url], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert await asyncio.to_thread(holder.stdout.readline) == b"True\n"
        async with database.job("retention") as mine:
            assert not mine
        holder.send_signal(signal.SIGKILL)
    async with asyncio.timeout(60):
        while True:
            async with database.job("retention") as mine:
                if mine:
                    break
            await asyncio.sleep(0.01)


async def test_a_job_whose_lock_was_lost_ends_all_the_same(database: Database, url: str) -> None:
    async with database.job("retention") as mine:
        assert mine
        with psycopg.connect(url, autocommit=True) as administrator:
            administrator.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
    async with database.job("retention") as again:
        assert again


def test_a_server_that_is_not_there_is_said_in_one_sentence_without_the_password() -> None:
    with pytest.raises(ConfigurationError) as refused:
        Database.open("postgresql://ann:sesame@127.0.0.1:1/assets")
    sentence = str(refused.value)
    assert "ASSETS_DATABASE_URL" in sentence
    assert "sesame" not in sentence
    assert "\n" not in sentence


def test_a_database_of_another_encoding_is_refused(postgres: PostgresServer) -> None:
    url = postgres.url_of("assets_latin1")
    with psycopg.connect(postgres.url, autocommit=True) as administrator:
        administrator.execute(
            "CREATE DATABASE assets_latin1 ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"
            + (" LOCALE_PROVIDER libc" if administrator.info.server_version >= 150000 else "")
        )
    try:
        with pytest.raises(ConfigurationError, match="LATIN1"):
            Database.open(url)
    finally:
        postgres.drop(url)


def test_a_tool_makes_no_schema(empty_url: str) -> None:
    with pytest.raises(ConfigurationError, match="no catalogue"):
        Database.open_as_it_is(empty_url, read_only=True)


async def test_a_tool_that_only_reads_cannot_write(url: str, database: Database) -> None:
    await keep(database, a_record())
    looking = Database.open_as_it_is(url, read_only=True)
    assert len(await ids(looking)) == 1
    with pytest.raises(CatalogueUnavailable):
        await looking.write(lambda catalogue: catalogue.beat("a", 1))
    await looking.close()


NOBODY = UUID(int=2**127)

# Two hundred thousand assets of twenty owners, one in a hundred in a bucket, and a few that somebody was at work on.
MANY = """
INSERT INTO assets (id, owner, state, storage, visibility, filename_folded, format, size_bytes, width, height, sha256,
                    variants, tags, metadata, created_at, updated_at, version)
SELECT gen_random_uuid(), 'o' || i % 20, CASE WHEN i % 20000 = 0 THEN 'deleting' ELSE 'ready' END,
       CASE WHEN i % 100 = 0 THEN 's3' ELSE 'local' END, CASE WHEN i % 3 = 0 THEN 'private' ELSE 'public' END,
       'f' || i, 'jpeg', 1, 1, 1, '', '[]', '[]', '{}', now(), now(), 1
FROM generate_series(1, 200000) i;
INSERT INTO asset_tags SELECT owner, 't' || (size_bytes + width) % 3, id FROM assets;
INSERT INTO storage_totals VALUES ('local', 1, 1), ('s3', 1, 1);
INSERT INTO idempotency_keys SELECT 'o', 'k' || i, '', NULL, '{}', NULL, now() FROM generate_series(1, 50000) i;
INSERT INTO upload_tickets (id, owner, storage, incoming, max_bytes, wanted, created_at, expires_at, claim)
SELECT gen_random_uuid(), 'o' || i % 20, CASE WHEN i % 100 = 0 THEN 's3' ELSE 'local' END, 'private/incoming/' || i,
       1, '{}', now(), now() + i * interval '1 second', CASE WHEN i % 20000 = 0 THEN 'dead/' || i END
FROM generate_series(1, 50000) i;
INSERT INTO credit_accounts SELECT 'o' || i, 9, 0, 0 FROM generate_series(1, 20000) i;
INSERT INTO credit_entries (id, owner, kind, amount, created_at)
SELECT gen_random_uuid(), 'o' || i % 20, 'grant', 9, now() FROM generate_series(1, 50000) i;
INSERT INTO credit_usage SELECT 'o' || i % 20, current_date - i / 20, '', 1, 1, 1, 1 FROM generate_series(1, 50000) i;
ANALYZE;
"""
ASKED: dict[str, Callable[[Repository], object]] = {
    "an asset": lambda catalogue: catalogue.get(NOBODY, "o1"),
    "a page": lambda catalogue: catalogue.list(AssetFilter(owner="o1"), limit=50, after=NOBODY),
    "a page of all owners": lambda catalogue: catalogue.list(AssetFilter(), limit=50),
    "a page of a storage": lambda catalogue: catalogue.list(AssetFilter(owner="o1", storage="s3"), limit=50),
    "a page of a visibility": lambda catalogue: catalogue.list(
        AssetFilter(owner="o1", visibility=Visibility.PRIVATE), limit=50
    ),
    "a page of a tag": lambda catalogue: catalogue.list(AssetFilter(owner="o1", tag="t2"), limit=50),
    "statistics": lambda catalogue: (catalogue.totals(), catalogue.count_deleting()),
    "the unsettled": lambda catalogue: catalogue.unsettled_storages(),
    "the abandoned": lambda catalogue: catalogue.abandoned(
        own_lease="me", held=["me/1"], living=["you"], storage="local", after=None, limit=50
    ),
    "an audit's page": lambda catalogue: catalogue.page_of_storage("local", after=NOBODY, limit=500),
    "the newest": lambda catalogue: catalogue.newest_id(),
    "several": lambda catalogue: catalogue.get_all_in_any_state([NOBODY, UUID(int=1)]),
    "a key": lambda catalogue: catalogue.find_key("o", "k1"),
    "old keys": lambda catalogue: catalogue.forget_keys(datetime(2020, 1, 1, tzinfo=UTC), 500),
    "a ticket": lambda catalogue: catalogue.find_ticket(NOBODY, "o1"),
    "old tickets": lambda catalogue: (
        catalogue.any_ticket_over(datetime.now(UTC)),
        catalogue.tickets_over(datetime.now(UTC), but_for=["s3"], limit=100),
    ),
    "tickets of the dead": lambda catalogue: catalogue.free_abandoned_tickets(
        own_lease="me", held=["me/1"], living=["you"]
    ),
    "an account": lambda catalogue: catalogue.account("o1"),
    "a page of a ledger": lambda catalogue: catalogue.credit_entries("o1", after=NOBODY, limit=50),
    "what was used": lambda catalogue: catalogue.daily_usage("o1", datetime.now(UTC).date()),
}


async def test_what_is_asked_for_often_is_answered_from_an_index(url: str) -> None:
    """By the plan, not by the clock."""
    with psycopg.connect(url, autocommit=True) as administrator:
        administrator.execute(MANY)
    database = Database.open(url)
    plans: list[str] = []

    def explain(connection: Connection, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        with closing(connection.connection.cursor()) as cursor:
            cursor.execute(f"EXPLAIN {statement}", parameters)
            plans.append("\n".join(line for (line,) in cursor.fetchall()))

    assert isinstance(database, PostgresqlDatabase)
    event.listen(database._writing, "before_cursor_execute", explain)
    try:
        for what, ask in ASKED.items():
            plans.clear()
            await database.write(ask)
            assert plans
            read = [plan for plan in plans if re.search(r"Seq Scan on (?!storage_totals)", plan)]
            assert read == [], f"{what} reads all rows"
    finally:
        await database.close()
