"""The image and the stack as they are written down: nothing floats, nothing is open, and what they name is there."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from boto3.session import Session
from botocore import exceptions as sdk
from botocore.config import Config

from smart_assets.settings import PREFIX, misspelt_variables
from tests.faults.process import PATIENCE, ServiceProcess
from tests.live.process import free_port, program, server_process

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: Any = yaml.safe_load(COMPOSE_TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
EXAMPLE = (ROOT / ".env.example").read_text()

SECRETS = set(re.findall(r"^(\w+)=$", EXAMPLE, re.MULTILINE))


def succeeds(*command: str | Path) -> None:
    finished = subprocess.run([str(part) for part in command], check=False, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_the_linter_finds_nothing_in_the_dockerfile() -> None:
    succeeds(program("hadolint"), ROOT / "Dockerfile")


def test_the_compose_file_is_one() -> None:
    command = program("check-jsonschema")
    succeeds(command, "--builtin-schema", "vendor.compose-spec", ROOT / "docker-compose.yml")


def test_every_image_is_pinned_by_its_tag_and_digest() -> None:
    images = [service["image"] for service in SERVICES.values() if service["image"] != "smart-assets"]
    images += re.findall(r"^ARG PYTHON_IMAGE=(.+)$", DOCKERFILE, re.MULTILINE)
    assert len(images) == 5
    for image in images:
        assert re.fullmatch(r"([a-z]+/)?[a-z]+:\d+\.\d+[a-z0-9.-]*@sha256:[0-9a-f]{64}", image), image
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {"${PYTHON_IMAGE}"}


def test_nothing_is_reached_from_other_machines_unless_it_is_said() -> None:
    for name, service in SERVICES.items():
        for port in service.get("ports", ()):
            assert re.match(r"\$\{[A-Z0-9]+_ADDRESS:-127\.0\.0\.1\}:", port), (name, port)
    assert {name for name, service in SERVICES.items() if "ports" in service} == {"gateway", "s3", "embedded"}
    # Who asks for no credentials, or has none to ask for, is met by nobody but the service.
    assert SERVICES["gateway"]["networks"] == ["front"]
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    meets_all = {name for name, service in SERVICES.items() if len(service.get("networks", ())) > 1}
    assert meets_all == {"service"}


def test_what_handles_images_can_change_nothing_of_its_own() -> None:
    for name in ("gateway", "service", "bucket", "embedded"):
        service = SERVICES[name]
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    assert SERVICES["gateway"]["user"].split(":")[0] != "0"
    assert re.search(r"^USER 10001:10001$", DOCKERFILE, re.MULTILINE)
    assert SERVICES["gateway"]["user"].endswith(":10001")
    assert all(volume.endswith(":ro") for volume in SERVICES["gateway"]["volumes"])


def test_no_secret_has_a_default_and_a_missing_one_is_named_with_its_cure() -> None:
    asked = re.findall(r"\$\{(\w+):\?([^}]+)\}", COMPOSE_TEXT)
    assert {name for name, _ in asked} == SECRETS
    assert {cure for _, cure in asked} == {"`sh deploy/new-env` writes an .env with secrets of its own"}
    for name in SECRETS:
        assert not re.search(rf"\$\{{{name}[^:]|\$\{{{name}:[^?]", COMPOSE_TEXT), name
    # A variable is named in no other way than these.
    assert not re.search(r"(KEY|SECRET|PASSWORD)\w*: *[\"']?[A-Za-z0-9]", COMPOSE_TEXT)


def test_a_new_env_has_secrets_of_its_own_and_is_written_once(tmp_path: Path) -> None:
    found: list[str] = []
    for name in ("one", "two"):
        folder = tmp_path / name
        (folder / "deploy").mkdir(parents=True)
        shutil.copy(ROOT / ".env.example", folder)
        shutil.copy(ROOT / "deploy/new-env", folder / "deploy")
        succeeds("sh", folder / "deploy/new-env")
        written = folder / ".env"
        assert stat.S_IMODE(written.stat().st_mode) == 0o600
        values = dict(re.findall(r"^(\w+)=(.*)$", written.read_text(), re.MULTILINE))
        assert values.keys() == SECRETS
        found += values.values()
        again = subprocess.run(["sh", str(folder / "deploy/new-env")], check=False, capture_output=True, text=True)
        assert (again.returncode, again.stderr) == (1, "there is an .env already: it stays as it is\n")
        assert dict(re.findall(r"^(\w+)=(.*)$", written.read_text(), re.MULTILINE)) == values
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in found)
    assert len(set(found)) == 2 * len(SECRETS)


def test_every_setting_the_stack_names_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    named = {*re.findall(rf"\b{PREFIX}[A-Z0-9_]+", COMPOSE_TEXT + EXAMPLE + DOCKERFILE)}
    assert len(named) > 15
    for name in named:
        monkeypatch.setenv(name, "1")
    assert misspelt_variables() == []


def test_the_gateway_is_told_every_setting_it_shares_with_the_service() -> None:
    reads = set(re.findall(r"\$\{(ASSETS_\w+):", (ROOT / "deploy/nginx/start").read_text()))
    assert SERVICES["gateway"]["environment"].keys() == reads | {"GATEWAY_PROXIES"}


def test_the_service_alone_is_started_by_its_name_and_by_nothing_else() -> None:
    assert {name for name, service in SERVICES.items() if "profiles" in service} == {"embedded"}
    assert "depends_on" not in SERVICES["embedded"]


def test_the_image_has_the_libraries_of_all_that_the_stack_runs() -> None:
    (extras,) = re.findall(r'^ARG EXTRAS="(.*)"$', DOCKERFILE, re.MULTILINE)
    there = {path.stem for path in (ROOT / "requirements").glob("*.txt")}
    assert set(extras.split()) == {"postgres", "redis"} & there


def test_nothing_of_a_checkout_but_the_service_goes_into_the_image() -> None:
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    assert sorted(let_in) == sorted(name for line in copied for name in line.split())


def test_the_image_is_healthy_when_the_service_is(tmp_path: Path) -> None:
    (check,) = re.findall(r"HEALTHCHECK .*\\\n +CMD (\[.+\])", DOCKERFILE)
    command = [sys.executable, *json.loads(check)[1:]]

    def is_healthy(port: int) -> bool:
        environment = {**os.environ, "ASSETS_PORT": str(port)}
        finished = subprocess.run(command, env=environment, check=False, capture_output=True, timeout=PATIENCE)
        return finished.returncode == 0

    with ServiceProcess(tmp_path) as service:
        assert is_healthy(service.address[1])
    assert not is_healthy(free_port())


def test_the_bucket_is_made_and_open_where_it_is_public(tmp_path: Path) -> None:
    """With the real server, as the stack starts it."""
    account = {"S3_ACCESS_KEY_ID": "a" * 64, "S3_SECRET_ACCESS_KEY": "b" * 64}
    ports: set[int] = set()
    while len(ports) < 5:
        ports.add(free_port(below=22_000))  # of each another one lies ten thousand above
    port, *others = ports
    places = {"-dir": str(tmp_path), "-ip.bind": "127.0.0.1", "-s3.port": str(port)}
    places |= {
        f"-{part}.port": str(other) for part, other in zip(("master", "volume", "filer", "admin"), others, strict=True)
    }
    places |= {f"-{part}.localSocket": str(tmp_path / f"{part}.sock") for part in ("s3", "filer")}
    said = dict(part.partition("=")[::2] for part in SERVICES["s3"]["command"][1:])
    command = [program("weed"), SERVICES["s3"]["command"][0], *(f"{k}={v}" for k, v in (said | places).items())]
    credentials = {"AWS_ACCESS_KEY_ID": "a" * 64, "AWS_SECRET_ACCESS_KEY": "b" * 64}
    endpoint = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        try:
            return httpx.get(f"{endpoint}/healthz", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    settings = {name: str(value) for name, value in COMPOSE["x-environment"].items() if "__" in name}
    settings |= {f"{PREFIX}{name.replace('S3_', 'S3__', 1)}": value for name, value in account.items()}
    settings |= {"ASSETS_S3__ENDPOINT_URL": endpoint, "ASSETS_S3__SIGNING_ENDPOINT_URL": ""}
    with server_process(command, is_ready, log=tmp_path / "log", environment=credentials):
        for _ in range(2):
            finished = subprocess.run(
                [sys.executable, str(ROOT / "deploy/bucket.py")],
                env={**os.environ, **settings},
                check=False,
                capture_output=True,
                text=True,
                cwd=tmp_path,
            )
            assert finished.returncode == 0, finished.stderr
        config = Config(signature_version="s3v4")  # type: ignore[no-untyped-call]
        session = Session("a" * 64, "b" * 64)  # type: ignore[no-untyped-call]
        client = session.client("s3", "us-east-1", endpoint_url=endpoint, config=config)  # type: ignore[no-untyped-call]
        with closing(client):
            for key in ("public/a.jpg", "private/a.jpg"):
                client.put_object(Bucket="assets", Key=key, Body=b"bytes")
            with pytest.raises(sdk.ClientError):
                client.put_object(Bucket="another", Key="public/a.jpg", Body=b"bytes")
        assert httpx.get(f"{endpoint}/assets/public/a.jpg", trust_env=False).content == b"bytes"
        for path in ("/assets/private/a.jpg", "/assets/", "/assets", "/"):
            assert httpx.get(f"{endpoint}{path}", trust_env=False).status_code == 403, path
