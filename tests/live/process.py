"""Starting a real server for the tests, and finding what it is started with."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

START_SECONDS = 60
STOP_SECONDS = 10


def unavailable(what: str) -> NoReturn:
    """Skip, saying what is missing; on CI that is a failure."""
    if "CI" in os.environ:
        pytest.fail(f"{what}; on CI nothing live may be skipped")
    pytest.skip(what)


def program(name: str) -> str:
    """Where a program is: on the PATH, or beside this Python."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    return found or unavailable(f"there is no {name}: `make live` installs it")


def free_port(*, below: int = 32768) -> int:
    """A port nobody listens on, and that the system gives to no outgoing connection meanwhile."""
    for _ in range(1000):
        port = 20000 + int.from_bytes(os.urandom(2)) % (below - 20000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port found")


def answers(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def server_process(
    command: Sequence[str | Path],
    ready: Callable[[], bool],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A server that runs as long as the context, once `ready` says so; what it prints goes to `log`.

    `user`: as whom, where that is to be another one.
    """
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [str(part) for part in command],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
            cwd=log.parent,
            user=user,
        ) as process,
    ):
        try:
            deadline = time.monotonic() + START_SECONDS
            while not ready():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command[0]} did not start:\n{log.read_text(errors='replace')[-2000:]}")
                time.sleep(0.05)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
