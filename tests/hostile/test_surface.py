"""What every answer says, whatever it answers; what other sites may; and what nobody is ever told."""

from __future__ import annotations

import base64
import hmac
import json
import logging
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from pydantic import SecretStr

from smart_assets.errors import ConfigurationError
from smart_assets.settings import load_settings
from tests import images
from tests.conftest import Service, StartService, problem_of
from tests.faults.process import ServiceProcess
from tests.hostile.counting import tried
from tests.hostile.raw import Connection, exchange, get
from tests.staging import FaultyStorage

KEY = "a-key-of-more-than-sixteen-characters"
HOLIDAY = images.jpeg(64, 48)
SHOP = "https://shop.example"


# ── Headers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def answers_of_every_kind(service: Service) -> dict[str, httpx.Response]:
    """One of each status, and of each kind of content."""
    client = service.client
    asset = await service.uploaded(HOLIDAY, sizes="32")
    private = await service.uploaded(HOLIDAY, visibility="private")
    one, url = f"/api/v1/assets/{asset['id']}", asset["url"]
    image = {"Content-Type": "image/jpeg"}
    return {
        "upload": await client.post("/api/v1/assets", content=HOLIDAY, headers=image),
        "list": await client.get("/api/v1/assets"),
        "asset": await client.get(one),
        "change": await client.patch(one, json={"tags": ["a"]}),
        "content": await client.get(f"{one}/content"),
        "data url": await client.get(f"{one}/content?as=data_url"),
        "content not modified": await client.get(f"{one}/content", headers={"If-None-Match": "*"}),
        "signed url": await client.post(f"{one}/signed-url"),
        "storages": await client.get("/api/v1/storages"),
        "stats": await client.get("/api/v1/stats"),
        "live": await client.get("/health/live"),
        "metrics": await client.get("/metrics"),
        "docs": await client.get("/docs"),
        "redoc": await client.get("/redoc"),
        "openapi": await client.get("/openapi.json"),
        "front": await client.get("/"),
        "delivery": await client.get(url),
        "delivery in part": await client.get(url, headers={"Range": "bytes=0-1"}),
        "delivery not modified": await client.get(url, headers={"If-None-Match": "*"}),
        "delivery, no such range": await client.get(url, headers={"Range": "bytes=999999-"}),
        "delivery, not signed": await client.get(private["url"].partition("?")[0]),
        "delivery, nothing": await client.get("/assets/public/x"),
        "delivery, another method": await client.put(url),
        "no route": await client.get("/nowhere"),
        "no asset": await client.get("/api/v1/assets/x"),
        "another method": await client.put("/api/v1/assets"),
        "malformed": await client.post("/api/v1/assets", content=b"{", headers={"Content-Type": "application/json"}),
        "wrong type": await client.post("/api/v1/assets", content=b"x", headers={"Content-Type": "text/html"}),
        "no image": await client.post("/api/v1/assets", content=b"<html>", headers=image),
        "too large": await client.patch(one, content=b" " * 2_000_000, headers={"Content-Type": "application/json"}),
        "wrong parameter": await client.get("/api/v1/assets?limit=0"),
        "another host": await client.get("/health/live", headers={"Host": "evil.example"}),
        "precondition": await client.patch(one, json={}, headers={"If-Match": '"v99"'}),
        "head": await client.head(one),
        "options": await client.options("/api/v1/assets"),
        "deleted": await client.delete(one),
    }


async def test_every_answer_can_neither_be_guessed_at_nor_run_nor_framed(service: Service) -> None:
    for kind, answer in (await answers_of_every_kind(service)).items():
        with tried("answers of every kind"):
            headers = answer.headers
            assert headers["x-content-type-options"] == "nosniff", kind
            is_page = kind in {"docs", "redoc", "front"}
            assert headers["referrer-policy"] == ("same-origin" if is_page else "no-referrer"), kind
            assert headers["x-request-id"], kind
            policy = headers["content-security-policy"]
            if kind.startswith(("content", "delivery")):
                assert policy in {"sandbox; default-src 'none'", "default-src 'none'; frame-ancestors 'none'"}, kind
            else:
                assert "frame-ancestors 'none'" in policy, kind
            assert "default-src 'none'" in policy or headers["content-type"].startswith("text/html"), kind
            cached = {"no-cache"} if is_page else {"no-store", "private, no-cache", "public, max-age=3600"}
            assert headers["cache-control"] in cached, kind
            assert len(headers.get_list("content-security-policy")) == 1, kind
            assert not {"server", "x-powered-by", "access-control-allow-origin"} & headers.keys(), kind
            if answer.is_error:
                assert headers["content-type"] == "application/problem+json", kind


