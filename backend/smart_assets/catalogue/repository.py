"""Every query of the catalogue. One repository lives as long as one transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, date, datetime
from typing import Any, TypeVarTuple
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Row,
    Select,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert  # which SQLite's compiler takes as well: one for both
from sqlalchemy.engine import Connection

from smart_assets.catalogue.models import (
    ApiKeyRecord,
    AssetRecord,
    AssetState,
    Charge,
    CreditAccount,
    CreditEntry,
    CreditKind,
    DailyUsage,
    JobRun,
    JsonObject,
    KeyRecord,
    TicketRecord,
    VariantRecord,
    api_keys,
    asset_tags,
    assets,
    credit_accounts,
    credit_entries,
    credit_usage,
    idempotency_keys,
    identity,
    job_runs,
    leases,
    storage_totals,
    tidied,
    upload_tickets,
)
from smart_assets.errors import InsufficientCredits
from smart_assets.formats import ImageFormat
from smart_assets.visibility import Visibility

Columns = TypeVarTuple("Columns")

# What a caller may see. Written out, not bound, so that the planner knows it when it chooses an index.
_VISIBLE: ColumnElement[bool] = literal_column(f"assets.state IN ('{AssetState.READY}', '{AssetState.MOVING}')")
_READY: ColumnElement[bool] = literal_column(f"assets.state = '{AssetState.READY}'")
_UNSETTLED: ColumnElement[bool] = literal_column(f"assets.state != '{AssetState.READY}'")
_SETTLED_AT = func.coalesce(assets.c.target_storage, assets.c.storage)

_COLUMNS = tuple(column.name for column in fields(AssetRecord))
_ASSET = select(*(assets.c[name] for name in _COLUMNS))

# What every upload and every fetch by id runs is built once: building costs more than running it.
_INSERT = insert(assets)
_MARK_READY = (
    update(assets)
    .where(
        assets.c.id == bindparam("asset_id"),
        assets.c.state == literal_column(f"'{AssetState.PENDING}'"),
        assets.c.lease.is_not_distinct_from(bindparam("held_by")),
    )
    .values(
        state=AssetState.READY,
        lease=None,
        variants=bindparam("variants"),
        thumbhash=bindparam("thumbhash"),
        dominant_color=bindparam("dominant_color"),
        credits_reserved=None,
        credits_used=bindparam("credits_used"),
    )
)
_NEW_TOTALS = upsert(storage_totals)
_ADD_TO_TOTALS = _NEW_TOTALS.on_conflict_do_update(
    index_elements=["storage"],
    set_={
        "assets": storage_totals.c.assets + _NEW_TOTALS.excluded.assets,
        "bytes": storage_totals.c.bytes + _NEW_TOTALS.excluded.bytes,
    },
)
_MOVE_CREDITS = (
    update(credit_accounts)
    .where(
        credit_accounts.c.owner == bindparam("of"),
        # What is reserved is never more than there is: an upload that cannot be paid finds no row to change.
        credit_accounts.c.balance + bindparam("more_balance", type_=BigInteger)
        >= credit_accounts.c.reserved + bindparam("more_reserved", type_=BigInteger),
    )
    .values(
        balance=credit_accounts.c.balance + bindparam("more_balance", type_=BigInteger),
        reserved=credit_accounts.c.reserved + bindparam("more_reserved", type_=BigInteger),
        spent=credit_accounts.c.spent + bindparam("more_spent", type_=BigInteger),
    )
)
_USED = ("originals", "sizes", "size_bytes", "credits")
_NEW_USAGE = upsert(credit_usage)
_ADD_TO_USAGE = _NEW_USAGE.on_conflict_do_update(
    index_elements=["owner", "day", "key_id"],
    set_={name: credit_usage.c[name] + _NEW_USAGE.excluded[name] for name in _USED},
)
_FIND_API_KEY = select(api_keys).where(api_keys.c.hash == bindparam("key_hash"))
_GET = _ASSET.where(assets.c.id == bindparam("asset_id"), _VISIBLE)
_GET_OWNED = _GET.where(assets.c.owner == bindparam("owned_by"))


@dataclass(frozen=True, kw_only=True)
class AssetFilter:
    """Which assets a list is about; None leaves a criterion out. Ids are in the order of time: `since` is the least,
    `until` the first that is too late."""

    owner: str | None = None
    storage: str | None = None
    visibility: Visibility | None = None
    tag: str | None = None
    since: UUID | None = None
    until: UUID | None = None
    filename_contains: str | None = None


@dataclass(frozen=True)
class StorageTotals:
    """What a storage holds: bytes of originals and variants together; times of creation in UTC."""

    storage: str
    assets: int
    bytes: int
    oldest: datetime | None
    newest: datetime | None


@dataclass
class _Movement:
    """By how much an owner's account changes in a transaction."""

    balance: int = 0
    reserved: int = 0
    spent: int = 0


