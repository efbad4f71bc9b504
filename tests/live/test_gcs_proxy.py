"""Our proxy refuses what Google refuses: else what passes before it would prove nothing.

Asked by Google's own SDK and a plain HTTP client, and nothing of ours.
"""

from __future__ import annotations

import base64
import hashlib
import io
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest
from google.api_core import exceptions
from google.auth import exceptions as auth
from google.auth.transport.requests import AuthorizedSession, Request
from google.cloud import storage
from google.oauth2 import service_account

from tests.live.gcs_proxy import PART_MULTIPLE, Account, GcsProxy
from tests.live.gcs_server import Gcs

DATA = b"data" * 1000
SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]


@pytest.fixture
def proxy(gcs: Gcs) -> Iterator[GcsProxy]:
    if gcs.proxy is None:
        pytest.skip("the real service refuses by itself")
    yield gcs.proxy
    gcs.proxy.now = time.time


class _Lone(Request):
    """Does not let google-auth ask Google from where the account may be used."""

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        raise TypeError


def credentials_of(account: Account, proxy: GcsProxy, **other: Any) -> Any:
    text = account.key_file(proxy.token_uri, **other)
    info = httpx.Response(200, text=text).json()
    return service_account.Credentials.from_service_account_info(info, scopes=SCOPES)  # type: ignore[no-untyped-call]


@pytest.fixture
def session(proxy: GcsProxy) -> Iterator[Any]:
    request = _Lone()
    with AuthorizedSession(credentials_of(proxy.account, proxy), auth_request=request) as session:  # type: ignore[no-untyped-call]
        yield session
    request.session.close()


@pytest.fixture
def bucket(gcs: Gcs, proxy: GcsProxy, session: Any) -> Any:
    client: Any = storage.Client(  # type: ignore[no-untyped-call]
        project="p", credentials=session.credentials, _http=session, client_options={"api_endpoint": proxy.address}
    )
    client._bucket_metadata_cache = None
    return client.bucket(gcs.bucket)


@pytest.fixture
def blob(bucket: Any) -> Any:
    """An object that is there, `DATA`."""
    blob = bucket.blob(f"private/proxy-{uuid4()}/ü +%2F?#.png")
    blob.upload_from_string(DATA, content_type="image/png")
    return blob


@pytest.fixture
def stranger() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False) as client:
        yield client


def url_of(proxy: GcsProxy, blob: Any) -> str:
    return f"{proxy.address}/{blob.bucket.name}/{quote(blob.name, safe='/~')}"


def signed(proxy: GcsProxy, blob: Any, *, seconds: int = 60, **options: Any) -> str:
    """By Google's own SDK."""
    url: str = blob.generate_signed_url(
        version="v4", expiration=timedelta(seconds=seconds), api_access_endpoint=proxy.address, **options
    )
    return url


# ── Who asks ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_strangers_are_refused_everything(proxy: GcsProxy, blob: Any, stranger: httpx.Client) -> None:
    bucket, name = blob.bucket.name, quote(blob.name, safe="")
    objects = f"{proxy.address}/storage/v1/b/{bucket}/o"
    upload = f"{proxy.address}/upload/storage/v1/b/{bucket}/o"
    for method, url, status in (
        ("GET", f"{objects}/{name}", 401),
        ("GET", f"{objects}/{name}?alt=media", 401),
        ("GET", objects, 401),
        ("DELETE", f"{objects}/{name}", 401),
        ("POST", f"{objects}/{name}/rewriteTo/b/{bucket}/o/copy", 401),
        ("POST", f"{upload}?uploadType=multipart", 401),
        ("POST", f"{upload}?uploadType=resumable", 401),
        ("GET", url_of(proxy, blob), 403),
        ("PUT", url_of(proxy, blob), 403),
        ("DELETE", url_of(proxy, blob), 403),
    ):
        answer = stranger.request(method, url)
        assert (answer.status_code, DATA in answer.content) == (status, False), (method, url)


def test_strangers_read_what_is_open_to_all_and_nothing_beside_it(
    proxy: GcsProxy, bucket: Any, stranger: httpx.Client
) -> None:
    folder = f"open-{uuid4()}"
    inside, beside = bucket.blob(f"{folder}/a"), bucket.blob(f"{folder}-not/a")
    for blob in (inside, beside):
        blob.upload_from_string(DATA)
    proxy.open_to_all.add((bucket.name, f"{folder}/"))
    assert stranger.get(url_of(proxy, inside)).content == DATA
    assert stranger.get(url_of(proxy, beside)).status_code == 403
    assert stranger.delete(url_of(proxy, inside)).status_code == 403


