"""Settings: environment variables with the prefix `ASSETS_` (groups joined by `__`), or the same names in `.env`.

Frozen once read. No instance lives here: `load_settings` is called by whoever starts the service.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SecretStr,
    Tag,
    ValidationError,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from smart_assets.errors import ConfigurationError
from smart_assets.formats import ImageFormat

PREFIX = "ASSETS_"
TEMPORARY: Final = "tmp"
OF_THE_COMMANDS = frozenset({"ASSETS_URL", "ASSETS_KEY"})
"""Variables that are no settings of the service: where commands find one (see `commands.service`)."""

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB


def _split_commas(value: object) -> object:
    if not isinstance(value, str):
        return value
    items = [item.strip() for item in value.split(",") if item.strip()]
    if value.strip() and not items:
        raise ValueError("holds nothing but commas")
    return items


def _without_trailing_slash(value: str) -> str:
    return value.rstrip("/")


CommaList = BeforeValidator(_split_commas)
EmptyIsNone = BeforeValidator(lambda value: None if value == "" else value)


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PolicySettings(_Group):
    """What may be uploaded; each refusal names the limit and the value."""

    formats: Annotated[tuple[ImageFormat, ...], NoDecode, CommaList] = Field(
        tuple(ImageFormat), description="Allowed formats, comma-separated: jpeg, png, webp, gif, avif."
    )
    min_bytes: int = Field(1, ge=1, description="Least size of an uploaded file.")
    min_width: int = Field(1, ge=1, description="Least width in pixels, orientation applied.")
    min_height: int = Field(1, ge=1, description="Least height in pixels, orientation applied.")
    max_width: int = Field(65535, ge=1, description="Most width in pixels, orientation applied.")
    max_height: int = Field(65535, ge=1, description="Most height in pixels, orientation applied.")
    max_frames: int = Field(1000, ge=1, description="Most frames of an animation.")
    max_animation_pixels: int = Field(
        250_000_000, ge=1, description="Most pixels of all an animation's frames together."
    )
    max_files_per_batch: int = Field(20, ge=1, le=1000, description="Most files of one batch.")
    max_sizes_per_upload: int = Field(20, ge=0, le=20, description="Most sizes of one upload.")
    max_signed_expiry_seconds: int = Field(
        604_800, ge=1, le=604_800, description="Longest time a signed URL may be asked for."
    )


def _memory_bytes() -> int:
    """The memory there is for the service: the machine's, or what its container may take of it."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # no such file, or no limit
            found = min(found, int(Path(limit).read_text()))
    return found


