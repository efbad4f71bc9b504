"""What API documents say beyond the code: bodies that are read by hand, and errors."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

from smart_assets.api.problems import MEDIA_TYPE, STATUS, Problem, problem_body
from smart_assets.api.schemas import DataUrl
from smart_assets.formats import ImageFormat

DESCRIPTION = """\
Upload an image once: the service makes the sizes you ask for, stores all of it where you say, public or private, and
leaves nothing behind when something fails.

Errors are RFC 9457 problems: look at `code`.
"""

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
        "data_url": {
            "summary": "The image itself",
            "value": {
                "data_url": "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7",
                "filename": "pixel.gif",
                "metadata": {"album": 7},
            },
        },
        "source_url": {
            "summary": "Where the image is to be fetched from",
            "value": {"source_url": "https://images.example.com/holiday.jpg", "metadata": {"album": 7}},
        },
    },
}


def upload_body(field: str, *, several: bool) -> dict[str, Any]:
    """The request body of an upload, for OpenAPI: concrete types, since Swagger UI sends what stands here as it is."""
    files = {"type": "array", "items": _FILE, "minItems": 1} if several else _FILE
    form = {
        "schema": {
            "type": "object",
            "required": [field],
            "additionalProperties": False,
            "properties": {field: files, "metadata": _METADATA},
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
                "application/json": _JSON_BODY,
            },
        }
    }


def install(app: FastAPI) -> None:
    """Add what is documented by hand to the document FastAPI generates from the code."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            for model in (Problem, DataUrl):
                schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
                document["components"]["schemas"] |= {**schema.pop("$defs", {}), model.__name__: schema}
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors a route can give, with the codes each status stands for."""
    return {status: _problem(status) for status in statuses}


def _problem(status: int) -> dict[str, Any]:
    codes = [code for code, of in STATUS.items() if of == status]
    examples = {code: {"value": problem_body(code, _EXAMPLES.get(code, "…"), "0198f7a2c5e94c1f")} for code in codes}
    return {
        "description": f"{HTTPStatus(status).phrase}: {', '.join(f'`{code}`' for code in codes)}",
        "content": {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}, "examples": examples}},
    }


# What a caller would really read.
_EXAMPLES = {
    "malformed_body": "the body is not JSON",
    "unauthorized": "send a key: Authorization: Bearer <key>",
    "forbidden": "without keys no other site may send this: set ASSETS_API_KEYS and call with a key",
    "signature_required": "this asset is private: ask the API for a signed URL",
    "signature_invalid": "the signature does not fit this URL",
    "signature_expired": "the signed URL has expired",
    "asset_not_found": "there is no such asset",
    "variant_not_found": "the asset has no size 800x600",
    "route_not_found": "there is nothing at this address",
    "body_timeout": "no byte came for 30 seconds, or fewer than 1024 a second",
    "idempotency_conflict": "this Idempotency-Key was used for another request",
    "idempotency_in_progress": "the first request under this Idempotency-Key still runs; try again",
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
    "unsupported": "the storage direct does not support reading",
    "internal_error": "something went wrong on our side; the request id helps to find out what",
    "storage_error": "the storage failed",
    "storage_unavailable": "the storage did not answer; try again",
    "busy": "no worker had room for the image within 15 seconds",
    "storage_full": "no room left on the storage local",
}
