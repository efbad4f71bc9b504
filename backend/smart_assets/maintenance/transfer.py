"""Taking the library's descriptions along: one JSON object a line, and rows of them again.

A line says all a row knows that its bytes do not: with the objects still in their storages, a catalogue can be made
anew of it. Every line names its format, and one of another format is refused, so that a later one may say more.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, BinaryIO, Final, Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from smart_assets.assets.metadata import check_metadata
from smart_assets.assets.objects import created_at, original_key, variant_key
from smart_assets.assets.together import all_or_first_error
from smart_assets.catalogue.database import Database
from smart_assets.catalogue.models import AssetRecord, AssetState, VariantRecord
from smart_assets.catalogue.repository import AssetFilter, Repository
from smart_assets.errors import Busy, InvalidParameter
from smart_assets.formats import ImageFormat
from smart_assets.storage.base import StorageBackend
from smart_assets.storage.errors import ObjectNotFound, StorageError, StorageNotConfigured, StorageUnavailable
from smart_assets.storage.keys import ORIGINAL, parse_asset_key
from smart_assets.storage.registry import Storages
from smart_assets.threads import Threads
from smart_assets.visibility import Visibility

FORMAT: Final = "smart-assets/asset/1"
MEDIA_TYPE: Final = "application/x-ndjson"

LONGEST_LINE: Final = 256 * 1024
"""In bytes: more than a row with the most metadata, tags and sizes there can be comes to."""

MOST_FINDINGS: Final = 1000
"""So many are listed; the rest is only counted."""

_PAGE: Final = 500
_BATCH: Final = 100
_ASSETS_AT_ONCE: Final = 8

Problem = Literal["refused", "missing", "damaged", "unreadable", "not_configured"]
Progress = Callable[[int], None]
"""How many bytes of the file are done."""


# ── Out ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def exported(database: Database, criteria: AssetFilter) -> AsyncGenerator[bytes, None]:
    """The lines of the assets that `criteria` admits, oldest first, a page at a time.

    No asset comes twice. Each page is one state of the catalogue, all of them are not.
    """
    after: UUID | None = None
    while page := await database.read(partial(_page, criteria=criteria, after=after)):
        yield b"".join(map(line_of, page))
        after = page[-1].id


def _page(catalogue: Repository, *, criteria: AssetFilter, after: UUID | None) -> tuple[AssetRecord, ...]:
    return catalogue.list(criteria, limit=_PAGE, after=after, newest_first=False)


def line_of(record: AssetRecord) -> bytes:
    """One asset's line, its end included."""
    line = {
        "format": FORMAT,
        "id": str(record.id),
        "owner": record.owner,
        "storage": record.storage,
        "visibility": record.visibility,
        "filename": record.filename,
        "image_format": record.format,
        "size_bytes": record.size_bytes,
        "width": record.width,
        "height": record.height,
        "sha256": record.sha256,
        "variants": [
            {
                "size": variant.size,
                "name": variant.name,
                "image_format": variant.format,
                "width": variant.width,
                "height": variant.height,
                "size_bytes": variant.size_bytes,
            }
            for variant in record.made_variants
        ],
        "tags": record.tags,
        "metadata": record.metadata,
        "thumbhash": record.thumbhash,
        "dominant_color": record.dominant_color,
        "created_at": _timestamp(record.created_at),
        "updated_at": _timestamp(record.updated_at),
        "expires_at": _timestamp(record.expires_at),
        "pinned": record.pinned,
        "version": record.version,
    }
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _timestamp(moment: datetime | None) -> str | None:
    return moment.astimezone(UTC).isoformat().removesuffix("+00:00") + "Z" if moment is not None else None


# ── In ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

_Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
_Bytes = Annotated[int, Field(ge=1, le=2**63 - 1)]
_Text = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$")]


