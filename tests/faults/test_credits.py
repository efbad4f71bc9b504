"""Two services spend one owner's credits, and one of them is killed: none is lost, and none is spent twice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import cycle
from pathlib import Path

import httpx

from tests import images
from tests.faults.process import ServiceProcess, audit, rows, settled, until

HOLIDAY = images.jpeg(320, 240, seed=62)
SETTINGS = {
    "ASSETS_LEASE_SECONDS": "2",
    "ASSETS_IMAGING__WORKERS": "1",
    "ASSETS_IMAGING__WAIT_SECONDS": "60",
    "ASSETS_CREDITS__PER_ORIGINAL": "1",
    "ASSETS_CREDITS__PER_SIZE": "1",
}
PRICE = 3
PAID_FOR = 16


def upload(service: ServiceProcess, key: str | None = None) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    with service.client() as client:
        files = {"file": ("a.jpg", HOLIDAY)}
        return client.post("/api/v1/assets", params={"sizes": "100,50"}, headers=headers, files=files)


def usage(service: ServiceProcess) -> tuple[int, int, int]:
    with service.client() as client:
        told = client.get("/api/v1/usage").json()
    return told["balance"], told["reserved"], told["spent"]


def spend_and_be_killed(doomed: ServiceProcess, other: ServiceProcess) -> None:
    """Spend more credits than there are at both, killing the first in the middle of it, and see what became of them."""
    with other.client() as client:
        grant = {"owner": "default", "amount": PRICE * PAID_FOR + PRICE - 1}
        for _ in range(2):
            headers = {"Idempotency-Key": "grant"}
            assert client.post("/api/v1/credits", json=grant, headers=headers).status_code == 201

    def spend(number: int) -> list[str]:
        """Uploads at both by turns, each again until it is answered; the ids of what was made."""
        made = []
        services = cycle([doomed, other] if number % 2 else [other, doomed])
        for turn in range(4):
            statuses: list[int] = []
            while not statuses or statuses[-1] in {409, 503}:
                with suppress(httpx.TransportError):  # it was killed
                    answer = upload(next(services), key=f"{number}-{turn}")
                    statuses.append(answer.status_code)
            assert statuses[-1] in {201, 402}, answer.text
            if statuses[-1] == 201:
                assert answer.json()["credits_used"] == PRICE
                made.append(answer.json()["id"])
        return made

    with ThreadPoolExecutor(6) as threads:
        spending = [threads.submit(spend, number) for number in range(6)]
        until(lambda: len(rows(doomed.data)) > 5)
        doomed.kill()
        ids = [asset_id for each in spending for asset_id in each.result()]
    assert len(ids) == len(set(ids)) <= PAID_FOR
    until(lambda: settled(other.data) and audit(other.data) == [], of="the clean-up")
    # What the dead one held is there again, to the last credit.
    while (answer := upload(other)).status_code != 402:
        assert answer.status_code in {201, 503}, answer.text
        ids += [answer.json()["id"]] if answer.status_code == 201 else []
    assert len(ids) == len(rows(other.data)) == PAID_FOR
    assert usage(other) == (PRICE - 1, 0, PRICE * PAID_FOR)
    assert audit(other.data) == []


def test_two_processes_spend_what_there_is_and_no_more_though_one_is_killed(tmp_path: Path) -> None:
    with ServiceProcess(tmp_path, **SETTINGS) as doomed, ServiceProcess(tmp_path, **SETTINGS) as other:
        spend_and_be_killed(doomed, other)
        assert other.stop() == 0
