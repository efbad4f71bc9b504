"""Every step at which the service is killed. Data only: `service` makes faults of it, `harness` plays it.

A SIGKILL is no power cut: what a process has written stays in the page cache. Where a step lies between a write and
its sync, what is shown is that the half-done work is cleared up, not that the sync is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal


class Scene(Enum):
    """What the service is asked for when it dies: a function of `scenes`, but for the last two."""

    SMALL_UPLOAD = auto()
    """A few KB, no sizes: in memory until it is stored."""
    LARGE_UPLOAD = auto()
    """More than is kept in memory, no sizes."""
    SIZED_UPLOAD = auto()
    BATCH = auto()
    DAMAGED_BATCH = auto()
    """Two files, one damaged behind its header: refused, and what was stored of it is undone."""
    DELETION = auto()
    GROWTH = auto()
    """Sizes are added to an asset that is there."""
    PUBLISHING = auto()
    WITHDRAWAL = auto()
    MOVE = auto()
    """To the cellar."""
    KEYED_UPLOAD = auto()
    KEYED_BATCH = auto()
    KEYED_REFUSAL = auto()
    """A damaged file under a key: the refusal is remembered."""
    KEYED_MISTAKE = auto()
    """A body of the wrong type under a key: nothing is remembered, the key is free again."""
    TICKET_UPLOAD = auto()
    """With a ticket, to the service."""
    TICKET_COMPLETION = auto()
    """Of what was uploaded to the cellar, past the service, with a ticket."""
    START = auto()
    """No request: it dies while it starts."""
    REPAIR = auto()
    """No request: it dies while it finishes what the process of another step (`after`) left."""


class Remains(Enum):
    """What must be there once all is settled, and before any request is sent again."""

    NOTHING = auto()
    """No row and no byte of what was uploaded or deleted, and no answer under a key."""
    WHOLE = auto()
    """Every file with every size; under a key, the answer too."""
    ANSWER = auto()
    """Nothing but the answer, under its key."""
    PRIVATE = auto()
    PUBLIC = auto()
    AS_BEFORE = auto()
    """The asset, with the sizes it had."""
    GROWN = auto()
    """The asset, with all that were added."""
    STAYED = auto()
    """The asset, whole, where it was."""
    MOVED = auto()


NOTHING, WHOLE, ANSWER, PRIVATE, PUBLIC, AS_BEFORE, GROWN, STAYED, MOVED = Remains


@dataclass(frozen=True)
class Point:
    """A place in the service's code, named `module:Class.method`.

    `before` or `after` its first call (of a coroutine: its end), or once the transaction is `committed` in which that
    method of the repository was called; there, calls that returned False or 0 changed nothing, and do not count. With
    `about`, the first call that has an argument with that in it.
    """

    moment: Literal["before", "after", "committed"]
    target: str
    about: str = ""


@dataclass(frozen=True)
class Step:
    """The process is killed at `point` while `scene` is played. A repair finds what the step `after` left."""

    name: str
    scene: Scene
    point: Point
    remains: Remains
    after: str = ""

    def is_on(self, storage: str) -> bool:
        """Whether this storage has the step."""
        only = {"smart_assets.storage.local": "local", "botocore.client": "s3"}
        return only.get(self.point.target.partition(":")[0], storage) == storage


CELLAR = "cellar"
"""A second storage, on the same disk, that every service has: where assets are moved to."""

PRICES = {"per_original": 5, "per_size": 1}
"""Of every service: what an asset cost tells what was made of it."""

A_SIZE = "120"
"""A size that every scene with sizes asks for."""

A_LATER_SIZE = "90"
"""One of those that are added later."""

_SPOOL = "smart_assets.assets.spool:Spool"
_UPLOADS = "smart_assets.assets.uploads:Uploads"
_SETTLING = "smart_assets.assets.settling:Settling"
_RENDERER = "smart_assets.imaging.workers:RenderPool"
_REPOSITORY = "smart_assets.catalogue.repository:Repository"
_STORAGE = "smart_assets.storage.base:StorageBackend"
_LOCAL = "smart_assets.storage.local:LocalStorage"
_S3_CALL = "botocore.client:BaseClient._make_api_call"


def _before(target: str, about: str = "") -> Point:
    return Point("before", target, about)


def _after(target: str, about: str = "") -> Point:
    return Point("after", target, about)


def _written(method: str) -> Point:
    """Within the transaction."""
    return Point("after", f"{_REPOSITORY}.{method}")


def _committed(method: str) -> Point:
    return Point("committed", f"{_REPOSITORY}.{method}")


def _upload() -> Iterator[Step]:
    small, large, sized = Scene.SMALL_UPLOAD, Scene.LARGE_UPLOAD, Scene.SIZED_UPLOAD
    yield Step("upload: first bytes on disk", large, _after(f"{_SPOOL}._append"), NOTHING)
    yield Step("upload: body read", large, _after(f"{_SPOOL}.finish"), NOTHING)
    yield Step("upload: file made for the workers", sized, _after(f"{_SPOOL}.as_file"), NOTHING)
    yield Step("upload: intent, in its transaction", sized, _written("insert_pending"), NOTHING)
    yield Step("upload: intent durable", sized, _committed("insert_pending"), NOTHING)
    yield Step("upload: copy written, not linked", small, _before(f"{_LOCAL}._link"), NOTHING)
    yield Step("upload: copy linked, not removed", small, _after(f"{_LOCAL}._link"), NOTHING)
    yield Step("upload: the body's own file linked", large, _after(f"{_LOCAL}._link"), NOTHING)
    yield Step("upload: original stored", sized, _after(f"{_STORAGE}.upload", ".original."), NOTHING)
    yield Step("upload: workers begin", sized, _after("pebble:ProcessPool.schedule"), NOTHING)
    yield Step("upload: sizes rendered", sized, _after(f"{_RENDERER}.render"), NOTHING)
    yield Step("upload: one size stored", sized, _after(f"{_STORAGE}.upload", f".{A_SIZE}."), NOTHING)
    yield Step("upload: before closing", sized, _before(f"{_REPOSITORY}.mark_ready"), NOTHING)
    yield Step("upload: closed, in its transaction", sized, _written("mark_ready"), NOTHING)
    yield Step("upload: charged, in its transaction", sized, _written("charge"), NOTHING)
    yield Step("upload: closed, not answered", sized, _committed("mark_ready"), WHOLE)
    yield Step("upload: temporary file removed", large, _after(f"{_SPOOL}.discard"), WHOLE)
    yield Step("upload: answered", small, _after("starlette.responses:Response.__call__"), WHOLE)


def _batch() -> Iterator[Step]:
    batch, damaged = Scene.BATCH, Scene.DAMAGED_BATCH
    yield Step("batch: intents, in their transaction", batch, _written("insert_pending"), NOTHING)
    yield Step("batch: intents durable", batch, _committed("insert_pending"), NOTHING)
    yield Step("batch: one original stored", batch, _after(f"{_STORAGE}.upload", ".original."), NOTHING)
    yield Step("batch: one file whole", batch, _after(f"{_UPLOADS}._make"), NOTHING)
    yield Step("batch: everything stored", batch, _after(f"{_UPLOADS}._make_all"), NOTHING)
    yield Step("batch: one row closed, in its transaction", batch, _written("mark_ready"), NOTHING)
    yield Step("batch: closed, not answered", batch, _committed("mark_ready"), WHOLE)
    yield Step("undoing: one row given up", damaged, _committed("give_up_pending"), NOTHING)
    yield Step("undoing: one object removed", damaged, _after(f"{_STORAGE}._try_to_remove"), NOTHING)
    yield Step("undoing: one file's objects removed", damaged, _after(f"{_STORAGE}.cleanup_failed_assets"), NOTHING)
    yield Step("undoing: one row removed", damaged, _committed("remove"), NOTHING)


def _deletion() -> Iterator[Step]:
    scene = Scene.DELETION
    yield Step("deletion: begun, in its transaction", scene, _written("begin_deleting"), WHOLE)
    yield Step("deletion: begun", scene, _committed("begin_deleting"), NOTHING)
    yield Step("deletion: one object removed", scene, _after(f"{_STORAGE}._try_to_remove"), NOTHING)
    yield Step("deletion: objects removed", scene, _after(f"{_STORAGE}.cleanup_failed_assets"), NOTHING)
    yield Step("deletion: row removed, in its transaction", scene, _written("remove"), NOTHING)
    yield Step("deletion: row removed, not answered", scene, _committed("remove"), NOTHING)


def _growth() -> Iterator[Step]:
    scene = Scene.GROWTH
    stored = _after(f"{_STORAGE}.upload", f".{A_LATER_SIZE}.")
    yield Step("later sizes: begun, in its transaction", scene, _written("begin_growing"), AS_BEFORE)
    yield Step("later sizes: begun", scene, _committed("begin_growing"), AS_BEFORE)
    yield Step("later sizes: original fetched", scene, _after(f"{_SPOOL}.finish"), AS_BEFORE)
    yield Step("later sizes: workers begin", scene, _after("pebble:ProcessPool.schedule"), AS_BEFORE)
    yield Step("later sizes: rendered", scene, _after(f"{_RENDERER}.render"), AS_BEFORE)
    yield Step("later sizes: one stored", scene, stored, AS_BEFORE)
    yield Step("later sizes: all stored", scene, _before(f"{_REPOSITORY}.finish_growing"), AS_BEFORE)
    yield Step("later sizes: closed, in its transaction", scene, _written("finish_growing"), AS_BEFORE)
    yield Step("later sizes: charged, in its transaction", scene, _written("charge"), AS_BEFORE)
    yield Step("later sizes: closed, not answered", scene, _committed("finish_growing"), GROWN)


def _change(name: str, scene: Scene, was: Remains, becomes: Remains) -> Iterator[Step]:
    """A change of visibility. One that had begun and was not closed ends private, whichever way it was going."""
    yield Step(f"{name}: begun, in its transaction", scene, _written("begin_moving"), was)
    yield Step(f"{name}: begun", scene, _committed("begin_moving"), PRIVATE)
    yield Step(f"{name}: one object under both names", scene, _after(f"{_LOCAL}._place_again"), PRIVATE)
    yield Step(f"{name}: one object under both keys", scene, _before(_S3_CALL, "DeleteObject"), PRIVATE)
    yield Step(f"{name}: one object moved", scene, _after(f"{_STORAGE}.set_visibility"), PRIVATE)
    yield Step(f"{name}: every object moved", scene, _after(f"{_SETTLING}._set_visibility"), PRIVATE)
    yield Step(f"{name}: closed, in its transaction", scene, _written("finish_moving"), PRIVATE)
    yield Step(f"{name}: closed, not answered", scene, _committed("finish_moving"), becomes)


def _move() -> Iterator[Step]:
    """Undone before the row is switched, and finished from there on."""
    scene = Scene.MOVE
    emptied = _before(f"{_REPOSITORY}.close_move")
    yield Step("move: begun, in its transaction", scene, _written("begin_moving_to"), STAYED)
    yield Step("move: begun", scene, _committed("begin_moving_to"), STAYED)
    yield Step("move: one object fetched", scene, _after(f"{_SPOOL}.finish"), STAYED)
    yield Step("move: original copied", scene, _after(f"{_STORAGE}.upload", ".original."), STAYED)
    yield Step("move: one size copied", scene, _after(f"{_STORAGE}.upload", f".{A_SIZE}."), STAYED)
    yield Step("move: every object copied", scene, _before(f"{_REPOSITORY}.switch_storage"), STAYED)
    yield Step("move: switched, in its transaction", scene, _written("switch_storage"), STAYED)
    yield Step("move: switched", scene, _committed("switch_storage"), MOVED)
    yield Step("move: one old copy removed", scene, _after(f"{_STORAGE}._try_to_remove"), MOVED)
    yield Step("move: old copies removed", scene, emptied, MOVED)
    yield Step("move: closed, in its transaction", scene, _written("close_move"), MOVED)
    yield Step("move: closed, not answered", scene, _committed("close_move"), MOVED)


def _key() -> Iterator[Step]:
    upload, batch = Scene.KEYED_UPLOAD, Scene.KEYED_BATCH
    yield Step("key: claimed, in its transaction", upload, _written("claim_key"), NOTHING)
    yield Step("key: claimed", upload, _committed("claim_key"), NOTHING)
    yield Step("key: body read", upload, _after("smart_assets.assets.idempotency:Attempt.check_body"), NOTHING)
    yield Step("key: upload's intent durable", upload, _committed("insert_pending"), NOTHING)
    yield Step("key: upload stored, not closed", upload, _after(f"{_UPLOADS}._make_all"), NOTHING)
    yield Step("key: upload closed, in its transaction", upload, _written("finish_key"), NOTHING)
    yield Step("key: upload closed, not answered", upload, _committed("finish_key"), WHOLE)
    yield Step("key: one file of a batch whole", batch, _after(f"{_UPLOADS}._make"), NOTHING)
    yield Step("key: batch closed, not answered", batch, _committed("finish_key"), WHOLE)
    yield Step("key: refusal, in its transaction", Scene.KEYED_REFUSAL, _written("finish_key"), NOTHING)
    yield Step("key: refused, not answered", Scene.KEYED_REFUSAL, _committed("finish_key"), ANSWER)
    yield Step("key: freed, in its transaction", Scene.KEYED_MISTAKE, _written("free_key"), NOTHING)
    yield Step("key: freed, not answered", Scene.KEYED_MISTAKE, _committed("free_key"), NOTHING)


def _ticket() -> Iterator[Step]:
    upload, completion = Scene.TICKET_UPLOAD, Scene.TICKET_COMPLETION
    yield Step("ticket: claimed, in its transaction", upload, _written("claim_ticket"), NOTHING)
    yield Step("ticket: claimed", upload, _committed("claim_ticket"), NOTHING)
    yield Step("ticket: used, in its transaction", upload, _written("finish_ticket"), NOTHING)
    yield Step("ticket: used, not answered", upload, _committed("finish_ticket"), WHOLE)
    yield Step("completion: ticket claimed", completion, _committed("claim_ticket"), NOTHING)
    yield Step("completion: file fetched", completion, _after(f"{_SPOOL}.finish"), NOTHING)
    yield Step("completion: original stored", completion, _after(f"{_STORAGE}.upload", ".original."), NOTHING)
    yield Step("completion: ticket used", completion, _committed("finish_ticket"), WHOLE)
    yield Step("completion: file removed", completion, _after(f"{_STORAGE}._try_to_remove"), WHOLE)
    yield Step("completion: not answered", completion, _after(f"{_STORAGE}.cleanup_failed_assets"), WHOLE)


def _start() -> Iterator[Step]:
    scene = Scene.START
    directory = _after("smart_assets.scratch:ScratchDirectory.__init__")
    yield Step("start: one table made", scene, _after("alembic.operations:Operations.create_table"), NOTHING)
    yield Step("start: first sign of life", scene, _committed("beat"), NOTHING)
    yield Step("start: directory for temporary files made", scene, directory, NOTHING)
    key = _after("smart_assets.access.signing:tempfile.mkstemp", "signing-")
    yield Step("start: signing key being made", scene, key, NOTHING)


def _repair() -> Iterator[Step]:
    def step(name: str, point: Point, remains: Remains, *, after: str) -> Step:
        return Step(f"repair: {name}", Scene.REPAIR, point, remains, after)

    removed = _after(f"{_STORAGE}.cleanup_failed_assets")
    removed_one = _after(f"{_STORAGE}._try_to_remove")
    made_private = _after(f"{_STORAGE}.set_visibility")
    yield step("upload taken over", _committed("take_over"), NOTHING, after="upload: before closing")
    yield step("upload's objects removed", removed, NOTHING, after="upload: before closing")
    yield step("one file of a batch removed", _committed("remove"), NOTHING, after="batch: everything stored")
    yield step("deletion taken over", _committed("take_over"), NOTHING, after="deletion: begun")
    yield step("deletion's objects removed", removed, NOTHING, after="deletion: one object removed")
    yield step("later sizes taken over", _committed("take_over"), AS_BEFORE, after="later sizes: begun")
    yield step("one later size removed", removed_one, AS_BEFORE, after="later sizes: all stored")
    yield step("later sizes removed", removed, AS_BEFORE, after="later sizes: one stored")
    yield step("asset as before", _committed("finish_growing"), AS_BEFORE, after="later sizes: all stored")
    yield step("publishing taken over", _committed("take_over"), PRIVATE, after="publishing: one object moved")
    yield step("one published object taken back", made_private, PRIVATE, after="publishing: every object moved")
    yield step("one object withdrawn", made_private, PRIVATE, after="withdrawal: begun")
    yield step("withdrawal closed", _committed("finish_moving"), PRIVATE, after="withdrawal: one object moved")
    copied, switched = "move: every object copied", "move: switched"
    one_removed, emptied = _after(f"{_STORAGE}._try_to_remove"), _before(f"{_REPOSITORY}.close_move")
    yield step("move taken over", _committed("take_over"), STAYED, after=copied)
    yield step("move's row held", _committed("hold_move"), STAYED, after=copied)
    yield step("one copy removed", one_removed, STAYED, after=copied)
    yield step("move undone, not closed", emptied, STAYED, after="move: original copied")
    yield step("move undone", _committed("close_move"), STAYED, after="move: one size copied")
    yield step("switched move taken over", _committed("take_over"), MOVED, after=switched)
    yield step("one old copy removed", one_removed, MOVED, after=switched)
    yield step("move finished, not closed", emptied, MOVED, after="move: one old copy removed")
    yield step("key freed", _committed("free_abandoned_keys"), NOTHING, after="key: claimed")
    yield step("ticket freed", _committed("free_abandoned_tickets"), NOTHING, after="completion: ticket claimed")
    yield step("dead lease dropped", _committed("drop_leases"), NOTHING, after="upload: intent durable")


STEPS = (
    *_start(),  # first, over a folder in which nothing is yet
    *_upload(),
    *_batch(),
    *_deletion(),
    *_growth(),
    *_change("publishing", Scene.PUBLISHING, PRIVATE, PUBLIC),
    *_change("withdrawal", Scene.WITHDRAWAL, PUBLIC, PRIVATE),
    *_move(),
    *_key(),
    *_ticket(),
    *_repair(),
)
NAMED = {step.name: step for step in STEPS}
