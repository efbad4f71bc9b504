"""Taking images in: all of a batch or nothing.

    prepare   decide by bytes, strip what is not to be kept, plan the sizes
    intend    one transaction: a `pending` row for each asset, which names every key about to be written, and holds
              the credits it may cost
    make      render the sizes and store them, the original beside them
    close     one transaction: `ready`, and charged for what was made; only then the caller hears of success

A failure in between is undone before the caller hears of it; a crash in between is undone by any process that lives.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from smart_assets import observability
from smart_assets.access.credits import Credits
from smart_assets.assets.lease import Lease
from smart_assets.assets.objects import created_at, new_asset_id, original_key, variant_key
from smart_assets.assets.settling import Settling
from smart_assets.assets.spool import Spool
from smart_assets.assets.together import all_or_first_error
from smart_assets.catalogue.database import Database
from smart_assets.catalogue.models import AssetRecord, AssetState, JsonObject, VariantRecord
from smart_assets.catalogue.repository import Repository
from smart_assets.errors import (
    BodyTooLarge,
    Busy,
    CatalogueUnavailable,
    ImageError,
    InsufficientCredits,
    NoSpace,
    SmartAssetsError,
    no_space,
)
from smart_assets.imaging.jobs import RenderJob, RenderResult, Rendition, RenditionFailure
from smart_assets.imaging.probe import ImageInfo, Limits, probe
from smart_assets.imaging.sizes import RenderOptions, Size, output_format, variant_name
from smart_assets.imaging.strip import strip_metadata, strip_metadata_file
from smart_assets.imaging.workers import RenderPool
from smart_assets.settings import DirectStorageSettings, Settings
from smart_assets.storage.base import StorageBackend
from smart_assets.storage.keys import ORIGINAL
from smart_assets.storage.registry import Storages
from smart_assets.threads import Threads
from smart_assets.visibility import Visibility

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

RESERVE_BYTES = 2 * 1024 * 1024
"""Room in the data directory that uploads leave to the catalogue: a disk that is full can be emptied by deleting."""

PROBE_AT_ONCE_BYTES = 64 * 1024
"""Up to this size probing takes less time than handing it to a thread."""


@dataclass(frozen=True, kw_only=True)
class UploadOptions:
    """What a caller wants done with the files of one request."""

    storage: str
    visibility: Visibility = Visibility.PUBLIC
    sizes: tuple[Size, ...] = ()
    render: RenderOptions = field(default_factory=RenderOptions)
    atomic: bool = True
    placeholder: bool = False
    strip_metadata: bool = False
    tags: tuple[str, ...] = ()
    expires_at: datetime | None = None


@dataclass(frozen=True)
class Upload:
    """One file as it came: its bytes, the name the caller gave it, and why it could not be taken, if so."""

    spool: Spool
    filename: str | None
    refused: SmartAssetsError | None = None


@dataclass(frozen=True)
class Failure:
    """What could not be made, and why: `size` of an asset, or (None) all of it."""

    error: SmartAssetsError
    size: str | None = None


@dataclass(frozen=True)
class UploadedAsset:
    """What became of one file. `data_urls` holds the bytes themselves, by variant name, where nothing was kept."""

    record: AssetRecord
    failed: tuple[Failure, ...] = ()
    data_urls: Mapping[str, str] | None = None


@dataclass
class _Draft:
    """One file on its way to become an asset: `intent` names all that may be written, `record` what was."""

    spool: Spool
    info: ImageInfo
    intent: AssetRecord
    record: AssetRecord
    failed: list[Failure] = field(default_factory=list)
    data_urls: dict[str, str] = field(default_factory=dict)


class Uploads:
    """The use-case; one for the process."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        storages: Storages,
        renderer: RenderPool,
        lease: Lease,
        settling: Settling,
        threads: Threads,
        credits: Credits,
    ) -> None:
        """Everything it needs is built, and closed, by `runtime`."""
        self._settings = settings
        self._limits = Limits.from_settings(settings)
        self._database = database
        self._storages = storages
        self._renderer = renderer
        self._lease = lease
        self._settling = settling
        self._threads = threads
        self._credits = credits

    async def upload(
        self,
        uploads: Sequence[Upload],
        options: UploadOptions,
        *,
        owner: str,
        metadata: JsonObject,
        key_id: UUID | None = None,
        is_charged: bool = True,
        also: Callable[[Repository, list[UploadedAsset | Failure]], None] | None = None,
    ) -> list[UploadedAsset | Failure]:
        """Make an asset of each file, in their order.

        The owner pays for what is made, unless that was charged before; `key_id` is the key it is asked for with.
        InsufficientCredits where it has not what all of it may cost: then nothing was done.

        `also` is run within the transaction that makes them `ready`, and is given what will be returned; what it raises
        undoes all of it.

        With `options.atomic` the first error comes out, and nothing of the batch stays. Without, a file that failed
        has a Failure in its place, and an asset lists the sizes it lacks; errors come out where none of it is about one
        file. The callers' spools are theirs to discard.
        """
        backend = self._storages.get(options.storage)
        check_reserve(self._settings.data_dir)
        results: list[_Draft | Failure] = []
        for upload in uploads:
            try:
                results.append(await self._prepare(upload, options, owner, metadata))
            except SmartAssetsError as error:
                self._count(options, error.code, len(uploads) if options.atomic else 1)
                if options.atomic:
                    raise
                results.append(Failure(error))
        drafts = [result for result in results if isinstance(result, _Draft)]
        is_metered = is_charged and self._credits.are_on

        def close(catalogue: Repository, failures: Mapping[UUID, SmartAssetsError]) -> None:
            made = [draft for draft in drafts if draft.record.id not in failures]
            if backend.capabilities.persistent:
                _close(catalogue, made)
            if is_metered:
                self._charge(catalogue, made, key_id, are_kept=backend.capabilities.persistent)
            if also is not None:
                also(catalogue, _outcomes(results, failures, backend))

        if drafts and backend.capabilities.persistent:
            failures = await self._counted(drafts, options, self._keep(backend, drafts, options, close))
        else:
            making = self._hand_back(
                backend,
                drafts,
                options,
                payer=owner if is_metered else None,
                close=close if also is not None or is_metered else None,
            )
            failures = await self._counted(drafts, options, making)
        for draft in drafts:
            failure = failures.get(draft.record.id)
            self._count(options, failure.code if failure else "ok")
            if failure is None:
                observability.labelled(observability.UPLOAD_BYTES, options.storage).inc(draft.spool.size)
        return _outcomes(results, failures, backend)

    async def _prepare(self, upload: Upload, options: UploadOptions, owner: str, metadata: JsonObject) -> _Draft:
        if upload.refused is not None:
            raise upload.refused
        spool = upload.spool
        with observability.Timed(observability.UPLOAD_STAGE_SECONDS, "probe"):
            info = await self._probe(spool.source)
        if options.strip_metadata:
            await self._strip(spool, info)
        asset_id = new_asset_id()
        moment = created_at(asset_id)
        image_format = output_format(info, options.render)
        width, height = info.display_size
        record = AssetRecord(
            id=asset_id,
            owner=owner,
            state=AssetState.PENDING,
            storage=options.storage,
            visibility=options.visibility,
            filename=upload.filename,
            format=info.format,
            size_bytes=spool.size,
            width=width,
            height=height,
            sha256=spool.sha256,
            created_at=moment,
            updated_at=moment,
            variants=tuple(
                VariantRecord(str(size), variant_name(size, options.render), image_format) for size in options.sizes
            ),
            tags=options.tags,
            metadata=metadata,
            expires_at=options.expires_at,
            credits_reserved=self._credits.price(originals=1, size_bytes=spool.size, sizes=len(options.sizes)),
        )
        return _Draft(spool, info, record, record)

    async def _probe(self, source: bytes | Path) -> ImageInfo:
        if isinstance(source, bytes) and len(source) <= PROBE_AT_ONCE_BYTES:
            return probe(source, self._limits)
        return await self._threads.run(lambda: probe(source, self._limits))

    async def _strip(self, spool: Spool, info: ImageInfo) -> None:
        source = spool.source
        if isinstance(source, bytes):
            await spool.replace(await self._threads.run(lambda: strip_metadata(source, info)))
        else:
            target = source.with_name(f"{source.name}.stripped")
            try:
                with no_space():
                    await self._threads.run(lambda: strip_metadata_file(source, target, info))
            except BaseException:
                target.unlink(missing_ok=True)
                raise
            await spool.replace(target)

    def _check_total(self, drafts: list[_Draft], storage: str) -> None:
        own = self._settings.storage(storage)
        most = (own if isinstance(own, DirectStorageSettings) else self._settings.direct).max_bytes
        total = sum(draft.spool.size for draft in drafts)
        if total > most:
            raise BodyTooLarge(f"the answer would hold {total} bytes of images, over the limit of {most}")

    async def _keep(
        self,
        backend: StorageBackend,
        drafts: list[_Draft],
        options: UploadOptions,
        close: Callable[[Repository, Mapping[UUID, SmartAssetsError]], None],
    ) -> dict[UUID, SmartAssetsError]:
        """Intend, make and close; the errors by asset id, of which nothing is left."""
        with self._lease.claim() as claim:
            for draft in drafts:
                draft.intent = draft.record = replace(draft.record, lease=claim)
            intended = False
            try:
                intents = [draft.intent for draft in drafts]
                with observability.Timed(observability.UPLOAD_STAGE_SECONDS, "intend"):
                    await self._database.write(lambda catalogue: catalogue.insert_pending(intents))
                intended = True
                failures = await self._make_all(backend, drafts, options)
                with observability.Timed(observability.UPLOAD_STAGE_SECONDS, "commit"):
                    await self._database.write(lambda catalogue: close(catalogue, failures))
            except BaseException as error:
                # A catalogue that did not take the intent would only keep the caller waiting for its undoing as well.
                # Should the row be there after all, its claim is given up, and `maintenance.reconcile` removes it.
                # Who cannot pay has no row.
                if intended or not isinstance(error, CatalogueUnavailable | InsufficientCredits):
                    await asyncio.shield(self._undo(drafts))
                raise
            failed = [draft for draft in drafts if draft.record.id in failures]
            if failed:
                await asyncio.shield(self._undo(failed))
        return failures

    async def _hand_back(
        self,
        backend: StorageBackend,
        drafts: list[_Draft],
        options: UploadOptions,
        *,
        payer: str | None,
        close: Callable[[Repository, Mapping[UUID, SmartAssetsError]], None] | None,
    ) -> dict[UUID, SmartAssetsError]:
        """Make every draft, as `_make_all` does, for an answer that holds all of it, if `payer` can pay for that."""
        self._check_total(drafts, options.storage)
        if payer is not None:
            await self._credits.check(payer, sum(draft.record.credits_reserved or 0 for draft in drafts))
        failures = await self._make_all(backend, drafts, options)
        if close is not None:
            await self._database.write(lambda catalogue: close(catalogue, failures))
        return failures

    async def _make_all(
        self, backend: StorageBackend, drafts: list[_Draft], options: UploadOptions
    ) -> dict[UUID, SmartAssetsError]:
        """Make every draft; with `atomic` the first error comes out, else the errors by asset id are returned."""
        if options.atomic and len(drafts) == 1:
            await self._make(backend, drafts[0], options)
            return {}
        failures: dict[UUID, SmartAssetsError] = {}
        # A batch takes its turn among other requests; more of it at once would only make its own files wait.
        turns = asyncio.Semaphore(self._settings.imaging.workers)

        async def make(draft: _Draft) -> None:
            try:
                async with turns:
                    await self._make(backend, draft, options)
            except SmartAssetsError as error:
                if options.atomic:
                    raise
                failures[draft.record.id] = error

        await all_or_first_error(*(make(draft) for draft in drafts))
        return failures

    async def _make(self, backend: StorageBackend, draft: _Draft, options: UploadOptions) -> None:
        """Store the original, and beside it render and store the sizes."""
        if options.sizes or options.placeholder:
            # The workers read files. A backend on the same disk takes the same file.
            source = await draft.spool.as_file()
            await all_or_first_error(
                self._store_original(backend, draft), self._make_variants(backend, draft, source, options)
            )
        else:
            await self._store_original(backend, draft)
        made = draft.record
        price = self._credits.price(originals=1, size_bytes=made.size_bytes, sizes=len(made.made_variants))
        if price is not None:
            draft.record = replace(made, credits_used=price)

    def _charge(self, catalogue: Repository, made: list[_Draft], key_id: UUID | None, *, are_kept: bool) -> None:
        for draft in made:
            record = draft.record
            charge = self._credits.charge(
                record.owner,
                asset_id=record.id if are_kept else None,
                key_id=key_id,
                originals=1,
                size_bytes=record.size_bytes,
                sizes=len(record.made_variants),
            )
            if charge is not None:
                catalogue.charge(charge)

    async def _store_original(self, backend: StorageBackend, draft: _Draft) -> None:
        record = draft.record
        with observability.Timed(observability.UPLOAD_STAGE_SECONDS, "store"):
            stored = await backend.upload(
                original_key(record), draft.spool.source, content_type=record.format.media_type, give_away=True
            )
        if backend.capabilities.data_urls and stored.url:
            draft.data_urls[ORIGINAL] = stored.url

    async def _make_variants(
        self, backend: StorageBackend, draft: _Draft, source: Path, options: UploadOptions
    ) -> None:
        job = RenderJob(
            source=source,
            info=draft.info,
            sizes=options.sizes,
            options=options.render,
            placeholder=options.placeholder,
            directory=source.parent,
        )
        try:
            with observability.Timed(observability.UPLOAD_STAGE_SECONDS, "render"):
                result = await self._renderer.render(job)
        except ImageError as error:
            if options.atomic or not options.sizes:
                raise
            result = RenderResult(tuple(RenditionFailure(size, error) for size in options.sizes), None)
        try:
            renditions = []
            for rendition in result.renditions:
                if isinstance(rendition, Rendition):
                    renditions.append(rendition)
                elif options.atomic:
                    raise rendition.error
                else:
                    draft.failed.append(Failure(rendition.error, str(rendition.size)))
            stored = await all_or_first_error(
                *(self._store_variant(backend, draft, rendition, options) for rendition in renditions)
            )
        finally:
            job.discard()
        draft.record = replace(
            draft.record,
            variants=tuple(variant for variant in stored if variant is not None),
            thumbhash=result.placeholder.thumbhash if result.placeholder else None,
            dominant_color=result.placeholder.dominant_color if result.placeholder else None,
        )

    async def _store_variant(
        self, backend: StorageBackend, draft: _Draft, rendition: Rendition, options: UploadOptions
    ) -> VariantRecord | None:
        """Store one size; what the row is to say of it, None for nothing."""
        size = str(rendition.size)
        planned = next(variant for variant in draft.intent.variants if variant.size == size)
        key = variant_key(draft.intent, planned)
        try:
            stored = await backend.upload(key, rendition.path, content_type=rendition.format.media_type, give_away=True)
        except SmartAssetsError as error:
            if options.atomic:
                raise
            draft.failed.append(Failure(error, size))
            # Bytes that cannot be removed now stay in the row's care, unseen, and go when the asset goes.
            return planned if await backend.cleanup_failed_assets([key]) else None
        if backend.capabilities.data_urls and stored.url:
            draft.data_urls[planned.name] = stored.url
        return replace(planned, width=rendition.width, height=rendition.height, size_bytes=rendition.size_bytes)

    async def _undo(self, drafts: list[_Draft]) -> None:
        """Remove what was written of failed drafts, then their rows; never raises."""
        for draft in drafts:
            try:
                await self._settling.undo_upload(draft.intent)
            except Exception:
                # The row stays under a claim that nobody holds: `maintenance.reconcile` finishes it.
                observability.BACKGROUND_FAILURES.labels("undo_upload").inc()
                logger.exception("could not undo an upload", extra={"asset": str(draft.intent.id)})

    async def _counted(self, drafts: Sequence[_Draft], options: UploadOptions, work: Awaitable[Result]) -> Result:
        """What `work` comes to; what it raises is how all of the drafts end."""
        try:
            return await work
        except SmartAssetsError as error:
            self._count(options, error.code, len(drafts))
            raise
        except BaseException as error:
            outcome = "cancelled" if isinstance(error, asyncio.CancelledError) else "internal_error"
            self._count(options, outcome, len(drafts))
            raise

    def _count(self, options: UploadOptions, outcome: str, files: int = 1) -> None:
        observability.labelled(observability.UPLOADS, options.storage, outcome).inc(files)


