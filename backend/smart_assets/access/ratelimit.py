"""How much a caller may ask for in a time, with one key and from one address."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

from limits import RateLimitItem, parse

from smart_assets import observability
from smart_assets.access.windows import Alone, Counting, ProcessStorage, Redis, Window
from smart_assets.errors import BodyTooLarge, RateLimited
from smart_assets.settings import Settings

Subject = Literal["key", "address"]

PIECE_BYTES: Final = 1024 * 1024
"""Of a body that does not say how long it is, so much is read before it is counted."""


class Use(StrEnum):
    """What is counted."""

    UPLOADS = "uploads"
    UPLOAD_BYTES = "upload_bytes"
    READS = "reads"
    DELIVERIES = "deliveries"
    FAILED_KEYS = "failed_keys"


@dataclass(frozen=True)
class Limit:
    """So much of one use by one kind of subject, in so much time."""

    use: Use
    subject: Subject
    rate: RateLimitItem

    @property
    def name(self) -> str:
        """As callers and operators read it."""
        return self.rate.namespace


@dataclass(frozen=True)
class Standing:
    """What of a limit is left to whom a request is from, and in how many whole seconds there will be more."""

    limit: Limit
    remaining: int
    more_in: int


@dataclass(frozen=True)
class Outcome:
    """How limits stand; `refused` is the one whose room is the longest to come, in `wait` seconds, if any lacks it."""

    standings: tuple[Standing, ...]
    refused: Limit | None = None
    wait: float = 0


class RateLimits:
    """The limits that are set, and how they stand."""

    def __init__(self, settings: Settings) -> None:
        """ConfigurationError where the settings cannot be used."""
        self._limits: dict[tuple[Use, Subject], Limit] = {}
        for use in Use:
            for subject in ("key", "address"):
                text = getattr(settings.limits, f"{use}_per_{subject}", None)
                if text is not None:
                    self._limits[use, subject] = Limit(use, subject, parse_rate(text, f"{use}-per-{subject}"))
        alone = Counting(ProcessStorage())
        self._windows: Redis | Alone = Alone(alone)
        if settings.redis_url is not None and self._limits:
            timeout = settings.limits.redis_timeout_seconds
            self._windows = Redis(settings.redis_url.get_secret_value(), timeout=timeout, alone=alone)

    async def close(self) -> None:
        """Let go what is open."""
        await self._windows.close()

    def on(self, use: Use, *subjects: Subject) -> list[Limit]:
        """The limits there are on it."""
        return [self._limits[use, subject] for subject in subjects if (use, subject) in self._limits]

    async def use(self, limits: list[tuple[Limit, str]], cost: int) -> Outcome:
        """Use `cost` of each limit, by whom it says: of all, or of none of them where one has no room.

        Of some, where others take the room meanwhile.
        """

        async def act(counting: Counting) -> Outcome:
            windows = [await counting.look(limit.rate, who) for limit, who in limits]
            waits = [window.wait(cost) for window in windows]
            for index, (limit, who) in enumerate(limits if not any(waits) else ()):
                if not await counting.use(limit.rate, who, cost):  # somebody else was faster
                    windows[index] = await counting.look(limit.rate, who)
                    waits[index] = max(windows[index].wait(cost), 1)
                    break
                windows[index] = windows[index].used(cost)
            return _outcome(limits, windows, waits)

        return await self._windows.run(act)

    async def use_up(self, limits: list[tuple[Limit, str]]) -> Outcome:
        """Use what is left of each limit."""

        async def act(counting: Counting) -> Outcome:
            windows = [await counting.look(limit.rate, who) for limit, who in limits]
            for index, (limit, who) in enumerate(limits):
                if (left := windows[index].remaining) and await counting.use(limit.rate, who, left):
                    windows[index] = windows[index].used(left)
            return _outcome(limits, windows, [0.0 for _ in windows])

        return await self._windows.run(act)

    async def look(self, limits: list[tuple[Limit, str]]) -> Outcome:
        """Whether each limit has room for one more; nothing is used."""

        async def act(counting: Counting) -> Outcome:
            windows = [await counting.look(limit.rate, who) for limit, who in limits]
            return _outcome(limits, windows, [window.wait(1) for window in windows])

        return await self._windows.run(act)

    async def try_out(self) -> None:
        """Tell the operator, soon after the start, where Redis does not answer."""
        for limit in self._limits.values():
            await self.look([(limit, "nobody")])
            return


def parse_rate(text: str, name: str) -> RateLimitItem:
    """A rate as it stands in the settings, under the name of a limit."""
    rate = parse(text)
    rate.namespace = name.replace("_", "-")
    return rate


def _outcome(limits: list[tuple[Limit, str]], windows: list[Window], waits: list[float]) -> Outcome:
    """`waits`: in how many seconds there is room in each window for what was asked for."""
    standings = tuple(
        Standing(limit, window.remaining, math.ceil(wait or window.wait(min(window.remaining + 1, window.quota))))
        for (limit, _), window, wait in zip(limits, windows, waits, strict=True)
    )
    longest = max(waits)
    return Outcome(standings, limits[waits.index(longest)][0] if longest else None, longest)


class Turn:
    """One request as far as limits go: whom it is from, which of them it has met, and how they stand."""

    def __init__(self, limits: RateLimits, address: str) -> None:
        """`address` is where it is from."""
        self._limits = limits
        self._who: dict[Subject, str] = {"address": address}
        self._standings: dict[str, Standing] = {}

    @property
    def standings(self) -> Iterable[Standing]:
        """Of each limit that was met."""
        return self._standings.values()

    def is_with(self, key: str | None) -> None:
        """The request is with this key, that is good."""
        if key is not None:
            self._who["key"] = key

    async def use(self, use: Use, *subjects: Subject, cost: int = 1, whole: int = 1) -> None:
        """Use `cost` of every limit there is on it; RateLimited, and nothing used, where one has no room.

        BodyTooLarge where one never has, for this or for the `whole` that it is a part of.
        """
        limits = self._met(use, subjects)
        if limits and cost:
            for limit, _ in limits:
                if max(cost, whole) > limit.rate.amount:
                    raise BodyTooLarge(f"{limit.name} allows {_told(limit.rate)}, and never so much at once")
            self._settle(await self._limits.use(limits, cost))

    async def need(self, use: Use, *subjects: Subject) -> None:
        """RateLimited where there is no room for one more; nothing is used."""
        if limits := self._met(use, subjects):
            found = await self._limits.look(limits)
            if found.refused is not None:
                self._settle(found)

    async def use_up(self, use: Use, *subjects: Subject) -> None:
        """Use all that is left."""
        if limits := self._met(use, subjects):
            self._settle(await self._limits.use_up(limits))

    def meter(self) -> Meter | None:
        """For the bytes of an upload; None where they are not limited."""
        return Meter(self) if self._met(Use.UPLOAD_BYTES, ("address", "key")) else None

    def _met(self, use: Use, subjects: Iterable[Subject]) -> list[tuple[Limit, str]]:
        known = [subject for subject in subjects if subject in self._who]
        return [(limit, self._who[limit.subject]) for limit in self._limits.on(use, *known)]

    def _settle(self, outcome: Outcome) -> None:
        self._standings |= {standing.limit.name: standing for standing in outcome.standings}
        if (limit := outcome.refused) is not None:
            observability.labelled(observability.RATE_LIMITED, limit.name).inc()
            seconds = math.ceil(outcome.wait)
            raise RateLimited(
                f"{limit.name} allows {_told(limit.rate)}; try again in {seconds} seconds", retry_after=seconds
            )


def _told(rate: RateLimitItem) -> str:
    return f"{rate.amount} in {rate.get_expiry()} seconds"


class Meter:
    """The bytes of one upload, counted before they are read where that is known, else as they come.

    RateLimited where there are more than may be used. What came before that is used all the same, and what was left.
    """

    def __init__(self, turn: Turn) -> None:
        """The request's."""
        self._turn = turn
        self._seen = 0
        self._used = 0

    async def begin(self, declared: int | None) -> None:
        """The body says it has so many bytes; None where it does not say."""
        size = 1 if declared is None else declared  # at the least: nothing is read where nothing is left
        await self._turn.use(Use.UPLOAD_BYTES, "address", "key", cost=size)
        self._used = size

    async def count(self, size: int) -> None:
        """So many more have come."""
        self._seen += size
        if self._seen - self._used >= PIECE_BYTES:
            await self._catch_up()

    async def finish(self) -> None:
        """All have come."""
        if self._seen > self._used:
            await self._catch_up()

    async def _catch_up(self) -> None:
        try:
            cost = self._seen - self._used
            await self._turn.use(Use.UPLOAD_BYTES, "address", "key", cost=cost, whole=self._seen)
        except (RateLimited, BodyTooLarge):
            await self._turn.use_up(Use.UPLOAD_BYTES, "address", "key")
            raise
        self._used = self._seen
