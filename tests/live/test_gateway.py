"""nginx as it is shipped, in front of the service: what is private stays private, and callers see no difference."""

from __future__ import annotations

import http.server
import re
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests import images
from tests.conftest import problem_of
from tests.faults.process import ServiceProcess, size_of, until
from tests.hostile import raw
from tests.live.gateway import ACCEL_REDIRECT, Gateway, gateway
from tests.live.process import free_port

HOLIDAY = images.jpeg(320, 240, seed=3)
KEY = "the-key-of-this-service"
SHOP = "https://shop.example"
LIMIT = 50 * 1024 * 1024

# Of an answer: what tells one request, connection and server from another.
OF_THE_MOMENT = {"connection", "date", "keep-alive", "server", "x-request-id"}


@dataclass(frozen=True)
class Stack:
    """A service, the gateway in front of it, and who calls either."""

    service: ServiceProcess
    gateway: Gateway
    outside: httpx.Client
    inside: httpx.Client

    def upload(self, content: bytes = HOLIDAY, **query: Any) -> Any:
        """An asset, uploaded through the gateway."""
        answer = self.outside.post(
            "/api/v1/assets", params=query, content=content, headers={"Content-Type": "image/jpeg"}
        )
        assert answer.status_code == 201, answer.text
        return answer.json()

    def both(self, url: str, *, method: str = "GET", **headers: str) -> tuple[httpx.Response, httpx.Response]:
        """What the gateway answers, and the service alone."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        target = url.removeprefix(self.gateway.url)
        return (
            self.outside.request(method, target, headers=named),
            self.inside.request(method, target, headers=named),
        )

    def file(self, asset: Any) -> Path:
        """An asset's original, on the service's disk."""
        return self.service.data.joinpath(urlsplit(asset["url"]).path.removeprefix("/"))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    settings = {
        "ASSETS_API_KEYS": KEY,
        "ASSETS_ACCEL_REDIRECT": ACCEL_REDIRECT,
        "ASSETS_IMAGING__WORKERS": "1",
    }
    of_both = {"ASSETS_PUBLIC_CACHE_SECONDS": "600", "ASSETS_CORS_ORIGINS": SHOP}
    with ExitStack() as running:
        service = running.enter_context(ServiceProcess(folder, **settings, **of_both))
        address = service.url.removeprefix("http://")
        front = running.enter_context(gateway(folder / "gateway", address, service.data / "assets", **of_both))
        bearer = {"Authorization": f"Bearer {KEY}"}
        outside, inside = running.enter_context(front.client(**bearer)), running.enter_context(service.client())
        inside.headers.update(bearer)
        yield Stack(service, front, outside, inside)


@pytest.fixture(scope="module")
def public(stack: Stack) -> Any:
    return stack.upload(sizes="64")


@pytest.fixture(scope="module")
def private(stack: Stack) -> Any:
    return stack.upload(visibility="private", sizes="64")


def headers_of(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name not in OF_THE_MOMENT}


def by_hand(address: tuple[str, int], path: str, *lines: bytes) -> raw.Answer:
    """A GET of a path exactly as it is written."""
    with raw.Connection(address) as connection:
        connection.send(raw.get(path, *lines))
        return connection.answer()


# ── What is sent ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("visibility", ["public", "private"])
class TestTheAnswerIsTheServices:
    @pytest.fixture
    def url(self, public: Any, private: Any, visibility: str) -> str:
        url: str = {"public": public, "private": private}[visibility]["url"]
        return url

    def test_whole(self, stack: Stack, url: str) -> None:
        ours, theirs = stack.both(url)
        assert (ours.status_code, ours.content) == (200, HOLIDAY)
        assert headers_of(ours).keys() == headers_of(theirs).keys()
        same = {name: value for name, value in headers_of(ours).items() if name != "cache-control"}
        assert same.items() <= headers_of(theirs).items()
        assert ours.headers["x-request-id"]

    def test_how_long_it_may_be_kept(self, stack: Stack, url: str, visibility: str) -> None:
        for answer in stack.both(url):
            who, seconds = answer.headers["cache-control"].split(", max-age=")
            assert who == visibility
            assert int(seconds) == 600 if visibility == "public" else 0 < int(seconds) <= 86_400

    def test_only_its_head(self, stack: Stack, url: str) -> None:
        ours, theirs = stack.both(url, method="HEAD")
        assert (ours.status_code, ours.content) == (200, b"")
        assert headers_of(ours).keys() == headers_of(theirs).keys()
        assert ours.headers["content-length"] == str(len(HOLIDAY))

    @pytest.mark.parametrize("wanted", ["bytes=0-0", "bytes=10-19", "bytes=10-", "bytes=-10", "bytes=0-0,5-6"])
    def test_a_range(self, stack: Stack, url: str, wanted: str) -> None:
        ours, theirs = stack.both(url, Range=wanted)
        assert (ours.status_code, ours.content) == (theirs.status_code, theirs.content)
        assert ours.headers.get("content-range") == theirs.headers.get("content-range")
        assert ours.headers["content-length"] == theirs.headers["content-length"]

    def test_a_range_outside(self, stack: Stack, url: str) -> None:
        for answer in stack.both(url, Range=f"bytes={len(HOLIDAY)}-"):
            problem_of(answer, 416, "range_not_satisfiable")
            assert answer.headers["content-range"] == f"bytes */{len(HOLIDAY)}"
            assert answer.headers["cache-control"].endswith("no-store")

    def test_a_download_begun_at_one_goes_on_at_the_other(self, stack: Stack, url: str) -> None:
        begun = stack.both(url, Range="bytes=0-9")
        for condition, status in (
            *((answer.headers["etag"], 206) for answer in begun),
            *((answer.headers["last-modified"], 206) for answer in begun),
            ('"other"', 200),
        ):
            for answer in stack.both(url, Range="bytes=10-19", If_Range=condition):
                assert answer.status_code == status

    def test_a_copy_that_is_still_good(self, stack: Stack, url: str) -> None:
        for first in stack.both(url):
            for condition in (
                {"If_None_Match": first.headers["etag"]},
                {"If_None_Match": f'"other", W/{first.headers["etag"]}'},
                {"If_Modified_Since": first.headers["last-modified"]},
                {"If_Modified_Since": "Fri, 01 Jan 2100 00:00:00 GMT"},
            ):
                ours, theirs = stack.both(url, **condition)
                assert (ours.status_code, ours.content) == (theirs.status_code, theirs.content) == (304, b"")
                assert headers_of(ours).keys() >= headers_of(theirs).keys() - {"accept-ranges"}
                assert ours.headers["etag"] == theirs.headers["etag"] == first.headers["etag"]

    def test_a_copy_that_is_not(self, stack: Stack, url: str) -> None:
        for condition in ({"If_None_Match": '"other"'}, {"If_Modified_Since": "Sat, 01 Jan 2000 00:00:00 GMT"}):
            assert [answer.status_code for answer in stack.both(url, **condition)] == [200, 200]

    def test_a_condition_of_changes_is_passed_over(self, stack: Stack, url: str) -> None:
        for condition in ({"If_Match": '"other"'}, {"If_Unmodified_Since": "Sat, 01 Jan 2000 00:00:00 GMT"}):
            assert [answer.content for answer in stack.both(url, **condition)] == [HOLIDAY, HOLIDAY]

    def test_only_to_be_fetched(self, stack: Stack, url: str) -> None:
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            answer = stack.outside.request(method, url, content=b"x")
            problem_of(answer, 405, "method_not_allowed")
            assert answer.headers["allow"] == "GET, HEAD"
        assert stack.outside.get(url).content == HOLIDAY

    def test_pages_of_other_sites_may_what_the_service_says(self, stack: Stack, url: str) -> None:
        for origin, allowed in ((SHOP, SHOP), ("https://elsewhere.example", None)):
            ours, theirs = stack.both(url, Origin=origin)
            assert ours.content == HOLIDAY
            for name in ("access-control-allow-origin", "access-control-expose-headers", "vary"):
                assert ours.headers.get(name) == theirs.headers.get(name)
            assert ours.headers.get("access-control-allow-origin") == allowed


@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp", "gif", "avif"])
def test_each_format_has_its_type(stack: Stack, image_format: str) -> None:
    content = images.gif() if image_format == "gif" else HOLIDAY
    made = {} if image_format == "gif" else {"sizes": "64", "format": image_format}
    for visibility in ("public", "private"):
        asset = stack.upload(content, visibility=visibility, **made)
        url = asset["variants"][0]["url"] if made else asset["url"]
        ours, theirs = stack.both(url)
        assert ours.headers["content-type"] == theirs.headers["content-type"] == f"image/{image_format}"
        assert ours.content == theirs.content


def test_what_is_public_is_sent_without_the_service(stack: Stack, public: Any) -> None:
    stack.service.signal(signal.SIGSTOP)
    try:
        assert httpx.get(public["url"], trust_env=False).content == HOLIDAY
    finally:
        stack.service.signal(signal.SIGCONT)


def test_what_is_private_is_sent_from_the_volume_and_else_by_the_service(
    stack: Stack, private: Any, tmp_path: Path
) -> None:
    volume = tmp_path / "volume"
    with gateway(tmp_path / "gateway", stack.service.url.removeprefix("http://"), volume) as another:
        url = private["url"].replace(stack.gateway.url, another.url)
        assert httpx.get(url, trust_env=False).content == HOLIDAY
        here = volume / urlsplit(private["url"]).path.removeprefix("/assets/")
        here.parent.mkdir(parents=True)
        here.write_bytes(b"from the volume")
        assert httpx.get(url, trust_env=False).content == b"from the volume"


def test_what_is_not_in_the_volume_the_service_decides(stack: Stack) -> None:
    asset = stack.upload()
    assert stack.outside.get(asset["url"]).content == HOLIDAY
    private = stack.outside.patch(f"/api/v1/assets/{asset['id']}", json={"visibility": "private"}).json()
    problem_of(stack.outside.get(asset["url"]), 404, "asset_not_found")
    assert stack.outside.get(private["url"]).content == HOLIDAY
    assert stack.outside.delete(f"/api/v1/assets/{asset['id']}").status_code == 204
    for url in (asset["url"], private["url"]):
        problem_of(stack.outside.get(url), 404, "asset_not_found")


# ── What is not ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_private_needs_its_signature(stack: Stack, private: Any) -> None:
    signed, stranger = private["url"], httpx.Client(trust_env=False)
    path = urlsplit(signed).path
    with stranger:
        problem_of(stranger.get(f"{stack.gateway.url}{path}"), 403, "signature_required")
        problem_of(stranger.get(f"{signed}0"), 403, "signature_invalid")
        later = re.sub(r"exp=(\d+)", lambda found: f"exp={int(found[1]) + 1}", signed)
        problem_of(stranger.get(later), 403, "signature_invalid")
        other = f"{urlsplit(private['variants'][0]['url']).path}?{urlsplit(signed).query}"
        problem_of(stranger.get(f"{stack.gateway.url}{other}"), 403, "signature_invalid")
        short = stack.outside.post(f"/api/v1/assets/{private['id']}/signed-url", json={"expiry_seconds": 1}).json()
        until(lambda: stranger.get(short["url"]).status_code == 403, of="its end")
        problem_of(stranger.get(short["url"]), 403, "signature_expired")


def test_no_way_from_outside_leads_to_what_is_private(stack: Stack, public: Any, private: Any) -> None:
    key = urlsplit(private["url"]).path.removeprefix("/assets/")
    open_key = urlsplit(public["url"]).path.removeprefix("/assets/")
    rest = key.removeprefix("private/")
    assert stack.file(private).read_bytes() == HOLIDAY
    for path in (
        f"/_bytes/{key}",
        f"/%5fbytes/{key}",
        f"/%5Fbytes%2f{key}",
        f"//_bytes//{key}",
        f"/./_bytes/{key}",
        f"/assets/../_bytes/{key}",
        f"/assets/public/%2e%2e/%2e%2e/_bytes/{key}",
        f"/_bytes/../assets/{key}",
        f"/_BYTES/{key}",
        f"/_bytes/{key}?{urlsplit(private['url']).query}",
        f"/internal/{key}",
        f"/assets/public/../{key}",
        f"/assets/public/..%2f{key}",
        f"/assets/public/%2e%2e/{key}",
        f"/assets/public%2f..%2f{key}",
        f"/assets/public/..%5c{key}",
        f"/assets/public/..;/{key}",
        f"/assets/public/%252e%252e/{key}",
        f"/assets/public/{open_key}/../../../../../{key}",
        f"/assets/{open_key}/../../../../{key}",
        f"/assets/public/{rest}",
        f"/assets/public//{rest}",
        f"/assets/PRIVATE/{rest}",
        f"/assets/private//{rest}",
        f"/assets/{key}%00.jpg",
        f"/assets/{key}/",
        f"http://127.0.0.1/_bytes/{key}",
        "/assets/",
        "/assets/public",
        "/assets/public/",
        "/assets/public/2026/",
        f"/assets/{open_key.rpartition('/')[0]}/",
        "/assets/.signing.key",
        "/assets/../catalogue.sqlite3",
        "/assets/public/../../catalogue.sqlite3",
        "/_problem/413",
        "/_problem/",
    ):
        for headers in (
            (),
            (f"X-Accel-Redirect: /_bytes/{key}".encode(), b"X-Accel-Prefix: /_bytes"),
            (f"X-Original-URL: /_bytes/{key}".encode(), f"X-Rewrite-URL: /_bytes/{key}".encode()),
            (b"X-Sendfile-Type: X-Accel-Redirect", b"X-Accel-Mapping: /=/_bytes/"),
        ):
            answer = by_hand(stack.gateway.address, path, *headers, b"Connection: close")
            assert answer.status in {400, 403, 404}, (path, answer.status)
            assert answer.headers["content-type"] == "application/problem+json", path
            assert HOLIDAY[:100] not in answer.body
            assert "x-accel-redirect" not in answer.headers


def test_no_link_in_the_volume_is_followed(stack: Stack, public: Any, private: Any) -> None:
    secret, shown = stack.file(private), stack.file(public)
    linked = shown.with_name(secret.name)
    linked.symlink_to(secret)
    try:
        url = f"{stack.gateway.url}/assets/{linked.relative_to(stack.service.data / 'assets')}"
        problem_of(stack.outside.get(url), 404, "asset_not_found")
    finally:
        linked.unlink()
    day = shown.parent
    aside = day.with_name("99")
    aside.symlink_to(day)
    try:
        url = f"{stack.gateway.url}/assets/{(aside / shown.name).relative_to(stack.service.data / 'assets')}"
        problem_of(stack.outside.get(url), 404, "asset_not_found")
    finally:
        aside.unlink()


def test_what_operators_see_needs_a_key_through_the_gateway(stack: Stack) -> None:
    assert httpx.get(f"{stack.service.url}/metrics", trust_env=False).status_code == 200
    with stack.gateway.client() as stranger:
        for headers in ({}, {"X-Forwarded-For": "127.0.0.1"}, {"Forwarded": "for=127.0.0.1"}, {"X-Real-IP": "::1"}):
            for path in ("/metrics", "/api/v1/stats"):
                problem_of(stranger.get(path, headers=headers), 401, "unauthorized")
    assert stack.outside.get("/metrics").status_code == 200


# ── On the way ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_upload_of_all_that_may_be_passes_and_more_is_refused(stack: Stack) -> None:
    whole = HOLIDAY + bytes(LIMIT - len(HOLIDAY))
    asset = stack.upload(whole, visibility="private")
    assert stack.outside.get(asset["url"]).content == whole
    last = stack.outside.get(asset["url"], headers={"Range": "bytes=-7"})
    assert (last.status_code, last.content) == (206, bytes(7))
    answer = stack.outside.post(
        "/api/v1/assets", content=bytes(LIMIT + 1024 * 1024), headers={"Content-Type": "image/jpeg"}
    )
    problem_of(answer, 413, "body_too_large")


def test_a_refused_sender_hears_why(stack: Stack) -> None:
    with stack.gateway.client() as stranger:
        answer = stranger.post("/api/v1/assets", content=bytes(LIMIT), headers={"Content-Type": "image/jpeg"})
        problem_of(answer, 401, "unauthorized")


def test_a_connection_outlives_a_refusal_or_the_caller_is_told(stack: Stack) -> None:
    small = raw.post(b"", b"Content-Length: 1000", kind="image/jpeg")
    with raw.Connection(stack.gateway.address) as connection:
        for _ in range(20):
            connection.send(small)
            connection.send(bytes(1000))
            connection.answer().problem(401, "unauthorized")
            connection.send(raw.get("/health/live"))
            assert connection.answer().status == 200
    for framing in (b"Content-Length: 1000000", b"Transfer-Encoding: chunked"):
        with raw.Connection(stack.gateway.address) as connection:
            connection.send(raw.post(b"", framing, kind="image/jpeg"))
            answer = connection.answer()
            answer.problem(401, "unauthorized")
            assert answer.headers["connection"] == "close"


def test_a_body_where_none_belongs_is_not_kept_either(stack: Stack, public: Any, private: Any) -> None:
    for asset in (public, private):
        answer = stack.outside.post(asset["url"], content=bytes(2 * 1024 * 1024))
        problem_of(answer, 413, "body_too_large")
    assert stack.gateway.kept() == 0


def test_more_than_any_upload_is_refused_by_the_gateway_itself(stack: Stack) -> None:
    with raw.Connection(stack.gateway.address) as connection:
        connection.send(raw.post(b"", b"Content-Length: 99999999999", b"X-Request-ID: mine"))
        answer = connection.answer()
    assert answer.problem(413, "body_too_large")["request_id"] == "mine"


def test_an_upload_comes_through_as_it_comes_and_is_kept_nowhere_on_the_way(stack: Stack) -> None:
    whole = HOLIDAY + bytes(8 * 1024 * 1024)
    head = (f"Content-Length: {len(whole)}".encode(), f"Authorization: Bearer {KEY}".encode(), b"Connection: close")
    with raw.Connection(stack.gateway.address) as connection:
        connection.send(raw.post(b"", *head, kind="image/jpeg"))
        connection.send(whole[: len(whole) // 2])
        temporary = stack.service.data / "tmp"
        until(lambda: any(size_of(path) > 1024 * 1024 for path in temporary.rglob("*")), of="the first half")
        assert stack.gateway.kept() == 0
        connection.send(whole[len(whole) // 2 :])
        assert connection.answer().status == 201


def test_a_request_keeps_its_id(stack: Stack, public: Any, private: Any) -> None:
    gone = urlsplit(public["url"]).path.replace("original", "999")
    for path in (public["url"], private["url"], "/api/v1/storages", gone):
        answer = stack.outside.get(path, headers={"X-Request-ID": "order-4711.a_b"})
        assert answer.headers.get_list("x-request-id") == ["order-4711.a_b"]
        for strange in ("-", "a b", "x" * 65, '"}', "$request_id", "\xe4"):
            headers = httpx.Headers({"X-Request-ID": strange}, encoding="latin-1")
            answer = stack.outside.get(path, headers=headers)
            (made,) = answer.headers.get_list("x-request-id")
            assert re.fullmatch("[0-9a-f]{16,32}", made), (path, strange)


class Echo(http.server.BaseHTTPRequestHandler):
    """A service that says what it was asked, and tries to have files sent that are none of anybody's business."""

    protocol_version = "HTTP/1.1"
    seen: dict[str, list[str]]
    hands_over = ""

    def do_GET(self) -> None:
        type(self).seen = {name.lower(): self.headers.get_all(name) or [] for name in self.headers}
        self.send_response(200)
        if self.hands_over:
            self.send_header("X-Accel-Redirect", self.hands_over)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"echo")

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def echoing(folder: Path, **settings: str) -> Iterator[tuple[Gateway, Path]]:
    """A gateway in front of one that repeats what it hears, and the volume."""
    volume = folder / "assets"
    (volume / "private").mkdir(parents=True)
    Echo.hands_over = ""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with gateway(folder / "gateway", f"127.0.0.1:{server.server_port}", volume, **settings) as front:
            yield front, volume
        server.shutdown()


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[tuple[Gateway, Path]]:
    with echoing(tmp_path) as both:
        yield both


