"""Killed at any step, and at any moment, the service leaves each asset whole or gone without a trace.

`make torture` does the same for longer. Here, too, is what the audit is worth: it finds what it is there to find.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from asyncio import gather
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from pkgutil import resolve_name
from tempfile import TemporaryDirectory

import pytest

from smart_assets.settings import CreditSettings
from tests.conftest import StartService
from tests.torture.audit import audit, is_settled
from tests.torture.callers import CREDITS, SIZES, photo
from tests.torture.harness import Grounds, Tally
from tests.torture.ledger import Answer, Fate, Ledger, Upload
from tests.torture.places import Folder
from tests.torture.steps import CELLAR, NAMED, STEPS

YARDS = 8
KILLS = 30
FOR_AN_HEIR = {
    "upload: intent durable",
    "upload: workers begin",
    "upload: closed, not answered",
    "batch: everything stored",
    "undoing: one row given up",
    "deletion: begun",
    "later sizes: all stored",
    "publishing: one object moved",
    "withdrawal: begun",
    "move: original copied",
    "move: switched",
    "key: claimed",
    "key: upload closed, not answered",
    "completion: ticket claimed",
    "completion: ticket used",
}
HERE = [step for step in STEPS if step.is_on("local")]


def say(what: str, tally: Tally) -> None:
    """Print it, and where this is CI, have it in its summary."""
    line = f"{what}: {tally}"
    print(line)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(f"Crash safety, {line}\n\n")


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a shorter name than `tmp_path`: the workers' socket is in the data directory only where that has room."""
    with TemporaryDirectory(prefix="torture-") as name:
        yield Path(name)


# ── Killing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_killed_at_any_step_it_leaves_each_asset_whole_or_gone(folder: Path) -> None:
    tally = Tally()
    await Grounds(folder, YARDS).play(tally, HERE)
    say(f"{len(tally.reached)} named steps", tally)
    assert tally.findings == []
    assert tally.reached == {step.name for step in HERE}


