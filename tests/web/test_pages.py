"""The pages as they are sent: what a browser does with them is tried in `tests/live/test_gallery.py`."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from smart_assets.main import create_app
from smart_assets.settings import Settings
from tests.conftest import Service, StartService, problem_of

PAGES = ("/", "/docs", "/redoc")
STATIC = Path(__file__).parents[2] / "backend/smart_assets/web/static"
KEY = "k" * 32

# What npm's `thumbhash` decodes each to: width, height, the first pixel, the mean of all.
THUMBHASHES = {
    "HRgGFwYyUnNQdolwmCiYN4iT9r6bUJgP": (32, 32, (34, 24, 0, 255), (124, 112, 114, 255)),
    "XAgKHYhEZJVgh3mEeTZ4l8+YHPWb": (32, 23, (31, 8, 0, 255), (119, 115, 106, 255)),
    "HPgFHQgSNECXCpg4epRld6+MOaT1": (23, 32, (42, 49, 0, 255), (112, 116, 110, 255)),
    "HviBDQQXEJOEqpQ6eYbWD6SaQlRAhnI5WA==": (32, 32, (119, 135, 109, 0), (120, 124, 118, 119)),
    "G0iGC4QIUFFwiHX4qw/5aDSQaoZ4JkQ=": (32, 19, (75, 38, 24, 136), (128, 92, 106, 136)),
    "0XkCBwBJaYl5h4h3dzh3h4d38ICIT40I": (32, 32, (119, 58, 28, 255), (119, 58, 28, 255)),
}


class _Links(HTMLParser):
    """What a page fetches, and what it holds of its own that the policy would not let run."""

    def __init__(self, page: httpx.Response) -> None:
        super().__init__()
        self.files: list[str] = []
        self.inline: list[str] = []
        self.feed(page.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in {"script", "img"} or (tag == "link"):
            self.files.append(given.get("src") or given.get("href") or "inline")
        self.inline += [name for name in given if name.startswith("on") or name == "style"]
        if tag == "style" or "javascript:" in str(given):
            self.inline.append(tag)


def policy(page: httpx.Response) -> dict[str, list[str]]:
    directives = page.headers["content-security-policy"].split(";")
    return {name: sources for name, *sources in (directive.split() for directive in directives)}


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_fetches_nothing_from_elsewhere_and_holds_no_script_or_style(service: Service, path: str) -> None:
    page = await service.client.get(path)
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    found = _Links(page)
    assert found.inline == []
    assert found.files
    assert "$" not in page.text, "a placeholder was left"
    for file in found.files:
        assert re.match(r"(static|docs)/[0-9a-f]{12}/[a-z.-]+$", file), file
        answer = await service.client.get("/" + file)
        assert answer.status_code == 200, file
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", PAGES)
async def test_a_pages_policy_is_strict(service: Service, path: str) -> None:
    page = await service.client.get(path)
    rules = policy(page)
    assert rules["default-src"] == ["'none'"]
    assert rules["script-src"] == rules["connect-src"] == ["'self'"]
    assert rules["base-uri"] == rules["frame-ancestors"] == rules["form-action"] == ["'none'"]
    assert rules["style-src"][0] == "'self'"
    assert all(source.startswith("'sha256-") for source in rules["style-src"][1:])
    assert "unsafe" not in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "same-origin"


async def test_the_gallery_makes_no_markup_of_text(service: Service) -> None:
    assert policy(await service.client.get("/"))["require-trusted-types-for"] == ["'script'"]
    for script in STATIC.glob("*.js"):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", script.read_text())


async def test_images_may_come_from_where_the_settings_say_they_lie() -> None:
    settings = {
        "public_url": "http://assets.lan:8000/here",
        "s3": {"bucket": "b", "endpoint_url": "http://user:word@minio:9000", "public_url": "https://cdn.example"},
        "azure": {"connection_string": "AccountName=a;AccountKey=c2VjcmV0;BlobEndpoint=http://azurite:10000/a"},
    }
    app = create_app(Settings.model_validate(settings))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        sources = policy(await client.get("/"))["img-src"]
    assert sources[:4] == ["'self'", "data:", "blob:", "https:"]
    assert sorted(sources[4:]) == ["http://assets.lan:8000", "http://azurite:10000", "http://minio:9000"]


async def test_a_page_is_asked_for_again_and_answered_briefly_where_it_is_known(service: Service) -> None:
    page = await service.client.get("/")
    assert page.headers["cache-control"] == "no-cache"
    again = await service.client.get("/", headers={"If-None-Match": f'"other", W/{page.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == page.headers["content-security-policy"]
    assert (await service.client.get("/", headers={"If-None-Match": '"other"'})).status_code == 200


async def test_files_are_kept_for_good_because_their_address_changes_with_them(service: Service) -> None:
    (script,) = (file for file in _Links(await service.client.get("/")).files if file.endswith("main.js"))
    answer = await service.client.get("/" + script)
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
    assert answer.content == (STATIC / "main.js").read_bytes()
    _, version, name = script.split("/")
    for path in (f"/static/{version[::-1]}/{name}", f"/static/{version}/other.js", f"/docs/{version}/{name}"):
        problem_of(await service.client.get(path), 404, "route_not_found")


@pytest.mark.parametrize(
    ("accepted", "compressed"),
    [("gzip, br", True), ("br;q=1, GZIP;q=0.5", True), ("", False), ("gzip;q=0", False), ("x-gzip2", False)],
)
async def test_files_are_compressed_for_who_can_take_it(service: Service, accepted: str, compressed: bool) -> None:
    (script,) = (file for file in _Links(await service.client.get("/docs")).files if file.endswith("bundle.js"))
    async with service.client.stream("GET", f"/{script}", headers={"Accept-Encoding": accepted}) as answer:
        content = b"".join([piece async for piece in answer.aiter_raw()])
    assert answer.headers["vary"] == "Accept-Encoding"
    assert ("content-encoding" in answer.headers) is compressed
    assert b"SwaggerUIBundle" in (gzip.decompress(content) if compressed else content)
    assert (len(content) < 700_000) is compressed


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_can_be_looked_for_without_fetching_it(service: Service, path: str) -> None:
    answer = await service.client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")


async def test_pages_need_no_key_and_hold_no_data(start_service: StartService) -> None:
    async with start_service(api_keys=[KEY]) as service:
        for path in PAGES:
            page = await service.client.get(path)
            assert page.status_code == 200
            assert KEY not in page.text
        problem_of(await service.client.get("/api/v1/assets"), 401, "unauthorized")


async def test_presets_and_limits_are_the_settings_own(start_service: StartService) -> None:
    async with start_service(presets={"banner": ["1200x400", "600"]}, max_upload_bytes=123_456) as service:
        page = (await service.client.get("/")).text
    assert 'value="banner"' in page
    assert "1200x400, 600" in page
    assert 'value="social"' not in page
    assert 'data-max-bytes="123456"' in page
    assert 'accept="image/jpeg,image/png,image/webp,image/gif,image/avif"' in page


async def test_pages_are_no_part_of_the_api(service: Service) -> None:
    paths = (await service.client.get("/openapi.json")).json()["paths"]
    assert not [path for path in paths if path.startswith(("/static", "/docs", "/redoc")) or path == "/"]


def test_placeholders_are_what_the_reference_makes_of_them() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node")
    program = """
        const { decode } = await import("data:text/javascript," + encodeURIComponent(process.argv[1]));
        const { width, height, rgba } = decode(Uint8Array.from(Buffer.from(process.argv[2], "base64")));
        const sum = (channel) => rgba.filter((_, index) => index % 4 === channel).reduce((a, b) => a + b);
        const mean = [0, 1, 2, 3].map((channel) => Math.round(sum(channel) / width / height));
        console.log(JSON.stringify([width, height, [...rgba.slice(0, 4)], mean]));
    """
    script = (STATIC / "thumbhash.js").read_text()
    for thumbhash, (width, height, first, mean) in THUMBHASHES.items():
        command = [node, "--input-type=module", "--eval", program, script, thumbhash]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        found = json.loads(answer.stdout)
        assert found[:2] == [width, height], thumbhash
        # Within one: the reference cuts where a canvas rounds.
        assert found[2] + found[3] == pytest.approx([*first, *mean], abs=1), thumbhash
