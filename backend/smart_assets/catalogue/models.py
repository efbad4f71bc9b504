"""The tables, and the records use-cases see of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    Uuid,
    false,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

from smart_assets.formats import ImageFormat
from smart_assets.visibility import Visibility

JsonObject = dict[str, Any]


class AssetState(StrEnum):
    """What is going on with an asset. `ready` and `moving` ones are there for callers; the others are not."""

    PENDING = "pending"
    READY = "ready"
    MOVING = "moving"
    DELETING = "deleting"


@dataclass(frozen=True, slots=True)
class VariantRecord:
    """A generated size. `size` is what the caller asked for, `name` what its key says.

    The numbers are 0 where it was planned and not made: then it is nothing to callers, but its key is the row's to
    clean up. Name and format together are its alone within an asset.
    """

    size: str
    name: str
    format: ImageFormat
    width: int = 0
    height: int = 0
    size_bytes: int = 0

    @property
    def full_name(self) -> str:
        """What no other size of the asset is called: the name and the extension, as they stand in its key."""
        return f"{self.name}.{self.format.extension}"

    def to_json(self) -> list[Any]:
        """A short row for the JSON column."""
        return [self.size, self.name, self.format.value, self.width, self.height, self.size_bytes]

    @classmethod
    def from_json(cls, row: list[Any]) -> VariantRecord:
        """What `to_json` wrote."""
        size, name, image_format, width, height, size_bytes = row
        return cls(size, name, ImageFormat(image_format), width, height, size_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetRecord:
    """One row: an asset and all that was made of it.

    `width` and `height` as a person sees them, in pixels; times in UTC. `version` counts the changes a caller can see.
    Retention leaves a `pinned` one alone. While `moving`, `target_visibility` says where to; or `target_storage` is
    the other storage of a move, at which copies are to go: where to, until the row is switched, and where from after;
    where there is neither, sizes are being added, those that were planned and not made.
    `lease` is the claim under which somebody is at work on a row that is not `ready`: the process's lease, a slash, a
    number. `credits_reserved` are its owner's that this work may cost, held as long as it goes on; `credits_used` those
    it has cost so far, None where nothing was metered.
    """

    id: UUID
    owner: str
    state: AssetState
    storage: str
    visibility: Visibility
    filename: str | None
    format: ImageFormat
    size_bytes: int
    width: int
    height: int
    sha256: str
    created_at: datetime
    updated_at: datetime
    variants: tuple[VariantRecord, ...] = ()
    tags: tuple[str, ...] = ()
    metadata: JsonObject = field(default_factory=dict)
    thumbhash: str | None = None
    dominant_color: str | None = None
    expires_at: datetime | None = None
    version: int = 1
    pinned: bool = False
    target_visibility: Visibility | None = None
    target_storage: str | None = None
    lease: str | None = None
    credits_reserved: int | None = None
    credits_used: int | None = None

    @property
    def made_variants(self) -> tuple[VariantRecord, ...]:
        """The sizes there are."""
        return tuple(variant for variant in self.variants if variant.size_bytes)

    @property
    def planned_variants(self) -> tuple[VariantRecord, ...]:
        """The sizes of which there may be bytes and nothing else."""
        return tuple(variant for variant in self.variants if not variant.size_bytes)

    @property
    def is_growing(self) -> bool:
        """Whether sizes are being added."""
        return self.state is AssetState.MOVING and self.target_visibility is None and self.target_storage is None

    @property
    def total_bytes(self) -> int:
        """Original and variants together."""
        return self.size_bytes + sum(variant.size_bytes for variant in self.variants)

    @property
    def settled_at(self) -> str:
        """The storage whose bytes are put right to settle a row that is not `ready`."""
        return self.target_storage or self.storage


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """A request under an Idempotency-Key: hashes of what it asks for and of what it sends, and what came of it.

    `outcome` is None while the request runs, under `claim`; then `body` is None too.
    """

    owner: str
    key: str
    request: str
    created_at: datetime
    body: str | None = None
    outcome: JsonObject | None = None
    claim: str | None = None


@dataclass(frozen=True, slots=True)
class JobRun:
    """When a job ran last, in UTC; `finished_at` None while it does, or where it was killed. `outcome` is the job's."""

    job: str
    started_at: datetime
    finished_at: datetime | None = None
    outcome: JsonObject | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyRecord:
    """A key callers have: `hash` is all that is kept of its secret. `last_used_at` is right to the hour."""

    id: UUID
    name: str
    owner: str
    scopes: tuple[str, ...]
    hash: bytes
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None


