"""Two services over one data directory: neither takes the other's work for its own, and both see the same."""

from __future__ import annotations

import random
import signal
import sqlite3
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path

import httpx
import pytest

from smart_assets.catalogue.sqlite import Turn
from tests import images
from tests.conftest import problem_of
from tests.faults.process import ServiceProcess, audit, rows, settled, states, until
from tests.faults.slow import NOISE, SLOWLY

HOLIDAY = images.jpeg(320, 240, seed=32)
CALLERS = 8
TURNS = 25


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[ServiceProcess, ServiceProcess]]:
    settings = {"ASSETS_LEASE_SECONDS": "1", "ASSETS_IMAGING__WORKERS": "1", "ASSETS_IMAGING__WAIT_SECONDS": "60"}
    with ServiceProcess(tmp_path, **settings) as one, ServiceProcess(tmp_path, **settings) as other:
        yield one, other


def upload(
    service: ServiceProcess, content: bytes = HOLIDAY, *, key: str | None = None, **query: str
) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    with service.client() as client:
        return client.post("/api/v1/assets", params=query, headers=headers, files={"file": ("a", content)})


def test_what_one_confirms_the_other_knows_at_once(pair: tuple[ServiceProcess, ServiceProcess]) -> None:
    one, other = pair
    with one.client() as here, other.client() as there:
        asset = upload(one, sizes="100").json()
        url = f"/api/v1/assets/{asset['id']}"
        assert there.get(url).json()["sha256"] == asset["sha256"]
        assert there.get(asset["url"].removeprefix(one.url)).content == HOLIDAY
        private = there.patch(url, json={"visibility": "private"}).json()
        problem_of(here.get(asset["url"]), 404, "asset_not_found")
        assert here.get(private["url"].removeprefix(other.url)).content == HOLIDAY, "they sign with the same key"
        assert here.delete(url).status_code == 204
        problem_of(there.get(url), 404, "asset_not_found")
        problem_of(there.get(private["url"]), 404, "asset_not_found")
    assert audit(one.data) == []


def test_of_the_same_request_sent_to_both_one_does_the_work(pair: tuple[ServiceProcess, ServiceProcess]) -> None:
    with ThreadPoolExecutor() as threads:
        for number in range(5):
            answers = [threads.submit(upload, service, key=f"k{number}", sizes="100") for service in pair * 3]
            seen = Counter(answer.result().status_code for answer in answers)
            assert seen[201] >= 1
            assert seen.keys() <= {201, 409}
            ids = {answer.result().json()["id"] for answer in answers if answer.result().status_code == 201}
            assert len(ids) == 1
    assert states(pair[0].data) == {"ready": 5}
    assert audit(pair[0].data) == []


def one_caller(pair: tuple[ServiceProcess, ServiceProcess], number: int, ids: list[str]) -> set[int]:
    """Uploads, changes and deletes what is anybody's, by turns at either; the statuses it was answered."""
    chance, seen = random.Random(number), set()
    with pair[0].client() as one, pair[1].client() as other:
        for turn in range(TURNS):
            client = chance.choice((one, other))
            url = f"/api/v1/assets/{chance.choice(ids)}"
            match chance.choice(("upload", "upload", "publish", "hide", "read", "delete")):
                case "upload":
                    query = {"sizes": "40"} if turn % 5 == 0 else {}
                    answer = client.post("/api/v1/assets", params=query, files={"file": ("a", HOLIDAY)})
                    ids.append(answer.json()["id"])
                case "publish":
                    answer = client.patch(url, json={"visibility": "public"})
                case "hide":
                    answer = client.patch(url, json={"visibility": "private"})
                case "read":
                    answer = client.get(f"{url}/content")
                    assert answer.is_error or answer.content == HOLIDAY
                case _:
                    answer = client.delete(url)
            seen.add(answer.status_code)
    return seen


