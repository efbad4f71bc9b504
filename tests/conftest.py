"""The service in this process, over a folder of its own, called over ASGI."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest

from smart_assets.main import create_app
from smart_assets.maintenance.reconcile import Reconciler
from smart_assets.runtime import Runtime
from smart_assets.settings import PREFIX, Settings
from smart_assets.storage.factory import register_backend
from tests.staging import DistantStorage, FaultyStorage

# A shared machine may stop for longer than any example takes. CI tries the same examples each time: what it says is
# about the change at hand; new ones are looked for wherever else the tests run.
hypothesis.settings.register_profile("shared machine", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("shared machine")

# A shell has what it starts in the background ignore Ctrl-C, and we would hand that down to the commands under test.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest.register_assert_rewrite("tests.contracts")
pytest_plugins = ["tests.contracts.summary", "tests.hostile.counting"]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Half as many again as there are processors: half of the time a test waits for a timeout, a kill or a disk."""
    return (os.cpu_count() or 1) * 3 // 2


BASE_URL = "http://127.0.0.1:8000"


@dataclass(frozen=True)
class Service:
    """A running service, and what it left on disk."""

    client: httpx.AsyncClient
    runtime: Runtime
    data_dir: Path

    async def upload(self, content: bytes, /, filename: str = "photo.jpg", **query: Any) -> httpx.Response:
        """One file, as a form."""
        return await self.client.post("/api/v1/assets", params=query, files={"file": (filename, content)})

    async def uploaded(self, content: bytes, /, **query: Any) -> Any:
        """The asset of an upload that works."""
        answer = await self.upload(content, **query)
        assert answer.status_code == 201, answer.text
        return answer.json()

    def stored_files(self) -> list[str]:
        """The keys of what lies in the local storage."""
        root = self.data_dir / "assets"
        return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())

    def temporary_files(self) -> list[Path]:
        """What lies in the temporary folder."""
        return [path for path in (self.data_dir / "tmp").rglob("*") if path.is_file() and path.name != "rendering"]

    async def rows(self) -> list[tuple[str, str]]:
        """Id and state of every row, the unsettled ones too."""
        return await self.runtime.database.read(
            lambda catalogue: [
                (row.id, row.state)
                for row in catalogue._connection.exec_driver_sql("SELECT id, state FROM assets ORDER BY id")
            ]
        )

    async def settle(self) -> None:
        """Let what is abandoned be settled, as the background does it: now, and as far as it can be."""
        reconciler = self.runtime.reconciler
        for _ in range(3):
            reconciler._put_off.clear()  # whatever the background tried in vain meanwhile is due again
            await reconciler.pass_once()
            for _ in range(100):  # the background's own pass may have been faster, and still be at it
                await asyncio.sleep(0.01)
                if not reconciler._at_work:
                    break

    async def leaves_nothing(self) -> bool:
        """Whether there is no row, no object and no temporary file."""
        return not (await self.rows() or self.stored_files() or self.temporary_files())


def problem_of(answer: httpx.Response, status: int, code: str) -> Any:
    """The problem an answer must be, in the one shape."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code), problem
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert {"type", "title", "status", "detail"} <= problem.keys()
    return problem


StartService = Callable[..., AbstractAsyncContextManager[Service]]


@pytest.fixture(autouse=True)
def _settings_come_from_the_test(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in list(os.environ):
        if variable.startswith((PREFIX, "AWS_", "CLOUDINARY_", "GOOGLE_", "AZURE_")):
            monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _what_a_command_does_to_the_log_ends_with_its_test() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture
def start_service(tmp_path: Path) -> StartService:
    """Starts a service with the settings given; the same folder each time, so a second start is a restart."""

    @asynccontextmanager
    async def start(**settings: Any) -> AsyncIterator[Service]:
        app = create_app(Settings(data_dir=tmp_path / "data", **settings))
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app, client=("127.0.0.1", 50000))
            async with httpx.AsyncClient(transport=transport, base_url=BASE_URL, timeout=60) as client:
                yield Service(client, app.state.runtime, tmp_path / "data")

    return start


@pytest.fixture
async def service(start_service: StartService) -> AsyncIterator[Service]:
    """A service with the default settings."""
    async with start_service() as running:
        yield running


@pytest.fixture
def passes_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The background of services started after it only beats: it looks around when the test says."""
    repeat = Reconciler._repeat

    async def only_beats(self: Reconciler, name: str, work: Callable[[], Awaitable[object]]) -> None:
        if name == "lease":
            await repeat(self, name, work)

    monkeypatch.setattr(Reconciler, "_repeat", only_beats)


@pytest.fixture
def distant() -> Iterator[FaultyStorage]:
    """A storage `distant`, as if behind a network, that fails where the test says."""
    storage = FaultyStorage("distant", DistantStorage())
    undo = register_backend("distant", lambda _name, _settings: storage)
    yield storage
    undo()


@pytest.fixture
def faulty() -> Iterator[FaultyStorage]:
    """A storage `faulty`, over memory, that fails where the test says."""
    storage = FaultyStorage()
    undo = register_backend("faulty", lambda _name, _settings: storage)
    yield storage
    undo()
