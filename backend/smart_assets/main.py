"""The application: routers, middleware, error handlers, lifespan."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from smart_assets.api import documents, problems
from smart_assets.api.cross_origin import CrossOrigin
from smart_assets.api.delivery import AssetDelivery
from smart_assets.api.drain import DRAIN_SECONDS, DrainAfterRefusal
from smart_assets.api.edge import Edge
from smart_assets.api.limiting import RateLimiting
from smart_assets.api.routers import assets, credits, keys, maintenance, service, tickets, uploads
from smart_assets.runtime import running
from smart_assets.settings import Settings
from smart_assets.web.pages import pages


def create_app(settings: Settings, *, serves: bool = True) -> FastAPI:
    """The service over `settings`; it begins to work with its lifespan.

    One that does not serve is a command's own, which may run beside the service (see `runtime.running`).
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with running(settings, serves=serves) as runtime:
            app.state.runtime = runtime
            yield

    app = FastAPI(
        title="Smart Assets",
        version=version("smart-assets"),
        description=documents.DESCRIPTION,
        license_info={"name": "MIT", "identifier": "MIT"},
        lifespan=lifespan,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
        docs_url=None,  # `web` has pages of its own, which fetch nothing from other hosts
        redoc_url=None,
        responses={422: documents.NEVER_SENT},  # errors have one shape, and it is documented by hand
        openapi_tags=[
            {"name": "upload", "description": "Taking images in."},
            {"name": "library", "description": "Finding them, changing them, letting them go."},
            {"name": "delivery", "description": "Where the addresses of images lead."},
            {"name": "access", "description": "Who may."},
            {"name": "service", "description": "How the service is."},
        ],
    )
    problems.install(app)
    documents.install(app, settings)
    app.include_router(uploads.router)
    app.include_router(tickets.router)
    app.include_router(assets.direct)
    app.include_router(assets.router)
    app.include_router(maintenance.router)
    app.include_router(keys.router)
    app.include_router(credits.router)
    app.include_router(service.router)
    app.include_router(pages(settings))
    # The last one added is the outermost.
    app.add_middleware(AssetDelivery)
    if serves and settings.limits.has_rules:
        app.add_middleware(RateLimiting)
    if settings.cors_origins:
        app.add_middleware(CrossOrigin, origins=settings.cors_origins)
    app.add_middleware(Edge, settings=settings)
    app.add_middleware(DrainAfterRefusal, seconds=DRAIN_SECONDS)
    return app