async def test_a_bug_of_ours_is_answered_as_safely(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(service.runtime.library, "get", broken)
    answer = await service.client.get("/api/v1/assets/019aa0c2-0000-7000-8000-000000000000")
    problem_of(answer, 500, "internal_error")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"


async def test_a_redirect_to_a_storage_is_as_safe(start_service: StartService, faulty: FaultyStorage) -> None:
    async with start_service(default_storage="faulty") as service:
        asset = await service.uploaded(HOLIDAY)
        answer = await service.client.get(asset["url"])
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"


# ── HEAD, and methods nobody knows ──────────────────────────────────────────────────────────────────────────────────


async def test_head_is_answered_wherever_get_is(service: Service) -> None:
    asset = await service.uploaded(HOLIDAY)
    one = f"/api/v1/assets/{asset['id']}"
    for path in (
        *("/health/live", "/health/ready", "/api/v1/assets", "/api/v1/stats", "/api/v1/storages", "/openapi.json"),
        *("/docs", one, f"{one}/content", f"{one}/content?as=data_url", asset["url"], "/nowhere", "/api/v1/assets/x"),
    ):
        whole, head = await service.client.get(path), await service.client.head(path)
        assert (head.status_code, head.content) == (whole.status_code, b""), path
        same = {"x-request-id", "content-length"}
        assert {k: v for k, v in head.headers.items() if k not in same} == {
            k: v for k, v in whole.headers.items() if k not in same
        }, path
        if not whole.is_error and "content-length" in whole.headers:
            assert head.headers["content-length"] == whole.headers["content-length"], path


def test_head_has_no_body_on_the_wire(service_process: ServiceProcess) -> None:
    for path in ("/health/live", "/openapi.json", "/nowhere"):
        request = get(path).replace(b"GET", b"HEAD") + get("/health/live", b"Connection: close")
        with Connection(service_process.address) as connection:
            connection.send(request)
            assert connection.answer(head=True).status in {200, 404}
            assert connection.answer().body == b'{"status":"ok"}'


@pytest.fixture
def service_process(tmp_path: Any) -> Iterator[ServiceProcess]:
    with ServiceProcess(tmp_path) as service:
        yield service


@pytest.mark.parametrize("method", ["PUT", "TRACE", "OPTIONS", "PROPFIND", "PURGE", "GETX"])
async def test_other_methods_change_nothing_and_are_told_what_there_is(service: Service, method: str) -> None:
    asset = await service.uploaded(HOLIDAY)
    for path in ("/api/v1/assets", f"/api/v1/assets/{asset['id']}", asset["url"], "/health/live", "/openapi.json"):
        answer = await service.client.request(method, path, content=b"{}")
        problem_of(answer, 405, "method_not_allowed")
        assert "GET" in answer.headers["allow"]
        assert "HEAD" in answer.headers["allow"]
    assert (await service.client.get(asset["url"])).status_code == 200


# ── Other sites ─────────────────────────────────────────────────────────────────────────────────────────────────────


def preflight(origin: str, method: str = "POST", headers: str = "authorization,content-type") -> dict[str, str]:
    return {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": headers,
    }


async def test_no_other_site_is_let_in_unless_the_settings_say_so(start_service: StartService) -> None:
    async with start_service(api_keys=(SecretStr(KEY),)) as service:
        asked = await service.client.options("/api/v1/assets", headers=preflight(SHOP))
        problem_of(asked, 405, "method_not_allowed")
        read = await service.client.get("/health/live", headers={"Origin": SHOP})
        for answer in (asked, read):
            assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_sites_that_are_named_may_and_no_others(start_service: StartService) -> None:
    async with start_service(api_keys=(SecretStr(KEY),), cors_origins=(SHOP,)) as service:
        asked = await service.client.options("/api/v1/assets", headers=preflight(SHOP, headers="idempotency-key"))
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == SHOP
        assert "access-control-allow-credentials" not in asked.headers
        headers = {"Origin": SHOP, "Authorization": f"Bearer {KEY}"}
        answer = await service.client.post("/api/v1/assets", files={"file": ("a.jpg", HOLIDAY)}, headers=headers)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (201, SHOP)
        shown = await service.client.get(answer.json()["url"], headers={"Origin": SHOP})
        assert shown.headers["access-control-allow-origin"] == SHOP
        refused = await service.client.get("/api/v1/assets", headers={"Origin": SHOP})
        problem_of(refused, 401, "unauthorized")
        assert refused.headers["access-control-allow-origin"] == SHOP, "its pages may read why"
        for stranger in ("https://evil.example", "http://shop.example", f"{SHOP}.evil.example", "null", f"{SHOP}:444"):
            problem_of(await service.client.options("/api/v1/assets", headers=preflight(stranger)), 403, "forbidden")
            read = await service.client.get("/health/live", headers={"Origin": stranger})
            assert "access-control-allow-origin" not in read.headers
            assert "Origin" in read.headers.get("vary", "Origin")
        problem_of(
            await service.client.options("/api/v1/assets", headers=preflight(SHOP, "PROPFIND")), 403, "forbidden"
        )


async def test_in_open_mode_a_site_that_is_named_may_write_and_no_other(start_service: StartService) -> None:
    async with start_service(cors_origins=("http://localhost:3000",)) as service:
        for origin, status in (("http://localhost:3000", 201), ("http://localhost:3001", 403), (SHOP, 403)):
            headers = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
            answer = await service.client.post("/api/v1/assets", files={"file": ("a.jpg", HOLIDAY)}, headers=headers)
            assert answer.status_code == status
        headers = {"Origin": "http://localhost:3000", "Host": "evil.example"}
        problem_of(await service.client.get("/api/v1/assets", headers=headers), 403, "forbidden")


@pytest.mark.parametrize("origin", ["shop.example", "https://shop.example/", "https://*.shop.example", "null", "*"])
def test_what_no_browser_would_send_as_an_origin_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, origin: str
) -> None:
    monkeypatch.setenv("ASSETS_CORS_ORIGINS", f"https://good.example,{origin}")
    with pytest.raises(ConfigurationError, match="ASSETS_CORS_ORIGINS"):
        load_settings()


