"""Reading here and there in bytes or in a file, without holding the file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from smart_assets.errors import CorruptImage

WINDOW = 256 * 1024
"""Bytes of a file held at once."""

_HOP = 4 * 1024
"""Bytes read where the walk looks at a few and jumps on."""

_MAX_READ = 1024 * 1024
_MAX_READS = 250_000

Piece = range | bytes
"""Part of an output: a range of the source's bytes, or bytes of its own."""


class Reader:
    """Bytes at any offset. Whatever lies past the end is CorruptImage, and so is a file of absurdly many parts."""

    window_bytes = WINDOW

    def __init__(self, source: bytes | FileIO, size: int) -> None:
        """`size` in bytes; a file stays the caller's to close."""
        self.size = size
        self._file = None if isinstance(source, bytes) else source
        self._window = source if isinstance(source, bytes) else b""
        self._start = 0
        self._reads_left = _MAX_READS

    def read(self, at: int, length: int) -> bytes:
        """Exactly `length` bytes from `at`."""
        self._reads_left -= 1
        if self._reads_left < 0 or length > _MAX_READ:
            raise CorruptImage("damaged: more parts, or larger ones, than an image has")
        begin = at - self._start
        if begin < 0 or begin + length > len(self._window):
            self.require(at + length)
            self._load(at, max(length, _HOP))
            begin = 0
        return self._window[begin : begin + length]

    def read_some(self, at: int, length: int) -> bytes:
        """As many of `length` bytes from `at` as there are."""
        return self.read(at, min(length, self.size - at))

    def integer(self, at: int, length: int) -> int:
        """A big-endian unsigned number of `length` bytes."""
        return int.from_bytes(self.read(at, length))

    def window(self, at: int) -> tuple[bytes, int]:
        """Some bytes that hold offset `at`, and the offset they begin at."""
        if not self._start <= at < self._start + len(self._window):
            self.require(at + 1)
            self._load(at, self.window_bytes)
        return self._window, self._start

    def find(self, pattern: re.Pattern[bytes], at: int) -> int:
        """Where the first match of a pattern two bytes wide begins, at or after `at`."""
        while True:
            self.require(at + 2)
            if not self._start <= at < self._start + len(self._window) - 1:
                self._load(at, self.window_bytes)
            if match := pattern.search(self._window, at - self._start):
                return self._start + match.start()
            # A match may lie across two windows: the next one begins with this one's last byte.
            at = self._start + len(self._window) - 1

    def require(self, end: int) -> None:
        """Raises CorruptImage where the file has fewer than `end` bytes."""
        if end > self.size:
            raise CorruptImage(f"truncated: the image goes on past the {self.size} bytes there are")

    def _load(self, at: int, length: int) -> None:
        length = min(length, self.size - at)
        self._window = b""
        if self._file is not None:
            self._file.seek(at)
            self._window = self._file.read(length)
        self._start = at
        if len(self._window) < length:
            raise CorruptImage("truncated: the file grew shorter while it was read")


@contextmanager
def open_reader(source: bytes | Path) -> Iterator[Reader]:
    """A reader over bytes, or over a file that is closed at the end."""
    if isinstance(source, bytes):
        yield Reader(source, len(source))
        return
    with FileIO(source) as file:
        yield Reader(file, file.seek(0, 2))
