"""Connections of a server that stops: what is asked on one of them is answered, and said to be the last."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from smart_assets import connections
from smart_assets.connections import bounded_protocol
from smart_assets.settings import Settings
from tests.faults.process import PATIENCE

NEVER = 2 * PATIENCE
"""Seconds: longer than any test takes."""

GET = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 4\r\n\r\n"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Caller:
    """A client by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def head(self) -> bytes:
        return await self._reader.readuntil(b"\r\n\r\n")

    async def body(self) -> bytes:
        return await self._reader.readexactly(2)

    async def answer(self) -> bytes:
        """A whole one: its head, the body having been looked at."""
        head = await self.head()
        assert await self.body() == b"ok"
        return head

    async def last_answer(self) -> None:
        """It says that it is, and it is."""
        head = await self.answer()
        assert head.startswith(b"HTTP/1.1 200")
        assert b"\r\nconnection: close\r\n" in head
        assert await self.is_closed()

    async def is_closed(self) -> bool:
        return await self._reader.read(1) == b""

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


class Stopping:
    """uvicorn's server with our protocol: an answer is begun when `begins` is set and whole when `ends` is."""

    def __init__(self, protocol: type[connections.BoundedProtocol], listener: socket.socket) -> None:
        self._protocol = protocol
        self._listener = listener
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._app,
                http=protocol,
                interface="asgi3",
                lifespan="off",
                log_config=None,
                timeout_keep_alive=NEVER,
            )
        )
        self._callers: list[Caller] = []
        self.asked = asyncio.Event()
        self.begins = asyncio.Event()
        self.ends = asyncio.Event()
        self.begins.set()
        self.ends.set()

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.set()
        while (await receive()).get("more_body"):
            pass
        await self.begins.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await self.ends.wait()
        await send({"type": "http.response.body", "body": b"ok"})

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self._server.config.load()
        self._server.lifespan = self._server.config.lifespan_class(self._server.config)
        await self._server.startup([self._listener])
        async with asyncio.timeout(PATIENCE):
            yield
            for caller in self._callers:
                await caller.close()
            while self.open_connections():
                await asyncio.sleep(0.01)
        for server in self._server.servers:
            server.close()

    async def stranger(self) -> Caller:
        """Somebody who has connected."""
        self._callers.append(Caller(*await asyncio.open_connection(*self._listener.getsockname())))
        return self._callers[-1]

    async def caller(self) -> Caller:
        """Somebody whose connection the server has."""
        known = self.open_connections()
        caller = await self.stranger()
        while self.open_connections() == known:
            await asyncio.sleep(0.01)
        return caller

    def open_connections(self) -> int:
        return len(self._server.server_state.connections)

    def stop(self) -> None:
        """What the server does with its connections then; it goes on listening here."""
        self._protocol.leave()
        for connection in list(self._server.server_state.connections):
            connection.shutdown()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Stopping]:
    protocol = bounded_protocol(Settings(data_dir=tmp_path, body_timeout_seconds=NEVER))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Stopping(protocol, listener)
        async with server.running():
            yield server


@pytest.fixture
def lingers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LINGER_SECONDS", NEVER)


@pytest.fixture
def is_brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """No longer than it must."""
    monkeypatch.setattr(connections, "LINGER_SECONDS", 0)


@pytest.mark.usefixtures("lingers")
async def test_who_has_connected_and_not_asked_yet_is_answered(server: Stopping) -> None:
    caller = await server.caller()
    server.stop()
    caller.send(GET)
    await caller.last_answer()


@pytest.mark.usefixtures("lingers")
async def test_who_asks_again_on_a_connection_that_was_idle_is_answered(server: Stopping) -> None:
    caller = await server.caller()
    caller.send(GET)
    await caller.answer()
    server.stop()
    caller.send(GET)
    await caller.last_answer()


@pytest.mark.usefixtures("lingers")
async def test_who_waits_for_an_answer_hears_with_it_that_it_is_the_last(server: Stopping) -> None:
    caller = await server.caller()
    server.begins.clear()
    caller.send(GET)
    await server.asked.wait()
    server.stop()
    server.begins.set()
    await caller.last_answer()


@pytest.mark.usefixtures("lingers")
async def test_who_was_promised_another_answer_gets_it(server: Stopping) -> None:
    """The head of the one under way has said nothing of an end."""
    caller = await server.caller()
    server.ends.clear()
    caller.send(GET)
    assert b"connection: close" not in await caller.head()
    server.stop()
    server.ends.set()
    caller.send(GET)
    assert await caller.body() == b"ok"
    await caller.last_answer()


@pytest.mark.usefixtures("is_brief")
async def test_who_was_promised_another_answer_and_asks_for_none_is_not_waited_for(server: Stopping) -> None:
    caller = await server.caller()
    server.ends.clear()
    caller.send(GET)
    await caller.head()
    server.stop()
    server.ends.set()
    assert await caller.body() == b"ok"
    assert await caller.is_closed()


@pytest.mark.usefixtures("is_brief")
async def test_who_is_still_sending_is_waited_for(server: Stopping) -> None:
    caller = await server.caller()
    caller.send(POST + b"ab")
    await server.asked.wait()
    server.stop()
    await asyncio.sleep(0.1)
    caller.send(b"cd")
    await caller.last_answer()


@pytest.mark.usefixtures("is_brief")
async def test_who_has_begun_to_ask_is_waited_for(server: Stopping) -> None:
    caller = await server.caller()
    caller.send(GET[:20])
    await asyncio.sleep(0.1)
    server.stop()
    await asyncio.sleep(0.1)
    caller.send(GET[20:])
    await caller.last_answer()


@pytest.mark.usefixtures("is_brief")
async def test_a_connection_nobody_asks_anything_on_is_closed(server: Stopping) -> None:
    new, used = await server.caller(), await server.caller()
    used.send(GET)
    await used.answer()
    server.stop()
    assert await new.is_closed()
    assert await used.is_closed()


@pytest.mark.usefixtures("lingers")
async def test_one_that_is_introduced_after_the_stop_is_answered_once(server: Stopping) -> None:
    """It was accepted before: uvicorn does not know it yet when it closes the others."""
    server.stop()
    caller = await server.stranger()
    caller.send(GET)
    await caller.last_answer()


@pytest.mark.usefixtures("is_brief")
async def test_one_that_is_introduced_after_the_stop_is_closed_unasked(server: Stopping) -> None:
    server.stop()
    caller = await server.stranger()
    assert await caller.is_closed()
