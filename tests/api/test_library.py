"""The library over HTTP."""

import asyncio
import base64
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests import images
from tests.conftest import Service, StartService, problem_of
from tests.staging import FaultyStorage

HOLIDAY = images.jpeg(320, 240, seed=5)
NOBODY = "019aa0c2-0000-7000-8000-000000000000"


def api(asset: Any, *more: str) -> str:
    return "/".join(["/api/v1/assets", asset["id"], *more])


async def listed(service: Service, **query: Any) -> list[str]:
    answer = await service.client.get("/api/v1/assets", params=query)
    assert answer.status_code == 200, answer.text
    return [asset["id"] for asset in answer.json()["items"]]


async def patch(service: Service, asset: Any, change: Any, **headers: str) -> httpx.Response:
    return await service.client.patch(
        api(asset), json=change, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )


async def test_an_asset_is_got_as_it_was_uploaded(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY, sizes="64", tags="a")
    answer = await service.client.get(api(asset))
    assert answer.json() == asset
    assert answer.headers["etag"]


@pytest.mark.parametrize("asset_id", [NOBODY, "nonsense", "1", "%00"])
@pytest.mark.parametrize(
    ("method", "more"), [("GET", ""), ("PATCH", ""), ("DELETE", ""), ("GET", "/content"), ("POST", "/signed-url")]
)
async def test_what_is_not_there_is_not_found(service: Service, asset_id: str, method: str, more: str) -> None:
    answer = await service.client.request(method, f"/api/v1/assets/{asset_id}{more}", json={})
    assert answer.status_code in {404, 405}
    assert answer.json()["code"] in {"asset_not_found", "route_not_found", "method_not_allowed"}


async def test_the_list_is_newest_first_and_filtered(service: Service) -> None:
    first = await service.uploaded(HOLIDAY, filename="Straße.jpg", tags="x,y")
    second = await service.uploaded(HOLIDAY, visibility="private", storage="memory", tags="y")
    assert await listed(service) == [second["id"], first["id"]]
    assert await listed(service, order="asc") == [first["id"], second["id"]]
    assert await listed(service, storage="memory") == [second["id"]]
    assert await listed(service, visibility="public") == [first["id"]]
    assert await listed(service, tag="y") == [second["id"], first["id"]]
    assert await listed(service, tag="x", days=1) == [first["id"]]
    assert await listed(service, q="STRASSE") == [first["id"]]
    assert await listed(service, q="%") == []
    assert await listed(service, storage="local", visibility="private") == []


async def test_the_list_is_of_a_period(service: Service) -> None:
    made = [await service.uploaded(HOLIDAY, tags="t") for _ in range(4)]
    ids, times = [asset["id"] for asset in made], [asset["created_at"] for asset in made]
    assert len(set(times)) == 4
    assert await listed(service, created_after=times[1]) == ids[:0:-1]
    assert await listed(service, created_before=times[1]) == ids[:1]
    for query in ({}, {"tag": "t"}, {"storage": "local"}, {"days": 1}):
        period = {"created_after": times[1], "created_before": times[3], **query}
        assert await listed(service, **period) == [ids[2], ids[1]]
        assert await listed(service, **period, order="asc") == [ids[1], ids[2]]
    # Finer than an id tells: what was made then was made before.
    assert await listed(service, created_after=times[3].replace("Z", "001Z")) == []
    assert await listed(service, created_before=times[0].replace("Z", "001Z")) == ids[:1]
    hour_ahead = datetime.fromisoformat(times[3]).astimezone(timezone(timedelta(hours=1))).isoformat()
    assert await listed(service, created_after=hour_ahead) == [ids[3]]
    assert await listed(service, created_after=times[3], created_before=times[1]) == []
    assert await listed(service, created_after="0001-01-01T00:00:00Z", created_before="9999-12-31T23:59:59Z") != []


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_a_period_is_paged_through(service: Service, order: str) -> None:
    made = [await service.uploaded(HOLIDAY) for _ in range(6)]
    query = {"created_after": made[1]["created_at"], "created_before": made[5]["created_at"], "order": order}
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = (await service.client.get("/api/v1/assets", params={"limit": 1, **query, **cursor})).json()
        seen += [asset["id"] for asset in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    expected = [asset["id"] for asset in made[1:5]]
    assert seen == (expected if order == "asc" else expected[::-1])


async def test_pages_are_followed_by_cursor(service: Service) -> None:
    ids = [(await service.uploaded(HOLIDAY))["id"] for _ in range(5)]
    seen, cursor = [], None
    while True:
        query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = (await service.client.get("/api/v1/assets", params=query)).json()
        seen += [asset["id"] for asset in page["items"]]
        await service.uploaded(HOLIDAY)  # comes before what was read already
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == ids[::-1]


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 0},
        {"limit": 201},
        {"days": 0},
        {"days": 36501},
        {"cursor": "x"},
        {"cursor": "é"},
        {"created_after": "yesterday"},
        {"created_after": "1763632800"},
        {"created_before": "2026-11-20T10:00:00"},
        {"created_before": "2026-11-20"},
        {"order": "up"},
        {"x": 1},
    ],
)
async def test_a_wrong_filter_is_named(service: Service, query: dict[str, Any]) -> None:
    problem = problem_of(await service.client.get("/api/v1/assets", params=query), 422, "invalid_parameter")
    assert problem["errors"][0]["loc"] == ["query", next(iter(query))]


