"""What the audit is worth: it has nothing to say against what is whole, and finds what it is there to find."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests import images
from tests.faults.process import ServiceProcess, Usage, audit, leaves_nothing, objects, settled, usage

HOLIDAY = images.jpeg(320, 240, seed=34)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What lies there of an asset with two sizes, once its service has stopped."""
    with ServiceProcess(tmp_path_factory.mktemp("whole")) as service, service.client() as client:
        made = client.post("/api/v1/assets?sizes=100,50", files={"file": ("a.jpg", HOLIDAY)})
        assert made.status_code == 201
        assert service.stop() == 0
    return service.data


@pytest.fixture
def data(whole: Path, tmp_path: Path) -> Path:
    """A copy of it to break."""
    shutil.copytree(whole, tmp_path / "data")
    return tmp_path / "data"


def change(data: Path, statement: str) -> None:
    with closing(sqlite3.connect(data / "catalogue.sqlite3")) as catalogue:
        catalogue.execute(statement)
        catalogue.commit()


def original(data: Path) -> Path:
    return next(path for key, path in objects(data).items() if ".original." in key)


def keep_a_private_copy(data: Path) -> None:
    private = Path(str(original(data)).replace("/public/", "/private/"))
    private.parent.mkdir(parents=True)
    private.hardlink_to(original(data))


def test_it_has_nothing_to_say_against_what_is_whole(data: Path) -> None:
    assert audit(data, stopped=True) == []
    assert settled(data)
    assert not leaves_nothing(data)


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "an object that is gone": ("missing: public/", lambda data: original(data).unlink()),
    "a copy nobody knows of": ("no row: private/", keep_a_private_copy),
    "an object cut short": ("other bytes", lambda data: os.truncate(original(data), 300)),
    "a changed byte": ("other bytes", lambda data: original(data).write_bytes(HOLIDAY[:-1] + b"x")),
    "a deletion owed": ("unsettled", lambda data: change(data, "UPDATE assets SET state = 'deleting'")),
    "a claim": ("unsettled", lambda data: change(data, "UPDATE assets SET lease = 'dead/1'")),
    "wrong totals": ("totals of local", lambda data: change(data, "UPDATE storage_totals SET bytes = 1")),
    "no totals": ("totals of local", lambda data: change(data, "DELETE FROM storage_totals")),
    "a lost row": ("no row: public/", lambda data: change(data, "DELETE FROM assets")),
    "a lease": ("1 leases", lambda data: change(data, "INSERT INTO leases VALUES ('dead', 1)")),
    "a claimed key": ("1 idempotency keys", lambda data: change(data, CLAIM_A_KEY)),
    "a temporary file": ("temporary: upload-1", lambda data: (data / "tmp" / "upload-1").touch()),
    "a temporary folder": ("temporary folder: process-1", lambda data: (data / "tmp" / "process-1").mkdir()),
}
CLAIM_A_KEY = "INSERT INTO idempotency_keys VALUES ('default', 'k', 'r', NULL, NULL, 'dead/1', '2026-11-20 10:00')"


@pytest.mark.parametrize("damage", DAMAGES)
def test_it_finds(data: Path, damage: str) -> None:
    finding, do = DAMAGES[damage]
    do(data)
    assert any(line.startswith(finding) for line in audit(data, stopped=True))


HOLDS_80_MB = "import sys; held = b'x' * 80_000_000; print('ready', flush=True); sys.stdin.read()"
HAS_IT_BELOW = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLDS_80_MB!r}])"


def test_what_a_process_takes_is_told_with_all_below_it() -> None:
    command = [sys.executable, "-c", HAS_IT_BELOW]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        taken = usage(process.pid)
        process.communicate()
    assert taken.memory > 80_000_000
    assert taken.files >= 6
    assert taken.threads == 2
    assert usage(process.pid) == Usage(0, 0, 0)
