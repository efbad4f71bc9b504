"""The Postman collection is what the API's description and the story make of it, and leaves no operation out.

That the story is true is tried in `tests/live/test_postman.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from smart_assets.api.documents import general
from smart_assets.main import create_app
from smart_assets.settings import Settings
from tests.postman import collection, files
from tests.postman.story import STORY, File, Step

STEPS = [step for folder in STORY for step in folder.steps]


@pytest.fixture(scope="module")
def document() -> Any:
    return general(create_app(Settings()))


def requests_of(item: Any) -> Iterator[Any]:
    for inner in item.get("item", ()):
        yield from requests_of(inner)
    if "request" in item:
        yield item


def test_it_is_what_the_description_and_the_story_make_of_it(document: Any) -> None:
    made = {
        collection.COLLECTION: collection.collection(document),
        collection.ENVIRONMENT: collection.environment(),
    }
    for name, content in made.items():
        assert collection.as_text(content) == (collection.FOLDER / name).read_text(encoding="utf-8"), (
            "run: make openapi"
        )


def test_every_operation_of_the_api_is_a_part_of_the_story(document: Any) -> None:
    assert {step.call for step in STEPS} == set(collection.operations(document))


def test_every_step_is_named_once_and_ends_as_the_description_says_it_may(document: Any) -> None:
    known = collection.operations(document)
    assert len({step.name for step in STEPS}) == len(STEPS)
    for step in STEPS:
        answers = known[step.call]["responses"]
        assert str(step.status) in answers, step.name
        if step.problem:
            content = answers[str(step.status)]["content"]["application/problem+json"]
            assert step.problem in content["examples"], step.name


def test_every_request_asks_the_service_the_variable_names_and_looks_at_the_answer() -> None:
    read = json.loads((collection.FOLDER / collection.COLLECTION).read_text(encoding="utf-8"))
    kept = {"tag"} | {name for step in STEPS for name in step.keeps}
    for item in requests_of(read):
        url = item["request"]["url"]
        address = url if isinstance(url, str) else url["raw"]
        assert re.match(r"\{\{(baseUrl\}\}/|\w+Url\}\}$)", address), item["name"]
        assert any("pm.test(" in line for event in item["event"] for line in event["script"]["exec"]), item["name"]
        used = set(re.findall(r"\{\{(\w+)\}\}", json.dumps(item["request"])))
        assert used <= kept | {"baseUrl", "apiKey"}, item["name"]


def test_every_file_it_uploads_lies_beside_it() -> None:
    def sent(step: Step) -> set[str]:
        values = (*(value for _, value in step.form), *step.headers.values(), step.raw)
        return {value.source for value in values if isinstance(value, File)}

    uploaded = {source for step in STEPS for source in sent(step)}
    assert uploaded == {f"files/{name}" for name in files.FILES}
    for source in uploaded:
        assert 0 < (collection.FOLDER / source).stat().st_size < 100_000, source