class ImagingSettings(_Group):
    """The workers that decode and encode."""

    workers: int = Field(
        default_factory=lambda: os.cpu_count() or 1, ge=1, le=64, description="Worker processes; by default one a core."
    )
    timeout_seconds: float = Field(60, gt=0, description="Longest time one image's sizes may take.")
    memory_budget_bytes: int = Field(
        default_factory=lambda: min(1024 * MiB, _memory_bytes() // 2),
        ge=64 * MiB,
        description="Memory all images in work may take together, by estimate, in all processes over one data "
        "directory; past it a request waits. "
        "By default 1 GiB, or half of the machine's (the container's) memory where that is less.",
    )
    worker_memory_bytes: int = Field(
        default_factory=lambda: min(2048 * MiB, _memory_bytes() // 2),
        ge=256 * MiB,
        description="Memory one worker may take before its job fails. By default 2 GiB, or half of what there is.",
    )
    wait_seconds: float = Field(
        15, ge=0, description="How long a request waits for its turn before it is answered `busy`."
    )


IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


class ImportSettings(_Group):
    """Images fetched from a URL (`source_url`)."""

    allow_http: bool = Field(False, description="Whether `http://` is taken beside `https://`.")
    ports: Annotated[tuple[int, ...], NoDecode, CommaList] = Field(
        (443, 80), description="Ports that may be asked, comma-separated."
    )
    allowed_networks: Annotated[tuple[IPNetwork, ...], NoDecode, CommaList] = Field(
        (), description="Networks that may be asked though they are not public, comma-separated: `10.1.0.0/16`."
    )
    max_redirects: int = Field(5, ge=0, le=20, description="How often an answer may lead elsewhere.")
    timeout_seconds: float = Field(30, gt=0, description="Longest time one import may take.")
    at_once: int = Field(8, ge=1, le=256, description="Imports of a process at the same time.")
    wait_seconds: float = Field(10, ge=0, description="How long an import waits for its turn before it is `busy`.")


class CreditSettings(_Group):
    """What uploads cost their owner, in credits. Nothing is metered while all of it is 0."""

    per_original: int = Field(0, ge=0, le=1_000_000, description="Price of an original.")
    per_size: int = Field(0, ge=0, le=1_000_000, description="Price of each size that is made.")
    per_mb: int = Field(
        0, ge=0, le=1_000_000, description="Price of each begun MiB (1048576 bytes) of an original as it is stored."
    )

    @property
    def are_on(self) -> bool:
        """Whether anything has a price."""
        return bool(self.per_original or self.per_size or self.per_mb)


class TicketSettings(_Group):
    """Tickets with which one file is uploaded without a key."""

    expiry_seconds: int = Field(
        900, ge=1, le=604_800, description="How long a ticket is good for where its maker does not say."
    )
    max_expiry_seconds: int = Field(
        86_400, ge=1, le=604_800, description="Longest time a ticket may be asked to be good for."
    )
    grace_seconds: float = Field(
        3600,
        ge=0,
        description="How long after its end a ticket is kept: for an upload that began in time, or is still to be "
        "completed. Then what was uploaded with it to a bucket, and not completed, is removed.",
    )


def _size_limits(value: Any) -> Any:
    if value is None or value in ("", {}):
        return None
    limits = value.values() if isinstance(value, dict) else [value]
    if not all(re.fullmatch(r"[1-9]\d*", str(limit), re.ASCII) for limit in limits):
        raise ValueError("must be a number of bytes from 1 up, or a JSON object of such numbers by storage")
    return value


Rate = Annotated[
    Annotated[
        str,
        Field(pattern=r"^[1-9][0-9]{0,14} ?/ ?([1-9][0-9]{0,4} )?(second|minute|hour|day)s?$", examples=["600/minute"]),
    ]
    | None,
    EmptyIsNone,
]
"""So much in so much time: `600/minute`, `20/10 seconds`."""


class LimitSettings(_Group):
    """How much a caller may ask for in a time; nothing is limited but what is set."""

    uploads_per_key: Rate = Field(None, description="Uploads with one key, and requests for more sizes: `600/minute`.")
    uploads_per_address: Rate = Field(None, description="The same from one address, with whatever keys.")
    upload_bytes_per_key: Rate = Field(None, description="Bytes of uploads with one key: `10000000000/day`.")
    upload_bytes_per_address: Rate = Field(None, description="The same from one address.")
    reads_per_key: Rate = Field(
        None,
        description="Calls of the API with one key that upload nothing: to read, above all, but to change and "
        "delete as well.",
    )
    reads_per_address: Rate = Field(None, description="The same from one address.")
    deliveries_per_address: Rate = Field(None, description="Fetches from `/assets` from one address.")
    failed_keys_per_address: Rate = Field(
        None, description="Requests from one address with a key that is not good; past it none with a key is answered."
    )
    redis_timeout_seconds: float = Field(
        0.25, gt=0, description="How long a request waits for `ASSETS_REDIS_URL` before it is counted in its process."
    )

    @property
    def has_rules(self) -> bool:
        """Whether anything is limited."""
        return any(getattr(self, name) for name in type(self).model_fields if "_per_" in name)


class RetentionSettings(_Group):
    """When assets are removed by themselves. Pinned ones never are."""

    days: Annotated[int | None, EmptyIsNone] = Field(
        None, ge=1, le=36_500, description="Assets that were uploaded longer ago are removed; by default none is."
    )
    max_size_bytes: Annotated[int | dict[str, int] | None, BeforeValidator(_size_limits)] = Field(
        None,
        description="How much a storage may hold, originals and sizes: past it the oldest assets are removed. One "
        'number for each storage alone, or a JSON object by name: `{"local": 10737418240}`. By default no limit.',
    )
    interval_seconds: float = Field(3600, ge=1, description="So often one process of all looks for what is to go.")
    batch: int = Field(200, ge=1, le=10_000, description="So many assets are looked up at a time.")

    def max_size_of(self, storage: str) -> int | None:
        """How many bytes a storage may hold; None where there is no limit."""
        if isinstance(self.max_size_bytes, dict):
            return self.max_size_bytes.get(storage)
        return self.max_size_bytes

    @property
    def has_rules(self) -> bool:
        """Whether assets go that have no end of their own."""
        return self.days is not None or bool(self.max_size_bytes)


class StorageSettings(_Group):
    """What one storage is set up with, whether it has its kind's plain name or one of the operator's."""

    kind: ClassVar[str]

    def missing(self, storage: str) -> tuple[str, ...]:
        """The variables without which the storage of that name cannot be used."""
        return ()

    def places(self) -> frozenset[str]:
        """Where its objects lie over a network, in words that are the same for the same place."""
        return frozenset()


def storage_variables(storage: str) -> str:
    """What the variables of a storage begin with: `ASSETS_S3__`, `ASSETS_STORAGES__media__`."""
    return f"{PREFIX}{storage.upper()}__" if storage in PLAIN_NAMES else f"{PREFIX}STORAGES__{storage}__"


class LocalStorageSettings(StorageSettings):
    """A storage on this machine's disk."""

    kind = "local"

    directory: Path | None = Field(
        None,
        description="A directory of its own, for the storage alone: images lie in `assets` below it. By default one "
        "in the data directory.",
    )

    def directory_of(self, storage: str, data_dir: Path) -> Path:
        """The directory of the storage of that name."""
        return self.directory or data_dir / "storages" / storage


class MemoryStorageSettings(StorageSettings):
    """The `memory` storage: one process only, forgotten at restart."""

    kind = "memory"

    max_bytes: int = Field(256 * MiB, ge=1, description="Most bytes it holds; past it writes answer `storage_full`.")


class DirectStorageSettings(StorageSettings):
    """The `direct` storage: the bytes come back in the answer."""

    kind = "direct"

    max_bytes: int = Field(
        64 * MiB, ge=1, description="Most bytes of one request's files: they are in memory until the answer is sent."
    )


def _environment(variable: str) -> Any:
    """A field that a vendor's own variable fills where ours does not."""
    return lambda: os.environ.get(variable) or None


def _with_scheme(value: object) -> object:
    if isinstance(value, str) and "://" not in value:
        return f"https://{value}" if value else None
    return value


def _prefix(value: str) -> str:
    return f"{value.strip('/')}/" if value.strip("/") else ""


Url = Annotated[
    Annotated[str, AfterValidator(_without_trailing_slash), Field(pattern=r"^https?://[^\s?#]+$")] | None,
    BeforeValidator(_with_scheme),
]
Text = Annotated[str | None, EmptyIsNone]
Secret = Annotated[SecretStr | None, EmptyIsNone]


class _RemoteStorageSettings(StorageSettings):
    public_url: Url = Field(
        None,
        description="CDN or own domain in front of the public objects, as far as their keys (`public/…`). Never used "
        "for private ones.",
    )
    prefix: Annotated[str, AfterValidator(_prefix)] = Field(
        "", max_length=100, description="Put before every key, so that others can share the place."
    )
    connect_timeout_seconds: float = Field(5, gt=0, description="How long to wait for a connection.")
    timeout_seconds: float = Field(30, gt=0, description="How long the server may stay silent.")
    max_connections: int = Field(16, ge=1, le=256, description="Most calls at once; the others wait their turn.")


# Of PutObject's arguments: what an object is, who may read it, and how it gets there whole, is not the operator's.
_RESERVED_ARGUMENTS = re.compile(
    r"ACL|Grant.*|Body|Bucket|Key|CacheControl|Checksum.*|Content(?!Language).*|Expires|If.*|SSECustomer.*|"
    r"WriteOffsetBytes"
)


def _from_json(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError("is not valid JSON") from None


def _extra_args(value: dict[str, Any]) -> dict[str, Any]:
    reserved = sorted(name for name in value if _RESERVED_ARGUMENTS.fullmatch(name))
    if reserved:
        raise ValueError(f"may not hold {', '.join(reserved)}")
    return value


class S3Settings(_RemoteStorageSettings):
    """The `s3` storage: AWS, or anything that speaks its protocol. Credentials by AWS's standard chain, or here."""

    kind = "s3"

    bucket: Text = Field(None, description="The bucket.")
    region: Text = Field(None, description="Its region; by default as AWS's own settings say, else `us-east-1`.")
    endpoint_url: Url = Field(None, description="Where the server is, where it is not AWS; `https://` if not said.")
    signing_endpoint_url: Url = Field(
        None, description="Where callers reach it, for signed and public URLs; by default the same."
    )
    addressing_style: Literal["auto", "path", "virtual"] = Field(
        "auto", description="`path` puts the bucket in the path; `auto`: where an endpoint is given."
    )
    access_key_id: Text = Field(None, description="Credentials, where not by AWS's standard chain.")
    secret_access_key: Secret = Field(None, description="With the access key's id.")
    session_token: Secret = Field(None, description="With temporary credentials.")
    public_access: Literal["none", "policy", "acl"] = Field(
        "none",
        description="How strangers reach public objects at the bucket: not at all, by a bucket policy on `public/*`, "
        "or by each object's ACL.",
    )
    public_bucket: Text = Field(None, description="A bucket of its own for public objects.")
    storage_class: Text = Field(None, description="Such as `STANDARD_IA`.")
    encryption: Annotated[Literal["AES256", "aws:kms", "aws:kms:dsse"] | None, EmptyIsNone] = Field(
        None, description="Server-side encryption, where it is not the bucket's own default."
    )
    kms_key_id: Text = Field(None, description="With `aws:kms`; by default AWS's own key.")
    extra_args: Annotated[dict[str, Any], BeforeValidator(_from_json), AfterValidator(_extra_args)] = Field(
        {},
        description="More arguments of each put, as a JSON object: PutObject's own, but for those that say what an "
        "object holds or who may read it.",
    )
    multipart_bytes: int = Field(
        100 * MiB, ge=5 * MiB, le=5 * GiB, description="From this size on an object is sent in parts."
    )
    part_bytes: int = Field(8 * MiB, ge=5 * MiB, le=5 * GiB, description="Size of such a part, held in memory.")

    def missing(self, storage: str) -> tuple[str, ...]:
        """The variables without which it cannot be used."""
        needed: dict[str, object] = {"BUCKET": self.bucket}
        if self.access_key_id or self.secret_access_key:
            needed |= {"ACCESS_KEY_ID": self.access_key_id, "SECRET_ACCESS_KEY": self.secret_access_key}
        return tuple(f"{storage_variables(storage)}{name}" for name, value in needed.items() if not value)

    def places(self) -> frozenset[str]:
        """Its buckets."""
        return frozenset(
            f"s3 {self.endpoint_url or ''} {bucket}/{self.prefix}"
            for bucket in (self.bucket, self.public_bucket)
            if bucket
        )


class CloudinarySettings(_RemoteStorageSettings):
    """The `cloudinary` storage. The account by `CLOUDINARY_URL`, or here in three parts, which go before it."""

    kind = "cloudinary"

    url: Secret = Field(
        default_factory=_environment("CLOUDINARY_URL"),
        validate_default=True,
        description="`cloudinary://key:secret@cloud`, as the vendor says.",
    )
    cloud_name: Text = Field(None, description="The account's name.")
    api_key: Text = Field(None, description="Its key.")
    api_secret: Secret = Field(None, description="Its secret.")
    api_url: Url = Field(None, description="Where the API is; by default Cloudinary's, or the URL's `upload_prefix`.")
    delivery_url: Url = Field(
        None,
        description="Where images are delivered from, as far as `/image`; by default Cloudinary's CDN: "
        "`https://res.cloudinary.com/` and the account's name.",
    )
    public_access: Literal["none", "cdn"] = Field(
        "none",
        description="`cdn`: the address of a public asset is the CDN's own. `none`: it is the service's, which "
        "redirects there.",
    )
    transformation: str = Field(
        "", pattern=r"^[A-Za-z0-9_:.,/-]*$", description="Put into public addresses, such as `f_auto,q_auto`."
    )
    large_bytes: int = Field(
        20 * MiB, ge=5 * MiB, description="Beyond this size an image is sent in parts of this size, held in memory."
    )
    max_bytes: int = Field(
        10 * 1000 * 1000, ge=1, description="The account's limit for an image; the free plan's is 10 MB."
    )
    signature_algorithm: Literal["sha1", "sha256"] = Field("sha1", description="As the account is set.")

    def missing(self, storage: str) -> tuple[str, ...]:
        """The variables without which it cannot be used."""
        parts = {"CLOUD_NAME": self.cloud_name, "API_KEY": self.api_key, "API_SECRET": self.api_secret}
        if self.url or all(parts.values()):
            return ()
        if not any(parts.values()):
            return (self.url_variable(storage),)
        return tuple(f"{storage_variables(storage)}{name}" for name, value in parts.items() if not value)

    def url_variable(self, storage: str) -> str:
        """What names the account: the vendor's own variable, where the storage's name is the plain one."""
        return "CLOUDINARY_URL" if storage == self.kind else f"{storage_variables(storage)}URL"

    def places(self) -> frozenset[str]:
        """The account."""
        url = self.url.get_secret_value() if self.url else ""
        cloud = self.cloud_name or url.rpartition("@")[2].partition("?")[0].partition("/")[0]
        return frozenset({f"cloudinary {self.api_url or ''} {cloud}/{self.prefix}"} if cloud else ())


class GcsSettings(_RemoteStorageSettings):
    """The `gcs` storage: Google Cloud Storage. Credentials by Google's default chain, or here."""

    kind = "gcs"

    bucket: Text = Field(None, description="The bucket.")
    project: Text = Field(None, description="The project; by default the credentials' own.")
    endpoint_url: Url = Field(None, description="Where the server is, where it is not Google; `https://` if not said.")
    signing_endpoint_url: Url = Field(
        None, description="Where callers reach it, for signed and public URLs; by default the same."
    )
    credentials_file: Annotated[Path | None, EmptyIsNone] = Field(
        None, description="A service account's key file, where not by Google's default chain."
    )
    credentials_json: Secret = Field(None, description="The same, as its text.")
    signing_account: Text = Field(
        None,
        description="The service account that signs URLs through IAM, where the credentials hold no private key; by "
        "default their own. They need `iam.serviceAccounts.signBlob` on it.",
    )
    public_access: Literal["none", "policy"] = Field(
        "none",
        description="`policy`: strangers may read public objects, by the IAM policy of the public bucket, or of a "
        "managed folder `public/`.",
    )
    public_bucket: Text = Field(None, description="A bucket of its own for public objects.")
    storage_class: Text = Field(None, description="Such as `NEARLINE`.")
    kms_key: Text = Field(None, description="The Cloud KMS key to encrypt with, by its full name.")
    resumable_bytes: int = Field(
        8 * MiB, ge=256 * KiB, description="Beyond this size an object is sent in parts of this size, held in memory."
    )

    def missing(self, storage: str) -> tuple[str, ...]:
        """The variables without which it cannot be used."""
        return () if self.bucket else (f"{storage_variables(storage)}BUCKET",)

    def places(self) -> frozenset[str]:
        """Its buckets."""
        return frozenset(
            f"gcs {self.endpoint_url or ''} {bucket}/{self.prefix}"
            for bucket in (self.bucket, self.public_bucket)
            if bucket
        )


_AZURE_CONNECTION: Final = "AZURE_STORAGE_CONNECTION_STRING"


class AzureSettings(_RemoteStorageSettings):
    """The `azure` storage: Azure Blob Storage. By a connection string, or an account's URL and credentials."""

    kind = "azure"

    account_url: Url = Field(
        None,
        description="`https://account.blob.core.windows.net`; credentials by Azure's default chain, or the account's "
        "key.",
    )
    account_key: Secret = Field(None, description="The account's key, with its URL.")
    connection_string: Secret = Field(
        # Said of one storage, an account is its own: the vendor's variable may be there for another.
        default_factory=lambda said: None if said.get("account_url") else _environment(_AZURE_CONNECTION)(),
        validate_default=True,
        description="As the portal shows it; by default `AZURE_STORAGE_CONNECTION_STRING`, where no account is said.",
    )
    signing_endpoint_url: Url = Field(
        None, description="Where callers reach the account, for signed and public URLs; by default the same."
    )
    container: Text = Field(None, description="The container.")
    public_access: Literal["none", "policy"] = Field(
        "none", description="`policy`: strangers may read what is in the public container."
    )
    public_container: Text = Field(None, description="A container of its own for public objects.")
    access_tier: Annotated[Literal["Hot", "Cool", "Cold"] | None, EmptyIsNone] = Field(
        None, description="The tier of each blob, where it is not the account's default."
    )
    single_put_bytes: int = Field(
        8 * MiB, ge=64 * KiB, le=256 * MiB, description="Beyond this size a blob is sent in blocks."
    )
    block_bytes: int = Field(4 * MiB, ge=64 * KiB, le=256 * MiB, description="Size of such a block, held in memory.")

    def missing(self, storage: str) -> tuple[str, ...]:
        """The variables without which it cannot be used."""
        variables = storage_variables(storage)
        needed: dict[str, object] = {f"{variables}CONTAINER": self.container}
        if not self.account_url:
            needed[self.account_variable(storage)] = self.connection_string
        if self.public_access != "none":
            needed[f"{variables}PUBLIC_CONTAINER"] = self.public_container
        return tuple(variable for variable, value in needed.items() if not value)

    def account_variable(self, storage: str) -> str:
        """What names the account: the vendor's own variable, where the storage's name is the plain one."""
        return _AZURE_CONNECTION if storage == self.kind else f"{storage_variables(storage)}CONNECTION_STRING"

    def places(self) -> frozenset[str]:
        """Its containers."""
        said = self.connection_string.get_secret_value() if self.connection_string else ""
        parts = dict(part.strip().partition("=")[::2] for part in said.split(";"))
        name, end = parts.get("AccountName", ""), parts.get("EndpointSuffix", "core.windows.net")
        account = parts.get("BlobEndpoint", "").rstrip("/") or (
            f"https://{name}.blob.{end}" if name else self.account_url
        )
        return frozenset(
            f"azure {account} {container}/{self.prefix}"
            for container in (self.container, self.public_container)
            if container and account
        )


_STORAGES: Final[tuple[type[StorageSettings], ...]] = (
    LocalStorageSettings,
    MemoryStorageSettings,
    DirectStorageSettings,
    S3Settings,
    CloudinarySettings,
    GcsSettings,
    AzureSettings,
)
PLAIN_NAMES: Final = tuple(sorted(group.kind for group in _STORAGES))
"""The kinds of storage there are, each of which is the name of one."""

_STORAGE_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}", re.ASCII)


def _new_name(name: str) -> str:
    if name in PLAIN_NAMES:
        raise ValueError(
            f"is a storage already, set up by {PREFIX}{name.upper()}__…, and its name cannot be given to another"
        )
    if not _STORAGE_NAME.fullmatch(name) or "__" in name or name.endswith("_"):
        raise ValueError(
            "cannot name a storage; a name is a letter or digit and up to 62 more of a-z, 0-9, - and _, without two _ "
            "in a row or one at its end, which a variable could not tell from what divides it"
        )
    return name


def _kind_of(value: object) -> str | None:
    if isinstance(value, StorageSettings):
        return value.kind
    kind = value.get("type") if isinstance(value, Mapping) else None
    return kind if isinstance(kind, str) else None


def _without_type(value: object) -> object:
    if not isinstance(value, Mapping):
        return value
    return {setting: given for setting, given in value.items() if setting != "type"}


_NO_TYPE: Final = "storage_type"
_TypeLeftOut = BeforeValidator(_without_type)

NamedStorages = dict[
    Annotated[str, AfterValidator(_new_name)],
    Annotated[
        Annotated[LocalStorageSettings, _TypeLeftOut, Tag("local")]
        | Annotated[MemoryStorageSettings, _TypeLeftOut, Tag("memory")]
        | Annotated[DirectStorageSettings, _TypeLeftOut, Tag("direct")]
        | Annotated[S3Settings, _TypeLeftOut, Tag("s3")]
        | Annotated[CloudinarySettings, _TypeLeftOut, Tag("cloudinary")]
        | Annotated[GcsSettings, _TypeLeftOut, Tag("gcs")]
        | Annotated[AzureSettings, _TypeLeftOut, Tag("azure")],
        Discriminator(
            _kind_of,
            custom_error_type=_NO_TYPE,
            custom_error_message=f"must be one of {', '.join(PLAIN_NAMES)}",
        ),
    ],
]


class PostgresqlSettings(_Group):
    """The catalogue in PostgreSQL, where `ASSETS_DATABASE_URL` names one. Each process has connections of its own."""

    readers: int = Field(4, ge=1, le=64, description="Connections for reading.")
    writers: int = Field(
        4, ge=1, le=64, description="Connections for writing. A job that one process of all does takes one more."
    )
    wait_seconds: float = Field(
        15, gt=0, description="How long a call waits for one of them before it is answered `busy`."
    )
    connect_timeout_seconds: int = Field(5, ge=2, description="How long to wait for a new connection.")
    statement_timeout_seconds: float = Field(
        30, ge=1, description="Longest time one statement may take, and a transaction may stand still."
    )
    lock_timeout_seconds: float = Field(
        10, gt=0, description="How long to wait for a row that another transaction is changing."
    )


def _check_database_url(value: SecretStr | None) -> SecretStr | None:
    if value is not None and not _DATABASE_URL.match(value.get_secret_value()):
        raise ValueError("must begin with sqlite:/// or postgresql://")
    return value


def _check_redis_url(value: SecretStr | None) -> SecretStr | None:
    if value is not None and not re.match(r"(rediss?|unix)://", value.get_secret_value()):
        raise ValueError("must begin with redis://, rediss:// or unix://")
    return value


_DATABASE_URL = re.compile(r"sqlite:///|postgres(ql)?(\+psycopg)?://")


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_file=".env",
        dotenv_filtering="match_prefix",
        frozen=True,
        extra="forbid",
        validate_default=False,
    )

    host: str = Field("127.0.0.1", description="Address to listen on. Any but a loopback one needs `ASSETS_API_KEYS`.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    workers: int = Field(
        1, ge=1, le=64, description="Processes that serve. With several the storage `memory` is not to be had."
    )
    data_dir: Path = Field(
        Path("data"), description="Local assets, the SQLite catalogue, the signing key and temporary files."
    )
    public_url: Annotated[str | None, AfterValidator(lambda url: url and _without_trailing_slash(url))] = Field(
        None, pattern=r"^https?://\S+$", description="Where callers reach the service; by default from each request."
    )
    accel_redirect: Annotated[str | None, EmptyIsNone] = Field(
        None,
        pattern=r"^(/[A-Za-z0-9_-]+)+$",
        description="The path of an nginx `internal` location over `assets` in the data directory, such as `/_bytes`: "
        "what a gateway that names it (`X-Accel-Prefix`) asks for, it is told to send itself, once it is clear who "
        "may have it. See `docs/containers.md`.",
    )
    database_url: Annotated[SecretStr | None, AfterValidator(_check_database_url)] = Field(
        None,
        description="The catalogue's database: `postgresql://user:password@host/name` for several machines; by default "
        "SQLite in the data directory (`sqlite:///path` puts it elsewhere).",
    )
    redis_url: Annotated[Secret, AfterValidator(_check_redis_url)] = Field(
        None,
        description="Where limits are counted for all processes together: `redis://:password@host:6379/0`; by default "
        "in each process.",
    )
    default_storage: str = Field("local", description="The storage of an upload that names none.")
    max_upload_bytes: int = Field(50 * MiB, ge=1, description="Most bytes of one uploaded file.")
    max_pixels: int = Field(100_000_000, ge=1, description="Most pixels (width times height), by the header.")
    public_cache_seconds: int = Field(
        3600, ge=0, description="How long caches may keep a public asset; going private reaches them within it."
    )
    signed_url_seconds: int = Field(
        86_400, ge=1, le=604_800, description="How long the signed URL in an asset's answer lives."
    )
    signing_keys: Annotated[tuple[SecretStr, ...], NoDecode, CommaList] = Field(
        (),
        description="Secrets for signed URLs, comma-separated, 32 characters or more: the first signs, all verify. "
        "By default one is made and kept in the data directory.",
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode, CommaList] = Field(
        (), description="Keys that may call the API, comma-separated; none: open mode, loopback only."
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode, CommaList] = Field(
        (),
        description="Other sites whose pages may call the API from a browser, comma-separated: `https://shop.example`; "
        "`*` for any, where keys are set. None by default.",
    )
    presets: dict[str, tuple[str, ...]] = Field(
        {
            "thumbnail": ("150x150",),
            "social": ("1200x630", "1200x1200"),
            "responsive": ("1600", "1200", "800", "400"),
        },
        description="Named lists of sizes, as a JSON object.",
    )
    body_timeout_seconds: float = Field(
        30,
        gt=0,
        description="How long a caller may keep the service waiting: for a request's head, for the next bytes of a "
        "body (`body_timeout`; slower than 1 KiB a second counts), or to read on in an answer.",
    )
    shutdown_seconds: int = Field(30, ge=0, description="How long running requests may go on after SIGTERM.")
    lease_seconds: float = Field(
        15, ge=1, description="After this long without a sign of life, another process finishes what one began."
    )
    reconcile_grace_seconds: float = Field(
        3600, ge=0, description="Objects without a row are nobody's orphans before they are so old."
    )
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="`console` for people, `json` for machines, `auto` by whether a terminal is there."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")

    policy: PolicySettings = PolicySettings()
    imaging: ImagingSettings = ImagingSettings()
    retention: RetentionSettings = RetentionSettings()
    imports: ImportSettings = ImportSettings()
    limits: LimitSettings = LimitSettings()
    credits: CreditSettings = CreditSettings()
    tickets: TicketSettings = TicketSettings()
    memory: MemoryStorageSettings = MemoryStorageSettings()
    direct: DirectStorageSettings = DirectStorageSettings()
    postgresql: PostgresqlSettings = PostgresqlSettings()
    s3: S3Settings = Field(default_factory=S3Settings)
    cloudinary: CloudinarySettings = Field(default_factory=CloudinarySettings)
    gcs: GcsSettings = Field(default_factory=GcsSettings)
    azure: AzureSettings = Field(default_factory=AzureSettings)
    storages: NamedStorages = Field(
        {},
        description="Storages with names of your own: `ASSETS_STORAGES__media__TYPE=s3`, and each setting of that type "
        "as `ASSETS_STORAGES__media__BUCKET`.",
    )

    def storage(self, name: str) -> StorageSettings | None:
        """What the storage of that name is set up with; None where there is none, or it has no settings."""
        if name not in PLAIN_NAMES:
            return self.storages.get(name)
        plain = getattr(self, name, None)
        return plain if isinstance(plain, StorageSettings) else None

    @property
    def open_mode(self) -> bool:
        """No keys: everybody on this machine may, nobody else."""
        return not self.api_keys

    @property
    def temporary_dir(self) -> Path:
        """Where bodies and renditions wait, on the local storage's own file system."""
        return self.data_dir / TEMPORARY


_LONGEST_HOST = 255


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine itself."""
    # What callers send is remembered only where it is no longer than a name can be.
    return len(host) <= _LONGEST_HOST and _is_loopback(host)


@lru_cache(256)
def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment and `.env`, `overrides` before both.

    Raises ConfigurationError with one sentence for the first thing that is wrong.
    """
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        message = (
            "is not a setting" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        )
        raise ConfigurationError(f"{_variable_of(first['loc'], first['type'])}: {message}") from None
    except SettingsError as error:  # a group, list or object that is no JSON: the field's name is in the message
        match = re.search(r'"(\w+)"', str(error))
        raise ConfigurationError(f"{PREFIX}{match[1].upper() if match else '…'}: is not valid JSON") from None
    _check(settings)
    return settings


_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:\d{1,5})?|https?://\[[0-9a-f:]+\](:\d{1,5})?", re.ASCII)


