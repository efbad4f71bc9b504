"""One budget of memory for what all processes of the service on a machine render at a time.

Each process has a file in its scratch directory that is as long as what its own workers take just now: empty but for
its length, so that it fits on a full disk, and of no account once its owner is gone, however it went. There is no lock
for a process that was stopped to keep: who wants memory claims it first, and looks at the others' claims then.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from smart_assets import scratch

logger = logging.getLogger(__name__)

CLAIM = "rendering"


class MemoryBudget:
    """What this process has of it, and how to get more. For the event loop's own thread; close it when done."""

    def __init__(self, total_bytes: int, own: Path) -> None:
        """`own` is this process's scratch directory; those beside it are the other processes'."""
        self._total = total_bytes
        self._own = own
        self._taken = 0
        self._claim = os.open(own / CLAIM, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def take(self, memory_bytes: int) -> bool:
        """Take so much, or nothing: False where it does not fit into what is left.

        More than there is in all is given to who asks while nobody has any. Of two processes that ask at the same
        moment for the last of it, both may be refused; so is who cannot see the others' claims just now.
        """
        before = self._taken
        self._set(before + memory_bytes)
        fits = False
        try:
            in_use = before + self._of_others()
            fits = not in_use or in_use + memory_bytes <= self._total
        except OSError as error:  # too many open files, say
            logger.warning("could not see what other processes take", extra={"error": repr(error)})
        finally:
            if not fits:
                self._set(before)
        return fits

    def give_back(self, memory_bytes: int) -> None:
        """What was taken is free again."""
        self._set(self._taken - memory_bytes)

    def close(self) -> None:
        """Have no part in it any more; more than once does no harm."""
        if self._claim >= 0:
            os.close(self._claim)
            self._claim = -1

    def _set(self, memory_bytes: int) -> None:
        if self._claim >= 0:
            os.ftruncate(self._claim, memory_bytes)
        self._taken = memory_bytes

    def _of_others(self) -> int:
        taken = 0
        for claim in self._own.parent.glob(f"{scratch.PREFIX}*/{CLAIM}"):
            if claim.parent != self._own:
                try:
                    claimed = claim.stat().st_size
                except FileNotFoundError:  # closed just now
                    continue
                if claimed and scratch.is_in_use(claim.parent):
                    taken += claimed
        return taken
