"""One file's bytes on their way in: counted, hashed, in memory while they are few, in a temporary file past that."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from smart_assets.errors import BodyTooLarge, no_space
from smart_assets.threads import Threads

MEMORY_BYTES = 1024 * 1024
"""A file up to this size stays in memory."""

_BATCH_BYTES = 512 * 1024
# One writev takes this many buffers. It also bounds what a sender of tiny chunks can make us hold beside the bytes.
_BATCH_CHUNKS = os.sysconf("SC_IOV_MAX")

Chunk = bytes | memoryview


class Spool:
    """Takes one file: `write` its chunks, then `finish`; from then on `size`, `sha256` and `source` hold.

    An async context manager: at its end, however it comes, no temporary file is left. One task uses it at a time.
    """

    def __init__(self, directory: Path, max_bytes: int, threads: Threads, *, memory_bytes: int = MEMORY_BYTES) -> None:
        """`directory` exists and is where a temporary file goes once there are more than `memory_bytes`."""
        self.size = 0
        """Bytes so far."""
        self.sha256 = ""
        """64 hex digits, once finished."""
        self.source: bytes | Path = b""
        """Where the finished file is: in memory, or in a temporary file that lives as long as the spool."""
        self._directory = directory
        self._max_bytes = max_bytes
        self._threads = threads
        self._memory_bytes = memory_bytes
        self._hash = hashlib.sha256()
        self._chunks: list[Chunk] = []
        self._buffered = 0
        self._fd: int | None = None
        self._files: list[Path] = []
        # Set before the first hop that may leave a file behind.
        self._on_disk = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.discard()

    async def write(self, chunk: Chunk) -> None:
        """Take the next bytes; `chunk` is kept, not copied. Raises BodyTooLarge, NoSpace."""
        self.size += len(chunk)
        if self.size > self._max_bytes:
            raise BodyTooLarge(f"the file is larger than the limit of {self._max_bytes} bytes")
        self._chunks.append(chunk)
        self._buffered += len(chunk)
        if self._on_disk:
            full = self._buffered >= _BATCH_BYTES
        else:
            # A hop to a thread costs as much as hashing 100 KiB, and a chunk that has just come is still in the cache.
            self._hash.update(chunk)
            full = self._buffered > self._memory_bytes
        if full or len(self._chunks) >= _BATCH_CHUNKS:
            await self._spill()

    async def finish(self) -> None:
        """No more bytes follow. Raises NoSpace."""
        if self._on_disk:
            await self._spill(last=True)
        else:
            self.source = b"".join(self._chunks)
            self._chunks.clear()
        self.sha256 = self._hash.hexdigest()

    async def as_file(self) -> Path:
        """The finished file's path; written now where it was in memory. Raises NoSpace."""
        if isinstance(self.source, Path):
            return self.source
        self._on_disk = True
        return await self._threads.run(partial(self._save, self.source))

    async def replace(self, source: bytes | Path) -> None:
        """Let `source` take the finished file's place: `size`, `sha256` and `source` become its own.

        A file given is the spool's from now on, and is removed with it.
        """
        if isinstance(source, Path):
            self._on_disk = True
            self._files.append(source)
        self.size, self.sha256 = await self._threads.run(partial(_measure, source))
        self.source = source

    async def discard(self) -> None:
        """Remove what there is; more than once does no harm."""
        if not self._on_disk:
            self._forget()
            return
        try:
            await self._threads.run(self._forget)
        finally:
            self._forget()  # does something only where a cancellation came before the thread's turn

    # ── In memory or in a thread ────────────────────────────────────────────────────────────────────────────────────

    async def _spill(self, *, last: bool = False) -> None:
        hashed = not self._on_disk
        self._on_disk = True
        chunks, self._chunks, self._buffered = self._chunks, [], 0
        await self._threads.run(partial(self._append, chunks, hashed=hashed, last=last))

    def _append(self, chunks: Sequence[Chunk], *, hashed: bool, last: bool) -> None:
        with no_space():
            if self._fd is None:
                self._fd, self.source = self._create()
            if not hashed:
                for chunk in chunks:
                    self._hash.update(chunk)
            _write_all(self._fd, chunks)
            if last:
                self._close()

    def _save(self, content: bytes) -> Path:
        with no_space():
            self._fd, path = self._create()
            _write_all(self._fd, [content])
            self._close()
            self.source = path
            return path

    def _create(self) -> tuple[int, Path]:
        fd, name = tempfile.mkstemp(prefix="upload-", dir=self._directory)
        self._files.append(Path(name))
        return fd, self._files[-1]

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _forget(self) -> None:
        self._chunks, self.source = [], b""
        self._close()
        while self._files:
            self._files.pop().unlink(missing_ok=True)


def _measure(source: bytes | Path) -> tuple[int, str]:
    if isinstance(source, bytes):
        return len(source), hashlib.sha256(source).hexdigest()
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


def _write_all(fd: int, chunks: Sequence[Chunk]) -> None:
    written = os.writev(fd, chunks)
    if written == sum(map(len, chunks)):
        return
    left = memoryview(b"".join(chunks))[written:]
    while left:
        left = left[os.write(fd, left) :]
