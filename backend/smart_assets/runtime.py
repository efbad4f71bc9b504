"""The composition root: builds every long-lived object, in order, and closes them in the opposite one."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from anyio import to_thread

from smart_assets import observability
from smart_assets.access.api_keys import ApiKeys
from smart_assets.access.credits import Credits
from smart_assets.access.ratelimit import RateLimits
from smart_assets.access.signing import UrlSigner
from smart_assets.assets.deletions import Deletions
from smart_assets.assets.delivery import Delivery
from smart_assets.assets.idempotency import Idempotency
from smart_assets.assets.importing import Importer
from smart_assets.assets.lease import Lease
from smart_assets.assets.library import Library
from smart_assets.assets.moving import Moving
from smart_assets.assets.settling import Settling
from smart_assets.assets.tickets import Tickets
from smart_assets.assets.uploads import Uploads
from smart_assets.assets.variants import Variants
from smart_assets.catalogue.database import Database
from smart_assets.catalogue.repository import Repository
from smart_assets.errors import ConfigurationError
from smart_assets.imaging.budget import MemoryBudget
from smart_assets.imaging.sizes import check_presets
from smart_assets.imaging.workers import RenderPool
from smart_assets.maintenance.gauges import Gauges, keep_current
from smart_assets.maintenance.marker import keep_marked
from smart_assets.maintenance.reconcile import Reconciler
from smart_assets.maintenance.retention import Retention
from smart_assets.maintenance.tickets import TicketSweep
from smart_assets.scratch import ScratchDirectory
from smart_assets.settings import Settings
from smart_assets.storage.base import StorageBackend
from smart_assets.storage.errors import StorageError, StorageNotConfigured
from smart_assets.storage.factory import check_storages, storage_names, temporary_directories
from smart_assets.storage.registry import Storages
from smart_assets.threads import Threads

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Runtime:
    """What a running service is made of."""

    settings: Settings
    database: Database
    storages: Storages
    api_keys: ApiKeys
    credits: Credits
    limits: RateLimits
    uploads: Uploads
    library: Library
    variants: Variants
    deletions: Deletions
    moving: Moving
    delivery: Delivery
    idempotency: Idempotency
    tickets: Tickets
    importer: Importer
    reconciler: Reconciler
    retention: Retention
    gauges: Gauges
    threads: Threads
    temporary_dir: Path

    async def check(self) -> None:
        """Whether the service can do its work: the catalogue and the default storage answer. Raises what is wrong."""
        await self.database.read(lambda catalogue: catalogue.beats())
        await self.storages.get(self.settings.default_storage).ping()


@asynccontextmanager
async def running(settings: Settings, *, serves: bool = True) -> AsyncIterator[Runtime]:
    """A runtime for as long as the context lasts. Raises ConfigurationError where one cannot be built.

    One that does not serve, but is a tool's beside a service that may be running, forgets no rows of storages that live
    in a process, has no such storage itself, and tries no storage out.
    """
    prepare(settings)
    async with AsyncExitStack() as closing:
        database = await to_thread.run_sync(Database.open, database_url(settings), settings.postgresql)
        closing.push_async_callback(database.close)
        lease = Lease(database)
        await lease.renew()
        closing.push_async_callback(lease.give_back)
        threads = Threads("work")
        closing.callback(threads.close)
        storages = Storages(settings, serves=serves)
        closing.push_async_callback(storages.close)
        lasting = await _open_storages(storages, database, settings) if serves else []
        own_scratch = ScratchDirectory(settings.temporary_dir)
        closing.callback(own_scratch.close)
        budget = MemoryBudget(settings.imaging.memory_budget_bytes, own_scratch.path)
        closing.callback(budget.close)
        renderer = RenderPool(settings.imaging, budget)
        closing.push_async_callback(renderer.close)
        settling = Settling(database, storages, lease)
        signer = UrlSigner.from_settings(settings, own_scratch.path)
        reconciler = Reconciler(
            database,
            settling,
            lease,
            threads,
            lease_seconds=settings.lease_seconds,
            temporary_dirs=temporary_directories(settings),
            tickets=TicketSweep(settings.tickets, database, storages, lease),
        )
        await closing.enter_async_context(_in_background(reconciler.run()))
        retention = Retention(settings.retention, database, storages, lease, settling, serves=serves)
        remote = [backend for backend in lasting if not backend.capabilities.at_hand]
        await closing.enter_async_context(_in_background(_check_storages(remote)))
        if serves:
            await closing.enter_async_context(_in_background(keep_marked(database, lasting)))
            await closing.enter_async_context(_in_background(retention.run_periodically()))
            await closing.enter_async_context(_in_background(keep_current()))
            observability.PROCESSES.inc()
            closing.callback(observability.PROCESSES.dec)
        gauges = Gauges(settings, database)
        closing.push_async_callback(gauges.close)
        limits = RateLimits(settings)
        closing.push_async_callback(limits.close)
        if serves:
            await closing.enter_async_context(_in_background(limits.try_out()))
        library = Library(database, storages, lease, settling)
        credits = Credits(settings.credits, database)
        uploads = Uploads(settings, database, storages, renderer, lease, settling, threads, credits)
        deletions = Deletions(database, storages, lease, settling)
        closing.push_async_callback(deletions.close)
        yield Runtime(
            settings=settings,
            database=database,
            storages=storages,
            api_keys=ApiKeys(settings, database),
            credits=credits,
            limits=limits,
            uploads=uploads,
            library=library,
            variants=Variants(
                settings, database, storages, renderer, lease, settling, library, threads, own_scratch.path, credits
            ),
            deletions=deletions,
            moving=Moving(settings, database, storages, lease, settling, threads, own_scratch.path),
            delivery=Delivery(settings, database, storages, signer, threads),
            idempotency=Idempotency(database, lease),
            tickets=Tickets(settings.tickets, database, storages, lease, uploads, signer, threads, own_scratch.path),
            importer=Importer(settings.imports),
            reconciler=reconciler,
            retention=retention,
            gauges=gauges,
            threads=threads,
            temporary_dir=own_scratch.path,
        )


@dataclass(frozen=True)
class Sight:
    """What a tool needs to look at storages and catalogue, beside a service that may be running."""

    settings: Settings
    database: Database
    storages: Storages
    threads: Threads


@asynccontextmanager
async def looking(settings: Settings, *, read_only: bool, make: bool = False) -> AsyncIterator[Sight]:
    """A catalogue that is there, and its storages, and nothing else: no lease, no repairs, no schema or key is made.

    Raises ConfigurationError where there is no catalogue, unless an empty one is to be made (`make`).
    """
    async with AsyncExitStack() as closing:
        if make:
            prepare(settings)
            database = await to_thread.run_sync(Database.open, database_url(settings), settings.postgresql)
        else:
            database = await to_thread.run_sync(
                partial(Database.open_as_it_is, database_url(settings), settings.postgresql, read_only=read_only)
            )
        closing.push_async_callback(database.close)
        if not settings.data_dir.is_dir():
            raise ConfigurationError(f"there is no data directory {settings.data_dir} (set ASSETS_DATA_DIR)")
        prepare(settings)
        threads = Threads("work")
        closing.callback(threads.close)
        storages = Storages(settings)
        closing.push_async_callback(storages.close)
        yield Sight(settings, database, storages, threads)


@asynccontextmanager
async def _in_background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def prepare(settings: Settings) -> None:
    """Make the data directory and check what can be checked before anything runs. Raises ConfigurationError."""
    check_settings(settings)
    make_directories(settings)


def check_settings(settings: Settings) -> None:
    """See that the settings make sense together. Raises ConfigurationError."""
    check_presets(settings.presets)
    names = storage_names(settings)
    if settings.default_storage not in names:
        raise ConfigurationError(
            f"ASSETS_DEFAULT_STORAGE is {settings.default_storage}; the storages there are: {', '.join(names)}"
        )
    limits = settings.retention.max_size_bytes
    for name in limits if isinstance(limits, dict) else ():
        if name not in names:
            raise ConfigurationError(
                f"ASSETS_RETENTION__MAX_SIZE_BYTES names {name}; the storages there are: {', '.join(names)}"
            )
    check_storages(settings)


def make_directories(settings: Settings) -> None:
    """Make the data directory and what belongs into it. Raises ConfigurationError where that cannot be used."""
    try:
        settings.data_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
        settings.temporary_dir.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"the data directory {settings.data_dir} cannot be used: {error.strerror} (set ASSETS_DATA_DIR to another)"
        ) from error
    for directory in (settings.data_dir, settings.temporary_dir):
        if not os.access(directory, os.W_OK | os.X_OK):
            raise ConfigurationError(f"the data directory {directory} is not writable (set ASSETS_DATA_DIR to another)")


def database_url(settings: Settings) -> str:
    """Where the catalogue is."""
    if settings.database_url is None:
        return f"sqlite:///{settings.data_dir / 'catalogue.sqlite3'}"
    return settings.database_url.get_secret_value()


async def _open_storages(storages: Storages, database: Database, settings: Settings) -> list[StorageBackend]:
    """Open every configured storage, and forget rows whose bytes went with an earlier process; those that outlive one.

    Opened here, because a vendor's SDK takes a while to import, and what delivery reads without a look-up must be open.
    """
    lasting = []
    for name in storage_names(settings):
        try:
            backend = storages.get(name)
        except StorageNotConfigured as error:
            if name == settings.default_storage:
                raise ConfigurationError(f"ASSETS_DEFAULT_STORAGE is {name}, but {error.detail}") from error
            continue
        if backend.capabilities.one_process:
            forgotten = await database.write(partial(Repository.remove_storage, storage=backend.name))
            if forgotten:
                logger.info(
                    "forgot the assets of a storage that does not outlive a process", extra={"storage": backend.name}
                )
        elif backend.capabilities.persistent:
            lasting.append(backend)
    return lasting


async def _check_storages(remote: list[StorageBackend]) -> None:
    """Tell the operator, soon after the start, what is wrong with a storage's settings; the service runs meanwhile."""
    for backend in remote:
        try:
            await backend.check()
            logger.info("the storage can be used", extra={"storage": backend.name})
        except StorageError as error:
            observability.BACKGROUND_FAILURES.labels("check_storage").inc()
            logger.error(  # noqa: TRY400 - the sentence is for an operator; where it was raised is of no use to one
                "the storage cannot be used as it is set up",
                extra={"storage": backend.name, "detail": error.detail, "cause": repr(error.__cause__)},
            )
        except Exception:
            observability.BACKGROUND_FAILURES.labels("check_storage").inc()
            logger.exception("the storage could not be checked", extra={"storage": backend.name})
