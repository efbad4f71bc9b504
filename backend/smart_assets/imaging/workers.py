"""The rendering workers: processes that decode and encode, so that the service itself never does.

A job that hangs, eats memory or crashes costs its own request one error, and its worker is replaced.
"""

from __future__ import annotations

import asyncio
import logging
import math
import multiprocessing
import random
import signal
import time
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import CancelledError, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager, suppress
from functools import partial
from types import SimpleNamespace

import anyio
import pebble

from smart_assets import observability
from smart_assets.errors import Busy, DecoderFailed, TooManyPixels
from smart_assets.formats import ImageFormat
from smart_assets.imaging import worker_process
from smart_assets.imaging.budget import MemoryBudget
from smart_assets.imaging.info import ImageInfo
from smart_assets.imaging.jobs import RenderJob, RenderResult
from smart_assets.imaging.sizes import RenderOptions, Size, keeps_animation, output_format, target_geometry
from smart_assets.settings import ImagingSettings
from smart_assets.threads import Threads

logger = logging.getLogger(__name__)

_FORK_SERVER_GONE = 255
"""What `multiprocessing` says of a worker whose fork server cannot tell any more how it ended."""

_MiB = 1024 * 1024
_LOOK_SECONDS = 0.1
_TRIES = 2
_HAND_OVER_SECONDS = 15
"""How long an idle worker may take to begin; then none of them can be working."""

# A worker in libvips' C code hears no Python signal handler, and ours ignore SIGTERM anyway (see `worker_process`):
# waiting between SIGTERM and SIGKILL would only hold up the pool's other jobs.
pebble.CONSTS.term_timeout = 0

# It measures how long a job takes by the wall clock: set forward, that would end every job there is; set back, none.
vars(pebble.pool.process)["time"] = SimpleNamespace(time=time.monotonic, sleep=time.sleep)