def test_changes_of_the_same_assets_at_both_never_tear_one(pair: tuple[ServiceProcess, ServiceProcess]) -> None:
    ids = [upload(service).json()["id"] for service in pair * 2]
    with ThreadPoolExecutor() as threads:
        callers = [threads.submit(one_caller, pair, number, ids) for number in range(CALLERS)]
        seen = set(chain.from_iterable(caller.result() for caller in callers))
    # 404 for what another deleted, 409 and (reading) 503 `busy` for what another is changing.
    assert {200, 201, 204} <= seen <= {200, 201, 204, 404, 409, 503}
    assert audit(pair[0].data) == []
    assert [service.stop() for service in pair] == [0, 0]
    assert audit(pair[0].data, stopped=True) == []


def test_what_one_leaves_when_it_is_killed_the_other_clears_away_and_goes_on(
    pair: tuple[ServiceProcess, ServiceProcess],
) -> None:
    one, other = pair
    with ThreadPoolExecutor() as threads:
        lost = [threads.submit(upload, one, NOISE, key=f"k{number}", **SLOWLY) for number in range(3)]
        until(lambda: one.rendering(1) and states(one.data)["pending"] == 3)
        beside = threads.submit(upload, other, NOISE, **SLOWLY)
        until(lambda: states(one.data)["pending"] == 4)
        one.signal(signal.SIGKILL)
        for answer in lost:
            with pytest.raises(httpx.TransportError):
                answer.result()
        assert beside.result().status_code == 201, "the living one's own upload is left alone"
    until(lambda: settled(other.data), of="the clean-up")
    assert len(rows(other.data)) == 1
    until(lambda: audit(other.data) == [])
    again = upload(other, key="k0")
    assert again.status_code == 201
    assert "idempotency-replayed" not in again.headers
    assert other.stop() == 0
    assert audit(other.data, stopped=True) == []


def suspend(service: ServiceProcess) -> None:
    """Stop it, though not while it holds the catalogue's lock: then all would have to wait for it."""
    while True:
        service.signal(signal.SIGSTOP)
        connecting = sqlite3.connect(service.data / "catalogue.sqlite3", timeout=1, isolation_level=None)
        with closing(connecting) as catalogue, suppress(sqlite3.OperationalError):
            catalogue.execute("BEGIN IMMEDIATE")
            return
        service.signal(signal.SIGCONT)


def test_one_stopped_while_it_was_its_turn_to_write_holds_nobody_up(
    pair: tuple[ServiceProcess, ServiceProcess],
) -> None:
    """Its lock lasts as long as it is stopped; its lease must run out for the other all the same."""
    one, other = pair
    with closing(Turn(str(one.data / "catalogue.sqlite3-turn"))) as turn, ThreadPoolExecutor() as threads:
        lost = threads.submit(upload, one, NOISE, **SLOWLY)
        until(lambda: one.rendering(1) and states(one.data)["pending"] == 1)
        with turn.taken():
            one.signal(signal.SIGKILL)
            with pytest.raises(httpx.TransportError):
                lost.result()
            until(lambda: not rows(other.data), of="the clean-up")
            assert upload(other).status_code == 201
    until(lambda: audit(other.data) == [])


def test_one_that_was_only_stopped_for_a_while_loses_its_uploads_and_says_so(
    pair: tuple[ServiceProcess, ServiceProcess],
) -> None:
    """A machine that was suspended: the other has cleared away what it was at work on when it goes on."""
    one, other = pair
    with ThreadPoolExecutor() as threads:
        upload_at_one = threads.submit(upload, one, NOISE, **SLOWLY)
        until(lambda: one.rendering(1) and states(one.data)["pending"] == 1)
        suspend(one)
        until(lambda: not rows(other.data), of="the clean-up")
        one.signal(signal.SIGCONT)
        problem_of(upload_at_one.result(), 503, "busy")
    until(lambda: audit(other.data) == [])
    assert rows(other.data) == []
    assert upload(one).status_code == 201
    assert [service.stop() for service in pair] == [0, 0]
    assert audit(other.data, stopped=True) == []
