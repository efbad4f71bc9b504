"""The real Cloudinary, where `SMART_ASSETS_LIVE_CLOUDINARY_URL` names an account. Elsewhere a fake of ours stands in,
in `tests/storage/test_cloudinary.py`, which needs no server."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

import pytest

from smart_assets.settings import CloudinarySettings
from smart_assets.storage.base import StorageBackend
from smart_assets.storage.cloudinary import CloudinaryStorage
from tests.contracts.remote import Connect, RemoteStorageContract

ACCOUNT = os.environ.get("SMART_ASSETS_LIVE_CLOUDINARY_URL")

if ACCOUNT is not None:

    class TestRealCloudinary(RemoteStorageContract):
        own_headers = False
        named_downloads = False
        objects_past_one_page = 501

        @pytest.fixture
        def server_address(self) -> None:
            return None

        @pytest.fixture
        def connect(self) -> Connect:
            parts = urlsplit(str(ACCOUNT))
            self.secrets = (str(parts.username), str(parts.password))

            def connect(
                *,
                address: str | None = None,
                wrong_secret: bool = False,
                missing_bucket: bool = False,
                timeout_seconds: float = 30.0,
            ) -> StorageBackend:
                given = {
                    "cloud_name": "no-such-cloud-of-anybody" if missing_bucket else parts.hostname,
                    "api_key": parts.username,
                    "api_secret": "wrong" if wrong_secret else parts.password,
                    "timeout_seconds": timeout_seconds,
                }
                if address is not None:
                    given["api_url"] = address
                return CloudinaryStorage("cloudinary", CloudinarySettings.model_validate(given))

            return connect
