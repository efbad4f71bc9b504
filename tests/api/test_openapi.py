"""The API's description is valid, and describes what is read by hand as well."""

from typing import Any

import pytest
from openapi_spec_validator import validate

from smart_assets.api.problems import STATUS
from smart_assets.main import create_app
from smart_assets.settings import Settings


@pytest.fixture(scope="module")
def document() -> Any:
    return create_app(Settings()).openapi()


def test_it_is_valid(document: Any) -> None:
    validate(document)


@pytest.mark.parametrize(
    ("path", "field", "schema"),
    [
        ("/api/v1/assets", "file", {"type": "string", "format": "binary"}),
        (
            "/api/v1/assets/batch",
            "files",
            {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1},
        ),
    ],
)
def test_uploads_have_file_pickers(document: Any, path: str, field: str, schema: Any) -> None:
    content = document["paths"][path]["post"]["requestBody"]["content"]
    form = content["multipart/form-data"]["schema"]
    assert form["properties"][field] == schema
    assert form["required"] == [field]
    assert {"image/jpeg", "image/avif", "application/octet-stream", "application/json"} <= content.keys()


def test_every_operation_says_what_it_does_and_what_can_go_wrong(document: Any) -> None:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            assert operation["description"], (method, path)
            if path.startswith("/api/"):
                assert "401" in operation["responses"], (method, path)
            for status, response in operation["responses"].items():
                codes = [code for code, of in STATUS.items() if str(of) == status]
                if codes:
                    assert list(response["content"]) == ["application/problem+json"]
                    assert all(f"`{code}`" in response["description"] for code in codes)
