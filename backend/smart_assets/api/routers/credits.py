"""Credits of owners."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response

from smart_assets.access.api_keys import Caller
from smart_assets.api.deps import AdminDep, CallerDep, RuntimeDep
from smart_assets.api.documents import problems
from smart_assets.api.presenting import json_response, read_cursor, write_cursor
from smart_assets.api.problems import REPLAYED
from smart_assets.api.schemas import (
    CreditEntry,
    CreditPage,
    DailyQuery,
    DailyUsage,
    DailyUsageList,
    GrantRequest,
    IdempotencyKey,
    LedgerQuery,
    OwnerQuery,
    Usage,
)
from smart_assets.catalogue import models
from smart_assets.errors import Forbidden

router = APIRouter(prefix="/api/v1", tags=["access"])

GrantKeyHeader = Annotated[
    IdempotencyKey | None, Header(description="What is sent again under the same key is not granted again, ever.")
]


@router.get("/usage", summary="What is left", response_model=Usage, responses=problems(401, 403, 422, 503))
async def usage(caller: CallerDep, query: Annotated[OwnerQuery, Query()], runtime: RuntimeDep) -> Response:
    """The caller's credits. `balance` less `reserved` is what further work may cost."""
    owner = _owner(query.owner, caller)
    if not runtime.credits.are_on:
        return json_response(Usage(owner=owner, balance=None, reserved=None, spent=None))
    account = await runtime.credits.account(owner)
    shown = Usage(owner=owner, balance=account.balance, reserved=account.reserved, spent=account.spent)
    return json_response(shown)


@router.get(
    "/usage/daily", summary="What was used", response_model=DailyUsageList, responses=problems(401, 403, 422, 503)
)
async def daily_usage(caller: CallerDep, query: Annotated[DailyQuery, Query()], runtime: RuntimeDep) -> Response:
    """By day and key: originals and sizes that were delivered, and what they cost. Nothing of days without metering."""
    owner = _owner(query.owner, caller)
    days = [
        DailyUsage(
            day=found.day,
            key_id=found.key_id,
            originals=found.originals,
            sizes=found.sizes,
            size_bytes=found.size_bytes,
            credits=found.credits,
        )
        for found in await runtime.credits.daily(owner, days=query.days)
    ]
    return json_response(DailyUsageList(owner=owner, days=days))


@router.post(
    "/credits",
    status_code=201,
    summary="Give an owner credits",
    response_model=CreditEntry,
    responses=problems(401, 402, "idempotency_conflict", 422, 503),
)
async def grant_credits(
    wanted: GrantRequest, caller: AdminDep, runtime: RuntimeDep, idempotency_key: GrantKeyHeader = None
) -> Response:
    """Or take some back, as many as are available. Under an `Idempotency-Key` it counts once, however often and late
    it is sent: these keys are never forgotten."""
    entry, is_repeated = await runtime.credits.grant(
        wanted.owner, wanted.amount, note=wanted.note, by=caller, idempotency_key=idempotency_key
    )
    return json_response(_shown(entry), status=201, headers=REPLAYED if is_repeated else None)


@router.get("/credits", summary="The ledger", response_model=CreditPage, responses=problems(401, 403, 422, 503))
async def list_credits(caller: CallerDep, query: Annotated[LedgerQuery, Query()], runtime: RuntimeDep) -> Response:
    """Grants and charges, newest first, a page at a time. An owner's balance is the sum of its lines."""
    owner = _owner(query.owner, caller) if query.owner is not None else caller.sees
    after = read_cursor(query.cursor) if query.cursor else None
    found = await runtime.credits.ledger(owner, after=after, limit=query.limit + 1)
    page = found[: query.limit]
    is_last = len(found) == len(page)
    shown = CreditPage(items=list(map(_shown, page)), next_cursor=None if is_last else write_cursor(page[-1].id))
    return json_response(shown)


def _owner(wanted: str | None, caller: Caller) -> str:
    if wanted is not None and caller.sees not in {None, wanted}:
        raise Forbidden("the credits of another owner take the scope admin")
    return wanted or caller.owner


def _shown(entry: models.CreditEntry) -> CreditEntry:
    return CreditEntry(
        id=entry.id,
        owner=entry.owner,
        kind=entry.kind.value,
        amount=entry.amount,
        asset_id=entry.asset_id,
        key_id=entry.key_id,
        note=entry.note,
        created_at=entry.created_at,
    )
