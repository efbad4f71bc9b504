"""What is a key, and what a key of the service's own says."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smart_assets.storage.errors import InvalidKey
from smart_assets.storage.keys import (
    MAX_KEY_BYTES,
    AssetKey,
    Visibility,
    parse_asset_key,
    validate_key,
    visibility_of,
    with_visibility,
)
from tests.contracts.storage import HOSTILE_KEYS, STRANGE_NAMES

# 2026-11-20T10:00:00.123Z, by its first 48 bits.
ASSET_ID = UUID("019f9ed1-297b-7000-8000-0123456789ab")
LAST_DAY_OF_9999 = UUID(int=(253402300799999 << 80) | (7 << 76) | (2 << 62))

asset_ids = st.builds(
    lambda milliseconds, chance: UUID(
        int=(milliseconds << 80) | (7 << 76) | ((chance >> 62 & 0xFFF) << 64) | (2 << 62) | (chance & (1 << 62) - 1)
    ),
    st.integers(0, 253402300799999),
    st.integers(0, (1 << 74) - 1),
)
asset_keys = st.builds(
    AssetKey,
    st.sampled_from(Visibility),
    asset_ids,
    st.from_regex(r"[0-9a-z-]{1,64}", fullmatch=True),
    st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True),
)


@pytest.mark.parametrize("key", HOSTILE_KEYS, ids=ascii)
def test_a_hostile_key_is_refused(key: str) -> None:
    with pytest.raises(InvalidKey):
        validate_key(key)


@pytest.mark.parametrize("name", STRANGE_NAMES, ids=ascii)
def test_a_strange_name_is_a_key(name: str) -> None:
    assert validate_key(f"public/{name}") == f"public/{name}"


def test_a_key_has_at_most_900_bytes_however_many_characters() -> None:
    assert validate_key("é" * (MAX_KEY_BYTES // 2))
    with pytest.raises(InvalidKey, match="902"):
        validate_key("é" * (MAX_KEY_BYTES // 2 + 1))


@settings(max_examples=300)
@given(st.text(st.one_of(st.sampled_from("/.\\\x00\x1f\x7f\x80\x9f\xa0ae\u0301\ud800"), st.characters()), max_size=20))
def test_whatever_is_accepted_is_a_relative_path_without_surprises(text: str) -> None:
    try:
        key = validate_key(text)
    except InvalidKey:
        return
    assert key == text == unicodedata.normalize("NFC", text)
    assert 0 < len(key.encode()) <= MAX_KEY_BYTES
    assert "\\" not in key
    assert not {"", ".", ".."} & set(key.split("/"))
    assert all(unicodedata.category(character) not in {"Cc", "Cs"} for character in key)


@pytest.mark.parametrize(
    ("key", "visibility"),
    [
        ("public/a.png", Visibility.PUBLIC),
        ("private/a.png", Visibility.PRIVATE),
        ("publicly/a.png", Visibility.PRIVATE),
        ("Public/a.png", Visibility.PRIVATE),
        ("public", Visibility.PRIVATE),
        ("x/public/a.png", Visibility.PRIVATE),
    ],
)
def test_only_a_first_segment_public_is_public(key: str, visibility: Visibility) -> None:
    assert visibility_of(key) is visibility


def test_the_same_object_under_another_visibility() -> None:
    assert with_visibility("public/2026/a.png", Visibility.PRIVATE) == "private/2026/a.png"
    assert with_visibility("albums/a.png", Visibility.PUBLIC) == "public/a.png"
    with pytest.raises(InvalidKey):
        with_visibility("a.png", Visibility.PUBLIC)


def test_an_asset_key_is_computed_from_id_and_name() -> None:
    key = AssetKey(Visibility.PRIVATE, ASSET_ID, "1200x627-cover", "webp")
    day = datetime.fromtimestamp((ASSET_ID.int >> 80) / 1000, tz=UTC)
    assert str(key) == f"private/{day:%Y/%m/%d}/{ASSET_ID}.1200x627-cover.webp"


@settings(max_examples=200)
@given(asset_keys)
@example(AssetKey(Visibility.PUBLIC, LAST_DAY_OF_9999, "original", "jpg"))
def test_an_asset_key_comes_apart_into_what_it_was_made_of(key: AssetKey) -> None:
    assert validate_key(str(key)) == str(key)
    assert parse_asset_key(str(key)) == key


@settings(max_examples=200)
@given(asset_keys, st.data())
def test_a_key_parsed_is_written_the_same_or_is_none_of_ours(key: AssetKey, data: st.DataObject) -> None:
    text = str(key)
    at = data.draw(st.integers(0, len(text) - 1))
    changed = text[:at] + data.draw(st.sampled_from("0179aAfgz./-\n٣")) + text[at + 1 :]
    parsed = parse_asset_key(changed)
    assert parsed is None or str(parsed) == changed


@pytest.mark.parametrize(
    "key",
    [
        "",
        "public/original.png",
        f"public/2000/01/01/{ASSET_ID}.original.png",
        f"public/9999/12/31/{UUID(int=(0xFFFFFFFFFFFF << 80) | (7 << 76) | (2 << 62))}.original.png",
        str(AssetKey(Visibility.PUBLIC, ASSET_ID, "original", "png")) + "\n",
        str(AssetKey(Visibility.PUBLIC, ASSET_ID, "original", "png")).upper(),
        "/" + str(AssetKey(Visibility.PUBLIC, ASSET_ID, "original", "png")),
    ],
    ids=ascii,
)
def test_what_the_service_would_not_write_is_none_of_its_keys(key: str) -> None:
    assert parse_asset_key(key) is None