def _variable_of(loc: tuple[int | str, ...], problem: str) -> str:
    """The variable an error is about, as the operator wrote it."""
    names = [part for part in loc if isinstance(part, str) and part != "[key]"]
    if names[0] != "storages" or len(names) == 1:
        return PREFIX + "__".join(names).upper()
    # Behind the storage's name stands its type, which is no part of a variable's name.
    storage, setting = names[1], "__".join(names[3:]).upper()
    if problem == _NO_TYPE:
        setting = "TYPE"
    return f"{PREFIX}STORAGES__{storage}" + (f"__{setting}" if setting else "")


def _check(settings: Settings) -> None:
    # A name is the same however it is written, so of these only the last would count.
    written = Counter(variable.upper() for variable in os.environ if variable.startswith(f"{PREFIX}STORAGES__"))
    for variable, times in written.items():
        if times > 1:
            raise ConfigurationError(f"{variable} is set {times} times, in capitals and in small letters: keep one")
    for origin in settings.cors_origins:
        if origin == "*" and settings.open_mode:
            raise ConfigurationError("ASSETS_CORS_ORIGINS: * would let every page in, where no ASSETS_API_KEYS are set")
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ConfigurationError(
                f"ASSETS_CORS_ORIGINS: {origin[:100]!r} is not an origin as browsers send it: https://shop.example"
            )
    if settings.open_mode and not is_loopback(settings.host):
        raise ConfigurationError(
            f"ASSETS_HOST is {settings.host}, which other machines can reach, and ASSETS_API_KEYS is empty: make a key "
            "with `openssl rand -hex 32` and set ASSETS_API_KEYS to it, or listen on 127.0.0.1"
        )
    for secret in settings.signing_keys:
        if len(secret.get_secret_value()) < 32:
            raise ConfigurationError("ASSETS_SIGNING_KEYS: each secret needs 32 characters or more")
    for secret in settings.api_keys:
        value = secret.get_secret_value()
        if len(value) < 16 or not value.isascii() or not value.isprintable() or " " in value:
            raise ConfigurationError(
                "ASSETS_API_KEYS: each key needs 16 or more printable ASCII characters without spaces"
            )


