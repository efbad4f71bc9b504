"""What is likely wrong where a storage fails: told from the vendor's own codes, with the settings that cure it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from smart_assets.settings import StorageSettings, storage_variables
from smart_assets.storage.errors import ObjectRefused, StorageFull, StorageNotConfigured, StorageUnavailable


class Fault(StrEnum):
    """The likely cause, for machines."""

    NOT_CONFIGURED = "not_configured"
    CLOCK = "clock"
    CREDENTIALS = "credentials"
    PERMISSION = "permission"
    NO_BUCKET = "no_bucket"
    REGION = "region"
    ADDRESS = "address"
    PATH_STYLE = "path_style"
    SIGNING_ADDRESS = "signing_address"
    CHECKSUMS = "checksums"
    ACLS = "acls"
    OPEN = "open"
    CLOSED = "closed"
    EXPIRY = "expiry"
    FULL = "full"
    DISK = "disk"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Diagnosis:
    """What is likely wrong, what to do about it, and the variables by which."""

    fault: Fault
    cure: str
    settings: tuple[str, ...] = ()


_CURES: Final = {
    Fault.NOT_CONFIGURED: "set, or install, what is missing",
    Fault.CLOCK: "set this machine's clock by NTP, or the server's where that one is wrong",
    Fault.CREDENTIALS: "give the credentials of this very account, complete and not expired",
    Fault.PERMISSION: "allow these credentials what docs/storages.md lists for this type, and let this machine in; or "
    "give others",
    Fault.NO_BUCKET: "make it there, or name one that there is",
    Fault.REGION: "say the region in which the bucket lies",
    Fault.ADDRESS: "say where the server is, and see that it runs and that this machine may reach it",
    Fault.PATH_STYLE: "put the bucket into the path, where the server has no host name for each bucket; else see that "
    "its address is right",
    Fault.SIGNING_ADDRESS: "say the address by which callers reach the server; right as it is if only this machine "
    "cannot reach it",
    Fault.CHECKSUMS: "let the Content-MD5 and checksum headers through: the server, or a proxy before it, refuses or "
    "changes them",
    Fault.ACLS: "open the bucket by a policy: its ACLs are blocked",
    Fault.OPEN: "close what strangers may read to public/* (docs/storages.md), or keep public images apart",
    Fault.CLOSED: "open public/* as docs/storages.md says for this type, or say that nothing is open",
    Fault.EXPIRY: "see that the server's clock is right, and that no cache stands before signed URLs",
    Fault.FULL: "make room, or raise the limit",
    Fault.DISK: "give the service's user the directory to write in, or name another",
    Fault.UNKNOWN: "see the service's log, and the server's",
}

_ByType = dict[str, tuple[str, ...]]

_PLACE: Final[_ByType] = {"s3": ("BUCKET",), "gcs": ("BUCKET",), "azure": ("CONTAINER",), "cloudinary": ("CLOUD_NAME",)}
_WHERE: Final[_ByType] = {
    "s3": ("ENDPOINT_URL",),
    "gcs": ("ENDPOINT_URL",),
    "azure": ("ACCOUNT_URL",),
    "cloudinary": ("API_URL",),
}
_SIGNING: Final[_ByType] = {
    "s3": ("SIGNING_ENDPOINT_URL",),
    "gcs": ("SIGNING_ENDPOINT_URL",),
    "azure": ("SIGNING_ENDPOINT_URL",),
}
_PUBLIC: Final[_ByType] = dict.fromkeys(("s3", "gcs", "azure", "cloudinary"), ("PUBLIC_ACCESS",))
_APART: Final[_ByType] = {"s3": ("PUBLIC_BUCKET",), "gcs": ("PUBLIC_BUCKET",), "azure": ("PUBLIC_CONTAINER",)}
_SETTINGS: Final[dict[Fault, _ByType]] = {
    Fault.NO_BUCKET: _PLACE,
    Fault.REGION: {"s3": ("REGION",)},
    Fault.ADDRESS: _WHERE,
    Fault.PATH_STYLE: {"s3": ("ADDRESSING_STYLE", "ENDPOINT_URL")},
    Fault.SIGNING_ADDRESS: _SIGNING,
    Fault.CHECKSUMS: {"s3": ("EXTRA_ARGS",)},
    Fault.ACLS: {"s3": ("PUBLIC_ACCESS",)},
    Fault.OPEN: _APART,
    Fault.CLOSED: _PUBLIC,
    Fault.FULL: {"memory": ("MAX_BYTES",)},
}

_CODES: Final = {
    # S3, and what speaks its protocol
    "RequestTimeTooSkewed": Fault.CLOCK,
    "InvalidAccessKeyId": Fault.CREDENTIALS,
    "SignatureDoesNotMatch": Fault.CREDENTIALS,
    "ExpiredToken": Fault.CREDENTIALS,
    "InvalidToken": Fault.CREDENTIALS,
    "NoCredentialsError": Fault.CREDENTIALS,
    "PartialCredentialsError": Fault.CREDENTIALS,
    "AccessDenied": Fault.PERMISSION,
    "NoSuchBucket": Fault.NO_BUCKET,
    "InvalidBucketName": Fault.NO_BUCKET,
    "AuthorizationHeaderMalformed": Fault.REGION,
    "IllegalLocationConstraintException": Fault.REGION,
    "PermanentRedirect": Fault.REGION,
    "AccessControlListNotSupported": Fault.ACLS,
    "BadDigest": Fault.CHECKSUMS,
    "InvalidDigest": Fault.CHECKSUMS,
    "NotImplemented": Fault.CHECKSUMS,
    "XAmzContentSHA256Mismatch": Fault.CHECKSUMS,
    "XAmzContentChecksumMismatch": Fault.CHECKSUMS,
    # Azure
    "AuthenticationFailed": Fault.CREDENTIALS,
    "InvalidAuthenticationInfo": Fault.CREDENTIALS,
    "AuthorizationFailure": Fault.PERMISSION,
    "AuthorizationPermissionMismatch": Fault.PERMISSION,
    "ContainerNotFound": Fault.NO_BUCKET,
    "ContainerBeingDeleted": Fault.NO_BUCKET,
    "Md5Mismatch": Fault.CHECKSUMS,
    # Google, by the SDK's classes
    "RefreshError": Fault.CREDENTIALS,
    "DefaultCredentialsError": Fault.CREDENTIALS,
    "Unauthorized": Fault.CREDENTIALS,
    "Forbidden": Fault.PERMISSION,
    # Cloudinary, by the SDK's classes
    "AuthorizationRequired": Fault.CREDENTIALS,
    "NotAllowed": Fault.PERMISSION,
}
_SENTENCES: Final = (
    ("bucket of the storage does not exist", Fault.NO_BUCKET),
    ("bucket of the storage", Fault.UNKNOWN),
    ("clock is off", Fault.CLOCK),
    ("refuses access: look at the cloud name", Fault.CREDENTIALS),
    ("strangers are refused", Fault.CLOSED),
    ("strangers cannot read public", Fault.CLOSED),
    ("refuses public images to strangers", Fault.CLOSED),
    ("anybody can", Fault.OPEN),
    ("strangers can read private", Fault.OPEN),
    ("gives private images to strangers", Fault.OPEN),
)
_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def diagnose(error: BaseException, storage: str, own: StorageSettings | None, *, skewed: bool = False) -> Diagnosis:
    """What is likely wrong with a storage that raised `error`.

    `skewed` says that the clocks are known to differ by much: then what looks like a wrong secret is no such thing.
    """
    fault = _fault_of(error, own)
    if fault is Fault.CREDENTIALS and skewed:
        fault = Fault.CLOCK
    if isinstance(error, StorageNotConfigured) and error.missing:
        return Diagnosis(fault, _CURES[fault], error.missing)
    return diagnosis(fault, storage, own)


def diagnosis(fault: Fault, storage: str, own: StorageSettings | None) -> Diagnosis:
    """The cure of a fault of that storage, and the variables by which."""
    return Diagnosis(fault, _CURES[fault], _variables(fault, storage, own))


def _fault_of(error: BaseException, own: StorageSettings | None) -> Fault:
    causes = tuple(_chain(error))
    for cause in causes:
        for code in _codes(cause):
            if code in _CODES:
                return _CODES[code]
    if isinstance(error, StorageFull):
        return Fault.FULL
    if isinstance(error, StorageNotConfigured):
        return Fault.NOT_CONFIGURED
    kind = own.kind if own is not None else "local"
    numbers = {cause.errno for cause in causes if isinstance(cause, OSError)}
    if kind == "local" and numbers:
        return Fault.FULL if numbers & _FULL else Fault.DISK
    said = str(error)
    for words, fault in _SENTENCES:
        if words in said:
            return fault
    if isinstance(error, StorageUnavailable):
        is_virtual = getattr(own, "addressing_style", None) == "virtual" and getattr(own, "endpoint_url", None)
        return Fault.PATH_STYLE if is_virtual else Fault.ADDRESS
    return Fault.CHECKSUMS if isinstance(error, ObjectRefused) else Fault.UNKNOWN


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _codes(error: BaseException) -> Iterator[str]:
    """By what names a vendor's SDK tells an error: no SDK is imported here, the error brings what is needed."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        yield str(response.get("Error", {}).get("Code", ""))
    code = getattr(error, "error_code", None)  # azure
    if code is not None:
        yield str(getattr(code, "value", code))
    yield from (base.__name__ for base in type(error).__mro__)


