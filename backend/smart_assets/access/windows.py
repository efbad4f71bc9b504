"""Counting what was used of a quota in a sliding window of time, in this process or in Redis for all of them.

`limits` counts: what was used in the slot of time that runs, and of the slot before as much as the window still covers
of it. So nobody has twice the quota around a turn of the clock, and a quota costs two numbers, however large it is.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from limits import RateLimitItem
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from smart_assets import observability
from smart_assets.errors import ConfigurationError

logger = logging.getLogger(__name__)

T = TypeVar("T")
Clock = Callable[[], float]

MOST_WINDOWS: Final = 50_000
"""A process keeps so many, some 20 MB; past it those that were used the longest ago are forgotten."""

PAUSE_SECONDS: Final = 5.0
"""So long Redis is left alone when it did not answer; then one request tries it again."""

_CONNECTIONS: Final = 16
_KEY_PREFIX: Final = "smart-assets"
_MOMENT: Final = 0.001


@dataclass(frozen=True)
class Window:
    """What of a `quota` is used, in the slot of `seconds` that ended last and in the one that runs.

    `previous_left` is how long the earlier one still counts in part, `current_left` the same of the one that runs.
    """

    quota: int
    seconds: int
    previous: int = 0
    previous_left: float = 0
    current: int = 0
    current_left: float = 0

    @property
    def remaining(self) -> int:
        """What may be used at once."""
        return max(0, self.quota - math.floor(self.previous * self.previous_left / self.seconds) - self.current)

    def wait(self, cost: int) -> float:
        """In how many seconds there is room for `cost`, where nothing else is used: 0 for now, inf for never."""
        if cost > self.quota:
            return math.inf
        if cost <= self.remaining:
            return 0
        room = self.quota - cost - self.current
        if room >= 0:  # when less of the earlier slot counts
            found = self.previous_left - (room + 1) * self.seconds / self.previous
        else:  # when this slot is the earlier one, and less of it counts
            found = self.current_left - (self.quota - cost + 1) * self.seconds / self.current
        return max(found, _MOMENT)

    def used(self, cost: int) -> Window:
        """The window when `cost` more was used."""
        return replace(self, current=self.current + cost, current_left=self.current_left or 2 * self.seconds)


class ProcessStorage(MemoryStorage):
    """What `limits` keeps in memory, but for its windows.

    At each hit it looks through all there are, and it goes by a clock that can be set; of these there are at most
    `most`, by a clock that only goes on. As in Redis, a slot begins with the first use.
    """

    def __init__(self, clock: Clock = time.monotonic, most: int = MOST_WINDOWS) -> None:
        """`clock` in seconds."""
        super().__init__()
        self._clock = clock
        self._most = most
        self._slots: OrderedDict[str, _Slots] = OrderedDict()

    async def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Use `amount`; False, and nothing used, where there is no room for it."""
        window = Window(limit, expiry, *await self.get_sliding_window(key, expiry))
        if amount > window.remaining:
            return False
        slots = self._slots.setdefault(key, _Slots(self._clock()))
        self._slots.move_to_end(key)
        slots.current += amount
        if len(self._slots) > self._most:
            self._slots.popitem(last=False)
        return True

    async def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """What was used in the earlier slot, how long it still counts, and both of the slot that runs."""
        slots = self._slots.get(key)
        if slots is None:
            return 0, 0.0, 0, 0.0
        age = self._clock() - slots.began
        if age >= 2 * expiry:
            del self._slots[key]
            return 0, 0.0, 0, 0.0
        if age >= expiry:
            slots.began, slots.previous, slots.current = slots.began + expiry, slots.current, 0
            age -= expiry
        return slots.previous, expiry - age, slots.current, 2 * expiry - age


@dataclass
class _Slots:
    began: float
    previous: int = 0
    current: int = 0


