"""Load: many connections of mixed uploads, reads and deletions against the real service, and what that leaves behind.

    python -m tests.load --minutes 10

No request may be answered 5xx or with other bytes than were sent; what the service takes of the machine must not grow
once it is warm; and in the end catalogue and disk must agree, with each other and with what callers were told.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit
from uuid import UUID

from tests import images
from tests.faults.process import ServiceProcess, Usage, audit, rows, usage

CONNECTIONS: Final = 64
SAMPLE_SECONDS: Final = 0.25

MEMORY_GROWTH: Final = 8 * 1024 * 1024
FILES_GROWTH: Final = 12
THREADS_GROWTH: Final = 8
"""By how much the medians of the third and the fourth quarter of the time may differ. What leaks with every request, or
every tenth, grows by more."""

_KEPT: Final = 8
"""Assets each caller keeps at a time."""
_IDLE_SECONDS: Final = 2
_BOUNDARY: Final = "-------------load"
_UNKNOWN: Final = UUID(int=7 << 76 | 2 << 62)


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body's value."""
        return json.loads(self.body)


class Connection:
    """One connection, kept alive: a client that costs little, so that the load is the service's."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._used = 0.0

    async def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request, and its whole answer."""
        if time.monotonic() - self._used > _IDLE_SECONDS:  # the other end may be about to hang up
            await self.close()
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address, limit=1024 * 1024)
        reader, writer = self._streams
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        writer.write("\r\n".join([*lines, "", ""]).encode() + (body or b""))
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(head[0].split(" ")[1])
        received = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
        length = 0 if method == "HEAD" or status in {204, 304} else int(received["content-length"])
        answer = Answer(status, received, await reader.readexactly(length))
        self._used = time.monotonic()
        if received.get("connection") == "close":
            await self.close()
        return answer

    async def close(self) -> None:
        """Hang up."""
        if self._streams is not None:
            _, writer = self._streams
            self._streams = None
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


@dataclass
class Report:
    """What came of it."""

    seconds: float = 0.0
    connections: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """Answers that should have been others, and whatever catalogue, disk and callers disagree about."""
    samples: list[Usage] = field(default_factory=list)
    exit_code: int | None = None

    @property
    def failures(self) -> int:
        """Answers 5xx."""
        return sum(number for status, number in self.statuses.items() if status >= 500)

    def grown(self) -> list[str]:
        """What was taken of the machine and not given back."""
        before, after = self.quarter(3), self.quarter(4)
        bounds = Usage(MEMORY_GROWTH, FILES_GROWTH, THREADS_GROWTH)
        return [
            f"{name}: {was} in the third quarter, {now} in the fourth"
            for name, was, now, most in zip(vars(before), *(vars(each).values() for each in (before, after, bounds)))  # noqa: B905
            if now - was > most
        ]

    def quarter(self, number: int) -> Usage:
        """The medians of what was taken in a quarter of the time, from 1 to 4."""
        size = len(self.samples) / 4
        samples = self.samples[int((number - 1) * size) : int(number * size)]
        return Usage(*(int(median(column)) for column in zip(*(vars(each).values() for each in samples), strict=True)))

    def summary(self) -> str:
        """One line."""
        third, fourth = self.quarter(3), self.quarter(4)
        kinds = ", ".join(f"{number} {kind}" for kind, number in self.requests.most_common())
        return (
            f"{self.requests.total()} requests over {self.connections} connections in {self.seconds:.0f} s ({kinds}): "
            f"{self.failures} answered 5xx, {len(self.wrong)} wrong; from the third quarter to the fourth "
            f"{third.memory / 1e6:.0f} to {fourth.memory / 1e6:.0f} MB, {third.files} to {fourth.files} files, "
            f"{third.threads} to {fourth.threads} threads"
        )


@dataclass
class Kept:
    """An asset as its caller knows it."""

    shown: dict[str, Any]
    sha256: str


class Crowd:
    """What all callers share."""

    def __init__(self, report: Report, seed: int) -> None:
        self.report = report
        self.seed = seed
        self.numbers = count()
        self.originals = [
            images.jpeg(64, 48, seed=1),
            images.jpeg(320, 240, seed=2, metadata=True),
            images.jpeg(1200, 900, seed=3),
            images.jpeg(640, 480, seed=4) + bytes(1_500_000),  # goes to the disk on its way in
            images.png(160, 120, seed=5, mode="RGBA"),
            images.webp(160, 120, seed=6),
            images.animated_gif(80, 60),
        ]
        self.keys: dict[str, tuple[bytes, str, str]] = {}

    def image(self, chance: random.Random) -> bytes:
        """One whose bytes are those of no other; what follows an image's end is kept and not looked at."""
        return chance.choice(self.originals) + next(self.numbers).to_bytes(8, "big")


