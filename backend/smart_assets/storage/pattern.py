"""A PutObject like one that the SDK would send.

To get a small object on its way the SDK takes several times as long as the object does: arguments are validated and
serialised, an address is looked up, events go round, headers are carried from one kind of dictionary to the next. What
comes of it differs from write to write in the key, a few headers, the time and the signature. So the SDK is asked once
what it would send, and the requests after that are made like it. They are signed by Amazon's Signature Version 4 for
headers, as `presign` has it for URLs.

Source: "Authenticating Requests: Using the Authorization Header (AWS Signature Version 4)", Amazon S3 API Reference.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO, Final, Self
from urllib.parse import urlsplit

from botocore.awsrequest import AWSPreparedRequest

from smart_assets.expiry import Validity
from smart_assets.storage.presign import AMAZON, amazon_signature, object_url

_AUTHORIZATION: Final = re.compile(
    rf"{AMAZON.algorithm} Credential=\S+/\d{{8}}/([^/]+)/{AMAZON.service}/{AMAZON.terminator}, "
    r"SignedHeaders=(\S+), Signature=[0-9a-f]{64}"
)
_UNSIGNED_PAYLOAD: Final = "UNSIGNED-PAYLOAD"
_DIGEST, _DATE, _TOKEN = "x-amz-content-sha256", "x-amz-date", "x-amz-security-token"


class _Sample(io.BytesIO):
    """The body of a request that is shown in place of being sent."""


class _Shown(Exception):
    """The SDK neither translates nor retries it."""

    def __init__(self, request: AWSPreparedRequest) -> None:
        super().__init__()
        self.request = request


def show_samples(request: AWSPreparedRequest, **_: object) -> None:
    """A client's handler of `before-send.s3.PutObject`, without which it has no patterns."""
    if isinstance(request.body, _Sample):
        raise _Shown(request)


@dataclass(frozen=True)
class Pattern:
    """What is the same in every request of a kind. Names of headers are in small letters."""

    base_url: str
    """Up to the slash before the key."""
    region: str
    headers: Mapping[str, str]
    """Those that are signed, but for what each request has of its own."""
    user_agent: str
    signs_payload: bool

    @classmethod
    def of(cls, put: Callable[[BinaryIO], object], key: str, *, varying: Collection[str]) -> Self | None:
        """What `put`, the SDK's PutObject to `key`, would send with the body it is given; nothing is sent.

        `varying` are the headers that each request is given anew. None where the request cannot be made here: the SDK
        signs it in another way, or its address does not end with the key.
        """
        try:
            put(_Sample())
        except _Shown as shown:
            request = shown.request
        else:
            raise AssertionError("a sample was sent")
        sent = {name.lower(): v if isinstance(v, str) else v.decode() for name, v in request.headers.items()}
        authorization = _AUTHORIZATION.fullmatch(sent["authorization"])
        address = object_url("", key)
        if authorization is None or not request.url.endswith(address):
            return None
        region, signed = authorization.groups()
        return cls(
            base_url=request.url.removesuffix(address),
            region=region,
            headers={name: sent[name] for name in {*signed.split(";")} - {*varying, "host", _DIGEST, _DATE, _TOKEN}},
            user_agent=sent["user-agent"],
            signs_payload=sent[_DIGEST] != _UNSIGNED_PAYLOAD,
        )

    def request(
        self,
        key: str,
        content: bytes,
        headers: Mapping[str, str],
        *,
        body: Iterable[bytes],
        credentials: Any,
        now: datetime,
    ) -> AWSPreparedRequest:
        """A request of the kind, signed `now` (UTC); `body` are the pieces in which `content` is sent."""
        url = urlsplit(object_url(self.base_url, key))
        time = f"{now:%Y%m%dT%H%M%SZ}"
        digest = hashlib.sha256(content).hexdigest() if self.signs_payload else _UNSIGNED_PAYLOAD
        host = url.netloc.lower().removesuffix({"http": ":80", "https": ":443"}[url.scheme])
        signed = {**self.headers, **headers, "host": host, _DIGEST: digest, _DATE: time}
        if credentials.token:
            signed[_TOKEN] = credentials.token
        names = sorted(signed)
        lines = [f"{name}:{' '.join(signed[name].split())}" for name in names]
        canonical = "\n".join(["PUT", url.path, "", *lines, "", ";".join(names), digest])
        scope = f"{time[:8]}/{self.region}/{AMAZON.service}/{AMAZON.terminator}"
        string = f"{AMAZON.algorithm}\n{time}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        moment = int(now.timestamp())
        sign = amazon_signature(credentials.secret_key, self.region, Validity(moment, moment))
        unsigned = {
            "user-agent": self.user_agent,
            "content-length": str(len(content)),
            "authorization": f"{AMAZON.algorithm} Credential={credentials.access_key}/{scope}, "
            f"SignedHeaders={';'.join(names)}, Signature={sign(string.encode())}",
        }
        return AWSPreparedRequest("PUT", url.geturl(), signed | unsigned, body, stream_output=False)  # type: ignore[no-untyped-call]
