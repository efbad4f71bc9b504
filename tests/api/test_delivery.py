"""`/assets`: who gets which bytes, with which headers."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from smart_assets.errors import ConfigurationError
from smart_assets.settings import load_settings
from smart_assets.storage.factory import register_backend
from tests import images
from tests.conftest import Service, StartService, problem_of
from tests.staging import FaultyStorage

HOLIDAY = images.jpeg(320, 240, seed=3)


def path_of(url: str) -> str:
    return urlsplit(url).path


async def get(service: Service, url: str, **headers: str) -> httpx.Response:
    return await service.client.get(url, headers={name.replace("_", "-"): value for name, value in headers.items()})


@pytest.fixture(params=["local", "memory"])
async def public(service: Service, request: pytest.FixtureRequest) -> Any:
    return await service.uploaded(HOLIDAY, storage=request.param, sizes="64")


@pytest.fixture(params=["local", "memory"])
async def private(service: Service, request: pytest.FixtureRequest) -> Any:
    return await service.uploaded(HOLIDAY, storage=request.param, visibility="private", sizes="64")


async def test_a_public_asset_is_for_everybody_and_safe_to_show(service: Service, public: Any) -> None:
    answer = await get(service, public["url"])
    assert answer.status_code == 200
    assert answer.content == HOLIDAY
    headers = answer.headers
    assert headers["content-type"] == "image/jpeg"
    assert headers["content-length"] == str(len(HOLIDAY))
    assert headers["cache-control"] == "public, max-age=3600"
    assert headers["accept-ranges"] == "bytes"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert headers["content-disposition"] == "inline"
    assert headers["etag"].startswith('"')
    assert datetime.now(UTC) - timedelta(minutes=5) < datetime.strptime(
        headers["last-modified"], "%a, %d %b %Y %H:%M:%S GMT"
    ).replace(tzinfo=UTC)


async def test_how_long_caches_may_keep_public_assets_is_a_setting(start_service: StartService) -> None:
    async with start_service(public_cache_seconds=60) as service:
        asset = await service.uploaded(HOLIDAY)
        assert (await get(service, asset["url"])).headers["cache-control"] == "public, max-age=60"


async def test_head_is_get_without_the_bytes(service: Service, public: Any) -> None:
    whole, head = await get(service, public["url"]), await service.client.head(public["url"])
    assert head.status_code == 200
    assert head.content == b""
    ignored = {"x-request-id"}
    assert {k: v for k, v in head.headers.items() if k not in ignored} == {
        k: v for k, v in whole.headers.items() if k not in ignored
    }


async def test_head_has_no_ranges(service: Service, public: Any) -> None:
    head = await service.client.head(public["url"], headers={"Range": "bytes=0-1"})
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(HOLIDAY)))


async def test_a_copy_that_is_still_good_is_not_sent_again(service: Service, public: Any) -> None:
    first = await get(service, public["url"])
    for headers in (
        {"If_None_Match": first.headers["etag"]},
        {"If_None_Match": f'"other", W/{first.headers["etag"]}'},
        {"If_None_Match": "*"},
        {"If_Modified_Since": first.headers["last-modified"]},
        {"If_None_Match": first.headers["etag"], "If_Modified_Since": "Sat, 01 Jan 2000 00:00:00 GMT"},
    ):
        answer = await get(service, public["url"], **headers)
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == first.headers["etag"]
        assert answer.headers["cache-control"] == first.headers["cache-control"]
    for headers in (
        {"If_None_Match": '"other"'},
        {"If_Modified_Since": "Sat, 01 Jan 2000 00:00:00 GMT"},
        {"If_Modified_Since": "no date"},
        {"If_Modified_Since": "Mon, 01 Jan 2020 00:00:00 +99999999999999"},
        {"If_Modified_Since": "Fri, 31 Dec 1999 23:59:59 -2359"},
        {"If_None_Match": '"other"', "If_Modified_Since": first.headers["last-modified"]},
    ):
        assert (await get(service, public["url"], **headers)).status_code == 200


SIZE = len(HOLIDAY)


@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=10-", 10, SIZE),
        ("bytes=-10", SIZE - 10, SIZE),
        (f"bytes=-{SIZE * 2}", 0, SIZE),
        (f"bytes=5-{SIZE * 2}", 5, SIZE),
    ],
)
async def test_a_range_is_sent_alone(service: Service, public: Any, wanted: str, start: int, end: int) -> None:
    answer = await get(service, public["url"], Range=wanted)
    assert answer.status_code == 206
    assert answer.content == HOLIDAY[start:end]
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{SIZE}"
    assert answer.headers["content-length"] == str(end - start)


@pytest.mark.parametrize("wanted", ["bytes=5-4", "bytes=-", "bytes=a-b", "lines=0-1", "bytes=0-0,2-3", "bytes 0-1"])
async def test_what_is_no_single_range_gets_everything(service: Service, public: Any, wanted: str) -> None:
    answer = await get(service, public["url"], Range=wanted)
    assert (answer.status_code, answer.content) == (200, HOLIDAY)


@pytest.mark.parametrize("wanted", [f"bytes={SIZE}-", "bytes=-0", f"bytes={SIZE + 5}-{SIZE + 9}"])
async def test_a_range_outside_is_refused(service: Service, public: Any, wanted: str) -> None:
    answer = await get(service, public["url"], Range=wanted)
    problem_of(answer, 416, "range_not_satisfiable")
    assert answer.headers["content-range"] == f"bytes */{SIZE}"


async def test_a_range_of_an_older_copy_gets_everything(service: Service, public: Any) -> None:
    first = await get(service, public["url"])
    for condition, status in (
        (first.headers["etag"], 206),
        (first.headers["last-modified"], 206),
        ('"other"', 200),
        ("Sat, 01 Jan 2000 00:00:00 GMT", 200),
    ):
        assert (await get(service, public["url"], Range="bytes=0-9", If_Range=condition)).status_code == status


async def test_a_private_asset_needs_its_signature(service: Service, private: Any) -> None:
    signed = private["url"]
    answer = await get(service, signed)
    assert (answer.status_code, answer.content) == (200, HOLIDAY)
    visibility, max_age = answer.headers["cache-control"].split(", max-age=")
    left = datetime.fromisoformat(private["url_expires_at"]) - datetime.now(UTC)
    assert visibility == "private"
    assert 0 < int(max_age) <= left.total_seconds()
    refused = await get(service, path_of(signed))
    problem_of(refused, 403, "signature_required")
    assert refused.headers["cache-control"] == "no-store"
    problem_of(await get(service, signed + "0"), 403, "signature_invalid")
    variant = private["variants"][0]["url"]
    assert (await get(service, variant)).status_code == 200
    problem_of(await get(service, path_of(variant) + "?" + urlsplit(signed).query), 403, "signature_invalid")


async def test_other_parameters_beside_a_signature_are_ignored(service: Service, private: Any) -> None:
    assert (await get(service, private["url"] + "&utm_source=mail&x=1")).status_code == 200


async def test_a_signed_url_stops_working(service: Service, private: Any) -> None:
    answer = await service.client.post(f"/api/v1/assets/{private['id']}/signed-url", json={"expiry_seconds": 1})
    signed = answer.json()
    assert (await get(service, signed["url"])).status_code == 200
    await asyncio.sleep(1.05)
    problem_of(await get(service, signed["url"]), 403, "signature_expired")


async def test_no_path_leads_anywhere_else(service: Service, public: Any, private: Any) -> None:
    key = path_of(public["url"]).removeprefix("/assets/")
    secret = path_of(private["url"]).removeprefix("/assets/private/")
    for path in (
        "",
        "public/",
        "public/2026/",
        "../catalogue.sqlite3",
        "public/../private/" + secret,
        "public/..%2fprivate/" + secret,
        "public/%2e%2e/private/" + secret,
        "public//" + key.removeprefix("public/"),
        key + "/",
        key + ".tmp",
        key.replace("original", "ORIGINAL"),
        key.upper(),
        "PUBLIC/" + key.removeprefix("public/"),
        ".signing.key",
        "public/" + secret,
        key + "%00",
        key + "\\",
    ):
        answer = await service.client.get(httpx.URL("http://127.0.0.1:8000", raw_path=b"/assets/" + path.encode()))
        assert answer.status_code in {403, 404}, path
        assert answer.headers["content-type"] == "application/problem+json"


async def test_assets_can_only_be_fetched(service: Service, public: Any) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        answer = await service.client.request(method, public["url"])
        problem_of(answer, 405, "method_not_allowed")
        assert answer.headers["allow"] == "GET, HEAD"


async def test_a_deleted_asset_is_gone_from_delivery(service: Service, public: Any) -> None:
    await service.client.delete(f"/api/v1/assets/{public['id']}")
    for url in (public["url"], public["variants"][0]["url"]):
        problem_of(await get(service, url), 404, "asset_not_found")


async def test_an_image_larger_than_one_piece_arrives_whole(service: Service) -> None:
    large = images.with_film(HOLIDAY) + bytes(3_000_000)
    asset = await service.uploaded(large)
    assert (await get(service, asset["url"])).content == large
    part = await get(service, asset["url"], Range="bytes=1000-2500000")
    assert part.content == large[1000:2500001]


async def test_a_storage_that_can_only_be_read_is_streamed(service: Service, faulty: FaultyStorage) -> None:
    faulty.capabilities = type(faulty.capabilities)()
    asset = await service.uploaded(HOLIDAY, storage="faulty", visibility="private", sizes="64")
    answer = await get(service, asset["url"])
    assert (answer.status_code, answer.content) == (200, HOLIDAY)
    assert (await get(service, asset["url"], Range="bytes=5-9")).content == HOLIDAY[5:10]
    assert (await get(service, asset["url"], If_None_Match=answer.headers["etag"])).status_code == 304
    faulty.fail("read")
    problem_of(await get(service, asset["url"]), 503, "storage_unavailable")


# ── Behind a gateway ────────────────────────────────────────────────────────────────────────────────────────────────

PREFIX = "/_bytes"
GATEWAY = {"X_Accel_Prefix": PREFIX}


@pytest.fixture
async def behind(start_service: StartService) -> AsyncIterator[Service]:
    """A service that was told of a gateway with its files."""
    async with start_service(accel_redirect=PREFIX) as service:
        yield service


async def test_a_gateway_is_told_where_a_private_image_is(behind: Service) -> None:
    asset = await behind.uploaded(HOLIDAY, visibility="private")
    for method in ("GET", "HEAD"):
        headers = {"X-Accel-Prefix": PREFIX, "Range": "bytes=0-1", "If-None-Match": "*"}
        answer = await behind.client.request(method, asset["url"], headers=headers)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["x-accel-redirect"] == path_of(asset["url"]).replace("/assets", PREFIX)
        assert answer.headers["content-type"] == "image/jpeg"
        assert answer.headers["content-disposition"] == "inline"
        assert answer.headers["cache-control"].startswith("private, max-age=")
        assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "etag" not in answer.headers  # it would be of the empty body


async def test_a_gateway_is_told_nothing_before_the_service_has_decided(behind: Service) -> None:
    asset = await behind.uploaded(HOLIDAY, visibility="private")
    for url, status, code in (
        (path_of(asset["url"]), 403, "signature_required"),
        (asset["url"] + "0", 403, "signature_invalid"),
        (
            path_of(asset["url"]).replace("original", "64") + "?" + urlsplit(asset["url"]).query,
            403,
            "signature_invalid",
        ),
    ):
        answer = await get(behind, url, **GATEWAY)
        problem_of(answer, status, code)
        assert "x-accel-redirect" not in answer.headers
    await behind.client.delete(f"/api/v1/assets/{asset['id']}")
    problem_of(await get(behind, asset["url"], **GATEWAY), 404, "asset_not_found")


@pytest.mark.parametrize("said", [{}, {"X_Accel_Prefix": ""}, {"X_Accel_Prefix": "/other"}, {"X_Accel_Prefix": "/"}])
async def test_who_is_no_such_gateway_gets_the_bytes(behind: Service, said: dict[str, str]) -> None:
    asset = await behind.uploaded(HOLIDAY, visibility="private")
    answer = await get(behind, asset["url"], **said)
    assert (answer.status_code, answer.content) == (200, HOLIDAY)
    assert "x-accel-redirect" not in answer.headers


async def test_without_the_setting_no_caller_is_taken_for_a_gateway(service: Service, private: Any) -> None:
    for said in ({}, *({"X_Accel_Prefix": value} for value in ("", "None", PREFIX))):
        answer = await get(service, private["url"], **said)
        assert (answer.content, "x-accel-redirect" in answer.headers) == (HOLIDAY, False)


async def test_what_a_gateway_has_not_got_it_is_sent(start_service: StartService, tmp_path: Path) -> None:
    """A public image it has looked for already; what lies in memory, or in another directory, is not in its volume."""
    elsewhere = {"attic": {"type": "local", "directory": tmp_path / "attic"}}
    async with start_service(accel_redirect=PREFIX, storages=elsewhere) as behind:
        for storage, visibility in (("local", "public"), ("memory", "private"), ("attic", "private")):
            asset = await behind.uploaded(HOLIDAY, storage=storage, visibility=visibility)
            answer = await get(behind, asset["url"], **GATEWAY)
            assert (answer.content, "x-accel-redirect" in answer.headers) == (HOLIDAY, False)


@pytest.mark.parametrize("path", ["_bytes", "/", "/bytes/", "/a b", "/..", "/_bytes?x", "/_bytes\r\nX: y"])
def test_a_gateways_path_is_a_plain_one(path: str) -> None:
    with pytest.raises(ConfigurationError, match="ASSETS_ACCEL_REDIRECT"):
        load_settings(accel_redirect=path)


async def test_a_backend_registered_by_name_serves_the_whole_api(start_service: StartService) -> None:
    """One more backend is one class and one line: nothing else knows of it."""
    toy = FaultyStorage("toy")
    undo = register_backend("toy", lambda _name, _settings: toy)
    try:
        async with start_service(default_storage="toy") as service:
            asset = await service.uploaded(HOLIDAY, sizes="64,32")
            assert asset["storage"] == "toy"
            assert len(await toy.keys()) == 3
            url = f"/api/v1/assets/{asset['id']}"
            assert (await service.client.patch(url, json={"visibility": "private"})).status_code == 200
            assert [key.partition("/")[0] for key in await toy.keys()] == ["private"] * 3
            signed = (await service.client.post(f"{url}/signed-url", json={"size": "32"})).json()
            assert (await get(service, signed["url"])).status_code == 200
            names = [storage["name"] for storage in (await service.client.get("/api/v1/storages")).json()["storages"]]
            assert "toy" in names
            assert (await service.client.delete(url)).status_code == 204
            assert await toy.keys() == set()
    finally:
        undo()
