"""What requests hold and answers give, as API documents show them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import (
    MISSING,
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StrictBool,
    TypeAdapter,
    field_validator,
)

from smart_assets.access.credits import MOST_AT_ONCE
from smart_assets.access.scopes import Scope
from smart_assets.api.headers import clean_filename
from smart_assets.assets.deletions import Status
from smart_assets.assets.library import Changes
from smart_assets.assets.tickets import Way
from smart_assets.imaging.sizes import DEFAULT_QUALITY, Fit, Gravity
from smart_assets.visibility import Visibility

MAX_TAGS = 50
MAX_TAG_LENGTH = 64
MAX_IDS = 1000
OWNER = r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,63}$"

DEFAULT_STORAGE = "x-default-storage"
"""In the schema of a parameter: left out, it is the service's default storage. Documents name that one instead."""

_DATE = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d", re.ASCII)


def _rfc3339(moment: datetime) -> str:
    timespec = "milliseconds" if moment.microsecond else "seconds"
    return moment.astimezone(UTC).isoformat(timespec=timespec).removesuffix("+00:00") + "Z"


Timestamp = Annotated[
    datetime, PlainSerializer(_rfc3339, return_type=str, when_used="json"), Field(examples=["2026-11-20T10:00:00Z"])
]


def _clean_tags(values: Iterable[str]) -> tuple[str, ...]:
    tags = tuple(dict.fromkeys(tag.strip() for tag in values if tag.strip()))
    if len(tags) > MAX_TAGS:
        raise ValueError(f"{len(tags)} tags are more than {MAX_TAGS}")
    for tag in tags:
        if len(tag) > MAX_TAG_LENGTH:
            raise ValueError(f"a tag of {len(tag)} characters is longer than {MAX_TAG_LENGTH}")
        if not tag.isprintable():
            raise ValueError("a tag must not contain control characters")
    return tags


def _split_commas(values: Any) -> Any:
    if isinstance(values, list):
        return [part for value in values for part in (value.split(",") if isinstance(value, str) else [value])]
    return values


def _in_the_future(moment: datetime) -> datetime:
    try:
        moment = moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("lies too far away") from None
    if moment <= datetime.now(UTC):
        raise ValueError("lies in the past")
    return moment


QueryTags = Annotated[
    list[str], BeforeValidator(_split_commas), AfterValidator(lambda values: list(_clean_tags(values)))
]


def _looks_like_a_date(value: object) -> object:
    if not isinstance(value, str) or not _DATE.match(value):
        raise ValueError("is not a date and time as RFC 3339 writes them: 2026-11-20T10:00:00Z")
    return value


Moment = Annotated[AwareDatetime, BeforeValidator(_looks_like_a_date)]
Expiry = Annotated[AwareDatetime, AfterValidator(_in_the_future), BeforeValidator(_looks_like_a_date)]


class _Query(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RenderQuery(_Query):
    """Which sizes are to be made, and how."""

    sizes: list[str] = Field(
        default_factory=list,
        description="Sizes to make, comma-separated or repeated: `1200x627`, `800` (width), `x600` (height), "
        "or a preset's name.",
        examples=[["1200x627,400"]],
    )
    fit: Fit = Field(
        Fit.INSIDE,
        description="`inside` keeps the ratio, `cover` crops to the box's ratio, `contain` pads to the box. "
        "None enlarges.",
    )
    gravity: Gravity = Field(Gravity.CENTRE, description="What `cover` keeps.")
    background: str | None = Field(
        None,
        description="`#rrggbb`, as `#ffffff`: the padding of `contain`, and what alpha is flattened onto. "
        "`transparent` is the default where the format can, else white.",
        examples=["#ffffff"],
    )
    format: Literal["source", "jpeg", "png", "webp", "avif"] = Field(
        "source",
        description="The generated sizes' format. Under `source`, and from GIF to `webp`, animations stay animated.",
    )
    quality: int = Field(DEFAULT_QUALITY, ge=1, le=100, description="Of lossy formats, 1 to 100.")


class UploadQuery(RenderQuery):
    """How an upload is to be taken."""

    storage: str | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="Name of a configured storage; by default the service's own.",
        examples=["local"],
        json_schema_extra={DEFAULT_STORAGE: True},
    )
    visibility: Visibility = Field(
        Visibility.PUBLIC, description="Who may fetch it: anybody, or holders of a signed URL."
    )
    atomic: bool = Field(
        True,
        description="`true`: one failure fails the whole upload and nothing of it stays. `false`: what worked stays.",
    )
    placeholder: bool | None = Field(
        None, description="Compute `thumbhash` and `dominant_color`; by default where sizes are asked for."
    )
    strip_metadata: bool = Field(
        False, description="Take EXIF, XMP and IPTC (GPS with them) off the original; its pixels stay untouched."
    )
    tags: QueryTags = Field(
        default_factory=list,
        description=f"Comma-separated or repeated: `trip,berlin`; at most {MAX_TAGS} of {MAX_TAG_LENGTH} characters.",
        examples=[["trip,berlin"]],
    )
    expires_at: Expiry | None = Field(
        None,
        description="When retention may remove it: `2030-01-01T00:00:00Z`. By default never.",
        examples=["2030-01-01T00:00:00Z"],
    )
    filename: str | None = Field(
        None,
        description="The filename of a raw body that has no `Content-Disposition`: `photo.jpg`.",
        examples=["photo.jpg"],
    )