def check_reserve(data_dir: Path) -> None:
    """Raise NoSpace before the disk is so full that the catalogue could not even note a deletion."""
    try:
        disk = os.statvfs(data_dir)
    except OSError as error:
        raise CatalogueUnavailable("the data directory cannot be reached; try again") from error
    if disk.f_bavail * disk.f_frsize < RESERVE_BYTES:
        raise NoSpace("no room left in the data directory")


def _close(catalogue: Repository, made: list[_Draft]) -> None:
    for draft in made:
        if not catalogue.mark_ready(draft.record):
            raise Busy("the upload took too long and was undone by another process; try again")


def _outcomes(
    results: Sequence[_Draft | Failure], failures: Mapping[UUID, SmartAssetsError], backend: StorageBackend
) -> list[UploadedAsset | Failure]:
    """What became of each file."""
    outcomes: list[UploadedAsset | Failure] = []
    for result in results:
        if isinstance(result, Failure):
            outcomes.append(result)
        elif failure := failures.get(result.record.id):
            outcomes.append(Failure(failure))
        else:
            outcomes.append(_asset(result, backend))
    return outcomes


def _asset(draft: _Draft, backend: StorageBackend) -> UploadedAsset:
    record = replace(draft.record, state=AssetState.READY, lease=None, credits_reserved=None)
    data_urls = draft.data_urls if backend.capabilities.data_urls else None
    order = [variant.size for variant in draft.intent.variants]
    failed = sorted(draft.failed, key=lambda failure: order.index(failure.size or ""))
    return UploadedAsset(record, tuple(failed), data_urls)
