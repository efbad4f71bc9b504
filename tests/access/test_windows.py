"""Windows: never more than the quota, exact about when there is room again, and counted somewhere whatever happens."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from limits import RateLimitItem, parse

from smart_assets.access.windows import PAUSE_SECONDS, Counting, ProcessStorage, Redis, Window
from smart_assets.errors import ConfigurationError
from tests.hostile.counting import tried

ANN = "ann"


@dataclass
class Clock:
    """Goes on when a test says."""

    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def counting(clock: Clock, *, most: int = 1000) -> Counting:
    return Counting(ProcessStorage(clock, most))


async def used(windows: Counting, rate: RateLimitItem, who: str = ANN, *, tries: int) -> int:
    """How many of so many uses there was room for."""
    return sum([await windows.use(rate, who, 1) for _ in range(tries)])


async def test_there_is_room_for_the_quota_and_for_no_more() -> None:
    windows, rate = counting(Clock()), parse("5/minute")
    assert await used(windows, rate, tries=9) == 5
    assert (await windows.look(rate, ANN)).remaining == 0
    assert await used(windows, rate, "bob", tries=9) == 5, "everybody has their own"


async def test_what_does_not_fit_uses_nothing() -> None:
    windows, rate = counting(Clock()), parse("100/minute")
    assert await windows.use(rate, ANN, 60)
    assert not await windows.use(rate, ANN, 60)
    assert (await windows.look(rate, ANN)).remaining == 40
    assert await windows.use(rate, ANN, 40)


async def test_around_a_turn_nobody_has_twice_the_quota() -> None:
    clock, rate = Clock(), parse("10/minute")
    windows = counting(clock)
    assert await windows.use(rate, ANN, 1)
    clock.now += 59
    assert await used(windows, rate, tries=10) == 9
    clock.now += 2
    assert await used(windows, rate, tries=10) <= 1
    clock.now += 29
    assert 4 <= await used(windows, rate, tries=10) <= 5, "half of the slot before counts"
    clock.now += 120
    assert await used(windows, rate, tries=20) == 10, "long ago is forgotten"


@given(
    quota=st.integers(1, 50),
    seconds=st.integers(1, 100),
    steps=st.lists(st.tuples(st.floats(0, 150), st.integers(1, 60)), min_size=1, max_size=30),
)
def test_the_wait_that_is_told_is_as_long_as_it_has_to_be(
    quota: int, seconds: int, steps: list[tuple[float, int]]
) -> None:
    async def play() -> None:
        clock, rate = Clock(), parse(f"{quota}/{seconds} seconds")
        windows = counting(clock)
        for pause, cost in steps:
            clock.now += pause
            window = await windows.look(rate, ANN)
            wait = window.wait(cost)
            fits = await windows.use(rate, ANN, cost)
            assert fits == (wait == 0)
            assert (wait == math.inf) == (cost > quota)
            if fits:
                assert (await windows.look(rate, ANN)).wait(quota) == pytest.approx(window.used(cost).wait(quota))
            elif wait < math.inf:
                clock.now += max(0, wait - 0.01)
                assert wait < 0.02 or not await windows.use(rate, ANN, cost)
                clock.now += 0.02
                assert await windows.use(rate, ANN, cost)

    with tried("sequences of uses of a limit"):
        asyncio.run(play())


async def test_only_so_many_windows_are_kept_and_the_ones_in_use_stay() -> None:
    windows, rate = counting(Clock(), most=3), parse("2/minute")
    for who in ("a", "b", "c", "a", "d"):
        assert await windows.use(rate, who, 1)
    assert [(await windows.look(rate, who)).remaining for who in "abcd"] == [0, 2, 1, 1]


def test_an_unused_window_has_all_of_it() -> None:
    assert Window(5, 60).remaining == 5
    assert Window(5, 60).wait(5) == 0
    assert Window(5, 60).used(2).wait(4) == 60


# ── A Redis that is away ────────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def silent_server() -> AsyncIterator[str]:
    """Where connections are taken and never a word is said."""
    taken: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: taken.append(writer), "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        for writer in taken:
            writer.close()
        server.close()
        await server.wait_closed()


async def closed_port() -> str:
    async with silent_server() as url:
        return url


def redis(url: str, alone: Counting, clock: Clock) -> Redis:
    return Redis(url, timeout=0.05, alone=alone, clock=clock)


async def test_while_redis_is_gone_the_same_limits_hold_in_the_process(caplog: pytest.LogCaptureFixture) -> None:
    clock, rate = Clock(), parse("3/minute")
    windows = redis(await closed_port(), counting(clock), clock)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            clock.now += PAUSE_SECONDS + 1
            assert await windows.run(lambda counting: counting.use(rate, ANN, 1))
        assert not await windows.run(lambda counting: counting.use(rate, ANN, 1))
    ours = [record.message for record in caplog.records if record.name.startswith("smart_assets")]
    assert ours == ["Redis does not answer: limits are counted in each process alone"]
    await windows.close()


async def test_a_redis_that_never_answers_is_asked_once_in_a_while_by_one_request() -> None:
    rate, clock, asked = parse("1000/minute"), Clock(), 0
    alone = counting(clock)

    async def use(counting: Counting) -> bool:
        nonlocal asked
        asked += counting is not alone
        return await counting.use(rate, ANN, 1)

    async with silent_server() as url:
        windows = redis(url, alone, clock)

        async def ask(times: int) -> int:
            assert all(await asyncio.gather(*(windows.run(use) for _ in range(times))))
            return asked

        assert await ask(1) == 1
        assert await ask(50) == 1, "nobody waits for it again"
        clock.now += PAUSE_SECONDS + 1
        assert await ask(50) == 2, "but for one, after a while"
        assert await ask(50) == 2
        assert (await alone.look(rate, ANN)).remaining == 1000 - 151
        await windows.close()


async def test_a_request_that_is_late_where_others_are_answered_does_not_send_them_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    alone = counting(clock)
    windows = redis("redis://127.0.0.1:9", alone, clock)
    begun = asyncio.Event()

    async def late(counting: Counting) -> bool:
        if counting is not alone:
            begun.set()
            await asyncio.Event().wait()
        return counting is alone

    async def prompt(counting: Counting) -> bool:
        return counting is alone

    waiting = asyncio.create_task(windows.run(late))
    await begun.wait()
    assert not await windows.run(prompt)
    assert await waiting, "it is counted here"
    assert not await windows.run(prompt), "the others are not"
    assert not [record for record in caplog.records if record.name.startswith("smart_assets")]
    assert await windows.run(late)
    assert await windows.run(prompt), "nobody was answered: it is away"
    await windows.close()


def test_without_its_extra_redis_is_refused_with_the_extra_s_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(ConfigurationError, match=r"smart-assets\[redis\]"):
        redis("redis://127.0.0.1:9", counting(Clock()), Clock())


@pytest.mark.parametrize(
    "url",
    [
        "redis://:ses/ame@127.0.0.1:6379",
        "redis://:sesame@127.0.0.1:no",
        "redis://:sesame@127.0.0.1/?socket_timeout=soon",
        "redis://:sesame@127.0.0.1/?sesame=1",
    ],
)
def test_a_url_that_leads_nowhere_is_said_at_the_start_and_never_a_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match="ASSETS_REDIS_URL") as refused:
        Redis(url, timeout=1, alone=counting(Clock()))
    assert "ses" not in str(refused.value)