async def test_what_may_be_changed_is_changed_and_the_rest_stays(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY, tags="old")
    change = {
        "filename": "new.jpg", "tags": ["b", "a", "b"], "expires_at": "2090-01-01T00:00:00Z", "pinned": True,
    }  # fmt: skip
    answer = await patch(service, asset, change)
    assert answer.status_code == 200, answer.text
    changed = answer.json()
    assert changed["updated_at"] >= asset["updated_at"]
    assert {**changed, "updated_at": None} == {
        **asset, "updated_at": None, "filename": "new.jpg", "tags": ["b", "a"], "expires_at": "2090-01-01T00:00:00Z",
        "pinned": True,
    }  # fmt: skip
    assert (await service.client.get(api(asset))).json() == changed
    assert await listed(service, tag="old") == []
    assert (await patch(service, asset, {"expires_at": None})).json()["expires_at"] is None


async def test_metadata_is_merged(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY)
    await patch(service, asset, {"metadata": {"a": 1, "b": {"c": 2, "d": 3}}})
    answer = await patch(service, asset, {"metadata": {"a": None, "b": {"c": [4]}}})
    assert answer.json()["metadata"] == {"b": {"c": [4], "d": 3}}


@pytest.mark.parametrize(
    "change",
    [
        {"filename": None},
        {"filename": ""},
        {"tags": ["x" * 65]},
        {"tags": [str(number) for number in range(51)]},
        {"metadata": []},
        {"metadata": {"a": "x" * 20_000}},
        {"metadata": {"a": "\x00"}},
        {"visibility": "secret"},
        {"visibility": None},
        {"expires_at": "soon"},
        {"pinned": "yes"},
        {"pinned": None},
        {"sha256": "0" * 64},
        {"id": NOBODY},
    ],
)
async def test_a_wrong_change_changes_nothing(service: Service, change: Any) -> None:
    asset = await service.uploaded(HOLIDAY)
    problem_of(await patch(service, asset, change), 422, "invalid_parameter")
    assert (await service.client.get(api(asset))).json() == asset


async def test_a_body_that_is_no_json_is_malformed(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY)
    answer = await service.client.patch(api(asset), content=b"{", headers={"Content-Type": "application/json"})
    problem_of(answer, 400, "malformed_body")


async def test_a_body_of_another_type_is_refused_as_that(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY)
    answer = await service.client.patch(api(asset), content=b"x=1", headers={"Content-Type": "text/plain"})
    problem_of(answer, 415, "unsupported_media_type")


async def test_a_list_of_a_storage_that_is_not_there_is_a_mistake(service: Service) -> None:
    problem_of(await service.client.get("/api/v1/assets?storage=nowhere"), 422, "storage_not_configured")


async def test_a_body_that_is_too_large_is_refused(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY)
    answer = await patch(service, asset, {"metadata": {"a": "x" * 2_000_000}})
    problem_of(answer, 413, "body_too_large")


