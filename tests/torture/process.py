"""The service as a process of its own, over a real port."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.torture.service import ARMED, DIED, ENDED, FOLDER, OUTPUT, SERVE, STEP, Order
from tests.torture.steps import Step

START_SECONDS = 60
_ROOT = Path(__file__).parents[2]
_READY = re.compile(r"ready at (\S+)")
_SETTINGS = ("ASSETS_", "AWS_", "CLOUDINARY_", "GOOGLE_", "AZURE_", "TORTURE_")


class Starter:
    """Starts services, quickly: see `tests.torture.service`."""

    def __init__(self, process: subprocess.Popen[str], environment: Mapping[str, str]) -> None:
        """Over a process that takes orders."""
        self._process = process
        self._environment = environment

    def start(self, folder: Path, settings: Mapping[str, str], step: Step | None, *, armed: bool) -> Service:
        """A service, from its first line; in a folder that is new, and its own. `step` is where it dies, once armed."""
        folder.mkdir(parents=True)
        if armed:
            (folder / ARMED).touch()
        fault = {} if step is None else {STEP: step.name, FOLDER: str(folder)}
        return self._run(folder, {**settings, **fault}, SERVE)

    def run(self, folder: Path, settings: Mapping[str, str], *arguments: str) -> Service:
        """Another command of ours, in a folder that is new, and its own."""
        folder.mkdir(parents=True)
        return self._run(folder, settings, arguments)

    def _run(self, folder: Path, settings: Mapping[str, str], arguments: tuple[str, ...]) -> Service:
        order = Order(str(folder), {**self._environment, **settings}, arguments)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(order.to_line())
        self._process.stdin.flush()
        return Service(int(self._process.stdout.readline()), folder)


@contextmanager
def starter() -> Iterator[Starter]:
    """What starts services; none of them outlives the context."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), environment.get("PYTHONPATH")]))
    with subprocess.Popen(
        [sys.executable, "-m", "tests.torture.service"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for us: it ends, with all its services, when its input does
    ) as process:
        yield Starter(process, environment)


class Service:
    """`smart-assets serve`, or another command, from its start to its end."""

    def __init__(self, pid: int, folder: Path) -> None:
        """A process that was just started."""
        self.url = ""
        """Once it is ready."""
        self._pid = pid
        self._folder = folder

    @property
    def lives(self) -> bool:
        """Whether it still runs."""
        return not (self._folder / ENDED).exists()

    @property
    def exit_code(self) -> int:
        """Of one that has ended; minus the signal, where it was killed."""
        return int((self._folder / ENDED).read_text())

    @property
    def died_at(self) -> str | None:
        """The step it died at, if it died of one."""
        with suppress(FileNotFoundError):
            return (self._folder / DIED).read_text()
        return None

    @property
    def output(self) -> str:
        """What it has printed and logged."""
        with suppress(FileNotFoundError):
            return (self._folder / OUTPUT).read_text(errors="replace")
        return ""

    def arm(self) -> None:
        """From now on it dies when it comes to its step."""
        (self._folder / ARMED).touch()

    async def ready(self) -> bool:
        """Wait until it listens; False where it died before."""
        deadline = time.monotonic() + START_SECONDS
        while not (said := _READY.search(self.output)):
            if not self.lives:
                return False
            if time.monotonic() > deadline:
                raise TimeoutError(self.output)
            await asyncio.sleep(0.01)
        self.url = said[1]
        return True

    async def ended(self, seconds: float) -> bool:
        """Wait for its end; False where it lives on."""
        deadline = time.monotonic() + seconds
        while self.lives and time.monotonic() < deadline:
            await asyncio.sleep(0.005)
        return not self.lives

    async def kill(self) -> None:
        """SIGKILL for the service's process; its workers have to see to themselves."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        await self.ended(START_SECONDS)

    async def stop(self) -> None:
        """SIGTERM, and time to end."""
        os.kill(self._pid, signal.SIGTERM)
        await self.ended(START_SECONDS)

    @property
    def ended_well(self) -> bool:
        """Whether it has ended, and not of itself: it was killed, or stopped."""
        return not self.lives and (self._folder / ENDED).read_text() in {"0", str(-signal.SIGKILL)}

    def left_running(self) -> list[int]:
        """The processes it started that run on though it is gone."""
        return [] if self.lives else _session(self._pid)

    def end_all(self) -> None:
        """Kill whatever is left of it."""
        for pid in _session(self._pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _session(leader: int) -> list[int]:
    """The processes of a session that run."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone meanwhile
            state, _, _, session, *_ = (directory / "stat").read_text().rpartition(")")[2].split()
            if int(session) == leader and state != "Z":
                found.append(int(directory.name))
    return found
