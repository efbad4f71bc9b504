"""The database and its unit of work: a function over a repository, run in a thread, inside one transaction.

What is the same on every database is here; `sqlite` and `postgresql` say how each of them does it.
"""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Protocol, TypeVar

from anyio import CancelScope
from pydantic_core import from_json
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from smart_assets.catalogue.repository import Repository
from smart_assets.errors import CatalogueUnavailable, ConfigurationError, NoSpace
from smart_assets.settings import PostgresqlSettings
from smart_assets.threads import NoTurn, Threads

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_JOBS = 2


class JobLock(Protocol):
    """What a job holds while one process of all does it. It blocks."""

    def take(self) -> bool:
        """False where another has it."""
        ...

    def give_back(self) -> None:
        """Let it go, where it is held; never raises."""
        ...


class Database(ABC):
    """The catalogue's connections.

    `read` and `write` run `work(repository)` in a thread and return its result; `work` is one transaction, committed
    durably when it returns and rolled back when it raises. A task that is cancelled meanwhile hears of it when the
    transaction has ended, one way or the other, so that nothing is committed behind its back.

    `work` may be run a second time, and must do nothing but ask the repository. Both raise NoSpace where the database
    has no room left, and CatalogueUnavailable where it does not answer; it is used again as soon as it does.
    """

    def __init__(self, readers: int, *, wait_seconds: float | None = None) -> None:
        """`readers` read at once; the others wait, at most for `wait_seconds`."""
        self._readers = Threads("catalogue-read", readers, wait_seconds=wait_seconds)
        self._jobs = Threads("catalogue-job", _JOBS)

    @staticmethod
    def open(url: str, settings: PostgresqlSettings | None = None) -> Database:
        """Connect, and bring the schema up to date. Blocks; call it once, before the workers start.

        Raises ConfigurationError where the database cannot be used, or is newer than this program.
        """
        if is_sqlite(url):
            from smart_assets.catalogue.sqlite import SqliteDatabase

            return SqliteDatabase.opened(url)
        from smart_assets.catalogue.postgresql import PostgresqlDatabase

        return PostgresqlDatabase.opened(url, settings or PostgresqlSettings())

    @staticmethod
    def open_as_it_is(url: str, settings: PostgresqlSettings | None = None, *, read_only: bool) -> Database:
        """Connect to a catalogue that is there, and neither make nor change its schema. Blocks, as `open` does.

        Raises ConfigurationError where there is none, or one of another version of this program.
        """
        if is_sqlite(url):
            from smart_assets.catalogue.sqlite import SqliteDatabase

            return SqliteDatabase.opened_as_it_is(url, read_only=read_only)
        from smart_assets.catalogue.postgresql import PostgresqlDatabase

        return PostgresqlDatabase.opened_as_it_is(url, settings or PostgresqlSettings(), read_only=read_only)

    async def read(self, work: Callable[[Repository], Result]) -> Result:
        """Run `work` in a transaction that only reads: it sees one state of the catalogue throughout."""
        return await in_turn(self._readers, partial(self._run, work, writes=False))

    @abstractmethod
    async def write(self, work: Callable[[Repository], Result]) -> Result:
        """Run `work` in a transaction of its own; what it changed is durable when this returns.

        An asset or a key that `work` has got is nobody else's to change before it ends.
        """

    @asynccontextmanager
    async def job(self, name: str) -> AsyncIterator[bool]:
        """Whether this process may do a job now that one of all processes does at a time; if so, until the context
        ends, or the process does."""
        lock = self._job_lock(name)
        try:
            yield await self._jobs.run(lock.take)
        finally:
            try:
                with CancelScope(shield=True):
                    await self._jobs.run(lock.give_back)
            finally:
                lock.give_back()  # whoever is cancelled over and over

    async def close(self) -> None:
        """Close every connection, once what is being written has ended."""
        await self._jobs.run(self._close)
        self._readers.close()
        self._jobs.close()

    # ── In threads ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self, work: Callable[[Repository], Result], *, writes: bool) -> Result:
        """Run `work` in a transaction, to its end."""
        try:
            return self._transact(work, writes=writes)
        except SQLAlchemyError as error:
            known = self._translate(error)
            if known is None:
                raise
            if not isinstance(known, NoSpace):
                logger.exception("the catalogue does not answer")
            raise known from error

    @abstractmethod
    def _transact(self, work: Callable[[Repository], Result], *, writes: bool) -> Result:
        """`work` in a transaction: committed, or rolled back and raised."""

    @abstractmethod
    def _translate(self, error: SQLAlchemyError) -> CatalogueUnavailable | NoSpace | None:
        """What the database's error means to a caller; None where it is a bug of ours."""

    @abstractmethod
    def _job_lock(self, name: str) -> JobLock:
        """The lock of a job, not taken yet."""

    @abstractmethod
    def _close(self) -> None:
        """Wait for what is being written, and close every connection."""


async def in_turn(threads: Threads, work: Callable[[], Result]) -> Result:
    """What `work` comes to, in one of the threads; CatalogueUnavailable where none was free in time."""
    try:
        return await threads.run(work)
    except NoTurn:
        raise CatalogueUnavailable("the catalogue is busy; try again") from None


def unavailable() -> CatalogueUnavailable:
    """What a caller hears of a database that does not answer."""
    return CatalogueUnavailable("the catalogue does not answer; try again")


def is_sqlite(url: str) -> bool:
    """Whether a catalogue is a file. ConfigurationError where its URL cannot be read."""
    try:
        return make_url(url).get_backend_name() == "sqlite"
    except (ArgumentError, ValueError):
        sentence = "ASSETS_DATABASE_URL cannot be read: it is to look like postgresql://user:password@host:5432/name"
        raise ConfigurationError(sentence) from None  # what was raised may hold the password


@contextmanager
def one_sentence() -> Iterator[None]:
    """ConfigurationError for what the database says where it cannot be used."""
    try:
        yield
    except SQLAlchemyError as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        raise ConfigurationError(f"the catalogue (ASSETS_DATABASE_URL) cannot be opened: {reason}") from error


def another_version() -> ConfigurationError:
    """What is said of a catalogue that is not of this version, where its schema is not to be changed."""
    return ConfigurationError("the catalogue is not of this version of Smart Assets: start its service once")


def json_value(text: str | bytes) -> Any:
    """A JSON column's value. A page of assets has three for each, and pydantic's parser takes a fifth of the time."""
    try:
        return from_json(text)
    except ValueError:  # half a surrogate pair, which Python's JSON may hold
        return json.loads(text)
