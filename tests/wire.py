"""What goes wrong on the way to a server: a proxy before it, on this machine, that fails as a test says."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Literal, Self

from tests.staging import Hang

Direction = Literal["up", "down"]

_LOOPBACK: Final = "127.0.0.1"
_PIECE_BYTES: Final = 64 * 1024


@dataclass
class _Stall:
    after: int
    hang: Hang


@dataclass
class _Faults:
    """What is staged."""

    stalls: dict[Direction, _Stall] = field(default_factory=dict)
    cuts: dict[Direction, int] = field(default_factory=dict)
    once: bool = False
    delay: float = 0.0
    corrupt_at: int | None = None
    answer: tuple[bytes, bytes] | None = None


@dataclass(eq=False)
class _Connection:
    """One of a client's: `carried` since it began, or since the last fault was staged."""

    carried: dict[Direction, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    task: asyncio.Task[None] | None = None


class Wire:
    """`async with Wire(host, port) as wire`: who connects to `wire.address` talks to the server at `host` and `port`.

    Carries everything faithfully but for the fault staged, which stays until the next one or `restore`. Bytes are
    counted for each connection, from its beginning, or from the staging where it was open then. `up` is towards the
    server.
    """

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._socket = self._bound(0)
        self._port: int = self._socket.getsockname()[1]
        self._listening = False
        self._connections: set[_Connection] = set()
        self._faults = _Faults()
        self.answered = 0
        """Requests that got the answer staged."""
        self.corrupted = 0
        """Bytes that were changed."""

    @property
    def address(self) -> str:
        """`http://127.0.0.1:port`."""
        return f"http://{_LOOPBACK}:{self._port}"

    async def __aenter__(self) -> Self:
        self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop_listening()
        self._socket.close()
        ended = self._cut_all()
        if ended:
            await asyncio.wait(ended)

    # ── Staging ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def refuse(self) -> None:
        """Cut every connection and refuse new ones; the port stays taken."""
        self._stage(_Faults())
        self._stop_listening()
        self._socket.close()
        # Bound and not listening: nobody else gets the port, and who connects is refused.
        self._socket = self._bound(self._port)
        self._cut_all()

    def stall(self, *, up: int | None = None, down: int | None = None) -> Hang:
        """Carry so many bytes and no more, in neither direction where none is given; connections stay open.

        The answer's `reached` is set when somebody waits; its `release` lets everything go on as if nothing had been.
        """
        hang = Hang()
        if up is None and down is None:
            up = down = 0
        self._stage(_Faults(stalls={way: _Stall(after, hang) for way, after in _given(up, down)}))
        return hang

    def delay(self, seconds: float) -> None:
        """Hold every piece (64 KiB at most) so long, in both directions."""
        self._stage(_Faults(delay=seconds))

    def cut(self, *, up: int | None = None, down: int | None = None, once: bool = False) -> None:
        """End every connection that has more than so many bytes: towards the client as if they had been all.

        With `once`, only the first that gets so far.
        """
        self._stage(_Faults(cuts=dict(_given(up, down)), once=once))

    def corrupt(self, *, up: int) -> None:
        """Flip one bit of each connection's byte number `up` (from 0)."""
        self._stage(_Faults(corrupt_at=up))

    def answer(self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        """Answer every request so; none reaches the server. Connections open now are ended."""
        lines = [f"HTTP/1.1 {status} Staged", f"Content-Length: {len(body)}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self._stage(_Faults(answer=(("\r\n".join(lines) + "\r\n\r\n").encode(), body)))
        self._cut_all()

    def restore(self) -> None:
        """Carry everything again. What was stalled, or was to be cut, is cut now."""
        interrupted = self._faults.stalls or self._faults.cuts
        self._stage(_Faults())
        if interrupted:
            self._cut_all()
        if not self._listening:
            self._listen()

    def _stage(self, faults: _Faults) -> None:
        self._faults = faults
        for connection in self._connections:
            connection.carried = {"up": 0, "down": 0}

    # ── Connections ─────────────────────────────────────────────────────────────────────────────────────────────────

    @staticmethod
    def _bound(port: int) -> socket.socket:
        bound = socket.socket()
        bound.setblocking(False)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((_LOOPBACK, port))
        return bound

    def _listen(self) -> None:
        self._socket.listen(128)
        asyncio.get_running_loop().add_reader(self._socket, self._accept)
        self._listening = True

    def _stop_listening(self) -> None:
        if self._listening:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._listening = False

    def _accept(self) -> None:
        try:
            client, _ = self._socket.accept()
        except BlockingIOError:
            return
        client.setblocking(False)
        connection = _Connection()
        connection.task = asyncio.create_task(self._serve(client, connection))
        self._connections.add(connection)

    def _cut_all(self) -> list[asyncio.Task[None]]:
        tasks = [connection.task for connection in self._connections if connection.task is not None]
        for task in tasks:
            task.cancel()
        return tasks

    async def _serve(self, client: socket.socket, connection: _Connection) -> None:
        writers: list[asyncio.StreamWriter] = []
        try:
            reader, writer = await asyncio.open_connection(sock=client)
            writers.append(writer)
            if self._faults.answer is not None:
                await self._answer_request(reader, writer, *self._faults.answer)
                return
            server_reader, server_writer = await asyncio.open_connection(*self._server)
            writers.append(server_writer)
            up = asyncio.create_task(self._carry(connection, "up", reader, server_writer))
            down = asyncio.create_task(self._carry(connection, "down", server_reader, writer))
            try:
                await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
            finally:
                up.cancel()
                down.cancel()
                await asyncio.wait((up, down))
        except OSError:
            pass  # one of the two is gone
        except asyncio.CancelledError:
            for writer in writers:
                writer.transport.abort()
        finally:
            self._connections.discard(connection)
            for writer in writers:
                writer.close()
            if not writers:
                client.close()
            for writer in writers:
                with suppress(OSError):
                    await writer.wait_closed()

    async def _carry(
        self, connection: _Connection, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Until one of the two ends it, or a fault does."""
        with suppress(OSError):
            while piece := await reader.read(_PIECE_BYTES):
                begin = connection.carried[direction]
                end = connection.carried[direction] = begin + len(piece)
                faults = self._faults
                if direction == "up" and faults.corrupt_at is not None and begin <= faults.corrupt_at < end:
                    at = faults.corrupt_at - begin
                    piece = piece[:at] + bytes([piece[at] ^ 1]) + piece[at + 1 :]
                    self.corrupted += 1
                if faults.delay:
                    await asyncio.sleep(faults.delay)
                cut_at = faults.cuts.get(direction, end)
                if cut_at < end:
                    if faults.once:
                        self._faults = _Faults()
                    writer.write(piece[: max(cut_at - begin, 0)])
                    await writer.drain()
                    return
                stall = faults.stalls.get(direction)
                if stall is not None and stall.after < end:
                    passed = max(stall.after - begin, 0)
                    writer.write(piece[:passed])
                    piece = piece[passed:]
                    stall.hang.reached.set()
                    await stall.hang.released.wait()
                writer.write(piece)
                await writer.drain()

    async def _answer_request(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes, body: bytes
    ) -> None:
        with suppress(asyncio.IncompleteReadError):  # the client left before its request was whole
            request = (await reader.readuntil(b"\r\n\r\n")).lower()
            if b"\r\nexpect: 100-continue" not in request:  # whose sender waits for the answer before the body
                await _skip_body(reader, request)
            self.answered += 1
            writer.write(head if request.startswith(b"head ") else head + body)
            await writer.drain()


def _given(up: int | None, down: int | None) -> Iterator[tuple[Direction, int]]:
    if up is not None:
        yield "up", up
    if down is not None:
        yield "down", down


async def _skip_body(reader: asyncio.StreamReader, head: bytes) -> None:
    headers = dict(line.split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
    if b"chunked" in headers.get(b"transfer-encoding", b""):
        while size := int((await reader.readline()).split(b";")[0], 16):
            await _skip(reader, size + 2)
        while await reader.readline() not in {b"\r\n", b""}:
            pass
    else:
        await _skip(reader, int(headers.get(b"content-length", b"0")))


async def _skip(reader: asyncio.StreamReader, count: int) -> None:
    while count > 0:
        count -= len(await reader.readexactly(min(count, _PIECE_BYTES)))
