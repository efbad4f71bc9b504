"""Uploads and the library."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Body, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from smart_assets.access.api_keys import Caller
from smart_assets.api.body import BodyLimits, IncomingBody, read_body
from smart_assets.api.conditional import send_bytes
from smart_assets.api.deps import CallerDep, PresenterDep, RuntimeDep
from smart_assets.api.documents import problems, upload_body
from smart_assets.api.presenting import read_cursor, write_cursor
from smart_assets.api.problems import REPLAYED
from smart_assets.api.schemas import (
    Asset,
    AssetPage,
    AssetPatch,
    Batch,
    FailedFile,
    ListQuery,
    SignedUrl,
    SignedUrlRequest,
    UploadQuery,
)
from smart_assets.assets.delivery import Deliverable
from smart_assets.assets.idempotency import Attempt, fingerprint
from smart_assets.assets.uploads import Failure, Upload, UploadedAsset, UploadOptions
from smart_assets.catalogue.repository import AssetFilter, Repository
from smart_assets.disposition import content_disposition
from smart_assets.errors import AssetNotFound, InvalidParameter, SmartAssetsError
from smart_assets.formats import ImageFormat
from smart_assets.imaging.sizes import RenderOptions, parse_background, parse_sizes
from smart_assets.runtime import Runtime
from smart_assets.settings import Settings

router = APIRouter(prefix="/api/v1/assets")

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[ -~]+$",
        description="A retry under the same key returns the first answer again, for 24 hours.",
    ),
]

_UPLOAD_PROBLEMS = problems(400, 401, 403, 408, 409, 410, 413, 415, 422, 500, 502, 503, 507)
_ETAG = re.compile(r'"v(\d{1,9})"', re.ASCII)


# ── Uploads ─────────────────────────────────────────────────────────────────────────────────────────────────────────


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
    caller: CallerDep,
    query: Annotated[UploadQuery, Query()],
    runtime: RuntimeDep,
    show: PresenterDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Send a form with the field `file`, the raw bytes, or a `data:` URL in JSON.

    The bytes decide what it is. The answer comes when everything asked for is stored; after an error nothing is.
    """
    taken = await _take(request, caller, query, runtime, idempotency_key, batch=False)
    (outcome,) = taken.outcomes
    if isinstance(outcome, Failure):
        raise outcome.error
    asset = show.uploaded(outcome)
    location = {"Location": f"/api/v1/assets/{asset.id}"} if asset.id else {}
    return _json(asset, status=201, headers=location | taken.headers)


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
    caller: CallerDep,
    query: Annotated[UploadQuery, Query()],
    runtime: RuntimeDep,
    show: PresenterDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Send a form that repeats the field `files`.

    One file that fails fails all, and nothing of them stays; with `atomic=false` those that failed are listed.
    """
    taken = await _take(request, caller, query, runtime, idempotency_key, batch=True)
    batch = Batch.model_construct(assets=[], failed=[])
    for index, (filename, outcome) in enumerate(zip(taken.filenames, taken.outcomes, strict=True)):
        if isinstance(outcome, UploadedAsset):
            batch.assets.append(show.uploaded(outcome))
        else:
            batch.failed.append(
                FailedFile(index=index, filename=filename, code=outcome.error.code, detail=outcome.error.detail)
            )
    return _json(batch, status=201, headers=taken.headers)


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
    options = _options(query, settings)
    runtime.storages.get(options.storage)  # not configured: said before the body is read
    limits = BodyLimits(
        max_file_bytes=settings.max_upload_bytes,
        max_files=settings.policy.max_files_per_batch if batch else 1,
        directory=runtime.temporary_dir,
        threads=runtime.threads,
        timeout_seconds=settings.body_timeout_seconds,
    )
    async with AsyncExitStack() as stack:
        attempt = None
        if key is not None:
            asked = fingerprint(request.method, request.url.path, asdict(options), query.filename)
            attempt = await stack.enter_async_context(runtime.idempotency.attempt(caller.owner, key, asked))
        body = await stack.enter_async_context(read_body(request, limits, batch=batch, all_or_nothing=options.atomic))
        filenames = [file.filename for file in body.files]
        if attempt is not None:
            attempt.check_body(_body_fingerprint(body))
            if not attempt.is_first and (outcomes := await attempt.recall()) is not None:
                return _Taken(filenames, outcomes, REPLAYED)
        uploads = [Upload(file.spool, file.filename, file.refused) for file in body.files]
        metadata = body.metadata or {}
        try:
            outcomes = await runtime.uploads.upload(
                uploads, options, owner=caller.owner, metadata=metadata, also=_remember(attempt, batch=batch)
            )
        except SmartAssetsError as error:
            if attempt is not None and attempt.is_first:
                await attempt.remember_refusal(error)
            raise
        if attempt is not None and not batch and isinstance(outcomes[0], Failure):
            await attempt.remember_refusal(outcomes[0].error)
    return _Taken(filenames, outcomes, {} if attempt is None or attempt.is_first else REPLAYED)


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
    files = [[file.field, file.filename, file.spool.sha256 if file.refused is None else None] for file in body.files]
    return fingerprint(files, body.metadata)


def _options(query: UploadQuery, settings: Settings) -> UploadOptions:
    sizes = parse_sizes(query.sizes, settings.presets, settings.policy.max_sizes_per_upload)
    render = RenderOptions(
        fit=query.fit,
        gravity=query.gravity,
        background=parse_background(query.background) if query.background is not None else None,
        format=ImageFormat(query.format) if query.format != "source" else None,
        quality=query.quality,
    )
    return UploadOptions(
        storage=query.storage or settings.default_storage,
        visibility=query.visibility,
        sizes=sizes,
        render=render,
        atomic=query.atomic,
        placeholder=bool(sizes) if query.placeholder is None else query.placeholder,
        strip_metadata=query.strip_metadata,
        tags=tuple(query.tags),
        expires_at=query.expires_at,
    )


# ── The library ─────────────────────────────────────────────────────────────────────────────────────────────────────


@router.get("", tags=["library"], summary="List assets", response_model=AssetPage, responses=problems(401, 403, 422))
async def list_assets(
    caller: CallerDep, query: Annotated[ListQuery, Query()], runtime: RuntimeDep, show: PresenterDep
) -> Response:
    """Newest first, a page at a time. A cursor stays good while assets come and go."""
    if query.storage is not None:
        runtime.storages.get(query.storage)  # a name that means nothing is a mistake, and no empty list
    page = await runtime.library.list(
        AssetFilter(
            owner=caller.owner,
            storage=query.storage,
            visibility=query.visibility,
            tag=query.tag,
            filename_contains=query.q.casefold() if query.q else None,
        ),
        days=query.days,
        limit=query.limit,
        after=read_cursor(query.cursor) if query.cursor else None,
        newest_first=query.order == "desc",
    )
    return _json(
        AssetPage.model_construct(
            items=[show.asset(record) for record in page.records],
            next_cursor=write_cursor(page.next_after) if page.next_after else None,
        )
    )


@router.get(
    "/{asset_id}", tags=["library"], summary="Get an asset", response_model=Asset, responses=problems(401, 403, 404)
)
async def get_asset(asset_id: str, caller: CallerDep, runtime: RuntimeDep, show: PresenterDep) -> Response:
    """Its description, with addresses to fetch it from. The `ETag` is for `If-Match`."""
    record = await runtime.library.get(_id(asset_id), caller.owner)
    return _json(show.asset(record), headers={"ETag": _etag(record.version)})


@router.patch(
    "/{asset_id}",
    tags=["library"],
    summary="Change an asset",
    response_model=Asset,
    responses=problems(400, 401, 403, 404, 409, 412, 422, 503),
)
async def change_asset(
    asset_id: str,
    patch: AssetPatch,
    caller: CallerDep,
    runtime: RuntimeDep,
    show: PresenterDep,
    if_match: Annotated[str | None, Header(description="Change only what you last saw: an `ETag`.")] = None,
) -> Response:
    """What is left out stays. A change of visibility moves the original and every size.

    Going private answers 200 only when no public copy is left at the storage.
    """
    record = await runtime.library.change(_id(asset_id), caller.owner, patch.changes(), versions=_versions(if_match))
    return _json(show.asset(record), headers={"ETag": _etag(record.version)})


@router.delete(
    "/{asset_id}",
    tags=["library"],
    status_code=204,
    summary="Delete an asset",
    responses=problems(401, 403, 404, 409, 503),
)
async def delete_asset(asset_id: str, caller: CallerDep, runtime: RuntimeDep) -> None:
    """Original, sizes and description; gone at once for everybody."""
    await runtime.library.delete(_id(asset_id), caller.owner)


@router.post(
    "/{asset_id}/signed-url",
    tags=["library"],
    summary="Make a signed URL",
    response_model=SignedUrl,
    responses=problems(401, 403, 404, 422, 502, 503),
)
async def make_signed_url(
    asset_id: str,
    caller: CallerDep,
    runtime: RuntimeDep,
    show: PresenterDep,
    wanted: Annotated[SignedUrlRequest, Body(default_factory=SignedUrlRequest)],
) -> Response:
    """Whoever has it may fetch the object until it expires. Within a tenth of that time the answer stays the same."""
    longest = runtime.settings.policy.max_signed_expiry_seconds
    seconds = wanted.expiry_seconds
    if "expiry_seconds" not in wanted.model_fields_set:
        seconds = min(seconds, longest)
    if seconds > longest:
        raise InvalidParameter.at("body", "expiry_seconds", message=f"{seconds} is over the limit of {longest} seconds")
    record = await runtime.library.get(_id(asset_id), caller.owner)
    link = await show.signed(record, wanted.size, seconds)
    return _json(SignedUrl.model_construct(url=link.url, url_expires_at=link.expires_at))


@router.get(
    "/{asset_id}/content",
    tags=["library"],
    summary="Fetch the bytes",
    response_class=Response,
    responses={
        200: {
            "content": {
                **{
                    image_format.media_type: {"schema": {"type": "string", "format": "binary"}}
                    for image_format in ImageFormat
                },
                "application/json": {"schema": {"$ref": "#/components/schemas/DataUrl"}},
            }
        },
        206: {"description": "The range asked for."},
        304: {"description": "What you have is still good."},
        **problems(401, 403, 404, 416, 422, 502, 503),
    },
)
async def get_content(
    request: Request,
    asset_id: str,
    caller: CallerDep,
    runtime: RuntimeDep,
    size: Annotated[str | None, Query(max_length=64, description="One of the asset's sizes.")] = None,
    as_: Annotated[Literal["data_url"] | None, Query(alias="as", description="`data_url`: as JSON.")] = None,
) -> Response:
    """The original's bytes or a size's, from whatever storage, through the service."""
    record = await runtime.library.get(_id(asset_id), caller.owner)
    found = await runtime.delivery.content(record, size or None)
    if as_ == "data_url":
        pieces = _data_url_json(found)
        first = await anext(pieces)  # an error before the first byte can still be told as one
        return StreamingResponse(_chain(first, pieces), media_type="application/json")
    return _Bytes(request, found, content_disposition(record.filename))


class _Bytes(Response):
    """Bytes with validators and ranges, as an answer."""

    def __init__(self, request: Request, deliverable: Deliverable, disposition: str) -> None:
        super().__init__()
        self._request_headers = request.headers
        self._deliverable = deliverable
        self._disposition = disposition

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_bytes(
            send,
            self._deliverable,
            self._request_headers,
            cache_control="private, no-cache",
            disposition=self._disposition,
        )


async def _data_url_json(deliverable: Deliverable) -> AsyncIterator[bytes]:
    """`{"data_url": …}`, made a piece at a time: base64 of 50 MB is 67 MB that nobody needs at once."""
    begin = f'{{"data_url":"data:{deliverable.media_type};base64,'.encode()
    rest = b""
    async for piece in deliverable.read(0, deliverable.size):
        unencoded = rest + piece
        whole = len(unencoded) // 3 * 3
        rest = unencoded[whole:]
        yield begin + base64.b64encode(unencoded[:whole])
        begin = b""
    yield begin + base64.b64encode(rest) + b'"}'


async def _chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


# ── Small things ────────────────────────────────────────────────────────────────────────────────────────────────────


def _json(model: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A model of ours as JSON: it was validated when it was made, so it is not again."""
    return Response(model.model_dump_json(), status, headers, media_type="application/json")


def _id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise AssetNotFound("there is no such asset") from None


def _etag(version: int) -> str:
    return f'"v{version}"'


def _versions(if_match: str | None) -> frozenset[int] | None:
    """The versions an `If-Match` header admits; None where any will do. A weak or foreign tag matches nothing."""
    if if_match is None or if_match.strip() == "*":
        return None
    matches = (_ETAG.fullmatch(candidate.strip()) for candidate in if_match.split(","))
    return frozenset(int(match[1]) for match in matches if match)
