"""Our fake of Cloudinary refuses what the real one refuses. Requests are made and signed here, by its documentation."""

from __future__ import annotations

import hashlib
import io
import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.cloudinary_fake import Account, CloudinaryFake, Fault, cloudinary_fake
from tests.contracts.storage import image

PIXELS = image()


def signature(parameters: Mapping[str, str], secret: str, algorithm: str = "sha1") -> str:
    """Of the parameters in order, joined, with the secret behind."""
    joined = "&".join(f"{name}={parameters[name]}".replace("&", "%26") for name in sorted(parameters))
    return hashlib.new(algorithm, (joined + secret).encode()).hexdigest()


def url_signature(signed: str, secret: str) -> str:
    return "s--" + urlsafe_b64encode(hashlib.sha1((signed + secret).encode()).digest()).decode()[:8] + "--"


@pytest.fixture(scope="module")
def listening() -> Iterator[CloudinaryFake]:
    with cloudinary_fake() as fake:
        yield fake


@pytest.fixture
def fake(listening: CloudinaryFake) -> Iterator[CloudinaryFake]:
    yield listening
    listening.forget()


@pytest.fixture
def account(fake: CloudinaryFake) -> Account:
    return fake.account("demo")


class Caller:
    """Who calls the API of one account, and says it all in so many words."""

    def __init__(self, client: httpx.AsyncClient, account: Account) -> None:
        self.client = client
        self.account = account

    def signed(self, parameters: Mapping[str, str]) -> dict[str, str]:
        stamped = {"timestamp": str(int(time.time())), **parameters}
        signed = signature(stamped, self.account.api_secret, self.account.signature_algorithm)
        return {**stamped, "api_key": self.account.api_key, "signature": signed}

    async def post(self, action: str, fields: Mapping[str, str], **options: Any) -> httpx.Response:
        options.setdefault("files", {"": b""})  # so that it is multipart
        return await self.client.post(f"/v1_1/{self.account.cloud_name}/image/{action}", data=fields, **options)

    async def call(self, action: str, **parameters: str) -> httpx.Response:
        return await self.post(action, self.signed(parameters))

    async def upload(self, public_id: str = "sample", data: bytes = PIXELS, **parameters: str) -> httpx.Response:
        fields = self.signed({"public_id": public_id, **parameters})
        return await self.post("upload", fields, files={"file": ("file", data)})

    async def uploaded(self, public_id: str = "sample", data: bytes = PIXELS, **parameters: str) -> Any:
        answer = await self.upload(public_id, data, **parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def deliver(self, path: str, **options: Any) -> httpx.Response:
        return await self.client.get(f"/{self.account.cloud_name}/image/{path}", **options)

    async def download(self, fields: Mapping[str, str], **options: Any) -> httpx.Response:
        return await self.client.get(f"/v1_1/{self.account.cloud_name}/image/download", params=fields, **options)

    async def resources(self, query: Mapping[str, str | int] | None = None, kind: str = "upload") -> httpx.Response:
        credentials = (self.account.api_key, self.account.api_secret)
        path = f"/v1_1/{self.account.cloud_name}/resources/image/{kind}"
        return await self.client.get(path, params=query, auth=credentials)


@pytest.fixture
async def client(fake: CloudinaryFake) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=fake.url, trust_env=False, timeout=60) as client:
        yield client


@pytest.fixture
def caller(client: httpx.AsyncClient, account: Account) -> Caller:
    return Caller(client, account)


def refused(answer: httpx.Response, status: int, message: str) -> bool:
    """Whether it is an error as Cloudinary words them: in the body and in the header."""
    told: str = answer.json()["error"]["message"]
    assert (answer.status_code, message in told) == (status, True), answer.text
    return answer.headers["x-cld-error"] == told


