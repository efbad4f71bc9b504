"""`smart-assets migrate`, killed again and again and run again: each asset whole, once, at its new place."""

from __future__ import annotations

import asyncio
import json
import secrets
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from hashlib import sha256
from pathlib import Path
from random import Random

import httpx
import pytest

from tests.conftest import Service, StartService
from tests.torture.audit import audit
from tests.torture.callers import CREDITS, photo
from tests.torture.ledger import Ledger, Upload
from tests.torture.places import Folder
from tests.torture.process import Starter, starter
from tests.torture.steps import CELLAR, PRICES

BATCH = 20
SIZES = ("60x60",)
SECONDS = 60


async def fill(service: Service, ledger: Ledger, assets: int) -> None:
    """Public and private ones; each tenth batch with a size."""
    for number in range(assets // BATCH):
        contents = tuple(photo((number + each) % 40) for each in range(BATCH))
        visibility = ("public", "private")[number % 2]
        sizes = SIZES if number % 10 == 0 else ()
        upload = Upload(f"request-{number}", contents, sizes, visibility, "local", batch=True)
        query = {"tags": upload.tag, "visibility": visibility, "sizes": ",".join(sizes)}
        files = [("files", (f"{each}.jpg", content)) for each, content in enumerate(contents)]
        answer = await service.client.post(
            "/api/v1/assets/batch", params={name: value for name, value in query.items() if value}, files=files
        )
        upload.made([asset["id"] for asset in answer.json()["assets"]])
        ledger.uploads[upload.tag] = upload


def moved(data_dir: Path) -> int:
    with closing(sqlite3.connect(data_dir / "catalogue.sqlite3", timeout=60)) as catalogue:
        query = "SELECT count(*) FROM assets WHERE storage = ?"
        (number,) = catalogue.execute(query, (CELLAR,)).fetchone()
    return int(number)


@asynccontextmanager
async def read_all_the_while(url: str, ledger: Ledger, random: Random) -> AsyncIterator[list[str]]:
    """Fetches assets at random; what was not answered as it should be."""
    wrong: list[str] = []
    assets = list(ledger.assets())

    async def read() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
            while True:
                asset = random.choice(assets)
                told = (await client.get(f"/api/v1/assets/{asset.id}")).json()
                for address in (f"/api/v1/assets/{asset.id}/content", told["url"]):
                    answer = await client.get(address)
                    if (answer.status_code, sha256(answer.content).hexdigest()) != (200, asset.sha256):
                        wrong.append(f"{address}: {answer.status_code}")

    task = asyncio.create_task(read())
    try:
        yield wrong
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error


async def migrate_killed_at_random(
    starting: Starter, folder: Path, settings: dict[str, str], assets: int, random: Random
) -> int:
    """Run it until it ends of itself; how many times it was killed before."""
    data_dir = Path(settings["ASSETS_DATA_DIR"])
    command = ("migrate", "--from", "local", "--to", CELLAR, "--concurrency", "8", "--json")
    for kills in range(assets):
        run = starting.run(folder / f"run-{kills}", settings, *command)
        enough = moved(data_dir) + random.randrange(assets // 8)
        while run.lives and moved(data_dir) < enough:
            await asyncio.sleep(0.002)
        if enough < assets:
            await asyncio.sleep(random.random() / 50)
            await run.kill()
            continue
        assert await run.ended(SECONDS), run.output
        assert run.exit_code == 0, run.output
        told = json.loads(run.output)
        assert (told["done"], told["failed"], told["owed"]) == (True, 0, 0)
        return kills
    raise AssertionError("it never ended")


@pytest.mark.parametrize(("assets", "beside"), [(1000, False), (200, True)], ids=["alone", "beside a service"])
async def test_killed_at_random_and_run_again_it_ends_exact(
    start_service: StartService, tmp_path: Path, assets: int, beside: bool
) -> None:
    ledger, seed = Ledger(), secrets.randbits(32)
    random = Random(seed)
    async with start_service(credits=PRICES) as service:
        query = {"owner": "default", "amount": CREDITS}
        assert (await service.client.post("/api/v1/credits", json=query)).status_code == 201
        await fill(service, ledger, assets)
    settings = {
        "ASSETS_DATA_DIR": str(tmp_path / "data"),
        "ASSETS_LEASE_SECONDS": "1",
        "ASSETS_IMAGING__WORKERS": "1",
        "TMPDIR": str(tmp_path),
    }
    with starter() as starting:
        if beside:
            living = starting.start(tmp_path / "service", settings, None, armed=False)
            assert await living.ready()
            async with read_all_the_while(living.url, ledger, random) as wrong:
                kills = await migrate_killed_at_random(starting, tmp_path, settings, assets, random)
            await living.stop()
            assert wrong == []
        else:
            kills = await migrate_killed_at_random(starting, tmp_path, settings, assets, random)
    print(f"seed {seed}: {kills} kills")
    assert kills >= 3  # it may come far between two looks at it
    for asset in ledger.assets():
        asset.storages = {CELLAR}
    places = (Folder(tmp_path / "data"), Folder(tmp_path / "data", CELLAR, CELLAR))
    assert audit(tmp_path / "data", places, ledger, services=0).findings == []
    assert len(places[1].objects()) == assets + sum(len(asset.sizes) for asset in ledger.assets())
