"""`/assets/{key}`, before any router: a public image costs no more than reading it."""

from __future__ import annotations

from urllib.parse import parse_qsl

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from smart_assets.api.conditional import SAFETY_HEADERS, hand_over, send_bytes
from smart_assets.api.edge import ASSETS
from smart_assets.api.problems import problem, problem_of
from smart_assets.assets.delivery import Redirect
from smart_assets.errors import AssetNotFound, SmartAssetsError
from smart_assets.runtime import Runtime
from smart_assets.storage.keys import Visibility, is_asset_key, visibility_of

GATEWAY = "x-accel-prefix"
"""By this header field a gateway says that it sends files itself, and under which path it has them."""


class AssetDelivery:
    """Answers for addresses under `/assets/`; everything else goes on to the application."""

    def __init__(self, app: ASGIApp) -> None:
        """`app` is what comes behind."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry."""
        if scope["type"] != "http" or not scope["path"].startswith(ASSETS):
            await self._app(scope, receive, send)
            return
        scope["route_name"] = "/assets/{key}"
        try:
            if scope["method"] in {"GET", "HEAD"}:
                await self._deliver(scope, receive, send)
                return
            response: Response = problem(
                "method_not_allowed", "assets can only be fetched here", headers={"Allow": "GET, HEAD"}
            )
        except SmartAssetsError as error:
            response = problem_of(error)
        response.raw_headers.extend([*SAFETY_HEADERS, (b"cache-control", b"no-store")])
        await response(scope, receive, send)

    async def _deliver(self, scope: Scope, receive: Receive, send: Send) -> None:
        runtime: Runtime = scope["app"].state.runtime
        key: str = scope["path"][len(ASSETS) :]
        if not is_asset_key(key):
            raise AssetNotFound("there is nothing at this address")
        public = visibility_of(key) is Visibility.PUBLIC
        query = {} if public else dict(parse_qsl(scope["query_string"].decode("latin-1")))
        delivery = runtime.delivery
        grant = delivery.authorise(key, query)
        found = delivery.at_hand(key) or await delivery.look_up(key, grant)
        cache_control = f"{'public' if public else 'private'}, max-age={grant.max_age}"
        if isinstance(found, Redirect):
            cache_control = f"{'public' if public else 'private'}, max-age={found.max_age}"
            headers = {"Location": found.url, "Cache-Control": cache_control}
            response = Response(status_code=302, headers=headers)
            response.raw_headers.extend(SAFETY_HEADERS)
            await response(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if found.on_gateway is not None and headers.get(GATEWAY) == runtime.settings.accel_redirect:
            await hand_over(send, found, found.on_gateway, cache_control=cache_control)
            return
        await send_bytes(send, found, headers, cache_control=cache_control, head_only=scope["method"] == "HEAD")
