"""What the service is measured against, started: servers, and engines that make sizes.

Each raises NotThere where it is not installed.
"""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.machine import ENVIRONMENT, ROOT, NotThere, find, pinned
from benchmarks.servers import Server, free_port, serving

SHARP = ENVIRONMENT / "sharp" / "node_modules"
THUMBOR = ENVIRONMENT / "thumbor" / "bin" / "thumbor"

_NGINX = """\
{user}
worker_processes 1;
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  types {{ image/jpeg jpg; image/png png; }}
  access_log off;
  sendfile on;
  tcp_nopush on;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    root {files};
    location = /ready {{ return 200; }}
  }}
}}
"""

_THUMBOR = """\
LOADER = "thumbor.loaders.file_loader"
FILE_LOADER_ROOT_PATH = "{files}"
STORAGE = "thumbor.storages.no_storage"
QUALITY = 80
"""


@contextmanager
def naive(folder: Path, *, on: int) -> Iterator[Server]:
    """`UploadFile` and StaticFiles, over a folder."""
    environment = {"NAIVE_FOLDER": str(folder)}
    port = free_port()
    command = _uvicorn("benchmarks.naive:app", port)
    with serving(
        "naive", command, port, on=on, log=folder / "log", ready="/openapi.json", environment=environment, files=folder
    ) as server:
        yield server


@contextmanager
def least(folder: Path, *, on: int) -> Iterator[Server]:
    """The least code that does what an upload promises."""
    port = free_port()
    with serving(
        "least code",
        _uvicorn("benchmarks.least:app", port),
        port,
        on=on,
        log=folder / "log",
        ready="/openapi.json",
        environment={"LEAST_FOLDER": str(folder)},
        files=folder,
    ) as server:
        yield server


@contextmanager
def filestore(folder: Path, *, on: int) -> Iterator[Server]:
    """filestore with its LocalEngine."""
    if find_spec("filestore") is None:
        raise NotThere("filestore (`make bench` installs it)")
    environment = {"FILESTORE_FOLDER": str(folder)}
    port = free_port()
    command = _uvicorn("benchmarks.filestored:app", port)
    with serving(
        "filestore",
        command,
        port,
        on=on,
        log=folder / "log",
        ready="/openapi.json",
        environment=environment,
        files=folder,
    ) as server:
        yield server


def _uvicorn(app: str, port: int) -> list[str]:
    return [sys.executable, "-m", "uvicorn", app, "--port", str(port), "--no-access-log", "--log-level", "warning"]


@contextmanager
def nginx(folder: Path, files: Path, *, on: int) -> Iterator[Server]:
    """nginx with one worker, as Debian sets it up: sendfile, no cache of open files. Serves what is in `files`."""
    program, port = find("nginx", "Debian: apt-get install nginx-light"), free_port()
    # Started by root it would serve as somebody who may not look into this folder.
    user = "user root;" if os.geteuid() == 0 else ""
    configuration = folder / "nginx.conf"
    configuration.write_text(_NGINX.format(user=user, folder=folder, port=port, files=files))
    command = [program, "-p", str(folder), "-c", str(configuration), "-e", str(folder / "error.log")]
    with serving("nginx", command, port, on=on, log=folder / "log", ready="/ready") as server:
        yield server


@contextmanager
def gateway(folder: Path, service: Server, *, on: int) -> Iterator[Server]:
    """nginx as it is shipped in front of the service, with one worker: it has the local files, logs each request."""
    program, port = find("nginx", "Debian: apt-get install nginx-light"), free_port()
    assert service.files is not None
    environment = {
        "PATH": f"{Path(program).parent}:{os.environ.get('PATH', os.defpath)}",
        "GATEWAY_LISTEN": f"127.0.0.1:{port}",
        "GATEWAY_SERVICE": service.url.removeprefix("http://"),
        "GATEWAY_FILES": str(service.files / "assets"),
        "GATEWAY_RUN": str(folder),
        "GATEWAY_USER": getpass.getuser(),
        "GATEWAY_WORKERS": "1",
    }
    command = [str(ROOT / "deploy/nginx/start")]
    with serving(
        "gateway", command, port, on=on, log=folder / "log", ready="/health/live", environment=environment
    ) as server:
        yield server


@contextmanager
def thumbor(folder: Path, files: Path, *, on: int) -> Iterator[Server]:
    """thumbor, which makes a size each time it is asked for one, of what is in `files`."""
    if not THUMBOR.exists():
        raise NotThere("thumbor (`make bench` installs it where this Python can)")
    configuration, port = folder / "thumbor.conf", free_port()
    configuration.write_text(_THUMBOR.format(files=files))
    command = [str(THUMBOR), "--ip", "127.0.0.1", "--port", str(port), "--conf", str(configuration)]
    with serving("thumbor", command, port, on=on, log=folder / "log", ready="/healthcheck") as server:
        yield server


class Engine:
    """A program that makes sizes, one order after another, and says what each took."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Over a program that reads orders, and writes answers, as lines of JSON."""
        self._process = process

    def make(self, source: Path, sizes: Sequence[int], format_: str, into: Path, **more: Any) -> dict[str, Any]:
        """The widths `sizes` of an image, written `into` a folder.

        `cpu_ms` and `wall_ms` are what that took, `files` what was written, in order.
        """
        order = {"source": str(source), "sizes": list(sizes), "format": format_, "into": str(into), **more}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"an engine ended: {self._process.args!r}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def our_engine(*, on: int) -> Iterator[Engine]:
    """The service's own, in a process of its own with one thread."""
    with _engine([sys.executable, "-m", "benchmarks.engine"], on, {"VIPS_CONCURRENCY": "1"}) as engine:
        yield engine


@contextmanager
def sharp(*, on: int) -> Iterator[Engine]:
    """sharp, each size from the original, with one thread and no cache."""
    node = find("node", "`make bench` brings one along")
    if not SHARP.exists():
        raise NotThere("sharp (`make bench` installs it with npm)")
    with _engine([node, str(ROOT / "benchmarks" / "sharp.js")], on, {"NODE_PATH": str(SHARP)}) as engine:
        yield engine


@contextmanager
def _engine(command: list[str], on: int, environment: Mapping[str, str]) -> Iterator[Engine]:
    with pinned(on):
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    with process:
        yield Engine(process)
        process.communicate()  # its orders end, and so does it