class CreditKind(StrEnum):
    """What a line of the ledger is."""

    GRANT = "grant"
    CHARGE = "charge"


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditAccount:
    """What an owner has: `balance` is the sum of its ledger, `reserved` the part of it that work under way may cost,
    `spent` all that was ever charged."""

    owner: str
    balance: int = 0
    reserved: int = 0
    spent: int = 0

    @property
    def available(self) -> int:
        """What further work may cost."""
        return self.balance - self.reserved


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditEntry:
    """A line of an owner's ledger; none is ever changed. Ids are in the order of time.

    A grant has an amount above 0, or below where credits are taken back; a charge one below 0. `asset_id` is what was
    charged for, where that was kept, `key_id` the key it was asked for with, or granted with. `request` is a hash of
    what makes a grant the same however often it is asked for.
    """

    id: UUID
    owner: str
    kind: CreditKind
    amount: int
    created_at: datetime
    asset_id: UUID | None = None
    key_id: UUID | None = None
    note: str | None = None
    request: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What was delivered of one asset, and what it costs: `originals` (with their `size_bytes`) and sizes."""

    entry_id: UUID
    owner: str
    credits: int
    at: datetime
    asset_id: UUID | None
    key_id: UUID | None
    originals: int
    sizes: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DailyUsage:
    """What was delivered to an owner on a day (UTC) by one of its keys (None: without any, or one in the settings)."""

    day: date
    key_id: UUID | None
    originals: int
    sizes: int
    size_bytes: int
    credits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketRecord:
    """Leave to upload one file of at most `max_bytes` without a key, as `wanted` says, for `owner`.

    `key_id` is the key it was made with, None where that is in no catalogue. `incoming` is the key in `storage` at
    which the file may lie before it was looked at, None where it comes through the service. `claim` is that of who is
    at work on it; `outcome` what came of it, None as long as it was not used.
    """

    id: UUID
    owner: str
    key_id: UUID | None
    storage: str
    incoming: str | None
    max_bytes: int
    wanted: JsonObject
    created_at: datetime
    expires_at: datetime
    claim: str | None = None
    outcome: JsonObject | None = None


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime, kept in UTC. SQLite keeps no zone, so it is taken off and put back."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuses naive datetimes: they are a bug."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a datetime without a zone")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Always aware."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_STATES = ", ".join(f"'{state}'" for state in AssetState)

assets = Table(
    "assets",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("storage", String(64), nullable=False),
    Column("visibility", String(16), nullable=False),
    Column("filename", String(1024)),
    # The filename case-folded, for the search by `q`: databases fold ASCII only, or by locale.
    Column("filename_folded", Text),
    Column("format", String(8), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("variants", JSON, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("thumbhash", String(64)),
    Column("dominant_color", String(7)),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("version", Integer, nullable=False),
    Column("pinned", Boolean, nullable=False, server_default=false()),
    Column("target_visibility", String(16)),
    Column("target_storage", String(64)),
    Column("lease", String(64)),
    Column("credits_reserved", BigInteger),
    Column("credits_used", BigInteger),
    CheckConstraint(f"state IN ({_STATES})", name="state"),
    # A page of the library is a range of one of these; ids are time-ordered.
    Index("ix_assets_owner_id", "owner", "id"),
    Index("ix_assets_owner_storage_id", "owner", "storage", "id"),
    Index("ix_assets_owner_visibility_id", "owner", "visibility", "id"),
    # Oldest and newest of a storage; and pages of what is everybody's.
    Index("ix_assets_storage_id", "storage", "id"),
    Index("ix_assets_visibility_id", "visibility", "id"),
)
# The assets of a storage that are to go one day.
Index(
    "ix_assets_storage_expires_at_id",
    assets.c.storage,
    assets.c.expires_at,
    assets.c.id,
    sqlite_where=assets.c.expires_at.is_not(None),
    postgresql_where=assets.c.expires_at.is_not(None),
)
# The few rows somebody is, or was, at work on.
Index(
    "ix_assets_unsettled",
    assets.c.state,
    assets.c.lease,
    sqlite_where=assets.c.state != "ready",
    postgresql_where=assets.c.state != "ready",
)

asset_tags = Table(
    "asset_tags",
    metadata,
    Column("owner", String(64), primary_key=True),
    Column("tag", String(64), primary_key=True),
    Column("asset_id", Uuid, ForeignKey("assets.id", ondelete="CASCADE"), primary_key=True),
    Index("ix_asset_tags_asset_id", "asset_id"),
    Index("ix_asset_tags_tag_asset_id", "tag", "asset_id"),
)

# Maintained in the transactions that change an asset's state, so that statistics never count rows.
storage_totals = Table(
    "storage_totals",
    metadata,
    Column("storage", String(64), primary_key=True),
    Column("assets", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
)

# What a request under an Idempotency-Key is, and what came of it. `outcome` is null while the first one runs, under
# `claim`, and `body` until that one's body was read.
idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("owner", String(64), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("request", String(64), nullable=False),
    Column("body", String(64)),
    Column("outcome", JSON(none_as_null=True)),
    Column("claim", String(64)),
    Column("created_at", UtcDateTime, nullable=False),
    Index("ix_idempotency_keys_created_at", "created_at"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", String(200), nullable=False),
    Column("owner", String(64), nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("hash", LargeBinary(32), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("last_used_at", UtcDateTime),
    # Each request with a key looks for it.
    Index("ix_api_keys_hash", "hash", unique=True),
)

# What each owner has, maintained in the transactions that write the ledger and the assets: nobody adds up a ledger to
# know whether an upload can be paid. `reserved` is the sum of the owner's `assets.credits_reserved`.
credit_accounts = Table(
    "credit_accounts",
    metadata,
    Column("owner", String(64), primary_key=True),
    Column("balance", BigInteger, nullable=False),
    Column("reserved", BigInteger, nullable=False),
    Column("spent", BigInteger, nullable=False),
    CheckConstraint("reserved >= 0 AND balance >= reserved", name="covered"),
)

credit_entries = Table(
    "credit_entries",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("kind", String(8), nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("asset_id", Uuid),
    Column("key_id", Uuid),
    Column("note", String(200)),
    Column("request", String(64)),
    Column("created_at", UtcDateTime, nullable=False),
    # A page of an owner's ledger is a range of this; ids are time-ordered.
    Index("ix_credit_entries_owner_id", "owner", "id"),
    # A grant that is asked for again is found; charges have none.
    Index("ix_credit_entries_request", "request", unique=True),
)

# What was delivered, by owner, day and key (empty where it was none of the catalogue's), maintained like the accounts.
credit_usage = Table(
    "credit_usage",
    metadata,
    Column("owner", String(64), primary_key=True),
    Column("day", Date, primary_key=True),
    Column("key_id", String(36), primary_key=True),
    Column("originals", BigInteger, nullable=False),
    Column("sizes", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("credits", BigInteger, nullable=False),
)

# What may be uploaded without a key. `outcome` is null until it was; who is at work on it has a `claim`.
upload_tickets = Table(
    "upload_tickets",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("key_id", Uuid),
    Column("storage", String(64), nullable=False),
    Column("incoming", String(200)),
    Column("max_bytes", BigInteger, nullable=False),
    Column("wanted", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("claim", String(64)),
    Column("outcome", JSON(none_as_null=True)),
    Index("ix_upload_tickets_expires_at", "expires_at"),
)
# The few somebody is, or was, at work on.
Index(
    "ix_upload_tickets_claim",
    upload_tickets.c.claim,
    sqlite_where=upload_tickets.c.claim.is_not(None),
    postgresql_where=upload_tickets.c.claim.is_not(None),
)

# Who this catalogue is (one row), and how many times it tidied up each storage. A storage's marker object says the
# same, so that nobody tidies up by another catalogue's rows, or by those of an old backup.
identity = Table("identity", metadata, Column("id", Uuid, primary_key=True))
tidied = Table(
    "tidied",
    metadata,
    Column("storage", String(64), primary_key=True),
    Column("runs", Integer, nullable=False),
)

# When a job that one process of all does (retention, say) ran last, and what came of it.
job_runs = Table(
    "job_runs",
    metadata,
    Column("job", String(32), primary_key=True),
    Column("started_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime),
    Column("outcome", JSON(none_as_null=True)),
)

# A process shows that it lives by raising `beat`. Whoever watches compares beats over its own monotonic clock, so no
# clock of two machines is ever compared, and a clock that jumps changes nothing.
leases = Table(
    "leases",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("beat", BigInteger, nullable=False),
)
