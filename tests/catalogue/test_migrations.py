"""Migrations lead to what the code expects, forwards and back."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect, text

from smart_assets.catalogue.database import create_sqlite_engine
from smart_assets.catalogue.migrations import HEAD, alembic_config, current_revision, upgrade_to_head
from smart_assets.catalogue.models import metadata
from smart_assets.errors import ConfigurationError


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = create_sqlite_engine(f"sqlite:///{tmp_path}/catalogue.sqlite3", connections=1)
    yield engine
    engine.dispose()


def test_the_newest_revision_is_the_one_the_code_knows() -> None:
    assert ScriptDirectory.from_config(alembic_config()).get_current_head() == HEAD


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
    with engine.begin() as connection:
        configuration = alembic_config()
        configuration.attributes["connection"] = connection
        command.downgrade(configuration, "base")
    assert inspect(engine).get_table_names() == ["alembic_version"]


def test_a_catalogue_of_a_newer_version_is_refused_untouched(engine: Engine) -> None:
    upgrade_to_head(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigurationError, match="newer version"):
        upgrade_to_head(engine)
    assert current_revision(engine) == "9999"
