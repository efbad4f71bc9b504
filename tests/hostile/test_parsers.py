"""Whatever reads what callers send: any input is an answer or one of our errors, the same however it is cut."""

from __future__ import annotations

import asyncio
import string
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from smart_assets.access import signing
from smart_assets.access.api_keys import ApiKeys
from smart_assets.access.signing import UrlSigner
from smart_assets.api.conditional import is_not_modified, parse_range
from smart_assets.api.multipart import UploadForm
from smart_assets.api.presenting import read_cursor, write_cursor
from smart_assets.api.routers.assets import _versions
from smart_assets.api.strict_json import parse_json
from smart_assets.catalogue.database import Database
from smart_assets.errors import (
    InvalidParameter,
    MalformedBody,
    RangeNotSatisfiable,
    SignatureInvalid,
    SignatureRequired,
    SmartAssetsError,
    Unauthorized,
)
from smart_assets.formats import sniff
from smart_assets.imaging.info import Limits
from smart_assets.imaging.probe import _READ_INFO
from smart_assets.imaging.strip import strip_metadata
from smart_assets.imaging.structure.reader import Reader
from smart_assets.settings import Settings
from tests import images
from tests.hostile.counting import tried

LIMITS = Limits.from_settings(Settings(_env_file=None))

# ── Forms ───────────────────────────────────────────────────────────────────────────────────────────────────────────

BOUNDARY = b"frontier"
FRAGMENTS = [
    b"--frontier",
    b"--frontier--",
    b"--",
    b"\r\n",
    b"\r",
    b"\n",
    b"-",
    b"frontier",
    b"\r\n--frontier\r\n",
    b"\r\n--frontie",
    b'Content-Disposition: form-data; name="files"; filename="a.png"\r\n',
    b'Content-Disposition: form-data; name="metadata"\r\n',
    b"content-disposition:form-data;name=files;filename*=UTF-8''%ff%00\"\r\n",
    b"Content-Type: multipart/mixed; boundary=frontier\r\n",
    b"Content-Transfer-Encoding: base64\r\n",
    b"\r\n\r\n",
    b'{"a": 1}',
    b": ",
    b"\0",
    b"\xff\xfe",
]
soup = st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=8), max_size=30).map(b"".join).filter(len)


def read_form(chunks: list[bytes]) -> tuple[object, ...]:
    """What a form holds, or why it is refused."""
    form = UploadForm(BOUNDARY, file_field="files", max_files=3)
    files: dict[int, bytes] = {}
    try:
        for chunk in chunks:
            for index, piece in form.feed(chunk):
                files[index] = files.get(index, b"") + bytes(piece)
        form.close()
    except (MalformedBody, InvalidParameter) as error:
        return (type(error),)
    return files, form.filenames, form.metadata


def cut(data: bytes, places: list[float]) -> list[bytes]:
    edges = sorted({0, len(data), *(int(place * len(data)) for place in places)})
    return [data[begin:end] for begin, end in pairwise(edges)]


cuts = st.lists(st.floats(0, 1), max_size=8)


@settings(max_examples=400)
@given(body=soup, places=cuts)
def test_a_form_is_the_same_however_it_is_cut_and_its_errors_are_ours(body: bytes, places: list[float]) -> None:
    with tried("forms"):
        whole = read_form([body])
        assert read_form(cut(body, places)) == whole
        assert read_form([bytes([byte]) for byte in body]) == whole


@settings(max_examples=300)
@given(content=soup, places=cuts)
def test_what_only_looks_like_a_boundary_is_content(content: bytes, places: list[float]) -> None:
    content = content.replace(b"--" + BOUNDARY, b"--Frontier")
    head = b'--frontier\r\nContent-Disposition: form-data; name="files"\r\n\r\n'
    with tried("forms"):
        found = read_form(cut(head + content + b"\r\n--frontier--\r\n", places))
        assert found == ({0: content}, [None], None)


