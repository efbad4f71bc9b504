"""The rendering workers: what goes wrong in one costs one request, and nothing outlives the service."""

from __future__ import annotations

import asyncio
import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager, closing
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import pebble
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from prometheus_client import REGISTRY

import smart_assets.imaging.workers as module
from smart_assets.errors import Busy, CorruptImage, SmartAssetsError, TooManyPixels
from smart_assets.formats import ImageFormat
from smart_assets.imaging.budget import MemoryBudget
from smart_assets.imaging.info import ImageInfo
from smart_assets.imaging.jobs import RenderJob, Rendition
from smart_assets.imaging.sizes import RenderOptions, Size, parse_sizes
from smart_assets.imaging.workers import RenderPool, estimate_memory
from smart_assets.scratch import ScratchDirectory
from smart_assets.settings import ImagingSettings
from tests import images

MakeJob = Callable[[], RenderJob]
Pids = Callable[[], set[int]]

MiB = 1024 * 1024
SIDE = 1800
"""Of the square of noise whose AVIF takes a worker some seconds."""


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("noise") / "noise.png"
    Image.effect_noise((SIDE, SIDE), 90).save(path, compress_level=1)
    return path


@pytest.fixture
def quick(tmp_path: Path) -> MakeJob:
    """Makes jobs of some milliseconds."""
    source = tmp_path / "source.jpg"
    source.write_bytes(images.jpeg(320, 240))
    info = ImageInfo(ImageFormat.JPEG, 320, 240)
    return lambda: RenderJob(source, info, parse_sizes(["20,40"], {}, 20), RenderOptions(), False, tmp_path)


@pytest.fixture
def slow(noise: Path, tmp_path: Path) -> MakeJob:
    """Makes jobs of some seconds, whose first size is written long before the second."""
    info, options = ImageInfo(ImageFormat.PNG, SIDE, SIDE), RenderOptions(format=ImageFormat.AVIF)
    return lambda: RenderJob(noise, info, parse_sizes([f"20,{SIDE}"], {}, 20), options, False, tmp_path)


@asynccontextmanager
async def pool_of(**settings: float) -> AsyncIterator[RenderPool]:
    imaging = ImagingSettings(**{"workers": 1, **settings})
    with (
        TemporaryDirectory() as directory,
        closing(MemoryBudget(imaging.memory_budget_bytes, Path(directory))) as budget,
    ):
        pool = RenderPool(imaging, budget)
        try:
            yield pool
        finally:
            await pool.close()


def children() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid}


@pytest.fixture
def workers() -> Pids:
    """Tells the ids of the worker processes that the test has started."""
    others = children()
    return lambda: children() - others


def restarts_so_far() -> float | None:
    return REGISTRY.get_sample_value("smart_assets_render_pool_restarts_total")


def memory_in_use() -> float | None:
    return REGISTRY.get_sample_value("smart_assets_render_memory_bytes")


async def until(happened: Callable[[], object]) -> None:
    with anyio.fail_after(60):
        while not happened():
            await anyio.sleep(0.01)


async def begun(job: RenderJob) -> None:
    """Wait until the job has written its first size."""
    await until(lambda: job.output(0).exists() and job.output(0).stat().st_size)


def outputs(job: RenderJob) -> list[Path]:
    return [path for path in job.directory.iterdir() if path.name.startswith(job.id)]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


async def test_workers_start_with_the_first_job_and_end_with_the_pool(quick: MakeJob, workers: Pids) -> None:
    async with pool_of(workers=2) as pool:
        assert not workers()
        result = await pool.render(quick())
        assert [isinstance(rendition, Rendition) for rendition in result.renditions] == [True, True]
        pids = workers()
        assert len(pids) == 2
        await pool.render(quick())
        assert workers() == pids
    assert not any(alive(pid) for pid in pids)


def test_the_service_s_own_process_loads_no_decoder() -> None:
    script = "import sys, smart_assets.imaging.workers; print({'pyvips', 'PIL'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout == b"set()\n"


async def test_a_job_that_takes_too_long_is_stopped(quick: MakeJob, slow: MakeJob) -> None:
    async with pool_of(timeout_seconds=0.3) as pool:
        job = slow()
        with pytest.raises(CorruptImage, match=r"took longer than 0\.3 seconds"):
            await pool.render(job)
        assert not outputs(job)
        await pool.render(quick())


