"""What a storage can answer instead of doing what it was asked.

StorageError                  the backend failed in a way that trying again may not mend
├── ObjectNotFound
├── ObjectExists              a write found the key taken; nothing was overwritten
├── InvalidKey
├── StorageUnavailable        unreachable, slow or overloaded; try again
├── StorageFull
├── ObjectRefused             a backend that takes images only says that this is none
├── WriteNotVerified          what the backend reports is not what was sent
├── Unsupported               the backend declares it cannot
└── StorageNotConfigured      no such storage, or settings or an extra are missing
"""

from __future__ import annotations

from smart_assets.errors import SmartAssetsError


class StorageError(SmartAssetsError):
    """A backend failed. `storage` is its name, `key` the object in question where there is one."""

    code = "storage_error"

    def __init__(
        self, detail: str, *, storage: str = "", key: str | None = None, retry_after: int | None = None
    ) -> None:
        """`detail` is for a caller's eyes: no path, no endpoint, no secret."""
        super().__init__(detail, retry_after=retry_after)
        self.storage = storage
        self.key = key


class ObjectNotFound(StorageError):
    """There is no object of that key."""


class ObjectExists(StorageError):
    """The key is taken; nothing was overwritten."""


class InvalidKey(StorageError):
    """Not a key: see `storage.keys.validate_key`."""

    code = "invalid_parameter"


class StorageUnavailable(StorageError):
    """Unreachable, slow or overloaded; trying again later may help."""

    code = "storage_unavailable"
    default_retry_after = 5


class StorageFull(StorageError):
    """No room for the object."""

    code = "storage_full"


class ObjectRefused(StorageError):
    """A backend that takes images only says that this is none: damaged, most likely, where ours did not show it."""

    code = "corrupt_image"


class WriteNotVerified(StorageError):
    """The backend reports other bytes than were sent; the object was removed again where that was possible."""


class Unsupported(StorageError):
    """The backend declares that it cannot; said at once, before anything is touched."""

    code = "unsupported"


class StorageNotConfigured(StorageError):
    """No storage of that name, or its settings or its extra are missing; the detail says which.

    `missing` names the variables or the extra that would help, for `GET /api/v1/storages`.
    """

    code = "storage_not_configured"

    def __init__(self, detail: str, *, storage: str = "", missing: tuple[str, ...] = ()) -> None:
        """`missing` as the operator would write them."""
        super().__init__(detail, storage=storage)
        self.missing = missing
