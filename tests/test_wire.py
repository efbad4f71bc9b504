"""The proxy carries faithfully, and fails exactly as it is told to."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
import pytest

from tests.wire import Wire

BODY = os.urandom(300_000)


@dataclass
class Echo:
    """A server that sends back what it gets, and keeps it."""

    port: int
    received: bytearray
    ended: asyncio.Event


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    received, ended = bytearray(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while piece := await reader.read(65536):
                received.extend(piece)
                writer.write(piece)
                await writer.drain()
        ended.set()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield Echo(server.sockets[0].getsockname()[1], received, ended)


@pytest.fixture
async def wire(echo: Echo) -> AsyncIterator[Wire]:
    async with Wire("127.0.0.1", echo.port) as wire:
        yield wire


class Client:
    """One connection to the wire."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def of(cls, wire: Wire) -> Client:
        parts = urlsplit(wire.address)
        return cls(*await asyncio.open_connection(parts.hostname, parts.port))

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def receive(self, count: int) -> bytes:
        """So many bytes, fewer where the connection ends."""
        received = b""
        with suppress(ConnectionError):
            while len(received) < count and (piece := await self._reader.read(count - len(received))):
                received += piece
        return received

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()

    async def echoed(self, data: bytes) -> bytes:
        """What comes back of it."""
        sending = asyncio.create_task(self.send(data))
        received = await self.receive(len(data))
        await asyncio.wait((sending,))
        sending.exception()
        return received


async def quiet(awaitable: asyncio.Task[bytes]) -> bool:
    """Whether nothing comes of it, for a while."""
    done, _ = await asyncio.wait((awaitable,), timeout=0.1)
    return not done


async def test_it_carries_every_byte_both_ways(wire: Wire) -> None:
    async with await Client.of(wire) as one, await Client.of(wire) as other:
        answers = await asyncio.gather(one.echoed(BODY), other.echoed(BODY[::-1]))
        assert list(answers) == [BODY, BODY[::-1]]


async def test_the_servers_end_of_a_connection_ends_with_the_clients(wire: Wire, echo: Echo) -> None:
    async with await Client.of(wire) as client:
        assert await client.echoed(b"hello") == b"hello"
        assert not echo.ended.is_set()
    await asyncio.wait_for(echo.ended.wait(), 60)


async def test_refused_connections_are_refused_and_open_ones_cut_until_it_is_restored(wire: Wire) -> None:
    async with await Client.of(wire) as client:
        assert await client.echoed(b"hello") == b"hello"
        wire.refuse()
        assert await client.receive(1) == b""
    for _again in range(2):
        with pytest.raises(ConnectionRefusedError):
            await Client.of(wire)
    wire.restore()
    async with await Client.of(wire) as client:
        assert await client.echoed(BODY) == BODY


async def test_a_stalled_connection_carries_nothing_until_it_is_released(wire: Wire, echo: Echo) -> None:
    async with await Client.of(wire) as before:
        assert await before.echoed(b"hello") == b"hello"
        stall = wire.stall()
        async with await Client.of(wire) as after:
            answers = [asyncio.create_task(client.echoed(BODY)) for client in (before, after)]
            await stall.reached.wait()
            assert [await quiet(answer) for answer in answers] == [True, True]
            assert echo.received == b"hello"
            stall.release()
            assert await asyncio.gather(*answers) == [BODY, BODY]


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_a_connection_can_stall_midway_and_go_on_there(wire: Wire, echo: Echo, direction: str) -> None:
    stall = wire.stall(up=100_000) if direction == "up" else wire.stall(down=100_000)
    async with await Client.of(wire) as client:
        answer = asyncio.create_task(client.echoed(BODY))
        await stall.reached.wait()
        assert await quiet(answer)
        if direction == "up":
            assert echo.received == BODY[:100_000]
        stall.release()
        assert await answer == BODY


async def test_what_is_stalled_when_it_is_restored_is_cut(wire: Wire, echo: Echo) -> None:
    stall = wire.stall(up=100_000)
    async with await Client.of(wire) as client:
        answer = asyncio.create_task(client.echoed(BODY))
        await stall.reached.wait()
        wire.restore()
        assert len(await answer) <= 100_000
    await asyncio.wait_for(echo.ended.wait(), 60)
    assert echo.received == BODY[:100_000]


