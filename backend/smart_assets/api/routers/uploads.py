"""Uploads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response

from smart_assets import observability
from smart_assets.access.api_keys import Caller
from smart_assets.access.ratelimit import Meter
from smart_assets.api.body import BodyLimits, IncomingBody, IncomingFile, least_size, read_body
from smart_assets.api.deps import PresenterDep, RuntimeDep, UploaderDep
from smart_assets.api.direct_route import DirectRoute
from smart_assets.api.documents import problems, upload_body
from smart_assets.api.headers import clean_filename, filename_of, parse_header
from smart_assets.api.limiting import meter_of
from smart_assets.api.presenting import json_response
from smart_assets.api.problems import REPLAYED
from smart_assets.api.schemas import Asset, Batch, FailedFile, IdempotencyKey, RenderQuery, UploadQuery
from smart_assets.assets.idempotency import Attempt, fingerprint
from smart_assets.assets.uploads import Failure, Upload, UploadedAsset, UploadOptions
from smart_assets.catalogue.repository import Repository
from smart_assets.errors import InvalidParameter, SmartAssetsError
from smart_assets.formats import ImageFormat
from smart_assets.imaging.sizes import RenderOptions, parse_background, parse_sizes
from smart_assets.runtime import Runtime
from smart_assets.settings import Settings

router = APIRouter(prefix="/api/v1/assets", route_class=DirectRoute)

IdempotencyKeyHeader = Annotated[
    IdempotencyKey | None,
    Header(
        description="Anything of your own, as a UUID: a retry under the same key returns the first answer again, for "
        "24 hours."
    ),
]

IDEMPOTENCY = ("idempotency_conflict", "idempotency_in_progress")
DECODING = ("unsupported_image", "corrupt_image", "too_many_pixels")
"""Codes of routes that take an Idempotency-Key, and of those that decode images."""

_UPLOAD_PROBLEMS = problems(
    *(400, 401, 402, 403, 408, 410, 413, 415, 422, 500, 502, 503, 507),
    *IDEMPOTENCY,
    *DECODING,
    *("digest_mismatch", "storage_not_configured", "unsupported"),
)


@router.post(
    "",
    tags=["upload"],
    status_code=201,
    summary="Upload an image",
    response_model=Asset,
    responses=_UPLOAD_PROBLEMS,
    openapi_extra=upload_body("file", several=False),
)
async def upload(
    request: Request,
    caller: UploaderDep,
    query: Annotated[UploadQuery, Query()],
    runtime: RuntimeDep,
    show: PresenterDep,
    idempotency_key: IdempotencyKeyHeader = None,
) -> Response:
    """Send a form with the field `file`, the raw bytes, or JSON with a `data:` URL or the URL of an image to fetch.

    The bytes decide what it is: JPEG, PNG, WebP, GIF or AVIF. The answer comes when everything asked for is stored;
    after an error nothing is. Raw bytes with a `Content-Digest` are held to it.
    """
    taken = await _take(request, caller, query, runtime, idempotency_key, batch=False)
    (outcome,) = taken.outcomes
    if isinstance(outcome, Failure):
        raise outcome.error
    asset = show.uploaded(outcome)
    location = {"Location": f"/api/v1/assets/{asset.id}"} if asset.id else {}
    return json_response(asset, status=201, headers=location | taken.headers)


@router.post(
    "/batch",
    tags=["upload"],
    status_code=201,
    summary="Upload several images, all or nothing",
    response_model=Batch,
    responses=_UPLOAD_PROBLEMS,
    openapi_extra=upload_body("files", several=True),
)
async def upload_batch(
    request: Request,
    caller: UploaderDep,
    query: Annotated[UploadQuery, Query()],
    runtime: RuntimeDep,
    show: PresenterDep,
    idempotency_key: IdempotencyKeyHeader = None,
) -> Response:
    """Send a form that repeats the field `files`. What stands in the query holds for each of them.

    One file that fails fails all, and nothing of them stays; with `atomic=false` what worked stays, and those that
    failed are listed with their place in the request and the reason.
    """
    taken = await _take(request, caller, query, runtime, idempotency_key, batch=True)
    batch = Batch(assets=[], failed=[])
    for index, (filename, outcome) in enumerate(zip(taken.filenames, taken.outcomes, strict=True)):
        if isinstance(outcome, UploadedAsset):
            batch.assets.append(show.uploaded(outcome))
        else:
            batch.failed.append(
                FailedFile(index=index, filename=filename, code=outcome.error.code, detail=outcome.error.detail)
            )
    return json_response(batch, status=201, headers=taken.headers)


@dataclass(frozen=True)
class _Taken:
    """What became of each file of a request, and what the answer says of it being one given before."""

    filenames: list[str | None]
    outcomes: list[UploadedAsset | Failure]
    headers: dict[str, str] = field(default_factory=dict)


async def _take(
    request: Request, caller: Caller, query: UploadQuery, runtime: Runtime, key: str | None, *, batch: bool
) -> _Taken:
    """Read a request's files and make assets of them, or find those it made when it came before."""
    settings = runtime.settings
    options = upload_options(query, settings)
    runtime.storages.get(options.storage)  # not configured: said before the body is read
    limits = BodyLimits(
        max_file_bytes=settings.max_upload_bytes,
        max_files=settings.policy.max_files_per_batch if batch else 1,
        directory=runtime.temporary_dir,
        threads=runtime.threads,
        timeout_seconds=settings.body_timeout_seconds,
        meter=meter_of(request),
    )
    async with AsyncExitStack() as stack:
        attempt = None
        if key is not None:
            asked = fingerprint(request.method, request.url.path, asdict(options), query.filename)
            attempt = await stack.enter_async_context(runtime.idempotency.attempt(caller.owner, key, asked))
        if attempt is None or attempt.is_first:
            await check_credits(request, caller.owner, options, runtime)
        with observability.Timed(observability.UPLOAD_STAGE_SECONDS, "read"):
            reading = read_body(request, limits, batch=batch, all_or_nothing=options.atomic)
            body = await stack.enter_async_context(reading)
        files = body.files
        filenames = [file.filename for file in files]
        if attempt is not None:
            attempt.check_body(_body_fingerprint(body))
            if not attempt.is_first and (outcomes := await attempt.recall()) is not None:
                return _Taken(filenames, outcomes, REPLAYED)
        metadata = body.metadata or {}
        try:
            # Only now: a request that comes again has its answer without anything being fetched again.
            filenames = [
                await _import(file, runtime, limits.meter) if file.source_url else file.filename for file in files
            ]
            uploads = [Upload(file.spool, name, file.refused) for file, name in zip(files, filenames, strict=True)]
            outcomes = await runtime.uploads.upload(
                uploads,
                options,
                owner=caller.owner,
                metadata=metadata,
                key_id=caller.key_id,
                is_charged=attempt is None or attempt.is_first,
                also=_remember(attempt, batch=batch),
            )
        except SmartAssetsError as error:
            if attempt is not None and attempt.is_first:
                await attempt.remember_refusal(error)
            raise
        if attempt is not None and not batch and isinstance(outcomes[0], Failure):
            await attempt.remember_refusal(outcomes[0].error)
    return _Taken(filenames, outcomes, {} if attempt is None or attempt.is_first else REPLAYED)