@given(
    fields=st.lists(st.tuples(st.text(string.ascii_letters + "-", min_size=1, max_size=20), st.binary(max_size=30))),
    places=cuts,
)
def test_other_fields_of_a_part_s_head_do_not_matter_unless_they_break_it(
    fields: list[tuple[str, bytes]], places: list[float]
) -> None:
    junk = b"".join(name.encode() + b": " + value + b"\r\n" for name, value in fields)
    assume(b"\r\n\r\n" not in junk)  # that ends the head
    head = b'--frontier\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n' + junk
    with tried("forms"):
        found = read_form(cut(head + b"\r\nabc\r\n--frontier--\r\n", places))
        assert found in (({0: b"abc"}, ["a"], None), (MalformedBody,), (InvalidParameter,))


# ── Structure ───────────────────────────────────────────────────────────────────────────────────────────────────────

SMALL = [
    images.jpeg(24, 16, quality=30, progressive=True, metadata=True, icc=True),
    images.png(8, 6, metadata=True),
    images.animated_gif(8, 6),
    images.animated_webp(8, 6, metadata=True),
    images.avif(16, 12, mode="RGBA", metadata=True),
    images.grid_avif(128, 64),
]


@settings(max_examples=400)
@given(
    image=st.sampled_from(SMALL),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 4), st.binary(max_size=6)), max_size=8),
)
def test_no_walk_through_a_damaged_image_is_longer_than_the_image(
    image: bytes, edits: list[tuple[float, int, bytes]]
) -> None:
    """Counted by reads: an endless one would stand still, and read on."""
    damaged = bytearray(image)
    for where, removed, inserted in edits:
        at = int(where * len(damaged))
        damaged[at : at + removed] = inserted
    image_format = sniff(bytes(damaged))
    if image_format is None:
        return
    reader = Reader(bytes(damaged), len(damaged))
    allowed = reader._reads_left
    with tried("walks through damaged images"):
        try:
            info = _READ_INFO[image_format](reader, LIMITS)
            strip_metadata(bytes(damaged), info)
        except SmartAssetsError:
            pass
        assert allowed - reader._reads_left <= 100 + len(damaged)


# ── Signatures ──────────────────────────────────────────────────────────────────────────────────────────────────────

KEY = "private/2026/11/20/019aa0c2-0000-7000-8000-000000000000.original.jpg"
FIRST, SECOND = "first-secret-of-more-than-32-characters", "second-secret-of-more-than-32-characters"
NOW = 1_795_000_000.0


def signed(*secrets: str) -> tuple[UrlSigner, dict[str, str]]:
    signer = UrlSigner(secrets, clock=lambda: NOW)
    query = signer.sign(KEY, 3600).query
    return signer, dict(part.split("=", 1) for part in query.split("&"))


def refused(signer: UrlSigner, key: str, query: dict[str, str]) -> bool:
    with tried("signatures that were changed"):
        try:
            signer.verify(key, query)
        except (SignatureInvalid, SignatureRequired):
            return True
        return False


def test_a_signature_with_any_bit_flipped_is_refused() -> None:
    signer, query = signed(FIRST)
    assert signer.verify(KEY, query) > 0
    for name, value in query.items():
        for at in range(len(value)):
            for bit in range(8):
                flipped = value[:at] + chr(ord(value[at]) ^ 1 << bit) + value[at + 1 :]
                assert refused(signer, KEY, query | {name: flipped}), (name, at, bit)
    for at in range(len(KEY)):
        for bit in range(7):
            assert refused(signer, KEY[:at] + chr(ord(KEY[at]) ^ 1 << bit) + KEY[at + 1 :], query), (at, bit)


