"""A catalogue's tables as they are, read without the service's code: with SQLite's own driver, or PostgreSQL's.

A catalogue is in its data directory, unless a file beside that, `catalogue.url`, says otherwise.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

_ELSEWHERE = "catalogue.url"

Row = dict[str, Any]


class Tables(Protocol):
    """One state of all the tables. Ids and JSON are the text that the database keeps."""

    def select(self, query: str) -> list[Row]:
        """The rows, by the names of their columns."""
        ...

    def damage(self) -> str | None:
        """What the database itself says is wrong with it."""
        ...


def wrong_credits(tables: Tables) -> Iterator[str]:
    """What the accounts, the ledger and the assets, of which nobody is at work on any, say against each other."""
    balance: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    charged: Counter[UUID] = Counter()
    for entry in tables.select("SELECT owner, kind, amount, asset_id FROM credit_entries"):
        balance[entry["owner"]] += entry["amount"]
        if entry["kind"] == "charge":
            spent[entry["owner"]] -= entry["amount"]
            if entry["asset_id"]:
                charged[UUID(entry["asset_id"])] -= entry["amount"]
    used: Counter[str] = Counter()
    for day in tables.select("SELECT owner, credits FROM credit_usage"):
        used[day["owner"]] += day["credits"]
    if +used != +spent:
        yield f"the days come to {dict(used)}, the charges to {dict(spent)}"
    accounts = {row["owner"]: row for row in tables.select("SELECT * FROM credit_accounts")}
    for owner in accounts.keys() | balance.keys():
        there = accounts.get(owner, {"balance": 0, "reserved": 0, "spent": 0})
        found = (there["balance"], there["reserved"], there["spent"])
        if found != (balance[owner], 0, spent[owner]):
            yield f"{owner} has {found} credits, and should have {(balance[owner], 0, spent[owner])}"
    for row in tables.select("SELECT id, credits_used, credits_reserved FROM assets"):
        if row["credits_reserved"] is not None:
            yield f"{UUID(row['id'])} holds {row['credits_reserved']} credits"
        if charged[UUID(row["id"])] != (row["credits_used"] or 0):
            yield f"{UUID(row['id'])} cost {row['credits_used']}, and {charged[UUID(row['id'])]} were charged for it"


def keep_elsewhere(data: Path, url: str) -> None:
    """Say that the catalogue of a data directory is in PostgreSQL."""
    (data.parent / _ELSEWHERE).write_text(url)


@contextmanager
def tables_of(data: Path) -> Iterator[Tables]:
    """The tables of a data directory's catalogue."""
    elsewhere = data.parent / _ELSEWHERE
    if elsewhere.exists():
        with _postgresql(elsewhere.read_text()) as tables:
            yield tables
        return
    with closing(sqlite3.connect(data / "catalogue.sqlite3", timeout=60)) as connection:
        connection.row_factory = sqlite3.Row
        connection.execute("BEGIN")
        yield _Sqlite(connection)


class _Sqlite:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def select(self, query: str) -> list[Row]:
        return [dict(row) for row in self._connection.execute(query)]

    def damage(self) -> str | None:
        (said,) = self._connection.execute("PRAGMA integrity_check").fetchone()
        return None if said == "ok" else str(said)


@contextmanager
def _postgresql(url: str) -> Iterator[Tables]:
    import psycopg
    from psycopg.rows import dict_row
    from psycopg.types.string import TextLoader

    class Postgresql:
        def select(self, query: str) -> list[Row]:
            return connection.execute(query.encode()).fetchall()

        def damage(self) -> str | None:
            return None

    with psycopg.connect(url, row_factory=dict_row) as connection:
        for kind in ("json", "uuid"):
            connection.adapters.register_loader(kind, TextLoader)
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        yield Postgresql()
