"""What Google refuses and fake-gcs-server does not: a proxy before it that verifies.

fake-gcs-server keeps the objects; it checks no signature, no token, hardly a precondition and no checksum. All of that
is done here, with Google's statuses and messages as its documentation and its SDKs' tests show them. Whatever is not
emulated is answered 501, so that nobody comes to rely on it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import secrets
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any, Final, Self
from urllib.parse import parse_qsl, quote, unquote

import google_crc32c
import httpx
import uvicorn
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

PROJECT: Final = "smart-assets-tests"
AUDIENCE: Final = "https://oauth2.googleapis.com/token"
PART_MULTIPLE: Final = 256 * 1024
LONGEST_SECONDS: Final = 604_800
SKEW_SECONDS: Final = 900

_OBJECT_PERMISSIONS: Final = frozenset(
    f"storage.objects.{verb}" for verb in ("create", "get", "list", "delete", "update")
)
_COPIED: Final = ("contentType", "contentDisposition", "contentEncoding", "cacheControl", "metadata")
_OBJECT: Final = re.compile(r"/(?P<way>(?:download/)?)storage/v1/b/(?P<bucket>[^/]+)/o/(?P<name>[^/]+)")
_REWRITE: Final = re.compile(
    r"/storage/v1/b/(?P<bucket>[^/]+)/o/(?P<name>[^/]+)/rewriteTo/b/(?P<to_bucket>[^/]+)/o/(?P<to_name>[^/]+)"
)
_LIST: Final = re.compile(r"/storage/v1/b/(?P<bucket>[^/]+)/o")
_BUCKET: Final = re.compile(r"/storage/v1/b/(?P<bucket>[^/]+)")
_UPLOAD: Final = re.compile(r"/upload/storage/v1/b/(?P<bucket>[^/]+)/o")
_SIGN: Final = re.compile(r"/v1/projects/-/serviceAccounts/(?P<email>[^/:]+):signBlob")
_XML: Final = re.compile(r"/(?!(?:storage|upload|download|v1)/)(?P<bucket>[a-z0-9][a-z0-9._-]+)/(?P<name>.+)")
_FORM: Final = re.compile(r"/(?!(?:storage|upload|download|v1|token)/)(?P<bucket>[a-z0-9][a-z0-9._-]+)/")
_RANGE: Final = re.compile(r"bytes (?:(?P<first>\d+)-(?P<last>\d+)|\*)/(?P<size>\d+)")

Handler = Callable[["GcsProxy", "_Call"], Awaitable[Response]]


def new_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@dataclass
class Account:
    """A service account: its own key, the one that Google keeps for it, and what it may."""

    email: str
    key: rsa.RSAPrivateKey = field(default_factory=new_key)
    google_key: rsa.RSAPrivateKey = field(default_factory=new_key)
    permissions: set[str] = field(default_factory=lambda: {*_OBJECT_PERMISSIONS, "iam.serviceAccounts.signBlob"})

    def verifies(self, signature: bytes, message: bytes) -> bool:
        for key in (self.key, self.google_key):
            try:
                key.public_key().verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
            except InvalidSignature:
                continue
            return True
        return False

    def key_file(self, token_uri: str, *, key: rsa.RSAPrivateKey | None = None) -> str:
        """What the console gives to download; with another `key`, one that Google does not know."""
        pem = (key or self.key).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return json.dumps(
            {
                "type": "service_account",
                "project_id": PROJECT,
                "private_key_id": "1",
                "private_key": pem.decode(),
                "client_email": self.email,
                "token_uri": token_uri,
            }
        )


@dataclass
class _Upload:
    """A resumable upload that has begun."""

    bucket: str
    metadata: dict[str, Any]
    query: dict[str, str]
    data: bytearray = field(default_factory=bytearray)
    resource: dict[str, Any] | None = None


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message

    def as_json(self) -> Response:
        detail = {"message": self.message, "domain": "global", "reason": self.reason}
        return JSONResponse({"error": {"code": self.status, "message": self.message, "errors": [detail]}}, self.status)

    def as_xml(self) -> Response:
        return Response(
            f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{self.reason}</Code>"
            f"<Message>{self.message}</Message></Error>",
            self.status,
            media_type="application/xml; charset=UTF-8",
        )


class _Call(Request):
    """One request, with its path as it was sent."""

    @property
    def raw_path(self) -> str:
        raw: bytes = self.scope["raw_path"]
        return raw.decode("ascii")

    @property
    def query(self) -> dict[str, str]:
        return dict(self.query_params)


class GcsProxy:
    """`with GcsProxy(upstream) as proxy`: Google Cloud Storage, IAM, its token and metadata servers at `address`.

    Runs in a thread with a loop of its own, so that blocking clients can be used from any other.
    """

    def __init__(self, upstream: str) -> None:
        """`upstream`: where fake-gcs-server is."""
        self._upstream = upstream
        self.account = Account("assets@smart-assets-tests.iam.gserviceaccount.com")
        self.accounts = {self.account.email: self.account}
        self.requests: Counter[str] = Counter()
        """How often each operation was asked for, whatever came of it."""
        self.open_to_all: set[tuple[str, str]] = set()
        """Bucket and prefix of what `allUsers` may read: by the bucket's policy, or a managed folder's."""
        self.takes_at_most: int | None = None
        """Bytes of one part; the others are to be sent again."""
        self.copies_in_steps = False
        """A copy takes two requests, as between places or classes."""
        self.loses_answers: Counter[str] = Counter()
        """By operation: so many times it is done, and answered 503 all the same."""
        self.kms_keys: dict[tuple[str, str], str] = {}
        """By bucket and name of each object written with one."""
        self.now: Callable[[], float] = time.time
        self._buckets: set[str] = set()
        self._tokens: dict[str, tuple[str, float]] = {}
        self._uploads: dict[str, _Upload] = {}
        self._locks: defaultdict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._client: httpx.AsyncClient | None = None
        self._server = uvicorn.Server(
            uvicorn.Config(
                self, host="127.0.0.1", port=0, lifespan="on", log_level="warning", ws="none", loop="asyncio"
            )
        )
        self._thread = threading.Thread(target=self._server.run, name="gcs-proxy", daemon=True)

    # ── For the tests ───────────────────────────────────────────────────────────────────────────────────────────────

    def __enter__(self) -> Self:
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError("the proxy did not start")
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()

    @property
    def address(self) -> str:
        """`http://127.0.0.1:port`."""
        port: int = self._server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    @property
    def token_uri(self) -> str:
        return f"{self.address}/token"

    def make_bucket(self, name: str) -> str:
        """A new bucket, with uniform bucket-level access."""
        answer = httpx.post(
            f"{self._upstream}/storage/v1/b", params={"project": PROJECT}, json={"name": name}, trust_env=False
        )
        answer.raise_for_status()
        self._buckets.add(name)
        return name

    def unfinished(self) -> list[str]:
        """The names of uploads that hold bytes, neither finished nor given up."""
        return [str(upload.metadata["name"]) for upload in tuple(self._uploads.values()) if upload.data]

    def resource(self, bucket: str, name: str) -> dict[str, Any]:
        """What there is of an object."""
        answer = httpx.get(f"{self._upstream}{_path(bucket, name)}", trust_env=False)
        answer.raise_for_status()
        resource: dict[str, Any] = answer.json()
        return resource

    def put(self, bucket: str, name: str) -> None:
        """An empty object that somebody else puts there."""
        answer = httpx.post(
            f"{self._upstream}/upload/storage/v1/b/{bucket}/o",
            params={"uploadType": "media", "name": name},
            trust_env=False,
        )
        answer.raise_for_status()

    def add_account(self, email: str, *permissions: str) -> Account:
        account = self.accounts[email] = Account(email, permissions=set(permissions))
        return account

    # ── The server ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        call = _Call(scope, receive)
        try:
            response = await self._answer(call)
        except ClientDisconnect:
            return
        await response(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        # No connection is kept open: tests count this process's.
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(
            base_url=self._upstream, trust_env=False, timeout=60, limits=limits
        ) as self._client:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, call: _Call) -> Response:
        path = call.raw_path
        for pattern, methods in _ROUTES:
            match = pattern.fullmatch(path)
            if match and call.method in methods:
                operation, handler = methods[call.method]
                call.scope["path_params"] = {name: unquote(value) for name, value in match.groupdict().items()}
                self.requests[operation] += 1
                try:
                    answer = await handler(self, call)
                    if not self.loses_answers[operation]:
                        return answer
                    self.loses_answers[operation] -= 1
                    return Refused(503, "backendError", "We encountered an internal error.").as_json()
                except Refused as refused:
                    return refused.as_xml() if operation.startswith("xml.") else refused.as_json()
        self.requests["unknown"] += 1
        return Refused(501, "notImplemented", f"not emulated: {call.method} {path}").as_json()

    async def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        assert self._client is not None
        return await self._client.request(method, path, **options)

    # ── Who asks ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _authorise(self, call: _Call, permission: str, bucket: str, name: str | None = None) -> None:
        """Refused unless who asks may do that; a missing bucket is said to whoever has credentials."""
        scheme, _, token = call.headers.get("authorization", "").partition(" ")
        if not token:
            if permission == "storage.objects.get" and name is not None and self._is_open(bucket, name):
                return
            raise Refused(401, "required", f"Anonymous caller does not have {permission} access to the object.")
        account = self._account_of(scheme, token)
        if bucket not in self._buckets:
            raise Refused(404, "notFound", "The specified bucket does not exist.")
        if permission not in account.permissions:
            raise Refused(403, "forbidden", f"{account.email} does not have {permission} access to the object.")

    def _account_of(self, scheme: str, token: str) -> Account:
        email, expires = self._tokens.get(token, ("", 0.0))
        if scheme != "Bearer" or email not in self.accounts or expires <= self.now():
            raise Refused(401, "authError", "Invalid Credentials")
        return self.accounts[email]

    def _is_open(self, bucket: str, name: str) -> bool:
        return any(bucket == opened and name.startswith(prefix) for opened, prefix in tuple(self.open_to_all))

    def _new_token(self, email: str) -> dict[str, Any]:
        token = secrets.token_urlsafe()
        self._tokens[token] = (email, self.now() + 3600)
        return {"access_token": token, "expires_in": 3599, "token_type": "Bearer"}

    async def token(self, call: _Call) -> Response:
        """A token for a JWT that the account's own key has signed (RFC 7523)."""
        form = dict(parse_qsl((await call.body()).decode()))
        if form.get("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer":
            return JSONResponse({"error": "unsupported_grant_type"}, 400)
        try:
            signed, _, signature = form["assertion"].rpartition(".")
            header, claims = (json.loads(_unpadded(part)) for part in signed.split("."))
            account = self.accounts[claims["iss"]]
        except (KeyError, ValueError):
            return _invalid_grant("Invalid JWT.")
        if header["alg"] != "RS256" or not _is_signed(account.key, _unpadded(signature), signed.encode()):
            return _invalid_grant("Invalid JWT Signature.")
        if (
            claims["aud"] not in {AUDIENCE, self.token_uri}
            or not claims["iat"] - SKEW_SECONDS < self.now() < claims["exp"]
        ):
            return _invalid_grant("Invalid JWT: Token must be a short-lived token.")
        if not claims.get("scope"):
            return JSONResponse({"error": "invalid_scope"}, 400)
        return JSONResponse(self._new_token(account.email))

    async def machine(self, call: _Call) -> Response:
        """The metadata server of a machine that runs as the account."""
        if call.headers.get("metadata-flavor") != "Google":
            return Response(status_code=403)
        headers = {"Metadata-Flavor": "Google"}
        account = "/computeMetadata/v1/instance/service-accounts/default"
        scopes = ["https://www.googleapis.com/auth/cloud-platform"]
        known: dict[str, Any] = {
            "/": "",
            "/computeMetadata/v1/project/project-id": PROJECT,
            "/computeMetadata/v1/universe/universe-domain": "googleapis.com",
            f"{account}/": {"aliases": ["default"], "email": self.account.email, "scopes": scopes},
        }
        path = call.raw_path.replace(f"/{self.account.email}/", "/default/")
        if path == f"{account}/token":
            return JSONResponse(self._new_token(self.account.email), headers=headers)
        value = known.get(path)
        if value is None:
            return Response(status_code=404, headers=headers)
        if isinstance(value, str):
            return Response(value, headers=headers, media_type="application/text")
        return JSONResponse(value, headers=headers)

    async def sign_blob(self, call: _Call) -> Response:
        """IAM's signBlob, with the key that Google keeps."""
        caller = self._account_of(*call.headers.get("authorization", " ").split(" ", 1))
        account = self.accounts.get(call.path_params["email"])
        if account is None or "iam.serviceAccounts.signBlob" not in caller.permissions:
            message = "Permission 'iam.serviceAccounts.signBlob' denied on resource (or it may not exist)."
            return JSONResponse({"error": {"code": 403, "message": message, "status": "PERMISSION_DENIED"}}, 403)
        payload = base64.b64decode((await call.json())["payload"], validate=True)
        signature = account.google_key.sign(payload, padding.PKCS1v15(), hashes.SHA256())
        return JSONResponse({"keyId": "2", "signedBlob": base64.b64encode(signature).decode()})

    # ── Objects, by the JSON API ────────────────────────────────────────────────────────────────────────────────────

    async def get(self, call: _Call) -> Response:
        bucket, name, query = call.path_params["bucket"], call.path_params["name"], call.query
        self._authorise(call, "storage.objects.get", bucket, name)
        resource = await self._resource(bucket, name)
        _check_conditions(query, resource)
        if resource is None or query.get("generation", resource["generation"]) != resource["generation"]:
            raise _no_object(bucket, name)
        if query.get("alt") == "media":
            return await self._media(resource, call.headers)
        return JSONResponse(resource)

    async def list(self, call: _Call) -> Response:
        self._authorise(call, "storage.objects.list", call.path_params["bucket"])
        answer = await self._ask("GET", call.raw_path, params=call.query)
        found = answer.json()
        if "items" in found:
            found["items"] = [self._shown(resource) for resource in found["items"]]
        return JSONResponse(found, answer.status_code)

    async def insert(self, call: _Call) -> Response:
        """An upload in a single request, or the beginning of one in parts."""
        bucket, query = call.path_params["bucket"], call.query
        self._authorise(call, "storage.objects.create", bucket)
        if "predefinedAcl" in query:
            raise Refused(400, "invalid", "Cannot use ACL API to update bucket policy when uniform access is enabled.")
        body = await call.body()
        if query.get("uploadType") == "multipart":
            metadata, content = _parts(body)
            return JSONResponse(await self._create(bucket, metadata, content, query))
        if query.get("uploadType") != "resumable":
            raise Refused(501, "notImplemented", "not emulated: other uploads")
        metadata = {"contentType": call.headers.get("x-upload-content-type"), **json.loads(body)}
        _check_conditions(query, await self._resource(bucket, metadata["name"]))
        upload_id = secrets.token_urlsafe(24)
        self._uploads[upload_id] = _Upload(bucket, metadata, query)
        location = f"http://{call.headers['host']}{call.raw_path}?uploadType=resumable&upload_id={upload_id}"
        return Response(headers={"Location": location, "X-GUploader-UploadID": upload_id})

    async def resume(self, call: _Call) -> Response:
        """A part of an upload, or the question how far it has come."""
        upload_id = call.query.get("upload_id", "")
        upload = self._uploads.get(upload_id)
        match = _RANGE.fullmatch(call.headers.get("content-range", ""))
        body = await call.body()
        if upload is None:
            raise Refused(404, "notFound", "The upload does not exist.")
        if upload.resource is not None:
            return JSONResponse(upload.resource)
        if match is None:
            raise Refused(400, "badRequest", "Failed to parse Content-Range header.")
        if match["first"] is not None:
            self._take(upload, int(match["first"]), int(match["last"]), int(match["size"]), body)
            if len(upload.data) == int(match["size"]):
                return await self._finish(call, upload_id, upload)
        received = {"Range": f"bytes=0-{len(upload.data) - 1}"} if upload.data else {}
        return Response(status_code=308, headers=received)

    async def _finish(self, call: _Call, upload_id: str, upload: _Upload) -> Response:
        sent = dict(part.strip().split("=", 1) for part in call.headers.get("x-goog-hash", "").split(",") if part)
        named = {"crc32c": sent.get("crc32c"), "md5Hash": sent.get("md5")}
        try:
            _check_hashes({name: value for name, value in named.items() if value}, bytes(upload.data))
            upload.resource = await self._create(upload.bucket, upload.metadata, bytes(upload.data), upload.query)
        except Refused:
            del self._uploads[upload_id]
            raise
        upload.data.clear()
        return JSONResponse(upload.resource)

    def _take(self, upload: _Upload, first: int, last: int, size: int, body: bytes) -> None:
        if len(body) != last - first + 1 or last >= size or first > len(upload.data):
            raise Refused(400, "badRequest", "The bytes sent are not those that Content-Range names.")
        new = body[len(upload.data) - first :]
        taken = len(new) if self.takes_at_most is None else min(len(new), self.takes_at_most)
        if last + 1 < size or taken < len(new):
            taken = taken // PART_MULTIPLE * PART_MULTIPLE
        upload.data += new[:taken]

    async def give_up(self, call: _Call) -> Response:
        self._uploads.pop(call.query.get("upload_id", ""), None)
        return Response(status_code=499)

    async def rewrite(self, call: _Call) -> Response:
        names = call.path_params
        self._authorise(call, "storage.objects.get", names["bucket"])
        self._authorise(call, "storage.objects.create", names["to_bucket"])
        query = call.query
        source = await self._resource(names["bucket"], names["name"])
        if source is None or query.get("sourceGeneration", source["generation"]) != source["generation"]:
            raise _no_object(names["bucket"], names["name"])
        if self.copies_in_steps and "rewriteToken" not in query:
            _check_conditions(query, await self._resource(names["to_bucket"], names["to_name"]))
            progress = {"totalBytesRewritten": "0", "objectSize": source["size"], "done": False, "rewriteToken": "1"}
            return JSONResponse(progress)
        # With metadata in the body those are all it gets; the class is the bucket's own unless they say otherwise.
        kept = {name: source[name] for name in _COPIED if name in source}
        metadata = {**(json.loads(await call.body() or b"{}") or kept), "name": names["to_name"]}
        content = await self._ask("GET", _path(names["bucket"], names["name"]), params={"alt": "media"})
        conditions = {name: value for name, value in query.items() if name.startswith("if")}
        if "destinationKmsKeyName" in query:
            conditions["kmsKeyName"] = query["destinationKmsKeyName"]
        metadata.pop("kmsKeyName", None)
        resource = await self._create(names["to_bucket"], metadata, content.content, conditions)
        copied = {"totalBytesRewritten": source["size"], "objectSize": source["size"], "done": True}
        return JSONResponse({**copied, "resource": resource})

    async def delete(self, call: _Call) -> Response:
        bucket, name, query = call.path_params["bucket"], call.path_params["name"], call.query
        self._authorise(call, "storage.objects.delete", bucket)
        async with self._locks[bucket, name]:
            resource = await self._resource(bucket, name)
            if resource is None or query.get("generation", resource["generation"]) != resource["generation"]:
                raise _no_object(bucket, name)
            _check_conditions(query, resource)
            answer = await self._ask("DELETE", _path(bucket, name))
        return Response(status_code=answer.status_code)

    async def bucket(self, call: _Call) -> Response:
        self._authorise(call, "storage.buckets.get", call.path_params["bucket"])
        raise Refused(501, "notImplemented", "not emulated: buckets")

    async def _resource(self, bucket: str, name: str) -> dict[str, Any] | None:
        answer = await self._ask("GET", _path(bucket, name))
        if answer.status_code == 404:
            return None
        answer.raise_for_status()
        return self._shown(answer.json())

    def _shown(self, resource: dict[str, Any]) -> dict[str, Any]:
        """As Google shows it, with uniform bucket-level access."""
        resource.pop("acl", None)
        if "generation" in resource:
            path = _path(resource["bucket"], resource["name"])
            query = f"generation={resource['generation']}&alt=media"
            resource |= {"selfLink": f"{self.address}{path}", "mediaLink": f"{self.address}/download{path}?{query}"}
        return resource

    async def _create(
        self, bucket: str, metadata: dict[str, Any], content: bytes, query: Mapping[str, str]
    ) -> dict[str, Any]:
        name = metadata["name"]
        if "acl" in metadata:
            raise Refused(400, "invalid", "Cannot use ACL API to update bucket policy when uniform access is enabled.")
        _check_hashes(metadata, content)
        async with self._locks[bucket, name]:
            _check_conditions(query, await self._resource(bucket, name))
            content_type = str(metadata.get("contentType") or "application/octet-stream")
            boundary, sent = _joined({**metadata, "contentType": content_type}, content_type, content)
            answer = await self._ask(
                "POST",
                f"/upload/storage/v1/b/{quote(bucket)}/o",
                params={"uploadType": "multipart"},
                content=sent,
                headers={"Content-Type": f"multipart/related; boundary={boundary}"},
            )
        answer.raise_for_status()
        if "kmsKeyName" in query:
            self.kms_keys[bucket, name] = query["kmsKeyName"]
        return self._shown(answer.json())

    async def _media(self, resource: Mapping[str, Any], asked: Mapping[str, str]) -> Response:
        wanted = {"Range": asked["range"]} if "range" in asked else {}
        answer = await self._ask(
            "GET", _path(resource["bucket"], resource["name"]), params={"alt": "media"}, headers=wanted
        )
        headers = {
            "Content-Type": resource.get("contentType", "application/octet-stream"),
            "ETag": f'"{base64.b64decode(resource["md5Hash"]).hex()}"',
            "Last-Modified": format_datetime(datetime.fromisoformat(resource["updated"]), usegmt=True),
            "X-Goog-Generation": resource["generation"],
            "X-Goog-Hash": f"crc32c={resource['crc32c']},md5={resource['md5Hash']}",
            "Accept-Ranges": "bytes",
            # Google's own for what everybody may read.
            "Cache-Control": resource.get("cacheControl", "public, max-age=3600"),
        }
        if resource.get("contentDisposition"):
            headers["Content-Disposition"] = resource["contentDisposition"]
        if "content-range" in answer.headers:
            headers["Content-Range"] = answer.headers["content-range"]
        return Response(answer.content, answer.status_code, headers)

    # ── Objects, as strangers ask for them ──────────────────────────────────────────────────────────────────────────

    async def xml_get(self, call: _Call) -> Response:
        bucket, name = call.path_params["bucket"], call.path_params["name"]
        signed = any(key.lower() == "x-goog-signature" for key in call.query)
        if signed:
            account = self._verify(call)
            if "storage.objects.get" not in account.permissions:
                raise Refused(403, "AccessDenied", f"{account.email} does not have storage.objects.get access.")
        elif not self._is_open(bucket, name):
            raise Refused(403, "AccessDenied", "Anonymous caller does not have storage.objects.get access.")
        if bucket not in self._buckets:
            raise Refused(404, "NoSuchBucket", "The specified bucket does not exist.")
        resource = await self._resource(bucket, name)
        if resource is None:
            raise Refused(404, "NoSuchKey", "The specified key does not exist.")
        if signed and "response-content-disposition" in call.query:
            resource["contentDisposition"] = call.query["response-content-disposition"]
        return await self._media(resource, call.headers)

    async def xml_other(self, call: _Call) -> Response:
        if "X-Goog-Signature" in call.query:
            self._verify(call)
            raise Refused(501, "NotImplemented", "not emulated: other methods by signed URL")
        raise Refused(403, "AccessDenied", "Anonymous caller does not have storage.objects.create access.")

    async def xml_post(self, call: _Call) -> Response:
        """An upload by a form with a policy document (V4)."""
        bucket = call.path_params["bucket"]
        async with call.form() as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise Refused(400, "InvalidArgument", "There is no file in the form.")
            fields = {name: str(value) for name, value in form.multi_items() if name != "file"}
            content = await file.read()
        account = self._verify_policy(fields, bucket, len(content))
        if "storage.objects.create" not in account.permissions:
            raise Refused(403, "AccessDenied", f"{account.email} does not have storage.objects.create access.")
        if bucket not in self._buckets:
            raise Refused(404, "NoSuchBucket", "The specified bucket does not exist.")
        metadata = {"name": fields["key"], "contentType": fields.get("Content-Type")}
        await self._create(bucket, metadata, content, {})
        return Response(status_code=204)

    def _verify_policy(self, fields: Mapping[str, str], bucket: str, size: int) -> Account:
        """Who signed a form: Refused where the signature does not prove it, not any more, or not for these fields."""
        try:
            algorithm, credential, date = (fields[f"x-goog-{name}"] for name in ("algorithm", "credential", "date"))
            signature, policy = (
                bytes.fromhex(fields["x-goog-signature"]),
                json.loads(base64.b64decode(fields["policy"])),
            )
            email, day, _, service, request_type = credential.split("/")
            expires = datetime.fromisoformat(policy["expiration"]).timestamp()
        except (KeyError, ValueError):
            raise Refused(400, "InvalidArgument", "A field of the form is missing or malformed.") from None
        account = self.accounts.get(email)
        if account is None or not account.verifies(signature, fields["policy"].encode()):
            raise Refused(403, "SignatureDoesNotMatch", "Access denied.")
        if (algorithm, service, request_type) != ("GOOG4-RSA-SHA256", "storage", "goog4_request") or day != date[:8]:
            raise Refused(400, "InvalidArgument", "A field of the form is not as it must be.")
        if self.now() > expires:
            raise Refused(400, "ExpiredToken", "Invalid argument.")
        unchecked = {"policy", "x-goog-signature"}
        said = {"bucket": bucket} | {name: value for name, value in fields.items() if name not in unchecked}
        for condition in policy["conditions"]:
            if isinstance(condition, dict):
                ((name, value),) = condition.items()
                if said.pop(name, None) != value:
                    raise Refused(403, "InvalidPolicyDocument", f"The form does not satisfy the policy: {name}.")
            elif condition[0] != "content-length-range":
                raise Refused(501, "NotImplemented", f"not emulated: {condition[0]}")
            elif not condition[1] <= size <= condition[2]:
                code = "EntityTooLarge" if size > condition[2] else "EntityTooSmall"
                raise Refused(400, code, "The size of the file does not satisfy the policy.")
        if said:
            raise Refused(403, "InvalidPolicyDocument", f"The policy says nothing of {sorted(said)}.")
        return account

    def _verify(self, call: _Call) -> Account:
        """Who signed a request in its query (V4): Refused where the signature does not prove it, or not any more."""
        pairs = parse_qsl(call.url.query, keep_blank_values=True)
        query = dict(pairs)
        try:
            algorithm, credential = query["X-Goog-Algorithm"], query["X-Goog-Credential"]
            date, lifetime = query["X-Goog-Date"], int(query["X-Goog-Expires"])
            signed_headers, signature = query["X-Goog-SignedHeaders"], bytes.fromhex(query["X-Goog-Signature"])
            email, day, region, service, request_type = credential.split("/")
            began = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        except (KeyError, ValueError):
            raise Refused(400, "InvalidArgument", "A parameter of the signature is missing or malformed.") from None
        if (
            len(query) != len(pairs)
            or algorithm != "GOOG4-RSA-SHA256"
            or day != date[:8]
            or (service, request_type) != ("storage", "goog4_request")
            or not 0 < lifetime <= LONGEST_SECONDS
            or "host" not in signed_headers.split(";")
        ):
            raise Refused(400, "InvalidArgument", "A parameter of the signature is not as it must be.")
        canonical = "\n".join(
            (
                call.method,
                quote(unquote(call.raw_path), safe="/~"),
                "&".join(
                    f"{quote(key, safe='~')}={quote(value, safe='~')}"
                    for key, value in sorted(pairs)
                    if key != "X-Goog-Signature"
                ),
                *(f"{header}:{call.headers.get(header, '').strip()}" for header in signed_headers.split(";")),
                "",
                signed_headers,
                call.headers.get("x-goog-content-sha256", "UNSIGNED-PAYLOAD"),
            )
        )
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        string = f"{algorithm}\n{date}\n{day}/{region}/{service}/{request_type}\n{digest}"
        account = self.accounts.get(email)
        if account is None or not account.verifies(signature, string.encode()):
            raise Refused(403, "SignatureDoesNotMatch", "Access denied.")
        if self.now() < began - SKEW_SECONDS:
            raise Refused(403, "RequestNotYetValid", "Request is not yet valid.")
        if self.now() > began + lifetime:
            raise Refused(400, "ExpiredToken", "Invalid argument.")
        return account


_ROUTES: Final[tuple[tuple[re.Pattern[str], dict[str, tuple[str, Handler]]], ...]] = (
    (re.compile("/token"), {"POST": ("token", GcsProxy.token)}),
    (re.compile("/|/computeMetadata/v1/.*"), {"GET": ("metadata", GcsProxy.machine)}),
    (_SIGN, {"POST": ("signBlob", GcsProxy.sign_blob)}),
    (_REWRITE, {"POST": ("objects.rewrite", GcsProxy.rewrite)}),
    (_OBJECT, {"GET": ("objects.get", GcsProxy.get), "DELETE": ("objects.delete", GcsProxy.delete)}),
    (_LIST, {"GET": ("objects.list", GcsProxy.list)}),
    (_BUCKET, {"GET": ("buckets.get", GcsProxy.bucket)}),
    (
        _UPLOAD,
        {
            "POST": ("objects.insert", GcsProxy.insert),
            "PUT": ("objects.resume", GcsProxy.resume),
            "DELETE": ("objects.giveUp", GcsProxy.give_up),
        },
    ),
    (_FORM, {"POST": ("xml.post", GcsProxy.xml_post)}),
    (
        _XML,
        {
            "GET": ("xml.get", GcsProxy.xml_get),
            "HEAD": ("xml.get", GcsProxy.xml_get),
            "PUT": ("xml.put", GcsProxy.xml_other),
            "DELETE": ("xml.delete", GcsProxy.xml_other),
        },
    ),
)


def _check_conditions(query: Mapping[str, str], resource: Mapping[str, Any] | None) -> None:
    """Whether the object is of the generation a request is conditional on; 0 says that there be none."""
    for name, value in query.items():
        if name.startswith("if") and name != "ifGenerationMatch":
            raise Refused(501, "notImplemented", f"not emulated: {name}")
        if name == "ifGenerationMatch" and value != (resource["generation"] if resource else "0"):
            raise Refused(412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")


def _check_hashes(metadata: Mapping[str, Any], content: bytes) -> None:
    calculated = {
        "md5Hash": ("MD5 hash", base64.b64encode(hashlib.md5(content).digest()).decode()),
        "crc32c": ("CRC32C", base64.b64encode(google_crc32c.value(content).to_bytes(4)).decode()),
    }
    for name, (title, value) in calculated.items():
        provided = metadata.get(name)
        if provided is not None and provided != value:
            raise Refused(400, "invalid", f'Provided {title} "{provided}" doesn\'t match calculated {title} "{value}".')


def _no_object(bucket: str, name: str) -> Refused:
    return Refused(404, "notFound", f"No such object: {bucket}/{name}")


def _path(bucket: str, name: str) -> str:
    return f"/storage/v1/b/{quote(bucket)}/o/{quote(name, safe='')}"


def _parts(body: bytes) -> tuple[dict[str, Any], bytes]:
    """The metadata and the content of a multipart/related body."""
    boundary = body[: body.index(b"\r\n")]
    end = b"\r\n" + boundary + b"--"
    if not body.rstrip(b"\r\n").endswith(end):
        raise Refused(400, "badRequest", "Malformed multipart body.")
    first, _, second = body[len(boundary) : body.rindex(end)].partition(b"\r\n" + boundary)
    head, _, content = second.partition(b"\r\n\r\n")
    content_type = re.search(rb"(?i)^content-type: *([^\r\n]+)", head, re.MULTILINE)
    try:
        metadata: dict[str, Any] = json.loads(first.partition(b"\r\n\r\n")[2])
    except ValueError:
        raise Refused(400, "parseError", "Parse Error") from None
    return ({"contentType": content_type[1].decode()} if content_type else {}) | metadata, content


def _joined(metadata: Mapping[str, Any], content_type: str, content: bytes) -> tuple[str, bytes]:
    boundary = secrets.token_hex(16)
    head = (
        f"--{boundary}\r\nContent-Type: application/json\r\n\r\n{json.dumps(metadata)}\r\n"
        f"--{boundary}\r\nContent-Type: {content_type}\r\n\r\n"
    )
    return boundary, head.encode() + content + f"\r\n--{boundary}--".encode()


def _is_signed(key: rsa.RSAPrivateKey, signature: bytes, message: bytes) -> bool:
    try:
        key.public_key().verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature:
        return False
    return True


def _unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _invalid_grant(description: str) -> Response:
    return JSONResponse({"error": "invalid_grant", "error_description": description}, 400)
