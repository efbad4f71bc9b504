"""`docs/operations.md`, done as it stands there."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import httpx
import pytest

from smart_assets.catalogue.migrations import HEAD, current_revision
from smart_assets.catalogue.sqlite import create_sqlite_engine
from tests.operations import HOLIDAY, PAGE, Place, back_up_and_restore, commands
from tests.test_cli import Server
from tests.test_supervisor import ready, until, workers


def test_a_backup_of_a_service_at_work_can_be_served_elsewhere(tmp_path: Path) -> None:
    back_up_and_restore(
        Place(tmp_path / "here"),
        Place(tmp_path / "elsewhere"),
        backup=commands("Backup")[0],
        restore=commands("Restore")[0],
    )


def test_a_schema_goes_back_and_forth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Server(tmp_path).stop()
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    engine = create_sqlite_engine("sqlite:///data/catalogue.sqlite3", connections=1)
    exec(program, {})
    (revision,) = re.findall(r'downgrade\(configuration, "(\d+)"\)', program)
    assert current_revision(engine) == revision != HEAD
    server = Server(tmp_path)
    assert httpx.get(f"{server.url}/health/ready").status_code == 200
    assert server.stop() == 0
    assert current_revision(engine) == HEAD
    engine.dispose()


def test_keys_are_exchanged_without_a_moment_in_which_none_is_good(tmp_path: Path) -> None:
    old, new = "an-old-key-of-many-characters-and-more", "a-new-key-of-many-characters-and-more"
    settings = tmp_path / ".env"

    def write(keys: str) -> None:
        settings.write_text(f"ASSETS_API_KEYS={keys}\nASSETS_SIGNING_KEYS={keys}\nASSETS_WORKERS=2\n")

    def renew(server: Server, keys: str) -> None:
        before = workers(server)
        write(keys)
        server.process.send_signal(signal.SIGHUP)
        until(lambda: ready(server) and len(workers(server)) == 2 and not workers(server) & before)

    def upload(server: Server, key: str) -> httpx.Response:
        return httpx.post(
            f"{server.url}/api/v1/assets?visibility=private",
            files={"file": ("a.jpg", HOLIDAY)},
            headers={"Authorization": f"Bearer {key}"},
            timeout=60,
        )

    write(old)
    server = Server(tmp_path)
    try:
        earlier = upload(server, old).json()["url"]
        assert upload(server, new).status_code == 401
        renew(server, f"{new},{old}")
        later = upload(server, new).json()["url"]
        assert upload(server, old).status_code == 201
        assert [httpx.get(url).status_code for url in (earlier, later)] == [200, 200]
        renew(server, new)
        assert (upload(server, new).status_code, upload(server, old).status_code) == (201, 401)
        assert [httpx.get(url).status_code for url in (earlier, later)] == [403, 200]
        assert server.stop() == 0
    finally:
        server.process.kill()
        server.process.wait()
