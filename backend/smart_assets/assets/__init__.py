"""The use-cases: taking uploads in, keeping the library, handing bytes out. And handles, for whoever needs no more."""

from smart_assets.assets.handles import StorageFile, StorageImage

__all__ = ["StorageFile", "StorageImage"]