async def check_credits(request: Request, owner: str, options: UploadOptions, runtime: Runtime) -> None:
    """InsufficientCredits, before anything of the body is read, where the least it can cost cannot be paid."""
    size = 1 if options.strip_metadata else min(least_size(request), runtime.settings.max_upload_bytes)
    price = runtime.credits.price(originals=1, size_bytes=size, sizes=len(options.sizes))
    await runtime.credits.check(owner, price)


async def _import(file: IncomingFile, runtime: Runtime, meter: Meter | None) -> str | None:
    """Fetch a file from where it is to be had; what it is called, by the caller or else there."""
    fetched = await runtime.importer.fetch(
        file.source_url or "",
        file.spool,
        max_bytes=runtime.settings.max_upload_bytes,
        count=meter.count if meter is not None else None,
    )
    if meter is not None:
        await meter.finish()
    if file.spool.size == 0:
        raise InvalidParameter.at("body", file.field, message="is empty")
    there = filename_of(parse_header(fetched.disposition)[1]) or clean_filename(fetched.last_segment)
    return file.filename or there


def _remember(
    attempt: Attempt | None, *, batch: bool
) -> Callable[[Repository, list[UploadedAsset | Failure]], None] | None:
    if attempt is None or not attempt.is_first:
        return None

    def remember(catalogue: Repository, outcomes: list[UploadedAsset | Failure]) -> None:
        if batch or isinstance(outcomes[0], UploadedAsset):  # a single file that failed is answered as an error
            attempt.remember(catalogue, outcomes)

    return remember


def _body_fingerprint(body: IncomingBody) -> str:
    files = [
        [file.field, file.filename, file.source_url or (file.spool.sha256 if file.refused is None else None)]
        for file in body.files
    ]
    return fingerprint(files, body.metadata)


def upload_options(query: UploadQuery, settings: Settings) -> UploadOptions:
    """What a request's parameters ask for, with what the settings say where they do not."""
    sizes = parse_sizes(query.sizes, settings.presets, settings.policy.max_sizes_per_upload)
    return UploadOptions(
        storage=query.storage or settings.default_storage,
        visibility=query.visibility,
        sizes=sizes,
        render=render_options(query),
        atomic=query.atomic,
        placeholder=bool(sizes) if query.placeholder is None else query.placeholder,
        strip_metadata=query.strip_metadata,
        tags=tuple(query.tags),
        expires_at=query.expires_at,
    )


def render_options(query: RenderQuery) -> RenderOptions:
    """How the sizes a request asks for are to be made."""
    return RenderOptions(
        fit=query.fit,
        gravity=query.gravity,
        background=parse_background(query.background) if query.background is not None else None,
        format=ImageFormat(query.format) if query.format != "source" else None,
        quality=query.quality,
    )
