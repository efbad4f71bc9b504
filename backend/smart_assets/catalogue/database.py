"""The database and its unit of work: a function over a repository, run in a thread, inside one transaction."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Self, TypeVar

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from smart_assets.catalogue.migrations import upgrade_to_head
from smart_assets.catalogue.repository import Repository
from smart_assets.errors import CatalogueUnavailable, ConfigurationError
from smart_assets.threads import Threads

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

READERS = 4
BUSY_TIMEOUT_MS = 10_000


class Database:
    """The catalogue's connections.

    `read` and `write` run `work(repository)` in a thread and return its result; `work` is one transaction, committed
    durably when it returns and rolled back when it raises. A task that is cancelled meanwhile hears of it when the
    transaction has ended, one way or the other, so that nothing is committed behind its back.
    SQLite takes one writer at a time, so writers queue here,
    in order, instead of polling for its lock.
    """

    def __init__(self, engine: Engine) -> None:
        """Use `open` where the schema may have to be made first."""
        self._engine = engine
        self._writing = engine.execution_options(smart_assets_writes=True)
        self._writers = Threads("catalogue-write", 1)
        self._readers = Threads("catalogue-read", READERS)

    @classmethod
    def open(cls, url: str) -> Self:
        """Connect, and bring the schema up to date. Blocks; call it once, before the workers start.

        Raises ConfigurationError where the database cannot be used, or is newer than this program.
        """
        engine = create_sqlite_engine(url)
        try:
            upgrade_to_head(engine)
        except SQLAlchemyError as error:
            engine.dispose()
            reason = getattr(error, "orig", None) or error
            raise ConfigurationError(f"the catalogue (ASSETS_DATABASE_URL) cannot be opened: {reason}") from error
        except ConfigurationError:
            engine.dispose()
            raise
        return cls(engine)

    async def read(self, work: Callable[[Repository], Result]) -> Result:
        """Run `work` in a transaction that only reads: it sees one state of the catalogue throughout."""
        return await self._readers.run(lambda: self._run(self._engine, work))

    async def write(self, work: Callable[[Repository], Result]) -> Result:
        """Run `work` in a transaction of its own; what it changed is durable when this returns."""
        return await self._writers.run(lambda: self._run(self._writing, work))

    def _run(self, engine: Engine, work: Callable[[Repository], Result]) -> Result:
        try:
            with engine.begin() as connection:
                return work(Repository(connection))
        except (OperationalError, PoolTimeout) as error:
            logger.exception("the catalogue does not answer")
            raise CatalogueUnavailable("the catalogue does not answer; try again") from error

    async def close(self) -> None:
        """Close every connection."""
        await self._writers.run(self._engine.dispose)
        self._writers.close()
        self._readers.close()


def create_sqlite_engine(url: str) -> Engine:
    """An engine whose commits survive a power cut and whose writers say at once that they will write.

    WAL lets readers go on beside the writer; `synchronous=FULL` syncs the log at each commit. Python's driver opens
    no transaction for a SELECT, so a read followed by a write would lose updates: transactions are begun by hand.
    """
    engine = create_engine(make_url(url), pool_size=READERS + 1, max_overflow=0, pool_timeout=30)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (
            f"busy_timeout={BUSY_TIMEOUT_MS}",
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "temp_store=MEMORY",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("smart_assets_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
