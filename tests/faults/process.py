"""The real service as a process of its own, what it takes of the machine, and an audit of what it left behind.

The audit asks nobody of ours: it reads the catalogue with its own driver and the folder with the system, and
computes keys, hashes and sums anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from uuid import UUID, uuid4

import httpx

from smart_assets.settings import PREFIX
from tests.tables import keep_elsewhere, tables_of, wrong_credits

COMMAND: Final = (str(Path(sys.executable).with_name("smart-assets")),)

PATIENCE: Final = 60
"""Seconds after which only what hangs for good is still to come."""

_EXTENSIONS: Final = {"jpeg": "jpg", "png": "png", "webp": "webp", "gif": "gif", "avif": "avif"}
_MARKER: Final = "smart-assets/catalogue-"
_FOREIGN: Final = (PREFIX, "AWS_", "CLOUDINARY_", "GOOGLE_", "AZURE_")


def until(condition: Callable[[], object], *, of: str = "it") -> None:
    """Wait until `condition` holds; an error where it never does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{of} never came about"
        time.sleep(0.01)


class ServiceProcess:
    """`smart-assets serve` over `folder`/data, on a free port, from `with` to its end (then by SIGKILL, if need be)."""

    def __init__(self, folder: Path, *, command: Sequence[str] = COMMAND, **environment: str) -> None:
        """`environment` goes before this process's own, of which no setting of ours is passed on."""
        self.folder = folder
        self.data = folder / "data"
        self._command = command
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        self._environment = inherited | {f"{PREFIX}DATA_DIR": str(self.data)} | environment
        if url := environment.get(f"{PREFIX}DATABASE_URL"):
            keep_elsewhere(self.data, url)
        self.url = ""

    def __enter__(self) -> Self:
        self._output = self.folder / f"output-{uuid4().hex}.txt"
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [*self._command, "serve", "--port", "0"],
                cwd=self.folder,
                env=self._environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until(self._is_ready, of=f"the service's start: {self.text}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in descendants(self.pid):  # one may have been stopped
            send(pid, signal.SIGCONT)
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, self.text
        if match := re.search(r"ready at (\S+)", self.text):
            self.url = match[1]
        return bool(self.url)

    @property
    def pid(self) -> int:
        """Its process's."""
        return self._process.pid

    @property
    def text(self) -> str:
        """All it said."""
        return self._output.read_text(errors="replace")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    def signal(self, which: signal.Signals, *, group: bool = False) -> None:
        """Send it a signal; to all its processes, as a terminal or a supervisor does, where `group`."""
        (os.killpg if group else os.kill)(self.pid, which)

    def wait(self) -> int:
        """Its exit code, when it has ended."""
        return self._process.wait(PATIENCE)

    def stop(self) -> int:
        """Ask it to stop; its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """Let it end as a power cut would."""
        self.signal(signal.SIGKILL)
        self.wait()

    def client(self) -> httpx.Client:
        """Whoever calls it."""
        return httpx.Client(base_url=self.url, timeout=PATIENCE, trust_env=False)

    def metric(self, name: str) -> float:
        """What it says of itself; 0 where it says nothing."""
        with self.client() as client:
            found = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0

    def open_files(self) -> int:
        """How many files and sockets its own process holds open."""
        return _open_files(self.pid)

    def fork_server(self) -> int:
        """The id of the process from which it forks its workers."""
        children = _children()
        (server,) = (pid for pid in children[self.pid] if children.get(pid))
        return server

    def workers(self) -> list[int]:
        """The ids of its rendering workers; none before the first job."""
        children = _children()
        return [pid for child in children.get(self.pid, ()) for pid in children.get(child, ())]

    def rendering(self, jobs: int) -> bool:
        """Whether so many jobs have each written a first size, to its last byte or not."""
        begun = {path.name.split(".")[0] for path in (self.data / "tmp").glob("process-*/*.0.*") if size_of(path)}
        return len(begun) >= jobs


def size_of(path: Path) -> int:
    """In bytes; 0 where it is gone."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def send(pid: int, which: signal.Signals) -> None:
    """A signal to a process that may be gone."""
    try:
        os.kill(pid, which)
    except ProcessLookupError:
        return


# ── What a process takes ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Usage:
    """Of a process and all below it: resident bytes, open files, threads."""

    memory: int
    files: int
    threads: int


def usage(pid: int) -> Usage:
    """What it takes now."""
    memory = files = threads = 0
    for each in [pid, *descendants(pid)]:
        try:
            status = Path(f"/proc/{each}/status").read_text()
            memory += int(_field(status, "VmRSS").split()[0]) * 1024
            threads += int(_field(status, "Threads"))
            files += _open_files(each)
        except (FileNotFoundError, ProcessLookupError, StopIteration):
            continue  # it has just ended
    return Usage(memory, files, threads)


def descendants(pid: int) -> list[int]:
    """The processes below one."""
    children = _children()
    found, level = [], [pid]
    while level:
        level = [child for parent in level for child in children.get(parent, ())]
        found += level
    return found


def _children() -> dict[int, list[int]]:
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(parent, []).append(int(path.name))
    return children


def _open_files(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def _field(status: str, name: str) -> str:
    return next(line for line in status.splitlines() if line.startswith(f"{name}:")).partition(":")[2]


# ── What it left ────────────────────────────────────────────────────────────────────────────────────────────────────


def rows(data: Path) -> list[dict[str, Any]]:
    """Every row of the catalogue, whatever its state, in the order of the ids."""
    with tables_of(data) as tables:
        return tables.select("SELECT * FROM assets ORDER BY id")


def states(data: Path) -> Counter[str]:
    """How many rows there are of each state."""
    return Counter(row["state"] for row in rows(data))


def objects(data: Path) -> dict[str, Path]:
    """Every object of the local storage by its key, but for the one that says whose the storage is."""
    root = data / "assets"
    found = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    return {key: path for key, path in found.items() if not key.startswith(_MARKER)}


def temporary_files(data: Path) -> list[str]:
    """What lies in the temporary folder."""
    return sorted(path.name for path in (data / "tmp").rglob("*") if path.is_file() and path.name != "rendering")


def leaves_nothing(data: Path) -> bool:
    """Whether there is no row, no object, no temporary file."""
    return not (rows(data) or objects(data) or temporary_files(data))


def settled(data: Path) -> bool:
    """Whether nobody is, or was, at work on anything."""
    return states(data).keys() <= {"ready"} and not temporary_files(data)


def expected_objects(data: Path) -> dict[str, tuple[int, str | None]]:
    """The keys under which there is to be an object, by the rows; its size, and the hash where the row says one."""
    expected: dict[str, tuple[int, str | None]] = {}
    for row in rows(data):
        expected |= _objects_of(row)
    return expected


def audit(data: Path, *, stopped: bool = False) -> list[str]:
    """All that is wrong with what lies in a data directory; with `stopped`, once every process over it has ended well.

    Right is: every row `ready`, its original and sizes there, of the size and hash it says, and nothing else there.
    """
    found = rows(data)
    wrong = [
        f"unsettled: {row['id']} is {row['state']} under {row['lease']}"
        for row in found
        if row["state"] != "ready" or row["lease"] or row["target_visibility"]
    ]
    expected, there = expected_objects(data), objects(data)
    wrong += [f"no row: {key}" for key in sorted(there.keys() - expected.keys())]
    wrong += [f"missing: {key}" for key in sorted(expected.keys() - there.keys())]
    for key in expected.keys() & there.keys():
        size, sha256 = expected[key]
        content = there[key].read_bytes()
        if len(content) != size or sha256 not in {None, hashlib.sha256(content).hexdigest()}:
            wrong.append(f"other bytes than the row says: {key}")
    wrong += [f"temporary: {name}" for name in temporary_files(data)]
    wrong += _wrong_in_catalogue(data, found, stopped=stopped)
    if stopped:
        wrong += [f"temporary folder: {path.name}" for path in (data / "tmp").iterdir()]
    return wrong


def _objects_of(row: Mapping[str, Any]) -> dict[str, tuple[int, str | None]]:
    asset_id = UUID(row["id"])
    day = datetime.fromtimestamp((asset_id.int >> 80) / 1000, tz=UTC)
    base = f"{row['visibility']}/{day:%Y/%m/%d}/{asset_id}"
    objects = {f"{base}.original.{_EXTENSIONS[row['format']]}": (row["size_bytes"], row["sha256"])}
    for _, name, image_format, _, _, size in json.loads(row["variants"]):
        objects[f"{base}.{name}.{_EXTENSIONS[image_format]}"] = (size, None)
    return objects


def _wrong_in_catalogue(data: Path, found: Sequence[Mapping[str, Any]], *, stopped: bool) -> list[str]:
    wrong: list[str] = []
    with tables_of(data) as tables:
        damage = tables.damage()
        wrong += [f"credits: {what}" for what in wrong_credits(tables)]
        held = tables.select("SELECT * FROM storage_totals")
        claimed = len(tables.select("SELECT key FROM idempotency_keys WHERE claim IS NOT NULL"))
        leases = len(tables.select("SELECT id FROM leases"))
        tagged = {(row["tag"], UUID(row["asset_id"])) for row in tables.select("SELECT * FROM asset_tags")}
    totals = {row["storage"]: (row["assets"], row["bytes"]) for row in held}
    if damage:
        wrong.append(f"the catalogue is damaged: {damage}")
    if tagged != (said := {(tag, UUID(row["id"])) for row in found for tag in json.loads(row["tags"])}):
        wrong.append(f"tags that do not agree with their assets: {sorted(tagged ^ said)}")
    counted: dict[str, tuple[int, int]] = {}
    for row in found:
        assets, size = counted.get(row["storage"], (0, 0))
        variants = sum(variant[5] for variant in json.loads(row["variants"]))
        counted[row["storage"]] = (assets + 1, size + row["size_bytes"] + variants)
    for storage in totals.keys() | counted.keys():
        if totals.get(storage, (0, 0)) != counted.get(storage, (0, 0)):
            wrong.append(f"totals of {storage}: {totals.get(storage)} where there are {counted.get(storage)}")
    if claimed:
        wrong.append(f"{claimed} idempotency keys are claimed")
    if stopped and leases:
        wrong.append(f"{leases} leases are left")
    return wrong