# ── Signatures ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_signatures_are_made_here_as_cloudinary_publishes_them() -> None:
    documented = {
        "eager": "w_400,h_300,c_pad|w_260,h_200,c_crop",
        "public_id": "sample_image",
        "timestamp": "1315060510",
    }
    assert signature(documented, "abcd") == "bfd09f95f331f558cbd1320e67aa8d488770583e"
    tested = {
        "cloud_name": "dn6ot3ged",
        "timestamp": "1568810420",
        "username": "user@cloudinary.com",
    }
    secret = "hdcixPpR2iKERPwqvH6sHdK9cyac"
    assert signature(tested, secret) == "14c00ba6d0dfdedbc86b316847d95b9e6cd46d94"
    assert signature(tested, secret, "sha256") == "45ddaa4fa01f0c2826f32f669d2e4514faf275fe6df053f1a150e7beae58a3bd"
    del tested["username"]
    tested["notification_url"] = "https://fake.com/callback?a=1&tags=hello,world"
    assert signature(tested, secret) == "4fdf465dd89451cc1ed8ec5b3e314e8a51695704"
    assert url_signature("c_crop,h_20,w_10/image.jpg", "b") == "s--Ai4Znfl3--"


async def test_an_upload_rightly_signed_is_taken_and_described(caller: Caller) -> None:
    described = await caller.uploaded("folder/sample")
    assert described["public_id"] == "folder/sample"
    assert (described["bytes"], described["etag"]) == (len(PIXELS), hashlib.md5(PIXELS).hexdigest())
    assert (described["format"], described["width"], described["height"]) == ("png", 24, 24)
    assert (described["type"], described["resource_type"]) == ("upload", "image")
    assert "existing" not in described


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
async def test_the_algorithm_is_the_accounts(caller: Caller, algorithm: str) -> None:
    await caller.uploaded()
    caller.account.signature_algorithm = algorithm
    assert (await caller.upload()).status_code == 200
    fields = caller.signed({"public_id": "sample"})
    caller.account.signature_algorithm = "sha256" if algorithm == "sha1" else "sha1"
    assert refused(await caller.post("upload", fields, files={"file": PIXELS}), 401, "Invalid Signature")


@pytest.mark.parametrize("action", ["upload", "explicit", "destroy", "rename"])
async def test_every_parameter_is_signed(caller: Caller, action: str) -> None:
    fields = caller.signed({"public_id": "sample", "from_public_id": "a", "to_public_id": "b", "type": "upload"})
    for name, value in (("public_id", "other"), ("type", "authenticated"), ("to_public_id", "c"), ("overwrite", "1")):
        answer = await caller.post(action, {**fields, name: value}, files={"file": PIXELS})
        assert refused(answer, 401, "Invalid Signature")
    assert caller.account.assets == {}
    with_secret_of_another = {**fields, "signature": signature({"public_id": "sample"}, "another secret")}
    assert refused(await caller.post(action, with_secret_of_another), 401, "String to sign - 'from_public_id=a&")


async def test_one_parameter_cannot_be_smuggled_in_another(caller: Caller) -> None:
    fields = caller.signed({"public_id": "a", "tags": "x&type=authenticated"})
    assert (await caller.post("upload", fields, files={"file": PIXELS})).status_code == 200
    taken_apart = {**fields, "tags": "x", "type": "authenticated"}
    assert refused(await caller.post("upload", taken_apart, files={"file": PIXELS}), 401, "Invalid Signature")


async def test_whoever_is_unknown_is_refused(fake: CloudinaryFake, caller: Caller) -> None:
    fields = caller.signed({"public_id": "a"})
    assert refused(await caller.post("destroy", {**fields, "api_key": "1"}), 401, "Unknown API key 1")
    other = fake.account("other")
    assert refused(await caller.post("destroy", {**fields, "api_key": other.api_key}), 401, "cloud_name mismatch")
    caller.account.cloud_name = "nowhere"
    assert refused(await caller.post("destroy", fields), 401, "Invalid cloud_name nowhere")


@pytest.mark.parametrize("missing", ["api_key", "timestamp", "signature"])
async def test_nothing_is_done_unsigned(caller: Caller, missing: str) -> None:
    fields = caller.signed({"public_id": "a"})
    del fields[missing]
    answer = await caller.post("upload", fields, files={"file": PIXELS})
    assert refused(answer, 400, f"Missing required parameter - {missing}")


