"""Objects as files on this machine's disk."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

import smart_assets.storage.local
from smart_assets.storage.errors import (
    InvalidKey,
    ObjectExists,
    ObjectNotFound,
    StorageError,
    StorageFull,
    StorageUnavailable,
    Unsupported,
)
from smart_assets.storage.keys import Visibility
from smart_assets.storage.local import LocalStorage
from tests.contracts.storage import PNG, StorageContract, image, listed, open_descriptors, read

KEY = "public/2026/11/20/a.png"
PRIVATE_KEY = "private/2026/11/20/a.png"


class LinksRefused(LocalStorage):
    """As on a file system that refuses links, for the reason given."""

    reason = errno.EPERM

    def _link(self, source: str | Path, directory: int, name: str, **how: Any) -> None:
        raise OSError(self.reason, os.strerror(self.reason))


class OtherFileSystem(LocalStorage):
    """As where the files to be taken over lie on another file system."""

    def _link(self, source: str | Path, directory: int, name: str, **how: Any) -> None:
        if isinstance(source, Path):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        super()._link(source, directory, name, **how)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data/assets"


@pytest.fixture
def temporary_dir(tmp_path: Path) -> Path:
    return tmp_path / "data/tmp"


@pytest.fixture
async def local(root: Path, temporary_dir: Path) -> AsyncIterator[LocalStorage]:
    storage = LocalStorage("local", root, temporary_dir)
    yield storage
    await storage.close()


class TestLocalStorage(StorageContract):
    @pytest.fixture
    async def storage(self, tmp_path: Path) -> AsyncIterator[LocalStorage]:
        storage = LocalStorage("local", tmp_path / "assets", tmp_path / "tmp")
        yield storage
        await storage.close()
        assert files_in(tmp_path / "tmp") == set(), "a temporary file is left"


class TestLocalStorageWithoutLinks(StorageContract):
    heavy = False

    @pytest.fixture
    async def storage(self, tmp_path: Path) -> AsyncIterator[LocalStorage]:
        storage = LinksRefused("local", tmp_path / "assets", tmp_path / "tmp")
        yield storage
        await storage.close()
        assert files_in(tmp_path / "tmp") == set(), "a temporary file is left"


class TestLocalStorageWithoutUnnamedFiles(StorageContract):
    heavy = False

    @pytest.fixture
    async def storage(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalStorage]:
        monkeypatch.setattr(smart_assets.storage.local, "_UNNAMED", None)
        storage = LocalStorage("local", tmp_path / "assets", tmp_path / "tmp")
        yield storage
        await storage.close()
        assert files_in(tmp_path / "tmp") == set(), "a temporary file is left"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def tree(path: Path) -> set[str]:
    return {str(found.relative_to(path)) for found in path.rglob("*")}


def files_in(path: Path) -> set[str]:
    return {str(found.relative_to(path)) for found in path.rglob("*") if found.is_file()}


def run(program: str, *arguments: str | Path) -> subprocess.Popen[str]:
    """Another process."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(params=[0o000, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


# ── How it lies on the disk ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("give_away", [False, True])
async def test_a_web_server_of_the_group_may_read_and_others_may_not(
    tmp_path: Path, root: Path, temporary_dir: Path, *, give_away: bool
) -> None:
    storage = LocalStorage("local", root, temporary_dir)
    file = tmp_path / "upload"
    file.write_bytes(image())
    await storage.upload(KEY, file, content_type=PNG, give_away=give_away)
    assert mode(root / KEY) == 0o640
    for directory in (root, root / "public", root / "public/2026/11/20"):
        assert mode(directory) == 0o750
    assert mode(temporary_dir) == 0o700
    await storage.close()


async def test_a_file_given_away_is_linked_not_copied(local: LocalStorage, root: Path, tmp_path: Path) -> None:
    file = tmp_path / "upload"
    file.write_bytes(image())
    inode = file.stat().st_ino
    await local.upload(KEY, file, content_type=PNG, give_away=True)
    assert (root / KEY).stat().st_ino == inode
    file.unlink()
    assert await read(local, KEY) == image()


@pytest.mark.parametrize("reason", [errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS])
async def test_a_file_given_away_is_copied_where_links_are_refused(
    root: Path, temporary_dir: Path, tmp_path: Path, reason: int
) -> None:
    storage = LinksRefused("local", root, temporary_dir)
    storage.reason = reason
    file = tmp_path / "upload"
    file.write_bytes(image())
    await storage.upload(KEY, file, content_type=PNG, give_away=True)
    assert (root / KEY).stat().st_ino != file.stat().st_ino
    assert file.read_bytes() == (root / KEY).read_bytes() == image()
    await storage.close()


