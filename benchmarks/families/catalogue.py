"""What the library answers as it grows: pages and single assets at a million beside a thousand, over one connection.

And beside the way small services often keep a library: one JSON file for each image, all of them read for every list.
That scan is called in process, its files in the page cache; ours is a request over HTTP.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from benchmarks import load, photographs
from benchmarks.load import Requests
from benchmarks.machine import pinned
from benchmarks.rounds import MILLISECONDS, Case, Outcome, Run
from benchmarks.servers import service
from benchmarks.table import Target, ratio, speedup
from smart_assets.api.presenting import write_cursor

TITLE = "The library, by the number of assets"
SUBTITLE = "time of one request over one connection"

THOUSAND, HUNDRED_THOUSAND, MILLION = 1_000, 100_000, 1_000_000
_GROWTH = Target(1.5, at_most=True)
_SCAN = Target(1000)
_PAGE = 50
_LOOKED_AT = 500
"""Assets, spread over the whole library, that are asked for in turn."""


def measure(run: Run) -> Outcome:
    """Both libraries, and the scan."""
    with ExitStack() as stack:
        libraries = {size: _Library(run, stack, size) for size in (THOUSAND, HUNDRED_THOUSAND, MILLION)}
        sidecars = run.new_folder("sidecars")
        run.say("one JSON file for each of 100,000 images")
        write_sidecars(sidecars, HUNDRED_THOUSAND)
        small, middle, large = libraries.values()
        pairs = {
            "list a page": (large.case("list"), small.case("list")),
            "get one": (large.case("get"), small.case("get")),
        }
        scans = {
            "first page": (middle.case("first page"), _scan(run, "list", sidecars, list_newest)),
            "statistics": (middle.case("statistics"), _scan(run, "statistics", sidecars, statistics)),
        }
        cases = [case for pair in (*pairs.values(), *scans.values()) for case in pair]
        run.take_turns(cases, warm_up=cases[:5])
    rows = [
        ratio(f"{what}, 1,000,000 : 1,000", many.series(MILLISECONDS), few.series(MILLISECONDS), _GROWTH)
        for what, (many, few) in pairs.items()
    ]
    rows += [
        speedup(f"{what} of 100,000, than JSON files", ours.series(MILLISECONDS), scan.series(MILLISECONDS), _SCAN)
        for what, (ours, scan) in scans.items()
    ]
    return Outcome(rows, [series for case in cases for series in case.all_series()])


class _Library:
    """A service over so many assets."""

    def __init__(self, run: Run, stack: ExitStack, size: int) -> None:
        folder = run.new_folder(str(size))
        small = photographs.SMALL
        with service(folder, on=run.cores.both) as first:
            first.post("/api/v1/assets?tags=trip", small.content, {"Content-Type": small.content_type})
        run.say(f"{size:,} assets")
        with closing(sqlite3.connect(next((folder / "data").glob("*.sqlite3")))) as database:
            self._ids = multiply(database, size)
        self._size, self._folder = size, folder
        self._server = stack.enter_context(service(folder, on=run.cores.server))

    def case(self, what: str) -> Case:
        """Milliseconds of a request."""
        # Not the oldest: after them there is no whole page left.
        spread = self._ids[_PAGE :: len(self._ids) // _LOOKED_AT]
        base = "/api/v1/assets"
        paths = {
            "list": [f"{base}?limit={_PAGE}&cursor={write_cursor(found)}" for found in spread],
            "first page": [f"{base}?limit={_PAGE}"],
            "get": [f"{base}/{found}" for found in spread],
            "statistics": ["/api/v1/stats"],
        }[what]
        random.Random(1).shuffle(paths)
        requests = Requests(self._folder, paths, headers=self._server.headers)

        def measure() -> dict[str, float]:
            found = load.run(self._server.url, requests, connections=1, seconds=1)
            return {MILLISECONDS: 1000 * found.seconds / found.requests}

        return Case(f"{what} at {self._size:,}", measure)


def multiply(database: sqlite3.Connection, size: int) -> list[UUID]:
    """Make the one asset that a service has stored `size` of them, a second apart; their ids, the oldest first.

    Straight into the tables and their indexes: a million uploads would take an hour.
    """
    database.execute("PRAGMA journal_mode=OFF")
    database.execute("PRAGMA synchronous=OFF")
    columns = [column[1] for column in database.execute("PRAGMA table_info(assets)")]
    (template,) = database.execute(f"SELECT {', '.join(columns)} FROM assets")
    database.execute("DELETE FROM assets")
    ids: list[UUID] = []
    changing = [columns.index(name) for name in ("id", "created_at", "updated_at", "filename", "filename_folded")]

    def rows() -> Iterator[list[Any]]:
        dice = random.Random(size)
        begin = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=size)
        for place in range(size):
            when = begin + timedelta(seconds=place)
            asset_id = UUID(int=int(when.timestamp() * 1000) << 80 | 7 << 76 | 2 << 62 | dice.getrandbits(62))
            ids.append(asset_id)
            row, moment, filename = list(template), when.strftime("%Y-%m-%d %H:%M:%S.%f"), f"photo {place}.jpg"
            for column, value in zip(changing, (asset_id.hex, moment, moment, filename, filename), strict=True):
                row[column] = value
            yield row

    database.executemany(f"INSERT INTO assets VALUES ({', '.join('?' * len(columns))})", rows())
    database.execute("UPDATE storage_totals SET assets = ?, bytes = bytes * ?", (size, size))
    database.commit()
    return ids


def _scan(run: Run, what: str, folder: Path, look: Callable[[Path], object]) -> Case:
    def measure() -> dict[str, float]:
        with pinned(run.cores.server):
            begin = time.perf_counter()
            look(folder)
            return {MILLISECONDS: 1000 * (time.perf_counter() - begin)}

    return Case(f"{what} by a scan of JSON files", measure)


def write_sidecars(folder: Path, count: int) -> None:
    """What one JSON file for each image looks like, in folders by date."""
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    for place in range(count):
        when = begin + timedelta(minutes=place)
        day = folder / when.strftime("%Y-%m-%d")
        if place % (24 * 60) == 0:
            day.mkdir()
        sidecar = {
            "image_id": f"{place:032x}",
            "filename": f"photo {place}.jpg",
            "content_type": "image/jpeg",
            "size_bytes": 20_000 + place,
            "width": 304,
            "height": 228,
            "url": f"http://localhost/images/{place:032x}.jpg",
            "tags": ["trip"],
            "created_at": when.isoformat(),
        }
        (day / f"{place:032x}.json").write_text(json.dumps(sidecar))


def list_newest(folder: Path) -> list[dict[str, Any]]:
    """The newest images, as those services list them that keep one JSON file for each."""
    found = list(_read_all(folder))
    found.sort(key=lambda image: str(image["created_at"]), reverse=True)
    return found[:_PAGE]


def statistics(folder: Path) -> dict[str, Any]:
    """Count, bytes, oldest and newest, likewise."""
    count, size, oldest, newest = 0, 0, "", ""
    for image in _read_all(folder):
        count, size = count + 1, size + image["size_bytes"]
        oldest = min(oldest or image["created_at"], image["created_at"])
        newest = max(newest, image["created_at"])
    return {"count": count, "bytes": size, "oldest": oldest, "newest": newest}


def _read_all(folder: Path) -> Iterator[dict[str, Any]]:
    for directory, _, names in os.walk(folder):
        for name in names:
            with open(f"{directory}/{name}", encoding="utf-8") as file:  # noqa: PTH123 - as fast as it can be had
                yield json.load(file)
