"""When a storage's own URL is good."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from smart_assets.expiry import Validity

MOMENTS = st.floats(1_700_000_000, 4_000_000_000, allow_nan=False)
EXPIRIES = st.integers(1, 604_800)


@given(MOMENTS, EXPIRIES)
def test_it_never_outlives_what_was_asked_and_falls_short_by_less_than_a_window(now: float, seconds: int) -> None:
    validity = Validity.of(now, seconds)
    assert validity.expires <= now + seconds
    assert now + seconds - validity.expires < max(1, min(seconds / 10, 3600)) + 0.01
    assert validity.begins <= now
    assert validity.seconds == seconds


@given(MOMENTS, EXPIRIES, st.floats(0, 1))
def test_all_calls_within_a_window_get_the_same(now: float, seconds: int, part: float) -> None:
    window = max(1, min(seconds // 10, 3600))
    begin = (int(now) + seconds) // window * window - seconds
    first, second = Validity.of(begin, seconds), Validity.of(begin + part * (window - 0.001), seconds)
    assert first == second
    assert Validity.of(begin + window, seconds) != first


@given(MOMENTS, EXPIRIES, st.floats(0.001, 1_000_000))
def test_it_ends_at_the_second_its_caller_ends(now: float, seconds: int, left: float) -> None:
    validity = Validity.of(now, seconds, not_after=now + left)
    assert validity.expires < now + left + 1
    assert validity.expires <= now + seconds
    assert validity.seconds == seconds


@given(MOMENTS, EXPIRIES, st.floats(0, 1_000_000))
def test_it_ends_with_the_credentials_behind_it(now: float, seconds: int, left: float) -> None:
    validity = Validity.of(now, seconds).ending_by(now + left)
    assert validity.expires <= now + left
    assert validity.seconds == seconds
