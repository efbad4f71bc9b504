"""File names and digests as clients really send them."""

from __future__ import annotations

import base64
import hashlib
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smart_assets.api.headers import ContentDigest, clean_filename, filename_of, parse_header
from smart_assets.errors import DigestMismatch, MalformedBody


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        ("holiday photo.jpg", "holiday photo.jpg"),
        ("日本語/写真.png", "日本語/写真.png"),
        ("C:\\fakepath\\x.jpg", "C:\\fakepath\\x.jpg"),
        ("../../etc/passwd", "../../etc/passwd"),
        ("a\x00b\r\nc\x7f.png", "abc.png"),
        ("  spaced  ", "spaced"),
        ("cafe\u0301.jpg", "caf\u00e9.jpg"),
        ("half\ud800.png", "half.png"),
        ("two\u2028lines", "twolines"),
        ("👨\u200d👩\u200d👧.png", "👨\u200d👩\u200d👧.png"),
        ("CON", "CON"),
        (".htaccess", ".htaccess"),
        ("x" * 2000, "x" * 1024),
        ("é" * 2000 + ".jpeg", "é" * 1019 + ".jpeg"),
        ("", None),
        (" \t", None),
        ("..", ".."),
        ("\x00", None),
    ],
)
def test_a_filename_is_kept_as_one_clean_line(raw: str, kept: str | None) -> None:
    assert clean_filename(raw) == kept


@given(st.text(st.characters(), max_size=1200))
def test_a_clean_filename_is_never_dangerous_and_stays_as_it_is(raw: str) -> None:
    name = clean_filename(raw)
    if name is None:
        return
    assert 1 <= len(name) <= 1024
    assert not set("\0\r\n") & set(name)
    assert unicodedata.is_normalized("NFC", name)
    assert name.encode().decode() == name
    assert clean_filename(name) == name


@pytest.mark.parametrize(
    ("header", "filename"),
    [
        (b'attachment; filename="a.png"', "a.png"),
        (b"attachment; filename=a.png", "a.png"),
        (b'attachment;filename = "a.png" ; x=y', "a.png"),
        (b'form-data; name="file"; filename="semi;colon=1.png"', "semi;colon=1.png"),
        (b'form-data; name="file"; filename="quo%22te.png"', 'quo"te.png'),
        (b'form-data; name="file"; filename="quo\\"te.png"', 'quo"te.png'),
        (b'form-data; name="file"; filename="new%0D%0Aline.png"', "newline.png"),
        (b'form-data; name="file"; filename="100%25.png"', "100%25.png"),
        (b'form-data; name="file"; filename="C:\\fakepath\\x.jpg"', "C:\\fakepath\\x.jpg"),
        ('form-data; name="file"; filename="写真.png"'.encode(), "写真.png"),
        (b'form-data; name="file"; filename="caf\xe9.png"', "caf\u00e9.png"),
        (b"attachment; filename*=UTF-8''%e2%82%ac%20rates.png", "€ rates.png"),
        (b"attachment; filename=\"EURO.png\"; filename*=utf-8'en'%e2%82%ac.png", "€.png"),
        (b"attachment; filename*=UTF-8''%e2%82%ac.png; filename=EURO.png", "€.png"),
        (b"attachment; filename*=iso-8859-1''caf%E9.png", "caf\u00e9.png"),
        (b"attachment; filename*=koi8-r''%D0.png; filename=a.png", "a.png"),
        (b"attachment; filename*=broken; filename=a.png", "a.png"),
        (b"attachment; FILENAME=a.png", "a.png"),
        (b'attachment; filename="unfinished.png', "unfinished.png"),
        (b'attachment; filename="a.png"; filename="b.png"', "a.png"),
        (b'attachment; filename=""', None),
        (b"attachment", None),
        (b"", None),
        (b";;;=;", None),
    ],
)
def test_the_filename_of_a_content_disposition_is_found(header: bytes, filename: str | None) -> None:
    assert filename_of(parse_header(header)[1]) == filename


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=50))
def test_a_name_sent_as_browsers_do_arrives(name: str) -> None:
    sent = name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
    header = f'form-data; name="file"; filename="{sent}"'.encode()
    undone = sent.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n").replace("\\\\", "\\")
    assert filename_of(parse_header(header)[1]) == clean_filename(undone)


@given(st.binary(max_size=200))
def test_any_header_parses_to_something(header: bytes) -> None:
    value, parameters = parse_header(header)
    assert value == value.lower()
    filename_of(parameters)


def test_a_content_type_with_its_boundary_is_parsed() -> None:
    assert parse_header(b'Multipart/Form-Data; charset=utf-8; boundary="a b"') == (
        "multipart/form-data",
        {"charset": b"utf-8", "boundary": b"a b"},
    )


def digest(algorithm: str, content: bytes) -> str:
    hashed = hashlib.new(algorithm.replace("-", ""), content).digest()
    return f"{algorithm}=:{base64.b64encode(hashed).decode()}:"


def verify(field: str, content: bytes) -> None:
    checked = ContentDigest(field)
    checked.update(content)
    checked.verify()


@pytest.mark.parametrize(
    "field",
    [
        "",
        digest("sha-256", b"x"),
        digest("sha-256", b"x").replace("=:", ":", 1).replace(":", "=:", 1).rstrip(":").rstrip("=") + ":",
        digest("sha-512", b"x"),
        digest("sha-256", b"x") + ", " + digest("sha-512", b"x"),
        digest("sha-256", b"x") + ";note=1",
        "md5=:AAAA:",
        "md5=:AAAA: ,\t" + digest("sha-256", b"x"),
        digest("sha-256", b"y") + "," + digest("sha-256", b"x"),
    ],
)
def test_a_digest_that_is_right_or_not_known_passes(field: str) -> None:
    verify(field, b"x")


@pytest.mark.parametrize("field", [digest("sha-256", b"y"), digest("sha-512", b"y"), "sha-256=:AAAA:", "sha-256=::"])
def test_a_digest_that_is_wrong_is_a_mismatch(field: str) -> None:
    with pytest.raises(DigestMismatch):
        verify(field, b"x")


def test_each_of_two_digests_must_be_right() -> None:
    with pytest.raises(DigestMismatch):
        verify(digest("sha-256", b"x") + "," + digest("sha-512", b"y"), b"x")


@pytest.mark.parametrize(
    "field", ["sha-256=abc", "sha-256=:a:", "sha-256", "SHA-256=:AAAA:", "sha-256=:A=A:", ",", "é"]
)
def test_a_digest_that_cannot_be_read_is_not_ignored(field: str) -> None:
    with pytest.raises(MalformedBody):
        verify(field, b"x")
