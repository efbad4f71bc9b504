"""The catalogue in SQLite: one file, and one writer at a time among all processes of a machine."""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Thread
from typing import Any, Self, TypeVar

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from smart_assets.catalogue.database import Database, another_version, json_value, one_sentence, unavailable
from smart_assets.catalogue.migrations import HEAD, current_revision, upgrade_to_head
from smart_assets.catalogue.repository import Repository
from smart_assets.errors import CatalogueUnavailable, ConfigurationError, NoSpace
from smart_assets.threads import Job, queue_named, wake

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

READERS = 4
BUSY_TIMEOUT_MS = 10_000
MAX_SHARED = 64
"""Transactions that may share one commit."""

_TURN_SECONDS = 1
_LOOK_SECONDS = 0.0003
_AGAIN_SECONDS = 0.01


class SqliteDatabase(Database):
    """A catalogue in a file.

    SQLite takes one writer at a time, so writers queue here, in order, instead of polling for its lock. Those that
    queue up during one commit share the next: a commit is a sync of the disk, and costs more than all they do. So
    `work` may be run a second time, alone.
    """

    def __init__(self, url: str, *, read_only: bool = False) -> None:
        """Use `opened` where the schema may have to be made first; `read_only`: `write` fails."""
        super().__init__(READERS)
        self._path = make_url(url).database or ""
        self._file = _file_at(self._path)
        self._reading = create_sqlite_engine(url, connections=READERS, read_only=read_only)
        # One connection for all that is written: another one's writing would make it forget the pages it knows.
        self._writing = create_sqlite_engine(url, connections=1, read_only=read_only)
        self._turn = Turn(f"{self._path}-turn")
        self._writes: SimpleQueue[Job[Any] | None] = queue_named("catalogue-write")
        self._writer = Thread(target=self._serve_writes, name="catalogue-write", daemon=True)
        self._writer.start()

    @classmethod
    def opened(cls, url: str) -> Self:
        """See `Database.open`."""
        engine = create_sqlite_engine(url, connections=1)
        with one_sentence():
            try:
                upgrade_to_head(engine)
            finally:
                engine.dispose()
        return cls(url)

    @classmethod
    def opened_as_it_is(cls, url: str, *, read_only: bool) -> Self:
        """See `Database.open_as_it_is`."""
        path = make_url(url).database or ""
        if _file_at(path) is None:
            raise ConfigurationError(f"there is no catalogue at {path} (set ASSETS_DATA_DIR, or ASSETS_DATABASE_URL)")
        engine = create_sqlite_engine(url, connections=1, read_only=True)
        with one_sentence():
            try:
                revision = current_revision(engine)
            finally:
                engine.dispose()
        if revision != HEAD:
            raise another_version()
        return cls(url, read_only=read_only)

    async def write(self, work: Callable[[Repository], Result]) -> Result:
        """See `Database.write`."""
        job = Job(work)
        self._writes.put(job)
        return await job.outcome()

    # ── In threads ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _serve_writes(self) -> None:
        """Commit what waits, again and again."""
        while (jobs := self._next_writes()) is not None:
            begun = [job for job in jobs if job.begin()]
            if len(begun) < 2 or not self._commit_together(begun):
                for job in begun:
                    job.run(self._write)
            if begun:
                wake(begun)

    def _next_writes(self) -> list[Job[Any]] | None:
        """Everything that waits now, or the next to come; None at the end."""
        jobs = []
        job = self._writes.get()
        while job is not None:
            jobs.append(job)
            if len(jobs) == MAX_SHARED or self._writes.empty():
                return jobs
            job = self._writes.get()
        self._writes.put(None)
        return jobs or None

    def _commit_together(self, jobs: Sequence[Job[Any]]) -> bool:
        """Commit `jobs` as one transaction; False where one of them fails: then each is to have its own."""
        try:
            results = self._write(lambda catalogue: [job.work(catalogue) for job in jobs])
        except (CatalogueUnavailable, NoSpace) as error:  # for each of them, and each would wait for it again
            for job in jobs:
                job.fail(error)
            return True
        except Exception:  # noqa: BLE001 - run alone, it will raise again, to whom it belongs
            return False
        for job, result in zip(jobs, results, strict=True):
            job.succeed(result)
        return True

    def _write(self, work: Callable[[Repository], Result]) -> Result:
        with self._turn.taken():
            return self._run(work, writes=True)

    def _transact(self, work: Callable[[Repository], Result], *, writes: bool) -> Result:
        # SQLite goes on with a file that was removed under it; what is committed there nobody else will ever see.
        if _file_at(self._path) != self._file:
            raise CatalogueUnavailable("the catalogue's file is gone, or another; try again")
        with transaction(self._writing if writes else self._reading, writes=writes) as connection:
            repository = Repository(connection, writes=writes)
            result = work(repository)
            repository.finish()
        return result

    def _translate(self, error: SQLAlchemyError) -> CatalogueUnavailable | NoSpace | None:
        if not isinstance(error, (OperationalError, PoolTimeout)):
            return None
        return NoSpace("no room left for the catalogue") if "disk is full" in str(error) else unavailable()

    def _job_lock(self, name: str) -> FileLock:
        return FileLock(f"{self._path}-{name}")

    def _close(self) -> None:
        self._writes.put(None)
        self._writer.join()
        self._turn.close()
        self._writing.dispose()
        self._reading.dispose()


