"""The commands that use a service: in this process, and against a running one."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from smart_assets.cli import app
from smart_assets.commands.side_by_side import in_order
from tests import images
from tests.test_cli import COMMAND, Server

HOLIDAY = images.jpeg(640, 480)
KEY = "a-key-of-sixteen-characters"
NOBODY = "01a1f908-5529-7703-b9de-54135cfb2f53"


@dataclass(frozen=True)
class Answer:
    """What a command said, and its exit code."""

    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Shell:
    """Gives commands, in the folder of the test; `data` is where what they upload comes to lie."""

    folder: Path
    data: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __call__(self, *arguments: str, stdin: str = "", **environment: str) -> Answer:
        """A command."""
        told = CliRunner().invoke(
            app, arguments, input=stdin, env=self.environment | environment, catch_exceptions=False
        )
        return Answer(told.exit_code, told.stdout, told.stderr)

    def process(self, *arguments: str, stdin: bytes = b"", **environment: str) -> Answer:
        """A command, as a process of its own."""
        told = subprocess.run(
            [*COMMAND, *arguments],
            cwd=self.folder,
            env=os.environ | self.environment | environment,
            input=stdin,
            capture_output=True,
            timeout=120,
        )
        return Answer(told.returncode, told.stdout.decode(), told.stderr.decode())

    def lines(self, *arguments: str, stdin: str = "", **environment: str) -> list[str]:
        """What a command says that does what it is asked for, and says nothing else."""
        answer = self(*arguments, stdin=stdin, **environment)
        assert (answer.code, answer.stderr) == (0, ""), answer
        return answer.stdout.splitlines()

    def stored_files(self) -> list[Path]:
        """What lies in the local storage."""
        return [path for path in (self.data / "assets").rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    folder = tmp_path_factory.mktemp("service")
    server = Server(folder, ASSETS_API_KEYS=KEY)
    yield server, folder / "data"
    server.process.kill()
    server.process.wait()


@pytest.fixture
def over_http(running: tuple[Server, Path], tmp_path: Path) -> Shell:
    """A shell whose commands work against a running service, with nothing in it."""
    server, data = running
    (tmp_path / "a.jpg").write_bytes(HOLIDAY)
    shell = Shell(tmp_path, data, {"ASSETS_URL": server.url, "ASSETS_KEY": KEY})
    shell.lines("rm", "-", stdin="\n".join(shell.lines("ls", "--ids", "--limit", "0")))
    return shell


@pytest.fixture
def here(tmp_path: Path) -> Shell:
    """A shell whose commands do the work themselves."""
    (tmp_path / "a.jpg").write_bytes(HOLIDAY)
    return Shell(tmp_path, tmp_path / "data")


@pytest.fixture(params=["here", "over_http"])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Shell:
    """The one and the other, with a folder of images."""
    shell: Shell = request.getfixturevalue(request.param)
    for name in ("a.jpg", "folder/b.jpg", "folder/deeper/ünï code.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images.jpeg(120, 80, seed=len(name)))
    (tmp_path / "folder" / "notes.txt").write_text("no image")
    (tmp_path / "folder" / ".DS_Store").write_text("hidden")
    return shell


def assets_of(lines: list[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in lines]


# ── Here, and over HTTP ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_life_of_an_asset(shell: Shell) -> None:
    original, size = shell.lines(
        "upload", "a.jpg", "--sizes", "40", "--tags", "x,y", "--visibility", "private",
        "--metadata", '{"n": 1}', "--filename", "ü.jpg", "--all-urls",
    )  # fmt: skip
    assert "original.jpg?exp=" in original
    assert ".40.jpg?exp=" in size

    (listed,) = shell.lines("ls", "--tag", "x", "--name", "Ü")
    asset_id = listed.split()[0]
    assert re.search(r"120x80 +private +local +ü\.jpg$", listed)
    assert shell.lines("ls", "--ids", "--visibility", "private") == [asset_id]
    assert shell.lines("ls", "--tag", "z") == []

    shown = json.loads("\n".join(shell.lines("show", asset_id, "--json")))
    assert (shown["metadata"], shown["tags"]) == ({"n": 1}, ["x", "y"])
    told = shell.lines("show", asset_id)
    assert [line for line in told if line.startswith("  40 ")]
    (link,) = shell.lines("url", asset_id, "--expiry", "2h", "--size", "40")
    assert ".40.jpg?exp=" in link

    told = shell.lines("stats")
    assert re.fullmatch(r"local\* +1 +\d+ +\d{4}-\d\d-\d\d \d\d:\d\d", next(line for line in told if "local" in line))
    assert json.loads("\n".join(shell.lines("stats", "--json")))["stats"]["count"] == 1
    assert shell.lines("rm", asset_id, "--json") == [json.dumps({"id": asset_id, "deleted": True})]
    assert shell.lines("ls") == []


def test_a_folder_is_sent_in_order_and_what_is_no_image_reported(shell: Shell) -> None:
    answer = shell("upload", "folder", "-r", "a.jpg", "--json", "--at-once", "3")
    assert answer.code == 1
    assert [asset["filename"] for asset in assets_of(answer.stdout.splitlines())] == ["b.jpg", "ünï code.jpg", "a.jpg"]
    (line,) = answer.stderr.splitlines()
    assert line.startswith("smart-assets: folder/notes.txt: ")
    assert line.endswith("(unsupported_image)")
    names = [asset["filename"] for asset in assets_of(shell.lines("ls", "--json", "--limit", "0", "--oldest-first"))]
    assert sorted(map(str, names)) == ["a.jpg", "b.jpg", "ünï code.jpg"]


def test_a_quoted_pattern_is_expanded(shell: Shell) -> None:
    (shell.folder / "[1].jpg").write_bytes(HOLIDAY)
    sent = assets_of(shell.lines("upload", "folder/**/*.jpg", "[1].jpg", "--json"))
    assert [asset["filename"] for asset in sent] == ["b.jpg", "ünï code.jpg", "[1].jpg"]


def test_what_comes_down_a_pipe_is_sent(shell: Shell) -> None:
    answer = shell.process("upload", "-", "--filename", "piped.jpg", "--json", stdin=HOLIDAY)
    assert (answer.code, answer.stderr) == (0, "")
    sent = json.loads(answer.stdout)
    assert (sent["filename"], sent["size_bytes"]) == ("piped.jpg", len(HOLIDAY))


def test_with_stop_nothing_more_is_begun(shell: Shell) -> None:
    for number in range(30):
        (shell.folder / "folder" / f"z{number}.jpg").write_bytes(HOLIDAY)
    answer = shell("upload", "folder/notes.txt", "folder", "--stop", "--at-once", "1")
    assert answer.code == 1
    assert answer.stdout == ""
    assert answer.stderr.splitlines()[-1] == "smart-assets: 32 more were not tried"


def test_several_are_removed_and_those_that_are_not_there_named(shell: Shell) -> None:
    shell.lines("upload", "a.jpg", "folder/b.jpg")
    ids = shell.lines("ls", "--ids")
    answer = shell("rm", ids[0], NOBODY, "-", stdin=f"{ids[1]}\n\n")
    assert answer.code == 1
    assert answer.stdout == ""
    assert answer.stderr == f"smart-assets: {NOBODY}: there is no such asset (asset_not_found)\n"
    assert shell.lines("ls") == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("upload", "nowhere.jpg"), 2, "there is no file nowhere.jpg"),
        (("upload", "*.gif"), 2, "there is no file *.gif"),
        (("upload", "empty"), 2, "there is no file in empty"),
        (("upload",), 2, "Missing argument"),
        (("upload", "a.jpg", "folder", "--filename", "x"), 2, "is for one file"),
        (("upload", "a.jpg", "--metadata", "{"), 2, "is not JSON"),
        (("upload", "a.jpg", "--metadata", "[1]"), 2, "is not a JSON object"),
        (("upload", "a.jpg", "--sizes", "12by4"), 2, "'12by4' is neither a size"),
        (("upload", "a.jpg", "--storage", "nowhere"), 2, "there is no storage 'nowhere'"),
        (("upload", "a.jpg", "--expires-at", "soon"), 2, "is not a date and time"),
        (("ls", "--days", "0"), 2, "days"),
        (("show", "nonsense"), 1, "there is no such asset"),
        (("url", NOBODY), 1, "there is no such asset"),
        (("url", NOBODY, "--expiry", "soon"), 2, "'soon' is no time"),
        (("url", NOBODY, "--expiry", "999d"), 2, "604800"),
        (("ls", "--nonsense"), 2, "No such option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_mistake_is_a_sentence_and_an_exit_code(
    shell: Shell, arguments: tuple[str, ...], code: int, said: str
) -> None:
    (shell.folder / "empty").mkdir()
    answer = shell(*arguments)
    assert (answer.code, answer.stdout) == (code, "")
    assert said in answer.stderr


def test_who_stops_reading_hears_no_complaint(shell: Shell) -> None:
    for number in range(40):
        (shell.folder / "folder" / f"{number}.jpg").write_bytes(images.jpeg(20, 20, seed=number))
    command = f"'{COMMAND[0]}' upload folder 2>&1 | head -1; '{COMMAND[0]}' ls --json 2>&1 | head -1"
    answer = subprocess.run(
        command, shell=True, cwd=shell.folder, env=os.environ | shell.environment, capture_output=True, timeout=120
    )
    first, second = answer.stdout.decode().splitlines()
    assert first.startswith("http://127.0.0.1:")
    assert json.loads(second)["id"]
    assert answer.stderr == b""


def test_ctrl_c_ends_it_at_once_and_leaves_nothing(shell: Shell) -> None:
    reading, writing = os.pipe()
    with subprocess.Popen(
        [*COMMAND, "upload", "-"],
        cwd=shell.folder,
        env=os.environ | shell.environment,
        stdin=reading,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(reading)
        with os.fdopen(writing, "wb") as pipe:
            # When the second half fits, the first was taken: the upload is under way.
            pipe.write(HOLIDAY + bytes(3_000_000))
            pipe.flush()
            process.send_signal(signal.SIGINT)
            told = process.communicate(timeout=60)
        assert (process.returncode, *told) == (130, b"", b"")
    assert shell.lines("ls") == []
    assert shell.stored_files() == []


def in_terminal(shell: Shell, *arguments: str, answer: bytes = b"") -> tuple[int, str]:
    """What somebody sees, and the exit code."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=shell.folder,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"} | shell.environment,
        stdin=slave,
        stdout=slave,
        stderr=slave,
    ) as process:
        os.close(slave)
        seen = b""
        with suppress(OSError), os.fdopen(master, "rb+", buffering=0) as terminal:  # at its end: EIO
            while piece := terminal.read(4096):
                seen += piece
                if answer and b"?" in seen:
                    terminal.write(answer)
                    answer = b""
        return process.wait(60), seen.decode()


