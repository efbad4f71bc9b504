"""`smart-assets export` and `import`, as processes: what they say, and how they end."""

import json
from pathlib import Path

import pytest

from smart_assets.assets.objects import new_asset_id
from tests import images
from tests.conftest import StartService
from tests.test_cli import run

HOLIDAY = images.jpeg(64, 48, seed=8)


@pytest.fixture
async def library(start_service: StartService, tmp_path: Path) -> list[str]:
    """The ids of three assets that are there, where no service runs."""
    async with start_service() as service:
        assets = [await service.uploaded(HOLIDAY, tags=tag, sizes="20") for tag in ("a", "b", "b")]
    return [asset["id"] for asset in assets]


def ids(lines: str) -> list[str]:
    return [json.loads(line)["id"] for line in lines.splitlines()]


def forget(folder: Path) -> None:
    for path in (folder / "data").glob("catalogue.sqlite3*"):
        path.unlink()


async def test_what_was_exported_makes_the_catalogue_anew(library: list[str], tmp_path: Path) -> None:
    exported = run(tmp_path, "export")
    assert (exported.returncode, exported.stderr, ids(exported.stdout)) == (0, "", library)
    (tmp_path / "library.jsonl").write_text(exported.stdout)
    forget(tmp_path)
    dry = run(tmp_path, "import", "--dry-run", "library.jsonl")
    assert (dry.returncode, dry.stdout) == (0, "3 lines: 3 would be imported, 0 were there already\n")
    done = run(tmp_path, "import", "library.jsonl")
    assert (done.returncode, done.stdout, done.stderr) == (0, "3 lines: 3 imported, 0 were there already\n", "")
    assert run(tmp_path, "export").stdout == exported.stdout
    assert run(tmp_path, "reconcile", "--verify").returncode == 0
    again = run(tmp_path, "import", "library.jsonl")
    assert (again.returncode, again.stdout) == (0, "3 lines: 0 imported, 3 were there already\n")


async def test_an_export_is_of_what_is_asked_for(library: list[str], tmp_path: Path) -> None:
    assert ids(run(tmp_path, "export", "--tag", "b", "--storage", "local", "--days", "1").stdout) == library[1:]
    assert run(tmp_path, "export", "--owner", "nobody", "--created-after", "2026-01-01T00:00:00+01:00").stdout == ""
    for wrong in (("--created-after", "2026-01-01"), ("--storage", "nowhere")):
        answer = run(tmp_path, "export", *wrong)
        assert (answer.returncode, answer.stdout) == (2, "")
        assert "Traceback" not in answer.stderr


async def test_what_is_wrong_with_a_file_is_said_by_line(library: list[str], tmp_path: Path) -> None:
    lines = run(tmp_path, "export").stdout.splitlines()
    missing = lines[0].replace(library[0], str(new_asset_id()))
    (tmp_path / "library.jsonl").write_text("\n".join(["words", missing, *lines]))
    answer = run(tmp_path, "import", "library.jsonl")
    assert answer.returncode == 1
    assert answer.stdout.splitlines()[:3] == [
        "5 lines: 0 imported, 3 were there already",
        "2 refused",
        "line 1: refused: is not a JSON object",
    ]
    told = json.loads(run(tmp_path, "import", "--json", "library.jsonl").stdout)
    assert (told["right"], told["problems"], told["known"]) == (False, {"refused": 2}, 3)
    assert [finding["line"] for finding in told["findings"]] == [1, 2]


def test_what_cannot_be_done_at_all_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    for arguments, word in ((("export",), "catalogue"), (("import", "nothing.jsonl"), "nothing.jsonl")):
        answer = run(tmp_path, *arguments)
        assert answer.returncode == 2
        (line,) = answer.stderr.splitlines()
        assert word in line
    assert not (tmp_path / "data").exists()
