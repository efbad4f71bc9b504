"""The console command, as a real process over real sockets."""

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests import images
from tests.faults.slow import NOISE, SLOWLY

COMMAND = [str(Path(sys.executable).with_name("smart-assets"))]
HOLIDAY = images.jpeg(640, 480)


class Server:
    """`smart-assets serve` in a folder of its own."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.output = folder / "output.txt"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*COMMAND, "serve", "--port", "0"],
                cwd=folder,
                env=os.environ | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.url = self._address()

    def _address(self) -> str:
        for _ in range(600):
            if match := re.search(r"ready at (\S+)", self.text):
                return match[1]
            assert self.process.poll() is None, self.text
            time.sleep(0.05)
        raise AssertionError(self.text)

    @property
    def text(self) -> str:
        return self.output.read_text()

    def stop(self, by: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(by)
        return self.process.wait(60)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers = []

    def start(**environment: str) -> Server:
        servers.append(Server(tmp_path, **environment))
        return servers[-1]

    yield start
    for server in servers:
        server.process.kill()
        server.process.wait()


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=60
    )


def one_sentence(answer: subprocess.CompletedProcess[str], *words: str) -> None:
    assert answer.returncode == 1
    (line,) = answer.stderr.strip().splitlines()
    assert line.startswith("smart-assets: ")
    for word in words:
        assert word in line
    assert "Traceback" not in answer.stderr + answer.stdout


def test_it_serves_and_says_where_to_go(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve()
    assert "/docs" in server.text
    answer = httpx.post(f"{server.url}/api/v1/assets?sizes=100", files={"file": ("a.jpg", HOLIDAY)}, timeout=60)
    assert answer.status_code == 201
    assert httpx.get(answer.json()["variants"][0]["url"]).status_code == 200
    assert (tmp_path / "data" / "assets").is_dir()
    assert server.stop() == 0
    assert "Traceback" not in server.text


def test_what_was_stored_is_there_after_a_restart(serve: Callable[..., Server]) -> None:
    first = serve()
    asset = httpx.post(
        f"{first.url}/api/v1/assets?visibility=private", files={"file": ("a.jpg", HOLIDAY)}, timeout=60
    ).json()
    first.stop()
    second = serve()
    signed = asset["url"].replace(first.url, second.url)
    assert httpx.get(signed).content == HOLIDAY
    assert httpx.get(f"{second.url}/api/v1/assets").json()["items"][0]["id"] == asset["id"]


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_running_upload_finishes_before_the_service_stops(serve: Callable[..., Server], by: signal.Signals) -> None:
    server = serve()
    head = (
        "POST /api/v1/assets HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
        f"Content-Length: {len(HOLIDAY)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as connection:
        connection.sendall(head.encode() + HOLIDAY[:1000])
        time.sleep(0.3)
        server.process.send_signal(by)
        time.sleep(0.5)
        connection.sendall(HOLIDAY[1000:])
        assert connection.recv(100).startswith(b"HTTP/1.1 201")
    assert server.process.wait(60) == 0


def states(folder: Path) -> list[str]:
    with closing(sqlite3.connect(folder / "data" / "catalogue.sqlite3")) as catalogue:
        return [state for (state,) in catalogue.execute("SELECT state FROM assets")]


def until(condition: Callable[[], bool]) -> None:
    for _ in range(400):
        if condition():
            return
        time.sleep(0.02)


def test_an_upload_killed_in_the_middle_leaves_nothing_once_another_process_looked(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve(ASSETS_LEASE_SECONDS="1")
    for _ in range(3):
        httpx.post(f"{server.url}/api/v1/assets", content=HOLIDAY, headers={"Content-Type": "image/jpeg"})
    with ThreadPoolExecutor(8) as threads:
        for _ in range(8):  # each takes seconds: they cannot all be over before it is killed
            threads.submit(
                httpx.post, f"{server.url}/api/v1/assets", params=SLOWLY, files={"file": ("a.png", NOISE)}, timeout=60
            )
        until(lambda: "pending" in states(tmp_path))
        server.stop(signal.SIGKILL)
    assert "pending" in states(tmp_path), "nothing was interrupted"
    again = serve(ASSETS_LEASE_SECONDS="1")

    def torn() -> list[str]:
        listed = httpx.get(f"{again.url}/api/v1/assets", params={"limit": 200}).json()["items"]
        urls = [shown["url"] for asset in listed for shown in (asset, *asset["variants"])]
        wanted = {url.split("/assets/")[1] for url in urls}
        root = tmp_path / "data" / "assets"
        found = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
        own = [path for path in (tmp_path / "data" / "tmp").rglob("*") if path.is_file() and path.name != "rendering"]
        return sorted(wanted ^ found) + [str(path) for path in own]

    until(lambda: torn() == [])
    assert torn() == []
    assert len(httpx.get(f"{again.url}/api/v1/assets").json()["items"]) >= 3


@pytest.mark.parametrize("depth", [0, 6], ids=["short", "long"])
def test_a_killed_one_leaves_no_temporary_file_anywhere(tmp_path: Path, depth: int) -> None:
    folder, elsewhere = tmp_path.joinpath(*["a folder"] * depth), tmp_path / "elsewhere"
    folder.mkdir(parents=True, exist_ok=True)
    elsewhere.mkdir()
    server = Server(folder, TMPDIR=str(elsewhere))
    answer = httpx.post(f"{server.url}/api/v1/assets?sizes=100", files={"file": ("a.jpg", HOLIDAY)}, timeout=60)
    assert answer.status_code == 201, "rendered in a worker"
    server.stop(signal.SIGKILL)
    assert list(elsewhere.iterdir()) == []
    again = Server(folder, TMPDIR=str(elsewhere))
    try:
        until(lambda: len(list((folder / "data" / "tmp").iterdir())) == 3)
        assert len(list((folder / "data" / "tmp").iterdir())) == 3, "its own, its storage's, and everybody else's"
        httpx.post(f"{again.url}/api/v1/assets?sizes=100", files={"file": ("a.jpg", HOLIDAY)}, timeout=60)
        assert again.stop() == 0
    finally:
        again.process.kill()
    assert list(elsewhere.iterdir()) == []
    assert list((folder / "data" / "tmp").iterdir()) == []
    assert "Traceback" not in again.text


def test_a_data_directory_that_goes_away_is_unavailable_and_the_end_is_in_good_order(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve()
    (tmp_path / "data").rename(tmp_path / "unmounted")
    answer = httpx.post(f"{server.url}/api/v1/assets", files={"file": ("a.jpg", HOLIDAY)})
    assert (answer.status_code, answer.json()["code"]) == (503, "busy")
    assert httpx.get(f"{server.url}/api/v1/assets").status_code == 503
    assert server.stop() == 0


def test_a_taken_port_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        one_sentence(run(tmp_path, "serve", "--port", port), port, "ASSETS_PORT")


def test_a_data_directory_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    one_sentence(run(tmp_path, "serve", "--data-dir", "file"), "ASSETS_DATA_DIR")
    one_sentence(run(tmp_path, "serve", "--data-dir", "file/below"), "ASSETS_DATA_DIR")
    one_sentence(run(tmp_path, "serve", "--data-dir", "/proc/nowhere"), "ASSETS_DATA_DIR")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_data_directory_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    one_sentence(run(tmp_path, "serve", "--data-dir", "locked"), "ASSETS_DATA_DIR")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ASSETS_PORT", "http"),
        ("ASSETS_HOST", "0.0.0.0"),
        ("ASSETS_HOST", "no.such.host.invalid"),
        ("ASSETS_DEFAULT_STORAGE", "nowhere"),
        ("ASSETS_PRESETS", '{"a": ["12by4"]}'),
        ("ASSETS_PRESETS", "{"),
        ("ASSETS_DATABASE_URL", "sqlite:////nowhere/at/all.sqlite3"),
    ],
)
def test_a_wrong_setting_is_one_sentence(tmp_path: Path, variable: str, value: str) -> None:
    one_sentence(run(tmp_path, "serve", **({"ASSETS_PORT": "0"} | {variable: value})), variable)


def test_a_damaged_signing_key_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "signing.key").write_text("x")
    one_sentence(run(tmp_path, "serve", "--port", "0"), "signing.key")


def test_a_catalogue_that_stays_locked_ends_in_a_sentence(serve: Callable[..., Server], tmp_path: Path) -> None:
    serve().stop()
    with closing(sqlite3.connect(tmp_path / "data" / "catalogue.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        answer = run(tmp_path, "serve", "--port", "0")
    assert answer.returncode == 1
    assert answer.stderr.splitlines()[-1] == "smart-assets: the catalogue does not answer; try again"


def test_a_misspelt_variable_is_pointed_out(serve: Callable[..., Server]) -> None:
    assert "did you mean ASSETS_PORT?" in serve(ASSETS_PROT="1").text


def test_logs_are_json_lines_where_no_terminal_is(serve: Callable[..., Server]) -> None:
    server = serve()
    httpx.get(f"{server.url}/health/live", headers={"X-Request-ID": "wanted"})
    server.stop()
    lines = [json.loads(line) for line in server.text.splitlines() if line.startswith("{")]
    (request,) = [line for line in lines if line["message"] == "request"]
    assert (request["request_id"], request["status"], request["path"]) == ("wanted", 200, "/health/live")


def test_the_written_api_description_is_that_of_the_code(tmp_path: Path) -> None:
    assert run(tmp_path, "openapi", "here").returncode == 0
    root = Path(__file__).parent.parent / "openapi"
    for name in ("openapi.json", "openapi.yaml"):
        assert (tmp_path / "here" / name).read_text() == (root / name).read_text(), "run: make openapi"
