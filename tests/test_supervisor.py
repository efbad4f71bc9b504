"""`smart-assets serve --workers`: several processes that serve on one socket."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests import images
from tests.conftest import problem_of
from tests.test_cli import Server, one_sentence, run

HOLIDAY = images.jpeg(640, 480)
Serve = Callable[..., Server]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    servers = []

    def start(**environment: str) -> Server:
        servers.append(Server(tmp_path, **{"ASSETS_WORKERS": "2", "ASSETS_LOG_FORMAT": "console", **environment}))
        return servers[-1]

    yield start
    for server in servers:
        server.process.kill()
        server.process.wait()


def workers(server: Server) -> set[int]:
    """The processes that serve, as the system knows them."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
    return {int(pid) for pid in children.split()}


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def upload(server: Server) -> dict[str, str]:
    """Over a connection of its own, so that any worker may take it."""
    answer = httpx.post(f"{server.url}/api/v1/assets?sizes=100", files={"file": ("a.jpg", HOLIDAY)}, timeout=60)
    assert answer.status_code == 201, answer.text
    found: dict[str, str] = answer.json()
    return found


def ready(server: Server) -> bool:
    return httpx.get(f"{server.url}/health/ready", timeout=60).status_code == 200


def test_several_processes_serve_one_library_and_count_together(serve: Serve) -> None:
    server = serve()
    both = workers(server)
    assert len(both) == 2
    uploaded = [upload(server)["id"] for _ in range(12)]
    listed = httpx.get(f"{server.url}/api/v1/assets").json()["items"]
    assert {asset["id"] for asset in listed} == set(uploaded)
    metrics = httpx.get(f"{server.url}/metrics").text
    assert re.search(r'smart_assets_uploads_total\{outcome="ok",storage="local"\} 12\.0', metrics), metrics
    assert server.stop() == 0
    assert not any(lives(pid) for pid in both)
    assert "Traceback" not in server.text


def test_one_that_dies_is_replaced_and_the_others_go_on(serve: Serve) -> None:
    server = serve()
    first, second = workers(server)
    os.kill(first, signal.SIGKILL)
    upload(server)
    until(lambda: len(workers(server) - {first}) == 2 and "a worker died" in server.text)
    assert second in workers(server)
    upload(server)
    assert server.stop() == 0


def test_they_are_replaced_one_after_the_other_when_asked_and_what_they_counted_stays(
    serve: Serve, tmp_path: Path
) -> None:
    server = serve()
    for _ in range(6):
        upload(server)
    before = workers(server)
    os.kill(min(before), signal.SIGKILL)
    until(lambda: len(workers(server)) == 2 and "a worker died" in server.text)
    server.process.send_signal(signal.SIGHUP)
    until(lambda: ready(server) and len(workers(server)) == 2 and not workers(server) & before)
    for _ in range(6):
        upload(server)
    metrics = httpx.get(f"{server.url}/metrics").text
    assert re.search(r'smart_assets_uploads_total\{outcome="ok",storage="local"\} 12\.0', metrics), metrics
    assert re.search(r'smart_assets_upload_stage_seconds_count\{stage="commit"\} 12\.0', metrics), metrics
    until(lambda: re.search(r"^smart_assets_processes 2\.0$", httpx.get(f"{server.url}/metrics").text, re.MULTILINE))
    files = {path.stem.split("_")[-1] for path in tmp_path.glob("data/tmp/*/metrics/*.db")}
    assert files == {"dead", *(str(pid) for pid in workers(server))}
    assert server.stop() == 0


def test_callers_do_not_notice_that_they_are_replaced(serve: Serve) -> None:
    """Neither those who connect for each request nor those who keep their connection."""
    server = serve()
    replaced = threading.Event()

    def connecting() -> int:
        asked = 0
        while not replaced.is_set():
            assert ready(server)
            asked += 1
        return asked

    def keeping() -> int:
        asked = 0
        with httpx.Client(base_url=server.url, timeout=60) as client:
            while not replaced.is_set():
                answer = client.post("/api/v1/assets", files={"file": ("a.jpg", HOLIDAY)})
                assert answer.status_code == 201, answer.text
                asked += 1
        return asked

    with ThreadPoolExecutor() as threads:
        callers = [threads.submit(caller) for caller in (connecting, connecting, keeping, keeping)]
        try:
            for _ in range(2):
                before = workers(server)
                server.process.send_signal(signal.SIGHUP)
                until(lambda before=before: len(workers(server)) == 2 and not workers(server) & before)  # type: ignore[misc]
        finally:
            replaced.set()
        assert all(caller.result() for caller in callers)
    assert "a worker died" not in server.text
    assert server.stop() == 0


def test_asked_to_replace_them_while_they_start_it_first_lets_them(tmp_path: Path) -> None:
    class Impatient(Server):
        def _address(self) -> str:
            until(lambda: workers(self))
            self.first = workers(self)
            self.process.send_signal(signal.SIGHUP)
            return super()._address()

    server = Impatient(tmp_path, ASSETS_WORKERS="2")
    try:
        until(lambda: ready(server) and len(workers(server)) == 2 and not workers(server) & server.first)
        assert "a worker died" not in server.text
        assert server.stop() == 0
    finally:
        server.process.kill()
        server.process.wait()


def test_settings_one_cannot_start_with_replace_no_other(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    before = workers(server)
    (tmp_path / ".env").write_text("ASSETS_DEFAULT_STORAGE=s3\n")
    server.process.send_signal(signal.SIGHUP)
    until(lambda: server.text.count("ASSETS_S3__BUCKET") >= 2)
    assert len(workers(server) & before) == 1
    assert ready(server)
    (tmp_path / ".env").unlink()
    until(lambda: len(workers(server)) == 2 and not workers(server) & before)
    assert ready(server)
    assert server.stop() == 0


def test_none_outlives_a_supervisor_that_is_killed(serve: Serve) -> None:
    server = serve()
    both = workers(server)
    server.stop(signal.SIGKILL)
    until(lambda: not any(lives(pid) for pid in both))


def test_what_keeps_them_from_starting_is_one_sentence(tmp_path: Path) -> None:
    answer = run(tmp_path, "serve", "--port", "0", "--workers", "3", ASSETS_DEFAULT_STORAGE="s3")
    one_sentence(answer, "ASSETS_S3__BUCKET")


def test_a_storage_of_one_process_is_not_to_be_had(serve: Serve) -> None:
    server = serve()
    answer = httpx.post(f"{server.url}/api/v1/assets?storage=memory", files={"file": ("a.jpg", HOLIDAY)})
    assert "ASSETS_WORKERS=1" in problem_of(answer, 422, "storage_not_configured")["detail"]


def test_each_has_its_share_of_the_machine_unless_told(serve: Serve, tmp_path: Path) -> None:
    server = serve(ASSETS_IMAGING__WORKERS="3")
    environments = [Path(f"/proc/{pid}/environ").read_text().split("\0") for pid in workers(server)]
    assert all("ASSETS_IMAGING__WORKERS=3" in environment for environment in environments)
    server.stop()
    server = serve()
    share = max(1, (os.cpu_count() or 1) // 2)
    environments = [Path(f"/proc/{pid}/environ").read_text().split("\0") for pid in workers(server)]
    assert all(f"ASSETS_IMAGING__WORKERS={share}" in environment for environment in environments)
