"""Objects in a bucket, at a server started for the purpose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from botocore import exceptions as sdk

from tests.live.process import free_port, program, server_process
from tests.live.seaweed import S3Server


class Bucket:
    """A bucket of its own at a server of ours."""

    storage = "s3"

    def __init__(self, server: S3Server) -> None:
        self._client = server.client()
        self._bucket = server.new_bucket()
        self.settings: Mapping[str, str] = {
            "ASSETS_DEFAULT_STORAGE": self.storage,
            "ASSETS_S3__ENDPOINT_URL": str(server.endpoint_url),
            "ASSETS_S3__BUCKET": self._bucket,
            "ASSETS_S3__ACCESS_KEY_ID": server.access_key_id,
            "ASSETS_S3__SECRET_ACCESS_KEY": server.secret_access_key,
        }

    def objects(self) -> dict[str, bytes]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        # What a check left whose process was killed is removed by a later one, past an hour.
        return {key: self._read(key) for key in keys if "/smart-assets-check/" not in key}

    def rubbish(self) -> list[str]:
        uploads = self._client.list_multipart_uploads(Bucket=self._bucket).get("Uploads", ())
        return [f"parts of {upload['Key']}" for upload in uploads]

    def _read(self, key: str) -> bytes:
        try:
            content: bytes = self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        except sdk.ClientError:
            return b""  # removed meanwhile: the next look is the one that counts
        return content


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """SeaweedFS for as long as the context lasts."""
    ports: set[int] = set()
    while len(ports) < 5:
        ports.add(free_port(below=22_768))  # its gRPC ports lie 10,000 above
    s3, master, volume, filer, admin = ports
    server = S3Server(f"http://127.0.0.1:{s3}", "us-east-1", "assets", "torture", uuid4().hex, is_ours=True)

    def is_ready() -> bool:
        with closing(server.client()) as client:
            try:
                client.head_bucket(Bucket=server.bucket)
            except (sdk.ClientError, sdk.BotoCoreError):
                return False
            return True

    with TemporaryDirectory(prefix="seaweed-") as folder:
        command = [program("weed"), "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        command += [f"-s3.port={s3}", f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"]
        command += [f"-admin.port={admin}", f"-s3.localSocket={folder}/s3.sock", f"-filer.localSocket={folder}/f.sock"]
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false", "-admin.ui=false"]
        command += ["-webdav=false", "-master.telemetry=false", f"-bucket={server.bucket}"]
        credentials = {
            "AWS_ACCESS_KEY_ID": server.access_key_id,
            "AWS_SECRET_ACCESS_KEY": server.secret_access_key,
        }
        with server_process(command, is_ready, log=Path(folder, "log"), environment=credentials):
            yield server
