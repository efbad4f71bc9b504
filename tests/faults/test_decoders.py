"""Decoders that misbehave, as callers see it: it costs one request a clear error, and the next one nothing."""

from __future__ import annotations

import os
import signal
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import images
from tests.conftest import problem_of
from tests.faults.process import ServiceProcess, audit, until, usage
from tests.faults.slow import NOISE, SLOWLY

MiB = 1024 * 1024
HOLIDAY = images.jpeg(320, 240, seed=29)


class Callers:
    """Several at once."""

    def __init__(self, service: ServiceProcess, threads: ThreadPoolExecutor) -> None:
        self._service = service
        self._threads = threads

    def uploading(self, content: bytes, **query: Any) -> Future[httpx.Response]:
        """An upload that is under way."""
        return self._threads.submit(self.upload, content, **query)

    def upload(self, content: bytes, **query: Any) -> httpx.Response:
        """An upload, by a caller of its own."""
        with self._service.client() as client:
            return client.post("/api/v1/assets", params=query, files={"file": ("a", content)})

    def all_is_well(self) -> bool:
        """Whether the next ones get their sizes, and nothing is left of those that failed."""
        answers = [self.upload(HOLIDAY, sizes="100,50") for _ in range(4)]
        return [answer.status_code for answer in answers] == [201] * 4 and audit(self._service.data) == []