def test_no_part_of_a_signature_stands_in_for_another() -> None:
    signer, query = signed(FIRST, SECOND)
    _, foreign = signed(SECOND)
    exp, kid, sig = query["exp"], query["kid"], query["sig"]
    assert signer.verify(KEY, foreign) > 0, "both keys verify"
    for wrong in (
        {"exp": exp, "kid": foreign["kid"], "sig": sig},
        {"exp": exp, "kid": kid, "sig": foreign["sig"]},
        {"exp": kid, "kid": exp, "sig": sig},
        {"exp": sig, "kid": kid, "sig": exp},
        {"exp": exp, "kid": f"{kid}\n{exp}", "sig": sig},
        {"exp": f"{exp}\n{KEY}", "kid": kid, "sig": sig},
        {"exp": exp, "kid": "", "sig": sig},
        {"exp": "", "kid": kid, "sig": sig},
        {"exp": exp, "sig": sig},
        {"exp": exp, "kid": kid},
        {"exp": f"+{exp}", "kid": kid, "sig": sig},
        {"exp": f"{exp}.0", "kid": kid, "sig": sig},
        {"exp": "9" * 12, "kid": kid, "sig": sig},
        {"exp": "inf", "kid": kid, "sig": sig},
        {"exp": exp, "kid": kid, "sig": f"{sig}="},
        {"exp": exp, "kid": kid.upper(), "sig": sig},
    ):
        assert refused(signer, KEY, wrong), wrong
    for other in (KEY + "\n", "/" + KEY, KEY.replace("original", "100"), f"{exp}\n{KEY}", KEY.upper()):
        assert refused(signer, other, query), other
    stranger, _ = signed(SECOND + "x")
    assert refused(stranger, KEY, query)


TICKETS = "smart-assets/upload-ticket/1"
words = st.sampled_from([KEY, "upload/019aa0c2", "complete/019aa0c2", "", "\n", TICKETS]) | st.text(max_size=40)


@given(secret=st.sampled_from([FIRST, SECOND]), of=words, at=words, purpose=words, end=st.integers(1, 10**9))
def test_a_signature_is_good_for_its_own_purpose_and_words_only(
    secret: str, of: str, at: str, purpose: str, end: int
) -> None:
    delivery = UrlSigner([FIRST], clock=lambda: NOW)
    tickets, others = delivery.for_purpose(TICKETS), UrlSigner([secret], clock=lambda: NOW).for_purpose(purpose)
    assert set(tickets._keys.values()).isdisjoint(delivery._keys.values()), "not even the same secrets"
    ends = datetime.fromtimestamp(NOW + end, tz=UTC)
    query = dict(part.split("=", 1) for part in tickets.sign_until(of, ends).query.split("&"))
    assert tickets.verify(of, query) == end
    assert refused(delivery, of, query)
    assert at == of or refused(tickets, at, query)
    assert (secret, purpose) == (FIRST, TICKETS) or refused(others, of, query)
    for shifted in (end + 1, end - 1, 10 * end):
        assert refused(tickets, of, query | {"exp": str(int(NOW) + shifted)})
    delivered = dict(part.split("=", 1) for part in delivery.sign_until(of, ends).query.split("&"))
    assert delivery.verify(of, delivered) == end
    assert refused(tickets, of, delivered)


def test_nobody_signs_with_the_secret_of_an_unknown_key() -> None:
    signer, query = signed(FIRST)
    forged = signing._signature(b"", signing._DELIVERY, "unknown", KEY, query["exp"])
    assert refused(signer, KEY, {"exp": query["exp"], "kid": "unknown", "sig": forged})


# ── Keys and cursors ────────────────────────────────────────────────────────────────────────────────────────────────

SECRET = "a-key-of-more-than-sixteen-characters"


async def _no_keys(_question: object) -> None:
    """A catalogue in which there are none."""


CATALOGUE = cast("Database", SimpleNamespace(read=_no_keys))
KEYS = ApiKeys(Settings(_env_file=None, api_keys=(SecretStr(SECRET),)), CATALOGUE)
near = st.sampled_from([SECRET, SECRET.upper(), SECRET[:-1], f"Bearer {SECRET}", "Bearer", " ", "\t", ",", "\0", "é"])


@given(st.lists(near | st.text(max_size=5), max_size=4).map("".join))
def test_only_the_key_itself_opens(header: str) -> None:
    with tried("keys"):
        scheme, _, given_key = header.partition(" ")
        right = scheme.lower() == "bearer" and given_key.strip() == SECRET
        if right:
            assert asyncio.run(KEYS.authenticate(header)).owner
        else:
            with pytest.raises(Unauthorized):
                asyncio.run(KEYS.authenticate(header))


@given(st.uuids())
def test_a_cursor_is_read_as_it_was_written(after: UUID) -> None:
    with tried("cursors"):
        assert read_cursor(write_cursor(after)) == after