class Repository:
    """Queries over one open transaction.

    In one that writes, rows that are got by their id or key are locked until its end: what was read of them holds.
    """

    def __init__(self, connection: Connection, *, writes: bool = False) -> None:
        """The transaction is the caller's, and `finish` is the last thing in it."""
        self._connection = connection
        self._writes = writes
        self._totals: dict[str, tuple[int, int]] = {}
        self._accounts: dict[str, _Movement] = {}
        self._entries: list[CreditEntry] = []
        self._used: list[Charge] = []

    def finish(self) -> None:
        """Write what was put off to the end of the transaction.

        All that changes a storage's assets changes one row of totals, and all that an owner pays one account: they are
        locked last, and for as short as can be, and several in one order, so that no two transactions ever wait for
        each other's. InsufficientCredits where an owner has not what the transaction takes.
        """
        self._write_credits()
        totals = [{"storage": name, "assets": each[0], "bytes": each[1]} for name, each in sorted(self._totals.items())]
        self._totals.clear()
        if totals:
            self._connection.execute(_ADD_TO_TOTALS, totals)

    def _held(self, query: Select[*Columns]) -> Select[*Columns]:
        """`query`, whose rows are to stay as they are until a transaction that writes ends."""
        return (
            query.with_for_update(key_share=True) if self._writes else query
        )  # SQLite has no such clause, nor needs it

    # ── Uploads ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def insert_pending(self, records: Sequence[AssetRecord]) -> None:
        """The intent: rows whose bytes are about to be written, and what they may cost, reserved with them."""
        self._insert(records)
        for record in records:
            self._reserve(record)

    def _insert(self, records: Sequence[AssetRecord]) -> None:
        self._connection.execute(_INSERT, [_to_row(record) for record in records])
        tags = [{"owner": record.owner, "tag": tag, "asset_id": record.id} for record in records for tag in record.tags]
        if tags:
            self._connection.execute(insert(asset_tags), tags)

    def mark_ready(self, record: AssetRecord) -> bool:
        """Close an upload's intent, with what was really made; False where the row was taken away meanwhile.

        What was reserved for it is free again: what is to be paid is charged in the same transaction (`charge`).
        """
        made = {
            "variants": [variant.to_json() for variant in record.variants],
            "thumbhash": record.thumbhash,
            "dominant_color": record.dominant_color,
            "credits_used": record.credits_used,
        }
        where = {"asset_id": record.id, "held_by": record.lease}
        closed = self._connection.execute(_MARK_READY, made | where).rowcount == 1
        if closed:
            self._add_to_totals(record.storage, 1, record.total_bytes)
            self._release(record)
        return closed

    def insert_ready(self, records: Sequence[AssetRecord]) -> int:
        """Rows of assets whose bytes are there; those whose ids are taken are left out. How many were made."""
        taken = self.get_all_in_any_state([record.id for record in records])
        new = [record for record in records if record.id not in taken]
        if new:
            self._insert(new)
        for storage in sorted({record.storage for record in new}):  # in one order: two at once must not wait in a ring
            sizes = [record.total_bytes for record in new if record.storage == storage]
            self._add_to_totals(storage, len(sizes), sum(sizes))
        return len(new)

    # ── The library ─────────────────────────────────────────────────────────────────────────────────────────────────

    def get(self, asset_id: UUID, owner: str | None = None) -> AssetRecord | None:
        """An asset a caller may see; with `owner`, only of that owner."""
        query, where = (_GET, {}) if owner is None else (_GET_OWNED, {"owned_by": owner})
        row = self._connection.execute(self._held(query), {"asset_id": asset_id, **where}).one_or_none()
        return _from_row(row) if row is not None else None

    def list(
        self, criteria: AssetFilter, *, limit: int, after: UUID | None = None, newest_first: bool = True
    ) -> tuple[AssetRecord, ...]:
        """At most `limit` assets that come after the one of id `after`, in order of creation."""
        if any(isinstance(value, str) and "\0" in value for value in vars(criteria).values()):
            return ()  # no text of a row holds one, and PostgreSQL refuses to look for it
        where: list[ColumnElement[bool]] = [_VISIBLE]
        source = _ASSET
        equals, order_by = _equals, assets.c.id
        if criteria.tag is not None:
            source = source.join_from(assets, asset_tags, asset_tags.c.asset_id == assets.c.id)
            where.append(asset_tags.c.tag == criteria.tag)
            if criteria.owner is not None:
                where.append(asset_tags.c.owner == criteria.owner)
            order_by = asset_tags.c.asset_id
            if self._connection.dialect.name == "sqlite":
                # The tag is what there is least of, and in the right order; it would begin with the owner, and sort.
                equals = _equals_by_no_index
        if criteria.owner is not None:
            where.append(equals(assets.c.owner, criteria.owner))
        if criteria.storage is not None:
            where.append(equals(assets.c.storage, criteria.storage))
        if criteria.visibility is not None:
            where.append(equals(assets.c.visibility, criteria.visibility))
        if criteria.filename_contains is not None:
            where.append(assets.c.filename_folded.contains(criteria.filename_contains, autoescape=True))
        where += _between(order_by, criteria, after=after, newest_first=newest_first)
        query = source.where(*where).order_by(order_by.desc() if newest_first else order_by).limit(limit)
        return tuple(_from_row(row) for row in self._connection.execute(query))

    def change(self, record: AssetRecord, previous_version: int) -> bool:
        """Write what a caller may change of a `ready` asset; False where it is no longer at `previous_version`."""
        result = self._connection.execute(
            update(assets)
            .where(
                assets.c.id == record.id,
                assets.c.version == previous_version,
                assets.c.state == AssetState.READY,
            )
            .values(_changeable(record))
        )
        if result.rowcount == 1:
            self._replace_tags(record)
            return True
        return False

    def _replace_tags(self, record: AssetRecord) -> None:
        self._connection.execute(delete(asset_tags).where(asset_tags.c.asset_id == record.id))
        if record.tags:
            self._connection.execute(
                insert(asset_tags),
                [{"owner": record.owner, "tag": tag, "asset_id": record.id} for tag in record.tags],
            )

    def totals(self) -> tuple[StorageTotals, ...]:
        """What every storage holds, by name."""
        self.finish()
        found = []
        # Sorted here: databases order text by their locale.
        for row in sorted(self._connection.execute(select(storage_totals))):
            of_storage = select(assets.c.created_at).where(assets.c.storage == row.storage, _VISIBLE).limit(1)
            oldest = self._connection.execute(of_storage.order_by(assets.c.id)).scalar()
            newest = self._connection.execute(of_storage.order_by(assets.c.id.desc())).scalar()
            found.append(StorageTotals(row.storage, row.assets, row.bytes, oldest, newest))
        return tuple(found)

    def count_deleting(self) -> int:
        """Deletions that are owed: gone for callers, bytes perhaps still there."""
        query = select(func.count()).select_from(assets).where(_UNSETTLED, assets.c.state == AssetState.DELETING)
        return self._connection.execute(query).scalar_one()

    def count_unsettled(self) -> dict[tuple[str, AssetState], int]:
        """How many rows somebody is, or was, at work on, by the storage that is put right to settle them, and state."""
        query = (
            select(_SETTLED_AT, assets.c.state, func.count()).where(_UNSETTLED).group_by(_SETTLED_AT, assets.c.state)
        )
        found = self._connection.execute(query)
        return {(storage, AssetState(state)): count for storage, state, count in found}

    # ── Changes of state ────────────────────────────────────────────────────────────────────────────────────────────

    def get_in_any_state(self, asset_id: UUID) -> AssetRecord | None:
        """The row, whether callers may see it or not."""
        row = self._connection.execute(self._held(_ASSET.where(assets.c.id == asset_id))).one_or_none()
        return _from_row(row) if row is not None else None

    def begin_deleting(self, asset_id: UUID, claim: str, *, version: int | None = None) -> AssetRecord | None:
        """From `ready` to `deleting`: gone for callers from here on. The row as it is now, with the keys it has now;
        None where it is not `ready`, or, with `version`, not at that one any more."""
        record = self.get(asset_id)
        if record is None or version not in {None, record.version}:
            return None
        begun = self._connection.execute(
            update(assets)
            .where(assets.c.id == asset_id, assets.c.state == AssetState.READY, assets.c.version == record.version)
            .values(state=AssetState.DELETING, lease=claim)
        )
        if begun.rowcount != 1:
            return None
        self._add_to_totals(record.storage, -1, -record.total_bytes)
        return replace(record, state=AssetState.DELETING, lease=claim)

    def begin_moving(self, asset_id: UUID, target: Visibility, version: int, claim: str) -> bool:
        """From `ready` to `moving` towards another visibility; False where it is not `ready` at that version."""
        result = self._connection.execute(
            update(assets)
            .where(assets.c.id == asset_id, assets.c.state == AssetState.READY, assets.c.version == version)
            .values(state=AssetState.MOVING, target_visibility=target, lease=claim)
        )
        return result.rowcount == 1

    def finish_moving(self, record: AssetRecord) -> bool:
        """From `moving` back to `ready`, with `record`'s visibility and whatever else changed along with it.

        False where the row is not under `record`'s claim any more.
        """
        finished = self._update(
            record.id,
            AssetState.MOVING,
            record.lease,
            **_changeable(record),
            state=AssetState.READY,
            visibility=record.visibility,
            target_visibility=None,
            lease=None,
        )
        if finished:
            self._replace_tags(record)
        return finished

    def begin_growing(self, record: AssetRecord) -> bool:
        """From `ready` to `moving`, to nowhere else: `record`'s variants name every key about to be written, its lease
        who does it; what it may cost is reserved. False where the row is not `ready` at `record`'s version."""
        result = self._connection.execute(
            update(assets)
            .where(assets.c.id == record.id, assets.c.state == AssetState.READY, assets.c.version == record.version)
            .values(
                state=AssetState.MOVING,
                lease=record.lease,
                variants=[variant.to_json() for variant in record.variants],
                credits_reserved=record.credits_reserved,
            )
        )
        if result.rowcount == 1:
            self._reserve(record)
            return True
        return False

    def finish_growing(self, record: AssetRecord, added_bytes: int) -> bool:
        """From `moving` back to `ready`, with what was really made; `added_bytes` is how much larger the asset is.

        What was reserved is free again, as in `mark_ready`. False where the row is not under `record`'s claim any more.
        """
        finished = self._update(
            record.id,
            AssetState.MOVING,
            record.lease,
            state=AssetState.READY,
            lease=None,
            variants=[variant.to_json() for variant in record.variants],
            thumbhash=record.thumbhash,
            dominant_color=record.dominant_color,
            updated_at=record.updated_at,
            version=record.version,
            credits_reserved=None,
            credits_used=record.credits_used,
        )
        if finished:
            self._release(record)
            if added_bytes:
                self._add_to_totals(record.storage, 0, added_bytes)
        return finished

    def begin_moving_to(self, asset_id: UUID, storage: str, version: int, claim: str) -> bool:
        """From `ready` to `moving` towards another storage; False where it is not `ready` at that version."""
        result = self._connection.execute(
            update(assets)
            .where(assets.c.id == asset_id, assets.c.state == AssetState.READY, assets.c.version == version)
            .values(state=AssetState.MOVING, target_storage=storage, lease=claim)
        )
        return result.rowcount == 1

    def switch_storage(self, record: AssetRecord, updated_at: datetime) -> AssetRecord | None:
        """Let a `moving` asset be at its target storage, and the one it was at be what is left to be emptied.

        The row as it is then; None where it is not under `record`'s claim any more.
        """
        if record.target_storage is None:
            raise ValueError("not on its way to another storage")
        moved = replace(
            record,
            storage=record.target_storage,
            target_storage=record.storage,
            version=record.version + 1,
            updated_at=updated_at,
        )
        result = self._connection.execute(
            update(assets)
            .where(
                assets.c.id == record.id,
                assets.c.state == AssetState.MOVING,
                assets.c.lease == record.lease,
                assets.c.storage == record.storage,
                assets.c.target_storage == record.target_storage,
            )
            .values(
                storage=moved.storage,
                target_storage=moved.target_storage,
                version=moved.version,
                updated_at=moved.updated_at,
            )
        )
        if result.rowcount != 1:
            return None
        self._add_to_totals(record.storage, -1, -record.total_bytes)
        self._add_to_totals(moved.storage, 1, moved.total_bytes)
        return moved

    def hold_move(self, asset_id: UUID, claim: str) -> AssetRecord | None:
        """The row of a move under that claim, as it really is; None where it is under it no more.

        It is written, though nothing changes: so whatever was being committed to it has ended, one way or the other.
        """
        if not self._update(asset_id, AssetState.MOVING, claim, lease=claim):
            return None
        record = self.get_in_any_state(asset_id)
        return record if record is not None and record.target_storage is not None else None

    def close_move(self, record: AssetRecord) -> bool:
        """From `moving` back to `ready` at the storage it is at, once nothing of it is left at the other one.

        False where the row is not under `record`'s claim any more.
        """
        return self._update(
            record.id, AssetState.MOVING, record.lease, state=AssetState.READY, target_storage=None, lease=None
        )

    def count_moves(self, *, storage: str, other: str) -> int:
        """How many assets of `storage` are `moving` and may have copies at the `other` one."""
        query = select(func.count()).where(
            _UNSETTLED,
            assets.c.state == AssetState.MOVING,
            assets.c.storage == storage,
            assets.c.target_storage == other,
        )
        return self._connection.execute(query).scalar_one()

    def is_claimed(self, record: AssetRecord) -> bool:
        """Whether the row still is in `record`'s state under `record`'s claim."""
        query = select(assets.c.id).where(
            assets.c.id == record.id,
            assets.c.state == record.state,
            assets.c.lease.is_not_distinct_from(record.lease),
        )
        return self._connection.execute(self._held(query)).one_or_none() is not None

    def give_up_pending(self, record: AssetRecord) -> AssetState | None:
        """From `pending` to `deleting`, under `record`'s claim; the state the row is in then, None where it is gone.

        Nothing of it will be delivered any more: what was reserved for it is free again, however long its bytes stay.
        """
        if self._update(record.id, AssetState.PENDING, record.lease, state=AssetState.DELETING, credits_reserved=None):
            self._release(record)
            return AssetState.DELETING
        current = self.get_in_any_state(record.id)
        return current.state if current is not None else None

    def remove(self, record: AssetRecord) -> bool:
        """Take away a row that is `deleting` under `record`'s claim; its bytes must be gone."""
        result = self._connection.execute(
            delete(assets).where(
                assets.c.id == record.id,
                assets.c.state == AssetState.DELETING,
                assets.c.lease.is_not_distinct_from(record.lease),
            )
        )
        return result.rowcount == 1

    def remove_storage(self, storage: str) -> int:
        """Forget every asset of a storage whose bytes are gone with the process that held them.

        One that was on its way there or from there is `deleting`: the other storage may hold some of its bytes.
        """
        self._connection.execute(
            update(assets)
            .where(_UNSETTLED, assets.c.storage == storage, assets.c.target_storage.is_not(None))
            .values(state=AssetState.DELETING, storage=assets.c.target_storage, target_storage=None, lease=None)
        )
        held = (
            select(assets.c.owner, func.sum(assets.c.credits_reserved))
            .where(_UNSETTLED, assets.c.storage == storage, assets.c.credits_reserved.is_not(None))
            .group_by(assets.c.owner)
        )
        for owner, reserved in self._connection.execute(held).all():
            self._account(owner).reserved -= int(reserved)
        removed = self._connection.execute(delete(assets).where(assets.c.storage == storage)).rowcount
        self._totals.pop(storage, None)
        self._connection.execute(delete(storage_totals).where(storage_totals.c.storage == storage))
        return removed

    def _update(self, asset_id: UUID, state: AssetState, lease: str | None, /, **values: Any) -> bool:
        """Change a row only where it still is in the state, and under the claim, the caller thinks it is."""
        result = self._connection.execute(
            update(assets)
            .where(assets.c.id == asset_id, assets.c.state == state, assets.c.lease.is_not_distinct_from(lease))
            .values(values)
        )
        return result.rowcount == 1

    def _add_to_totals(self, storage: str, count: int, size: int) -> None:
        before = self._totals.get(storage, (0, 0))
        self._totals[storage] = (before[0] + count, before[1] + size)

    # ── Retention ───────────────────────────────────────────────────────────────────────────────────────────────────

    def anything_expires(self) -> bool:
        """Whether there is an asset that has an end, passed or to come."""
        query = select(assets.c.id).where(assets.c.expires_at.is_not(None)).limit(1)
        return self._connection.execute(query).first() is not None

    def expired(
        self, storage: str, now: datetime, *, after: tuple[datetime, UUID] | None, limit: int
    ) -> tuple[AssetRecord, ...]:
        """At most `limit` assets of a storage that have expired and are not pinned, who expired first coming first;
        those that come behind `after`, an expiry and an id."""
        query = _ASSET.where(*_expired(storage, now))
        if after is not None:
            query = query.where(tuple_(assets.c.expires_at, assets.c.id) > after)
        query = query.order_by(assets.c.expires_at, assets.c.id).limit(limit)
        return tuple(_from_row(row) for row in self._connection.execute(query))

    def oldest(self, storage: str, *, before: UUID | None, after: UUID | None, limit: int) -> tuple[AssetRecord, ...]:
        """At most `limit` assets of a storage that are not pinned, oldest first; ids between `after` and `before`."""
        query = _ASSET.where(*_older(storage, before))
        if after is not None:
            query = query.where(assets.c.id > after)
        return tuple(_from_row(row) for row in self._connection.execute(query.order_by(assets.c.id).limit(limit)))

    def count_expired(self, storage: str, now: datetime, *, at_most: int) -> int:
        """How many `expired` would find, without its limit; counted as far as `at_most`."""
        return self._count(_expired(storage, now), at_most)

    def count_older(self, storage: str, before: UUID, *, at_most: int) -> int:
        """How many `oldest` would find, without its limit; counted as far as `at_most`."""
        return self._count(_older(storage, before), at_most)

    def _count(self, where: Sequence[ColumnElement[bool]], at_most: int) -> int:
        found = select(assets.c.id).where(*where).limit(at_most).subquery()
        return self._connection.execute(select(func.count()).select_from(found)).scalar_one()

    def bytes_of(self, storage: str) -> int:
        """What a storage holds, originals and variants; nothing of assets that are `deleting`."""
        query = select(storage_totals.c.bytes).where(storage_totals.c.storage == storage)
        return self._connection.execute(query).scalar() or 0

    # ── Jobs ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def last_run(self, job: str) -> JobRun | None:
        """When a job ran last, and what came of it; None where it never did."""
        row = self._connection.execute(select(job_runs).where(job_runs.c.job == job)).one_or_none()
        return JobRun(**row._mapping) if row is not None else None  # noqa: SLF001 - SQLAlchemy's public name for it

    def note_run(self, run: JobRun) -> None:
        """Put down how a job's run stands, in place of what was known of the one before."""
        values = {"started_at": run.started_at, "finished_at": run.finished_at, "outcome": run.outcome}
        statement = upsert(job_runs).values(job=run.job, **values)
        self._connection.execute(statement.on_conflict_do_update(index_elements=["job"], set_=values))

    def note_part(self, job: str, part: str, at: datetime, outcome: JsonObject) -> None:
        """Put down what came of one part of a job that has several, and leave what is known of the others."""
        row = {"job": job, "started_at": at, "outcome": {}}
        self._connection.execute(upsert(job_runs).values(row).on_conflict_do_nothing())
        parts = select(job_runs.c.outcome).where(job_runs.c.job == job).with_for_update()
        known = self._connection.execute(parts).scalar() or {}
        self.note_run(JobRun(job, at, at, {**known, part: outcome}))

    # ── Audits ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def identity(self, candidate: UUID) -> UUID:
        """Who this catalogue is; `candidate`, from now on, where nobody asked before."""
        known = self.known_identity()
        if known is None:
            if self._connection.dialect.name == "postgresql":  # two could find that nobody asked
                self._connection.exec_driver_sql("LOCK TABLE identity IN SHARE ROW EXCLUSIVE MODE")
                known = self.known_identity()
            if known is None:
                self._connection.execute(insert(identity).values(id=candidate))
        return known or candidate

    def known_identity(self) -> UUID | None:
        """Who this catalogue is; None where nobody asked before."""
        return self._connection.execute(select(identity.c.id).order_by(identity.c.id).limit(1)).scalar()

    def runs(self, storage: str) -> int:
        """How many times this catalogue raised a storage's marker."""
        return self._connection.execute(select(tidied.c.runs).where(tidied.c.storage == storage)).scalar() or 0

    def next_run(self, storage: str, *, beyond: int = 0) -> int:
        """Note that it raises the marker once more; a number nobody had before, and greater than `beyond`."""
        statement = upsert(tidied).values(storage=storage, runs=beyond + 1)
        runs = case((tidied.c.runs > beyond, tidied.c.runs), else_=beyond) + 1
        raised = statement.on_conflict_do_update(index_elements=["storage"], set_={"runs": runs})
        number: int = self._connection.execute(raised.returning(tidied.c.runs)).scalar_one()
        return number

    def newest_id(self) -> UUID | None:
        """The greatest id of all assets and tickets; None where there are none."""
        newest = (select(table.c.id).order_by(table.c.id.desc()).limit(1) for table in (assets, upload_tickets))
        found = [self._connection.execute(query).scalar() for query in newest]
        return max((each for each in found if each is not None), default=None)

    def count_by_storage(self, *, unsettled: bool = False) -> dict[str, int]:
        """How many rows each storage has that has any; with `unsettled` only those somebody is, or was, at work on.

        What moves from one storage to another is unsettled at both.
        """
        query = select(assets.c.storage, func.count()).group_by(assets.c.storage)
        if not unsettled:
            return dict(self._connection.execute(query).all())
        found: Counter[str] = Counter()
        other = assets.c.target_storage
        others = select(other, func.count()).where(_UNSETTLED, other.is_not(None)).group_by(other)
        for counted in (query.where(_UNSETTLED), others):
            for storage, count in self._connection.execute(counted):
                found[storage] += count
        return dict(found)

    def page_of_storage(self, storage: str, *, after: UUID | None, limit: int) -> tuple[AssetRecord, ...]:
        """At most `limit` rows of a storage, in whatever state, in the order of their ids."""
        query = _ASSET.where(assets.c.storage == storage)
        if after is not None:
            query = query.where(assets.c.id > after)
        return tuple(_from_row(row) for row in self._connection.execute(query.order_by(assets.c.id).limit(limit)))

    def get_all_in_any_state(self, asset_ids: Collection[UUID]) -> dict[UUID, AssetRecord]:
        """Those rows there are, by id."""
        query = _ASSET.where(assets.c.id.in_(list(asset_ids))).order_by(assets.c.id)  # locked in one order, if at all
        rows = self._connection.execute(self._held(query))
        return {record.id: record for record in map(_from_row, rows)}

    # ── Keys of callers ─────────────────────────────────────────────────────────────────────────────────────────────

    def insert_api_key(self, record: ApiKeyRecord) -> None:
        """A new key."""
        row = {column.name: getattr(record, column.name) for column in fields(record)}
        self._connection.execute(insert(api_keys), [row])

    def find_api_key(self, key_hash: bytes) -> ApiKeyRecord | None:
        """The key whose secret has that hash."""
        row = self._connection.execute(_FIND_API_KEY, {"key_hash": key_hash}).one_or_none()
        return _api_key(row) if row is not None else None

    def api_keys(self) -> tuple[ApiKeyRecord, ...]:
        """Every key, in the order they were made."""
        return tuple(map(_api_key, self._connection.execute(select(api_keys).order_by(api_keys.c.id))))

    def get_api_key(self, key_id: UUID) -> ApiKeyRecord | None:
        """The key of that id."""
        row = self._connection.execute(select(api_keys).where(api_keys.c.id == key_id)).one_or_none()
        return _api_key(row) if row is not None else None

    def delete_api_key(self, key_id: UUID) -> bool:
        """Forget a key; False where there is none."""
        return self._connection.execute(delete(api_keys).where(api_keys.c.id == key_id)).rowcount == 1

    def note_use(self, record: ApiKeyRecord) -> None:
        """Keep `record`'s `last_used_at`, where the key is still there."""
        query = update(api_keys).where(api_keys.c.id == record.id).values(last_used_at=record.last_used_at)
        self._connection.execute(query)

    # ── Credits ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def account(self, owner: str) -> CreditAccount:
        """What an owner has; nothing, where it never had any."""
        self._write_credits()
        query = select(credit_accounts).where(credit_accounts.c.owner == owner)
        row = self._connection.execute(query).one_or_none()
        return CreditAccount(**row._mapping) if row is not None else CreditAccount(owner=owner)  # noqa: SLF001

    def grant(self, entry: CreditEntry) -> CreditEntry:
        """Give an owner credits, or take some back; where its `request` was carried out before, what that wrote.

        InsufficientCredits, at the latest from `finish`, where there are not as many to be taken back.
        """
        new = upsert(credit_entries).values(_to_entry_row(entry))
        written = new.on_conflict_do_nothing(index_elements=["request"]).returning(credit_entries.c.id)
        if self._connection.execute(written).one_or_none() is None:
            found = select(credit_entries).where(credit_entries.c.request == entry.request)
            return _entry(self._connection.execute(found).one())
        account = upsert(credit_accounts).values(owner=entry.owner, balance=0, reserved=0, spent=0)
        self._connection.execute(account.on_conflict_do_nothing())
        self._account(entry.owner).balance += entry.amount
        return entry

    def charge(self, charge: Charge) -> None:
        """Let an owner pay for what was delivered; InsufficientCredits, at the latest from `finish`, where it cannot.

        What was reserved for it is to be set free in the same transaction.
        """
        if charge.originals or charge.sizes:
            self._used.append(charge)
        if not charge.credits:
            return
        account = self._account(charge.owner)
        account.balance -= charge.credits
        account.spent += charge.credits
        self._entries.append(
            CreditEntry(
                id=charge.entry_id,
                owner=charge.owner,
                kind=CreditKind.CHARGE,
                amount=-charge.credits,
                created_at=charge.at,
                asset_id=charge.asset_id,
                key_id=charge.key_id,
            )
        )

    def credit_entries(self, owner: str | None, *, after: UUID | None, limit: int) -> tuple[CreditEntry, ...]:
        """At most `limit` lines of an owner's ledger, or (None) of everybody's, newest first; those older than the one
        of id `after`."""
        query = select(credit_entries)
        if owner is not None:
            query = query.where(credit_entries.c.owner == owner)
        if after is not None:
            query = query.where(credit_entries.c.id < after)
        return tuple(map(_entry, self._connection.execute(query.order_by(credit_entries.c.id.desc()).limit(limit))))

    def daily_usage(self, owner: str, since: date) -> tuple[DailyUsage, ...]:
        """What was delivered to an owner on each day from `since` on, by key; newest first."""
        query = (
            select(credit_usage)
            .where(credit_usage.c.owner == owner, credit_usage.c.day >= since)
            .order_by(credit_usage.c.day.desc(), credit_usage.c.key_id.desc())
        )
        return tuple(_daily_usage(row) for row in self._connection.execute(query))

    def accounts_that_differ(self) -> tuple[tuple[CreditAccount, CreditAccount], ...]:
        """Accounts that are not what the ledger and the assets come to, and what those do come to; by owner.

        Reads all of the ledger.
        """
        self._write_credits()
        charged = case((credit_entries.c.kind == CreditKind.CHARGE, -credit_entries.c.amount), else_=0)
        written = (
            select(credit_entries.c.owner, func.sum(credit_entries.c.amount), func.sum(charged))
            .group_by(credit_entries.c.owner)
            .order_by(credit_entries.c.owner)
        )
        held = (
            select(assets.c.owner, func.sum(assets.c.credits_reserved))
            .where(_UNSETTLED, assets.c.credits_reserved.is_not(None))
            .group_by(assets.c.owner)
        )
        sums = {owner: (int(balance), int(spent)) for owner, balance, spent in self._connection.execute(written)}
        reserved = {owner: int(amount) for owner, amount in self._connection.execute(held)}
        rows = self._connection.execute(select(credit_accounts))
        accounts = {row.owner: CreditAccount(**row._mapping) for row in rows}  # noqa: SLF001
        differ = []
        for owner in sorted(accounts.keys() | sums.keys() | reserved.keys()):
            balance, spent = sums.get(owner, (0, 0))
            right = CreditAccount(owner=owner, balance=balance, reserved=reserved.get(owner, 0), spent=spent)
            there = accounts.get(owner, CreditAccount(owner=owner))
            if there != right:
                differ.append((there, right))
        return tuple(differ)

    def _account(self, owner: str) -> _Movement:
        return self._accounts.setdefault(owner, _Movement())

    def _reserve(self, record: AssetRecord) -> None:
        if record.credits_reserved:
            self._account(record.owner).reserved += record.credits_reserved

    def _release(self, record: AssetRecord) -> None:
        if record.credits_reserved:
            self._account(record.owner).reserved -= record.credits_reserved

    def _write_credits(self) -> None:
        accounts, entries, used = sorted(self._accounts.items()), self._entries, self._used
        self._accounts, self._entries, self._used = {}, [], []
        for owner, more in accounts:
            change = {"more_balance": more.balance, "more_reserved": more.reserved, "more_spent": more.spent}
            if self._connection.execute(_MOVE_CREDITS, {"of": owner} | change).rowcount != 1:
                raise InsufficientCredits(more.reserved - more.balance, self.account(owner).available)
        if entries:
            self._connection.execute(insert(credit_entries), [_to_entry_row(entry) for entry in entries])
        if used:
            self._connection.execute(_ADD_TO_USAGE, _to_usage_rows(used))

    # ── Requests under an Idempotency-Key ───────────────────────────────────────────────────────────────────────────

    def find_key(self, owner: str, key: str) -> KeyRecord | None:
        """What is known of a request under that key."""
        query = select(idempotency_keys).where(idempotency_keys.c.owner == owner, idempotency_keys.c.key == key)
        row = self._connection.execute(self._held(query)).one_or_none()
        return KeyRecord(**row._mapping) if row is not None else None  # noqa: SLF001 - SQLAlchemy's public name for it

    def claim_key(self, record: KeyRecord) -> bool:
        """Take a key for a request that begins, under its claim; False where it is taken."""
        taking = upsert(idempotency_keys).values(_to_key_row(record)).on_conflict_do_nothing()
        return self._connection.execute(taking.returning(idempotency_keys.c.key)).one_or_none() is not None

    def finish_key(self, record: KeyRecord) -> bool:
        """Remember what came of the request; False where the key is not under `record`'s claim any more."""
        result = self._connection.execute(
            update(idempotency_keys)
            .where(_key_of(record), idempotency_keys.c.claim.is_not_distinct_from(record.claim))
            .values(body=record.body, outcome=record.outcome, claim=None)
        )
        return result.rowcount == 1

    def free_key(self, record: KeyRecord) -> None:
        """Let a key go, as long as it is as `record` says: under that claim, or (None) with an outcome."""
        self._connection.execute(
            delete(idempotency_keys).where(
                _key_of(record),
                idempotency_keys.c.claim.is_not_distinct_from(record.claim),
                idempotency_keys.c.created_at == record.created_at,
            )
        )

    def free_abandoned_keys(self, *, own_lease: str, held: Collection[str], living: Collection[str]) -> int:
        """Let the keys go whose request nobody is at work on any more; how many those were."""
        nobody = _nobody_at_work(idempotency_keys.c.claim, own_lease=own_lease, held=held, living=living)
        query = delete(idempotency_keys).where(idempotency_keys.c.outcome.is_(None), nobody)
        return self._connection.execute(query).rowcount

    def forget_keys(self, before: datetime, limit: int) -> int:
        """Forget at most `limit` requests that ended and began before a time; how many those were."""
        old = (
            select(idempotency_keys.c.owner, idempotency_keys.c.key)
            .where(idempotency_keys.c.created_at < before, idempotency_keys.c.claim.is_(None))
            .order_by(idempotency_keys.c.created_at)
            .limit(limit)
            .with_for_update(skip_locked=True)  # another process forgets them, and the next ones are for another time
        )
        query = delete(idempotency_keys).where(tuple_(idempotency_keys.c.owner, idempotency_keys.c.key).in_(old))
        return self._connection.execute(query).rowcount

    # ── Tickets ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def insert_ticket(self, record: TicketRecord) -> None:
        """A new ticket."""
        row = {column.name: getattr(record, column.name) for column in fields(record)}
        self._connection.execute(insert(upload_tickets), [row])

    def find_ticket(self, ticket_id: UUID, owner: str | None = None) -> TicketRecord | None:
        """A ticket; with `owner`, only of that owner."""
        query = select(upload_tickets).where(upload_tickets.c.id == ticket_id)
        if owner is not None:
            query = query.where(upload_tickets.c.owner == owner)
        row = self._connection.execute(self._held(query)).one_or_none()
        return TicketRecord(**row._mapping) if row is not None else None  # noqa: SLF001 - its public name for it

    def find_tickets(self, ticket_ids: Collection[UUID]) -> dict[UUID, TicketRecord]:
        """Those there are, by id."""
        query = select(upload_tickets).where(upload_tickets.c.id.in_(list(ticket_ids))).order_by(upload_tickets.c.id)
        found = (TicketRecord(**row._mapping) for row in self._connection.execute(query))  # noqa: SLF001 - as above
        return {record.id: record for record in found}

    def claim_ticket(self, record: TicketRecord, claim: str) -> bool:
        """Take a ticket, as long as it is under the claim `record` says, or none; False where it is not."""
        return self._change_ticket(record, claim=claim)

    def free_ticket(self, record: TicketRecord) -> bool:
        """Give up `record`'s claim on a ticket; False where it was lost."""
        return self._change_ticket(record, claim=None)

    def finish_ticket(self, record: TicketRecord) -> bool:
        """The ticket was used: remember `record`'s outcome, and give up its claim; False where that was lost."""
        return self._change_ticket(record, claim=None, outcome=record.outcome)

    def _change_ticket(self, record: TicketRecord, **values: Any) -> bool:
        """Change a ticket only where it is under the claim the caller thinks it is."""
        result = self._connection.execute(update(upload_tickets).where(_ticket_of(record)).values(values))
        return result.rowcount == 1

    def remove_ticket(self, record: TicketRecord) -> bool:
        """Forget a ticket under `record`'s claim; its incoming object must be gone."""
        return self._connection.execute(delete(upload_tickets).where(_ticket_of(record))).rowcount == 1

    def free_abandoned_tickets(self, *, own_lease: str, held: Collection[str], living: Collection[str]) -> int:
        """Give up the claims on tickets nobody is at work on any more; how many those were."""
        nobody = _nobody_at_work(upload_tickets.c.claim, own_lease=own_lease, held=held, living=living)
        query = update(upload_tickets).where(upload_tickets.c.claim.is_not(None), nobody).values(claim=None)
        return self._connection.execute(query).rowcount

    def any_ticket_over(self, before: datetime) -> bool:
        """Whether there is a ticket that expired before a time."""
        query = select(upload_tickets.c.id).where(upload_tickets.c.expires_at < before).limit(1)
        return self._connection.execute(query).first() is not None

    def tickets_over(self, before: datetime, *, but_for: Collection[str], limit: int) -> tuple[TicketRecord, ...]:
        """At most `limit` tickets that expired before a time, the oldest first, of which something may lie in a
        storage, and nobody is at work on; those of some storages left out."""
        query = select(upload_tickets).where(
            upload_tickets.c.expires_at < before,
            upload_tickets.c.incoming.is_not(None),
            upload_tickets.c.claim.is_(None),
            upload_tickets.c.storage.not_in(list(but_for)),
        )
        query = query.order_by(upload_tickets.c.expires_at).limit(limit)
        return tuple(TicketRecord(**row._mapping) for row in self._connection.execute(query))  # noqa: SLF001 - as above

    def forget_tickets(self, before: datetime, limit: int) -> int:
        """Forget at most `limit` tickets that expired before a time and name no object; how many those were."""
        old = (
            select(upload_tickets.c.id)
            .where(
                upload_tickets.c.expires_at < before,
                upload_tickets.c.incoming.is_(None),
                upload_tickets.c.claim.is_(None),
            )
            .order_by(upload_tickets.c.expires_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        return self._connection.execute(delete(upload_tickets).where(upload_tickets.c.id.in_(old))).rowcount

    # ── Leases and what the dead left behind ────────────────────────────────────────────────────────────────────────

    def beat(self, lease: str, beat: int) -> None:
        """Show that the process of `lease` lives; makes the lease where it is not there (any more)."""
        statement = upsert(leases).values(id=lease, beat=beat)
        self._connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_={"beat": beat}))

    def beats(self) -> dict[str, int]:
        """Every lease and its last beat."""
        return {row.id: row.beat for row in self._connection.execute(select(leases))}

    def drop_lease(self, lease: str) -> None:
        """Forget a lease that its own process gives back."""
        self._connection.execute(delete(leases).where(leases.c.id == lease))

    def drop_leases(self, last_beats: Mapping[str, int]) -> None:
        """Forget leases of processes that are gone: those that are still at their last beat."""
        for lease, beat in sorted(last_beats.items()):
            self._connection.execute(delete(leases).where(leases.c.id == lease, leases.c.beat == beat))

    def unsettled_storages(self) -> tuple[str, ...]:
        """The storages at which rows are settled that somebody is, or was, at work on."""
        query = select(_SETTLED_AT).where(_UNSETTLED).distinct()
        return tuple(sorted(self._connection.execute(query).scalars()))

    def abandoned(
        self,
        *,
        own_lease: str,
        held: Collection[str],
        living: Collection[str],
        storage: str,
        after: UUID | None,
        limit: int,
    ) -> tuple[AssetRecord, ...]:
        """Rows settled at a storage, somebody was at work on and nobody is, in the order of their ids, `after` one.

        Nobody: neither this process (`own_lease`) under a claim it has `held`, nor one of the `living` others.
        """
        nobody = _nobody_at_work(assets.c.lease, own_lease=own_lease, held=held, living=living)
        query = _ASSET.where(_UNSETTLED, _SETTLED_AT.is_not_distinct_from(storage), nobody)
        if after is not None:
            query = query.where(assets.c.id > after)
        return tuple(_from_row(row) for row in self._connection.execute(query.order_by(assets.c.id).limit(limit)))

    def take_over(self, record: AssetRecord, claim: str) -> AssetRecord | None:
        """Put an abandoned row under `claim`; a pending one turns `deleting`. Whatever it was to cost is free again:
        who began it cannot finish it any more, and who took it over will not. None: another was faster."""
        state = AssetState.DELETING if record.state is AssetState.PENDING else record.state
        if not self._update(record.id, record.state, record.lease, state=state, lease=claim, credits_reserved=None):
            return None
        self._release(record)
        return replace(record, state=state, lease=claim, credits_reserved=None)


