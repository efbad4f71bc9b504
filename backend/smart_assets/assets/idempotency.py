"""A request under an Idempotency-Key is carried out once, however often it is sent.

The key is claimed before anything of the body is read, as rows are: under the process's lease, so that a crash frees it
when the lease has run out. What came of the request is remembered in the transaction that makes its assets `ready`:
either both are durable, or neither.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from smart_assets import observability
from smart_assets.assets.lease import Lease
from smart_assets.assets.uploads import Failure, UploadedAsset
from smart_assets.catalogue.database import Database
from smart_assets.catalogue.models import JsonObject, KeyRecord
from smart_assets.catalogue.repository import Repository
from smart_assets.errors import (
    AssetGone,
    BodyTooLarge,
    Busy,
    DecoderFailed,
    IdempotencyConflict,
    IdempotencyError,
    IdempotencyInProgress,
    ImageError,
    InputError,
    InvalidParameter,
    RepeatedError,
    SmartAssetsError,
    SourceUnavailable,
)

logger = logging.getLogger(__name__)

KEPT = timedelta(hours=24)

_ABOUT_THE_CONTENT = (ImageError, InvalidParameter, BodyTooLarge)
_MAY_PASS = (DecoderFailed, SourceUnavailable)


def is_about_the_content(error: SmartAssetsError) -> bool:
    """Whether a refusal would be the same again; what else fails is worth another try under the same key."""
    return isinstance(error, _ABOUT_THE_CONTENT) and not isinstance(error, _MAY_PASS)


def fingerprint(*parts: Any) -> str:
    """A hash of JSON values: the same for the same values, whatever the order of an object's members."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


class Attempt:
    """One request under a key: the first, or one that comes again."""

    def __init__(self, database: Database, record: KeyRecord) -> None:
        """`record` is what the catalogue has."""
        self._database = database
        self._record = record
        self.is_first = record.outcome is None
        self.is_remembered = not self.is_first

    def check_body(self, body: str) -> None:
        """Now that the body is read, `body` is its fingerprint. IdempotencyConflict where the first's is another."""
        if self.is_first:
            self._record = replace(self._record, body=body)
        elif self._record.body != body:
            raise IdempotencyConflict("this Idempotency-Key was used with another body")

    # ── The first ───────────────────────────────────────────────────────────────────────────────────────────────────

    def remember(self, catalogue: Repository, outcomes: Sequence[UploadedAsset | Failure]) -> None:
        """Within the transaction that closes the request: what came of it. Busy where the key was lost meanwhile.

        Nothing is remembered where nothing was kept and any of it may succeed when it is tried again.
        """
        failures = [outcome.error for outcome in outcomes if isinstance(outcome, Failure)]
        if len(failures) == len(outcomes) and not all(is_about_the_content(error) for error in failures):
            return
        self._finish(catalogue, {"files": [told(outcome) for outcome in outcomes]})

    async def remember_refusal(self, error: SmartAssetsError) -> None:
        """Remember that the request was refused, where that was for what it sent."""
        if is_about_the_content(error):
            told = {"code": error.code, "detail": error.detail}
            errors = [{"loc": list(wrong.loc), "message": wrong.message} for wrong in error.errors]
            outcome: JsonObject = {"refused": {**told, "errors": errors}}
            await self._database.write(lambda catalogue: self._finish(catalogue, outcome))

    def _finish(self, catalogue: Repository, outcome: JsonObject) -> None:
        if not catalogue.finish_key(replace(self._record, outcome=outcome)):
            raise Busy("the request took too long, and its Idempotency-Key was freed; try again")
        self.is_remembered = True

    # ── One that comes again ────────────────────────────────────────────────────────────────────────────────────────

    async def recall(self) -> list[UploadedAsset | Failure] | None:
        """What came of the first request, its assets as they are now; None where nothing of it was kept.

        RepeatedError where it was refused, AssetGone where any of its assets was deleted since.
        """
        outcome = self._record.outcome or {}
        if "refused" in outcome:
            raise repeated(outcome["refused"])
        ids = [UUID(file["asset"]) for file in outcome["files"] if file.get("asset")]
        found = await self._database.read(
            # Of whichever owner: an admin may have added to another's.
            lambda catalogue: {str(asset_id): catalogue.get(asset_id) for asset_id in ids}
        )
        outcomes: list[UploadedAsset | Failure] = []
        for file in outcome["files"]:
            if "refused" in file:
                outcomes.append(Failure(repeated(file["refused"])))
                continue
            if file["asset"] is None:
                return None
            record = found[file["asset"]]
            if record is None:
                raise AssetGone("what this request made was deleted since")
            lacking = tuple(Failure(repeated(failure), failure["size"]) for failure in file["failed"])
            outcomes.append(UploadedAsset(record, lacking))
        return outcomes


