"""A service that is asked to stop in the middle of uploads: each is finished or fails whole, and nothing stays."""

from __future__ import annotations

import signal
import socket
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests import images
from tests.conftest import problem_of
from tests.faults.process import ServiceProcess, audit, rows, states, temporary_files, until
from tests.faults.slow import NOISE, SLOWLY

LARGE = images.jpeg(640, 480, seed=27) + bytes(2_000_000)
SMALL = images.jpeg(160, 120, seed=28)
PATIENT = {
    "ASSETS_IMAGING__WORKERS": "2",
    "ASSETS_IMAGING__WAIT_SECONDS": "60",
    "ASSETS_SHUTDOWN_SECONDS": "60",
}
HEAD = (
    "POST /api/v1/assets HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
    f"Content-Length: {len(LARGE)}\r\n\r\n"
).encode()


def render(service: ServiceProcess, number: int) -> httpx.Response:
    with service.client() as client:
        headers = {"Idempotency-Key": str(number)}
        return client.post("/api/v1/assets", params=SLOWLY, headers=headers, files={"file": ("a.png", NOISE)})


def batch(service: ServiceProcess) -> httpx.Response:
    with service.client() as client:
        files = [("files", (f"{number}.png", NOISE)) for number in range(3)]
        return client.post("/api/v1/assets/batch", params={"sizes": "20,300", "format": "avif"}, files=files)


@pytest.mark.parametrize("group", [False, True], ids=["the service", "it and its workers"])
def test_asked_to_stop_it_finishes_every_upload_that_has_begun(tmp_path: Path, group: bool) -> None:
    with ServiceProcess(tmp_path, **PATIENT) as service, ThreadPoolExecutor() as threads:
        running: list[Future[httpx.Response]] = [threads.submit(render, service, number) for number in range(3)]
        running.append(threads.submit(batch, service))
        with socket.create_connection(service.address) as connection:
            connection.sendall(HEAD + LARGE[:1_500_000])
            until(lambda: service.rendering(2) and len(temporary_files(service.data)) > 5)
            service.signal(signal.SIGTERM, group=group)
            until(lambda: refuses(service), of="the end of listening")
            connection.sendall(LARGE[1_500_000:])
            assert connection.recv(100).startswith(b"HTTP/1.1 201")
        assert [answer.result().status_code for answer in running] == [201, 201, 201, 201]
        assert service.wait() == 0
    assert states(service.data) == {"ready": 7}
    assert audit(service.data, stopped=True) == []
    assert "Traceback" not in service.text


def refuses(service: ServiceProcess) -> bool:
    try:
        socket.create_connection(service.address).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        return False  # in the moment of its end: ask again
    return False


def test_what_does_not_finish_in_its_time_fails_whole(tmp_path: Path) -> None:
    settings = {"ASSETS_IMAGING__WORKERS": "1", "ASSETS_SHUTDOWN_SECONDS": "0"}
    with ServiceProcess(tmp_path, **settings) as service, ThreadPoolExecutor() as threads:
        with service.client() as client:
            kept = client.post("/api/v1/assets", files={"file": ("a.jpg", LARGE)}).json()["id"]
        running = [threads.submit(render, service, number) for number in range(3)]
        running.append(threads.submit(batch, service))
        with socket.create_connection(service.address) as connection:
            connection.sendall(HEAD + LARGE[:1_500_000])
            until(lambda: service.rendering(1) and len(temporary_files(service.data)) > 5)
            service.signal(signal.SIGTERM)
            assert service.wait() == 0
        for answer in running:
            problem_of(answer.result(), 503, "busy")
            assert answer.result().headers["retry-after"]
    assert [row["id"] for row in rows(service.data)] == [kept.replace("-", "")]
    assert audit(service.data, stopped=True) == []
    with ServiceProcess(tmp_path) as again:
        # The keys of what failed are free.
        assert render(again, 0).status_code == 201


def test_stopped_at_any_moment_every_answer_is_true(tmp_path: Path) -> None:
    """Short uploads without a pause, so that the signal meets each step of some."""

    def upload_until_refused(service: ServiceProcess, number: int) -> Counter[int]:
        seen: Counter[int] = Counter()
        with service.client() as client:
            try:
                while True:
                    query = {"sizes": "40,20"} if number % 2 else {}
                    answer = client.post("/api/v1/assets", params=query, files={"file": ("a.jpg", SMALL)})
                    seen[answer.status_code] += 1
            except httpx.TransportError:
                return seen

    confirmed = 0
    for moment in (5, 60):
        with ServiceProcess(tmp_path, ASSETS_SHUTDOWN_SECONDS="1") as service, ThreadPoolExecutor() as threads:
            callers = [threads.submit(upload_until_refused, service, number) for number in range(6)]
            until(lambda wanted=moment + confirmed: len(rows(tmp_path / "data")) > wanted)  # type: ignore[misc]
            assert service.stop() == 0
            seen: Counter[int] = sum((caller.result() for caller in callers), Counter())
        assert seen.keys() <= {201, 503}
        confirmed += seen[201]
        assert states(service.data) == {"ready": confirmed}
        assert audit(service.data, stopped=True) == []
