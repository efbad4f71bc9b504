"""Rate limits over HTTP: whom a request is from, and what its answer says of the limits it has met.

The fields are those of draft-ietf-httpapi-ratelimit-headers-10, lists of structured fields (RFC 9651).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smart_assets.access.api_keys import Caller
from smart_assets.access.ratelimit import Meter, Standing, Turn, Use
from smart_assets.api.edge import ASSETS
from smart_assets.api.problems import problem_of
from smart_assets.errors import RateLimited, Unauthorized
from smart_assets.runtime import Runtime

_TURN = "smart_assets.turn"
_IPV6_NETWORK_BITS = 64


class RateLimiting:
    """Limits what comes for `/assets`, and says in each answer how the limits stand that its request has met.

    A delivery that is not refused says nothing of them: a cache would tell others.
    """

    def __init__(self, app: ASGIApp) -> None:
        """`app` is what comes behind."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        runtime: Runtime = scope["app"].state.runtime
        turn = scope[_TURN] = Turn(runtime.limits, limited_address(scope.get("client")))

        async def telling_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *fields(turn.standings)]
            await send(message)

        if not scope["path"].startswith(ASSETS):
            await self._app(scope, receive, telling_send)
            return
        try:
            await turn.use(Use.DELIVERIES, "address")
        except RateLimited as error:
            scope["route_name"] = "/assets/{key}"
            await problem_of(error)(scope, receive, telling_send)
            return
        await self._app(scope, receive, send)


async def admit(request: Request, runtime: Runtime, use: Use | None) -> Caller:
    """Who is calling; Unauthorized where nobody is known by the key, RateLimited where it is too often.

    Nothing of the body is read, and the catalogue is not asked for whom the address is too busy already.
    """
    authorization = request.headers.get("authorization")
    turn: Turn | None = request.scope.get(_TURN)
    if turn is None:
        return await runtime.api_keys.authenticate(authorization)
    if use is not None:
        await turn.use(use, "address")
    if authorization is not None:
        await turn.need(Use.FAILED_KEYS, "address")
    try:
        caller = await runtime.api_keys.authenticate(authorization)
    except Unauthorized:
        if authorization is not None:
            await turn.use(Use.FAILED_KEYS, "address")
        raise
    turn.is_with(caller.key)
    if use is not None:
        await turn.use(use, "key")
    return caller


async def admit_bearer(request: Request, use: Use, *, key: str | None = None) -> None:
    """RateLimited where a request that brings leave instead of a key comes too often: from its address or, with `key`,
    under the key that gave the leave."""
    turn: Turn | None = request.scope.get(_TURN)
    if turn is None:
        return
    if key is None:
        await turn.use(use, "address")
        return
    turn.is_with(key)
    await turn.use(use, "key")


def meter_of(request: Request) -> Meter | None:
    """For the bytes the request brings; None where they are not limited."""
    turn: Turn | None = request.scope.get(_TURN)
    return turn.meter() if turn is not None else None


def limited_address(client: tuple[str, int] | None) -> str:
    """What of the address a request comes from is one caller: all of an IPv4 one, the network of an IPv6 one.

    Whatever is no address is one caller together.
    """
    try:
        address = ipaddress.ip_address(client[0] if client else "")
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return str(ipaddress.IPv6Network((int(address), _IPV6_NETWORK_BITS), strict=False))
        address = address.ipv4_mapped
    return str(address)


def fields(standings: Iterable[Standing]) -> list[tuple[bytes, bytes]]:
    """`RateLimit` and `RateLimit-Policy`; none where no limit was met."""
    met = list(standings)
    if not met:
        return []
    left = (f'"{standing.limit.name}";r={standing.remaining};t={standing.more_in}' for standing in met)
    return [
        (b"ratelimit", ", ".join(left).encode()),
        (b"ratelimit-policy", ", ".join(_policy(standing) for standing in met).encode()),
    ]


def _policy(standing: Standing) -> str:
    limit = standing.limit
    unit = ';qu="content-bytes"' if limit.use is Use.UPLOAD_BYTES else ""
    return f'"{limit.name}";q={limit.rate.amount};w={limit.rate.get_expiry()}{unit}'
