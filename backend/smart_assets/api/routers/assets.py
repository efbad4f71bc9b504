"""The library."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Body, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from smart_assets.api.conditional import send_bytes
from smart_assets.api.deps import AssetId, DeleterDep, PresenterDep, ReaderDep, RuntimeDep, UploaderDep, WriterDep
from smart_assets.api.direct_route import DirectRoute
from smart_assets.api.documents import image_responses, problems
from smart_assets.api.edge import HEAD_ONLY
from smart_assets.api.presenting import Presenter, built, json_response, read_cursor, selection, write_cursor
from smart_assets.api.problems import REPLAYED
from smart_assets.api.routers.uploads import DECODING, IDEMPOTENCY, IdempotencyKeyHeader, render_options
from smart_assets.api.schemas import (
    Asset,
    AssetPage,
    AssetPatch,
    DeletionRequest,
    DeletionResult,
    DeletionResults,
    ListQuery,
    MoveQuery,
    SelectionQuery,
    SignedUrl,
    SignedUrlRequest,
    VariantsQuery,
)
from smart_assets.assets.delivery import Deliverable
from smart_assets.assets.idempotency import Attempt, fingerprint
from smart_assets.assets.uploads import UploadedAsset
from smart_assets.assets.variants import VariantOptions
from smart_assets.disposition import content_disposition
from smart_assets.errors import AssetNotFound, InvalidParameter, SmartAssetsError
from smart_assets.imaging.sizes import parse_sizes
from smart_assets.maintenance import transfer
from smart_assets.settings import Settings

router = APIRouter(prefix="/api/v1/assets")
direct = APIRouter(prefix="/api/v1/assets", route_class=DirectRoute)
"""What is asked for most often."""

_ETAG = re.compile(r'"v(\d{1,9})"', re.ASCII)


@direct.get(
    "",
    tags=["library"],
    summary="List assets",
    response_model=AssetPage,
    responses=problems(401, 403, 422, "storage_not_configured"),
)
async def list_assets(
    caller: ReaderDep, query: Annotated[ListQuery, Query()], runtime: RuntimeDep, show: PresenterDep
) -> Response:
    """Newest first, a page at a time; every filter given must hold.

    With `next_cursor` as `cursor`, and the same filters, comes the next page. A cursor stays good while assets come and
    go: none is shown twice, and none that was there all the time is left out.
    """
    criteria, period = selection(query, caller, runtime)
    page = await runtime.library.list(
        criteria,
        period=period,
        limit=query.limit,
        after=read_cursor(query.cursor) if query.cursor else None,
        newest_first=query.order == "desc",
    )
    return json_response(
        built(
            AssetPage,
            items=[show.asset(record) for record in page.records],
            next_cursor=write_cursor(page.next_after) if page.next_after else None,
        )
    )


# Before `/{asset_id}`, which would take its name for an id.
@direct.get(
    "/export",
    tags=["library"],
    summary="Export the descriptions",
    response_class=Response,
    responses={
        200: {
            "description": "One JSON object a line, oldest first.",
            "content": {transfer.MEDIA_TYPE: {"schema": {"type": "string"}}},
        },
        **problems(401, 403, 422, "storage_not_configured"),
    },
)
async def export_assets(
    caller: ReaderDep, query: Annotated[SelectionQuery, Query()], runtime: RuntimeDep
) -> StreamingResponse:
    """All that is known of each asset but its bytes, for `smart-assets import`. No asset stands there twice; those
    that change meanwhile stand there as they were at some moment of it."""
    criteria, period = selection(query, caller, runtime)
    lines = transfer.exported(runtime.database, period.limit(criteria))
    first = await anext(lines, b"")  # an error before the first line can still be told as one
    return StreamingResponse(
        _chain(first, lines),
        media_type=transfer.MEDIA_TYPE,
        headers={"Content-Disposition": 'attachment; filename="library.jsonl"', "Cache-Control": "no-store"},
    )


@direct.get(
    "/{asset_id}", tags=["library"], summary="Get an asset", response_model=Asset, responses=problems(401, 403, 404)
)
async def get_asset(asset_id: AssetId, caller: ReaderDep, runtime: RuntimeDep, show: PresenterDep) -> Response:
    """Its description, with addresses to fetch it and its sizes from: a private one's are signed, and expire.

    The `ETag` names this version of the description; a change may ask for it with `If-Match`.
    """
    record = await runtime.library.get(_id(asset_id), caller.sees)
    return json_response(show.asset(record), headers={"ETag": _etag(record.version)})


@router.patch(
    "/{asset_id}",
    tags=["library"],
    summary="Change an asset",
    response_model=Asset,
    responses=problems(400, 401, 403, 404, 409, 412, 422, "storage_not_configured", 502, 503),
)
async def change_asset(
    asset_id: AssetId,
    patch: AssetPatch,
    caller: WriterDep,
    runtime: RuntimeDep,
    show: PresenterDep,
    if_match: Annotated[str | None, Header(description='Change only what you last saw: an `ETag`, `"v1"`.')] = None,
) -> Response:
    """What is left out stays. A change of visibility moves the original and every size.

    Going private answers 200 only when no public copy is left at the storage.
    """
    record = await runtime.library.change(_id(asset_id), caller.sees, patch.changes(), versions=_versions(if_match))
    return json_response(show.asset(record), headers={"ETag": _etag(record.version)})


@direct.delete(
    "/{asset_id}",
    tags=["library"],
    status_code=204,
    response_class=Response,
    summary="Delete an asset",
    responses=problems(401, 403, 404, 409, 503),
)
async def delete_asset(asset_id: AssetId, caller: DeleterDep, runtime: RuntimeDep) -> Response:
    """Original, sizes and description; gone at once for everybody, whatever becomes of the bytes.

    Bytes on the service's own disk are removed when it answers; those elsewhere are, or will be as soon as that storage
    can be reached.
    """
    await runtime.library.delete(_id(asset_id), caller.sees)
    return Response(status_code=204)


@router.post(
    "/delete",
    tags=["library"],
    summary="Delete many assets",
    response_model=DeletionResults,
    responses=problems(400, 401, 403, 422, 503),
)
async def delete_assets(wanted: DeletionRequest, caller: DeleterDep, runtime: RuntimeDep) -> Response:
    """Each as if it were deleted alone: what is gone, or cannot go now, keeps no other from going."""
    found = await runtime.deletions.delete(wanted.ids, caller.sees)
    results = [
        built(
            DeletionResult,
            id=given,
            status=deletion.status,
            code=deletion.error.code if deletion.error is not None else None,
            detail=deletion.error.detail if deletion.error is not None else None,
        )
        for given, deletion in zip(wanted.ids, found, strict=True)
    ]
    return json_response(built(DeletionResults, results=results))


@direct.post(
    "/{asset_id}/variants",
    tags=["library"],
    summary="Add sizes",
    response_model=Asset,
    responses=problems(
        *(400, 401, 402, 403, 404, 409, 410, 415, 422, 500, 502, 503, 507),
        *IDEMPOTENCY,
        *DECODING,
        *("storage_not_configured", "unsupported"),
    ),
)
async def add_variants(
    asset_id: AssetId,
    caller: UploaderDep,
    query: Annotated[VariantsQuery, Query()],
    runtime: RuntimeDep,
    show: PresenterDep,
    idempotency_key: IdempotencyKeyHeader = None,
) -> Response:
    """Made of the stored original, as at an upload; at most 20 sizes in all.

    What the asset has already, in the same format and with the same options, is not made again.
    """
    options = _variant_options(query, runtime.settings)
    wanted = _id(asset_id)
    async with AsyncExitStack() as stack:
        attempt = None
        if idempotency_key is not None:
            asked = fingerprint("POST", "variants", wanted, asdict(options))
            attempt = await stack.enter_async_context(runtime.idempotency.attempt(caller.owner, idempotency_key, asked))
            attempt.check_body(fingerprint())
            if (known := await _known(attempt)) is not None:
                return _grown(show, known, REPLAYED)
        try:
            grown = await runtime.variants.add(
                wanted,
                caller.sees,
                options,
                key_id=caller.key_id,
                also=attempt.remember if attempt is not None else None,
            )
        except SmartAssetsError as error:
            if attempt is not None:
                await attempt.remember_refusal(error)
            raise
    return _grown(show, grown, {})


async def _known(attempt: Attempt) -> UploadedAsset | None:
    """What the first request under the key made, as it is now; None where this is the first."""
    outcomes = None if attempt.is_first else await attempt.recall()
    return next((outcome for outcome in outcomes or () if isinstance(outcome, UploadedAsset)), None)


def _grown(show: Presenter, grown: UploadedAsset, headers: dict[str, str]) -> Response:
    return json_response(show.uploaded(grown), headers={"ETag": _etag(grown.record.version), **headers})


def _variant_options(query: VariantsQuery, settings: Settings) -> VariantOptions:
    sizes = parse_sizes(query.sizes, settings.presets, settings.policy.max_sizes_per_upload)
    if not sizes and not query.placeholder:
        raise InvalidParameter.at("query", "sizes", message="names none")
    return VariantOptions(sizes=sizes, render=render_options(query), atomic=query.atomic, placeholder=query.placeholder)


@router.post(
    "/{asset_id}/move",
    tags=["library"],
    summary="Move an asset to another storage",
    response_model=Asset,
    responses=problems(401, 403, 404, 409, 422, "storage_not_configured", "unsupported", 502, 503, 507),
)
async def move_asset(
    asset_id: AssetId, caller: WriterDep, query: Annotated[MoveQuery, Query()], runtime: RuntimeDep, show: PresenterDep
) -> Response:
    """The original and every size are copied and verified, then removed where they were; what fails is undone.

    Id, description and `/assets` addresses stay. An asset that is there already is left as it is. Where the old copies
    cannot be removed at once, they are as soon as they can be; until then the asset can be read, and not be changed.
    """
    record = await runtime.moving.move(_id(asset_id), caller.sees, query.storage)
    return json_response(show.asset(record), headers={"ETag": _etag(record.version)})


@router.post(
    "/{asset_id}/signed-url",
    tags=["library"],
    summary="Make a signed URL",
    response_model=SignedUrl,
    responses=problems(400, 401, 403, 404, "variant_not_found", 422, "storage_not_configured", "unsupported", 502, 503),
)
async def make_signed_url(
    asset_id: AssetId,
    caller: ReaderDep,
    runtime: RuntimeDep,
    show: PresenterDep,
    wanted: Annotated[SignedUrlRequest, Body(default_factory=SignedUrlRequest)],
) -> Response:
    """Whoever has it may fetch the original, or one size, until it expires: without a key, so mind whom you give it.

    Within a tenth of its time, an hour at most, the answer stays the same, so that caches can work. It never lives
    longer than asked.
    """
    longest = runtime.settings.policy.max_signed_expiry_seconds
    seconds = wanted.expiry_seconds
    if "expiry_seconds" not in wanted.model_fields_set:
        seconds = min(seconds, longest)
    if seconds > longest:
        raise InvalidParameter.at("body", "expiry_seconds", message=f"{seconds} is over the limit of {longest} seconds")
    record = await runtime.library.get(_id(asset_id), caller.sees)
    link = await show.signed(record, wanted.size, seconds)
    return json_response(built(SignedUrl, url=link.url, url_expires_at=link.expires_at))


_CONTENT = image_responses()
_CONTENT[200]["content"]["application/json"] = {"schema": {"$ref": "#/components/schemas/DataUrl"}}


@router.get(
    "/{asset_id}/content",
    tags=["library"],
    summary="Fetch the bytes",
    response_class=Response,
    responses={
        **_CONTENT,
        **problems(401, 403, 404, "variant_not_found", 416, 422, "storage_not_configured", "unsupported", 502, 503),
    },
)
async def get_content(
    request: Request,
    asset_id: AssetId,
    caller: ReaderDep,
    runtime: RuntimeDep,
    size: Annotated[
        str | None, Query(max_length=64, description="One of the asset's sizes, `400`; by default the original.")
    ] = None,
    as_: Annotated[
        Literal["data_url"] | None, Query(alias="as", description="`data_url`: a `data:` URL, in JSON.")
    ] = None,
) -> Response:
    """The original's bytes or a size's, from whatever storage, through the service: no redirect, and no signature.

    Takes `Range`, `If-None-Match` and `If-Modified-Since`. `Content-Disposition` names the file as it is called now.
    """
    record = await runtime.library.get(_id(asset_id), caller.sees)
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
            head_only=HEAD_ONLY in scope,
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
