"""What API documents say beyond the code: bodies that are read by hand, and errors."""

from __future__ import annotations

import importlib.resources
import json
import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

from smart_assets.api.problems import MEDIA_TYPE, STATUS, Problem, problem_body
from smart_assets.api.schemas import DEFAULT_STORAGE, DataUrl
from smart_assets.formats import ImageFormat
from smart_assets.settings import Settings
from smart_assets.storage.factory import StorageType, usable_storages

DESCRIPTION = """\
Upload an image once: the service makes the sizes you ask for, stores all of it where you say, public or private, and
leaves nothing behind when something fails.

**Keys.** Where the service has keys set, every call takes one: `Authorization: Bearer <key>`. Assets belong to the
key's owner; nobody else's can be seen. Without keys only this machine is answered.

**Errors** are RFC 9457 problems, `application/problem+json`: programs look at `code`, people read `detail`, and
`request_id` is what to ask the operator about. With `Retry-After` it is worth trying again.

**Retries.** An upload with an `Idempotency-Key` that comes again gets its first answer again, and nothing is stored
twice.

**Addresses.** The `url` of a public image stays. That of a private one is signed and expires: ask for the asset again,
or for a signed URL that lives as long as you say.
"""

DELIVERED = "/assets/{key}"

NEVER_SENT: dict[str, Any] = {"description": "Never sent."}
"""Stands where FastAPI would put its own 422."""

PARTICULAR = frozenset(
    {
        "signature_required",
        "signature_invalid",
        "signature_expired",
        "variant_not_found",
        "key_not_found",
        "ticket_not_found",
        "route_not_found",
        "idempotency_conflict",
        "idempotency_in_progress",
        "ticket_used",
        "ticket_in_use",
        "upload_missing",
        "unsupported_image",
        "corrupt_image",
        "too_many_pixels",
        "digest_mismatch",
        "storage_not_configured",
        "unsupported",
    }
)
"""Codes that only some routes give: those name them."""

_EXAMPLES = json.loads((importlib.resources.files("smart_assets.api") / "examples.json").read_text(encoding="utf-8"))
"""What was asked and answered, by method and path: `make openapi` records it."""

_METADATA = {
    "type": "string",
    "description": "A JSON object of your own, at most 16 KiB.",
    "examples": ['{"album": 7}'],
}
_FILE = {"type": "string", "format": "binary"}

_MEMBERS = {"filename": {"type": ["string", "null"]}, "metadata": {"type": "object"}}


def _json_of(name: str, image: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": [name],
        "additionalProperties": False,
        "properties": {name: {"type": "string", **image}, **_MEMBERS},
    }


_JSON_BODY = {
    "schema": {
        "oneOf": [
            _json_of("data_url", {"pattern": "^data:image/[a-z+.-]+;base64,"}),
            _json_of("source_url", {"format": "uri", "maxLength": 2048, "pattern": "^https?://"}),
        ]
    },
    "examples": {
        "source_url": {
            "summary": "Where the image is to be fetched from",
            "value": {"source_url": "https://images.example.com/holiday.jpg", "metadata": {"album": 7}},
        },
    },
}


def upload_body(field: str, *, several: bool, only_files: bool = False) -> dict[str, Any]:
    """The request body of an upload, for OpenAPI: concrete types, since Swagger UI sends what stands here as it is.

    With `only_files` neither metadata nor JSON is part of it.
    """
    files = {"type": "array", "items": _FILE, "minItems": 1} if several else _FILE
    form = {
        "schema": {
            "type": "object",
            "required": [field],
            "additionalProperties": False,
            "properties": {field: files} | ({} if only_files else {"metadata": _METADATA}),
        }
    }
    raw = {image_format.media_type: {"schema": _FILE} for image_format in ImageFormat}
    return {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": form,
                **raw,
                "application/octet-stream": {"schema": _FILE},
                **({} if only_files else {"application/json": _JSON_BODY}),
            },
        }
    }


