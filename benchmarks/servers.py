"""Servers: each a process of its own on cores of its own, and what it takes of the machine."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from benchmarks.machine import ENVIRONMENT, ROOT, pinned

START_SECONDS = 60
_IMAGES = {".jpg", ".png", ".webp"}
_TICKS = os.sysconf("SC_CLK_TCK")
_FOREIGN = ("ASSETS_", "AWS_", "CLOUDINARY_", "GOOGLE_", "AZURE_")


@dataclass(frozen=True)
class Server:
    """A server that answers at `url`."""

    name: str
    url: str
    pid: int
    files: Path | None = None
    """Where it keeps what is uploaded, on this machine's disk."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """What a caller has to send along."""

    def processes(self) -> list[int]:
        """Itself and all it started that still run."""
        parents: dict[int, list[int]] = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # gone meanwhile
                parents.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
        found = [self.pid]
        for pid in found:
            found += parents.get(pid, [])
        return found

    def cpu_seconds(self) -> float:
        """What its processes have used of all cores so far, those that ended included."""
        total = 0
        for pid in self.processes():
            with suppress(OSError):
                # User and system time, its own and that of children it has waited for.
                total += sum(map(int, _stat(pid)[11:15]))
        return total / _TICKS

    def settle(self) -> None:
        """Wait until it has done what it had to do, a second at most."""
        before = self.cpu_seconds()
        for _ in range(20):
            time.sleep(0.05)
            now = self.cpu_seconds()
            if now == before:
                return
            before = now

    def forget(self, since: float) -> None:
        """Empty the files that were uploaded since then, so that no disk fills up.

        They stay: ext4 without a journal remembers for minutes which files were removed, and each new one pays for it.
        """
        if self.files is not None:
            for file in self.files.rglob("*.*"):
                if file.suffix in _IMAGES and file.stat().st_mtime >= since:
                    os.truncate(file, 0)

    def fetch(self, path: str) -> bytes:
        """What it answers to GET."""
        return _exchange(self.url, "GET", path, None, self.headers)

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Any:
        """What it answers to POST, in JSON."""
        return json.loads(_exchange(self.url, "POST", path, body, {**self.headers, **headers}))


def _stat(pid: int) -> list[str]:
    """/proc/PID/stat from the state on: the parent is the second, CPU times are from the twelfth on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _exchange(url: str, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> bytes:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)
    try:
        connection.request(method, path, body, dict(headers))
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    if answer.status >= HTTPStatus.BAD_REQUEST:
        raise RuntimeError(f"{method} {path}: {answer.status} {content[:500]!r}")
    return content


def answers(url: str, path: str) -> bool:
    """Whether it answers 200 there."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def clean_environment() -> dict[str, str]:
    """This process's, but for settings of the service and of vendors; this checkout can be imported from."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    return inherited | {"PYTHONPATH": str(ROOT)}


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def serving(
    name: str,
    command: Sequence[str],
    port: int,
    *,
    on: int | frozenset[int],
    log: Path,
    ready: str = "/",
    environment: Mapping[str, str] | None = None,
    files: Path | None = None,
    headers: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """A server on the cores `on`, from when it answers at `ready` to the end of the context."""
    # It runs where its log is: a server that reads a `.env` is not to find this checkout's.
    with log.open("wb") as output, pinned(on):
        process = subprocess.Popen(
            command,
            env={**clean_environment(), **(environment or {})},
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = Server(name, f"http://127.0.0.1:{port}", process.pid, files, headers or {})
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(server.url, ready):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.005)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def service(
    folder: Path,
    *,
    on: int | frozenset[int],
    settings: Mapping[str, str] | None = None,
    name: str = "smart-assets",
    workers: int = 1,
) -> Iterator[Server]:
    """The service over `folder`/data, of so many processes, callers' keys switched on."""
    folder.mkdir(exist_ok=True)
    key, port, data = uuid4().hex, free_port(), folder / "data"
    environment = {"ASSETS_PORT": str(port), "ASSETS_DATA_DIR": str(data), "ASSETS_API_KEYS": key, **(settings or {})}
    command = [str(ENVIRONMENT / "bin" / "smart-assets"), "serve", "--workers", str(workers)]
    log = folder / f"{port}.log"
    headers = {"Authorization": f"Bearer {key}"}
    with serving(
        name, command, port, on=on, log=log, ready="/health/ready", environment=environment, files=data, headers=headers
    ) as server:
        yield server
