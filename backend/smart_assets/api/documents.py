"""What API documents say beyond the code: bodies that are read by hand, and errors."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

from smart_assets.api.problems import MEDIA_TYPE, STATUS, Problem
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

_JSON_BODY = {
    "schema": {
        "type": "object",
        "required": ["data_url"],
        "additionalProperties": False,
        "properties": {
            "data_url": {"type": "string", "pattern": "^data:image/[a-z+.-]+;base64,"},
            "filename": {"type": ["string", "null"]},
            "metadata": {"type": "object"},
        },
    },
    "example": {
        "data_url": "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7",
        "filename": "pixel.gif",
        "metadata": {"album": 7},
    },
}


def upload_body(field: str, *, several: bool) -> dict[str, Any]:
    """The request body of an upload, for OpenAPI: concrete types, since Swagger UI sends what stands here as it is."""
    files = {"type": "array", "items": _FILE, "minItems": 1} if several else _FILE
    form = {
        "schema": {
            "type": "object",
            "required": [field],
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
    codes = ", ".join(f"`{code}`" for code, of in STATUS.items() if of == status)
    return {
        "description": f"{HTTPStatus(status).phrase}: {codes}",
        "content": {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}},
    }
