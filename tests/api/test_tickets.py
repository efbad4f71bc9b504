"""Upload tickets: one file without a key, as whoever made the ticket said, once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any
from uuid import UUID

import httpx
import pytest
from prometheus_client import REGISTRY
from pydantic import SecretStr

from smart_assets.catalogue.models import TicketRecord
from smart_assets.maintenance.tickets import TICKETS
from smart_assets.storage.errors import StorageFull
from smart_assets.storage.factory import register_backend
from smart_assets.storage.keys import incoming_key
from tests import images
from tests.conftest import Service, StartService, problem_of
from tests.staging import DistantStorage, FaultyStorage

HOLIDAY = images.jpeg(320, 240, seed=71)
OTHER = images.jpeg(320, 240, seed=72)
ROOT = {"Authorization": "Bearer root-key-0123456789"}
PATH = "/api/v1/upload-tickets"
DEAD = "a-process-that-is-gone/1"


async def made(service: Service, *, key: dict[str, str] | None = None, query: Any = None, **body: Any) -> Any:
    """A new ticket."""
    answer = await service.client.post(PATH, params=query, json=body, headers=key)
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"{PATH}/{answer.json()['id']}"
    assert answer.headers["cache-control"] == "no-store"
    return answer.json()


async def send(service: Service, ticket: Any, content: bytes = HOLIDAY, *, filename: str = "a.jpg") -> httpx.Response:
    """What a browser does with it: it knows nothing else."""
    return await service.client.request(
        ticket["method"], ticket["url"], data=ticket["fields"], files={"file": (filename, content)}
    )


async def status(service: Service, ticket: Any, key: dict[str, str] | None = None) -> Any:
    return (await service.client.get(f"{PATH}/{ticket['id']}", headers=key)).json()


async def rows(service: Service) -> dict[UUID, TicketRecord]:
    return await service.runtime.database.read(
        lambda catalogue: {
            record.id: record
            for (ticket_id,) in catalogue._connection.exec_driver_sql("SELECT id FROM upload_tickets")
            for record in catalogue.find_tickets([UUID(ticket_id)]).values()
        }
    )


def later(service: Service, seconds: float) -> None:
    """Let signatures think that so much time has passed."""
    service.runtime.tickets._signer._clock = lambda: time.time() + seconds


@pytest.fixture
async def closed(start_service: StartService) -> AsyncIterator[Service]:
    """With keys."""
    async with start_service(api_keys=(SecretStr("root-key-0123456789"),)) as running:
        yield running


# ── What it lets in ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_one_file_comes_in_without_a_key_as_the_tickets_maker_said(closed: Service) -> None:
    wanted: dict[str, str | int] = {
        "sizes": "thumbnail,80",
        "fit": "cover",
        "gravity": "north",
        "format": "webp",
        "quality": 60,
    }
    wanted |= {"visibility": "private", "tags": "trip,sun", "expires_at": "2999-01-01T00:00:00Z", "filename": "b.jpg"}
    wanted |= {"background": "#102030", "strip_metadata": "true", "placeholder": "false", "atomic": "false"}
    ticket = await made(closed, key=ROOT, query=wanted, metadata={"album": 7})
    assert (ticket["upload"], ticket["method"], ticket["fields"], ticket["complete_url"]) == (
        "service",
        "POST",
        {},
        None,
    )
    problem_of(await closed.upload(HOLIDAY), 401, "unauthorized")
    answer = await send(closed, ticket, filename="what the browser says.jpg")
    assert answer.status_code == 201, answer.text
    asset = answer.json()
    assert answer.headers["location"] == f"/api/v1/assets/{asset['id']}"
    expected = await closed.client.post(
        "/api/v1/assets",
        params=wanted,
        headers=ROOT,
        files={"file": ("b.jpg", HOLIDAY)},
        data={"metadata": '{"album": 7}'},
    )
    own = {"id", "url", "url_expires_at", "created_at", "updated_at"}

    def without_its_own(shown: Any) -> Any:
        shown["variants"] = [{k: v for k, v in variant.items() if k not in own} for variant in shown["variants"]]
        return {k: v for k, v in shown.items() if k not in own}

    assert without_its_own(asset) == without_its_own(expected.json())
    told = await status(closed, ticket, ROOT)
    assert (told["state"], told["asset_id"]) == ("used", answer.json()["id"])


@pytest.mark.parametrize("method", ["PUT", "POST"])
async def test_the_bytes_may_come_as_they_are(service: Service, method: str) -> None:
    ticket = await made(service, max_bytes=len(HOLIDAY))
    headers = {"Content-Type": "image/jpeg"}
    url = f"{ticket['url']}&filename=photo.jpg"
    answer = await service.client.request(method, url, content=HOLIDAY, headers=headers)
    assert (answer.status_code, answer.json()["filename"]) == (201, "photo.jpg")


async def test_the_asset_is_its_makers_owners(closed: Service) -> None:
    async def key_of(owner: str, *scopes: str) -> dict[str, str]:
        body = {"name": owner, "owner": owner, "scopes": list(scopes)}
        answer = await closed.client.post("/api/v1/keys", json=body, headers=ROOT)
        return {"Authorization": f"Bearer {answer.json()['key']}", "X-Request-ID": answer.json()["id"]}

    ann, bob = await key_of("ann", "assets:write", "assets:read"), await key_of("bob", "assets:write", "assets:read")
    reader = await key_of("ann", "assets:read")
    problem_of(await closed.client.post(PATH, json={}, headers=reader), 403, "forbidden")
    problem_of(await closed.client.post(PATH, json={}), 401, "unauthorized")
    ticket = await made(closed, key=ann)
    asset = (await send(closed, ticket)).json()
    url = f"/api/v1/assets/{asset['id']}"
    assert (await closed.client.get(url, headers=ann)).status_code == 200
    problem_of(await closed.client.get(url, headers=bob), 404, "asset_not_found")
    for path in (f"{PATH}/{ticket['id']}", f"{PATH}/x"):
        problem_of(await closed.client.get(path, headers=bob), 404, "ticket_not_found")
    problem_of(await closed.client.post(f"{PATH}/{ticket['id']}/complete", headers=bob), 404, "ticket_not_found")
    problem_of(await closed.client.post(f"{PATH}/{ticket['id']}/complete"), 401, "unauthorized")
    assert (await status(closed, ticket, ROOT))["asset_id"] == asset["id"], "an admin sees all"


async def test_a_ticket_ends_with_the_key_it_was_made_with(closed: Service) -> None:
    body = {"name": "shop", "owner": "shop", "scopes": ["assets:write"]}
    key = (await closed.client.post("/api/v1/keys", json=body, headers=ROOT)).json()
    ticket = await made(closed, key={"Authorization": f"Bearer {key['key']}"})
    assert (await closed.client.delete(f"/api/v1/keys/{key['id']}", headers=ROOT)).status_code == 204
    problem_of(await send(closed, ticket), 403, "forbidden")
    assert await closed.leaves_nothing()


async def test_nothing_but_the_file_is_the_senders_to_say(service: Service) -> None:
    ticket = await made(service)
    for name in ("storage", "visibility", "sizes", "tags", "expires_at", "max_bytes"):
        answer = await service.client.post(f"{ticket['url']}&{name}=x", files={"file": ("a.jpg", HOLIDAY)})
        problem_of(answer, 422, "invalid_parameter")
    answer = await service.client.post(ticket["url"], files={"file": HOLIDAY}, data={"metadata": "{}"})
    problem_of(answer, 422, "invalid_parameter")
    for body in ({"source_url": "https://example.com/a.jpg"}, {"data_url": "data:image/png;base64,AAAA"}):
        problem_of(await service.client.post(ticket["url"], json=body), 415, "unsupported_media_type")
    assert (await send(service, ticket)).status_code == 201, "and it is as good as new"


@pytest.mark.parametrize("chunked", [False, True])
async def test_no_more_bytes_than_the_ticket_says(service: Service, chunked: bool) -> None:
    async def pieces(content: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(content), 1000):
            yield content[start : start + 1000]

    ticket = await made(service, max_bytes=len(HOLIDAY))
    headers = {"Content-Type": "image/jpeg"}
    for content in (HOLIDAY + b"x", HOLIDAY + bytes(10_000)):
        body = pieces(content) if chunked else content
        problem_of(await service.client.put(ticket["url"], content=body, headers=headers), 413, "body_too_large")
        problem_of(await send(service, ticket, content), 413, "body_too_large")
    assert await service.leaves_nothing()
    assert (await service.client.put(ticket["url"], content=HOLIDAY, headers=headers)).status_code == 201


async def test_a_file_may_be_larger_than_what_other_requests_may_hold(service: Service) -> None:
    ticket = await made(service)
    assert (await send(service, ticket, HOLIDAY + bytes(2_000_000))).status_code == 201


async def test_only_the_file_whose_hash_it_names(service: Service) -> None:
    ticket = await made(service, sha256=sha256(HOLIDAY).hexdigest(), query={"strip_metadata": "true"})
    problem_of(await send(service, ticket, OTHER), 422, "digest_mismatch")
    assert await service.leaves_nothing()
    assert (await send(service, ticket)).status_code == 201


@pytest.mark.parametrize(
    ("body", "query", "code"),
    [
        ({"max_bytes": 60_000_000}, {}, "invalid_parameter"),
        ({"max_bytes": 0}, {}, "invalid_parameter"),
        ({"max_bytes": "9"}, {}, "invalid_parameter"),
        ({"expiry_seconds": 0}, {}, "invalid_parameter"),
        ({"expiry_seconds": 90_000}, {}, "invalid_parameter"),
        ({"sha256": "x"}, {}, "invalid_parameter"),
        ({"metadata": {"a": "x" * 17_000}}, {}, "invalid_parameter"),
        ({"upload": "pigeon"}, {}, "invalid_parameter"),
        ({"storage": "local"}, {}, "invalid_parameter"),
        ({}, {"sizes": "no"}, "invalid_parameter"),
        ({}, {"background": "blue"}, "invalid_parameter"),
        ({}, {"storage": "s3"}, "storage_not_configured"),
        ({"upload": "bucket"}, {"storage": "local"}, "unsupported"),
        ({"upload": "bucket"}, {"storage": "memory"}, "unsupported"),
        ({"upload": "bucket"}, {"storage": "direct"}, "unsupported"),
    ],
)
async def test_what_could_not_be_uploaded_is_refused_at_once(
    service: Service, body: Any, query: Any, code: str
) -> None:
    problem_of(await service.client.post(PATH, json=body, params=query), 422, code)
    assert await rows(service) == {}


# ── Once ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("storage", ["local", "memory"])
async def test_the_same_file_again_is_answered_again_and_another_is_refused(service: Service, storage: str) -> None:
    ticket = await made(service, query={"storage": storage, "visibility": "private"})
    first = await send(service, ticket)
    assert "idempotency-replayed" not in first.headers
    again = await send(service, ticket, filename="b.jpg")
    assert (again.status_code, again.headers["idempotency-replayed"]) == (201, "true")
    assert again.json() == first.json()
    problem_of(await send(service, ticket, OTHER), 409, "ticket_used")
    completed = await service.client.post(f"{PATH}/{ticket['id']}/complete")
    assert (completed.status_code, completed.json()) == (200, first.json())
    assert len(await service.rows()) == 1
    assert (await service.client.delete(f"/api/v1/assets/{first.json()['id']}")).status_code == 204
    problem_of(await send(service, ticket), 410, "asset_gone")


async def test_where_nothing_is_kept_the_answer_is_computed_again(service: Service) -> None:
    ticket = await made(service, query={"storage": "direct"})
    first, again = await send(service, ticket), await send(service, ticket)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json()["url"] == again.json()["url"]
    assert again.headers["idempotency-replayed"] == "true"
    problem_of(await send(service, ticket, OTHER), 409, "ticket_used")
    assert (await status(service, ticket))["state"] == "used"
    problem_of(await service.client.post(f"{PATH}/{ticket['id']}/complete"), 410, "asset_gone")


@pytest.mark.parametrize("atomic", ["true", "false"])
async def test_what_was_refused_for_its_content_leaves_the_ticket_as_it_was(service: Service, atomic: str) -> None:
    ticket = await made(service, query={"sizes": "64", "atomic": atomic})
    problem_of(await send(service, ticket, b"words"), 415, "unsupported_image")
    problem_of(await send(service, ticket, HOLIDAY[: len(HOLIDAY) // 2]), 422, "corrupt_image")
    problem_of(await send(service, ticket, b""), 422, "invalid_parameter")
    assert (await status(service, ticket))["state"] == "open"
    assert [record.claim for record in (await rows(service)).values()] == [None], "for every process"
    assert await service.leaves_nothing()
    assert (await send(service, ticket)).status_code == 201


async def test_what_failed_on_our_side_leaves_the_ticket_as_it_was(service: Service, faulty: FaultyStorage) -> None:
    ticket = await made(service, query={"storage": "faulty"})
    faulty.fail("put", at=1, error=StorageFull("full"))
    problem_of(await send(service, ticket), 507, "storage_full")
    assert (await send(service, ticket)).status_code == 201


async def test_while_one_file_is_coming_another_waits(service: Service, faulty: FaultyStorage) -> None:
    ticket = await made(service, query={"storage": "faulty"})
    hang = faulty.hang("put", at=1)
    first = asyncio.create_task(send(service, ticket))
    await hang.reached.wait()
    refused = await send(service, ticket)
    hang.release()
    problem_of(refused, 409, "ticket_in_use")
    assert refused.headers["retry-after"] == "1"
    assert (await first).status_code == 201
    assert (await send(service, ticket)).headers["idempotency-replayed"] == "true"


async def test_of_many_at_once_one_is_made(service: Service) -> None:
    ticket = await made(service)
    answers = await asyncio.gather(*(send(service, ticket, images.jpeg(32, 24, seed=n)) for n in range(8)))
    assert sorted(answer.status_code for answer in answers) == [201, *[409] * 7]
    assert len(await service.rows()) == 1


async def test_a_process_that_died_with_a_ticket_in_hand_frees_it(service: Service) -> None:
    ticket = await made(service)
    (record,) = (await rows(service)).values()
    freed = REGISTRY.get_sample_value("smart_assets_repairs_total", {"action": "freed_ticket"}) or 0
    assert await service.runtime.database.write(lambda catalogue: catalogue.claim_ticket(record, DEAD))
    await service.settle()
    assert (REGISTRY.get_sample_value("smart_assets_repairs_total", {"action": "freed_ticket"}) or 0) > freed
    assert (await send(service, ticket)).status_code == 201


async def test_who_lost_the_ticket_meanwhile_makes_nothing(service: Service, faulty: FaultyStorage) -> None:
    ticket = await made(service, query={"storage": "faulty"})
    hang = faulty.hang("put", at=1, after=True)
    slow = asyncio.create_task(send(service, ticket))
    await hang.reached.wait()
    (record,) = (await rows(service)).values()
    assert await service.runtime.database.write(lambda catalogue: catalogue.free_ticket(record))
    faster = await send(service, ticket, OTHER)
    hang.release()
    assert faster.status_code == 201
    problem_of(await slow, 503, "busy")
    assert len(await service.rows()) == 1
    assert len(await faulty.keys()) == 1


# ── Signatures ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_ticket_expires(service: Service) -> None:
    ticket = await made(service, expiry_seconds=60)
    left = datetime.fromisoformat(ticket["expires_at"]) - datetime.now(UTC)
    assert timedelta(seconds=30) < left <= timedelta(seconds=60)
    later(service, 61)
    problem_of(await send(service, ticket), 403, "signature_expired")
    assert await service.leaves_nothing()


async def test_a_ticket_takes_its_own_signature_and_no_other(service: Service, distant: FaultyStorage) -> None:
    ticket, second = await made(service), await made(service)
    bucket = await made(service, query={"storage": "distant"}, upload="bucket")
    address, _, query = ticket["url"].partition("?")
    complete, _, completing = bucket["complete_url"].partition("?")
    problem_of(await service.client.post(address, files={"file": HOLIDAY}), 403, "signature_required")
    asset = await service.uploaded(HOLIDAY, visibility="private")
    delivering = asset["url"].partition("?")[2]
    wrong = [
        f"{second['url'].partition('?')[0]}?{query}",
        f"{address}?{second['url'].partition('?')[2]}",
        f"{address}?{query.replace('exp=1', 'exp=2')}",
        f"{address}?{delivering}",
        f"{complete}?{query}",
        f"{address.replace(ticket['id'], bucket['id'])}?{completing}",
        f"{complete}?{delivering}",
    ]
    for url in wrong:
        problem_of(await service.client.post(url, files={"file": HOLIDAY}), 403, "signature_invalid")
    problem_of(await service.client.get(f"{asset['url'].partition('?')[0]}?{query}"), 403, "signature_invalid")
    forged = service.runtime.tickets._signer.sign_until(f"upload/{asset['id']}", datetime.now(UTC) + timedelta(hours=1))
    unknown = f"{PATH}/{asset['id']}/file?{forged.query}"
    problem_of(await service.client.post(unknown, files={"file": HOLIDAY}), 404, "ticket_not_found")


async def test_pages_of_other_sites_may_use_one_where_the_settings_say_so(start_service: StartService) -> None:
    keys = (SecretStr("root-key-0123456789"),)
    asks = {"Origin": "https://shop.example", "Access-Control-Request-Method": "PUT"}
    sends = {"Origin": "https://shop.example", "Content-Type": "image/jpeg", "Sec-Fetch-Site": "cross-site"}
    async with start_service(api_keys=keys, cors_origins=("https://shop.example",)) as service:
        ticket = await made(service, key=ROOT)
        asked = await service.client.options(ticket["url"], headers=asks)
        assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, "https://shop.example")
        assert "PUT" in asked.headers["access-control-allow-methods"]
        answer = await service.client.put(ticket["url"], content=HOLIDAY, headers=sends)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (201, "https://shop.example")
    async with start_service() as service:
        ticket = await made(service)
        problem_of(await service.client.put(ticket["url"], content=HOLIDAY, headers=sends), 403, "forbidden")


# ── To a bucket ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def put(storage: FaultyStorage, ticket: Any, content: bytes = HOLIDAY) -> None:
    """What a browser puts there, past the service."""
    await storage.inner.cleanup_failed_assets([incoming_key(UUID(ticket["id"]))])
    await storage.inner.upload(incoming_key(UUID(ticket["id"])), content, content_type="text/html")


async def to_bucket(service: Service, *, query: Any = None, **body: Any) -> Any:
    return await made(service, query={"storage": "distant", **(query or {})}, upload="bucket", **body)


async def complete(service: Service, ticket: Any) -> httpx.Response:
    return await service.client.post(ticket["complete_url"])


async def test_what_was_put_into_the_bucket_becomes_an_asset_when_it_is_completed(
    service: Service, distant: FaultyStorage
) -> None:
    ticket = await to_bucket(
        service, query={"sizes": "64", "tags": "trip", "filename": "a.jpg"}, max_bytes=len(HOLIDAY)
    )
    assert ticket["url"].startswith(
        f"https://bucket.example/private/incoming/{ticket['id']}?most={len(HOLIDAY)}&until="
    )
    assert (ticket["upload"], ticket["method"], ticket["headers"]) == ("bucket", "PUT", {"X-Kind": "raw"})
    problem_of(await complete(service, ticket), 409, "upload_missing")
    await put(distant, ticket)
    answer = await complete(service, ticket)
    assert answer.status_code == 200, answer.text
    asset = answer.json()
    assert (asset["filename"], asset["tags"], asset["storage"]) == ("a.jpg", ["trip"], "distant")
    assert (asset["sha256"], asset["content_type"]) == (sha256(HOLIDAY).hexdigest(), "image/jpeg")
    assert [variant["size"] for variant in asset["variants"]] == ["64"]
    assert all(asset["id"] in key for key in await distant.keys())
    again = await complete(service, ticket)
    assert (again.status_code, again.headers["idempotency-replayed"]) == (200, "true")
    assert again.json() == asset
    by_key = await service.client.post(f"{PATH}/{ticket['id']}/complete")
    assert (by_key.status_code, by_key.json()["id"]) == (200, asset["id"])
    assert len(await service.rows()) == 1


@pytest.mark.parametrize(
    ("content", "status_code", "code"),
    [
        (HOLIDAY + b"x", 413, "body_too_large"),
        (b"<script>", 415, "unsupported_image"),
        (HOLIDAY[:500], 422, "corrupt_image"),
        (OTHER[:-1] + b"\x00", 422, "digest_mismatch"),
        (b"", 422, "invalid_parameter"),
    ],
)
async def test_what_is_refused_is_removed_and_something_else_may_come(
    service: Service, distant: FaultyStorage, content: bytes, status_code: int, code: str
) -> None:
    named = {"sha256": sha256(HOLIDAY).hexdigest()} if code == "digest_mismatch" else {}
    ticket = await to_bucket(service, max_bytes=len(HOLIDAY) if code == "body_too_large" else len(HOLIDAY) * 2, **named)
    await put(distant, ticket, content)
    problem_of(await complete(service, ticket), status_code, code)
    assert await distant.keys() == set()
    problem_of(await complete(service, ticket), 409, "upload_missing")
    await put(distant, ticket)
    assert (await complete(service, ticket)).status_code == 200
    assert len(await distant.keys()) == 1


@pytest.mark.parametrize("operation", ["read", "put"])
async def test_what_fails_on_our_side_can_be_completed_later(
    service: Service, distant: FaultyStorage, operation: Any
) -> None:
    ticket = await to_bucket(service)
    await put(distant, ticket)
    distant.fail(operation)
    problem_of(await complete(service, ticket), 503, "storage_unavailable")
    assert await distant.keys() == {incoming_key(UUID(ticket["id"]))}
    distant.relent()
    assert (await complete(service, ticket)).status_code == 200
    assert len(await distant.keys()) == 1


async def test_what_could_not_be_removed_is_when_it_is_completed_again(
    service: Service, distant: FaultyStorage
) -> None:
    ticket = await to_bucket(service)
    await put(distant, ticket)
    distant.fail("delete")
    assert (await complete(service, ticket)).status_code == 200
    assert len(await distant.keys()) == 2
    distant.relent()
    assert (await complete(service, ticket)).headers["idempotency-replayed"] == "true"
    assert len(await distant.keys()) == 1


async def test_what_was_made_is_told_when_its_bucket_is_not_configured_any_more(
    start_service: StartService,
) -> None:
    storage = FaultyStorage("distant", DistantStorage())
    undo = register_backend("distant", lambda _name, _settings: storage)
    try:
        async with start_service() as service:
            ticket = await to_bucket(service)
            await put(storage, ticket)
            asset = (await complete(service, ticket)).json()
    finally:
        undo()
    async with start_service() as service:
        taken = await service.runtime.tickets.complete(UUID(ticket["id"]))
        assert (str(taken.outcome.record.id), taken.replayed) == (asset["id"], True)


async def test_completed_twice_at_once_it_is_made_once(service: Service, distant: FaultyStorage) -> None:
    ticket = await to_bucket(service)
    await put(distant, ticket)
    hang = distant.hang("put", at=1)
    first = asyncio.create_task(complete(service, ticket))
    await hang.reached.wait()
    second = await complete(service, ticket)
    hang.release()
    problem_of(second, 409, "ticket_in_use")
    assert (await first).status_code == 200
    assert len(await service.rows()) == 1


async def test_it_can_be_completed_for_a_while_after_the_tickets_end(service: Service, distant: FaultyStorage) -> None:
    ticket = await to_bucket(service, expiry_seconds=60)
    await put(distant, ticket)
    later(service, 60 + 3601)
    problem_of(await complete(service, ticket), 403, "signature_expired")
    later(service, 60 + 3590)
    assert (await complete(service, ticket)).status_code == 200


# ── Clearing up ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def age(service: Service, ticket: Any, seconds: float) -> None:
    """Let a ticket's end be so long ago."""
    ended = datetime.now(UTC) - timedelta(seconds=seconds)

    def end(catalogue: Any) -> None:
        record = catalogue.find_ticket(UUID(ticket["id"]))
        catalogue._change_ticket(record, expires_at=ended)

    await service.runtime.database.write(end)