class _Variant(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    size: Annotated[str, Field(pattern=r"^(\d{1,4}(x\d{1,4})?|x\d{1,4})$")]
    name: Annotated[str, Field(pattern=r"^[0-9a-z-]{1,64}$")]
    image_format: ImageFormat
    width: _Count
    height: _Count
    size_bytes: _Bytes


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal["smart-assets/asset/1"]
    id: UUID
    owner: _Text
    storage: _Text
    visibility: Visibility
    filename: Annotated[str, Field(max_length=1024, pattern=r"^[^\x00]*$")] | None
    image_format: ImageFormat
    size_bytes: _Bytes
    width: _Count
    height: _Count
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    variants: list[_Variant]
    tags: Annotated[list[_Text], Field(max_length=50)]
    metadata: dict[str, Any]
    thumbhash: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/=]{1,64}$")] | None
    dominant_color: Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$")] | None
    created_at: AwareDatetime
    updated_at: AwareDatetime
    expires_at: AwareDatetime | None
    pinned: bool
    version: _Count


class Refused(Exception):
    """A line that is none of ours; it says why."""


def record_of(line: bytes) -> AssetRecord:
    """The row a line describes; Refused for what `line_of` would not have written."""
    try:
        given = _Line.model_validate_json(line)
        metadata = check_metadata(given.metadata)
    except ValidationError as error:
        raise Refused(_why(error)) from None
    except InvalidParameter as error:
        raise Refused(error.detail) from None
    record = AssetRecord(
        id=given.id,
        owner=given.owner,
        state=AssetState.READY,
        storage=given.storage,
        visibility=given.visibility,
        filename=given.filename,
        format=given.image_format,
        size_bytes=given.size_bytes,
        width=given.width,
        height=given.height,
        sha256=given.sha256,
        created_at=given.created_at,
        updated_at=given.updated_at,
        variants=tuple(
            VariantRecord(each.size, each.name, each.image_format, each.width, each.height, each.size_bytes)
            for each in given.variants
        ),
        tags=tuple(given.tags),
        metadata=metadata,
        thumbhash=given.thumbhash,
        dominant_color=given.dominant_color,
        expires_at=given.expires_at,
        version=given.version,
        pinned=given.pinned,
    )
    _check(record)
    return record


def _check(record: AssetRecord) -> None:
    """Refused where the parts do not fit each other."""
    with suppress(ValueError, OverflowError):
        if record.created_at == created_at(record.id) and parse_asset_key(original_key(record)) is not None:
            names = [variant.full_name for variant in record.variants]
            if len(set(names)) < len(names) or any(variant.name == ORIGINAL for variant in record.variants):
                raise Refused("variants: two of them are the same")
            if len(set(record.tags)) < len(record.tags):
                raise Refused("tags: one stands twice")
            return
    raise Refused("id: is not one of ours, made at created_at")


