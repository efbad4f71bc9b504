"""The servers, each started once where a test first asks for it."""

from collections.abc import Iterator

import pytest

from tests.cloudinary_fake import CloudinaryFake, cloudinary_fake
from tests.live.azurite import azurite as azurite
from tests.live.gcs_server import gcs as gcs
from tests.live.postgres import postgres as postgres
from tests.live.redis import redis as redis
from tests.live.seaweed import seaweed as seaweed


@pytest.fixture(scope="session")
def cloudinary() -> Iterator[CloudinaryFake]:
    """The nearest thing to a real server there is for Cloudinary."""
    with cloudinary_fake() as fake:
        yield fake