def test_tokens_are_only_given_for_the_accounts_own_key(proxy: GcsProxy) -> None:
    nobody = Account("nobody@smart-assets-tests.iam.gserviceaccount.com")
    request = _Lone()
    credentials_of(proxy.account, proxy).refresh(request)
    for wrong in (credentials_of(Account(proxy.account.email), proxy), credentials_of(nobody, proxy)):
        with pytest.raises(auth.RefreshError, match="invalid_grant"):
            wrong.refresh(request)
    request.session.close()


def test_tokens_are_checked_and_end(proxy: GcsProxy, session: Any, blob: Any, stranger: httpx.Client) -> None:
    url = f"{proxy.address}/storage/v1/b/{blob.bucket.name}/o"
    good = {"Authorization": f"Bearer {session.credentials.token}"}
    assert stranger.get(url, headers=good).status_code == 200
    assert stranger.get(url, headers={"Authorization": "Bearer invented"}).status_code == 401
    proxy.now = lambda: time.time() + 3601
    assert stranger.get(url, headers=good).status_code == 401


def test_an_account_may_do_what_it_was_given_leave_to_do(proxy: GcsProxy, blob: Any) -> None:
    reader = proxy.add_account("reader@smart-assets-tests.iam.gserviceaccount.com", "storage.objects.get")
    request = _Lone()
    name = quote(blob.name, safe="")
    with AuthorizedSession(credentials_of(reader, proxy), auth_request=request) as session:  # type: ignore[no-untyped-call]
        objects = f"{proxy.address}/storage/v1/b/{blob.bucket.name}/o"
        assert session.get(f"{objects}/{name}").status_code == 200
        assert session.get(objects).status_code == 403
        assert session.delete(f"{objects}/{name}").status_code == 403
    request.session.close()


def test_a_missing_bucket_is_told_from_a_missing_object(proxy: GcsProxy, bucket: Any) -> None:
    with pytest.raises(exceptions.NotFound, match="No such object"):
        bucket.blob("nothing").reload()
    with pytest.raises(exceptions.NotFound, match=r"The specified bucket does not exist\."):
        bucket.client.bucket("there-is-no-such-bucket").blob("nothing").reload()


def test_what_is_not_emulated_is_said_to_be_so(proxy: GcsProxy, session: Any, bucket: Any) -> None:
    for method, url in (
        ("GET", f"{proxy.address}/storage/v1/b"),
        ("POST", f"{proxy.address}/storage/v1/b/x/o/y/copyTo"),
    ):
        assert session.request(method, url).status_code == 501
    with pytest.raises(exceptions.GoogleAPICallError, match="not emulated"):
        bucket.blob("x").reload(if_metageneration_match=1, retry=None)


def test_acls_are_refused_as_with_uniform_access(bucket: Any) -> None:
    with pytest.raises(exceptions.BadRequest, match="uniform"):
        bucket.blob("x").upload_from_string(DATA, predefined_acl="publicRead")


# ── Signed URLs ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_url_that_googles_sdk_signed_gives_the_object(proxy: GcsProxy, blob: Any, stranger: httpx.Client) -> None:
    answer = stranger.get(signed(proxy, blob, response_disposition='inline; filename="a b.png"'))
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, DATA, "image/png")
    assert answer.headers["content-disposition"] == 'inline; filename="a b.png"'


def test_a_signature_is_good_for_its_object_method_and_query_only(
    proxy: GcsProxy, bucket: Any, blob: Any, stranger: httpx.Client
) -> None:
    other = bucket.blob(f"private/{uuid4()}")
    other.upload_from_string(DATA)
    url = signed(proxy, blob)
    address, _, query = url.partition("?")
    for changed in (
        f"{url_of(proxy, other)}?{query}",
        f"{url}&response-content-disposition=attachment",
        url.replace("X-Goog-Expires=60", "X-Goog-Expires=61"),
        f"{url[:-1]}{'1' if url[-1] == '0' else '0'}",
        signed(proxy, blob, method="PUT"),
    ):
        answer = stranger.get(changed)
        assert (answer.status_code, "SignatureDoesNotMatch" in answer.text) == (403, True), changed
    assert stranger.put(url, content=b"").status_code == 403
    assert stranger.get(f"{address}?X-Goog-Signature=00").status_code == 400
    assert stranger.get(url).status_code == 200