@pytest.mark.parametrize("after", [0, 1, 65_536, 100_000])
async def test_a_connection_is_cut_on_its_way_up(wire: Wire, echo: Echo, after: int) -> None:
    wire.cut(up=after)
    for _again in range(2):
        echo.received.clear()
        async with await Client.of(wire) as client:
            assert len(await client.echoed(BODY)) <= after
        await asyncio.wait_for(echo.ended.wait(), 60)
        echo.ended.clear()
        assert echo.received == BODY[:after]


@pytest.mark.parametrize("after", [0, 1, 65_536, 100_000])
async def test_a_connection_is_cut_on_its_way_down_as_if_that_had_been_all(wire: Wire, after: int) -> None:
    wire.cut(down=after)
    async with await Client.of(wire) as client:
        assert await client.echoed(BODY) == BODY[:after]


async def test_a_connection_is_cut_only_once_where_that_is_said(wire: Wire) -> None:
    wire.cut(down=100, once=True)
    for expected in (BODY[:100], BODY, BODY):
        async with await Client.of(wire) as client:
            assert await client.echoed(BODY) == expected


async def test_bytes_are_counted_from_the_staging_where_a_connection_is_open(wire: Wire) -> None:
    async with await Client.of(wire) as client:
        assert await client.echoed(BODY) == BODY
        wire.cut(down=100)
        assert await client.echoed(BODY) == BODY[:100]


@pytest.mark.parametrize("at", [0, 65_535, 65_536, 299_999])
async def test_just_one_bit_of_each_connection_is_flipped(wire: Wire, at: int) -> None:
    wire.corrupt(up=at)
    for number in (1, 2):
        async with await Client.of(wire) as client:
            received = await client.echoed(BODY)
        assert received == BODY[:at] + bytes([BODY[at] ^ 1]) + BODY[at + 1 :]
        assert wire.corrupted == number
    wire.restore()
    async with await Client.of(wire) as client:
        assert await client.echoed(BODY) == BODY


async def test_a_delayed_connection_carries_everything_all_the_same(wire: Wire) -> None:
    wire.delay(0.01)
    async with await Client.of(wire) as client:
        answer = asyncio.create_task(client.echoed(BODY))
        assert await answer == BODY


async def body_in_pieces() -> AsyncIterator[bytes]:
    for start in range(0, len(BODY), 50_000):
        yield BODY[start : start + 50_000]


async def test_a_staged_answer_is_given_to_every_request_and_none_reaches_the_server(wire: Wire, echo: Echo) -> None:
    wire.answer(503, {"Retry-After": "7"}, b"slow down")
    async with httpx.AsyncClient(base_url=wire.address, trust_env=False) as client:
        answers = [
            await client.get("/"),
            await client.put("/", content=BODY),
            await client.put("/", content=body_in_pieces()),
        ]
        for answer in answers:
            assert (answer.status_code, answer.headers["retry-after"], answer.content) == (503, "7", b"slow down")
        head = await client.head("/")
        assert (head.status_code, head.content) == (503, b"")
    async with await Client.of(wire) as waiting:
        await waiting.send(b"PUT / HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        assert (await waiting.receive(1000)).endswith(b"\r\n\r\nslow down")
    assert wire.answered == len(answers) + 2
    assert echo.received == b""


async def test_an_answer_is_staged_for_connections_that_are_open_too(wire: Wire) -> None:
    async with await Client.of(wire) as client:
        assert await client.echoed(b"hello") == b"hello"
        wire.answer(500)
        assert await client.receive(1) == b"", "ended, so that the next request comes by a new connection"
    wire.restore()
    async with await Client.of(wire) as client:
        assert await client.echoed(BODY) == BODY


async def test_nothing_is_left_open_when_it_ends(echo: Echo) -> None:
    async with Wire("127.0.0.1", echo.port) as wire:
        stall = wire.stall(up=5)
        client = await Client.of(wire)
        await client.send(BODY[:50_000])
        await stall.reached.wait()
    async with client:
        assert await client.receive(1) == b""
    with pytest.raises(ConnectionRefusedError):
        await Client.of(wire)
    await asyncio.wait_for(echo.ended.wait(), 60)
