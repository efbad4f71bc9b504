"""Requests, written down in the ledger as they are answered, or not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import cache
from itertools import count
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

import httpx

from tests import images
from tests.torture.ledger import Answer, Asset, Fate, Ledger, Upload
from tests.torture.steps import A_LATER_SIZE, A_SIZE

SIZES = (A_SIZE, "60x60", "x40")
LATER_SIZES = (A_LATER_SIZE, "x30")
SOURCE_SIDES = (240, 180)
RETRY_SECONDS = 60
CREDITS = 10**9
"""What the owner of everything is granted, once."""
_PICTURES = 40
_TRANSIENT = {409, 503}


class Unanswered(Exception):
    """The connection broke before the answer had come."""


@cache
def photo(number: int) -> bytes:
    """A small JPEG, one for each number."""
    return images.jpeg(*SOURCE_SIDES, seed=number)


@cache
def large() -> bytes:
    """More than an upload keeps in memory, and too much for one read of the socket."""
    return photo(0) + Random(0).randbytes(1_500_000)


@cache
def damaged() -> bytes:
    """An image by its header, and none by its pixels."""
    whole = images.png(*SOURCE_SIDES)
    middle = len(whole) // 2
    return whole[:middle] + bytes(64) + whole[middle + 64 :]


class Callers:
    """Everybody who calls the services over one data directory."""

    def __init__(self, ledger: Ledger, storage: str) -> None:
        """Uploads name the storage they are for."""
        self.strange: list[str] = []
        """Answers that nobody should get, whatever happens to the process."""
        self.answers = 0
        """How many have come."""
        self.uploads = 0
        """Requests for uploads, each sent once or more."""
        self._ledger = ledger
        self.storage = storage
        self._numbers = count(1)
        # One for all: making one costs as much as many requests.
        self._client = httpx.AsyncClient(timeout=60, trust_env=False, verify=False, follow_redirects=True)

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    def new_upload(
        self,
        *contents: bytes,
        sizes: Sequence[str] = (),
        visibility: str = "public",
        batch: bool = False,
        keyed: bool = False,
        media_type: str | None = None,
    ) -> Upload:
        """A request that was not sent yet; without contents, of a picture."""
        number = next(self._numbers)
        files = contents or (photo(number % _PICTURES),)
        key = f"key-{number}" if keyed else None
        upload = Upload(f"request-{number}", files, tuple(sizes), visibility, self.storage, batch, key, media_type)
        self._ledger.uploads[upload.tag] = upload
        self.uploads += 1
        return upload

    def new_batch(
        self, files: int, *, sizes: Sequence[str] = SIZES[:2], visibility: str = "public", keyed: bool = False
    ) -> Upload:
        """A request of several pictures, each another."""
        first = next(self._numbers)
        contents = [photo((first + number) % _PICTURES) for number in range(files)]
        return self.new_upload(*contents, sizes=sizes, batch=True, keyed=keyed, visibility=visibility)

    async def send(self, service: str, upload: Upload) -> int:
        """Send it to a service; the status. Of a request under a key, an invitation to try again settles nothing."""
        query = {"tags": upload.tag, "visibility": upload.visibility, "storage": self.storage}
        if upload.sizes:
            query["sizes"] = ",".join(upload.sizes)
        if upload.ticket is not None:
            return await self._use(service, upload, upload.ticket)
        headers = {"Idempotency-Key": upload.key} if upload.key else {}
        path = f"{service}/api/v1/assets" + ("/batch" if upload.batch else "")
        if upload.media_type is not None:
            headers["Content-Type"] = upload.media_type
            answer = await self._call("POST", path, params=query, headers=headers, content=upload.contents[0])
        else:
            field = "files" if upload.batch else "file"
            files = [(field, (f"{number}.jpg", content)) for number, content in enumerate(upload.contents)]
            answer = await self._call("POST", path, params=query, headers=headers, files=files)
        self._note(upload, answer)
        return answer.status_code

    async def new_ticket(self, service: str, *, to: str | None = None) -> Upload:
        """A request that was not sent yet, with a ticket: to the service, or about what already lies in the storage
        `to`."""
        upload = self.new_upload(sizes=SIZES)
        upload.storage = to or self.storage
        query = {"tags": upload.tag, "visibility": upload.visibility, "storage": upload.storage}
        query["sizes"] = ",".join(upload.sizes)
        wanted = {"upload": "bucket" if to else "service"}
        made = (await self._call("POST", f"{service}/api/v1/upload-tickets", params=query, json=wanted)).json()
        if to:
            path = Path(urlsplit(made["url"]).path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(upload.contents[0])
        url = urlsplit(made["complete_url"] or made["url"])
        upload.key = upload.ticket = f"{url.path}?{url.query}"
        return upload

    async def _use(self, service: str, upload: Upload, ticket: str) -> int:
        files = {} if "/complete?" in ticket else {"files": {"file": ("a.jpg", upload.contents[0])}}
        answer = await self._call("POST", f"{service}{ticket}", **files)
        self._note(upload, answer)
        return answer.status_code

    def _note(self, upload: Upload, answer: httpx.Response) -> None:
        if upload.key and answer.status_code in _TRANSIENT:
            return
        ids = []
        if answer.is_success:
            told = answer.json()
            ids = [asset["id"] for asset in (told["assets"] if upload.batch else [told])]
        if upload.answer is not Answer.NONE:
            # The second answer to the same request: meanwhile somebody may have changed what the first one made, or
            # deleted some of it.
            deleted = answer.status_code == 410 and any(asset.fate is not Fate.KEPT for asset in upload.assets)
            if not deleted and ids != [asset.id for asset in upload.assets]:
                self.strange.append(f"{upload.tag}: answered {answer.status_code} {ids or answer.text} after {upload}")
        elif ids:
            upload.made(ids)
        else:
            upload.answer = Answer.REFUSED
        upload.replayed = answer.headers.get("idempotency-replayed") == "true"

    async def top_up(self, service: str) -> None:
        """Have more credits than anybody can spend; the second time, too, no more than that."""
        query = {"owner": "default", "amount": CREDITS}
        key = {"Idempotency-Key": "top-up"}
        answer = await self._call("POST", f"{service}/api/v1/credits", json=query, headers=key)
        if answer.status_code != 201:
            self.strange.append(f"a grant was answered {answer.status_code}")

    async def retry(self, service: str) -> None:
        """Send again, until it is answered, what was sent under a key and never was."""
        await asyncio.gather(*(self._retry(service, upload) for upload in self._ledger.to_retry()))

    async def _retry(self, service: str, upload: Upload) -> None:
        deadline = time.monotonic() + RETRY_SECONDS
        while upload.answer is Answer.NONE:
            status = await self.send(service, upload)
            if time.monotonic() > deadline:
                self.strange.append(f"{upload.tag}: still {status} after {RETRY_SECONDS} seconds of retries")
                return
            if upload.answer is Answer.NONE:
                await asyncio.sleep(0.1)

    async def delete(self, service: str, asset: Asset) -> int:
        """Delete it; the status."""
        asset.fate = Fate.UNSURE
        answer = await self._call("DELETE", f"{service}/api/v1/assets/{asset.id}")
        if answer.status_code == 204:
            asset.fate = Fate.GONE
        elif answer.status_code == 404:
            self.strange.append(f"{asset.id}: was there, and cannot be found to be deleted")
        return answer.status_code

    async def change(self, service: str, asset: Asset, visibility: str) -> int:
        """Change its visibility; the status."""
        asset.visibilities.add(visibility)
        answer = await self._call("PATCH", f"{service}/api/v1/assets/{asset.id}", json={"visibility": visibility})
        if answer.status_code == 200:
            asset.visibilities = {visibility}
        elif answer.status_code == 404:
            self.strange.append(f"{asset.id}: was there, and cannot be found to be changed")
        return answer.status_code

    async def grow(self, service: str, asset: Asset) -> int:
        """Ask for more sizes of it; the status."""
        asset.added.add(LATER_SIZES)
        query = {"sizes": ",".join(LATER_SIZES)}
        answer = await self._call("POST", f"{service}/api/v1/assets/{asset.id}/variants", params=query)
        if answer.status_code == 200:
            asset.added = {LATER_SIZES}
        elif answer.status_code == 404:
            self.strange.append(f"{asset.id}: was there, and cannot be found to get more sizes")
        return answer.status_code

    async def move(self, service: str, asset: Asset, storage: str) -> int:
        """Move it to another storage; the status."""
        asset.storages.add(storage)
        answer = await self._call("POST", f"{service}/api/v1/assets/{asset.id}/move", params={"storage": storage})
        if answer.status_code == 200:
            asset.storages = {storage}
        elif answer.status_code == 404:
            self.strange.append(f"{asset.id}: was there, and cannot be found to be moved")
        return answer.status_code

    async def look(self, service: str, asset: Asset) -> None:
        """Fetch it, and all its bytes, as callers do: it is there, or it is not."""
        answer = await self._call("GET", f"{service}/api/v1/assets/{asset.id}")
        if asset.fate is Fate.GONE:
            if answer.status_code != 404:
                self.strange.append(f"{asset.id}: deleted, and answered {answer.status_code}")
            return
        if answer.status_code != 200:
            self.strange.append(f"{asset.id}: there, and answered {answer.status_code}")
            return
        told = answer.json()
        if {told["visibility"]} != asset.visibilities:
            self.strange.append(f"{asset.id}: said to be {told['visibility']}")
        if asset.added != {tuple(variant["size"] for variant in told["variants"])[len(asset.sizes) :]}:
            self.strange.append(f"{asset.id}: said to have the sizes {told['variants']}")
        if {told["storage"]} != asset.storages:
            self.strange.append(f"{asset.id}: said to be in {told['storage']}")
        for part in (told, *told["variants"]):
            fetched = await self._call("GET", part["url"].replace(_origin(part["url"]), service))
            if (fetched.status_code, len(fetched.content)) != (200, part["size_bytes"]):
                self.strange.append(f"{asset.id}: {part['url']} answered {fetched.status_code}")
            open_to_all = await self._call("GET", part["url"].replace("/private/", "/public/").partition("?")[0])
            if told["visibility"] == "private" and open_to_all.status_code != 404:
                self.strange.append(f"{asset.id}: private, and open to all at {open_to_all.url}")

    async def _call(self, method: str, url: str, **what: object) -> httpx.Response:
        try:
            answer = await self._client.request(method, url, **what)  # type: ignore[arg-type]
        except httpx.TransportError as error:
            raise Unanswered(f"{method} {url}") from error
        self.answers += 1
        if answer.status_code == 500:
            self.strange.append(f"{method} {url}: {answer.text}")
        return answer


def _origin(url: str) -> str:
    parts = httpx.URL(url)
    return f"{parts.scheme}://{parts.netloc.decode()}"
