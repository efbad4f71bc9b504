"""What happens, step by step. How to add to it: see the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(frozen=True)
class File:
    """A file beside the collection, sent as one of a form's, or as the whole body."""

    name: str

    @property
    def source(self) -> str:
        """Where it is, from the collection's folder."""
        return f"files/{self.name}"


NOBODY: Final = ""
"""As a step's `key`: sent without one."""


@dataclass(frozen=True)
class Step:
    """A request and what has to come of it; one of `form`, `raw` and `json` is its body."""

    name: str
    call: str
    status: int = 200
    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, File | str] = field(default_factory=dict)
    """A file stands for its hash, as `Content-Digest` has it."""
    form: Sequence[tuple[str, File | str]] = ()
    raw: File | None = None
    json: Any = None
    """Text is sent as it is, for a variable that holds JSON."""
    at: str | None = None
    """The address as an answer gave it, instead of one that is put together."""
    key: str | None = None
    """Whose key is sent, where it is not `{{apiKey}}`."""
    problem: str | None = None
    """The code of the error that has to come."""
    checks: Mapping[str, str] = field(default_factory=dict)
    keeps: Mapping[str, str] = field(default_factory=dict)
    before: Sequence[str] = ()
    """Run before it is sent."""
    again_until: bool = False
    """Sent again, each second for a minute at most, until the status is the one expected."""


@dataclass(frozen=True)
class Folder:
    """Steps that belong together."""

    name: str
    about: str
    steps: Sequence[Step]


UPLOAD: Final = "POST /api/v1/assets"
BATCH: Final = "POST /api/v1/assets/batch"
LIST: Final = "GET /api/v1/assets"
GET: Final = "GET /api/v1/assets/{asset_id}"
CHANGE: Final = "PATCH /api/v1/assets/{asset_id}"
DELETE: Final = "DELETE /api/v1/assets/{asset_id}"
DELIVER: Final = "GET /assets/{key}"
CONTENT: Final = "GET /api/v1/assets/{asset_id}/content"
VARIANTS: Final = "POST /api/v1/assets/{asset_id}/variants"
SIGN: Final = "POST /api/v1/assets/{asset_id}/signed-url"
TICKET: Final = "POST /api/v1/upload-tickets"
WITH_TICKET: Final = "POST /api/v1/upload-tickets/{ticket_id}/file"
GRANT: Final = "POST /api/v1/credits"
MOVE: Final = "POST /api/v1/assets/{asset_id}/move"

HOLIDAY: Final = File("holiday.jpg")  # 1200x800
LOGO: Final = File("logo.png")  # 320x320, with alpha
DAMAGED: Final = File("damaged.jpg")  # the first half of holiday.jpg
NOTES: Final = File("notes.txt")

PUBLIC: Final = {"asset_id": "{{publicId}}"}
PRIVATE: Final = {"asset_id": "{{privateId}}"}
TAGGED: Final = {"tags": "{{tag}}"}
"""Whatever the story makes carries its tag, so that it finds its own among what is there, and removes it at the end."""


def _nothing_of(name: str, tag: str) -> Step:
    return Step(
        name,
        LIST,
        query={"tag": tag},
        checks={"nothing is there": "expect(body.items).to.eql([])"},
    )


