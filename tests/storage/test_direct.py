"""Nothing is kept: the bytes go back in a data URI."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

import pytest

from smart_assets.storage.direct import DirectDownloadStorage
from tests.contracts.storage import PNG, StorageContract, image


class TestDirectDownloadStorage(StorageContract):
    @pytest.fixture
    def storage(self) -> DirectDownloadStorage:
        return DirectDownloadStorage("direct")


@pytest.mark.parametrize("give_away", [True, False])
async def test_a_file_comes_back_too_and_is_left_alone(tmp_path: Path, *, give_away: bool) -> None:
    file = tmp_path / "upload"
    file.write_bytes(image())
    stored = await DirectDownloadStorage("direct").upload("public/1.png", file, content_type=PNG, give_away=give_away)
    assert stored.url == "data:image/png;base64," + b64encode(image()).decode()
    assert file.read_bytes() == image()


async def test_the_same_key_twice_is_no_conflict() -> None:
    storage = DirectDownloadStorage("direct")
    first = await storage.upload("public/1.png", image(1), content_type=PNG)
    second = await storage.upload("public/1.png", image(2), content_type=PNG)
    assert first.url != second.url