def _between(
    column: ColumnElement[UUID], criteria: AssetFilter, *, after: UUID | None, newest_first: bool
) -> list[ColumnElement[bool]]:
    """The range of ids a page is in: one bound at each end, since SQLite looks up the first it finds, and walks to any
    other."""
    since, until = criteria.since, criteria.until
    if after is not None and newest_first:
        until = after if until is None else min(after, until)
    if after is not None and not newest_first and (since is None or after >= since):
        lower = [column > after]
    else:
        lower = [column >= since] if since is not None else []
    return lower + ([column < until] if until is not None else [])


def _nobody_at_work(
    claim: Column[str], *, own_lease: str, held: Collection[str], living: Collection[str]
) -> ColumnElement[bool]:
    """Whether a claim is held neither by this process (`own_lease`, `held`) nor by one of the `living` others."""
    others = [claim.not_like(f"{lease}/%") for lease in living if lease != own_lease]
    return or_(claim.is_(None), and_(claim.not_in(list(held)), *others))


def _equals(column: Column[str], value: str) -> ColumnElement[bool]:
    return column == value


def _equals_by_no_index(column: Column[str], value: str) -> ColumnElement[bool]:
    """The same, of rows that were found another way."""
    return func.coalesce(column, "") == value


def _expired(storage: str, now: datetime) -> tuple[ColumnElement[bool], ...]:
    return assets.c.storage == storage, assets.c.expires_at <= now, _READY, assets.c.pinned.is_(False)


