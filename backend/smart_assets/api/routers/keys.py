"""Keys of callers."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path, Response

from smart_assets.api.deps import AdminDep, RuntimeDep
from smart_assets.api.documents import problems
from smart_assets.api.presenting import json_response
from smart_assets.api.schemas import ApiKey, ApiKeyList, NewApiKey, NewApiKeyRequest
from smart_assets.catalogue.models import ApiKeyRecord
from smart_assets.errors import KeyNotFound

router = APIRouter(prefix="/api/v1/keys", tags=["access"])


@router.post(
    "", status_code=201, summary="Make a key", response_model=NewApiKey, responses=problems(400, 401, 403, 422, 503)
)
async def make_key(wanted: NewApiKeyRequest, caller: AdminDep, runtime: RuntimeDep) -> Response:
    """The secret is shown this once; only its hash is kept. Assets belong to the key's owner, not to the key."""
    record, secret = await runtime.api_keys.make(
        wanted.name,
        scopes=frozenset(wanted.scopes),
        owner=wanted.owner or caller.owner,
        expires_at=wanted.expires_at,
    )
    shown = NewApiKey(**_shown(record), key=secret)
    return json_response(
        shown, status=201, headers={"Location": f"/api/v1/keys/{record.id}", "Cache-Control": "no-store"}
    )


@router.get("", summary="List keys", response_model=ApiKeyList, responses=problems(401, 403))
async def list_keys(_: AdminDep, runtime: RuntimeDep) -> Response:
    """Those made here, without their secrets; the ones in the settings are not among them."""
    keys = [ApiKey(**_shown(record)) for record in await runtime.api_keys.list()]
    return json_response(ApiKeyList(keys=keys))


@router.delete(
    "/{key_id}",
    status_code=204,
    response_class=Response,
    summary="Revoke a key",
    responses=problems(401, 403, "key_not_found", 503),
)
async def revoke_key(
    key_id: Annotated[str, Path(description="The `id` of a key.")], _: AdminDep, runtime: RuntimeDep
) -> Response:
    """In force at once, in every process. What its owner uploaded stays."""
    try:
        await runtime.api_keys.revoke(UUID(key_id))
    except ValueError:
        raise KeyNotFound("there is no such key") from None
    return Response(status_code=204)


def _shown(record: ApiKeyRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "name": record.name,
        "owner": record.owner,
        "scopes": list(record.scopes),
        "created_at": record.created_at,
        "expires_at": record.expires_at,
        "last_used_at": record.last_used_at,
    }
