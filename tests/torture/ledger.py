"""What callers asked for and what they were told: what an audit holds the service to.

A request whose answer never came may have been carried out or not, each whole. What an audit then finds is what it has
to be from there on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from hashlib import sha256


class Answer(Enum):
    """What came of a request."""

    NONE = auto()
    MADE = auto()
    REFUSED = auto()


class Fate(Enum):
    """What must have become of an asset."""

    KEPT = auto()
    GONE = auto()
    UNSURE = auto()


@dataclass
class Asset:
    """One asset a caller knows of, with the `sizes` it was uploaded with.

    `visibilities` and `storages` are those it may have, and be at, `added` the sizes it may have got since: one of
    each, unless a change was never answered.
    """

    id: str
    sha256: str
    sizes: tuple[str, ...]
    visibilities: set[str]
    storages: set[str]
    fate: Fate = Fate.KEPT
    added: set[tuple[str, ...]] = field(default_factory=lambda: {()})


@dataclass
class Upload:
    """One request for an upload. Its `tag` is on every asset it makes, so that each can be told whose it is."""

    tag: str
    contents: tuple[bytes, ...] = field(repr=False)
    sizes: tuple[str, ...]
    visibility: str
    storage: str
    batch: bool = False
    key: str | None = None
    media_type: str | None = None
    """Of a body that is no form."""
    ticket: str | None = None
    """The way to where it is sent, of one that needs no key; it is the `key` under which it is sent again."""
    answer: Answer = Answer.NONE
    replayed: bool = False
    """Whether the answer, when it came, was that of an earlier request."""
    assets: list[Asset] = field(default_factory=list)

    def made(self, ids: Iterable[str]) -> None:
        """It was answered with these assets, in the order of its files."""
        self.answer = Answer.MADE
        self.assets = [
            Asset(asset_id, sha256(content).hexdigest(), self.sizes, {self.visibility}, {self.storage})
            for asset_id, content in zip(ids, self.contents, strict=True)
        ]


@dataclass(frozen=True)
class Found:
    """What an audit found of an asset."""

    id: str
    sha256: str
    visibility: str
    storage: str
    sizes: tuple[str, ...]


class Ledger:
    """Every upload, and through them every asset."""

    def __init__(self) -> None:
        """Nobody has asked for anything."""
        self.uploads: dict[str, Upload] = {}
        self._forgotten: set[str] = set()

    def ever(self) -> set[str]:
        """The ids of all assets there ever were, as far as callers know."""
        return self._forgotten | {asset.id for asset in self.assets()}

    def assets(self) -> Iterator[Asset]:
        """Those callers know of, gone ones too."""
        for upload in self.uploads.values():
            yield from upload.assets

    def kept(self) -> list[Asset]:
        """Those that must be there, at one visibility and in one storage."""
        return [
            asset
            for asset in self.assets()
            if asset.fate is Fate.KEPT and len(asset.visibilities) == len(asset.storages) == 1
        ]

    def to_retry(self) -> list[Upload]:
        """Requests under a key that were never answered."""
        return [upload for upload in self.uploads.values() if upload.key and upload.answer is Answer.NONE]

    def learn(self, found: Mapping[str, list[Found]]) -> None:
        """Take what an audit found, by tag, for what must be there from now on; forget requests nothing is left of."""
        for tag, upload in self.uploads.items():
            there = {one.id: one for one in found.get(tag, [])}
            if upload.answer is Answer.NONE:
                by_content = {one.sha256: one.id for one in there.values()}
                wanted = [sha256(content).hexdigest() for content in upload.contents]
                if by_content.keys() == set(wanted):
                    upload.made(by_content[content] for content in wanted)
                else:
                    upload.answer = Answer.REFUSED
            for asset in upload.assets:
                asset.fate = Fate.KEPT if asset.id in there else Fate.GONE
                if asset.id in there:
                    asset.visibilities = {there[asset.id].visibility}
                    asset.added = {there[asset.id].sizes[len(asset.sizes) :]}
                    asset.storages = {there[asset.id].storage}
        self._forgotten = self.ever()
        self.uploads = {
            tag: upload
            for tag, upload in self.uploads.items()
            if any(asset.fate is Fate.KEPT for asset in upload.assets)
        }