SPOOFED = {
    "X-Forwarded-For": "192.0.2.1",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "elsewhere.example",
    "X-Forwarded-Port": "444",
    "X-Real-IP": "192.0.2.1",
    "Forwarded": "for=192.0.2.1",
    "X-Accel-Prefix": "/_bytes",
    "X-Accel-Redirect": "/_bytes/x",
    "X-Accel-Mapping": "/=/_bytes/",
    "X-Sendfile-Type": "X-Accel-Redirect",
    "X_Accel_Prefix": "/_bytes",
    "X_Forwarded_For": "192.0.2.1",
}


@pytest.mark.parametrize("path", ["/api/v1/assets", "/assets/private/x", "/assets/public/x"])
def test_what_a_caller_says_of_where_it_comes_from_is_not_passed_on(echo: tuple[Gateway, Path], path: str) -> None:
    front, _ = echo
    with front.client() as client:
        assert client.get(path, headers=SPOOFED | {"X-Request-ID": "mine"}).content == b"echo"
    said: Mapping[str, list[str]] = Echo.seen
    assert said["x-forwarded-for"] == ["127.0.0.1"]
    assert said["x-forwarded-proto"] == ["http"]
    assert said["host"] == [f"127.0.0.1:{front.port}"]
    assert said["x-request-id"] == ["mine"]
    assert said.get("x-accel-prefix") == (["/_bytes"] if path.startswith("/assets/") else None)
    passed = {name.lower() for name in SPOOFED} & said.keys()
    assert passed <= {"x-forwarded-for", "x-forwarded-proto", "x-accel-prefix"}