def _older(storage: str, before: UUID | None) -> tuple[ColumnElement[bool], ...]:
    where = (assets.c.storage == storage, _READY, assets.c.pinned.is_(False))
    return where if before is None else (*where, assets.c.id < before)


def _key_of(record: KeyRecord) -> ColumnElement[bool]:
    return and_(idempotency_keys.c.owner == record.owner, idempotency_keys.c.key == record.key)


def _to_entry_row(entry: CreditEntry) -> dict[str, Any]:
    return {column.name: getattr(entry, column.name) for column in fields(entry)}


def _entry(row: Row[Any]) -> CreditEntry:
    values = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it
    return CreditEntry(**{**values, "kind": CreditKind(values["kind"])})


def _to_usage_rows(charges: Sequence[Charge]) -> list[dict[str, Any]]:
    """What charges come to, by owner, day and key; in one order, as accounts are."""
    sums: dict[tuple[str, date, str], Counter[str]] = {}
    for charge in charges:
        key = (charge.owner, charge.at.astimezone(UTC).date(), str(charge.key_id or ""))
        sums.setdefault(key, Counter()).update({name: getattr(charge, name) for name in _USED})
    return [
        {"owner": owner, "day": day, "key_id": key_id, **{name: found[name] for name in _USED}}
        for (owner, day, key_id), found in sorted(sums.items())
    ]


