"""The API's description is valid, and describes what is read by hand as well."""

import importlib.resources
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from smart_assets.api.documents import general
from smart_assets.api.problems import STATUS
from smart_assets.main import create_app
from smart_assets.settings import Settings
from smart_assets.storage.factory import StorageType
from tests import examples

Operations = Mapping[str, Any]


@pytest.fixture(scope="module")
def document() -> Any:
    return general(create_app(Settings()))


@pytest.fixture(scope="module")
def operations(document: Any) -> Operations:
    """By method and path."""
    return {
        f"{method} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


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


@pytest.mark.parametrize("method", ["post", "put"])
def test_a_ticket_takes_files_and_nothing_else(document: Any, method: str) -> None:
    content = document["paths"]["/api/v1/upload-tickets/{ticket_id}/file"][method]["requestBody"]["content"]
    assert set(content["multipart/form-data"]["schema"]["properties"]) == {"file"}
    assert "image/jpeg" in content
    assert "application/json" not in content


def test_every_operation_says_what_it_does_and_what_can_go_wrong(operations: Operations) -> None:
    for name, operation in operations.items():
        assert operation["summary"], name
        assert len(operation["description"]) > 40, name
        assert "500" in operation["responses"], name
        assert "Successful Response" not in str(operation["responses"]), f"say in api.documents what {name} comes to"
        for status, response in operation["responses"].items():
            content = response.get("content", {})
            if "application/problem+json" not in content:
                assert int(status) < 400, (name, status)
                continue
            assert list(content) == ["application/problem+json"], (name, status)
            codes = content["application/problem+json"]["examples"]
            assert codes, (name, status)
            for code, example in codes.items():
                assert STATUS[code] == int(status), (name, code)
                assert f"`{code}`" in response["description"], (name, code)
                assert example["value"]["code"] == code
                assert example["value"]["detail"] != "…", f"what callers would read of {code} stands in api.documents"


def test_every_call_of_the_api_takes_a_key_and_says_what_comes_of_having_none(operations: Operations) -> None:
    for name, operation in operations.items():
        if name.endswith("/upload-tickets/{ticket_id}/file"):
            assert not {"security", "401"} & {*operation, *operation["responses"]}, "a signature stands for it"
        elif "/api/" in name:
            assert operation["security"][0] == {"HTTPBearer": []}, name
            assert len(operation["security"]) == 1 or name.endswith("/complete"), "or a signature"
            assert {"401", "403", "503"} <= operation["responses"].keys(), name


def test_every_parameter_is_described_and_has_a_control_of_its_own(operations: Operations) -> None:
    for name, operation in operations.items():
        for parameter in operation.get("parameters", ()):
            assert parameter["description"], (name, parameter["name"])
            assert not {"anyOf", "const"} & parameter["schema"].keys(), (name, parameter["name"])


def test_storages_to_choose_from_are_those_that_are_configured(operations: Operations) -> None:
    settings = Settings.model_validate({"storages": {"archive": {"type": "local"}}, "default_storage": "archive"})
    document = create_app(settings).openapi()
    upload, asked = (_parameter(document["paths"]["/api/v1/assets"][method], "storage") for method in ("post", "get"))
    assert upload["schema"]["enum"] == asked["schema"]["enum"] == ["archive", "direct", "local", "memory"]
    assert upload["schema"]["default"] == "archive"
    assert "default" not in asked["schema"]
    assert set(_parameter(operations["post /api/v1/assets"], "storage")["schema"]["enum"]) == set(StorageType)


def _parameter(operation: Any, name: str) -> Any:
    return next(parameter for parameter in operation["parameters"] if parameter["name"] == name)


def test_every_body_and_every_answer_in_json_has_an_example(operations: Operations) -> None:
    for name, operation in operations.items():
        bodies = [operation["requestBody"]] if "requestBody" in operation else []
        bodies += [response for status, response in operation["responses"].items() if status.startswith("2")]
        for content in (body.get("content", {}) for body in bodies):
            if "application/json" in content:
                assert content["application/json"].get("examples"), name


def test_every_example_is_what_its_schema_says(document: Any) -> None:
    registry = Registry().with_resource("urn:api", DRAFT202012.create_resource(document))
    checked = 0
    for where, schema, example in _examples(document, ""):
        validator = Draft202012Validator({"$ref": f"urn:api#{schema}"}, registry=registry)
        assert [error.message for error in validator.iter_errors(example)] == [], where
        checked += 1
    assert checked > 200


def _examples(node: Any, at: str) -> Iterator[tuple[str, str, Any]]:
    """Every example of a body: where it stands, where its schema does, and itself."""
    if not isinstance(node, dict):
        return
    if "schema" in node:
        for name, example in node.get("examples", {}).items():
            yield f"{at}: {name}", f"{at}/schema", example["value"]
        return
    for name, member in node.items():
        yield from _examples(member, f"{at}/{quote(name.replace('~', '~0').replace('/', '~1'))}")


def test_examples_are_what_the_service_answers() -> None:
    written = importlib.resources.files("smart_assets.api") / "examples.json"
    assert examples.recorded() == written.read_text(encoding="utf-8"), "run: make openapi"
