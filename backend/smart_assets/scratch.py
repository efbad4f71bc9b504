"""Temporary directories that are gone when their process is.

Each is locked by its owner for as long as it lives; the kernel gives the lock back when the owner dies, however it
dies. So what nobody locks is nobody's, and may be removed: no clock is asked, and no list is kept.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

PREFIX = "process-"


class ScratchDirectory:
    """A new directory below `parent`, of mode 0700, that belongs to this process until `close`, or its death."""

    def __init__(self, parent: Path) -> None:
        """Makes the directory; OSError where that cannot be done."""
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
            with suppress(FileNotFoundError, BlockingIOError):  # a sweep came between making and locking
                self._descriptor = _locked(self.path)
                if self.path.exists():
                    return
                os.close(self._descriptor)

    @property
    def short_path(self) -> str:
        """A path to it for this process's lifetime, as short as the system has them: through the open descriptor."""
        short = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        return short if os.path.exists(short) else str(self.path)  # noqa: PTH110 - a link that leads nowhere else

    def close(self) -> None:
        """Remove the directory and what is in it; more than once does no harm."""
        if self._descriptor >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._descriptor)
            self._descriptor = -1


def sweep(parent: Path) -> int:
    """Remove the directories below `parent` whose processes are gone; how many there were."""
    removed = 0
    for path in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):  # gone already, in use, or not a directory of ours
            descriptor = _locked(path)
            shutil.rmtree(path, ignore_errors=True)
            os.close(descriptor)
            removed += 1
    return removed


def is_in_use(directory: Path) -> bool:
    """Whether the process a directory belongs to lives."""
    try:
        os.close(_locked(directory, fcntl.LOCK_SH))
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _locked(path: Path, kind: int = fcntl.LOCK_EX) -> int:
    """A descriptor that locks the directory; BlockingIOError where another has it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    return descriptor
