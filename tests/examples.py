"""`api/examples.json`: what the API is asked and answers, which its description shows. `make openapi` records it; a
test holds it to this.

    python -m tests.examples backend/smart_assets/api/examples.json

Each scene is a request that is sent to a real service, in the order they stand here. To show one more: add a scene.
What is another each time (ids, times, hashes, signatures, sizes in bytes) is written as if it were not.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from smart_assets.main import create_app
from smart_assets.settings import Settings
from tests import images

ADDRESS = "http://127.0.0.1:8000"
KEY = "sa_an-example-of-a-key-that-nobody-uses"

HOLIDAY = images.jpeg(2725, 2225, seed=1)
LOGO = images.png(64, 64, seed=2, mode="RGBA")
DAMAGED = HOLIDAY[: len(HOLIDAY) // 2]

Files = list[tuple[str, tuple[str, bytes]]]


@dataclass(frozen=True)
class Scene:
    """A request to an operation of the API's description, and the status it is answered with.

    `{name}` in `path`, and as a value of `body`, is what an earlier scene kept under that name: the member of its
    answer that `keeps` leads to. Shown are bodies that are JSON, and answers but for `shows_answer=False`.
    """

    operation: str
    summary: str
    status: int = 200
    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    files: Files = field(default_factory=list)
    form: Mapping[str, str] = field(default_factory=dict)
    keeps: Mapping[str, str] = field(default_factory=dict)
    at: str | None = None
    """What was kept under this name is the address, whole."""
    shows_answer: bool = True


ASSET = {"asset_id": "{asset}"}

SCENES = (
    Scene(
        "POST /api/v1/credits",
        "A thousand for an owner",
        201,
        body={"owner": "default", "amount": 1000, "note": "invoice 2026-117"},
    ),
    Scene(
        "POST /api/v1/assets",
        "A private image and two sizes of it",
        201,
        query={"sizes": "1200x627,400", "format": "webp", "visibility": "private", "tags": "trip"},
        files=[("file", ("holiday photo.jpg", HOLIDAY))],
        form={"metadata": '{"album": 7}'},
        keeps={"asset": "id"},
    ),
    Scene(
        "POST /api/v1/assets",
        "A public image as it is",
        201,
        files=[("file", ("logo.png", LOGO))],
        keeps={"logo": "id"},
    ),
    Scene(
        "POST /api/v1/assets",
        "The image itself",
        201,
        query={"storage": "memory"},
        body={
            "data_url": "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7",
            "filename": "pixel.gif",
            "metadata": {"album": 7},
        },
        keeps={"pixel": "id"},
        shows_answer=False,
    ),
    Scene(
        "POST /api/v1/assets/batch",
        "All of it",
        201,
        query={"storage": "memory"},
        files=[("files", ("logo.png", LOGO)), ("files", ("another.png", images.png(64, 64, seed=3)))],
        keeps={"one": "assets.0.id", "other": "assets.1.id"},
    ),
    Scene(
        "POST /api/v1/assets/batch",
        "What worked, with atomic=false",
        201,
        query={"atomic": "false", "storage": "memory"},
        files=[("files", ("logo.png", LOGO)), ("files", ("damaged.jpg", DAMAGED))],
    ),
    Scene(
        "POST /api/v1/upload-tickets",
        "For a visitor's photo, private and in two sizes",
        201,
        query={"sizes": "1200,400", "visibility": "private", "tags": "visitors"},
        body={"max_bytes": 10_000_000, "expiry_seconds": 600},
        keeps={"ticket": "id", "upload_url": "url"},
    ),
    Scene("GET /api/v1/upload-tickets/{ticket_id}", "It was not used yet", path={"ticket_id": "{ticket}"}),
    Scene(
        "POST /api/v1/upload-tickets/{ticket_id}/file",
        "The visitor's photo",
        201,
        at="upload_url",
        files=[("file", ("photo.jpg", HOLIDAY))],
    ),
    Scene("GET /api/v1/assets", "The first page", query={"limit": "1", "tag": "trip"}),
    Scene("GET /api/v1/assets/{asset_id}", "A private image", path=ASSET),
    Scene("PATCH /api/v1/assets/{asset_id}", "Publish it", path=ASSET, body={"visibility": "public"}),
    Scene(
        "PATCH /api/v1/assets/{asset_id}",
        "Describe it anew",
        path=ASSET,
        body={"filename": "berlin.jpg", "tags": ["berlin"], "metadata": {"album": None, "rating": 5}, "pinned": True},
        shows_answer=False,
    ),
    Scene(
        "POST /api/v1/assets/{asset_id}/variants",
        "With one more size",
        path=ASSET,
        query={"sizes": "300x300", "fit": "cover", "gravity": "attention"},
    ),
    Scene("POST /api/v1/assets/{asset_id}/move", "It lies elsewhere now", path=ASSET, query={"storage": "memory"}),
    Scene(
        "POST /api/v1/assets/{asset_id}/signed-url",
        "A size, for an hour",
        path=ASSET,
        body={"expiry_seconds": 3600, "size": "400"},
    ),
    Scene(
        "POST /api/v1/assets/{asset_id}/signed-url", "The original, for a day", path=ASSET, body={}, shows_answer=False
    ),
    Scene(
        "GET /api/v1/assets/{asset_id}/content", "As a data URL", path={"asset_id": "{pixel}"}, query={"as": "data_url"}
    ),
    Scene("GET /api/v1/assets/export", "One object a line", query={"storage": "local"}),
    Scene(
        "POST /api/v1/assets/delete",
        "One is there, one is not",
        body={"ids": ["{other}", "01a1f908-5529-7703-b9de-54135cfb2f53"]},
    ),
    Scene("GET /api/v1/usage", "Some of it is spent"),
    Scene("GET /api/v1/usage/daily", "One day", query={"days": "1"}),
    Scene("GET /api/v1/credits", "The newest line", query={"limit": "1"}),
    Scene("GET /api/v1/stats", "A small library"),
    Scene("GET /api/v1/storages", "Without any settings"),
    Scene("POST /api/v1/maintenance/retention", "Nothing was to go"),
    Scene(
        "POST /api/v1/keys",
        "For a website",
        201,
        body={"name": "website", "scopes": ["assets:read", "assets:write"], "owner": "website"},
        keeps={"key": "id"},
    ),
    Scene("GET /api/v1/keys", "One key"),
    Scene("GET /health/live", "It runs"),
    Scene("GET /health/ready", "It can work"),
)


def recorded() -> str:
    """The whole file."""
    with tempfile.TemporaryDirectory() as folder:
        examples = asyncio.run(_play(Path(folder)))
    return json.dumps(examples, indent=2, ensure_ascii=False) + "\n"


async def _play(folder: Path) -> dict[str, list[dict[str, Any]]]:
    settings = {"data_dir": folder, "api_keys": [KEY], "public_url": ADDRESS, "imaging": {"workers": 1}}
    settings |= {"credits": {"per_original": 1, "per_size": 1}}
    app = create_app(Settings.model_validate(settings))
    transport = httpx.ASGITransport(app, client=("127.0.0.1", 50000))
    stage = _Stage()
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=transport, base_url=ADDRESS, headers={"Authorization": f"Bearer {KEY}"}, timeout=60
        ) as client,
    ):
        for scene in SCENES:
            await stage.play(scene, client)
    return stage.examples


class _Stage:
    """Scenes one after the other, and what is shown of them."""

    def __init__(self) -> None:
        self.examples: dict[str, list[dict[str, Any]]] = {}
        self._kept: dict[str, str] = {}
        self._ids: dict[str, str] = {}

    async def play(self, scene: Scene, client: httpx.AsyncClient) -> None:
        method, _, template = scene.operation.partition(" ")
        names = {name: self._known(value) for name, value in scene.path.items()}
        path = self._kept[scene.at] if scene.at is not None else template.format(**names)
        sent = (
            {"json": self._known(scene.body)} if scene.body is not None else {"files": scene.files, "data": scene.form}
        )
        if method == "GET":
            sent = {}
        answer = await client.request(method, path, params=scene.query or None, **sent)
        assert answer.status_code == scene.status, f"{scene.operation}: {answer.text}"
        shown: dict[str, Any] = {"summary": scene.summary}
        if scene.body is not None:
            shown["request"] = self._stable(None, sent["json"])
        media_type = answer.headers["content-type"].partition(";")[0]
        said = answer.json() if media_type == "application/json" else answer.text
        for name, way in scene.keeps.items():
            self._kept[name] = _at(said, way)
        if scene.shows_answer:
            shown |= {"status": scene.status, "media_type": media_type, "response": self._stable(None, said)}
        self.examples.setdefault(scene.operation, []).append(shown)

    def _known(self, value: Any) -> Any:
        """With what earlier scenes kept."""
        if isinstance(value, dict):
            return {name: self._known(member) for name, member in value.items()}
        if isinstance(value, list):
            return [self._known(member) for member in value]
        if isinstance(value, str) and (match := re.fullmatch(r"\{(\w+)\}", value)):
            return self._kept[match[1]]
        return value

    def _stable(self, name: str | None, value: Any) -> Any:
        """As if it were the same each time: by what the member is called, or looks like."""
        if isinstance(value, dict):
            return {key: self._stable(key, member) for key, member in value.items()}
        if isinstance(value, list):
            return [self._stable(name, member) for member in value]
        if isinstance(value, int) and name in {"size_bytes", "bytes"} and value:
            return int("829183047"[: len(str(value))])
        if not isinstance(value, str):
            return value
        if name is None:  # a whole answer: an object a line
            return "".join(f"{json.dumps(self._stable(name, json.loads(line)))}\n" for line in value.splitlines())
        return self._stable_text(name, value)

    def _stable_text(self, name: str | None, text: str) -> str:
        if name in _INSTEAD:
            return _INSTEAD[name]
        text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", lambda match: self._id(match[0]), text)
        text = re.sub(r"/\d{4}/\d\d/\d\d/", "/2026/11/20/", text)
        text = re.sub(r"exp=\d+", f"exp={_EXPIRES.timestamp():.0f}", text)
        text = re.sub(r"kid=\w+", "kid=b29ae5fb", text)
        return re.sub(r"sig=[\w-]+", "sig=4TC62ynzW3NdWPVVUwuBIImI5ZaV6LMCcaEiwYeFQmU", text)

    def _id(self, found: str) -> str:
        return self._ids.setdefault(found, f"01a1f908-5529-7703-b9de-{len(self._ids) + 1:012}")


_EXPIRES = datetime(2026, 11, 21, 12, tzinfo=UTC)
_NOW = "2026-11-20T12:00:00Z"

_INSTEAD = {
    **dict.fromkeys(
        ("created_at", "updated_at", "oldest", "newest", "started_at", "finished_at", "last_used_at"), _NOW
    ),
    "day": "2026-11-20",
    "expires_at": "2026-11-20T12:10:00Z",
    "url_expires_at": "2026-11-21T12:00:00Z",
    "sha256": "0de3824939c164c81b2742b83b51a0f621ed1142b57ef8ad3f33a5a2c2634dd0",
    "thumbhash": "1DgGDoILwErCm5rIrIpnWomdCMOrYKs=",
    "dominant_color": "#282321",
    "key": "sa_Rk3v9cT0mZsX7uYpLqWn2bHdJfGa5eKi8oVxC4tDwEs",
    "next_cursor": base64.urlsafe_b64encode(bytes.fromhex("01a1f90855297703b9de000000000001")).decode().rstrip("="),
}
"""Of members of that name that are texts; encoders, clocks and chance differ."""


def _at(said: Any, way: str) -> str:
    for step in way.split("."):
        said = said[int(step) if step.isdecimal() else step]
    return str(said)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(recorded(), encoding="utf-8")