STORY: Final = (
    Folder(
        "The service",
        "Whether it runs, and what it has.",
        (
            Step(
                "Is it there?",
                "GET /health/live",
                before=[
                    "// What this run makes carries a tag of its own.",
                    'pm.collectionVariables.set("tag", pm.variables.replaceIn("postman-{{$guid}}"));',
                ],
                checks={"it is": 'expect(body.status).to.equal("ok")'},
            ),
            Step("Can it work?", "GET /health/ready", checks={"it can": 'expect(body.status).to.equal("ok")'}),
            Step(
                "Where can images go?",
                "GET /api/v1/storages",
                checks={
                    "one is the default": "expect(body.storages.filter((one) => one.default)).to.have.length(1)",
                    "none says a secret": 'expect(answer.text().toLowerCase()).not.to.include("secret_access_key=")',
                },
                keeps={
                    "defaultStorage": "body.storages.find((one) => one.default).name",
                    "otherStorage": "(body.storages.find((one) => !one.default && one.configured && "
                    "one.capabilities.persistent) || body.storages.find((one) => one.default)).name",
                },
            ),
        ),
    ),
    Folder(
        "A public image",
        "Uploaded from a file, in two sizes, and fetched by anybody.",
        (
            Step(
                "Upload a public image",
                UPLOAD,
                201,
                query={"sizes": "400,200x200", "fit": "cover", "format": "webp", **TAGGED},
                form=[("file", HOLIDAY), ("metadata", '{"album": 7}')],
                checks={
                    "the bytes say what it is": 'expect(body.content_type).to.equal("image/jpeg")',
                    "it is as large as it was": "expect([body.width, body.height]).to.eql([1200, 800])",
                    "both sizes are made": "expect(body.variants.map((one) => [one.size, one.width, one.height]))"
                    '.to.eql([["400", 400, 267], ["200x200", 200, 200]])',
                    "they are WebP": "expect(body.variants.map((one) => one.content_type))"
                    '.to.eql(["image/webp", "image/webp"])',
                    "there is something to show at once": "expect(body.thumbhash).to.be.a('string')",
                    "its metadata is kept": "expect(body.metadata).to.eql({ album: 7 })",
                    "its address does not expire": "expect(body.url_expires_at).to.be.null",
                    "it is said where it is": 'expect(answer.headers.get("Location"))'
                    ".to.equal(`/api/v1/assets/${body.id}`)",
                },
                keeps={
                    "publicId": "body.id",
                    "publicUrl": "body.url",
                    "publicSizeUrl": "body.variants[0].url",
                    "publicBytes": "body.size_bytes",
                },
            ),
            Step(
                "Fetch it",
                DELIVER,
                at="{{publicUrl}}",
                key=NOBODY,
                checks={
                    "it is the image": 'expect(answer.headers.get("Content-Type")).to.equal("image/jpeg")',
                    "all of it": 'expect(answer.responseSize).to.equal(Number(kept("publicBytes")))',
                    "nothing in it can run": 'expect(answer.headers.get("Content-Security-Policy"))'
                    '.to.include("sandbox")',
                    "no browser guesses": 'expect(answer.headers.get("X-Content-Type-Options")).to.equal("nosniff")',
                },
                keeps={"publicTag": 'answer.headers.get("ETag")'},
            ),
            Step(
                "Fetch a size of it",
                DELIVER,
                at="{{publicSizeUrl}}",
                key=NOBODY,
                checks={"it is WebP": 'expect(answer.headers.get("Content-Type")).to.equal("image/webp")'},
            ),
            Step(
                "Fetch it again, knowing it",
                DELIVER,
                304,
                at="{{publicUrl}}",
                key=NOBODY,
                headers={"If-None-Match": "{{publicTag}}"},
                checks={"no byte is sent": "expect(answer.responseSize).to.equal(0)"},
            ),
            Step(
                "Fetch a part of it",
                DELIVER,
                206,
                at="{{publicUrl}}",
                key=NOBODY,
                headers={"Range": "bytes=0-99"},
                checks={
                    "it is the part": 'expect(answer.headers.get("Content-Range"))'
                    '.to.equal(`bytes 0-99/${kept("publicBytes")}`)',
                    "no more": "expect(answer.responseSize).to.equal(100)",
                },
            ),
            Step(
                "Fetch a part that is not there",
                DELIVER,
                416,
                at="{{publicUrl}}",
                key=NOBODY,
                headers={"Range": "bytes=999999999-"},
                problem="range_not_satisfiable",
            ),
            Step(
                "Fetch it through the API",
                CONTENT,
                path=PUBLIC,
                checks={
                    "it is the image": 'expect(answer.headers.get("Content-Type")).to.equal("image/jpeg")',
                    "it has its name": 'expect(answer.headers.get("Content-Disposition")).to.include("holiday.jpg")',
                },
            ),
            Step(
                "Fetch a size as a data URL",
                CONTENT,
                path=PUBLIC,
                query={"size": "400", "as": "data_url"},
                checks={"it is one": "expect(body.data_url).to.match(/^data:image\\/webp;base64,/)"},
            ),
            Step(
                "Fetch a size it has not",
                CONTENT,
                404,
                path=PUBLIC,
                query={"size": "999"},
                problem="variant_not_found",
            ),
        ),
    ),
    Folder(
        "A private image",
        "Nobody has it without a signed address, and no such address lives longer than it says.",
        (
            Step(
                "Upload a private image",
                UPLOAD,
                201,
                query={"visibility": "private", "sizes": "400", **TAGGED},
                form=[("file", LOGO)],
                checks={
                    "it is private": 'expect(body.visibility).to.equal("private")',
                    "its address is signed": "expect(body.url).to.match(/[?&]sig=/)",
                    "and expires": "expect(Date.parse(body.url_expires_at)).to.be.above(Date.now())",
                },
                keeps={
                    "privateId": "body.id",
                    "privateUrl": "body.url",
                    "unsignedUrl": 'body.url.split("?")[0]',
                    "forgedUrl": 'body.url.replace(/sig=./, (sig) => "sig=" + (sig.endsWith("A") ? "B" : "A"))',
                },
            ),
            Step("Fetch it unsigned", DELIVER, 403, at="{{unsignedUrl}}", key=NOBODY, problem="signature_required"),
            Step(
                "Fetch it with another signature",
                DELIVER,
                403,
                at="{{forgedUrl}}",
                key=NOBODY,
                problem="signature_invalid",
            ),
            Step(
                "Fetch it signed",
                DELIVER,
                at="{{privateUrl}}",
                key=NOBODY,
                checks={
                    "it is the image": 'expect(answer.headers.get("Content-Type")).to.equal("image/png")',
                    "no cache shares it": 'expect(answer.headers.get("Cache-Control")).to.include("private")',
                },
            ),
            Step(
                "Sign it for an hour",
                SIGN,
                path=PRIVATE,
                json={"expiry_seconds": 3600},
                checks={
                    "no longer than asked": "expect(Date.parse(body.url_expires_at))"
                    ".to.be.within(Date.now(), Date.now() + 3605000)"
                },
            ),
            Step(
                "Sign a size of it for a second",
                SIGN,
                path=PRIVATE,
                json={"expiry_seconds": 1, "size": "400"},
                keeps={"shortUrl": "body.url"},
            ),
            Step(
                "Fetch it when that has expired",
                DELIVER,
                403,
                at="{{shortUrl}}",
                key=NOBODY,
                problem="signature_expired",
                again_until=True,
            ),
            Step("Sign a size it has not", SIGN, 404, path=PRIVATE, json={"size": "9x9"}, problem="variant_not_found"),
        ),
    ),
    Folder(
        "Ways to upload",
        "Raw bytes, a data URL, bytes that come straight back; and what is refused.",
        (
            Step(
                "Upload raw bytes",
                UPLOAD,
                201,
                query={"strip_metadata": "true", **TAGGED},
                headers={
                    "Content-Type": "image/png",
                    "Content-Disposition": 'attachment; filename="raw.png"',
                    "Content-Digest": LOGO,
                },
                raw=LOGO,
                checks={
                    "it has its name": 'expect(body.filename).to.equal("raw.png")',
                    "no size was asked for": "expect(body.variants).to.eql([])",
                },
            ),
            Step(
                "Upload raw bytes that are not those that were hashed",
                UPLOAD,
                422,
                query=TAGGED,
                headers={"Content-Type": "image/jpeg", "Content-Digest": LOGO},
                raw=HOLIDAY,
                problem="digest_mismatch",
            ),
            Step(
                "Upload a data URL",
                UPLOAD,
                201,
                query=TAGGED,
                json={
                    "data_url": "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7",
                    "filename": "pixel.gif",
                    "metadata": {"album": 7},
                },
                checks={"it is a GIF": 'expect(body.content_type).to.equal("image/gif")'},
            ),
            Step(
                "Upload and keep nothing",
                UPLOAD,
                201,
                query={"storage": "direct", "sizes": "100"},
                form=[("file", LOGO)],
                checks={
                    "nothing is kept": "expect(body.id).to.be.null",
                    "the bytes come back": "expect(body.variants[0].url).to.match(/^data:image\\/png;base64,/)",
                },
            ),
            Step(
                "Import from an address it must not ask",
                UPLOAD,
                422,
                query=TAGGED,
                json={"source_url": "https://127.0.0.1/secret.png"},
                problem="invalid_parameter",
            ),
            Step(
                "Upload what is no image",
                UPLOAD,
                415,
                query=TAGGED,
                form=[("file", NOTES)],
                problem="unsupported_image",
            ),
            Step(
                "Ask for a size that is none",
                UPLOAD,
                422,
                query={"sizes": "12by4", **TAGGED},
                form=[("file", LOGO)],
                problem="invalid_parameter",
                checks={"it is said where": 'expect(body.errors[0].loc).to.eql(["query", "sizes"])'},
            ),
            Step(
                "Ask for a storage that is not there",
                UPLOAD,
                422,
                query={"storage": "nowhere", **TAGGED},
                form=[("file", LOGO)],
                problem="storage_not_configured",
            ),
        ),
    ),
    Folder(
        "Retries",
        "A client that does not know whether its upload arrived sends it again under the same key.",
        (
            Step(
                "Upload under an Idempotency-Key",
                UPLOAD,
                201,
                query=TAGGED,
                headers={"Idempotency-Key": "{{tag}}"},
                form=[("file", LOGO)],
                keeps={"retriedId": "body.id"},
            ),
            Step(
                "Send it again",
                UPLOAD,
                201,
                query=TAGGED,
                headers={"Idempotency-Key": "{{tag}}"},
                form=[("file", LOGO)],
                checks={
                    "it is the first one's answer": 'expect(body.id).to.equal(kept("retriedId"))',
                    "and says so": 'expect(answer.headers.get("Idempotency-Replayed")).to.equal("true")',
                },
            ),
            Step(
                "Send another under that key",
                UPLOAD,
                409,
                query=TAGGED,
                headers={"Idempotency-Key": "{{tag}}"},
                form=[("file", HOLIDAY)],
                problem="idempotency_conflict",
            ),
        ),
    ),
    Folder(
        "Batches",
        "Several files at once: all of them, or none.",
        (
            Step(
                "Upload a batch",
                BATCH,
                201,
                query={"sizes": "100", **TAGGED},
                form=[("files", HOLIDAY), ("files", LOGO), ("metadata", '{"album": 8}')],
                checks={
                    "both are there": "expect(body.assets.map((one) => one.filename))"
                    '.to.eql(["holiday.jpg", "logo.png"])',
                    "in the size asked for": "expect(body.assets.map((one) => one.variants[0].width))"
                    ".to.eql([100, 100])",
                    "nothing failed": "expect(body.failed).to.eql([])",
                },
                keeps={"batchId": "body.assets[0].id", "otherBatchId": "body.assets[1].id"},
            ),
            Step(
                "Upload a batch of which one is damaged",
                BATCH,
                422,
                query={"sizes": "100", "tags": "{{tag}}-failed"},
                form=[("files", HOLIDAY), ("files", DAMAGED)],
                problem="corrupt_image",
            ),
            _nothing_of("Nothing of it is left", "{{tag}}-failed"),
            Step(
                "Keep what works of it",
                BATCH,
                201,
                query={"atomic": "false", "sizes": "100", **TAGGED},
                form=[("files", HOLIDAY), ("files", DAMAGED)],
                checks={
                    "one is there": "expect(body.assets).to.have.length(1)",
                    "the other is named": "expect(body.failed.map((one) => [one.index, one.code]))"
                    '.to.eql([[1, "corrupt_image"]])',
                },
            ),
        ),
    ),
    Folder(
        "The library",
        "Finding, describing, changing, adding sizes, moving.",
        (
            Step(
                "List the newest two",
                LIST,
                query={"tag": "{{tag}}", "limit": "2"},
                checks={
                    "there are two": "expect(body.items).to.have.length(2)",
                    "and more": "expect(body.next_cursor).to.be.a('string')",
                },
                keeps={"cursor": "body.next_cursor", "newestId": "body.items[0].id"},
            ),
            Step(
                "The page after",
                LIST,
                query={"tag": "{{tag}}", "limit": "2", "cursor": "{{cursor}}"},
                checks={
                    "it goes on": "expect(body.items).to.have.length(2)",
                    "with others": 'expect(body.items.map((one) => one.id)).not.to.include(kept("newestId"))',
                },
            ),
            Step(
                "Find it by its name",
                LIST,
                query={"tag": "{{tag}}", "q": "HOLIDAY", "visibility": "public", "days": "1", "order": "asc"},
                checks={"the first one is found": 'expect(body.items[0].id).to.equal(kept("publicId"))'},
            ),
            Step(
                "Ask with a parameter there is not",
                LIST,
                422,
                query={"limit": "0"},
                problem="invalid_parameter",
            ),
            Step(
                "Get it",
                GET,
                path=PUBLIC,
                checks={"it is the one": 'expect(body.id).to.equal(kept("publicId"))'},
                keeps={"version": 'answer.headers.get("ETag")'},
            ),
            Step(
                "Describe it anew",
                CHANGE,
                path=PUBLIC,
                headers={"If-Match": "{{version}}"},
                json={"filename": "berlin.jpg", "metadata": {"album": None, "rating": 5}, "pinned": True},
                checks={
                    "it has another name": 'expect(body.filename).to.equal("berlin.jpg")',
                    "metadata is merged": "expect(body.metadata).to.eql({ rating: 5 })",
                    "it has another version": 'expect(answer.headers.get("ETag")).not.to.equal(kept("version"))',
                },
            ),
            Step(
                "Change what it was before",
                CHANGE,
                412,
                path=PUBLIC,
                headers={"If-Match": "{{version}}"},
                json={"filename": "paris.jpg"},
                problem="precondition_failed",
            ),
            Step(
                "Add sizes",
                VARIANTS,
                path=PUBLIC,
                query={"sizes": "x90,100x100", "fit": "contain", "background": "#ffffff"},
                checks={
                    "there are four now": "expect(body.variants).to.have.length(4)",
                    "as they were asked for": "expect(body.variants.slice(2).map((one) => [one.width, one.height]))"
                    ".to.eql([[135, 90], [100, 100]])",
                },
            ),
            Step(
                "Move it to another storage",
                MOVE,
                path=PUBLIC,
                query={"storage": "{{otherStorage}}"},
                checks={"it lies there": 'expect(body.storage).to.equal(kept("otherStorage"))'},
            ),
            Step("Its address has stayed", DELIVER, at="{{publicUrl}}", key=NOBODY),
            Step(
                "Move it where it cannot go",
                MOVE,
                422,
                path=PUBLIC,
                query={"storage": "direct"},
                problem="unsupported",
            ),
            Step(
                "Move it back",
                MOVE,
                path=PUBLIC,
                query={"storage": "{{defaultStorage}}"},
                checks={"it is back": 'expect(body.storage).to.equal(kept("defaultStorage"))'},
            ),
            Step(
                "Make it private",
                CHANGE,
                path=PUBLIC,
                json={"visibility": "private", "pinned": False},
                checks={"its address is signed": "expect(body.url).to.match(/[?&]sig=/)"},
                keeps={"nowPrivateUrl": "body.url"},
            ),
            Step("Its old address is dead", DELIVER, 404, at="{{publicUrl}}", key=NOBODY, problem="asset_not_found"),
            Step("Its new one is not", DELIVER, at="{{nowPrivateUrl}}", key=NOBODY),
            Step(
                "Export the descriptions",
                "GET /api/v1/assets/export",
                query={"tag": "{{tag}}", "visibility": "private"},
                checks={
                    "one a line, the oldest first": "expect(answer.text().trim().split('\\n').map((line) => "
                    'JSON.parse(line).id)).to.eql([kept("publicId"), kept("privateId")])'
                },
            ),
        ),
    ),
    Folder(
        "Upload tickets",
        "Leave for somebody without a key, a visitor of a page say, to upload one file.",
        (
            Step(
                "Make a ticket",
                TICKET,
                201,
                query={"sizes": "100", **TAGGED},
                json={"max_bytes": 1000000, "expiry_seconds": 600, "metadata": {"from": "a visitor"}},
                checks={
                    "it says where the file goes": "expect(body.url).to.match(/[?&]sig=/)",
                    "and how": 'expect([body.upload, body.method]).to.eql(["service", "POST"])',
                },
                keeps={
                    "ticketId": "body.id",
                    "ticketUrl": "body.url",
                    "forgedTicketUrl": 'body.url.replace(/sig=./, (sig) => "sig=" + (sig.endsWith("A") ? "B" : "A"))',
                },
            ),
            Step(
                "Upload with a signature that was made up",
                WITH_TICKET,
                403,
                at="{{forgedTicketUrl}}",
                key=NOBODY,
                form=[("file", LOGO)],
                problem="signature_invalid",
            ),
            Step(
                "Upload with the ticket",
                WITH_TICKET,
                201,
                at="{{ticketUrl}}",
                key=NOBODY,
                form=[("file", LOGO)],
                checks={
                    "it is as the ticket says": "expect([body.metadata, body.variants.length])"
                    '.to.eql([{ from: "a visitor" }, 1])'
                },
                keeps={"ticketAssetId": "body.id"},
            ),
            Step(
                "Upload the same again, the answer being lost",
                "PUT /api/v1/upload-tickets/{ticket_id}/file",
                201,
                at="{{ticketUrl}}",
                key=NOBODY,
                headers={"Content-Type": "image/png"},
                raw=LOGO,
                checks={"it is the same asset": 'expect(body.id).to.equal(kept("ticketAssetId"))'},
            ),
            Step(
                "Upload another with it",
                WITH_TICKET,
                409,
                at="{{ticketUrl}}",
                key=NOBODY,
                form=[("file", HOLIDAY)],
                problem="ticket_used",
            ),
            Step(
                "Look at it",
                "GET /api/v1/upload-tickets/{ticket_id}",
                path={"ticket_id": "{{ticketId}}"},
                checks={
                    "it was used": 'expect([body.state, body.asset_id]).to.eql(["used", kept("ticketAssetId")])',
                },
            ),
            Step(
                "Complete what is complete",
                "POST /api/v1/upload-tickets/{ticket_id}/complete",
                path={"ticket_id": "{{ticketId}}"},
                checks={"it is the same asset": 'expect(body.id).to.equal(kept("ticketAssetId"))'},
            ),
        ),
    ),
    Folder(
        "Keys",
        "A key that may only read, made, used and revoked. Without keys in its settings the service asks nobody for "
        "one, and yet holds whoever sends one to what it may.",
        (
            Step(
                "Make a key",
                "POST /api/v1/keys",
                201,
                json={"name": "Postman", "scopes": ["assets:read"]},
                checks={"the secret is shown": "expect(body.key).to.match(/^sa_/)"},
                keeps={"keyId": "body.id", "readingKey": "body.key"},
            ),
            Step(
                "List the keys",
                "GET /api/v1/keys",
                checks={
                    "it is among them": 'expect(body.keys.map((one) => one.id)).to.include(kept("keyId"))',
                    "its secret is not": 'expect(answer.text()).not.to.include(kept("readingKey"))',
                },
            ),
            Step(
                "Read with it",
                LIST,
                query={"tag": "{{tag}}", "limit": "1"},
                key="{{readingKey}}",
                checks={"it sees what its owner has": "expect(body.items).to.have.length(1)"},
            ),
            Step(
                "Upload with it",
                UPLOAD,
                403,
                query=TAGGED,
                form=[("file", LOGO)],
                key="{{readingKey}}",
                problem="forbidden",
            ),
            Step("Revoke it", "DELETE /api/v1/keys/{key_id}", 204, path={"key_id": "{{keyId}}"}),
            Step("Read with it then", LIST, 401, key="{{readingKey}}", problem="unauthorized"),
            Step(
                "Revoke it twice",
                "DELETE /api/v1/keys/{key_id}",
                404,
                path={"key_id": "{{keyId}}"},
                problem="key_not_found",
            ),
        ),
    ),
    Folder(
        "Credits",
        "What an owner has and has used. Without prices in the settings nothing is spent; the ledger works all the "
        "same.",
        (
            Step(
                "What there is to spend",
                "GET /api/v1/usage",
                checks={
                    "all three are numbers, or none is metered": "expect([body.balance, body.reserved, body.spent])"
                    ".to.satisfy((all) => all.every(Number.isInteger) || all.every((one) => one === null))"
                },
            ),
            Step(
                "What was used",
                "GET /api/v1/usage/daily",
                query={"days": "7"},
                checks={"day by day": "expect(body.days).to.be.an('array')"},
            ),
            Step(
                "Give an owner credits",
                GRANT,
                201,
                headers={"Idempotency-Key": "{{tag}}"},
                json={"owner": "{{tag}}", "amount": 100, "note": "a present"},
                keeps={"grantId": "body.id"},
            ),
            Step(
                "Give them again by mistake",
                GRANT,
                201,
                headers={"Idempotency-Key": "{{tag}}"},
                json={"owner": "{{tag}}", "amount": 100, "note": "a present"},
                checks={
                    "it counts once": 'expect(body.id).to.equal(kept("grantId"))',
                    "and says so": 'expect(answer.headers.get("Idempotency-Replayed")).to.equal("true")',
                },
            ),
            Step(
                "Take back more than there is",
                GRANT,
                402,
                json={"owner": "{{tag}}", "amount": -101, "note": "too much"},
                problem="insufficient_credits",
            ),
            Step(
                "Take back what there is",
                GRANT,
                201,
                json={"owner": "{{tag}}", "amount": -100, "note": "taken back"},
            ),
            Step(
                "Read the ledger",
                "GET /api/v1/credits",
                query={"owner": "{{tag}}"},
                checks={
                    "both are in it": "expect(body.items.map((one) => one.amount)).to.eql([-100, 100])",
                },
            ),
        ),
    ),
    Folder(
        "Operating it",
        "What is stored, what would go, and figures for Prometheus.",
        (
            Step(
                "What is stored",
                "GET /api/v1/stats",
                checks={
                    "what was uploaded is counted": "expect(body.count).to.be.above(4)",
                    "the storages sum up to it": "expect(body.storages.reduce((sum, one) => sum + one.count, 0))"
                    ".to.equal(body.count)",
                },
            ),
            Step(
                "What retention would remove",
                "POST /api/v1/maintenance/retention",
                query={"dry_run": "true"},
                checks={"nothing is removed": "expect(body.dry_run).to.be.true"},
            ),
            Step(
                "Metrics",
                "GET /metrics",
                checks={"requests are counted": 'expect(answer.text()).to.include("smart_assets_requests_total")'},
            ),
        ),
    ),
    Folder(
        "Letting go",
        "One, many, and then nothing is there any more.",
        (
            Step("Delete an image", DELETE, 204, path=PRIVATE),
            Step("It is gone", GET, 404, path=PRIVATE, problem="asset_not_found"),
            Step("So are its bytes", DELIVER, 404, at="{{privateUrl}}", key=NOBODY, problem="asset_not_found"),
            Step("Delete it twice", DELETE, 404, path=PRIVATE, problem="asset_not_found"),
            Step(
                "Delete many",
                "POST /api/v1/assets/delete",
                json={"ids": ["{{batchId}}", "{{otherBatchId}}", "{{privateId}}"]},
                checks={
                    "each has its result": "expect(body.results.map((one) => one.status))"
                    '.to.eql(["deleted", "deleted", "not_found"])',
                    "one was not there": 'expect(body.results[2].code).to.equal("asset_not_found")',
                },
            ),
            Step(
                "What is left of the story",
                LIST,
                query={"tag": "{{tag}}", "limit": "200"},
                keeps={"rest": "JSON.stringify(body.items.map((one) => one.id))"},
            ),
            Step(
                "Delete the rest",
                "POST /api/v1/assets/delete",
                json='{"ids": {{rest}}}',
                checks={
                    "all of it": 'expect(body.results.every((one) => one.status === "deleted")).to.be.true',
                },
            ),
            _nothing_of("Nothing is left", "{{tag}}"),
        ),
    ),
)