class Caller:
    """One of many: keeps some assets, and looks after them over one connection."""

    def __init__(self, crowd: Crowd, number: int, host: str, port: int) -> None:
        self._crowd = crowd
        self._report = crowd.report
        self._chance = random.Random(f"{crowd.seed}/{number}")
        self._connection = Connection(host, port)
        self.kept: list[Kept] = []
        self.deleted: list[str] = []

    async def call_until(self, end: float) -> None:
        """One request after another."""
        ways: dict[Callable[[], Awaitable[None]], int] = {
            self._upload: 18,
            self._upload_with_sizes: 5,
            self._upload_batch: 3,
            self._upload_twice: 4,
            self._upload_refused: 2,
            self._read: 14,
            self._fetch: 24,
            self._content: 8,
            self._list: 6,
            self._miss: 3,
            self._change: 4,
            self._delete: 9,
        }
        try:
            while time.monotonic() < end:
                full = len(self.kept) >= _KEPT
                way = self._delete if full else self._chance.choices(list(ways), list(ways.values()))[0]
                await way()
        except (OSError, asyncio.IncompleteReadError) as error:
            self._report.wrong.append(f"a connection broke: {error!r}")
        finally:
            await self._connection.close()

    # ── What it does ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _upload(self) -> None:
        image = self._crowd.image(self._chance)
        query = {"visibility": self._visibility(), "filename": f"ä {self._chance.random()}.jpg", "tags": "load"}
        answer = await self._post("upload", query, image, "image/jpeg")
        if self._expect(answer, 201, "an upload"):
            self._keep(answer.json(), image)

    async def _upload_with_sizes(self) -> None:
        image = self._crowd.image(self._chance)
        query = {
            "visibility": self._visibility(),
            "sizes": self._chance.choice(("thumbnail", "100,50", "80x80,x40")),
            "fit": self._chance.choice(("inside", "cover")),
        }
        answer = await self._post("upload with sizes", query, *form("file", image))
        if self._expect(answer, 201, "an upload with sizes"):
            self._keep(answer.json(), image)

    async def _upload_batch(self) -> None:
        batch = [self._crowd.image(self._chance) for _ in range(3)]
        answer = await self._post("batch", {"visibility": self._visibility()}, *form("files", *batch), path="/batch")
        if self._expect(answer, 201, "a batch"):
            for asset, image in zip(answer.json()["assets"], batch, strict=True):
                self._keep(asset, image)

    async def _upload_twice(self) -> None:
        image, headers = self._crowd.image(self._chance), {"Idempotency-Key": f"key {next(self._crowd.numbers)}"}
        first = await self._post("upload", {}, image, "image/jpeg", headers)
        again = await self._post("replay", {}, image, "image/jpeg", headers)
        if self._expect(first, 201, "an upload under a key") and self._expect(again, 201, "the same again"):
            if first.json()["id"] != again.json()["id"] or again.headers.get("idempotency-replayed") != "true":
                self._report.wrong.append("an upload was carried out twice under one key")
            self._keep(first.json(), image)

    async def _upload_refused(self) -> None:
        content, kind, status = self._chance.choice(
            (
                (b"not an image", "image/jpeg", 415),
                (self._crowd.originals[1][:5_000], "image/jpeg", 422),
                (b"", "image/png", 422),
                (b"x", "text/plain", 415),
            )
        )
        self._expect(await self._post("refused upload", {"sizes": "40"}, content, kind), status, "a refused upload")

    async def _read(self) -> None:
        if self.kept:
            kept = self._chance.choice(self.kept)
            answer = await self._ask("read", "GET", api(kept))
            if self._expect(answer, 200, "an asset") and answer.json()["sha256"] != kept.sha256:
                self._report.wrong.append(f"{kept.shown['id']} is described as another")

    async def _fetch(self) -> None:
        """An original or a size, by its address: public or signed."""
        if self.kept:
            kept = self._chance.choice(self.kept)
            part = self._chance.choice([kept.shown, *kept.shown["variants"]])
            parts = urlsplit(part["url"])
            path = f"{parts.path}?{parts.query}" if parts.query else parts.path
            answer = await self._ask("fetch", "GET", path)
            if self._expect(answer, 200, f"the bytes at {parts.path}"):
                right = len(answer.body) == part["size_bytes"]
                if part is kept.shown:
                    right = sha256(answer.body).hexdigest() == kept.sha256
                if not right:
                    self._report.wrong.append(f"other bytes at {parts.path}")

    async def _content(self) -> None:
        if self.kept:
            kept = self._chance.choice(self.kept)
            answer = await self._ask("content", "GET", f"{api(kept)}/content", headers={"Range": "bytes=0-999"})
            if self._expect(answer, 206, "a range") and len(answer.body) != min(kept.shown["size_bytes"], 1000):
                self._report.wrong.append("a range of another length")

    async def _list(self) -> None:
        query = self._chance.choice(("limit=20", "limit=50&tag=load", "q=%C3%A4&limit=5", "visibility=private"))
        answer = await self._ask("list", "GET", f"/api/v1/assets?{query}")
        self._expect(answer, 200, "a list")

    async def _miss(self) -> None:
        gone = self._chance.choice(self.deleted) if self.deleted else str(_UNKNOWN)
        self._expect(await self._ask("read", "GET", f"/api/v1/assets/{gone}"), 404, "what is deleted")

    async def _change(self) -> None:
        if self.kept:
            kept = self._chance.choice(self.kept)
            change = {"visibility": self._visibility(), "metadata": {"n": self._chance.random()}}
            body, headers = json.dumps(change).encode(), {"Content-Type": "application/json"}
            answer = await self._ask("change", "PATCH", api(kept), body, headers)
            if self._expect(answer, 200, "a change"):
                kept.shown = answer.json()

    async def _delete(self) -> None:
        if self.kept:
            kept = self.kept.pop(self._chance.randrange(len(self.kept)))
            answer = await self._ask("delete", "DELETE", api(kept))
            if self._expect(answer, 204, "a deletion"):
                self.deleted = [*self.deleted[-20:], kept.shown["id"]]
            else:
                self.kept.append(kept)

    # ── How ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _visibility(self) -> str:
        return self._chance.choice(("public", "private"))

    def _keep(self, shown: dict[str, Any], image: bytes) -> None:
        digest = sha256(image).hexdigest()
        if shown["sha256"] != digest:
            self._report.wrong.append(f"{shown['id']} is said to have other bytes than were sent")
        self.kept.append(Kept(shown, digest))

    async def _post(
        self,
        kind: str,
        query: Mapping[str, str],
        body: bytes,
        content_type: str,
        headers: Mapping[str, str] | None = None,
        *,
        path: str = "",
    ) -> Answer:
        where = f"/api/v1/assets{path}?{urlencode(query, quote_via=quote)}"
        return await self._ask(kind, "POST", where, body, {"Content-Type": content_type, **(headers or {})})

    async def _ask(
        self, kind: str, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        answer = await self._connection.request(method, path, body, headers)
        self._report.requests[kind] += 1
        self._report.statuses[answer.status] += 1
        return answer

    def _expect(self, answer: Answer, status: int, what: str) -> bool:
        if answer.status != status:
            self._report.wrong.append(f"{what} was answered {answer.status}: {answer.body[:300]!r}")
        return answer.status == status


def api(kept: Kept) -> str:
    """Where the API has it."""
    return f"/api/v1/assets/{kept.shown['id']}"


def form(name: str, *files: bytes) -> tuple[bytes, str]:
    """A form's body and type."""
    body = b"".join(
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="{number}.jpg"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for number, content in enumerate(files)
    )
    return body + f"--{_BOUNDARY}--\r\n".encode(), f"multipart/form-data; boundary={_BOUNDARY}"


async def load(folder: Path, *, seconds: float, connections: int = CONNECTIONS, seed: int = 0) -> Report:
    """Put a service in `folder` under load for so long, let it stop, and look at what is left."""
    report = Report(connections=connections)
    crowd = Crowd(report, seed)
    with ServiceProcess(folder, ASSETS_LOG_LEVEL="warning") as service:
        callers = [Caller(crowd, number, *service.address) for number in range(connections)]
        began = time.monotonic()
        sampling = asyncio.create_task(_sample(service.pid, report))
        try:
            await asyncio.gather(*(caller.call_until(began + seconds) for caller in callers))
        finally:
            sampling.cancel()
        report.seconds = time.monotonic() - began
        report.wrong += audit(service.data)
        report.exit_code = await asyncio.to_thread(service.stop)
        report.wrong += audit(service.data, stopped=True)
        known = {kept.shown["id"] for caller in callers for kept in caller.kept}
        there = {str(UUID(row["id"])) for row in rows(service.data)}
        report.wrong += [f"lost: {asset_id}" for asset_id in known - there]
        report.wrong += [f"confirmed to nobody, or as deleted: {asset_id}" for asset_id in there - known]
        report.wrong += [f"logged: {line[:500]}" for line in service.text.splitlines() if '"level": "ERROR"' in line]
    return report


async def _sample(pid: int, report: Report) -> None:
    while True:
        report.samples.append(await asyncio.to_thread(usage, pid))
        await asyncio.sleep(SAMPLE_SECONDS)


def main() -> int:
    """The command; 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=0.5)
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        seconds, connections = arguments.minutes * 60, arguments.connections
        report = asyncio.run(load(Path(folder), seconds=seconds, connections=connections, seed=arguments.seed))
    problems = report.wrong + [f"grown: {what}" for what in report.grown()]
    for problem in problems[:40]:
        print(problem)
    print(report.summary())
    return 1 if problems or report.failures or report.exit_code else 0


if __name__ == "__main__":
    sys.exit(main())
