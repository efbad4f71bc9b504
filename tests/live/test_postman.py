"""The Postman collection, played by newman against the real service: every assertion in it holds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.process import ServiceProcess
from tests.live.process import program, unavailable
from tests.postman.collection import COLLECTION, ENVIRONMENT, FOLDER
from tests.postman.story import STORY

KEY = "the-key-of-this-service"
NEWMAN = Path(sys.prefix) / "azurite/node_modules/newman/bin/newman.js"


def newman() -> list[str]:
    """How it is called."""
    script = shutil.which("newman") or NEWMAN
    if not Path(script).exists():
        unavailable("there is no newman: `make live` installs it")
    return [program("node"), str(script)]


def played(service: ServiceProcess, report: Path, **variables: str) -> Any:
    """What newman reports of a run of the whole story."""
    given = [f"{name}={value}" for name, value in {"baseUrl": service.url, **variables}.items()]
    command = [
        *newman(),
        *("run", COLLECTION, "--environment", ENVIRONMENT, "--timeout", "300000"),
        *(part for variable in given for part in ("--env-var", variable)),
        *("--reporters", "json", "--reporter-json-export", str(report)),
    ]
    ended = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=400)
    assert report.exists(), ended.stdout + ended.stderr
    return json.loads(report.read_text())["run"]


@pytest.mark.parametrize("key", [KEY, ""], ids=["with keys", "in open mode"])
def test_the_whole_story_is_true(tmp_path: Path, key: str, request: pytest.FixtureRequest) -> None:
    settings = {"ASSETS_API_KEYS": key} if key else {}
    with ServiceProcess(tmp_path, ASSETS_IMAGING__WORKERS="1", **settings) as service:
        run = played(service, tmp_path / "report.json", apiKey=key)
    counted = {name: run["stats"][name] for name in ("requests", "assertions")}
    _sum_up(request.node.callspec.id, counted)
    failures = [(failure["source"].get("name"), failure["error"]["message"]) for failure in run["failures"]]
    assert failures == []
    assert counted["requests"]["total"] >= sum(len(folder.steps) for folder in STORY)
    assert counted["assertions"]["total"] > 3 * counted["requests"]["total"]
    left = [path for visibility in ("public", "private") for path in service.data.glob(f"assets/{visibility}/**/*.*")]
    assert left == [], "the story removes what it made"


def _sum_up(mode: str, counted: dict[str, Any]) -> None:
    """For CI's summary."""
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        lines = [f"- {name}: {of['total']}, failures {of['failed']}" for name, of in counted.items()]
        with Path(summary).open("a") as file:
            file.write("\n".join([f"## The Postman collection, {mode}", *lines, ""]))