def _daily_usage(row: Row[Any]) -> DailyUsage:
    return DailyUsage(
        day=row.day, key_id=UUID(row.key_id) if row.key_id else None, **{name: getattr(row, name) for name in _USED}
    )


def _ticket_of(record: TicketRecord) -> ColumnElement[bool]:
    return and_(upload_tickets.c.id == record.id, upload_tickets.c.claim.is_not_distinct_from(record.claim))


def _to_key_row(record: KeyRecord) -> dict[str, Any]:
    return {column.name: getattr(record, column.name) for column in fields(record)}


def _to_row(record: AssetRecord) -> dict[str, Any]:
    row = {name: getattr(record, name) for name in _COLUMNS}
    row["variants"] = [variant.to_json() for variant in record.variants]
    row["filename_folded"] = fold(record.filename)
    return row


def _changeable(record: AssetRecord) -> JsonObject:
    return {
        "filename": record.filename,
        "filename_folded": fold(record.filename),
        "tags": record.tags,
        "metadata": record.metadata,
        "expires_at": record.expires_at,
        "pinned": record.pinned,
        "updated_at": record.updated_at,
        "version": record.version,
    }


def _from_row(row: Row[Any]) -> AssetRecord:
    """What `_ASSET` selected."""
    values = dict(zip(_COLUMNS, row, strict=True))
    target = values["target_visibility"]
    values.update(
        state=AssetState(values["state"]),
        visibility=Visibility(values["visibility"]),
        format=ImageFormat(values["format"]),
        variants=tuple(map(VariantRecord.from_json, values["variants"])),
        tags=tuple(values["tags"]),
        target_visibility=Visibility(target) if target else None,
    )
    return AssetRecord(**values)


def _api_key(row: Row[Any]) -> ApiKeyRecord:
    values = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it
    return ApiKeyRecord(**{**values, "scopes": tuple(values["scopes"])})


def fold(text: str | None) -> str | None:
    """`text` as the search by filename compares it."""
    return text.casefold() if text is not None else None