def install(app: FastAPI, settings: Settings) -> None:
    """Let the document the service gives be `described`, for the storages it has."""
    documents: list[dict[str, Any]] = []

    def openapi() -> dict[str, Any]:
        if not documents:
            documents.append(described(app, usable_storages(settings), settings.default_storage))
        return documents[0]

    app.openapi = openapi  # type: ignore[method-assign]


def described(app: FastAPI, storages: Iterable[str], default_storage: str) -> dict[str, Any]:
    """What FastAPI says of the code, and what it cannot know: bodies read by hand, real examples, the names of
    storages, errors that any call may give, and parameters as a form can show them.
    """
    document = FastAPI.openapi(app)
    app.openapi_schema = None  # it is made into ours
    for model in (Problem, DataUrl):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        document["components"]["schemas"] |= {**schema.pop("$defs", {}), model.__name__: schema}
    storages = tuple(storages)
    document["paths"][DELIVERED] = {"get": json.loads(json.dumps(_delivery()))}  # no part twice: YAML would refer to it
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _add_answer(operation)
            _add_problems(operation)
            for parameter in operation.get("parameters", ()):
                _simplify(parameter)
                if parameter["name"] == "storage":
                    _name_storages(parameter["schema"], storages, default_storage)
            name = f"{method.upper()} {path}"
            _add_examples(operation, _EXAMPLES.get(_ALIKE.get(name, name), ()))
    return document


def general(app: FastAPI) -> dict[str, Any]:
    """The description as it stands in `openapi/`: of a service that has a storage of each kind."""
    return described(app, [kind.value for kind in StorageType], StorageType.LOCAL.value)


def _add_answer(operation: dict[str, Any]) -> None:
    """What success means, and what its head says."""
    description, *names = _ANSWERS.get(operation["operationId"], ("",))
    status = next(status for status in operation["responses"] if status.startswith("2"))
    answer = operation["responses"][status]
    if description:
        answer["description"] = description
    if names:
        answer["headers"] = {
            name: {"description": _HEADERS[name], "schema": {"type": "string"}} for name in names
        } | answer.get("headers", {})


def _add_problems(operation: dict[str, Any]) -> None:
    """What may come of any call; FastAPI's own 422, which is never sent, goes."""
    responses = operation["responses"]
    if responses.get("422") == NEVER_SENT:
        del responses["422"]
    anywhere: list[int | str] = [401, 403, 429, 500, "busy"] if "security" in operation else [403, 500]
    if "requestBody" in operation:
        anywhere += [400, 408, 413, 415]
    for status, response in problems(*anywhere).items():
        responses.setdefault(str(status), response)
    operation["responses"] = dict(sorted(responses.items()))


def _simplify(parameter: dict[str, Any]) -> None:
    """A parameter that may be left out is no null: as what it is where it is there, a form has a control for it."""
    if parameter["in"] == "header":
        parameter["name"] = parameter["name"].title()
    schema = parameter["schema"]
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) == 1:
        del schema["anyOf"]
        schema |= kinds[0]
    if "const" in schema:
        schema["enum"] = [schema.pop("const")]


def _name_storages(schema: dict[str, Any], storages: tuple[str, ...], default: str) -> None:
    for bound in ("minLength", "maxLength"):
        schema.pop(bound, None)
    schema["enum"] = list(storages)
    if schema.pop(DEFAULT_STORAGE, False):
        schema["default"] = default


def _add_examples(operation: dict[str, Any], examples: Iterable[dict[str, Any]]) -> None:
    for example in examples:
        if "request" in example:
            content = operation["requestBody"]["content"]["application/json"]
            _named(content, example["summary"], example["request"])
        if "response" in example:
            status = next(status for status in operation["responses"] if status.startswith("2"))
            content = operation["responses"][status]["content"]
            _named(content[example["media_type"]], example["summary"], example["response"])


def _named(content: dict[str, Any], summary: str, value: Any) -> None:
    name = re.sub(r"[^a-z0-9]+", "_", summary.lower()).strip("_")
    content.setdefault("examples", {})[name] = {"summary": summary, "value": value}


