"""A catalogue that another process keeps locked, or that is not there any more."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests import images
from tests.conftest import problem_of
from tests.faults.process import COMMAND, ServiceProcess, audit, objects, until

HOLIDAY = images.jpeg(320, 240, seed=25)
KEEP_LOCKED = """
import sqlite3, sys
catalogue = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
catalogue.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked(data: Path) -> Iterator[None]:
    """Another process in the middle of a transaction that does not end."""
    command = [sys.executable, "-c", KEEP_LOCKED, str(data / "catalogue.sqlite3")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        try:
            yield
        finally:
            holder.kill()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServiceProcess]:
    with ServiceProcess(tmp_path, ASSETS_LEASE_SECONDS="1") as service:
        yield service


@pytest.fixture
def client(service: ServiceProcess) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


def upload(client: httpx.Client, **query: str) -> httpx.Response:
    return client.post("/api/v1/assets", params=query, files={"file": ("a.jpg", HOLIDAY)})


def test_a_catalogue_that_is_locked_for_a_while_is_waited_for(service: ServiceProcess, client: httpx.Client) -> None:
    kept = upload(client, visibility="private").json()
    with ThreadPoolExecutor() as threads:
        # Longer than the lease: no sign of life comes through, and nobody is taken for dead because of it.
        with locked(service.data):
            waiting = [threads.submit(upload, client, sizes="50") for _ in range(4)]
            waiting.append(threads.submit(client.delete, f"/api/v1/assets/{kept['id']}"))
            assert client.get(f"/api/v1/assets/{kept['id']}").json() == kept, "reading goes on"
            assert client.get(kept["url"]).content == HOLIDAY
            with pytest.raises(TimeoutError):
                waiting[0].result(3)
            assert objects(service.data).keys() == {kept["url"].split("/assets/")[1].partition("?")[0]}
        assert [answer.result().status_code for answer in waiting] == [201, 201, 201, 201, 204]
    assert audit(service.data) == []


def test_a_catalogue_that_stays_locked_is_busy_and_nothing_is_left(
    service: ServiceProcess, client: httpx.Client
) -> None:
    kept = upload(client, visibility="private").json()
    url = f"/api/v1/assets/{kept['id']}"
    with locked(service.data), ThreadPoolExecutor() as threads:
        changes = [
            threads.submit(upload, client, sizes="50"),
            threads.submit(client.patch, url, json={"visibility": "public"}),
            threads.submit(client.delete, url),
        ]
        for change in changes:
            answer = change.result()
            problem_of(answer, 503, "busy")
            assert int(answer.headers["retry-after"]) > 0
        assert client.get(kept["url"]).content == HOLIDAY
    until(lambda: audit(service.data) == [])
    assert client.get(url).json() == kept
    assert upload(client).status_code == 201


def test_a_catalogue_that_is_gone_confirms_nothing(service: ServiceProcess, client: httpx.Client) -> None:
    """A file that was removed can still be written to by who has it open; nobody else would ever see that."""
    kept = upload(client).json()
    url = f"/api/v1/assets/{kept['id']}"
    elsewhere = service.folder / "elsewhere"
    elsewhere.mkdir()
    files = list(service.data.glob("catalogue.sqlite3*"))
    for file in files:
        file.rename(elsewhere / file.name)
    for answer in (upload(client), client.patch(url, json={"filename": "new.jpg"}), client.delete(url)):
        problem_of(answer, 503, "busy")
    assert client.get("/health/ready").status_code == 503
    assert client.get("/health/live").status_code == 200
    assert client.get(kept["url"]).content == HOLIDAY, "the file itself decides"
    assert len(objects(service.data)) == 1
    for file in files:
        (elsewhere / file.name).rename(file)
    until(lambda: client.get("/health/ready").status_code == 200)
    assert client.get(url).json() == kept
    assert upload(client).status_code == 201
    assert audit(service.data) == []


def test_a_catalogue_that_is_none_is_said_at_the_start_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    catalogue = tmp_path / "data" / "catalogue.sqlite3"
    catalogue.write_bytes(b"This is not a database. " * 1000)
    before = catalogue.read_bytes()
    started = subprocess.run(
        [*COMMAND, "serve", "--port", "0"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert started.returncode == 1
    (sentence,) = started.stderr.strip().splitlines()
    assert "ASSETS_DATABASE_URL" in sentence
    assert catalogue.read_bytes() == before
