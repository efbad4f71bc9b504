"""What the OpenAPI document says of each operation is what the service does, for requests it allows and for others.

schemathesis makes the requests from the document and holds every check it knows against the answers. The premise of one
does not hold everywhere, `positive_data_acceptance`: that whatever fits the schema is taken. No schema can say that the
bytes are an image, that a name is one of those the operator configured, or that a date lies ahead: of requests
that fit, just these values are exchanged for such as are right (`fed`), and then the check holds for all operations.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator, MutableMapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st

from smart_assets.formats import ImageFormat
from smart_assets.main import create_app
from smart_assets.settings import Settings
from tests import images
from tests.faults.process import ServiceProcess
from tests.hostile.counting import tried

KEY = "a-key-of-more-than-sixteen-characters"
ASKING = {"Authorization": f"Bearer {KEY}", "X-Forwarded-For": "192.0.2.1"}
"""With a key, and through a proxy: what is open to this machine is not to others."""

PICTURES = st.sampled_from(["jpeg", "png", "gif", "webp", "avif", "animated gif"]).map(images.image)
for media_type in (*(known.media_type for known in ImageFormat), "application/octet-stream"):
    schemathesis.openapi.media_type(media_type, PICTURES)
schemathesis.openapi.format("binary", PICTURES)

document = schemathesis.openapi.from_dict(create_app(Settings(_env_file=None)).openapi())

DATA_URL = "data:image/png;base64," + base64.b64encode(images.png(8, 6)).decode()
FUTURE = "2999-01-01T00:00:00Z"
RIGHT: dict[str, Callable[[Any], Any]] = {
    "storage": lambda _: "local",
    "sizes": lambda _: ["32x16,thumbnail", "x9"],
    "background": lambda _: "#0a0B0c",
    "tags": lambda values: [str(number) for number, _ in enumerate(values)][:50],
    "expires_at": lambda value: value and FUTURE,
    "filename": lambda value: value if value is None else "photo.jpg",
    "files": lambda values: values[:20],
    "cursor": lambda value: value and base64.urlsafe_b64encode(bytes(16)).decode().rstrip("="),
    "size": lambda _: None,
    "amount": lambda _: 5,
    "upload": lambda _: "service",
    "max_bytes": lambda value: value and min(value, 1_000_000),
    "expiry_seconds": lambda value: value and min(value, 3600),
    "data_url": lambda _: DATA_URL,
    "metadata": lambda value: {"album": 7} if isinstance(value, dict) else json.dumps({"album": 7}),
}
"""What no schema can say of a parameter or member is made true of it."""


class _Picture(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        content = images.png(8, 6)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """Where a picture is to be had."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Picture) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/a.png"
        server.shutdown()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, site: str) -> Iterator[ServiceProcess]:
    imports = {
        "ASSETS_IMPORTS__ALLOW_HTTP": "true",
        "ASSETS_IMPORTS__ALLOWED_NETWORKS": "127.0.0.0/8",
        "ASSETS_IMPORTS__PORTS": str(urlsplit(site).port),  # and so no name that is made up is ever looked for
    }
    with ServiceProcess(tmp_path_factory.mktemp("schema"), ASSETS_API_KEYS=KEY, **imports) as service:
        RIGHT["source_url"] = lambda _: site
        yield service


def make_right(values: object) -> None:
    if isinstance(values, MutableMapping):
        for name in values.keys() & RIGHT.keys():
            values[name] = RIGHT[name](values[name])


def ticketed(case: schemathesis.Case[Any], client: httpx.Client) -> None:
    """A ticket that is there, whose URL it is; one to be completed was used before."""
    ticket = client.post("/api/v1/upload-tickets", headers=ASKING).json()
    if case.operation.path.endswith("/complete"):
        client.post(ticket["url"], files={"file": images.image("png")})
        case.query.clear()  # then the key decides
    elif case.operation.path.endswith("/file"):
        case.query.update(parse_qsl(urlsplit(ticket["url"]).query))
    case.path_parameters["ticket_id"] = ticket["id"]


def fed(case: schemathesis.Case[Any], service: ServiceProcess) -> None:
    """Exchange what no schema can say, so that the request is one that works; an asset it names is there."""
    if case.operation.path.endswith("/variants"):
        case.query.setdefault("sizes", [])  # or a placeholder: one of the two has to be asked for
    make_right(case.query)
    make_right(case.body)
    for name in [name for name in case.headers if name.lower() in {"if-match", "idempotency-key"}]:
        del case.headers[name]  # they may refuse what is right: what was seen before, and what was asked before
    if "ticket_id" in case.path_parameters:
        with service.client() as client:
            ticketed(case, client)
    if "asset_id" in case.path_parameters:
        with service.client() as client:
            content = {"Content-Type": "image/png"} | ASKING
            asset = client.post("/api/v1/assets", content=images.image("png"), headers=content).json()
        case.path_parameters["asset_id"] = asset["id"]


def looks_right(case: schemathesis.Case[Any]) -> bool:
    """Whether what is wrong looks right when it is sent: a list that is no list in a query, an object in a form."""
    several = {
        parameter["name"]
        for parameter in case.operation.definition.raw.get("parameters", ())
        if parameter["schema"].get("type") == "array"
    }
    if any(isinstance(value, list) and name not in several for name, value in (case.query or {}).items()):
        return True
    form = case.body if (case.media_type or "").startswith("multipart/") else None
    return isinstance(form, dict) and isinstance(form.get("metadata"), dict)


def asking(case: schemathesis.Case[Any]) -> dict[str, str]:
    """With the key, but where the request is wrong for want of it: what was taken away is not given back."""
    mutations = getattr(case.meta.phase.data, "mutations", ()) if case.meta is not None else ()
    if any("Authorization" in f"{mutation.parameter} {mutation.original_value}" for mutation in mutations):
        return {name: value for name, value in ASKING.items() if name != "Authorization"}
    return ASKING


@document.parametrize()
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
def test_every_operation_does_what_its_description_says(case: schemathesis.Case[Any], service: ServiceProcess) -> None:
    assume(not looks_right(case))
    headers = asking(case)  # before anything is exchanged: a case that is asked about itself afterwards tells otherwise
    if case.meta is not None and case.meta.generation.mode.is_positive:
        fed(case, service)
    with tried("requests made from the API's description"):
        answer = case.call_and_validate(base_url=service.url, headers=headers)
        if answer.status_code >= 400 and answer.status_code != 405:
            assert answer.json()["code"] in codes(case, answer.status_code), "the description does not name this code"


def codes(case: schemathesis.Case[Any], status: int) -> set[str]:
    """Of the errors the description names for that status of the operation."""
    described = case.operation.definition.raw["responses"][str(status)]
    return set(described["content"]["application/problem+json"]["examples"])
