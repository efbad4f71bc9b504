"""Who is calling, and what they may do.

Keys are of two kinds: those in the settings, which have every scope and open a new installation, and those in the
catalogue, made by whoever has the scope `admin`. A key is random; what is kept of it is a hash, so nobody who reads the
catalogue can call with it. Plain SHA-256 will do: there is nothing to guess in 256 random bits.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from uuid_utils.compat import uuid7

from smart_assets import observability
from smart_assets.access.scopes import EVERY_SCOPE, Scope
from smart_assets.catalogue.database import Database
from smart_assets.catalogue.models import ApiKeyRecord
from smart_assets.errors import Forbidden, KeyNotFound, Unauthorized
from smart_assets.settings import Settings

logger = logging.getLogger(__name__)

DEFAULT_OWNER: Final = "default"
"""The owner of what open mode and the keys in the settings upload."""

PREFIX: Final = "sa_"
"""What a key of ours begins with, so that people and scanners of leaked secrets know one when they see it."""

_SECRET_BYTES: Final = 32
_USE_IS_NOTED_EVERY: Final = timedelta(hours=1)


@dataclass(frozen=True)
class Caller:
    """Who a request is from: assets belong to the `owner`, not to a key. `key_id` is of a key in the catalogue,
    `settings_key` the place of one in the settings."""

    owner: str
    scopes: frozenset[Scope] = EVERY_SCOPE
    key_id: UUID | None = None
    settings_key: int | None = None

    @property
    def key(self) -> str | None:
        """What names the key, and is no secret; None where none was asked for."""
        if self.settings_key is not None:
            return f"settings-{self.settings_key}"
        return str(self.key_id) if self.key_id else None

    @property
    def sees(self) -> str | None:
        """The owner whose assets the caller may know of; None: everybody's."""
        return None if Scope.ADMIN in self.scopes else self.owner

    def need(self, scope: Scope) -> None:
        """Forbidden where the caller may not do what takes `scope`; `admin` may do everything."""
        if not self.scopes & {scope, Scope.ADMIN}:
            raise Forbidden(f"this key lacks the scope {scope}")


class ApiKeys:
    """The keys there are. Without any in the settings, whoever sends none (from this machine: see `api.edge`) is the
    default owner, and may do everything."""

    def __init__(self, settings: Settings, database: Database) -> None:
        """Of the settings' keys only hashes are kept."""
        self._database = database
        self._hashes = [_hash(key.get_secret_value()) for key in settings.api_keys]

    async def authenticate(self, authorization: str | None) -> Caller:
        """The caller of a request with this `Authorization` header; Unauthorized where it holds no key that is good.

        The catalogue is asked each time: a key that was revoked is refused from then on, in every process.
        """
        if authorization is None and not self._hashes:
            return Caller(DEFAULT_OWNER)
        scheme, _, key = (authorization or "").partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise Unauthorized("send a key: Authorization: Bearer <key>")
        given = _hash(key)
        # Every key is compared, so that the time says nothing about which one was nearly right.
        if any(found := [hmac.compare_digest(given, known) for known in self._hashes]):
            return Caller(DEFAULT_OWNER, settings_key=found.index(True))
        if not key.startswith(PREFIX):
            raise Unauthorized("the key is not known")
        record = await self._database.read(lambda catalogue: catalogue.find_api_key(given))
        now = datetime.now(UTC)
        if record is None:
            raise Unauthorized("the key is not known")
        if record.expires_at is not None and record.expires_at <= now:
            raise Unauthorized("the key has expired")
        if record.last_used_at is None or now - record.last_used_at > _USE_IS_NOTED_EVERY:
            await self._note_use(record, now)
        return Caller(record.owner, EVERY_SCOPE & set(record.scopes), record.id)

    async def make(
        self, name: str, *, scopes: frozenset[Scope], owner: str, expires_at: datetime | None
    ) -> tuple[ApiKeyRecord, str]:
        """A new key, and its secret, which nobody will be able to tell again."""
        secret = new_secret()
        record = ApiKeyRecord(
            id=uuid7(),
            name=name,
            owner=owner,
            scopes=tuple(sorted(scopes)),
            hash=_hash(secret),
            created_at=datetime.now(UTC),
            expires_at=expires_at,
        )
        await self._database.write(lambda catalogue: catalogue.insert_api_key(record))
        return record, secret

    async def list(self) -> tuple[ApiKeyRecord, ...]:
        """Every key in the catalogue, the oldest first."""
        return await self._database.read(lambda catalogue: catalogue.api_keys())

    async def revoke(self, key_id: UUID) -> None:
        """Forget a key, in force at once; KeyNotFound where there is none."""
        if not await self._database.write(lambda catalogue: catalogue.delete_api_key(key_id)):
            raise KeyNotFound("there is no such key")

    async def _note_use(self, record: ApiKeyRecord, now: datetime) -> None:
        used = replace(record, last_used_at=now)
        try:
            await self._database.write(lambda catalogue: catalogue.note_use(used))
        except Exception:
            # Whoever calls with a good key is let in all the same.
            observability.BACKGROUND_FAILURES.labels("note_key_use").inc()
            logger.exception("could not note that a key was used", extra={"key_id": str(record.id)})


def new_secret() -> str:
    """A key nobody can guess."""
    return PREFIX + secrets.token_urlsafe(_SECRET_BYTES)


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
