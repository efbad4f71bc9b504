"""Several steps of one piece of work at once: side by side, and together or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def all_or_first_error(*work: Coroutine[Any, Any, T]) -> list[T]:
    """Run all of `work` at once; at the first error the others are cancelled, waited for, and it comes out alone."""
    if len(work) == 1:
        return [await work[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(step) for step in work]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