def misspelt_variables() -> list[str]:
    """A sentence for each `ASSETS_` variable of the environment that is no setting."""
    known: set[str] = set(OF_THE_COMMANDS)
    for name, field in Settings.model_fields.items():
        group = field.annotation
        if isinstance(group, type) and issubclass(group, _Group):
            known.update(f"{PREFIX}{name}__{inner}".upper() for inner in group.model_fields)
        known.add(f"{PREFIX}{name}".upper())
    sentences = []
    for variable in sorted(os.environ):
        if variable.startswith(PREFIX):
            possible = known | _known_of_storage(variable)
            if variable not in possible:
                close = difflib.get_close_matches(variable, possible, n=1)
                sentences.append(f"{variable} is not a setting" + (f"; did you mean {close[0]}?" if close else ""))
    return sentences


def _known_of_storage(variable: str) -> set[str]:
    """The variables of the named storage that this one seems to be about; of every type, where none is said here."""
    _, _, rest = variable.removeprefix(PREFIX).partition("__")
    storage, _, _ = rest.partition("__")
    if not storage:
        return set()
    begin = f"{PREFIX}STORAGES__{storage}__"
    said = {name.upper(): value for name, value in os.environ.items()}.get(f"{begin}TYPE".upper())
    groups = [group for group in _STORAGES if group.kind == said] or _STORAGES
    return {f"{begin}TYPE", *(f"{begin}{setting.upper()}" for group in groups for setting in group.model_fields)}
