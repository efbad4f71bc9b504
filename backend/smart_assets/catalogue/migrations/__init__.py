"""Bringing a database's schema to what the code expects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Engine, inspect, text

from smart_assets.errors import ConfigurationError

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0003"
"""The newest revision in `versions/`; a test holds the two together."""


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
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            configuration = alembic_config()
            configuration.attributes["connection"] = connection
            command.upgrade(configuration, "head")
    except CommandError as error:
        raise ConfigurationError(
            "the catalogue was made by a newer version of Smart Assets; run that version, or restore a backup"
        ) from error


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
