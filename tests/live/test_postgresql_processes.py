"""Two services on two machines, as it were: one catalogue in PostgreSQL, one bucket's worth of files, and load."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import httpx
import pytest

from tests import images
from tests.conftest import problem_of
from tests.faults import test_credits
from tests.faults.process import ServiceProcess, audit, rows, states, until
from tests.live.postgres import OwnServer, PostgresServer, postgres_server
from tests.tables import tables_of

HOLIDAY = images.jpeg(320, 240, seed=61)
CALLERS = 8
TURNS = 30
Pair = tuple[ServiceProcess, ServiceProcess]


def settings(url: str) -> dict[str, str]:
    return {
        "ASSETS_DATABASE_URL": url,
        "ASSETS_LEASE_SECONDS": "2",
        "ASSETS_IMAGING__WORKERS": "1",
        "ASSETS_IMAGING__WAIT_SECONDS": "60",
    }


@pytest.fixture
def pair(postgres: PostgresServer, tmp_path: Path) -> Iterator[Pair]:
    """Started at once, over a database in which there is nothing yet."""
    url = postgres.new_database(empty=True)
    with ExitStack() as stack, ThreadPoolExecutor() as threads:
        services = [ServiceProcess(tmp_path, **settings(url)) for _ in range(2)]
        for service in services:
            stack.callback(service.__exit__, None, None, None)
        one, other = threads.map(ServiceProcess.__enter__, services)
        yield one, other
    postgres.drop(url)


def upload(client: httpx.Client, *, key: str | None = None, **query: str) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return client.post("/api/v1/assets", params=query, headers=headers, files={"file": ("a.jpg", HOLIDAY)})


def test_both_start_at_once_on_nothing_and_see_the_same(pair: Pair) -> None:
    one, other = pair
    with one.client() as here, other.client() as there:
        asset = upload(here, sizes="100", tags="trip").json()
        url = f"/api/v1/assets/{asset['id']}"
        assert there.get(url).json()["sha256"] == asset["sha256"]
        listed = there.get("/api/v1/assets", params={"tag": "trip", "q": "A.JPG", "days": 1}).json()["items"]
        assert [found["id"] for found in listed] == [asset["id"]]
        assert there.patch(url, json={"visibility": "private", "metadata": {"a": [1, None]}}).status_code == 200
        assert here.get(url).json()["metadata"] == {"a": [1, None]}
        assert here.delete(url).status_code == 204
        problem_of(there.get(url), 404, "asset_not_found")
        for service in (here, there):
            assert service.get("/health/ready").status_code == 200
    assert audit(one.data) == []
    assert [service.stop() for service in pair] == [0, 0]
    assert audit(one.data, stopped=True) == []


def test_of_the_same_request_sent_to_both_one_does_the_work(pair: Pair) -> None:
    def send(service: ServiceProcess, key: str) -> httpx.Response:
        with service.client() as client:
            return upload(client, key=key, sizes="100")

    with ThreadPoolExecutor() as threads:
        for number in range(8):
            answers = [threads.submit(send, service, f"k{number}") for service in pair * 4]
            seen = Counter(answer.result().status_code for answer in answers)
            assert seen[201] >= 1
            assert seen.keys() <= {201, 409}
            assert len({answer.result().json()["id"] for answer in answers if answer.result().is_success}) == 1
    assert states(pair[0].data) == {"ready": 8}
    assert audit(pair[0].data) == []


def count_up(pair: Pair, url: str, times: int, number: int) -> int:
    """Raise a number kept in an asset's metadata, each time from what it is now; how often that had to be tried."""
    tries = done = 0
    with pair[0].client() as one, pair[1].client() as other:
        while done < times:
            client = (one, other)[tries % 2]
            tries += 1
            now = client.get(url)
            count = now.json()["metadata"].get("count", 0)
            body = {"metadata": {"count": count + 1}, "tags": [f"t{count + 1}", f"caller-{number}"]}
            answer = client.patch(url, json=body, headers={"If-Match": now.headers["etag"]})
            assert answer.status_code in {200, 409, 412}, answer.text
            done += answer.status_code == 200
    return tries


def test_no_change_of_an_asset_is_lost_between_both(pair: Pair) -> None:
    with pair[0].client() as client:
        url = f"/api/v1/assets/{upload(client).json()['id']}"
        version = int(client.get(url).headers["etag"].strip('"v'))
        with ThreadPoolExecutor(6) as threads:
            callers = [threads.submit(count_up, pair, url, 10, number) for number in range(6)]
            tries = sum(caller.result() for caller in callers)
        assert tries > 60, "they met"
        asset = client.get(url)
        assert asset.json()["metadata"] == {"count": 60}
        assert asset.json()["tags"][0] == "t60"
        assert asset.headers["etag"] == f'"v{version + 60}"'
    assert audit(pair[0].data) == []


