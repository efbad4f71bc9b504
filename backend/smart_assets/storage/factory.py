"""From a storage's name to its backend.

One more backend is one file, one kind, one group of settings, one line in `_BACKENDS` (and one in `_SDKS` where it
needs an extra).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

from smart_assets.errors import ConfigurationError
from smart_assets.settings import PREFIX, TEMPORARY, LocalStorageSettings, Settings, storage_variables
from smart_assets.storage.base import Capabilities, StorageBackend
from smart_assets.storage.errors import StorageNotConfigured

Load = Callable[[str, Settings], StorageBackend]
"""Builds the backend of that name, or raises StorageNotConfigured with what is `missing`."""


class StorageType(StrEnum):
    """The kinds of storage there are."""

    LOCAL = "local"
    MEMORY = "memory"
    DIRECT = "direct"
    S3 = "s3"
    CLOUDINARY = "cloudinary"
    GCS = "gcs"
    AZURE = "azure"


# Named, not imported: a vendor's SDK is imported when its backend is first asked for, and has all it needs.
_BACKENDS = {
    StorageType.LOCAL: ("smart_assets.storage.local", "LocalStorage"),
    StorageType.MEMORY: ("smart_assets.storage.memory", "MemoryStorage"),
    StorageType.DIRECT: ("smart_assets.storage.direct", "DirectDownloadStorage"),
    StorageType.S3: ("smart_assets.storage.s3", "S3Storage"),
    StorageType.CLOUDINARY: ("smart_assets.storage.cloudinary", "CloudinaryStorage"),
    StorageType.GCS: ("smart_assets.storage.gcs", "GcsStorage"),
    StorageType.AZURE: ("smart_assets.storage.azure", "AzureStorage"),
}

# What of an extra of the same name is imported.
_SDKS = {
    StorageType.S3: ("boto3",),
    StorageType.CLOUDINARY: ("cloudinary", "httpx"),
    StorageType.GCS: ("google.cloud.storage",),
    StorageType.AZURE: ("azure.storage.blob", "azure.identity"),
}


def _lazily(kind: StorageType) -> Load:
    module, class_name = _BACKENDS[kind]

    def load(name: str, settings: Settings) -> StorageBackend:
        own = settings.storage(name)
        lacking = _lacking(name, kind, settings)
        if lacking:
            raise StorageNotConfigured(
                f"the storage {name} is not configured: {' and '.join(lacking)} missing", storage=name, missing=lacking
            )
        backend: StorageBackend = getattr(import_module(module), class_name).from_settings(name, own, settings)
        return backend

    return load


def _lacking(name: str, kind: StorageType, settings: Settings) -> tuple[str, ...]:
    """What the operator has still to set or to install."""
    if kind is StorageType.MEMORY and settings.workers > 1:
        return (f"{PREFIX}WORKERS=1",)  # each would know its own objects only
    own = settings.storage(name)
    missing = own.missing(name) if own is not None else ()
    extra = () if all(_is_installed(module) for module in _SDKS.get(kind, ())) else (f"the extra smart-assets[{kind}]",)
    return (*missing, *extra)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


_loads: dict[str, Load] = {kind.value: _lazily(kind) for kind in _BACKENDS}


def register_backend(kind: str, load: Load) -> Callable[[], None]:
    """Make one more kind known, under the name of its kind; the answer undoes it.

    ValueError where the kind is known already.
    """
    if kind in _loads:
        raise ValueError(f"there is a storage {kind!r} already")
    _loads[kind] = load

    def undo() -> None:
        _loads.pop(kind, None)

    return undo


def storage_names(settings: Settings) -> tuple[str, ...]:
    """Every name `get_storage_backend` knows, whether it is configured or not; nothing is built."""
    return tuple(sorted({*_loads, *settings.storages}))


def usable_storages(settings: Settings) -> tuple[str, ...]:
    """The names of those that have all they need; nothing is built."""
    return tuple(name for name in storage_names(settings) if not _missing(name, settings))


def _missing(name: str, settings: Settings) -> tuple[str, ...]:
    kind = storage_type(name, settings)
    return _lacking(name, StorageType(kind), settings) if kind in _BACKENDS else ()


def storage_type(name: str, settings: Settings) -> str:
    """The kind of the storage of that name, which is its name where it is a plain one."""
    own = settings.storages.get(name)
    return own.kind if own is not None else name


def get_storage_backend(name: str, settings: Settings) -> StorageBackend:
    """A new backend of that name; the caller keeps it and closes it.

    StorageNotConfigured where there is none, naming those there are, or where something it needs is missing.
    """
    load = _loads.get(storage_type(name, settings))
    if load is None:
        there = ", ".join(storage_names(settings))
        raise StorageNotConfigured(f"there is no storage {name[:40]!r}; there are: {there}")
    return load(name, settings)


@dataclass(frozen=True)
class StorageStatus:
    """One storage as an operator sees it; never a secret. `capabilities` is None where it is not configured."""

    name: str
    type: str
    configured: bool
    missing: tuple[str, ...]
    default: bool
    capabilities: Capabilities | None


def configured_storages(
    settings: Settings, get: Callable[[str], StorageBackend] | None = None
) -> tuple[StorageStatus, ...]:
    """Every storage there is, configured or not, by name.

    `get` gives the backend of a name, as `get_storage_backend` would; whoever has them open passes its own.
    """
    return tuple(
        _status(name, settings, get or (lambda asked: get_storage_backend(asked, settings)))
        for name in storage_names(settings)
    )


def _status(name: str, settings: Settings, get: Callable[[str], StorageBackend]) -> StorageStatus:
    kind, default = storage_type(name, settings), name == settings.default_storage
    try:
        capabilities = get(name).capabilities
    except StorageNotConfigured as error:
        return StorageStatus(name, kind, configured=False, missing=error.missing, default=default, capabilities=None)
    return StorageStatus(name, kind, configured=True, missing=(), default=default, capabilities=capabilities)


def check_storages(settings: Settings) -> None:
    """See that no two storages keep their objects in one place. Raises ConfigurationError naming both, and the cure.

    Each would take the other's objects for nobody's: an audit that is told to remove those would remove them.
    """
    groups = {name: own for name in storage_names(settings) if (own := settings.storage(name)) is not None}
    for (name, own), (other, others) in combinations(sorted(groups.items(), key=_named_last), 2):
        if own.places() & others.places():
            raise ConfigurationError(
                f"the storages {name} and {other} keep their objects in the same place: give one of them a "
                f"{storage_variables(other)}PREFIX of its own, or another place"
            )
    held = {name: held for name in storage_names(settings) if (held := _directories(name, settings))}
    for (name, directories), (other, others_directories) in combinations(sorted(held.items(), key=_named_last), 2):
        if any(_overlap(one, two) for one in directories for two in others_directories):
            raise ConfigurationError(
                f"the directories of the storages {name} and {other} are the same, or one lies in the other: set "
                f"{storage_variables(other)}DIRECTORY to another"
            )


def temporary_directories(settings: Settings) -> tuple[Path, ...]:
    """Where processes of this machine keep what they have not written to the end: theirs, and those of storages."""
    own = (
        group.directory_of(name, settings.data_dir) / TEMPORARY
        for name, group in settings.storages.items()
        if isinstance(group, LocalStorageSettings)
    )
    return (settings.temporary_dir, *own)


def _named_last(item: tuple[str, object]) -> tuple[bool, str]:
    return item[0] not in _loads, item[0]


def _directories(name: str, settings: Settings) -> tuple[Path, ...]:
    """What on this machine's disk is one storage's alone, by its real name; nothing where it is not of that kind."""
    if name == StorageType.LOCAL:
        return (settings.data_dir / "assets").resolve(), settings.temporary_dir.resolve()
    own = settings.storages.get(name)
    if not isinstance(own, LocalStorageSettings):
        return ()
    return (own.directory_of(name, settings.data_dir).resolve(),)


def _overlap(one: Path, two: Path) -> bool:
    return one.is_relative_to(two) or two.is_relative_to(one)
