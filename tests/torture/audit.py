"""What is left, held against what callers were told. Nothing here uses the service's code: drivers, files, Pillow.

`torn` is what is not whole, or not as it was promised; `leaked` is what should be gone. While a service that died is
still being cleaned up after, an audit finds something; it counts only when all has had its time.
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

from PIL import Image, ImageChops, ImageStat

from tests.tables import Row, tables_of, wrong_credits
from tests.torture.callers import CREDITS
from tests.torture.ledger import Answer, Asset, Fate, Found, Ledger, Upload
from tests.torture.places import Place, files_below
from tests.torture.steps import CELLAR, PRICES

_KNOWN_FILES = {
    "catalogue.sqlite3",
    "catalogue.sqlite3-wal",
    "catalogue.sqlite3-shm",
    "catalogue.sqlite3-turn",
    "catalogue.sqlite3-retention",
    "catalogue.sqlite3-tickets",
    "signing.key",
    "assets.lock",
    f"{CELLAR}.lock",
}
_KNOWN_DIRECTORIES = {"assets", CELLAR, "tmp"}
_DIRECTORIES_OF_A_PROCESS = 4
_CLAIM = "rendering"
"""A file of each process that lives, as long as what its workers take: nothing, when nobody asks for anything."""
_LOOKS_ALIKE = 12
"""Mean difference of two thumbnails, of 255: the same picture in two sizes stays below, two pictures do not."""


@dataclass
class Audit:
    """What was wrong, and what there is of each request's assets, by its tag."""

    torn: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)
    found: dict[str, list[Found]] = field(default_factory=lambda: defaultdict(list))

    @property
    def findings(self) -> list[str]:
        """All of them."""
        return [f"torn: {what}" for what in self.torn] + [f"leaked: {what}" for what in self.leaked]


@dataclass(frozen=True)
class _Row:
    id: str
    state: str
    lease: str | None
    targets: tuple[str | None, str | None]
    storage: str
    visibility: str
    format: str
    size_bytes: int
    sides: tuple[int, int]
    sha256: str
    variants: list[Any]
    tags: list[str]
    credits_used: int | None

    @property
    def price(self) -> int:
        """What it has to have cost."""
        return PRICES["per_original"] + PRICES["per_size"] * len(self.variants)

    def key(self, name: str, image_format: str) -> str:
        """Where an object of the asset has to lie."""
        day = datetime.fromtimestamp((UUID(self.id).int >> 80) / 1000, tz=UTC)
        extension = {"jpeg": "jpg"}.get(image_format, image_format)
        return f"{self.visibility}/{day:%Y/%m/%d}/{self.id}.{name}.{extension}"


@dataclass(frozen=True)
class _Catalogue:
    rows: list[_Row]
    tags: set[tuple[str, str]]
    """Tag and asset, of the table that finds assets by their tags."""
    keys: dict[str, tuple[str | None, Any]]
    """Claim and outcome of each Idempotency-Key."""
    tickets: dict[str, str | None]
    """Claim of each upload ticket."""
    leases: int
    totals: dict[str, tuple[int, int]]
    paid: dict[str, int]
    """What was charged for each asset, those that are gone too."""
    granted: int
    wrong_credits: list[str]


def is_settled(data_dir: Path, services: int) -> bool:
    """Whether, by the catalogue, nothing is left to be finished for the dead: so many services live."""
    with tables_of(data_dir) as tables:
        unsettled = len(tables.select("SELECT id FROM assets WHERE state != 'ready'"))
        claimed = len(tables.select("SELECT key FROM idempotency_keys WHERE outcome IS NULL"))
        claimed += len(tables.select("SELECT id FROM upload_tickets WHERE claim IS NOT NULL"))
        leases = len(tables.select("SELECT id FROM leases"))
    return (unsettled, claimed, leases) == (0, 0, services)


def audit(data_dir: Path, places: Sequence[Place], ledger: Ledger, services: int) -> Audit:
    """Look at everything, while nobody asks the `services` that live for anything."""
    catalogue = _read(data_dir)
    objects = {place.storage: place.objects() for place in places}
    result = Audit()
    result.leaked += _unsettled(catalogue, services)
    result.leaked += _files_left(data_dir, services)
    expected: dict[str, set[str]] = defaultdict(set)
    for row in catalogue.rows:
        expected[row.storage] |= {row.key(name, image_format) for name, image_format in _objects_of(row)}
        result.torn += _damage(row, objects.get(row.storage, {}))
        for tag in row.tags:
            sizes = tuple(variant[0] for variant in row.variants)
            result.found[tag].append(Found(row.id, row.sha256, row.visibility, row.storage, sizes))
    for place in places:
        result.leaked += place.rubbish()
        strays = sorted(objects[place.storage].keys() - expected[place.storage])
        result.leaked += [f"object {key} of {place.storage} is of no row there" for key in strays]
    result.torn += _totals(catalogue)
    result.torn += _credits(catalogue, ledger)
    result.leaked += _indexed_tags(catalogue)
    result.leaked += [f"rows of {tag}, which nobody asked for" for tag in result.found.keys() - ledger.uploads.keys()]
    for upload in ledger.uploads.values():
        result.torn += _broken_promises(upload, result.found[upload.tag])
    return result


