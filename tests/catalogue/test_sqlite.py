"""What only a catalogue in a file can be like."""

from pathlib import Path

import pytest

from smart_assets.catalogue.database import Database
from smart_assets.errors import ConfigurationError


def test_a_folder_that_is_not_there_is_said_at_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="catalogue"):
        Database.open(f"sqlite:///{tmp_path}/missing/catalogue.sqlite3")