IdempotencyKey = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[ -~]+$")]
IDEMPOTENCY_KEY: TypeAdapter[str] = TypeAdapter(IdempotencyKey)


class VariantsQuery(RenderQuery):
    """Which sizes an asset is to have."""

    atomic: bool = Field(
        True, description="`true`: one failure fails all, and none of them stays. `false`: what worked stays."
    )
    placeholder: bool | None = Field(
        None, description="Compute `thumbhash` and `dominant_color` where it has none; by default with new sizes."
    )


class DeletionRequest(BaseModel):
    """Which assets are to go."""

    model_config = ConfigDict(extra="forbid")

    ids: list[str] = Field(min_length=1, max_length=MAX_IDS, examples=[["019aa0c2-0000-7000-8000-000000000000"]])


class DeletionResult(BaseModel):
    """What became of one id."""

    id: str = Field(description="As it was given.")
    status: Status = Field(description="`failed`: gone for everybody or not, it is not all done: see `code`.")
    code: str | None = Field(description="What a deletion of this one alone would have answered; null for `deleted`.")
    detail: str | None


class DeletionResults(BaseModel):
    """What became of each id, in the order they were given."""

    results: list[DeletionResult]


class SelectionQuery(_Query):
    """Which assets."""

    storage: str | None = Field(None, min_length=1, max_length=64, description="In this storage.")
    visibility: Visibility | None = Field(None, description="Of this visibility.")
    tag: str | None = Field(None, max_length=MAX_TAG_LENGTH, description="With this tag.", examples=["trip"])
    days: int | None = Field(
        None, ge=1, le=36500, description="Made in the last so many days, 1 to 36500.", examples=[7]
    )
    created_after: Moment | None = Field(
        None, description="Made then or later: `2026-11-20T10:00:00Z`.", examples=["2026-11-20T10:00:00Z"]
    )
    created_before: Moment | None = Field(
        None, description="Made before that: `2026-11-21T00:00:00Z`.", examples=["2026-11-21T00:00:00Z"]
    )
    q: str | None = Field(
        None, max_length=255, description="With this in the filename, case aside.", examples=["holiday"]
    )
    owner: str | None = Field(
        None, min_length=1, max_length=64, description="Of this owner; others than one's own take the scope `admin`."
    )


class ListQuery(SelectionQuery):
    """Which assets, and how many of them."""

    limit: int = Field(50, ge=1, le=200, description="At most so many, 1 to 200.")
    cursor: str | None = Field(None, max_length=128, description="`next_cursor` of the page before.")
    order: Literal["desc", "asc"] = Field("desc", description="`desc`: newest first.")


class MoveQuery(_Query):
    """Where to."""

    storage: str = Field(min_length=1, max_length=64, description="Name of a configured storage.", examples=["s3"])


class Variant(BaseModel):
    """A generated size."""

    size: str = Field(description="As it was asked for.", examples=["1200x627"])
    name: str = Field(
        description="What `size` of other calls takes where several sizes were asked for alike.",
        examples=["1200x627-cover.webp"],
    )
    width: int = Field(examples=[768])
    height: int = Field(examples=[627])
    content_type: str = Field(examples=["image/webp"])
    size_bytes: int = Field(examples=[40211])
    url: str = Field(examples=["http://127.0.0.1:8000/assets/public/2026/11/20/019aa0c2-….1200x627.webp"])
    url_expires_at: Timestamp | None = Field(description="Null where the URL does not expire.")


class FailedSize(BaseModel):
    """A size that could not be made; only with `atomic=false`."""

    size: str
    code: str
    detail: str