class Idempotency:
    """The keys of all owners."""

    def __init__(self, database: Database, lease: Lease) -> None:
        """Over the catalogue, under this process's lease."""
        self._database = database
        self._lease = lease

    @asynccontextmanager
    async def attempt(self, owner: str, key: str, request: str) -> AsyncIterator[Attempt]:
        """Carry out a request, of fingerprint `request`, under a key.

        The first to come has the key until the context ends: then its outcome was remembered, or the key is free
        again. IdempotencyConflict where the key was used for another request, IdempotencyInProgress where the first
        still runs.
        """
        with self._lease.claim() as claim:
            record = KeyRecord(owner=owner, key=key, request=request, created_at=datetime.now(UTC), claim=claim)
            attempt: Attempt | None = None
            try:
                known = await self._database.write(lambda catalogue: self._begin(catalogue, record))
                attempt = Attempt(self._database, known)
                yield attempt
            except IdempotencyError:
                raise
            except BaseException:
                if attempt is None or attempt.is_first:
                    await asyncio.shield(self._free(record))
                raise
            if attempt.is_first and not attempt.is_remembered:
                await asyncio.shield(self._free(record))

    def _begin(self, catalogue: Repository, record: KeyRecord) -> KeyRecord:
        known = catalogue.find_key(record.owner, record.key)
        if known is not None and self._is_free(known, record.created_at):
            catalogue.free_key(known)
            known = None
        if known is None:
            if not catalogue.claim_key(record):  # another process was faster
                raise _in_progress()
            return record
        if known.request != record.request:
            raise IdempotencyConflict("this Idempotency-Key was used for another request")
        if known.outcome is None:
            raise _in_progress()
        return known

    def _is_free(self, known: KeyRecord, now: datetime) -> bool:
        """Whether anybody may have a key again: it was kept long enough, or a task of this process gave it up."""
        if known.outcome is not None:
            return known.created_at <= now - KEPT
        ours = (known.claim or "").startswith(f"{self._lease.id}/")
        return ours and known.claim not in self._lease.held

    async def _free(self, record: KeyRecord) -> None:
        """Let the key go if this request still has it; never raises."""
        try:
            await self._database.write(lambda catalogue: catalogue.free_key(record))
        except Exception:
            # It stays under a claim that nobody holds: whoever wants it next, or `maintenance.reconcile`, frees it.
            observability.BACKGROUND_FAILURES.labels("free_idempotency_key").inc()
            logger.exception("could not free an idempotency key", extra={"owner": record.owner})


def _in_progress() -> IdempotencyInProgress:
    return IdempotencyInProgress("the first request under this Idempotency-Key still runs; try again")


def told(outcome: UploadedAsset | Failure) -> JsonObject:
    """What is remembered of a file."""
    if isinstance(outcome, Failure):
        return {"refused": {"code": outcome.error.code, "detail": outcome.error.detail}}
    kept = outcome.data_urls is None
    failed = [
        {"size": failure.size, "code": failure.error.code, "detail": failure.error.detail} for failure in outcome.failed
    ]
    return {"asset": str(outcome.record.id) if kept else None, "failed": failed}


def repeated(told: JsonObject) -> RepeatedError:
    """What was remembered of a refusal, as an error again."""
    errors = tuple(InputError(tuple(wrong["loc"]), wrong["message"]) for wrong in told.get("errors", ()))
    return RepeatedError(told["code"], told["detail"], errors=errors)
