"""The catalogue in PostgreSQL: for services on several machines, which write side by side.

A transaction that writes is READ COMMITTED: what changes a row says in which state it must be, what is read to be
changed is locked when it is read, and the rows that all share are locked last (`repository`). One that reads sees one
state throughout.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from typing import Any, Final, Literal, Self, TypeVar

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from smart_assets.catalogue.database import (
    Database,
    another_version,
    in_turn,
    json_value,
    one_sentence,
    unavailable,
)
from smart_assets.catalogue.migrations import HEAD, current_revision, upgrade_to_head
from smart_assets.catalogue.repository import Repository
from smart_assets.errors import CatalogueUnavailable, ConfigurationError, NoSpace
from smart_assets.settings import PostgresqlSettings
from smart_assets.threads import Threads

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

TRIES: Final = 4
"""How often a transaction is begun that cannot go together with another one, or whose connection broke."""

# SQLSTATE, by its class where that is enough: see the manual's appendix "PostgreSQL Error Codes".
_AGAIN: Final = frozenset({"40001", "40P01"})  # serialization failure, deadlock: rolled back
_DISK_FULL: Final = "53100"
_AWAY: Final = (
    "08",  # connection
    "25006",  # it has become a standby, which only reads
    "25P03",  # idle in a transaction: this process stood still
    "3D000",  # the database was dropped
    "42P01",  # its tables were
    "40",
    "53",  # too many connections, out of memory
    "55P03",  # lock not available in time
    "57",  # statement cancelled, server shutting down or starting up
    "58",  # system error
)


class PostgresqlDatabase(Database):
    """A catalogue at a server.

    A server that was restarted is noticed by the first transaction that finds its connection broken, which is run again
    over a new one, unless it was already about to be committed: then nobody can know, and CatalogueUnavailable says so.
    """

    def __init__(self, url: str, settings: PostgresqlSettings, *, read_only: bool = False) -> None:
        """Use `opened` where the schema may have to be made first; `read_only`: `write` fails."""
        super().__init__(settings.readers, wait_seconds=settings.wait_seconds)
        self._reading = create_postgresql_engine(url, settings, connections=settings.readers, reads=True)
        self._writing = create_postgresql_engine(url, settings, connections=settings.writers, reads=read_only)
        self._locking = create_postgresql_engine(url, settings, connections=None)
        self._writers = Threads("catalogue-write", settings.writers, wait_seconds=settings.wait_seconds)

    @classmethod
    def opened(cls, url: str, settings: PostgresqlSettings) -> Self:
        """See `Database.open`."""
        engine = create_postgresql_engine(url, settings, connections=None)
        with one_sentence():
            _check_encoding(engine)
            upgrade_to_head(engine)
        return cls(url, settings)

    @classmethod
    def opened_as_it_is(cls, url: str, settings: PostgresqlSettings, *, read_only: bool) -> Self:
        """See `Database.open_as_it_is`."""
        with one_sentence():
            revision = current_revision(create_postgresql_engine(url, settings, connections=None, reads=True))
        if revision is None:
            raise ConfigurationError("there is no catalogue in that database (set ASSETS_DATABASE_URL)")
        if revision != HEAD:
            raise another_version()
        return cls(url, settings, read_only=read_only)

    async def write(self, work: Callable[[Repository], Result]) -> Result:
        """See `Database.write`."""
        return await in_turn(self._writers, partial(self._run, work, writes=True))

    async def close(self) -> None:
        """See `Database.close`."""
        await super().close()
        self._writers.close()

    # ── In threads ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _transact(self, work: Callable[[Repository], Result], *, writes: bool) -> Result:
        engine = self._writing if writes else self._reading
        tries = TRIES
        while True:
            tries -= 1
            is_ending = False
            try:
                with engine.connect() as connection, connection.begin() as transaction:
                    repository = Repository(connection, writes=writes)
                    result = work(repository)
                    repository.finish()
                    is_ending = True
                    transaction.commit()
                return result
            except DBAPIError as error:
                is_undone = _sqlstate(error) in _AGAIN or (error.connection_invalidated and not is_ending)
                if not (is_undone and tries):
                    raise
                logger.info("a transaction is run again", extra={"error": repr(error.orig)})

    def _translate(self, error: SQLAlchemyError) -> CatalogueUnavailable | NoSpace | None:
        if isinstance(error, PoolTimeout):
            return unavailable()
        if not isinstance(error, DBAPIError):
            return None
        state = _sqlstate(error)
        if state == _DISK_FULL:
            return NoSpace("no room left for the catalogue")
        # Without a state: the connection broke, or there was none to be had.
        away = state.startswith(_AWAY) if state else isinstance(error, OperationalError)
        return unavailable() if away or error.connection_invalidated else None

    def _job_lock(self, name: str) -> AdvisoryLock:
        return AdvisoryLock(self._locking, name)

    def _close(self) -> None:
        for engine in (self._writing, self._reading, self._locking):
            engine.dispose()


class AdvisoryLock:
    """The lock of a job, held by a connection of its own: it ends with that, at the latest when the process does.

    A server that is restarted forgets it, while the job may still be running.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        """Asks nobody anything before `take`."""
        self._engine = engine
        self._key = {"key": int.from_bytes(sha256(f"smart-assets job {name}".encode()).digest()[:8], signed=True)}
        self._connection: Connection | None = None

    def take(self) -> bool:
        """False where another has it."""
        try:
            connection = self._engine.connect()
            self._connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            if connection.execute(text("SELECT pg_try_advisory_lock(:key)"), self._key).scalar_one():
                return True
        except SQLAlchemyError as error:
            self._hang_up()
            raise unavailable() from error
        self._hang_up()
        return False

    def give_back(self) -> None:
        """Let it go, where it is held."""
        if self._connection is None:
            return
        try:
            # Said, not only hung up: who asks next, at once, is to have it.
            self._connection.execute(text("SELECT pg_advisory_unlock(:key)"), self._key)
        except SQLAlchemyError as error:
            logger.warning("the connection that held a job's lock broke", extra={"error": repr(error)})
        finally:
            self._hang_up()

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def create_postgresql_engine(
    url: str, settings: PostgresqlSettings, *, connections: int | None, reads: bool = False
) -> Engine:
    """An engine whose commits are on the server's disk when they return; `reads`: that commits nothing.

    `connections` None: one for each use, closed after it.
    """
    isolation: Literal["REPEATABLE READ", "READ COMMITTED"] = "REPEATABLE READ" if reads else "READ COMMITTED"
    parsed = make_url(url).set(drivername="postgresql+psycopg")
    options: dict[str, Any] = {"connect_args": _arguments(parsed, settings), "json_deserializer": json_value}
    if connections is None:
        options["poolclass"] = NullPool
    else:
        options |= {"pool_size": connections, "max_overflow": 0, "pool_use_lifo": True}
    try:
        engine = create_engine(parsed, isolation_level=isolation, **options)
    except ImportError as error:
        raise ConfigurationError(
            "ASSETS_DATABASE_URL names PostgreSQL, which needs the extra smart-assets[postgres] (or make serve "
            "EXTRAS=postgres)"
        ) from error
    limits = _limits(settings)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.autocommit = True
        connection.execute(_PREPARE, limits)
        connection.autocommit = False
        connection.read_only = reads or None

    return engine


