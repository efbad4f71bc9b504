"""What only a catalogue in a file can be like."""

import asyncio
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from smart_assets.catalogue.database import Database
from smart_assets.errors import ConfigurationError


def test_a_folder_that_is_not_there_is_said_at_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="catalogue"):
        Database.open(f"sqlite:///{tmp_path}/missing/catalogue.sqlite3")


def test_a_new_catalogue_that_another_process_makes_just_now_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.sqlite3"
    with closing(sqlite3.connect(path, isolation_level=None)) as other, ThreadPoolExecutor(1) as threads:
        other.execute("CREATE TABLE theirs (id)")
        other.execute("BEGIN IMMEDIATE")  # SQLite lets nobody wait for it who wants to set the file's mode
        opened = threads.submit(Database.open, f"sqlite:///{path}")
        time.sleep(0.5)
        other.execute("COMMIT")
        asyncio.run(opened.result().close())
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("PRAGMA journal_mode").fetchone() == ("wal",)
