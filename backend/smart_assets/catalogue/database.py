"""The database and its unit of work: a function over a repository, run in a thread, inside one transaction."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from smart_assets.catalogue.migrations import upgrade_to_head
from smart_assets.catalogue.repository import Repository
from smart_assets.errors import CatalogueUnavailable, ConfigurationError, NoSpace
from smart_assets.threads import Threads, finished

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

READERS = 4
BUSY_TIMEOUT_MS = 10_000
MAX_SHARED = 64
"""Transactions that may share one commit."""


@dataclass(frozen=True)
class _Write:
    """A piece of work that waits for its transaction."""

    work: Callable[[Repository], Any]
    outcome: Future[Any] = field(default_factory=Future)


class Database:
    """The catalogue's connections.

    `read` and `write` run `work(repository)` in a thread and return its result; `work` is one transaction, committed
    durably when it returns and rolled back when it raises. A task that is cancelled meanwhile hears of it when the
    transaction has ended, one way or the other, so that nothing is committed behind its back.

    SQLite takes one writer at a time, so writers queue here, in order, instead of polling for its lock. Those that
    queue up during one commit share the next: a commit is a sync of the disk, and costs more than all they do. So
    `work` may be run a second time, alone, and must do nothing but ask the repository.
    """

    def __init__(self, engine: Engine) -> None:
        """Use `open` where the schema may have to be made first."""
        self._engine = engine
        self._file = _file_of(engine)
        self._writing = engine.execution_options(smart_assets_writes=True)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="catalogue-write")
        self._readers = Threads("catalogue-read", READERS)
        self._queue: deque[_Write] = deque()

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
        write = _Write(work)
        self._queue.append(write)
        self._writer.submit(self._commit_queued)
        result: Result = await finished(write.outcome)
        return result

    def _commit_queued(self) -> None:
        """Commit everything that waits, in the writer's thread; nothing, where an earlier turn has done so."""
        writes: list[_Write] = []
        while self._queue and len(writes) < MAX_SHARED:
            write = self._queue.popleft()
            if write.outcome.set_running_or_notify_cancel():
                writes.append(write)
        if len(writes) > 1 and self._commit_together(writes):
            return
        for write in writes:
            try:
                write.outcome.set_result(self._run(self._writing, write.work))
            except BaseException as error:  # noqa: BLE001 - it is for whoever waits for the outcome
                write.outcome.set_exception(error)

    def _commit_together(self, writes: list[_Write]) -> bool:
        """Commit `writes` as one transaction; False where one of them fails: then each is to have its own."""
        try:
            results = self._run(self._writing, lambda catalogue: [write.work(catalogue) for write in writes])
        except (CatalogueUnavailable, NoSpace) as error:  # for each of them, and each would wait for it again
            for write in writes:
                write.outcome.set_exception(error)
            return True
        except Exception:  # noqa: BLE001 - run alone, it will raise again, to whom it belongs
            return False
        for write, result in zip(writes, results, strict=True):
            write.outcome.set_result(result)
        return True

    def _run(self, engine: Engine, work: Callable[[Repository], Result]) -> Result:
        # SQLite goes on with a file that was removed under it; what is committed there nobody else will ever see.
        if _file_of(engine) != self._file:
            raise CatalogueUnavailable("the catalogue's file is gone, or another; try again")
        try:
            with engine.begin() as connection:
                return work(Repository(connection))
        except (OperationalError, PoolTimeout) as error:
            if "disk is full" in str(error):
                raise NoSpace("no room left for the catalogue") from error
            logger.exception("the catalogue does not answer")
            raise CatalogueUnavailable("the catalogue does not answer; try again") from error

    async def close(self) -> None:
        """Close every connection."""
        await self._readers.run(self._engine.dispose)
        self._writer.shutdown(wait=False)
        self._readers.close()


def _file_of(engine: Engine) -> tuple[int, int] | None:
    """Which file the database is just now; None where there is none."""
    try:
        status = Path(engine.url.database or "").stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


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