@pytest.mark.parametrize(
    ("how", "error", "said"),
    [(signal.SIGKILL, Busy, "stopped from outside"), (signal.SIGSEGV, CorruptImage, "crashed its decoder")],
)
async def test_a_worker_that_dies_costs_its_own_job_and_not_its_neighbour_s(
    quick: MakeJob,
    slow: MakeJob,
    how: signal.Signals,
    error: type[SmartAssetsError],
    said: str,
    workers: Pids,
) -> None:
    async with pool_of(workers=2) as pool:
        restarts = restarts_so_far()
        jobs = [slow(), slow()]
        running = [asyncio.ensure_future(pool.render(job)) for job in jobs]
        for job in jobs:
            await begun(job)
        os.kill(min(workers()), how)
        outcomes = await asyncio.gather(*running, return_exceptions=True)
        (failure,) = (outcome for outcome in outcomes if isinstance(outcome, BaseException))
        assert isinstance(failure, error)
        assert said in failure.detail
        assert sorted(len(outputs(job)) for job in jobs) == [0, 2]
        await pool.render(quick())
        assert restarts_so_far() == restarts


@pytest.mark.parametrize("pause", [0.0, 0.5], ids=["at once", "after a pause"])
async def test_idle_workers_that_die_are_replaced_unnoticed(quick: MakeJob, pause: float, workers: Pids) -> None:
    async with pool_of() as pool:
        restarts = restarts_so_far()
        for _ in range(2):
            await pool.render(quick())
            for pid in workers():
                os.kill(pid, signal.SIGKILL)
            await anyio.sleep(pause)
        jobs = [quick(), quick(), quick()]
        await asyncio.gather(*(pool.render(job) for job in jobs))
        assert [len(outputs(job)) for job in jobs] == [2, 2, 2]
        assert restarts_so_far() == (restarts or 0) + 2


async def test_cancelling_stops_the_job_and_removes_what_it_wrote(quick: MakeJob, slow: MakeJob, workers: Pids) -> None:
    async with pool_of() as pool:
        job = slow()
        running = asyncio.ensure_future(pool.render(job))
        await begun(job)
        (pid,) = workers()
        running.cancel()
        await anyio.sleep(0)
        running.cancel()  # whoever is impatient
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not outputs(job)
        assert not alive(pid)
        await pool.render(quick())
        assert memory_in_use() == 0


async def test_cancelling_at_any_moment_leaves_nothing(quick: MakeJob) -> None:
    async with pool_of() as pool:
        jobs = [quick() for _ in range(12)]
        for number, job in enumerate(jobs):
            with anyio.move_on_after(0.002 * number) as scope:
                await pool.render(job)
            assert scope.cancelled_caught == (not outputs(job))
        await anyio.sleep(0.3)
        assert {len(outputs(job)) for job in jobs} <= {0, 2}
        await pool.render(quick())
        assert memory_in_use() == 0


async def test_ctrl_c_and_a_supervisor_s_sigterm_leave_the_workers_to_the_service(
    slow: MakeJob,
    workers: Pids,
) -> None:
    async with pool_of() as pool:
        job = slow()
        running = asyncio.ensure_future(pool.render(job))
        await begun(job)
        for pid in workers():
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
        assert all(isinstance(rendition, Rendition) for rendition in (await running).renditions)


ORPHANS = """
import asyncio, multiprocessing, sys
from pathlib import Path
from smart_assets.formats import ImageFormat
from smart_assets.imaging.budget import MemoryBudget
from smart_assets.imaging.info import ImageInfo
from smart_assets.imaging.jobs import RenderJob
from smart_assets.imaging.sizes import RenderOptions, Size
from smart_assets.imaging.workers import RenderPool
from smart_assets.settings import ImagingSettings

async def main(source, side, directory):
    pool = RenderPool(ImagingSettings(workers=2), MemoryBudget(2**30, directory))
    info, options = ImageInfo(ImageFormat.PNG, side, side), RenderOptions(format=ImageFormat.AVIF)
    sizes = (Size(20, None), *(Size(side - step, None) for step in range(20)))
    job = RenderJob(source, info, sizes, options, False, directory)
    task = asyncio.ensure_future(pool.render(job))
    while not job.output(0).exists():
        await asyncio.sleep(0.01)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    await asyncio.sleep(60)

asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
"""


def test_workers_do_not_outlive_a_service_that_is_killed(noise: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", ORPHANS, str(noise), str(SIDE), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout
        pids = [int(pid) for pid in service.stdout.readline().split()]
        assert len(pids) == 2
        assert all(alive(pid) for pid in pids)
        service.kill()
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)