def _delivery() -> dict[str, Any]:
    """`/assets/{key}`, which no router knows: see `api.delivery`."""
    query = {
        "exp": ({"type": "integer"}, "When the signature ends, in Unix seconds."),
        "kid": ({"type": "string"}, "Which key signed."),
        "sig": ({"type": "string"}, "The signature."),
    }
    return {
        "tags": ["delivery"],
        "summary": "Fetch an image by its address",
        "description": "What the `url` of an asset or a size points to. Public images are for anybody, private ones "
        "for whoever has the signed address, query and all: `exp`, `kid` and `sig` come from there.\n\n"
        "Images of the storages `local` and `memory` come from here, with `Range` and validators; the others' are "
        "redirected to where they lie. `Cache-Control` never outlives a signature.",
        "operationId": "deliver",
        "parameters": [
            {
                "name": "key",
                "in": "path",
                "required": True,
                "description": "All that comes after `/assets/`: "
                "`public/2026/11/20/01a1f908-5529-7703-b9de-000000000001.original.jpg`.",
                "schema": {"type": "string"},
            },
            *(
                {"name": name, "in": "query", "required": False, "description": said, "schema": schema}
                for name, (schema, said) in query.items()
            ),
        ],
        "responses": {
            **{str(status): response for status, response in image_responses().items()},
            "302": {
                "description": "It is there.",
                "headers": {"Location": {"description": "Where, for a while.", "schema": {"type": "string"}}},
            },
            **{
                str(status): response
                for status, response in problems(
                    403,
                    "signature_required",
                    "signature_invalid",
                    "signature_expired",
                    404,
                    416,
                    "storage_not_configured",
                    429,
                    502,
                    503,
                ).items()
            },
        },
    }


def image_responses() -> dict[int | str, dict[str, Any]]:
    """The bytes of an image, a part of them, or that the caller has them."""
    content = {image_format.media_type: {"schema": _FILE} for image_format in ImageFormat}
    etag = {"ETag": {"description": "For `If-None-Match` and `If-Range`.", "schema": {"type": "string"}}}
    return {
        200: {"description": "The image.", "headers": etag, "content": content},
        206: {"description": "The `Range` asked for.", "headers": etag},
        304: {"description": "What you have is still good."},
    }


def problems(*wanted: int | str) -> dict[int | str, dict[str, Any]]:
    """The errors a route can give: a status stands for its codes that any route may have, a code for itself."""
    codes = [code for code, status in STATUS.items() if code in wanted or (status in wanted and code not in PARTICULAR)]
    return {status: _problem(status, codes) for status in sorted({STATUS[code] for code in codes})}


def _problem(status: int, codes: Iterable[str]) -> dict[str, Any]:
    codes = [code for code in codes if STATUS[code] == status]
    examples = {code: {"value": problem_body(code, _DETAILS.get(code, "…"), "0198f7a2c5e94c1f")} for code in codes}
    headers = {"headers": {"Retry-After": _RETRY_AFTER}} if status in {429, 503} else {}
    return {
        "description": f"{HTTPStatus(status).phrase}: {', '.join(f'`{code}`' for code in codes)}",
        **headers,
        "content": {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}, "examples": examples}},
    }