async def test_with_keys_any_site_may_where_the_settings_say_so(start_service: StartService) -> None:
    async with start_service(api_keys=(SecretStr(KEY),), cors_origins=("*",)) as service:
        answer = await service.client.get("/health/live", headers={"Origin": SHOP, "Cookie": "a=b"})
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers


# ── Secrets ─────────────────────────────────────────────────────────────────────────────────────────────────────────

SECRETS = {
    "key": KEY,
    "signing key": "signing-secret-of-more-than-32-characters-in-all",
    "s3": "s3-secret-access-key-wJalrXUtnFEMI",
    "s3 token": "s3-session-token-FwoGZXIvYXdzE",
    "cloudinary": "cloudinary-secret-abcdefghijk",
    "azure": base64.b64encode(b"azure-account-key-of-some-length-0123456789").decode(),
}
CLOSED = "127.0.0.1:9"
"""Where nobody listens."""


def settings_full_of_secrets() -> dict[str, str]:
    return {
        "ASSETS_API_KEYS": KEY,
        "ASSETS_SIGNING_KEYS": SECRETS["signing key"],
        "ASSETS_S3__BUCKET": "bucket",
        "ASSETS_S3__ENDPOINT_URL": f"http://{CLOSED}",
        "ASSETS_S3__ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "ASSETS_S3__SECRET_ACCESS_KEY": SECRETS["s3"],
        "ASSETS_S3__SESSION_TOKEN": SECRETS["s3 token"],
        "ASSETS_S3__CONNECT_TIMEOUT_SECONDS": "1",
        "CLOUDINARY_URL": f"cloudinary://123456:{SECRETS['cloudinary']}@cloud",
        "ASSETS_CLOUDINARY__API_URL": f"http://{CLOSED}",
        "ASSETS_AZURE__CONTAINER": "container",
        "AZURE_STORAGE_CONNECTION_STRING": "DefaultEndpointsProtocol=http;AccountName=account;"
        f"AccountKey={SECRETS['azure']};BlobEndpoint=http://{CLOSED}/account;",
        "ASSETS_LOG_LEVEL": "debug",
    }


def written(secret: str) -> Iterator[str]:
    """A secret as it might stand in a log."""
    yield secret
    yield quote(secret, safe="")
    yield base64.b64encode(secret.encode()).decode().rstrip("=")
    yield json.dumps(secret)[1:-1]
    yield secret.encode().hex()