async def test_workers_are_limited(quick: MakeJob, workers: Pids) -> None:
    async with pool_of(worker_memory_bytes=300 * MiB, timeout_seconds=30) as pool:
        await pool.render(quick())
        (pid,) = workers()
        text = Path(f"/proc/{pid}/limits").read_text()
        limits = {line[:26].strip(): line[26:].split()[0] for line in text.splitlines()[1:]}
        assert limits["Max core file size"] == "0"
        assert 60 < int(limits["Max cpu time"]) < 90
        assert 300 * MiB < int(limits["Max address space"]) < 1000 * MiB


async def test_a_job_by_its_header_too_large_for_a_worker_is_refused_at_once(tmp_path: Path, workers: Pids) -> None:
    info = ImageInfo(ImageFormat.AVIF, 8000, 6000)
    job = RenderJob(tmp_path / "not read", info, (Size(100, None),), RenderOptions(), False, tmp_path)
    async with pool_of(worker_memory_bytes=300 * MiB) as pool:
        estimate = estimate_memory(job.info, job.sizes, job.options)
        with pytest.raises(TooManyPixels, match=f"about {estimate} bytes.*worker_memory_bytes {300 * MiB}$"):
            await pool.render(job)
        assert not workers()


async def test_a_job_that_outgrows_its_estimate_costs_only_itself(quick: MakeJob, tmp_path: Path) -> None:
    source = tmp_path / "progressive.jpg"
    Image.new("CMYK", (6000, 6000), (9, 80, 160, 20)).save(source, progressive=True)
    understated = ImageInfo(ImageFormat.JPEG, 6000, 6000)
    job = RenderJob(source, understated, (Size(100, None),), RenderOptions(), True, tmp_path)
    async with pool_of(worker_memory_bytes=256 * MiB) as pool:
        with pytest.raises(TooManyPixels, match="more memory than a worker may use"):
            await pool.render(job)
        assert not outputs(job)
        await pool.render(quick())


async def test_a_request_waits_its_turn_and_no_longer_than_agreed(quick: MakeJob, slow: MakeJob) -> None:
    async with pool_of(wait_seconds=0.2) as pool:
        job = slow()
        running = asyncio.ensure_future(pool.render(job))
        await begun(job)
        with pytest.raises(Busy, match=r"within 0\.2 seconds") as caught:
            await pool.render(quick())
        assert caught.value.retry_after
        assert len((await running).renditions) == 2
        await pool.render(quick())


async def test_memory_of_all_jobs_together_stays_within_the_budget(quick: MakeJob) -> None:
    job = quick()
    each = estimate_memory(job.info, job.sizes, job.options)
    seen = set()
    async with pool_of(workers=2, memory_budget_bytes=int(each * 1.5)) as pool:
        running = [asyncio.ensure_future(pool.render(quick())) for _ in range(6)]
        while not all(task.done() for task in running):
            seen.add(memory_in_use())
            await anyio.sleep(0.001)
        await asyncio.gather(*running)
    assert seen <= {0, each}
    assert memory_in_use() == 0


async def test_what_another_process_takes_of_the_budget_is_waited_for(quick: MakeJob, tmp_path: Path) -> None:
    job = quick()
    each = estimate_memory(job.info, job.sizes, job.options)
    own, others = ScratchDirectory(tmp_path), ScratchDirectory(tmp_path)
    with closing(MemoryBudget(each, own.path)) as budget, closing(MemoryBudget(each, others.path)) as other:
        assert other.take(each)
        pool = RenderPool(ImagingSettings(workers=1, wait_seconds=0.2), budget)
        with pytest.raises(Busy):
            await pool.render(job)
        running = asyncio.ensure_future(pool.render(quick()))
        await anyio.sleep(0)
        other.give_back(each)
        assert len((await running).renditions) == 2
        assert other.take(each), "and is given back"
        await pool.close()
    own.close()
    others.close()


async def test_a_job_larger_than_the_whole_budget_runs_alone(quick: MakeJob, slow: MakeJob) -> None:
    large = slow()
    estimate = estimate_memory(large.info, large.sizes, large.options)
    seen = set()
    async with pool_of(workers=2, memory_budget_bytes=64 * MiB) as pool:
        assert estimate > 64 * MiB
        running = [asyncio.ensure_future(pool.render(job)) for job in (quick(), large, quick())]
        while not all(task.done() for task in running):
            seen.add(memory_in_use())
            await anyio.sleep(0.001)
        await asyncio.gather(*running)
    assert max(memory for memory in seen if memory) == estimate


