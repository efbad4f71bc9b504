"""`docs/operations.md`, done as it stands there: a backup of a service at work, and what is made of it elsewhere."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import httpx
from typer.testing import CliRunner

from smart_assets.cli import app
from tests import images
from tests.faults.process import ServiceProcess, until

PAGE = (Path(__file__).parent.parent / "docs/operations.md").read_text(encoding="utf-8")
HOLIDAY = images.jpeg(160, 120, seed=8)
_CALLERS = 3
_SQLITE = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute(sys.argv[2])"


def commands(section: str) -> list[list[str]]:
    """The commands of a section, a list for each of its blocks."""
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return [block.splitlines() for block in re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)]


def typed(words: list[str], folder: Path, settings: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """What `smart-assets …`, typed in `folder`, comes to; in this process, which has all of it imported."""
    with chdir(folder):
        told = CliRunner().invoke(app, words[1:], env=settings, catch_exceptions=False)
    return subprocess.CompletedProcess(words, told.exit_code, told.stdout, told.stderr)


class Place:
    """A folder in which the page's commands are carried out, and the service serves."""

    def __init__(self, folder: Path, **settings: str) -> None:
        folder.mkdir()
        self.folder = folder
        self._settings = {"ASSETS_LEASE_SECONDS": "1", "ASSETS_RECONCILE_GRACE_SECONDS": "0", **settings}

    def service(self) -> ServiceProcess:
        """`smart-assets serve`."""
        return ServiceProcess(self.folder, **self._settings)

    def run(self, line: str) -> subprocess.CompletedProcess[str]:
        """A line of the page."""
        environment = os.environ | self._settings
        words = [re.sub(r"\$(\w+)", lambda match: environment[match[1]], word) for word in shlex.split(line)]
        if words[0] == "sqlite3" and shutil.which("sqlite3") is None:  # the statement matters, not who takes it there
            words[:1] = [sys.executable, "-c", _SQLITE]
        if words[0] == "smart-assets":
            return typed(words, self.folder, self._settings)
        return subprocess.run(words, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=60)

    def reconcile(self, *wishes: str) -> Any:
        """What `smart-assets reconcile` finds at the storage `local`."""
        told = self.run(f"smart-assets reconcile --storage local --json {' '.join(wishes)}")
        assert told.stdout, told.stderr
        return json.loads(told.stdout)["storages"][0]


class Callers:
    """Who upload as often as they are let, and delete or hide some of it; `confirmed` and `touched` by id."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._turns: SimpleQueue[bool] = SimpleQueue()
        self._given = 0
        self.confirmed: dict[str, Any] = {}
        self.touched: set[str] = set()

    @contextmanager
    def at_work(self) -> Any:
        with ThreadPoolExecutor() as threads:
            working = [threads.submit(self._work) for _ in range(_CALLERS)]
            try:
                yield
            finally:
                for _ in working:
                    self._turns.put(False)
                for each in working:
                    each.result()

    def let(self, uploads: int) -> None:
        """From now on, so many more."""
        self._given += uploads
        for _ in range(uploads):
            self._turns.put(True)

    def wait(self) -> None:
        """Until all of them are confirmed."""
        until(lambda: len(self.confirmed) == self._given, of="the last upload")

    def _work(self) -> None:
        number = 0
        with httpx.Client(base_url=self._url, timeout=60, trust_env=False) as client:
            while self._turns.get():
                answer = client.post("/api/v1/assets", files={"file": ("a.jpg", HOLIDAY)})
                assert answer.status_code == 201, answer.text
                asset = answer.json()
                path, number = f"/api/v1/assets/{asset['id']}", number + 1
                if number % 4 == 0:
                    self.touched.add(asset["id"])
                self.confirmed[asset["id"]] = asset
                if number % 8 == 0:
                    assert client.delete(path).status_code == 204
                elif number % 8 == 4:
                    assert client.patch(path, json={"visibility": "private"}).status_code == 200


def back_up_and_restore(here: Place, elsewhere: Place, *, backup: list[str], restore: list[str]) -> None:
    """Back up a service at work by the lines of the page, make another of it, and see that it is what it is to be."""
    with here.service() as service:
        callers = Callers(service.url)
        with callers.at_work():
            callers.let(60)
            callers.wait()
            before = dict(callers.confirmed)
            for line in backup:
                callers.let(6)
                done = here.run(line)
                gone = line.startswith("cp ") and set(re.findall(r"cp: .*: (.*)", done.stderr)) == {
                    "No such file or directory"
                }
                assert done.returncode == 0 or gone, done.stderr
                callers.let(6)  # between one half and the other, however fast each of them was
                callers.wait()
        shutil.copytree(here.folder / "backup", elsewhere.folder / "backup")
    *halves, look, serve = restore
    for line in halves:
        done = elsewhere.run(line)
        assert done.returncode == 0, done.stderr
    assert (look, serve) == ("smart-assets reconcile --dry-run", "smart-assets serve")

    kept = {asset_id: asset for asset_id, asset in before.items() if asset_id not in callers.touched}
    found = elsewhere.reconcile("--dry-run")
    problems = {(finding["problem"], finding["key"].split("/")[-1][:36]) for finding in found["findings"]}
    orphans = {asset_id for problem, asset_id in problems if problem == "orphan"}
    lacking = {asset_id for problem, asset_id in problems if problem == "missing"}
    assert {problem for problem, _ in problems} <= {"orphan", "missing"}
    assert orphans - callers.touched
    assert not orphans & kept.keys()
    assert lacking <= callers.touched

    with elsewhere.service() as service, service.client() as client:
        for asset in kept.values():
            assert client.get(f"/assets/{asset['url'].partition('/assets/')[2]}").content == HOLIDAY
        left = elsewhere.reconcile("--delete-orphans", "--claim")
        assert {finding["problem"] for finding in left["findings"] if not finding["removed"]} <= {"missing"}
        if lacking:
            assert elsewhere.run(f"smart-assets rm {' '.join(lacking)}").returncode == 0
        assert elsewhere.reconcile()["right"]
        for asset in kept.values():
            assert client.get(f"/assets/{asset['url'].partition('/assets/')[2]}").content == HOLIDAY