class RenderPool:
    """Renders in worker processes, as many at once as there are workers and as the budget of memory allows.

    The workers start with the first job. `close` ends them and whatever they are doing.
    """

    def __init__(self, settings: ImagingSettings, budget: MemoryBudget) -> None:
        self._settings = settings
        self._gate = _Gate(settings.workers, budget)
        self._pool: pebble.ProcessPool | None = None
        self._starting = anyio.Lock()
        self._threads = Threads("render", 1)
        self._running: set[pebble.ProcessFuture[RenderResult]] = set()
        self._closed = False

    async def render(self, job: RenderJob) -> RenderResult:
        """The job's result; its files are the caller's to remove.

        Raises CorruptImage for damaged pixels, DecoderFailed for images that take too long or crash it, TooManyPixels
        for more memory than a worker may take, and Busy where no worker had room for it in time. On an error, and when
        cancelled, the job has stopped and none of its files stays.
        """
        memory = estimate_memory(job.info, job.sizes, job.options)
        if memory > self._settings.worker_memory_bytes:
            raise TooManyPixels(
                f"making these sizes takes about {memory} bytes of memory, "
                f"above imaging.worker_memory_bytes {self._settings.worker_memory_bytes}"
            )
        async with self._gate.admit(memory, self._settings.wait_seconds):
            try:
                return await self._render(job)
            except BaseException:
                job.discard()
                raise

    async def close(self) -> None:
        """End the workers; jobs still running raise Busy, and so does every later one."""
        async with self._starting:
            self._closed = True
            if self._pool is not None:
                await self._threads.run(partial(_end, self._pool))
                self._pool = None
            self._threads.close()
        for future in list(self._running):
            future.cancel()  # type: ignore[no-untyped-call]

    async def _render(self, job: RenderJob) -> RenderResult:
        for _ in range(_TRIES):
            try:
                return await self._attempt(job)
            except _PoolBroken:
                with suppress(_PoolBroken):
                    await self._working_pool()  # ends what is left of the broken one
                job.discard()
        raise Busy("the rendering workers are not to be had just now")

    async def _attempt(self, job: RenderJob) -> RenderResult:
        pool = await self._working_pool()
        timeout = self._settings.timeout_seconds
        try:
            future = pool.schedule(worker_process.work, args=[job, timeout], timeout=timeout)
        except RuntimeError as error:
            raise _PoolBroken from error
        self._running.add(future)
        try:
            await self._finished(pool, future, timeout + _HAND_OVER_SECONDS)
            return future.result()
        except TimeoutError:
            raise DecoderFailed(f"making the sizes took longer than {timeout:g} seconds") from None
        except pebble.ProcessExpired as error:
            # An operator, or the kernel for want of memory: it may have met the fork server instead.
            if error.exitcode in {-signal.SIGKILL, _FORK_SERVER_GONE}:
                raise Busy("the worker was stopped from outside while it rendered the image") from error
            raise DecoderFailed("the image crashed its decoder") from error
        except BrokenProcessPool as error:
            raise _PoolBroken from error
        except CancelledError:
            if not self._closed:
                raise _PoolBroken from None
            raise Busy("the service is shutting down") from None
        finally:
            self._running.discard(future)

    async def _finished(
        self, pool: pebble.ProcessPool, future: pebble.ProcessFuture[RenderResult], seconds: float
    ) -> None:
        """Return when the future is done. When cancelled, return only once the job has stopped.

        Ends the pool where that takes longer than `seconds`: pebble's own clock begins when a worker has taken the
        job, and workers that were stopped take none.
        """
        done, loop = anyio.Event(), asyncio.get_running_loop()
        deadline = loop.time() + seconds
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(done.set))
        try:
            while not done.is_set():
                with anyio.move_on_after(1):
                    await done.wait()
                # What is handed over at the very moment a pool breaks is never heard of again.
                if not (done.is_set() or pool.active):
                    raise _PoolBroken
                if not done.is_set() and loop.time() > deadline:
                    await self._threads.run(partial(_end, pool))
                    raise _PoolBroken
        finally:
            if not done.is_set():
                stopping = loop.run_in_executor(None, _stop, pool, future)
                with anyio.CancelScope(shield=True):
                    while not stopping.done():
                        with suppress(asyncio.CancelledError):  # a second one, of which the scope knows nothing
                            await asyncio.wait((stopping,))

    async def _working_pool(self) -> pebble.ProcessPool:
        async with self._starting:
            if self._closed:
                raise Busy("the service is shutting down")
            if self._pool is None or not self._pool.active:
                return await self._threads.run(self._start)
            return self._pool

    def _start(self) -> pebble.ProcessPool:
        """Start the workers, in place of a pool that broke down if there is one. Blocking."""
        if self._pool is not None:
            # An idle worker that is killed breaks pebble's pool for good.
            logger.warning("the rendering workers broke down and are started anew")
            observability.WORKER_RESTARTS.inc()
            _end(self._pool)
            self._pool = None
        try:
            self._pool = _new_pool(self._settings)
        except (BrokenProcessPool, RuntimeError, OSError) as error:  # no process to be had, or killed as it began
            raise _PoolBroken from error
        return self._pool


class _PoolBroken(Exception):
    """The pool failed the job through no fault of the job's."""


def _new_pool(settings: ImagingSettings) -> pebble.ProcessPool:
    # Forking this process would hand its threads' locks to the child; the fork server has none.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "smart_assets.imaging.fork_server",
            "pebble",
            "smart_assets.imaging.render",
            "smart_assets.imaging.worker_process",
        ]
    )
    pool = pebble.ProcessPool(
        max_workers=settings.workers,
        initializer=worker_process.prepare,
        initargs=[settings.worker_memory_bytes],
        context=context,
    )
    try:
        is_active = pool.active  # asking is what starts it
    except BaseException:
        with suppress(Exception):
            _end(pool)
        raise
    if not is_active:
        raise BrokenProcessPool("the workers could not be started")
    return pool


def _end(pool: pebble.ProcessPool) -> None:
    pool.stop()  # type: ignore[no-untyped-call]
    pool.join()