# ── The catalogue ───────────────────────────────────────────────────────────────────────────────────────────────────


def _read(data_dir: Path) -> _Catalogue:
    with tables_of(data_dir) as tables:
        rows = [_row(row) for row in tables.select("SELECT * FROM assets")]
        tags = {(row["tag"], _uuid(row["asset_id"])) for row in tables.select("SELECT * FROM asset_tags")}
        keys = {
            row["key"]: (row["claim"], row["outcome"] and json.loads(row["outcome"]))
            for row in tables.select("SELECT * FROM idempotency_keys")
        }
        tickets = {_uuid(row["id"]): row["claim"] for row in tables.select("SELECT * FROM upload_tickets")}
        leases = len(tables.select("SELECT id FROM leases"))
        held = tables.select("SELECT * FROM storage_totals")
        paid: dict[str, int] = defaultdict(int)
        for charge in tables.select("SELECT asset_id, amount FROM credit_entries WHERE kind = 'charge'"):
            paid[_uuid(charge["asset_id"])] -= charge["amount"]
        granted = sum(row["amount"] for row in tables.select("SELECT amount FROM credit_entries WHERE kind = 'grant'"))
        wrong = list(wrong_credits(tables))
    totals = {row["storage"]: (row["assets"], row["bytes"]) for row in held}
    return _Catalogue(rows, tags, keys, tickets, leases, totals, paid, granted, wrong)


def _row(row: Row) -> _Row:
    return _Row(
        id=_uuid(row["id"]),
        state=row["state"],
        lease=row["lease"],
        targets=(row["target_visibility"], row["target_storage"]),
        storage=row["storage"],
        visibility=row["visibility"],
        format=row["format"],
        size_bytes=row["size_bytes"],
        sides=(row["width"], row["height"]),
        sha256=row["sha256"],
        variants=json.loads(row["variants"]),
        tags=json.loads(row["tags"]),
        credits_used=row["credits_used"],
    )


def _uuid(text: str) -> str:
    return str(UUID(text))


def _unsettled(catalogue: _Catalogue, services: int) -> Iterator[str]:
    for row in catalogue.rows:
        if (row.state, row.lease, row.targets) != ("ready", None, (None, None)):
            yield f"row {row.id} is {row.state}, under the claim {row.lease}"
    for key, (claim, outcome) in catalogue.keys.items():
        if claim is not None or outcome is None:
            yield f"the Idempotency-Key {key} is held by {claim}"
    for ticket, claim in catalogue.tickets.items():
        if claim is not None:
            yield f"the upload ticket {ticket} is held by {claim}"
    if catalogue.leases != services:
        yield f"{catalogue.leases} leases of {services} processes"


def _totals(catalogue: _Catalogue) -> Iterator[str]:
    counted: dict[str, tuple[int, int]] = {}
    for row in catalogue.rows:
        assets, size = counted.get(row.storage, (0, 0))
        own = row.size_bytes + sum(variant[5] for variant in row.variants)
        counted[row.storage] = (assets + 1, size + own)
    kept = {name: totals for name, totals in catalogue.totals.items() if totals != (0, 0)}
    if kept != counted:
        yield f"the totals are {kept}, the rows come to {counted}"


def _credits(catalogue: _Catalogue, ledger: Ledger) -> Iterator[str]:
    yield from catalogue.wrong_credits
    if catalogue.granted not in {0, CREDITS}:
        yield f"{catalogue.granted} credits were granted"
    for row in catalogue.rows:
        if row.credits_used != row.price:
            yield f"{row.id} cost {row.credits_used}, and should have cost {row.price}"
    known = ledger.ever() | {row.id for row in catalogue.rows}
    yield from (f"charged for {asset_id}, which never was" for asset_id in catalogue.paid.keys() - known)


def _indexed_tags(catalogue: _Catalogue) -> Iterator[str]:
    wanted = {(tag, row.id) for row in catalogue.rows for tag in row.tags}
    if catalogue.tags != wanted:
        yield f"tags that do not agree with their assets: {sorted(catalogue.tags ^ wanted)}"


# ── Files and objects ───────────────────────────────────────────────────────────────────────────────────────────────


