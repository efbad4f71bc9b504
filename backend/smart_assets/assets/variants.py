"""Sizes added later, to an asset that is there.

    intend    one transaction: the row is `moving`, names every key about to be written, and holds the credits it may
              cost
    fetch     the original, from where it lies, into a temporary file that is held against its hash
    make      render the sizes that are not there yet, and store them
    close     one transaction: `ready` again, with what was made, and charged for it

A failure in between is undone before the caller hears of it; a crash in between is undone by any process that lives.
Meanwhile the asset is to callers what it was before, and busy.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from smart_assets import observability
from smart_assets.access.credits import Credits
from smart_assets.assets.fetching import fetch
from smart_assets.assets.lease import Lease
from smart_assets.assets.library import Library
from smart_assets.assets.objects import original_key, variant_key
from smart_assets.assets.settling import Settling, names
from smart_assets.assets.spool import Spool
from smart_assets.assets.together import all_or_first_error
from smart_assets.assets.uploads import Failure, UploadedAsset, check_reserve
from smart_assets.catalogue.database import Database
from smart_assets.catalogue.models import AssetRecord, AssetState, Charge, VariantRecord
from smart_assets.catalogue.repository import Repository
from smart_assets.errors import AssetBusy, Busy, ImageError, InvalidParameter, SmartAssetsError
from smart_assets.imaging.jobs import RenderJob, RenderResult, Rendition, RenditionFailure
from smart_assets.imaging.placeholder import Placeholder
from smart_assets.imaging.probe import Limits, probe
from smart_assets.imaging.sizes import RenderOptions, Size, variant_name
from smart_assets.imaging.workers import RenderPool
from smart_assets.settings import Settings
from smart_assets.storage.base import StorageBackend
from smart_assets.storage.errors import ObjectNotFound, StorageUnavailable
from smart_assets.storage.registry import Storages
from smart_assets.threads import Threads

logger = logging.getLogger(__name__)

_Also = Callable[[Repository, list[UploadedAsset | Failure]], None]


@dataclass(frozen=True, kw_only=True)
class VariantOptions:
    """The sizes a caller wants an asset to have. `placeholder` None: where anything is rendered anyway."""

    sizes: tuple[Size, ...]
    render: RenderOptions = field(default_factory=RenderOptions)
    atomic: bool = True
    placeholder: bool | None = None


@dataclass
class _Made:
    """What came of the sizes: those stored, why others were not, and the placeholder, where there was none."""

    variants: list[VariantRecord] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    placeholder: Placeholder | None = None


class Variants:
    """The use-case; one for the process."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        storages: Storages,
        renderer: RenderPool,
        lease: Lease,
        settling: Settling,
        library: Library,
        threads: Threads,
        temporary_dir: Path,
        credits: Credits,
    ) -> None:
        """Everything it needs is built, and closed, by `runtime`."""
        self._limits = Limits.from_settings(settings)
        self._data_dir = settings.data_dir
        self._most = settings.policy.max_sizes_per_upload
        self._database = database
        self._storages = storages
        self._renderer = renderer
        self._lease = lease
        self._settling = settling
        self._library = library
        self._threads = threads
        self._temporary_dir = temporary_dir
        self._credits = credits

    async def add(
        self,
        asset_id: UUID,
        owner: str | None,
        options: VariantOptions,
        *,
        key_id: UUID | None = None,
        also: _Also | None = None,
    ) -> UploadedAsset:
        """Make the sizes the asset does not have yet; those it has stay as they are.

        With `options.atomic` the first error comes out, and none of them stays; without, what worked is kept, and the
        rest is told. `also` is run within the transaction that closes it, and is given what will be returned.
        The owner of the asset pays for what is made, whoever asks, with the key `key_id`; else InsufficientCredits.
        AssetBusy while another change of the asset is under way, InvalidParameter where it would have too many sizes.
        """
        while True:
            record = await self._library.get(asset_id, owner)
            if record.state is not AssetState.READY:
                raise AssetBusy("another change of this asset is under way")
            sizes = self._lacking(record, options)
            placeholder = record.thumbhash is None and (
                bool(sizes) if options.placeholder is None else options.placeholder
            )
            if not sizes and not placeholder:
                return await self._as_it_is(record, also)
            grown = await self._grow(record, replace(options, sizes=sizes, placeholder=placeholder), key_id, also)
            if grown is not None:
                return grown
            # Somebody was faster: look at what it is now.

    async def _as_it_is(self, record: AssetRecord, also: _Also | None) -> UploadedAsset:
        outcome = UploadedAsset(record)
        if also is not None:
            await self._database.write(lambda catalogue: also(catalogue, [outcome]))
        return outcome

    def _lacking(self, record: AssetRecord, options: VariantOptions) -> tuple[Size, ...]:
        """The sizes it does not have. One of the same name and format is the same: all that makes its pixels differ
        is in its name."""
        there = {variant.full_name for variant in record.made_variants}
        lacking = tuple(size for size in options.sizes if _planned(record, size, options).full_name not in there)
        if len(there) + len(lacking) > self._most:
            message = f"the asset has {len(there)} sizes, and {len(lacking)} more are over the limit of {self._most}"
            raise InvalidParameter.at("query", "sizes", message=message)
        return lacking

    async def _grow(
        self,
        record: AssetRecord,
        options: VariantOptions,
        key_id: UUID | None,
        also: _Also | None,
    ) -> UploadedAsset | None:
        """Intend, make and close; None where the row is no longer what `record` says."""
        backend = self._storages.get(record.storage)
        check_reserve(self._data_dir)
        planned = [_planned(record, size, options) for size in options.sizes]
        # What an earlier upload planned and could not remove stays in the row's care.
        wanted = {variant.full_name for variant in planned}
        earlier = [variant for variant in record.planned_variants if variant.full_name not in wanted]
        remains = [variant for variant in record.planned_variants if variant.full_name in wanted]
        with self._lease.claim() as claim:
            growing = replace(
                record,
                state=AssetState.MOVING,
                lease=claim,
                variants=(*record.made_variants, *earlier, *planned),
                credits_reserved=self._credits.price(sizes=len(planned)),
            )
            if not await self._database.write(lambda catalogue: catalogue.begin_growing(growing)):
                return None
            try:
                await self._remove_remains(backend, growing, remains)
                made = await self._make(backend, growing, planned, options)
                finished = await self._finished(backend, growing, made)
                charge = self._credits.charge(record.owner, asset_id=record.id, key_id=key_id, sizes=len(made.variants))
                if charge is not None:
                    finished = replace(finished, credits_used=(record.credits_used or 0) + charge.credits)
                ready = replace(finished, state=AssetState.READY, lease=None, credits_reserved=None)
                outcome = UploadedAsset(ready, tuple(made.failed))
                added_bytes = finished.total_bytes - record.total_bytes
                await self._close(finished, outcome, charge, also, added_bytes=added_bytes)
            except BaseException:
                await asyncio.shield(self._undo(growing))
                raise
        return outcome

    async def _close(
        self,
        finished: AssetRecord,
        outcome: UploadedAsset,
        charge: Charge | None,
        also: _Also | None,
        *,
        added_bytes: int,
    ) -> None:
        def close(catalogue: Repository) -> None:
            if not catalogue.finish_growing(finished, added_bytes):
                raise _taken_over()
            if charge is not None:
                catalogue.charge(charge)
            if also is not None:
                also(catalogue, [outcome])

        await self._database.write(close)

    async def _remove_remains(
        self, backend: StorageBackend, growing: AssetRecord, remains: Sequence[VariantRecord]
    ) -> None:
        """Free the keys of sizes that were planned before, and may lie there in parts."""
        if remains and await backend.cleanup_failed_assets([variant_key(growing, variant) for variant in remains]):
            raise StorageUnavailable("what an earlier try left of these sizes cannot be removed yet; try again")

    async def _make(
        self, backend: StorageBackend, growing: AssetRecord, planned: Sequence[VariantRecord], options: VariantOptions
    ) -> _Made:
        async with Spool(self._temporary_dir, growing.size_bytes, self._threads, memory_bytes=0) as spool:
            source = await self._fetch(backend, growing, spool)
            info = await self._threads.run(lambda: probe(source, self._limits))
            job = RenderJob(
                source=source,
                info=info,
                sizes=options.sizes,
                options=options.render,
                placeholder=bool(options.placeholder),
                directory=source.parent,
            )
            try:
                result = await self._renderer.render(job)
            except ImageError as error:
                if options.atomic or not options.sizes:
                    raise
                result = RenderResult(tuple(RenditionFailure(size, error) for size in options.sizes), None)
            made = _Made(placeholder=result.placeholder)

            async def store(variant: VariantRecord, rendition: Rendition | RenditionFailure) -> VariantRecord | None:
                try:
                    if isinstance(rendition, RenditionFailure):
                        raise rendition.error
                    await backend.upload(
                        variant_key(growing, variant),
                        rendition.path,
                        content_type=rendition.format.media_type,
                        give_away=True,
                    )
                except SmartAssetsError as error:
                    if options.atomic:
                        raise
                    made.failed.append(Failure(error, variant.size))
                    return None
                return replace(variant, width=rendition.width, height=rendition.height, size_bytes=rendition.size_bytes)

            try:
                pairs = zip(planned, result.renditions, strict=True)
                stored = await all_or_first_error(*(store(variant, rendition) for variant, rendition in pairs))
            finally:
                job.discard()
        made.variants = [variant for variant in stored if variant is not None]
        order = [variant.size for variant in planned]
        made.failed.sort(key=lambda failure: order.index(failure.size or ""))
        return made

    async def _fetch(self, backend: StorageBackend, record: AssetRecord, spool: Spool) -> Path:
        """The original as a file; StorageError where it is not what was stored."""
        try:
            await fetch(backend, original_key(record), spool, size=record.size_bytes, sha256=record.sha256)
        except ObjectNotFound:
            if not await self._database.read(lambda catalogue: catalogue.is_claimed(record)):
                raise _taken_over() from None  # who has it now may have moved or removed it
            raise
        return await spool.as_file()

    async def _finished(self, backend: StorageBackend, growing: AssetRecord, made: _Made) -> AssetRecord:
        """The row with what was made. What was planned and is not there is removed; where that cannot be done now it
        stays in the row's care, unseen, and goes when the asset goes."""
        stored = {variant.full_name: variant for variant in made.variants}
        variants = [stored.get(variant.full_name, variant) for variant in growing.variants]
        doubtful = {variant_key(growing, variant) for variant in variants if not variant.size_bytes}
        if doubtful:
            # Whoever took the row over may be about to write the very same keys.
            if not await self._database.read(lambda catalogue: catalogue.is_claimed(growing)):
                raise _taken_over()
            doubtful -= set(await backend.cleanup_failed_assets(doubtful))
        finished = replace(
            growing, variants=tuple(variant for variant in variants if variant_key(growing, variant) not in doubtful)
        )
        if made.placeholder is not None:
            thumbhash, colour = made.placeholder.thumbhash, made.placeholder.dominant_color
            finished = replace(finished, thumbhash=thumbhash, dominant_color=colour)
        if made.variants or made.placeholder is not None:
            finished = replace(finished, version=growing.version + 1, updated_at=datetime.now(UTC))
        return finished

    async def _undo(self, growing: AssetRecord) -> None:
        """Remove what was written; never raises."""
        try:
            if await self._settling.undo_growing(growing):
                return
            logger.warning("sizes that were not added are removed later", extra=names(growing))
        except Exception:
            logger.exception("could not undo the adding of sizes yet", extra=names(growing))
        # The row stays under a claim that nobody holds: `maintenance.reconcile` finishes it.
        observability.BACKGROUND_FAILURES.labels("undo_growing").inc()


def _planned(record: AssetRecord, size: Size, options: VariantOptions) -> VariantRecord:
    return VariantRecord(str(size), variant_name(size, options.render), options.render.format or record.format)


def _taken_over() -> Busy:
    return Busy("adding the sizes took too long and was undone by another process; try again")
