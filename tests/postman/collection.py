"""From the story and the API's description to what Postman imports: a collection (format 2.1) and an environment."""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

from smart_assets.api.documents import general
from smart_assets.main import create_app
from smart_assets.settings import Settings
from tests.postman import files
from tests.postman.story import NOBODY, STORY, File, Folder, Step

COLLECTION: Final = "smart-assets.postman_collection.json"
ENVIRONMENT: Final = "local.postman_environment.json"

FOLDER: Final = Path(__file__).parents[2] / "postman"

SCHEMA: Final = "https://schema.getpostman.com/json/collection/v2.1.0/collection.json"
ADDRESS: Final = "http://127.0.0.1:8000"

ABOUT: Final = """\
The whole API as a story: each folder can be read by itself, and is run from the first to the last.

- `baseUrl` is where the service is, `apiKey` a key of the scope `admin` where it has keys set, else empty.
- Set the working directory of Postman (Settings, General) to the folder of this file: uploads send `files/` beside it.
  newman takes it as `--working-dir`.
- The story removes what it made. It is written by `make openapi`; change `tests/postman/story.py`, not this.
"""

_EVERY_ANSWER: Final = (
    'pm.test("the request has an id", () => pm.expect(pm.response.headers.get("X-Request-ID")).to.not.be.empty);',
    'pm.test("nothing failed on the service\'s side", () => pm.expect(pm.response.code).to.be.below(500));',
)