async def test_a_change_can_be_bound_to_what_was_last_seen(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY)
    etag = (await service.client.get(api(asset))).headers["etag"]
    changed = await patch(service, asset, {"filename": "a.jpg"}, If_Match=etag)
    assert changed.status_code == 200
    assert changed.headers["etag"] != etag
    problem_of(await patch(service, asset, {"filename": "b.jpg"}, If_Match=etag), 412, "precondition_failed")
    problem_of(await patch(service, asset, {"filename": "b.jpg"}, If_Match=f"W/{etag}"), 412, "precondition_failed")
    for good in (f'"x", {changed.headers["etag"]}', "*"):
        assert (await patch(service, asset, {"filename": f"{len(good)}.jpg"}, If_Match=good)).status_code == 200


async def test_of_many_changes_at_once_none_is_lost(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY)
    answers = await asyncio.gather(
        *(patch(service, asset, {"metadata": {f"key{number}": number}}) for number in range(20))
    )
    assert {answer.status_code for answer in answers} == {200}
    assert len((await service.client.get(api(asset))).json()["metadata"]) == 20


@pytest.mark.parametrize("storage", ["local", "memory"])
async def test_going_private_kills_the_public_address(service: Service, storage: str) -> None:
    asset = await service.uploaded(HOLIDAY, storage=storage, sizes="64")
    answer = await patch(service, asset, {"visibility": "private"})
    assert answer.status_code == 200
    changed = answer.json()
    assert changed["visibility"] == "private"
    for old, new in ((asset, changed), (asset["variants"][0], changed["variants"][0])):
        problem_of(await service.client.get(old["url"]), 404, "asset_not_found")
        problem_of(await service.client.get(urlsplit(new["url"]).path), 403, "signature_required")
        assert (await service.client.get(new["url"])).status_code == 200
    again = (await patch(service, asset, {"visibility": "public"})).json()
    problem_of(await service.client.get(changed["url"]), 404, "asset_not_found")
    assert again["url"] == asset["url"]
    assert (await service.client.get(asset["url"])).content == HOLIDAY


async def test_deleting_leaves_nothing_and_cannot_be_done_twice(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY, sizes="64,32")
    assert (await service.client.delete(api(asset))).status_code == 204
    assert await service.leaves_nothing()
    problem_of(await service.client.delete(api(asset)), 404, "asset_not_found")
    problem_of(await service.client.get(api(asset)), 404, "asset_not_found")
    assert await listed(service) == []


async def test_of_many_deletions_at_once_one_succeeds(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY, sizes="64")
    answers = await asyncio.gather(*(service.client.delete(api(asset)) for _ in range(10)))
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses[0] == 204
    assert set(statuses[1:]) <= {404, 409}
    assert await service.leaves_nothing()


async def test_a_signed_url_is_the_same_within_its_window(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY, visibility="private", sizes="64")
    first, second = [(await service.client.post(api(asset, "signed-url"), json={})).json() for _ in range(2)]
    assert first == second
    sized = (await service.client.post(api(asset, "signed-url"), json={"size": "64"})).json()
    assert (await service.client.get(sized["url"])).status_code == 200
    problem_of(await service.client.post(api(asset, "signed-url"), json={"size": "65"}), 404, "variant_not_found")


@pytest.mark.parametrize(
    "body", [{"expiry_seconds": 0}, {"expiry_seconds": 604_801}, {"expiry": 5}, {"expiry_seconds": "a"}]
)
async def test_a_wrong_expiry_is_named(service: Service, body: Any) -> None:
    asset = await service.uploaded(HOLIDAY)
    problem_of(await service.client.post(api(asset, "signed-url"), json=body), 422, "invalid_parameter")


async def test_the_longest_expiry_is_a_setting(start_service: StartService) -> None:
    async with start_service(policy={"max_signed_expiry_seconds": 60}) as service:
        asset = await service.uploaded(HOLIDAY)
        assert (await service.client.post(api(asset, "signed-url"))).status_code == 200
        private = await service.uploaded(HOLIDAY, visibility="private")
        left = datetime.fromisoformat(private["url_expires_at"]) - datetime.now(UTC)
        assert left.total_seconds() <= 60
        answer = await service.client.post(api(asset, "signed-url"), json={"expiry_seconds": 61})
        assert "60" in problem_of(answer, 422, "invalid_parameter")["detail"]