async def test_what_a_killed_process_leaves_is_finished_by_another_that_shares_its_data(folder: Path) -> None:
    tally = Tally()
    await Grounds(folder, YARDS // 2, has_heirs=True).play(tally, [NAMED[name] for name in sorted(FOR_AN_HEIR)])
    say(f"{len(tally.reached)} named steps, beside a process that lives on", tally)
    assert tally.findings == []
    assert tally.reached == FOR_AN_HEIR


async def test_killed_at_random_moments_it_leaves_each_asset_whole_or_gone(folder: Path) -> None:
    seed, tally = secrets.randbits(32), Tally()
    print(f"seed {seed}")
    await gather(
        Grounds(folder / "alone", YARDS // 2).storm(tally, KILLS // 2, seed),
        Grounds(folder / "beside", YARDS // 2, has_heirs=True).storm(tally, KILLS // 2, seed + 1),
    )
    say(f"random moments, seed {seed}", tally)
    assert tally.findings == []
    assert tally.kills == KILLS


def test_every_step_has_a_name_of_its_own_and_lies_in_code_that_is_there() -> None:
    assert len(NAMED) == len(STEPS)
    for step in STEPS:
        assert callable(resolve_name(step.point.target)), step.name
        assert not step.after or step.after in NAMED


# ── What the audit finds ────────────────────────────────────────────────────────────────────────────────────────────


class Library:
    """One batch of two files, of which callers were told, and what the audit says of it."""

    def __init__(self, data_dir: Path, told: list[str]) -> None:
        self.data_dir = data_dir
        self.ledger = Ledger()
        self.upload = Upload("request-1", (photo(1), photo(2)), SIZES, "private", "local", batch=True)
        self.upload.made(told)
        self.ledger.uploads[self.upload.tag] = self.upload

    def objects(self, name: str) -> list[Path]:
        """The originals, or those of a size, of both files; the smaller first."""
        found = (self.data_dir / "assets" / "private").rglob(f"*.{name}.jpg")
        return sorted(found, key=lambda path: path.stat().st_size)

    def change(self, statement: str) -> None:
        with closing(sqlite3.connect(self.data_dir / "catalogue.sqlite3")) as catalogue:
            catalogue.execute(statement)
            catalogue.commit()

    def findings(self) -> list[str]:
        places = (Folder(self.data_dir), Folder(self.data_dir, CELLAR, CELLAR))
        return audit(self.data_dir, places, self.ledger, services=1).findings


@pytest.fixture
async def library(start_service: StartService) -> AsyncIterator[Library]:
    # Nobody repairs meanwhile what a test breaks.
    prices = CreditSettings(per_original=5, per_size=1)
    async with start_service(lease_seconds=3600, credits=prices) as service:
        body = {"owner": "default", "amount": CREDITS}
        assert (await service.client.post("/api/v1/credits", json=body)).status_code == 201
        files = [("files", (f"{number}.jpg", photo(number))) for number in (1, 2)]
        query = {"sizes": ",".join(SIZES), "visibility": "private", "tags": "request-1"}
        answer = await service.client.post("/api/v1/assets/batch", params=query, files=files)
        yield Library(service.data_dir, [asset["id"] for asset in answer.json()["assets"]])


async def test_the_audit_has_nothing_to_say_against_what_is_whole(library: Library) -> None:
    assert library.findings() == []
    assert is_settled(library.data_dir, services=1)
    assert not is_settled(library.data_dir, services=2)


def keep_a_public_copy(library: Library) -> None:
    private = library.objects("original")[0]
    public = Path(str(private).replace("/private/", "/public/"))
    public.parent.mkdir(parents=True)
    public.hardlink_to(private)


def keep_a_copy_in_the_cellar(library: Library) -> None:
    original = library.objects("original")[0]
    copy = Path(str(original).replace("/assets/", f"/{CELLAR}/"))
    copy.parent.mkdir(parents=True)
    copy.write_bytes(original.read_bytes())


def show_the_other_picture(library: Library) -> None:
    smaller, larger = library.objects("120")
    larger.write_bytes(smaller.read_bytes().ljust(larger.stat().st_size, b"\0"))


def send_one_more(library: Library) -> None:
    library.upload.answer = Answer.NONE
    library.upload.contents += (photo(3),)


@pytest.mark.parametrize(
    ("finding", "damage"),
    [
        ("torn: {id} has no original", lambda library: library.objects("original")[0].unlink()),
        ("torn: {id} has no size 120", lambda library: library.objects("120")[0].unlink()),
        ("torn: the original of {id} has other", lambda library: library.objects("original")[0].write_bytes(photo(3))),
        ("torn: the size 120 of {id} is no image", lambda library: os.truncate(library.objects("120")[0], 300)),
        ("torn: the size 120 of {id} shows another", show_the_other_picture),
        ("torn: {id} of request-1 is lost", lambda library: library.change("DELETE FROM assets")),
        ("torn: {id} of request-1 was deleted", lambda library: setattr(library.upload.assets[0], "fate", Fate.GONE)),
        ("torn: {id} of request-1 is private", lambda library: library.upload.assets[0].visibilities.clear()),
        ("torn: {id} of request-1 is in local", lambda library: library.upload.assets[0].storages.clear()),
        (
            f"torn: {{id}} of request-1 is in {CELLAR}",
            lambda library: library.change(f"UPDATE assets SET storage = '{CELLAR}'"),
        ),
        ("torn: {id} was to have", lambda library: setattr(library.upload, "sizes", SIZES[:2])),
        ("torn: request-1 failed", lambda library: setattr(library.upload, "answer", Answer.REFUSED)),
        ("torn: request-1 sent 3 files, and 2", send_one_more),
        ("torn: request-1 was carried out more", lambda library: library.upload.assets.pop()),
        ("torn: {id} cost 7", lambda library: library.change("UPDATE assets SET credits_used = 7")),
        ("torn: {id} holds 3", lambda library: library.change("UPDATE assets SET credits_reserved = 3")),
        ("torn: default has (999999984, 1", lambda library: library.change("UPDATE credit_accounts SET reserved = 1")),
        (
            "torn: default has (999999983",
            lambda library: library.change("UPDATE credit_accounts SET balance = balance - 1"),
        ),
        ("torn: the days", lambda library: library.change("UPDATE credit_usage SET credits = 1")),
        ("torn: 7 credits were", lambda library: library.change("UPDATE credit_entries SET amount = 7")),
        ("torn: charged for", lambda library: library.change("DELETE FROM assets") or library.ledger.uploads.clear()),
        ("torn: the totals are", lambda library: library.change("UPDATE storage_totals SET bytes = 1")),
        ("leaked: rows of request-1", lambda library: library.ledger.uploads.clear()),
        ("leaked: row {id} is pending", lambda library: library.change("UPDATE assets SET state = 'pending'")),
        ("leaked: tags", lambda library: library.change("DELETE FROM asset_tags")),
        ("leaked: 2 leases", lambda library: library.change("INSERT INTO leases VALUES ('dead', 1)")),
        (
            "leaked: the Idempotency-Key k",
            lambda library: library.change(
                "INSERT INTO idempotency_keys VALUES ('default', 'k', 'r', NULL, NULL, 'dead/1', '2026-11-20 10:00:00')"
            ),
        ),
        ("leaked: object public/", keep_a_public_copy),
        ("leaked: object private/", keep_a_copy_in_the_cellar),
        ("leaked: row {id} is ready", lambda library: library.change("UPDATE assets SET target_storage = 'local'")),
        ("leaked: file {data}/tmp/", lambda library: (library.data_dir / "tmp" / "upload-1").touch()),
        ("leaked: file {data}/.", lambda library: (library.data_dir / ".catalogue-1").touch()),
        ("leaked: directories", lambda library: [(library.data_dir / "tmp" / f"process-{n}").mkdir() for n in "123"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_the_audit_finds(library: Library, finding: str, damage: Callable[[Library], object]) -> None:
    ids = [asset.id for asset in library.upload.assets]
    expected = tuple(finding.format(id=asset_id, data=library.data_dir) for asset_id in ids)
    damage(library)
    found = library.findings()
    assert any(line.startswith(expected) for line in found), found
