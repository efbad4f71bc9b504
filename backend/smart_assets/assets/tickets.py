"""Upload tickets: leave to upload one file without a key, as whoever made the ticket said.

A ticket is a row, and what is given away is a signed URL that names it: what the upload is to be stands in the row,
where nobody who has the URL reaches it. It is good for one file. Whoever uploads claims it, under the process's lease,
as a request claims its Idempotency-Key; that it was used is put down in the transaction that makes the asset `ready`;
whatever fails, or dies, leaves it as it was. The same file again is answered again: the answer may have been lost.

Where the storage lets strangers write one object, a ticket may lead there (`Way.BUCKET`): the file lies at a key of its
own under `private/incoming/`, from where nothing is ever delivered, until `complete` has read it like any other upload.
What was never completed is removed by `maintenance.tickets`, by the row that names it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from uuid import UUID

from pydantic import TypeAdapter
from uuid_utils.compat import uuid7

from smart_assets import observability
from smart_assets.access.api_keys import Caller
from smart_assets.access.signing import UrlSigner
from smart_assets.assets.idempotency import is_about_the_content, repeated, told
from smart_assets.assets.lease import Lease
from smart_assets.assets.spool import Spool
from smart_assets.assets.uploads import Failure, Upload, UploadedAsset, UploadOptions, Uploads
from smart_assets.catalogue.database import Database
from smart_assets.catalogue.models import JsonObject, TicketRecord
from smart_assets.catalogue.repository import Repository
from smart_assets.errors import (
    AssetGone,
    Busy,
    DigestMismatch,
    Forbidden,
    InvalidParameter,
    SignatureRequired,
    SmartAssetsError,
    TicketInUse,
    TicketNotFound,
    TicketUsed,
    UploadMissing,
)
from smart_assets.settings import TicketSettings
from smart_assets.storage.base import PresignedUpload
from smart_assets.storage.errors import ObjectNotFound, StorageNotConfigured
from smart_assets.storage.keys import incoming_key
from smart_assets.storage.registry import Storages
from smart_assets.threads import Threads

logger = logging.getLogger(__name__)

_PURPOSE = "smart-assets/upload-ticket/1"
_OPTIONS = TypeAdapter(UploadOptions)


class Way(StrEnum):
    """How a ticket's file comes."""

    SERVICE = "service"
    BUCKET = "bucket"
    """To the storage itself, and is completed afterwards."""


class Act(StrEnum):
    """What a ticket's signature is for."""

    UPLOAD = "upload"
    COMPLETE = "complete"


@dataclass(frozen=True, kw_only=True)
class Wish:
    """The upload a ticket is for. What is None is not said: then the `filename` is the sender's, where one is sent,
    and the bytes may be any (`sha256`: in hexadecimal)."""

    options: UploadOptions
    metadata: JsonObject
    max_bytes: int
    way: Way = Way.SERVICE
    filename: str | None = None
    sha256: str | None = None

    def to_json(self) -> JsonObject:
        """What a row remembers of it beside what has a column of its own."""
        options = _OPTIONS.dump_python(self.options, mode="json")
        return {"options": options, "metadata": self.metadata, "filename": self.filename, "sha256": self.sha256}

    @classmethod
    def of(cls, record: TicketRecord) -> Wish:
        """What the row remembers."""
        wanted = record.wanted
        return cls(
            options=_OPTIONS.validate_python(wanted["options"]),
            metadata=wanted["metadata"],
            max_bytes=record.max_bytes,
            way=Way.SERVICE if record.incoming is None else Way.BUCKET,
            filename=wanted["filename"],
            sha256=wanted["sha256"],
        )


@dataclass(frozen=True)
class Taken:
    """What became of a ticket's file; `replayed`: some time before, and this is the same answer again."""

    outcome: UploadedAsset
    replayed: bool