def test_only_a_proxy_that_is_named_can_say_who_calls(tmp_path: Path) -> None:
    with echoing(tmp_path, GATEWAY_PROXIES="127.0.0.0/8,2001:db8::/32") as (front, _), front.client() as client:
        for said, believed in (
            ("192.0.2.7", "192.0.2.7"),
            ("198.51.100.1, 192.0.2.7", "192.0.2.7"),
            ("x", "127.0.0.1"),
        ):
            client.get("/api/v1/assets", headers={"X-Forwarded-For": said})
            assert Echo.seen["x-forwarded-for"] == [believed]
        until(lambda: len(front.requests()) > 2, of="the log")
        assert [request["client"] for request in front.requests()] == ["192.0.2.7", "192.0.2.7", "127.0.0.1"]


def test_nothing_but_private_images_is_ever_handed_over(echo: tuple[Gateway, Path]) -> None:
    front, volume = echo
    key = "private/2026/11/20/01a1f908-5529-7703-b9de-54135cfb2f53.original.jpg"
    (volume / key).parent.mkdir(parents=True)
    (volume / key).write_bytes(HOLIDAY)
    (volume.parent / "catalogue.sqlite3").write_bytes(b"secret")
    (volume / "private/.hidden").write_bytes(b"secret")
    with front.client() as client:
        Echo.hands_over = f"/_bytes/{key}"
        assert client.get("/assets/private/x").content == HOLIDAY
        assert client.get("/api/v1/assets").content == b"echo"
        for elsewhere in (
            "/_bytes/../catalogue.sqlite3",
            "/_bytes/private/../../catalogue.sqlite3",
            "/_bytes/private/.hidden",
            "/_bytes/private/",
            f"/_bytes/{key}/..",
        ):
            Echo.hands_over = elsewhere
            answer = client.get("/assets/private/x")
            assert b"secret" not in answer.content
            assert answer.content == b"echo" or answer.status_code >= 400


