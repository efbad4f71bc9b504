"""Inside a rendering worker: its limits, and its work. `workers` is the other side.

Imported by both sides, so libvips is loaded only when a worker starts.
"""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import resource
import signal
import threading
import time
from pathlib import Path

from smart_assets.imaging.jobs import RenderJob, RenderResult


def prepare(memory_bytes: int) -> None:
    """Set this process's limits, before its first job; `memory_bytes` is how much it may take beyond being idle."""
    from smart_assets.imaging import render  # noqa: F401 - loads libvips, before the address space is measured

    # The pool ends a worker by SIGKILL. SIGTERM is what a supervisor sends to the whole group, and SIGINT a terminal:
    # the service then lets its running requests finish, and they need their workers. pebble ignores SIGINT already.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _use_one_arena()
    if mapped := _address_space():
        # What an idle worker has mapped is libraries for the most part, and no use of memory.
        resource.setrlimit(resource.RLIMIT_AS, (mapped + memory_bytes, mapped + memory_bytes))


def _follow_parent() -> None:
    """End this process when the service is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _use_one_arena() -> None:
    """Have all threads allocate from one arena: glibc otherwise maps 64 MiB for each, and gives back less."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-8, 1)  # M_ARENA_MAX of <malloc.h>


def _address_space() -> int:
    """Bytes of address space this process has mapped; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return 0
    return pages * resource.getpagesize()


def work(job: RenderJob, timeout: float) -> RenderResult:
    """Render. The process is killed by the system once it has used twice `timeout` seconds of CPU."""
    from smart_assets.imaging.render import render

    # The pool's own clock stops a slow job; this one holds where nobody is left to look at that. Two threads can be
    # busy at once.
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + 2 * timeout) + 5, hard))
    return render(job)
