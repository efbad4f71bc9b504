"""Playing: start the service, work it, kill it, wait until all is settled, audit.

Everything happens in *yards*: a data directory each, the services over it, and the ledger of what their callers were
told. Several yards are worked side by side, since most of the time goes by waiting for a lease to run out.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random

from tests.tables import keep_elsewhere
from tests.torture.audit import Audit, audit, is_settled
from tests.torture.callers import LATER_SIZES, SIZES, Callers, Unanswered, damaged, large, photo
from tests.torture.ledger import Answer, Asset, Fate, Found, Ledger, Upload
from tests.torture.places import Folder, Place, files_below
from tests.torture.process import START_SECONDS, Service, Starter, starter
from tests.torture.scenes import REQUESTS, Stage
from tests.torture.steps import CELLAR, NAMED, PRICES, Remains, Scene, Step

SETTLING_SECONDS = 30
DYING_SECONDS = 20
ENDING_SECONDS = 5
CONNECTIONS = 6
_LOOKS = 5
_MOST_ASSETS = 6
_MOST_ANSWERS = 40
_TRIES = 3
_SETTINGS = {"ASSETS_LEASE_SECONDS": "1", "ASSETS_IMAGING__WORKERS": "1", "ASSETS_LOG_FORMAT": "json"}


@dataclass
class Tally:
    """What came of it all."""

    kills: int = 0
    batches: int = 0
    reached: set[str] = field(default_factory=set)
    torn: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    """Wrong all the same: an answer nobody should get, a step that was not reached."""
    slowest: float = 0
    """The longest time, in seconds, from a death until all was settled."""

    @property
    def findings(self) -> list[str]:
        """All that is wrong."""
        return [*self.torn, *self.leaked, *self.strange]

    def __str__(self) -> str:
        return f"{self.kills} kills, {self.batches} batches, {len(self.torn)} torn, {len(self.leaked)} leaked"


@dataclass(frozen=True)
class _Death:
    """How a service died: at a step that was reached, or at random, and what it was asked for."""

    name: str
    step: Step | None = None
    about: Upload | Asset | None = None
    at: float = field(default_factory=time.monotonic)


class Yard:
    """One data directory.

    With an heir, a second process shares it, which is never killed and picks up what the others leave; without, each
    service that is started finishes what the one before left.
    """

    def __init__(
        self, folder: Path, tally: Tally, place: Place, starter: Starter, *, has_heir: bool, database: str | None = None
    ) -> None:
        """In `folder`, which is there already; `database` is the catalogue's URL, where that is not a file."""
        self.is_sound = True
        """Whether nothing was found yet."""
        self._folder = folder
        self._data_dir = folder / "data"
        self._elsewhere = folder / "elsewhere"
        self._place = place
        self._places = (place, Folder(self._data_dir, CELLAR, CELLAR))
        self._tally = tally
        self._starter = starter
        self._has_heir = has_heir
        self._ledger = Ledger()
        self._callers = Callers(self._ledger, place.storage)
        self._services: list[Service] = []
        self._last: _Death | None = None
        self._database: dict[str, str] = {}
        if database is not None:
            self._database["ASSETS_DATABASE_URL"] = database
            keep_elsewhere(self._data_dir, database)

    # ── Services ────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _living(self) -> list[Service]:
        return [service for service in self._services if service.lives]

    def _start(self, step: Step | None = None, *, armed: bool = False) -> Service:
        self._elsewhere.mkdir(exist_ok=True)
        own = {"ASSETS_DATA_DIR": str(self._data_dir), "TMPDIR": str(self._elsewhere)}
        prices = {f"ASSETS_CREDITS__{name.upper()}": str(price) for name, price in PRICES.items()}
        settings = {**own, **_SETTINGS, **prices, **self._database, **self._place.settings}
        service = self._starter.start(self._folder / f"service-{len(self._services)}", settings, step, armed=armed)
        self._services.append(service)
        return service

    async def _new(self, step: Step | None = None) -> Service:
        """A service that is ready, over a data directory where all is settled."""
        if self._has_heir and not self._services:
            await self._start().ready()
        service = self._start(step)
        if not await service.ready():
            raise RuntimeError(f"the service did not start:\n{service.output}")
        await self._callers.top_up(service.url)
        await self._settle()
        return service

    async def _killed(self, death: _Death) -> None:
        """A service is dead: where there is an heir, see what it makes of that."""
        self._tally.kills += 1
        self._last = death
        if self._has_heir:
            await self._settle()

    async def close(self) -> None:
        """End in good order, and look once more: now nothing may be left of any process."""
        try:
            if self._last is not None and self.is_sound:
                await self._new()
            for service in self._living:
                await service.stop()
            for service in self._services:
                if not service.ended_well:
                    self._tally.strange.append(f"a service did not end in good order:\n{service.output}")
            if self.is_sound:
                await self._found("the end", ENDING_SECONDS)
        finally:
            for service in self._services:
                service.end_all()
            await self._callers.close()
            self._tally.batches += self._callers.uploads
            self._tally.strange += self._callers.strange

    # ── After a death ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _settle(self) -> None:
        """Send again what callers would, wait until an audit finds nothing, and hold it against the last step."""
        if self._last is None:
            return
        death, self._last = self._last, None
        url = self._living[0].url
        await self._callers.retry(url)
        self._ledger.learn(await self._found(death.name, SETTLING_SECONDS))
        self._tally.slowest = max(self._tally.slowest, time.monotonic() - death.at)
        if death.step and death.about and not _remains(death.step.remains, death.about):
            self._tally.torn.append(f"{death.name}: did not end {death.step.remains.name}, but as {death.about}")
            self.is_sound = False
        for asset in self._worth_a_look(death.about):
            await self._callers.look(url, asset)

    async def _found(self, name: str, seconds: float) -> dict[str, list[Found]]:
        """What there is once an audit has nothing to say against it, or so many seconds are over."""
        deadline = time.monotonic() + seconds
        while True:
            is_over = time.monotonic() > deadline
            if is_over or is_settled(self._data_dir, len(self._living)):
                result = await asyncio.to_thread(self._audit)
                if is_over or not result.findings:
                    break
            await asyncio.sleep(0.05)
        self._tally.torn += [f"{name}: {what}" for what in result.torn]
        self._tally.leaked += [f"{name}: {what}" for what in result.leaked]
        self.is_sound = self.is_sound and not result.findings
        return result.found

    def _audit(self) -> Audit:
        result = audit(self._data_dir, self._places, self._ledger, len(self._living))
        for service in self._services:
            result.leaked += [f"process {pid} runs on though its service is gone" for pid in service.left_running()]
        result.leaked += [f"file {path}, outside the data directory" for path in files_below(self._elsewhere)]
        return result

    def _worth_a_look(self, about: Upload | Asset | None) -> list[Asset]:
        if isinstance(about, Asset):
            return [about]
        if isinstance(about, Upload):
            return about.assets
        return list(self._ledger.assets())[-_LOOKS:]

    # ── Named steps ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def play(self, step: Step) -> None:
        """Kill a service at the step; what remains is looked at when the next one has settled it."""
        for _ in range(_TRIES):
            if await self._play(step):
                self._tally.reached.add(step.name)
                return
            # With an heir, a machine that stops for longer than a lease lets it take over what is still being done.
        self._tally.strange.append(f"{step.name}: was not reached")

    async def _play(self, step: Step) -> bool:
        if step.scene is Scene.START:
            return await self._die_unasked(step, None)
        first = NAMED[step.after] if step.scene is Scene.REPAIR else step
        service = await self._new(first)
        about = await REQUESTS[first.scene](Stage(service, self._callers, self._ledger))
        if not await service.ended(DYING_SECONDS):
            await service.kill()
        reached = service.died_at == first.name
        if reached and first is not step:
            self._tally.kills += 1
            return await self._die_unasked(step, about)
        await self._killed(_Death(step.name, step if reached else None, about))
        return reached

    async def _die_unasked(self, step: Step, about: Upload | Asset | None) -> bool:
        """Start a service that dies while it starts, or while it repairs."""
        service = self._start(step, armed=True)
        if not await service.ended(START_SECONDS):
            await service.kill()
        await self._killed(_Death(step.name, step, about))
        return service.died_at == step.name

    # ── Random kills ────────────────────────────────────────────────────────────────────────────────────────────────

    async def storm(self, name: str, random: Random) -> None:
        """Work from several connections, and kill a service in the middle of it."""
        victim = await self._new()
        over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for number in range(CONNECTIONS):
                group.create_task(self._work(number, Random(random.random()), over))
            await self._answers(random.randint(1, _MOST_ANSWERS))
            await asyncio.sleep(random.random() / 20)
            await victim.kill()
            if self._has_heir:
                await self._answers(random.randint(1, 20))
            over.set()
        await self._killed(_Death(name))

    async def _answers(self, more: int) -> None:
        enough = self._callers.answers + more
        while self._callers.answers < enough and self._living:
            await asyncio.sleep(0.002)

    async def _work(self, number: int, random: Random, over: asyncio.Event) -> None:
        """One caller's requests, each to any service that lives. Callers share services, and no assets."""
        while not over.is_set() and (living := self._living):
            urls = [random.choice(living).url for _ in range(2)]
            own = [asset for asset in self._ledger.kept() if int(asset.id[-4:], 16) % CONNECTIONS == number]
            with suppress(Unanswered):
                await self._request(urls, own, random)

    async def _request(self, urls: list[str], own: list[Asset], random: Random) -> None:
        callers, url = self._callers, urls[0]
        keyed, visibility = random.random() < 0.5, random.choice(["public", "private"])
        sizes = random.choice([(), SIZES[:1], SIZES])
        kinds = ["file", "large", "batch", "damaged", "change", "move", "grow", "delete"]
        what = random.choices(kinds, [6, 1, 3, 1, 5, 5, 3, 4])[0]
        small = [asset for asset in own if asset.added == {()}]
        if what == "grow" and small:
            await callers.grow(url, random.choice(small))
        elif what == "change" and own:
            await callers.change(url, random.choice(own), visibility)
        elif what == "move" and own:
            await callers.move(url, random.choice(own), random.choice([callers.storage, CELLAR]))
        elif (what == "delete" and own) or len(own) > _MOST_ASSETS:
            await callers.delete(url, random.choice(own))
        else:
            contents = {"large": [large()], "damaged": [photo(random.randrange(9)), damaged()]}.get(what, [])
            if what == "batch":
                upload = callers.new_batch(random.randint(2, 3), sizes=sizes, visibility=visibility, keyed=keyed)
            else:
                batch = what == "damaged"
                sizes = SIZES if what == "damaged" else sizes  # without any, nobody would see the damage
                upload = callers.new_upload(*contents, sizes=sizes, visibility=visibility, batch=batch, keyed=keyed)
            # Some are impatient, and send the same a second time beside the first.
            sent = urls if keyed and random.random() < 0.3 else urls[:1]
            answers = await asyncio.gather(*(callers.send(to, upload) for to in sent), return_exceptions=True)
            for answer in answers:
                if isinstance(answer, BaseException):
                    raise answer


