"""Callers that go away in the middle: of what they did not send, or did not wait for, nothing half stays."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import images
from tests.faults.process import ServiceProcess, audit, leaves_nothing, rows, settled, temporary_files, until
from tests.faults.slow import NOISE

HOLIDAY = images.jpeg(640, 480, seed=26) + bytes(3_000_000)  # more than is kept in memory
BOUNDARY = "----------------boundary"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServiceProcess]:
    with ServiceProcess(tmp_path, ASSETS_LEASE_SECONDS="1") as service:
        yield service


def form(*files: bytes) -> bytes:
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="{number}.jpg"\r\n\r\n'.encode() + file
        for number, file in enumerate(files)
    ]
    return b"\r\n".join([*parts, f"--{BOUNDARY}--\r\n".encode()])


def request(body: bytes, kind: str, path: str = "/api/v1/assets", *lines: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join([*head, "", ""]).encode() + body


BODIES = (
    request(HOLIDAY, "image/jpeg"),
    request(form(HOLIDAY, HOLIDAY), f"multipart/form-data; boundary={BOUNDARY}", "/api/v1/assets/batch"),
)


def hang_up(connection: socket.socket, how: str) -> None:
    """End it: `closed` says goodbye, `reset` does not, `half` goes on listening."""
    if how == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if how == "half":
        connection.shutdown(socket.SHUT_WR)
    else:
        connection.close()


@pytest.mark.parametrize("how", ["closed", "reset", "half"])
def test_a_client_gone_in_the_middle_of_its_body_leaves_nothing(service: ServiceProcess, how: str) -> None:
    connections = []
    for whole in BODIES:
        for sent in (100, 500_000, len(whole) // 2, len(whole) - 1):
            connection = socket.create_connection(service.address)
            connection.sendall(whole[:sent])
            connections.append(connection)
    until(lambda: len(temporary_files(service.data)) >= 4, of="their bodies on the disk")
    for connection in connections:
        hang_up(connection, how)
    until(lambda: not temporary_files(service.data), of="their end")
    for connection in connections:
        connection.close()
    with service.client() as client:
        assert client.post("/api/v1/assets", content=HOLIDAY, headers={"Content-Type": "image/jpeg"}).status_code == 201
    assert len(rows(service.data)) == 1
    assert service.stop() == 0
    assert audit(service.data, stopped=True) == []


def test_a_client_gone_in_the_middle_frees_its_idempotency_key(service: ServiceProcess) -> None:
    whole = request(HOLIDAY, "image/jpeg", "/api/v1/assets", "Idempotency-Key: k")
    with socket.create_connection(service.address) as connection:
        connection.sendall(whole[:2_000_000])
        until(lambda: temporary_files(service.data))
        with service.client() as client:
            headers = {"Content-Type": "image/jpeg", "Idempotency-Key": "k"}
            busy = client.post("/api/v1/assets", content=HOLIDAY, headers=headers)
            assert (busy.status_code, busy.json()["code"]) == (409, "idempotency_in_progress")
    until(lambda: not temporary_files(service.data))
    with service.client() as client:
        until(lambda: client.post("/api/v1/assets", content=HOLIDAY, headers=headers).status_code == 201)
    assert len(rows(service.data)) == 1
    assert audit(service.data) == []


@pytest.mark.parametrize("how", ["closed", "reset"])
def test_a_client_gone_before_its_answer_has_all_of_its_upload_or_nothing(service: ServiceProcess, how: str) -> None:
    connections = []
    for _ in range(3):
        connection = socket.create_connection(service.address)
        connection.sendall(request(NOISE, "image/png", "/api/v1/assets?sizes=20,400&format=avif"))
        connections.append(connection)
    until(lambda: service.rendering(1))
    for connection in connections:
        hang_up(connection, how)
    until(lambda: settled(service.data), of="the end of its uploads")
    assert audit(service.data) == []
    for row in rows(service.data):
        assert len(json.loads(row["variants"])) == 2


def test_a_client_gone_while_it_is_sent_an_image_costs_nobody_anything(service: ServiceProcess) -> None:
    with service.client() as client:
        headers = {"Content-Type": "image/jpeg"}
        url = client.post("/api/v1/assets", content=HOLIDAY + bytes(20_000_000), headers=headers).json()["url"]
        path = url.removeprefix(service.url)
        before = service.open_files()
        for _ in range(20):
            with socket.create_connection(service.address) as connection:
                connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                assert connection.recv(1000).startswith(b"HTTP/1.1 200")
                hang_up(connection, "reset")
        until(lambda: service.open_files() <= before, of="the end of what was opened")
        assert len(client.get(url).content) == len(HOLIDAY) + 20_000_000
        assert client.delete(f"/api/v1/assets/{url.split('/')[-1].partition('.')[0]}").status_code == 204
    assert leaves_nothing(service.data)