# By operation: what success means, and the fields of its head that are worth knowing.
_ANSWERS = {
    "upload": ("Everything asked for is stored.", "Location", "Idempotency-Replayed"),
    "upload_batch": ("Every file is stored, or with `atomic=false` what could be.", "Idempotency-Replayed"),
    "make_ticket": ("The ticket: where to send the file, and until when.", "Location"),
    "get_ticket": ("The ticket as it is now.",),
    "upload_with_ticket": ("Everything the ticket asks for is stored.", "Location", "Idempotency-Replayed"),
    "put_with_ticket": ("Everything the ticket asks for is stored.", "Location", "Idempotency-Replayed"),
    "complete_ticket": ("Everything the ticket asks for is stored.", "Idempotency-Replayed"),
    "list_assets": ("A page of them; `next_cursor` is null on the last.",),
    "get_asset": ("The asset as it is now.", "ETag"),
    "change_asset": ("The asset as it is now.", "ETag"),
    "delete_asset": ("It is gone.",),
    "delete_assets": ("What became of each, in the order they were given.",),
    "add_variants": ("The asset with all its sizes.", "ETag", "Idempotency-Replayed"),
    "move_asset": ("The asset, where it lies now.", "ETag"),
    "make_signed_url": ("The address, and until when it is good.",),
    "make_key": ("The key, with its secret.", "Location"),
    "list_keys": ("Every key that was made here.",),
    "revoke_key": ("It is refused from now on.",),
    "usage": ("What there is now.",),
    "daily_usage": ("Day by day, the newest first.",),
    "grant_credits": ("The new line of the ledger.", "Idempotency-Replayed"),
    "list_credits": ("A page of them; `next_cursor` is null on the last.",),
    "retention": ("What went, or would go.",),
    "live": ("It does.",),
    "ready": ("It can.",),
    "metrics": ("All processes together.",),
    "stats": ("What is stored now.",),
    "storages": ("Each by its name.",),
}
_WITH_TICKET = "/api/v1/upload-tickets/{ticket_id}"
_ALIKE = {
    f"{call} {_WITH_TICKET}/{way}": f"POST {_WITH_TICKET}/file" for call, way in (("PUT", "file"), ("POST", "complete"))
}
"""What is answered as another call is."""

_HEADERS = {
    "ETag": "The version, for `If-Match`.",
    "Idempotency-Replayed": "`true` where this answer was given before.",
    "Location": "Where it is from now on.",
}
_RETRY_AFTER = {"description": "After how many seconds to try again.", "schema": {"type": "integer"}}

# What a caller would really read.
_DETAILS = {
    "malformed_body": "the body is not JSON",
    "unauthorized": "send a key: Authorization: Bearer <key>",
    "insufficient_credits": "this takes 12 credits, and 5 are available",
    "forbidden": "without keys no other site may send this: set ASSETS_API_KEYS and call with a key",
    "signature_required": "this asset is private: ask the API for a signed URL",
    "signature_invalid": "the signature does not fit this URL",
    "signature_expired": "the signed URL has expired",
    "asset_not_found": "there is no such asset",
    "variant_not_found": "the asset has no size 800x600",
    "key_not_found": "there is no such key",
    "route_not_found": "there is nothing at this address",
    "body_timeout": "no byte came for 30 seconds, or fewer than 1024 a second",
    "idempotency_conflict": "this Idempotency-Key was used for another request",
    "idempotency_in_progress": "the first request under this Idempotency-Key still runs; try again",
    "ticket_not_found": "there is no such ticket",
    "ticket_used": "this ticket was used for another file",
    "ticket_in_use": "a file is just being uploaded with this ticket; try again",
    "upload_missing": "nothing was uploaded with this ticket yet",
    "asset_gone": "what this request made was deleted since",
    "asset_busy": "another change of this asset is under way",
    "precondition_failed": "the asset is at version 3 now: fetch it again",
    "body_too_large": "the file is larger than the limit of 52428800 bytes",
    "unsupported_image": "this looks like HEIC (what phones save; export it as JPEG); "
    "allowed: JPEG, PNG, WebP, GIF, AVIF",
    "unsupported_media_type": "the Content-Type 'text/plain' is not taken; send JSON",
    "range_not_satisfiable": "the range lies outside the 829183 bytes there are",
    "invalid_parameter": "fit: Input should be 'inside', 'cover' or 'contain'",
    "corrupt_image": "truncated: the image goes on past the 822272 bytes there are",
    "too_many_pixels": "65536x65536 is 4294967296 pixels, above max_pixels 100000000",
    "digest_mismatch": "the sha-256 of the content is another than its Content-Digest says",
    "storage_not_configured": "there is no storage 'nowhere'; there are: direct, local, memory",
    "rate_limited": "uploads-per-key allows 600 in 60 seconds; try again in 12 seconds",
    "unsupported": "the storage direct does not support reading",
    "internal_error": "something went wrong on our side; the request id helps to find out what",
    "storage_error": "the storage failed",
    "storage_unavailable": "the storage did not answer; try again",
    "busy": "no worker had room for the image within 15 seconds",
    "storage_full": "no room left on the storage local",
}