class Asset(BaseModel):
    """An uploaded image and all that was made of it."""

    id: UUID | None = Field(description="Null for `direct`, which keeps nothing.")
    filename: str | None = Field(
        description="As the caller named it; no part of any identity.", examples=["holiday photo.jpg"]
    )
    content_type: str = Field(description="By the bytes.", examples=["image/jpeg"])
    size_bytes: int = Field(examples=[829183])
    width: int = Field(description="As a person sees it.", examples=[2725])
    height: int = Field(examples=[2225])
    sha256: str = Field(description="Of the stored original.")
    storage: str = Field(examples=["local"])
    visibility: Visibility
    url: str = Field(description="Signed where the asset is private; a `data:` URI for `direct`.")
    url_expires_at: Timestamp | None = Field(description="Null where the URL does not expire.")
    variants: list[Variant]
    failed: list[FailedSize] = Field(description="Filled with `atomic=false` only.")
    tags: list[str] = Field(examples=[["trip"]])
    metadata: dict[str, Any] = Field(description="The caller's own.", examples=[{"album": 7}])
    thumbhash: str | None = Field(description="A placeholder to show at once, in base64.")
    dominant_color: str | None = Field(examples=["#8a7b66"])
    created_at: Timestamp
    updated_at: Timestamp
    expires_at: Timestamp | None
    pinned: bool = Field(description="Retention leaves it alone.")
    credits_used: int | None = Field(description="Null where nothing is metered.")


class FailedFile(BaseModel):
    """A file of a batch that could not be taken; only with `atomic=false`."""

    index: int = Field(description="Its place in the request, from 0.")
    filename: str | None
    code: str
    detail: str


class Batch(BaseModel):
    """What became of the files of one request."""

    assets: list[Asset]
    failed: list[FailedFile]


class AssetPage(BaseModel):
    """A piece of the library."""

    items: list[Asset]
    next_cursor: str | None = Field(description="Null on the last page.")


class AssetPatch(BaseModel):
    """What is to be changed; what is left out stays."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"visibility": "private"}]})

    filename: str | MISSING = Field(MISSING, description="Cut to 1024 characters.")
    tags: list[str] | MISSING = Field(MISSING, description="The new tags, instead of the old ones.")
    metadata: dict[str, Any] | MISSING = Field(MISSING, description="Merged into what is there (RFC 7396).")
    visibility: Visibility | MISSING = MISSING
    expires_at: Expiry | MISSING | None = Field(MISSING, description="Null: never.")
    pinned: StrictBool | MISSING = Field(MISSING, description="Whether retention leaves it alone.")

    @field_validator("filename")
    @classmethod
    def _check_filename(cls, filename: str) -> str:
        cleaned = clean_filename(filename)
        if cleaned is None:
            raise ValueError("holds no name")
        return cleaned

    @field_validator("tags")
    @classmethod
    def _check_tags(cls, tags: list[str]) -> list[str]:
        return list(_clean_tags(tags))

    def changes(self) -> Changes:
        """For the use-case."""
        given = self.model_dump()
        if "tags" in given:
            given["tags"] = tuple(given["tags"])
        return Changes(**given)


def _whole(value: object) -> object:
    """JSON has one kind of number: 60.0 is as whole as 60."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class SignedUrlRequest(BaseModel):
    """Which URL is wanted, and for how long."""

    model_config = ConfigDict(extra="forbid")

    expiry_seconds: Annotated[int, BeforeValidator(_whole)] = Field(86_400, ge=1, le=604_800, strict=True)
    size: str | None = Field(None, max_length=64, description="One of the asset's sizes; null for the original.")


class SignedUrl(BaseModel):
    """A URL with which anybody may fetch the object until it expires."""

    url: str
    url_expires_at: Timestamp


_SHA256 = r"^[0-9a-f]{64}$"


