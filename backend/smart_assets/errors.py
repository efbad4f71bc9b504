"""Every error the service raises on purpose.

An error knows what went wrong in words a caller can act on, and a stable snake_case `code`. It knows nothing of HTTP:
`api.problems` gives each code its status.

    SmartAssetsError
    ├── ConfigurationError            a setting is wrong or missing; the service does not start
    ├── InvalidParameter              a parameter or field has a value that cannot be used
    │   └── SourceUnavailable         what is to be imported cannot be had there now
    ├── BodyError
    │   ├── MalformedBody             the body is not what its content type says
    │   ├── BodyTooLarge
    │   ├── BodyTimeout               the sender stalled
    │   ├── ClientGone                the sender went away; nobody hears the answer
    │   ├── UnsupportedMediaType
    │   └── DigestMismatch
    ├── ImageError
    │   ├── UnsupportedImage          not an image, or a format that is not allowed
    │   ├── CorruptImage              truncated or damaged
    │   │   └── DecoderFailed         or so it seems: it took too long, or its decoder crashed
    │   └── TooManyPixels
    ├── AccessError
    │   ├── Unauthorized
    │   ├── Forbidden
    │   ├── SignatureRequired
    │   ├── SignatureInvalid
    │   └── SignatureExpired
    ├── LibraryError
    │   ├── AssetNotFound
    │   ├── VariantNotFound
    │   ├── AssetBusy                 another change of the same asset is under way
    │   ├── AssetGone                 what a repeated request once made was deleted since
    │   └── PreconditionFailed
    ├── RateLimited                   too much was asked for in too short a time
    ├── KeyNotFound                   no such key of a caller
    ├── TicketError
    │   ├── TicketNotFound            no such ticket, or its time was over long ago
    │   ├── TicketUsed                another file came with it
    │   ├── TicketInUse               a file is just coming with it
    │   └── UploadMissing             nothing has come with it yet
    ├── IdempotencyError
    │   ├── IdempotencyConflict       the key was used for another request
    │   └── IdempotencyInProgress     the first request under the key still runs
    ├── InsufficientCredits           the owner has not as many as this takes
    ├── RepeatedError                 what a request that comes again was answered the first time
    ├── RangeNotSatisfiable
    ├── NoSpace                       no room left for temporary files
    ├── Busy                          no room for the work just now
    │   └── CatalogueUnavailable      the database is locked, full or gone
    └── StorageError                  see `storage.errors`
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Self


@dataclass(frozen=True)
class InputError:
    """One thing wrong with the input: `loc` is the way to it (`("query", "sizes")`), `message` what is wrong."""

    loc: tuple[str | int, ...]
    message: str


class SmartAssetsError(Exception):
    """Base of all. `str(error)` is fit for a caller's eyes: no path of the server, no secret.

    `retry_after` is in seconds, None where trying again would not help.
    """

    code: str = "internal_error"
    default_retry_after: ClassVar[int | None] = None

    def __init__(self, detail: str, *, errors: tuple[InputError, ...] = (), retry_after: int | None = None) -> None:
        """`errors` lists what is wrong with the input, one entry for each place."""
        super().__init__(detail)
        self.detail = detail
        self.errors = errors
        self.retry_after = retry_after if retry_after is not None else self.default_retry_after


class ConfigurationError(SmartAssetsError):
    """A setting is wrong or missing; said at start, never during a request."""

    code = "configuration_error"


class InvalidParameter(SmartAssetsError):
    """A parameter or a field of the body has a value that cannot be used."""

    code = "invalid_parameter"

    @classmethod
    def at(cls, *loc: str | int, message: str) -> Self:
        """The error for one place of the input."""
        return cls(f"{loc[-1]}: {message}", errors=(InputError(loc, message),))


class SourceUnavailable(InvalidParameter):
    """What is to be imported cannot be had where it is said to be; another time it may."""


class BodyError(SmartAssetsError):
    """The request's body could not be taken."""

    code = "malformed_body"


class MalformedBody(BodyError):
    """The body is not what its content type says."""


class BodyTooLarge(BodyError):
    """More bytes than allowed."""

    code = "body_too_large"


class BodyTimeout(BodyError):
    """The sender stalled, or dripped."""

    code = "body_timeout"


class ClientGone(BodyError):
    """The sender closed the connection before the body's end."""


class UnsupportedMediaType(BodyError):
    """A content type no reader is there for."""

    code = "unsupported_media_type"


class DigestMismatch(BodyError):
    """The bytes that came are not the bytes the sender hashed."""

    code = "digest_mismatch"


