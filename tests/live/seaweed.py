"""SeaweedFS, or the account that the environment names: a server that checks signatures, policies and conditions.

`SMART_ASSETS_LIVE_S3_BUCKET`, `…_ACCESS_KEY_ID` and `…_SECRET_ACCESS_KEY`, with `…_ENDPOINT_URL` where it is not AWS
and `…_REGION` where it is not `us-east-1`, name an account. Its bucket may hold other things; nothing but objects is
changed there, and what changes a bucket is skipped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import pytest
from boto3.session import Session
from botocore import exceptions as sdk
from botocore.config import Config

from tests.live.process import free_port, program, server_process

VARIABLES = "SMART_ASSETS_LIVE_S3_"
HOST = "127.0.0.1"

# Its gRPC ports lie this far above, and are to be below those the system gives to outgoing connections.
_GRPC = 10_000
_OTHERS = ("master", "volume", "filer", "admin")


@dataclass(frozen=True)
class S3Server:
    """Where it is, and who may use it. `endpoint_url` is None for AWS."""

    endpoint_url: str | None
    region: str
    bucket: str
    access_key_id: str
    secret_access_key: str = field(repr=False)
    is_ours: bool
    """Started for these tests: buckets may be made and opened."""

    def client(self) -> Any:
        """The SDK's own, for who administers the server; the caller closes it."""
        session = Session(self.access_key_id, self.secret_access_key)  # type: ignore[no-untyped-call]
        config = Config(signature_version="s3v4", retries={"total_max_attempts": 1})  # type: ignore[no-untyped-call]
        return session.client("s3", self.region, endpoint_url=self.endpoint_url, config=config)  # type: ignore[no-untyped-call]

    def new_bucket(self, *, open_prefix: str | None = None) -> str:
        """A bucket more; anybody may read the objects whose keys begin with `open_prefix`, where that is said."""
        if not self.is_ours:
            pytest.skip("needs a server in which buckets may be made")
        bucket = f"assets-{uuid4().hex[:12]}"
        client = self.client()
        client.create_bucket(Bucket=bucket)
        if open_prefix is not None:
            statement = {
                "Effect": "Allow",
                "Principal": "*",
                "Action": "s3:GetObject",
                "Resource": f"arn:aws:s3:::{bucket}/{open_prefix}*",
            }
            policy = {"Version": "2012-10-17", "Statement": [statement]}
            client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
        client.close()
        return bucket


def _account() -> S3Server | None:
    given = {name: os.environ.get(VARIABLES + name) for name in ("BUCKET", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY")}
    if not any(given.values()):
        return None
    return S3Server(
        endpoint_url=os.environ.get(f"{VARIABLES}ENDPOINT_URL") or None,
        region=os.environ.get(f"{VARIABLES}REGION") or "us-east-1",
        bucket=str(given["BUCKET"]),
        access_key_id=str(given["ACCESS_KEY_ID"]),
        secret_access_key=str(given["SECRET_ACCESS_KEY"]),
        is_ours=False,
    )


@pytest.fixture(scope="session")
def seaweed() -> Iterator[S3Server]:
    """The server, with a bucket in it."""
    account = _account()
    if account is not None:
        yield account
        return
    ports: set[int] = set()
    while len(ports) <= len(_OTHERS):
        ports.add(free_port(below=32768 - _GRPC))
    s3, *others = ports
    server = S3Server(f"http://{HOST}:{s3}", "us-east-1", "assets", f"key-{uuid4().hex}", uuid4().hex, is_ours=True)
    client = server.client()

    def is_ready() -> bool:
        try:
            client.head_bucket(Bucket=server.bucket)
        except (sdk.ClientError, sdk.BotoCoreError):
            return False
        return True

    with closing(client), TemporaryDirectory(prefix="seaweed-") as folder:
        command = [
            program("weed"),
            "mini",
            f"-dir={folder}",
            f"-ip={HOST}",
            f"-ip.bind={HOST}",
            f"-s3.port={s3}",
            *(f"-{part}.port={port}" for part, port in zip(_OTHERS, others, strict=True)),
            f"-s3.localSocket={folder}/s3.sock",
            f"-filer.localSocket={folder}/filer.sock",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.autoCreateBucket=false",  # by default a write makes the bucket it misses
            "-s3.domainName=localhost",
            "-admin.ui=false",
            "-webdav=false",
            "-master.telemetry=false",
            f"-bucket={server.bucket}",
        ]
        credentials = {"AWS_ACCESS_KEY_ID": server.access_key_id, "AWS_SECRET_ACCESS_KEY": server.secret_access_key}
        with server_process(command, is_ready, log=Path(folder, "log"), environment=credentials):
            yield server