class TicketRequest(BaseModel):
    """What a ticket is good for, besides the upload its parameters describe."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"max_bytes": 10_000_000, "expiry_seconds": 900}]}
    )

    max_bytes: Annotated[int | None, BeforeValidator(_whole)] = Field(
        None, ge=1, strict=True, description="The largest file it takes; by default, and at most, the service's limit."
    )
    expiry_seconds: Annotated[int | None, BeforeValidator(_whole)] = Field(
        None, ge=1, le=604_800, strict=True, description="How long it is good for; by default as the service is set."
    )
    upload: Way = Field(
        Way.SERVICE,
        description="`service`: the file is sent here. `bucket`: to the storage itself, where that can be, and is then "
        "to be completed.",
    )
    sha256: str | None = Field(
        None, pattern=_SHA256, description="Of the file, in hexadecimal, where it is known: no other is taken."
    )
    metadata: dict[str, Any] = Field(default_factory=dict, description="The asset's, at most 16 KiB.")


class Ticket(BaseModel):
    """Leave to upload one file without a key: send it as `method`, `url`, `fields` and `headers` say."""

    id: UUID
    upload: Way
    method: Literal["POST", "PUT"] = Field(
        description="`POST`: a form of `fields`, and then the file as the field `file`. `PUT`: the bytes as they are."
    )
    url: str = Field(examples=["https://images.example.com/api/v1/upload-tickets/019aa0c2-…/file?exp=…&kid=…&sig=…"])
    fields: dict[str, str]
    headers: dict[str, str]
    complete_url: str | None = Field(
        description="For `bucket`: where a POST says that the file is there, and is answered with the asset."
    )
    max_bytes: int
    expires_at: Timestamp


class TicketStatus(BaseModel):
    """What became of a ticket."""

    id: UUID
    state: Literal["open", "used", "expired"]
    upload: Way
    storage: str
    max_bytes: int
    created_at: Timestamp
    expires_at: Timestamp
    asset_id: UUID | None = Field(description="Of the asset that was made with it; null as long as there is none.")


class TicketQuery(_Query):
    """The signature of a ticket's URL."""

    exp: str | None = Field(None, max_length=32, description="When it ends, in Unix seconds.")
    kid: str | None = Field(None, max_length=32, description="Which key it was signed with.")
    sig: str | None = Field(None, max_length=128, description="The signature.")


class TicketUploadQuery(TicketQuery):
    """The signature of a ticket's URL, and the file's name."""

    filename: str | None = Field(
        None, description="The filename of a raw body that has no `Content-Disposition`; the ticket's goes before it."
    )


