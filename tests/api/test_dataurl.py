"""The scanner finds in any JSON what a JSON parser would, however the text is cut."""

from __future__ import annotations

import base64
import binascii
import json
import re
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smart_assets.api.dataurl import MAX_REST_BYTES, DataUrlScanner
from smart_assets.errors import BodyTooLarge, InvalidParameter, MalformedBody, SmartAssetsError

HEAD = "data:image/png;base64,"


def cut(text: bytes, places: list[int]) -> list[bytes]:
    borders = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(borders)]


def scan(text: bytes, places: list[int] | None = None) -> tuple[bytes, dict[str, Any]]:
    scanner = DataUrlScanner()
    image = b"".join([scanner.feed(chunk) for chunk in cut(text, places or [])])
    return image, scanner.close()


def url(content: bytes) -> str:
    return HEAD + base64.b64encode(content).decode()


keys = st.sampled_from(["data_url", "metadata", "filename", 'quo"te', "back\\", "data_url\\", "{", "é", ""])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | keys | st.just(url(b"inner")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)
cuts = st.lists(st.integers(0, 10_000), max_size=12)


def escaped(text: str, choices: list[int]) -> str:
    """A JSON string of `text`, some of its characters escaped as JSON allows."""

    def written(char: str, choice: int) -> str:
        slash = "\\/" if char == "/" else char
        return [char, slash, f"\\u{ord(char):04x}", f"\\u{ord(char):04X}"][choice]

    return '"' + "".join(written(char, choices[at % len(choices)]) for at, char in enumerate(text)) + '"'


@settings(max_examples=150, deadline=None)
@given(
    members=st.dictionaries(keys.filter(lambda key: key != "data_url"), values, max_size=4),
    content=st.binary(max_size=80),
    place=st.integers(0, 4),
    escapes=st.lists(st.integers(0, 3), min_size=1, max_size=5),
    places=cuts,
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 1, "\t"]),
)
def test_image_and_members_are_those_of_the_json(
    *,
    members: dict[str, Any],
    content: bytes,
    place: int,
    escapes: list[int],
    places: list[int],
    ascii_only: bool,
    indent: int | str | None,
) -> None:
    pairs = [(json.dumps(key), json.dumps(members[key], ensure_ascii=ascii_only, indent=indent)) for key in members]
    pairs.insert(place, (escaped("data_url", escapes), escaped(url(content), escapes)))
    text = ("{" + " ,\n".join(f"{key} : {value}" for key, value in pairs) + "}").encode()
    assert json.loads(text)["data_url"] == url(content)
    assert scan(text, places) == (content, members)


alphabet = st.sampled_from(
    [*'{}[]:,"\\u002f/n=AQ ', "data_url", '"data_url"', f'"{HEAD}', "\\u0022", "QUJD", '":"', "1"]
)


def the_same_by_a_parser(text: str) -> bytes | None:
    """The image in the JSON `text`, None where there is none that may be taken."""
    try:
        value = json.loads(text)
        head, _, encoded = value["data_url"].partition(",")
        if not re.fullmatch("data:image/[\\w.+-]+(;[^;,]*)*;base64", head, re.ASCII):
            return None
        return binascii.a2b_base64(encoded, strict_mode=True) if len(encoded) % 4 == 0 else None
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


@settings(max_examples=300, deadline=None)
@given(st.lists(alphabet, max_size=12).map("".join), cuts)
@example('{"data_url":"' + HEAD + 'QUJD"', [])
@example('["data_url":"' + HEAD + 'QUJD"]', [])
@example('{"data_url":["data_url","' + HEAD + 'QUJD"]}', [])
@example('{"a":"data_url","b":"' + HEAD + 'QUJD"}', [])
@example('{"data_url":"' + HEAD + 'QUJD"}', [15])
def test_no_text_is_read_otherwise_than_by_a_json_parser(middle: str, places: list[int]) -> None:
    for text in (middle, '{"data_url":"' + HEAD + middle + '"}'):
        scanner = DataUrlScanner()
        try:
            image = b"".join([scanner.feed(chunk) for chunk in cut(text.encode(), places)])
            scanner.close()
        except SmartAssetsError:
            continue
        assert the_same_by_a_parser(text) == (image if scanner.found else None)