@pytest.mark.parametrize("off", [-3700, 3700])
async def test_a_signature_of_another_hour_is_stale(caller: Caller, off: int) -> None:
    stamp = str(int(time.time()) + off)
    assert refused(await caller.call("destroy", public_id="a", timestamp=stamp), 400, "Stale request - reported time")
    soon = str(int(time.time()) + off * 3500 // 3700)
    assert (await caller.call("destroy", public_id="a", timestamp=soon)).json() == {"result": "not found"}


# ── Uploads ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "data",
    [b"plain words", b"\x89PNG\r\n\x1a\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>", PIXELS[:-200], b"\x00" * 5000],
    ids=["words", "a signature", "SVG", "cut short", "zeros"],
)
async def test_bytes_that_are_no_image_are_refused(caller: Caller, data: bytes) -> None:
    assert refused(await caller.upload(data=data), 400, "Invalid image file")
    assert caller.account.assets == {}


async def test_an_upload_needs_a_file_of_some_bytes_and_not_too_many(caller: Caller) -> None:
    assert refused(await caller.call("upload", public_id="a"), 400, "Missing required parameter - file")
    address = {**caller.signed({"public_id": "a"}), "file": "http://127.0.0.1/image.png"}
    assert refused(await caller.post("upload", address), 400, "Missing required parameter - file")
    assert refused(await caller.upload(data=b""), 400, "Empty file")
    caller.account.max_bytes = len(PIXELS) - 1
    assert refused(await caller.upload(), 400, f"File size too large. Got {len(PIXELS)}. Maximum is {len(PIXELS) - 1}")


@pytest.mark.parametrize("char", "?&#\\%<>+")
async def test_an_id_with_a_forbidden_character_is_refused(caller: Caller, char: str) -> None:
    assert refused(await caller.upload(f"a{char}b"), 400, "is invalid")


@pytest.mark.parametrize("public_id", ["x" * 256, "v12/a", "a/v1/b", "a//b", " / "])
async def test_an_id_it_does_not_take_is_refused(caller: Caller, public_id: str) -> None:
    assert (await caller.upload(public_id)).status_code == 400
    assert caller.account.assets == {}


@pytest.mark.parametrize(
    ("wanted", "given"),
    [
        ("a b", "a_b"),
        ("a~2", "a_2"),
        ("(a)/b!", "a/b"),
        (" a ", "a"),
        ("/a/", "a"),
        ("a_2E/b-1.x", "a_2E/b-1.x"),
        ("写真", "写真"),
        ("v1", "v1"),
        ("x" * 255, "x" * 255),
    ],
)
async def test_other_characters_are_changed_silently(caller: Caller, wanted: str, given: str) -> None:
    assert (await caller.uploaded(wanted))["public_id"] == given


async def test_an_asset_is_replaced_unless_that_is_forbidden(caller: Caller) -> None:
    await caller.uploaded(data=image(1))
    kept = await caller.uploaded(data=image(2), overwrite="0")
    assert (kept["existing"], kept["etag"]) == (True, hashlib.md5(image(1)).hexdigest())
    assert (await caller.uploaded(data=image(2)))["etag"] == hashlib.md5(image(2)).hexdigest()
    assert "existing" not in await caller.uploaded(data=image(3), overwrite="0", type="authenticated")


async def test_parts_become_one_image(caller: Caller) -> None:
    data = image(0, 1680)
    fields = caller.signed({"public_id": "large"})
    cut = 5_000_000

    async def send(start: int, end: int, upload_id: str = "u", total: int = len(data)) -> httpx.Response:
        headers = {"Content-Range": f"bytes {start}-{end - 1}/{total}", "X-Unique-Upload-Id": upload_id}
        return await caller.post("upload", fields, files={"file": data[start:end]}, headers=headers)

    assert refused(await send(0, cut - 1), 400, "larger than 5mb")
    assert refused(await send(cut, len(data)), 400, "Invalid Content-Range")
    first = (await send(0, cut)).json()
    assert (first["done"], first["bytes"], first["public_id"]) == (False, cut, "large")
    assert caller.account.assets == {}
    assert refused(await send(0, cut), 400, "Invalid Content-Range")
    assert refused(await send(cut, len(data), upload_id="another"), 400, "Invalid Content-Range")
    whole = (await send(cut, len(data))).json()
    assert (whole["bytes"], whole["etag"]) == (len(data), hashlib.md5(data).hexdigest())


