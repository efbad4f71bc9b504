"""What happens to every request: ids, the guard of open mode, keys, errors, health, metrics."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr

from tests import images
from tests.conftest import Service, StartService, problem_of
from tests.staging import FaultyStorage

KEY = "a-key-of-more-than-sixteen-characters"
HOLIDAY = images.jpeg(64, 48)


async def test_a_request_keeps_its_own_id_where_it_is_sane(service: Service) -> None:
    answer = await service.client.get("/health/live", headers={"X-Request-ID": "my-id_1.2"})
    assert answer.headers["x-request-id"] == "my-id_1.2"


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "<script>", "é", "../../x"])
async def test_any_other_id_is_replaced(service: Service, given: str) -> None:
    answer = await service.client.get("/health/live", headers=[(b"X-Request-ID", given.encode())])
    assert answer.headers["x-request-id"] not in {given, ""}


async def test_unknown_routes_and_methods_are_problems(service: Service) -> None:
    problem_of(await service.client.get("/api/v1/nothing"), 404, "route_not_found")
    problem_of(await service.client.get("/api/v1/assets/"), 404, "route_not_found")
    answer = await service.client.put("/api/v1/assets")
    problem_of(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, HEAD, POST"


async def test_a_sender_that_stalls_in_a_small_body_is_answered(start_service: StartService) -> None:
    async with start_service(body_timeout_seconds=0.1) as service:
        asset = await service.uploaded(HOLIDAY)

        async def stalling() -> AsyncIterator[bytes]:
            yield b"{"
            await asyncio.sleep(60)

        for method, more in (("PATCH", ""), ("POST", "/signed-url")):
            answer = await service.client.request(
                method,
                f"/api/v1/assets/{asset['id']}{more}",
                content=stalling(),
                headers={"Content-Type": "application/json"},
            )
            problem_of(answer, 408, "body_timeout")


async def test_a_bug_of_ours_is_a_problem_that_tells_nothing(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(service.runtime.library, "get", broken)
    answer = await service.client.get("/api/v1/assets/019aa0c2-0000-7000-8000-000000000000")
    problem_of(answer, 500, "internal_error")
    assert "secret" not in answer.text


# ── Open mode ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST"])
async def test_open_mode_answers_this_machine(service: Service, host: str) -> None:
    assert (await service.client.get("/api/v1/assets", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    "host", ["example.com", "192.0.2.1:8000", "localhost.example.com", "127.0.0.1.example.com", "", "[::2]"]
)
async def test_open_mode_answers_no_other_host(service: Service, host: str) -> None:
    for path in ("/api/v1/assets", "/health/live", "/assets/public/x", "/docs"):
        problem_of(await service.client.get(path, headers={"Host": host}), 403, "forbidden")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": "http://127.0.0.1:3000"},
        {"Origin": "http://127.0.0.1:8000.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "cross-site"},
    ],
)
async def test_open_mode_takes_nothing_from_other_sites(service: Service, headers: dict[str, str]) -> None:
    answer = await service.client.post("/api/v1/assets", files={"file": ("a.jpg", HOLIDAY)}, headers=headers)
    problem_of(answer, 403, "forbidden")
    assert await service.leaves_nothing()
    assert (await service.client.get("/api/v1/assets", headers=headers)).status_code == 200


async def test_open_mode_takes_from_its_own_pages(service: Service) -> None:
    headers = {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}
    answer = await service.client.post("/api/v1/assets", files={"file": ("a.jpg", HOLIDAY)}, headers=headers)
    assert answer.status_code == 201


# ── Keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_with_keys_the_api_wants_one_and_assets_do_not(start_service: StartService) -> None:
    async with start_service(api_keys=(SecretStr(KEY),)) as service:
        files = {"file": ("a.jpg", HOLIDAY)}
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}):
            answer = await service.client.post("/api/v1/assets", headers=headers, files=files)
            problem_of(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/api/v1/assets", "/api/v1/storages"):
            problem_of(await service.client.get(path), 401, "unauthorized")
        # Keys are not sent by a browser on its own, so other hosts and sites are welcome.
        headers = {"Authorization": f"Bearer {KEY}", "Host": "assets.example.com", "Origin": "https://shop.example"}
        answer = await service.client.post("/api/v1/assets", headers=headers, files=files)
        assert answer.status_code == 201
        assert answer.json()["url"].startswith("http://assets.example.com/assets/public/")
        assert (await service.client.get(answer.json()["url"])).status_code == 200
        for path in ("/health/live", "/health/ready", "/docs"):
            assert (await service.client.get(path)).status_code == 200


async def test_a_wrong_key_is_said_before_a_wrong_parameter(start_service: StartService) -> None:
    async with start_service(api_keys=(SecretStr(KEY),)) as service:
        problem_of(await service.client.get("/api/v1/assets?limit=0"), 401, "unauthorized")


async def test_statistics_and_metrics_are_for_the_operator(start_service: StartService) -> None:
    async with start_service(api_keys=(SecretStr(KEY),)) as service:
        for path in ("/metrics", "/api/v1/stats"):
            assert (await service.client.get(path)).status_code == 200
            through_a_proxy = {"X-Forwarded-For": "192.0.2.1"}
            problem_of(await service.client.get(path, headers=through_a_proxy), 401, "unauthorized")
            with_a_key = through_a_proxy | {"Authorization": f"Bearer {KEY}"}
            assert (await service.client.get(path, headers=with_a_key)).status_code == 200


async def test_addresses_are_those_of_the_public_url(start_service: StartService) -> None:
    async with start_service(public_url="https://assets.example.com/") as service:
        asset = await service.uploaded(HOLIDAY)
        assert asset["url"].startswith("https://assets.example.com/assets/public/")


# ── Health and metrics ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_service_says_that_it_lives_and_is_ready(service: Service) -> None:
    assert (await service.client.get("/health/live")).json() == {"status": "ok"}
    assert (await service.client.get("/health/ready")).json() == {"status": "ok"}


async def test_a_service_whose_storage_is_gone_is_not_ready(start_service: StartService, faulty: FaultyStorage) -> None:
    async with start_service(default_storage="faulty") as service:
        faulty.fail("check")
        problem_of(await service.client.get("/health/ready"), 503, "storage_unavailable")
        assert (await service.client.get("/health/live")).status_code == 200


async def test_metrics_count_by_route_and_not_by_address(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY)
    await service.client.get(asset["url"])
    await service.client.get(f"/api/v1/assets/{asset['id']}")
    text = (await service.client.get("/metrics")).text
    assert 'smart_assets_requests_total{method="POST",route="/api/v1/assets",status="201"}' in text
    assert 'smart_assets_requests_total{method="GET",route="/assets/{key}",status="200"}' in text
    assert 'route="/api/v1/assets/{asset_id}"' in text
    assert 'smart_assets_uploads_total{outcome="ok",storage="local"}' in text
    assert asset["id"] not in text


async def test_the_log_names_requests_and_never_a_signature(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    asset = await service.uploaded(HOLIDAY, visibility="private")
    with caplog.at_level(logging.INFO):
        await service.client.get(asset["url"], headers={"X-Request-ID": "wanted"})
    (record,) = [record for record in caplog.records if record.name == "smart_assets.access"]
    assert record.__dict__["status"] == 200
    assert "sig=" not in str(record.__dict__)
