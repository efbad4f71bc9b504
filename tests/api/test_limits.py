"""Limits over HTTP: who has had enough is told so, and when to come back; nobody else notices."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from smart_assets.access.ratelimit import PIECE_BYTES, Limit, Standing, Use, parse_rate
from smart_assets.api.limiting import fields, limited_address
from smart_assets.errors import ConfigurationError
from smart_assets.settings import ImportSettings, LimitSettings, load_settings
from tests import images
from tests.conftest import BASE_URL, Service, StartService, problem_of
from tests.faults.process import ServiceProcess
from tests.hostile.counting import tried

ROOT = "root-key-0123456789"
OTHER = "other-key-0123456789"
HOLIDAY = images.jpeg(40, 30)


def limits(**rates: str) -> LimitSettings:
    return LimitSettings.model_validate(rates)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@asynccontextmanager
async def caller_from(service: Service, address: str) -> AsyncIterator[httpx.AsyncClient]:
    """Somebody at another address."""
    app: Any = service.client._transport
    transport = httpx.ASGITransport(app.app, client=(address, 50000))
    async with httpx.AsyncClient(transport=transport, base_url=BASE_URL, timeout=60) as client:
        yield client


# ── What an answer says ─────────────────────────────────────────────────────────────────────────────────────────────

_ITEM = r'"(?P<name>[ !#-\[\]-~]*)"(?P<parameters>(?:;[a-z*][a-z0-9_.*-]*=(?:-?\d{1,15}|"[ !#-\[\]-~]*"))*)'
_PARAMETER = re.compile(r';([a-z*][a-z0-9_.*-]*)=(?:(-?\d{1,15})|"([^"]*)")')

Items = dict[str, dict[str, int | str]]


def parsed(field: str) -> Items:
    """A List of Strings with parameters that are Integers or Strings (RFC 9651), held to the letter."""
    found: Items = {}
    while field:
        item = re.match(_ITEM, field)
        assert item, field
        assert item["name"] not in found
        found[item["name"]] = {
            name: int(number) if number else text for name, number, text in _PARAMETER.findall(item["parameters"])
        }
        field = field[item.end() :]
        if field:
            assert re.match(r", ?(?=\")", field), field
            field = field[1:].lstrip(" ")
    return found


def told(answer: httpx.Response) -> tuple[Items, Items]:
    """What an answer says is left, and what it says is allowed."""
    left, allowed = parsed(answer.headers["ratelimit"]), parsed(answer.headers["ratelimit-policy"])
    assert left.keys() == allowed.keys()
    return left, allowed


@given(
    st.lists(
        st.builds(
            lambda use, subject, amount, seconds, remaining, more_in: Standing(
                Limit(use, subject, parse_rate(f"{amount}/{seconds} seconds", f"{use}-per-{subject}")),
                remaining,
                more_in,
            ),
            st.sampled_from(Use),
            st.sampled_from(["key", "address"]),
            st.integers(1, 10**15 - 1),
            st.integers(1, 99_999),
            st.integers(0, 10**15 - 1),
            st.integers(0, 10**9),
        ),
        min_size=1,
        unique_by=lambda standing: standing.limit.name,
    )
)
def test_however_limits_stand_the_fields_are_lists_of_structured_fields(standings: list[Standing]) -> None:
    with tried("standings of limits"):
        found = dict(fields(standings))
        left, allowed = parsed(found[b"ratelimit"].decode()), parsed(found[b"ratelimit-policy"].decode())
        assert left == {standing.limit.name: {"r": standing.remaining, "t": standing.more_in} for standing in standings}
        assert {name: (policy["q"], policy["w"]) for name, policy in allowed.items()} == {
            standing.limit.name: (standing.limit.rate.amount, standing.limit.rate.get_expiry())
            for standing in standings
        }
        assert {name for name, policy in allowed.items() if "qu" in policy} == {
            standing.limit.name for standing in standings if standing.limit.use is Use.UPLOAD_BYTES
        }


async def test_an_answer_says_what_is_left_and_a_refusal_when_to_come_back(start_service: StartService) -> None:
    async with start_service(limits=limits(reads_per_address="2/day")) as service:
        for remaining in (1, 0):
            answer = await service.client.get("/api/v1/assets")
            assert answer.status_code == 200
            left, allowed = told(answer)
            assert left["reads-per-address"]["r"] == remaining
            assert allowed == {"reads-per-address": {"q": 2, "w": 86_400}}
        answer = await service.client.get("/api/v1/assets")
        problem = problem_of(answer, 429, "rate_limited")
        assert "2 in 86400 seconds" in problem["detail"]
        left, _ = told(answer)
        assert left["reads-per-address"] == {"r": 0, "t": int(answer.headers["retry-after"])}
        assert 0 < int(answer.headers["retry-after"]) <= 86_400
        head = await service.client.head("/api/v1/assets")
        assert (head.status_code, head.content) == (429, b"")
        metrics = (await service.client.get("/metrics")).text
        assert re.search(r'rate_limited_total\{limit="reads-per-address"\} [1-9]', metrics)


async def test_by_default_nothing_is_limited_and_nothing_said(service: Service) -> None:
    for answer in await asyncio.gather(*(service.upload(HOLIDAY) for _ in range(40))):
        assert answer.status_code == 201
        assert not [name for name in answer.headers if name.startswith("ratelimit")]


async def test_errors_count_and_say_what_is_left(start_service: StartService) -> None:
    async with start_service(limits=limits(reads_per_address="2/day")) as service:
        problem_of(await service.client.get("/api/v1/assets?limit=0"), 422, "invalid_parameter")
        answer = await service.client.get("/api/v1/assets/x")
        problem_of(answer, 404, "asset_not_found")
        assert told(answer)[0]["reads-per-address"]["r"] == 0
        problem_of(await service.client.get("/api/v1/assets/x"), 429, "rate_limited")


async def test_health_metrics_and_documents_are_never_limited(start_service: StartService) -> None:
    everything = {name: "1/day" for name in LimitSettings.model_fields if "_per_" in name}
    async with start_service(limits=limits(**everything)) as service:
        for _ in range(3):
            for path in ("/health/live", "/health/ready", "/metrics", "/docs", "/openapi.json", "/", "/api/v1/stats"):
                answer = await service.client.get(path)
                assert (answer.status_code, "ratelimit" in answer.headers) == (200, False), path


# ── Whose it is ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_each_key_has_its_own_and_an_address_has_all_of_its_keys(start_service: StartService) -> None:
    rates = limits(reads_per_key="3/day", reads_per_address="5/day")
    async with start_service(api_keys=(SecretStr(ROOT), SecretStr(OTHER)), limits=rates) as service:

        async def read(client: httpx.AsyncClient, key: str) -> int:
            return (await client.get("/api/v1/assets", headers=bearer(key))).status_code

        assert [await read(service.client, ROOT) for _ in range(4)] == [200, 200, 200, 429]
        answer = await service.client.get("/api/v1/assets", headers=bearer(OTHER))
        assert {name: item["r"] for name, item in told(answer)[0].items()} == {
            "reads-per-address": 0,
            "reads-per-key": 2,
        }
        assert await read(service.client, OTHER) == 429, "the address has had five"
        async with caller_from(service, "203.0.113.9") as elsewhere:
            assert await read(elsewhere, OTHER) == 200
            assert await read(elsewhere, ROOT) == 429, "the key has had three, wherever it is"


async def test_a_key_that_was_made_is_known_by_its_id(start_service: StartService) -> None:
    async with start_service(api_keys=(SecretStr(ROOT),), limits=limits(uploads_per_key="1/day")) as service:
        for _ in range(2):
            body = {"name": "x", "scopes": ["assets:write"]}
            made = (await service.client.post("/api/v1/keys", json=body, headers=bearer(ROOT))).json()
            files = {"file": ("a.jpg", HOLIDAY)}
            for status in (201, 429):
                answer = await service.client.post("/api/v1/assets", files=files, headers=bearer(made["key"]))
                assert answer.status_code == status
                assert made["id"] not in str(answer.headers)


@pytest.mark.parametrize(
    ("client", "address"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unknown", "unknown"),
        ("_hidden", "unknown"),
        ("", "unknown"),
    ],
)
def test_an_address_is_one_caller_and_of_ipv6_its_network_is(client: str, address: str) -> None:
    assert limited_address((client, 50000)) == address
    assert limited_address(None) == "unknown"


def test_who_is_no_trusted_proxy_can_say_nothing_of_where_it_is_from(tmp_path: Path) -> None:
    settings = {"ASSETS_LIMITS__READS_PER_ADDRESS": "2/day", "FORWARDED_ALLOW_IPS": "127.0.0.2"}

    def statuses(service: ServiceProcess, peer: str, *forwarded: str) -> list[int]:
        transport = httpx.HTTPTransport(local_address=peer)
        with httpx.Client(base_url=service.url, transport=transport, timeout=60) as client:
            return [
                client.get("/api/v1/assets", headers={"X-Forwarded-For": each, "Forwarded": f"for={each}"}).status_code
                for each in forwarded
            ]

    with ServiceProcess(tmp_path, **settings) as service:
        assert statuses(service, "127.0.0.1", "203.0.113.1", "203.0.113.2", "203.0.113.3") == [200, 200, 429]
        assert statuses(service, "127.0.0.2", "203.0.113.1", "6.6.6.6, 203.0.113.1", "7.7.7.7, 203.0.113.1") == [
            *(200, 200, 429),
        ], "the proxy wrote the last, its caller the others"
        assert statuses(service, "127.0.0.2", "203.0.113.2") == [200]


# ── What counts as what ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_uploads_and_reads_are_counted_apart(start_service: StartService) -> None:
    async with start_service(limits=limits(uploads_per_address="3/day", reads_per_address="2/day")) as service:
        asset = await service.uploaded(HOLIDAY)
        here = f"/api/v1/assets/{asset['id']}"
        batch = await service.client.post("/api/v1/assets/batch", files={"files": ("a.jpg", HOLIDAY)})
        assert batch.status_code == 201
        assert (await service.client.post(f"{here}/variants?sizes=8")).status_code == 200
        problem_of(await service.upload(HOLIDAY), 429, "rate_limited")
        problem_of(await service.client.post(f"{here}/variants?sizes=9"), 429, "rate_limited")
        assert (await service.client.get(here)).status_code == 200
        assert (await service.client.patch(here, json={"tags": ["a"]})).status_code == 200
        problem_of(await service.client.delete(here), 429, "rate_limited")
        assert (await service.client.get(asset["url"])).status_code == 200
        assert len(await service.rows()) == 2


async def test_a_request_too_many_is_refused_before_its_body_is_read(start_service: StartService) -> None:
    async with start_service(limits=limits(uploads_per_address="1/day")) as service:
        await service.uploaded(HOLIDAY)

        async def body() -> AsyncIterator[bytes]:
            raise AssertionError("it was read")
            yield b""

        headers = {"Content-Type": "image/jpeg", "Content-Length": "1000000"}
        problem_of(await service.client.post("/api/v1/assets", content=body(), headers=headers), 429, "rate_limited")


async def test_a_refused_request_is_not_remembered_under_its_key(start_service: StartService) -> None:
    for rates in ({"uploads_per_address": "1/day"}, {"upload_bytes_per_address": f"{len(HOLIDAY) + 10}/day"}):
        key = {"Idempotency-Key": f"k-{sorted(rates)}", "Content-Type": "image/jpeg"}
        async with start_service(limits=limits(**rates)) as service:
            first = await service.client.post("/api/v1/assets", content=HOLIDAY, headers={"Content-Type": "image/jpeg"})
            assert first.status_code == 201
            for _ in range(2):
                answer = await service.client.post("/api/v1/assets", content=HOLIDAY, headers=key)
                problem_of(answer, 429, "rate_limited")
        async with start_service() as service:
            answer = await service.client.post("/api/v1/assets", content=HOLIDAY, headers=key)
            assert (answer.status_code, answer.headers.get("idempotency-replayed")) == (201, None)


async def test_deliveries_are_limited_only_where_that_is_set(start_service: StartService) -> None:
    async with start_service(limits=limits(deliveries_per_address="2/day")) as service:
        asset = await service.uploaded(HOLIDAY)
        for _ in range(2):
            answer = await service.client.get(asset["url"])
            assert answer.content == HOLIDAY
            assert "ratelimit" not in answer.headers, "a cache would tell others"
        answer = await service.client.get(asset["url"])
        problem_of(answer, 429, "rate_limited")
        assert answer.headers["cache-control"] == "no-store"
        assert told(answer)[0]["deliveries-per-address"]["r"] == 0
        async with caller_from(service, "203.0.113.9") as elsewhere:
            assert (await elsewhere.get(asset["url"])).status_code == 200


# ── Bytes ───────────────────────────────────────────────────────────────────────────────────────────────────────────

RAW = {"Content-Type": "image/jpeg"}


async def in_pieces(content: bytes, size: int = 64 * 1024) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def test_bytes_are_counted_by_what_a_body_says_and_by_what_comes(start_service: StartService) -> None:
    quota = 4 * len(HOLIDAY)
    async with start_service(limits=limits(upload_bytes_per_address=f"{quota}/day")) as service:
        told_length = await service.client.post("/api/v1/assets", content=HOLIDAY, headers=RAW)
        chunked = await service.client.post("/api/v1/assets", content=in_pieces(HOLIDAY), headers=RAW)
        for number, answer in enumerate((told_length, chunked), 1):
            assert answer.status_code == 201
            left, allowed = told(answer)
            assert left["upload-bytes-per-address"]["r"] == quota - number * len(HOLIDAY)
            assert allowed["upload-bytes-per-address"] == {"q": quota, "w": 86_400, "qu": "content-bytes"}
        too_much = HOLIDAY * 3
        answer = await service.client.post("/api/v1/assets", content=too_much, headers=RAW)
        problem_of(answer, 429, "rate_limited")
        assert told(answer)[0]["upload-bytes-per-address"]["r"] == quota - 2 * len(HOLIDAY), "refused, nothing is used"
        answer = await service.client.post("/api/v1/assets", content=in_pieces(too_much), headers=RAW)
        problem_of(answer, 429, "rate_limited")
        assert told(answer)[0]["upload-bytes-per-address"]["r"] == 0, "it came, and was counted"
        assert len(await service.rows()) == 2
        assert service.temporary_files() == []


async def test_a_body_that_says_nothing_is_not_read_to_its_end(start_service: StartService) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 64 * 1024
            yield bytes(64 * 1024)

    async with start_service(limits=limits(upload_bytes_per_address=f"{3 * PIECE_BYTES}/day")) as service:
        problem_of(await service.client.post("/api/v1/assets", content=endless(), headers=RAW), 413, "body_too_large")
        assert sent <= 4 * PIECE_BYTES
        sent = 0
        problem_of(await service.client.post("/api/v1/assets", content=endless(), headers=RAW), 429, "rate_limited")
        assert sent == 0


async def test_more_than_there_ever_is_room_for_is_no_question_of_time(start_service: StartService) -> None:
    async with start_service(limits=limits(upload_bytes_per_address="100/minute")) as service:
        for content in (HOLIDAY, in_pieces(HOLIDAY)):
            answer = await service.client.post("/api/v1/assets", content=content, headers=RAW)
            problem_of(answer, 413, "body_too_large")
            assert "retry-after" not in answer.headers


@contextmanager
def image_server(content: bytes) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/a.jpg"
        finally:
            server.shutdown()
            thread.join()


async def test_what_is_imported_counts_like_what_is_sent(start_service: StartService) -> None:
    with image_server(HOLIDAY) as url:
        imports = ImportSettings.model_validate(
            {"allow_http": True, "ports": str(url.split(":")[2].split("/")[0]), "allowed_networks": "127.0.0.0/8"}
        )
        rates = limits(upload_bytes_per_address=f"{2 * len(HOLIDAY)}/day")
        async with start_service(imports=imports, limits=rates) as service:
            answer = await service.client.post("/api/v1/assets", json={"source_url": url})
            assert answer.status_code == 201
            used = len(HOLIDAY) + len(answer.request.content)
            assert told(answer)[0]["upload-bytes-per-address"]["r"] == 2 * len(HOLIDAY) - used
            answer = await service.client.post("/api/v1/assets", json={"source_url": url})
            problem_of(answer, 429, "rate_limited")
            assert len(await service.rows()) == 1
            assert service.temporary_files() == []


# ── Keys that are guessed ───────────────────────────────────────────────────────────────────────────────────────────


async def test_who_guesses_keys_is_not_heard_any_more(start_service: StartService) -> None:
    rates = limits(failed_keys_per_address="3/day")
    async with start_service(api_keys=(SecretStr(ROOT),), limits=rates) as service:
        for _ in range(5):
            problem_of(await service.client.get("/api/v1/assets"), 401, "unauthorized")  # nothing was guessed
        for guess in ("Bearer wrong", "Basic wrong", "Bearer sa_wrong"):
            assert (await service.client.get("/api/v1/assets", headers=bearer(ROOT))).status_code == 200
            answer = await service.client.get("/api/v1/assets", headers={"Authorization": guess})
            problem_of(answer, 401, "unauthorized")
        for path in ("/api/v1/assets", "/api/v1/keys"):
            for key in ("wrong", ROOT):
                answer = await service.client.get(path, headers=bearer(key))
                problem_of(answer, 429, "rate_limited")
                assert int(answer.headers["retry-after"]) > 0
        operator = {"X-Forwarded-For": "203.0.113.9"}
        problem_of(await service.client.get("/metrics", headers=operator | bearer("guess")), 429, "rate_limited")
        async with caller_from(service, "203.0.113.9") as elsewhere:
            assert (await elsewhere.get("/api/v1/assets", headers=bearer(ROOT))).status_code == 200


# ── Redis ───────────────────────────────────────────────────────────────────────────────────────────────────────────

NOBODY = SecretStr("redis://127.0.0.1:9")


async def test_a_redis_that_is_not_there_is_said_at_the_start_and_limits_hold_without(
    start_service: StartService, caplog: pytest.LogCaptureFixture
) -> None:
    async with start_service(redis_url=NOBODY, limits=limits(reads_per_address="2/day")) as service:
        async with asyncio.timeout(60):
            while "Redis does not answer" not in caplog.text:
                await asyncio.sleep(0.01)
        assert (await service.client.get("/health/ready")).status_code == 200
        statuses = [(await service.client.get("/api/v1/assets")).status_code for _ in range(4)]
        assert statuses == [200, 200, 429, 429]
        assert caplog.text.count("Redis does not answer") == 1


async def test_where_nothing_is_limited_nobody_asks_redis(
    start_service: StartService, caplog: pytest.LogCaptureFixture
) -> None:
    async with start_service(redis_url=NOBODY) as service:
        assert (await service.client.get("/api/v1/assets")).status_code == 200
    assert "Redis" not in caplog.text


# ── Settings ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rate", ["600/minute", "600 / minute", "20/10 seconds", "1/day", "5/2 hours", ""])
def test_a_rate_is_so_much_in_so_much_time(monkeypatch: pytest.MonkeyPatch, rate: str) -> None:
    monkeypatch.setenv("ASSETS_LIMITS__UPLOADS_PER_KEY", rate)
    settings = load_settings()
    assert settings.limits.has_rules == bool(rate)
    if settings.limits.uploads_per_key is not None:
        assert parse_rate(settings.limits.uploads_per_key, "x").amount in {600, 20, 1, 5}


@pytest.mark.parametrize("rate", ["0/minute", "600", "600/fortnight", "-1/minute", "1.5/second", "1/minute;5/hour"])
def test_anything_else_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch, rate: str) -> None:
    monkeypatch.setenv("ASSETS_LIMITS__UPLOADS_PER_KEY", rate)
    with pytest.raises(ConfigurationError, match="ASSETS_LIMITS__UPLOADS_PER_KEY"):
        load_settings()


def test_where_redis_is_is_a_secret_and_of_a_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSETS_REDIS_URL", "redis://:sesame@127.0.0.1:6379/0")
    assert "sesame" not in repr(load_settings())
    monkeypatch.setenv("ASSETS_REDIS_URL", "http://127.0.0.1")
    with pytest.raises(ConfigurationError, match="ASSETS_REDIS_URL"):
        load_settings()


def test_every_limit_is_documented() -> None:
    document = (Path(__file__).parents[2] / "docs/limits.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`ASSETS_LIMITS__([A-Z_]+)`", document)) == {
        name.upper() for name in LimitSettings.model_fields
    }


# ── Tickets ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def tickets(service: Service, key: str, count: int) -> list[str]:
    made = [await service.client.post("/api/v1/upload-tickets", headers=bearer(key)) for _ in range(count)]
    return [ticket.json()["url"] for ticket in made]


async def test_an_upload_with_a_ticket_counts_for_the_key_it_was_made_with(start_service: StartService) -> None:
    allowed = limits(uploads_per_key="2/minute", upload_bytes_per_key="100000/minute")
    async with start_service(api_keys=(SecretStr(ROOT),), limits=allowed) as service:
        wanted = {"name": "shop", "scopes": ["assets:write"]}
        key = (await service.client.post("/api/v1/keys", json=wanted, headers=bearer(ROOT))).json()["key"]
        first, second, third = await tickets(service, key, 3)
        answer = await service.client.post(first, files={"file": ("a", HOLIDAY)})
        assert answer.status_code == 201, answer.text
        assert {"uploads-per-key", "upload-bytes-per-key"} <= parsed(answer.headers["ratelimit"]).keys()
        assert (await service.client.post(second, files={"file": ("a", HOLIDAY)})).status_code == 201
        problem_of(await service.client.post(third, files={"file": ("a", HOLIDAY)}), 429, "rate_limited")
        answer = await service.client.post("/api/v1/assets", headers=bearer(key), files={"file": ("a", HOLIDAY)})
        problem_of(answer, 429, "rate_limited")


async def test_an_upload_with_a_ticket_counts_for_the_address_it_comes_from(start_service: StartService) -> None:
    async with start_service(api_keys=(SecretStr(ROOT),), limits=limits(uploads_per_address="1/minute")) as service:
        first, second = await tickets(service, ROOT, 2)
        assert (await service.client.post(first, files={"file": ("a", HOLIDAY)})).status_code == 201
        problem_of(await service.client.post(second, files={"file": ("a", HOLIDAY)}), 429, "rate_limited")
        problem_of(await service.client.post(second.replace("/file?", "/complete?")), 429, "rate_limited")
        async with caller_from(service, "192.0.2.7") as elsewhere:
            assert (await elsewhere.post(second, files={"file": ("a", HOLIDAY)})).status_code == 201
