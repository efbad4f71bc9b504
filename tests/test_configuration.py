"""`docs/configuration.md` is what `settings.py` says, and all of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from smart_assets.commands.config import effective
from smart_assets.settings import load_settings
from tests import configuration

DOCUMENT = (Path(__file__).parent.parent / "docs" / "configuration.md").read_text(encoding="utf-8")


def test_the_document_is_what_the_settings_say() -> None:
    assert configuration.written() == DOCUMENT, "run: make docs"


def test_every_setting_there_is_stands_in_it_with_the_value_it_has_where_nothing_is_said() -> None:
    rows = dict(re.findall(r"^\| `(ASSETS_\w+)` \|.*\| (.*?) ?\|$", DOCUMENT, re.MULTILINE))
    for setting in effective(load_settings()):
        if setting.name == "ASSETS_STORAGES":  # has a section of its own
            continue
        default = rows.pop(setting.name)
        if default.startswith("`") and setting.value not in (None, "****"):  # masked, or a vendor's variable's
            said = default.strip("`")
            value = ",".join(map(str, setting.value)) if isinstance(setting.value, list) else setting.value
            assert said == value if isinstance(value, str) else json.loads(said) == value, setting.name
        elif default == "none":
            assert setting.value in (None, "", [], {}), setting.name
    assert rows == {}