# A commit that a crash could undo is none of ours; a stronger promise than that is the administrator's to make.
_PREPARE: Final = """
SELECT set_config('TimeZone', 'UTC', false),
       set_config('synchronous_commit', CASE setting WHEN 'off' THEN 'on' ELSE setting END, false),
       set_config('statement_timeout', %(statement)s, false),
       set_config('lock_timeout', %(lock)s, false),
       set_config('idle_in_transaction_session_timeout', %(statement)s, false),
       set_config('tcp_keepalives_idle', '30', false),
       set_config('tcp_keepalives_interval', '10', false),
       set_config('tcp_keepalives_count', '3', false)
FROM pg_settings WHERE name = 'synchronous_commit'
"""


def _limits(settings: PostgresqlSettings) -> dict[str, str]:
    return {
        "statement": f"{settings.statement_timeout_seconds * 1000:.0f}",
        "lock": f"{settings.lock_timeout_seconds * 1000:.0f}",
    }


def _arguments(url: URL, settings: PostgresqlSettings) -> dict[str, Any]:
    """What libpq is told, but for what the URL says itself. A server that fell silent is noticed in half a minute."""
    arguments = {
        "connect_timeout": settings.connect_timeout_seconds,
        "fallback_application_name": "smart-assets",
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 4,
        "tcp_user_timeout": 30_000,
    }
    return {name: value for name, value in arguments.items() if name not in url.query}


def _check_encoding(engine: Engine) -> None:
    with engine.connect() as connection:
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
    if encoding != "UTF8":
        raise ConfigurationError(
            f"the database that ASSETS_DATABASE_URL names has the encoding {encoding}: make one with UTF8"
        )


def _sqlstate(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or ""
