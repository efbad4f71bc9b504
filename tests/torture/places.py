"""Where objects lie, looked at without the service's code."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol


class Place(Protocol):
    """The objects of one storage."""

    storage: str
    """What requests call it."""
    settings: Mapping[str, str]
    """What leads the service to it."""

    def objects(self) -> dict[str, bytes]:
        """What there is, by key."""
        ...

    def rubbish(self) -> list[str]:
        """What lies there and is no object."""
        ...


class Folder:
    """A local storage of a data directory: the service's own, unless another is named."""

    def __init__(self, data_dir: Path, storage: str = "local", folder: str = "assets") -> None:
        self.storage = storage
        self.settings: Mapping[str, str] = {}
        self._root = data_dir / folder

    def objects(self) -> dict[str, bytes]:
        found = {}
        for path in files_below(self._root):
            with suppress(FileNotFoundError):  # removed meanwhile: the next look is the one that counts
                found[path.relative_to(self._root).as_posix()] = path.read_bytes()
        return found

    def rubbish(self) -> list[str]:
        return [str(path) for path in files_below(self._root) if path.is_symlink()]


def files_below(root: Path) -> Iterator[Path]:
    """Everything in a directory, and in those below it, but for the directories; they may go away meanwhile."""
    for directory, _, names in os.walk(root):
        yield from (Path(directory, name) for name in names)
