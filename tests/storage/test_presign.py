"""Signed URLs of the V4 family, against the vendors' own signers and what they publish."""

from __future__ import annotations

import binascii
import json
import unicodedata
from base64 import b64decode
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from unittest.mock import patch
from urllib.parse import quote, unquote, urlsplit

import pytest
from boto3.session import Session
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials as AmazonCredentials
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from google.auth.crypt import RSASigner
from google.cloud import storage as google_storage
from google.cloud.storage import _signing as google_signing
from google.oauth2.service_account import Credentials
from hypothesis import assume, given
from hypothesis import strategies as st

from smart_assets.disposition import content_disposition
from smart_assets.expiry import Validity
from smart_assets.storage.errors import InvalidKey
from smart_assets.storage.keys import validate_key
from smart_assets.storage.presign import AMAZON, GOOGLE, amazon_signature, object_url, signable_get, signable_post

ACCESS_KEY_ID = "AKIAIOSFODNN7EXAMPLE"
SECRET_ACCESS_KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


def amazon_url(base_url: str, key: str, validity: Validity, region: str = "us-east-1", **parameters: str | None) -> str:
    signable = signable_get(
        AMAZON,
        object_url(base_url, key),
        identity=ACCESS_KEY_ID,
        region=region,
        validity=validity,
        parameters={name.replace("_", "-"): value for name, value in parameters.items() if value is not None},
    )
    return signable.url(amazon_signature(SECRET_ACCESS_KEY, region, validity)(signable.string_to_sign))


def taken_apart(url: str) -> tuple[str, str, str, list[str]]:
    """A URL, its parameters in no order: the vendors' signers put them in the order they were made."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc, parts.path, sorted(parts.query.split("&"))


def as_key(text: str) -> str:
    try:
        return validate_key(unicodedata.normalize("NFC", text))
    except InvalidKey:
        assume(False)
        raise


KEYS = st.builds(
    as_key,
    st.text(st.characters(blacklist_categories=["Cc", "Cs"], blacklist_characters="\\"), min_size=1, max_size=60)
    | st.text("aé/ +%#?&=;:,@~!$'()*<>[]{}|^`\"._-", min_size=1, max_size=60),
)
FILENAMES = st.none() | st.text(max_size=40)
VALIDITIES = st.builds(
    lambda begins, seconds: Validity(begins, begins + seconds),
    st.integers(946_684_800, 4_102_444_800),
    st.integers(1, 604_800),
)


def test_amazons_published_example_has_its_published_signature() -> None:
    # "Authenticating Requests: Using Query Parameters (AWS Signature Version 4)", Amazon S3 API Reference.
    begins = int(datetime(2013, 5, 24, tzinfo=UTC).timestamp())
    url = amazon_url("https://examplebucket.s3.amazonaws.com", "test.txt", Validity(begins, begins + 86_400))
    assert url == (
        "https://examplebucket.s3.amazonaws.com/test.txt"
        "?X-Amz-Algorithm=AWS4-HMAC-SHA256"
        "&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request"
        "&X-Amz-Date=20130524T000000Z"
        "&X-Amz-Expires=86400"
        "&X-Amz-SignedHeaders=host"
        "&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    )


class Amazon(NamedTuple):
    """A way to reach a bucket, and the SDK's client for it."""

    base_url: str
    region: str
    client: Any


@pytest.fixture(
    scope="module",
    params=[
        ("https://photos.s3.eu-west-1.amazonaws.com", None, "virtual"),
        ("https://s3.eu-west-1.amazonaws.com/photos", None, "path"),
        ("http://127.0.0.1:9000/photos", "http://127.0.0.1:9000", "auto"),
        ("https://photos.s3.example.com:8443", "https://s3.example.com:8443", "virtual"),
        ("https://s3.example.com:443/photos", "https://s3.example.com:443", "path"),
        ("https://gateway.example.com/s3/photos", "https://gateway.example.com/s3", "path"),
    ],
    ids=lambda param: param[0],
)
def amazon(request: pytest.FixtureRequest) -> Iterator[Amazon]:
    base_url, endpoint, style = request.param
    session = Session(ACCESS_KEY_ID, SECRET_ACCESS_KEY, region_name="eu-west-1")  # type: ignore[no-untyped-call]
    config = Config(signature_version="s3v4", s3={"addressing_style": style})  # type: ignore[no-untyped-call]
    with closing(session.client("s3", endpoint_url=endpoint, config=config)) as client:  # type: ignore[no-untyped-call]
        yield Amazon(base_url, "eu-west-1", client)


