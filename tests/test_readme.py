"""What a newcomer is told to type works."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import images
from tests.operations import typed
from tests.test_cli import Server

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"
PHOTO = images.jpeg(1600, 1200)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("newcomer")
    (folder / "holidays" / "beach").mkdir(parents=True)
    for name in ("photo.jpg", "holidays/1.jpg", "holidays/beach/2.jpg"):
        (folder / name).write_bytes(PHOTO)
    server = Server(folder)
    yield server
    server.process.kill()
    server.process.wait()


def test_commands_do_what_they_are_to_do(server: Server) -> None:
    for line in "".join(blocks("sh")).splitlines():
        command = line.replace(ADDRESS, server.url)
        if known := re.search(r"[0-9a-f]{8}-[0-9a-f-]{27}", command):
            (asset, *_) = httpx.get(f"{server.url}/api/v1/assets").json()["items"]
            command = command.replace(known[0], asset["id"])
        if command.startswith("smart-assets "):
            done = typed(shlex.split(command, comments=True), server.output.parent, {})
        else:
            shell = ["bash", "-eo", "pipefail", "-c", command]
            done = subprocess.run(shell, cwd=server.output.parent, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert done.stdout
        assert "urn:smart-assets:problem" not in done.stdout


def test_the_answer_that_is_shown_is_the_one_that_comes(server: Server) -> None:
    (shown,) = (json.loads(block) for block in blocks("json"))
    query = {"sizes": ",".join(variant["size"] for variant in shown["variants"]), "visibility": "private"}
    answer = httpx.post(f"{server.url}/api/v1/assets", params=query, files={"file": ("photo.jpg", PHOTO)}, timeout=60)
    asset = answer.json()
    assert list(asset) == list(shown)
    assert [list(each) for each in asset["variants"]] == [list(each) for each in shown["variants"]]
    assert [each["size"] for each in asset["variants"]] == [each["size"] for each in shown["variants"]]


def test_every_target_it_names_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", README, re.MULTILINE))
    assert {"serve", "test", "check"} <= named <= targets


def test_it_leads_to_every_document_and_is_short() -> None:
    documents = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")}
    assert documents <= set(re.findall(r"\]\(([^)#]+)", README))
    assert len(README.splitlines()) <= 250


def test_what_it_says_of_settings_is_so() -> None:
    configuration = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\bASSETS_\w+\b", README)) <= set(re.findall(r"\bASSETS_\w+\b", configuration))
