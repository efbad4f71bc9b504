"""Where an asset's objects lie: their keys are computed from its row, never searched for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from uuid_utils.compat import uuid7

from smart_assets.catalogue.models import AssetRecord, VariantRecord
from smart_assets.storage.keys import ORIGINAL, AssetKey
from smart_assets.visibility import Visibility

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def new_asset_id() -> UUID:
    """A UUIDv7: ids are made in the order of time, and carry it."""
    return uuid7()


def created_at(asset_id: UUID) -> datetime:
    """The time in an id, to the millisecond, in UTC."""
    return datetime.fromtimestamp((asset_id.int >> 80) / 1000, tz=UTC)


def first_id_at(moment: datetime) -> UUID:
    """The least id an asset made at `moment` or later can have, as far as an id tells: to the millisecond."""
    milliseconds = -((_EPOCH - moment) // timedelta(milliseconds=1))
    return UUID(int=max(0, milliseconds) << 80)


def original_key(record: AssetRecord) -> str:
    """The key of the original."""
    return str(AssetKey(record.visibility, record.id, ORIGINAL, record.format.extension))


def variant_key(record: AssetRecord, variant: VariantRecord) -> str:
    """The key of a generated size."""
    return str(AssetKey(record.visibility, record.id, variant.name, variant.format.extension))


def object_keys(record: AssetRecord) -> list[str]:
    """Every key of the asset at its present visibility, the original first."""
    return [original_key(record), *(variant_key(record, variant) for variant in record.variants)]


def required_keys(record: AssetRecord) -> frozenset[str]:
    """The keys under which there is an object: the original's, and those of the sizes that were made."""
    return frozenset([original_key(record), *(variant_key(record, variant) for variant in record.made_variants)])


def effective_visibility(record: AssetRecord) -> Visibility:
    """What callers are told: an asset on its way to or from private is private."""
    if Visibility.PRIVATE in (record.visibility, record.target_visibility):
        return Visibility.PRIVATE
    return Visibility.PUBLIC