@given(KEYS, VALIDITIES, FILENAMES)
def test_amazons_own_signer_makes_the_same_url(
    amazon: Amazon, key: str, validity: Validity, filename: str | None
) -> None:
    disposition = None if filename is None else content_disposition(filename)
    more = {} if disposition is None else {"ResponseContentDisposition": disposition}
    then = datetime.fromtimestamp(validity.begins, tz=UTC).replace(tzinfo=None)
    with patch("botocore.auth.get_current_datetime", lambda: then):
        theirs = amazon.client.generate_presigned_url(
            "get_object", Params={"Bucket": "photos", "Key": key, **more}, ExpiresIn=validity.seconds
        )
    ours = amazon_url(amazon.base_url, key, validity, amazon.region, response_content_disposition=disposition)
    assert taken_apart(ours) == taken_apart(theirs)


@given(KEYS, VALIDITIES, st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=200))
def test_a_session_token_is_signed_as_amazons_own_signer_signs_it(key: str, validity: Validity, token: str) -> None:
    base_url = "https://photos.s3.amazonaws.com"
    credentials = AmazonCredentials(ACCESS_KEY_ID, SECRET_ACCESS_KEY, token)  # type: ignore[no-untyped-call]
    request: Any = AWSRequest("GET", object_url(base_url, key))  # type: ignore[no-untyped-call]
    signer: Any = S3SigV4QueryAuth(credentials, "s3", "us-east-1", validity.seconds)  # type: ignore[no-untyped-call]
    then = datetime.fromtimestamp(validity.begins, tz=UTC).replace(tzinfo=None)
    with patch("botocore.auth.get_current_datetime", lambda: then):
        signer.add_auth(request)
    assert taken_apart(amazon_url(base_url, key, validity, X_Amz_Security_Token=token)) == taken_apart(request.url)


@pytest.fixture(scope="module")
def google_credentials() -> Any:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    signer = RSASigner.from_string(pem.decode())  # type: ignore[no-untyped-call]
    return Credentials(signer, "signer@project.iam.gserviceaccount.com", "https://token")  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("endpoint", "bucket"),
    [
        ("https://storage.googleapis.com", "/photos"),
        ("https://photos.storage.googleapis.com", ""),
        ("http://127.0.0.1:4443", "/photos"),
    ],
)
@given(KEYS, VALIDITIES, FILENAMES)
def test_googles_own_signer_makes_the_same_url(
    google_credentials: Any, endpoint: str, bucket: str, key: str, validity: Validity, filename: str | None
) -> None:
    disposition = None if filename is None else content_disposition(filename)
    theirs = google_signing.generate_signed_url_v4(  # type: ignore[no-untyped-call]
        google_credentials,
        f"{bucket}/{quote(key, safe='/~')}",
        validity.seconds,
        api_access_endpoint=endpoint,
        response_disposition=disposition,
        _request_timestamp=f"{datetime.fromtimestamp(validity.begins, tz=UTC):%Y%m%dT%H%M%SZ}",
    )
    signable = signable_get(
        GOOGLE,
        object_url(endpoint + bucket, key),
        identity=google_credentials.signer_email,
        region="auto",
        validity=validity,
        parameters={} if disposition is None else {"response-content-disposition": disposition},
    )
    signature = google_credentials.sign_bytes(signable.string_to_sign)
    assert signable.url(binascii.hexlify(signature).decode()) == theirs


@given(KEYS)
def test_the_address_of_an_object_is_one_path_whatever_its_key_holds(key: str) -> None:
    url = urlsplit(object_url("https://example.com/bucket", key))
    assert (url.netloc, url.query, url.fragment) == ("example.com", "", "")
    assert unquote(url.path) == f"/bucket/{key}"


