"""Examines what a service stands on, on this machine: its data directory, the disk below it, and its catalogue."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import anyio
from anyio import to_thread

from smart_assets.assets.uploads import RESERVE_BYTES
from smart_assets.catalogue.database import Database
from smart_assets.maintenance.doctor import MOST_SKEW_SECONDS, Examination, Found, Progress, Skip, tried
from smart_assets.maintenance.faults import Diagnosis, Fault
from smart_assets.settings import GiB, Settings

_SQLITE: Final = "sqlite:///"
_MOUNTS: Final = Path("/proc/self/mountinfo")
_OVER_A_NETWORK: Final = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "fuse.sshfs", "fuse.s3fs"}
_IN_MEMORY: Final = {"tmpfs", "ramfs"}


async def examine_machine(
    settings: Settings, database_url: str, make_directories: Callable[[], None], progress: Progress = lambda _: None
) -> Examination:
    """Try what every storage needs. `make_directories` raises ConfigurationError where there can be none."""
    found = Examination("this machine", "machine")

    def explain(error: BaseException) -> Diagnosis:
        fault = Fault.DISK if isinstance(error, OSError) or "data directory" in str(error) else Fault.UNKNOWN
        variable = "ASSETS_DATABASE_URL" if "catalogue" in str(error) else "ASSETS_DATA_DIR"
        return Diagnosis(fault, "give the service's user a disk that works, or name another", (variable,))

    async def step(name: str, look: Callable[[], str]) -> bool:
        progress(name)
        found.steps.append(await tried(name, partial(to_thread.run_sync, look), explain))
        return found.steps[-1].outcome == "ok"

    if await step("data directory", partial(_writable, settings, make_directories)):
        await step("free space", partial(_free_space, settings.data_dir))
        await step("file system", partial(_file_system, settings.data_dir, database_url))
        await step("clock", partial(_clock, settings.temporary_dir))
        progress("catalogue")
        found.steps.append(await tried("catalogue", partial(_catalogue, database_url), explain))
    return found


def _writable(settings: Settings, make_directories: Callable[[], None]) -> str:
    make_directories()
    for directory in (settings.data_dir, settings.temporary_dir):
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            file.write(b"\0")
            os.fsync(file.fileno())
    return str(settings.data_dir.resolve())


def _free_space(directory: Path) -> str:
    disk = os.statvfs(directory)
    free = disk.f_bavail * disk.f_frsize
    if free < RESERVE_BYTES:
        raise Found(
            f"{free:,} bytes are free, and from {RESERVE_BYTES:,} downwards no upload is taken",
            Diagnosis(Fault.FULL, "make room, or name a larger disk", ("ASSETS_DATA_DIR",)),
        )
    if disk.f_files and not disk.f_favail:
        raise Found(
            "the file system takes no more files",
            Diagnosis(Fault.FULL, "remove files, or name another disk", ("ASSETS_DATA_DIR",)),
        )
    return f"{free / GiB:,.1f} GiB"


def _file_system(directory: Path, database_url: str) -> str:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    kind = _kind_of_file_system(directory)
    if kind in _OVER_A_NETWORK and database_url.startswith(_SQLITE):
        raise Found(
            f"it is {kind}, over a network, where SQLite's locks and log cannot be relied on",
            Diagnosis(Fault.DISK, "keep the catalogue on a disk of this machine", ("ASSETS_DATA_DIR",)),
        )
    if kind in _IN_MEMORY:
        return f"{kind}: in memory, and gone with this machine's next start"
    return f"{kind or 'of a kind the system does not tell'}, syncs"


def _kind_of_file_system(directory: Path) -> str | None:
    """Its name as the kernel has it; None where that does not say."""
    if sys.platform != "linux" or not _MOUNTS.exists():
        return None
    device = os.stat(directory).st_dev  # noqa: PTH116 - a Path's says the same
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in _MOUNTS.read_text(errors="replace").splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            return after.split()[0]
    return None


def _clock(directory: Path) -> str:
    """The disk's clock beside ours, which differ where it is another machine's; and whether ours was ever set."""
    with tempfile.NamedTemporaryFile(dir=directory) as file:
        file.write(b"\0")
        file.flush()
        apart = os.fstat(file.fileno()).st_mtime - time.time()
    if abs(apart) > MOST_SKEW_SECONDS:
        raise Found(
            f"the disk's clock is {abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'} this machine's",
            Diagnosis(Fault.CLOCK, "set both clocks by NTP"),
        )
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


async def _catalogue(url: str) -> str:
    if url.startswith(_SQLITE) and not await anyio.Path(url.removeprefix(_SQLITE)).exists():
        raise Skip("there is none yet: the service makes it when it is first started")
    database = await to_thread.run_sync(partial(Database.open_as_it_is, url, read_only=True))
    try:
        counts = await database.read(lambda catalogue: catalogue.count_by_storage())
    finally:
        await database.close()
    return f"{sum(counts.values()):,} assets"
