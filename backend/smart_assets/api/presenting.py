"""From records to what callers see."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any, TypeVar
from uuid import UUID

from pydantic import BaseModel
from starlette.responses import Response

from smart_assets import settings
from smart_assets.access.api_keys import Caller
from smart_assets.api.schemas import (
    Asset,
    Cleanup,
    FailedSize,
    RetentionSettings,
    SelectionQuery,
    Statistics,
    StorageStatistics,
    Variant,
)
from smart_assets.assets import library
from smart_assets.assets.delivery import Delivery, Link
from smart_assets.assets.library import Period
from smart_assets.assets.objects import effective_visibility
from smart_assets.assets.uploads import UploadedAsset
from smart_assets.catalogue.models import AssetRecord, JobRun, VariantRecord
from smart_assets.catalogue.repository import AssetFilter
from smart_assets.errors import Forbidden, InvalidParameter
from smart_assets.runtime import Runtime
from smart_assets.storage.base import SignedUrl
from smart_assets.storage.keys import ORIGINAL

Model = TypeVar("Model", bound=BaseModel)


class Presenter:
    """Shows assets with addresses a caller of this request can use."""

    def __init__(self, delivery: Delivery, base_url: str) -> None:
        """`base_url` has no slash at its end."""
        self._delivery = delivery
        self.base_url = base_url
        """Where callers reach the service; no slash at its end."""

    def uploaded(self, uploaded: UploadedAsset) -> Asset:
        """An asset just made, with the sizes it lacks; the bytes themselves where nothing was kept."""
        failed = [
            FailedSize(size=failure.size or "", code=failure.error.code, detail=failure.error.detail)
            for failure in uploaded.failed
        ]
        if uploaded.data_urls is None:
            return self.asset(uploaded.record, failed)
        urls = uploaded.data_urls
        variants = [(variant, Link(urls[variant.name])) for variant in uploaded.record.made_variants]
        shown = _asset(uploaded.record, Link(urls[ORIGINAL]), variants, failed)
        shown.id = None
        return shown

    def asset(self, record: AssetRecord, failed: list[FailedSize] | None = None) -> Asset:
        """An asset of the library."""
        variants = [(variant, self._link(record, variant)) for variant in record.made_variants]
        return _asset(record, self._link(record, None), variants, failed or [])

    async def signed(self, record: AssetRecord, size: str | None, expiry_seconds: int) -> SignedUrl:
        """A URL for the original or a size that is good for at most `expiry_seconds`."""
        return await self._delivery.signed_url(record, size, expiry_seconds, self.base_url)

    def _link(self, record: AssetRecord, variant: VariantRecord | None) -> Link:
        return self._delivery.link(record, variant, self.base_url)


def built(model: type[Model], **values: Any) -> Model:
    """A model of all its `values`, of which each was validated on its way in: to do so again costs more than the
    catalogue. What `model_construct` does, without asking each field for its default, at a seventh of its price.
    """
    made = model.__new__(model)
    for name, value in (
        ("__dict__", values),
        ("__pydantic_fields_set__", set(values)),
        ("__pydantic_extra__", None),
        ("__pydantic_private__", None),
    ):
        object.__setattr__(made, name, value)
    return made


def _asset(
    record: AssetRecord, original: Link, variants: Iterable[tuple[VariantRecord, Link]], failed: list[FailedSize]
) -> Asset:
    return built(
        Asset,
        id=record.id,
        filename=record.filename,
        content_type=record.format.media_type,
        size_bytes=record.size_bytes,
        width=record.width,
        height=record.height,
        sha256=record.sha256,
        storage=record.storage,
        visibility=effective_visibility(record),
        url=original.url,
        url_expires_at=original.expires_at,
        variants=[_variant(variant, link) for variant, link in variants],
        failed=failed,
        tags=list(record.tags),
        metadata=record.metadata,
        thumbhash=record.thumbhash,
        dominant_color=record.dominant_color,
        created_at=record.created_at,
        updated_at=record.updated_at,
        expires_at=record.expires_at,
        pinned=record.pinned,
        credits_used=record.credits_used,
    )


def _variant(variant: VariantRecord, link: Link) -> Variant:
    return built(
        Variant,
        size=variant.size,
        name=variant.full_name,
        width=variant.width,
        height=variant.height,
        content_type=variant.format.media_type,
        size_bytes=variant.size_bytes,
        url=link.url,
        url_expires_at=link.expires_at,
    )


def statistics(found: library.Statistics, retention: settings.RetentionSettings) -> Statistics:
    """Totals, what each storage has to them, and what retention does and did."""
    storages = [
        StorageStatistics(
            name=totals.storage, count=totals.assets, bytes=totals.bytes, oldest=totals.oldest, newest=totals.newest
        )
        for totals in found.storages
    ]
    return Statistics(
        count=sum(storage.count for storage in storages),
        bytes=sum(storage.bytes for storage in storages),
        oldest=min((storage.oldest for storage in storages if storage.oldest), default=None),
        newest=max((storage.newest for storage in storages if storage.newest), default=None),
        storages=storages,
        retention=RetentionSettings(
            retention_days=retention.days,
            max_size_bytes=retention.max_size_bytes,
            interval_seconds=retention.interval_seconds,
        ),
        last_cleanup=_cleanup(found.last_cleanup) if found.last_cleanup else None,
        deletions_owed=found.deletions_owed,
    )


def _cleanup(run: JobRun) -> Cleanup:
    ended = (run.outcome or {}) if run.finished_at else {}
    return Cleanup(
        started_at=run.started_at,
        finished_at=run.finished_at,
        result=ended.get("result", "unfinished"),
        assets=ended.get("assets"),
        bytes=ended.get("bytes"),
        failed=ended.get("failed"),
    )


def json_response(model: BaseModel, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A model of ours as JSON: it was validated when it was made, so it is not again."""
    return Response(model.model_dump_json(), status, headers, media_type="application/json")


def selection(query: SelectionQuery, caller: Caller, runtime: Runtime) -> tuple[AssetFilter, Period]:
    """Which assets a caller asks for.

    StorageNotConfigured for a storage that there is not, Forbidden for an owner the caller may not see.
    """
    if query.owner is not None and caller.sees not in {None, query.owner}:
        raise Forbidden("the assets of another owner take the scope admin")
    if query.storage is not None:
        runtime.storages.get(query.storage)  # a name that means nothing is a mistake, and no empty list
    criteria = AssetFilter(
        owner=query.owner or caller.sees,
        storage=query.storage,
        visibility=query.visibility,
        tag=query.tag,
        filename_contains=query.q.casefold() if query.q else None,
    )
    return criteria, Period(days=query.days, after=query.created_after, before=query.created_before)


def write_cursor(after: UUID) -> str:
    """A cursor is opaque to callers; to us it is the id after which the next page begins."""
    return base64.urlsafe_b64encode(after.bytes).rstrip(b"=").decode()


def read_cursor(cursor: str) -> UUID:
    """What `write_cursor` wrote; InvalidParameter for anything else."""
    try:
        after = UUID(bytes=base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except ValueError:
        raise InvalidParameter.at("query", "cursor", message="is not one of ours") from None
    return after
