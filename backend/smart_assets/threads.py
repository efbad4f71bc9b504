"""Threads for calls that block: a disk's, or those of a vendor's SDK."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from anyio import CancelScope
from anyio.lowlevel import checkpoint_if_cancelled

T = TypeVar("T")


class Threads:
    """At most `limit` calls at once; the others wait their turn."""

    def __init__(self, name: str, limit: int = 16) -> None:
        """`name` is what the threads are called."""
        self._pool = ThreadPoolExecutor(limit, thread_name_prefix=name)

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises, run in a thread.

        Cancelled before its turn, `work` never runs; cancelled while it runs, this ends only when `work` has. So what
        a cancelled call wrote is there to be cleaned up when its caller hears of it, and does not land later.
        """
        await checkpoint_if_cancelled()
        job = self._pool.submit(work)
        done = asyncio.wrap_future(job)
        cancelled: asyncio.CancelledError | None = None
        # The shield holds off anyio's cancel scopes only; `Task.cancel`, `asyncio.timeout` and `asyncio.TaskGroup`
        # come through it, and are held back by hand.
        with CancelScope(shield=True):
            while not done.done():
                try:
                    await asyncio.wait((done,))
                except asyncio.CancelledError as error:
                    cancelled = error
                    job.cancel()
        if cancelled is not None:
            if not done.cancelled():
                done.exception()  # the caller hears of the cancellation instead
            raise cancelled
        return done.result()

    def close(self) -> None:
        """Let the threads end. Nothing is run afterwards."""
        self._pool.shutdown(wait=False)
