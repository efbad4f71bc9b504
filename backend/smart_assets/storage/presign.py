"""Signed URLs and forms of the V4 family: Amazon's Signature Version 4 and Google's, which follows it.

Written out here and not left to the SDKs because they sign with the time of the call: a URL that begins at the start
of its window is the same for every caller, in every process, so caches work; and it takes microseconds.

Sources: "Authenticating Requests: Using Query Parameters (AWS Signature Version 4)" and "Browser-Based Uploads Using
POST (AWS Signature Version 4)", Amazon S3 API Reference; "V4 signing process with your own program" and "Signature V4
POST policy document", Cloud Storage documentation.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

from smart_assets.expiry import Validity

_UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"


@dataclass(frozen=True)
class Dialect:
    """What the two vendors call the same things."""

    algorithm: str
    parameters: str
    service: str
    terminator: str


AMAZON = Dialect("AWS4-HMAC-SHA256", "X-Amz-", "s3", "aws4_request")
GOOGLE = Dialect("GOOG4-RSA-SHA256", "X-Goog-", "storage", "goog4_request")


@dataclass(frozen=True)
class Signable:
    """A URL but for its signature, and what is to be signed."""

    unsigned_url: str
    parameters: str
    string_to_sign: bytes

    def url(self, signature: str) -> str:
        """The URL, with `signature` in hexadecimal."""
        return f"{self.unsigned_url}&{self.parameters}Signature={signature}"


def object_url(base_url: str, key: str) -> str:
    """The address of an object under `base_url`, which ends before the slash."""
    return f"{base_url}/{quote(key, safe='/~')}"


def signable_get(
    dialect: Dialect,
    url: str,
    *,
    identity: str,
    region: str,
    validity: Validity,
    parameters: Mapping[str, str] | None = None,
) -> Signable:
    """A GET of `url` (as `object_url` gives it: without a query) by `identity`, with more query `parameters`."""
    began = datetime.fromtimestamp(validity.begins, tz=UTC)
    scope = _scope(dialect, began, region)
    query = {
        f"{dialect.parameters}Algorithm": dialect.algorithm,
        f"{dialect.parameters}Credential": f"{identity}/{scope}",
        f"{dialect.parameters}Date": f"{began:%Y%m%dT%H%M%SZ}",
        f"{dialect.parameters}Expires": str(validity.seconds),
        f"{dialect.parameters}SignedHeaders": "host",
        **(parameters or {}),
    }
    encoded = sorted((quote(name, safe="~"), quote(value, safe="~")) for name, value in query.items())
    canonical_query = "&".join(f"{name}={value}" for name, value in encoded)
    parts = urlsplit(url)
    request = (
        f"GET\n{parts.path}\n{canonical_query}\nhost:{_host(parts.scheme, parts.netloc)}\n\nhost\n{_UNSIGNED_PAYLOAD}"
    )
    string = f"{dialect.algorithm}\n{began:%Y%m%dT%H%M%SZ}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    return Signable(f"{url}?{canonical_query}", dialect.parameters, string.encode())


@dataclass(frozen=True)
class SignableForm:
    """The fields of a form with which one object may be written, but for the signature, and what is to be signed."""

    unsigned_fields: Mapping[str, str]
    signature_field: str

    @property
    def string_to_sign(self) -> bytes:
        """The policy, in the base64 in which it goes over the wire."""
        return self.unsigned_fields["policy"].encode()

    def fields(self, signature: str) -> dict[str, str]:
        """The fields, with `signature` in hexadecimal."""
        return {**self.unsigned_fields, self.signature_field: signature}


def signable_post(
    dialect: Dialect,
    *,
    bucket: str,
    key: str,
    identity: str,
    region: str,
    validity: Validity,
    max_bytes: int,
    fields: Mapping[str, str] | None = None,
) -> SignableForm:
    """A POST of one object of 1 to `max_bytes` by `identity`, under this key and with just these `fields` besides."""
    began = datetime.fromtimestamp(validity.begins, tz=UTC)
    prefix = dialect.parameters.lower()
    fixed = {
        "key": key,
        **(fields or {}),
        f"{prefix}algorithm": dialect.algorithm,
        f"{prefix}credential": f"{identity}/{_scope(dialect, began, region)}",
        f"{prefix}date": f"{began:%Y%m%dT%H%M%SZ}",
    }
    conditions = [{"bucket": bucket}, *({name: value} for name, value in fixed.items())]
    policy = {
        "expiration": f"{datetime.fromtimestamp(validity.expires, tz=UTC):%Y-%m-%dT%H:%M:%SZ}",
        "conditions": [*conditions, ["content-length-range", 1, max_bytes]],
    }
    encoded = b64encode(json.dumps(policy, separators=(",", ":")).encode()).decode()
    return SignableForm({**fixed, "policy": encoded}, f"{prefix}signature")


def _scope(dialect: Dialect, began: datetime, region: str) -> str:
    return f"{began:%Y%m%d}/{region}/{dialect.service}/{dialect.terminator}"


def _host(scheme: str, netloc: str) -> str:
    """As a client will send it: without the scheme's own port."""
    host, colon, port = netloc.lower().rpartition(":")
    return host if colon and port == {"http": "80", "https": "443"}[scheme] else netloc.lower()


def amazon_signature(secret: str, region: str, validity: Validity) -> Callable[[bytes], str]:
    """Signs with a secret access key, for a day and a region."""
    day = f"{datetime.fromtimestamp(validity.begins, tz=UTC):%Y%m%d}"
    key = f"AWS4{secret}".encode()
    for step in (day, region, AMAZON.service, AMAZON.terminator):
        key = hmac.digest(key, step.encode(), "sha256")
    return lambda string: hmac.digest(key, string, "sha256").hex()