async def sweep(service: Service) -> None:
    """As the background does it: either may be faster."""
    sweeping = service.runtime.reconciler._tickets
    sweeping._put_off.clear()
    await sweeping.pass_once()
    async with asyncio.timeout(60):
        while True:  # the background's own pass may be at it
            async with service.runtime.database.job(TICKETS) as mine:
                if mine:
                    return
            await asyncio.sleep(0.01)


async def test_what_was_never_completed_is_removed_in_the_end(service: Service, distant: FaultyStorage) -> None:
    stale, used, fresh, unused = [await to_bucket(service) for _ in range(4)]
    plain = await made(service)
    for ticket in (stale, used, fresh):
        await put(distant, ticket)
    asset = (await complete(service, used)).json()
    await put(distant, used)  # its URL was still good
    foreign = incoming_key(UUID(asset["id"]))
    await distant.inner.upload(foreign, HOLIDAY, content_type="image/jpeg")
    for ticket in (stale, used, unused, plain):
        await age(service, ticket, 3601)
    await age(service, fresh, 3500)
    await sweep(service)
    assert set(await rows(service)) == {UUID(fresh["id"])}
    kept = {incoming_key(UUID(fresh["id"])), foreign}
    assert {key for key in await distant.keys() if asset["id"] not in key} | {foreign} == kept
    problem_of(await complete(service, stale), 404, "ticket_not_found")
    assert (await complete(service, fresh)).status_code == 200
    assert len(await service.rows()) == 2


