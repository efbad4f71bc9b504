"""Jobs an operator starts by hand."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from smart_assets.api.deps import AdminDep, RuntimeDep
from smart_assets.api.documents import problems
from smart_assets.api.presenting import json_response
from smart_assets.api.schemas import RetentionQuery, RetentionReport

router = APIRouter(prefix="/api/v1/maintenance")


# With a key where keys are on, asked from wherever: unlike figures, what this removes is not everybody's who can reach
# the machine from within.
@router.post(
    "/retention",
    tags=["service"],
    summary="Remove what is to go",
    response_model=RetentionReport,
    responses=problems(401, 403, 422, 503),
)
async def retention(query: Annotated[RetentionQuery, Query()], runtime: RuntimeDep, _: AdminDep) -> Response:
    """Assets that have expired, are too old, or too much for their storage, as the settings say; never pinned ones.

    The service does so by itself, ever again. `busy` while it is at it, or another process.
    """
    report = await runtime.retention.run(dry_run=query.dry_run, confirm=query.confirm)
    return json_response(RetentionReport.model_validate(report))
