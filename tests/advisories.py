"""What is known to be wrong with the releases the lock files pin: `make audit`.

PyPI's index says it of each release (its JSON API), npm's of a whole lock file. `pip-audit` asks the
same, and takes what a mirror does not tell for a release without flaws; here it is told apart.
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import httpx

ROOT = Path(__file__).parents[1]
AT_ONCE = 8
NPM_LOCKS = ("benchmarks", "tests/live")


class Release(NamedTuple):
    """One that a lock file pins."""

    name: str
    version: str


@dataclass(frozen=True)
class Advice:
    """What was said of a release; None where nobody could be asked."""

    what: str
    flaws: tuple[str, ...] | None


def pinned(locks: Iterable[Path]) -> list[Release]:
    """Every release in the lock files, once."""
    found = {
        Release(match[1], match[2])
        for lock in locks
        for match in re.finditer(r"^([a-z0-9._-]+)==([^\s;]+)", lock.read_text(encoding="utf-8"), re.MULTILINE)
    }
    return sorted(found)


def advice(client: httpx.Client, release: Release) -> Advice:
    """What the index knows of it.

    A mirror may have but the page of a project, which speaks of its newest release: good where that is the one.
    """
    what = f"{release.name} {release.version}"
    for address in (f"/pypi/{release.name}/{release.version}/json", f"/pypi/{release.name}/json"):
        try:
            answer = client.get(address)
            page: Any = answer.json() if answer.status_code == httpx.codes.OK else {}
            if page.get("info", {}).get("version") == release.version and isinstance(page["vulnerabilities"], list):
                return Advice(what, tuple(_told(flaw) for flaw in page["vulnerabilities"] if not flaw.get("withdrawn")))
        except (httpx.HTTPError, ValueError, KeyError, AttributeError):
            continue
    return Advice(what, None)


def _told(flaw: dict[str, Any]) -> str:
    names = ", ".join([flaw["id"], *flaw.get("aliases", [])])
    cured = " or ".join(flaw.get("fixed_in", [])) or "no release yet"
    return f"{names}: {flaw.get('summary') or flaw.get('link') or 'no summary'} (cured by {cured})"


def npm_advice(folder: Path) -> Advice:
    """What npm's registry knows of the lock file in `folder`."""
    what = f"{folder.relative_to(ROOT)}/package-lock.json"
    npm = shutil.which("npm")
    if npm is None:
        return Advice(what, None)
    done = subprocess.run(
        [npm, "audit", "--package-lock-only", "--json"], cwd=folder, capture_output=True, text=True, check=False
    )
    try:
        found = json.loads(done.stdout)["vulnerabilities"]
    except (ValueError, KeyError):
        return Advice(what, None)
    return Advice(what, tuple(f"{name}: {flaw['severity']}, {flaw['range']}" for name, flaw in sorted(found.items())))


def report(advices: Sequence[Advice]) -> int:
    """Say what came of it; the exit code: 1 where there is a known flaw."""
    flawed = [found for found in advices if found.flaws]
    unknown = [found.what for found in advices if found.flaws is None]
    for found in flawed:
        for flaw in found.flaws or ():
            print(f"{found.what}: {flaw}")
    if unknown:
        print(f"nothing could be learnt of {len(unknown)}: {', '.join(unknown)}")
    print(f"{len(advices) - len(unknown)} of {len(advices)} looked up, {len(flawed)} of them with known flaws")
    return 1 if flawed else 0


def index() -> str:
    """The package index that pip asks, without its `/simple`."""
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    configured = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    default: str = importlib.import_module("pip._internal.models.index").PyPI.url
    return (configured or default).rstrip("/").removesuffix("/simple")


def main() -> int:
    """Ask about every lock file there is."""
    releases = pinned(ROOT.glob("requirements/*.txt"))
    with httpx.Client(base_url=index(), timeout=30, follow_redirects=True) as client, ThreadPoolExecutor(AT_ONCE) as at:
        advices = list(at.map(lambda release: advice(client, release), releases))
        advices += at.map(npm_advice, (ROOT / folder for folder in NPM_LOCKS))
    return report(advices)


if __name__ == "__main__":
    sys.exit(main())
