"""Any filename in a header: one safe line that says the same name to who can read it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smart_assets.api.headers import clean_filename, filename_of, parse_header
from smart_assets.disposition import content_disposition


@pytest.mark.parametrize(
    ("filename", "header"),
    [
        (None, "inline"),
        ("", "inline"),
        ("..", "inline"),
        ("folder/", "inline"),
        ("a b.jpg", 'inline; filename="a b.jpg"'),
        ("../../etc/passwd", 'inline; filename="passwd"'),
        ("C:\\fakepath\\x.jpg", 'inline; filename="x.jpg"'),
        ('q"uote.jpg', "inline; filename=\"q_uote.jpg\"; filename*=UTF-8''q%22uote.jpg"),
        ("写真.png", "inline; filename=\"__.png\"; filename*=UTF-8''%E5%86%99%E7%9C%9F.png"),
    ],
)
def test_a_filename_is_said_twice_where_ascii_does_not_do(filename: str | None, header: str) -> None:
    assert content_disposition(filename) == header


@given(st.text(st.characters(), max_size=1200))
def test_whatever_the_name_the_header_is_one_safe_line_that_reads_back(raw: str) -> None:
    filename = clean_filename(raw)
    header = content_disposition(filename)
    assert header.isascii()
    assert header.isprintable()
    assert len(header) < 4000
    read = filename_of(parse_header(header.encode())[1])
    if read is not None and filename is not None:
        last = filename.replace("\\", "/").rpartition("/")[2]
        assert read == last.strip() or len(last) > 200
