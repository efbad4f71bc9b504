"""Idempotency-Key: a request is carried out once, however often it is sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from smart_assets.assets import idempotency
from smart_assets.catalogue.models import idempotency_keys
from smart_assets.errors import CorruptImage, DecoderFailed
from smart_assets.storage.errors import StorageUnavailable
from tests import images
from tests.conftest import Service, StartService, problem_of
from tests.staging import FaultyStorage

HOLIDAY = images.jpeg(320, 240, seed=3)
OTHER = images.jpeg(320, 240, seed=4)
DAMAGED = images.png(400, 300)
DAMAGED = DAMAGED[: len(DAMAGED) // 2] + bytes(64) + DAMAGED[len(DAMAGED) // 2 + 64 :]


async def send(
    service: Service, key: str, content: bytes = HOLIDAY, *, filename: str = "a.jpg", **query: Any
) -> httpx.Response:
    return await service.client.post(
        "/api/v1/assets",
        params=query,
        headers={"Idempotency-Key": key},
        files={"file": (filename, content)},
    )


async def send_batch(service: Service, key: str, *contents: bytes, **query: Any) -> httpx.Response:
    files = [("files", (f"{number}.jpg", content)) for number, content in enumerate(contents)]
    return await service.client.post(
        "/api/v1/assets/batch", params=query, headers={"Idempotency-Key": key}, files=files
    )


async def keys(service: Service) -> list[tuple[str, str | None]]:
    """Every key there is, and the claim it is under."""
    return await service.runtime.database.read(
        lambda catalogue: [
            (row.key, row.claim) for row in catalogue._connection.execute(idempotency_keys.select()).all()
        ]
    )


async def test_a_retry_gets_the_first_answer_again_and_stores_nothing(service: Service) -> None:
    first = await send(service, "k", sizes="64", visibility="private", tags="trip")
    assert first.status_code == 201
    assert "idempotency-replayed" not in first.headers
    again = await send(service, "k", sizes="64", visibility="private", tags="trip")
    assert again.status_code == 201
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    assert again.json() == first.json()
    assert len(await service.rows()) == 1
    assert (await service.client.get(again.json()["url"])).content == HOLIDAY


async def test_what_failed_on_our_side_is_tried_again_though_the_request_wanted_what_works(
    service: Service, faulty: FaultyStorage
) -> None:
    faulty.fail("put")
    failed = await send_batch(service, "k", HOLIDAY, OTHER, storage="faulty", atomic="false")
    assert failed.status_code == 201
    assert [one["code"] for one in failed.json()["failed"]] == ["storage_unavailable"] * 2
    faulty.relent()
    again = await send_batch(service, "k", HOLIDAY, OTHER, storage="faulty", atomic="false")
    assert "idempotency-replayed" not in again.headers
    assert len(again.json()["assets"]) == 2


async def test_what_was_kept_of_a_request_is_never_stored_twice(service: Service, faulty: FaultyStorage) -> None:
    faulty.fail("put", at=2)
    first = await send_batch(service, "k", HOLIDAY, OTHER, storage="faulty", atomic="false")
    assert (len(first.json()["assets"]), len(first.json()["failed"])) == (1, 1)
    faulty.relent()
    again = await send_batch(service, "k", HOLIDAY, OTHER, storage="faulty", atomic="false")
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == first.json()
    assert len(await service.rows()) == 1


def test_a_decoder_that_failed_may_do_better_another_time() -> None:
    assert idempotency.is_about_the_content(CorruptImage("damaged"))
    assert not idempotency.is_about_the_content(DecoderFailed("took longer than 60 seconds"))
    assert not idempotency.is_about_the_content(StorageUnavailable("away"))


async def test_two_keys_are_a_mistake(service: Service) -> None:
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    answer = await service.client.post("/api/v1/assets", headers=headers, files={"file": ("a.jpg", HOLIDAY)})
    problem = problem_of(answer, 422, "invalid_parameter")
    assert problem["errors"][0]["loc"] == ["header", "idempotency-key"]
    assert await service.leaves_nothing()


async def test_another_boundary_another_order_of_parameters_and_their_defaults_are_the_same_request(
    service: Service,
) -> None:
    first = await send(service, "k", sizes="64,100", fit="inside")
    body = b"".join(
        [
            b'--other\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n',
            HOLIDAY,
            b"\r\n--other--\r\n",
        ]
    )
    again = await service.client.post(
        "/api/v1/assets?storage=local&sizes=64&sizes=100&atomic=true",
        content=body,
        headers={"Idempotency-Key": "k", "Content-Type": "multipart/form-data; boundary=other"},
    )
    assert again.json()["id"] == first.json()["id"]


@pytest.mark.parametrize(
    "other",
    [
        {"content": OTHER},
        {"filename": "b.jpg"},
        {"sizes": "100"},
        {"visibility": "private"},
        {"tags": "a"},
        {"quality": 79},
    ],
    ids=lambda other: next(iter(other)),
)
async def test_another_request_under_the_key_is_a_conflict(service: Service, other: dict[str, Any]) -> None:
    await send(service, "k", sizes="64")
    problem_of(await send(service, "k", **({"sizes": "64"} | other)), 409, "idempotency_conflict")
    assert len(await service.rows()) == 1


async def test_another_path_or_other_metadata_is_a_conflict(service: Service) -> None:
    await send(service, "k")
    problem_of(await send_batch(service, "k", HOLIDAY), 409, "idempotency_conflict")
    form = {"files": {"file": ("a.jpg", HOLIDAY)}, "data": {"metadata": '{"a": 1}'}}
    answer = await service.client.post("/api/v1/assets", headers={"Idempotency-Key": "k"}, **form)  # type: ignore[arg-type]
    problem_of(answer, 409, "idempotency_conflict")


async def test_of_identical_requests_at_once_one_does_the_work(service: Service) -> None:
    answers = await asyncio.gather(*(send(service, "k", sizes="64") for _ in range(8)))
    made = [answer for answer in answers if answer.status_code == 201]
    assert {answer.json()["id"] for answer in made} == {made[0].json()["id"]}
    assert [answer for answer in made if "idempotency-replayed" not in answer.headers] == made[:1]
    for answer in answers:
        if answer.status_code != 201:
            assert problem_of(answer, 409, "idempotency_in_progress")
            assert answer.headers["retry-after"] == "1"
    assert len(await service.rows()) == 1


async def test_a_key_is_claimed_before_the_body_is_read(service: Service) -> None:
    may_go_on = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield HOLIDAY[:100]
        await may_go_on.wait()
        yield HOLIDAY[100:]

    headers = {"Idempotency-Key": "k", "Content-Type": "image/jpeg"}
    first = asyncio.create_task(service.client.post("/api/v1/assets", content=slowly(), headers=headers))
    while not await keys(service):
        await asyncio.sleep(0.01)

    async def never() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    second = await asyncio.wait_for(service.client.post("/api/v1/assets", content=never(), headers=headers), 60)
    problem_of(second, 409, "idempotency_in_progress")
    may_go_on.set()
    assert (await first).status_code == 201


async def test_keys_of_two_owners_are_two_keys(start_service: StartService) -> None:
    async with start_service() as service:
        first = await send(service, "k")
        database = service.runtime.database
        await database.write(
            lambda catalogue: catalogue._connection.execute(idempotency_keys.update().values(owner="somebody else"))
        )
        second = await send(service, "k")
        assert second.status_code == 201
        assert second.json()["id"] != first.json()["id"]


async def test_what_was_made_and_deleted_is_gone(service: Service) -> None:
    asset = (await send(service, "k")).json()
    await service.client.delete(f"/api/v1/assets/{asset['id']}")
    problem_of(await send(service, "k"), 410, "asset_gone")
    assert await service.rows() == []


async def test_an_asset_that_was_changed_is_shown_as_it_is_now(service: Service) -> None:
    asset = (await send(service, "k")).json()
    await service.client.patch(f"/api/v1/assets/{asset['id']}", json={"visibility": "private"})
    again = (await send(service, "k")).json()
    assert (again["id"], again["visibility"]) == (asset["id"], "private")
    assert (await service.client.get(again["url"])).status_code == 200


@pytest.mark.parametrize(
    ("content", "query", "code"),
    [
        (b"<html>", {}, "unsupported_image"),
        (HOLIDAY[:500], {}, "corrupt_image"),
        (DAMAGED, {"sizes": "64"}, "corrupt_image"),
        (HOLIDAY[:500], {"atomic": "false"}, "corrupt_image"),
    ],
)
async def test_a_refusal_of_the_content_is_remembered(
    service: Service, content: bytes, query: dict[str, str], code: str
) -> None:
    first = await send(service, "k", content, **query)
    again = await send(service, "k", content, **query)
    assert again.headers["idempotency-replayed"] == "true"
    told, told_again = first.json(), again.json()
    assert told["code"] == code
    assert {**told_again, "request_id": ""} == {**told, "request_id": ""}
    assert again.status_code == first.status_code
    problem_of(await send(service, "k", HOLIDAY, **query), 409, "idempotency_conflict")


async def test_a_failure_of_ours_is_not_remembered(service: Service, faulty: FaultyStorage) -> None:
    faulty.fail("put", at=1)
    problem_of(await send(service, "k", storage="faulty"), 503, "storage_unavailable")
    assert await keys(service) == []
    answer = await send(service, "k", storage="faulty")
    assert answer.status_code == 201
    assert "idempotency-replayed" not in answer.headers


@pytest.mark.parametrize(
    "headers", [{"Content-Type": "text/plain"}, {"Content-Type": "image/jpeg", "Content-Digest": "sha-256=:AAAA:"}]
)
async def test_what_fails_before_the_body_is_known_frees_the_key(service: Service, headers: dict[str, str]) -> None:
    answer = await service.client.post("/api/v1/assets", content=HOLIDAY, headers=headers | {"Idempotency-Key": "k"})
    assert answer.status_code in {400, 415, 422}
    assert await keys(service) == []


async def test_a_sender_who_goes_away_frees_the_key(service: Service) -> None:
    async def stalled() -> AsyncIterator[bytes]:
        yield HOLIDAY[:100]
        await asyncio.Event().wait()

    sending = asyncio.create_task(
        service.client.post(
            "/api/v1/assets", content=stalled(), headers={"Idempotency-Key": "k", "Content-Type": "image/jpeg"}
        )
    )
    while not await keys(service):
        await asyncio.sleep(0.01)
    sending.cancel()
    with suppress(asyncio.CancelledError):
        await sending
    assert await keys(service) == []
    assert (await send(service, "k")).status_code == 201


async def test_a_batch_comes_again_with_what_failed_of_it(service: Service) -> None:
    query = {"atomic": "false", "sizes": "64"}
    first = await send_batch(service, "k", HOLIDAY, b"<html>", DAMAGED, **query)
    again = await send_batch(service, "k", HOLIDAY, b"<html>", DAMAGED, **query)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == first.json()
    assert [asset["failed"] for asset in again.json()["assets"]] != [[], []]
    assert len(await service.rows()) == 2
    problem_of(await send_batch(service, "k", HOLIDAY, DAMAGED, b"<html>", **query), 409, "idempotency_conflict")


async def test_a_batch_that_failed_leaves_its_key_to_nothing_else(service: Service) -> None:
    first = await send_batch(service, "k", HOLIDAY, b"<html>")
    assert first.status_code == 415
    again = await send_batch(service, "k", HOLIDAY, b"<html>")
    assert (again.status_code, again.headers["idempotency-replayed"]) == (415, "true")
    assert await service.leaves_nothing()


async def test_what_keeps_nothing_is_computed_again(service: Service) -> None:
    first = await send(service, "k", storage="direct", sizes="64")
    again = await send(service, "k", storage="direct", sizes="64")
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["url"] == first.json()["url"]
    assert again.json()["variants"] == first.json()["variants"]
    problem_of(await send(service, "k", OTHER, storage="direct", sizes="64"), 409, "idempotency_conflict")


async def test_a_key_is_good_for_a_day(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await send(service, "k")
    await send(service, "old")
    a_day_ago = datetime.now(UTC) - timedelta(hours=24, seconds=1)
    await service.runtime.database.write(
        lambda catalogue: catalogue._connection.execute(idempotency_keys.update().values(created_at=a_day_ago))
    )
    second = await send(service, "k")
    assert second.json()["id"] != first.json()["id"]
    await service.settle()
    assert [key for key, _ in await keys(service)] == ["k"], "the other was forgotten"


async def test_a_crash_frees_the_key_with_the_lease(service: Service, start_service: StartService) -> None:
    database = service.runtime.database
    left = idempotency_keys.insert().values(
        owner="default",
        key="k",
        request=idempotency.fingerprint("of a process that died"),
        claim="00000000-dead/1",
        created_at=datetime.now(UTC),
    )
    await database.write(lambda catalogue: catalogue._connection.execute(left))
    await service.settle()
    assert await keys(service) == []


async def test_who_lost_its_key_keeps_nothing_and_leaves_what_is_remembered_alone(
    service: Service, faulty: FaultyStorage
) -> None:
    """It was stopped for so long that another process freed its key, and the sender tried again."""
    hang = faulty.hang("put", at=1)
    stopped = asyncio.create_task(send(service, "k", storage="faulty"))
    await hang.reached.wait()
    freed = await service.runtime.database.write(
        lambda catalogue: catalogue.free_abandoned_keys(own_lease="another", held=[], living=[])
    )
    assert freed == 1
    second = await send(service, "k", storage="faulty")
    assert second.status_code == 201
    hang.release()
    problem_of(await stopped, 503, "busy")
    again = await send(service, "k", storage="faulty")
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["id"] == second.json()["id"]
    assert len(await service.rows()) == len(await faulty.keys()) == 1


async def test_a_key_that_its_own_process_gave_up_is_free_at_once(service: Service) -> None:
    first = await send(service, "k")
    claim = f"{service.runtime.idempotency._lease.id}/999999"
    await service.runtime.database.write(
        lambda catalogue: catalogue._connection.execute(idempotency_keys.update().values(claim=claim, outcome=None))
    )
    second = await send(service, "k")
    assert second.status_code == 201
    assert second.json()["id"] != first.json()["id"]


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there", "ümlaut"])
async def test_a_key_is_up_to_255_printable_characters(service: Service, key: str) -> None:
    answer = await service.client.post(
        "/api/v1/assets", headers={b"Idempotency-Key": key.encode("latin-1")}, files={"file": HOLIDAY}
    )
    problem_of(answer, 422, "invalid_parameter")
    assert (await send(service, "x" * 255)).status_code == 201


async def test_keys_outlive_a_restart(start_service: StartService) -> None:
    async with start_service() as service:
        first = await send(service, "k")
    async with start_service() as service:
        again = await send(service, "k")
        assert again.headers["idempotency-replayed"] == "true"
        assert again.json()["id"] == first.json()["id"]