def test_a_signature_ends_and_does_not_begin_early(proxy: GcsProxy, blob: Any, stranger: httpx.Client) -> None:
    url = signed(proxy, blob)
    for later, status, code in ((0, 200, ""), (62, 400, "ExpiredToken"), (-1000, 403, "RequestNotYetValid")):
        proxy.now = lambda later=later: time.time() + later  # type: ignore[misc]
        answer = stranger.get(url)
        assert (answer.status_code, code in answer.text) == (status, True)


def test_a_signature_lasts_seven_days_at_most(proxy: GcsProxy, blob: Any, stranger: httpx.Client) -> None:
    assert stranger.get(signed(proxy, blob, seconds=604_800)).status_code == 200
    url = signed(proxy, blob, seconds=604_800).replace("X-Goog-Expires=604800", "X-Goog-Expires=604801")
    assert stranger.get(url).status_code == 400


def test_only_keys_that_google_knows_can_sign(proxy: GcsProxy, blob: Any, stranger: httpx.Client) -> None:
    for wrong in (Account(proxy.account.email), Account("nobody@smart-assets-tests.iam.gserviceaccount.com")):
        assert stranger.get(signed(proxy, blob, credentials=credentials_of(wrong, proxy))).status_code == 403


def test_an_account_that_may_not_read_cannot_give_leave_to(proxy: GcsProxy, blob: Any, stranger: httpx.Client) -> None:
    blind = proxy.add_account("blind@smart-assets-tests.iam.gserviceaccount.com", "storage.objects.list")
    answer = stranger.get(signed(proxy, blob, credentials=credentials_of(blind, proxy)))
    assert (answer.status_code, "AccessDenied" in answer.text) == (403, True)


def test_iam_signs_for_who_has_leave(proxy: GcsProxy, session: Any, stranger: httpx.Client) -> None:
    url = f"{proxy.address}/v1/projects/-/serviceAccounts/{proxy.account.email}:signBlob"
    payload = {"payload": base64.b64encode(b"message").decode()}
    signature = base64.b64decode(session.post(url, json=payload).json()["signedBlob"])
    assert proxy.account.verifies(signature, b"message")
    assert not proxy.account.verifies(signature, b"another")
    assert stranger.post(url, json=payload).status_code == 401
    assert session.post(url.replace("assets@", "nobody@"), json=payload).status_code == 403


# ── Conditions and checksums ────────────────────────────────────────────────────────────────────────────────────────


def upload_in_parts(blob: Any, data: bytes, **options: Any) -> None:
    blob.chunk_size = PART_MULTIPLE
    blob._do_resumable_upload(
        None, io.BytesIO(data), "image/png", len(data), None, options.get("generation"), None, None, None, retry=None
    )


def test_nothing_is_created_where_something_is(bucket: Any, blob: Any) -> None:
    again = bucket.blob(blob.name)
    with pytest.raises(exceptions.PreconditionFailed):
        again.upload_from_string(b"other", if_generation_match=0)
    with pytest.raises(exceptions.PreconditionFailed):
        again.create_resumable_upload_session(if_generation_match=0)
    assert again.download_as_bytes() == DATA


def test_of_two_uploads_in_parts_the_second_to_end_fails(session: Any, bucket: Any) -> None:
    blob = bucket.blob(f"private/{uuid4()}")
    urls = [blob.create_resumable_upload_session(size=4, if_generation_match=0) for _ in range(2)]
    sent = [
        session.put(url, data=data, headers={"Content-Range": "bytes 0-3/4"})
        for url, data in zip(urls, (b"aaaa", b"bbbb"), strict=True)
    ]
    assert [answer.status_code for answer in sent] == [200, 412]
    assert blob.download_as_bytes() == b"aaaa"


