"""Signed URLs: good for one object, until they expire, under any of the keys."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smart_assets.access.signing import UrlSigner, kept_signing_key
from smart_assets.errors import ConfigurationError, SignatureExpired, SignatureInvalid, SignatureRequired
from smart_assets.expiry import expiry_window

OLD, NEW = "o" * 40, "n" * 40
KEY = "private/2026/11/20/019aa0c2-0000-7000-8000-000000000000.original.jpg"


class Clock:
    """Time that passes when told to."""

    def __init__(self, now: float = 1_763_632_800.25) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def query_of(signer: UrlSigner, key: str = KEY, seconds: int = 3600) -> dict[str, str]:
    return dict(parse_qsl(signer.sign(key, seconds).query))


def test_a_signature_is_good_until_it_expires_and_not_after() -> None:
    clock = Clock()
    signer = UrlSigner([NEW], clock)
    signature = signer.sign(KEY, 60)
    query = dict(parse_qsl(signature.query))
    assert 54 <= signer.verify(KEY, query) <= 60
    clock.now = signature.expires_at.timestamp() - 0.001
    assert signer.verify(KEY, query) > 0
    clock.now = signature.expires_at.timestamp()
    with pytest.raises(SignatureExpired):
        signer.verify(KEY, query)


def test_without_a_signature_one_is_required() -> None:
    with pytest.raises(SignatureRequired):
        UrlSigner([NEW]).verify(KEY, {"exp": "99999999999", "kid": "x"})


def test_a_signature_is_good_for_its_own_object_only() -> None:
    signer = UrlSigner([NEW])
    with pytest.raises(SignatureInvalid):
        signer.verify(KEY.replace("original", "800"), query_of(signer))


@pytest.mark.parametrize("name", ["exp", "kid", "sig"])
def test_no_part_of_the_query_can_be_changed(name: str) -> None:
    signer = UrlSigner([NEW, OLD])
    query = query_of(signer)
    for changed in (query[name] + "0", "1" + query[name], query[name][:-1], "é", "\ud800"):
        with pytest.raises(SignatureInvalid):
            signer.verify(KEY, query | {name: changed})


def test_the_same_expiry_written_differently_is_refused() -> None:
    signer = UrlSigner([NEW])
    query = query_of(signer)
    for spelling in (f"+{query['exp']}", f" {query['exp']}", f"{query['exp']}.0", f"0{query['exp']}"):
        with pytest.raises(SignatureInvalid):
            signer.verify(KEY, query | {"exp": spelling})


def test_keys_are_exchanged_without_breaking_links() -> None:
    before, during, after = UrlSigner([OLD]), UrlSigner([NEW, OLD]), UrlSigner([NEW])
    old_link = query_of(before)
    assert during.verify(KEY, old_link) > 0
    assert after.verify(KEY, query_of(during)) > 0
    with pytest.raises(SignatureInvalid):
        after.verify(KEY, old_link)


def test_calls_within_a_window_get_the_same_string() -> None:
    clock = Clock(now=1_763_632_800)  # the start of an hour
    signer = UrlSigner([NEW], clock)
    first = signer.sign(KEY, 86_400).query
    clock.now += 3599.9
    assert signer.sign(KEY, 86_400).query == first
    clock.now += 0.2
    assert signer.sign(KEY, 86_400).query != first


@given(now=st.floats(0, 4e9), seconds=st.integers(1, 604_800))
def test_expiry_is_never_later_than_asked_and_at_most_a_tenth_or_an_hour_earlier(now: float, seconds: int) -> None:
    early = now + seconds - expiry_window(now, seconds) / 1000
    assert -1e-3 < early <= min(seconds / 10, 3600) + 1e-3


@given(now=st.integers(10**9, 4 * 10**9).map(lambda ms: ms / 1.0), seconds=st.integers(1, 604_800))
def test_every_signature_made_verifies(now: float, seconds: int) -> None:
    signer = UrlSigner([NEW], Clock(now))
    assert 0 < signer.verify(KEY, query_of(signer, seconds=seconds)) <= seconds


@given(st.dictionaries(st.sampled_from(["exp", "kid", "sig", "x"]), st.text(max_size=60)))
def test_any_other_query_is_a_signature_error(query: dict[str, str]) -> None:
    with pytest.raises((SignatureRequired, SignatureInvalid)):
        UrlSigner([NEW]).verify(KEY, query)


def test_the_kept_key_is_made_once_by_any_number_of_processes(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as threads:
        keys = set(threads.map(lambda _: kept_signing_key(tmp_path, tmp_path), range(64)))
    assert len(keys) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["signing.key"]
    assert stat.S_IMODE((tmp_path / "signing.key").stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64])
def test_a_damaged_key_is_said_and_not_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "signing.key").write_bytes(content)
    with pytest.raises(ConfigurationError):
        kept_signing_key(tmp_path, tmp_path)
    assert (tmp_path / "signing.key").read_bytes() == content