# ── Types, removing, moving ─────────────────────────────────────────────────────────────────────────────────────────


async def test_the_types_are_kept_apart(caller: Caller) -> None:
    await caller.uploaded(data=image(1))
    await caller.uploaded(data=image(2), type="authenticated")
    for kind, data in (("upload", image(1)), ("authenticated", image(2))):
        found = (await caller.call("explicit", public_id="sample", type=kind)).json()
        assert (found["type"], found["etag"]) == (kind, hashlib.md5(data).hexdigest())


async def test_destroy_misses_what_has_another_type(caller: Caller) -> None:
    await caller.uploaded(type="authenticated")
    assert (await caller.call("destroy", public_id="sample")).json() == {"result": "not found"}
    assert (await caller.call("destroy", public_id="sample", type="upload")).json() == {"result": "not found"}
    assert (await caller.call("destroy", public_id="sample", type="authenticated")).json() == {"result": "ok"}
    assert (await caller.call("destroy", public_id="sample", type="authenticated")).json() == {"result": "not found"}


async def test_explicit_needs_a_type_and_an_asset(caller: Caller) -> None:
    assert refused(await caller.call("explicit", public_id="sample"), 400, "Missing required parameter - type")
    assert refused(await caller.call("explicit", public_id="sample", type="upload"), 404, "Resource not found - sample")


async def test_rename_goes_from_type_to_type_and_overwrites_only_when_told(caller: Caller) -> None:
    gone = {"from_public_id": "a", "to_public_id": "b", "type": "upload", "to_type": "authenticated"}
    assert refused(await caller.call("rename", **gone), 404, "Resource not found - a")
    await caller.uploaded("a", image(1))
    await caller.uploaded("b", image(2), type="authenticated")
    assert refused(await caller.call("rename", **gone, overwrite="0"), 400, "to_public_id(b) already exists")
    assert set(caller.account.assets) == {("upload", "a"), ("authenticated", "b")}
    moved = (await caller.call("rename", **gone, overwrite="1")).json()
    assert (moved["public_id"], moved["type"], moved["etag"]) == (
        "b",
        "authenticated",
        hashlib.md5(image(1)).hexdigest(),
    )
    assert set(caller.account.assets) == {("authenticated", "b")}
    await caller.call("rename", from_public_id="b", to_public_id="c", type="authenticated")
    assert set(caller.account.assets) == {("authenticated", "c")}


# ── Delivery ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_public_assets_are_delivered_to_anybody(caller: Caller) -> None:
    await caller.uploaded("folder/sample")
    for path in (
        "upload/folder/sample.png",
        "upload/folder/sample",
        "upload/v1/folder/sample.png",
        "upload/f_auto,q_auto/v1234/folder/sample.png",
        "upload/c_fill,w_100/f_auto/folder/sample.png",
    ):
        answer = await caller.deliver(path)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png"), path
        assert answer.content == PIXELS
        assert "public" in answer.headers["cache-control"]


async def test_another_extension_is_another_format(caller: Caller) -> None:
    await caller.uploaded()
    answer = await caller.deliver("upload/sample.jpg")
    assert answer.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(answer.content)) as converted:
        assert (converted.format, converted.size) == ("JPEG", (24, 24))


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("upload/v1/none.png", 404, "Resource not found - none"),
        ("authenticated/v1/sample.png", 401, "deny or ACL failure"),
        ("upload/nonsense/v1/sample.png", 400, "Invalid transformation"),
        ("upload/v1/sample.exe", 400, "Invalid extension in transformation: exe"),
        ("upload/v1", 400, "Invalid transformation"),
        ("private/v1/sample.png", 401, "deny or ACL failure"),
        ("fetch/v1/sample.png", 400, "Invalid type fetch"),
    ],
)
async def test_what_is_not_delivered(caller: Caller, path: str, status: int, message: str) -> None:
    await caller.uploaded()
    assert refused(await caller.deliver(path), status, message)