async def test_what_is_just_being_completed_is_left_alone(service: Service, distant: FaultyStorage) -> None:
    ticket = await to_bucket(service)
    await put(distant, ticket)
    hang = distant.hang("put", at=1)
    completing = asyncio.create_task(complete(service, ticket))
    await hang.reached.wait()
    (record,) = (await rows(service)).values()
    await service.runtime.database.write(
        lambda catalogue: catalogue._change_ticket(record, expires_at=datetime.now(UTC) - timedelta(days=1))
    )
    await sweep(service)
    hang.release()
    assert (await completing).status_code == 200
    await sweep(service)
    assert await rows(service) == {}
    assert len(await distant.keys()) == 1


async def test_a_storage_that_is_away_is_cleared_up_later_and_holds_up_no_other(
    service: Service, distant: FaultyStorage
) -> None:
    away, plain = await to_bucket(service), await made(service)
    await put(distant, away)
    distant.fail("delete")
    for ticket in (away, plain):
        await age(service, ticket, 3601)
    await sweep(service)
    assert set(await rows(service)) == {UUID(away["id"])}
    assert (await rows(service))[UUID(away["id"])].claim is None
    distant.relent()
    await sweep(service)
    assert (await rows(service), await distant.keys()) == ({}, set())


async def test_while_another_process_clears_up_this_one_does_not(service: Service, distant: FaultyStorage) -> None:
    ticket = await to_bucket(service)
    async with service.runtime.database.job(TICKETS) as mine:
        assert mine
        await age(service, ticket, 3601)
        assert await service.runtime.reconciler._tickets.pass_once() == 0
        assert len(await rows(service)) == 1


async def test_a_process_that_died_clearing_up_leaves_it_to_the_next(service: Service, distant: FaultyStorage) -> None:
    ticket = await to_bucket(service)
    await put(distant, ticket)
    (record,) = (await rows(service)).values()
    await service.runtime.database.write(lambda catalogue: catalogue.claim_ticket(record, DEAD))
    held = replace(record, claim=DEAD)
    await service.runtime.database.write(
        lambda catalogue: catalogue._change_ticket(held, expires_at=datetime.now(UTC) - timedelta(days=1))
    )
    await service.settle()
    await sweep(service)
    assert (await rows(service), await distant.keys()) == ({}, set())