class NewApiKeyRequest(BaseModel):
    """The key that is wanted."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"name": "website", "scopes": ["assets:read", "assets:write"]}]},
    )

    name: str = Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*\S[^\x00-\x1f\x7f]*$")
    scopes: list[Scope] = Field(min_length=1, max_length=len(Scope), description="What it may do; `admin`: everything.")
    owner: str | None = Field(
        None,
        pattern=OWNER,
        description="Whose assets it is for; by default those of who asks. Every key of an owner sees the same assets.",
    )
    expires_at: Expiry | None = Field(None, description="Null: never.")


class ApiKey(BaseModel):
    """A key, without its secret."""

    id: UUID
    name: str
    owner: str
    scopes: list[Scope]
    created_at: Timestamp
    expires_at: Timestamp | None
    last_used_at: Timestamp | None = Field(description="To the hour; null: never.")


class NewApiKey(ApiKey):
    """A key that was just made."""

    key: str = Field(description="The secret, shown this once.", examples=["sa_…"])


class ApiKeyList(BaseModel):
    """Keys, the oldest first."""

    keys: list[ApiKey]


class GrantRequest(BaseModel):
    """Whom to give how much."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"owner": "shop", "amount": 1000, "note": "invoice 2026-117"}]}
    )

    owner: str = Field(pattern=OWNER, description="Whose account it is for.")
    amount: Annotated[int, BeforeValidator(_whole)] = Field(
        ge=-MOST_AT_ONCE,
        le=MOST_AT_ONCE,
        strict=True,
        description="Credits; below 0 they are taken back.",
        json_schema_extra={"not": {"const": 0}},
    )
    note: str | None = Field(None, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$", description="What it is for.")

    @field_validator("amount")
    @classmethod
    def _check_amount(cls, amount: int) -> int:
        if amount == 0:
            raise ValueError("is nothing")
        return amount


class CreditEntry(BaseModel):
    """A line of an owner's ledger."""

    id: UUID
    owner: str
    kind: Literal["grant", "charge"]
    amount: int = Field(description="Above 0 it was given, below 0 charged or taken back.", examples=[-2])
    asset_id: UUID | None = Field(description="What was charged for; null where that was not kept (`direct`).")
    key_id: UUID | None = Field(description="The key it was asked for with; null for those in the settings.")
    note: str | None
    created_at: Timestamp


class CreditPage(BaseModel):
    """A piece of the ledger."""

    items: list[CreditEntry]
    next_cursor: str | None = Field(description="Null on the last page.")


class OwnerQuery(_Query):
    """Whose account is meant."""

    owner: str | None = Field(None, pattern=OWNER, description="Of another owner; takes the scope `admin`.")


class LedgerQuery(OwnerQuery):
    """Which lines of the ledger are wanted."""

    limit: int = Field(50, ge=1, le=200, description="Most lines of a page.")
    cursor: str | None = Field(None, max_length=64, description="`next_cursor` of the page before.")


class DailyQuery(OwnerQuery):
    """Which days are wanted."""

    days: int = Field(30, ge=1, le=366, description="So many days, today's (UTC) among them.")


class Usage(BaseModel):
    """What an owner has; null where nothing is metered."""

    owner: str
    balance: int | None = Field(description="What was granted and not spent; the sum of the ledger.")
    reserved: int | None = Field(description="How much of it work under way may cost; the rest is available.")
    spent: int | None = Field(description="All that was ever charged.")


class DailyUsage(BaseModel):
    """What was delivered on a day, asked for with one key."""

    day: date
    key_id: UUID | None = Field(description="Null for those in the settings, or where no key was needed.")
    originals: int
    sizes: int
    size_bytes: int = Field(description="Of the originals.")
    credits: int


class DailyUsageList(BaseModel):
    """Days on which anything was delivered, the newest first."""

    owner: str
    days: list[DailyUsage]


class DataUrl(BaseModel):
    """The bytes themselves."""

    data_url: str = Field(examples=["data:image/png;base64,…"])


class StorageStatistics(BaseModel):
    """What a storage holds, variants included."""

    name: str
    count: int
    bytes: int
    oldest: Timestamp | None
    newest: Timestamp | None


class RetentionSettings(BaseModel):
    """When assets are removed by themselves; null: never."""

    retention_days: int | None
    max_size_bytes: int | dict[str, int] | None = Field(description="For each storage, or by name.")
    interval_seconds: float


class Cleanup(BaseModel):
    """When retention ran last, and what came of it; dry runs aside."""

    started_at: Timestamp
    finished_at: Timestamp | None = Field(description="Null while it runs, and where it was killed.")
    result: Literal["done", "incomplete", "unfinished"] = Field(
        description="`incomplete`: something could not be removed, or was refused. `unfinished`: not ended, or killed."
    )
    assets: int | None = Field(description="How many it removed.")
    bytes: int | None
    failed: int | None = Field(description="How many it could not remove then.")


class RetentionQuery(_Query):
    """How retention is to run."""

    dry_run: bool = Field(False, description="Find out what would go, and remove nothing.")
    confirm: bool = Field(
        False, description="The clock is right: remove what was refused because more than half of a storage would go."
    )


class Removal(BaseModel):
    """What went of a storage for a reason; in a dry run, what would."""

    model_config = ConfigDict(from_attributes=True)

    reason: Literal["expired", "age", "size"]
    assets: int
    bytes: int
    failed: int = Field(description="Could not be removed now. Gone for callers where their bytes are owed.")
    changed: int = Field(description="Were changed, moved or deleted just then: left to the next run.")
    refused: str | None = Field(description="Why none of them went.")


class StorageRemovals(BaseModel):
    """What went of a storage."""

    model_config = ConfigDict(from_attributes=True)

    storage: str
    removals: list[Removal]
    over_bytes: int = Field(description="By how much it still holds more than it may, all but pinned ones gone.")
    error: str | None = Field(description="Why the rest did not go.")


class RetentionReport(BaseModel):
    """What a run of retention did, or would have done."""

    model_config = ConfigDict(from_attributes=True)

    dry_run: bool
    started_at: Timestamp
    finished_at: Timestamp
    result: Literal["done", "incomplete"]
    assets: int = Field(description="How many went.")
    bytes: int
    failed: int
    storages: list[StorageRemovals] = Field(description="Those of which something was to go.")


class Statistics(BaseModel):
    """What there is in all, and by storage."""

    count: int
    bytes: int
    oldest: Timestamp | None
    newest: Timestamp | None
    storages: list[StorageStatistics]
    retention: RetentionSettings
    last_cleanup: Cleanup | None = Field(description="Null where none ran yet.")
    deletions_owed: int = Field(description="Assets that are gone for callers and whose bytes are still to be removed.")


class StorageCapabilities(BaseModel):
    """What a storage can."""

    model_config = ConfigDict(from_attributes=True)

    persistent: bool
    arbitrary_bytes: bool
    max_object_bytes: int | None
    max_key_bytes: int
    create_if_absent: bool
    signed_urls: bool
    presigned_uploads: bool
    caps_uploads: bool
    verifies_writes: bool
    public_access: bool


class Storage(BaseModel):
    """A storage requests may name."""

    name: str
    type: str
    configured: bool
    missing: list[str] = Field(description="The settings it lacks.")
    default: bool
    capabilities: StorageCapabilities | None


class StorageList(BaseModel):
    """Every storage there is."""

    storages: list[Storage]


class Health(BaseModel):
    """How the service is."""

    status: Literal["ok"] = "ok"
