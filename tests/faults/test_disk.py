"""A disk that is full: whatever it meets, it costs that request a clear error, and nothing half made stays."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests import images
from tests.conftest import problem_of
from tests.faults.process import ServiceProcess, audit, until

MB = 1_000_000
HOLIDAY = images.jpeg(320, 240, seed=24)
DISK_MB = 24


def noise() -> bytes:
    """A JPEG of 1.4 MB that comes to 9 MB as a PNG."""
    buffer = io.BytesIO()
    Image.effect_noise((2000, 1500), 90).convert("RGB").save(buffer, "JPEG", quality=60)
    return buffer.getvalue()


class SmallDisk:
    """A data directory on a disk of its own, which others fill too."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._others = path / "of-others"

    def fill(self, *, leave: int) -> None:
        """Let others take all but `leave` bytes."""
        disk = os.statvfs(self.path)
        # What the service itself took since then is not to be had any more: as full as it gets.
        with suppress(OSError), self._others.open("ab", buffering=0) as file:
            file.write(bytes(max(disk.f_bavail * disk.f_frsize - leave, 0)))

    def empty(self) -> None:
        """Let others give back what they took."""
        self._others.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk takes root")
    path = tmp_path / "data"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", path], check=False)
    if mounted.returncode:
        if "CI" in os.environ:
            pytest.fail("no small disk can be mounted here; on CI that is not skipped")
        pytest.skip("no small disk can be mounted here")
    yield SmallDisk(path)
    # The service has ended; the process that started its workers may take a moment longer.
    until(lambda: subprocess.run(["umount", path], check=False).returncode == 0, of="the disk's end")


@pytest.fixture
def service(disk: SmallDisk, tmp_path: Path) -> Iterator[ServiceProcess]:
    with ServiceProcess(tmp_path, ASSETS_LEASE_SECONDS="1") as service:
        yield service


@pytest.fixture
def client(service: ServiceProcess) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


def upload(client: httpx.Client, content: bytes, **query: str) -> httpx.Response:
    return client.post("/api/v1/assets", params=query, files={"file": ("a.jpg", content)})


def test_a_disk_that_fills_up_while_a_body_comes_in_keeps_nothing_of_it(
    disk: SmallDisk, service: ServiceProcess, client: httpx.Client
) -> None:
    disk.fill(leave=6 * MB)
    body = noise() + bytes(7 * MB)
    problem_of(upload(client, body), 507, "storage_full")
    batch = [("files", (f"{number}.jpg", noise() + bytes(MB))) for number in range(4)]
    problem_of(client.post("/api/v1/assets/batch", files=batch), 507, "storage_full")
    assert audit(service.data) == []
    disk.empty()
    assert upload(client, body).status_code == 201


def test_a_disk_that_fills_up_while_sizes_are_made_fails_all_or_just_those_sizes(
    disk: SmallDisk, service: ServiceProcess, client: httpx.Client
) -> None:
    disk.fill(leave=6 * MB)
    problem_of(upload(client, noise(), sizes="2000,50", format="png"), 507, "storage_full")
    assert audit(service.data) == []
    assert client.get("/api/v1/assets").json()["items"] == []
    made = upload(client, noise(), sizes="2000,50", format="png", atomic="false")
    assert made.status_code == 201
    assert [(failed["size"], failed["code"]) for failed in made.json()["failed"]] == [("2000", "storage_full")]
    assert [variant["size"] for variant in made.json()["variants"]] == ["50"]
    assert audit(service.data) == []


def test_a_disk_without_a_byte_left_refuses_every_change_and_goes_on_reading(
    disk: SmallDisk, service: ServiceProcess, client: httpx.Client
) -> None:
    kept = upload(client, HOLIDAY, sizes="100").json()
    url = f"/api/v1/assets/{kept['id']}"
    disk.fill(leave=0)
    refused = [
        upload(client, HOLIDAY),
        client.post("/api/v1/assets", headers={"Idempotency-Key": "k"}, files={"file": ("a.jpg", HOLIDAY)}),
        client.patch(url, json={"metadata": {"much": "x" * 16_000}}),
        client.patch(url, json={"visibility": "private"}),
        client.delete(url),
    ]
    for answer in refused:
        problem_of(answer, 507, "storage_full")
    assert client.get("/health/ready").status_code != 200
    assert client.get("/health/live").status_code == 200
    assert client.get(url).json() == kept
    for shown in (kept, *kept["variants"]):
        assert client.get(shown["url"]).status_code == 200
    # The catalogue cannot take even the sign of life: nobody is taken for dead because of it.
    until(lambda: "background work failed" in service.text)
    disk.empty()
    until(lambda: client.get("/health/ready").status_code == 200)
    assert client.get(url).json() == kept
    assert client.delete(url).status_code == 204
    again = client.post("/api/v1/assets", headers={"Idempotency-Key": "k"}, files={"file": ("a.jpg", HOLIDAY)})
    assert again.status_code == 201
    assert "idempotency-replayed" not in again.headers
    assert audit(service.data) == []
    assert service.stop() == 0
    assert audit(service.data, stopped=True) == []


def test_several_processes_over_a_disk_without_a_byte_left_live_on(disk: SmallDisk, tmp_path: Path) -> None:
    with ServiceProcess(tmp_path, ASSETS_WORKERS="2") as service, service.client() as client:
        kept = upload(client, HOLIDAY).json()
        disk.fill(leave=0)
        # Each is a new line of metrics, for which each process had a file to grow.
        for path in ("/health/live", "/api/v1/storages", "/api/v1/nothing", "/docs", "/openapi.json", "/metrics"):
            for _ in range(4):
                with service.client() as anew:  # so that either takes some
                    assert anew.get(path).status_code in {200, 404}
                    assert anew.post(path).status_code in {404, 405}
        with service.client() as anew:
            assert anew.get(kept["url"]).status_code == 200
            problem_of(upload(anew, HOLIDAY), 507, "storage_full")
        assert "a worker died" not in service.text
