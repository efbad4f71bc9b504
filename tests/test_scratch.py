"""Temporary directories go when their process does, and not before."""

import subprocess
import sys
from pathlib import Path

from smart_assets.scratch import ScratchDirectory, sweep

HOLD = """
import sys, pathlib
from smart_assets.scratch import ScratchDirectory
scratch = ScratchDirectory(pathlib.Path(sys.argv[1]))
(scratch.path / "file").write_text("x")
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_living_process_keeps_its_directory_and_a_killed_one_loses_it(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n"
    own = ScratchDirectory(tmp_path)
    (own.path / "file").write_text("x")
    assert sweep(tmp_path) == 0
    assert len(list(tmp_path.glob("*/file"))) == 2
    holder.kill()
    holder.communicate()
    assert sweep(tmp_path) == 1
    assert [path.parent for path in tmp_path.glob("*/file")] == [own.path]
    own.close()
    assert list(tmp_path.iterdir()) == []


def test_closing_twice_does_no_harm_and_others_things_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "somebody").mkdir()
    (tmp_path / "process-file").write_text("x")
    own = ScratchDirectory(tmp_path)
    assert own.path.stat().st_mode & 0o777 == 0o700
    own.close()
    own.close()
    assert sweep(tmp_path) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["process-file", "somebody"]
