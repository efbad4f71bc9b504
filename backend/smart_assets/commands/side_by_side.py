"""Doing several things at a time."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(act: Callable[[Item], Result], items: Iterable[Item], count: int) -> Iterator[tuple[Item, Future[Result]]]:
    """`act` of every item, `count` at a time, and what came of it in the items' order; a few ahead of who asks.

    Who stops asking, and leaves, does not wait for what is under way: it ends with the process.
    """
    tasks: queue.SimpleQueue[tuple[Item, Future[Result]] | None] = queue.SimpleQueue()

    def work() -> None:
        while (task := tasks.get()) is not None:
            item, future = task
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(act(item))
                except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
                    future.set_exception(error)

    threads = 0
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in items:
            if threads < count:
                threading.Thread(target=work, daemon=True).start()
                threads += 1
            waiting.append((item, Future()))
            tasks.put(waiting[-1])
            if len(waiting) >= 2 * count:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        for _, future in waiting:
            future.cancel()
        for _ in range(threads):
            tasks.put(None)
