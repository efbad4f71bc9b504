"""The page that docs/tickets.md shows, in a real browser, on another site than the service's."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import images
from tests.faults.process import ServiceProcess
from tests.live.browser import Visit
from tests.live.browser import browser as browser
from tests.live.browser import visit as visit
from tests.live.seaweed import S3Server

HOLIDAY = images.jpeg(900, 600, seed=9)
KEY = "the-key-of-this-service"
DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "tickets.md"


class Shop(ThreadingHTTPServer):
    """Somebody's site, with the documented page, and a server of its own that has a ticket for whoever asks."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        found = re.search(r"```html\n(.+?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
        assert found is not None
        self.page = f"<!doctype html><title>shop</title>{found[1]}"
        self.ticket: Any = None

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Shop

    def do_GET(self) -> None:
        self.answer("text/html; charset=utf-8", self.server.page)

    def do_POST(self) -> None:
        assert self.path == "/my-own-server/ticket"
        self.answer("application/json", json.dumps(self.server.ticket))

    def answer(self, content_type: str, text: str) -> None:
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    with Shop() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, seaweed: S3Server, shop: Shop) -> Iterator[httpx.Client]:
    bucket = seaweed.new_bucket()
    rule = {"AllowedOrigins": [shop.origin], "AllowedMethods": ["POST"], "AllowedHeaders": ["*"]}
    administrator = seaweed.client()
    administrator.put_bucket_cors(Bucket=bucket, CORSConfiguration={"CORSRules": [rule]})
    administrator.close()
    settings = {
        "ASSETS_API_KEYS": KEY,
        "ASSETS_CORS_ORIGINS": shop.origin,
        "ASSETS_S3__BUCKET": bucket,
        "ASSETS_S3__ENDPOINT_URL": str(seaweed.endpoint_url),
        "ASSETS_S3__ACCESS_KEY_ID": seaweed.access_key_id,
        "ASSETS_S3__SECRET_ACCESS_KEY": seaweed.secret_access_key,
    }
    with ServiceProcess(tmp_path_factory.mktemp("tickets"), **settings) as service, service.client() as client:
        client.headers["Authorization"] = f"Bearer {KEY}"
        yield client


@pytest.mark.parametrize("way", ["service", "bucket"])
def test_the_documented_page_uploads_without_a_key(visit: Visit, api: httpx.Client, shop: Shop, way: str) -> None:
    query = {"storage": "s3" if way == "bucket" else "local", "sizes": "100", "visibility": "private"}
    shop.ticket = api.post("/api/v1/upload-tickets", params=query, json={"upload": way}).json()
    with visit(shop.origin) as page:
        with page.expect_console_message(lambda said: said.type == "log", timeout=60_000) as said:
            page.locator("#file").set_input_files({"name": "a.jpg", "mimeType": "image/jpeg", "buffer": HOLIDAY})
        asset = said.value.args[0].json_value()
    assert asset.get("sha256") == sha256(HOLIDAY).hexdigest(), asset
    assert api.get(f"/api/v1/assets/{asset['id']}").json()["visibility"] == "private"
    assert api.get(f"/api/v1/upload-tickets/{shop.ticket['id']}").json()["asset_id"] == asset["id"]
