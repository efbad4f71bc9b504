"""Where the story over HTTP is played: a storage's name, and the settings that lead to a server of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest

from tests.cloudinary_fake import CloudinaryFake
from tests.live.azurite import AzureServer
from tests.live.gcs_server import Gcs
from tests.live.seaweed import S3Server


@dataclass(frozen=True)
class Place:
    """`settings` are those of a service that knows no other storage over a network."""

    storage: str
    settings: dict[str, Any] = field(default_factory=dict)


def _s3(request: pytest.FixtureRequest, **more: str) -> Place:
    server: S3Server = request.getfixturevalue("seaweed")
    bucket = server.new_bucket(open_prefix="public/" if more.get("public_access") == "policy" else None)
    return Place(
        "s3",
        {
            "s3": {
                "endpoint_url": server.endpoint_url,
                "region": server.region,
                "bucket": bucket,
                "access_key_id": server.access_key_id,
                "secret_access_key": server.secret_access_key,
                **more,
            }
        },
    )


def _gcs(request: pytest.FixtureRequest, **more: str) -> Place:
    server: Gcs = request.getfixturevalue("gcs")
    settings = {
        "bucket": server.bucket,
        "credentials_json": server.credentials_json,
        "endpoint_url": server.address,
        "prefix": str(uuid4()),
        **more,
    }
    if more.get("public_access"):
        settings["public_bucket"] = server.public_bucket or pytest.skip("needs a bucket that is open to all")
    return Place("gcs", {"gcs": settings})


def _azure(request: pytest.FixtureRequest, **more: str) -> Place:
    server: AzureServer = request.getfixturevalue("azurite")
    settings = {
        "connection_string": server.connection_string,
        "container": server.new_container(),
        **more,
    }
    if more.get("public_access"):
        settings["public_container"] = server.new_container(is_open=True)
    return Place("azure", {"azure": settings})


def _cloudinary(request: pytest.FixtureRequest, **more: str) -> Place:
    fake: CloudinaryFake = request.getfixturevalue("cloudinary")
    account = fake.account(f"cloud-{uuid4().hex[:8]}")
    return Place(
        "cloudinary",
        {
            "cloudinary": {
                "cloud_name": account.cloud_name,
                "api_key": account.api_key,
                "api_secret": account.api_secret,
                "api_url": fake.url,
                "delivery_url": f"{fake.url}/{account.cloud_name}",
                **more,
            }
        },
    )


PLACES: dict[str, Callable[[pytest.FixtureRequest], Place]] = {
    "local": lambda _: Place("local"),
    "memory": lambda _: Place("memory"),
    "direct": lambda _: Place("direct"),
    "s3": _s3,
    "s3, open by policy": lambda request: _s3(request, public_access="policy"),
    "cloudinary": _cloudinary,
    "cloudinary, linked to the CDN": lambda request: _cloudinary(request, public_access="cdn"),
    "gcs": _gcs,
    "gcs, open by policy": lambda request: _gcs(request, public_access="policy"),
    "azure": _azure,
    "azure, open by policy": lambda request: _azure(request, public_access="policy"),
}