class Tickets:
    """The use-case; one for the process."""

    def __init__(
        self,
        settings: TicketSettings,
        database: Database,
        storages: Storages,
        lease: Lease,
        uploads: Uploads,
        signer: UrlSigner,
        threads: Threads,
        temporary_dir: Path,
    ) -> None:
        """Everything it needs is built, and closed, by `runtime`; `signer` is that of deliveries."""
        self._settings = settings
        self._database = database
        self._storages = storages
        self._lease = lease
        self._uploads = uploads
        self._signer = signer.for_purpose(_PURPOSE)
        self._threads = threads
        self._temporary_dir = temporary_dir

    async def make(self, wish: Wish, maker: Caller, expiry_seconds: int) -> tuple[TicketRecord, PresignedUpload | None]:
        """A new ticket, and where its file is to go, where that is not the service. It ends with the credentials that
        are behind that, at the latest. Unsupported where the storage lets no strangers write."""
        ticket_id = uuid7()
        now = datetime.now(UTC)
        record = TicketRecord(
            id=ticket_id,
            owner=maker.owner,
            key_id=maker.key_id,
            storage=wish.options.storage,
            incoming=incoming_key(ticket_id) if wish.way is Way.BUCKET else None,
            max_bytes=wish.max_bytes,
            wanted=wish.to_json(),
            created_at=now,
            expires_at=now.replace(microsecond=0) + timedelta(seconds=expiry_seconds),
        )
        presigned = None
        backend = self._storages.get(record.storage)
        if record.incoming is not None:
            presigned = await backend.presign_upload(
                record.incoming, max_bytes=record.max_bytes, expires_at=record.expires_at
            )
            record = replace(record, expires_at=presigned.expires_at)
        # Before anybody is told: whatever comes to lie in the storage is named by a row.
        await self._database.write(lambda catalogue: catalogue.insert_ticket(record))
        return record, presigned

    def query(self, record: TicketRecord, act: Act) -> str:
        """What a URL's query holds, that whoever has it may do that with the ticket."""
        ends = record.expires_at
        if act is Act.COMPLETE:
            ends += timedelta(seconds=self._settings.grace_seconds)
        return self._signer.sign_until(_signed(record.id, act), ends).query

    def verify(self, ticket_id: UUID, act: Act, query: Mapping[str, str]) -> None:
        """Whether a query's signature lets its sender do that. Nobody is asked.

        Raises SignatureRequired, SignatureInvalid or SignatureExpired.
        """
        if not query.get("sig"):
            raise SignatureRequired("without a key an upload takes the URL of a ticket, whole")
        self._signer.verify(_signed(ticket_id, act), query)

    async def get(self, ticket_id: UUID, owner: str | None) -> TicketRecord:
        """A ticket; with `owner`, only of that owner. TicketNotFound where there is none."""
        record = await self._database.read(lambda catalogue: catalogue.find_ticket(ticket_id, owner))
        if record is None:
            raise _not_found()
        return record

    # ── Using one ───────────────────────────────────────────────────────────────────────────────────────────────────

    @asynccontextmanager
    async def use(self, ticket_id: UUID, owner: str | None = None) -> AsyncIterator[Use]:
        """Use a ticket, of that owner where one is given, as long as the context lasts; it is free again if that fails.

        TicketNotFound where there is none, TicketInUse while somebody else is at it, Forbidden where the key it was
        made with opens nothing any more.
        """
        with self._lease.claim() as claim:
            record = await self._database.write(lambda catalogue: self._begin(catalogue, ticket_id, owner, claim))
            use = Use(record, self._database, self._uploads)
            try:
                yield use
            except BaseException:
                if use.is_first:
                    await asyncio.shield(self._free(record))
                raise

    async def complete(self, ticket_id: UUID, owner: str | None = None) -> Taken:
        """Look at what was uploaded to the storage itself, and make the asset of it; of that owner, where one is given.

        As often as it is asked, there is one asset: the next time it is answered again. What lay there is gone
        afterwards, unless it could not be looked at now. UploadMissing where nothing lies there.
        """
        async with self.use(ticket_id, owner) as use:
            if use.is_first:
                taken = Taken(await self._look_at(use), replayed=False)
            else:
                outcome = await use.recall()
                if outcome is None:
                    raise AssetGone("what this ticket was used for was not kept")
                taken = Taken(outcome, replayed=True)
            await self._discard(use.record)
        return taken

    async def _look_at(self, use: Use) -> UploadedAsset:
        record = use.record
        if record.incoming is None:
            raise _missing()
        try:
            async with Spool(self._temporary_dir, record.max_bytes, self._threads) as spool:
                await self._fetch(record.storage, record.incoming, spool)
                return (await use.take(spool, None)).outcome
        except SmartAssetsError as error:
            # It would be refused again: there is room for another. Whatever else failed may not, the next time.
            if is_about_the_content(error) or isinstance(error, DigestMismatch):
                await self._discard(record)
            raise

    async def _fetch(self, storage: str, key: str, spool: Spool) -> None:
        try:
            async with aclosing(self._storages.get(storage).open(key)) as chunks:
                async for chunk in chunks:
                    await spool.write(chunk)
        except ObjectNotFound:
            raise _missing() from None
        await spool.finish()
        if spool.size == 0:
            raise InvalidParameter("the file is empty")

    async def _discard(self, record: TicketRecord) -> None:
        """Remove what lies there, as well as can be done now; never raises. `maintenance.tickets` removes the rest."""
        if record.incoming is not None:
            with suppress(StorageNotConfigured):  # any more
                await asyncio.shield(self._storages.get(record.storage).cleanup_failed_assets([record.incoming]))

    def _begin(self, catalogue: Repository, ticket_id: UUID, owner: str | None, claim: str) -> TicketRecord:
        known = catalogue.find_ticket(ticket_id, owner)
        if known is None:
            raise _not_found()
        if known.key_id is not None:
            key = catalogue.get_api_key(known.key_id)
            if key is None or (key.expires_at is not None and key.expires_at <= datetime.now(UTC)):
                raise Forbidden("the key this ticket was made with was revoked, or has expired")
        if known.outcome is not None:
            return known
        ours = (known.claim or "").startswith(f"{self._lease.id}/")
        is_free = known.claim is None or (ours and known.claim not in self._lease.held)
        if not is_free or not catalogue.claim_ticket(known, claim):
            raise TicketInUse("a file is just being uploaded with this ticket; try again")
        return replace(known, claim=claim)

    async def _free(self, record: TicketRecord) -> None:
        """Let the ticket go if it is still in our hands; never raises."""
        try:
            await self._database.write(lambda catalogue: catalogue.free_ticket(record))
        except Exception:
            # It stays under a claim that nobody holds: whoever wants it next, or `maintenance.reconcile`, frees it.
            observability.BACKGROUND_FAILURES.labels("free_ticket").inc()
            logger.exception("could not free an upload ticket", extra={"ticket": str(record.id)})


