"""What a sender sends is what is read, whatever way it comes; and nothing is left in the temporary directory."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import http.client
import json
import os
import socket
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from smart_assets.api.body import BodyLimits, IncomingBody, read_body
from smart_assets.api.drain import DrainAfterRefusal
from smart_assets.assets.spool import Spool
from smart_assets.errors import (
    BodyTimeout,
    BodyTooLarge,
    ClientGone,
    DigestMismatch,
    InvalidParameter,
    MalformedBody,
    SmartAssetsError,
    UnsupportedMediaType,
)
from smart_assets.threads import Threads

MiB = 1024 * 1024
THREADS = Threads("test")
BOUNDARY = "----WebKitFormBoundaryx1"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
STATUS = {"body_too_large": 413, "body_timeout": 408, "malformed_body": 400}


@dataclass
class File:
    """What was read of one file."""

    content: bytes
    filename: str | None = None
    field: str = "file"


def content_of(spool: Spool) -> bytes:
    return spool.source if isinstance(spool.source, bytes) else spool.source.read_bytes()


def files_of(body: IncomingBody) -> list[File]:
    for file in body.files:
        content = content_of(file.spool)
        assert file.spool.size == len(content)
        assert file.spool.sha256 == hashlib.sha256(content).hexdigest()
    return [File(content_of(file.spool), file.filename, file.field) for file in body.files]


def request_of(
    chunks: Iterable[bytes], content_type: str | None, *, gone: bool = False, query: str = "", **headers: str
) -> Request:
    """A request as a server hands it over, its body in `chunks`; with `gone` the sender leaves after them."""

    def messages() -> Iterator[dict[str, Any]]:
        for chunk in chunks:
            yield {"type": "http.request", "body": chunk, "more_body": True}
        yield {"type": "http.disconnect"} if gone else {"type": "http.request", "body": b"", "more_body": False}
        raise AssertionError("a server would wait for ever here")

    coming = messages()

    async def receive() -> dict[str, Any]:
        return next(coming)

    if content_type is not None:
        headers["content-type"] = content_type
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/", "headers": raw}
    return Request({**scope, "query_string": query.encode()}, receive)


def files_in(directory: Path | str) -> list[Path]:
    return list(Path(directory).iterdir())


async def read(
    chunks: Iterable[bytes],
    content_type: str | None = "image/png",
    *,
    batch: bool = False,
    max_file_bytes: int = 8 * MiB,
    max_files: int = 3,
    gone: bool = False,
    query: str = "",
    **headers: str,
) -> tuple[list[File], dict[str, Any] | None]:
    with TemporaryDirectory() as directory:
        limits = BodyLimits(max_file_bytes, max_files, Path(directory), THREADS, timeout_seconds=10)
        request = request_of(chunks, content_type, gone=gone, query=query, **headers)
        try:
            async with read_body(request, limits, batch=batch) as body:
                return files_of(body), body.metadata
        finally:
            assert files_in(directory) == []


def part(name: str, content: bytes | str, filename: str | None = None, *lines: str) -> bytes:
    disposition = f'Content-Disposition: form-data; name="{name}"' + (f'; filename="{filename}"' if filename else "")
    head = "\r\n".join([f"--{BOUNDARY}", disposition, *lines, "", ""]).encode()
    return head + (content.encode() if isinstance(content, str) else content) + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def refused_at(error: SmartAssetsError) -> tuple[str | int, ...]:
    return error.errors[0].loc


# ── Forms ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_form_with_one_file_is_read() -> None:
    body = form(part("file", b"\x89PNG", "a.png", "Content-Type: image/png"))
    assert await read([body], FORM) == ([File(b"\x89PNG", "a.png")], None)


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
async def test_metadata_may_stand_before_or_after_the_file(*, first: bool) -> None:
    parts = [part("metadata", '{"album": 7}', None, "Content-Type: application/json"), part("file", b"x", "a.png")]
    files, metadata = await read([form(*parts[:: 1 if first else -1])], FORM)
    assert (files, metadata) == ([File(b"x", "a.png")], {"album": 7})


async def test_a_batch_keeps_its_files_in_order_empty_ones_too() -> None:
    body = form(part("files", b"1", "a.png"), part("files", b""), part("files", b"3", "c.png"))
    files, _ = await read([body], FORM, batch=True)
    assert files == [File(b"1", "a.png", "files"), File(b"", None, "files"), File(b"3", "c.png", "files")]


async def test_a_form_as_httpx_makes_it_is_read() -> None:
    request = httpx.Request("POST", "http://x/", files=[("files", ("é\"'.png", b"x")), ("files", ("b.png", b"y"))])
    files, _ = await read([request.read()], request.headers["content-type"], batch=True)
    assert files == [File(b"x", "é\"'.png", "files"), File(b"y", "b.png", "files")]


payloads = st.lists(
    st.sampled_from([b"\r\n", b"--", b"\r", b"-", BOUNDARY.encode(), f"\r\n--{BOUNDARY}".encode()[:-1]])
    | st.binary(max_size=20),
    max_size=8,
).map(b"".join)


@settings(max_examples=150, deadline=None)
@given(
    contents=st.lists(payloads, min_size=1, max_size=3),
    places=st.lists(st.integers(0, 10_000), max_size=12),
    with_metadata=st.booleans(),
)
async def test_any_files_arrive_however_the_form_is_cut(
    *, contents: list[bytes], places: list[int], with_metadata: bool
) -> None:
    contents = [content for content in contents if f"\r\n--{BOUNDARY}".encode() not in b"\r\n" + content] or [b"x"]
    parts = [part("files", content, f"{at}.png") for at, content in enumerate(contents)]
    if with_metadata:
        parts.insert(len(parts) // 2, part("metadata", '{"a": "b"}'))
    body = form(*parts)
    borders = [0, *sorted(place % (len(body) + 1) for place in places), len(body)]
    files, metadata = await read([body[start:end] for start, end in pairwise(borders)], FORM, batch=True)
    assert files == [File(content, f"{at}.png", "files") for at, content in enumerate(contents)]
    assert metadata == ({"a": "b"} if with_metadata else None)


async def test_a_large_file_in_a_form_arrives_from_chunks_of_any_size() -> None:
    content = os.urandom(3 * MiB + 17)
    body = form(part("file", content, "a.png"))
    for size in (1000, 64 * 1024 + 1, len(body)):
        files, _ = await read((body[at : at + size] for at in range(0, len(body), size)), FORM)
        assert files == [File(content, "a.png")]


@pytest.mark.parametrize(
    ("parts", "batch", "field", "message"),
    [
        ([], False, "file", "is missing"),
        ([part("metadata", "{}")], False, "file", "is missing"),
        ([part("metadata", "{}")], True, "files", "is missing"),
        ([part("file", b"x"), part("file", b"y")], False, "file", "1 file"),
        ([part("files", b"x")] * 4, True, "files", "3 files"),
        ([part("files", b"x")], False, "files", "not a field"),
        ([part("file", b"x")], True, "file", "not a field"),
        ([part("file", b"x"), part("caption", "hello")], False, "caption", "not a field"),
        ([part("file", b"", "a.png")], False, "file", "is empty"),
        ([part("metadata", "{}")] * 2, False, "metadata", "twice"),
        ([part("metadata", "{}", "a.json")], False, "metadata", "not a file"),
        ([part("metadata", "")], False, "metadata", "not JSON"),
        ([part("metadata", "{'a': 1}")], False, "metadata", "not JSON"),
        ([part("metadata", '{"a": NaN}')], False, "metadata", "not JSON"),
        ([part("metadata", '{"a": 1, "a": 2}')], False, "metadata", "twice"),
        ([part("metadata", "[" * 5000)], False, "metadata", "not JSON"),
        ([part("metadata", b'{"a": "\xff"}')], False, "metadata", "UTF-8"),
        ([part("metadata", "[1]")], False, "metadata", "object"),
        ([part("metadata", '{"a": [{"b": "x\\u0000"}]}')], False, "metadata", "NUL"),
        ([part("metadata", '{"a": {"x\\u0000": 1}}')], False, "metadata", "NUL"),
        ([part("metadata", '{"a": "\\ud800"}')], False, "metadata", "Unicode"),
        ([part("metadata", '{"a": 1e999}')], False, "metadata", "finite"),
        ([part("metadata", '{"a": ' + "[" * 33 + "]" * 33 + "}")], False, "metadata", "deep"),
        ([part("metadata", json.dumps({"a": "x" * 16_384}))], False, "metadata", "16384"),
    ],
)
async def test_a_form_with_wrong_fields_is_refused_by_the_field(
    *, parts: list[bytes], batch: bool, field: str, message: str
) -> None:
    with pytest.raises(InvalidParameter, match=message) as caught:
        await read([form(*parts)], FORM, batch=batch)
    assert refused_at(caught.value) == ("body", field)


GOOD = form(part("file", b"x" * 100, "a.png"))


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (GOOD, "multipart/form-data"),
        (GOOD, "multipart/form-data; boundary="),
        (GOOD, "multipart/form-data; boundary=other"),
        (GOOD, "multipart/form-data; boundary=" + "x" * 300),
        (GOOD.replace(b"\r\n", b"\n"), FORM),
        (GOOD.replace(b"Content-Disposition", b"X-Other"), FORM),
        (GOOD.replace(b'name="file"; ', b""), FORM),
        (GOOD.replace(b"form-data", b"attachment"), FORM),
        (GOOD.replace(b"Content-Disposition: ", b"Content Disposition "), FORM),
        (form(part("file", b"x", "a.png", *[f"X-{at}: y" for at in range(10)])), FORM),
        (form(part("file", b"x", "a" * 20_000)), FORM),
        (form(part("file", b"eA==", "a.png", "Content-Transfer-Encoding: base64")), FORM),
        (b"", FORM),
        (b"\r\n", FORM),
    ],
)
async def test_what_is_no_form_is_malformed(body: bytes, content_type: str) -> None:
    with pytest.raises(MalformedBody):
        await read([body], content_type)


async def test_a_form_that_ends_too_early_is_malformed_wherever_it_ends() -> None:
    for end in range(len(GOOD) - len("\r\n")):
        with pytest.raises(MalformedBody):
            await read([GOOD[:end]], FORM)


@settings(max_examples=100, deadline=None)
@given(
    chunks=st.lists(
        st.binary(max_size=60) | st.sampled_from([GOOD, GOOD[:60], part("metadata", "{}"), b"--", b"\r\n"])
    ),
    kind=st.sampled_from([FORM, "image/png", "application/json", "text/plain", "multipart/form-data; boundary=--", ""]),
    batch=st.booleans(),
    gone=st.booleans(),
)
async def test_garbage_gives_only_errors_of_ours(*, chunks: list[bytes], kind: str, batch: bool, gone: bool) -> None:
    with suppress(SmartAssetsError):
        await read(chunks, kind, batch=batch, gone=gone, max_file_bytes=50)


# ── Raw bytes ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["image/png", "image/x-anything", "IMAGE/JPEG; q=1", "application/octet-stream"])
@pytest.mark.parametrize("batch", [False, True], ids=["one", "batch"])
async def test_raw_bytes_are_one_file_whatever_they_are_called(*, kind: str, batch: bool) -> None:
    assert await read([b"ab", b"c"], kind, batch=batch) == ([File(b"abc")], None)


async def test_the_filename_comes_from_the_header_or_else_from_the_query() -> None:
    query = "filename=q%C3%A9.png"
    assert (await read([b"x"], query=query))[0] == [File(b"x", "qé.png")]
    disposition = "attachment; filename=\"plain.png\"; filename*=UTF-8''%e2%82%ac.png"
    assert (await read([b"x"], query=query, content_disposition=disposition))[0] == [File(b"x", "€.png")]
    as_utf_8 = 'attachment; filename="写.png"'.encode().decode("latin-1")
    assert (await read([b"x"], content_disposition=as_utf_8))[0] == [File(b"x", "写.png")]


async def test_an_empty_body_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="is empty"):
        await read([])


def digest_of(content: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm[:3]}-{algorithm[3:]}=:{base64.b64encode(hashlib.new(algorithm, content).digest()).decode()}:"


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_the_bytes_are_held_against_their_content_digest(algorithm: str) -> None:
    content = os.urandom(2 * MiB)
    chunks = [content[:MiB], content[MiB:]]
    assert (await read(chunks, content_digest=digest_of(content, algorithm)))[0] == [File(content)]
    with pytest.raises(DigestMismatch):
        await read(chunks, content_digest=digest_of(content[1:], algorithm))
    with pytest.raises(DigestMismatch):
        await read([GOOD], FORM, content_digest=digest_of(b"x" * 100, algorithm))
    with pytest.raises(MalformedBody):
        await read(chunks, content_digest=algorithm)


# ── JSON ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def with_data_url(content: bytes, **members: Any) -> bytes:
    return json.dumps({"data_url": "data:image/png;base64," + base64.b64encode(content).decode(), **members}).encode()


async def test_a_data_url_with_filename_and_metadata_is_read() -> None:
    content = os.urandom(3 * MiB)
    body = with_data_url(content, filename="a/b.png", metadata={"data_url": "mine"})
    chunks = [body[at : at + 65_537] for at in range(0, len(body), 65_537)]
    files, metadata = await read(chunks, "application/json; charset=utf-8")
    assert (files, metadata) == ([File(content, "a/b.png", "data_url")], {"data_url": "mine"})


async def test_filename_and_metadata_of_a_data_url_may_be_null() -> None:
    body = with_data_url(b"x", filename=None, metadata=None)
    assert await read([body], "application/json", batch=True) == ([File(b"x", None, "data_url")], None)


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        (b"{}", "data_url", "missing"),
        (b'{"source_url": 5}', "source_url", "string"),
        (b'{"source_url": null}', "source_url", "string"),
        (with_data_url(b"x", source_url="https://example.org/a.png"), "source_url", "beside"),
        (with_data_url(b"x", caption="hello"), "caption", "not a member"),
        (with_data_url(b"x", **{"\ud800": 1}), "?", "not a member"),
        (with_data_url(b""), "data_url", "is empty"),
        (with_data_url(b"x", filename=5), "filename", "string"),
        (with_data_url(b"x", metadata=[1]), "metadata", "object"),
        (with_data_url(b"x", metadata={"a": "\0"}), "metadata", "NUL"),
        (with_data_url(b"x", metadata={"a": "x" * 16_384}), "metadata", "16384"),
    ],
)
async def test_json_with_wrong_members_is_refused_by_the_member(body: bytes, field: str, message: str) -> None:
    with pytest.raises(InvalidParameter, match=message) as caught:
        await read([body], "application/json")
    assert refused_at(caught.value) == ("body", field)
    str(caught.value).encode()


# ── What is not taken ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [None, "", "text/plain", "application/x-www-form-urlencoded", "multipart/mixed"])
async def test_another_content_type_is_refused_and_the_right_ones_are_named(kind: str | None) -> None:
    with pytest.raises(UnsupportedMediaType, match=r"multipart/form-data.*image/\*.*application/json"):
        await read([b"x"], kind)


async def test_an_encoded_body_is_refused() -> None:
    assert (await read([b"x"], content_encoding="identity"))[0] == [File(b"x")]
    with pytest.raises(UnsupportedMediaType, match="gzip"):
        await read([b"x"], content_encoding="gzip")


def too_long_for(limit: int) -> list[tuple[bytes, str]]:
    content = os.urandom(limit + 1)
    return [(content, "image/png"), (form(part("file", content)), FORM), (with_data_url(content), "application/json")]


@pytest.mark.parametrize("limit", [100, 2 * MiB])
async def test_a_file_may_have_as_many_bytes_as_allowed_and_not_one_more(limit: int) -> None:
    for body, kind in too_long_for(limit):
        chunks = [body[at : at + 65_536] for at in range(0, len(body), 65_536)]
        assert len((await read(chunks, kind, max_file_bytes=limit + 1))[0][0].content) == limit + 1
        with pytest.raises(BodyTooLarge, match=str(limit)):
            await read(chunks, kind, max_file_bytes=limit)


async def test_a_batch_is_held_to_the_limit_of_each_file() -> None:
    body = form(part("files", bytes(60)), part("files", bytes(101)))
    with pytest.raises(BodyTooLarge, match="100"):
        await read([body], FORM, batch=True, max_file_bytes=100)


async def test_what_is_no_file_counts_too() -> None:
    endless = (b"x" * 65_536 for _ in range(100))
    with pytest.raises(BodyTooLarge):
        await read([GOOD, *endless], FORM, max_file_bytes=1000)


def never() -> Iterator[bytes]:
    raise AssertionError("the body was read")
    yield b""


@pytest.mark.parametrize(
    ("kind", "length"), [("image/png", 1001), (FORM, 10 * MiB), ("application/json", 10 * MiB), ("image/png", 10**30)]
)
async def test_a_content_length_past_the_limit_is_refused_before_a_byte_is_read(kind: str, length: int) -> None:
    with pytest.raises(BodyTooLarge):
        await read(never(), kind, max_file_bytes=1000, content_length=str(length))


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data"])
async def test_a_wrong_content_type_is_refused_before_a_byte_is_read(kind: str) -> None:
    with pytest.raises(SmartAssetsError):
        await read(never(), kind)


async def test_a_content_length_that_lies_helps_nobody() -> None:
    for length in ("5", "-1", "many"):
        with pytest.raises(BodyTooLarge):
            await read([bytes(2000)], max_file_bytes=1000, content_length=length)


@pytest.mark.parametrize(
    ("body", "kind"),
    [(bytes(3 * MiB), "image/png"), (GOOD[:80], FORM), (with_data_url(bytes(3 * MiB))[:-5], "application/json")],
)
async def test_a_sender_who_goes_away_leaves_nothing(body: bytes, kind: str) -> None:
    with pytest.raises(ClientGone):
        await read([body[:MiB], body[MiB:]], kind, gone=True)


async def test_files_are_gone_after_an_error_of_the_one_who_uses_them(tmp_path: Path) -> None:
    limits = BodyLimits(8 * MiB, 3, tmp_path, THREADS, timeout_seconds=10)

    async def fail() -> None:
        async with read_body(request_of([bytes(3 * MiB)], "image/png"), limits, batch=False):
            assert len(files_in(tmp_path)) == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("turns", range(6))
async def test_files_are_gone_after_a_cancellation(tmp_path: Path, turns: int) -> None:
    spilled = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if files_in(tmp_path):
            spilled.set()
        return {"type": "http.request", "body": bytes(MiB), "more_body": True}

    request = Request({**request_of([], "image/png").scope}, receive)

    async def upload() -> None:
        async with read_body(request, BodyLimits(1 << 40, 1, tmp_path, THREADS, 10), batch=False):
            pass

    task = asyncio.create_task(upload())
    await spilled.wait()
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert files_in(tmp_path) == []


async def test_a_refused_file_is_gone_while_the_rest_of_its_body_is_still_coming(tmp_path: Path) -> None:
    seen = []

    def chunks() -> Iterator[bytes]:
        for _ in range(6):
            seen.append(len(files_in(tmp_path)))
            yield bytes(MiB)

    sent = []

    async def send(message: dict[str, Any]) -> None:
        sent.append((message.get("status"), message.get("body"), len(seen)))

    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        limits = BodyLimits(3 * MiB, 1, tmp_path, THREADS, timeout_seconds=10)
        with pytest.raises(BodyTooLarge):
            async with read_body(Request(scope, receive), limits, batch=False):
                pass
        await send({"type": "http.response.start", "status": 413})
        await send({"type": "http.response.body", "body": b"why"})

    request = request_of(chunks(), "image/png", connection="close")
    await DrainAfterRefusal(refuse, 10)(request.scope, request.receive, send)  # type: ignore[arg-type]
    assert seen == [0, 0, 1, 1, 0, 0]
    assert sent == [(413, None, 4), (None, b"why", 4), (None, None, 6)], "the answer comes before the rest is read"


SIZE = 50 * MiB


def many(chunk: bytes, size: int) -> Iterator[bytes]:
    for _ in range(size // len(chunk)):
        yield bytes(bytearray(chunk))


@pytest.mark.parametrize(
    ("head", "chunk", "size", "tail", "kind"),
    [
        (b"", bytes(65_536), SIZE, b"", "image/png"),
        (part("file", b"")[:-2], bytes(65_536), SIZE, b"\r\n" + form(), FORM),
        (b'{"data_url":"data:image/png;base64,', b"A" * 65_536, SIZE // 3 * 4, b'"}', "application/json"),
    ],
    ids=["raw", "form", "data URL"],
)
async def test_a_body_of_50_mib_takes_less_than_8_mib_of_memory(
    tmp_path: Path, head: bytes, chunk: bytes, size: int, tail: bytes, kind: str
) -> None:
    limits = BodyLimits(SIZE, 1, tmp_path, THREADS, timeout_seconds=60)

    def chunks() -> Iterator[bytes]:
        yield head
        yield from many(chunk, size)
        yield tail

    tracemalloc.start()
    try:
        async with read_body(request_of(chunks(), kind), limits, batch=False) as body:
            assert body.files[0].spool.size > SIZE - 100_000
            assert tracemalloc.get_traced_memory()[1] < 8 * MiB
    finally:
        tracemalloc.stop()


async def test_a_batch_of_small_files_does_not_fill_the_memory(tmp_path: Path) -> None:
    async def kept_in_memory() -> int:
        parts = [part("files", bytes(MiB)) for _ in range(12)]
        limits = BodyLimits(MiB, 12, tmp_path, THREADS, timeout_seconds=10)
        async with read_body(request_of([*parts, form()], FORM), limits, batch=True) as body:
            assert all(content_of(file.spool) == bytes(MiB) for file in body.files)
            return sum(isinstance(file.spool.source, bytes) for file in body.files)

    assert await kept_in_memory() == 4


# ── Through a real server ───────────────────────────────────────────────────────────────────────────────────────────


class Served:
    """A server with one route that reads a body of at most 1 MiB; `outcomes` are what came of them."""

    def __init__(self, directory: Path, http_implementation: Any, timeout_seconds: float) -> None:
        self.outcomes: list[type[Exception] | int] = []
        self.directory = directory
        limits = BodyLimits(MiB, 3, directory, THREADS, timeout_seconds)

        async def upload(request: Request) -> Response:
            try:
                async with read_body(request, limits, batch=False) as body:
                    self.outcomes.append(body.files[0].spool.size)
                    return JSONResponse({"size": body.files[0].spool.size})
            except SmartAssetsError as error:
                self.outcomes.append(type(error))
                return JSONResponse({"code": error.code}, STATUS.get(error.code, 422))

        app = DrainAfterRefusal(Starlette(routes=[Route("/", upload, methods=["POST"])]), 10)
        config = uvicorn.Config(app, port=0, http=http_implementation, lifespan="off", log_level="error")
        self.server = uvicorn.Server(config)

    @property
    def port(self) -> int:
        port: int = self.server.servers[0].sockets[0].getsockname()[1]
        return port

    def wait_for_outcome(self) -> type[Exception] | int:
        until(lambda: bool(self.outcomes))
        until(lambda: not files_in(self.directory))
        return self.outcomes[0]


def until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def serving(directory: Path, implementation: str = "httptools", *, timeout_seconds: float = 5) -> Iterator[Served]:
    served = Served(directory, implementation, timeout_seconds)
    thread = threading.Thread(target=served.server.run)
    thread.start()
    try:
        until(lambda: served.server.started)
        yield served
    finally:
        served.server.should_exit = True
        thread.join()


def head_of(kind: str = "image/png", *lines: str) -> bytes:
    return "\r\n".join(["POST / HTTP/1.1", "Host: localhost", f"Content-Type: {kind}", *lines, "", ""]).encode()


def status_of(connection: socket.socket) -> int:
    connection.settimeout(10)
    return int(connection.recv(65_536).split(b" ", 2)[1])


IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["httptools", "h11"])


@IMPLEMENTATIONS
@pytest.mark.parametrize("connection", ["keep-alive", "close"])
@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "with its length"])
def test_a_client_that_sends_20_mb_to_the_end_still_sees_why_it_was_refused(
    *, tmp_path: Path, implementation: str, connection: str, chunked: bool
) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            yield bytes(1_000_000)

    with serving(tmp_path, implementation) as served:
        client = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
        headers = {"Content-Type": "image/png", "Connection": connection}
        if not chunked:
            headers["Content-Length"] = "20000000"
        client.request("POST", "/", chunks(), headers, encode_chunked=chunked)
        response = client.getresponse()
        assert (response.status, json.load(response)) == (413, {"code": "body_too_large"})
        if connection == "keep-alive":
            client.request("POST", "/", b"again", {"Content-Type": "image/png"})
            assert json.load(client.getresponse()) == {"size": 5}
        client.close()
        assert served.wait_for_outcome() is BodyTooLarge


@IMPLEMENTATIONS
def test_a_client_that_waits_for_leave_to_send_is_refused_without_sending(tmp_path: Path, implementation: str) -> None:
    lines = ["Content-Length: 20000000", "Expect: 100-continue", "Connection: close"]
    with serving(tmp_path, implementation) as served, socket.create_connection(("127.0.0.1", served.port)) as client:
        client.sendall(head_of("image/png", *lines))
        assert status_of(client) == 413


@pytest.mark.parametrize("sent", [0, 700_000], ids=["at once", "halfway"])
def test_a_client_that_stalls_is_answered_and_leaves_nothing(tmp_path: Path, sent: int) -> None:
    with (
        serving(tmp_path, timeout_seconds=0.3) as served,
        socket.create_connection(("127.0.0.1", served.port)) as client,
    ):
        client.sendall(head_of("image/png", "Content-Length: 1000000") + bytes(sent))
        assert status_of(client) == 408
        assert served.wait_for_outcome() is BodyTimeout


def test_a_client_that_drips_is_answered_and_leaves_nothing(tmp_path: Path) -> None:
    with (
        serving(tmp_path, timeout_seconds=0.3) as served,
        socket.create_connection(("127.0.0.1", served.port)) as client,
    ):
        client.sendall(head_of("image/png", "Content-Length: 1000000"))
        for _ in range(500):
            if not served.outcomes:
                client.sendall(b"x")
                time.sleep(0.02)
        assert served.outcomes == [BodyTimeout]
        assert status_of(client) == 408
        assert served.wait_for_outcome() is BodyTimeout


def test_a_client_that_is_slow_but_not_too_slow_is_taken(tmp_path: Path) -> None:
    with (
        serving(tmp_path, timeout_seconds=1) as served,
        socket.create_connection(("127.0.0.1", served.port)) as client,
    ):
        client.sendall(head_of("image/png", "Content-Length: 12000"))
        for _ in range(12):
            client.sendall(bytes(1000))
            time.sleep(0.1)
        assert status_of(client) == 200


@IMPLEMENTATIONS
def test_a_client_that_goes_away_halfway_leaves_nothing(tmp_path: Path, implementation: str) -> None:
    with serving(tmp_path, implementation) as served:
        with socket.create_connection(("127.0.0.1", served.port)) as client:
            client.sendall(head_of("image/png", "Content-Length: 1000000") + bytes(700_000))
        assert served.wait_for_outcome() is ClientGone


def test_a_form_longer_than_its_content_length_is_cut_and_malformed(tmp_path: Path) -> None:
    with serving(tmp_path) as served, socket.create_connection(("127.0.0.1", served.port)) as client:
        client.sendall(head_of(FORM, f"Content-Length: {len(GOOD) - 20}", "Connection: close") + GOOD)
        assert status_of(client) == 400


async def streamed(content: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(content), 100_000):
        yield content[at : at + 100_000]


async def test_a_chunked_body_without_a_length_is_read_and_counted(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.port}") as client:
            headers = {"Content-Type": "image/png"}
            taken = await client.post("/", content=streamed(bytes(MiB)), headers=headers)
            refused = await client.post("/", content=streamed(bytes(MiB + 1)), headers=headers)
    assert (taken.status_code, taken.json()) == (200, {"size": MiB})
    assert refused.status_code == 413