class ImageError(SmartAssetsError):
    """The bytes are not an image that can be taken."""

    code = "corrupt_image"


class UnsupportedImage(ImageError):
    """Not an image, or of a format off the allow-list; the detail names what was seen."""

    code = "unsupported_image"


class CorruptImage(ImageError):
    """Truncated, or damaged."""


class DecoderFailed(CorruptImage):
    """What the image did to its decoder; another time, on a machine that is less busy, it may do nothing."""


class TooManyPixels(ImageError):
    """More pixels or frames than allowed, by the header."""

    code = "too_many_pixels"


class AccessError(SmartAssetsError):
    """The caller may not."""

    code = "forbidden"


class Unauthorized(AccessError):
    """No key, or one that is not known."""

    code = "unauthorized"


class Forbidden(AccessError):
    """Known, or not needing to be, and still not allowed."""


class SignatureRequired(AccessError):
    """A private object was asked for without a signature."""

    code = "signature_required"


class SignatureInvalid(AccessError):
    """The signature is not ours, or not for this."""

    code = "signature_invalid"


class SignatureExpired(AccessError):
    """The signature was ours, and its time is over."""

    code = "signature_expired"


class LibraryError(SmartAssetsError):
    """A call on the catalogue cannot be carried out."""

    code = "asset_not_found"


class AssetNotFound(LibraryError):
    """No such asset, or none this caller may know of."""


class VariantNotFound(LibraryError):
    """The asset is there and has no such size."""

    code = "variant_not_found"


class AssetBusy(LibraryError):
    """Another change of the same asset is under way."""

    code = "asset_busy"


class PreconditionFailed(LibraryError):
    """The asset is no longer what the caller last saw."""

    code = "precondition_failed"


class AssetGone(LibraryError):
    """What a repeated request once made was deleted since."""

    code = "asset_gone"


class RateLimited(SmartAssetsError):
    """More was asked for than a limit allows in its time; `retry_after` says when there is room again."""

    code = "rate_limited"


class KeyNotFound(SmartAssetsError):
    """There is no such key."""

    code = "key_not_found"


class TicketError(SmartAssetsError):
    """An upload ticket cannot be used."""

    code = "ticket_not_found"


class TicketNotFound(TicketError):
    """No such ticket, none this caller may know of, or one whose time was over so long ago that it was forgotten."""


class TicketUsed(TicketError):
    """A ticket is good for one file, and another came with it."""

    code = "ticket_used"


class TicketInUse(TicketError):
    """A file is just coming with the ticket; what comes of it is known when that has ended."""

    code = "ticket_in_use"
    default_retry_after = 1


class UploadMissing(TicketError):
    """Nothing has been uploaded with the ticket yet."""

    code = "upload_missing"


class IdempotencyError(SmartAssetsError):
    """A request under an Idempotency-Key that cannot be answered."""


class IdempotencyConflict(IdempotencyError):
    """The key was used for another request: nothing was done."""

    code = "idempotency_conflict"


class IdempotencyInProgress(IdempotencyError):
    """The first request under the key still runs; its answer comes when it has ended."""

    code = "idempotency_in_progress"
    default_retry_after = 1


class InsufficientCredits(SmartAssetsError):
    """The owner has not as many credits as this takes; nothing was done, and none was taken."""

    code = "insufficient_credits"

    def __init__(self, needed: int, available: int) -> None:
        """How many it takes, and how many are neither spent nor reserved."""
        super().__init__(f"this takes {needed} credits, and {available} are available")


class RepeatedError(SmartAssetsError):
    """What a request that comes again was answered the first time: of any code."""

    def __init__(self, code: str, detail: str, *, errors: tuple[InputError, ...] = ()) -> None:
        """As the first answer had them."""
        super().__init__(detail, errors=errors)
        self.code = code


class RangeNotSatisfiable(SmartAssetsError):
    """The range starts past the end; `size` is the object's length in bytes."""

    code = "range_not_satisfiable"

    def __init__(self, size: int) -> None:
        """`size` in bytes."""
        super().__init__(f"the range lies outside the {size} bytes there are")
        self.size = size


class NoSpace(SmartAssetsError):
    """No room left on the disk for temporary files."""

    code = "storage_full"


_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def no_space() -> Iterator[None]:
    """Let an OSError that says the disk is full out as NoSpace."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise NoSpace("no room left for temporary files") from error
        raise


class Busy(SmartAssetsError):
    """No room for the work just now; `retry_after` says when to come back."""

    code = "busy"
    default_retry_after = 2


class CatalogueUnavailable(Busy):
    """The database is locked, full or gone."""