def one_caller(pair: Pair, number: int, ids: list[str]) -> Counter[int]:
    """Uploads, changes and deletes what is anybody's, by turns at either; the statuses it was answered."""
    chance, seen = random.Random(number), Counter[int]()
    with pair[0].client() as one, pair[1].client() as other:
        for turn in range(TURNS):
            client = chance.choice((one, other))
            url = f"/api/v1/assets/{chance.choice(ids)}"
            match chance.choice(("upload", "upload", "tag", "publish", "hide", "read", "list", "delete")):
                case "upload":
                    answer = upload(client, tags=f"t{turn % 3},t{number}", **({"sizes": "40"} if turn % 5 == 0 else {}))
                    if answer.is_success:
                        ids.append(answer.json()["id"])
                case "tag":
                    answer = client.patch(url, json={"tags": chance.sample(["t0", "t1", "t2", "x", "y"], 2)})
                case "publish":
                    answer = client.patch(url, json={"visibility": "public"})
                case "hide":
                    answer = client.patch(url, json={"visibility": "private"})
                case "read":
                    answer = client.get(f"{url}/content")
                    assert answer.is_error or answer.content == HOLIDAY
                case "list":
                    answer = client.get("/api/v1/assets", params={"tag": "t1", "limit": "20"})
                case _:
                    answer = client.delete(url)
            seen[answer.status_code] += 1
    return seen


def load(pair: Pair) -> Counter[int]:
    with pair[0].client() as client:
        ids = [upload(client).json()["id"] for _ in range(4)]
    with ThreadPoolExecutor(CALLERS) as threads:
        return sum(threads.map(lambda number: one_caller(pair, number, ids), range(CALLERS)), Counter())


def test_under_load_at_both_no_update_is_lost(pair: Pair) -> None:
    seen = load(pair)
    # 404 for what another deleted, 409 and (reading) 503 `busy` for what another is changing.
    assert {200, 201, 204} <= seen.keys() <= {200, 201, 204, 404, 409, 503}
    assert audit(pair[0].data) == [], "totals, tags and files are what the rows say"
    assert [service.stop() for service in pair] == [0, 0]
    assert audit(pair[0].data, stopped=True) == []
    for service in pair:
        assert "a transaction is run again" not in service.text, "nobody waits for each other"


def test_two_machines_spend_what_there_is_and_no_more_though_one_is_killed(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    url = postgres.new_database(empty=True)
    environment = {**settings(url), **test_credits.SETTINGS}
    with ServiceProcess(tmp_path, **environment) as doomed, ServiceProcess(tmp_path, **environment) as other:
        test_credits.spend_and_be_killed(doomed, other)
        assert other.stop() == 0
        assert "a transaction is run again" not in other.text, "nobody waits for each other"
    postgres.drop(url)


@pytest.fixture
def server() -> Iterator[OwnServer]:
    with postgres_server() as server:
        yield server


def test_a_server_that_is_killed_in_the_middle_leaves_nothing_half_done(server: OwnServer, tmp_path: Path) -> None:
    url = server.new_database(empty=True)
    with ServiceProcess(tmp_path, **settings(url)) as one, ServiceProcess(tmp_path, **settings(url)) as other:
        pair = (one, other)
        with ThreadPoolExecutor() as threads:
            loading = threads.submit(load, pair)
            until(lambda: len(rows(one.data)) > 10)
            server.kill()
            with one.client() as client:
                until(lambda: client.get("/health/ready").status_code == 503)
                assert client.get("/health/live").status_code == 200
                answer = upload(client)
                problem_of(answer, 503, "busy")
                assert int(answer.headers["retry-after"]) > 0
            server.start()
            seen = loading.result()
        assert seen.keys() <= {200, 201, 204, 404, 409, 503}
        for service in pair:
            with service.client() as client:
                until(lambda client=client: client.get("/health/ready").status_code == 200)  # type: ignore[misc]
                assert upload(client).status_code == 201
        until(lambda: audit(one.data) == [], of="the clean-up")
        with tables_of(one.data) as tables:
            variants = chain.from_iterable(json.loads(row["variants"]) for row in tables.select("SELECT * FROM assets"))
            assert all(variant[5] for variant in variants)
        assert [service.stop() for service in pair] == [0, 0]
        assert audit(one.data, stopped=True) == []