class Counting:
    """Windows that are kept in one place."""

    def __init__(self, storage: Any) -> None:
        """`storage` of `limits`."""
        self._storage = storage
        self._limiter = SlidingWindowCounterRateLimiter(storage)

    async def look(self, rate: RateLimitItem, who: str) -> Window:
        """How it stands with what `who` may use."""
        found = await self._storage.get_sliding_window(rate.key_for(who), rate.get_expiry())
        return Window(rate.amount, rate.get_expiry(), *found)

    async def use(self, rate: RateLimitItem, who: str, cost: int) -> bool:
        """Use `cost` of it; False, and nothing used, where there is no room for it."""
        return await self._limiter.hit(rate, who, cost=cost)


class Redis:
    """Windows that all processes have together; in this process alone for as long as Redis does not answer.

    A request waits for it `timeout` seconds at most, and once in PAUSE_SECONDS while it is away.
    """

    def __init__(self, url: str, *, timeout: float, alone: Counting, clock: Clock = time.monotonic) -> None:
        """Connects with the first use. ConfigurationError where the extra is missing or the URL cannot be used."""
        try:
            from limits.aio.storage import RedisStorage
            from redis.asyncio import BlockingConnectionPool
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
            from redis.exceptions import RedisError
        except ImportError as error:
            raise ConfigurationError(
                "ASSETS_REDIS_URL needs the extra smart-assets[redis] (or make serve EXTRAS=redis)"
            ) from error
        try:
            self._pool = BlockingConnectionPool.from_url(
                url,
                max_connections=_CONNECTIONS,
                timeout=timeout,
                socket_timeout=timeout,
                socket_connect_timeout=timeout,
                retry=Retry(NoBackoff(), 1),  # a connection that has gone stale is not a server that is gone
            )
            # Connects to nothing, but knows what it may be told.
            self._pool.make_connection()  # type: ignore[no-untyped-call]
        except (TypeError, ValueError):  # what these say may hold some of the password
            raise ConfigurationError(
                "ASSETS_REDIS_URL cannot be read: redis://user:password@host:6379/0, in which special characters of "
                "user and password are percent-encoded"
            ) from None
        pool: Any = self._pool  # narrower types are declared for it than it takes
        storage = RedisStorage("async+redis://", implementation="redispy", key_prefix=_KEY_PREFIX, connection_pool=pool)
        self._together = Counting(storage)
        self._alone = alone
        self._timeout = timeout
        self._clock = clock
        self._failures = (RedisError, OSError, TimeoutError)
        self._answers = 0
        self._again_at: float | None = None
        """While it is away: when it is tried again."""

    async def close(self) -> None:
        """Let its connections go."""
        await self._pool.disconnect()

    async def run(self, act: Callable[[Counting], Awaitable[T]]) -> T:
        """What `act` makes of the windows; it may be run twice, the second time over this process's own."""
        if not self._is_to_be_asked():
            return await act(self._alone)
        answers = self._answers
        try:
            async with asyncio.timeout(self._timeout):
                found = await act(self._together)
        except self._failures as error:
            observability.BACKGROUND_FAILURES.labels("count_in_redis").inc()
            # Where others have their answers meanwhile it is there, and it is this process that is late.
            if self._answers == answers:
                self._note_absence(error)
            return await act(self._alone)
        self._answers += 1
        if self._again_at is not None:
            self._again_at = None
            logger.warning("Redis answers again: limits are counted for all processes together")
        return found

    def _is_to_be_asked(self) -> bool:
        if self._again_at is None:
            return True
        if self._clock() < self._again_at:
            return False
        self._again_at = self._clock() + PAUSE_SECONDS  # by this request alone
        return True

    def _note_absence(self, error: BaseException) -> None:
        if self._again_at is None:
            logger.error(
                "Redis does not answer: limits are counted in each process alone", extra={"cause": repr(error)}
            )
        self._again_at = self._clock() + PAUSE_SECONDS


class Alone:
    """Windows of this process, where no Redis is set."""

    def __init__(self, alone: Counting) -> None:
        """Over those."""
        self._alone = alone

    async def close(self) -> None:
        """Nothing is open."""

    async def run(self, act: Callable[[Counting], Awaitable[T]]) -> T:
        """What `act` makes of the windows."""
        return await act(self._alone)
