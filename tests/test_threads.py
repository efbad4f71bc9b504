"""Work in threads, and what cancellation does to it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import suppress

import anyio
import pytest

from smart_assets.threads import NoTurn, Threads


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads("test", limit=1)
    yield threads
    threads.close()


class _Work:
    """Begins, waits for a go-ahead, and ends, with an error where one is given."""

    def __init__(self, error: Exception | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._error = error
        self.begun = asyncio.Event()
        self.go_ahead = threading.Event()
        self.ended = False

    def __call__(self) -> str:
        self._loop.call_soon_threadsafe(self.begun.set)
        self.go_ahead.wait()
        self.ended = True
        if self._error is not None:
            raise self._error
        return "done"


async def test_it_gives_what_the_work_returns_or_raises(threads: Threads) -> None:
    assert await threads.run(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)


@pytest.mark.parametrize("times", [1, 2])
async def test_a_cancelled_call_ends_only_when_the_work_has(threads: Threads, times: int) -> None:
    work = _Work()
    task = asyncio.create_task(threads.run(work))
    await work.begun.wait()
    for _time in range(times):
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()
    work.go_ahead.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.ended


async def test_so_does_one_in_a_task_group_whose_neighbour_fails(threads: Threads) -> None:
    work = _Work()

    async def fail() -> None:
        await work.begun.wait()
        asyncio.get_running_loop().call_later(0.01, work.go_ahead.set)
        raise ValueError

    with suppress(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(threads.run(work))
            group.create_task(fail())
    assert work.ended


async def test_so_does_one_in_a_cancelled_scope(threads: Threads) -> None:
    work = _Work()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(threads.run, work)
            await work.begun.wait()
            scope.cancel()
            asyncio.get_running_loop().call_later(0.01, work.go_ahead.set)
    assert work.ended


async def test_cancelled_before_its_turn_the_work_never_runs(threads: Threads) -> None:
    first, second = _Work(), _Work()
    running = asyncio.create_task(threads.run(first))
    await first.begun.wait()
    waiting = asyncio.create_task(threads.run(second))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    first.go_ahead.set()
    assert await running == "done"
    await threads.run(lambda: None)
    assert not second.begun.is_set()


async def test_an_error_of_cancelled_work_gives_way_to_the_cancellation(threads: Threads) -> None:
    work = _Work(ValueError())
    task = asyncio.create_task(threads.run(work))
    await work.begun.wait()
    task.cancel()
    await asyncio.sleep(0.01)
    work.go_ahead.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.ended


async def test_who_waits_too_long_for_a_turn_hears_of_it_and_is_not_run_later() -> None:
    threads = Threads("test", limit=1, wait_seconds=0.05)
    work = _Work()
    running = asyncio.create_task(threads.run(work))
    await work.begun.wait()
    late: list[int] = []
    with pytest.raises(NoTurn):
        await threads.run(lambda: late.append(1))
    work.go_ahead.set()
    assert await running == "done", "one whose turn has come may take its time"
    assert await threads.run(lambda: 7) == 7
    assert late == []
    threads.close()


async def test_cancelled_while_waiting_for_a_turn_is_cancelled_and_nothing_else() -> None:
    threads = Threads("test", limit=1, wait_seconds=60)
    work = _Work()
    running = asyncio.create_task(threads.run(work))
    await work.begun.wait()
    waiting = asyncio.create_task(threads.run(lambda: None))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    work.go_ahead.set()
    await running
    threads.close()