def _variables(fault: Fault, storage: str, own: StorageSettings | None) -> tuple[str, ...]:
    if own is None:
        return ("ASSETS_DATA_DIR",) if fault in {Fault.FULL, Fault.DISK} else ()
    begin = storage_variables(storage)
    if own.kind == "local" and fault in {Fault.FULL, Fault.DISK}:
        return (f"{begin}DIRECTORY",)
    if fault in {Fault.CREDENTIALS, Fault.PERMISSION}:
        return _credentials(storage, own)
    if fault is Fault.NO_BUCKET and own.kind == "cloudinary" and not getattr(own, "cloud_name", None):
        return _credentials(storage, own)
    if fault is Fault.ADDRESS and own.kind == "azure" and not getattr(own, "account_url", None):
        return _credentials(storage, own)
    return tuple(f"{begin}{setting}" for setting in _SETTINGS.get(fault, {}).get(own.kind, ()))


def _credentials(storage: str, own: StorageSettings) -> tuple[str, ...]:
    """The variables the credentials come from, as far as it is set up: ours, or the vendor's own."""
    begin = storage_variables(storage)
    for setting, variables in _OWN_CREDENTIALS.get(own.kind, ()):
        if setting in own.model_fields_set and getattr(own, setting):
            return tuple(f"{begin}{variable}" for variable in variables)
    return _VENDORS_CREDENTIALS.get(own.kind, ())


_OWN_CREDENTIALS: Final = {
    "s3": (("access_key_id", ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY")),),
    "gcs": (("credentials_json", ("CREDENTIALS_JSON",)), ("credentials_file", ("CREDENTIALS_FILE",))),
    "azure": (("connection_string", ("CONNECTION_STRING",)), ("account_url", ("ACCOUNT_KEY",))),
    "cloudinary": (("cloud_name", ("API_KEY", "API_SECRET")), ("url", ("URL",))),
}
_VENDORS_CREDENTIALS: Final[_ByType] = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "gcs": ("GOOGLE_APPLICATION_CREDENTIALS",),
    "azure": ("AZURE_STORAGE_CONNECTION_STRING",),
    "cloudinary": ("CLOUDINARY_URL",),
}