def _stop(pool: pebble.ProcessPool, future: pebble.ProcessFuture[RenderResult]) -> None:
    """Stop the job, and return when no worker is at it any more."""
    # One cancelled before a worker has acknowledged it would count as stopped at the moment it starts.
    while pool.active and not (future.running() or future.done()):
        time.sleep(0.01)
    future.cancel()  # type: ignore[no-untyped-call]
    # Done, to `wait`, is what pebble knows of: the worker killed, or the result come in.
    while pool.active and wait([future], timeout=0.1).not_done:
        pass


class _Gate:
    """Lets jobs in, in the order they came, while a worker is free and the budget has what they take."""

    def __init__(self, workers: int, budget: MemoryBudget) -> None:
        self._free_workers = workers
        self._budget = budget
        self._waiting: deque[tuple[int, anyio.Event]] = deque()
        self._next_look: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def admit(self, memory: int, wait_seconds: float) -> AsyncIterator[None]:
        """Hold one worker and so many bytes; Busy where that takes longer than `wait_seconds` to get."""
        turn = anyio.Event()
        self._waiting.append((memory, turn))
        try:
            self._let_in()
            if not turn.is_set():
                observability.RENDER_WAITING.inc()
                try:
                    with anyio.move_on_after(wait_seconds):
                        await turn.wait()
                finally:
                    observability.RENDER_WAITING.dec()
            if not turn.is_set():
                raise Busy(f"no worker had room for the image within {wait_seconds:g} seconds")
            yield
        finally:
            if turn.is_set():
                self._free_workers += 1
                self._budget.give_back(memory)
                observability.RENDER_MEMORY.dec(memory)
            else:
                self._waiting.remove((memory, turn))
            self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self._free_workers:
            memory, turn = self._waiting[0]
            if not self._budget.take(memory):
                self._look_again()
                return
            self._waiting.popleft()
            self._free_workers -= 1
            observability.RENDER_MEMORY.inc(memory)
            turn.set()

    def _look_again(self) -> None:
        """Have another look soon: of what other processes give back nobody tells us."""
        if self._next_look is None:
            delay = random.SystemRandom().uniform(0.5, 1) * _LOOK_SECONDS  # apart from who was refused with us
            self._next_look = asyncio.get_running_loop().call_later(delay, self._look)

    def _look(self) -> None:
        self._next_look = None
        self._let_in()


# What a worker takes for a job, and for each pixel while it decodes or encodes: measured as the growth of a worker's
# peak resident memory over three dozen jobs of 0.5 to 48 megapixels in all formats, and rounded up until every estimate
# was 1 to 3 times what was measured. Only a progressive CMYK JPEG takes more than its estimate, by a tenth.
_PER_JOB = 48 * _MiB
_DECODING = {ImageFormat.WEBP: 6, ImageFormat.GIF: 6, ImageFormat.AVIF: 20}
_ENCODING = {
    ImageFormat.JPEG: 7,  # coefficients, for the optimal Huffman tables
    ImageFormat.PNG: 2,
    ImageFormat.WEBP: 15,
    ImageFormat.GIF: 8,
    ImageFormat.AVIF: 24,
}


def estimate_memory(info: ImageInfo, sizes: tuple[Size, ...], options: RenderOptions) -> int:
    """About how many bytes a worker takes for these sizes and a placeholder.

    That is every size decoded, and beside it what the decoder holds of the source or the encoder of the largest size.
    """
    geometries = [target_geometry(*info.display_size, size, options.fit) for size in sizes]
    frames = info.frames if keeps_animation(info, options) else 1
    bands = 4 if info.has_alpha or info.format is ImageFormat.GIF else 3
    pictures = sum(math.prod(side) for side in {geometry.resize for geometry in geometries}) * frames * bands
    largest = max((math.prod(geometry.canvas) for geometry in geometries), default=0)
    encoding = largest * _ENCODING[output_format(info, options)]
    return _PER_JOB + pictures + max(info.width * info.height * _decoding(info), encoding)


def _decoding(info: ImageInfo) -> int:
    """Bytes the decoder holds for each pixel of the source's canvas; rows that only pass through do not count."""
    if not info.progressive:
        return _DECODING.get(info.format, 0)
    if info.format is ImageFormat.JPEG:
        return 2 * 3  # a coefficient of two bytes for each of three components, whatever the subsampling
    return 4 * max(info.bits // 8, 1)