async def test_content_comes_through_the_service_with_the_present_filename(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY, visibility="private", sizes="64", filename="a.jpg")
    await patch(service, asset, {"filename": 'Ü "quoted".jpg'})
    answer = await service.client.get(api(asset, "content"))
    assert answer.content == HOLIDAY
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["content-disposition"] == (
        "inline; filename=\"_ _quoted_.jpg\"; filename*=UTF-8''%C3%9C%20%22quoted%22.jpg"
    )
    etag = answer.headers["etag"]
    assert (await service.client.get(api(asset, "content"), headers={"If-None-Match": etag})).status_code == 304
    part = await service.client.get(api(asset, "content"), headers={"Range": "bytes=-5"})
    assert (part.status_code, part.content) == (206, HOLIDAY[-5:])
    sized = await service.client.get(api(asset, "content"), params={"size": "64"})
    assert len(sized.content) == asset["variants"][0]["size_bytes"]
    problem_of(await service.client.get(api(asset, "content"), params={"size": "63"}), 404, "variant_not_found")


@pytest.mark.parametrize("size", ["", "64"])
@pytest.mark.parametrize("change", ["published", "deleted", "on its way"])
async def test_content_that_is_changed_while_it_is_asked_for(
    service: Service, faulty: FaultyStorage, change: str, size: str
) -> None:
    """Nothing is missing: it lies elsewhere, or is gone as was asked."""
    asset = await service.uploaded(HOLIDAY, storage="faulty", visibility="private", sizes="64")
    before = await service.client.get(api(asset, "content"), params={"size": size})
    faulty.relent()
    reading, moving = faulty.hang("read", at=1), faulty.hang("move", at=2, after=True)
    read = asyncio.create_task(service.client.get(api(asset, "content"), params={"size": size}))
    await reading.reached.wait()
    if change == "deleted":
        assert (await service.client.delete(api(asset))).status_code == 204
    else:
        publishing = asyncio.create_task(patch(service, asset, {"visibility": "public"}))
        await moving.reached.wait()
        if change == "published":
            moving.release()
            await publishing
    reading.release()
    answer = await read
    match change:
        case "published":
            assert (answer.status_code, answer.content) == (200, before.content)
        case "deleted":
            problem_of(answer, 404, "asset_not_found")
        case _:
            problem_of(answer, 503, "busy")
            moving.release()
            assert (await publishing).json()["visibility"] == "public"


@pytest.mark.parametrize("storage", ["local", "memory"])
async def test_content_as_a_data_url(service: Service, storage: str) -> None:
    large = HOLIDAY + bytes(1_500_001)
    asset = await service.uploaded(large, storage=storage)
    answer = await service.client.get(api(asset, "content"), params={"as": "data_url"})
    head, _, data = answer.json()["data_url"].partition(",")
    assert head == "data:image/jpeg;base64"
    assert base64.b64decode(data) == large


async def test_statistics_follow_what_happens(service: Service) -> None:
    empty = (await service.client.get("/api/v1/stats")).json()
    assert (empty["count"], empty["bytes"], empty["oldest"], empty["deletions_owed"]) == (0, 0, None, 0)
    first = await service.uploaded(HOLIDAY, sizes="64")
    second = await service.uploaded(HOLIDAY, storage="memory")
    found = (await service.client.get("/api/v1/stats")).json()
    variants = first["variants"][0]["size_bytes"]
    assert (found["count"], found["bytes"]) == (2, 2 * len(HOLIDAY) + variants)
    assert (found["oldest"], found["newest"]) == (first["created_at"], second["created_at"])
    by_name = {storage["name"]: storage for storage in found["storages"]}
    assert by_name["local"]["bytes"] == len(HOLIDAY) + variants
    await service.client.delete(api(first))
    assert (await service.client.get("/api/v1/stats")).json()["bytes"] == len(HOLIDAY)


async def test_the_storages_are_listed(service: Service) -> None:
    storages = {
        storage["name"]: storage for storage in (await service.client.get("/api/v1/storages")).json()["storages"]
    }
    assert storages.keys() == {"local", "memory", "direct", "s3", "cloudinary", "gcs", "azure"}
    assert [name for name, storage in storages.items() if storage["default"]] == ["local"]
    assert {name for name, storage in storages.items() if storage["configured"]} == {"local", "memory", "direct"}
    assert all((storage["missing"] == []) is storage["configured"] for storage in storages.values())
    assert storages["s3"]["missing"] == ["ASSETS_S3__BUCKET"]
    assert storages["s3"]["capabilities"] is None
    assert storages["local"]["capabilities"]["create_if_absent"]
    assert not storages["direct"]["capabilities"]["persistent"]
