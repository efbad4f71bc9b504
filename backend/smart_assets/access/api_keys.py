"""Who is calling."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from smart_assets.errors import Unauthorized
from smart_assets.settings import Settings

DEFAULT_OWNER = "default"
"""The owner of what open mode and the keys in the settings upload."""


@dataclass(frozen=True)
class Caller:
    """Who a request is from: assets belong to the `owner`, not to a key."""

    owner: str


class ApiKeys:
    """The keys in the settings. Without any, everybody (on this machine: see `api.edge`) is the default owner."""

    def __init__(self, settings: Settings) -> None:
        """Only hashes are kept."""
        self._hashes = [_hash(key.get_secret_value()) for key in settings.api_keys]

    def authenticate(self, authorization: str | None) -> Caller:
        """The caller of a request with this `Authorization` header; Unauthorized where it holds no key of ours."""
        if not self._hashes:
            return Caller(DEFAULT_OWNER)
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise Unauthorized("send a key: Authorization: Bearer <key>")
        given = _hash(key.strip())
        # Every key is compared, so that the time says nothing about which one was nearly right.
        if not sum(hmac.compare_digest(given, known) for known in self._hashes):
            raise Unauthorized("the key is not known")
        return Caller(DEFAULT_OWNER)


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
