"""Credits over HTTP: what was delivered is paid for once, what was not is not, and nobody spends what is not there."""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import event

from smart_assets.api.body import _Reader
from smart_assets.catalogue.sqlite import SqliteDatabase
from smart_assets.settings import PREFIX, CreditSettings, ImportSettings
from smart_assets.storage.base import StorageBackend
from smart_assets.storage.direct import DirectDownloadStorage
from smart_assets.storage.errors import StorageUnavailable
from smart_assets.storage.factory import register_backend
from smart_assets.storage.memory import MemoryStorage
from tests import images
from tests.assets.test_importing import ok, site
from tests.conftest import Service, StartService, problem_of
from tests.staging import FaultyStorage

HOLIDAY = images.jpeg(320, 240, seed=5)
OTHER = images.jpeg(320, 240, seed=6)
LARGE = HOLIDAY + bytes(2 * 1024 * 1024)
DAMAGED = images.png(400, 300)
DAMAGED = DAMAGED[: len(DAMAGED) // 2] + bytes(64) + DAMAGED[len(DAMAGED) // 2 + 64 :]
TEN_SIZES = ",".join(str(side) for side in range(10, 110, 10))
PRICES = CreditSettings(per_original=5, per_size=1, per_mb=2)
"""A small original costs 7."""
ROOT = {"Authorization": "Bearer root-key-0123456789"}


@pytest.fixture
async def service(start_service: StartService) -> AsyncIterator[Service]:
    """One with prices, whose default owner has 100 credits."""
    async with start_service(credits=PRICES) as running:
        await grant(running, 100)
        yield running


async def grant(service: Service, amount: int, owner: str = "default", **more: Any) -> httpx.Response:
    answer = await service.client.post("/api/v1/credits", json={"owner": owner, "amount": amount}, **more)
    assert answer.status_code == 201, answer.text
    return answer


async def account(service: Service, headers: dict[str, str] | None = None) -> tuple[int, int, int]:
    """Balance, reserved and spent, once it is seen that they are what the rows come to."""
    assert await service.runtime.database.read(lambda catalogue: catalogue.accounts_that_differ()) == ()
    told = (await service.client.get("/api/v1/usage", headers=headers)).json()
    return told["balance"], told["reserved"], told["spent"]


async def keyed(service: Service, key: str, content: bytes = HOLIDAY, **query: Any) -> httpx.Response:
    return await service.client.post(
        "/api/v1/assets", params=query, headers={"Idempotency-Key": key}, files={"file": ("a.jpg", content)}
    )


async def test_a_ticket_is_paid_for_once_by_the_owner_of_the_key_that_made_it(service: Service) -> None:
    made = {"name": "shop", "scopes": ["assets:write"], "owner": "ann"}
    key = (await service.client.post("/api/v1/keys", json=made)).json()
    ann = {"Authorization": f"Bearer {key['key']}"}
    await grant(service, 8, owner="ann")
    tickets = [
        (await service.client.post("/api/v1/upload-tickets", params={"sizes": "20"}, headers=ann)).json()["url"]
        for _ in range(2)
    ]
    sent = {"file": ("a.jpg", HOLIDAY)}
    for _ in range(2):  # its answer was lost
        assert (await service.client.post(tickets[0], files=sent)).json()["credits_used"] == 8
    assert await account(service, ann) == (0, 0, 8)
    assert await account(service) == (100, 0, 0)
    (day,) = (await service.client.get("/api/v1/usage/daily", headers=ann)).json()["days"]
    assert (day["key_id"], day["credits"]) == (key["id"], 8)
    problem_of(await service.client.post(tickets[1], files=sent), 402, "insufficient_credits")
    await grant(service, 8, owner="ann")
    assert (await service.client.post(tickets[1], files=sent)).status_code == 201, "a refusal leaves it as it was"


async def send_batch(service: Service, *contents: bytes, **query: Any) -> httpx.Response:
    files = [("files", (f"{number}.jpg", content)) for number, content in enumerate(contents)]
    return await service.client.post("/api/v1/assets/batch", params=query, files=files)


# ── Prices ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_where_nothing_has_a_price_nothing_is_metered(start_service: StartService) -> None:
    async with start_service() as service:
        asset = await service.uploaded(HOLIDAY, sizes="64")
        assert asset["credits_used"] is None
        told = (await service.client.get("/api/v1/usage")).json()
        assert told == {"owner": "default", "balance": None, "reserved": None, "spent": None}
        assert (await service.client.get("/api/v1/usage/daily")).json()["days"] == []
        assert (await service.client.get("/api/v1/credits")).json() == {"items": [], "next_cursor": None}


async def test_credits_take_no_transaction_of_their_own_to_write_and_nothing_at_all_where_they_are_off(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    written: list[object] = []
    write = SqliteDatabase.write

    async def counted(self: SqliteDatabase, work: Any) -> Any:
        if asyncio.current_task() is this:  # and none of the background's
            written.append(work)
        return await write(self, work)

    this = asyncio.current_task()
    monkeypatch.setattr(SqliteDatabase, "write", counted)
    counts = []
    for prices in (CreditSettings(), PRICES):
        async with start_service(credits=prices) as service:
            database = service.runtime.database
            assert isinstance(database, SqliteDatabase)
            await grant(service, 100)
            written.clear()
            asked.clear()
            for engine in (database._reading, database._writing):
                event.listen(engine, "before_cursor_execute", lambda _, __, statement, *___: asked.append(statement))
            asset = await service.uploaded(HOLIDAY, sizes="64")
            await service.client.post(f"/api/v1/assets/{asset['id']}/variants", params={"sizes": "32"})
            counts.append(len(written))
            about_credits = [
                statement for statement in asked if re.search("credit_(accounts|entries|usage)", statement)
            ]
            assert bool(about_credits) == prices.are_on
    assert counts == [4, 4]


@pytest.mark.parametrize("storage", ["local", "direct"])
@pytest.mark.parametrize(
    ("content", "sizes", "price"), [(HOLIDAY, "", 7), (HOLIDAY, "64,32", 9), (LARGE, "", 11), (LARGE, "64", 12)]
)
async def test_an_upload_costs_its_original_its_megabytes_and_its_sizes(
    service: Service, storage: str, content: bytes, sizes: str, price: int
) -> None:
    asset = await service.uploaded(content, storage=storage, sizes=sizes)
    assert asset["credits_used"] == price
    assert await account(service) == (100 - price, 0, price)
    if asset["id"]:
        assert (await service.client.get(f"/api/v1/assets/{asset['id']}")).json()["credits_used"] == price


async def test_of_ten_sizes_the_seven_that_were_made_are_paid_for(service: Service, faulty: FaultyStorage) -> None:
    for put in (3, 5, 8):
        faulty.fail("put", at=put)
    asset = await service.uploaded(HOLIDAY, storage="faulty", sizes=TEN_SIZES, atomic="false")
    assert (len(asset["variants"]), len(asset["failed"])) == (7, 3)
    assert asset["credits_used"] == 7 + 7
    assert await account(service) == (86, 0, 14)
    (listed,) = (await service.client.get("/api/v1/assets")).json()["items"]
    assert listed["credits_used"] == 14


@pytest.mark.parametrize("storage", ["local", "direct"])
async def test_what_fails_costs_nothing(service: Service, storage: str) -> None:
    problem_of(await service.upload(DAMAGED, sizes="64", storage=storage), 422, "corrupt_image")
    problem_of(await send_batch(service, HOLIDAY, DAMAGED, sizes="64", storage=storage), 422, "corrupt_image")
    assert await account(service) == (100, 0, 0)


async def test_what_fails_costs_nothing_though_its_bytes_cannot_be_removed_yet(
    service: Service, faulty: FaultyStorage
) -> None:
    faulty.fail("put", at=1, after=True)
    faulty.fail("delete")
    problem_of(await service.upload(HOLIDAY, storage="faulty"), 503, "storage_unavailable")
    assert [state for _, state in await service.rows()] == ["deleting"]
    assert await account(service) == (100, 0, 0)
    faulty.relent()
    await service.settle()
    assert await service.rows() == []
    assert await account(service) == (100, 0, 0)


async def test_of_a_batch_each_file_is_paid_for_that_was_kept(service: Service) -> None:
    answer = await send_batch(service, HOLIDAY, b"words", OTHER, sizes="64", atomic="false")
    assert [asset["credits_used"] for asset in answer.json()["assets"]] == [8, 8]
    assert await account(service) == (84, 0, 16)


async def test_deleting_changing_and_moving_are_free_and_give_nothing_back(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY, sizes="64")
    url = f"/api/v1/assets/{asset['id']}"
    assert (await service.client.patch(url, json={"visibility": "private"})).json()["credits_used"] == 8
    assert (await service.client.post(f"{url}/move", params={"storage": "memory"})).json()["credits_used"] == 8
    assert (await service.client.delete(url)).status_code == 204
    assert await account(service) == (92, 0, 8)


async def test_what_is_stripped_is_paid_for_as_it_is_stored(service: Service) -> None:
    asset = await service.uploaded(LARGE, strip_metadata="true")
    assert asset["credits_used"] == 7


async def test_an_import_costs_what_an_upload_costs(start_service: StartService) -> None:
    async with site() as there:
        there.answers["/a.jpg"] = ok(HOLIDAY)
        async with start_service(credits=PRICES, imports=ImportSettings(**there.settings)) as service:
            body = {"source_url": there.url("/a.jpg")}
            problem_of(await service.client.post("/api/v1/assets", json=body), 402, "insufficient_credits")
            assert there.asked == []
            await grant(service, 8)
            answer = await service.client.post("/api/v1/assets", json=body, params={"sizes": "20"})
            assert answer.json()["credits_used"] == 8
            assert await account(service) == (0, 0, 8)


# ── Sizes added later ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_sizes_added_later_are_paid_for_and_those_there_are_not_again(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY, sizes="64")
    url = f"/api/v1/assets/{asset['id']}"
    for sizes in ("64,32,16", "32,16"):
        grown = await service.client.post(f"{url}/variants", params={"sizes": sizes})
        assert grown.json()["credits_used"] == 10
        assert (await service.client.get(url)).json()["credits_used"] == 10
    assert await account(service) == (90, 0, 10)


async def test_sizes_that_cannot_be_added_cost_nothing(service: Service, faulty: FaultyStorage) -> None:
    asset = await service.uploaded(HOLIDAY, storage="faulty")
    url = f"/api/v1/assets/{asset['id']}"
    faulty.relent()
    faulty.fail("put", at=2)
    failed = await service.client.post(f"{url}/variants", params={"sizes": "64,32"})
    problem_of(failed, 503, "storage_unavailable")
    assert await account(service) == (93, 0, 7)
    faulty.relent()
    faulty.fail("put", at=2)
    grown = await service.client.post(f"{url}/variants", params={"sizes": "64,32", "atomic": "false"})
    assert (len(grown.json()["failed"]), grown.json()["credits_used"]) == (1, 8)
    assert await account(service) == (92, 0, 8)


# ── An empty purse ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def poor(start_service: StartService) -> AsyncIterator[Service]:
    """A service whose default owner has 8 credits."""
    async with start_service(credits=PRICES) as running:
        await grant(running, 8)
        yield running


@pytest.mark.parametrize("storage", ["local", "direct"])
@pytest.mark.parametrize("atomic", ["true", "false"])
async def test_who_cannot_pay_for_all_that_is_asked_for_gets_nothing(poor: Service, storage: str, atomic: str) -> None:
    query = {"storage": storage, "atomic": atomic}
    for refused in (
        await poor.upload(HOLIDAY, sizes="64,32", **query),
        await poor.upload(LARGE, **query),
        await send_batch(poor, HOLIDAY, OTHER, **query),
    ):
        problem = problem_of(refused, 402, "insufficient_credits")
        assert re.fullmatch(r"this takes \d+ credits, and 8 are available", problem["detail"])
    assert await account(poor) == (8, 0, 0)
    assert await poor.leaves_nothing()
    await poor.uploaded(HOLIDAY, sizes="64", **query)
    assert await account(poor) == (0, 0, 8)


@pytest.mark.parametrize("content", [HOLIDAY, LARGE], ids=["by its sizes", "by its length"])
async def test_who_cannot_pay_is_told_before_the_body_is_read(
    poor: Service, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    async def read(_: object) -> None:
        raise AssertionError("the body was read")

    monkeypatch.setattr(_Reader, "read", read)
    sizes = "64,32" if content is HOLIDAY else ""
    answer = await poor.client.post(
        "/api/v1/assets", params={"sizes": sizes}, content=content, headers={"Content-Type": "image/jpeg"}
    )
    problem_of(answer, 402, "insufficient_credits")


@pytest.mark.parametrize("inner", [MemoryStorage("bare", 2**28), DirectDownloadStorage("bare")], ids=["kept", "direct"])
async def test_what_cannot_be_paid_costs_the_storage_no_call(
    start_service: StartService, inner: StorageBackend
) -> None:
    storage = FaultyStorage("bare", inner)
    undo = register_backend("bare", lambda _name, _settings: storage)
    try:
        async with start_service(credits=PRICES) as service:
            await grant(service, 8)  # which a small original would cost
            problem_of(await service.upload(LARGE, storage="bare"), 402, "insufficient_credits")
            problem_of(await send_batch(service, HOLIDAY, OTHER, storage="bare"), 402, "insufficient_credits")
            assert storage.calls.keys().isdisjoint({"put", "delete"})
            await service.uploaded(HOLIDAY, storage="bare")
            assert "put" in storage.calls
    finally:
        undo()


async def test_sizes_that_cannot_be_paid_are_not_added(poor: Service) -> None:
    asset = await poor.uploaded(HOLIDAY)
    url = f"/api/v1/assets/{asset['id']}"
    answer = await poor.client.post(f"{url}/variants", params={"sizes": "64,32"})
    problem_of(answer, 402, "insufficient_credits")
    assert (await poor.client.post(f"{url}/variants", params={"sizes": "64"})).json()["credits_used"] == 8
    assert await account(poor) == (0, 0, 8)


async def test_what_is_reserved_cannot_be_spent_a_second_time(service: Service, faulty: FaultyStorage) -> None:
    await grant(service, -90)
    hang = faulty.hang("put", at=1)
    first = asyncio.create_task(service.uploaded(HOLIDAY, storage="faulty", sizes="64"))
    await hang.reached.wait()
    assert await account(service) == (10, 8, 0)
    problem_of(await service.upload(OTHER), 402, "insufficient_credits")
    taken = await service.client.post("/api/v1/credits", json={"owner": "default", "amount": -3})
    problem_of(taken, 402, "insufficient_credits")
    hang.released.set()
    assert (await first)["credits_used"] == 8
    assert await account(service) == (2, 0, 8)


async def test_what_sizes_may_cost_that_are_being_added_is_reserved(service: Service, faulty: FaultyStorage) -> None:
    asset = await service.uploaded(HOLIDAY, storage="faulty")
    faulty.relent()
    hang = faulty.hang("put", at=1)
    url = f"/api/v1/assets/{asset['id']}"
    growing = asyncio.create_task(service.client.post(f"{url}/variants", params={"sizes": "64,32"}))
    await hang.reached.wait()
    assert await account(service) == (93, 2, 7)
    assert (await service.client.get(url)).json()["credits_used"] == 7
    hang.released.set()
    assert (await growing).json()["credits_used"] == 9
    assert await account(service) == (91, 0, 9)


@pytest.mark.parametrize("storage", ["local", "direct"])
async def test_of_many_uploads_at_once_those_are_served_that_can_be_paid(poor: Service, storage: str) -> None:
    await grant(poor, 14)
    answers = await asyncio.gather(*(poor.upload(HOLIDAY, storage=storage, sizes="64") for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [201] * 2 + [402] * 6
    assert await account(poor) == (6, 0, 16)
    assert len(await poor.rows()) == (2 if storage == "local" else 0)


# ── Retries ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_replay_is_not_charged_and_says_what_the_first_cost(service: Service) -> None:
    first = await keyed(service, "k", sizes="64")
    again = await keyed(service, "k", sizes="64")
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == first.json()
    assert await account(service) == (92, 0, 8)


async def test_a_replay_of_direct_is_computed_again_and_not_charged(poor: Service) -> None:
    first = await keyed(poor, "k", sizes="64", storage="direct")
    assert await account(poor) == (0, 0, 8)
    again = await keyed(poor, "k", sizes="64", storage="direct")
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["variants"] == first.json()["variants"]
    assert again.json()["credits_used"] == 8
    assert await account(poor) == (0, 0, 8)


@pytest.mark.parametrize("storage", ["local", "direct"])
async def test_an_empty_purse_is_not_remembered(poor: Service, storage: str) -> None:
    for content in (HOLIDAY, LARGE):  # found out before, and after, the body was read
        refused = await keyed(poor, "k", content, sizes="64,32", storage=storage)
        problem_of(refused, 402, "insufficient_credits")
    await grant(poor, 1)
    answer = await keyed(poor, "k", sizes="64,32", storage=storage)
    assert answer.status_code == 201, answer.text
    assert "idempotency-replayed" not in answer.headers
    assert await account(poor) == (0, 0, 9)


async def test_sizes_added_again_under_the_same_key_are_charged_once(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY)
    url = f"/api/v1/assets/{asset['id']}/variants"
    for _ in range(2):
        grown = await service.client.post(url, params={"sizes": "64"}, headers={"Idempotency-Key": "k"})
        assert grown.json()["credits_used"] == 8
    assert await account(service) == (92, 0, 8)


async def test_what_failed_on_our_side_is_paid_for_when_it_works(service: Service, faulty: FaultyStorage) -> None:
    faulty.fail("put", error=StorageUnavailable("staged"))
    problem_of(await keyed(service, "k", storage="faulty"), 503, "storage_unavailable")
    assert await account(service) == (100, 0, 0)
    faulty.relent()
    assert (await keyed(service, "k", storage="faulty")).json()["credits_used"] == 7
    assert await account(service) == (93, 0, 7)


# ── Prices that change ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_was_paid_is_remembered_when_nothing_is_metered_any_more(start_service: StartService) -> None:
    async with start_service(credits=PRICES) as service:
        await grant(service, 10)
        asset = await service.uploaded(HOLIDAY)
    async with start_service() as service:
        url = f"/api/v1/assets/{asset['id']}"
        assert (await service.client.get(url)).json()["credits_used"] == 7
        grown = await service.client.post(f"{url}/variants", params={"sizes": "64"})
        assert grown.json()["credits_used"] == 7
    async with start_service(credits=CreditSettings(per_size=3)) as service:
        grown = await service.client.post(f"{url}/variants", params={"sizes": "64,32"})
        assert grown.json()["credits_used"] == 10
        assert await account(service) == (0, 0, 10)


# ── Granting, and looking ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def guarded(start_service: StartService) -> AsyncIterator[Service]:
    async with start_service(credits=PRICES, api_keys=(SecretStr("root-key-0123456789"),)) as running:
        yield running


async def make_key(service: Service, owner: str) -> tuple[dict[str, str], str]:
    """What to send, and the key's id."""
    body = {"name": "test", "scopes": ["assets:read", "assets:write"], "owner": owner}
    made = (await service.client.post("/api/v1/keys", json=body, headers=ROOT)).json()
    return {"Authorization": f"Bearer {made['key']}"}, made["id"]


async def test_owners_have_accounts_of_their_own(guarded: Service) -> None:
    before = f"{datetime.now(UTC):%Y-%m-%d}"
    ann, ann_key = await make_key(guarded, "ann")
    bob, _ = await make_key(guarded, "bob")
    await grant(guarded, 20, "ann", headers=ROOT)
    files = {"file": ("a.jpg", HOLIDAY)}
    uploaded = await guarded.client.post("/api/v1/assets", files=files, headers=ann)
    problem_of(await guarded.client.post("/api/v1/assets", files=files, headers=bob), 402, "insufficient_credits")
    assert await account(guarded, ann) == (13, 0, 7)
    assert await account(guarded, bob) == (0, 0, 0)
    # An admin adds sizes to what is ann's: ann pays.
    url = f"/api/v1/assets/{uploaded.json()['id']}/variants"
    assert (await guarded.client.post(url, params={"sizes": "64"}, headers=ROOT)).status_code == 200
    assert await account(guarded, ann) == (12, 0, 8)
    today = (await guarded.client.get("/api/v1/usage/daily", headers=ann)).json()
    assert today["owner"] == "ann"
    assert {found["day"] for found in today["days"]} <= {before, f"{datetime.now(UTC):%Y-%m-%d}"}
    by_key = {found["key_id"]: (found["originals"], found["sizes"], found["credits"]) for found in today["days"]}
    assert by_key == {ann_key: (1, 0, 7), None: (0, 1, 1)}


async def test_only_an_admin_grants_and_sees_the_accounts_of_others(guarded: Service) -> None:
    ann, _ = await make_key(guarded, "ann")
    await grant(guarded, 20, "ann", headers=ROOT)
    await grant(guarded, 30, "bob", headers=ROOT)
    body = {"owner": "ann", "amount": 5}
    problem_of(await guarded.client.post("/api/v1/credits", json=body, headers=ann), 403, "forbidden")
    problem_of(await guarded.client.post("/api/v1/credits", json=body), 401, "unauthorized")
    for path in ("/api/v1/usage", "/api/v1/usage/daily", "/api/v1/credits"):
        problem_of(await guarded.client.get(path), 401, "unauthorized")
        problem_of(await guarded.client.get(path, params={"owner": "bob"}, headers=ann), 403, "forbidden")
        assert (await guarded.client.get(path, params={"owner": "bob"}, headers=ROOT)).status_code == 200
    told = (await guarded.client.get("/api/v1/usage", params={"owner": "bob"}, headers=ROOT)).json()
    assert told == {"owner": "bob", "balance": 30, "reserved": 0, "spent": 0}
    for headers, owner, amounts in ((ann, None, [20]), (ROOT, "bob", [30]), (ROOT, None, [30, 20])):
        query = {"owner": owner} if owner else {}
        page = (await guarded.client.get("/api/v1/credits", params=query, headers=headers)).json()
        assert [entry["amount"] for entry in page["items"]] == amounts


async def test_a_grant_that_is_sent_again_counts_once_for_good(service: Service) -> None:
    key = {"Idempotency-Key": "invoice-117"}
    body = {"owner": "default", "amount": 50, "note": "invoice 117"}
    first, again = [await service.client.post("/api/v1/credits", json=body, headers=key) for _ in range(2)]
    assert again.json() == first.json()
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert await account(service) == (150, 0, 0)
    for other in ({"amount": 51}, {"owner": "bob"}, {"note": None}):
        problem_of(
            await service.client.post("/api/v1/credits", json=body | other, headers=key), 409, "idempotency_conflict"
        )
    assert await account(service) == (150, 0, 0)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"amount": 5}, "owner"),
        ({"owner": "a b", "amount": 5}, "owner"),
        ({"owner": "ann"}, "amount"),
        ({"owner": "ann", "amount": 0}, "amount"),
        ({"owner": "ann", "amount": "5"}, "amount"),
        ({"owner": "ann", "amount": 1.5}, "amount"),
        ({"owner": "ann", "amount": True}, "amount"),
        ({"owner": "ann", "amount": 10**12 + 1}, "amount"),
        ({"owner": "ann", "amount": 5, "note": "a\x00b"}, "note"),
        ({"owner": "ann", "amount": 5, "note": "x" * 201}, "note"),
        ({"owner": "ann", "amount": 5, "more": 1}, "more"),
    ],
)
async def test_a_grant_that_makes_no_sense_says_why(service: Service, body: dict[str, Any], field: str) -> None:
    answer = await service.client.post("/api/v1/credits", json=body)
    problem = problem_of(answer, 422, "invalid_parameter")
    assert problem["errors"][0]["loc"] == ["body", field]


async def test_the_ledger_is_read_page_by_page_and_sums_up_to_the_balance(service: Service) -> None:
    for _ in range(2):
        await service.uploaded(HOLIDAY)
    asset = await service.uploaded(HOLIDAY, storage="direct")
    assert asset["id"] is None
    found: list[Any] = []
    cursor: str | None = ""
    while cursor is not None:
        page = (await service.client.get("/api/v1/credits", params={"limit": 3, "cursor": cursor})).json()
        found += page["items"]
        cursor = page["next_cursor"]
    assert [(entry["kind"], entry["amount"], entry["asset_id"] is None) for entry in found] == [
        ("charge", -7, True),
        ("charge", -7, False),
        ("charge", -7, False),
        ("grant", 100, True),
    ]
    balance, _, _ = await account(service)
    assert sum(entry["amount"] for entry in found) == balance
    bad = await service.client.get("/api/v1/credits", params={"cursor": "x"})
    problem_of(bad, 422, "invalid_parameter")


def test_every_price_is_documented() -> None:
    document = (Path(__file__).parent.parent.parent / "docs/credits.md").read_text(encoding="utf-8")
    documented = set(re.findall(rf"`{PREFIX}CREDITS__([A-Z0-9_]+)`", document))
    assert documented == {name.upper() for name in CreditSettings.model_fields}
