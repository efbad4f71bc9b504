"""Whose turn it is to write, among processes."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import pytest

from smart_assets.catalogue import sqlite
from smart_assets.catalogue.sqlite import Turn


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "turn")


def test_one_at_a_time_and_the_next_as_soon_as_it_is_given_back(path: str) -> None:
    order: list[str] = []
    waits = threading.Event()
    with closing(Turn(path)) as mine, closing(Turn(path)) as theirs:

        def take() -> None:
            waits.set()
            with theirs.taken():
                order.append("theirs")

        with mine.taken():
            other = threading.Thread(target=take)
            other.start()
            waits.wait()
            order.append("mine")
        other.join()
    assert order == ["mine", "theirs"]


def test_who_does_not_get_it_in_time_goes_on_without(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder may be a process that was stopped: the database's own lock says what holds then."""
    monkeypatch.setattr(sqlite, "_TURN_SECONDS", 0.01)
    with closing(Turn(path)) as mine, closing(Turn(path)) as theirs:
        with mine.taken(), theirs.taken():
            pass
        with theirs.taken():
            pass