def test_somebody_who_looks_sees_a_bar_and_whole_urls(shell: Shell) -> None:
    code, seen = in_terminal(shell, "upload", "a.jpg", "folder/notes.txt")
    assert code == 1
    assert "━" in seen
    assert re.search(r"http://\S+\.original\.jpg\r\n", seen)
    assert re.search(r"smart-assets: folder/notes.txt: [^\r]+\(unsupported_image\)\r\n", seen)


@pytest.mark.parametrize(("answer", "code", "left"), [(b"y\n", 0, 0), (b"n\n", 1, 1)])
def test_removing_asks_who_is_there(shell: Shell, answer: bytes, code: int, left: int) -> None:
    shell.lines("upload", "a.jpg")
    (asset_id,) = shell.lines("ls", "--ids")
    assert in_terminal(shell, "rm", asset_id, answer=answer)[0] == code
    assert len(shell.lines("ls")) == left
    assert in_terminal(shell, "rm", "-y", asset_id)[0] == (0 if left else 1)


# ── In this process, beside a running service ───────────────────────────────────────────────────────────────────────


def test_what_is_done_here_a_running_service_has_at_once(here: Shell, over_http: Shell) -> None:
    address = {"ASSETS_PUBLIC_URL": over_http.environment["ASSETS_URL"], "ASSETS_DATA_DIR": str(over_http.data)}
    (link,) = here.lines("upload", "a.jpg", "--visibility", "private", **address)
    assert httpx.get(link).content == HOLIDAY
    (asset_id,) = over_http.lines("ls", "--ids")
    here.lines("rm", asset_id, **address)
    assert httpx.get(link).status_code == 404