async def test_a_file_given_away_on_another_file_system_is_copied(
    root: Path, temporary_dir: Path, tmp_path: Path
) -> None:
    storage = OtherFileSystem("local", root, temporary_dir)
    file = tmp_path / "upload"
    file.write_bytes(image())
    await storage.upload(KEY, file, content_type=PNG, give_away=True)
    assert file.read_bytes() == (root / KEY).read_bytes() == image()
    await storage.close()


@pytest.mark.parametrize("give_away", [False, True])
async def test_bytes_are_on_the_disk_before_the_name_and_the_name_before_the_answer(
    root: Path, temporary_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, give_away: bool
) -> None:
    steps = []

    class Observed(LocalStorage):
        def _link(self, source: str | Path, directory: int, name: str, **how: Any) -> None:
            steps.append("link")
            super()._link(source, directory, name, **how)

    sync = os.fsync

    def fsync(descriptor: int) -> None:
        sync(descriptor)
        status = os.fstat(descriptor)
        steps.append("file" if stat.S_ISREG(status.st_mode) else f"directory {status.st_ino}")

    storage = Observed("local", root, temporary_dir)
    file = tmp_path / "upload"
    file.write_bytes(image())
    monkeypatch.setattr(os, "fsync", fsync)
    await storage.upload(KEY, file, content_type=PNG, give_away=give_away)
    monkeypatch.undo()

    folders = [root, *(root / part for part in ("public", "public/2026", "public/2026/11", "public/2026/11/20"))]
    synced = [f"directory {folder.stat().st_ino}" for folder in folders]
    assert steps == [*synced[:-1], "file", "link", synced[-1]]
    await storage.close()


async def test_directories_removed_while_it_runs_are_made_again(local: LocalStorage, root: Path) -> None:
    await local.upload(KEY, image(), content_type=PNG)
    await local.delete(KEY)
    for directory in ("public/2026/11/20", "public/2026/11", "public/2026", "public"):
        (root / directory).rmdir()
    await local.upload(KEY, image(), content_type=PNG)
    assert await read(local, KEY) == image()


async def test_a_key_below_an_object_is_unsupported_and_one_above_is_taken(local: LocalStorage) -> None:
    await local.upload("public/a/b.png", image(), content_type=PNG)
    with pytest.raises(Unsupported):
        await local.upload("public/a/b.png/c.png", image(), content_type=PNG)
    with pytest.raises(ObjectExists):
        await local.upload("public/a", image(), content_type=PNG)
    assert not await local.exists("public/a/b.png/c.png")
    assert not await local.delete("public/a/b.png/c.png")