class Use:
    """One use of a ticket: the first, or one that comes again."""

    def __init__(self, record: TicketRecord, database: Database, uploads: Uploads) -> None:
        """`record` is what the catalogue has."""
        self.record = record
        self.wish = Wish.of(record)
        self.is_first = record.outcome is None
        self._database = database
        self._uploads = uploads

    async def take(self, spool: Spool, filename: str | None) -> Taken:
        """Make the asset of a finished file, or find the one that was made of the same file before.

        TicketUsed where that was another file. Whatever else is raised, the ticket can be used again.
        """
        sent = spool.sha256
        if self.record.outcome is not None:
            if self.record.outcome["sent"] != sent:
                raise TicketUsed("this ticket was used for another file")
            if (outcome := await self.recall()) is not None:
                return Taken(outcome, replayed=True)
        wish = self.wish
        if wish.sha256 not in {None, sent}:
            raise DigestMismatch("the sha-256 of the file is another than its ticket says")

        def remember(catalogue: Repository, outcomes: list[UploadedAsset | Failure]) -> None:
            if isinstance(outcomes[0], UploadedAsset):
                self._finish(catalogue, {"sent": sent, "file": told(outcomes[0])})

        (made,) = await self._uploads.upload(
            [Upload(spool, wish.filename or filename)],
            wish.options,
            owner=self.record.owner,
            metadata=wish.metadata,
            key_id=self.record.key_id,
            is_charged=self.is_first,
            also=remember if self.is_first else None,
        )
        if isinstance(made, Failure):
            raise made.error
        return Taken(made, replayed=not self.is_first)

    def _finish(self, catalogue: Repository, outcome: JsonObject) -> None:
        if not catalogue.finish_ticket(replace(self.record, outcome=outcome)):
            raise Busy("the upload took too long, and its ticket was freed; try again")

    async def recall(self) -> UploadedAsset | None:
        """What was made with the ticket, as it is now; None where nothing was kept of it.

        AssetGone where it was deleted since.
        """
        file = (self.record.outcome or {})["file"]
        if file["asset"] is None:
            return None
        asset_id = UUID(file["asset"])
        record = await self._database.read(lambda catalogue: catalogue.get(asset_id))
        if record is None:
            raise AssetGone("what this ticket made was deleted since")
        return UploadedAsset(record, tuple(Failure(repeated(each), each["size"]) for each in file["failed"]))


def asset_of(record: TicketRecord) -> str | None:
    """The id of the asset that was made with a ticket; None where none was, or none was kept."""
    asset: str | None = record.outcome["file"]["asset"] if record.outcome is not None else None
    return asset


def _signed(ticket_id: UUID, act: Act) -> str:
    return f"{act}/{ticket_id}"


def _not_found() -> TicketNotFound:
    return TicketNotFound("there is no such ticket")


def _missing() -> UploadMissing:
    return UploadMissing("nothing was uploaded with this ticket yet")