def test_what_lives_in_the_services_own_process_is_left_to_it(here: Shell, over_http: Shell) -> None:
    beside = {"ASSETS_DATA_DIR": str(over_http.data)}
    (link,) = over_http.lines("upload", "a.jpg", "--storage", "memory")
    answer = here("upload", "a.jpg", "--storage", "memory", **beside)
    assert (answer.code, answer.stdout) == (2, "")
    assert "is reached only through it" in answer.stderr
    assert here.lines("ls", **beside) == over_http.lines("ls"), "no row was forgotten"
    assert httpx.get(link).content == HOLIDAY


def test_urls_are_those_the_service_would_give(here: Shell) -> None:
    for environment, begin in (
        ({}, "http://127.0.0.1:8000/assets/"),
        ({"ASSETS_PORT": "0"}, "http://127.0.0.1:8000/assets/"),
        ({"ASSETS_HOST": "0.0.0.0", "ASSETS_API_KEYS": KEY}, "http://127.0.0.1:8000/assets/"),
        ({"ASSETS_HOST": "::1", "ASSETS_PORT": "9000"}, "http://[::1]:9000/assets/"),
        ({"ASSETS_PUBLIC_URL": "https://images.example/x/"}, "https://images.example/x/assets/"),
    ):
        (link,) = here.lines("upload", "a.jpg", **environment)
        assert link.startswith(begin), environment


