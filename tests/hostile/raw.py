"""HTTP by hand: exactly the bytes a test says, over a socket of its own, and what comes back."""

from __future__ import annotations

import json
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.client import parse_headers
from typing import Any, Final, Self

from tests.faults.process import PATIENCE

HOST: Final = b"Host: 127.0.0.1\r\n"


def get(path: str, *lines: bytes, host: bytes = HOST) -> bytes:
    """A whole GET."""
    return b"GET %s HTTP/1.1\r\n%s%s\r\n" % (path.encode(), host, b"".join(line + b"\r\n" for line in lines))


def post(body: bytes = b"", *lines: bytes, path: str = "/api/v1/assets", kind: str = "image/png") -> bytes:
    """A POST up to its body's end; its framing is among `lines`."""
    head = [b"POST %s HTTP/1.1" % path.encode(), HOST.rstrip(), b"Content-Type: " + kind.encode(), *lines, b"", b""]
    return b"\r\n".join(head) + body


@dataclass(frozen=True)
class Answer:
    """One answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def problem(self, status: int, code: str) -> Any:
        """The problem it must be, in the one shape."""
        assert self.headers["content-type"] == "application/problem+json", self
        problem = json.loads(self.body)
        assert (self.status, problem["status"], problem["code"]) == (status, status, code), problem
        assert problem["request_id"] == self.headers["x-request-id"]
        assert {"type", "title", "detail"} <= problem.keys()
        return problem


class Connection:
    """A connection to the service."""

    def __init__(self, address: tuple[str, int], *, receive_buffer: int | None = None) -> None:
        """`receive_buffer` is how much is taken that is not read."""
        self._socket = socket.socket()
        self._socket.settimeout(PATIENCE)
        if receive_buffer:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.connect(address)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def send(self, data: bytes) -> bool:
        """Whether all of it was taken: the service may have closed meanwhile."""
        try:
            self._socket.sendall(data)
        except OSError:
            return False
        return True

    def end(self) -> None:
        """Send no more."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Go away without a word."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._file.close()
        self._socket.close()

    def answer(self, *, head: bool = False) -> Answer:
        """The next answer; of a HEAD it has no body."""
        version, status = self._file.readline().split(b" ", 2)[:2]
        assert version == b"HTTP/1.1"
        headers = {name.lower(): value for name, value in parse_headers(self._file).items()}
        return Answer(int(status), headers, b"" if head else self._body(int(status), headers))

    def _body(self, status: int, headers: dict[str, str]) -> bytes:
        if status in {204, 304}:
            return b""
        if headers.get("transfer-encoding") != "chunked":
            length = int(headers["content-length"])
            body = self._file.read(length)
            assert len(body) == length, "an answer was cut"
            return body
        pieces = []
        while size := int(self._file.readline(), 16):
            pieces.append(self._file.read(size))
            assert self._file.read(2) == b"\r\n"
        assert self._file.readline() == b"\r\n"
        return b"".join(pieces)

    def has_answer(self, seconds: float) -> bool:
        """Whether something comes within that time, be it the end."""
        return bool(select.select([self._socket], [], [], seconds)[0])

    def is_closed(self) -> bool:
        """Whether nothing more comes; waits for the service to close."""
        try:
            return self._file.read(1) == b""
        except ConnectionResetError:
            return True

    def answers(self) -> Iterator[Answer]:
        """Every answer until the service closes."""
        try:
            while self._file.peek(1):
                yield self.answer()
        except ConnectionResetError:
            return


def exchange(address: tuple[str, int], request: bytes) -> list[Answer]:
    """All that the service answers until it closes."""
    with Connection(address) as connection:
        connection.send(request)
        return list(connection.answers())
