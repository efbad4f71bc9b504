"""The budget of memory that all processes of a machine share."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from smart_assets import scratch
from smart_assets.imaging.budget import MemoryBudget
from smart_assets.scratch import ScratchDirectory

HOLD = """
import sys, pathlib
from smart_assets.imaging.budget import MemoryBudget
from smart_assets.scratch import ScratchDirectory
scratch = ScratchDirectory(pathlib.Path(sys.argv[1]))
print(MemoryBudget(100, scratch.path).take(60), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[list[MemoryBudget]]:
    """Three, as it were, with a budget of 100 bytes."""
    with ExitStack() as opened:
        scratches = [opened.enter_context(closing(ScratchDirectory(tmp_path))) for _ in range(3)]
        yield [opened.enter_context(closing(MemoryBudget(100, scratch.path))) for scratch in scratches]


def test_what_all_take_together_stays_within_the_budget(processes: list[MemoryBudget]) -> None:
    first, second, third = processes
    assert first.take(40)
    assert second.take(40)
    assert not third.take(30)
    assert third.take(20)
    assert not first.take(1)
    second.give_back(40)
    assert first.take(40)
    assert not second.take(1)


def test_who_was_refused_has_taken_nothing(processes: list[MemoryBudget]) -> None:
    first, second, _ = processes
    assert first.take(60)
    assert not second.take(50)
    assert first.take(40)


def test_more_than_the_whole_budget_is_given_to_who_is_alone(processes: list[MemoryBudget]) -> None:
    first, second, _ = processes
    assert second.take(1)
    assert not first.take(500)
    second.give_back(1)
    assert first.take(500)
    assert not second.take(1)
    assert not first.take(1)
    first.give_back(500)
    assert second.take(100)


def test_of_two_that_ask_at_the_same_moment_for_the_last_of_it_not_both_get_it(
    processes: list[MemoryBudget], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _ = processes
    look, got = first._of_others, []

    def look_and_dawdle() -> int:
        """What was seen is old by the time it is acted on."""
        seen = look()
        got.append(second.take(60))
        return seen

    monkeypatch.setattr(first, "_of_others", look_and_dawdle)
    got.append(first.take(60))
    assert got == [False, True]


def test_what_a_process_had_that_was_killed_is_free_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other,
        closing(ScratchDirectory(tmp_path)) as scratch,
        closing(MemoryBudget(100, scratch.path)) as own,
    ):
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        assert not own.take(50)
        other.kill()
        other.wait()
        assert own.take(50)


def test_what_is_given_back_after_the_end_does_no_harm(processes: list[MemoryBudget], tmp_path: Path) -> None:
    first, *_ = processes
    assert first.take(100)
    first.close()
    with (tmp_path / "another file").open("w+") as another:  # which may have got the same descriptor
        another.write("whole")
        another.flush()
        first.give_back(100)
        another.seek(0)
        assert another.read() == "whole"


def test_who_cannot_see_what_others_take_gets_nothing_and_keeps_nothing(
    processes: list[MemoryBudget], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_directory: Path) -> bool:
        raise OSError(errno.EMFILE, "too many open files")

    first, second, _ = processes
    assert first.take(10)
    with monkeypatch.context() as patches:
        patches.setattr(scratch, "is_in_use", fail)
        assert not second.take(10)
    assert second.take(90)