class Turn:
    """Whose turn it is to write, among the processes of a machine.

    SQLite lets a second writer sleep, from one millisecond to a hundred, and try again: most of that time nobody
    writes. This lock is looked at more often. It only keeps order: SQLite's own is taken all the same, and who does not
    get this one in time goes on without. Whoever kept it for so long may have been stopped with it in hand, so from
    then on it is only asked for, not waited for, until it is free again.
    """

    def __init__(self, path: str) -> None:
        """`path` is where the lock lies, from the first time it is taken."""
        self._path = path
        self._descriptor = -1
        self._is_worth_waiting_for = True

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Wait for it, and keep it for as long as the context lasts. For one thread."""
        deadline = time.monotonic() + _TURN_SECONDS
        while not (taken := self._try()) and self._is_worth_waiting_for and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
        self._is_worth_waiting_for = taken
        try:
            yield
        finally:
            if self._descriptor >= 0:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give back what it holds."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _try(self) -> bool:
        try:
            if self._descriptor < 0:
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:  # the directory is gone, or full: the database will say so itself
            logger.debug("no turns can be taken", extra={"error": repr(error)})
        return True


class FileLock:
    """The lock of a job: it ends with the descriptor that holds it, at the latest when the process does."""

    def __init__(self, path: str) -> None:
        """`path` is where the lock lies, from the first time it is taken."""
        self._path = path
        self._descriptor: int | None = None

    def take(self) -> bool:
        """False where another has it."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise CatalogueUnavailable("no lock can be had beside the catalogue; try again") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def give_back(self) -> None:
        """Let it go, where it is held."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _file_at(path: str) -> tuple[int, int] | None:
    """Which file the database is just now; None where there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path costs more than the call, and this is done each time
    except OSError:
        return None
    return status.st_dev, status.st_ino


@contextmanager
def transaction(engine: Engine, *, writes: bool) -> Iterator[Connection]:
    """A transaction that says at once whether it will write; committed at the end, rolled back after an error.

    Python's driver opens none for a SELECT, so a read followed by a write would lose updates: they are begun by hand.
    """
    with engine.begin() as connection:
        # Not by a listener to SQLAlchemy's own event: with one, every statement looks for listeners to a dozen more.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
        yield connection


def create_sqlite_engine(url: str, *, connections: int, read_only: bool = False) -> Engine:
    """An engine whose commits survive a power cut; `read_only`: that commits nothing.

    WAL lets readers go on beside the writer; `synchronous=FULL` syncs the log at each commit.
    """
    engine = create_engine(
        make_url(url), pool_size=connections, max_overflow=0, pool_timeout=30, json_deserializer=json_value
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        if read_only:
            cursor.execute("PRAGMA query_only=ON")
        else:
            _log_ahead(cursor)
        for pragma in ("synchronous=FULL", "foreign_keys=ON", "temp_store=MEMORY"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine


def _log_ahead(cursor: sqlite3.Cursor) -> None:
    """Set WAL mode, which a file keeps.

    Where another is about to change a file that is not in it yet, SQLite refuses at once, whatever `busy_timeout` says:
    the two might wait for each other. So of several processes that start on a new catalogue, the others try again.
    """
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(_AGAIN_SECONDS)
        else:
            return