# ── When it goes wrong ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_service_that_is_away_is_a_problem_of_the_one_shape(stack: Stack, public: Any, tmp_path: Path) -> None:
    address, files = f"127.0.0.1:{free_port()}", stack.service.data / "assets"
    with gateway(tmp_path / "gateway", address, files) as front, front.client() as client:
        for path in ("/", "/api/v1/assets", "/assets/private/x", "/assets/public/x"):
            answer = client.get(path, headers={"X-Request-ID": "mine"})
            assert problem_of(answer, 502, "service_unreachable")["request_id"] == "mine"
            assert answer.headers["retry-after"] == "5"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-store"
        problem_of(client.post("/api/v1/assets", content=bytes(1024 * 1024)), 502, "service_unreachable")
        shown = urlsplit(public["url"]).path
        assert client.get(shown).content == HOLIDAY
        problem_of(client.get(shown.replace("original", "64x")), 502, "service_unreachable")


def test_no_signature_is_ever_written_down(stack: Stack, private: Any, tmp_path: Path) -> None:
    signature = urlsplit(private["url"]).query.rpartition("sig=")[2]
    stack.outside.get(private["url"])
    stack.outside.get(private["url"].replace("original", "64"), headers={"X-Request-ID": "the-last-one"})
    until(lambda: "the-last-one" in stack.gateway.log.read_text(), of="the log")
    assert signature not in stack.gateway.log.read_text()
    address = f"127.0.0.1:{free_port()}"
    with gateway(tmp_path / "gateway", address, stack.service.data / "assets") as front, front.client() as client:
        path = private["url"].removeprefix(stack.gateway.url)
        assert client.get(path).status_code == 502
        until(front.requests, of="the log")
        assert signature not in front.log.read_text()