async def test_requests_are_served_in_the_order_they_came(quick: MakeJob) -> None:
    served: list[int] = []

    async def ask(pool: RenderPool, number: int) -> None:
        await pool.render(quick())
        served.append(number)

    async with pool_of() as pool:
        await asyncio.gather(*(ask(pool, number) for number in range(8)))
    assert served == list(range(8))


async def test_one_that_gives_up_waiting_does_not_hold_up_those_behind(quick: MakeJob, slow: MakeJob) -> None:
    running, too_large, small = slow(), slow(), quick()
    budget = int(1.5 * estimate_memory(running.info, running.sizes, running.options))
    async with pool_of(workers=2, memory_budget_bytes=budget) as pool:
        first = asyncio.ensure_future(pool.render(running))
        await begun(running)
        second = asyncio.ensure_future(pool.render(too_large))
        third = asyncio.ensure_future(pool.render(small))
        await anyio.sleep(0.1)
        assert not third.done()
        second.cancel()
        await third
        assert not first.done()
        first.cancel()


async def test_workers_that_cannot_be_started_are_busy_and_tried_again(
    quick: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, failures = module._new_pool, [BrokenProcessPool("killed as it began"), OSError(errno.EAGAIN, "no process")]

    def fail_at_first(settings: ImagingSettings) -> pebble.ProcessPool:
        if failures:
            raise failures.pop()
        return start(settings)

    async with pool_of() as pool:
        monkeypatch.setattr(module, "_new_pool", fail_at_first)
        assert len((await pool.render(quick())).renditions) == 2
        failures += [OSError(errno.EAGAIN, "no process")] * 9
        assert pool._pool is not None
        await asyncio.to_thread(module._end, pool._pool)
        with pytest.raises(Busy):
            await pool.render(quick())
        failures.clear()
        assert len((await pool.render(quick())).renditions) == 2


async def test_idle_workers_that_were_all_stopped_are_replaced(
    quick: MakeJob, workers: Pids, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_HAND_OVER_SECONDS", 1)
    async with pool_of(workers=2, timeout_seconds=1) as pool:
        for _ in range(2):
            await pool.render(quick())
        for pid in workers():
            os.kill(pid, signal.SIGSTOP)
        monkeypatch.setattr(module, "_TRIES", 5)  # on a busy machine the new ones may not be ready in a second either
        assert len((await pool.render(quick())).renditions) == 2
    assert memory_in_use() == 0


async def test_closing_ends_what_is_running(slow: MakeJob, quick: MakeJob, workers: Pids) -> None:
    async with pool_of() as pool:
        job = slow()
        running = asyncio.ensure_future(pool.render(job))
        await begun(job)
        pids = workers()
        await pool.close()
        with pytest.raises(Busy, match="shutting down"):
            await running
        assert not outputs(job)
        assert not any(alive(pid) for pid in pids)
        with pytest.raises(Busy, match="shutting down"):
            await pool.render(quick())


def megabytes(info: ImageInfo, label: str, **options: object) -> float:
    return estimate_memory(info, parse_sizes([label], {}, 20), RenderOptions(**options)) / MiB  # type: ignore[arg-type]


def test_estimates_know_what_takes_memory() -> None:
    jpeg = ImageInfo(ImageFormat.JPEG, 8000, 6000)
    assert megabytes(jpeg, "800") < 100
    assert megabytes(jpeg, "8000") > 400
    assert megabytes(jpeg, "8000", format=ImageFormat.AVIF) > 1000
    assert megabytes(ImageInfo(ImageFormat.JPEG, 8000, 6000, progressive=True), "800") > 250
    assert megabytes(ImageInfo(ImageFormat.PNG, 8000, 6000, progressive=True, bits=16), "800") > 350
    assert megabytes(ImageInfo(ImageFormat.AVIF, 8000, 6000), "800") > 900
    assert megabytes(ImageInfo(ImageFormat.GIF, 800, 600, frames=200), "800") > 350
    assert megabytes(ImageInfo(ImageFormat.GIF, 800, 600, frames=200), "800", format=ImageFormat.PNG) < 100


@settings(max_examples=50)
@given(st.sampled_from(ImageFormat), st.integers(1, 60000), st.integers(1, 60000), st.integers(1, 8192))
def test_more_sizes_never_take_less(image_format: ImageFormat, width: int, height: int, side: int) -> None:
    info = ImageInfo(image_format, width, height)
    some = estimate_memory(info, (Size(100, None),), RenderOptions())
    assert 0 < some <= estimate_memory(info, (Size(100, None), Size(side, side)), RenderOptions())
