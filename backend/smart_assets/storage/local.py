"""Objects as files under one directory of this machine; the segments of a key are the names on the disk."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final, Self

from smart_assets.scratch import ScratchDirectory
from smart_assets.settings import TEMPORARY, LocalStorageSettings, Settings, storage_variables
from smart_assets.storage.base import Capabilities, ObjectAtHand, Source, StorageBackend, StoredObject
from smart_assets.storage.errors import (
    InvalidKey,
    ObjectExists,
    ObjectNotFound,
    StorageError,
    StorageFull,
    StorageNotConfigured,
    StorageUnavailable,
    Unsupported,
)
from smart_assets.storage.keys import Visibility, validate_key
from smart_assets.threads import Threads

# A web server of the same group may read, others may not.
FILE_MODE: Final = 0o640
DIRECTORY_MODE: Final = 0o750

_CHUNK_BYTES: Final = 1024 * 1024
_PAGE: Final = 500
_MAX_SEGMENT_BYTES: Final = 255
_MAX_KNOWN_DIRECTORIES: Final = 10_000

# O_NONBLOCK: opening a pipe somebody put there must not wait for its writer. It changes nothing for files.
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC

_ABSENT: Final = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG}
_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN: Final = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_LINKS: Final = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_NOT_ADOPTED: Final = _NO_LINKS | {errno.EXDEV, errno.ELOOP}

_OPEN_FILES: Final = "/proc/self/fd"
_HAS_OPEN_FILES: Final = Path(_OPEN_FILES).exists()

# A file without a name, which is given one through /proc (open(2), O_TMPFILE). Not every file system has them.
_UNNAMED: Final = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC if _HAS_OPEN_FILES and hasattr(os, "O_TMPFILE") else None
_NO_UNNAMED: Final = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT}

_LOCK_SECONDS: Final = 3.0


def directories(name: str, own: LocalStorageSettings | None, settings: Settings) -> tuple[Path, Path]:
    """Where a storage keeps its objects, and what it has not written to the end.

    Both below one directory, so that they are on one file system wherever that one comes from.
    """
    if own is None:
        return settings.data_dir / "assets", settings.temporary_dir
    directory = own.directory_of(name, settings.data_dir)
    return directory / "assets", directory / TEMPORARY


def _directory_variable(name: str) -> str:
    return "ASSETS_DATA_DIR" if name == LocalStorageSettings.kind else f"{storage_variables(name)}DIRECTORY"


class LocalStorage(StorageBackend):
    """Files on this machine's disk, durable when a call returns, whole or not there at all.

    A write goes to a file without a name (or to a temporary one), is synced, and is then linked into place: `link`
    fails where the name is taken, so nothing is overwritten, and no reader sees half a file. Where the file system has
    no links, it is renamed into place under a lock that the kernel gives back when its holder dies.

    No symbolic link below the root is followed, neither as a file nor as a directory: whoever manages to place one
    (a restored backup, another program of the same user) cannot make the service read or write outside.
    """

    capabilities = Capabilities(at_hand=True)

    def __init__(self, name: str, root: Path, temporary_dir: Path) -> None:
        """Makes both directories where they are missing; they must be on one file system.

        StorageNotConfigured where that cannot be done.
        """
        super().__init__(name)
        self._root = os.path.realpath(root)
        # Beside the root and the temporary files, where no key and nobody who tidies up comes across it.
        self._lock_file = f"{self._root}.lock"
        self._synced_directories: set[str] = set()
        self._scratch = memoryview(bytearray(_CHUNK_BYTES))
        self._threads = Threads(f"storage-{name}")
        try:
            _make_root(self._root, DIRECTORY_MODE)
            _make_root(os.path.realpath(temporary_dir), 0o700)
            self._temporaries = ScratchDirectory(temporary_dir)
        except OSError as error:
            raise StorageNotConfigured(
                f"the directory of the storage {name} cannot be made: {os.strerror(error.errno or 0)}",
                storage=name,
                missing=(_directory_variable(name),),
            ) from error

    @classmethod
    def from_settings(cls, name: str, own: LocalStorageSettings | None, settings: Settings) -> Self:
        """In the data directory; of another name, in a directory of its own, built like that one."""
        root, temporary_dir = directories(name, own, settings)
        return cls(name, root, temporary_dir)

    def at_hand(self, key: str) -> ObjectAtHand | None:
        """The object, opened; None where there is none. Stays readable, whole, when it is deleted meanwhile."""
        try:
            validate_key(key)
            descriptor = self._open_fast(key) if _HAS_OPEN_FILES else self._open(key)
        except (InvalidKey, ObjectNotFound):
            return None
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise self._error(error, key) from error
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            return None
        return _OpenFile(descriptor, status.st_size, status.st_mtime_ns, self._scratch)

    async def close(self) -> None:
        """Let the threads end."""
        self._threads.close()
        self._temporaries.close()

    # ── Primitives: each one trip to a thread ───────────────────────────────────────────────────────────────────────

    async def _put(self, key: str, source: Source, *, content_type: str, give_away: bool) -> StoredObject:
        return await self._threads.run(partial(self._write, key, source, give_away))

    async def _read(self, key: str, start: int, end: int | None) -> AsyncGenerator[bytes, None]:
        with ExitStack() as opened:
            descriptor = await self._threads.run(lambda: opened.enter_context(self._opened(key)))
            position = start
            while end is None or position < end:
                length = _CHUNK_BYTES if end is None else min(_CHUNK_BYTES, end - position)
                chunk = await self._threads.run(partial(os.pread, descriptor, length, position))
                if not chunk:
                    break
                yield chunk
                position += len(chunk)

    async def _stat(self, key: str) -> StoredObject:
        return await self._threads.run(partial(self._look_up, key))

    async def _delete(self, key: str) -> bool:
        return await self._threads.run(partial(self._unlink, key))

    async def _list(self, prefix: str) -> AsyncGenerator[StoredObject, None]:
        records = self._walk(prefix)
        try:
            while page := await self._threads.run(lambda: list(islice(records, _PAGE))):
                for record in page:
                    yield record
        finally:
            records.close()

    async def _move(self, key: str, target: str) -> StoredObject:
        return await self._threads.run(partial(self._rename, key, target))

    def _path(self, key: str) -> Path | None:
        return Path(self._root, key)

    async def _check(self) -> None:
        await self._threads.run(self._probe)

    def _translate(self, error: Exception, key: str | None) -> StorageError | None:
        return self._error(error, key) if isinstance(error, OSError) else None

    # ── What the threads do ─────────────────────────────────────────────────────────────────────────────────────────

    def _write(self, key: str, source: Source, give_away: bool) -> StoredObject:  # noqa: FBT001
        with self._directory(key, make=True) as (directory, name):
            if give_away and isinstance(source, Path):
                adopted = self._adopt(key, source, directory, name)
                if adopted is not None:
                    return adopted
            if (written := self._write_unnamed(key, source, directory, name)) is not None:
                return written
            with self._temporary_copy(source) as (path, descriptor):
                try:
                    self._link(path, directory, name)
                except OSError as error:
                    if error.errno not in _NO_LINKS:
                        raise
                    with self._lock():
                        _rename_if_absent(path, directory, name)
                os.fsync(directory)
                return _record(key, os.fstat(descriptor))

    def _write_unnamed(self, key: str, source: Source, directory: int, name: str) -> StoredObject | None:
        """Write a file that has no name until it is whole, so that none is left whatever happens meanwhile.

        None where the system, or the file system, has no such files.
        """
        if _UNNAMED is None:
            return None
        try:
            descriptor = os.open(".", _UNNAMED, FILE_MODE, dir_fd=directory)
        except OSError as error:
            if error.errno in _NO_UNNAMED:
                return None
            raise
        try:
            _fill(descriptor, source)
            self._link(f"{_OPEN_FILES}/{descriptor}", directory, name, follow_symlinks=True)
            os.fsync(directory)
            return _record(key, os.fstat(descriptor))
        except OSError as error:
            if error.errno in _NO_LINKS:
                return None
            raise
        finally:
            os.close(descriptor)

    def _adopt(self, key: str, source: Path, directory: int, name: str) -> StoredObject | None:
        """Link the caller's own file into place; None where it has to be copied after all."""
        try:
            descriptor = os.open(source, _FILE)
            try:
                os.fchmod(descriptor, FILE_MODE)
                os.fsync(descriptor)
                self._link(source, directory, name)
                os.fsync(directory)
                return _record(key, os.fstat(descriptor))
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno in _NOT_ADOPTED:
                return None
            raise

    def _look_up(self, key: str) -> StoredObject:
        with self._directory(key) as (directory, name):
            return _record(key, _status(directory, name))

    def _unlink(self, key: str) -> bool:
        try:
            with self._directory(key) as (directory, name):
                try:
                    os.unlink(name, dir_fd=directory)
                    return True
                except (FileNotFoundError, IsADirectoryError):
                    return False
                finally:
                    # Also where nothing was there: who removed it may have died before this line.
                    os.fsync(directory)
        except ObjectNotFound:
            return False

    def _rename(self, key: str, target: str) -> StoredObject:
        with (
            # Two moves in opposite directions would each take the other's link for its own and remove both.
            self._lock(),
            self._directory(key) as (old, old_name),
            self._directory(target, make=True) as (new, new_name),
        ):
            try:
                status = _status(old, old_name)
                self._place_again(old, old_name, new, new_name)
                os.fsync(new)
                with suppress(FileNotFoundError):
                    os.unlink(old_name, dir_fd=old)
            finally:
                os.fsync(old)
            return _record(target, status)

    def _place_again(self, old: int, old_name: str, new: int, new_name: str) -> None:
        """Give the file its second name (or, without links, its new one); nothing where it has that already."""
        try:
            self._link(old_name, new, new_name, source_directory=old)
        except FileExistsError:
            if not os.path.samestat(_status(old, old_name), _status(new, new_name)):
                raise
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _rename_if_absent(old_name, new, new_name, source_directory=old)

    def _walk(self, prefix: str) -> Generator[StoredObject, None, None]:
        root = self._open_root()
        try:
            yield from _records(root, "", prefix)
        finally:
            os.close(root)

    def _probe(self) -> None:
        with tempfile.TemporaryFile(dir=self._temporaries.path, buffering=0) as file:
            file.write(b"\0")
        os.close(self._open_root())
        if not os.access(self._root, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    # ── Ways to files and directories ───────────────────────────────────────────────────────────────────────────────

    def _open_root(self) -> int:
        # Not "no such object": with the disk unmounted everything would seem to be gone.
        try:
            return os.open(self._root, _DIRECTORY)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StorageUnavailable(f"the directory of the storage {self.name} is not there") from error

    @contextmanager
    def _directory(self, key: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """The directory of an object, and the object's name in it.

        Opened segment by segment from the root, each relative to the one before: no link is followed, whatever is
        swapped meanwhile. ObjectNotFound where a directory is missing and not to be made.
        """
        *segments, name = key.split("/")
        if any(len(segment.encode()) > _MAX_SEGMENT_BYTES for segment in (*segments, name)):
            raise InvalidKey(f"{self.name} takes keys whose segments have at most {_MAX_SEGMENT_BYTES} bytes")
        directory = self._open_root()
        try:
            path = ""
            for segment in segments:
                path = f"{path}/{segment}"
                child = self._make(directory, segment, path) if make else _enter(directory, segment)
                os.close(directory)
                directory = child
            yield directory, name
        finally:
            os.close(directory)

    def _make(self, parent: int, segment: str, path: str) -> int:
        """The directory opened, made where it was missing, and its entry in `parent` durable."""
        made = False
        try:
            child = os.open(segment, _DIRECTORY, dir_fd=parent)
        except FileNotFoundError:
            with suppress(FileExistsError):
                os.mkdir(segment, DIRECTORY_MODE, dir_fd=parent)
            child = os.open(segment, _DIRECTORY, dir_fd=parent)
            os.fchmod(child, DIRECTORY_MODE)  # whatever the umask took
            made = True
        except NotADirectoryError:
            raise Unsupported("a part of the key is taken by an object, and a file cannot hold others") from None
        # One that another process has just made may not be synced yet: each process sees to it once.
        if made or path not in self._synced_directories:
            os.fsync(parent)
            if len(self._synced_directories) >= _MAX_KNOWN_DIRECTORIES:
                self._synced_directories.clear()
            self._synced_directories.add(path)
        return child

    @contextmanager
    def _temporary_copy(self, source: Source) -> Iterator[tuple[str, int]]:
        """A file of its own with the bytes of `source`, durable; its name is gone afterwards."""
        descriptor, path = tempfile.mkstemp(prefix="put-", dir=self._temporaries.path)
        try:
            _fill(descriptor, source)
            yield path, descriptor
        finally:
            os.close(descriptor)
            Path(path).unlink(missing_ok=True)

    @contextmanager
    def _opened(self, key: str) -> Iterator[int]:
        descriptor = self._open(key)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ObjectNotFound("there is no such object")
            yield descriptor
        finally:
            os.close(descriptor)

    def _open(self, key: str) -> int:
        with self._directory(key) as (directory, name):
            try:
                return os.open(name, _FILE, dir_fd=directory)
            except OSError as error:
                raise _absent(error) from None

    def _open_fast(self, key: str) -> int:
        # Half the price of going through the directories one by one: the kernel says afterwards which way it went.
        # With a link on the way, or a file renamed or removed this moment, that is not the path asked for.
        path = f"{self._root}/{key}"
        descriptor = os.open(path, _FILE)
        try:
            reached = os.readlink(f"{_OPEN_FILES}/{descriptor}")  # noqa: PTH115 - Path costs as much as all the rest
        except OSError:
            os.close(descriptor)
            raise
        if reached != path:
            os.close(descriptor)
            raise ObjectNotFound("there is no such object")
        return descriptor

    def _link(
        self,
        source: str | Path,
        directory: int,
        name: str,
        *,
        source_directory: int | None = None,
        follow_symlinks: bool = False,
    ) -> None:
        os.link(source, name, src_dir_fd=source_directory, dst_dir_fd=directory, follow_symlinks=follow_symlinks)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One holder at a time among all threads and processes of this storage.

        Held for a few system calls only; a process that is stopped in the middle of them must not stop all others, so
        after a while StorageUnavailable.
        """
        descriptor = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + _LOCK_SECONDS
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise StorageUnavailable(f"the storage {self.name} is locked by another process") from None
                    time.sleep(0.001)
            yield
        finally:
            os.close(descriptor)

    def _error(self, error: OSError, key: str | None) -> StorageError:
        reason = os.strerror(error.errno or 0)
        if isinstance(error, FileExistsError):
            return ObjectExists("the key is taken", storage=self.name, key=key)
        if error.errno in _FULL:
            return StorageFull(f"no room left on the storage {self.name}: {reason}", storage=self.name, key=key)
        if error.errno in _FORBIDDEN:
            return StorageError(f"the storage {self.name} refuses access: {reason}", storage=self.name, key=key)
        if error.errno == errno.EXDEV:
            return StorageError(
                f"the storage {self.name} and its temporary files are on two file systems", storage=self.name, key=key
            )
        return StorageUnavailable(f"the storage {self.name} cannot be used: {reason}", storage=self.name, key=key)


def _fill(descriptor: int, source: Source) -> None:
    """Write all of `source` to a new file, readable for those who may, and have it on the disk."""
    with open(descriptor, "wb", closefd=False) as file:
        if isinstance(source, bytes):
            file.write(source)
        else:
            with source.open("rb") as original:
                shutil.copyfileobj(original, file, _CHUNK_BYTES)
    os.fchmod(descriptor, FILE_MODE)
    os.fsync(descriptor)


class _OpenFile:
    """An open file of this disk."""

    __slots__ = ("_descriptor", "_scratch", "modified_ns", "size")

    def __init__(self, descriptor: int, size: int, modified_ns: int, scratch: memoryview) -> None:
        self._descriptor = descriptor
        self._scratch = scratch
        self.size = size
        self.modified_ns = modified_ns

    def read(self, start: int, length: int, *, wait: bool) -> bytes | None:
        """Without waiting, at most a MiB, and only what the page cache holds."""
        if wait:
            return os.pread(self._descriptor, length, start)
        if length > _CHUNK_BYTES:
            return None
        # Into one buffer and out of it again: a new one for each read costs a page fault for every 4 KiB.
        into = self._scratch[:length]
        try:
            count = os.preadv(self._descriptor, [into], start, os.RWF_NOWAIT)
        except BlockingIOError:
            return None
        except (OSError, AttributeError) as error:
            # Some file systems cannot tell (NFS, FUSE, tmpfs), some systems do not ask. A read may wait there.
            if isinstance(error, AttributeError) or error.errno == errno.EOPNOTSUPP:
                return None
            raise
        if count < length and start + count < self.size:
            return None
        return bytes(into[:count])

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _make_root(path: str, mode: int) -> None:
    if Path(path).is_dir():
        return
    Path(path).mkdir(mode=mode, parents=True, exist_ok=True)
    Path(path).chmod(mode)
    parent = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _absent(error: OSError) -> Exception:
    return ObjectNotFound("there is no such object") if error.errno in _ABSENT else error


def _enter(parent: int, segment: str) -> int:
    try:
        return os.open(segment, _DIRECTORY, dir_fd=parent)
    except OSError as error:
        raise _absent(error) from None


def _status(directory: int, name: str) -> os.stat_result:
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError as error:
        raise _absent(error) from None
    if not stat.S_ISREG(status.st_mode):
        raise ObjectNotFound("there is no such object")
    return status


def _record(key: str, status: os.stat_result) -> StoredObject:
    return StoredObject(
        key=key,
        size=status.st_size,
        etag=f"{status.st_mtime_ns:x}-{status.st_size:x}",
        modified=datetime.fromtimestamp(status.st_mtime, tz=UTC),
    )


def _rename_if_absent(source: str, directory: int, name: str, *, source_directory: int | None = None) -> None:
    """Only under the storage's lock: between the look and the rename nobody else may write."""
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(source, name, src_dir_fd=source_directory, dst_dir_fd=directory)
    else:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def _records(directory: int, base: str, prefix: str) -> Iterator[StoredObject]:
    with os.scandir(directory) as entries:
        for entry in entries:
            key = base + entry.name
            try:
                if entry.is_dir(follow_symlinks=False):
                    if not (key + "/").startswith(prefix[: len(key) + 1]):
                        continue
                    child = os.open(entry.name, _DIRECTORY, dir_fd=directory)
                    try:
                        yield from _records(child, key + "/", prefix)
                    finally:
                        os.close(child)
                elif key.startswith(prefix) and entry.is_file(follow_symlinks=False):
                    yield _record(validate_key(key), entry.stat(follow_symlinks=False))
            except (InvalidKey, FileNotFoundError, NotADirectoryError):
                continue  # not one of ours, or gone since
            except PermissionError:
                if _is_ours(key) or prefix.startswith(key + "/"):
                    raise
                # Somebody else's (`lost+found`): what nobody may read there is no object, and keeps none from us.


def _is_ours(path: str) -> bool:
    """Whether the service keeps objects there."""
    return path.partition("/")[0] in {*Visibility, "smart-assets"}