Start = Callable[..., tuple[ServiceProcess, Callers]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the service, with two workers that are ready."""
    running: list[ServiceProcess] = []
    with ThreadPoolExecutor() as threads:

        def begin(**settings: str) -> tuple[ServiceProcess, Callers]:
            service = ServiceProcess(tmp_path, **{"ASSETS_IMAGING__WORKERS": "2", **settings}).__enter__()
            running.append(service)
            callers = Callers(service, threads)
            assert callers.all_is_well()
            assert len(service.workers()) == 2
            return service, callers

        yield begin
        for service in running:
            service.__exit__(None, None, None)


# ── Workers that die or hang ────────────────────────────────────────────────────────────────────────────────────────


def outcome(answers: list[Future[httpx.Response]]) -> list[int]:
    return sorted(answer.result().status_code for answer in answers)


def test_a_worker_killed_amid_a_job_costs_that_request_only(start: Start) -> None:
    service, callers = start()
    running = [callers.uploading(NOISE, **SLOWLY) for _ in range(2)]
    until(lambda: service.rendering(2))
    os.kill(service.workers()[0], signal.SIGKILL)
    beside = callers.uploading(HOLIDAY, sizes="100")
    assert outcome(running) == [201, 503]
    assert beside.result().status_code == 201
    (failed,) = (answer.result() for answer in running if answer.result().is_error)
    problem_of(failed, 503, "busy")
    assert int(failed.headers["retry-after"]) > 0
    assert callers.all_is_well()
    assert len(service.workers()) == 2


def test_all_workers_killed_at_once_cost_their_own_requests_only(start: Start) -> None:
    service, callers = start()
    running = [callers.uploading(NOISE, **SLOWLY) for _ in range(2)]
    until(lambda: service.rendering(2))
    beside = callers.uploading(HOLIDAY, sizes="100")
    for worker in service.workers():
        os.kill(worker, signal.SIGKILL)
    assert outcome(running) == [503, 503]
    assert beside.result().status_code == 201
    assert callers.all_is_well()
    assert len(service.workers()) == 2


def test_the_fork_server_killed_under_its_workers_costs_their_requests_only(start: Start) -> None:
    service, callers = start()
    running = callers.uploading(NOISE, **SLOWLY)
    until(lambda: service.rendering(1))
    os.kill(service.fork_server(), signal.SIGKILL)
    problem_of(running.result(), 503, "busy")
    assert callers.all_is_well()


def test_a_worker_that_hangs_costs_that_request_only(start: Start) -> None:
    service, callers = start(ASSETS_IMAGING__TIMEOUT_SECONDS="6", ASSETS_IMAGING__WAIT_SECONDS="60")
    before = {worker: cpu_ticks(worker) for worker in service.workers()}
    hangs = callers.uploading(NOISE, **SLOWLY)
    until(lambda: service.rendering(1))
    busy = max(before, key=lambda worker: cpu_ticks(worker) - before[worker])
    os.kill(busy, signal.SIGSTOP)
    beside = [callers.uploading(HOLIDAY, sizes="100") for _ in range(6)]
    assert outcome(beside) == [201] * 6
    assert not hangs.done()
    problem = problem_of(hangs.result(), 422, "corrupt_image")
    assert "took longer than 6 seconds" in problem["detail"]
    assert callers.all_is_well()
    assert busy not in service.workers()


def cpu_ticks(pid: int) -> int:
    """How long it has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


# ── Bombs ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def png(width: int, height: int, rows: bytes, *, interlaced: bool = False) -> bytes:
    """One bit a pixel."""
    return images.png_from_rows(width, height, rows, bits=1, colour_type=0, interlaced=interlaced)


def gif(side: int, frames: int) -> bytes:
    """Frames of one pixel each on a large canvas."""
    head = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + b"\x00\x00\x00\xff\xff\xff"
    frame = b"\x21\xf9\x04\x00\x05\x00\x00\x00\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return head + frame * frames + b"\x3b"


def with_profile(picture: bytes, size: int) -> bytes:
    """The PNG with a colour profile that comes to so many bytes."""
    profile = images.png_chunk(b"iCCP", b"bomb\0\0" + zlib.compress(bytes(size), 9))
    return picture[:33] + profile + picture[33:]


REFUSED: dict[str, Callable[[], bytes]] = {
    "3.6 gigapixels in 80 bytes": lambda: png(60_000, 60_000, bytes(100)),
    "a GIF of 100,000 frames": lambda: gif(2000, 100_000),
    "a GIF of 63 frames of 4 megapixels": lambda: gif(2000, 63),
    "a JPEG of 65500x65500": lambda: images.jpeg(16, 16).replace(
        struct.pack(">HH", 16, 16), struct.pack(">HH", 65_500, 65_500), 1
    ),
}
TAKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "100 megapixels in 13 KB": (lambda: png(10_000, 10_000, bytes(1251 * 10_000)), "100"),
    "the same, interlaced": (lambda: png(10_000, 10_000, bytes(2_600 * 10_000), interlaced=True), "100"),
    "the same in five large sizes": (lambda: png(10_000, 10_000, bytes(1251 * 10_000)), "5000,4000,3000,2000,1000"),
    "a profile of 500 MB": (lambda: with_profile(images.png(64, 48), 500_000_000), "20"),
    "a GIF of 62 frames of 4 megapixels": (lambda: gif(2000, 62), "100"),
}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service whose workers may take 512 MiB each, for all the bombs."""
    settings = {"ASSETS_IMAGING__WORKERS": "2", "ASSETS_IMAGING__WORKER_MEMORY_BYTES": str(512 * MiB)}
    with ServiceProcess(tmp_path_factory.mktemp("bombs"), **settings) as service:
        yield service


@pytest.mark.parametrize("bomb", REFUSED)
def test_a_decompression_bomb_is_refused_by_its_header(guarded: ServiceProcess, bomb: str) -> None:
    with ThreadPoolExecutor() as threads:
        callers = Callers(guarded, threads)
        problem_of(callers.upload(REFUSED[bomb](), sizes="100"), 422, "too_many_pixels")
        assert callers.all_is_well()


@pytest.mark.parametrize("bomb", TAKEN)
def test_a_large_image_in_a_small_file_takes_no_more_than_a_worker_may(guarded: ServiceProcess, bomb: str) -> None:
    make, sizes = TAKEN[bomb]
    with ThreadPoolExecutor() as threads:
        callers = Callers(guarded, threads)
        assert callers.all_is_well()
        idle = most = usage(guarded.pid).memory
        running = callers.uploading(make(), sizes=sizes)
        beside = callers.uploading(HOLIDAY, sizes="100")
        while not running.done():
            most = max(most, usage(guarded.pid).memory)
            time.sleep(0.01)
        answer = running.result()
        if answer.is_error:
            problem_of(answer, 422, "too_many_pixels")
        assert beside.result().status_code == 201
        assert most - idle < 600 * MiB
        assert callers.all_is_well()


# ── Admission ───────────────────────────────────────────────────────────────────────────────────────────────────────


def held_up(start: Start, **settings: str) -> tuple[ServiceProcess, Callers]:
    """A service whose workers are ready, and stopped: what they are given stays in work."""
    service, callers = start(**settings)
    for worker in service.workers():
        os.kill(worker, signal.SIGSTOP)
    return service, callers


def let_go(service: ServiceProcess) -> None:
    for worker in service.workers():
        os.kill(worker, signal.SIGCONT)


def memory_in_work(service: ServiceProcess) -> float:
    return service.metric("smart_assets_render_memory_bytes")


def test_past_the_memory_budget_a_request_waits_briefly_and_is_then_told_to_come_back(start: Start) -> None:
    large = images.jpeg(3000, 2000, seed=30, progressive=True)
    budget = {"ASSETS_IMAGING__MEMORY_BUDGET_BYTES": str(100 * MiB), "ASSETS_IMAGING__WAIT_SECONDS": "0.5"}
    service, callers = held_up(start, **budget)
    first = callers.uploading(large, sizes="1000")
    until(lambda: memory_in_work(service) > 50 * MiB)
    refused = callers.upload(large, sizes="1000")
    problem_of(refused, 503, "busy")
    assert int(refused.headers["retry-after"]) > 0
    assert callers.upload(HOLIDAY).status_code == 201, "what needs no rendering waits for nobody"
    let_go(service)
    assert first.result().status_code == 201
    assert callers.upload(large, sizes="1000").status_code == 201
    assert callers.all_is_well()
    assert memory_in_work(service) == 0


def test_a_request_that_waits_for_room_gets_it_in_time(start: Start) -> None:
    large = images.jpeg(3000, 2000, seed=30, progressive=True)
    budget = {"ASSETS_IMAGING__MEMORY_BUDGET_BYTES": str(100 * MiB), "ASSETS_IMAGING__WAIT_SECONDS": "60"}
    service, callers = held_up(start, **budget)
    first = callers.uploading(large, sizes="1000")
    until(lambda: memory_in_work(service) > 50 * MiB)
    in_work = memory_in_work(service)
    second = callers.uploading(large, sizes="1000")
    until(lambda: service.metric('smart_assets_upload_stage_seconds_count{stage="probe"}') >= 6)
    assert memory_in_work(service) == in_work, "one at a time"
    assert not first.done()
    assert not second.done()
    let_go(service)
    assert [first.result().status_code, second.result().status_code] == [201, 201]


@pytest.mark.parametrize(
    ("progressive", "fit_beside_each_other"), [(False, True), (True, False)], ids=["baseline", "progressive"]
)
def test_a_progressive_jpeg_counts_as_what_it_takes(
    start: Start, progressive: bool, fit_beside_each_other: bool
) -> None:
    """Its decoder holds every coefficient at once: 6 bytes a pixel; a baseline one's holds some rows."""
    picture = images.jpeg(4000, 3000, seed=31, progressive=progressive)
    budget = {"ASSETS_IMAGING__MEMORY_BUDGET_BYTES": str(200 * MiB), "ASSETS_IMAGING__WAIT_SECONDS": "1"}
    service, callers = held_up(start, **budget)
    running = [callers.uploading(picture, sizes="200") for _ in range(2)]
    if fit_beside_each_other:
        until(lambda: memory_in_work(service) > 90 * MiB, of="two in work")
        assert memory_in_work(service) < 110 * MiB
    else:
        until(lambda: any(answer.done() for answer in running), of="the second's refusal")
        assert 6 * 4000 * 3000 < memory_in_work(service) < 200 * MiB
    let_go(service)
    assert outcome(running) == ([201, 201] if fit_beside_each_other else [201, 503])
