"""The service in this process, for a command that is given no address: the same requests, without a network."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress

import anyio
import httpx
from anyio.from_thread import BlockingPortal, start_blocking_portal
from anyio.streams.memory import MemoryObjectReceiveStream
from fastapi import FastAPI

from smart_assets.main import create_app
from smart_assets.observability import configure_logging
from smart_assets.settings import Settings

_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not to listen on: how to reach who does


@contextmanager
def application(settings: Settings) -> Iterator[httpx.BaseTransport]:
    """A transport to a service over `settings`, for as long as the context lasts; safe beside one that is running.

    Its log is silent unless ASSETS_LOG_LEVEL is set: what goes wrong is said once, by whoever hears the answer.
    Raises ConfigurationError where it cannot begin.
    """
    configure_logging(settings.log_level if "log_level" in settings.model_fields_set else "critical", "auto")
    before = os.umask(0o027)  # what it writes is nobody's outside its group, as the service's own
    try:
        app = create_app(settings, serves=False)
        with start_blocking_portal() as portal, portal.wrap_async_context_manager(app.router.lifespan_context(app)):
            transport = InProcess(portal, app)
            try:
                yield transport
            finally:
                transport.abandon()
    finally:
        os.umask(before)


def address(settings: Settings) -> str:
    """Where a service with these settings answers on this machine: what URLs begin with where no other is set."""
    host = _EVERY_ADDRESS.get(settings.host, settings.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port or 8000}"


class InProcess(httpx.BaseTransport):
    """Carries requests to an application in the portal's event loop, from any thread. Bodies are streamed."""

    def __init__(self, portal: BlockingPortal, app: FastAPI) -> None:
        """`app` has begun."""
        self._portal = portal
        self._transport = httpx.ASGITransport(app, client=("127.0.0.1", 0))
        self._under_way: set[Future[httpx.Response]] = set()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """The answer, whole."""
        assert isinstance(request.stream, httpx.SyncByteStream)  # noqa: S101 - a synchronous client has no others
        # Who sends reads in its own thread and waits until the application has taken the last piece.
        sending, taking = anyio.create_memory_object_stream[bytes](0)
        answer = self._portal.start_task_soon(self._answer, request, taking)
        self._under_way.add(answer)
        try:
            # Whoever needs no more of the body closes it, and answers.
            with suppress(anyio.BrokenResourceError):
                for piece in request.stream:
                    self._portal.call(sending.send, piece)
            self._portal.call(sending.aclose)
            return answer.result()
        except BaseException:
            answer.cancel()
            raise
        finally:
            self._under_way.discard(answer)

    def abandon(self) -> None:
        """Break off what is under way."""
        for answer in tuple(self._under_way):
            answer.cancel()

    async def _answer(self, request: httpx.Request, body: MemoryObjectReceiveStream[bytes]) -> httpx.Response:
        async with body:
            asked = httpx.Request(request.method, request.url, headers=request.headers, stream=_Stream(body))
            try:
                answer = await self._transport.handle_async_request(asked)
            except Exception as error:  # half of an answer was out, and is logged
                raise httpx.ReadError("the answer broke off") from error
            content = await answer.aread()
        return httpx.Response(answer.status_code, headers=answer.headers, stream=httpx.ByteStream(content))


class _Stream(httpx.AsyncByteStream):
    def __init__(self, pieces: MemoryObjectReceiveStream[bytes]) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._pieces:
            yield piece