def test_no_secret_is_ever_logged_or_answered(tmp_path: Any) -> None:
    heard = []
    with ServiceProcess(tmp_path, **settings_full_of_secrets()) as service, service.client() as client:
        client.headers["Authorization"] = f"Bearer {KEY}"
        image = {"Content-Type": "image/jpeg"}
        for storage in ("local", "s3", "cloudinary", "azure", "nowhere"):
            for visibility in ("public", "private"):
                query = {"storage": storage, "visibility": visibility}
                answer = client.post("/api/v1/assets", params=query, content=HOLIDAY, headers=image)
                heard.append(answer.text)
        private = client.post("/api/v1/assets?visibility=private", content=HOLIDAY, headers=image).json()
        signed = private["url"].removeprefix(service.url)
        signature = signed.rpartition("sig=")[2]
        assert client.get(signed).status_code == 200
        for url in (signed[:-3] + "AAA", signed.replace("exp=", "exp=1"), signed + "x"):
            heard.append(client.get(url).text)
        for path in ("/api/v1/storages", "/api/v1/stats", "/metrics", "/health/ready", "/openapi.json"):
            heard.append(client.get(path).text)
        for wrong in (f"Bearer {KEY}x", f"Basic {KEY}", f"Bearer {KEY} {KEY}", KEY):
            answer = client.get("/api/v1/assets", headers={"Authorization": wrong})
            heard.append(answer.text)
        heard.append(client.get(f"/api/v1/assets?key={KEY}&Authorization=Bearer {KEY}").text)
        heard.append(client.get("/api/v1/assets", headers={"X-Request-ID": f"Bearer {KEY}"}).text)
        heard.append(client.post("/api/v1/assets", content=b"{", headers={"Content-Type": "application/json"}).text)
        for raw in (
            get("/health/live", b"Authorization: Bearer " + KEY.encode(), b"X: \0"),
            get("/health/live", b"Authorization: Bearer " + KEY.encode(), b"X: " + b"y" * 100_000),
        ):
            heard.extend(answer.body.decode() for answer in exchange(service.address, raw))
        service.stop()
        logged = service.text
    assert logged.count('"message": "request"') > 20, "it logged nothing"
    with tried("secrets looked for in logs and answers", len(SECRETS) + 1):
        for name, secret in SECRETS.items():
            for spelling in written(secret):
                assert spelling not in logged, name
                assert not any(spelling in text for text in heard), name
        assert signature not in logged


async def test_a_bug_is_logged_without_what_the_caller_sent(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with start_service(api_keys=(SecretStr(KEY),)) as service:

        async def broken(*_: object, **__: object) -> None:
            raise RuntimeError("broken")

        monkeypatch.setattr(service.runtime.library, "list", broken)
        with caplog.at_level(logging.DEBUG):
            headers = {"Authorization": f"Bearer {KEY}"}
            problem_of(await service.client.get("/api/v1/assets?q=quietly", headers=headers), 500, "internal_error")
        ours = [record for record in caplog.records if record.name.startswith("smart_assets")]
        logged = "".join(f"{record.__dict__}{record.exc_text}" for record in ours)
        assert "RuntimeError: broken" in logged
        assert KEY not in logged
        assert "quietly" not in logged


@pytest.mark.parametrize("verdict", [True, False])
async def test_whether_a_secret_is_right_is_decided_by_a_comparison_in_constant_time(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch, verdict: bool
) -> None:
    """Whatever `hmac.compare_digest` says is believed: nothing beside it looks at the secret."""
    async with start_service(api_keys=(SecretStr(KEY), SecretStr(KEY[::-1]))) as service:
        right, wrong = {"Authorization": f"Bearer {KEY}"}, {"Authorization": "Bearer wrong"}
        form = {"file": ("a.jpg", HOLIDAY)}
        answer = await service.client.post("/api/v1/assets?visibility=private", files=form, headers=right)
        url = answer.json()["url"]
        monkeypatch.setattr(hmac, "compare_digest", lambda _given, _known: verdict)
        for headers in (right, wrong):
            listed = await service.client.get("/api/v1/assets", headers=headers)
            assert listed.status_code == (200 if verdict else 401)
        for signed in (url, url[:-4] + "AAAA"):
            assert (await service.client.get(signed)).status_code == (200 if verdict else 403)