@given(st.text(max_size=40) | st.text(string.ascii_letters + string.digits + "-_=+/", min_size=20, max_size=26))
def test_any_other_cursor_is_a_place_or_refused(text: str) -> None:
    with tried("cursors"):
        try:
            after = read_cursor(text)
        except InvalidParameter:
            return
        assert read_cursor(write_cursor(after)) == after


# ── Conditions and ranges ───────────────────────────────────────────────────────────────────────────────────────────

digits = st.integers(0, 10**20).map(str) | st.sampled_from(["", "0", "1", "99", "٣", "-1", "+1", "0x1", " 1"])


@settings(max_examples=400)
@given(
    header=st.none()
    | st.text(max_size=30)
    | st.tuples(st.sampled_from(["bytes=", "Bytes= ", "bytes =", "bytes", "lines="]), digits, digits).map(
        lambda parts: f"{parts[0]}{parts[1]}-{parts[2]}"
    ),
    size=st.integers(0, 200) | st.integers(0, 10**12),
)
def test_a_range_lies_within_or_is_refused_or_passed_over(header: str | None, size: int) -> None:
    with tried("ranges and conditions"):
        try:
            found = parse_range(header, size)
        except RangeNotSatisfiable:
            return
        if found is not None:
            start, end = found
            assert 0 <= start < end <= size


MODIFIED = datetime(2026, 11, 20, 10, tzinfo=UTC)
tags = st.lists(
    st.sampled_from(['"abc"', 'W/"abc"', '"abd"', "*", '"abc', "abc", "", " ", '""', "W/"]) | st.text(max_size=6),
    max_size=4,
)


@given(
    tags=st.none() | tags.map(",".join),
    since=st.none() | st.text(max_size=40) | st.datetimes().map(lambda moment: f"{moment:%a, %d %b %Y %H:%M:%S} GMT"),
)
def test_a_copy_is_good_only_where_its_tag_is_named_or_it_is_new_enough(tags: str | None, since: str | None) -> None:
    headers = {
        name: value for name, value in (("if-none-match", tags), ("if-modified-since", since)) if value is not None
    }
    with tried("ranges and conditions"):
        good = is_not_modified(headers, "abc", MODIFIED)
        if tags is not None:
            named = {tag.strip().removeprefix("W/") for tag in tags.split(",")}
            assert good == (tags.strip() == "*" or '"abc"' in named)
        elif since is None:
            assert not good


@given(
    st.none()
    | st.lists(st.sampled_from(['"v1"', '"v22"', 'W/"v1"', "*", '"v"', "v1", '"v٣"', '"v-1"']), max_size=4).map(
        ",".join
    )
    | st.text(max_size=20)
)
def test_a_change_is_bound_to_the_versions_named_and_no_others(header: str | None) -> None:
    with tried("ranges and conditions"):
        versions = _versions(header)
        if header is None or header.strip() == "*":
            assert versions is None
        else:
            assert versions is not None
            named = {part.strip() for part in header.split(",")}
            assert versions >= {number for number in (1, 22) if f'"v{number}"' in named}
            assert all(f'"v{version}"' in named for version in versions)


# ── JSON ────────────────────────────────────────────────────────────────────────────────────────────────────────────

json_soup = st.lists(
    st.sampled_from(
        [b"{", b"}", b"[", b"]", b'"', b"\\u", b"d800", b":", b",", b"1e999", b"NaN", b"-", b"null", b"9" * 50]
    )
    | st.binary(max_size=4),
    max_size=30,
).map(b"".join)


@given(json_soup)
def test_any_text_is_json_or_said_to_be_none(text: bytes) -> None:
    with tried("JSON texts"):
        answer_or(ValueError, lambda: parse_json(text))


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a":' * 100_000, b"9" * 100_000, b"[" * 900 + b"]" * 900])
def test_json_made_to_exhaust_the_parser_is_said_to_be_none(text: bytes) -> None:
    with tried("JSON texts"):
        answer_or(ValueError, lambda: parse_json(text))


def answer_or(error: type[Exception], call: Callable[[], Any]) -> None:
    with suppress(error):
        call()
