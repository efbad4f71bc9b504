"""`smart-assets`, but its wall clock is as far off as a file says: as if somebody had set it.

    CLOCK_AHEAD=/tmp/seconds python tests/faults/jumping_clock.py serve --port 0

Whatever asks for the time of day in the service's own process gets that one: by `time`, by `datetime`, and the maker of
the ids. The monotonic clock stays right, which no system ever sets; so do the times of files, which the system writes.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import datetime, tzinfo
from importlib import import_module
from pathlib import Path
from uuid import UUID

import uuid_utils.compat

_right_ns, _new_id = time.time_ns, uuid_utils.compat.uuid7


def _wrong_ns() -> int:
    try:
        ahead = int(Path(os.environ["CLOCK_AHEAD"]).read_text() or 0)
    except FileNotFoundError:
        ahead = 0
    return _right_ns() + ahead * 1_000_000_000


def _wrong() -> float:
    return _wrong_ns() / 1e9


def _id() -> UUID:
    return _new_id(nanoseconds=_wrong_ns())


class _AnyDatetime(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, datetime)


class _Datetime(datetime, metaclass=_AnyDatetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.fromtimestamp(_wrong(), tz)


def set_wrong() -> None:
    """From now on."""
    time.time, time.time_ns = _wrong, _wrong_ns
    vars(uuid_utils.compat)["uuid7"] = _id
    # Only now, so that whoever keeps the clock by its name keeps this one; `datetime`, of which models are made when
    # they are imported, after that.
    for name in ("main", "storage.local", "storage.memory"):
        import_module(f"smart_assets.{name}")
    for name, module in list(sys.modules.items()):
        if name.startswith("smart_assets.") and getattr(module, "datetime", None) is datetime:
            vars(module)["datetime"] = _Datetime


if __name__ == "__main__":
    set_wrong()
    from smart_assets.cli import main

    main()