def operations(document: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the API's description, by method and path."""
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def collection(document: Mapping[str, Any]) -> dict[str, Any]:
    """What Postman imports."""
    known = operations(document)
    return {
        "info": {
            "_postman_id": str(uuid5(NAMESPACE_URL, "smart-assets")),
            "name": document["info"]["title"],
            "description": f"{document['info']['description']}\n{ABOUT}",
            "schema": SCHEMA,
        },
        "auth": _bearer("{{apiKey}}"),
        "event": [_script("test", _EVERY_ANSWER)],
        "variable": [
            {"key": "baseUrl", "value": ADDRESS, "type": "string"},
            {"key": "apiKey", "value": "", "type": "string"},
        ],
        "item": [_folder(folder, known) for folder in STORY],
    }


def environment() -> dict[str, Any]:
    """The service on this machine."""
    return {
        "id": str(uuid5(NAMESPACE_URL, "smart-assets/local")),
        "name": "Smart Assets, on this machine",
        "values": [
            {"key": "baseUrl", "value": ADDRESS, "type": "default", "enabled": True},
            {"key": "apiKey", "value": "", "type": "secret", "enabled": True},
        ],
        "_postman_variable_scope": "environment",
    }


def write(directory: Path) -> None:
    """Both, as files; and those that are uploaded."""
    files.make(FOLDER / "files")
    for name, content in ((COLLECTION, collection(general(create_app(Settings())))), (ENVIRONMENT, environment())):
        (directory / name).write_text(as_text(content), encoding="utf-8")


def as_text(content: Mapping[str, Any]) -> str:
    """As it stands in a file."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _folder(folder: Folder, known: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": folder.name,
        "description": folder.about,
        "item": [_item(step, known[step.call]) for step in folder.steps],
    }


def _item(step: Step, operation: Mapping[str, Any]) -> dict[str, Any]:
    method, _, path = step.call.partition(" ")
    request: dict[str, Any] = {
        "method": method,
        "header": _headers(step, operation),
        "url": step.at or _url(path, step, operation),
        "description": f"**{operation['summary']}**\n\n{operation['description']}",
    }
    if step.key is not None:
        request["auth"] = {"type": "noauth"} if step.key == NOBODY else _bearer(step.key)
    if body := _body(step):
        request["body"] = body
    events = [_script("prerequest", step.before)] if step.before else []
    return {"name": step.name, "event": [*events, _script("test", _tests(step))], "request": request, "response": []}


def _url(path: str, step: Step, operation: Mapping[str, Any]) -> dict[str, Any]:
    """The address in parts; parameters that are not sent are there to be switched on."""
    parameters = [parameter for parameter in operation.get("parameters", ()) if parameter["in"] == "query"]
    unknown = step.query.keys() - {parameter["name"] for parameter in parameters}
    assert not unknown, f"{step.name}: the description has no parameter {sorted(unknown)}"
    query = [
        {
            "key": parameter["name"],
            "value": step.query.get(parameter["name"], _value(parameter)),
            "description": parameter["description"],
            **({} if parameter["name"] in step.query else {"disabled": True}),
        }
        for parameter in parameters
    ]
    segments = re.sub(r"\{(\w+)\}", r":\1", path.removeprefix("/"))
    sent = "&".join(f"{name}={value}" for name, value in step.query.items())
    url: dict[str, Any] = {
        "raw": f"{{{{baseUrl}}}}/{segments}{'?' if sent else ''}{sent}",
        "host": ["{{baseUrl}}"],
        "path": segments.split("/"),
    }
    if query:
        url["query"] = query
    if step.path:
        url["variable"] = [
            {"key": parameter["name"], "value": step.path[parameter["name"]], "description": parameter["description"]}
            for parameter in operation["parameters"]
            if parameter["in"] == "path"
        ]
    return url


def _value(parameter: Mapping[str, Any]) -> str:
    """What stands in a parameter that is switched off: its default, else an example, else the first choice."""
    schema = parameter["schema"]
    value = next(
        (
            value
            for value in (schema.get("default"), *schema.get("examples", ()), *schema.get("enum", ()))
            if value not in (None, [])
        ),
        "",
    )
    if isinstance(value, list):
        value = ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _headers(step: Step, operation: Mapping[str, Any]) -> list[dict[str, Any]]:
    headers: list[dict[str, Any]] = [
        {"key": name, "value": _digest(value) if isinstance(value, File) else value}
        for name, value in step.headers.items()
    ]
    if isinstance(step.json, (dict, list, str)):
        headers.append({"key": "Content-Type", "value": "application/json"})
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "header" and parameter["name"] not in step.headers:
            described = {"key": parameter["name"], "value": _value(parameter), "description": parameter["description"]}
            headers.append({**described, "disabled": True})
    return headers


def _digest(file: File) -> str:
    content = (FOLDER / file.source).read_bytes()
    return f"sha-256=:{b64encode(hashlib.sha256(content).digest()).decode()}:"


def _body(step: Step) -> dict[str, Any] | None:
    if step.form:
        return {"mode": "formdata", "formdata": [_field(name, value) for name, value in step.form]}
    if step.raw is not None:
        return {"mode": "file", "file": {"src": step.raw.source}}
    if step.json is not None:
        text = step.json if isinstance(step.json, str) else json.dumps(step.json, indent=2, ensure_ascii=False)
        return {"mode": "raw", "raw": text, "options": {"raw": {"language": "json"}}}
    return None


def _field(name: str, value: File | str) -> dict[str, Any]:
    if isinstance(value, File):
        return {"key": name, "type": "file", "src": value.source}
    return {"key": name, "type": "text", "value": value}


def _bearer(token: str) -> dict[str, Any]:
    return {"type": "bearer", "bearer": [{"key": "token", "value": token, "type": "string"}]}


def _script(listen: str, lines: Iterable[str]) -> dict[str, Any]:
    return {"listen": listen, "script": {"type": "text/javascript", "exec": list(lines)}}


def _tests(step: Step) -> list[str]:
    """What is looked at in an answer, and kept of it."""
    lines = [f"pm.test({_text(f'answers {step.status}')}, () => pm.response.to.have.status({step.status}));"]
    uses = " ".join([*step.checks.values(), *step.keeps.values()])
    if step.problem:
        lines += [
            f"pm.test({_text(f'says {step.problem}')}, () => {{",
            '  pm.expect(pm.response.headers.get("Content-Type")).to.equal("application/problem+json");',
            "  const problem = pm.response.json();",
            f"  pm.expect(problem.code).to.equal({_text(step.problem)});",
            f"  pm.expect(problem.status).to.equal({step.status});",
            '  pm.expect(problem.request_id).to.equal(pm.response.headers.get("X-Request-ID"));',
            "});",
        ]
    if uses:
        used = {
            "expect": "const expect = pm.expect;",
            "answer": "const answer = pm.response;",
            "body": "const body = pm.response.json();",
            "kept": "const kept = (name) => pm.collectionVariables.get(name);",
        }
        lines += [line for name, line in used.items() if re.search(rf"(?<![.\w-]){name}\b", uses)]
    lines += [f"pm.test({_text(title)}, () => {{ {check}; }});" for title, check in step.checks.items()]
    lines += [f"pm.collectionVariables.set({_text(name)}, {value});" for name, value in step.keeps.items()]
    return _again(step, lines) if step.again_until else lines


def _again(step: Step, lines: Iterable[str]) -> list[str]:
    return [
        'const times = Number(pm.collectionVariables.get("times") || 0) + 1;',
        f"if (pm.response.code !== {step.status} && times < 60) {{",
        "  // Not yet: in a second again.",
        '  pm.collectionVariables.set("times", times);',
        "  pm.execution.setNextRequest(pm.info.requestId);",
        "  setTimeout(() => {}, 1000);",
        "} else {",
        '  pm.collectionVariables.unset("times");',
        *(f"  {line}" for line in lines),
        "}",
    ]


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