def _files_left(data_dir: Path, services: int) -> list[str]:
    own = [path for path in data_dir.iterdir() if path.name not in _KNOWN_FILES | _KNOWN_DIRECTORIES]
    temporary = [path for path in files_below(data_dir / "tmp") if path.name != _CLAIM or path.stat().st_size]
    left = [f"file {path}" for path in (*own, *temporary) if not path.is_socket()]
    directories = sorted(path.name for path in (data_dir / "tmp").iterdir())
    if len(directories) > _DIRECTORIES_OF_A_PROCESS * services:
        left.append(f"directories for temporary files, of {services} processes: {directories}")
    return left


def _objects_of(row: _Row) -> Iterator[tuple[str, str]]:
    yield "original", row.format
    for _, name, image_format, *_ in row.variants:
        yield name, image_format


def _damage(row: _Row, objects: dict[str, bytes]) -> Iterator[str]:
    """What an asset lacks in its storage, or has of another."""
    original = objects.get(row.key("original", row.format))
    if original is None:
        yield f"{row.id} has no original"
        return
    if (len(original), sha256(original).hexdigest()) != (row.size_bytes, row.sha256):
        yield f"the original of {row.id} has other bytes"
        return
    whole = _decoded(original)
    if (whole.format, whole.sides) != (row.format, row.sides):
        yield f"the original of {row.id} is {whole.format} of {whole.sides}"
    for size, name, image_format, width, height, size_bytes in row.variants:
        content = objects.get(row.key(name, image_format))
        if content is None or not size_bytes:
            yield f"{row.id} has no size {size}"
            continue
        made = _decoded(content)
        if (made.format, made.sides, len(content)) != (image_format, (width, height), size_bytes):
            yield f"the size {size} of {row.id} is {made.format} of {made.sides}, {len(content)} bytes"
        elif not _alike(whole.thumbnail, made.thumbnail):
            yield f"the size {size} of {row.id} shows another picture"


@dataclass(frozen=True)
class _Decoded:
    format: str
    sides: tuple[int, int]
    thumbnail: Image.Image


@lru_cache(4096)
def _decoded(content: bytes) -> _Decoded:
    """All of an image's pixels, decoded once for the same bytes."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            thumbnail = image.convert("RGB").resize((8, 6), Image.Resampling.BOX)
            return _Decoded((image.format or "").lower(), image.size, thumbnail)
    except OSError as error:
        return _Decoded(f"no image ({error})", (0, 0), Image.new("RGB", (8, 6)))


def _alike(one: Image.Image, other: Image.Image) -> bool:
    return max(ImageStat.Stat(ImageChops.difference(one, other)).mean) < _LOOKS_ALIKE


# ── What callers were told ──────────────────────────────────────────────────────────────────────────────────────────


def _broken_promises(upload: Upload, found: list[Found]) -> Iterator[str]:
    sent = sorted(sha256(content).hexdigest() for content in upload.contents)
    there = {one.id: one for one in found}
    if upload.answer is Answer.REFUSED and found:
        yield f"{upload.tag} failed, and {len(found)} of its assets are there"
    if upload.answer is Answer.NONE and found and sorted(one.sha256 for one in found) != sent:
        yield f"{upload.tag} sent {len(sent)} files, and {len(found)} are there"
    if upload.answer is Answer.MADE:
        if strangers := there.keys() - {asset.id for asset in upload.assets}:
            yield f"{upload.tag} was carried out more than once: {sorted(strangers)}"
        for asset in upload.assets:
            yield from _broken_promise(upload, asset, there.get(asset.id))
    added = {asset.id: asset.added for asset in upload.assets}
    for one in found:
        wanted = {upload.sizes + more for more in added.get(one.id, {()})}
        if one.sizes not in wanted:
            yield f"{one.id} was to have the sizes {' or '.join(map(str, wanted))}, and has {one.sizes}"


def _broken_promise(upload: Upload, asset: Asset, found: Found | None) -> Iterator[str]:
    if found is None:
        if asset.fate is Fate.KEPT:
            yield f"{asset.id} of {upload.tag} is lost"
        return
    if asset.fate is Fate.GONE:
        yield f"{asset.id} of {upload.tag} was deleted, and is there"
    if found.sha256 != asset.sha256:
        yield f"{asset.id} of {upload.tag} is another file"
    if found.visibility not in asset.visibilities:
        yield f"{asset.id} of {upload.tag} is {found.visibility}, and should be {' or '.join(asset.visibilities)}"
    if found.storage not in asset.storages:
        yield f"{asset.id} of {upload.tag} is in {found.storage}, and should be in {' or '.join(asset.storages)}"