def test_conditions_on_the_generation_are_held_to(bucket: Any, blob: Any) -> None:
    blob.reload()
    wrong = blob.generation + 1
    copy = bucket.blob(f"{blob.name}.copy")
    calls: list[Callable[[], Any]] = [
        lambda: blob.reload(if_generation_match=wrong),
        lambda: blob.download_as_bytes(if_generation_match=wrong),
        lambda: blob.delete(if_generation_match=wrong),
        lambda: blob.upload_from_string(b"other", if_generation_match=wrong),
        lambda: copy.rewrite(blob, if_generation_match=wrong),
    ]
    for call in calls:
        with pytest.raises(exceptions.PreconditionFailed):
            call()
    copy.rewrite(blob, if_generation_match=0)
    with pytest.raises(exceptions.PreconditionFailed):
        copy.rewrite(blob, if_generation_match=0)
    with pytest.raises(exceptions.NotFound):
        bucket.blob(blob.name, generation=wrong).download_as_bytes()
    blob.delete(if_generation_match=blob.generation)
    assert not blob.exists()


@pytest.mark.parametrize("field", ["md5_hash", "crc32c"])
def test_bytes_that_are_not_those_announced_are_refused(session: Any, bucket: Any, field: str) -> None:
    blob = bucket.blob(f"private/{uuid4()}")
    setattr(blob, field, base64.b64encode(hashlib.md5(b"other").digest()[: 16 if field == "md5_hash" else 4]).decode())
    with pytest.raises(exceptions.BadRequest, match="doesn't match calculated"):
        blob.upload_from_string(DATA, checksum=None)
    url = blob.create_resumable_upload_session(size=4, checksum=None)
    answer = session.put(url, data=b"data", headers={"Content-Range": "bytes 0-3/4"})
    assert (answer.status_code, "doesn't match calculated" in answer.text) == (400, True)
    assert not blob.exists()


def test_a_hash_sent_with_the_last_part_is_compared(session: Any, bucket: Any) -> None:
    blob = bucket.blob(f"private/{uuid4()}")
    url = blob.create_resumable_upload_session(size=4, checksum=None)
    headers = {"Content-Range": "bytes 0-3/4", "x-goog-hash": "crc32c=AAAAAA=="}
    assert session.put(url, data=b"data", headers=headers).status_code == 400
    assert not blob.exists()


def test_googles_sdk_uploads_in_parts(proxy: GcsProxy, bucket: Any) -> None:
    blob = bucket.blob(f"private/{uuid4()}")
    data = bytes(range(256)) * 3000
    upload_in_parts(blob, data)
    assert blob.download_as_bytes() == data


def test_an_upload_in_parts_tells_how_far_it_is_and_can_be_given_up(proxy: GcsProxy, session: Any, bucket: Any) -> None:
    blob = bucket.blob(f"private/{uuid4()}")
    size = 2 * PART_MULTIPLE
    url = blob.create_resumable_upload_session(size=size)
    part = b"x" * (PART_MULTIPLE + 1)
    answer = session.put(url, data=part, headers={"Content-Range": f"bytes 0-{PART_MULTIPLE}/{size}"})
    assert (answer.status_code, answer.headers["range"]) == (308, f"bytes=0-{PART_MULTIPLE - 1}")
    assert proxy.unfinished() == [blob.name]
    answer = session.put(url, headers={"Content-Range": f"bytes */{size}", "Content-Length": "0"})
    assert (answer.status_code, answer.headers["range"]) == (308, f"bytes=0-{PART_MULTIPLE - 1}")
    answer = session.put(url, data=b"x", headers={"Content-Range": f"bytes {size - 1}-{size - 1}/{size}"})
    assert answer.status_code == 400, "there is a gap before it"
    assert session.delete(url, headers={"Content-Length": "0"}).status_code == 499
    assert session.put(url, headers={"Content-Range": f"bytes */{size}"}).status_code == 404
    assert (proxy.unfinished(), blob.exists()) == ([], False)


def test_objects_tell_their_generation_and_checksums_and_ranges_are_kept_to(
    proxy: GcsProxy, session: Any, blob: Any
) -> None:
    blob.reload()
    url = f"{proxy.address}/download/storage/v1{blob.path}"
    answer = session.get(url, params={"alt": "media"}, headers={"Range": "bytes=2-5"})
    assert (answer.status_code, answer.content) == (206, DATA[2:6])
    assert answer.headers["content-range"] == f"bytes 2-5/{len(DATA)}"
    assert answer.headers["x-goog-generation"] == str(blob.generation)
    assert answer.headers["x-goog-hash"] == f"crc32c={blob.crc32c},md5={blob.md5_hash}"
    answer = session.get(url, params={"alt": "media"}, headers={"Range": f"bytes={len(DATA)}-"})
    assert answer.status_code == 416
    assert abs(blob.time_created - datetime.now(UTC)) < timedelta(minutes=5)
