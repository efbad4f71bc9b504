"""Requests made like one that the SDK showed: the SDK itself says whether they are."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from functools import partial
from typing import Any, BinaryIO

import pytest
from boto3.session import Session
from botocore.awsrequest import AWSPreparedRequest
from botocore.config import Config

from smart_assets.storage.pattern import Pattern, show_samples
from tests.contracts.storage import STRANGE_NAMES

DATA = b"an image"
MD5 = b64encode(hashlib.md5(DATA).digest()).decode()


class Caught(Exception):
    def __init__(self, request: AWSPreparedRequest) -> None:
        super().__init__()
        self.request = request


def catch(request: AWSPreparedRequest, **_: object) -> None:
    raise Caught(request)


def sdk(session: Session, **settings: Any) -> Any:
    """A client that sends nothing: samples are shown, anything else is caught."""
    config = Config(  # type: ignore[no-untyped-call]
        signature_version=settings.pop("signature_version", "s3v4"),
        s3={"addressing_style": settings.pop("style", "virtual"), "us_east_1_regional_endpoint": "regional"},
        request_checksum_calculation="when_required",
    )
    client = session.client("s3", **settings, config=config)  # type: ignore[no-untyped-call]
    client.meta.events.register_first("before-send.s3.PutObject", show_samples)
    client.meta.events.register_last("before-send.s3.PutObject", catch)
    return client


def put(client: Any, bucket: str, key: str) -> Callable[[BinaryIO], object]:
    arguments = {"ContentType": "image/png", "ContentMD5": MD5, "StorageClass": "STANDARD_IA", "IfNoneMatch": "*"}
    call = partial(client.put_object, Bucket=bucket, Key=key, Metadata={"Album": "a  b "}, **arguments)
    return lambda body: call(Body=body)


@pytest.mark.parametrize(
    ("bucket", "settings"),
    [
        ("photos", {"region_name": "eu-west-1"}),
        ("my.photos", {"region_name": "us-east-1"}),
        ("photos", {"region_name": "garage", "style": "path", "endpoint_url": "http://localhost:3900"}),
        ("photos", {"region_name": "us-east-1", "style": "path", "endpoint_url": "https://Gateway:443/s3"}),
        ("arn:aws:s3:us-west-2:123456789012:accesspoint/mine", {"region_name": "us-west-2"}),
    ],
)
@pytest.mark.parametrize("token", [None, "a/token+="])
def test_a_request_is_signed_as_the_sdk_signs_it(bucket: str, settings: dict[str, Any], token: str | None) -> None:
    session = Session("AKIAEXAMPLE", "secret", token)  # type: ignore[no-untyped-call]
    with closing(sdk(session, **settings)) as client:
        headers = {"content-type": "image/png", "content-md5": MD5}
        pattern = Pattern.of(put(client, bucket, "public/sample"), "public/sample", varying=headers.keys())
        assert pattern is not None
        for key in (f"private/{name}" for name in STRANGE_NAMES):
            with pytest.raises(Caught) as caught:
                put(client, bucket, key)(DATA)  # type: ignore[arg-type]
            theirs = {
                name.lower(): v if isinstance(v, str) else v.decode()
                for name, v in caught.value.request.headers.items()
            }
            ours = pattern.request(
                key,
                DATA,
                headers,
                body=[DATA],
                credentials=session.get_credentials().get_frozen_credentials(),  # type: ignore[no-untyped-call]
                now=datetime.strptime(theirs["x-amz-date"], "%Y%m%dT%H%M%S%z"),
            )
            assert ours.url == caught.value.request.url
            assert ours.headers["authorization"] == theirs["authorization"], key
            for name in ours.headers.keys() - {"host"}:
                assert ours.headers[name] == theirs[name]


def test_what_is_signed_in_another_way_has_no_pattern() -> None:
    session = Session("AKIAEXAMPLE", "secret")  # type: ignore[no-untyped-call]
    with closing(sdk(session, region_name="us-east-1", signature_version="s3")) as client:
        assert Pattern.of(put(client, "photos", "a.png"), "a.png", varying=()) is None
