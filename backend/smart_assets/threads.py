"""Threads for calls that block: a disk's, a database's, or those of a vendor's SDK.

Our own, because an upload goes through three of them: `concurrent.futures` and asyncio between them take four times as
long to hand work over and its result back, and know no way to wait for work that was cancelled too late.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from anyio import CancelScope
from anyio.lowlevel import checkpoint_if_cancelled

T = TypeVar("T")


_queues: WeakKeyDictionary[SimpleQueue[Any], str] = WeakKeyDictionary()
_of_queues = Lock()


def queue_named(name: str) -> SimpleQueue[Any]:
    """A queue that `waiting` counts for as long as it is there."""
    made: SimpleQueue[Any] = SimpleQueue()
    with _of_queues:
        _queues[made] = name
    return made


def waiting() -> Counter[str]:
    """How many wait in the queues of this process, by name; in any thread."""
    counted: Counter[str] = Counter()
    with _of_queues:
        queues = list(_queues.items())
    for queue, name in queues:
        counted[name] += queue.qsize()
    return counted


class NoTurn(Exception):
    """Every thread was busy for as long as a call may wait."""


class Job(Generic[T]):
    """One piece of work on its way through a thread, and back to the event loop it is made in."""

    __slots__ = ("_error", "_is_done", "_result", "_turn", "_woken", "loop", "work")

    def __init__(self, work: Callable[..., T]) -> None:
        """`work` is for whoever `begin`s the job."""
        self.work = work
        self.loop = asyncio.get_running_loop()
        self._woken: asyncio.Future[None] = self.loop.create_future()
        self._turn = [None]
        self._is_done = False
        self._result: T
        self._error: BaseException | None = None

    def begin(self) -> bool:
        """Take the job, to do it or so that nobody does; False where somebody else has. In any thread."""
        try:
            self._turn.pop()
        except IndexError:
            return False
        return True

    def succeed(self, result: T) -> None:
        """What came of it; `wake` says so. In any thread."""
        self._result = result

    def fail(self, error: BaseException) -> None:
        """What came of it; `wake` says so. In any thread."""
        self._error = error

    def run(self, how: Callable[[Callable[..., T]], T] = lambda work: work()) -> None:
        """Do what was begun, whatever comes of it; `how` is given the work. In any thread."""
        try:
            self.succeed(how(self.work))
        except BaseException as error:  # noqa: BLE001 - it is for whoever waits for the outcome
            self.fail(error)

    def wake(self) -> None:
        """Let the outcome be known. In the loop's own thread."""
        self._is_done = True
        if not self._woken.done():
            self._woken.set_result(None)

    async def outcome(self) -> T:
        """What the work returns or raises.

        When cancelled, the job is taken back where it has not begun, else waited for: what a cancelled call wrote is
        there to be cleaned up when its caller hears of it, and does not land later.
        """
        try:
            await self._woken
        except asyncio.CancelledError as cancelled:
            if not self.begin():
                await self._end()
                cancelled.__cause__ = self._error
            raise
        if self._error is not None:
            raise self._error
        return self._result

    async def _end(self) -> None:
        # The shield holds off anyio's cancel scopes only; `Task.cancel`, `asyncio.timeout` and `asyncio.TaskGroup`
        # come through it, and are held back by hand.
        with CancelScope(shield=True):
            while not self._is_done:
                self._woken = self.loop.create_future()
                with suppress(asyncio.CancelledError):
                    await asyncio.wait((self._woken,))


def wake(jobs: Sequence[Job[Any]]) -> None:
    """Let the outcomes of jobs, all of one loop, be known. In any thread."""

    def wake_each() -> None:
        for job in jobs:
            job.wake()

    with suppress(RuntimeError):  # the loop was closed: nobody waits any more
        jobs[0].loop.call_soon_threadsafe(wake_each)


class Threads:
    """At most `limit` calls at once; the others wait their turn."""

    def __init__(self, name: str, limit: int = 16, *, wait_seconds: float | None = None) -> None:
        """`name` is what the threads are called; `wait_seconds` how long a call waits for its turn (None: for good)."""
        self._name = name
        self._limit = limit
        self._wait_seconds = wait_seconds
        self._jobs: SimpleQueue[Job[Any] | None] = queue_named(name)
        self._lock = Lock()  # of what follows
        self._started = 0
        self._idle = 0
        self._is_closed = False

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises, run in a thread.

        Cancelled before its turn, `work` never runs; cancelled while it runs, this ends only when `work` has: see
        `Job.outcome`. Raises NoTurn where `work` has waited for too long; then it never runs either.
        """
        await checkpoint_if_cancelled()
        job = Job(work)
        self._hand_over(job)
        if self._wait_seconds is None:
            return await job.outcome()

        def give_up() -> None:
            if job.begin():
                job.fail(NoTurn())
                job.wake()

        timer = job.loop.call_later(self._wait_seconds, give_up)
        try:
            return await job.outcome()
        finally:
            timer.cancel()

    def close(self) -> None:
        """Let the threads end when they have done what was handed over. Nothing is run afterwards."""
        with self._lock:
            self._is_closed = True
            for _ in range(self._started):
                self._jobs.put(None)

    def _hand_over(self, job: Job[Any]) -> None:
        with self._lock:
            if self._is_closed:
                raise RuntimeError(f"the threads {self._name} were closed")
            self._jobs.put(job)
            if self._idle:
                self._idle -= 1
            elif self._started < self._limit:
                # Daemons: what hangs in one, on a server that does not answer, must not keep the process from ending.
                Thread(target=self._serve, name=f"{self._name}-{self._started}", daemon=True).start()
                self._started += 1

    def _serve(self) -> None:
        while (job := self._next()) is not None:
            if job.begin():
                job.run()
                wake([job])
            del job  # a thread that waits keeps nobody's bytes

    def _next(self) -> Job[Any] | None:
        try:
            return self._jobs.get_nowait()
        except Empty:
            with self._lock:
                self._idle += 1
            return self._jobs.get()


def cancelled_since_now() -> Callable[[], bool]:
    """Tells, in any thread, whether the task that runs now was cancelled since: long work looks between two steps."""
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    return lambda: task is not None and task.cancelling() > before
