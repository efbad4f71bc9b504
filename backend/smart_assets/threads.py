"""Threads for calls that block: a disk's, or those of a vendor's SDK."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from anyio import CancelScope
from anyio.lowlevel import checkpoint_if_cancelled

T = TypeVar("T")


class NoTurn(Exception):
    """Every thread was busy for as long as a call may wait."""


class Threads:
    """At most `limit` calls at once; the others wait their turn."""

    def __init__(self, name: str, limit: int = 16, *, wait_seconds: float | None = None) -> None:
        """`name` is what the threads are called; `wait_seconds` how long a call waits for its turn (None: for good)."""
        self._pool = ThreadPoolExecutor(limit, thread_name_prefix=name)
        self._wait_seconds = wait_seconds

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises, run in a thread.

        Cancelled before its turn, `work` never runs; cancelled while it runs, this ends only when `work` has. So what
        a cancelled call wrote is there to be cleaned up when its caller hears of it, and does not land later.
        Raises NoTurn where `work` has waited for too long; then it never runs either.
        """
        await checkpoint_if_cancelled()
        job = self._pool.submit(work)
        if self._wait_seconds is None:
            return await finished(job)
        given_up = False
        cancelled = cancelled_since_now()

        def give_up() -> None:
            nonlocal given_up
            given_up = job.cancel()  # False for one whose turn has come

        timer = asyncio.get_running_loop().call_later(self._wait_seconds, give_up)
        try:
            return await finished(job)
        except asyncio.CancelledError:
            if given_up and not cancelled():
                raise NoTurn from None
            raise
        finally:
            timer.cancel()

    def close(self) -> None:
        """Let the threads end. Nothing is run afterwards."""
        self._pool.shutdown(wait=False)


def cancelled_since_now() -> Callable[[], bool]:
    """Tells, in any thread, whether the task that runs now was cancelled since: long work looks between two steps."""
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    return lambda: task is not None and task.cancelling() > before


async def finished(job: Future[T]) -> T:
    """What `job` returns or raises. When cancelled, `job` is taken back where it has not begun, else waited for."""
    try:
        return await asyncio.wrap_future(job)
    except asyncio.CancelledError as cancelled:
        if not job.cancelled():
            await _end_of(job)
            cancelled.__cause__ = job.exception()
        raise


async def _end_of(job: Future[T]) -> None:
    # The shield holds off anyio's cancel scopes only; `Task.cancel`, `asyncio.timeout` and `asyncio.TaskGroup` come
    # through it, and are held back by hand.
    with CancelScope(shield=True):
        while not job.done():
            ended = asyncio.wrap_future(job)
            with suppress(asyncio.CancelledError):
                await asyncio.wait((ended,))
            if ended.done() and not ended.cancelled():
                ended.exception()
