"""Upload tickets: leave to upload one file without a key."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Body, Query, Request, Response

from smart_assets.access.ratelimit import Use
from smart_assets.access.scopes import Scope
from smart_assets.api.body import BodyLimits, read_body
from smart_assets.api.deps import May, PresenterDep, RuntimeDep, TicketId, WriterDep
from smart_assets.api.documents import problems, upload_body
from smart_assets.api.headers import clean_filename
from smart_assets.api.limiting import admit_bearer, meter_of
from smart_assets.api.presenting import Presenter, json_response
from smart_assets.api.problems import REPLAYED
from smart_assets.api.routers.uploads import DECODING, check_credits, upload_options
from smart_assets.api.schemas import (
    Asset,
    Ticket,
    TicketQuery,
    TicketRequest,
    TicketStatus,
    TicketUploadQuery,
    UploadQuery,
)
from smart_assets.assets.metadata import check_metadata
from smart_assets.assets.tickets import Act, Taken, Way, Wish, asset_of
from smart_assets.catalogue.models import TicketRecord
from smart_assets.errors import InvalidParameter, TicketNotFound
from smart_assets.runtime import Runtime
from smart_assets.storage.base import PresignedUpload

router = APIRouter(prefix="/api/v1/upload-tickets", tags=["upload"])

_uploader = May(Scope.WRITE, Use.UPLOADS)
_SIGNATURE = ("signature_required", "signature_invalid", "signature_expired")
_REFUSED = ("ticket_not_found", "ticket_used", "ticket_in_use", *DECODING, "digest_mismatch", "storage_not_configured")
_UPLOAD: dict[str, Any] = {
    "status_code": 201,
    "response_model": Asset,
    "responses": problems(*(400, 402, 403, 408, 410, 413, 415, 422, 429, 500, 502, 503, 507), *_SIGNATURE, *_REFUSED),
    "openapi_extra": upload_body("file", several=False, only_files=True),
}
"""Of both methods a file may be sent with."""


@router.post(
    "",
    status_code=201,
    summary="Make an upload ticket",
    response_model=Ticket,
    responses=problems(401, 422, "storage_not_configured", "unsupported", 502, 503),
)
async def make_ticket(
    caller: WriterDep,
    query: Annotated[UploadQuery, Query()],
    runtime: RuntimeDep,
    show: PresenterDep,
    wanted: Annotated[TicketRequest, Body(default_factory=TicketRequest)],
) -> Response:
    """Whoever has it may upload one file, once, without a key: a browser, say. What the upload is to be is said here,
    by the same parameters as of an upload, and nothing of it by who sends the file. The asset is its maker's owner's.
    """
    wish = Wish(
        options=upload_options(query, runtime.settings),
        metadata=check_metadata(wanted.metadata),
        max_bytes=_max_bytes(wanted, runtime),
        way=wanted.upload,
        filename=clean_filename(query.filename or ""),
        sha256=wanted.sha256,
    )
    record, presigned = await runtime.tickets.make(wish, caller, _expiry_seconds(wanted, runtime))
    return json_response(
        _ticket(record, presigned, runtime, show),
        status=201,
        headers={"Location": f"{router.prefix}/{record.id}", "Cache-Control": "no-store"},
    )


@router.get(
    "/{ticket_id}",
    summary="Look at an upload ticket",
    response_model=TicketStatus,
    responses=problems(401, "ticket_not_found", 503),
)
async def get_ticket(ticket_id: TicketId, caller: WriterDep, runtime: RuntimeDep) -> Response:
    """Whether it was used, and what for. A ticket is forgotten some time after its end."""
    record = await runtime.tickets.get(_id(ticket_id), caller.sees)
    asset_id = asset_of(record)
    state = "used" if record.outcome else "open" if record.expires_at > datetime.now(UTC) else "expired"
    status = TicketStatus(
        id=record.id,
        state=state,
        upload=Way.SERVICE if record.incoming is None else Way.BUCKET,
        storage=record.storage,
        max_bytes=record.max_bytes,
        created_at=record.created_at,
        expires_at=record.expires_at,
        asset_id=UUID(asset_id) if asset_id else None,
    )
    return json_response(status)


@router.post("/{ticket_id}/file", summary="Upload with a ticket", **_UPLOAD)
async def upload_with_ticket(
    request: Request,
    ticket_id: TicketId,
    query: Annotated[TicketUploadQuery, Query()],
    runtime: RuntimeDep,
    show: PresenterDep,
) -> Response:
    """Send a form with the field `file`, or the raw bytes, to the ticket's URL as it is: no key is needed. The same
    file again is answered with the same asset; another one not.
    """
    return await _upload(request, ticket_id, query, runtime, show)


@router.put("/{ticket_id}/file", summary="Upload with a ticket, by PUT", **_UPLOAD)
async def put_with_ticket(
    request: Request,
    ticket_id: TicketId,
    query: Annotated[TicketUploadQuery, Query()],
    runtime: RuntimeDep,
    show: PresenterDep,
) -> Response:
    """The same as by POST, for whoever has a method to choose: a command line that sends files with PUT, say."""
    return await _upload(request, ticket_id, query, runtime, show)


@router.post(
    "/{ticket_id}/complete",
    summary="Complete an upload to a bucket",
    response_model=Asset,
    responses=problems(
        *(401, 402, 403, 410, 413, 422, 429, 500, 502, 503, 507), *_SIGNATURE, *_REFUSED, "upload_missing"
    ),
    openapi_extra={"security": [{"HTTPBearer": []}, {}]},
)
async def complete_ticket(
    request: Request,
    ticket_id: TicketId,
    query: Annotated[TicketQuery, Query()],
    runtime: RuntimeDep,
    show: PresenterDep,
) -> Response:
    """Say that the file is in the bucket: it is looked at like any upload, and the asset is made. Either with the
    signature of the ticket's `complete_url`, or with a key that may write. Asked again, it answers with the same asset.
    """
    if query.sig is None:
        caller = await _uploader(request, runtime)
        taken = await runtime.tickets.complete(_id(ticket_id), caller.sees)
    else:
        asked = _id(ticket_id)
        await admit_bearer(request, Use.UPLOADS)
        runtime.tickets.verify(asked, Act.COMPLETE, query.model_dump(exclude_none=True))
        taken = await runtime.tickets.complete(asked)
    return _answer(taken, 200, show)


async def _upload(
    request: Request, ticket_id: TicketId, query: TicketUploadQuery, runtime: Runtime, show: Presenter
) -> Response:
    asked, settings = _id(ticket_id), runtime.settings
    await admit_bearer(request, Use.UPLOADS)
    runtime.tickets.verify(asked, Act.UPLOAD, query.model_dump(exclude_none=True))
    async with runtime.tickets.use(asked) as use:
        if use.record.key_id is not None:
            await admit_bearer(request, Use.UPLOADS, key=str(use.record.key_id))
        if use.is_first:
            await check_credits(request, use.record.owner, use.wish.options, runtime)
        limits = BodyLimits(
            max_file_bytes=min(use.record.max_bytes, settings.max_upload_bytes),
            max_files=1,
            directory=runtime.temporary_dir,
            threads=runtime.threads,
            timeout_seconds=settings.body_timeout_seconds,
            meter=meter_of(request),
            only_files=True,
        )
        async with read_body(request, limits, batch=False) as body:
            (file,) = body.files
            taken = await use.take(file.spool, file.filename)
    return _answer(taken, 201, show)


def _answer(taken: Taken, status: int, show: Presenter) -> Response:
    asset = show.uploaded(taken.outcome)
    location = {"Location": f"/api/v1/assets/{asset.id}"} if asset.id and status == 201 else {}
    return json_response(asset, status=status, headers=location | (REPLAYED if taken.replayed else {}))


def _ticket(record: TicketRecord, presigned: PresignedUpload | None, runtime: Runtime, show: Presenter) -> Ticket:
    address = f"{show.base_url}{router.prefix}/{record.id}"
    if presigned is None:
        url = f"{address}/file?{runtime.tickets.query(record, Act.UPLOAD)}"
        presigned = PresignedUpload("POST", url, record.expires_at)
        complete_url = None
    else:
        complete_url = f"{address}/complete?{runtime.tickets.query(record, Act.COMPLETE)}"
    return Ticket(
        id=record.id,
        upload=Way.SERVICE if record.incoming is None else Way.BUCKET,
        method=presigned.method,
        url=presigned.url,
        fields=dict(presigned.fields),
        headers=dict(presigned.headers),
        complete_url=complete_url,
        max_bytes=record.max_bytes,
        expires_at=record.expires_at,
    )


def _max_bytes(wanted: TicketRequest, runtime: Runtime) -> int:
    most = runtime.settings.max_upload_bytes
    if wanted.max_bytes is None:
        return most
    if wanted.max_bytes > most:
        raise InvalidParameter.at("body", "max_bytes", message=f"{wanted.max_bytes} is over the limit of {most} bytes")
    return wanted.max_bytes


def _expiry_seconds(wanted: TicketRequest, runtime: Runtime) -> int:
    limits = runtime.settings.tickets
    if wanted.expiry_seconds is None:
        return min(limits.expiry_seconds, limits.max_expiry_seconds)
    if wanted.expiry_seconds > limits.max_expiry_seconds:
        message = f"{wanted.expiry_seconds} is over the limit of {limits.max_expiry_seconds} seconds"
        raise InvalidParameter.at("body", "expiry_seconds", message=message)
    return wanted.expiry_seconds


def _id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise TicketNotFound("there is no such ticket") from None
