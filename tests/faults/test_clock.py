"""A clock that is set, forward or back, in the middle of everything."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from tests import images
from tests.conftest import problem_of
from tests.faults.process import ServiceProcess, audit, states, until
from tests.faults.slow import NOISE, SLOWLY

HOLIDAY = images.jpeg(320, 240, seed=33)
WRONG = (sys.executable, str(Path(__file__).with_name("jumping_clock.py")))
DAY = 86_400


class Clock:
    """The wall clock of one or more services."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.settings = {"CLOCK_AHEAD": str(file)}
        self.set(0)

    def set(self, ahead: int) -> None:
        """So many seconds ahead of the right time."""
        self._file.write_text(str(ahead))
        self.ahead = timedelta(seconds=ahead)

    def shows(self, time: str) -> bool:
        """Whether it shows about that time now."""
        return abs(datetime.fromisoformat(time) - datetime.now(UTC) - self.ahead) < timedelta(minutes=5)


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path / "ahead")


@pytest.fixture
def service(tmp_path: Path, clock: Clock) -> Iterator[ServiceProcess]:
    with ServiceProcess(tmp_path, command=WRONG, **clock.settings, ASSETS_LEASE_SECONDS="1") as service:
        yield service


@pytest.fixture
def client(service: ServiceProcess) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


def upload(client: httpx.Client, content: bytes = HOLIDAY, *, key: str | None = None, **query: Any) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return client.post("/api/v1/assets", params=query, headers=headers, files={"file": ("a", content)})


@pytest.mark.parametrize("jump", [3 * DAY, -3 * DAY, 3 * 365 * DAY], ids=["forward", "back", "years ahead"])
def test_a_clock_that_is_set_kills_no_upload_and_nobody_is_taken_for_dead(
    service: ServiceProcess, client: httpx.Client, clock: Clock, tmp_path: Path, jump: int
) -> None:
    """Of two services the clock of one is set, while both are at work."""
    with (
        ServiceProcess(tmp_path, ASSETS_LEASE_SECONDS="1") as other,
        other.client() as caller,
        ThreadPoolExecutor() as threads,
    ):
        running = [threads.submit(upload, each, NOISE, **SLOWLY) for each in (client, caller)]
        until(lambda: service.rendering(2) and states(service.data)["pending"] == 2)
        clock.set(jump)
        assert [answer.result().status_code for answer in running] == [201, 201]
        for each in (client, caller):
            asset = upload(each, sizes="50").json()
            assert client.get(f"/api/v1/assets/{asset['id']}").json()["sha256"] == asset["sha256"]
            assert caller.delete(f"/api/v1/assets/{asset['id']}").status_code == 204
        assert other.stop() == 0
    assert states(service.data) == {"ready": 2}
    assert service.stop() == 0
    assert audit(service.data, stopped=True) == []


@pytest.mark.parametrize("jump", [3 * DAY, -3 * DAY], ids=["forward", "back"])
def test_a_decoder_that_hangs_is_stopped_in_its_time_whatever_the_clock_says(
    tmp_path: Path, clock: Clock, jump: int
) -> None:
    settings = {"ASSETS_IMAGING__WORKERS": "1", "ASSETS_IMAGING__TIMEOUT_SECONDS": "6"}
    with (
        ServiceProcess(tmp_path, command=WRONG, **clock.settings, **settings) as service,
        service.client() as client,
        ThreadPoolExecutor() as threads,
    ):
        hangs = threads.submit(upload, client, NOISE, **SLOWLY)
        until(lambda: service.rendering(1))
        os.kill(service.workers()[0], signal.SIGSTOP)
        clock.set(jump)
        with pytest.raises(TimeoutError):
            hangs.result(1)
        problem_of(hangs.result(30), 422, "corrupt_image")
        assert upload(client, sizes="50").status_code == 201
        assert audit(service.data) == []


def test_assets_are_what_they_were_before_and_after_the_clock_is_set(client: httpx.Client, clock: Clock) -> None:
    kept = []
    for ahead in (0, 40 * DAY, -40 * DAY, 0):
        clock.set(ahead)
        asset = upload(client, visibility="private", sizes="50").json()
        assert clock.shows(asset["created_at"])
        kept.append(asset)
    assert len({asset["id"] for asset in kept}) == 4
    listed = client.get("/api/v1/assets").json()["items"]
    assert [asset["id"] for asset in listed] == sorted((asset["id"] for asset in kept), reverse=True, key=UUID)
    for ahead in (-40 * DAY, 40 * DAY):
        clock.set(ahead)
        for asset in kept:
            shown = client.get(f"/api/v1/assets/{asset['id']}").json()
            assert (shown["created_at"], shown["sha256"]) == (asset["created_at"], asset["sha256"])
            for each in (shown, *shown["variants"]):
                assert client.get(each["url"]).status_code == 200
    for asset in kept:
        assert client.delete(f"/api/v1/assets/{asset['id']}").status_code == 204


def test_a_signed_url_is_good_for_as_long_as_the_clock_says(client: httpx.Client, clock: Clock) -> None:
    asset = upload(client, visibility="private").json()
    assert client.get(asset["url"]).content == HOLIDAY
    clock.set(-DAY)
    assert client.get(asset["url"]).content == HOLIDAY
    earlier = client.get(f"/api/v1/assets/{asset['id']}").json()
    assert earlier["url_expires_at"] < asset["url_expires_at"], "never longer than asked, by the clock there is"
    clock.set(2 * DAY)
    for url in (asset["url"], earlier["url"]):
        problem_of(client.get(url), 403, "signature_expired")
    again = client.get(f"/api/v1/assets/{asset['id']}").json()
    assert client.get(again["url"]).content == HOLIDAY


def test_an_idempotency_key_is_kept_for_a_day_by_the_clock_and_never_makes_two(
    service: ServiceProcess, client: httpx.Client, clock: Clock
) -> None:
    first = upload(client, key="k").json()
    clock.set(-3 * DAY)
    assert upload(client, key="k").json() == first | {"url": first["url"]}
    clock.set(DAY - 3600)
    assert upload(client, key="k").headers["idempotency-replayed"] == "true"
    with ThreadPoolExecutor() as threads:
        running = threads.submit(upload, client, NOISE, key="running", **SLOWLY)
        until(lambda: service.rendering(1))
        clock.set(30 * DAY)
        with service.client() as impatient:
            busy = upload(impatient, NOISE, key="running", **SLOWLY)
            problem_of(busy, 409, "idempotency_in_progress")
        assert running.result().status_code == 201
    again = upload(client, key="k")
    assert again.status_code == 201
    assert again.json()["id"] != first["id"], "a day is over"
