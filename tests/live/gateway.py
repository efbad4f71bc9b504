"""The gateway that is shipped: nginx, started as its container starts it, in front of whatever service a test has."""

from __future__ import annotations

import json
import os
import pwd
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.faults.process import PATIENCE
from tests.live.process import answers, free_port, server_process, unavailable

START = Path(__file__).parents[2] / "deploy/nginx/start"
ACCEL_REDIRECT = "/_bytes"
"""What a service is told that has such a gateway."""

# Not everybody has it on the PATH.
_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"


@dataclass(frozen=True)
class Gateway:
    """Where it listens, and the directory it writes to."""

    port: int
    run: Path
    log: Path

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return "127.0.0.1", self.port

    def client(self, **headers: str) -> httpx.Client:
        """Whoever calls it."""
        return httpx.Client(base_url=self.url, timeout=PATIENCE, trust_env=False, headers=headers)

    def requests(self) -> list[Any]:
        """What it has written of each request so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def kept(self) -> int:
        """How many bytes of bodies and answers it has on its disk."""
        return sum(path.stat().st_size for name in ("body", "proxy") for path in (self.run / name).rglob("*"))


@contextmanager
def gateway(folder: Path, service: str, files: Path, **settings: str) -> Iterator[Gateway]:
    """A gateway in front of `service` (host and port), with the files of its local storage in `files`."""
    if shutil.which("nginx", path=_PATH) is None:
        unavailable("there is no nginx: `apt-get install nginx-light` brings one")
    found = Gateway(free_port(), folder, folder / "log")
    folder.mkdir()
    environment = {
        "PATH": _PATH,
        "GATEWAY_LISTEN": f"127.0.0.1:{found.port}",
        "GATEWAY_SERVICE": service,
        "GATEWAY_FILES": str(files),
        "GATEWAY_RUN": str(folder),
        # Who starts it may look into this folder, and hardly anybody else.
        "GATEWAY_USER": pwd.getpwuid(os.geteuid()).pw_name,
        **settings,
    }
    with server_process([START], lambda: answers(found.port), log=found.log, environment=environment):
        yield found
