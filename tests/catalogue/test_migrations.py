"""Migrations lead to what the code expects, forwards and back."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Engine, MetaData, Table, insert, inspect, select, text

from smart_assets.catalogue.database import Database, is_sqlite
from smart_assets.catalogue.migrations import HEAD, alembic_config, current_revision, upgrade_to_head
from smart_assets.catalogue.models import asset_tags, assets, metadata, storage_totals
from smart_assets.catalogue.repository import Repository
from smart_assets.catalogue.sqlite import create_sqlite_engine
from smart_assets.errors import ConfigurationError
from smart_assets.settings import PostgresqlSettings

RELEASED = ["0001", "0002", "0003", "0004", "0005", "0006"]


@pytest.fixture
def engine(empty_url: str) -> Iterator[Engine]:
    if is_sqlite(empty_url):
        engine = create_sqlite_engine(empty_url, connections=1)
    else:
        from smart_assets.catalogue.postgresql import create_postgresql_engine

        engine = create_postgresql_engine(empty_url, PostgresqlSettings(), connections=1)
    yield engine
    engine.dispose()


def migrate(engine: Engine, direction: Callable[[Config, str], None], revision: str) -> None:
    with engine.begin() as connection:
        configuration = alembic_config()
        configuration.attributes["connection"] = connection
        direction(configuration, revision)


def tables_of(engine: Engine) -> dict[str, list[str]]:
    """Columns and indexes by table: what a schema is, as far as anybody may tell."""
    inspector = inspect(engine)
    return {
        table: sorted(
            [f"{column['name']} {column['type']} {column['nullable']}" for column in inspector.get_columns(table)]
            + [f"{index['name']} {index['column_names']}" for index in inspector.get_indexes(table)]
        )
        for table in inspector.get_table_names()
    }


def test_the_newest_revision_is_the_one_the_code_knows() -> None:
    scripts = ScriptDirectory.from_config(alembic_config())
    assert scripts.get_current_head() == HEAD
    assert sorted(script.revision for script in scripts.walk_revisions()) == RELEASED


def test_migrating_from_nothing_makes_exactly_the_models(engine: Engine) -> None:
    assert current_revision(engine) is None
    upgrade_to_head(engine)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_migrating_twice_changes_nothing(engine: Engine) -> None:
    upgrade_to_head(engine)
    upgrade_to_head(engine)
    assert current_revision(engine) == HEAD


def test_migrating_back_leaves_nothing_behind(engine: Engine) -> None:
    upgrade_to_head(engine)
    migrate(engine, command.downgrade, "base")
    assert inspect(engine).get_table_names() == ["alembic_version"]


# A row that every revision there ever was takes.
AN_ID = uuid4()
A_ROW = {
    "id": AN_ID,
    "owner": "ann",
    "state": "ready",
    "storage": "local",
    "visibility": "public",
    "filename": "Ünïcode 写真.jpg",
    "filename_folded": "ünïcode 写真.jpg",
    "format": "jpeg",
    "size_bytes": 2**40,
    "width": 40,
    "height": 30,
    "sha256": "0" * 64,
    "variants": [["800", "800-q60", "webp", 8, 6, 77]],
    "tags": ["trip"],
    "metadata": {"album": 7},
    "created_at": datetime(2026, 1, 31, 12, 30, 15, 123456, tzinfo=UTC),
    "updated_at": datetime(2026, 1, 31, 12, 30, 15, 123456, tzinfo=UTC),
    "version": 3,
}


@pytest.mark.parametrize("revision", RELEASED)
def test_a_catalogue_of_each_version_keeps_what_is_in_it_forwards_and_back(engine: Engine, revision: str) -> None:
    migrate(engine, command.upgrade, revision)
    before = tables_of(engine)
    with engine.begin() as connection:
        connection.execute(insert(table_of(assets, A_ROW)).values(A_ROW))
        connection.execute(insert(asset_tags).values(owner="ann", tag="trip", asset_id=AN_ID))
        connection.execute(insert(storage_totals).values(storage="local", assets=1, bytes=2**40 + 77))
    upgrade_to_head(engine)
    with engine.begin() as connection:
        record = Repository(connection).get(AN_ID)
        assert record is not None
        assert (record.filename, record.variants[0].size, record.pinned) == (A_ROW["filename"], "800", False)
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    migrate(engine, command.downgrade, revision)
    assert tables_of(engine) == before
    with engine.begin() as connection:
        assert connection.execute(select(table_of(assets, A_ROW))).one()._asdict() == A_ROW
        assert len(connection.execute(select(asset_tags)).all()) == 1
        assert connection.execute(select(storage_totals)).one() == ("local", 1, 2**40 + 77)


def table_of(table: Table, columns: Iterable[str]) -> Table:
    """A table as it was when it had these columns only."""
    return Table(table.name, MetaData(), *(Column(name, table.c[name].type) for name in columns))


def test_of_several_that_start_at_once_one_makes_the_schema(empty_url: str) -> None:
    with ThreadPoolExecutor(8) as threads:
        databases = [threads.submit(Database.open, empty_url) for _ in range(8)]
        for database in databases:
            asyncio.run(database.result().close())


def test_a_catalogue_of_a_newer_version_is_refused_untouched(engine: Engine) -> None:
    upgrade_to_head(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigurationError, match="newer version"):
        upgrade_to_head(engine)
    assert current_revision(engine) == "9999"