def test_a_setting_that_is_wrong_is_a_sentence(here: Shell) -> None:
    for command in (("ls",), ("config",), ("upload", "a.jpg")):
        answer = here(*command, ASSETS_PORT="http")
        assert (answer.code, answer.stdout) == (2, "")
        assert answer.stderr.startswith("smart-assets: ASSETS_PORT: ")


def test_a_data_directory_that_cannot_be_used_is_a_sentence(here: Shell) -> None:
    answer = here("ls", ASSETS_DATA_DIR="a.jpg")
    assert (answer.code, answer.stdout) == (2, "")
    assert "ASSETS_DATA_DIR" in answer.stderr


def test_what_a_killed_one_leaves_the_next_finishes(here: Shell) -> None:
    with subprocess.Popen(
        [*COMMAND, "upload", "-"], cwd=here.folder, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:
        assert process.stdin is not None
        process.stdin.write(HOLIDAY + bytes(3_000_000))
        process.stdin.flush()
        process.kill()
    for _ in range(20):  # a command that has its answer waits for no clean-up: the next one goes on with it
        assert here.lines("ls") == []
        left = [path for path in (here.folder / "data").rglob("*") if path.is_file() and path.parent.name != "data"]
        if not left:
            break
    assert left == []


# ── Over HTTP ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nobody_there_is_a_sentence_and_what_was_not_tried_is_counted(here: Shell) -> None:
    for number in range(20):
        (here.folder / f"{number}.jpg").write_bytes(HOLIDAY)
    answer = here("upload", "*.jpg", "--at-once", "1", "--url", "127.0.0.1:9")
    assert (answer.code, answer.stdout) == (2, "")
    more, last = answer.stderr.splitlines()
    assert more == "smart-assets: 20 more were not tried"
    assert last.startswith("smart-assets: http://127.0.0.1:9 cannot be reached")


def test_a_key_that_is_not_known_is_a_sentence(over_http: Shell) -> None:
    answer = over_http("ls", "--key", "another-key-of-sixteen")
    assert (answer.code, answer.stderr) == (2, "smart-assets: the key is not known (unauthorized)\n")


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://u:p@x"])
def test_an_address_that_is_none_is_a_sentence(here: Shell, url: str) -> None:
    answer = here("ls", "--url", url)
    assert answer.code == 2
    assert "address" in answer.stderr


def test_the_commands_variables_are_no_misspelt_settings(here: Shell) -> None:
    answer = here("config", "--changed", ASSETS_URL="http://x", ASSETS_KEY="y")
    assert (answer.code, answer.stdout, answer.stderr) == (0, "", "")


# ── Keys and settings ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_new_key_opens(here: Shell) -> None:
    answers = [here("keys", "new") for _ in range(2)]
    first, second = (answer.stdout.strip() for answer in answers)
    assert first != second
    assert len(first) > 40
    assert "ASSETS_API_KEYS" in answers[0].stderr
    assert here.lines("ls", ASSETS_API_KEYS=f"{first},{second}", ASSETS_KEY=second) == []


def test_a_key_in_the_catalogue_opens_until_it_is_revoked(shell: Shell) -> None:
    settings = {"ASSETS_API_KEYS": KEY}  # of the service in this process; the other has it
    scopes = ("--scope", "assets:read", "--scope", "assets:write")
    answer = shell(
        "keys", "create", "website", "--owner", "shop", *scopes, "--expires-at", "2099-01-31T12:00Z", **settings
    )
    secret = answer.stdout.strip()
    assert (answer.code, secret[:3]) == (0, "sa_")
    given = settings | {"ASSETS_KEY": secret}
    assert shell.lines("ls", **given) == []
    assert shell("keys", "list", **given).code == 2, "it is no admin's"
    (line,) = [line for line in shell.lines("keys", "list", **settings) if "website" in line]
    key_id = line.split()[0]
    assert key_id in answer.stderr
    assert secret not in line
    assert line.split()[1:3] == ["shop", "assets:read,assets:write"]
    assert "2099-01-31 12:00" in line
    (listed,) = [
        found for found in assets_of(shell.lines("keys", "list", "--json", **settings)) if found["id"] == key_id
    ]
    assert listed["name"] == "website"
    assert shell.lines("keys", "revoke", key_id, **settings) == []
    assert shell("ls", **given).code == 2
    assert "key_not_found" in shell("keys", "revoke", key_id, **settings).stderr


def test_a_key_that_makes_no_sense_is_not_made(here: Shell) -> None:
    answer = here("keys", "create", "website", "--scope", "everything")
    assert answer.code == 2
    assert "invalid_parameter" in answer.stderr
    assert here.lines("keys", "list") == []


# ── Credits ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_credits_are_granted_once_and_shown(shell: Shell) -> None:
    owner = f"shop-{os.urandom(4).hex()}"
    for _ in range(2):
        (line,) = shell.lines("credits", "grant", owner, "1000", "--once", f"invoice of {owner}", "--note", "invoice")
        assert line.split()[2:] == ["+1000", owner, "grant", "invoice"]
    (line,) = shell.lines("credits", "grant", owner, "-100")
    assert "-100" in line
    refused = shell("credits", "grant", owner, "-901")
    assert (refused.code, "insufficient_credits" in refused.stderr) == (1, True)
    amounts = [entry["amount"] for entry in assets_of(shell.lines("credits", "ledger", owner, "--json"))]
    assert amounts == [-100, 1000]
    assert len(shell.lines("credits", "ledger", owner, "--limit", "1")) == 1
    assert shell.lines("credits", "show", owner) == [f"{owner}: nothing is metered"]


def test_what_is_left_and_what_was_used_are_shown(here: Shell) -> None:
    prices = {"ASSETS_CREDITS__PER_ORIGINAL": "2", "ASSETS_CREDITS__PER_SIZE": "1"}
    refused = here("upload", "a.jpg", **prices)
    assert (refused.code, "insufficient_credits" in refused.stderr) == (1, True)
    here.lines("credits", "grant", "default", "10")
    here.lines("upload", "a.jpg", "--sizes", "40", **prices)
    shown = here.lines("credits", "show", "--days", "2", **prices)
    assert [line.split() for line in shown[:3]] == [["balance", "7"], ["reserved", "0"], ["spent", "3"]]
    assert shown[-1].split()[1:] == ["1", "1", str(len(HOLIDAY)), "3", "-"]
    told = json.loads(here("credits", "show", "--days", "2", "--json", **prices).stdout)
    assert (told["balance"], told["days"][0]["credits"]) == (7, 3)


def test_each_setting_says_where_it_comes_from(here: Shell) -> None:
    (here.folder / ".env").write_text(
        "# where\n\nASSETS_PORT=8123\n\n# who\n\nexport ASSETS_S3__BUCKET='b'\n"
        "assets_api_keys=abcdefghabcdefgh,ijklmnopijklmnop\n"
        'ASSETS_POLICY={"max_width": 500}\nASSETS_WORKERS=2\nASSETS_WORKERS=3\nASSETS_LOG_LEVEL=error\n'
    )
    told = here(
        "config",
        "--changed",
        ASSETS_LOG_LEVEL="warning",
        CLOUDINARY_URL="cloudinary://key:hidden@cloud",
        ASSETS_CLOUDINARY__SIGNATURE_ALGORITHM="sha1",
        ASSETS_S3__SECRET_ACCESS_KEY="hidden",
    )
    found = [re.sub(r" +#", " #", line) for line in told.stdout.splitlines()]
    assert found == [
        "ASSETS_PORT=8123 # .env line 3",
        "ASSETS_WORKERS=3 # .env line 11",
        "ASSETS_API_KEYS=****,**** # .env line 8",
        "ASSETS_LOG_LEVEL=warning # environment",
        "ASSETS_POLICY__MAX_WIDTH=500 # .env line 9",
        "ASSETS_S3__BUCKET=b # .env line 7",
        "ASSETS_S3__SECRET_ACCESS_KEY=**** # environment",
        "ASSETS_CLOUDINARY__URL=**** # environment (CLOUDINARY_URL)",
        "ASSETS_CLOUDINARY__SIGNATURE_ALGORITHM=sha1 # environment",
    ]


def test_no_secret_is_shown(here: Shell) -> None:
    secrets = {
        "ASSETS_API_KEYS": "hidden-0123456789abc",
        "ASSETS_SIGNING_KEYS": "hidden-" + "0" * 40,
        "ASSETS_S3__SECRET_ACCESS_KEY": "hidden",
        "ASSETS_S3__SESSION_TOKEN": "hidden",
        "ASSETS_S3__PUBLIC_URL": "https://user:hidden@cdn.example",
        "ASSETS_S3__EXTRA_ARGS": '{"ClientToken": "hidden"}',
        "ASSETS_CLOUDINARY__API_SECRET": "hidden",
        "ASSETS_GCS__CREDENTIALS_JSON": "hidden",
        "ASSETS_AZURE__ACCOUNT_KEY": "hidden",
        "AZURE_STORAGE_CONNECTION_STRING": "AccountKey=hidden",
    }
    for arguments in ((), ("--json",)):
        answer = here("config", *arguments, **secrets)
        assert answer.code == 0, answer.stderr
        assert "hidden" not in answer.stdout + answer.stderr
        assert "https://user:****@cdn.example" in answer.stdout


def test_every_setting_is_there(here: Shell) -> None:
    found = json.loads("\n".join(here.lines("config", "--json")))
    assert found["ASSETS_PORT"] == {"value": 8000, "source": "default"}
    assert found["ASSETS_IMAGING__TIMEOUT_SECONDS"] == {"value": 60.0, "source": "default"}
    assert len(found) > 80


# ── Help ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    heavy = {"fastapi", "httpx", "pyvips", "rich", "sqlalchemy"}
    script = f"import sys, smart_assets.cli; print(sorted({heavy} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert answer.stdout == "[]\n", answer.stderr


def test_results_keep_the_order_of_what_is_asked_for() -> None:
    gates = [threading.Event() for _ in range(4)]

    def act(number: int) -> int:
        gates[number].wait(60)
        return number

    results = in_order(act, range(4), 4)
    for number in (3, 2, 1, 0):
        gates[number].set()
    assert [(item, future.result()) for item, future in results] == [(number, number) for number in range(4)]


def test_no_more_is_begun_than_is_asked_for() -> None:
    begun: list[int] = []
    results = in_order(begun.append, range(1000), 2)
    next(results)[1].result()
    results.close()  # type: ignore[attr-defined]
    assert len(begun) <= 5