@given(KEYS, VALIDITIES)
def test_another_key_validity_region_or_secret_is_another_signature(key: str, validity: Validity) -> None:
    base_url = "https://photos.s3.amazonaws.com"
    later = Validity(validity.begins + 1, validity.expires + 1)
    urls = [
        amazon_url(base_url, key, validity),
        amazon_url(base_url, f"{key}.png", validity),
        amazon_url(base_url, key, later),
        amazon_url(base_url, key, validity, "eu-west-1"),
        amazon_url(base_url, key, validity, response_content_disposition="inline"),
        amazon_url("https://other.s3.amazonaws.com", key, validity),
    ]
    assert len({url.rpartition("=")[2] for url in urls}) == len(urls)
    string = b"the same string"
    assert amazon_signature("one", "us-east-1", validity)(string) != amazon_signature("two", "us-east-1", validity)(
        string
    )


# ── Forms ───────────────────────────────────────────────────────────────────────────────────────────────────────────

TYPE = {"Content-Type": "application/octet-stream"}


def policy_of(fields: dict[str, str]) -> tuple[str, list[str]]:
    """When a form's policy ends, and its conditions in no order."""
    policy = json.loads(b64decode(fields["policy"]))
    return policy["expiration"], sorted(json.dumps(condition) for condition in policy["conditions"])


def all_but_policy(fields: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in fields.items() if name != "policy" and not name.endswith("-signature")}


@given(KEYS, VALIDITIES, st.integers(1, 2**40))
def test_amazons_own_signer_makes_the_same_form(amazon: Amazon, key: str, validity: Validity, most: int) -> None:
    then = datetime.fromtimestamp(validity.begins, tz=UTC).replace(tzinfo=None)
    assume("${filename}" not in key)
    with (
        patch("botocore.auth.get_current_datetime", lambda: then),
        patch("botocore.signers.get_current_datetime", lambda: then),
    ):
        theirs = amazon.client.generate_presigned_post(
            "photos", key, dict(TYPE), [TYPE, ["content-length-range", 1, most]], ExpiresIn=validity.seconds
        )
    form = signable_post(
        AMAZON,
        bucket="photos",
        key=key,
        identity=ACCESS_KEY_ID,
        region=amazon.region,
        validity=validity,
        max_bytes=most,
        fields=TYPE,
    )
    sign = amazon_signature(SECRET_ACCESS_KEY, amazon.region, validity)
    ours = form.fields(sign(form.string_to_sign))
    assert theirs["url"].rstrip("/") == amazon.base_url
    assert all_but_policy(ours) == all_but_policy(theirs["fields"])
    assert policy_of(ours) == policy_of(theirs["fields"])
    assert sign(theirs["fields"]["policy"].encode()) == theirs["fields"]["x-amz-signature"]


@given(KEYS, st.integers(1, 604_800), st.integers(1, 2**40))
def test_googles_own_signer_makes_the_same_form(google_credentials: Any, key: str, seconds: int, most: int) -> None:
    begins = 1_795_000_000
    validity, then = Validity(begins, begins + seconds), datetime.fromtimestamp(begins, tz=UTC)
    client: Any = google_storage.Client("project", google_credentials)  # type: ignore[no-untyped-call]
    stamps = f"{then:%Y%m%dT%H%M%SZ}", f"{then:%Y%m%d}"
    with (
        patch("google.cloud.storage.client.get_v4_now_dtstamps", lambda: stamps),
        patch("google.cloud.storage.client._NOW", lambda _zone: then),
        patch("google.cloud.storage._signing._NOW", lambda _zone: then),
        closing(client),
    ):
        theirs = client.generate_signed_post_policy_v4(
            "photos", key, then + timedelta(seconds=seconds), [["content-length-range", 1, most]], TYPE
        )
    form = signable_post(
        GOOGLE,
        bucket="photos",
        key=key,
        identity=google_credentials.signer_email,
        region="auto",
        validity=validity,
        max_bytes=most,
        fields=TYPE,
    )
    ours = form.fields(google_credentials.sign_bytes(form.string_to_sign).hex())
    assert theirs["url"] == "https://storage.googleapis.com/photos/"
    assert all_but_policy(ours) == all_but_policy(theirs["fields"])
    assert policy_of(ours) == policy_of(theirs["fields"])
    signed = google_credentials.sign_bytes(theirs["fields"]["policy"].encode()).hex()
    assert signed == theirs["fields"]["x-goog-signature"]
