"""Who is calling."""

import pytest
from pydantic import SecretStr

from smart_assets.access.api_keys import DEFAULT_OWNER, ApiKeys
from smart_assets.errors import Unauthorized
from smart_assets.settings import Settings

KEYS = ("first-key-0123456789", "second-key-0123456789")


def keys() -> ApiKeys:
    return ApiKeys(Settings(api_keys=tuple(SecretStr(key) for key in KEYS)))


@pytest.mark.parametrize("key", KEYS)
def test_any_of_the_keys_opens(key: str) -> None:
    assert keys().authenticate(f"Bearer {key}").owner == DEFAULT_OWNER
    assert keys().authenticate(f"bearer {key}").owner == DEFAULT_OWNER


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer wrong", f"Basic {KEYS[0]}", KEYS[0], f"Bearer {KEYS[0]}x"]
)
def test_anything_else_does_not(header: str | None) -> None:
    with pytest.raises(Unauthorized):
        keys().authenticate(header)


def test_without_keys_everybody_is_the_default_owner() -> None:
    assert ApiKeys(Settings()).authenticate(None).owner == DEFAULT_OWNER
