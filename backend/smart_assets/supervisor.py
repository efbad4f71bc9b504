"""Several processes that serve on one socket: started, watched, replaced when they die, stopped together."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from functools import partial

from smart_assets.observability import METRICS_DIRECTORY, bury
from smart_assets.scratch import ScratchDirectory
from smart_assets.settings import PREFIX, Settings

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 1
"""Before one is started in a dead one's place: what kills them all must not keep the machine busy."""


class WorkerFailed(Exception):
    """A worker ended before it served; what was wrong it has said itself."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"a worker ended with exit code {exit_code} before it served")


class Supervisor:
    """`count` workers, each a process of its own that inherits the listening socket.

    A worker is told by a socket to its supervisor that it has to end: the supervisor hangs up, by intention or because
    it was killed. So no worker ever outlives it.
    """

    def __init__(
        self,
        listener: socket.socket,
        count: int,
        environment: Mapping[str, str],
        *,
        buried: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`environment` is the workers'; `buried` is given the process id of each that has ended."""
        self._listener = listener
        self._count = count
        self._environment = environment
        self._buried = buried
        self._stopping = asyncio.Event()
        self._living: dict[int, asyncio.subprocess.Process] = {}
        self._serving: set[int] = set()
        self._first_serves = asyncio.Event()
        self._replacing = asyncio.Lock()

    async def run(self, ready: Callable[[], None]) -> None:
        """Keep the workers alive until SIGTERM or SIGINT, `ready` being called when all of them serve.

        SIGHUP replaces them, one after the other, each when all of them serve. Raises WorkerFailed where one cannot
        start at all.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        replacing: set[asyncio.Task[None]] = set()
        loop.add_signal_handler(signal.SIGHUP, lambda: replacing.add(asyncio.create_task(self._replace_all())))
        try:
            async with asyncio.TaskGroup() as group:
                for place in range(self._count):
                    group.create_task(self._keep_one(ready, waits=place > 0))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            for task in replacing:
                task.cancel()

    def _stop(self) -> None:
        self._stopping.set()
        self._first_serves.set()
        for worker in self._living.values():
            _terminate(worker)

    async def _keep_one(self, ready: Callable[[], None], *, waits: bool) -> None:
        if waits:
            await self._first_serves.wait()  # what keeps one from starting is said once
        has_served = False
        while not self._stopping.is_set():
            own, theirs = socket.socketpair()
            with own:
                with theirs:
                    worker = await self._start(theirs)
                self._living[worker.pid] = worker
                try:
                    serves = await _says_it_serves(own)
                    if serves:
                        self._first_serves.set()
                        self._serving.add(worker.pid)
                        if not has_served and len(self._serving) == self._count:
                            ready()
                        has_served = True
                    code = await worker.wait()
                finally:
                    del self._living[worker.pid]
                    self._serving.discard(worker.pid)
            self._buried(worker.pid)
            if self._stopping.is_set():
                return
            if not has_served:
                self._stop()
                raise WorkerFailed(code)
            if serves and code == 0:
                continue  # replaced
            logger.error("a worker died; another takes its place", extra={"worker": worker.pid, "exit_code": code})
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), PAUSE_SECONDS)

    async def _start(self, theirs: socket.socket) -> asyncio.subprocess.Process:
        descriptors = (self._listener.fileno(), theirs.fileno())
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "smart_assets.cli", "worker", *(str(descriptor) for descriptor in descriptors)),
            env=self._environment,
            pass_fds=descriptors,
            # A terminal's Ctrl-C is for the supervisor, who tells the workers.
            start_new_session=True,
        )

    async def _replace_all(self) -> None:
        async with self._replacing:  # one asked for meanwhile follows: what it reads may be newer
            await self._all_serve()
            for worker in list(self._living.values()):
                await self._all_serve()
                _terminate(worker)
                await worker.wait()
                self._serving.discard(worker.pid)

    async def _all_serve(self) -> None:
        while len(self._serving) < self._count:  # noqa: ASYNC110 - rare, and short
            await asyncio.sleep(0.05)


async def _says_it_serves(own: socket.socket) -> bool:
    """Wait for a worker's word; False where it died before."""
    own.setblocking(False)
    try:
        return bool(await asyncio.get_running_loop().sock_recv(own, 1))
    except ConnectionError:
        return False


def supervise(listener: socket.socket, settings: Settings, *, ready: Callable[[], None]) -> None:
    """Serve on `listener` with `settings.workers` processes until asked to stop. Raises WorkerFailed."""
    with closing(ScratchDirectory(settings.temporary_dir)) as scratch, asyncio.Runner() as runner:
        metrics = scratch.path / "metrics"
        metrics.mkdir()
        environment = {**os.environ, **_environment(settings, listener), METRICS_DIRECTORY: str(metrics)}
        supervisor = Supervisor(
            listener,
            settings.workers,
            environment,
            buried=partial(bury, directory=metrics),
        )
        runner.run(supervisor.run(ready))


def _environment(settings: Settings, listener: socket.socket) -> dict[str, str]:
    """What the command line may have said otherwise than the environment, and each worker's share of the machine."""
    told: dict[str, object] = {
        "HOST": settings.host,
        "PORT": listener.getsockname()[1],
        "DATA_DIR": settings.data_dir,
        "WORKERS": settings.workers,
    }
    if "workers" not in settings.imaging.model_fields_set:
        told["IMAGING__WORKERS"] = max(1, settings.imaging.workers // settings.workers)
    return {f"{PREFIX}{name}": str(value) for name, value in told.items()}


def _terminate(worker: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        worker.terminate()


def announce(supervisor: socket.socket) -> None:
    """In a worker: say that it serves now."""
    with suppress(OSError):  # it was killed: the worker will see
        supervisor.send(b".")


def inherited(descriptor: int) -> socket.socket:
    """In a worker: a socket the supervisor has handed down."""
    os.set_inheritable(descriptor, False)  # not by the workers' own workers
    return socket.socket(fileno=descriptor)
