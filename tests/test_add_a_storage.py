"""`docs/add-a-storage.md`, followed to the letter in a copy of the source."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests import images
from tests.test_cli import COMMAND, Server

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/add-a-storage.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The source, with what the page adds and changes."""
    root = tmp_path / "copy"
    for directory in ("backend", "tests"):
        shutil.copytree(ROOT / directory, root / directory, ignore=shutil.ignore_patterns("__pycache__", "live"))
    shutil.copy(ROOT / "pyproject.toml", root)
    files = re.findall(r"`((?:backend|tests)/[\w/]+/(?:test_)?shelf\.py)`", PAGE)
    for file, text in zip(files, blocks("python"), strict=True):
        assert not (root / file).exists()
        (root / file).write_text(text, encoding="utf-8")
    for change in blocks("diff"):
        applied = subprocess.run(
            ["git", "apply", "-"], cwd=root, input=change, capture_output=True, text=True, timeout=60
        )
        assert applied.returncode == 0, applied.stderr
    return root


def test_the_storage_it_adds_keeps_the_contract_and_serves_the_api(copy: Path, tmp_path: Path) -> None:
    environment = {"PYTHONPATH": f"{copy / 'backend'}:{copy}"}
    (contract,), (_serve, upload, doctor) = (block.splitlines() for block in blocks("sh"))

    program, *arguments = shlex.split(contract)
    assert Path(program).name == "pytest"
    ran = subprocess.run(
        # But for one sentence, which takes as long as all the others and shows nothing of a storage like this.
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            "-k",
            "not 60_mb",
            *arguments,
        ],
        cwd=copy,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout
    assert int(re.findall(r"(\d+) passed", ran.stdout)[0]) > 50

    (tmp_path / "photo.jpg").write_bytes(images.jpeg(640, 480))
    server = Server(tmp_path, **environment)
    try:
        uploaded = subprocess.run(
            shlex.split(upload.replace(ADDRESS, server.url)), cwd=tmp_path, capture_output=True, timeout=60, check=True
        )
        with httpx.Client(base_url=server.url, timeout=60) as client:
            (asset,) = client.get("/api/v1/assets", params={"storage": "shelf"}).json()["items"]
            assert asset["id"] in uploaded.stdout.decode()
            assert (asset["visibility"], len(asset["variants"])) == ("private", 1)
            assert client.get(asset["url"]).content == (tmp_path / "photo.jpg").read_bytes()
            assert client.get(asset["url"].partition("?")[0]).status_code == 403
            path = f"/api/v1/assets/{asset['id']}"
            public = client.patch(path, json={"visibility": "public"}).json()
            assert client.get(public["variants"][0]["url"]).status_code == 200
            assert client.post(f"{path}/move", params={"storage": "local"}).json()["storage"] == "local"
            assert client.get(public["url"]).status_code == 200
            assert client.delete(path).status_code == 204
        examined = subprocess.run(
            [*COMMAND, *shlex.split(doctor)[1:]],
            cwd=tmp_path,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert examined.returncode == 0, examined.stdout
        assert server.stop() == 0
    finally:
        server.process.kill()
        server.process.wait()
