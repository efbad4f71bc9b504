"""The client, over real connections that break, stall and refuse, to the real service."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from smart_assets import client as module
from smart_assets.catalogue.repository import AssetFilter
from smart_assets.client import Asset, AssetsError, Client
from smart_assets.main import create_app
from smart_assets.settings import Settings
from tests import images
from tests.staging import FaultyStorage
from tests.wire import Wire

HOLIDAY = images.jpeg(640, 480)
KEY = "a-key-of-sixteen-characters"
T = TypeVar("T")


@dataclass(frozen=True)
class Real:
    """The service on a port, and a wire to it."""

    app: FastAPI
    wire: Wire

    async def stored(self) -> list[str | None]:
        """The filenames of what there is."""
        page = await self.app.state.runtime.library.list(AssetFilter(owner=None))
        return [record.filename for record in page.records]


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Real]:
    app = create_app(settings)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    async with app.router.lifespan_context(app), Wire(*listener.getsockname()) as wire:
        running = asyncio.create_task(server._serve(sockets=[listener]))
        yield Real(app, wire)
        server.should_exit = True
        await running


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[Real]:
    async with serving(Settings(data_dir=tmp_path / "data")) as real:
        yield real


async def calling(real: Real, act: Callable[[Client], T], **options: Any) -> T:
    """What a thread gets that calls the service over the wire."""

    def call() -> T:
        with Client(real.wire.address, **options) as assets:
            return act(assets)

    return await asyncio.to_thread(call)


def answering(*answers: httpx.Response) -> tuple[Client, list[httpx.Request]]:
    """A client whose requests get these answers, the last one ever after, and the requests."""
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        request.read()
        asked.append(request)
        return answers[min(len(asked), len(answers)) - 1]

    return Client("http://images.example", KEY, transport=httpx.MockTransport(answer)), asked


def problem(status: int, code: str, **headers: str) -> httpx.Response:
    body = {"type": f"urn:x:{code}", "title": code, "status": status, "code": code, "detail": f"staged {code}"}
    return httpx.Response(
        status, content=json.dumps(body), headers={"Content-Type": "application/problem+json", **headers}
    )


ASSET = {
    "id": "01a1f908-5529-7703-b9de-54135cfb2f53",
    "filename": "a.jpg",
    "content_type": "image/jpeg",
    "size_bytes": 10,
    "width": 1,
    "height": 1,
    "sha256": "0" * 64,
    "storage": "local",
    "visibility": "public",
    "url": "http://images.example/assets/a",
    "variants": [],
    "created_at": "2026-11-20T10:00:00.250Z",
    "updated_at": "2026-11-20T10:00:00Z",
}


# ── What it does ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_life_of_an_asset(real: Real, tmp_path: Path) -> None:
    photo = tmp_path / 'hôtel "au bord", % & ü.jpg'
    photo.write_bytes(HOLIDAY)

    def live(assets: Client) -> None:
        options: module.UploadOptions = {
            "sizes": ["320x240", "100"],
            "visibility": "private",
            "tags": ["a", "b"],
            "format": "webp",
            "strip_metadata": True,
            "expires_at": datetime.now(UTC) + timedelta(days=9),
        }
        asset = assets.upload(photo, **options)
        assert asset.filename == photo.name
        assert (asset.width, asset.height, asset.visibility, asset.tags) == (640, 480, "private", ("a", "b"))
        assert [(v.size, v.content_type) for v in asset.variants] == [("320x240", "image/webp"), ("100", "image/webp")]
        assert asset.url_expires_at is not None
        assert asset.url_expires_at > datetime.now(UTC)

        found = assets.get(str(asset.id))
        assert (found, found.raw["id"]) == (asset, asset.id)
        changed = assets.change(str(asset.id), if_match=found.etag, tags=("c",), metadata={"n": 1}, pinned=True)
        assert (changed.tags, changed.metadata, changed.pinned) == (("c",), {"n": 1}, True)
        with pytest.raises(AssetsError) as refused:
            assets.change(str(asset.id), if_match=found.etag, tags=[])
        assert (refused.value.status, refused.value.code) == (412, "precondition_failed")

        link = assets.signed_url(str(asset.id), expiry_seconds=600, size="100")
        assert httpx.get(link.url).headers["content-type"] == "image/webp"
        assert link.url_expires_at <= datetime.now(UTC) + timedelta(seconds=600)

        assert assets.content(str(asset.id))[:2] == HOLIDAY[:2]
        seen: list[tuple[int, int | None]] = []
        saved = assets.save(
            str(asset.id), tmp_path / "x.webp", size="320x240", progress=lambda *told: seen.append(told)
        )
        assert seen[-1] == (saved.stat().st_size, saved.stat().st_size)
        assert stat.S_IMODE(saved.stat().st_mode) == 0o666 & ~umask()

        statistics = assets.stats()
        assert (statistics.count, statistics.storages[0].name) == (1, "local")
        assert {storage.name for storage in assets.storages() if storage.default} == {"local"}
        assets.delete(str(asset.id))
        with pytest.raises(AssetsError) as gone:
            assets.delete(str(asset.id))
        assert (gone.value.status, gone.value.code) == (404, "asset_not_found")
        assert gone.value.request_id

    await calling(real, live)


async def test_a_ticket_lets_somebody_else_upload(real: Real) -> None:
    def live(assets: Client) -> None:
        ticket = assets.upload_ticket(
            max_bytes=len(HOLIDAY), expiry_seconds=60, filename="a.jpg", metadata={"n": 1}, sizes=["100"], tags="a,b"
        )
        assert ticket.expires_at <= datetime.now(UTC) + timedelta(seconds=60)
        assert assets.ticket(ticket.id).state == "open"
        with pytest.raises(AssetsError) as refused:
            assets.complete_ticket(ticket.id)
        assert refused.value.code == "upload_missing"
        files = {"file": ("b.jpg", HOLIDAY)}
        assert httpx.request(ticket.method, ticket.url, data=ticket.fields, files=files).status_code == 201
        status = assets.ticket(ticket.id)
        asset = assets.get(str(status.asset_id))
        assert (status.state, asset.filename, asset.tags, asset.metadata) == ("used", "a.jpg", ("a", "b"), {"n": 1})
        assert assets.complete_ticket(ticket.id).id == asset.id
        with pytest.raises(AssetsError) as unsupported:
            assets.upload_ticket(upload="bucket")
        assert unsupported.value.code == "unsupported"

    await calling(real, live)


def umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


async def test_it_uploads_whatever_can_be_read(real: Real, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(HOLIDAY)
    reading, writing = os.pipe()

    def feed() -> None:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(HOLIDAY)

    def upload(assets: Client) -> list[Asset]:
        half_read = io.BytesIO(b"junk" + HOLIDAY)
        half_read.read(4)
        threading.Thread(target=feed).start()
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            return [
                assets.upload(str(tmp_path / "a.jpg")),
                assets.upload(HOLIDAY, filename="a.jpg"),
                assets.upload(memoryview(HOLIDAY), filename="a.jpg"),
                assets.upload(half_read, filename="a.jpg"),
                assets.upload(pipe, filename="a.jpg"),
                assets.upload(HOLIDAY, filename="a.jpg", metadata={"kept": "ü"}),
            ]

    uploaded = await calling(real, upload)
    assert {(asset.sha256, asset.filename, asset.size_bytes) for asset in uploaded} == {
        (uploaded[0].sha256, "a.jpg", len(HOLIDAY))
    }
    assert uploaded[-1].metadata == {"kept": "ü"}


async def test_progress_ends_with_everything_sent(real: Real) -> None:
    seen: list[tuple[int, int | None]] = []
    big = HOLIDAY + bytes(1_000_000)
    await calling(real, lambda assets: assets.upload(big, progress=lambda *told: seen.append(told)))
    assert (seen[0], seen[-1]) == ((0, len(big)), (len(big), len(big)))
    assert len(seen) > 3


async def test_a_batch_is_one_request(real: Real, tmp_path: Path) -> None:
    (tmp_path / 'a"b.jpg').write_bytes(HOLIDAY)
    sent: list[int] = []

    def upload(assets: Client) -> None:
        batch = assets.upload_batch(
            [tmp_path / 'a"b.jpg', images.jpeg(80, 60)],
            filenames=[None, "ü.jpg"],
            metadata={"trip": 1},
            sizes="40",
            progress=lambda count, _: sent.append(count),
        )
        assert [(a.filename, a.metadata, len(a.variants)) for a in batch.assets] == [
            ('a"b.jpg', {"trip": 1}, 1),
            ("ü.jpg", {"trip": 1}, 1),
        ]
        kept = assets.upload_batch([HOLIDAY, b"no image"], atomic=False)
        assert [(f.index, f.code) for f in kept.failed] == [(1, "unsupported_image")]
        with pytest.raises(AssetsError, match="this looks like text"):
            assets.upload_batch([HOLIDAY, b"no image"])
        with pytest.raises(ValueError, match="needs a file"):
            assets.upload_batch([])

    await calling(real, upload)
    assert sent[-1] == len(HOLIDAY) + len(images.jpeg(80, 60))


async def test_a_list_goes_on_over_its_pages(real: Real) -> None:
    def act(assets: Client) -> None:
        for number in range(5):
            assets.upload(
                images.jpeg(20, 20, seed=number), filename=f"{number}.jpg", tags="even" if number % 2 == 0 else ()
            )
        names = [asset.filename for asset in assets.list(page_size=2)]
        assert names == ["4.jpg", "3.jpg", "2.jpg", "1.jpg", "0.jpg"]
        assert [asset.filename for asset in assets.list(limit=3, page_size=2, order="asc")] == [
            "0.jpg",
            "1.jpg",
            "2.jpg",
        ]
        assert [asset.filename for asset in assets.list(tag="even", q="4")] == ["4.jpg"]
        assert list(assets.list(limit=0)) == []

    await calling(real, act)


# ── Connections that break ──────────────────────────────────────────────────────────────────────────────────────────


async def test_an_upload_whose_answer_was_lost_is_stored_once(real: Real) -> None:
    real.wire.cut(down=0, once=True)
    asset = await calling(real, lambda assets: assets.upload(HOLIDAY, filename="once.jpg"))
    assert asset.filename == "once.jpg"
    assert await real.stored() == ["once.jpg"]


async def test_a_grant_whose_answer_was_lost_counts_once(real: Real) -> None:
    real.wire.cut(down=0, once=True)
    entry = await calling(real, lambda assets: assets.grant_credits("shop", 100, note="invoice"))
    assert (entry.owner, entry.amount, entry.kind, entry.note) == ("shop", 100, "grant", "invoice")

    def act(assets: Client) -> None:
        for amount in (5, 6, 7):
            assets.grant_credits("shop", amount)
        assets.grant_credits("another", 1)
        amounts = [entry.amount for entry in assets.ledger(owner="shop", page_size=2)]
        assert amounts == [7, 6, 5, 100]
        assert [entry.amount for entry in assets.ledger(limit=3, page_size=2)] == [1, 7, 6]
        assert list(assets.ledger(limit=0)) == []

    await calling(real, act)


async def test_a_key_whose_answer_was_lost_is_not_made_a_second_time(real: Real) -> None:
    real.wire.cut(down=0, once=True)
    with pytest.raises(AssetsError) as lost:
        await calling(real, lambda assets: assets.make_key("website", ["assets:read"]))
    assert lost.value.status is None

    def act(assets: Client) -> None:
        (key,) = assets.api_keys()
        assert (key.name, key.scopes, key.key) == ("website", ("assets:read",), None)
        assets.revoke_key(key.id)
        assert assets.api_keys() == ()

    await calling(real, act)


async def test_an_upload_cut_in_the_middle_begins_again(real: Real, tmp_path: Path) -> None:
    big = tmp_path / "big.jpg"
    big.write_bytes(HOLIDAY + bytes(3_000_000))
    seen: list[int] = []
    real.wire.cut(up=1_000_000, once=True)
    asset = await calling(real, lambda assets: assets.upload(big, progress=lambda sent, _: seen.append(sent)))
    assert asset.size_bytes == big.stat().st_size
    assert seen.count(0) == 2
    assert await real.stored() == ["big.jpg"]


async def test_what_was_read_from_a_pipe_is_not_sent_again_as_if_it_were_whole(real: Real) -> None:
    reading, writing = os.pipe()

    def upload(assets: Client) -> AssetsError:
        def feed() -> None:
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(HOLIDAY + bytes(1_000_000))

        feeding = threading.Thread(target=feed)
        feeding.start()
        with os.fdopen(reading, "rb") as pipe:
            with pytest.raises(AssetsError) as broken:
                assets.upload(pipe)
            pipe.read()  # so that the feeder ends
        feeding.join()
        return broken.value

    real.wire.cut(up=200_000, once=True)
    error = await calling(real, upload)
    assert (error.status, error.code) == (None, "unreachable")
    assert await real.stored() == []


async def test_a_pipe_nothing_was_read_of_is_sent_when_the_service_is_back(real: Real) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(images.jpeg(60, 60))
    real.wire.refuse()

    def upload(assets: Client) -> Asset:
        with os.fdopen(reading, "rb") as pipe:
            return assets.upload(pipe, filename="late.jpg")

    uploading = asyncio.create_task(calling(real, upload, retries=20))
    await asyncio.sleep(0)
    real.wire.restore()
    assert (await uploading).filename == "late.jpg"


async def test_while_the_first_attempt_still_runs_its_answer_is_waited_for(real: Real, faulty: FaultyStorage) -> None:
    hang = faulty.hang("put", at=1)
    sent: list[int] = []
    uploading = asyncio.create_task(
        calling(
            real,
            lambda assets: assets.upload(
                HOLIDAY, storage="faulty", filename="slow.jpg", progress=lambda count, _: sent.append(count)
            ),
            retries=1,
        )
    )
    await hang.reached.wait()
    real.wire.refuse()
    real.wire.restore()
    while sent.count(0) < 4 and not uploading.done():  # the second and the third were told that the first still runs
        await asyncio.sleep(0.02)
    hang.release()
    assert (await uploading).filename == "slow.jpg"
    assert await real.stored() == ["slow.jpg"]


async def test_a_service_that_stays_silent_is_unreachable(real: Real) -> None:
    real.wire.stall(down=0)
    with pytest.raises(AssetsError, match="did not answer in time") as silent:
        await calling(real, Client.stats, timeout=0.2, retries=1)
    assert (silent.value.status, silent.value.code) == (None, "unreachable")


async def test_nobody_there_is_a_sentence(real: Real) -> None:
    real.wire.refuse()
    with pytest.raises(AssetsError, match="cannot be reached"):
        await calling(real, Client.stats, retries=1)


async def test_a_delete_whose_answer_was_lost_is_done(real: Real) -> None:
    asset = await calling(real, lambda assets: assets.upload(HOLIDAY))
    real.wire.cut(down=0, once=True)
    await calling(real, lambda assets: assets.delete(str(asset.id)))
    assert await real.stored() == []


async def test_a_file_is_there_whole_or_as_it_was(real: Real, tmp_path: Path) -> None:
    big = HOLIDAY + bytes(2_000_000)
    asset = await calling(real, lambda assets: assets.upload(big))
    target = tmp_path / "target" / "saved.jpg"
    target.parent.mkdir()
    target.write_bytes(b"before")
    real.wire.cut(down=500_000)
    with pytest.raises(AssetsError, match="broke the connection off"):
        await calling(real, lambda assets: assets.save(str(asset.id), target), retries=1)
    assert target.read_bytes() == b"before"
    real.wire.cut(down=500_000, once=True)
    await calling(real, lambda assets: assets.save(str(asset.id), target))
    assert target.read_bytes() == big
    assert list(target.parent.iterdir()) == [target]


async def test_a_file_that_grows_or_shrinks_while_it_is_sent_is_not_stored(real: Real, tmp_path: Path) -> None:
    for change in (b"", HOLIDAY * 20):
        photo = tmp_path / "photo.jpg"
        photo.write_bytes(HOLIDAY * 10)

        def meddle(sent: int, _: int | None, photo: Path = photo, change: bytes = change) -> None:
            if sent == 0:
                photo.write_bytes(change)

        with pytest.raises(AssetsError, match="changed while it was sent") as changed:
            await calling(real, partial(Client.upload, source=photo, progress=meddle))
        assert changed.value.code == "source_changed"
    assert await real.stored() == []


# ── Answers that are refusals ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_refusal_is_all_the_service_said(real: Real) -> None:
    with pytest.raises(AssetsError) as refused:
        await calling(real, lambda assets: assets.upload(HOLIDAY, sizes="12by4"))
    error = refused.value
    assert (error.status, error.code, error.errors[0].loc) == (422, "invalid_parameter", ("query", "sizes"))
    assert "12by4" in str(error)


async def test_a_body_that_is_too_large_is_refused_with_the_reason(tmp_path: Path) -> None:
    async with serving(Settings(data_dir=tmp_path / "data", max_upload_bytes=100_000)) as real:
        with pytest.raises(AssetsError, match="limit of 100000 bytes") as refused:
            await calling(real, lambda assets: assets.upload(HOLIDAY + bytes(20_000_000)))
    assert refused.value.code == "body_too_large"


async def test_the_key_opens(tmp_path: Path) -> None:
    async with serving(Settings.model_validate({"data_dir": tmp_path / "data", "api_keys": KEY})) as real:
        assert list(await calling(real, lambda assets: list(assets.list()), key=f"{KEY}\n")) == []
        with pytest.raises(AssetsError) as refused:
            await calling(real, lambda assets: list(assets.list()), key=None)
    assert (refused.value.status, refused.value.code) == (401, "unauthorized")


@pytest.mark.parametrize("status", [429, 503])
def test_who_is_asked_to_come_back_does(status: int) -> None:
    assets, asked = answering(problem(status, "busy", **{"Retry-After": "0"}), httpx.Response(201, json=ASSET))
    assert assets.upload(HOLIDAY).id == ASSET["id"]
    first, second = (request.headers["Idempotency-Key"] for request in asked)
    assert first == second
    assert asked[0].content == asked[1].content == HOLIDAY


def test_two_uploads_have_two_keys_unless_one_is_given() -> None:
    assets, asked = answering(httpx.Response(201, json=ASSET))
    assets.upload(HOLIDAY)
    assets.upload(HOLIDAY)
    assets.upload(HOLIDAY, idempotency_key="mine")
    keys = [request.headers["Idempotency-Key"] for request in asked]
    assert (len(set(keys)), keys[2]) == (3, "mine")


def test_a_gateway_whose_service_is_restarting_is_asked_again() -> None:
    assets, asked = answering(httpx.Response(502, text="<html>"), httpx.Response(200, json={"storages": []}))
    assert assets.storages() == ()
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "malformed_body"),
        (401, "unauthorized"),
        (409, "asset_busy"),
        (415, "unsupported_image"),
        (500, "internal_error"),
        (502, "storage_error"),
        (507, "storage_full"),
    ],
)
def test_what_would_be_the_same_again_is_not_asked_again(status: int, code: str) -> None:
    assets, asked = answering(problem(status, code))
    with pytest.raises(AssetsError) as refused:
        assets.get("x")
    assert (refused.value.status, refused.value.code, len(asked)) == (status, code, 1)


def test_it_does_not_wait_for_an_hour() -> None:
    for value in ("3600", email_date(timedelta(hours=1))):
        assets, asked = answering(problem(503, "busy", **{"Retry-After": value}))
        with pytest.raises(AssetsError) as refused:
            assets.stats()
        assert len(asked) == 1
        assert refused.value.retry_after == pytest.approx(3600, abs=60)


def email_date(ahead: timedelta) -> str:
    return (datetime.now(UTC) + ahead).strftime("%a, %d %b %Y %H:%M:%S GMT")


def test_pauses_are_at_least_what_was_asked_for_grow_and_end() -> None:
    patience = module._Patience(retries=6, timeout=1)
    busy = AssetsError("", code="busy", status=503)
    pauses = [patience.pause(AssetsError("", code="busy", status=503, retry_after=5))]
    pauses += [patience.pause(busy) for _ in range(6)]
    assert pauses.pop() is None
    grown = [pause or 0.0 for pause in pauses]
    assert grown[0] >= 5
    assert sorted(grown[1:]) == grown[1:]
    assert max(grown[1:]) <= 12


def test_programs_seeded_alike_do_not_come_back_together_and_keep_their_random_numbers() -> None:
    before = random.getstate()
    try:
        pauses = set()
        for _ in range(2):
            random.seed(1)
            seeded = random.getstate()
            pauses.add(module._Patience(retries=1, timeout=1).pause(AssetsError("", code="busy", status=503)))
            assert random.getstate() == seeded
        assert len(pauses) == 2
    finally:
        random.setstate(before)


def test_a_call_that_waits_gives_up_when_the_client_is_closed() -> None:
    waiting = threading.Event()

    def refuse(_: httpx.Request) -> httpx.Response:
        waiting.set()
        return problem(503, "busy", **{"Retry-After": "50"})

    assets = Client("http://images.example", transport=httpx.MockTransport(refuse))
    errors: list[AssetsError] = []

    def call() -> None:
        try:
            assets.stats()
        except AssetsError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    waiting.wait(60)
    assets.close()
    thread.join(60)
    assert [error.code for error in errors] == ["busy"]


# ── Where a key goes, and where not ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[Any]]]:
    """A server on this machine, and what it was sent."""
    got: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            got.append((self.path, self.headers.get("Authorization")))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", got
    server.shutdown()
    thread.join()
    server.server_close()


async def test_a_redirect_takes_the_key_nowhere(real: Real, elsewhere: tuple[str, list[Any]]) -> None:
    address, got = elsewhere
    real.wire.answer(307, {"Location": f"{address}/api/v1/stats"})
    with pytest.raises(AssetsError, match="give that address") as redirected:
        await calling(real, Client.stats, key=KEY)
    assert (redirected.value.status, redirected.value.code, got) == (307, "unexpected_answer", [])


async def test_a_proxy_is_used_only_where_it_is_named(
    real: Real, elsewhere: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, got = elsewhere
    for variable in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(variable, address)
    assert (await calling(real, Client.stats)).count == 0
    assert got == []
    with pytest.raises(AssetsError, match="not what Smart Assets answers"):
        await calling(real, Client.stats, proxy=address)
    assert got[0][0] == f"{real.wire.address}/api/v1/stats"


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://x", "http://", "http://u:p@x", "http://x?y", "http://x#y", "http://x:port"]
)
def test_an_address_that_is_none_is_said_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="address"):
        Client(url)


@pytest.mark.parametrize("key", ["two words", "über", "line\nfeed"])
def test_a_key_that_is_none_is_said_at_once(key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        Client("http://x", key)


def test_the_service_may_live_below_a_path() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(200, json={"storages": []})

    Client("https://x.example/images/", transport=httpx.MockTransport(answer)).storages()
    assert asked == ["https://x.example/images/api/v1/storages"]


# ── Answers of other versions, and of others ────────────────────────────────────────────────────────────────────────


def test_what_a_newer_service_adds_is_kept_out_of_the_way() -> None:
    assets, _ = answering(httpx.Response(200, json={**ASSET, "mood": "sunny"}))
    asset = assets.get("x")
    assert not hasattr(asset, "mood")
    assert (asset.raw["mood"], asset.pinned) == ("sunny", False)
    assert asset.created_at == datetime(2026, 11, 20, 10, 0, 0, 250_000, tzinfo=UTC)
    with pytest.raises(AttributeError):
        asset.id = "y"  # type: ignore[misc]


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>Welcome</html>"),
        httpx.Response(200, json={"hello": "world"}),
        httpx.Response(200, json=[1]),
        httpx.Response(200, json={**ASSET, "created_at": "yesterday"}),
        httpx.Response(404, text="nothing here"),
        httpx.Response(404, text="{", headers={"Content-Type": "application/problem+json"}),
        httpx.Response(500, content=b"x" * 1_000_000, headers={"Content-Type": "application/problem+json"}),
    ],
)
def test_who_is_not_the_service_is_told_from_it(answer: httpx.Response) -> None:
    assets, _ = answering(answer)
    with pytest.raises(AssetsError) as error:
        assets.get("x")
    assert (error.value.code, error.value.status) == ("unexpected_answer", answer.status_code)


def test_calls_of_the_contract_go_where_it_says() -> None:
    assets, asked = answering(httpx.Response(200, json=ASSET))
    assets.move("an id", "s3")
    assets.variants("x", ["800", "x600"], fit="cover", atomic=False)
    list_answer = httpx.Response(200, json={"items": [], "next_cursor": None})
    listing, listed = answering(list_answer)
    list(listing.list(created_after=datetime(2026, 1, 1, tzinfo=UTC)))
    assert [(request.method, request.url.raw_path.decode()) for request in asked + listed] == [
        ("POST", "/api/v1/assets/an%20id/move?storage=s3"),
        ("POST", "/api/v1/assets/x/variants?sizes=800%2Cx600&fit=cover&atomic=false"),
        ("GET", "/api/v1/assets?created_after=2026-01-01T00%3A00%3A00%2B00%3A00&limit=50"),
    ]


def test_many_are_deleted_a_thousand_at_a_time() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        ids = json.loads(request.content)["ids"]
        return httpx.Response(
            200,
            json={"results": [{"id": asset_id, "status": "deleted", "code": None, "detail": None} for asset_id in ids]},
        )

    assets = Client("http://x", transport=httpx.MockTransport(answer))
    deleted = list(assets.delete_many(str(number) for number in range(2500)))
    assert [deletion.id for deletion in deleted] == [str(number) for number in range(2500)]
    assert list(assets.delete_many([])) == []


def test_a_time_without_its_zone_is_refused() -> None:
    assets, _ = answering(httpx.Response(201, json=ASSET))
    with pytest.raises(ValueError, match="zone"):
        assets.upload(HOLIDAY, expires_at=datetime(2027, 1, 1))  # noqa: DTZ001


def test_a_file_open_as_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(HOLIDAY)
    assets, _ = answering(httpx.Response(201, json=ASSET))
    with (tmp_path / "a.jpg").open(encoding="latin-1") as file, pytest.raises(TypeError, match="'rb'"):
        assets.upload(file)  # type: ignore[arg-type]


def test_the_file_stands_alone(tmp_path: Path) -> None:
    (tmp_path / "copied.py").write_text(Path(str(module.__file__)).read_text())
    script = "import sys, copied; print([name for name in sys.modules if name.startswith('smart_assets')])"
    answer = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert answer.stdout == "[]\n", answer.stderr