async def test_a_segment_too_long_for_a_file_name_is_no_key_here(local: LocalStorage, root: Path) -> None:
    for key in (f"public/{'x' * 256}", f"public/{'é' * 128}/a.png"):
        with pytest.raises(InvalidKey, match="255"):
            await local.upload(key, image(), content_type=PNG)
        with pytest.raises(InvalidKey):
            await local.exists(key)
        assert local.at_hand(key) is None
        assert await local.cleanup_failed_assets([key]) == ()
    assert tree(root) <= {"public"}


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system cannot be asked to forget what it has read")
async def test_what_the_memory_no_longer_holds_is_read_only_by_who_can_wait(local: LocalStorage, root: Path) -> None:
    data = image(side=590)
    await local.upload(KEY, data, content_type=PNG)
    descriptor = os.open(root / KEY, os.O_RDONLY)
    os.posix_fadvise(descriptor, 512 * 1024, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    found = local.at_hand(KEY)
    assert found is not None
    assert found.read(0, len(data), wait=False) in {None, data}, "never a part"
    assert found.read(0, len(data), wait=True) == data
    assert found.read(0, len(data), wait=False) in {None, data}
    found.close()


# ── Nothing outside ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(b"secret")
    return outside


@pytest.fixture(params=["the kernel says the way", "directory by directory"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "directory by directory":
        monkeypatch.setattr(smart_assets.storage.local, "_HAS_OPEN_FILES", False)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("key", ["public/link.png", "public/folder/secret.png", "link/secret.png"])
async def test_no_symbolic_link_is_followed(local: LocalStorage, root: Path, outside: Path, key: str) -> None:
    await local.upload("public/true/secret.png", image(), content_type=PNG)
    (root / "public/link.png").symlink_to(outside / "secret.png")
    (root / "public/folder").symlink_to(outside)
    (root / "link").symlink_to("public/true")
    before = open_descriptors()

    assert local.at_hand(key) is None
    assert not await local.exists(key)
    with pytest.raises(ObjectNotFound):
        await read(local, key)
    with pytest.raises(ObjectNotFound):
        await local.set_visibility(key, Visibility.PRIVATE)
    assert (await listed(local, "")).keys() == {"public/true/secret.png"}
    with pytest.raises(StorageError):
        await local.upload(key, image(), content_type=PNG)
    with pytest.raises(StorageError):
        await local.upload(f"{key.rpartition('/')[0]}/link.png/new.png", image(), content_type=PNG)
    await local.delete(key)

    assert open_descriptors() == before
    assert tree(outside) == {"secret.png"}
    assert (outside / "secret.png").read_bytes() == b"secret"
    assert await read(local, "public/true/secret.png") == image()


@pytest.mark.usefixtures("way")
async def test_what_is_no_file_is_no_object_and_nobody_waits_for_it(local: LocalStorage, root: Path) -> None:
    await local.upload(KEY, image(), content_type=PNG)
    os.mkfifo(root / "public/pipe")
    before = open_descriptors()
    assert local.at_hand("public/pipe") is None
    assert not await local.exists("public/pipe")
    with pytest.raises(ObjectNotFound):
        await read(local, "public/pipe")
    assert (await listed(local, "")).keys() == {KEY}
    assert open_descriptors() == before


async def test_list_passes_over_what_is_no_key(local: LocalStorage, root: Path) -> None:
    await local.upload(KEY, image(), content_type=PNG)
    (root / "public/cafe\u0301.png").write_bytes(b"not NFC")
    (root / "public/back\\slash.png").write_bytes(b"a backslash")
    (root / os.fsdecode(b"public/\xff.png")).write_bytes(b"not UTF-8")
    assert (await listed(local, "")).keys() == {KEY}


@pytest.mark.parametrize("key", ["../outside.png", "public/../../outside.png", "/outside.png"])
async def test_a_hostile_key_touches_nothing(local: LocalStorage, tmp_path: Path, key: str) -> None:
    before = tree(tmp_path)
    with pytest.raises(InvalidKey):
        await local.upload(key, image(), content_type=PNG)
    assert tree(tmp_path) == before


# ── What goes wrong ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.EFBIG, StorageFull),
        (errno.EACCES, StorageError),
        (errno.EROFS, StorageError),
        (errno.EXDEV, StorageError),
        (errno.EIO, StorageUnavailable),
        (errno.ESTALE, StorageUnavailable),
    ],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else "",
)
async def test_what_the_disk_answers_is_told_without_paths_and_leaves_nothing(
    root: Path, temporary_dir: Path, tmp_path: Path, number: int, expected: type[StorageError]
) -> None:
    storage = LinksRefused("local", root, temporary_dir)
    storage.reason = number
    with pytest.raises(StorageError) as caught:
        await storage.upload(KEY, image(), content_type=PNG)
    assert type(caught.value) is expected
    assert (caught.value.storage, caught.value.key) == ("local", KEY)
    assert str(tmp_path) not in str(caught.value)
    assert files_in(temporary_dir) == set()
    assert await listed(storage, "") == {}
    await storage.close()


@pytest.mark.parametrize("way", ["bytes", "file"])
def test_a_disk_that_takes_no_more_is_full_and_nothing_half_stays(root: Path, temporary_dir: Path, way: str) -> None:
    # The kernel's limit on a file's size makes a write stop halfway, as a full disk does.
    program = """
        import asyncio, pathlib, resource, sys
        from smart_assets.storage.errors import StorageFull
        from smart_assets.storage.local import LocalStorage
        root, temporary_dir, way = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
        async def main():
            storage = LocalStorage("local", root, temporary_dir)
            source = bytes(3_000_000)
            if way == "file":
                root.parent.joinpath("upload").write_bytes(source)
                source = root.parent / "upload"
            resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
            try:
                await storage.upload("public/a.png", source, content_type="image/png")
            except StorageFull as error:
                print(error.detail)
        asyncio.run(main())
    """
    writer = run(program, root, temporary_dir, way)
    assert "no room left on the storage local" in writer.communicate(timeout=60)[0]
    assert files_in(temporary_dir) == set()
    assert tree(root) == {"public"}


def unmount(root: Path) -> None:
    root.rename(root.with_name("elsewhere"))


async def test_a_root_that_is_gone_is_an_unreachable_storage_not_an_empty_one(local: LocalStorage, root: Path) -> None:
    await local.upload(KEY, image(), content_type=PNG)
    unmount(root)
    calls: list[Callable[[], object]] = [
        lambda: local.stat(KEY),
        lambda: local.exists(KEY),
        lambda: local.delete(KEY),
        lambda: read(local, KEY),
        lambda: listed(local, ""),
        lambda: local.upload(KEY, image(), content_type=PNG),
        lambda: local.set_visibility(KEY, Visibility.PRIVATE),
        local.check,
    ]
    for call in calls:
        with pytest.raises(StorageUnavailable):
            await call()  # type: ignore[misc]
    assert await local.cleanup_failed_assets([KEY]) == (KEY,)
    assert "assets" not in tree(root.parent)


# ── Moves ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("died", ["before the link", "before the unlink", "after the unlink"])
@pytest.mark.parametrize("then", [Visibility.PRIVATE, Visibility.PUBLIC])
async def test_a_move_broken_off_is_finished_or_undone(
    local: LocalStorage, root: Path, died: str, then: Visibility
) -> None:
    await local.upload(KEY, image(), content_type=PNG)
    (root / PRIVATE_KEY).parent.mkdir(parents=True)
    if died != "before the link":
        (root / PRIVATE_KEY).hardlink_to(root / KEY)
    if died == "after the unlink":
        (root / KEY).unlink()

    start, end = (KEY, PRIVATE_KEY) if then is Visibility.PRIVATE else (PRIVATE_KEY, KEY)
    assert (await local.set_visibility(start, then)).key == end
    assert (await listed(local, "")).keys() == {end}
    assert await read(local, end) == image()


async def test_moves_in_opposite_directions_never_lose_the_object(local: LocalStorage) -> None:
    await local.upload(KEY, image(), content_type=PNG)

    async def move(key: str, visibility: Visibility) -> None:
        with suppress(ObjectNotFound):  # moved back between one look and the other
            await local.set_visibility(key, visibility)

    for _round in range(30):
        async with anyio.create_task_group() as group:
            for _pair in range(3):
                group.start_soon(move, KEY, Visibility.PRIVATE)
                group.start_soon(move, PRIVATE_KEY, Visibility.PUBLIC)
    keys = (await listed(local, "")).keys()
    assert len(keys) == 1
    assert await read(local, next(iter(keys))) == image()


# ── Several processes ───────────────────────────────────────────────────────────────────────────────────────────────

WRITER = """
    import asyncio, errno, os, sys
    from pathlib import Path
    from smart_assets.storage.errors import ObjectExists
    from smart_assets.storage.local import LocalStorage
    class LinksRefused(LocalStorage):
        def _link(self, *arguments, **names):
            raise OSError(errno.EPERM, "no links here")
    async def main(kind, mark, root, temporary_dir):
        storage = {"links": LocalStorage, "no links": LinksRefused}[kind]("local", Path(root), Path(temporary_dir))
        sys.stdin.readline()
        won = []
        for number in range(100):
            try:
                await storage.upload(f"public/{number}.png", mark.encode() * 1000, content_type="image/png")
                won.append(number)
            except ObjectExists:
                pass
        print(*won)
    asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("kind", ["links", "no links"])
def test_of_several_processes_exactly_one_wins_each_key(kind: str, root: Path, temporary_dir: Path) -> None:
    writers = {mark: run(WRITER, kind, mark, root, temporary_dir) for mark in "abc"}
    for writer in writers.values():
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    won = {mark: writer.communicate(timeout=60)[0].split() for mark, writer in writers.items()}
    assert sorted(int(number) for numbers in won.values() for number in numbers) == list(range(100))
    for mark, numbers in won.items():
        for number in numbers:
            assert (root / f"public/{number}.png").read_text() == mark * 1000


async def test_a_lock_dies_with_the_process_that_held_it(root: Path, temporary_dir: Path) -> None:
    program = """
        import sys, time
        from pathlib import Path
        from smart_assets.storage.local import LocalStorage
        with LocalStorage("local", Path(sys.argv[1]), Path(sys.argv[2]))._lock():
            print("locked", flush=True)
            time.sleep(60)
    """
    holder = run(program, root, temporary_dir)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    storage = LinksRefused("local", root, temporary_dir)
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: storage.upload(KEY, image(), content_type=PNG))
        await anyio.sleep(0.1)
        assert not (root / KEY).exists(), "somebody else has the lock"
        holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert await read(storage, KEY) == image()
    await storage.close()