async def test_authenticated_assets_are_delivered_to_signed_addresses_only(caller: Caller) -> None:
    await caller.uploaded("folder/sample", type="authenticated")
    secret = caller.account.api_secret
    plain = url_signature("folder/sample.png", secret)
    changed = url_signature("w_100,c_fill/folder/sample.png", secret)
    assert (await caller.deliver(f"authenticated/{plain}/v1/folder/sample.png")).content == PIXELS
    assert (await caller.deliver(f"authenticated/{changed}/w_100,c_fill/v1/folder/sample.png")).content == PIXELS
    for path in (
        "authenticated/v1/folder/sample.png",
        f"authenticated/{changed}/v1/folder/sample.png",
        f"authenticated/{plain}/w_100,c_fill/v1/folder/sample.png",
        f"authenticated/{url_signature('folder/sample.png', 'another secret')}/v1/folder/sample.png",
        f"authenticated/{url_signature('folder/sample', secret)}/v1/folder/sample.png",
        f"upload/{changed}/v1/folder/sample.png",
    ):
        assert refused(await caller.deliver(path), 401, "deny or ACL failure"), path
    assert refused(await caller.deliver("upload/v1/folder/sample.png"), 404, "Resource not found")


async def test_a_range_is_delivered(caller: Caller) -> None:
    await caller.uploaded()
    for asked, start, end in (("bytes=0-0", 0, 1), ("bytes=10-19", 10, 20), ("bytes=100-", 100, None)):
        answer = await caller.deliver("upload/sample.png", headers={"Range": asked})
        assert (answer.status_code, answer.content) == (206, PIXELS[start:end])
        last = (end or len(PIXELS)) - 1
        assert answer.headers["content-range"] == f"bytes {start}-{last}/{len(PIXELS)}"
    answer = await caller.deliver("upload/sample.png", headers={"Range": f"bytes={len(PIXELS)}-"})
    assert answer.status_code == 416


@pytest.mark.parametrize("method", ["PUT", "DELETE", "POST"])
async def test_nothing_can_be_changed_where_it_is_delivered(caller: Caller, method: str) -> None:
    await caller.uploaded()
    for path in ("/demo/image/upload/sample.png", "/v1_1/demo/image/download"):
        assert (await caller.client.request(method, path)).status_code in {400, 404}
    assert len(caller.account.assets) == 1


async def test_the_cdn_remembers_until_it_is_told_to_forget(caller: Caller) -> None:
    path = "upload/v1/sample.png"

    async def served() -> bool:
        return (await caller.deliver(path)).status_code == 200

    await caller.uploaded()
    assert await served()
    await caller.call("destroy", public_id="sample")
    assert await served(), "from the cache"
    await caller.call("destroy", public_id="sample", invalidate="1")
    assert not await served()
    await caller.uploaded()
    assert await served(), "a refusal is not remembered"
    await caller.call("rename", from_public_id="sample", to_public_id="b", to_type="authenticated")
    assert await served(), "from the cache"
    await caller.call("rename", from_public_id="b", to_public_id="sample", type="authenticated", to_type="upload")
    moved = {"from_public_id": "sample", "to_public_id": "b", "to_type": "authenticated", "invalidate": "1"}
    await caller.call("rename", **moved)
    assert not await served()


# ── The download address ────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_signed_download_gives_the_asset_until_it_expires(caller: Caller) -> None:
    await caller.uploaded(type="authenticated")
    long_ago = str(int(time.time()) - 86_400)
    wanted = {"public_id": "sample", "type": "authenticated", "timestamp": long_ago}
    good = await caller.download(caller.signed({**wanted, "expires_at": str(int(time.time()) + 60)}))
    assert (good.status_code, good.content, good.headers["content-disposition"]) == (200, PIXELS, "inline")
    for over in (str(int(time.time()) - 1), long_ago):
        assert refused(await caller.download(caller.signed({**wanted, "expires_at": over})), 401, "expired")
    assert (await caller.download(caller.signed(wanted))).status_code == 400, "an hour, where nothing else is said"


async def test_a_download_is_as_signed(caller: Caller) -> None:
    await caller.uploaded(type="authenticated")
    fields = caller.signed({"public_id": "sample", "type": "authenticated", "expires_at": str(int(time.time()) + 60)})
    for name, value in (("expires_at", str(int(time.time()) + 600)), ("public_id", "other"), ("attachment", "1")):
        assert refused(await caller.download({**fields, name: value}), 401, "Invalid Signature")
    assert refused(await caller.download({}), 400, "Missing required parameter")


