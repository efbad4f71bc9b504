"""Who is calling, and what they may do."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from pydantic import SecretStr

from smart_assets.access.api_keys import DEFAULT_OWNER, PREFIX, ApiKeys, Caller
from smart_assets.access.scopes import EVERY_SCOPE, Scope
from smart_assets.catalogue.database import Database
from smart_assets.errors import CatalogueUnavailable, Forbidden, KeyNotFound, Unauthorized
from smart_assets.settings import Settings

KEYS = ("first-key-0123456789", "second-key-0123456789")
READ = frozenset({Scope.READ})


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database.open(f"sqlite:///{tmp_path}/catalogue.sqlite3")
    yield database
    await database.close()


@pytest.fixture
def keys(database: Database) -> ApiKeys:
    return ApiKeys(Settings(api_keys=tuple(SecretStr(key) for key in KEYS)), database)


@pytest.mark.parametrize("key", KEYS)
async def test_any_of_the_settings_keys_opens_everything(keys: ApiKeys, key: str) -> None:
    for header in (f"Bearer {key}", f"bearer {key}"):
        assert await keys.authenticate(header) == Caller(DEFAULT_OWNER, EVERY_SCOPE, settings_key=KEYS.index(key))


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", f"Basic {KEYS[0]}", KEYS[0], f"Bearer {KEYS[0]}x", "Bearer sa_x"],
)
async def test_anything_else_does_not(keys: ApiKeys, header: str | None) -> None:
    with pytest.raises(Unauthorized):
        await keys.authenticate(header)


async def test_without_keys_in_the_settings_whoever_sends_none_may_do_everything(database: Database) -> None:
    keys = ApiKeys(Settings(), database)
    assert await keys.authenticate(None) == Caller(DEFAULT_OWNER, EVERY_SCOPE)
    with pytest.raises(Unauthorized):
        await keys.authenticate(f"Bearer {PREFIX}unknown")


async def test_a_key_that_was_made_opens_what_its_scopes_say_until_it_is_revoked(
    keys: ApiKeys, database: Database
) -> None:
    record, secret = await keys.make("website", scopes=READ, owner="ann", expires_at=None)
    elsewhere = ApiKeys(Settings(), database)
    for each in (keys, elsewhere):
        caller = await each.authenticate(f"Bearer {secret}")
        assert (caller.owner, caller.scopes, caller.key_id, caller.sees) == ("ann", READ, record.id, "ann")
    await keys.revoke(record.id)
    with pytest.raises(Unauthorized):
        await elsewhere.authenticate(f"Bearer {secret}")
    with pytest.raises(KeyNotFound):
        await keys.revoke(record.id)
    with pytest.raises(KeyNotFound):
        await keys.revoke(uuid4())


async def test_a_key_ends_when_it_expires(keys: ApiKeys) -> None:
    past, future = (datetime.now(UTC) + timedelta(seconds=seconds) for seconds in (-1, 60))
    _, old = await keys.make("old", scopes=READ, owner="ann", expires_at=past)
    _, new = await keys.make("new", scopes=READ, owner="ann", expires_at=future)
    assert (await keys.authenticate(f"Bearer {new}")).owner == "ann"
    with pytest.raises(Unauthorized, match="expired"):
        await keys.authenticate(f"Bearer {old}")


async def test_of_a_key_nothing_is_kept_that_opens(keys: ApiKeys, tmp_path: Path) -> None:
    _, secret = await keys.make("website", scopes=READ, owner="ann", expires_at=None)
    assert len(secret) > 40
    for file in tmp_path.iterdir():
        assert secret.removeprefix(PREFIX).encode() not in file.read_bytes()


async def test_no_two_keys_are_the_same(keys: ApiKeys) -> None:
    made = [await keys.make("same", scopes=READ, owner="ann", expires_at=None) for _ in range(5)]
    assert len({secret for _, secret in made}) == len({record.id for record, _ in made}) == 5


async def test_its_use_is_noted_once_an_hour(keys: ApiKeys, database: Database) -> None:
    record, secret = await keys.make("website", scopes=READ, owner="ann", expires_at=None)
    await keys.authenticate(f"Bearer {secret}")
    (first,) = await keys.list()
    await keys.authenticate(f"Bearer {secret}")
    (second,) = await keys.list()
    assert first.last_used_at is not None
    assert second == first
    an_age_ago = datetime.now(UTC) - timedelta(hours=2)
    with_age = type(record)(**{name: getattr(record, name) for name in record.__slots__} | {"last_used_at": an_age_ago})
    await database.write(lambda catalogue: catalogue.note_use(with_age))
    await keys.authenticate(f"Bearer {secret}")
    (third,) = await keys.list()
    assert third.last_used_at is not None
    assert third.last_used_at > an_age_ago


async def test_a_use_that_cannot_be_noted_keeps_nobody_out(
    keys: ApiKeys, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, secret = await keys.make("website", scopes=READ, owner="ann", expires_at=None)

    async def refuse(_work: object) -> None:
        raise CatalogueUnavailable("away")

    monkeypatch.setattr(database, "write", refuse)
    assert (await keys.authenticate(f"Bearer {secret}")).owner == "ann"


@pytest.mark.parametrize("scope", Scope)
def test_who_lacks_a_scope_may_not(scope: Scope) -> None:
    Caller("ann", frozenset({scope})).need(scope)
    Caller("ann", frozenset({Scope.ADMIN})).need(scope)
    with pytest.raises(Forbidden, match=scope.value):
        Caller("ann", EVERY_SCOPE - {scope, Scope.ADMIN}).need(scope)
    with pytest.raises(Forbidden):
        Caller("ann", frozenset()).need(scope)


def test_only_an_admin_sees_what_is_not_theirs() -> None:
    assert Caller("ann", EVERY_SCOPE - {Scope.ADMIN}).sees == "ann"
    assert Caller("ann", frozenset({Scope.ADMIN})).sees is None
