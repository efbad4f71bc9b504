"""Bringing a database's schema to what the code expects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, inspect, text

from smart_assets.errors import ConfigurationError

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0006"
"""The newest revision in `versions/`; a test holds the two together."""

LOCK = int.from_bytes(b"schema")
"""The advisory lock of whoever changes the schema."""


def upgrade_to_head(engine: Engine) -> None:
    """Upgrade the schema where it is behind; nothing is done, and Alembic not even imported, where it is not.

    Raises ConfigurationError where the database was made by a newer version of this program.
    """
    if current_revision(engine) == HEAD:
        return
    from alembic import command
    from alembic.util import CommandError

    try:
        with engine.begin() as connection:
            _begin_alone(connection)
            configuration = alembic_config()
            configuration.attributes["connection"] = connection
            command.upgrade(configuration, "head")
    except CommandError as error:
        raise ConfigurationError(
            "the catalogue was made by a newer version of Smart Assets; run that version, or restore a backup"
        ) from error


def _begin_alone(connection: Connection) -> None:
    """Wait until no other process changes the schema: of several that start at once, one does."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        return
    # However long the other one takes; `lock_timeout` is for the tables themselves, which a service may be using.
    tables = connection.exec_driver_sql("SHOW lock_timeout").scalar_one()
    connection.execute(text("SELECT set_config('statement_timeout', '0', true), set_config('lock_timeout', '0', true)"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    connection.execute(text("SELECT set_config('lock_timeout', :tables, true)"), {"tables": tables})


def current_revision(engine: Engine) -> str | None:
    """The revision a database is at; None for an empty one."""
    with engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def alembic_config() -> Config:
    """Alembic's configuration, without an ini file."""
    from alembic.config import Config

    configuration = Config()
    configuration.set_main_option("script_location", "smart_assets.catalogue:migrations")
    return configuration
