"""`smart-assets serve`, but it dies at the step that `TORTURE_STEP` names; without the variable, the service as it is.

It dies by its own SIGKILL, once there is a file `armed` in `TORTURE_FOLDER`, and writes its step into a file `died`
there first. The product's code has no part in this: what a step names is wrapped before anything runs.

Importing the service takes ten times as long as starting it. So this program imports it once, and each line it reads
then, an `Order`, makes it fork one process, which runs the console command from its first line.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import wraps
from json import dumps, loads
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from tests.torture.steps import CELLAR, NAMED, Point

if TYPE_CHECKING:
    from smart_assets.expiry import Validity
    from smart_assets.settings import Settings
    from smart_assets.storage.local import LocalStorage

STEP = "TORTURE_STEP"
FOLDER = "TORTURE_FOLDER"

ARMED = "armed"
DIED = "died"
ENDED = "ended"
"""The file in a service's folder that says how it ended: its exit code, or minus the signal."""
OUTPUT = "output.txt"

SERVE = ("serve", "--port", "0")


@dataclass(frozen=True)
class Order:
    """A command to be run in a folder, with this environment and no other: a service, unless it is another."""

    folder: str
    environment: dict[str, str]
    arguments: tuple[str, ...] = SERVE

    def to_line(self) -> str:
        """As `from_line` reads it."""
        return dumps(asdict(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Order:
        """What `to_line` wrote."""
        return cls(**loads(line))


class Fault:
    """Kills this process at a point, once it is armed."""

    def __init__(self, name: str, point: Point, folder: Path) -> None:
        """Nothing is changed before `install`."""
        self._name = name
        self._point = point
        self._folder = folder
        self._transaction = threading.local()

    def install(self) -> None:
        """Wrap what the point names."""
        if self._point.moment == "before":
            _wrap(self._point.target, before=self._strike)
        elif self._point.moment == "after":
            _wrap(self._point.target, after=lambda arguments, _: self._strike(arguments))
        else:
            _wrap(self._point.target, after=self._mark)
            _wrap(
                "smart_assets.catalogue.database:Database._run",
                before=lambda _: self._begin(),
                after=lambda *_: self._end(),
            )

    def _strike(self, arguments: tuple[Any, ...]) -> None:
        if self._counts(arguments):
            self._die()

    # A transaction runs in one thread, from its beginning to its commit.

    def _begin(self) -> None:
        self._transaction.is_meant = False

    def _mark(self, arguments: tuple[Any, ...], result: Any) -> None:
        changed = result is None or bool(result)
        if changed and self._counts(arguments):
            self._transaction.is_meant = True

    def _end(self) -> None:
        if self._transaction.is_meant:
            self._die()

    def _counts(self, arguments: tuple[Any, ...]) -> bool:
        about = self._point.about
        is_meant = not about or any(isinstance(argument, str) and about in argument for argument in arguments)
        return is_meant and (self._folder / ARMED).exists()

    def _die(self) -> None:
        (self._folder / DIED).write_text(self._name)
        os.kill(os.getpid(), signal.SIGKILL)


def _wrap(
    target: str,
    *,
    before: Callable[[tuple[Any, ...]], None] = lambda _: None,
    after: Callable[[tuple[Any, ...], Any], None] = lambda *_: None,
) -> None:
    owner_name, _, name = target.rpartition(".")
    owner = resolve_name(owner_name)
    original = getattr(owner, name)

    if inspect.iscoroutinefunction(original):

        @wraps(original)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            before((*args, *kwargs.values()))
            result = await original(*args, **kwargs)
            after((*args, *kwargs.values()), result)
            return result

    else:

        @wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            before((*args, *kwargs.values()))
            result = original(*args, **kwargs)
            after((*args, *kwargs.values()), result)
            return result

    setattr(owner, name, wrapper)


class Forks:
    """The services this process has forked. When one ends, `ENDED` in its folder says how."""

    def __init__(self) -> None:
        """Looks after their ends from now on."""
        self._folders: dict[int, Path] = {}
        signal.signal(signal.SIGCHLD, self._bury)

    def new(self, order: Order) -> int:
        """Fork one; its process id, and 0 in the service itself."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # until it is known whose end that would be
        pid = os.fork()
        if pid:
            self._folders[pid] = Path(order.folder)
        else:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _become_a_service(order)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        return pid

    def end(self) -> None:
        """Kill those that live: nobody is there any more who would."""
        for pid in list(self._folders):
            os.kill(pid, signal.SIGKILL)

    def _bury(self, *_: object) -> None:
        while self._folders:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            folder = self._folders.pop(pid)
            (folder / "status").write_text(str(os.waitstatus_to_exitcode(status)))
            (folder / "status").rename(folder / ENDED)


def _become_a_service(order: Order) -> None:
    os.setsid()  # by which its workers are found when it is gone
    os.chdir(order.folder)
    os.environ.clear()
    os.environ.update(order.environment)
    for source, flags, descriptor in (("/dev/null", os.O_RDONLY, 0), (OUTPUT, os.O_WRONLY | os.O_CREAT, 1)):
        opened = os.open(source, flags, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.dup2(1, 2)
    if step := os.environ.get(STEP):
        Fault(step, NAMED[step].point, Path(os.environ[FOLDER])).install()
    sys.argv = ["smart-assets", *order.arguments]


def _cellar(name: str, settings: Settings) -> LocalStorage:
    from dataclasses import replace

    from smart_assets.storage.base import PresignedUpload
    from smart_assets.storage.local import LocalStorage

    class Cellar(LocalStorage):
        """With leave to write there, for who is on this machine anyway."""

        capabilities = replace(LocalStorage.capabilities, presigned_uploads=True)

        async def _presigned_upload(self, key: str, max_bytes: int, validity: Validity) -> PresignedUpload:
            path = self.path(key)
            assert path is not None
            return PresignedUpload("PUT", path.as_uri(), datetime.fromtimestamp(validity.expires, tz=UTC))

    return Cellar(name, settings.data_dir / CELLAR, settings.temporary_dir)


def main() -> None:
    """Fork a service for each order, until there are no more; and be one, in those that were forked."""
    import uvicorn  # noqa: F401

    import smart_assets.main  # noqa: F401
    from smart_assets import cli
    from smart_assets.storage.factory import register_backend

    register_backend(CELLAR, _cellar)
    forks = Forks()
    for line in sys.stdin:
        pid = forks.new(Order.from_line(line))
        if not pid:
            cli.main()
            return
        print(pid, flush=True)
    forks.end()


if __name__ == "__main__":
    main()
