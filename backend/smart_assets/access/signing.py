"""Signed URLs: whoever holds one may do one thing until it expires: fetch one object, or what a ticket is for.

The signature is HMAC-SHA256 (RFC 2104) over a purpose, the object's key, the expiry and the id of the signing key, so
none of them can be exchanged and a signature made for one thing is good for nothing else. Each purpose but delivery has
keys of its own besides, derived from the signing keys.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from smart_assets.errors import ConfigurationError, SignatureExpired, SignatureInvalid, SignatureRequired
from smart_assets.expiry import expiry_window
from smart_assets.settings import Settings

_DELIVERY = "smart-assets/delivery/1"
_DERIVATION = "smart-assets/derived-key/1"
_KEY_FILE = "signing.key"
_EXPIRY = re.compile(r"[1-9][0-9]{0,11}(\.[0-9]{1,3})?", re.ASCII)


@dataclass(frozen=True)
class Signature:
    """What goes into a URL's query, and when it stops being good."""

    query: str
    expires_at: datetime


class UrlSigner:
    """Signs with the first of its keys, verifies with all of them, so keys can be exchanged without breaking links."""

    def __init__(
        self, signing_keys: Sequence[str], clock: Callable[[], float] = time.time, *, purpose: str = _DELIVERY
    ) -> None:
        """`clock` gives Unix seconds; for any `purpose` but delivery the keys are derived from the `signing_keys`."""
        self._signing_keys = tuple(signing_keys)
        self._keys = {_key_id(key): _key_for(purpose, key.encode()) for key in signing_keys}
        self._first = _key_id(signing_keys[0])
        self._clock = clock
        self._purpose = purpose

    @classmethod
    def from_settings(cls, settings: Settings, temporary_dir: Path) -> Self:
        """With the keys set, else with the one kept in the data directory, which is made where there is none yet."""
        keys = [key.get_secret_value() for key in settings.signing_keys]
        return cls(keys or [kept_signing_key(settings.data_dir, temporary_dir)])

    def for_purpose(self, purpose: str) -> UrlSigner:
        """A signer for something else than delivery, of the same keys: what either signs the other finds invalid."""
        return UrlSigner(self._signing_keys, self._clock, purpose=purpose)

    def sign(self, key: str, expiry_seconds: int) -> Signature:
        """A signature good for at most `expiry_seconds` from now.

        The expiry is rounded down to a window of a tenth of that, at most an hour: calls within a window get the same
        string, so caches work.
        """
        return self._signed(key, expiry_window(self._clock(), expiry_seconds))

    def sign_until(self, key: str, expires_at: datetime) -> Signature:
        """A signature good until then, to the millisecond."""
        return self._signed(key, int(expires_at.timestamp() * 1000))

    def _signed(self, key: str, expires_ms: int) -> Signature:
        expires = _format_expiry(expires_ms)
        signature = _signature(self._keys[self._first], self._purpose, self._first, key, expires)
        return Signature(
            f"exp={expires}&kid={self._first}&sig={signature}", datetime.fromtimestamp(expires_ms / 1000, tz=UTC)
        )

    def verify(self, key: str, query: Mapping[str, str]) -> float:
        """The seconds `query`'s signature over `key` still has.

        Raises SignatureRequired, SignatureInvalid or SignatureExpired; which key ids exist shows in none of them.
        """
        signature = query.get("sig")
        if not signature:
            raise SignatureRequired("this asset is private: ask the API for a signed URL")
        expires = query.get("exp", "")
        key_id = query.get("kid", "")
        secret = self._keys.get(key_id, b"")
        genuine = hmac.compare_digest(
            _signature(secret, self._purpose, key_id, key, expires).encode(), signature.encode("utf-8", "replace")
        )
        if not (genuine and secret and _EXPIRY.fullmatch(expires)):
            raise SignatureInvalid("the signature does not fit this URL")
        left = float(expires) - self._clock()
        if left <= 0:
            raise SignatureExpired("the signed URL has expired")
        return left


def _format_expiry(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds}.{rest:03}".rstrip("0") if rest else str(seconds)


def _key_id(key: str) -> str:
    """Names a key without giving anything of it away."""
    return hashlib.sha256(b"kid:" + key.encode()).hexdigest()[:8]


def _key_for(purpose: str, key: bytes) -> bytes:
    """A key of each purpose's own. No message of a delivery begins as what it is derived by."""
    return key if purpose == _DELIVERY else hmac.digest(key, f"{_DERIVATION}\n{purpose}".encode(), "sha256")


def _signature(secret: bytes, purpose: str, key_id: str, key: str, expires: str) -> str:
    # No part can hold a line feed (keys have no control characters), so no two inputs run into the same message.
    message = f"{purpose}\n{key_id}\n{expires}\n{key}".encode("utf-8", "replace")
    digest = hmac.digest(secret, message, "sha256")
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def kept_signing_key(data_dir: Path, temporary_dir: Path) -> str:
    """The signing key of this data directory; made once, and by exactly one of any number of processes.

    The file is made in `temporary_dir`, on the same file system, and linked into place whole, so nobody reads half a
    key; mode 0600.
    """
    path = data_dir / _KEY_FILE
    try:
        if not path.exists():
            descriptor, temporary = tempfile.mkstemp(dir=temporary_dir, prefix="signing-")
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(secrets.token_urlsafe(48))
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(temporary, path)
            except FileExistsError:
                pass  # another process was faster; its key is the one
            except OSError:
                Path(temporary).replace(path)  # a file system without links has no second process to race with
            finally:
                Path(temporary).unlink(missing_ok=True)
        key = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the signing key in the data directory cannot be used: {error}") from error
    if len(key) < 32:
        raise ConfigurationError("the signing key in the data directory is damaged: remove signing.key to make another")
    return key
