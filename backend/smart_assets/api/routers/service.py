"""How the service is: health, metrics, statistics, storages."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import choose_encoder

from smart_assets.api.deps import CallerDep, OperatorDep, RuntimeDep
from smart_assets.api.documents import problems
from smart_assets.api.presenting import statistics
from smart_assets.api.schemas import Health, Statistics, Storage, StorageCapabilities, StorageList
from smart_assets.observability import metrics_registry
from smart_assets.storage.factory import configured_storages

router = APIRouter()


@router.get("/health/live", tags=["service"], summary="Whether the process runs")
async def live() -> Health:
    """Answers as long as the process can answer at all."""
    return Health()


@router.get(
    "/health/ready", tags=["service"], summary="Whether the service can work", responses=problems(502, 503, 507)
)
async def ready(runtime: RuntimeDep) -> Health:
    """Answers once the catalogue and the default storage do."""
    await runtime.check()
    return Health()


@router.get(
    "/metrics",
    tags=["service"],
    summary="Metrics for Prometheus",
    dependencies=[OperatorDep],
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, **problems(401, 403)},
)
async def metrics(request: Request, runtime: RuntimeDep) -> Response:
    """In the exposition format the scraper asks for. Needs a key, unless asked from this machine."""
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    registry = metrics_registry(await runtime.gauges.now())
    # In a thread: what other processes counted is read from their files.
    text = await runtime.threads.run(lambda: encode(registry))
    return Response(text, headers={"Content-Type": content_type})


@router.get(
    "/api/v1/stats",
    tags=["service"],
    summary="What is stored",
    dependencies=[OperatorDep],
    responses=problems(401, 403, 503),
)
async def stats(runtime: RuntimeDep) -> Statistics:
    """Totals, and by storage. From counters: as fast with a million assets as with one."""
    return statistics(await runtime.library.statistics(), runtime.settings.retention)


@router.get("/api/v1/storages", tags=["service"], summary="The storages there are", responses=problems(401))
async def storages(runtime: RuntimeDep, _: CallerDep) -> StorageList:
    """Every storage an upload may name, whether it is configured, and what it can. Never a secret."""
    return StorageList(
        storages=[
            Storage(
                name=found.name,
                type=found.type,
                configured=found.configured,
                missing=list(found.missing),
                default=found.default,
                capabilities=StorageCapabilities.model_validate(found.capabilities) if found.capabilities else None,
            )
            for found in configured_storages(runtime.settings, runtime.storages.get)
        ]
    )
