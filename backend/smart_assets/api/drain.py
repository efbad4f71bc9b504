"""Letting a refused sender hear why, on a connection that closes with the answer."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

DRAIN_SECONDS = 2.0


class DrainAfterRefusal:
    """Answers an error at once, then reads what still comes of the body, for a moment, before the connection closes.

    To close it on unread bytes resets it, and a client that is still sending, or a proxy that speaks HTTP/1.0 to us,
    might never see the answer. Of a connection that stays open, the server discards the rest itself.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        """`seconds` is how long a sender is listened to at most."""
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry."""
        if scope["type"] != "http" or not _closes(scope):
            await self._app(scope, receive, send)
            return
        more, refused = True, False

        async def noting_receive() -> Message:
            nonlocal more
            message = await receive()
            more = message.get("more_body", False)
            return message

        async def draining_send(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start":
                refused = message["status"] >= 400
            if not (refused and more) or message["type"] != "http.response.body" or message.get("more_body"):
                await send(message)
                return
            await send({**message, "more_body": True})
            with suppress(TimeoutError):
                async with asyncio.timeout(self._seconds):
                    while more:
                        await noting_receive()
            await send({"type": "http.response.body"})

        await self._app(scope, noting_receive, draining_send)


def _closes(scope: Scope) -> bool:
    """Whether the connection ends with the answer. Who waits for leave to send (`Expect`) has nothing to drain."""
    headers = dict(scope["headers"])
    closes = scope["http_version"] == "1.0" or b"close" in headers.get(b"connection", b"").lower()
    return closes and b"expect" not in headers