def _remains(remains: Remains, about: Upload | Asset) -> bool:
    """Whether that is what became of it."""
    if isinstance(about, Asset):
        visibility = {Remains.PRIVATE: "private", Remains.PUBLIC: "public"}.get(remains)
        added = {Remains.AS_BEFORE: (), Remains.GROWN: LATER_SIZES}.get(remains)
        if remains is Remains.NOTHING:
            return about.fate is Fate.GONE
        if remains in {Remains.STAYED, Remains.MOVED}:
            return about.fate is Fate.KEPT and (about.storages == {CELLAR}) == (remains is Remains.MOVED)
        is_so = visibility is None or about.visibilities == {visibility}
        return about.fate is Fate.KEPT and is_so and (added is None or about.added == {added})
    if about.key:
        return about.replayed == (remains is not Remains.NOTHING)
    return (about.answer is Answer.MADE) == (remains is Remains.WHOLE)


# ── All of it ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Grounds:
    """Where yards are laid out: so many at once, each with a `place` of its own for its data directory's objects, and
    a `database` of its own where that is not in the data directory."""

    folder: Path
    yards: int
    place: Callable[[Path], Place] = Folder
    has_heirs: bool = False
    database: Callable[[], str | None] = lambda: None

    async def play(self, tally: Tally, steps: Sequence[Step]) -> None:
        """Kill a service at each of the steps."""
        # A service starts over nothing only once in a yard, and what an heir repairs nobody else does.
        on_nothing = deque(step for step in steps if step.scene is Scene.START and not self.has_heirs)
        unasked = {Scene.START, Scene.REPAIR} if self.has_heirs else {Scene.START}
        others = deque(step for step in steps if step.scene not in unasked)

        def plays(yard: Yard) -> Iterator[Awaitable[None]]:
            if on_nothing:
                yield yard.play(on_nothing.popleft())
            while others:
                yield yard.play(others.popleft())

        await self._side_by_side(tally, plays, lambda: bool(on_nothing or others))

    async def storm(self, tally: Tally, kills: int, seed: int) -> None:
        """Kill so many services while they work."""
        left = deque(range(1, kills + 1))

        def storms(yard: Yard) -> Iterator[Awaitable[None]]:
            while left:
                number = left.popleft()
                yield yard.storm(f"kill {number}", Random(f"{seed}/{number}"))

        await self._side_by_side(tally, storms, lambda: bool(left))

    async def _side_by_side(
        self, tally: Tally, acts: Callable[[Yard], Iterator[Awaitable[None]]], are_left: Callable[[], bool]
    ) -> None:
        """Take acts from a common supply, in each yard until something is found there, then in a new one."""
        numbers = count()

        async def fill(services: Starter) -> None:
            while are_left():
                folder = self.folder / f"yard-{next(numbers)}"
                folder.mkdir(parents=True)
                place, database = self.place(folder / "data"), self.database()
                yard = Yard(folder, tally, place, services, has_heir=self.has_heirs, database=database)
                try:
                    for act in acts(yard):
                        await act
                        if not yard.is_sound:
                            break
                finally:
                    await yard.close()

        with starter() as services:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.yards):
                    group.create_task(fill(services))