async def test_a_download_has_the_type_and_the_name_that_were_asked_for(caller: Caller) -> None:
    await caller.uploaded(data=image(1))
    await caller.uploaded(data=image(2), type="authenticated")
    assert (await caller.download(caller.signed({"public_id": "sample"}))).content == image(1), "`upload` by default"
    named = await caller.download(
        caller.signed({"public_id": "sample", "target_filename": "a b.png", "attachment": "1"})
    )
    assert named.headers["content-disposition"] == "attachment; filename*=UTF-8''a%20b.png"
    converted = await caller.download(caller.signed({"public_id": "sample", "format": "webp"}))
    assert converted.headers["content-type"] == "image/webp"
    part = await caller.download(caller.signed({"public_id": "sample"}), headers={"Range": "bytes=5-9"})
    assert (part.status_code, part.content) == (206, image(1)[5:10])
    none = await caller.download(caller.signed({"public_id": "none"}))
    assert refused(none, 404, "Resource not found - none")


# ── The Admin API ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_assets_are_listed_by_type_and_prefix_a_page_at_a_time(caller: Caller) -> None:
    for name in ("a/1", "a/2", "a/3", "b/1"):
        await caller.uploaded(name)
    await caller.uploaded("a/4", type="authenticated")
    found: list[str] = []
    query: dict[str, str | int] = {"prefix": "a/", "max_results": 2}
    while True:
        page = (await caller.resources(query)).json()
        assert len(page["resources"]) <= 2
        found += [resource["public_id"] for resource in page["resources"]]
        if "next_cursor" not in page:
            break
        query["next_cursor"] = page["next_cursor"]
    assert found == ["a/1", "a/2", "a/3"]
    only = (await caller.resources(kind="authenticated")).json()["resources"]
    assert [(resource["public_id"], resource["bytes"]) for resource in only] == [("a/4", len(PIXELS))]
    for name, value in (("max_results", 501), ("max_results", 0), ("next_cursor", "é")):
        assert (await caller.resources({name: value})).status_code == 400


async def test_listing_needs_the_secret(caller: Caller) -> None:
    path = "/v1_1/demo/resources/image/upload"
    assert refused(await caller.client.get(path), 401, "Invalid credentials")
    wrong = (caller.account.api_key, "another secret")
    assert refused(await caller.client.get(path, auth=wrong), 401, "Invalid credentials")


async def test_listing_is_rationed_by_the_hour(caller: Caller) -> None:
    caller.account.admin_calls_left = 1
    last = await caller.resources()
    assert (last.status_code, last.headers["x-featureratelimit-remaining"]) == (200, "0")
    over = await caller.resources()
    assert refused(over, 420, "Rate Limit Exceeded")
    until = parsedate_to_datetime(over.headers["x-featureratelimit-reset"]).timestamp() - time.time()
    assert -1 < until <= 3600
    assert (await caller.upload()).status_code == 200, "the Upload API is not"


# ── What a test stages ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_faults_happen_once_and_in_order(fake: CloudinaryFake, caller: Caller) -> None:
    fake.stage("upload", Fault(status=500))
    fake.stage("upload", Fault(status=503, page="<h1>Service Unavailable</h1>"))
    fake.stage("upload", Fault(cheat={"bytes": 1}))
    assert refused(await caller.upload(), 500, "General Error")
    page = await caller.upload()
    assert (page.status_code, page.headers["content-type"]) == (503, "text/html; charset=utf-8")
    assert caller.account.assets == {}
    assert (await caller.uploaded())["bytes"] == 1
    assert (await caller.uploaded())["bytes"] == len(PIXELS)


async def test_an_answer_can_be_lost(fake: CloudinaryFake, caller: Caller) -> None:
    fake.stage("upload", Fault(lost=True))
    caller.client.timeout = httpx.Timeout(30, read=0.2)
    with pytest.raises(httpx.ReadTimeout):
        await caller.upload()
    assert set(caller.account.assets) == {("upload", "sample")}