def _why(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if where == "format":
        return f"format: is not {FORMAT}"
    return f"{where}: {first['msg']}" if where else "is not a JSON object"


@dataclass(frozen=True)
class Finding:
    """A line of which no row was made: its number, from 1, and why."""

    line: int
    problem: Problem
    detail: str
    id: UUID | None = None


@dataclass
class Report:
    """What came of a file. `imported` rows were made, or would have been; `known` ids were there, and left alone."""

    lines: int = 0
    imported: int = 0
    known: int = 0
    problems: Counter[Problem] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    """The first MOST_FINDINGS of them."""

    @property
    def is_right(self) -> bool:
        """Whether every line has its row."""
        return not self.problems

    def note(self, finding: Finding) -> None:
        """Something is wrong with a line."""
        self.problems[finding.problem] += 1
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(finding)


class Import:
    """Makes rows of lines, where their objects are."""

    def __init__(self, database: Database, storages: Storages, threads: Threads) -> None:
        """Into this catalogue, for objects in these storages."""
        self._database = database
        self._storages = storages
        self._threads = threads
        self._report = Report()

    async def run(self, file: BinaryIO, *, dry_run: bool = False, progress: Progress = lambda _: None) -> Report:
        """Read the file to its end; with `dry_run` nothing is written.

        A row is made only where each of its objects is there, of the size it should have; ids that are there already
        are left as they are. So it may be run again, after whatever ended it. Raises Busy while another import into
        the same catalogue runs, StorageUnavailable where a storage does not answer, and OSError where the file cannot
        be read.
        """
        async with self._database.job("import") as may:
            if not may:
                raise Busy("another import into this catalogue is running")
            lines = _Lines(file)
            while batch := await self._threads.run(lines.next):
                await self._take(batch, dry_run=dry_run)
                progress(lines.read)
        return self._report

    async def _take(self, batch: Sequence[tuple[int, bytes | None]], *, dry_run: bool) -> None:
        report = self._report
        wanted: dict[UUID, tuple[int, AssetRecord]] = {}
        for number, line in batch:
            report.lines += 1
            try:
                record = _parsed(line)
            except Refused as refusal:
                report.note(Finding(number, "refused", str(refusal)))
                continue
            if record.id in wanted:
                report.known += 1
            else:
                wanted[record.id] = number, record
        there = await self._database.read(lambda catalogue: catalogue.get_all_in_any_state(list(wanted)))
        report.known += len(there)
        turns = asyncio.Semaphore(_ASSETS_AT_ONCE)

        async def verified(number: int, record: AssetRecord) -> AssetRecord | Finding:
            async with turns:
                return await self._verified(number, record)

        unknown = [each for asset_id, each in wanted.items() if asset_id not in there]
        outcomes = await all_or_first_error(*(verified(*each) for each in unknown))
        for outcome in outcomes:
            if isinstance(outcome, Finding):
                report.note(outcome)
        sound = [outcome for outcome in outcomes if isinstance(outcome, AssetRecord)]
        made = len(sound)
        if sound and not dry_run:
            made = await self._database.write(lambda catalogue: catalogue.insert_ready(sound))
        report.imported += made
        report.known += len(sound) - made

    async def _verified(self, number: int, record: AssetRecord) -> AssetRecord | Finding:
        """The record, where every object it names is there, of its size; else what is wrong."""
        try:
            backend = self._storages.get(record.storage)
        except StorageNotConfigured as error:
            return Finding(number, "not_configured", error.detail, record.id)
        if not backend.capabilities.lasting:
            return Finding(number, "missing", f"{backend.name} keeps nothing from before", record.id)
        objects = {original_key(record): record.size_bytes} | {
            variant_key(record, variant): variant.size_bytes for variant in record.variants
        }
        for key, size in objects.items():
            if (finding := await _looked_at(backend, key, size, number, record.id)) is not None:
                return finding
        return record


async def _looked_at(backend: StorageBackend, key: str, size: int, number: int, asset_id: UUID) -> Finding | None:
    try:
        stored = await backend.stat(key)
    except ObjectNotFound:
        return Finding(number, "missing", f"there is no {key}", asset_id)
    except StorageUnavailable:
        raise
    except StorageError as error:
        return Finding(number, "unreadable", f"{key}: {error.detail}", asset_id)
    if stored.size != size:
        return Finding(number, "damaged", f"{key} has {stored.size} bytes, not {size}", asset_id)
    return None


def _parsed(line: bytes | None) -> AssetRecord:
    if line is None:
        raise Refused(f"is longer than {LONGEST_LINE} bytes")
    return record_of(line)


class _Lines:
    """A file's lines by their numbers, some at a time, and never more of them in memory; empty ones are left out."""

    def __init__(self, file: BinaryIO) -> None:
        self.read = 0
        """Bytes so far."""
        self._file = file
        self._number = 0

    def next(self) -> list[tuple[int, bytes | None]]:
        """The next lines, None for one that is too long; none at the end. Blocks."""
        batch: list[tuple[int, bytes | None]] = []
        while len(batch) < _BATCH and (line := self._next_line()) != b"":
            if line is None or line.strip():
                batch.append((self._number, line))
        return batch

    def _next_line(self) -> bytes | None:
        line = self._piece()
        self._number += 1
        if len(line) <= LONGEST_LINE or line.endswith(b"\n"):
            return line.removeprefix(b"\xef\xbb\xbf") if self._number == 1 else line
        while (piece := self._piece()) and not piece.endswith(b"\n"):
            pass
        return None

    def _piece(self) -> bytes:
        piece = self._file.readline(LONGEST_LINE + 1)
        self.read += len(piece)
        return piece