@settings(deadline=None)
@given(st.binary(max_size=200), cuts)
def test_garbage_gives_only_errors_of_ours(text: bytes, places: list[int]) -> None:
    for whole in (text, b'{"data_url":"' + text, b'{"data_url":"data:image/png;base64,' + text):
        with suppress(SmartAssetsError):
            scan(whole, places)


def test_a_byte_order_mark_is_passed_over() -> None:
    assert scan(b"\xef\xbb\xbf" + json.dumps({"data_url": url(b"abc")}).encode()) == (b"abc", {})


@pytest.mark.parametrize("head", ["data:image/png;base64,", "DATA:Image/SVG+xml;charset=utf-8;BASE64,"])
def test_the_head_is_read_as_urls_are(head: str) -> None:
    assert scan(json.dumps({"data_url": head + "QUJD"}).encode())[0] == b"ABC"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("", "not a data URL"),
        ("https://example.org/a.png", "not a data URL"),
        ("data:text/html;base64,QUJD", "not a data URL of an image"),
        ("data:image/png;base64", "not a data URL"),
        ("data:image/png,%89PNG", "percent-encoded"),
        ("data:image/png" + ";a=b" * 500 + ";base64,QUJD", "not a data URL"),
        (HEAD + "QUI", "group of four"),
        (HEAD + "QUJD%3D", "not valid base64"),
        (HEAD + "QU\nJD", "not valid base64"),
        (HEAD + "QU JD", "not valid base64"),
        (HEAD + "QU-_", "not valid base64"),
        (HEAD + "QQ==QQ==", "not valid base64"),
        (HEAD + "QUJDé", "not valid base64"),
        (HEAD + "QUJ\\", "not valid base64"),
        (HEAD + 'QUJ"', "not valid base64"),
        (5, "string"),
        (None, "string"),
        ({"data_url": url(b"x")}, "string"),
    ],
)
def test_what_is_no_base64_data_url_of_an_image_is_said_so(value: object, why: str) -> None:
    for places in ([], list(range(200))):
        with pytest.raises(InvalidParameter, match=why) as caught:
            scan(json.dumps({"data_url": value}, ensure_ascii=False).encode(), places)
        assert caught.value.errors[0].loc == ("body", "data_url")


def test_padding_ends_the_image_across_chunks_too() -> None:
    text = f'{{"data_url":"{HEAD}QQ==\\u0051Q=="}}'.encode()
    after = text.index(b"==") + 2
    for places in ([after], [after, after + 1], [after + 3]):
        with pytest.raises(InvalidParameter, match="not valid base64"):
            scan(text, places)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        '"data_url"',
        "{",
        '{"data_url":"' + HEAD + "QUJD",
        '{"data_url":"' + HEAD + 'QUJD"}}',
        '{"data_url":"' + HEAD + 'QUJD"} {}',
        '{"data_url":"' + HEAD + 'QUJD","data_url":"' + HEAD + 'QUJD"}',
        '{"data_url":1,"data_url":"' + HEAD + 'QUJD"}',
        '{"metadata":{"a":1,"a":2}}',
        '{"metadata":NaN}',
        '{"metadata":' + "[" * 30_000,
        '{"a\nb":1}',
    ],
)
def test_what_is_no_json_object_with_each_key_once_is_malformed(text: str) -> None:
    with pytest.raises(MalformedBody):
        scan(text.encode())


def test_text_that_is_not_utf_8_is_malformed() -> None:
    with pytest.raises(MalformedBody):
        scan(b'{"filename":"\xff"}')


def test_what_stands_beside_the_image_is_limited() -> None:
    with pytest.raises(BodyTooLarge, match=str(MAX_REST_BYTES)):
        scan(json.dumps({"filename": "x" * MAX_REST_BYTES, "data_url": url(b"x")}).encode())
    assert scan(json.dumps({"data_url": url(bytes(MAX_REST_BYTES))}).encode())[0] == bytes(MAX_REST_BYTES)