def test_a_service_that_does_not_answer_is_a_problem_too(tmp_path: Path) -> None:
    with (
        deaf() as port,
        gateway(tmp_path / "gateway", f"127.0.0.1:{port}", tmp_path) as front,
        front.client() as client,
    ):
        problem_of(client.get("/api/v1/assets"), 504, "service_timeout")


@contextmanager
def deaf() -> Iterator[int]:
    """A port on which nobody picks up: as many wait already as there is room for."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400, "malformed_request"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "malformed_request"),
        (b"GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "malformed_request"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400, "malformed_request"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", 431, "head_too_large"),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431, "head_too_large"),
    ],
    ids=["no host", "two hosts", "a zero byte", "no length", "a field too long", "a target too long"],
)
def test_what_is_no_request_is_a_problem_too(stack: Stack, request_: bytes, status: int, code: str) -> None:
    (answer,) = raw.exchange(stack.gateway.address, request_)
    answer.problem(status, code)


def test_a_head_as_long_as_the_service_takes_comes_through(stack: Stack) -> None:
    tags = ",".join(f"{number:02}" + "%C3%A4" * 62 for number in range(50))
    answer = stack.outside.post(f"/api/v1/assets?tags={tags}", content=HOLIDAY, headers={"Content-Type": "image/jpeg"})
    assert answer.status_code == 201, answer.text
    assert len(answer.json()["tags"]) == 50


@pytest.mark.parametrize(
    ("setting", "value", "sentence"),
    [
        ("ASSETS_MAX_UPLOAD_BYTES", "50m", "ASSETS_MAX_UPLOAD_BYTES is not a whole number: 50m"),
        ("GATEWAY_PROXIES", "all;", "GATEWAY_PROXIES are no addresses: all;"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(tmp_path: Path, setting: str, value: str, sentence: str) -> None:
    with (
        pytest.raises(RuntimeError, match=sentence),
        gateway(tmp_path / "gateway", "127.0.0.1:1", tmp_path, **{setting: value}),
    ):
        pass
