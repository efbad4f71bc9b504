"""Objects by key, on any backend: one abstract class, one factory.

It stands on its own: any asyncio program may use it, without the service, its web framework or its catalogue.
"""

from smart_assets.storage.base import Capabilities, SignedUrl, StorageBackend, StoredObject
from smart_assets.storage.factory import StorageType, get_storage_backend
from smart_assets.storage.keys import Visibility

__all__ = [
    "Capabilities",
    "SignedUrl",
    "StorageBackend",
    "StorageType",
    "StoredObject",
    "Visibility",
    "get_storage_backend",
]
