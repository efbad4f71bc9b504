"""A spool holds exactly the bytes written to it, and leaves no file behind."""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smart_assets.assets.spool import MEMORY_BYTES, Spool
from smart_assets.errors import BodyTooLarge, NoSpace
from smart_assets.threads import Threads

THREADS = Threads("test")
CHUNK = os.urandom(64 * 1024)
LARGE = CHUNK * 40
"""2.5 MiB: past what stays in memory and past a batch after it."""


def files_in(directory: Path) -> list[Path]:
    return list(directory.iterdir())


def content_of(spool: Spool) -> bytes:
    return spool.source if isinstance(spool.source, bytes) else spool.source.read_bytes()


async def filled(directory: Path, content: bytes, *, chunk: int = len(CHUNK), max_bytes: int = 1 << 30) -> Spool:
    spool = Spool(directory, max_bytes, THREADS)
    for at in range(0, len(content), chunk):
        await spool.write(content[at : at + chunk])
    await spool.finish()
    return spool


async def test_a_small_file_stays_in_memory(tmp_path: Path) -> None:
    async with await filled(tmp_path, CHUNK) as spool:
        assert spool.source == CHUNK
        assert files_in(tmp_path) == []


async def test_a_large_file_goes_to_a_private_file_that_is_gone_afterwards(tmp_path: Path) -> None:
    async with await filled(tmp_path, LARGE) as spool:
        assert isinstance(spool.source, Path)
        assert spool.source.parent == tmp_path
        assert stat.S_IMODE(spool.source.stat().st_mode) == 0o600
        assert spool.source.read_bytes() == LARGE
        assert spool.sha256 == hashlib.sha256(LARGE).hexdigest()
    assert files_in(tmp_path) == []


async def test_the_largest_file_kept_in_memory_has_exactly_the_bytes_allowed_there(tmp_path: Path) -> None:
    async with await filled(tmp_path, bytes(MEMORY_BYTES)) as spool:
        assert isinstance(spool.source, bytes)
    async with await filled(tmp_path, bytes(MEMORY_BYTES + 1)) as spool:
        assert isinstance(spool.source, Path)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=300)), st.integers(0, 2000))
async def test_size_hash_and_bytes_are_those_written_however_they_came(chunks: list[bytes], memory_bytes: int) -> None:
    with TemporaryDirectory() as directory:
        async with Spool(Path(directory), 1 << 30, THREADS, memory_bytes=memory_bytes) as spool:
            for chunk in chunks:
                await spool.write(memoryview(chunk))
            await spool.finish()
            whole = b"".join(chunks)
            assert (content_of(spool), spool.size) == (whole, len(whole))
            assert spool.sha256 == hashlib.sha256(whole).hexdigest()
            assert (await spool.as_file()).read_bytes() == whole
        assert files_in(Path(directory)) == []


async def test_a_sender_of_single_bytes_is_taken_whole(tmp_path: Path) -> None:
    content = os.urandom(5000)
    async with await filled(tmp_path, content, chunk=1) as spool:
        assert content_of(spool) == content
        assert spool.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("content", [CHUNK, LARGE], ids=["small", "large"])
async def test_a_file_of_exactly_the_limit_is_taken_and_one_byte_more_is_not(tmp_path: Path, content: bytes) -> None:
    async with await filled(tmp_path, content, max_bytes=len(content)) as spool:
        assert spool.size == len(content)
        with pytest.raises(BodyTooLarge, match=str(len(content))):
            await spool.write(b"x")
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("content", [b"", CHUNK, LARGE], ids=["empty", "small", "large"])
async def test_any_file_can_be_had_as_a_file(tmp_path: Path, content: bytes) -> None:
    async with await filled(tmp_path, content) as spool:
        path = await spool.as_file()
        assert path.read_bytes() == content
        assert spool.source == path
        assert await spool.as_file() == path
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("before", [CHUNK, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("as_file", [False, True], ids=["by bytes", "by a file"])
async def test_other_bytes_can_take_the_place_of_a_file(tmp_path: Path, *, before: bytes, as_file: bool) -> None:
    stripped = b"without metadata"
    source: bytes | Path = stripped
    if as_file:
        source = tmp_path / "made-by-a-worker"
        source.write_bytes(stripped)
    async with await filled(tmp_path, before) as spool:
        await spool.replace(source)
        assert (spool.source, spool.size) == (source, len(stripped))
        assert spool.sha256 == hashlib.sha256(stripped).hexdigest()
        assert (await spool.as_file()).read_bytes() == stripped
    assert files_in(tmp_path) == []


async def test_discarding_twice_does_no_harm(tmp_path: Path) -> None:
    spool = await filled(tmp_path, LARGE)
    await spool.discard()
    await spool.discard()
    assert files_in(tmp_path) == []


async def test_a_file_somebody_else_removed_can_still_be_discarded(tmp_path: Path) -> None:
    async with await filled(tmp_path, LARGE) as spool:
        (await spool.as_file()).unlink()


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file may grow past `size` bytes, and the system says so as it does of a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_full_disk_is_said_and_what_was_written_removed(tmp_path: Path) -> None:
    async with Spool(tmp_path, 1 << 30, THREADS) as spool:
        with disk_of(100_000), pytest.raises(NoSpace):
            await spool.write(LARGE)
    async with await filled(tmp_path, CHUNK * 2) as spool:
        with disk_of(100_000), pytest.raises(NoSpace):
            await spool.as_file()
    assert files_in(tmp_path) == []


async def spill_forever(directory: Path, begun: asyncio.Event) -> None:
    async with Spool(directory, 1 << 40, THREADS) as spool:
        while True:
            await spool.write(LARGE)
            begun.set()


@pytest.mark.parametrize("turns", range(8))
@pytest.mark.parametrize("times", [1, 3], ids=["once", "and again"])
async def test_nothing_is_left_when_the_task_is_cancelled_amid_a_write(tmp_path: Path, turns: int, times: int) -> None:
    begun = asyncio.Event()
    task = asyncio.create_task(spill_forever(tmp_path, begun))
    await begun.wait()
    for _ in range(turns):
        await asyncio.sleep(0)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert files_in(tmp_path) == []


async def test_nothing_is_left_when_the_scope_around_is_cancelled(tmp_path: Path) -> None:
    begun = asyncio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(spill_forever, tmp_path, begun)
        await begun.wait()
        tasks.cancel_scope.cancel()
    assert files_in(tmp_path) == []


def open_files_in(directory: Path) -> list[Path]:
    links = list(Path("/proc/self/fd").iterdir())
    return [link.readlink() for link in links if link.is_symlink() and link.readlink().is_relative_to(directory)]


async def test_no_file_stays_open(tmp_path: Path) -> None:
    async with Spool(tmp_path, len(LARGE), THREADS) as spool:
        await spool.write(LARGE)
        assert len(open_files_in(tmp_path)) == 1
        await spool.finish()
        assert open_files_in(tmp_path) == []
    async with Spool(tmp_path, len(LARGE), THREADS) as spool:
        await spool.write(LARGE)
    assert open_files_in(tmp_path) == []
