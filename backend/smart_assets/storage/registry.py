"""The storages in use: each is opened once, when first asked for, and closed at shutdown."""

from __future__ import annotations

from collections.abc import Iterator

from smart_assets.settings import Settings
from smart_assets.storage.base import StorageBackend
from smart_assets.storage.errors import StorageNotConfigured
from smart_assets.storage.factory import get_storage_backend


class Storages:
    """Backends by name, one instance of each for the whole process."""

    def __init__(self, settings: Settings, *, serves: bool = True) -> None:
        """Nothing is opened yet. Who does not serve has no storage that lives in one process: it is the service's."""
        self._settings = settings
        self._serves = serves
        self._opened: dict[str, StorageBackend] = {}

    def get(self, name: str) -> StorageBackend:
        """The backend of that name; StorageNotConfigured where there is none."""
        backend = self._opened.get(name)
        if backend is None:
            backend = get_storage_backend(name, self._settings)
            if backend.capabilities.one_process and not self._serves:
                raise StorageNotConfigured(
                    f"the storage {name} lives in the process of the service, and is reached only through it",
                    storage=name,
                )
            self._opened[name] = backend
        return backend

    def at_hand(self) -> Iterator[StorageBackend]:
        """The opened backends that can be read without waiting for a network."""
        return (backend for backend in self._opened.values() if backend.capabilities.at_hand)

    async def close(self) -> None:
        """Close all of them."""
        opened, self._opened = self._opened, {}
        for backend in opened.values():
            await backend.close()
